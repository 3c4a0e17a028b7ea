"""Equilibria against an independent sequence form with another solver, the regularized one against the leaf game."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # helpers of this folder are imported by name

import brute
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.tabular import nash as bandit_nash
from nashpo.tabular.trees import (
    TreeGame,
    behavior_policy,
    confined_value,
    duality_gap,
    families,
    greedy,
    leaf_game,
    leaf_policy,
    nash,
    win_rate,
)
from nashpo.tabular.trees.mixture import outcome_law
from nashpo.tabular.trees.policies import log_policy, uniform
from nashpo.tabular.trees.regularized import regularized_nash
from nashpo.tabular.trees.values import soft_policy

TEN = [
    *(families.random_tree(3, 2, seed) for seed in (0, 1, 2)),
    *(families.stochastic_users(2, 2, 2, seed) for seed in (3, 4, 5)),
    *(families.random_process(3, 2, 3, 2, seed) for seed in (6, 7)),
    *(families.token_tree(2, 3, seed) for seed in (8, 9)),
]


@pytest.mark.parametrize("number", range(10))
def test_value_of_an_independent_sequence_form(number: int) -> None:
    """Each player confined to random actions, so that the value is not ½ by symmetry. 1e-7: Clarabel's accuracy."""
    game = TEN[number]
    rng = np.random.default_rng(number)
    allowed, against = (game.mask & (rng.random(game.shape) < 0.7) for _ in range(2))
    for chosen in (allowed, against):
        empty = ~chosen.any(axis=1)
        chosen[empty] = game.mask[empty]
    value = confined_value(game, allowed, against)[0]
    assert_allclose(value, brute.sequence_form_value(game, 0, allowed, against), atol=1e-7)
    assert_allclose(brute.sequence_form_value(game, 0, game.mask, game.mask), 0.5, atol=1e-7)
    assert_allclose(confined_value(game), 0.5, atol=1e-9)


def test_some_of_these_values_are_not_a_half() -> None:
    game = TEN[0]
    allowed = game.mask.copy()
    allowed[0, 1] = False
    assert abs(confined_value(game, allowed)[0] - 0.5) > 0.02
    assert_allclose(confined_value(game, allowed) + confined_value(game, None, allowed), 1, atol=1e-9)


@pytest.mark.parametrize("number", range(10))
def test_no_policy_beats_an_equilibrium(number: int) -> None:
    """By the best of all deterministic policies, found by recursion. 1e-9: HiGHS's feasibility, asked to be 1e-10."""
    game = TEN[number]
    for method in ("sequence", "auto"):
        found = nash(game, method)
        assert found.method == ("leaf" if method == "auto" and game.deterministic else "sequence")
        law = brute.law(game, 0, found.policy)
        P = game.table.P[0]
        wins = max(brute.law(game, 0, u) @ P @ law for u in brute.deterministic_policies(game))
        assert_allclose(wins, 0.5, atol=1e-9)
        assert found.gap[0] <= 2e-9


def test_contexts_are_solved_together_as_alone() -> None:
    together = families.stochastic_users(2, 2, 2, seed=5, contexts=3)
    allowed = together.mask.copy()
    allowed[:3, 1] = False
    values = confined_value(together, allowed)
    for c in range(3):
        assert_allclose(values[c], brute.sequence_form_value(together, c, allowed, together.mask), atol=1e-7)


def test_leaf_policies_and_behavior_policies_are_the_same() -> None:
    game = families.token_tree(3, 3, seed=2, contexts=2)
    policy = np.random.default_rng(0).random(game.shape) * game.mask
    policy /= policy.sum(axis=1, keepdims=True)
    leaves = leaf_policy(game, policy)
    assert_allclose(leaves.sum(axis=1), 1, rtol=1e-14)
    # Tolerance: sums of 15 products of probabilities and one division.
    assert_allclose(behavior_policy(game, leaves), policy, rtol=1e-13)
    flat = leaf_game(game)
    assert flat.batch_shape == (2,)
    assert_allclose(flat.win_rate(leaves, leaf_policy(game)), win_rate(game, policy, None), rtol=1e-14)


