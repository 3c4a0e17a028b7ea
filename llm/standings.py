"""Standings of an arena: the win matrix of policies with intervals, its Nash weights, how exploitable each policy is.

Shapes: M policies, B prompts. ``rates`` is (M, M, B), the win rate of the row against the column on each prompt in
[0, 1], NaN where the judge said nothing; only entries above the diagonal are read. Matrices are (M, M) with diagonal ½
and P + Pᵀ = 1, vectors are (M,). Intervals are 95 % percentile bootstraps: the prompts are resampled, for all pairs at
once, and everything is computed anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from nashpo.core.games import duality_gap
from nashpo.tabular.equilibrium import nash
from nashpo.tabular.game import Game

RESAMPLES = 2000
LEVELS = (0.025, 0.975)
_AT_ONCE = 2**22
"""Numbers held at once while prompts are resampled."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Standings:
    """What the comparisons say.

    Attributes
    ----------
    wins, low, high : (M, M)
        Mean win rate of the row against the column over the prompts that were judged, and its interval.
    judged : (M, M) of int
        Prompts behind each entry; all of them on the diagonal.
    nash, nash_low, nash_high : (M,)
        Nash equilibrium of the game ``wins`` (`nashpo.tabular.nash`), the mixture of policies that none of them beats.
    nash_gap : float
        Its duality gap, the solver's error.
    nash_unique : bool
        Whether it was shown to be the only equilibrium.
    exploitability, exploitability_low, exploitability_high : (M,)
        Duality gap of each policy by itself in the game ``wins``, 2 (max_j P_ji − ½) in [0, 1]: 0 where none of the
        others beats it, 1 where one always does. The largest of several noisy numbers is too large on average.
    exploited_by : (M,) of int
        The policy with the largest win rate against each; itself where none beats it.
    """

    wins: Array
    low: Array
    high: Array
    judged: NDArray[np.int64]
    nash: Array
    nash_low: Array
    nash_high: Array
    nash_gap: float
    nash_unique: bool
    exploitability: Array
    exploitability_low: Array
    exploitability_high: Array
    exploited_by: NDArray[np.int64]


def standings(rates: Array, names: Sequence[str], seed: int) -> Standings:
    """The standings of M policies from their win rates on each prompt.

    Parameters
    ----------
    rates : (M, M, B)
    names : M str
        For messages.
    seed : int
        Of the bootstrap.

    Raises
    ------
    ValueError
        If two policies were never compared: the game is not known then.
    """
    M, B = rates.shape[1:]
    rows, columns = np.array(list(combinations(range(M), 2)), dtype=int).reshape(-1, 2).T
    pairs = np.asarray(rates, dtype=float)[rows, columns]
    known = np.isfinite(pairs)
    for i, j, count in zip(rows, columns, known.sum(-1)):
        if not count:
            raise ValueError(
                f"the judge abstained on every comparison of {names[i]!r} with {names[j]!r}: mend the judge, or leave"
                " one of them out"
            )
    values = np.where(known, pairs, 0.0)
    wins = _matrix(values.sum(-1) / known.sum(-1), rows, columns, M)
    drawn = _resampled(values, known, rows, columns, M, seed)
    solved = nash(Game(wins))
    weights = nash(Game(drawn)).policy if len(drawn) else np.empty((0, M))
    low, high = _bounds(drawn)
    nash_low, nash_high = _bounds(weights)
    least, most = _bounds(exploitabilities(drawn))
    judged = np.full((M, M), B)
    judged[rows, columns] = judged[columns, rows] = known.sum(-1)
    return Standings(
        wins,
        low,
        high,
        judged,
        np.asarray(solved.policy),
        nash_low,
        nash_high,
        float(solved.gap),
        bool(solved.unique),
        exploitabilities(wins),
        least,
        most,
        np.where(wins.max(axis=0) > 0.5, wins.argmax(axis=0), np.arange(M)),
    )


def exploitabilities(wins: Array) -> Array:
    """Duality gap 2 (max_j P_ji − ½) of every policy i by itself, (..., M), from win matrices (..., M, M)."""
    single = np.eye(wins.shape[-1])
    return np.asarray(duality_gap((wins - 0.5)[..., None, :, :], single))


def _matrix(upper: Array, rows: NDArray[np.int64], columns: NDArray[np.int64], M: int) -> Array:
    """(..., M, M) from the entries above the diagonal, (..., M (M − 1)/2)."""
    made = np.full((*upper.shape[:-1], M, M), 0.5)
    made[..., rows, columns] = upper
    made[..., columns, rows] = 1.0 - upper
    return made


def _resampled(
    values: Array, known: NDArray[np.bool_], rows: NDArray[np.int64], columns: NDArray[np.int64], M: int, seed: int
) -> Array:
    """Win matrices (R, M, M) of resampled prompts; a resample without a comparison of some pair is left out.

    All are where hardly any comparison was answered; then R is 0.
    """
    B = values.shape[-1]
    rng = np.random.default_rng([seed, B])
    found = []
    left = RESAMPLES
    while left:
        some = min(left, max(1, _AT_ONCE // B))
        counts = rng.multinomial(B, np.full(B, 1 / B), size=some).astype(float)
        answered = counts @ known.T
        with np.errstate(invalid="ignore"):
            means = (counts @ values.T) / answered
        found.append(means[(answered > 0).all(-1)])
        left -= some
    return _matrix(np.concatenate(found), rows, columns, M)


def _bounds(drawn: Array) -> tuple[Array, Array]:
    """The interval of every entry; NaN without resamples."""
    if not len(drawn):
        return np.full(drawn.shape[1:], np.nan), np.full(drawn.shape[1:], np.nan)
    low, high = np.quantile(drawn, LEVELS, axis=0)
    return low, high
