"""Figure: suboptimality against the number of pairs N on the rare-arm instance, every method with its slope.

Shapes: M methods, K values of N, B replicates.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from nashpo.figures import style
from nashpo.figures.offline_style import method_styles, small

TITLE = "Rare bad responses: pessimism learns from N pairs"
CAPTION = (
    "Mean suboptimality J(π*) − J(π) against the number N of preference pairs, on the rare-arm instance: two responses"
    " that the data cover, and six bad ones that are each in about two pairs at every N. Bands are 95 % intervals of"
    " the mean over replicates. SPAC takes λ = 2√N; with a constant λ it stalls. Greedy maximum likelihood does not"
    " improve at all, and DPO at a fixed τ cannot fall below ½σ(−1/(2τ)). χPO, another pessimistic method, does better"
    " still on this instance where its τ is chosen well. Slopes are fitted to log mean against log N,"
    " with 95 % bootstrap intervals over the replicates. Made by `nashpo verify`."
)
NEEDS = ("spac/N", "spac/methods", "spac/suboptimality")
LOWEST = 1e-6
"""Suboptimalities are drawn no lower than this: 0 has no logarithm."""
BENEATH = 0.7
"""The guide of slope −½ is drawn at this share of the height at which it would touch the lowest line."""


def draw(results: Mapping[str, np.ndarray]) -> Figure:
    """Log-log lines with bands.

    Parameters
    ----------
    results : mapping
        Holds `NEEDS`: ``spac/N`` (K,), ``spac/methods`` (M,), ``spac/suboptimality`` (M, K, B).

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If a key is missing.
    """
    style.need(results, NEEDS, "offline_rates")
    N = np.asarray(results["spac/N"], dtype=np.float64)
    values = np.asarray(results["spac/suboptimality"])
    with style.apply():
        fig = style.figure(7.0)
        ax = fig.add_subplot()
        for method, look in enumerate(method_styles(results["spac/methods"])):
            mean = np.maximum(values[method].mean(axis=-1), LOWEST)
            half = 1.96 * values[method].std(axis=-1, ddof=1) / np.sqrt(values.shape[-1])
            label = f"{look.label}: {_slope(N, values[method])}"
            ax.plot(N, mean, **small(look, label=label, zorder=20 - method))
            ax.fill_between(
                N, np.maximum(mean - half, LOWEST), mean + half, color=look.color, alpha=0.16, linewidth=0, zorder=1
            )
        _guide(ax, N, np.maximum(values.mean(axis=-1), LOWEST))
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xticks(N, [f"{int(n):,}" for n in N])
        ax.minorticks_off()
        style.decades(ax.yaxis)
        ax.set_xlabel("N, number of preference pairs")
        ax.set_ylabel("suboptimality, in units of reward")
        style.title(fig, TITLE)
        legend = fig.legend(loc="outside lower center", ncols=2, labelspacing=0.35, columnspacing=1.2, handlelength=2.6)
        words = f"slope in N, with 95 % interval ({values.shape[-1]} replicates)"
        legend.set_title(words, prop=FontProperties(size=12))
    return fig


def _guide(ax: Axes, N: np.ndarray, means: np.ndarray) -> None:
    height = BENEATH * np.min(means * np.sqrt(N)) / np.sqrt(N)
    ax.plot(N, height, color=style.GREY, linestyle=":", linewidth=1.3, zorder=1)
    at = len(N) // 2
    ax.annotate(
        "slope −½", (N[at], height[at]), xytext=(-6, 0), textcoords="offset points", ha="right", va="top",
        fontsize=12, color=style.GREY,
    )  # fmt: skip


def _slope(N: np.ndarray, values: np.ndarray) -> str:
    from nashpo.tabular.claims.rare_arms import slope_interval  # numba is slow to import

    if len(N) < 2 or np.min(values.mean(axis=-1)) <= 0:
        return "–"
    found = slope_interval(N, list(values))
    low, mid, high = (f"{x:.2f}".replace("-", "−") for x in (found.low, found.mid, found.high))
    return f"{mid} [{low}, {high}]"
