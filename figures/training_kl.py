"""Figure: how far the policy went from the reference and from the iterate before it.

Shapes: a line per stage and iteration, one interval per iteration.
"""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nashpo.figures import style, training_style
from nashpo.figures.training_run import CURRENT, TrainingRun
from nashpo.figures.training_steps import Line, everything, lines, marker, step_axis

TITLE = "Distance from the reference and from the last iterate"
CAPTION = (
    "Left, while the next iterate is trained: the mean of log(other/policy) over the training responses, with the"
    " reference and with the iterate that the training began with. The responses are drawn from the last iterate. Where"
    " that is the other policy, the mean is an unbiased estimate of KL(other ‖ policy); otherwise, and where only the"
    " best and the worst response of a prompt are trained on, it is a log-ratio on these data, and may be negative."
    " Right, after each iteration: KL(new policy ‖ reference) and KL(new policy ‖ last iterate), estimated on"
    " evaluation samples of the new policy, with 95 % intervals. Nats per response."
)
METRICS = {
    "theory/kl_reference": training_style.REFERENCE,
    "theory/kl_last_iterate": training_style.PREVIOUS,
}
EVALUATED = {"reference": training_style.REFERENCE, "last": training_style.PREVIOUS}
LABELS = {training_style.REFERENCE: "reference", training_style.PREVIOUS: "last iterate"}


def missing(run: TrainingRun) -> str:
    """Why the figure cannot be drawn of this run; empty where it can."""
    return "" if _trained(run) or _evaluated(run) else "no log-ratios to the reference were logged"


def draw(run: TrainingRun) -> Figure:
    """Panels of what was logged in training and of what was evaluated, those of the two that there are.

    Parameters
    ----------
    run : TrainingRun

    Returns
    -------
    Figure
    """
    panels = [part for part, there in ((_training, _trained(run)), (_evaluation, _evaluated(run))) if there]
    with style.apply():
        fig = style.figure(4.8)
        axes = fig.subplots(1, len(panels), squeeze=False)[0]
        for ax, panel in zip(axes, panels):
            panel(ax, run)
            ax.axhline(0, color=style.GREY, linewidth=1, zorder=1)
        style.title(fig, TITLE)
        named = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())}
        fig.legend(list(named.values()), list(named), loc="outside lower center", ncols=2)
    return fig


def _trained(run: TrainingRun) -> list[Line]:
    return [line for name in METRICS for line in _lines(run, name)]


def _lines(run: TrainingRun, name: str) -> list[Line]:
    """Of the stage that writes the iterates, where it was logged: one line per other policy."""
    found = lines(run, name)
    return [line for line in found if line.stage == CURRENT] or found


def _evaluated(run: TrainingRun) -> bool:
    return any(run.series("kl", name) for name in EVALUATED)


def _training(ax: Axes, run: TrainingRun) -> None:
    for name, looks in METRICS.items():
        for line in _lines(run, name):
            ax.plot(line.steps, line.values, **looks.line(marker=marker(line), label=LABELS[looks]))
    step_axis(ax, run, named=False)
    values = everything(_trained(run))
    ax.set_ylim(min(*values, 0.0) - 0.03 * max(values), None)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("log-ratio (nats per response)")
    ax.set_title("while training")


def _evaluation(ax: Axes, run: TrainingRun) -> None:
    for name, looks in EVALUATED.items():
        training_style.points(ax, run.series("kl", name), looks, label=LABELS[looks])
    numbers = {n for name in EVALUATED for n in run.series("kl", name)}
    training_style.iteration_axis(ax, numbers)
    ax.set_ylabel("KL (nats per response)")
    ax.set_title("after each iteration")
