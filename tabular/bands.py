"""Bands over replicates: what sampled feedback does to a run, as a median and quantiles.

Shapes: R recorded steps; values (R, replicates), bands (R,).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nashpo.tabular.run import Run


@dataclass(frozen=True)
class Band:
    """Pointwise quantiles over replicates.

    Attributes
    ----------
    median, low, high : (R,)
        Of ``replicates`` values at every recorded step; a share ``level`` of them lies between low and high.
    level : float
    replicates : int
    """

    median: np.ndarray
    low: np.ndarray
    high: np.ndarray
    level: float
    replicates: int


def band(values: np.ndarray, level: float = 0.9) -> Band:
    """The median and the central quantile band over the last axis.

    Parameters
    ----------
    values : (R, replicates)
    level : float
        Share of the replicates inside the band, in (0, 1).

    Returns
    -------
    Band

    Raises
    ------
    ValueError
    """
    if not 0 < level < 1:
        raise ValueError(f"level = {level} must lie between 0 and 1")
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"values have shape {values.shape}, expected (recorded steps, replicates)")
    low, median, high = np.quantile(values, [(1 - level) / 2, 0.5, (1 + level) / 2], axis=1)
    return Band(median, low, high, level, values.shape[1])


def gap_bands(run: Run, level: float = 0.9) -> tuple[Band, Band]:
    """Bands of the duality gap of the average iterate and of the last one, each averaged over contexts.

    Parameters
    ----------
    run : Run
        Of sampled feedback, with replicates.
    level : float

    Returns
    -------
    Band, Band

    Raises
    ------
    ValueError
        If the run has no replicates.
    """
    if run.gap_average.ndim != run.weights.ndim + 2:
        raise ValueError("the run has no replicates: bands need play(..., feedback=Sampled(replicates=...))")
    return band(run.mean_gap_average, level), band(run.mean_gap_last, level)
