"""Standings of an arena from win rates that are given: every number worked out by hand or by another way."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.llm.standings import RESAMPLES, exploitabilities, standings
from nashpo.tabular import Game, duality_gap, nash

ROUNDING = 1e-12
SOLVER = 1e-9
"""The interior point's error in a policy of these games; its gap is 1e-12 and they are far from degenerate."""


def rates(*upper: list[float]) -> np.ndarray:
    """(M, M, B) with the rows above the diagonal filled; what is below must not be read."""
    M = next(m for m in range(2, 9) if m * (m - 1) // 2 == len(upper))
    made = np.full((M, M, len(upper[0])), np.nan)
    made[np.triu_indices(M, 1)] = upper
    return made


def test_rock_paper_scissors() -> None:
    """0 loses to 1, 1 to 2, 2 to 0, each at 0.7: equal weights, and each is exploited with gap 2 (0.7 − 0.5)."""
    found = standings(rates([0.2, 0.4], [0.9, 0.5], [0.3, 0.3]), "abc", seed=0)
    expected = [[0.5, 0.3, 0.7], [0.7, 0.5, 0.3], [0.3, 0.7, 0.5]]
    assert_allclose(found.wins, expected, rtol=0, atol=ROUNDING)
    assert_allclose(found.nash, 1 / 3, rtol=0, atol=SOLVER)
    assert_allclose(found.exploitability, 0.4, rtol=0, atol=ROUNDING)
    assert found.exploited_by.tolist() == [1, 2, 0]
    assert found.nash_unique
    assert found.nash_gap < SOLVER
    assert_array_equal(found.judged, np.full((3, 3), 2))


def test_unequal_cycle_by_hand() -> None:
    """Margins a = P₀₁ − ½ = 0.3, b = P₁₂ − ½ = 0.1, c = P₂₀ − ½ = 0.2: Nash weights (b, c, a)/(a + b + c)."""
    found = standings(rates([0.8], [0.3], [0.6]), "abc", seed=0)
    assert_allclose(found.nash, np.array([0.1, 0.2, 0.3]) / 0.6, rtol=0, atol=SOLVER)
    assert_allclose(found.exploitability, [0.4, 0.6, 0.2], rtol=0, atol=ROUNDING)


def test_an_unbeaten_policy_is_exploited_by_nobody() -> None:
    found = standings(rates([0.6], [0.5], [0.5]), "abc", seed=0)
    assert found.exploitability[0] == 0
    assert found.exploited_by.tolist() == [0, 0, 2]


def test_it_is_the_tabular_game() -> None:
    """The same Nash weights as `nash`, and exploitability is `duality_gap` of the pure policies."""
    drawn = np.random.default_rng(0).random((5, 5, 7))
    found = standings(drawn, "abcde", seed=0)
    game = Game(found.wins)
    assert_array_equal(found.nash, nash(game).policy)
    assert_allclose(found.exploitability, [duality_gap(game, row) for row in np.eye(5)], rtol=0, atol=ROUNDING)
    assert_array_equal(found.wins + found.wins.T, np.ones((5, 5)))
    assert_array_equal(np.diag(found.wins), np.full(5, 0.5))


def test_exploitabilities_of_many_games() -> None:
    wins = np.array([[[0.5, 0.9], [0.1, 0.5]], [[0.5, 0.5], [0.5, 0.5]]])
    assert_allclose(exploitabilities(wins), [[0, 0.8], [0, 0]], rtol=0, atol=ROUNDING)


def test_bootstrap_of_two_prompts_by_hand() -> None:
    """0 and 1 on two prompts: a resample's mean is 0, ½, 1 with probabilities ¼, ½, ¼, so that all intervals are full.

    The Nash weight is 0 or 1 in half of the resamples, and the exploitability 2 (1 − ½) = 1 in a quarter.
    """
    found = standings(rates([0.0, 1.0]), "ab", seed=0)
    assert found.wins[0, 1] == 0.5
    assert_array_equal([found.low[0, 1], found.high[0, 1]], [0, 1])
    assert_allclose([found.nash_low, found.nash_high], [[0, 0], [1, 1]], rtol=0, atol=SOLVER)
    assert_array_equal([found.exploitability_low, found.exploitability_high], [[0, 0], [1, 1]])
    assert_array_equal([found.low[0, 0], found.high[0, 0]], [0.5, 0.5])


def test_bootstrap_covers() -> None:
    """In 200 arenas of 100 prompts, intervals hold the true rate 0.6 about 190 times.

    The percentile interval's true coverage is about 0.94; 175 or fewer of 200 happen with probability below 1e-3.
    """
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(200):
        found = standings(rates((rng.random(100) < 0.6).astype(float).tolist()), "ab", seed)
        held += bool(found.low[0, 1] <= 0.6 <= found.high[0, 1])
    assert held > 175


def test_bounds_turn_around() -> None:
    found = standings(np.random.default_rng(2).random((4, 4, 30)), "abcd", seed=3)
    assert_allclose(found.low, 1 - found.high.T, rtol=0, atol=1e-3)  # quantiles are interpolated between resamples
    assert (found.low <= found.wins).all()
    assert (found.wins <= found.high).all()
    again = standings(np.random.default_rng(2).random((4, 4, 30)), "abcd", seed=3)
    assert_array_equal(again.nash_low, found.nash_low)


def test_abstentions_are_left_out() -> None:
    found = standings(rates([np.nan, 0.25, 0.75], [0.5, 0.5, 0.5], [np.nan, np.nan, 0.9]), "abc", seed=0)
    assert found.wins[0, 1] == 0.5
    assert_allclose(found.wins[1, 2], 0.9, rtol=0, atol=ROUNDING)
    assert found.judged.tolist() == [[3, 2, 3], [2, 3, 1], [3, 1, 3]]
    assert np.isfinite(found.low).all()


def test_a_pair_that_was_never_judged_is_refused() -> None:
    with pytest.raises(ValueError, match="abstained on every comparison of 'a' with 'c'") as caught:
        standings(rates([0.5], [np.nan], [0.5]), "abc", seed=0)
    assert "\n" not in str(caught.value)


def test_where_hardly_anything_was_judged_there_are_no_intervals() -> None:
    """36 pairs, each judged on one prompt of its own of 36: no resample has them all, but for 36!/36³⁶ = 1e-14."""
    made = np.full((9, 9, 36), np.nan)
    for b, (i, j) in enumerate(zip(*np.triu_indices(9, 1))):
        made[i, j, b] = 0.6
    found = standings(made, "abcdefghi", seed=0)
    assert np.isnan(found.low).all()
    assert np.isnan(found.nash_high).all()
    assert np.isfinite(found.nash).all()
    assert RESAMPLES == 2000
