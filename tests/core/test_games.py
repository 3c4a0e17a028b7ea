"""Win rate, duality gap, regret and the regularized game: numbers by hand, brute force, every array library.

The game by hand: rock-paper-scissors with P = ((½, .9, .2), (.1, ½, .9), (.8, .1, ½)), π = (½, ½, 0).
A π = ((0 + .4)/2, (−.4 + 0)/2, (.3 − .4)/2) = (.2, −.2, −.05).
"""

from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from nashpo.core.games import (
    best_response,
    duality_gap,
    excess_payoff,
    regret,
    regularized_duality_gap,
    win_rate,
)
from nashpo.core.policies import kl, log_from_probabilities, log_normalize
from nashpo.tabular import Game
from nashpo.tabular.testing import games, policies
from nashpo.tabular.win_rates import to_numpy

LIBRARIES = [np, torch, array_api_strict]
P = [[0.5, 0.9, 0.2], [0.1, 0.5, 0.9], [0.8, 0.1, 0.5]]


@pytest.fixture(params=LIBRARIES, ids=lambda xp: xp.__name__)
def array(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Makes float64 arrays of each library."""
    return lambda values: request.param.asarray(values, dtype=request.param.float64)


def test_payoff_and_gap_by_hand(array: Callable) -> None:
    """The best response is the first, at .2 above ½: the gap is 2 · .2 = .4."""
    A, policy = array(P) - 0.5, array([0.5, 0.5, 0.0])
    assert_allclose(to_numpy(excess_payoff(A, policy)), [0.2, -0.2, -0.05], rtol=1e-14)
    assert_allclose(to_numpy(duality_gap(A, policy)), 0.4, rtol=1e-14)
    assert int(best_response(A, policy)) == 0


def test_win_rate_by_hand(array: Callable) -> None:
    """π = (½, ½, 0) against the third: (.2 + .9)/2 = .55. Against itself: ½."""
    A, policy = array(P) - 0.5, array([0.5, 0.5, 0.0])
    assert_allclose(to_numpy(win_rate(A, policy, array([0.0, 0.0, 1.0]))), 0.55, rtol=1e-14)
    assert_allclose(to_numpy(win_rate(A, policy, policy)), 0.5, rtol=1e-15)


def test_masked_responses_are_no_best_response(array: Callable) -> None:
    """Without the first response the best is the third, at −.05: the gap 2 · (−.05) is that of the policy given."""
    A, policy = array(P) - 0.5, array([0.5, 0.5, 0.0])
    mask = array([0.0, 1.0, 1.0]) > 0
    assert_allclose(to_numpy(duality_gap(A, policy, mask)), -0.1, rtol=1e-14)
    assert int(best_response(A, policy, mask)) == 2


def test_regret_by_hand(array: Callable) -> None:
    """Two steps, π_1 = (½, ½, 0), π_2 = (0, 0, 1) with Aπ_2 = (−.3, .4, 0).

    Sum of payoffs (−.1, .2, −.05): the best fixed response earned .2; playing earned ⟨π_t, Aπ_t⟩ = 0 twice.
    """
    A = array(P) - 0.5
    rounds = array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    gains = excess_payoff(A, rounds)
    assert_allclose(to_numpy(regret(gains, rounds)), 0.2, rtol=1e-14)


def test_regret_in_payoffs_that_come_from_elsewhere(array: Callable) -> None:
    """Payoffs (1, 0) and (0, 3), played (1, 0) and (½, ½): the best response earned 3, playing 1 + 3/2; regret ½.

    With the second response masked the best is the first, with 1: regret −3/2.
    """
    gains, rounds = array([[1.0, 0.0], [0.0, 3.0]]), array([[1.0, 0.0], [0.5, 0.5]])
    assert_allclose(to_numpy(regret(gains, rounds)), 0.5, rtol=1e-15)
    assert_allclose(to_numpy(regret(gains, rounds, array([1.0, 0.0]) > 0)), -1.5, rtol=1e-15)


def test_regularized_gap_is_a_maximum_over_policies() -> None:
    """2 max_u [⟨u, Aπ⟩ − τ KL(u ‖ ref)] + 2τ KL(π ‖ ref), over 20,000 random u: closer than 1e-2, never above.

    At the maximizer ref · exp(Aπ/τ) itself it is equal to rounding.
    """
    rng = np.random.default_rng(0)
    A, tau = np.array(P) - 0.5, 0.3
    policy, reference = (log_normalize(rng.standard_normal(3)) for _ in range(2))
    gain = A @ np.exp(policy)

    def objective(u: np.ndarray) -> np.ndarray:
        return 2 * (np.exp(u) @ gain - tau * kl(u, reference) + tau * kl(policy, reference))

    gap = float(regularized_duality_gap(A, policy, reference, tau))
    assert_allclose(objective(log_normalize(reference + gain / tau)), gap, rtol=1e-13)
    tried = objective(log_normalize(3 * rng.standard_normal((20_000, 3))))
    assert gap - 1e-2 < tried.max() <= gap + 1e-14


def test_regularized_gap_at_tau_towards_zero() -> None:
    """For τ → 0 it becomes the plain gap; the difference is at most 2τ(D_ref + KL)."""
    A, policy = np.array(P) - 0.5, np.log([0.2, 0.3, 0.5])
    reference = np.log([0.6, 0.3, 0.1])
    for tau in (1e-3, 1e-6):
        difference = abs(regularized_duality_gap(A, policy, reference, tau) - duality_gap(A, np.exp(policy)))
        assert difference <= 2 * tau * (np.log(10) + kl(policy, reference))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data(), games())
def test_gap_is_twice_the_regret_of_any_self_play(data: Any, game: Game) -> None:
    """Claim 1: DualGap(mean of π_t) = 2 Reg/T for whatever policies were played; rounding 1e-13."""
    played = np.stack([data.draw(policies(game, full_support=False)) for _ in range(3)])
    average = played.mean(axis=0)
    total = regret(excess_payoff(game.A, played), played, game.mask)
    assert_allclose(duality_gap(game.A, average, game.mask), 2 * total / 3, rtol=0, atol=1e-13)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data(), games())
def test_gaps_lie_where_they_must(data: Any, game: Game) -> None:
    """A gap is in [0, 1], the regularized one is >= 0; both are 0 at one response. Rounding 1e-13."""
    policy = data.draw(policies(game))
    reference = data.draw(policies(game))
    gap = duality_gap(game.A, policy, game.mask)
    assert ((gap >= -1e-13) & (gap <= 1 + 1e-13)).all()
    logs = log_from_probabilities(policy), log_from_probabilities(reference)
    regularized = regularized_duality_gap(game.A, *logs, 0.5, game.mask)
    assert (regularized >= -1e-13).all()
    if game.n == 1:
        assert_allclose(gap, 0, atol=1e-13)
        assert_allclose(regularized, 0, atol=1e-13)
