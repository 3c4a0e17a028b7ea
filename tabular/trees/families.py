"""Seeded families of multi-turn games.

Shapes: every generator returns a `TreeGame`; win rates between outcomes are independent and uniform unless said
otherwise, drawn from ``numpy.random.default_rng(seed)``: the same arguments give the same game.
"""

from __future__ import annotations

import numpy as np

from nashpo.tabular.game import Game
from nashpo.tabular.trees.game import TreeGame
from nashpo.tabular.trees.layers import Floats


def bandit(game: Game) -> TreeGame:
    """One turn: a game of responses, its contexts flattened and its missing responses left out."""
    local = game.as_numpy()
    n = local.n
    P = local.P.reshape(-1, n, n)
    exists = np.ones((len(P), n), dtype=np.bool_) if local.mask is None else local.mask.reshape(-1, n)
    child = np.full(exists.shape, -1)
    child[exists] = np.arange(np.count_nonzero(exists))
    outcome = np.nonzero(exists)[1]
    return TreeGame([child], P, outcome=outcome, weights=np.asarray(local.weights).reshape(-1))


def random_tree(
    horizon: int = 3, actions: int = 2, seed: int = 0, contexts: int = 1, outcomes: int | None = None
) -> TreeGame:
    """A full deterministic tree.

    Parameters
    ----------
    horizon, actions, contexts : int
    seed : int
    outcomes : int, optional
        Trajectories fall at random into so many outcomes; each is an outcome of its own by default.
    """
    _positive(horizon=horizon, actions=actions, contexts=contexts)
    rng = np.random.default_rng(seed)
    sizes = [contexts * actions**h for h in range(horizon)]
    child = [np.arange(size * actions).reshape(size, actions) for size in sizes]
    return _compared(rng, child, None, contexts, actions**horizon, outcomes)


def tournament_tree(horizon: int = 3, actions: int = 2, seed: int = 0, contexts: int = 1) -> TreeGame:
    """A full deterministic tree whose trajectories beat each other for certain: every win rate is 0 or 1, at random."""
    game = random_tree(horizon, actions, seed, contexts)
    return TreeGame([layer.child for layer in game.layers], 0.5 + 0.5 * np.sign(game.table.A))


def stochastic_users(
    turns: int = 2, actions: int = 2, replies: int = 2, seed: int = 0, contexts: int = 1, outcomes: int | None = None
) -> TreeGame:
    """A conversation: after each of our actions a user answers in one of several ways.

    The probabilities of the replies are drawn from the uniform law on the simplex; the user is part of the process and
    no player. Every conversation is an outcome of its own unless ``outcomes`` is given.
    """
    _positive(turns=turns, actions=actions, replies=replies, contexts=contexts)
    rng = np.random.default_rng(seed)
    sizes = [contexts * (actions * replies) ** h for h in range(turns)]
    child = [np.arange(size * actions * replies).reshape(size, actions, replies) for size in sizes]
    chance = [rng.dirichlet(np.ones(replies), size=(size, actions)) for size in sizes]
    return _compared(rng, child, chance, contexts, (actions * replies) ** turns, outcomes)


def random_process(
    horizon: int = 3, actions: int = 2, states: int = 4, branches: int = 2, seed: int = 0, contexts: int = 1
) -> TreeGame:
    """A stochastic process whose states have several ways to them; every final state is an outcome.

    Parameters
    ----------
    horizon, actions, contexts : int
    states : int
        States per context at each later depth, fewer where not so many can be reached.
    branches : int
        Answers per action, probabilities uniform on the simplex.
    """
    _positive(horizon=horizon, actions=actions, states=states, branches=branches, contexts=contexts)
    rng = np.random.default_rng(seed)
    child, chance, here = [], [], 1
    for _ in range(horizon):
        following = min(states, here * actions * branches)
        table = np.empty((contexts, here * actions * branches), dtype=np.int64)
        for c in range(contexts):
            more = rng.integers(following, size=table.shape[1] - following)
            table[c] = c * following + rng.permutation(np.r_[np.arange(following), more])
        child.append(table.reshape(contexts * here, actions, branches))
        chance.append(rng.dirichlet(np.ones(branches), size=(contexts * here, actions)))
        here = following
    return _compared(rng, child, chance, contexts, here, None)


