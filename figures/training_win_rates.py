"""Figure: how often each new iterate beats the reference and the iterate before it, by the judge of the run.

Shapes: one interval per iteration.
"""

from matplotlib.figure import Figure

from nashpo.figures import style, training_style
from nashpo.figures.style import RuleStyle
from nashpo.figures.training_run import Json, TrainingRun

TITLE = "Win rates of the new iterate"
CAPTION = (
    "Mean win rate of the policy after each iteration against the reference and against earlier policies, by the judge"
    " that the run was trained with: a judge of one's own is no outside opinion. Bars are 95 % intervals over the"
    " evaluation prompts. The hollow marker is the win rate against the reference with the judge's taste for length"
    " taken out by regression, where it was computed. At ½ neither side is better."
)
KNOWN = {"reference": training_style.REFERENCE, "previous": training_style.PREVIOUS}
CONTROLLED = RuleStyle("reference, length-controlled", style.BLUE, "s", (0, (1, 2)))
APART = 0.06


def missing(run: TrainingRun) -> str:
    """Why the figure cannot be drawn of this run; empty where it can."""
    return "" if opponents(run) else "no evaluation"


def opponents(run: TrainingRun) -> list[str]:
    """Whom the iterates were held against, the reference and the previous iterate first."""
    names = [
        str(name)
        for iteration in run.iterations
        for name in _of(iteration.results)
        if iteration.interval("win_rates", name) is not None
    ]
    return sorted(set(names), key=lambda name: (name not in KNOWN, name != "reference", name))


def draw(run: TrainingRun) -> Figure:
    """Points with intervals, one colour per opponent.

    Parameters
    ----------
    run : TrainingRun
        Whose results hold ``win_rates``.

    Returns
    -------
    Figure
    """
    names = opponents(run)
    with style.apply():
        fig = style.figure(4.8)
        ax = fig.add_subplot()
        ax.axhline(0.5, color=style.GREY, linewidth=1.4, linestyle=":", zorder=1)
        for place, name in enumerate(names):
            looks = KNOWN.get(name) or training_style.look(name, place)
            shift = APART * (place - (len(names) - 1) / 2)
            training_style.points(ax, run.series("win_rates", name), looks, shift, label=f"against {looks.label}")
        controlled = run.series("length_controlled", "reference")
        training_style.points(ax, controlled, CONTROLLED, APART * len(names), markerfacecolor="white")
        training_style.iteration_axis(ax, [i.number for i in run.iterations if _of(i.results)], "iteration")
        ax.set_ylabel("win rate")
        low, high = ax.get_ylim()
        ax.set_ylim(max(min(low, 0.4), -0.02), min(max(high, 0.6), 1.02))
        style.title(fig, TITLE)
        fig.legend(loc="outside lower center", ncols=2)
    return fig


def _of(results: Json) -> Json:
    found = results.get("win_rates")
    return found if isinstance(found, dict) else {}
