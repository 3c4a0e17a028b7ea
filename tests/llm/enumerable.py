"""A tiny causal LM whose responses can all be enumerated, and a known game for each of its prompts.

The vocabulary is exactly V symbols, prompts are made of the same symbols and responses have the fixed length L, so that
the V^L responses carry all mass: expectations are sums, and the exact step of a stage is known.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from nashpo.core.policies import log_normalize, mirror_step, total_variation
from nashpo.core.rules import Rule
from nashpo.core.selfplay import StageTrace, State, self_play
from nashpo.llm.backend import Feedback, FittedBackend, win_rates
from nashpo.llm.fit import Padding, Progress, Settings, policy_logprobs
from nashpo.llm.objectives import Objective
from nashpo.llm.policies import WholeModels
from nashpo.llm.responses import Responses, Scored, StageData
from nashpo.llm.sampling import Enumerate
from nashpo.tabular.exact import ExactBackend, LogPolicyBackend
from nashpo.tabular.game import Game

torch.set_num_threads(1)  # fastest for models this small


def tiny_llama(vocabulary: int, seed: int, spread: float = 1.0, init: float = 0.2) -> LlamaForCausalLM:
    """Random weights, large enough that every prefix has features of its own; ``spread`` scales the head."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=32,
            initializer_range=init,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            model.lm_head.weight.normal_(0.0, spread / 32**0.5)
    return model.eval()


def intransitive_games(prompts: int, n: int, seed: int) -> Game:
    """Cycles with noise: response i beats the next ones and loses to those before it, each prompt in an order of its
    own."""
    rng = np.random.default_rng(seed)
    i = np.arange(n)
    ahead = (i[None, :] - i[:, None]) % n
    cycle = 0.4 * np.sin(2 * np.pi * ahead / n)
    games = []
    for _ in range(prompts):
        order = rng.permutation(n)
        noise = 0.1 * rng.uniform(-1, 1, (n, n))
        games.append(0.5 + cycle[order][:, order] + (noise - noise.T) / 2)
    return Game(np.stack(games))


