"""The chunked output head against the full logits, values and gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import assert_same
from torch import Tensor

from nashpo.llm import head as head_module
from nashpo.llm.head import Shape, readings, token_logprobs

TOKENS, HIDDEN, VOCABULARY = 23, 16, 71


def tensors(dtype: torch.dtype = torch.float32, size: float = 0.7) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator)
    weight, bias = size * torch.randn(VOCABULARY, HIDDEN, generator=generator), torch.randn(VOCABULARY)
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    upstream = torch.randn(TOKENS, generator=generator)
    return *(x.to(dtype).requires_grad_() for x in (hidden, weight, bias)), targets, upstream  # type: ignore[return-value]


def full(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, shape: Shape) -> Tensor:
    """The plain form in float64, out of place."""
    logits = shape.scale * (hidden.double() @ weight.double().T + (0 if bias is None else bias.double()))
    if shape.cap is not None:
        logits = shape.cap * torch.tanh(logits / shape.cap)
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


SHAPES = [Shape(), Shape(0.25), Shape(1.0, 2.0), Shape(3.0, 5.0)]


@pytest.fixture(params=[1, 16, 1000])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tiles of one entry of the vocabulary, of some with a smaller last one, and of all."""
    monkeypatch.setattr(head_module, "COLUMNS", {"cpu": request.param})
    return int(request.param)


@pytest.mark.usefixtures("columns")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 23, 1000])
def test_equals_the_full_logits(shape: Shape, biased: bool, chunk: int) -> None:
    hidden, weight, bias, targets, upstream = tensors()
    inputs = [hidden, weight, bias] if biased else [hidden, weight]
    found = token_logprobs(hidden, weight, bias if biased else None, targets, shape, chunk)
    expected = full(hidden, weight, bias if biased else None, targets, shape)
    assert found.dtype == torch.float32
    assert_same(found, expected.float(), 2e-6)
    slopes = torch.autograd.grad(found, inputs, upstream)
    for slope, exact in zip(slopes, torch.autograd.grad(expected, inputs, upstream.double()), strict=True):
        assert_same(slope, exact, 5e-6)


@pytest.mark.usefixtures("columns")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("trained", ["hidden", "weight", "bias", "hidden weight", "weight bias", "hidden bias"])
def test_any_part_may_be_frozen(shape: Shape, trained: str) -> None:
    hidden, weight, bias, targets, upstream = tensors()
    named = {"hidden": hidden, "weight": weight, "bias": bias}
    for name, tensor in named.items():
        tensor.requires_grad_(name in trained)
    inputs = [named[name] for name in trained.split()]
    found = torch.autograd.grad(token_logprobs(*list(named.values()), targets, shape, 5), inputs, upstream)
    expected = torch.autograd.grad(full(*list(named.values()), targets, shape), inputs, upstream.double())
    for slope, exact in zip(found, expected, strict=True):
        assert_same(slope, exact, 5e-6)


def products(monkeypatch: pytest.MonkeyPatch, work: Any) -> int:
    """How many (chunk × vocabulary × hidden) products the work takes."""
    count = 0

    class Counter(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal count
            count += any(name in str(function) for name in ("aten.mm", "aten.addmm"))
            return function(*args, **(kwargs or {}))

    with Counter():
        work()
    return count


def test_a_frozen_head_costs_two_products_and_no_head_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, _, targets, upstream = tensors()

    def work() -> None:
        token_logprobs(hidden, weight, None, targets, chunk=100).backward(upstream)

    assert products(monkeypatch, work) == 4, "logits twice, two gradients"
    weight.requires_grad_(False)
    weight.grad = None
    assert products(monkeypatch, work) == 2
    assert weight.grad is None
    with torch.no_grad():
        assert products(monkeypatch, lambda: token_logprobs(hidden, weight, None, targets, chunk=100)) == 1


@pytest.mark.usefixtures("columns")
@pytest.mark.parametrize("frozen", [True, False])
def test_extreme_logits_stay_finite(frozen: bool) -> None:
    hidden, weight, _, targets, upstream = tensors(size=3e3)
    weight.requires_grad_(not frozen)
    found = token_logprobs(hidden, weight, None, targets, chunk=4)
    assert_same(found, full(hidden, weight, None, targets, Shape()).float(), 2e-6)
    inputs = [hidden] if frozen else [hidden, weight]
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(found, inputs, upstream))


@pytest.mark.usefixtures("columns")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_likely_tokens_keep_small_gradients(dtype: torch.dtype) -> None:
    """With a frozen head, 1 − p (here 1e-4) is the mass of the others and no difference of numbers near 1."""
    width = 12
    weight, bias = torch.linspace(-1, 1, width * 4).view(width, 4).to(dtype), torch.zeros(width, dtype=dtype)
    weight[5], bias[5] = torch.tensor([0.5, -0.25, 0.125, 1.0]), 11.0
    hidden, targets = torch.full((3, 4), 0.5, dtype=dtype, requires_grad=True), torch.tensor([5, 5, 5])
    (found,) = torch.autograd.grad(token_logprobs(hidden, weight, bias, targets).sum(), hidden)
    (expected,) = torch.autograd.grad(full(hidden, weight, bias, targets, Shape()).sum(), hidden)
    assert 0 < expected.abs().max() < 1e-3
    # In bf16 the logit of 12 is off by up to 2⁻⁹ of it, and 1 − p by as much again.
    assert_same(found.float(), expected.float(), {torch.float32: 5e-6, torch.bfloat16: 0.05}[dtype])


