"""Figure: how consistent the judge is: asymmetry between the two orders, and abstentions.

Shapes: one number per iteration.
"""

from collections.abc import Callable

from matplotlib.figure import Figure

from nashpo.figures import style, training_style
from nashpo.figures.training_facts import abstained_share, asymmetry
from nashpo.figures.training_run import Interval, Iteration, TrainingRun

TITLE = "Consistency of the judge"
CAPTION = (
    "Left: the mean of |P(a ≻ b) + P(b ≻ a) − 1| where each pair was asked in both orders: 0 where the order does not"
    " matter; it was symmetrized away before training. Right: the share of prompts with a pair on which the judge"
    " abstained, which are dropped from training. A judge that is antisymmetric by construction is asked in one order"
    " and has no point on the left."
)
PANELS: tuple[tuple[Callable[[Iteration], float | None], str, float], ...] = (
    (asymmetry, "asymmetry of the judge", 0.05),
    (abstained_share, "prompts with abstentions", 0.02),
)
"""What, its label, and the least height of its axis."""


def missing(run: TrainingRun) -> str:
    """Why the figure cannot be drawn of this run; empty where it can."""
    known = [value for i in run.iterations for measure, *_ in PANELS if (value := measure(i)) is not None]
    return "" if any(known) else "the judge never abstained and was never asymmetric" if known else "no judgements"


def draw(run: TrainingRun) -> Figure:
    """A panel for each.

    Parameters
    ----------
    run : TrainingRun

    Returns
    -------
    Figure
    """
    with style.apply():
        fig = style.figure(3.8)
        for place, (ax, (measure, label, least)) in enumerate(zip(fig.subplots(1, len(PANELS)), PANELS)):
            values = {i.number: Interval(value) for i in run.iterations if (value := measure(i)) is not None}
            training_style.points(ax, values, training_style.look(label, place))
            ax.set_ylim(-0.03 * least, max([least, *(1.15 * value.mean for value in values.values())]))
            ax.set_ylabel(label)
            training_style.iteration_axis(ax, [i.number for i in run.iterations])
        style.title(fig, TITLE)
    return fig
