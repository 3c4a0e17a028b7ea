"""Every trajectory of a decision process as a final state of its own: for preferences over whole trajectories.

Shapes: ``child`` and ``chance`` as in `nashpo.tabular.trees.game.TreeGame`; the states of the unrolled process are
numbered depth by depth, parents first, then actions, then branches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nashpo.tabular.trees.game import TreeGame
from nashpo.tabular.trees.layers import Integers


def unroll(game: TreeGame) -> tuple[TreeGame, tuple[Integers, ...]]:
    """The game whose states are histories: a tree with the same win rates, in which policies may use the history.

    Parameters
    ----------
    game : TreeGame

    Returns
    -------
    TreeGame
        With the outcome of each final state kept. For preferences over whole trajectories make
        ``TreeGame(child, P, chance)`` anew from its layers with a P over its final states.
    tuple of int arrays
        The original state of every state, depth by depth (H + 1 of them).
    """
    origin = np.arange(game.contexts)
    origins, child, chance = [origin], [], []
    for layer in game.layers:
        table = layer.child[origin]
        edges = layer.exists[origin] if layer.chance is None else layer.chance[origin] > 0
        numbers = np.full(table.shape, -1)
        numbers[edges] = np.arange(np.count_nonzero(edges))
        child.append(numbers)
        chance.append(None if layer.chance is None else layer.chance[origin])
        origin = table[edges]
        origins.append(origin)
    outcome: Any = game.outcome[origin]
    return TreeGame(child, game.table.P, chance, outcome, game.weights), tuple(origins)
