"""A tiny causal LM in conversations of two turns that can all be enumerated, with a user of known probabilities.

The assistant says one of V symbols, the user answers in one of R ways, the assistant says one of V symbols. Shapes: B
prompts; n = V·R·V conversations per prompt, in the order ((y1·R + r)·V + y2); the user's probabilities are (B, V, R). A
policy is (N, W) as in `nashpo.tabular.trees.game`, with the rows of the B prompts before those of the B·V·R histories;
a law of conversations is (B, n) and contains the user's probabilities.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from enumerable import intransitive_games, tiny_llama
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from nashpo.core.policies import log_normalize, total_variation
from nashpo.core.rules import Payoff, Rule
from nashpo.core.selfplay import Backend, StageTrace, State, Term, self_play
from nashpo.llm.backend import Feedback, FittedBackend, win_rates
from nashpo.llm.fit import Layout, Padding, Progress, Settings, Watch, policy_logprobs
from nashpo.llm.mixture import Parts
from nashpo.llm.policies import WholeModels
from nashpo.llm.responses import Answer, Responses, Scored, StageData
from nashpo.llm.sampling import Enumerate, Sampler
from nashpo.tabular.trees import TreeGame, TreeRun, play
from nashpo.tabular.trees.backend import TrajectoryBackend, TreePolicy

ADAM = partial(torch.optim.Adam, lr=4e-3, betas=(0.8, 0.9))
"""Short memories: a conversation's rare turns have small weights, and a longer second moment is slow to see them."""


def conversation(prompt: Sequence[int], first: int, reply: Sequence[int], second: int) -> Scored:
    """The tokens of a prompt and a conversation; the assistant's are scored."""
    return Scored((*prompt, first, *reply, second), (*(0 for _ in prompt), 1, *(0 for _ in reply), 1))


@dataclass
class Conversations:
    """An enumerable LM, its user and the game between conversations.

    The replies differ in length, and no two prompts or first answers have the same user.
    """

    V: int = 3
    prompts: tuple[tuple[int, ...], ...] = ((0, 1), (2, 0), (1, 2, 2))
    replies: tuple[tuple[int, ...], ...] = ((0,), (2, 1))
    seed: int = 0
    user: np.ndarray = field(init=False)
    game: TreeGame = field(init=False)
    turns: tuple[tuple[int, int, int], ...] = field(init=False)

    def __post_init__(self) -> None:
        B, V, R = len(self.prompts), self.V, len(self.replies)
        self.user = np.random.default_rng(self.seed).dirichlet(np.full(R, 2.0), size=(B, V))
        self.turns = tuple(product(range(V), range(R), range(V)))
        child = [np.arange(B * V * R).reshape(B, V, R), np.arange(B * self.n).reshape(B * V * R, V)]
        P = np.asarray(intransitive_games(B, self.n, self.seed).P)
        self.game = TreeGame(child, P, [self.user, None])

    @property
    def n(self) -> int:
        return len(self.turns)

    @property
    def log_user(self) -> np.ndarray:
        """log of the user's probability of its own part of each conversation, (B, n)."""
        return np.log(np.stack([self.user[:, first, reply] for first, reply, _ in self.turns], axis=-1))

    @property
    def states(self) -> tuple[tuple[int, ...], ...]:
        """Where the assistant speaks, the N rows of a policy: prompts, then prompts with a first answer and a reply."""
        histories = product(self.prompts, range(self.V), self.replies)
        return (*self.prompts, *((*prompt, first, *reply) for prompt, first, reply in histories))

    def model(self, seed: int = 0) -> LlamaForCausalLM:
        return tiny_llama(self.V, 100 + seed)

    def all_responses(self) -> Responses:
        rows = [[conversation(p, a, self.replies[r], b) for a, r, b in self.turns] for p in self.prompts]
        return Responses.drawn(rows)

    def log_policy(self, model: nn.Module) -> np.ndarray:
        """log π of every symbol in every state, (N, W), one turn at a time: no conversation and no mask is involved."""
        rows = [[Scored.completion(state, (symbol,)) for symbol in range(self.V)] for state in self.states]
        return np.asarray(log_normalize(policy_logprobs(model, Responses.drawn(rows), Padding())))

    def compare(self, first: Responses, second: Responses) -> Tensor:
        """The game's own win rates."""
        said = [(a, *self.replies[r], b) for a, r, b in self.turns]
        place = {(*p, *rest): i for p in self.prompts for i, rest in enumerate(said)}
        B = np.arange(len(first))[:, None, None]
        i, j = (np.array([[place[s.ids] for s in row] for row in some.sequences]) for some in (first, second))
        return torch.from_numpy(self.game.table.P[B, i[:, :, None], j[:, None, :]])

    def state_payoff(self, payoff: Payoff, on: Responses, about: Responses, own: bool) -> Answer:
        """Q − ½ of every symbol in every state (N, W), from the two policies' probabilities at all states: the first
        goes on after the symbol, the second plays a whole conversation of its own."""
        B, V, R = self.user.shape
        mine, theirs = on.weights.numpy(), about.weights.numpy()
        law = theirs[:B, :, None, None] * self.user[..., None] * theirs[B:].reshape(B, V, R, V)
        second = (self.game.table.P @ law.reshape(B, self.n, 1)).reshape(B, V, R, V) - 0.5
        first = np.einsum("bar,bars,bars->ba", self.user, mine[B:].reshape(B, V, R, V), second)
        return Answer(on, torch.from_numpy(np.concatenate([first, second.reshape(-1, V)])))


