"""A rule that the package has never heard of trains a language model, and follows its own exact game."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from enumerable import World, distance, play_both

from nashpo.core.rules import Copy, Form, Payoff, Rule, Stage, win
from nashpo.core.schedules import Power
from nashpo.llm.backend import FittedBackend, win_rates
from nashpo.llm.fit import Settings
from nashpo.llm.objectives import BestWorst, Pointwise
from nashpo.llm.policies import WholeModels
from nashpo.llm.responses import Answer, Responses
from nashpo.llm.sampling import Generate


@dataclass(frozen=True)
class Pendulum(Rule):
    """A made-up rule: two stages, three base policies, payoffs about two opponents, a schedule and a slow copy."""

    eta: float = 0.8
    name = "pendulum"

    def form(self) -> Form:
        fading = Power(self.eta, 0.5)
        return Form(
            {"current": "start", "anchor": "reference", "slow": "start"},
            [
                Stage("draft", {"current": 0.8, "anchor": 0.1, "slow": 0.1}, {win("current"): self.eta}),
                Stage(
                    "current", {"draft": 0.7, "current": 0.3}, {win("draft"): fading, win("slow"): -0.2}, on="current"
                ),
            ],
            [Copy("current", "slow", "old", 2)],
        )


def test_a_users_rule_follows_its_exact_game() -> None:
    played = play_both(World(), Pendulum(), 3)
    played.check()
    assert len(played.stage_distances()) == 6
    assert distance(played.log_policy(played.states[-1].slots["current"].handle), played.log_policy("start")) > 0.05


def test_a_users_rule_trains_on_samples_with_feedback_of_a_users_kind() -> None:
    """From generated responses of free length and a payoff kind that only this file knows."""

    @dataclass(frozen=True)
    class Brevity(Rule):
        def form(self) -> Form:
            return Form({"current": "start"}, [Stage("current", {"current": 1.0}, {Payoff("brief", "current"): 2.0})])

    def brief(payoff: Payoff, on: Responses, about: Responses, own: bool) -> Answer:
        lengths = torch.tensor([[float(sum(s.mask)) for s in row] for row in on.sequences], dtype=torch.float64)
        return Answer(on, (lengths.mean(-1, keepdim=True) - lengths) / 4)

    world = World(V=5, prompts=((0, 1), (2, 3, 1), (4, 4)))
    backend = FittedBackend(
        WholeModels(world.model(0)),
        world.prompts,
        Generate(K=16, max_new_tokens=6, eos_id=0),
        {"brief": brief},
        settings=Settings(steps=40, micro=2),
    )
    from nashpo.core.selfplay import self_play

    state = self_play(Brevity().form(), backend, 3)

    def mean_length(name: str) -> float:
        draws: Sequence[Sequence] = backend.responses(name).sequences
        return float(np.mean([sum(s.mask) for row in draws for s in row]))

    current = state.slots["current"]
    assert current is not None
    assert mean_length(current.handle) < mean_length("start") - 0.5


def test_sppo_as_it_is_trained_in_practice_improves_on_its_start() -> None:
    """K = 5 generated responses, soft win rates, best and worst: the policy beats its start after two iterations."""
    from nashpo.core.rules import SPPO
    from nashpo.core.selfplay import self_play

    world = World(V=3, L=2)
    better = np.linspace(0.0, 2.0, world.n)  # a game with a best response: by a reward
    world.game = type(world.game)(
        np.broadcast_to(1 / (1 + np.exp(better[None, :] - better[:, None])), (3, world.n, world.n)).copy()
    )
    backend = FittedBackend(
        WholeModels(world.model(0)),
        world.prompts,
        Generate(K=5, max_new_tokens=2),
        {"win": win_rates(world.compare)},
        Pointwise(pairs=BestWorst()),
        Settings(steps=30),
    )
    state = self_play(SPPO(4.0).form(), backend, 2)
    current = state.slots["current"]
    assert current is not None
    with backend.policies.use(current.handle) as model:
        new = np.exp(world.log_policy(model))
    with backend.policies.use("start") as model:
        old = np.exp(world.log_policy(model))
    assert np.mean(np.einsum("bi,bij,bj->b", new, np.asarray(world.game.P), old)) > 0.55