@dataclass
class World:
    """An enumerable LM with its games."""

    V: int = 3
    L: int = 2
    prompts: tuple[tuple[int, ...], ...] = ((0, 1), (2, 0), (1, 2, 2))
    seed: int = 0
    game: Game = field(init=False)
    completions: tuple[tuple[int, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        self.completions = tuple(product(range(self.V), repeat=self.L))
        self.game = intransitive_games(len(self.prompts), len(self.completions), self.seed)

    @property
    def n(self) -> int:
        return len(self.completions)

    def model(self, seed: int = 0) -> LlamaForCausalLM:
        return tiny_llama(self.V, 100 + seed)

    def all_responses(self) -> Responses:
        return Responses.drawn([[Scored.completion(p, c) for c in self.completions] for p in self.prompts])

    def log_policy(self, model: nn.Module) -> np.ndarray:
        """log π of every response, (prompts, n), normalized in float64 (the LM's mass is 1 to 1e-6)."""
        return np.asarray(log_normalize(policy_logprobs(model, self.all_responses(), Padding())))

    def places(self, responses: Responses) -> np.ndarray:
        """Which of the enumerated responses each one is, (B, K)."""
        place = {c: i for i, c in enumerate(self.completions)}
        rows = zip(responses.sequences, self.prompts, strict=True)
        return np.array([[place[s.ids[len(p) :]] for s in row] for row, p in rows])

    def compare(self, first: Responses, second: Responses) -> Tensor:
        """The games' own win rates."""
        B = np.arange(len(first))[:, None, None]
        i, j = self.places(first)[:, :, None], self.places(second)[:, None, :]
        return torch.from_numpy(np.asarray(self.game.P)[B, i, j])


def exact_step(log_base: Tensor, data: StageData) -> Tensor:
    """The exact step of a stage on enumerated responses, log-probabilities (B, n)."""
    return log_normalize(log_base + data.target)


def stop_at(tolerance: float) -> Callable[[StageData, Tensor], Callable[[Progress], bool]]:
    """End a fit once its policy is within a total variation of the exact step, which is known here."""

    def watch(data: StageData, log_base: Tensor) -> Callable[[Progress], bool]:
        exact = exact_step(log_base, data).exp()

        def reached(progress: Progress) -> bool:
            fitted = (progress.log_ratio + log_base).exp()
            return 0.5 * (fitted - exact).abs().sum(-1).max().item() < tolerance

        return reached

    return watch


@dataclass
class Played:
    """A fitted run beside the exact one from the same start."""

    world: World
    rule: Rule
    backend: FittedBackend
    exact: LogPolicyBackend
    states: list[State]
    traces: list[tuple[StageTrace, ...]]
    exact_states: list[State]

    def log_policy(self, handle: Any) -> np.ndarray:
        """Of a policy, a sequence-level mixture or an average, (prompts, n), normalized in float64."""
        if isinstance(handle, list):
            return np.log(np.mean([np.exp(self.log_policy(one)) for one in handle], axis=0))
        if isinstance(handle, dict):
            return np.asarray(log_normalize(sum(a * self.log_policy(name) for a, name in handle["mixture"])))
        with self.backend.policies.use(handle) as model:
            return self.world.log_policy(model)

    def exact_steps(self) -> list[tuple[StageTrace, np.ndarray]]:
        """Every fitted stage with the exact step from its own fitted base, on the true payoffs of fitted policies."""
        found = []
        for before, after, traces in zip(self.states[:-1], self.states[1:], self.traces, strict=True):
            names = {name: version.handle for name, version in before.slots.items() if version is not None}
            names["average"] = after.average.handle if after.average is not None else None
            for trace in traces:
                stage = self.rule.form().stages[trace.stage]
                base = [(a, self.log_policy(names[name])) for name, a in stage.base_at(before.t)]
                gains = [
                    (b, self.exact.ask("", payoff, self.log_policy(names[payoff.policy]), None))
                    for payoff, b in stage.payoffs_at(before.t)
                    if names.get(payoff.policy) is not None
                ]
                if gains:
                    found.append((trace, mirror_step(base, gains)))
                names[trace.writes] = trace.result.handle
        return found

    def stage_distances(self) -> list[float]:
        """Total variation of every fitted stage from the exact step of its own fitted base, the worst prompt."""
        return [distance(self.log_policy(trace.result.handle), exact) for trace, exact in self.exact_steps()]

    def trajectory_distances(self) -> list[float]:
        """Total variation of every iteration's policies from the exact trajectory's, the worst slot and prompt."""
        return [
            max(
                distance(self.log_policy(version.handle), exact.slots[name].handle)
                for name, version in state.slots.items()
                if version is not None
            )
            for state, exact in zip(self.states[1:], self.exact_states, strict=True)
        ]

    def check(self, stage: float = 3e-4, trajectory: float = 1e-3) -> None:
        """Fail unless the fitted run follows the exact one."""
        found = self.stage_distances()
        assert max(found) < stage, f"stages are {found} from their exact steps in total variation, {stage} is allowed"
        found = self.trajectory_distances()
        assert max(found) < trajectory, f"iterations are {found} from the exact trajectory, {trajectory} is allowed"


def distance(log_policy: np.ndarray, log_other: np.ndarray) -> float:
    """Total variation of the worst prompt."""
    return float(np.max(total_variation(np.exp(log_policy), np.exp(log_other))))


ADAM = partial(torch.optim.Adam, lr=4e-3, betas=(0.9, 0.95))
SETTINGS = Settings(steps=250, optimizer=ADAM, layout=Padding(), watch=stop_at(1e-4))
"""A short cosine, ended early where the exact step of the stage's own data is met to 1e-4 in total variation."""


def play_both(
    world: World,
    rule: Rule,
    steps: int,
    objective: Objective | None = None,
    settings: Settings = SETTINGS,
    feedback: Mapping[str, Feedback] | None = None,
    backend: type[FittedBackend] = FittedBackend,
    exact: Callable[[Mapping[str, np.ndarray]], LogPolicyBackend] | None = None,
) -> Played:
    """The rule fitted on the enumerable LM and played exactly, from the same start and reference."""
    policies = WholeModels(world.model(0), origins={"reference": world.model(1)})
    fitted = backend(
        policies,
        world.prompts,
        Enumerate(world.completions, Padding()),
        feedback if feedback is not None else {"win": win_rates(world.compare)},
        objective,
        settings,
    )
    origins = {}
    for origin in ("start", "reference", "behavior"):
        with policies.use(origin) as model:
            origins[origin] = world.log_policy(model)
    expected = ExactBackend(world.game, origins) if exact is None else exact(origins)
    states: list[State] = []
    traces: list[tuple[StageTrace, ...]] = []

    def observe(before: State, after: State, trace: tuple[StageTrace, ...]) -> None:
        states.extend([before, after] if not states else [after])
        traces.append(trace)

    self_play(rule.form(), fitted, steps, observe=observe)
    exact_states: list[State] = []
    self_play(rule.form(), expected, steps, observe=lambda before, after, trace: exact_states.append(after))
    return Played(world, rule, fitted, expected, states, traces, exact_states)
