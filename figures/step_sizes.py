"""Figure: the gap that each rule ends with, against its step size.

Shapes: R rules, E step sizes, G games.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nashpo.figures import style

TITLE = "How the step size decides what a rule reaches"
CAPTION = (
    "Duality gap after T updates against the step size η, on random games of five responses with an interior"
    " equilibrium (median over the games): of the average policy on the left, of the last one on the right. A large"
    " mark with a ring is the step that theory names: the one that minimizes SPPO's bound, and the largest for which"
    " the bound of ONPO and the contractions of INPO and EGPO are proved. Rules with a KL penalty settle on the dotted"
    " line, the gap of the penalized game's own equilibrium; COMAL goes below it, since it moves its reference. Made by"
    " `nashpo figures --only step_sizes`."
)
NEEDS = (
    "step_sizes/rules",
    "step_sizes/eta",
    "step_sizes/gap_average",
    "step_sizes/gap_last",
    "step_sizes/limit",
    "step_sizes/floor",
    "step_sizes/T",
    "step_sizes/tau",
)
LOWEST = 1e-12
"""Gaps are drawn no lower than this: beneath is rounding."""


def draw(results: Mapping[str, np.ndarray]) -> Figure:
    """Two panels, average and last iterate.

    Parameters
    ----------
    results : mapping
        Holds `NEEDS`; see `nashpo.tabular.experiments.step_sizes`.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If a key is missing.
    """
    style.need(results, NEEDS, "step_sizes")
    with style.apply():
        fig = style.figure(5.4)
        left, right = fig.subplots(1, 2, sharey=True)
        _panel(left, "gap_average", results)
        _panel(right, "gap_last", results)
        left.set_title("average policy")
        right.set_title("last policy")
        left.set_ylabel(f"duality gap after T = {int(results['step_sizes/T']):,} updates")
        for ax in (left, right):
            ax.set_xlabel("step size η")
        style.title(fig, TITLE)
        fig.legend(handles=_legend(left, results), loc="outside lower center", ncols=4, columnspacing=1.4)
    return fig


def _panel(ax: Axes, which: str, results: Mapping[str, np.ndarray]) -> None:
    eta = np.asarray(results["step_sizes/eta"])
    for r, look in enumerate(style.rule_styles(results["step_sizes/rules"])):
        gaps = np.maximum(np.median(np.atleast_3d(results[f"step_sizes/{which}"])[r], axis=-1), LOWEST)
        ax.plot(eta, gaps, **look.line(markersize=5, markevery=2))
        limit = float(results["step_sizes/limit"][r])
        if np.isfinite(limit):
            known = np.isfinite(gaps)
            height = np.exp(np.interp(np.log(limit), np.log(eta[known]), np.log(gaps[known])))
            ax.plot(limit, height, marker=look.marker, color=look.color, markersize=9, zorder=5)
            ax.plot(limit, height, marker="o", color="none", markersize=17, markeredgecolor="black",
                    markeredgewidth=1.4, zorder=5)  # fmt: skip
    ax.axhline(float(np.median(results["step_sizes/floor"])), color=style.GREY, linestyle=":", linewidth=1.8, zorder=1)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.minorticks_off()
    style.decades(ax.xaxis)


def _legend(ax: Axes, results: Mapping[str, np.ndarray]) -> list[Artist]:
    handles = list(ax.get_legend_handles_labels()[0])
    tau = float(results["step_sizes/tau"])
    ring: dict[str, Any] = {"markeredgecolor": "black", "markeredgewidth": 1.4}
    return [
        *handles,
        Line2D([], [], color="none", marker="o", markersize=15, linestyle="none", label="theory's step", **ring),
        Line2D([], [], color=style.GREY, linestyle=":", label=f"KL-penalized game (τ = {tau:g})"),
    ]
