"""The output head without its logits: log-probabilities of chosen tokens, a chunk of tokens at a time.

Shapes: M scored tokens; ``hidden`` (M, H), ``targets`` (M,), head ``weight`` (V, H) and ``bias`` (V,); results are
(M,) float32.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 256
"""Tokens whose logits exist at one time."""


@dataclass(frozen=True)
class Shape:
    """What a model does to its logits after the head: z ↦ cap · tanh(scale · z / cap), or scale · z without a cap."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """The shaped logits, in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits

    def slope_(self, gradient: Tensor, shaped: Tensor | None) -> Tensor:
        """gradient · dz_shaped/dz, in place in ``gradient``; ``shaped`` is consumed, and needed under a cap only."""
        if self.cap is not None and shaped is not None:
            gradient.mul_(shaped.div_(self.cap).square_().neg_().add_(1))
        if self.scale != 1.0:
            gradient.mul_(self.scale)
        return gradient


def readings(config: Any) -> tuple[Shape, ...]:
    """The shapes that a model's configuration may mean, likeliest first.

    A soft cap (Gemma), factors (Cohere, Falcon-H1, Muse) and ``logits_scaling``, which divides in Granite, multiplies
    in HyperCLOVA X and acts before the head in MiniCPM3. Which one holds shows in the model's forward only.

    Raises
    ------
    ValueError
        If one of these entries is no number.
    """
    config = config.get_text_config() if hasattr(config, "get_text_config") else config

    def number(name: str) -> float | None:
        value = getattr(config, name, None)
        if value is not None and not isinstance(value, int | float):
            raise ValueError(f"the model's configuration has {name} = {value!r}: only a number is known here")
        return float(value) if value else None

    factors = [number(name) or 1.0 for name in ("logit_scale", "lm_head_multiplier", "output_multiplier")]
    scaling, cap = number("logits_scaling") or 1.0, number("final_logit_softcapping")
    scales = [math.prod(x) for x in product((1 / scaling, scaling, 1.0), *((factor, 1.0) for factor in factors))]
    return tuple(dict.fromkeys(Shape(scale, bound) for bound in (cap, None) for scale in scales))


def token_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, shape: Shape = Shape(), chunk: int = CHUNK
) -> Tensor:
    """log softmax(shape(hidden · weightᵀ + bias))[targets] of every token, ``chunk`` rows of logits at a time.

    The matrix products run in the head's dtype, or in autocast's where it is on; the rest in float32.

    Parameters
    ----------
    hidden : (M, H)
        Last hidden states.
    weight : (V, H)
    bias : (V,), optional
    targets : (M,) int
    shape : Shape
        What the model does to its logits after the head.
    chunk : int
        Tokens per chunk, >= 1.

    Returns
    -------
    (M,) float32, in nats
        Differentiable once in hidden, weight and bias; the head's gradient is skipped where it is frozen.

    Raises
    ------
    ValueError
        If chunk < 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk = {chunk} tokens: at least 1 is needed")
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        return _TokenLogProbs.apply(  # type: ignore[no-untyped-call,no-any-return]
            hidden, weight, bias, targets, _How(shape, chunk, dtype, hidden.requires_grad and torch.is_grad_enabled())
        )


@dataclass(frozen=True)
class _How:
    """How the head is computed: in which dtype, how many tokens at a time, and whether ∂/∂hidden will be asked for."""

    shape: Shape
    chunk: int
    dtype: torch.dtype
    differentiated: bool


class _Chunks:
    """The logits of one chunk of tokens after another, in one buffer: (chunk, V) float32.

    A second buffer holds what leaves the head in a lower precision, a third one what the slope of a cap needs.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, how: _How, copied: bool = False) -> None:
        self.hidden, self.how = hidden, how
        self.weight = weight.to(how.dtype)
        self.bias = None if bias is None else bias.to(how.dtype)
        shape = (min(how.chunk, len(hidden)), len(weight))
        self.buffer = torch.empty(shape, dtype=torch.float32, device=hidden.device)
        low = how.dtype != torch.float32
        self.low = torch.empty(shape, dtype=how.dtype, device=hidden.device) if low else self.buffer
        self.copy = torch.empty_like(self.buffer) if copied and how.shape.cap is not None else None

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows and their shaped logits, which may be overwritten."""
        for start in range(0, len(self.hidden), self.how.chunk):
            rows = slice(start, min(start + self.how.chunk, len(self.hidden)))
            size = rows.stop - start
            low, logits = self.low[:size], self.buffer[:size]
            chosen = self.hidden[rows].to(self.how.dtype)
            if self.bias is None:
                torch.mm(chosen, self.weight.T, out=low)
            else:
                torch.addmm(self.bias, chosen, self.weight.T, out=low)
            if low.dtype != logits.dtype:
                logits.copy_(low)
            self.how.shape(logits)
            if self.copy is not None:
                self.copy[:size].copy_(logits)
            yield rows, logits

    def step(self, gradient: Tensor) -> Tensor:
        """∂/∂z before the shape, in the head's dtype, from ∂/∂z after it; in place."""
        size = len(gradient)
        self.how.shape.slope_(gradient, None if self.copy is None else self.copy[:size])
        return gradient if self.low is self.buffer else self.low[:size].copy_(gradient)


