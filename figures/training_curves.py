"""Figure: training loss and regression residual over the steps of all iterations.

Shapes: a line per stage and iteration.
"""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nashpo.figures import style, training_style
from nashpo.figures.training_run import TrainingRun
from nashpo.figures.training_steps import everything, lines, marker, stages, step_axis

TITLE = "Training loss and regression residual"
CAPTION = (
    "Over the optimizer steps of all iterations; a line per stage of the rule. The residual is the mean of (log-ratio"
    " − target)² over the responses trained on, in nats²: how far the fitted policy is from the step that the rule asks"
    " for. Pale: its centred part, which no normalizer log Z explains. It does not fall to 0: the targets of a prompt's"
    " K responses carry the noise of their win rates, and prompts share one set of weights. Losses of different"
    " rules or step sizes cannot be compared."
)
RESIDUAL, CENTRED = "theory/regression_residual", "theory/regression_residual_centred"


def missing(run: TrainingRun) -> str:
    """Why the figure cannot be drawn of this run; empty where it can."""
    return "" if lines(run, "loss") else "no training steps were logged"


def draw(run: TrainingRun) -> Figure:
    """The loss, and below it the residual where the rule's targets are payoffs.

    Parameters
    ----------
    run : TrainingRun
        Whose metrics hold ``loss``.

    Returns
    -------
    Figure
    """
    with_residual = bool(lines(run, RESIDUAL))
    with style.apply():
        fig = style.figure(6.6 if with_residual else 4.4)
        axes = fig.subplots(2 if with_residual else 1, 1, squeeze=False, sharex=True)[:, 0]
        _panel(axes[0], run, "loss", pale=False)
        axes[0].set_ylabel("loss")
        if with_residual:
            _panel(axes[1], run, RESIDUAL, pale=False)
            _panel(axes[1], run, CENTRED, pale=True)
            axes[1].set_ylabel("residual (nats²)")
        for ax, name in zip(axes, ("loss", RESIDUAL)):
            step_axis(ax, run, named=ax is axes[0])
            training_style.value_axis(ax, everything(lines(run, name)), always_from_zero=name == RESIDUAL)
        axes[-1].set_xlabel("optimizer step")
        style.title(fig, TITLE)
        handles, labels = axes[-1].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=2)
    return fig


def _panel(ax: Axes, run: TrainingRun, name: str, pale: bool) -> None:
    """Lines of one metric, each stage named once."""
    order, named = stages(run), set[str]()
    for line in sorted(lines(run, name), key=lambda line: order.index(line.stage)):
        looks = training_style.look(f"stage {line.stage}", order.index(line.stage), training_style.STAGES)
        changes = {"alpha": 0.45, "linewidth": 1.4, "zorder": 1.5} if pale else {}
        label = "" if line.stage in named else f"{looks.label}{', centred' if pale else ''}"
        ax.plot(line.steps, line.values, **looks.line(marker=marker(line), label=label or None, **changes))
        named.add(line.stage)
