"""The Bradley–Terry projection: it finds a reward that is there, explains best where none is, and says when it cannot.

Tolerance: the Newton steps stop at a gradient of 1e-13 per unit of weight; rewards are right to about 1e-11 nats.
"""

from typing import Any

import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import minimize

from nashpo.core.losses import bradley_terry
from nashpo.tabular import Game, families
from nashpo.tabular.bradley_terry import bradley_terry_projection
from nashpo.tabular.testing import games, policies
from nashpo.tabular.win_rates import bradley_terry_win_rates, to_numpy

LIBRARIES = [np, torch, array_api_strict]


@pytest.mark.parametrize("xp", LIBRARIES, ids=lambda xp: xp.__name__)
def test_by_hand(xp: Any) -> None:
    """P(a ≻ b) = ¾ is σ(log 3): rewards ½ log 3 and −½ log 3 under the even policy.

    Under π = (¼, ¾) the difference is the same and the gauge Σ π r = 0 moves it: ¾ log 3 and −¼ log 3.
    """
    P = xp.asarray([[0.5, 0.75], [0.25, 0.5]], dtype=xp.float64)
    reward = bradley_terry_projection(P, xp.asarray([0.5, 0.5], dtype=xp.float64))
    assert type(reward) is type(P)
    assert_allclose(to_numpy(reward), [0.5 * np.log(3), -0.5 * np.log(3)], rtol=1e-12)
    reward = bradley_terry_projection(P, xp.asarray([0.25, 0.75], dtype=xp.float64))
    assert_allclose(to_numpy(reward), [0.75 * np.log(3), -0.25 * np.log(3)], rtol=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data(), st.integers(2, 6), st.floats(0.1, 4.0))
def test_a_reward_that_is_there_is_found(data: Any, n: int, scale: float) -> None:
    """Whatever policy the pairs come from, down to probabilities of e^−12."""
    reward = scale * np.array(data.draw(st.lists(st.floats(-1, 1), min_size=n, max_size=n)))
    game = Game(bradley_terry_win_rates(np, reward))
    policy = data.draw(policies(game))
    found = bradley_terry_projection(game.P, policy)
    assert_allclose(found, reward - policy @ reward, rtol=0, atol=1e-10)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data(), games(certain=False))
def test_the_first_order_condition_holds(data: Any, game: Game) -> None:
    """E_{y'∼π}[P(y ≻ y') − σ(r(y) − r(y'))] = 0 for every played y, and Σ π r = 0; others get 0."""
    policy = data.draw(policies(game, full_support=False))
    reward = bradley_terry_projection(game.P, policy)
    model = 1 / (1 + np.exp(reward[..., None, :] - reward[..., :, None]))
    left_over = np.sum(policy[..., None, :] * (game.P - model), axis=-1)
    assert_allclose(np.where(policy > 0, left_over, 0), 0, atol=1e-11)
    assert_allclose(np.sum(policy * reward, axis=-1), 0, atol=1e-11)
    assert (reward[policy == 0] == 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_no_reward_explains_an_intransitive_game_better(seed: int) -> None:
    """The expected log-loss at the projection is that of a general-purpose minimizer, never above it by 1e-9."""
    game = families.annotators(4, seed=seed)
    policy = np.random.default_rng(seed).dirichlet(np.ones(4))
    pairs = policy[:, None] * policy

    def loss(reward: np.ndarray) -> float:
        return float(np.sum(pairs * bradley_terry(reward[:, None], reward[None, :], game.P))) / 2

    found = bradley_terry_projection(game.P, policy)
    foreign = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-9})
    assert loss(found) <= foreign.fun + 1e-9
    assert abs(loss(found) - foreign.fun) < 1e-6
    shift = foreign.x - policy @ foreign.x
    assert_allclose(found, shift, rtol=0, atol=1e-3)


def test_a_batch_is_its_rows() -> None:
    game = families.annotators(4, seed=1, batch=(2, 3))
    rng = np.random.default_rng(0)
    policy = rng.dirichlet(np.ones(4), (2, 3))
    together = bradley_terry_projection(game.P, policy)
    for context in np.ndindex(2, 3):
        alone = bradley_terry_projection(game.P[context], policy[context])
        assert_allclose(together[context], alone, rtol=0, atol=1e-11)


def test_a_cycle_has_no_reward_to_speak_of() -> None:
    """Rock-paper-scissors under the even policy: every reward is 0, although every win rate is 0 or 1."""
    assert_allclose(bradley_terry_projection(families.cyclic(3).P, np.full(3, 1 / 3)), 0, atol=1e-14)


DIVERGING = [
    (families.dominance(3).P, [1 / 3] * 3),
    # Without scissors, paper beats rock with certainty.
    (families.cyclic(3).P, [0.5, 0.5, 0.0]),
    (np.stack([families.comal().P, families.dominance(3).P]), [[1 / 3] * 3] * 2),
]


@pytest.mark.parametrize(("P", "policy"), DIVERGING)
def test_a_projection_that_diverges_is_refused(P: np.ndarray, policy: list) -> None:
    with pytest.raises(ValueError, match="reward of this game diverges: some responses never lose") as error:
        bradley_terry_projection(P, np.array(policy))
    assert "\n" not in str(error.value)


def test_one_played_response_earns_nothing() -> None:
    assert_allclose(bradley_terry_projection(families.dominance(3).P, np.array([0.0, 1.0, 0.0])), 0, atol=0)
