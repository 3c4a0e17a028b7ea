r"""The multi-turn game: contexts, turns, known transitions, and a preference between the ends of two episodes.

Shapes: H turns; S_h states at depth h = 0 … H, of which depth 0 holds one per context (C of them) and depth H the L
final states. At most W actions, K outcomes. N = S_0 + … + S_{H−1} decision states; a policy is (N, W), one row per
decision state in the order of the depths (``game.rows[h]`` are those of depth h), 0 where there is no such action.
Results per context are (C,). All arrays are flat by depth: nothing here recurses over nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nashpo.tabular.game import Game
from nashpo.tabular.trees.layers import Booleans, Floats, Integers, Layer, numbers_within, read_layers


class TreeGame:
    r"""A symmetric two-player game of several turns: both play the same decision process, each in a copy of its own.

    From the state of its context a player chooses :math:`y_1, \dots, y_H`, the process answers with the next state,
    and the final states of the two episodes are compared. With :math:`\nu_\pi` the law of the outcome under a policy,
    :math:`J(\pi, \pi') = \nu_\pi^\top P \nu_{\pi'}`, :math:`P + P^\top = 1`: the value is 1/2 by symmetry.

    Parameters
    ----------
    child : sequence of H int arrays (S_h, W_h) or (S_h, W_h, B)
        The state of depth h + 1 that an action leads to, with a last axis for the branches of a stochastic answer;
        −1 where there is no such action (or branch). Every state has an action; where an episode ends early, give its
        end a single action.
    P : array (K, K) or (C, K, K)
        Win rates between outcomes, the same for all contexts or one table each; checked as in
        `nashpo.tabular.game.Game`.
    chance : sequence of (S_h, W_h, B) or None, optional
        Probabilities of the branches, known to the players; None is a deterministic turn.
    outcome : int array (L,), optional
        The row of P that a final state stands for. Default: the number of the final state within its context, so that
        in a tree P compares whole trajectories (`nashpo.tabular.trees.unroll` makes a tree of a process).
    weights : array (C,), optional
        Weights of the contexts in means; uniform by default.

    Raises
    ------
    ValueError
        No turn; a child that is no state; a state without action, without a way to it, or reached from two contexts;
        probabilities that are none; an outcome that P does not have; and whatever `Game` refuses about P and weights.
    """

    __slots__ = ("final_context", "layers", "mask", "outcome", "rows", "table")

    def __init__(
        self,
        child: Sequence[Any],
        P: Any,
        chance: Sequence[Any] | None = None,
        outcome: Any = None,
        weights: Any = None,
    ) -> None:
        layers, context = read_layers(child, chance)
        sizes = [len(layer.context) for layer in layers]
        self.layers: tuple[Layer, ...] = layers
        """The turns."""
        self.final_context: Integers = context
        """The context of each final state, (L,)."""
        self.table = _table(P, sizes[0], weights)
        """P and its centred form as a `Game` of batch shape (C,)."""
        self.outcome: Integers = _outcomes(outcome, context, self.table.n)
        """The row of P that each final state stands for, (L,)."""
        edges = np.cumsum([0, *sizes])
        self.rows: tuple[slice, ...] = tuple(slice(int(a), int(b)) for a, b in zip(edges[:-1], edges[1:]))
        """The rows of a policy that belong to each depth."""
        self.mask: Booleans = np.zeros((int(edges[-1]), max(layer.width for layer in layers)), dtype=np.bool_)
        """Which actions exist, (N, W)."""
        for rows, layer in zip(self.rows, self.layers):
            self.mask[rows, : layer.width] = layer.exists

    @property
    def horizon(self) -> int:
        """H, the number of turns."""
        return len(self.layers)

    @property
    def contexts(self) -> int:
        """C, the number of contexts."""
        return len(self.layers[0].context)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, W): decision states and largest number of actions, the shape of a policy."""
        return (int(self.mask.shape[0]), int(self.mask.shape[1]))

    @property
    def states(self) -> int:
        """Number of states of all depths, final ones included."""
        return self.shape[0] + len(self.final_context)

    @property
    def weights(self) -> Floats:
        """Weights of the contexts, (C,), sum 1."""
        return np.asarray(self.table.weights)

    @property
    def context(self) -> Integers:
        """The context of each decision state, (N,)."""
        return np.concatenate([layer.context for layer in self.layers])

    @property
    def deterministic(self) -> bool:
        """Whether every action has one answer."""
        return all(layer.chance is None for layer in self.layers)

    @property
    def is_tree(self) -> bool:
        """Whether every state has one way to it, so that a final state tells the whole trajectory."""
        return all(np.all(layer.ways == 1) for layer in self.layers)

    def payoff(self, law: Floats) -> Floats:
        """P ν − ½, the excess win rate of every outcome against a law ν of outcomes, (C, K)."""
        return np.asarray(np.matmul(self.table.A, law[..., None])[..., 0])

    def at_ends(self, values: Floats) -> Floats:
        """Values of outcomes (C, K, …) at the final states, (L, …)."""
        return values[self.final_context, self.outcome]

    def law(self, arrived: Floats) -> Floats:
        """The law of the outcome (C, K) of the probability that arrives at each final state (L,)."""
        shape = (self.contexts, self.table.n)
        place = self.final_context * shape[1] + self.outcome
        return np.asarray(np.bincount(place, arrived, shape[0] * shape[1]), dtype=np.float64).reshape(shape)

    def mean(self, values: Any) -> Any:
        """Weighted mean over the contexts of (…, C)."""
        return self.table.mean(values)

    def __repr__(self) -> str:
        kind = "deterministic" if self.deterministic else "stochastic"
        return (
            f"TreeGame(horizon={self.horizon}, contexts={self.contexts}, states={self.states}, actions={self.shape[1]},"
            f" outcomes={self.table.n}, {kind})"
        )


def _table(P: Any, contexts: int, weights: Any) -> Game:
    one = Game(P)
    if one.batch_shape not in ((), (contexts,)):
        raise ValueError(f"P has shape {tuple(one.P.shape)}: one table (K, K), or one per context, ({contexts}, K, K)")
    tables = np.broadcast_to(np.asarray(one.as_numpy().P), (contexts, one.n, one.n))
    return Game(tables, weights)


def _outcomes(given: Any, context: Integers, outcomes: int) -> Integers:
    if given is None:
        number = numbers_within(context)
        if number.max() >= outcomes:
            raise ValueError(
                f"a context has {number.max() + 1} final states, but P has {outcomes} rows: give P one row per final"
                " state, or say with outcome= which row each final state stands for"
            )
        return number
    outcome = np.asarray(given)
    if outcome.shape != context.shape or outcome.dtype.kind not in "iu":
        raise ValueError(f"outcome has shape {outcome.shape}: one whole number for each of {len(context)} final states")
    if outcome.min() < 0 or outcome.max() >= outcomes:
        bad = outcome.min() if outcome.min() < 0 else outcome.max()
        raise ValueError(f"outcome names row {bad}, but P has the rows 0 … {outcomes - 1}")
    return outcome.astype(np.int64)
