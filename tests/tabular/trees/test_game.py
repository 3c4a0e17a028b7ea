"""What makes a multi-turn game: layout by depth, contexts, outcomes, and refusals in one line."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.core.rules import SPPO
from nashpo.tabular.game import Game
from nashpo.tabular.trees import TreeGame, families, play
from nashpo.tabular.trees.policies import log_policy, occupancy, uniform
from nashpo.tabular.trees.unroll import unroll

P3 = [[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]]
TWO = [np.array([[0, 1], [2, -1]]), np.array([[0, 1], [2, -1], [3, 4]])]
"""Two contexts: the first has three ends in two turns, the second two ends and one first action."""


def test_rows_contexts_and_outcomes() -> None:
    game = TreeGame(TWO, P3, weights=[1, 3])
    assert (game.horizon, game.contexts, game.shape, game.states) == (2, 2, (5, 2), 10)
    assert game.rows == (slice(0, 2), slice(2, 5))
    assert_array_equal(game.context, [0, 1, 0, 0, 1])
    assert_array_equal(game.final_context, [0, 0, 0, 1, 1])
    assert_array_equal(game.outcome, [0, 1, 2, 0, 1])
    assert_array_equal(game.mask, [[1, 1], [1, 0], [1, 1], [1, 0], [1, 1]])
    assert game.deterministic
    assert game.is_tree
    assert_allclose(game.mean(np.array([0.0, 1.0])), 0.75, rtol=1e-15)
    assert repr(game) == "TreeGame(horizon=2, contexts=2, states=10, actions=2, outcomes=3, deterministic)"


def test_occupancy_by_hand() -> None:
    """First turn (.25, .75), then (.4, .6) after the first action: ends .1, .15, .75."""
    game = TreeGame(TWO, P3)
    flow, arrived = occupancy(game, np.array([[0.25, 0.75], [1, 0], [0.4, 0.6], [1, 0], [0.5, 0.5]]))
    assert_allclose(arrived, [0.1, 0.15, 0.75, 0.5, 0.5], rtol=1e-15)
    assert_allclose(flow[2:4], [[0.1, 0.15], [0.75, 0]], rtol=1e-15)
    assert_allclose(game.law(arrived), [[0.1, 0.15, 0.75], [0.5, 0.5, 0]], rtol=1e-15)


def test_several_ends_may_be_one_outcome() -> None:
    game = TreeGame(TWO, P3, outcome=[2, 2, 0, 1, 1])
    law = game.law(occupancy(game, uniform(game))[1])
    assert_allclose(law, [[0.5, 0, 0.5], [0, 1, 0]], rtol=1e-15)


def test_a_process_is_no_tree_and_its_unrolled_form_is_one() -> None:
    game = families.random_process(3, 2, 3, 2, seed=4, contexts=2)
    assert not game.is_tree
    tree, origins = unroll(game)
    assert tree.is_tree
    assert tree.horizon == len(origins) - 1 == 3
    rng = np.random.default_rng(0)
    policy = rng.dirichlet(np.ones(2), game.shape[0])
    same = policy[np.concatenate([o + rows.start for o, rows in zip(origins, game.rows)])]
    law, law_of_histories = (g.law(occupancy(g, p)[1]) for g, p in ((game, policy), (tree, same)))
    # Tolerance: sums of some ten products of probabilities.
    assert_allclose(law_of_histories, law, rtol=1e-14)


@pytest.mark.parametrize(
    ("child", "more", "message"),
    [
        ([], {}, "child holds no turn"),
        ([[[0.5, 1.0]]], {}, "whole numbers"),
        ([[[0, 1]], [[0, 1], [2, 5]]], {"P": P3}, "state 3 at depth 2 is never reached"),
        ([[[0, 2]], [[0], [1]]], {}, "child[0] names state 2, but depth 1 has the states 0 … 1"),
        ([[[0, -2]]], {}, "child[0] names state -2"),
        ([[[0, 1]], [[0, -1], [-1, -1]]], {}, "state 1 at depth 1 has no action"),
        ([[[0], [0]]], {}, "state 0 at depth 1 is reached from two contexts"),
        ([[[[0, 1]]]], {}, "2 branches but no probabilities"),
        ([[[[0, 1]]]], {"chance": [[[[0.5, 0.6]]]]}, "chance[0][0, 0] does not add up to 1"),
        ([[[[0, 1]]]], {"chance": [[[[1.5, -0.5]]]]}, "probabilities are needed"),
        ([[[[0, 1]]]], {"chance": [[[0.5, 0.5]]]}, "they must agree"),
        ([[[0, 1]]], {"chance": []}, "chance holds 0 turns, child 1"),
        ([[[0, 1, 2, 3]]], {}, "a context has 4 final states, but P has 3 rows"),
        ([[[0, 1]]], {"outcome": [0, 3]}, "outcome names row 3, but P has the rows 0 … 2"),
        ([[[0, 1]]], {"outcome": [0]}, "one whole number for each of 2 final states"),
        ([[[0, 1]]], {"P": np.full((2, 3, 3), 0.5)}, "one table (K, K), or one per context, (1, K, K)"),
        ([[[0, 1]]], {"P": [[0.5, 0.9], [0.9, 0.5]]}, "P + P^T is not 1"),
    ],
)
def test_bad_games_are_refused(child: list, more: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        TreeGame(child, **({"P": P3} | more))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:2], "has shape (2, 2), but the game's policies are (5, 2)"),
        (lambda p: p * np.nan, "NaN"),
        (lambda p: p - 2, "negative probability -2"),
        (lambda p: p * 0.9, "does not add up to 1 in state 0"),
        (lambda p: np.full_like(p, 0.5), "an action that state 1 does not have"),
    ],
)
def test_bad_policies_are_refused(change, message: str) -> None:
    game = TreeGame(TWO, P3)
    with pytest.raises(ValueError) as caught:
        log_policy(game, change(uniform(game)), "start")
    assert message in str(caught.value)
    assert str(caught.value).startswith("start")


def test_zeros_are_refused_only_where_full_support_is_needed() -> None:
    game = TreeGame(TWO, P3)
    policy = np.array([[1, 0], [1, 0], [0.5, 0.5], [1, 0], [0.5, 0.5]])
    assert log_policy(game, policy)[0, 1] == -np.inf
    with pytest.raises(ValueError, match="probability 0 to an action of state 0"):
        log_policy(game, policy, full_support=True)


def test_wrong_kinds_are_told() -> None:
    game = families.random_tree()
    with pytest.raises(TypeError, match="game is no TreeGame"):
        play(SPPO(eta=0.1), Game(P3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="level = 'turn' is none of state, trajectory"):
        play(SPPO(eta=0.1), game, level="turn")
    with pytest.raises(ValueError, match="cannot be kept"):
        play(SPPO(eta=0.1), game, 3, keep=["auxiliary"])
