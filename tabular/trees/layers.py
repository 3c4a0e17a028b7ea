"""The turns of a decision process: where every action of every state of one depth leads.

Shapes: depth h has S_h states with at most W_h actions, each with at most B answers; see `nashpo.tabular.trees.game`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

_SUM_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Layer:
    """One turn: where each action of each state leads.

    Attributes
    ----------
    child : int array (S_h, W_h) or (S_h, W_h, B)
        States of the next depth; 0 where there is no such action or branch.
    chance : (S_h, W_h, B), optional
        Probabilities of the branches; None where the turn is deterministic.
    exists : bool array (S_h, W_h)
        Which actions there are.
    context : int array (S_h,)
        The context that each state belongs to.
    following : int
        S_{h+1}.
    """

    child: Integers
    chance: Floats | None
    exists: Booleans
    context: Integers
    following: int

    @property
    def width(self) -> int:
        """W_h, the largest number of actions."""
        return int(self.exists.shape[1])

    def expect(self, values: np.ndarray) -> np.ndarray:
        """E[values of the next state] for every state and action, (S_h, W_h, …) of (S_{h+1}, …)."""
        found = values[self.child]
        if self.chance is None:
            return found
        weight = self.chance.reshape(self.chance.shape + (1,) * (values.ndim - 1))
        return (found * weight).sum(axis=2)

    def push(self, flow: Floats) -> Floats:
        """Probability that arrives at each state of the next depth, (S_{h+1},), of that of the actions (S_h, W_h)."""
        weights = flow if self.chance is None else flow[..., None] * self.chance
        arrived = np.bincount(self.child.reshape(-1), weights.reshape(-1), self.following)
        return np.asarray(arrived, dtype=np.float64)

    @property
    def edges(self) -> Booleans:
        """Which entries of ``child`` are moves that can happen."""
        return self.exists if self.chance is None else self.chance > 0

    @property
    def ways(self) -> Integers:
        """Number of (state, action, branch) that lead to each state of the next depth, (S_{h+1},)."""
        return np.bincount(self.child[self.edges], minlength=self.following)


def numbers_within(context: Integers) -> Integers:
    """0, 1, … for the states of each context, in their order."""
    order = np.argsort(context, kind="stable")
    counts = np.bincount(context)
    number = np.empty(len(context), dtype=np.int64)
    number[order] = np.arange(len(context)) - np.repeat(np.cumsum(counts) - counts, counts)
    return number


def read_layers(child: Sequence[Any], chance: Sequence[Any] | None) -> tuple[tuple[Layer, ...], Integers]:
    """The turns as a `TreeGame` is given them, and the context of each final state.

    Raises
    ------
    ValueError
        No turn; a child that is no state; a state without action, without a way to it, or reached from two contexts;
        probabilities that are none.
    """
    if len(child) == 0:
        raise ValueError("child holds no turn: a game needs at least one (horizon 1 is a bandit)")
    chances: Sequence[Any] = [None] * len(child) if chance is None else chance
    if len(chances) != len(child):
        raise ValueError(f"chance holds {len(chances)} turns, child {len(child)}: give one each (None is certain)")
    tables = [_children(h, rows) for h, rows in enumerate(child)]
    sizes = [len(table) for table in tables]
    context = np.arange(sizes[0])
    layers = []
    for h, (table, given) in enumerate(zip(tables, chances)):
        following = sizes[h + 1] if h + 1 < len(sizes) else int(table.max()) + 1
        layer = _layer(h, table, given, context, following)
        context = _contexts(h, layer)
        layers.append(layer)
    return tuple(layers), context


def _children(h: int, rows: Any) -> Integers:
    table = np.asarray(rows)
    if table.dtype.kind not in "iu" or table.ndim not in (2, 3) or 0 in table.shape:
        raise ValueError(
            f"child[{h}] has shape {table.shape} and dtype {table.dtype}: whole numbers (S, W) or (S, W, B) are needed"
        )
    return table.astype(np.int64)


def _layer(h: int, table: Integers, given: Any, context: Integers, following: int) -> Layer:
    low, high = int(table.min()), int(table.max())
    if low < -1 or high >= following:
        bad = low if low < -1 else high
        raise ValueError(f"child[{h}] names state {bad}, but depth {h + 1} has the states 0 … {following - 1}")
    there = table >= 0
    if given is None:
        if table.ndim == 3 and table.shape[2] > 1:
            raise ValueError(f"child[{h}] has {table.shape[2]} branches but no probabilities: give chance[{h}]")
        table = table.reshape(table.shape[:2])
        there = there.reshape(table.shape)
        chance, exists = None, np.asarray(there)
    else:
        chance = np.asarray(given, dtype=np.float64)
        if table.ndim == 2:
            table, there = table[..., None], there[..., None]
        if chance.shape != table.shape:
            raise ValueError(f"chance[{h}] has shape {chance.shape}, child[{h}] {table.shape}: they must agree")
        chance = np.where(there, chance, 0.0)
        exists = np.asarray(there.any(axis=2))
        if not np.isfinite(chance).all() or chance.min() < 0:
            raise ValueError(f"chance[{h}] holds {np.nanmin(chance):g} or NaN: probabilities are needed")
        off = np.abs(chance.sum(axis=2) - 1) * exists
        if off.max() > _SUM_TOLERANCE:
            s, a = np.unravel_index(int(off.argmax()), off.shape)
            raise ValueError(f"chance[{h}][{s}, {a}] does not add up to 1 (off by {off.max():g}): divide it by its sum")
        chance = chance / np.where(exists, chance.sum(axis=2), 1.0)[..., None]
    empty = np.flatnonzero(~exists.any(axis=1))
    if len(empty):
        raise ValueError(f"state {empty[0]} at depth {h} has no action: an episode that ended needs one that goes on")
    return Layer(np.where(there, table, 0), chance, exists, context, following)


def _contexts(h: int, layer: Layer) -> Integers:
    """The context of each state of the next depth; refuses states without a way to them or of two contexts."""
    edges = layer.edges
    lost = np.flatnonzero(layer.ways == 0)
    if len(lost):
        raise ValueError(f"state {lost[0]} at depth {h + 1} is never reached: leave it out")
    states = layer.context.reshape((-1,) + (1,) * (layer.child.ndim - 1))
    parent = np.broadcast_to(states, layer.child.shape)[edges]
    context = np.zeros(layer.following, dtype=np.int64)
    context[layer.child[edges]] = parent
    mixed = np.flatnonzero(context[layer.child[edges]] != parent)
    if len(mixed):
        state = int(layer.child[edges][mixed[0]])
        raise ValueError(
            f"state {state} at depth {h + 1} is reached from two contexts: give each context its own states"
        )
    return context
