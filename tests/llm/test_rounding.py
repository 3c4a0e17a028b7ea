"""Updates far below the spacing of bf16 numbers move bf16 weights, in expectation by what they are."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_trainer_resume import KillAt, Killed
from torch import Tensor, nn
from trained import weights

from nashpo.core.rules import DPO
from nashpo.llm.rounding import BUCKET, StochasticRounding, round_stochastically

Make = Callable[..., Any]
SPACING = 2.0**-13
"""Of bf16 numbers in [2^-6, 2^-5), where 0.02 lies."""
OPTIMIZERS = {
    "sgd": lambda p, rate: torch.optim.SGD(p, lr=rate),
    "rmsprop": lambda p, rate: torch.optim.RMSprop(p, lr=rate),
    "adamw": lambda p, rate: torch.optim.AdamW(p, lr=rate, weight_decay=0.0),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def moved(optimizer: torch.optim.Optimizer, weight: nn.Parameter, steps: int) -> float:
    """How far the weights have come on average after so many updates along a gradient of 1."""
    before = weight.detach().double().mean().item()
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    return before - weight.detach().double().mean().item()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_thousand_updates_of_5e_7(kind: str) -> None:
    """From 0.02, N weights each. Plain bf16: exactly 0. Rounded at random: as far as float32 weights, 5e-4 for SGD and
    AdamW (RMSprop's first updates are larger), to five standard deviations of the mean, at most SPACING · √(steps · p /
    N) where an update crosses to the next number with probability p: each case fails wrongly once in 1.7 million runs.
    Besides, float32 itself rounds updates to multiples of 2^-29 there, 0.2 %."""
    N, steps, rate = 4096, 1000, 5e-7
    make = OPTIMIZERS[kind]
    weight = nn.Parameter(torch.full((N,), 0.02, dtype=torch.bfloat16))
    exact = nn.Parameter(weight.detach().double()[:1])
    plain = nn.Parameter(weight.detach().clone())
    assert moved(make([plain], rate), plain, steps) == 0.0
    expected = moved(make([exact], rate), exact, steps)
    if kind != "rmsprop":
        np.testing.assert_allclose(expected, 5e-4, rtol=1e-6)
    found = moved(StochasticRounding(make([weight], rate), seed=0), weight, steps)
    deviation = SPACING * math.sqrt(expected / SPACING / N)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=5 * deviation)
    assert len(weight.detach().unique()) > 3  # each weight walked by itself


def test_rounding_is_unbiased_and_to_a_neighbour() -> None:
    """On numbers of all signs and sizes, 4,096 draws each: the mean is within five standard deviations, ½ of a spacing
    per draw at most, of every one of 64 numbers (fails wrongly once in 27,000 seeds); only the two neighbours are
    drawn, and a bf16 number stays."""
    torch.manual_seed(0)
    values = torch.randn(64) * 10.0 ** torch.randint(-30, 30, (64,))
    generator = torch.Generator().manual_seed(1)
    drawn = round_stochastically(values.repeat(4096, 1), generator)
    low, high = drawn.amin(0).float(), drawn.amax(0).float()
    assert bool(((low <= values) & (values <= high)).all())
    assert bool(((drawn == drawn.amin(0)) | (drawn == drawn.amax(0))).all())
    spacing = (2.0 ** (values.abs().log2().floor() - 7)).double()
    torch.testing.assert_close((high - low).double(), spacing, rtol=0, atol=0)
    error = (drawn.double().mean(0) - values.double()).abs() / spacing
    assert error.max().item() < 5 * 0.5 / 64
    same = values.bfloat16().float()
    assert torch.equal(round_stochastically(same, generator).float(), same)
    special = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, -0.0])
    torch.testing.assert_close(round_stochastically(special, generator).float(), special, equal_nan=True)


def walk(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        for p in parameters:
            p.grad = torch.randn(p.shape).to(p.dtype)
        optimizer.step()


def model(seed: int = 0) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    types = (torch.bfloat16, torch.float32, torch.bfloat16)
    return [nn.Parameter(torch.randn(50, 3).to(dtype)) for dtype in types]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_resumed_is_as_never_stopped(kind: str) -> None:
    """Weights and states bit for bit; states of bf16 weights are float32, before and after."""

    def optimizer(parameters: list[nn.Parameter]) -> StochasticRounding:
        return StochasticRounding(OPTIMIZERS[kind](parameters, 1e-4), seed=3)

    whole, first = model(), model()
    walk(whole, kept := optimizer(whole), range(6))
    walk(first, stopped := optimizer(first), range(3))
    saved = stopped.state_dict()
    again = [nn.Parameter(p.detach().clone()) for p in first]
    resumed = optimizer(again)
    resumed.load_state_dict(saved)
    walk(again, resumed, range(3, 6))
    for a, b in zip(whole, again):
        assert torch.equal(a, b)
        for name, value in kept.state.get(a, {}).items():
            if isinstance(value, Tensor):
                assert value.dtype == resumed.state[b][name].dtype == torch.float32
                assert torch.equal(value, resumed.state[b][name])


def test_other_weights_are_updated_as_ever_and_the_size_of_a_bucket_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert BUCKET > 1
    plain, rounded, small = model(), model(), model()
    walk(plain, torch.optim.RMSprop(plain, lr=1e-3), range(4))
    walk(rounded, StochasticRounding(torch.optim.RMSprop(rounded, lr=1e-3), 0), range(4))
    assert torch.equal(plain[1], rounded[1])
    assert not torch.equal(plain[0], rounded[0])
    monkeypatch.setattr("nashpo.llm.rounding.BUCKET", 1)
    walk(small, StochasticRounding(torch.optim.RMSprop(small, lr=1e-3), 0), range(4))
    assert all(torch.equal(a, b) for a, b in zip(rounded, small))
    other = model()
    walk(other, StochasticRounding(torch.optim.RMSprop(other, lr=1e-3), 1), range(4))
    assert not torch.equal(other[0], rounded[0])
    assert not torch.equal(rounded[0].detach() - model()[0].detach(), rounded[2].detach() - model()[2].detach())


class Counting(torch.optim.SGD):  # type: ignore[misc]  # torch is not typed here
    """Counts its steps in its groups."""

    def step(self, closure: Any = None) -> None:
        super().step()
        for group in self.param_groups:
            group["weight_decay"] = group["weight_decay"] + 1e-3


def test_what_cannot_be_rounded_is_refused() -> None:
    with pytest.raises(ValueError, match="no effect on weights that are float32"):
        StochasticRounding(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=1.0), 0)
    with pytest.raises(ValueError, match="float16.*load the model in bfloat16"):
        StochasticRounding(torch.optim.SGD([nn.Parameter(torch.ones(2, dtype=torch.float16))], lr=1.0), 0)
    parameters = model()
    with pytest.raises(ValueError, match=r"Counting changes its settings in a step \(weight_decay\)"):
        walk(parameters, StochasticRounding(Counting(parameters, lr=1.0), 0), range(1))
    with pytest.raises(ValueError, match="calls the model itself"):
        StochasticRounding(torch.optim.SGD(parameters, lr=1.0), 0).step(lambda: 0.0)


@pytest.mark.parametrize("optim", ["rmsprop", "adamw_torch_fused"])
def test_training_moves_bf16_weights_and_resumes(
    optim: str, trainer: Make, tiny_llama: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At 5e-7 hardly any weight moves to the nearest, with a warning; rounded at random they do, and a training that
    was stopped ends with the same weights bit for bit."""
    options = {"optim": optim, "learning_rate": 5e-7, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}

    def made(name: str, rounding: str, **more: Any) -> Any:
        return trainer(
            DPO(tau=0.1),
            model=tiny_llama().bfloat16(),
            output_dir=str(tmp_path / name),
            bf16_rounding=rounding,
            **options,
            **more,
        )

    start = as_float(tiny_llama().bfloat16())
    with caplog.at_level(logging.WARNING):
        made("nearest", "nearest").train()
    assert "weights are trained in bfloat16 at learning rate 5e-07" in caplog.text
    whole = made("whole", "stochastic")
    caplog.clear()
    whole.train()
    assert "weights are trained in bfloat16" not in caplog.text
    assert (as_float(whole.model) != start).mean() > 1e-3
    stopped = made("stopped", "stochastic", callbacks=[KillAt(4)])
    with pytest.raises(Killed):
        stopped.train()
    resumed = made("stopped", "stochastic")
    resumed.train(resume_from_checkpoint=True)
    np.testing.assert_array_equal(as_float(resumed.model), as_float(whole.model))


