"""Figure: the duality gap of the average iterate against T, SPPO beside ONPO, with both bounds and slopes.

Shapes: G games, K values of T; slopes are (low, mid, high) of a 95 % interval.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from nashpo.figures import style

TITLE = "ONPO's average policy converges faster than SPPO's"
CAPTION = (
    "Duality gap of the average policy after T updates (0 is a Nash equilibrium, 1 the worst), on games where nothing"
    " beats everything else (cyclic ones and ones with an interior equilibrium). Thin lines are single games, thick"
    " ones the median. SPPO has its step size tuned for every T, as its bound asks. Dashed: the bounds, each of which"
    " holds in every game (median over the games is drawn). Slopes are fitted to log gap against log T, with 95 %"
    " intervals over the games. Made by `nashpo verify`."
)
NEEDS = (
    "rates/T",
    "rates/sppo_gap",
    "rates/onpo_gap",
    "rates/sppo_bound",
    "rates/onpo_bound",
    "rates/sppo_slope",
    "rates/onpo_slope",
    "rates/difference",
)

FORMULAS = {"sppo": r"$\sqrt{2D/T}$", "onpo": r"$(2D/\eta+\eta/2)\,/\,T$"}
STEPS = {"sppo": r"$\eta$ tuned per $T$", "onpo": r"$\eta$ fixed"}


def draw(results: Mapping[str, np.ndarray]) -> Figure:
    """Log-log lines of both rules.

    Parameters
    ----------
    results : mapping
        Holds `NEEDS`: ``rates/T`` (K,), ``rates/<rule>_gap`` and ``_bound`` (G, K), ``rates/<rule>_slope`` (3,),
        ``rates/difference`` (3,).

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If a key is missing.
    """
    style.need(results, NEEDS, "rates")
    with style.apply():
        fig = style.figure(5.6)
        ax = fig.add_subplot()
        for rule in ("sppo", "onpo"):
            _draw_rule(ax, rule, results)
        T = np.asarray(results["rates/T"])
        octaves = 2 ** np.arange(np.ceil(np.log2(T.min())), np.floor(np.log2(T.max())) + 1)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(octaves, [f"{int(t):,}" for t in octaves])
        ax.minorticks_off()
        ax.set_xlabel("T, number of updates")
        ax.set_ylabel("duality gap of the average policy")
        style.title(fig, TITLE)
        _legend(fig, ax, results)
    return fig


def _draw_rule(ax: Axes, rule: str, results: Mapping[str, np.ndarray]) -> None:
    look = style.RULE_STYLES[rule]
    T = np.asarray(results["rates/T"])
    # A gap of rounding size or 0 has no place on a log axis.
    gaps = np.maximum(np.atleast_2d(results[f"rates/{rule}_gap"]), 1e-16)
    bounds = np.atleast_2d(results[f"rates/{rule}_bound"])
    ax.plot(T, gaps.T, color=look.color, linewidth=0.7, alpha=0.22, zorder=2)
    low, mid, high = np.asarray(results[f"rates/{rule}_slope"], dtype=float)
    label = f"{look.label} ({STEPS[rule]}): slope {_interval(low, mid, high)}"
    ax.plot(T, np.median(gaps, axis=0), **look.line(label=label, linestyle="-", linewidth=2.6, zorder=4))
    ax.plot(
        T,
        np.median(bounds, axis=0),
        color=look.color,
        linestyle=(0, (5, 3)),
        linewidth=1.8,
        label=f"bound of {look.label}: {FORMULAS[rule]}",
        zorder=3,
    )


def _legend(fig: Figure, ax: Axes, results: Mapping[str, np.ndarray]) -> None:
    low, mid, high = np.asarray(results["rates/difference"], dtype=float)
    handles, labels = ax.get_legend_handles_labels()
    title = f"difference of the slopes, ONPO − SPPO: {_interval(low, mid, high)}  (95 % intervals)"
    legend = fig.legend(handles, labels, loc="outside lower left", ncols=1, labelspacing=0.35)
    legend.set_title(title, prop=FontProperties(size=12))
    legend.set_alignment("left")


def _interval(low: float, mid: float, high: float) -> str:
    return f"{_signed(mid)} [{_signed(low)}, {_signed(high)}]"


def _signed(number: float) -> str:
    return f"{number:.2f}".replace("-", "−")
