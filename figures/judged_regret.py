"""Figure: regret by a hidden judge of every method, in one panel per question, with 95 % intervals over replicates.

Shapes: M methods, B replicates.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nashpo.figures import style

LONGEST_LABEL = 34
"""Letters in a line below a panel."""
_COLORS = (
    ("DPO", style.GREY),
    ("IPO", style.GREEN),
    ("χPO", style.ORANGE),
    ("MLE", style.VERMILLION),
    ("behavior", style.BLACK),
)


def draw(results: Mapping[str, np.ndarray], titles: Sequence[str], xlabels: Sequence[str], title: str) -> Figure:
    """One row per method: every replicate, the mean and its interval.

    Parameters
    ----------
    results : mapping
        ``judged/k/methods`` (M,) and ``judged/k/regret`` (M, B) for the panels k = 0, 1, …
    titles, xlabels : sequence of str
        One per panel.
    title : str

    Returns
    -------
    Figure
    """
    from scipy.special import stdtrit

    methods = [str(name) for name in results["judged/0/methods"]]
    with style.apply():
        fig = style.figure(2.0 + 0.32 * len(methods))
        axes = fig.subplots(1, len(titles), squeeze=False, sharey=True)[0]
        for k, (ax, heading) in enumerate(zip(axes, titles, strict=True)):
            regret = np.asarray(results[f"judged/{k}/regret"])
            B = regret.shape[-1]
            half = stdtrit(B - 1, 0.975) * regret.std(axis=-1, ddof=1) / np.sqrt(B)
            _panel(ax, methods, regret, half)
            ax.set_title(heading)
            ax.set_xlabel("\n".join(textwrap.wrap(xlabels[k], LONGEST_LABEL)))
        axes[0].set_yticks(range(len(methods)), methods)
        axes[0].invert_yaxis()
        axes[0].set_ylabel("policy")
        style.title(fig, title)
        grey: dict[str, Any] = {"color": style.GREY, "linestyle": "none"}
        handles = [
            Line2D([], [], marker="o", markersize=8, label="mean and 95 % interval", color=style.BLUE, linewidth=2),
            Line2D([], [], marker="|", markersize=9, label="single replicates", **grey),
            Line2D([], [], color=style.BLUE, linestyle=":", linewidth=1.5, label=f"mean of {methods[0]}"),
        ]
        fig.legend(handles=handles, loc="outside lower center", ncols=3)
    return fig


def _panel(ax: Axes, methods: list[str], regret: np.ndarray, half: np.ndarray) -> None:
    ax.axvline(regret[0].mean(), color=style.BLUE, linestyle=":", linewidth=1.5, zorder=1)
    for row, name in enumerate(methods):
        color = next((c for start, c in _COLORS if name.startswith(start)), style.BLUE)
        ax.plot(regret[row], np.full(regret.shape[-1], row), "|", color=color, alpha=0.35, markersize=9, zorder=2)
        ax.errorbar(
            regret[row].mean(),
            row,
            xerr=half[row],
            fmt="o",
            color=color,
            markersize=8,
            elinewidth=2,
            capsize=4,
            zorder=3,
        )
    ax.set_xlim(left=min(0.0, float(regret.min()) - 0.05))
    ax.grid(axis="y", visible=False)
