"""Rows of training metrics as lines over the optimizer steps of a whole run.

Shapes: a line is steps (n,) and values (n,); steps go on counting from iteration to iteration.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from nashpo.figures import style
from nashpo.figures.training_run import CURRENT, TrainingRun, number

Array = NDArray[np.float64]
MOST_NAMED = 8
"""Iterations up to which each is named above its steps."""


@dataclass(frozen=True)
class Line:
    """One stage of one iteration."""

    iteration: int
    stage: str
    steps: Array
    values: Array


def stages(run: TrainingRun) -> list[str]:
    """Names of the stages that were trained: the one that writes the iterates, then the others as they appear."""
    found = dict.fromkeys(stage for iteration in run.iterations for stage in iteration.steps)
    return sorted(found, key=lambda stage: stage != CURRENT)


def boundaries(run: TrainingRun) -> dict[int, tuple[float, float]]:
    """First and last step of every iteration, counted over the run; stages of one iteration share their steps."""
    found, before = dict[int, tuple[float, float]](), 0.0
    for iteration in run.iterations:
        last = max((float(rows[-1]["step"]) for rows in iteration.steps.values() if rows), default=0.0)
        if last:
            found[iteration.number] = (before, before + last)
            before += last
    return found


def lines(run: TrainingRun, name: str) -> list[Line]:
    """Every line of one metric."""
    edges, found = boundaries(run), []
    for iteration in run.iterations:
        for stage, rows in iteration.steps.items():
            known = [(float(row["step"]), value) for row in rows if (value := number(row.get(name))) is not None]
            if known:
                steps, values = np.array(known).T
                found.append(Line(iteration.number, stage, steps + edges[iteration.number][0], values))
    return found


def step_axis(ax: Axes, run: TrainingRun, named: bool) -> None:
    """Vertical lines between iterations, with their names above where asked and where there is room."""
    edges = boundaries(run)
    for start, _ in list(edges.values())[1:]:
        ax.axvline(start, color=style.GREY, linewidth=1, linestyle=":", zorder=1)
    if named and len(edges) <= MOST_NAMED:
        word = "iteration " if len(edges) <= MOST_NAMED // 2 else ""
        for n, (start, end) in edges.items():
            ax.text((start + end) / 2, 1.02, f"{word}{n}", transform=ax.get_xaxis_transform(), ha="center", fontsize=12)
    ax.set_xlim(0, max((end for _, end in edges.values()), default=1) * 1.01)


def everything(found: Sequence[Line]) -> list[float]:
    """All values of some lines."""
    return [float(value) for line in found for value in line.values]


def marker(line: Line) -> str:
    """A dot where a line of one point would not be seen."""
    return "o" if len(line.steps) == 1 else ""
