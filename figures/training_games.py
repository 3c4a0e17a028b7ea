"""Figure: the duality gaps of the prompts' K x K games, and the share of cyclic triples in them.

Shapes: N gaps per iteration; G points of a curve.
"""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nashpo.figures import style, training_style
from nashpo.figures.training_facts import cyclic_share, sample_gap
from nashpo.figures.training_run import Interval, TrainingRun

TITLE = "The game of each prompt's K responses"
CAPTION = (
    "Each prompt's K sampled responses and their win rates are a small game, solved exactly. Left: its duality gap"
    " 2 (w − ½), where w is the best mean win rate of one response against all K. It is a lower bound on the duality"
    " gap of the policy that draws one of these K, since only they are tried against it. Of the policy that the"
    " responses were sampled from it is an estimate: too low because few deviations are tried, too high because K"
    " responses stand for the whole policy (at the very equilibrium of rock, paper, scissors, with a sure judge, K = 5"
    " shows 0.36). Boxes are quartiles over prompts, whiskers the 5 % and 95 % quantiles, the mark is the mean. Right:"
    " among triples of responses without a tie, the share of which each beats the next: 0 where the judge ranks, ¼"
    " where verdicts are coin flips. Iteration t judges the samples of the policy before it."
)
BOX = 0.5


def missing(run: TrainingRun) -> str:
    """Why the figure cannot be drawn of this run; empty where it can."""
    return "" if _gaps(run) else "no prompt has judgements of all its pairs"


def draw(run: TrainingRun) -> Figure:
    """A box of gaps and a point of the share of cyclic triples per iteration.

    Parameters
    ----------
    run : TrainingRun
        With judgements or evaluations.

    Returns
    -------
    Figure
    """
    with style.apply():
        fig = style.figure(4.8)
        left, right = fig.subplots(1, 2)
        _boxes(left, run)
        cyclic = {i.number: Interval(share) for i in run.iterations if (share := cyclic_share(i)) is not None}
        looks = training_style.look("", 1)
        training_style.points(right, cyclic, looks, label=None)
        right.set_ylim(-0.01, max([0.3, *(1.1 * value.mean for value in cyclic.values())]))
        right.axhline(0.25, color=style.GREY, linewidth=1.4, linestyle=":", label="coin flips, ¼")
        right.set_ylabel("share of cyclic triples")
        for ax in (left, right):
            training_style.iteration_axis(ax, [i.number for i in run.iterations])
        style.title(fig, TITLE)
        handles = [part for ax in (left, right) for part in zip(*ax.get_legend_handles_labels())]
        fig.legend([h for h, _ in handles], [label for _, label in handles], loc="outside lower center", ncols=2)
    return fig


def _gaps(run: TrainingRun) -> dict[int, Interval]:
    return {i.number: gap for i in run.iterations if (gap := sample_gap(i)) is not None}


def _boxes(ax: Axes, run: TrainingRun) -> None:
    full = {i.number: i.shards.gaps for i in run.iterations if i.shards.gaps.size}
    if full:
        look = {"color": style.GREY, "linewidth": 1.4}
        ax.boxplot(
            list(full.values()),
            positions=list(full),
            widths=BOX,
            whis=(5, 95),
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": style.LIGHT, "edgecolor": style.GREY},
            medianprops={"color": style.BLACK, "linewidth": 1.8},
            whiskerprops=look,
            capprops=look,
            manage_ticks=False,
        )
    training_style.points(ax, _gaps(run), training_style.LAST, label="mean gap and its 95 % interval", linestyle="none")
    ax.set_ylim(-0.02, 1.02)
    ax.set_ylabel("gap of the K × K game")
