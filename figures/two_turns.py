"""Figure: when several turns matter, a game that is lost by playing each turn for itself.

Shapes: R recorded steps.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nashpo.figures import style

TITLE = "Played turn by turn, this game is lost"
CAPTION = (
    "A conversation of two turns: answer at once, or ask first. Judged after the first turn, with follow-ups at random,"
    " asking loses, since only some follow-ups use what was asked; judged at the end, with those follow-ups, it wins."
    " They beat each other in a circle, so that they must be mixed. Right: win rate against the equilibrium of what"
    " ONPO has learned after T updates, when it is judged at the end of the conversation, and when its first turn is"
    " judged alone (its second turn is granted to be perfect). Made by `nashpo verify`."
)
NEEDS = ("two_turns/T", "two_turns/whole", "two_turns/single", "two_turns/edge", "two_turns/after_one")

WHOLE, SINGLE = style.BLUE, style.VERMILLION


def draw(results: Mapping[str, np.ndarray]) -> Figure:
    """The game on the left, the learning curves on the right.

    Parameters
    ----------
    results : mapping
        Holds `NEEDS`: ``two_turns/T``, ``whole``, ``single`` (R,), and the numbers ``edge`` and ``after_one``, the
        question's win rate judged after one turn.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If a key is missing.
    """
    style.need(results, NEEDS, "two_turns")
    with style.apply():
        fig = style.figure(5.0)
        tree, curves = fig.subplots(1, 2, width_ratios=(1.15, 1))
        _tree(tree, float(results["two_turns/edge"]), float(results["two_turns/after_one"]))
        T = np.asarray(results["two_turns/T"])
        curves.plot(T, results["two_turns/whole"], color=WHOLE, label="ONPO, judged at the end")
        curves.plot(
            T, results["two_turns/single"], color=SINGLE, linestyle=(0, (5, 2)), label="ONPO, first turn judged alone"
        )
        curves.axhline(0.5, color=style.GREY, linestyle=":", label="the equilibrium itself")
        curves.set_ylim(0, 0.6)
        curves.set_xscale("log")
        style.decades(curves.xaxis)
        curves.set_xlabel("T, number of updates")
        curves.set_ylabel("win rate against the equilibrium")
        style.title(fig, TITLE)
        fig.legend(loc="outside lower center", ncols=2)
    return fig


def _tree(ax: Axes, edge: float, after_one: float) -> None:
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.axis("off")
    prompt, answer, ask = (0.5, 0.94), (0.2, 0.64), (0.76, 0.64)
    ends = {"any follow-up": (0.2, 0.27), "good\n(a circle)": (0.6, 0.27), "bad": (0.92, 0.27)}
    for start, stop, color in (
        (prompt, answer, SINGLE),
        (prompt, ask, WHOLE),
        (answer, ends["any follow-up"], style.GREY),
        (ask, ends["good\n(a circle)"], WHOLE),
        (ask, ends["bad"], style.GREY),
    ):
        ax.plot(*zip(start, stop), color=color, linewidth=2.2, zorder=1)
    nodes = {"prompt": prompt, "answer": answer, "ask": ask, **ends}
    for words, (x, y) in nodes.items():
        ax.text(
            x, y, words, ha="center", va="center", fontsize=12, zorder=2,
            bbox={"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": style.GREY},
        )  # fmt: skip
    ax.text(0.48, 0.64, f"after one turn:\nask wins {100 * after_one:.0f} %", ha="center", va="center", fontsize=11)
    ax.text(0.5, 0.05, f"at the end: good beats answer {100 * (0.5 + edge):.0f} %", ha="center", fontsize=11)
