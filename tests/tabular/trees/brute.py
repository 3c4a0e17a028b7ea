"""Multi-turn games by plain recursion over histories, written without the package's dynamic programming.

Shapes: a sequence is a tuple of (state, action) pairs of one player, oldest first; one context at a time.
"""

import itertools

import numpy as np

from nashpo.tabular.trees import TreeGame


def moves(game: TreeGame, h: int, state: int) -> list[tuple[int, list[tuple[int, float]]]]:
    """(action, [(next state, probability)]) of a state."""
    layer = game.layers[h]
    found = []
    for action in range(layer.width):
        if layer.exists[state, action]:
            if layer.chance is None:
                found.append((action, [(int(layer.child[state, action]), 1.0)]))
            else:
                chances: dict[int, float] = {}
                for c, p in zip(layer.child[state, action].tolist(), layer.chance[state, action].tolist()):
                    if p > 0:  # two answers may lead to the same state
                        chances[c] = chances.get(c, 0.0) + p
                found.append((action, list(chances.items())))
    return found


def ends(game: TreeGame, context: int, h: int = 0, state: int | None = None) -> list[tuple[tuple, float, int]]:
    """(sequence of (row, action), probability of the chance moves, outcome) of every trajectory from a state on."""
    state = context if state is None else state
    if h == game.horizon:
        return [((), 1.0, int(game.outcome[state]))]
    row = game.rows[h].start + state
    found = []
    for action, branches in moves(game, h, state):
        for after, chance in branches:
            for sequence, more, outcome in ends(game, context, h + 1, after):
                found.append((((row, action), *sequence), chance * more, outcome))
    return found


def law(game: TreeGame, context: int, policy: np.ndarray, h: int = 0, state: int | None = None) -> np.ndarray:
    """Law of the outcome of a policy from a state on, (K,)."""
    total = np.zeros(game.table.n)
    for sequence, chance, outcome in ends(game, context, h, state):
        total[outcome] += chance * np.prod([policy[at] for at in sequence])
    return total


def deterministic_policies(game: TreeGame):
    """Every deterministic policy (N, W) of all contexts together."""
    choices = [np.flatnonzero(row) for row in game.mask]
    for choice in itertools.product(*choices):
        policy = np.zeros(game.shape)
        policy[np.arange(len(choice)), choice] = 1.0
        yield policy


def sequence_form_value(game: TreeGame, context: int, allowed: np.ndarray, against: np.ndarray) -> float:
    """max min of P(row player wins) by the sequence form of an extensive game, solved by Clarabel.

    The sequences of a player are its own histories with what it saw; M holds the chance-weighted payoff of every pair
    of complete sequences. Constraints E x = e: a history's sequences add up to the sequence that leads to it.
    """
    import cvxpy as cp

    def plan(mask: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray, list]:
        """Numbers of the sequences, the constraints E and e, and the complete ones as (number, chance, outcome)."""
        number: dict = {(): 0}
        rows, complete = [({0: 1.0}, 1.0)], []

        def walk(h: int, state: int, seen: tuple, chance: float, last: int) -> None:
            if h == game.horizon:
                complete.append((last, chance, int(game.outcome[state])))
                return
            row = {last: -1.0}
            for action, branches in moves(game, h, state):
                if not mask[game.rows[h].start + state, action]:
                    continue
                own = (*seen, state, action)
                number[own] = len(number)
                row[number[own]] = 1.0
                for after, p in branches:
                    walk(h + 1, after, (*own, after), chance * p, number[own])
            rows.append((row, 0.0))

        walk(0, context, (), 1.0, 0)
        E = np.zeros((len(rows), len(number)))
        for i, (row, _) in enumerate(rows):
            E[i, list(row)] = list(row.values())
        return number, E, np.array([right for _, right in rows]), complete

    mine, E, e, my_ends = plan(allowed)
    theirs, F, f, their_ends = plan(against)
    M = np.zeros((len(mine), len(theirs)))
    P = game.table.P[context]
    for i, p, mine_at in my_ends:
        for j, q, theirs_at in their_ends:
            M[i, j] += p * q * P[mine_at, theirs_at]
    x, v = cp.Variable(len(mine), nonneg=True), cp.Variable(len(f))
    problem = cp.Problem(cp.Maximize(f @ v), [E @ x == e, F.T @ v <= M.T @ x])
    problem.solve(solver=cp.CLARABEL)
    return float(problem.value)