@dataclass(frozen=True)
class EnumerateConversations:
    """All conversations there are, weighted by their probability under the policy *and* the user.

    `nashpo.llm.sampling.Enumerate` for responses that are not the policy's alone.
    """

    world: Conversations
    layout: Layout = field(default_factory=Padding)

    def __call__(self, parts: Parts, prompts: Sequence[Sequence[int]], seed: int) -> Responses:
        responses = self.world.all_responses()
        log_law = torch.from_numpy(self.world.log_user)
        for a, use in parts:
            with use() as model:
                log_law = log_law + a * policy_logprobs(model, responses, self.layout)
        return Responses(responses.sequences, log_normalize(log_law).exp(), True, responses.names)


def minimize_conversations(
    world: Conversations, log_base: np.ndarray, target: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """The table that minimizes the pairwise loss on whole conversations, a log-policy (N, W).

    argmin_π Σ_ij w_i w_j ((lr_i − lr_j) − (g_i − g_j))² with lr = log π(y1) + log π(y2 | y1, r) − ``log_base``: twice
    the weighted variance of lr − g. The user's part is no variable. By Gauss-Newton steps in float64.

    Parameters
    ----------
    log_base, target, weights : (B, n)
        log_base over the assistant's turns only.
    """
    B, V, R = world.user.shape
    size = V + V * R * V
    said, there = np.zeros((2, world.n, size))
    for row, (first, reply, second) in enumerate(world.turns):
        state = V + (first * R + reply) * V
        said[row, [first, state + second]] = 1
        there[row, :V] = there[row, state : state + V] = 1
    root = np.sqrt(weights)

    def policy(logits: np.ndarray) -> np.ndarray:
        return np.asarray(log_normalize(logits.reshape(B, -1, V))).reshape(B, size)

    def centred(values: np.ndarray) -> np.ndarray:
        """Values (B, n, …) less their mean, times the root of the weights."""
        mean = (weights[:, :, None] * values).sum(1, keepdims=True) / weights.sum(1)[:, None, None]
        return root[:, :, None] * (values - mean)

    log_pi = policy((log_base + target) @ np.linalg.pinv(said).T)
    for _ in range(300):
        residual = log_pi @ said.T - log_base - target
        slope = said - there * np.exp(log_pi)[:, None, :]
        step = np.linalg.pinv(centred(slope), rcond=1e-11) @ centred(residual[..., None])
        log_pi = policy(log_pi - step[..., 0])
        if np.abs(step).max() < 1e-13:
            break
    return np.concatenate([log_pi[:, :V], log_pi[:, V:].reshape(-1, V)])


def law(world: Conversations, log_policy: np.ndarray) -> np.ndarray:
    """The law of conversations (B, n) of a policy (N, W)."""
    return TreePolicy(world.game, log_policy).law


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Total variation of the worst row, of laws or of policies."""
    return float(np.max(total_variation(first, second)))


class LossMinimizer(TrajectoryBackend):
    """Tables in the place of the LM: every stage is the minimizer of its loss."""

    def __init__(self, world: Conversations, origins: Mapping[str, np.ndarray]) -> None:
        super().__init__(world.game, origins)
        self.world = world

    def project(
        self, key: str, base: list[tuple[float, TreePolicy]], terms: list[Term], on: TreePolicy | None
    ) -> TreePolicy:
        assert on is not None
        log_base = sum(a * (np.log(policy.law) - self.world.log_user) for a, policy in base)
        target = sum(term.weight * term.answer for term in terms)
        return TreePolicy(self.game, minimize_conversations(self.world, np.asarray(log_base), target, on.law))


def stop_at_minimizer(world: Conversations, tolerance: float = 1e-4) -> Watch:
    """End a fit once its law of conversations is within a total variation of the one that minimizes its loss.

    The loss's own minimizer, not the exact step: what the loss is off by stays in the result.
    """

    def watch(data: StageData, log_base: Tensor) -> Callable[[Progress], bool]:
        table = minimize_conversations(world, log_base.numpy(), data.target.numpy(), data.responses.weights.numpy())
        aim, log_user = torch.from_numpy(law(world, table)), torch.from_numpy(world.log_user)

        def reached(progress: Progress) -> bool:
            fitted = (progress.log_ratio + log_base + log_user).exp()
            return 0.5 * (fitted - aim).abs().sum(-1).max().item() < tolerance

        return reached

    return watch


def settings(watch: Watch | None) -> Settings:
    """A short cosine, ended early by ``watch``."""
    return Settings(steps=250, optimizer=ADAM, layout=Padding(), watch=watch)


@dataclass
class PlayedTurns:
    """A fitted run beside the exact one from the same start."""

    world: Conversations
    rule: Rule
    backend: FittedBackend
    states: list[State]
    traces: list[tuple[StageTrace, ...]]
    exact: TreeRun

    def policy(self, handle: Any) -> TreePolicy:
        """A stored policy, read turn by turn."""
        with self.backend.policies.use(handle) as model:
            return TreePolicy(self.world.game, self.world.log_policy(model))

    def iterates(self) -> list[TreePolicy]:
        """π_1 … π_{T+1}."""
        versions = [state.slots["current"] for state in self.states]
        return [self.policy(version.handle) for version in versions if version is not None]

    def stage_distances(self, exact: Backend) -> list[float]:
        """Of every fitted stage's law of conversations from that of ``exact``'s, the worst prompt.

        That step is taken from the stage's own fitted base, on the true payoffs of fitted policies.
        """
        found = []
        for before, traces in zip(self.states[:-1], self.traces, strict=True):
            names = {name: self.policy(version.handle) for name, version in before.slots.items() if version is not None}
            for trace in traces:
                stage = self.rule.form().stages[trace.stage]
                on: Any = names[stage.on or "current"]
                terms = [
                    Term(b, payoff, exact.ask("", payoff, names[payoff.policy], on))
                    for payoff, b in stage.payoffs_at(before.t)
                    if payoff.policy in names
                ]
                step = exact.project("", [(a, names[name]) for name, a in stage.base_at(before.t)], terms, on)
                names[trace.writes] = self.policy(trace.result.handle)
                found.append(distance(names[trace.writes].law, step.law))
        return found

    def run_distances(self) -> list[float]:
        """Of every iteration's law of conversations from that of the exact run, the worst prompt."""
        return [
            distance(policy.law, TreePolicy(self.world.game, exact).law)
            for policy, exact in zip(self.iterates()[1:], self.exact.kept["current"], strict=True)
        ]

    def check(self, aim: Backend, stage: float = 2e-4, run: float = 1e-3) -> None:
        """Fail unless every stage meets ``aim`` and every iteration the exact run."""
        found = self.stage_distances(aim)
        assert max(found) < stage, f"stages are {found} from their aims in total variation, {stage} is allowed"
        found = self.run_distances()
        assert max(found) < run, f"iterations are {found} from the exact run, {run} is allowed"


def _play_both(world: Conversations, rule: Rule, steps: int, backend: FittedBackend, level: str) -> PlayedTurns:
    origins = {}
    for origin in ("start", "reference"):
        with backend.policies.use(origin) as model:
            origins[origin] = np.exp(world.log_policy(model))
    exact = play(rule, world.game, steps, level=level, **origins, record="all", keep=("current",))
    states: list[State] = []
    traces: list[tuple[StageTrace, ...]] = []

    def observe(before: State, after: State, trace: tuple[StageTrace, ...]) -> None:
        states.extend([before, after] if not states else [after])
        traces.append(trace)

    self_play(rule.form(), backend, steps, observe=observe)
    return PlayedTurns(world, rule, backend, states, traces, exact)


def _policies(world: Conversations) -> WholeModels:
    return WholeModels(world.model(0), origins={"reference": world.model(1)})


def play_conversations(
    world: Conversations,
    rule: Rule,
    steps: int,
    given: Settings | None = None,
    sampler: Sampler | None = None,
    feedback: Mapping[str, Feedback] | None = None,
) -> PlayedTurns:
    """The rule fitted on whole conversations with the pairwise loss, and played exactly on trajectories."""
    backend = FittedBackend(
        _policies(world),
        world.prompts,
        sampler if sampler is not None else EnumerateConversations(world),
        feedback if feedback is not None else {"win": win_rates(world.compare)},
        settings=given if given is not None else settings(stop_at_minimizer(world)),
    )
    return _play_both(world, rule, steps, backend, "trajectory")


def play_states(world: Conversations, rule: Rule, steps: int, given: Settings) -> PlayedTurns:
    """The rule fitted at every state, each a prompt of its own with one turn whose payoff is Q, and played exactly at
    the level of states."""
    symbols = tuple((symbol,) for symbol in range(world.V))
    backend = FittedBackend(
        _policies(world), world.states, Enumerate(symbols, Padding()), {"win": world.state_payoff}, settings=given
    )
    return _play_both(world, rule, steps, backend, "state")
