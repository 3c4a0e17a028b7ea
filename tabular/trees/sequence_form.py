r"""The sequence-form linear program of a multi-turn game, all contexts in one sparse program.

Shapes: as in `nashpo.tabular.trees.game`.

With :math:`\mu(x, y)` the occupancy of the player (its realization plan, linear in nothing but itself) and V the value
of the opponent, who minimizes,

    maximize  Σ_c V(root_c)
    subject to  Σ_y μ(x, y) = [x is a root] + inflow of μ at x,     μ >= 0
                V(x) <= E[V(x') | x, y]  for every opponent's action,     V(z) = (Aᵀ ν_μ)(outcome of z) at the ends,

with one block per context. The size is that of the process, not of its number of policies.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nashpo.tabular.trees.game import TreeGame
from nashpo.tabular.trees.layers import Booleans, Floats, Integers

TOLERANCE = 1e-10
"""Feasibility that is asked of HiGHS."""


def _edges(game: TreeGame) -> tuple[Integers, Integers, Integers, Floats, Integers, Integers, Floats]:
    """(row, action, to, probability) of moves between decision states, and (row·W + action, place, probability) of
    those that end an episode in an outcome: place = context · K + outcome."""
    inner: list[tuple[np.ndarray, ...]] = []
    width = game.shape[1]
    for h, (rows, layer) in enumerate(zip(game.rows, game.layers)):
        chance = layer.exists.astype(np.float64)[..., None] if layer.chance is None else layer.chance
        at = np.nonzero(chance)
        to = layer.child.reshape(chance.shape)[at]
        inner.append((at[0] + rows.start, at[1], to + rows.stop if h + 1 < game.horizon else to, chance[at]))
    *before, (row, action, end, probability) = inner
    place = game.final_context[end] * game.table.n + game.outcome[end]
    columns = [np.concatenate([part[i] for part in before]) if before else np.zeros(0, np.int64) for i in range(4)]
    return (columns[0], columns[1], columns[2], columns[3].astype(float), row * width + action, place, probability)


def sequence_form(game: TreeGame, allowed: Booleans, against: Booleans) -> tuple[Floats, Floats]:
    """An optimal occupancy of the player (N, W), and the value in win rate, (C,).

    Parameters
    ----------
    game : TreeGame
    allowed, against : bool array (N, W)
        The actions that the player and its opponent may use; at least one in every state.

    Raises
    ------
    RuntimeError
        If HiGHS finds no optimum.
    """
    from scipy import optimize
    from scipy import sparse as scipy_sparse

    linprog: Any = optimize.linprog
    sparse: Any = scipy_sparse
    (states, width), outcomes, contexts = game.shape, game.table.n, game.contexts
    row, action, to, chance, last, place, share = _edges(game)
    actions, ends = states * width, contexts * outcomes
    # Columns: μ (states · width), V (states), the law ν (ends), the opponent's ends w = Aᵀν (ends).
    every = np.arange(actions)
    identity = sparse.identity(ends, format="csr")
    flow = sparse.coo_matrix((np.ones(actions), (every // width, every)), shape=(states, actions))
    inflow = sparse.coo_matrix((chance, (to, row * width + action)), shape=(states, actions))
    law = sparse.coo_matrix((share, (place, last)), shape=(ends, actions))
    transposed = sparse.block_diag(list(np.swapaxes(game.table.A, 1, 2)), format="csr")
    equal = sparse.bmat(
        [[flow - inflow, sparse.coo_matrix((states, states)), None, None],
         [law, None, -identity, None],
         [None, None, transposed, -identity]],
        format="csr",
    )  # fmt: skip
    here = sparse.coo_matrix((np.ones(actions), (every, every // width)), shape=(actions, states))
    onward = sparse.coo_matrix((chance, (row * width + action, to)), shape=(actions, states))
    ended = sparse.coo_matrix((share, (last, place)), shape=(actions, ends))
    below = sparse.bmat([[sparse.coo_matrix((actions, actions)), here - onward, sparse.coo_matrix((actions, ends)),
                          -ended]], format="csr")[np.flatnonzero(against)]  # fmt: skip
    objective = np.zeros(actions + states + 2 * ends)
    objective[actions : actions + contexts] = -1.0
    starts = np.zeros(equal.shape[0])
    starts[:contexts] = 1.0
    upper = np.r_[np.where(allowed.reshape(-1), 1.0, 0.0), np.full(states + 2 * ends, np.inf)]
    lower = np.r_[np.zeros(actions), np.full(states + 2 * ends, -np.inf)]
    result = linprog(
        objective,
        A_ub=below,
        b_ub=np.zeros(below.shape[0]),
        A_eq=equal,
        b_eq=starts,
        bounds=np.column_stack([lower, upper]),
        method="highs",
        options={"primal_feasibility_tolerance": TOLERANCE, "dual_feasibility_tolerance": TOLERANCE},
    )
    if result.x is None:
        raise RuntimeError(f"HiGHS found no equilibrium of {game!r}: {result.message}")
    occupancy = np.maximum(result.x[:actions].reshape(states, width), 0.0)
    return occupancy, 0.5 + result.x[actions : actions + contexts]
