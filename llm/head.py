"""The output head without its logits: log-probabilities of chosen tokens, a chunk of tokens at a time.

Shapes: M scored tokens; ``hidden`` (M, H), ``targets`` (M,), head ``weight`` (V, H) and ``bias`` (V,); results are
(M,) float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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

    def slope_(self, gradient: Tensor, shaped: Tensor) -> Tensor:
        """gradient · dz_shaped/dz, in place in ``gradient``; ``shaped`` is consumed."""
        if self.cap is not None:
            gradient.mul_(shaped.div_(self.cap).square_().neg_().add_(1))
        if self.scale != 1.0:
            gradient.mul_(self.scale)
        return gradient


def shape_of(config: Any) -> Shape:
    """Read the shape from a model's configuration: soft-capping (Gemma), scale (Cohere), divisor (Granite)."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    divisor = float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return Shape(scale / divisor, float(cap) if cap else None)


class _TokenLogProbs(torch.autograd.Function):  # type: ignore[misc]  # torch is not typed here
    """Saves the log-sum-exp of each token and recomputes the logits of each chunk in backward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, shape: Shape, chunk: int
    ) -> Tensor:
        logprobs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        normalizers = torch.empty_like(logprobs)
        for rows in _chunks(len(hidden), chunk):
            logits = shape(torch.nn.functional.linear(hidden[rows], weight, bias).float())
            normalizers[rows] = logits.logsumexp(-1)
            logprobs[rows] = logits.gather(-1, targets[rows, None])[:, 0] - normalizers[rows]
        ctx.save_for_backward(hidden, weight, bias, targets, normalizers)
        ctx.shape, ctx.chunk = shape, chunk
        return logprobs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        hidden, weight, bias, targets, normalizers = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # fp32 sums over chunks: rounding each chunk to bf16 would bias the head's gradient.
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if need_weight else None
        grad_bias = torch.zeros(len(weight), dtype=torch.float32, device=weight.device) if need_bias else None
        for rows in _chunks(len(hidden), ctx.chunk):
            shaped = ctx.shape(torch.nn.functional.linear(hidden[rows], weight, bias).float())
            keep = shaped.clone() if ctx.shape.cap is not None else shaped
            step = shaped.sub_(normalizers[rows, None]).exp_().mul_(-grad[rows, None])  # −g · softmax
            step.scatter_add_(-1, targets[rows, None], grad[rows, None])  # + g at the target
            step = ctx.shape.slope_(step, keep).to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = step @ weight
            if grad_weight is not None:
                _add_product_(grad_weight, step, hidden[rows])
            if grad_bias is not None:
                grad_bias += step.sum(0, dtype=torch.float32)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _add_product_(total: Tensor, step: Tensor, hidden: Tensor) -> None:
    """total += stepᵀ hidden, in fp32."""
    if step.dtype == torch.float32:
        total.addmm_(step.T, hidden)
    else:
        total += (step.T @ hidden).float()


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    shape: Shape | Callable[[Tensor], Tensor] = Shape(),
    chunk: int = CHUNK,
) -> Tensor:
    """log softmax(shape(hidden · weightᵀ + bias))[targets] of every token, ``chunk`` rows of logits at a time.

    Parameters
    ----------
    hidden : (M, H)
        Last hidden states, in the model's dtype.
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
        Differentiable in hidden, weight and bias; the head's gradient is skipped where it is frozen.
    """
    return _TokenLogProbs.apply(hidden, weight, bias, targets, shape, chunk)  # type: ignore[no-untyped-call,no-any-return]
