"""Figure: the computable certificate beside the suboptimality that it bounds, medians against the number of pairs.

Shapes: M methods, K values of N.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nashpo.figures import style
from nashpo.figures.offline_style import method_styles

TITLE = "A certificate from the data alone, beside the truth"
CAPTION = (
    "Medians over the replicates of two numbers for one and the same policy, on the rare-arm instance: its"
    " suboptimality, which only the true reward tells (solid), and the certificate, which is computed from the"
    " preference pairs alone and bounds the suboptimality of every policy at once with confidence 95 % (dashed). It is"
    " as good for policies of other methods as for SPAC's, and it exposes what maximum likelihood risks. Medians hide"
    " rare failures: a method whose typical run is good can be bad on average, as the figure of suboptimality against N"
    " shows. Made by `nashpo verify`."
)
NEEDS = ("certificate/N", "certificate/methods", "certificate/bound", "certificate/truth")
LOWEST = 1e-6


def draw(results: Mapping[str, np.ndarray]) -> Figure:
    """Two lines per method, log-log, and the room between them.

    Parameters
    ----------
    results : mapping
        Holds `NEEDS`: ``certificate/N`` (K,), ``methods`` (M,), ``bound`` and ``truth`` (M, K).

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If a key is missing.
    """
    style.need(results, NEEDS, "offline_certificate")
    N = np.asarray(results["certificate/N"], dtype=np.float64)
    with style.apply():
        fig = style.figure(5.4)
        ax = fig.add_subplot()
        looks = method_styles(results["certificate/methods"])
        for look, bound, truth in zip(looks, results["certificate/bound"], results["certificate/truth"], strict=True):
            high, low = np.maximum(bound, LOWEST), np.maximum(truth, LOWEST)
            ax.fill_between(N, low, high, color=look.color, alpha=0.1, linewidth=0, zorder=1)
            ax.plot(N, low, **look.line(linestyle="-", zorder=3))
            ax.plot(N, high, **look.line(linestyle=(0, (5, 2.5)), markerfacecolor="white", label="_", zorder=3))
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xticks(N, [f"{int(n):,}" for n in N])
        ax.minorticks_off()
        style.decades(ax.yaxis)
        ax.set_xlabel("N, number of preference pairs")
        ax.set_ylabel("units of reward (medians)")
        style.title(fig, TITLE)
        handles = [Line2D([], [], color=look.color, marker=look.marker, label=look.label) for look in looks]
        kinds = [
            Line2D([], [], color=style.BLACK, linestyle=(0, (5, 2.5)), label="certificate, confidence 95 %"),
            Line2D([], [], color=style.BLACK, label="true suboptimality"),
        ]
        fig.legend(handles=[*kinds, *handles], loc="outside lower center", ncols=2 if len(handles) == 2 else 3)
    return fig
