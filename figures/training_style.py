"""What the figures about a run share: an axis of iterations, points with intervals, looks of stages, plain labels.

Shapes: I iterations; an interval is (mean, low, high).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from nashpo.figures import style
from nashpo.figures.style import RuleStyle
from nashpo.figures.training_run import Interval

LAST = RuleStyle("last iterate", style.VERMILLION, "o", (0, (6, 1.5)))
AVERAGE = RuleStyle("average of the iterates", style.BLUE, "s", "-")
REFERENCE = RuleStyle("reference", style.BLUE, "s", "-")
PREVIOUS = RuleStyle("previous iterate", style.ORANGE, "o", (0, (6, 1.5)))
OTHERS = (
    ("", style.GREEN, "^", (0, (3, 1.2))),
    ("", style.PURPLE, "D", (0, (1, 1))),
    ("", style.GREY, "v", (0, (6, 1.5, 1.5, 1.5))),
    ("", style.BLACK, "P", (0, (8, 2, 2, 2))),
)
STAGES = (
    ("", style.BLUE, "s", "-"),
    ("", style.ORANGE, "o", (0, (6, 1.5))),
    ("", style.GREEN, "^", (0, (3, 1.2))),
    ("", style.PURPLE, "D", (0, (1, 1))),
)
LONGEST_LABEL = 28
WIDE_RANGE = 20
"""Values that differ by more than this factor are drawn on a logarithmic axis."""


def look(label: str, place: int, table: tuple[tuple[Any, ...], ...] = OTHERS) -> RuleStyle:
    """The look of the thing at a place of a list."""
    _, color, marker, line = table[place % len(table)]
    return RuleStyle(plain(label), color, marker, line)


def plain(text: Any, longest: int = LONGEST_LABEL) -> str:
    """Text for a figure: in one line, cut in the middle where too long, no dollar sign taken for a formula."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    short = line if len(line) <= longest else f"{line[: longest // 2]}…{line[-((longest - 1) // 2) :]}"
    return short.replace("$", r"\$")


def points(ax: Axes, values: Mapping[int, Interval], looks: RuleStyle, shift: float = 0.0, **changes: Any) -> None:
    """A line through the means of the iterations, with the intervals that are known as bars."""
    if not values:
        return
    x = np.array(sorted(values), dtype=np.float64) + shift
    mean, low, high = np.array([(v.mean, v.low, v.high) for _, v in sorted(values.items())]).T
    ax.plot(x, mean, **looks.line(**changes))
    known = np.isfinite(low) & np.isfinite(high)
    if known.any():
        # An interval of a skewed bootstrap may leave its mean out.
        bars = np.maximum(np.stack([mean - low, high - mean]), 0)[:, known]
        ax.errorbar(x[known], mean[known], yerr=bars, fmt="none", ecolor=looks.color, elinewidth=1.6, capsize=4)


def iteration_axis(ax: Axes, numbers: Iterable[int], label: str = "iteration") -> None:
    """Whole numbers on the axis, with room at both ends."""
    present = list(numbers)
    ax.set_xlim(min(present, default=0) - 0.5, max(present, default=1) + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    ax.set_xlabel(label)


def value_axis(ax: Axes, values: Iterable[float], always_from_zero: bool = False) -> None:
    """A logarithmic axis for positive values of a wide range, otherwise a linear one."""
    finite = np.array([value for value in values if np.isfinite(value)])
    if finite.size and finite.min() > 0 and finite.max() > WIDE_RANGE * finite.min():
        logarithmic(ax)
    elif always_from_zero:
        # Matplotlib leaves room by the range of the values, which is too little for a mark once the axis begins at 0.
        ax.set_ylim(0, max(ax.get_ylim()[1], 1.08 * float(finite.max(initial=0))))


def logarithmic(ax: Axes) -> None:
    """A logarithmic axis with numbers written out, of which at least two can be seen."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    narrow = np.log10(high / low) < 2.5
    ax.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if narrow else (1,)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
