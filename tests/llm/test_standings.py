"""Standings of an arena from win rates that are given: every number worked out by hand or by another way."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.llm.intervals import rate_interval
from nashpo.llm.standings import DRAWS, exploitabilities, standings
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


def test_two_prompts_by_hand() -> None:
    """0 and 1: Clopper and Pearson's interval of one win in two, from 1 − √0.975 to √0.975, on either side of ½.

    So either policy may be all of the equilibrium and unexploited, or exploited at 2 (√0.975 − ½) = 0.975. The standard
    error of an end is sqrt(0.025 · 0.975/2000)/2 = 0.0018, with the density 2 √0.975 of Beta(2, 1).
    """
    found = standings(rates([0.0, 1.0]), "ab", seed=0)
    end = 1 - np.sqrt(0.975)
    assert found.wins[0, 1] == 0.5
    assert_allclose([found.low[0, 1], found.high[0, 1]], [end, 1 - end], rtol=0, atol=5 * 0.0018)
    assert_allclose([found.nash_low, found.nash_high], [[0, 0], [1, 1]], rtol=0, atol=SOLVER)
    assert_array_equal(found.exploitability_low, [0, 0])
    assert_allclose(found.exploitability_high, 1 - 2 * end, rtol=0, atol=10 * 0.0018)
    assert_array_equal([found.low[0, 0], found.high[0, 0]], [0.5, 0.5])


def test_win_rates_have_the_interval_of_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """`rate_interval` with as many draws; abstentions change the draws, hence the ends by their errors.

    An end's standard error is 0.06 of a standard error of the mean, which is below 0.11: 0.05 is 5 of two of them.
    """
    monkeypatch.setattr("nashpo.llm.intervals.DRAWS", DRAWS)
    values = np.random.default_rng(5).random(7)
    alone = rate_interval(values, seed=4)
    assert alone is not None
    found = standings(rates(values.tolist()), "ab", seed=4)
    assert_allclose([found.low[0, 1], found.high[0, 1]], [alone["low"], alone["high"]], rtol=0, atol=ROUNDING)
    assert_allclose([found.low[1, 0], found.high[1, 0]], [1 - alone["high"], 1 - alone["low"]], rtol=0, atol=ROUNDING)
    holed = standings(rates([*values, np.nan, np.nan]), "ab", seed=4)
    assert_allclose([holed.low[0, 1], holed.high[0, 1]], [alone["low"], alone["high"]], rtol=0, atol=0.05)


def test_exploitability_has_the_bounds_of_the_win_rates() -> None:
    """Of two policies it is that of one win rate: 2 (bound − ½), or 0 below ½."""
    found = standings(rates([0.9, 0.8, 1.0, 0.7, 0.9, 1.0, 0.8]), "ab", seed=1)
    assert found.low[0, 1] > 0.5
    assert_allclose(found.exploitability_low, [0, 2 * found.low[0, 1] - 1], rtol=0, atol=ROUNDING)
    assert_allclose(found.exploitability_high, [0, 2 * found.high[0, 1] - 1], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("verdict", [0.0, 1.0])
def test_the_unseen_prompt_is_a_coin_for_nash_weights(verdict: float) -> None:
    """One policy has won on all of B prompts. The unseen one turns this around with weight > ½ and half of the tosses.

    That is 2^−B/2: 1/16 of the draws for B = 3, more than 2.5 %, and 1/128 for B = 6, less. Of 2000 draws 125 ± 11 and
    16 ± 4, and 50 are needed, 6 standard errors away.
    """
    few, more = (standings(rates([verdict] * B), "ab", seed=0) for B in (3, 6))
    assert_allclose([few.nash_low, few.nash_high], [[0, 0], [1, 1]], rtol=0, atol=SOLVER)
    assert_allclose([more.nash_low, more.nash_high], [[verdict, 1 - verdict]] * 2, rtol=0, atol=SOLVER)


def test_few_prompts_are_covered() -> None:
    """In 200 arenas of 6 prompts with verdicts 0 and 1, where rock beats paper beats scissors beats rock at 0.7.

    Of 200 intervals that hold with probability 0.95 each, fewer than 178 do with probability 2e-4; there are nine, so
    that the test fails for 0.2 % of the seeds at most. Percentile bootstraps hold 0.8 of the win rates and 0.85 of the
    exploitabilities.
    """
    rng = np.random.default_rng(1)
    wins = np.array([0.3, 0.7, 0.3])
    held = np.zeros((3, 3))
    for seed in range(200):
        found = standings(rates(*(rng.random((3, 6)) < wins[:, None]).astype(float).tolist()), "abc", seed)
        upper = np.triu_indices(3, 1)
        held[0] += (found.low[upper] <= wins) & (wins <= found.high[upper])
        held[1] += (found.exploitability_low <= 0.4) & (found.exploitability_high >= 0.4)
        held[2] += (found.nash_low <= 1 / 3) & (found.nash_high >= 1 / 3)
    assert (held >= 178).all(), held


def test_bounds_turn_around() -> None:
    found = standings(np.random.default_rng(2).random((4, 4, 30)), "abcd", seed=3)
    assert_allclose(found.low, 1 - found.high.T, rtol=0, atol=ROUNDING)
    assert (found.low <= found.wins).all()
    assert (found.wins <= found.high).all()
    again = standings(np.random.default_rng(2).random((4, 4, 30)), "abcd", seed=3)
    assert_array_equal(again.nash_low, found.nash_low)


def test_abstentions_are_left_out() -> None:
    """Policies 1 and 2 met on one prompt only: what depends on that has no interval."""
    found = standings(rates([np.nan, 0.25, 0.75], [0.5, 0.5, 0.5], [np.nan, np.nan, 0.9]), "abc", seed=0)
    assert found.wins[0, 1] == 0.5
    assert_allclose(found.wins[1, 2], 0.9, rtol=0, atol=ROUNDING)
    assert found.judged.tolist() == [[3, 2, 3], [2, 3, 1], [3, 1, 3]]
    single = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0]], dtype=bool)
    assert_array_equal(np.isnan(found.low), single)
    assert_array_equal(np.isnan(found.high), single)
    assert np.isnan(found.exploitability_low).tolist() == [False, True, True]
    assert np.isnan(found.nash_high).all()


def test_a_pair_that_was_never_judged_is_refused() -> None:
    with pytest.raises(ValueError, match="abstained on every comparison of 'a' with 'c'") as caught:
        standings(rates([0.5], [np.nan], [0.5]), "abc", seed=0)
    assert "\n" not in str(caught.value)


def test_where_hardly_anything_was_judged_there_are_no_intervals() -> None:
    """36 pairs, each judged on one prompt of its own."""
    made = np.full((9, 9, 36), np.nan)
    for b, (i, j) in enumerate(zip(*np.triu_indices(9, 1))):
        made[i, j, b] = 0.6
    found = standings(made, "abcdefghi", seed=0)
    assert np.isnan(found.low[~np.eye(9, dtype=bool)]).all()
    assert np.isnan(found.exploitability_low).all()
    assert np.isnan(found.nash_high).all()
    assert np.isfinite(found.nash).all()