def test_no_tokens() -> None:
    hidden, weight, bias, targets, _ = tensors()
    found = token_logprobs(hidden[:0], weight, bias, targets[:0])
    assert found.shape == (0,)
    assert all(bool((g == 0).all()) for g in torch.autograd.grad(found.sum(), [hidden, weight, bias]))


def test_hidden_states_with_any_stride() -> None:
    hidden, weight, bias, targets, upstream = tensors()
    turned = hidden.T.contiguous().T
    expected = torch.autograd.grad(token_logprobs(hidden, weight, bias, targets), [hidden], upstream)[0]
    assert_same(torch.autograd.grad(token_logprobs(turned, weight, bias, targets), [hidden], upstream)[0], expected)


def test_backward_twice_and_not_through_itself() -> None:
    hidden, weight, bias, targets, upstream = tensors()
    found = token_logprobs(hidden, weight, bias, targets, Shape(1.0, 2.0), 5)
    first, second = (torch.autograd.grad(found, [hidden, weight], upstream, retain_graph=True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    (slope,) = torch.autograd.grad((found**2).sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_a_changed_weight_between_forward_and_backward_is_noticed() -> None:
    hidden, weight, bias, targets, upstream = tensors()
    found = token_logprobs(hidden, weight, bias, targets)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.backward(upstream)


def test_bf16_sums_the_head_gradient_in_fp32() -> None:
    """Thousands of equal small contributions: a bf16 sum stops growing at 2⁸ of them, an fp32 sum does not."""
    tokens = 4096
    hidden = torch.full((tokens, 4), 0.5, dtype=torch.bfloat16)
    weight = torch.zeros(8, 4, dtype=torch.bfloat16, requires_grad=True)
    found = token_logprobs(hidden, weight, None, torch.zeros(tokens, dtype=torch.long), chunk=1)
    (slope,) = torch.autograd.grad(found.sum(), weight)
    expected = torch.full((8, 4), -tokens * 0.5 / 8)
    expected[0] += tokens * 0.5
    assert found.dtype == torch.float32
    assert slope.dtype == torch.bfloat16
    assert_same(slope.float(), expected, 2**-7)


def test_bf16_keeps_log_probabilities_in_fp32() -> None:
    """Only the logits are rounded to bf16, by 2⁻⁹ of their size."""
    hidden, weight, bias, targets, upstream = tensors(torch.bfloat16)
    found, expected = token_logprobs(hidden, weight, bias, targets), full(hidden, weight, bias, targets, Shape())
    largest = (hidden.float() @ weight.float().T + bias.float()).abs().max().item()
    assert (found - expected).abs().max().item() <= 2 * 2**-8 * largest
    assert len(set((found * 2**12).round().tolist())) > 20, "finer than bf16 could hold"
    slopes = torch.autograd.grad(found, [hidden, weight, bias], upstream)
    exact = torch.autograd.grad(expected, [hidden, weight, bias], upstream.double())
    assert all((a.float() - b.float()).norm() < 0.03 * b.float().norm() for a, b in zip(slopes, exact, strict=True))


def test_autocast_rounds_the_products_and_keeps_fp32_gradients() -> None:
    hidden, weight, bias, targets, upstream = tensors()
    with torch.autocast("cpu", torch.bfloat16):
        found = token_logprobs(hidden, weight, bias, targets, chunk=5)
    low = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight, bias)]
    expected = token_logprobs(*low, targets, chunk=5)
    assert torch.equal(found, expected), "autocast is the bf16 head"
    slopes = torch.autograd.grad(found, [hidden, weight, bias], upstream)
    rounded = torch.autograd.grad(expected, low, upstream)
    for slope, coarse in zip(slopes, rounded, strict=True):
        assert slope.dtype == torch.float32
        assert_same(slope.bfloat16().float(), coarse.float(), 2**-7)


def test_chunks_must_hold_a_token() -> None:
    hidden, weight, bias, targets, _ = tensors()
    with pytest.raises(ValueError, match="chunk = 0"):
        token_logprobs(hidden, weight, bias, targets, chunk=0)


def test_one_buffer_serves_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32 without a cap one buffer is made per pass, whatever the number of tiles."""
    hidden, weight, _, targets, upstream = tensors()
    made: list[tuple[int, ...]] = []
    buffers = head_module._Tiles.__init__
    monkeypatch.setattr(head_module, "COLUMNS", {"cpu": 16})

    def counted(self: Any, *arguments: Any, **named: Any) -> None:
        buffers(self, *arguments, **named)
        made.extend({id(x): tuple(x.shape) for x in (self.buffer, self.low, self.copy) if x is not None}.values())

    monkeypatch.setattr(head_module._Tiles, "__init__", counted)
    token_logprobs(hidden, weight, None, targets, chunk=4).backward(upstream)
    assert made == [(4, 16), (4, 16)], "one in forward, one in backward"


def config(**entries: Any) -> Any:
    return SimpleNamespace(**entries)


def test_readings_of_a_configuration() -> None:
    assert readings(config()) == (Shape(),)
    assert readings(config(final_logit_softcapping=30.0))[0] == Shape(1.0, 30.0)
    assert readings(config(logit_scale=0.0625))[0] == Shape(0.0625)
    assert readings(config(logits_scaling=8)) == (Shape(0.125), Shape(8.0), Shape(1.0))
    assert readings(config(lm_head_multiplier=0.5, output_multiplier=None))[0] == Shape(0.5)
    inner = config(final_logit_softcapping=7.0)
    assert readings(config(get_text_config=lambda: inner))[0] == Shape(1.0, 7.0)
    with pytest.raises(ValueError, match="logit_scale = 'inv_sqrt_d_model'"):
        readings(config(logit_scale="inv_sqrt_d_model"))
