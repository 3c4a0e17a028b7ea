"""Figure: one run, its duality gaps against the number of updates, with the declared bounds drawn.

Shapes: R recorded steps; gaps (R,) or (R, replicates), means over contexts.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nashpo.figures import style
from nashpo.tabular.run import Run

LOWEST = 1e-16
"""Gaps are drawn no lower than this: beneath is rounding, and 0 has no logarithm."""
BAND = (0.05, 0.95)
"""Quantiles over replicates between which a band is drawn."""
BOUND_LINES = (":", (0, (1, 1, 4, 1)), (0, (6, 2)), (0, (2, 2)))

Array = NDArray[np.float64]
Curves = Mapping[str, Array]


def draw(
    run: Run,
    bounds: Curves | None = None,
    divergence: Array | None = None,
    divergence_bounds: Curves | None = None,
    title: str | None = None,
) -> Figure:
    """Gap of the average and of the last policy, log-log; beside them the divergence from the equilibrium.

    Parameters
    ----------
    run : Run
    bounds : mapping label -> (R,), optional
        Bounds of the gap at the recorded steps; NaN where a bound does not apply.
    divergence : (R,) or (R, replicates), optional
        KL from the equilibrium to the last policy, in nats, where it means something.
    divergence_bounds : mapping label -> (R,), optional
    title : str, optional
        By default the run's rule.

    Returns
    -------
    Figure
    """
    with style.apply():
        fig = style.figure(5.2)
        axes = fig.subplots(1, 1 if divergence is None else 2, squeeze=False)[0]
        gaps, steps = axes[0], run.recorded
        _curve(gaps, steps, run.mean_gap_average, "average policy", style.BLUE, "-")
        _curve(gaps, steps, run.mean_gap_last, "last policy", style.VERMILLION, "--")
        _bounds(gaps, steps, bounds or {})
        gaps.set_ylabel("duality gap")
        if divergence is not None:
            _curve(axes[1], steps, divergence, "last policy", style.VERMILLION, "--")
            _bounds(axes[1], steps, divergence_bounds or {})
            axes[1].set_ylabel("KL from the equilibrium (nats)")
        for ax in axes:
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.minorticks_off()
            _whole_decades(ax)
            ax.set_xlabel("updates T")
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17))
        fig.suptitle(title or run.rule, x=0.01, ha="left", fontweight="bold")
    return fig


def _curve(ax: Axes, steps: Array, values: Array, label: str, color: str, line: str) -> None:
    drawn = np.maximum(values.reshape(len(steps), -1), LOWEST)
    ax.plot(steps, drawn.mean(axis=1), color=color, linestyle=line, label=label)
    if drawn.shape[1] > 1:
        low, high = np.quantile(drawn, BAND, axis=1)
        ax.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)


def _bounds(ax: Axes, steps: Array, bounds: Curves) -> None:
    for k, (label, values) in enumerate(bounds.items()):
        drawn = np.where(np.isfinite(values), np.maximum(values, LOWEST), np.nan)
        alone = np.isfinite(drawn).sum() == 1
        look = {"marker": "x", "linestyle": "none"} if alone else {"linestyle": BOUND_LINES[k % len(BOUND_LINES)]}
        ax.plot(steps, drawn, color=style.GREY, label=f"bound {label}", zorder=1, **look)


def _whole_decades(ax: Axes) -> None:
    """Room for two labelled powers of ten: a logarithmic axis within one decade would have no number on it."""
    low, high = ax.get_ylim()
    if np.log10(high / low) < 1.5:
        ax.set_ylim(10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high)))