def token_tree(vocabulary: int = 3, length: int = 3, seed: int = 0, contexts: int = 1) -> TreeGame:
    """Sequences of tokens: token 0 ends the response, which else is cut at ``length``; every response is an outcome.

    A response that has ended waits in states with a single action, so that all trajectories have ``length`` turns.
    """
    _positive(vocabulary=vocabulary, length=length, contexts=contexts)
    rng = np.random.default_rng(seed)
    open_, child = np.ones(contexts, dtype=np.bool_), []
    for _ in range(length):
        exists = np.zeros((len(open_), vocabulary), dtype=np.bool_)
        exists[:, 0] = True
        exists[open_] = True
        table = np.full(exists.shape, -1)
        table[exists] = np.arange(np.count_nonzero(exists))
        child.append(table)
        goes_on = np.broadcast_to(np.arange(vocabulary) > 0, exists.shape) & open_[:, None]
        open_ = goes_on[exists]
    return _compared(rng, child, None, contexts, len(open_) // contexts, None)


ANSWER, ASK = 0, 1
"""The first actions of `two_turn`."""


def two_turn(edge: float = 0.3, margin: float = 1.0, good: int = 3, bad: int = 3) -> TreeGame:
    """Answer at once, or ask first: a game that single-turn play loses.

    The first turn is an answer (action 0) or a question back (action 1); the second turn is one of ``good + bad``
    follow-ups. After a question the first ``good`` follow-ups win with probability ½ + edge against an answer, whatever
    follows it, and beat each other in a circle; the ``bad`` ones lose to everything else. Judged after one turn, with
    follow-ups drawn at random, the question loses: ½ + edge counts for good/(good + bad) only. Judged at the end it
    wins: the equilibrium asks and then mixes the good follow-ups evenly, and the player that is greedy turn by turn
    wins ½ − edge against it.

    Parameters
    ----------
    edge : float in (0, 1/2]
    margin : float in (0, 1]
        Win rate less ½, times 2, along the circle.
    good : odd int >= 3
    bad : int >= 1
        Large enough that (½ + edge) · good/(good + bad) < ½.
    """
    if not 0 < edge <= 0.5:
        raise ValueError(f"edge = {edge:g} must lie in (0, 1/2]")
    if not 0 < margin <= 1:
        raise ValueError(f"margin = {margin:g} must lie in (0, 1]")
    if good < 3 or good % 2 == 0:
        raise ValueError(f"good = {good} must be odd and at least 3, so that the follow-ups form a circle")
    follow_ups = good + bad
    if not (0.5 + edge) * good / follow_ups < 0.5:
        raise ValueError(
            f"bad = {bad} is too small: after one turn the question wins {(0.5 + edge) * good / follow_ups:g}, which"
            " must be below 1/2"
        )
    ahead = (np.arange(good)[None, :] - np.arange(good)[:, None]) % good
    circle = np.where(ahead == 0, 0.0, np.where(ahead <= good // 2, 0.5, -0.5)) * margin
    A = np.zeros((2 * follow_ups, 2 * follow_ups))
    answers, asked, lost = slice(0, follow_ups), slice(follow_ups, follow_ups + good), slice(follow_ups + good, None)
    A[asked, answers], A[answers, asked] = edge, -edge
    A[lost, answers], A[answers, lost] = -0.5, 0.5
    A[asked, lost], A[lost, asked] = 0.5, -0.5
    A[asked, asked] = circle
    return TreeGame([np.array([[ANSWER, ASK]]), np.arange(2 * follow_ups).reshape(2, follow_ups)], 0.5 + A)


def _compared(
    rng: np.random.Generator,
    child: list[np.ndarray],
    chance: list[Floats] | None,
    contexts: int,
    ends: int,
    outcomes: int | None,
) -> TreeGame:
    """A game with ``ends`` final states per context and random win rates."""
    kinds = ends if outcomes is None else outcomes
    upper = np.triu(rng.random((contexts, kinds, kinds)) - 0.5, 1)
    P = 0.5 + upper - np.swapaxes(upper, 1, 2)
    outcome = None if outcomes is None else rng.integers(outcomes, size=contexts * ends)
    return TreeGame(child, P, chance, outcome)


def _positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} = {size} must be at least 1")
