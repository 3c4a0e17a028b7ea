"""What tables predict for a run on conversations that can be enumerated: the rule from K draws per prompt.

As `nashpo.llm.prediction`, on trees. A stage learns from K conversations what each earns against the others, with one
number per conversation; the tables have one number per state and answer, and the other side's replies are nobody's. So
the stage is a least-squares fit that cannot meet every target, and what the fit leaves over belongs to the prediction.

Shapes: C contexts (prompts, or prompts in R replicates), n conversations, N states, W answers; a law of conversations
is (C, n), a policy (N, W) as in `nashpo.tabular.trees.game`. Behind one context stand S = N / C states.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nashpo.core.policies import total_variation
from nashpo.core.rules import Rule
from nashpo.core.rules.form import CURRENT, Payoff
from nashpo.core.selfplay import StageTrace, State, Term, self_play
from nashpo.llm.objectives import Labelled, Objective, Pairwise
from nashpo.llm.prediction import LEVEL, Prediction, refusal
from nashpo.tabular.trees.backend import Opponent, TrajectoryBackend, TreePolicy
from nashpo.tabular.trees.game import TreeGame
from nashpo.tabular.trees.layers import numbers_within
from nashpo.tabular.trees.mixture import outcome_law
from nashpo.tabular.trees.play import play
from nashpo.tabular.trees.policies import log_policy
from nashpo.tabular.trees.values import best_value

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
REPLICATES = 400
LOSSES: tuple[type, ...] = (Pairwise, Labelled)
"""Their minimizer is that of the weighted squares: the mean label of a conversation is what it earns."""
_STEPS, _HALVINGS, _MOVED = 100, 30, 1e-6
"""A fit ends when no log-ratio moves by more than this, in nats."""
_DAMPING, _ROUNDING = 1e-9, 1e-15


def conversation_refusal(rule: Rule, objectives: Sequence[Objective], exact: bool, level: str) -> str:
    """Why a run on conversations cannot be predicted from K draws; empty where it can.

    Parameters
    ----------
    rule, objectives, exact
        As for `nashpo.llm.prediction.refusal`.
    level : str
        Of the conversations' steps.
    """
    if why := refusal(rule, objectives, exact):
        return why
    if level != TrajectoryBackend.level:
        return f"tables that fit drawn branches are not there, and conversation.level is {level}"
    if not isinstance(objectives[0], LOSSES):
        return f"{type(objectives[0]).__name__} is no loss of tables on drawn conversations"
    kinds = {payoff.kind for payoff in rule.form().payoffs}
    return "" if kinds <= {"win"} else "rewards are not told from drawn conversations"


@dataclass(frozen=True)
class KeyedPolicy(TreePolicy):
    """A policy with the key of its version: its draws belong to it."""

    key: str


class CountedBackend(TrajectoryBackend):
    """K conversations drawn per context, as how often each came up, and stages fitted to them by tables.

    A stage minimizes Σ_i w_i (h_i − g_i − c)² over policies and c: w_i is the share of conversation i among the K, g_i
    the weighted payoffs that it earned against the draws, and h_i = Σ_h log π/base its log-ratio, answers only.
    Answers that were not drawn at a state keep their probability there, those that were share theirs.

    Parameters
    ----------
    game : TreeGame
        Its final states are the conversations: each context has as many states, and n outcomes.
    origins : mapping origin -> log-policy (N, W)
    K : int
    seed : int
    """

    def __init__(self, game: TreeGame, origins: Any, K: int, seed: int) -> None:
        super().__init__(game, {})
        self.origins = {name: KeyedPolicy(game, log, name) for name, log in origins.items()}
        self.K, self.seed = K, seed
        self.fit = TableFit(game)

    def ask(self, key: str, payoff: Payoff, policy: Opponent, on: TreePolicy) -> Floats:
        """What every conversation earns against K draws of a policy, (C, n): those of its own, where it is ``on``."""
        assert isinstance(on, KeyedPolicy)
        own = isinstance(policy, KeyedPolicy) and policy.key == on.key
        return self.game.payoff(self.shares(policy, on.key if own else key))

    def shares(self, policy: Opponent, key: str) -> Floats:
        """Shares (C, n) of the conversations among the K draws that belong to a policy and a key."""
        digest = hashlib.blake2b(f"{self.seed}\0{key}".encode(), digest_size=16).digest()
        law = policy.law / policy.law.sum(axis=1, keepdims=True)
        return np.random.default_rng(int.from_bytes(digest)).multinomial(self.K, law) / self.K

    def project(
        self, key: str, base: list[tuple[float, TreePolicy]], terms: list[Term], on: TreePolicy | None
    ) -> KeyedPolicy:
        """The tables' least squares on the draws of ``on``."""
        if not terms:
            return KeyedPolicy(self.game, super().project(key, base, terms, on).log, key)
        assert isinstance(on, KeyedPolicy)
        log_base = np.sum([a * policy.log for a, policy in base], axis=0)
        gains = np.sum([term.weight * term.answer for term in terms], axis=0)
        return KeyedPolicy(self.game, self.fit(log_base, self.shares(on, on.key), gains), key)


