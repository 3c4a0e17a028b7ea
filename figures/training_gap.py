"""Figure: the exact duality gap of each iterate beside the trajectory of the tabular rule, and the certificate.

Shapes: one interval per iteration; iteration 0 is the start, where its gap is known.
"""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nashpo.figures import style, training_style
from nashpo.figures.style import RuleStyle
from nashpo.figures.training_run import Interval, TrainingRun

TITLE = "The duality gap of the policies, beside the prediction"
CAPTION = (
    "Exact duality gap (0 is a Nash equilibrium, 1 the worst) of the policy after each iteration, computed by"
    " enumerating all responses. The prediction plays the same rule exactly on the same game. Of conversations the"
    " exact play is drawn too, which knows every win rate and what the other side says; an average draws one of its"
    " policies per conversation. The certificate is an upper bound on the gap of the average that follows from what"
    " training left over at every step; it is drawn where it is at most 1, the largest gap there is."
)
BAND = (
    " Win rates are estimated from K samples per prompt: the band is what that sampling alone does over repeated plays"
    " of the prediction, and the line in it their median."
)
PREDICTED_LAST = RuleStyle("predicted, last", style.ORANGE, "", (0, (1, 1)))
PREDICTED_AVERAGE = RuleStyle("predicted, average", style.SKY, "", (0, (1, 1)))
EXACT_LAST = RuleStyle("exact play, last", style.PURPLE, "D", (0, (4, 2)))
EXACT_AVERAGE = RuleStyle("exact play, average", style.GREEN, "^", (0, (4, 2)))
CERTIFICATE = RuleStyle("certificate of the average", style.GREY, "x", (0, (4, 3)))
CURVES = (
    ("gap_last", training_style.LAST, PREDICTED_LAST, EXACT_LAST),
    ("gap_average", training_style.AVERAGE, PREDICTED_AVERAGE, EXACT_AVERAGE),
)
LOWEST = 1e-16
"""Gaps below this are rounding."""


def missing(run: TrainingRun) -> str:
    """Why the figure cannot be drawn of this run; empty where it can."""
    return "" if run.series("exact", "gap_last") else "no exact evaluation (`evaluation.exact` in the recipe)"


def caption(run: TrainingRun) -> str:
    """`CAPTION`, and what the band is where one is drawn."""
    bands = [v for key, *_ in CURVES for v in run.series("exact", "prediction", key).values()]
    return CAPTION + BAND if any(v.low < v.high for v in bands) else CAPTION


def draw(run: TrainingRun) -> Figure:
    """Lines of the measured gaps over bands of the predicted ones.

    Parameters
    ----------
    run : TrainingRun
        Whose results hold ``exact``.

    Returns
    -------
    Figure
    """
    with style.apply():
        fig = style.figure(5.2)
        ax = fig.add_subplot()
        shown: list[float] = []
        for key, measured, predicted, exact in CURVES:
            values, band = run.series("exact", key), run.series("exact", "prediction", key)
            played = run.series("exact", "exact_play", key)
            if key == "gap_last":
                values, band, played = (_from_start(run, found) for found in (values, band, played))
            training_style.points(ax, values, measured, zorder=4)
            _band(ax, band, predicted)
            training_style.points(ax, played, exact, zorder=3)
            shown += [v.mean for v in (*values.values(), *band.values(), *played.values())]
        certificate = {n: v for n, v in run.series("exact", "certificate").items() if v.mean <= 1}
        training_style.points(ax, certificate, CERTIFICATE)
        shown += [v.mean for v in certificate.values()]
        numbers = sorted({n for key, *_ in CURVES for n in _from_start(run, run.series("exact", key))})
        training_style.iteration_axis(ax, numbers, "iteration (the policy after it)")
        training_style.value_axis(ax, [max(v, LOWEST) for v in shown], always_from_zero=True)
        ax.set_ylabel("duality gap")
        style.title(fig, TITLE)
        fig.legend(loc="outside lower center", ncols=2)
    return fig


def _from_start(run: TrainingRun, values: dict[int, Interval]) -> dict[int, Interval]:
    """With the start, which is before iteration 1, where its gap is known."""
    start = next(iter(run.series("exact", "gap_start").values()), None)
    return values if start is None or not values else {0: Interval(start.mean, start.mean, start.mean), **values}


def _band(ax: Axes, band: dict[int, Interval], looks: RuleStyle) -> None:
    if not band:
        return
    x = sorted(band)
    ax.fill_between(x, [band[n].low for n in x], [band[n].high for n in x], color=looks.color, alpha=0.25, linewidth=0)
    ax.plot(x, [band[n].mean for n in x], **looks.line(marker="_", markersize=14, markeredgewidth=2.5))
