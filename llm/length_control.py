"""Win rates at equal length: a logistic regression that takes the judge's taste for length out of them.

The model is that of length-controlled AlpacaEval (Dubois et al., 2404.04475) without its terms for single instructions:

    logit P(a ≻ b) = θ + φ · tanh((|a| − |b|) / s),        s the standard deviation of |a| − |b|

and the length-controlled win rate is σ(θ), what the model predicts at equal lengths. Turning the pair around turns the
signs of θ and of the tanh, so that the two win rates of a pair of policies add up to 1.

Shapes: B prompts, K × K' pairs of responses each; lengths in tokens. Every prompt weighs the same.
"""

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 200
FEWEST = 10
"""Prompts below which nothing is fitted."""
MISSING = "length-controlled win rates need the package statsmodels: pip install 'nashpo[eval]'"
Wins = Sequence[Sequence[float | None]]
Array = NDArray[np.float64]


def available() -> bool:
    """Whether statsmodels is installed."""
    return find_spec("statsmodels") is not None


def length_controlled(
    lengths: Sequence[Sequence[int]], others: Sequence[Sequence[int]], wins: Sequence[Wins], seed: int
) -> dict[str, Any] | None:
    """σ(θ) with a 95 % percentile bootstrap interval over prompts.

    Parameters
    ----------
    lengths : B lists of K
    others : B lists of K'
    wins : B matrices (K, K')
        None where the judge abstained.
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict or None
        ``mean``, ``low``, ``high``, ``prompts``; None where fewer than 10 prompts were judged, all differences of
        lengths are the same, the maximum likelihood does not exist (the lengths separate wins from losses, as where
        one side wins everything), it does not in more than half of the resamples, or statsmodels is not installed.
    """
    if not available():
        return None
    rows = [_pairs(*one) for one in zip(lengths, others, wins, strict=True)]
    rows = [row for row in rows if len(row)]
    if len(rows) < FEWEST:
        return None
    rate = _fitted(rows)
    if rate is None:
        return None
    rng = np.random.default_rng([seed, len(rows)])
    drawn = [_fitted([rows[i] for i in rng.integers(0, len(rows), len(rows))]) for _ in range(RESAMPLES)]
    found = [x for x in drawn if x is not None]
    if len(found) < RESAMPLES // 2:
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    return {"mean": rate, "low": float(low), "high": float(high), "prompts": len(rows)}


def _pairs(mine: Sequence[int], theirs: Sequence[int], wins: Wins) -> Array:
    """(pairs, 3): difference of lengths, win rate, weight; the weights of a prompt add up to 1."""
    found = [
        (float(mine[i] - theirs[j]), p) for i, line in enumerate(wins) for j, p in enumerate(line) if p is not None
    ]
    both = np.array(found, dtype=float).reshape(-1, 2)
    return np.column_stack([both, np.full(len(both), 1 / max(len(both), 1))])


def _fitted(rows: Sequence[Array]) -> float | None:
    """σ(θ); None where the fit does not exist."""
    difference, won, weights = np.concatenate(rows).T
    if separated(difference, won):
        return None
    import statsmodels.api as sm

    design = np.column_stack([np.ones(len(won)), np.tanh(difference / difference.std())])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of win rates that are no whole numbers
        fit = sm.GLM(won, design, family=sm.families.Binomial(), freq_weights=weights).fit()
    theta = float(fit.params[0])
    return float(1 / (1 + np.exp(-theta))) if fit.converged and np.isfinite(theta) else None


def separated(x: Array, won: Array) -> bool:
    """Whether the likelihood of logit P = θ + φ x has no single maximum.

    It has none where some threshold has all wins on one side of it, or on it, and all losses on the other (a win rate
    within (0, 1) is a bit of both). So it is where all x are the same.
    """
    wins, losses = x[won > 0], x[won < 1]
    if not len(wins) or not len(losses):
        return True
    return bool(losses.max() <= wins.min() or wins.max() <= losses.min())
