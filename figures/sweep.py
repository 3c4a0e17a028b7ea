"""Figure: a sweep of rules and step sizes over a user's own game.

Shapes: R rules, E step sizes.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nashpo.figures import comal_map, style

TITLE = "Final duality gap against the step size"
CAPTION = (
    "Duality gap at the end of each run against the step size η: of the average policy (solid lines, filled marks) and"
    " of the last one (dashed, open marks). Cells that were not run, or that a rule does not allow (ητ > 1), are left"
    " out. Made by `nashpo sweep`."
)
NEEDS = ("sweep/rules", "sweep/eta", "sweep/gap_average", "sweep/gap_last")
LOWEST = 1e-16


def draw(results: Mapping[str, np.ndarray]) -> Figure:
    """Average and last gap of every rule; below them COMAL's map where the results hold one.

    Parameters
    ----------
    results : mapping
        Holds `NEEDS`: ``sweep/rules`` (R,), ``sweep/eta`` (E,), ``sweep/gap_average`` and ``sweep/gap_last`` (R, E).

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If a key is missing.
    """
    style.need(results, NEEDS, "sweep")
    with_map = all(key in results for key in comal_map.NEEDS)
    with style.apply():
        fig = style.figure(9.8 if with_map else 4.8)
        lines, *below = fig.subfigures(2 if with_map else 1, 1, squeeze=False)[:, 0]
        left, right = lines.subplots(1, 2, sharey=True)
        _panel(left, "gap_average", results, dashed=False)
        _panel(right, "gap_last", results, dashed=True)
        left.set_title("average policy (solid)")
        right.set_title("last policy (dashed)")
        left.set_ylabel("duality gap at the end")
        handles, labels = left.get_legend_handles_labels()
        lines.legend(handles, labels, loc="outside lower center", ncols=_columns(labels))
        for part in below:
            ax = part.add_subplot()
            comal_map.draw_map(ax, results)
            ax.set_title("COMAL")
        style.title(fig, TITLE)
    return fig


def _columns(labels: list[str]) -> int:
    """As many as fit side by side: a handle takes the width of six letters, the page holds about 72."""
    return max(1, min(len(labels), 72 // (6 + max(len(label) for label in labels))))


def _panel(ax: Axes, which: str, results: Mapping[str, np.ndarray], dashed: bool) -> None:
    eta = np.atleast_1d(results["sweep/eta"])
    for r, look in enumerate(style.rule_styles(np.atleast_1d(results["sweep/rules"]))):
        gaps = np.maximum(np.atleast_2d(results[f"sweep/{which}"])[r], LOWEST)
        kind = {"linestyle": "--", "markerfacecolor": "white"} if dashed else {"linestyle": "-"}
        ax.plot(eta, gaps, **look.line(linewidth=1.7, markersize=6, **kind))
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.minorticks_off()
    style.decades(ax.xaxis)
    ax.set_xlabel("step size η")
