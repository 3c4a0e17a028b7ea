"""Figure: T · gap of ONPO on dominance games, the constant printed with its Theorem 2, and the corrected one.

Shapes: N games of n responses each, K values of T.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nashpo.figures import style

TITLE = "ONPO's Theorem 2: the printed constant fails"
CAPTION = (
    "T times the duality gap of ONPO's average policy (η = ½, uniform start) on dominance games, where one of n"
    " responses beats all others and these tie. A bound of the form constant/T is a horizontal line here. The printed"
    " 4√D, with D = log n, is crossed (hatched) once n is large; 2D/η + η/2 = 4D + ¼ is never crossed, and nearly"
    " reached. 'As printed' means: in the main text of the NeurIPS 2025 version, with η = min{½, √D}. The order 1/T"
    " stands. Made by `nashpo verify`."
)
NEEDS = ("refuted/n", "refuted/T", "refuted/gap", "refuted/printed", "refuted/corrected")


def draw(results: Mapping[str, np.ndarray]) -> Figure:
    """One panel per n: the measured T · gap and the two constants.

    Parameters
    ----------
    results : mapping
        Holds `NEEDS`: ``refuted/n`` (N,), ``T`` (K,), ``gap`` (N, K), the constants ``printed``, ``corrected`` (N,).

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If a key is missing.
    """
    style.need(results, NEEDS, "refuted_bound")
    sizes = np.atleast_1d(results["refuted/n"])
    with style.apply():
        columns = min(2, len(sizes))
        rows = -(-len(sizes) // columns)
        fig = style.figure(1.2 + 2.35 * rows)
        axes = fig.subplots(rows, columns, squeeze=False, sharex=True)
        for place, ax in enumerate(axes.flat):
            if place < len(sizes):
                _panel(ax, place, results)
            else:
                ax.remove()
        for ax in axes[-1]:
            ax.set_xlabel("T, number of updates")
        fig.supylabel("T × duality gap of the average policy", fontsize=12.5)
        style.title(fig, TITLE)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=3)
    return fig


def _panel(ax: Axes, place: int, results: Mapping[str, np.ndarray]) -> None:
    look = style.RULE_STYLES["onpo"]
    T = np.asarray(results["refuted/T"])
    scaled = T * np.asarray(results["refuted/gap"])[place]
    printed = float(np.asarray(results["refuted/printed"])[place])
    corrected = float(np.asarray(results["refuted/corrected"])[place])
    ax.fill_between(
        T, printed, scaled, where=scaled > printed, interpolate=True, facecolor="none", hatch="////",
        edgecolor=style.ORANGE, linewidth=0, zorder=1,
    )  # fmt: skip
    ax.plot(T, scaled, **look.line(label="ONPO, measured", linestyle="-", markevery=max(1, len(T) // 10), zorder=4))
    ax.axhline(
        printed, color=style.VERMILLION, linestyle=(0, (5, 3)), label=r"printed: $4\sqrt{D}$", linewidth=2, zorder=3
    )
    ax.axhline(corrected, color=style.BLACK, linestyle=(0, (1, 1.2)), label=r"corrected: $4D+\frac{1}{4}$", zorder=3)
    n = int(np.atleast_1d(results["refuted/n"])[place])
    ax.set_title(rf"n = {n:,}: reaches {100 * scaled.max() / printed:.0f} % of $4\sqrt{{D}}$")
    ax.set_xscale("log")
    style.decades(ax.xaxis)
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    ax.set_ylim(0, 1.12 * max(corrected, scaled.max()))