def as_float(made: Any) -> np.ndarray:
    return weights(made.float())


def test_float32_weights_under_bf16_arithmetic_are_the_default_and_move(trainer: Make, tiny_llama: Make) -> None:
    """What the recipes do: master weights in float32, autocast to bf16."""
    made = trainer(DPO(tau=0.1), model=tiny_llama(), bf16=True, learning_rate=5e-7, max_steps=2, optim="rmsprop")
    start = weights(tiny_llama())
    made.train()
    assert {p.dtype for p in made.model.parameters()} == {torch.float32}
    assert {s.dtype for s in made.optimizer.optimizer.state[next(made.model.parameters())].values()} == {torch.float32}
    assert (weights(made.model) != start).mean() > 0.5  # rows of tokens that do not occur stay


def test_rmsprop_is_torch_s_own_as_in_the_published_run(trainer: Make) -> None:
    """The official code's run names ``rmsprop`` and sets nothing else of it: torch's defaults, without weight decay."""
    made = trainer(DPO(tau=0.1), optim="rmsprop", learning_rate=5e-7)
    made.create_optimizer()
    assert type(made.optimizer) is torch.optim.RMSprop
    for group in made.optimizer.param_groups:
        settings = {name: group[name] for name in ("lr", "alpha", "eps", "momentum", "centered", "weight_decay")}
        assert settings == {
            "lr": 5e-7, "alpha": 0.99, "eps": 1e-8, "momentum": 0, "centered": False, "weight_decay": 0.0
        }  # fmt: skip