def test_a_ragged_leaf_game_is_masked() -> None:
    game = TreeGame([[[0, 1], [2, -1]], [[0, 1], [2, -1], [3, 4]]], families.random_tree(1, 3).table.P[0])
    assert_array_equal(leaf_game(game).mask, [[1, 1, 1], [1, 1, 0]])
    assert nash(game).gap.max() < 1e-12


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: families.stochastic_users(), "stochastic turns"), (lambda: _merging(), "several ways to it")],
)
def test_games_without_a_leaf_game_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        leaf_game(make())
    with pytest.raises(ValueError, match=message):
        nash(make(), "leaf")


def _merging() -> TreeGame:
    return TreeGame([[[0, 1]], [[0], [0]]], [[0.5]])


@pytest.mark.parametrize("tau", [0.02, 0.3])
def test_the_regularized_equilibrium_is_that_of_the_leaf_game(tau: float) -> None:
    """Trees only; 1e-10 in probability, for residuals of 1e-14 over tau."""
    game = families.random_tree(3, 2, seed=4, contexts=3)
    reference = np.random.default_rng(0).dirichlet(np.ones(2), game.shape[0])
    found = np.exp(regularized_nash(game, tau, reference))
    leaves = bandit_nash(leaf_game(game), tau, leaf_policy(game, reference)).policy
    assert_allclose(leaf_policy(game, found), leaves, atol=1e-10)
    assert_allclose(duality_gap(game, found, tau, reference), 0, atol=1e-12)


@pytest.mark.parametrize("tau", [0.02, 0.3])
def test_the_regularized_equilibrium_answers_itself(tau: float) -> None:
    """With stochastic turns: the soft best response to it is itself."""
    for game in (families.stochastic_users(3, 2, 2, seed=1, contexts=2), families.random_process(4, 3, 4, 2, seed=2)):
        log_pi = regularized_nash(game, tau)
        ends = game.payoff(outcome_law(game, np.exp(log_pi)))
        again, _ = soft_policy(game, log_policy(game, None), ends / tau)
        assert_allclose(np.exp(again), np.exp(log_pi), atol=1e-10)


def test_greedy_loses_the_two_turn_game() -> None:
    """It wins .55 against the reference (½·½ + ½·.6) and ½ − .3 = .2 against the equilibrium; exploited, .2 too."""
    game = families.two_turn()
    equilibrium, player = nash(game).policy, greedy(game)
    assert_array_equal(player[0], [1, 0, 0, 0, 0, 0])
    assert_allclose(win_rate(game, player, uniform(game)), 0.55, rtol=1e-14)
    assert_allclose(win_rate(game, player, equilibrium), 0.2, rtol=1e-13)
    assert_allclose(duality_gap(game, player), 0.6, rtol=1e-13)
    assert_allclose(equilibrium[[0, 2]], [[0, 1, 0, 0, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0, 0, 0]], atol=1e-12)
    confined = game.mask.copy()
    confined[0] = [1, 0, 0, 0, 0, 0]
    # However well it plays the second turn.
    assert_allclose(confined_value(game, confined), 0.2, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"edge": 0.6}, "edge = 0.6 must lie in"),
        ({"margin": 0.0}, "margin = 0 must lie in"),
        ({"good": 4}, "good = 4 must be odd"),
        ({"bad": 1}, "bad = 1 is too small: after one turn the question wins 0.6"),
    ],
)
def test_bad_two_turn_games_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        families.two_turn(**arguments)


def test_bad_questions_are_refused() -> None:
    game = families.random_tree(2, 2)
    with pytest.raises(ValueError, match="method = 'simplex' is none of auto, sequence, leaf"):
        nash(game, "simplex")
    with pytest.raises(TypeError, match="game is no TreeGame"):
        nash(leaf_game(game))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="allowed leaves no action in state 1"):
        confined_value(game, np.array([[1, 1], [0, 0], [1, 1]], dtype=bool))
    with pytest.raises(ValueError, match="booleans"):
        confined_value(game, np.ones((3, 2)))
    with pytest.raises(ValueError, match="tau = 0 must be"):
        regularized_nash(game, 0.0)
    with pytest.raises(ValueError, match=r"the law of trajectories has shape \(1, 3\)"):
        behavior_policy(game, [[0.5, 0.5, 0.0]])
    with pytest.raises(ValueError, match="actions = 0 must be at least 1"):
        families.random_tree(actions=0)