class _TokenLogProbs(torch.autograd.Function):  # type: ignore[misc]  # torch is not typed here
    """Saves the log-sum-exp of each token and recomputes the logits of each chunk in backward.

    With a frozen head only ∂/∂hidden is asked for, which is a factor per token times a direction known in forward:
    then the directions are saved in place of the hidden states, and nothing is recomputed.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, how: _How) -> Tensor:
        logprobs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        normalizers = torch.empty_like(logprobs)
        frozen = not (weight.requires_grad or (bias is not None and bias.requires_grad))
        directions = torch.empty_like(hidden) if how.differentiated and frozen else None
        chunks = _Chunks(hidden, weight, bias, how, copied=directions is not None)
        for rows, logits in chunks:
            target = targets[rows, None]
            chosen, largest = logits.gather(-1, target), logits.amax(-1, keepdim=True)
            mass = logits.sub_(largest).exp_().sum(-1, keepdim=True)
            normalizer = mass.log().add_(largest)
            normalizers[rows] = normalizer[:, 0]
            logprobs[rows] = (chosen - normalizer)[:, 0]
            if directions is not None:  # ∂ log p / ∂z = 1[target] − softmax
                step = logits.div_(mass.neg_()).scatter_add_(-1, target, torch.ones_like(chosen))
                directions[rows] = (chunks.step(step) @ chunks.weight).to(hidden.dtype)
        ctx.how, ctx.frozen = how, directions is not None
        if directions is not None:
            ctx.save_for_backward(directions)
        else:
            ctx.save_for_backward(hidden, weight, bias, targets, normalizers)
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.frozen:
            (directions,) = ctx.saved_tensors
            return (directions * grad[:, None]).to(directions.dtype), None, None, None, None
        hidden, weight, bias, targets, normalizers = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # fp32 sums over chunks: a bf16 sum would swallow what single chunks add.
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if need_weight else None
        grad_bias = torch.zeros(len(weight), dtype=torch.float32, device=weight.device) if need_bias else None
        chunks = _Chunks(hidden, weight, bias, ctx.how, copied=True)
        for rows, logits in chunks:
            factor = grad[rows, None]
            step = logits.sub_(normalizers[rows, None]).exp_().mul_(-factor)  # −g · softmax
            step = chunks.step(step.scatter_add_(-1, targets[rows, None], factor))  # + g at the target
            if grad_hidden is not None:
                grad_hidden[rows] = (step @ chunks.weight).to(hidden.dtype)
            if grad_weight is not None:
                _add_product_(grad_weight, step, hidden[rows].to(step.dtype))
            if grad_bias is not None:
                grad_bias += step.sum(0, dtype=torch.float32)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
            None,
            None,
        )


def _add_product_(total: Tensor, step: Tensor, hidden: Tensor) -> None:
    """total += stepᵀ hidden, the sum in fp32."""
    if step.dtype == torch.float32:
        total.addmm_(step.T, hidden)
    else:
        total += (step.T @ hidden).float()
