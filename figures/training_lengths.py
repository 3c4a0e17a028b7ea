"""Figure: lengths of the responses, and the judge's taste for length beside the win rate.

Shapes: one number or interval per iteration.
"""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nashpo.figures import style, training_style
from nashpo.figures.style import RuleStyle
from nashpo.figures.training_facts import longer_wins, sample_tokens
from nashpo.figures.training_run import Interval, TrainingRun

TITLE = "Lengths, and the judge's taste for length"
CAPTION = (
    "Left: mean length of the responses, with 95 % intervals: the training samples of each iteration (of the policy"
    " before it), and the new policy's and the reference's on evaluation prompts. Right: how often the longer one of"
    " two training samples to a prompt wins, ½ where the judge does not mind length; beside it the win rate of the new"
    " policy against the reference, as judged and with the effect of length taken out by regression. A win rate that"
    " grows with the lengths, under a judge that likes length, is no proof of better responses."
)
SAMPLES = RuleStyle("training samples", style.GREEN, "^", (0, (3, 1.2)))
CURRENT = RuleStyle("new policy", style.VERMILLION, "o", (0, (6, 1.5)))
REFERENCE = RuleStyle("reference", style.BLUE, "s", "-")
LONGER = RuleStyle("longer sample wins", style.GREEN, "^", (0, (3, 1.2)))
JUDGED = RuleStyle("win rate against reference", style.VERMILLION, "o", (0, (6, 1.5)))
CONTROLLED = RuleStyle("the same, length-controlled", style.BLACK, "D", (0, (1, 1)))


def missing(run: TrainingRun) -> str:
    """Why the figure cannot be drawn of this run; empty where it can."""
    return "" if _lengths(run)[SAMPLES] or _lengths(run)[CURRENT] else "no samples"


def draw(run: TrainingRun) -> Figure:
    """Lengths on the left, rates on the right where there are any.

    Parameters
    ----------
    run : TrainingRun

    Returns
    -------
    Figure
    """
    rates = _rates(run)
    with style.apply():
        fig = style.figure(5.0)
        axes = fig.subplots(1, 2 if any(rates.values()) else 1, squeeze=False)[0]
        _draw(axes[0], _lengths(run), run)
        axes[0].set_ylabel("tokens per response")
        axes[0].set_ylim(bottom=0)
        if len(axes) > 1:
            axes[1].axhline(0.5, color=style.GREY, linewidth=1.4, linestyle=":", zorder=1)
            _draw(axes[1], rates, run)
            axes[1].set_ylabel("win rate")
            low, high = axes[1].get_ylim()
            axes[1].set_ylim(max(min(low, 0.4), -0.02), min(max(high, 0.6), 1.02))
        style.title(fig, TITLE)
        handles = [part for ax in axes for part in zip(*ax.get_legend_handles_labels())]
        fig.legend([h for h, _ in handles], [name for _, name in handles], loc="outside lower center", ncols=2)
    return fig


def _draw(ax: Axes, curves: dict[RuleStyle, dict[int, Interval]], run: TrainingRun) -> None:
    for place, (looks, values) in enumerate(curves.items()):
        training_style.points(ax, values, looks, 0.08 * (place - 1), zorder=3)
    training_style.iteration_axis(ax, [i.number for i in run.iterations])


def _lengths(run: TrainingRun) -> dict[RuleStyle, dict[int, Interval]]:
    return {
        SAMPLES: {i.number: tokens for i in run.iterations if (tokens := sample_tokens(i)) is not None},
        CURRENT: run.series("lengths", "current"),
        REFERENCE: run.series("lengths", "reference"),
    }


def _rates(run: TrainingRun) -> dict[RuleStyle, dict[int, Interval]]:
    return {
        LONGER: {i.number: Interval(share) for i in run.iterations if (share := longer_wins(i)) is not None},
        JUDGED: run.series("win_rates", "reference"),
        CONTROLLED: run.series("length_controlled", "reference"),
    }
