"""The single-turn player: at every turn the action with the largest win rate, as if later turns could not be improved.

Shapes: policies (N, W).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nashpo.tabular.trees.game import TreeGame
from nashpo.tabular.trees.layers import Floats
from nashpo.tabular.trees.values import q_values

TIE = 1e-12
"""Win rates closer than this are a tie: a few hundred roundings."""


def greedy(game: TreeGame, reference: Any = None) -> Floats:
    """argmax_y Q_h^{ref,ref}(x_h, y), ties shared evenly: each turn judged as if both sides then follow the reference.

    It is what training on single turns aims for, one policy improvement over the reference; it ignores what the later
    turns can be made to win.

    Parameters
    ----------
    game : TreeGame
    reference : (N, W), optional
        How both sides go on after the turn; uniform by default.

    Raises
    ------
    ValueError
        On a reference that is no policy.
    """
    q = np.where(game.mask, q_values(game, reference, reference), -np.inf)
    best = q >= q.max(axis=1, keepdims=True) - TIE
    return best / best.sum(axis=1, keepdims=True)
