"""Standings of an arena: the win matrix of policies with intervals, its Nash weights, how exploitable each policy is.

Shapes: M policies, B prompts. ``rates`` is (M, M, B), the win rate of the row against the column on each prompt in
[0, 1], NaN where the judge said nothing; only entries above the diagonal are read. Matrices are (M, M) with diagonal ½
and P + Pᵀ = 1, vectors are (M,).

Intervals are 95 % over prompts. Those of win rates are `nashpo.llm.intervals.rate_interval`'s: prompts get random
weights, the same for all pairs, with one prompt more that nobody has seen, lost for the lower end and won for the upper
one. An exploitability rises with every win rate against the policy, so that its ends are quantiles over the same two
sets of win rates. A Nash weight rises with some and falls with others: there every pair of the unseen prompt is lost or
won by the toss of a coin. A win rate that one prompt alone speaks of has no interval, nor has what depends on it.

Measured at 3 to 100 prompts on 300 arenas of three policies, with verdicts of 0 and 1 and with smooth ones (standard
error 0.013): win rates were held by 0.94 and more of the intervals, Nash weights by 0.91 and more, exploitabilities by
0.95 and more except where all policies are equal (0.88 and more): there the largest of several win rates is too large.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from nashpo.core.games import duality_gap
from nashpo.llm.intervals import LEVELS, unseen_weights
from nashpo.tabular.equilibrium import nash
from nashpo.tabular.game import Game

DRAWS = 2000
"""Draws of weights; for each a game is solved."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Standings:
    """What the comparisons say.

    Attributes
    ----------
    wins, low, high : (M, M)
        Mean win rate of the row against the column over the prompts that were judged, and its interval; bounds are NaN
        where a single prompt was judged.
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
        Of the weights.

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
    judged = np.full((M, M), B)
    judged[rows, columns] = judged[columns, rows] = known.sum(-1)
    below, above, tossed = _drawn(values, known, seed)
    worst, best = _ordered(below, above, rows, columns, M), _ordered(above, below, rows, columns, M)
    least, most = _lower(exploitabilities(worst)), _upper(exploitabilities(best))
    low, high = _lower(worst), _upper(best)
    solved = nash(Game(wins))
    weights = nash(Game(_matrix(tossed, rows, columns, M))).policy
    nash_low, nash_high = _lower(weights), _upper(weights)
    single = (judged == 1) & ~np.eye(M, dtype=bool)
    for bounds, unknown in (
        ((low, high), single),
        ((least, most), single.any(axis=0)),
        ((nash_low, nash_high), np.full(M, single.any())),
    ):
        for bound in bounds:
            bound[unknown] = np.nan
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


def _ordered(upper: Array, lower: Array, rows: NDArray[np.int64], columns: NDArray[np.int64], M: int) -> Array:
    """`_matrix` with other win rates below the diagonal: 1 − ``lower`` of the pair."""
    made = _matrix(upper, rows, columns, M)
    made[..., columns, rows] = 1.0 - lower
    return made


def _drawn(values: Array, known: NDArray[np.bool_], seed: int) -> tuple[Array, Array, Array]:
    """Win rates (D, pairs) under random weights, with the unseen prompt lost, won, and as a coin falls."""
    B = values.shape[-1]
    below, above = [], []
    for weights in unseen_weights([seed, B], B, DRAWS):
        unseen = weights[:, -1:]
        answered = weights[:, :-1] @ known.T + unseen  # who was not judged has no weight
        below.append((weights[:, :-1] @ values.T) / answered)
        above.append(below[-1] + unseen / answered)
    lost, won = np.concatenate(below), np.minimum(np.concatenate(above), 1.0)
    coins = np.random.default_rng([seed, B, 1]).random(lost.shape) < 0.5
    return lost, won, np.where(coins, won, lost)


def _lower(drawn: Array) -> Array:
    return np.asarray(np.quantile(drawn, LEVELS[0], axis=0))


def _upper(drawn: Array) -> Array:
    return np.asarray(np.quantile(drawn, LEVELS[1], axis=0))
