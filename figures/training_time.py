"""Figure: seconds of every phase.

Shapes: I iterations, one number per phase.
"""

from typing import Any

from matplotlib.figure import Figure

from nashpo.figures import style, training_style
from nashpo.figures.training_run import Phase, TrainingRun

TITLE = "Where the time went"
CAPTION = (
    "Wall-clock time of every phase that is done, from its manifest. Stages of training count together. Of a phase that"
    " was interrupted and gone on with, this is what its manifest says."
)
COLORS = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.SKY, style.VERMILLION, style.YELLOW, style.GREY)
HATCHES = ("", "//", "..", "\\\\", "xx", "--", "oo", "++")
LONGEST = 13
"""Letters of a phase's name."""
UNITS = ((7200.0, 3600.0, "hours"), (300.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
"""From how many seconds on, seconds per unit, name."""
TRAIN, WEIGHTS = "train", "model"
"""Weights are written at the end of a training, and their phase begins with it."""


def missing(run: TrainingRun) -> str:
    """Why the figure cannot be drawn of this run; empty where it can."""
    return "" if any(_seconds(phases) for phases in _rows(run).values()) else "no phase is done"


def draw(run: TrainingRun) -> Figure:
    """A stacked bar per iteration.

    Parameters
    ----------
    run : TrainingRun
        With manifests.

    Returns
    -------
    Figure
    """
    rows = {name: _seconds(phases) for name, phases in _rows(run).items()}
    names = list(dict.fromkeys(kind for seconds in rows.values() for kind in seconds))
    per_unit, unit = _unit(max(sum(seconds.values()) for seconds in rows.values()))
    with style.apply():
        fig = style.figure(2.2 + 0.42 * len(rows))
        ax = fig.add_subplot()
        left = [0.0] * len(rows)
        for place, kind in enumerate(names):
            widths = [seconds.get(kind, 0.0) / per_unit for seconds in rows.values()]
            looks: dict[str, Any] = {
                "color": COLORS[place % len(COLORS)],
                "hatch": HATCHES[place % len(HATCHES)],
                "edgecolor": "white",
            }
            ax.barh(range(len(rows)), widths, left=left, label=training_style.plain(kind, LONGEST), height=0.7, **looks)
            left = [a + b for a, b in zip(left, widths)]
        ax.set_yticks(range(len(rows)), list(rows))
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(unit)
        ax.set_ylabel("part of the run")
        style.title(fig, TITLE)
        fig.legend(loc="outside lower center", ncols=4)
    return fig


def total(run: TrainingRun) -> float:
    """Seconds of all phases that are done."""
    return sum(sum(_seconds(phases).values()) for phases in _rows(run).values())


def words(seconds: float) -> tuple[str, str]:
    """(unit, number) of a time: ("minutes", "12")."""
    per_unit, unit = _unit(seconds)
    value = seconds / per_unit
    return unit, f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _unit(seconds: float) -> tuple[float, str]:
    _, per_unit, unit = next(entry for entry in UNITS if seconds >= entry[0])
    return per_unit, unit


def _rows(run: TrainingRun) -> dict[str, tuple[Phase, ...]]:
    before = {"before": run.before} if _seconds(run.before) else {}
    return before | {f"iteration {i.number}": i.phases for i in run.iterations}


def _seconds(phases: tuple[Phase, ...]) -> dict[str, float]:
    """Seconds by kind of phase; what happened inside another phase is part of that one."""
    kinds = {phase.kind for phase in phases}
    sums = dict[str, float]()
    for phase in phases:
        outer = phase.name.partition("/")[0]
        inside = outer in kinds and outer != phase.kind or phase.kind == WEIGHTS and TRAIN in kinds
        if phase.seconds and not inside:
            sums[phase.kind] = sums.get(phase.kind, 0.0) + phase.seconds
    return sums
