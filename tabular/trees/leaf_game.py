"""The leaf game of a deterministic tree: every trajectory is one response of a bandit.

Shapes: policies of the tree are (N, W), those of its leaf game (C, n) with n the largest number of final states of a
context, in the order of the final states; a context with fewer is masked.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nashpo.tabular.game import Game
from nashpo.tabular.trees.game import TreeGame
from nashpo.tabular.trees.layers import Floats, numbers_within
from nashpo.tabular.trees.policies import log_policy, occupancy, uniform


def check_tree(game: TreeGame) -> None:
    """Refuse a game whose trajectories are not its final states (ValueError)."""
    if not game.deterministic:
        raise ValueError(
            "the game has stochastic turns: its trajectories are not chosen by the players alone, there is no leaf game"
        )
    if not game.is_tree:
        raise ValueError("some state has several ways to it: nashpo.tabular.trees.unroll makes a tree of the game")


def leaf_game(game: TreeGame) -> Game:
    """The game between trajectories, of batch shape (C,).

    Raises
    ------
    ValueError
        On a stochastic turn, or a state with several ways to it.
    """
    check_tree(game)
    row = np.zeros((game.contexts, int(np.bincount(game.final_context).max())), dtype=np.int64)
    mask = np.zeros(row.shape, dtype=np.bool_)
    at = (game.final_context, numbers_within(game.final_context))
    row[at], mask[at] = game.outcome, True
    table = np.take_along_axis(np.take_along_axis(game.table.P, row[:, :, None], axis=1), row[:, None, :], axis=2)
    return Game(table, game.weights, mask)


def leaf_policy(game: TreeGame, policy: Any = None) -> Floats:
    """Probability of every trajectory, (C, n), under a policy (uniform by default).

    Raises
    ------
    ValueError
        As `leaf_game`, or on a policy that is none.
    """
    check_tree(game)
    found = np.zeros((game.contexts, int(np.bincount(game.final_context).max())))
    found[game.final_context, numbers_within(game.final_context)] = occupancy(game, np.exp(log_policy(game, policy)))[1]
    return found


def behavior_policy(game: TreeGame, leaves: Any) -> Floats:
    """The policy (N, W) with a given law of trajectories (C, n); uniform at states that it never reaches.

    Raises
    ------
    ValueError
        As `leaf_game`, or on a wrong shape.
    """
    check_tree(game)
    given = np.asarray(leaves, dtype=np.float64)
    number = numbers_within(game.final_context)
    if given.ndim != 2 or given.shape[0] != game.contexts or given.shape[1] <= number.max():
        raise ValueError(
            f"the law of trajectories has shape {given.shape}: ({game.contexts}, {number.max() + 1}) needed"
        )
    policy = uniform(game)
    mass = given[game.final_context, number]
    for rows, layer in zip(reversed(game.rows), reversed(game.layers)):
        flow = np.where(layer.exists, layer.expect(mass), 0.0)
        mass = flow.sum(axis=1)
        some = mass > 0
        policy[rows, : layer.width][some] = flow[some] / mass[some, None]
    return policy