class TableFit:
    """Least squares on conversations: tables of log-ratios at states, which add up along a conversation.

    Parameters
    ----------
    game : TreeGame
        A tree whose contexts have equally many states.
    """

    def __init__(self, game: TreeGame) -> None:
        C, (N, W) = game.contexts, game.shape
        self.shape = (C, N // C, W)
        self.states = np.argsort(game.context, kind="stable").reshape(C, -1)
        """The rows of each context's states, (C, S), depth by depth."""
        number = np.empty(N, dtype=np.int64)
        number[self.states] = np.arange(N // C)
        state, action = _ways(game)
        order = np.argsort(game.final_context * game.table.n + numbers_within(game.final_context), kind="stable")
        first = order[: game.table.n]
        # Contexts are alike: what one conversation of the first visits, the same ones of all others do.
        self.visits: Floats = np.zeros((game.table.n, N // C))
        self.takes: Floats = np.zeros((game.table.n, N // C, W))
        for rows, actions in zip(state, action, strict=True):
            self.visits[np.arange(game.table.n), number[rows[first]]] = 1
            self.takes[np.arange(game.table.n), number[rows[first]], actions[first]] = 1

    def __call__(self, log_base: Floats, shares: Floats, gains: Floats) -> Floats:
        """The fitted log-policy.

        Parameters
        ----------
        log_base : (N, W)
        shares : (C, n)
            Weights of the conversations, which add up to 1.
        gains : (C, n)
            Targets in nats.

        Returns
        -------
        (N, W)

        Raises
        ------
        RuntimeError
            If the least squares do not settle.
        """
        base = log_base[self.states]
        seen = np.einsum("cn,nsw->csw", shares, self.takes) > 0
        some = seen.any(axis=-1, keepdims=True)
        inside = np.where(seen, np.exp(base), 0.0)
        mass = np.where(some, inside.sum(-1, keepdims=True), 1.0)
        q = inside / mass
        theta = np.zeros(self.shape)
        ratio, p = _ratios(theta, q, some)
        left = self._left(shares, ratio, gains)
        root = np.sqrt(shares)
        for _ in range(_STEPS):
            slope = np.where(seen[:, None], self.takes - self.visits[..., None] * p[:, None], 0.0)
            slope = _centred(shares, slope.reshape(*slope.shape[:2], -1)) * root[..., None]
            square = np.swapaxes(slope, 1, 2) @ slope + _DAMPING * np.eye(slope.shape[-1])
            pull = (np.swapaxes(slope, 1, 2) @ (root * left)[..., None])[..., 0]
            step = np.linalg.solve(square, pull[..., None]).reshape(self.shape)
            length, loss = np.ones((len(step), 1, 1)), (shares * left**2).sum(-1)
            before = ratio
            for _ in range(_HALVINGS):
                ratio, p = _ratios(theta - length * step, q, some)
                left = self._left(shares, ratio, gains)
                worse = (shares * left**2).sum(-1) > loss + _ROUNDING
                if not worse.any():
                    break
                length = np.where(worse[:, None, None], length / 2, length)
            theta = theta - length * step
            moved = float(np.abs(np.where(seen, ratio - before, 0.0)).max())
            if moved < _MOVED:
                break
        else:
            raise RuntimeError(f"the fit of tables to conversations still moves by {moved:.1g}")
        found = np.empty_like(log_base)
        found[self.states] = np.where(seen, base + ratio, base)
        return found

    def _left(self, shares: Floats, ratio: Floats, gains: Floats) -> Floats:
        """h − g − c of every conversation, (C, n)."""
        return _centred(shares, np.einsum("nsw,csw->cn", self.takes, ratio) - gains)


def _centred(shares: Floats, values: Floats) -> Floats:
    """Less their weighted mean over conversations, (C, n, …)."""
    weights = shares.reshape(shares.shape + (1,) * (values.ndim - 2))
    return values - (weights * values).sum(axis=1, keepdims=True)


def _ratios(theta: Floats, q: Floats, some: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """log π/base of the answers that were drawn, and their share of π among these."""
    total = np.where(some, (q * np.exp(theta)).sum(-1, keepdims=True), 1.0)
    return theta - np.log(total), q * np.exp(theta) / total


def _ways(game: TreeGame) -> tuple[list[Integers], list[Integers]]:
    """The state (its row) and the action of every final state's trajectory, (L,) each, by depth."""
    here = np.arange(len(game.final_context))
    states: list[Integers] = []
    actions: list[Integers] = []
    for rows, layer in zip(reversed(game.rows), reversed(game.layers), strict=True):
        edges = np.argwhere(layer.edges)
        to = layer.child[layer.edges]
        parent, action = np.empty(layer.following, dtype=np.int64), np.empty(layer.following, dtype=np.int64)
        parent[to], action[to] = edges[:, 0], edges[:, 1]
        actions.insert(0, action[here])
        here = parent[here]
        states.insert(0, here + rows.start)
    return states, actions


def predict_conversations(
    rule: Rule,
    game: TreeGame,
    log_start: Floats,
    log_reference: Floats,
    K: int,
    steps: int,
    seed: int,
    replicates: int = REPLICATES,
    level: float = LEVEL,
) -> Prediction:
    """Play the rule on trajectories, exactly and from K draws.

    Parameters
    ----------
    rule : Rule
    game : TreeGame
        Its contexts are the prompts, its final states the conversations.
    log_start, log_reference : (N, W)
    K, steps, seed, replicates, level
        As for `nashpo.llm.prediction.predict`.
    """
    start, reference = np.exp(log_start), np.exp(log_reference)
    exact = play(rule, game, steps, level="trajectory", start=start, reference=reference, record="all", keep=(CURRENT,))
    policies = exact.kept[CURRENT]
    laws = np.stack([outcome_law(game, np.exp(log)) for log in policies])
    many = repeated(game, replicates)
    begin, other = (repeated_policy(game, log_policy(game, p), replicates) for p in (start, reference))
    backend = CountedBackend(many, {"start": begin, "reference": other, "behavior": other}, K, seed)
    curves: dict[str, list[Floats]] = {"last": [], "average": [], "distance": []}

    def by_replicate(values: Floats) -> Floats:
        return np.asarray(values.reshape(replicates, game.contexts) @ game.weights)

    def observe(before: State, after: State, trace: tuple[StageTrace, ...]) -> None:
        current, average = after.slots[CURRENT], after.average
        assert current is not None
        assert average is not None
        law = current.handle.law
        curves["last"].append(by_replicate(2 * best_value(many, many.payoff(law))))
        curves["average"].append(by_replicate(2 * best_value(many, many.payoff(average.handle.law))))
        away = total_variation(law.reshape(replicates, *laws.shape[1:]), laws[before.t])
        curves["distance"].append(np.asarray(away @ game.weights))

    self_play(rule.form(), backend, steps, observe=observe)
    return Prediction(
        gap_last=np.stack(curves["last"]),
        gap_average=np.stack(curves["average"]),
        distance=np.stack(curves["distance"]),
        exact_last=exact.mean_gap_last,
        exact_average=exact.mean_gap_average,
        log_policies=policies,
        level=level,
    )


def repeated(game: TreeGame, times: int) -> TreeGame:
    """The game with all its contexts so many times, one set after the other."""
    child, chance = [], []
    for layer in game.layers:
        shift = layer.following * np.arange(times).reshape(-1, 1, *(1,) * (layer.child.ndim - 1))
        there = layer.exists if layer.chance is None else layer.chance > 0
        tiled = np.where(there, layer.child + shift, -1)
        child.append(tiled.reshape(-1, *layer.child.shape[1:]))
        chance.append(None if layer.chance is None else np.tile(layer.chance, (times, 1, 1)))
    return TreeGame(child, np.tile(game.table.P, (times, 1, 1)), chance, np.tile(game.outcome, times))


def repeated_policy(game: TreeGame, policy: Floats, times: int) -> Floats:
    """A policy of the game (N, W) as one of `repeated`."""
    return np.concatenate([np.tile(policy[rows], (times, 1)) for rows in game.rows])
