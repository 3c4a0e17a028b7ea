"""The output head without its logits: log-probabilities of chosen tokens, a tile of logits at a time.

Shapes: M scored tokens; ``hidden`` (M, H), ``targets`` (M,), head ``weight`` (V, H) and ``bias`` (V,); results are
(M,) float32. A tile is a chunk of the tokens by a part of the vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1024
"""Tokens whose logits exist at one time."""
COLUMNS = {"cpu": 2048}
"""Entries of the vocabulary whose logits exist at one time, by kind of device: on CPU a tile is to stay in a cache."""
OTHER_COLUMNS = 8192


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
    """log softmax(shape(hidden · weightᵀ + bias))[targets] of every token, ``chunk`` tokens at a time.

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
        Tokens per tile of logits, >= 1.

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
    differentiated = hidden.requires_grad and torch.is_grad_enabled()
    how = _How(shape, chunk, COLUMNS.get(device, OTHER_COLUMNS), dtype, differentiated)
    with torch.autocast(device, enabled=False):
        return _TokenLogProbs.apply(hidden, weight, bias, targets, how)  # type: ignore[no-untyped-call,no-any-return]


@dataclass(frozen=True)
class _How:
    """How the head is computed: in which tiles and dtype, and whether ∂/∂hidden will be asked for."""

    shape: Shape
    chunk: int
    columns: int
    dtype: torch.dtype
    differentiated: bool


@dataclass(frozen=True)
class _Targets:
    """Where the targets of a tile's tokens lie in it: (tokens, 1) each; ``places`` is any where they do not."""

    places: Tensor
    inside: Tensor

    @classmethod
    def of(cls, targets: Tensor, columns: slice) -> "_Targets":
        places = targets[:, None] - columns.start
        width = columns.stop - columns.start
        return cls(places.clamp(0, width - 1), (places >= 0) & (places < width))

    def read(self, tile: Tensor, elsewhere: Tensor) -> Tensor:
        """The tile at the targets."""
        return torch.where(self.inside, tile.gather(-1, self.places), elsewhere)

    def clear_(self, tile: Tensor) -> None:
        """The tile becomes 0 at the targets."""
        tile.scatter_(-1, self.places, tile.gather(-1, self.places).masked_fill_(self.inside, 0))

    def add_(self, tile: Tensor, values: Tensor) -> None:
        """The tile grows by ``values`` at the targets."""
        tile.scatter_add_(-1, self.places, values * self.inside)


class _Tiles:
    """The logits of one tile after another, in one buffer: (chunk, columns) float32.

    A second buffer holds what leaves the head in a lower precision, a third one what the slope of a cap needs.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, how: _How, copied: bool) -> None:
        self.hidden, self.weight, self.bias, self.how = hidden, weight, bias, how
        shape = (min(how.chunk, len(hidden)), min(how.columns, len(weight)))
        self.buffer = torch.empty(shape, dtype=torch.float32, device=hidden.device)
        low = how.dtype != torch.float32
        self.low = torch.empty(shape, dtype=how.dtype, device=hidden.device) if low else self.buffer
        self.copy = torch.empty_like(self.buffer) if copied and how.shape.cap is not None else None

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows of tokens, and their hidden states in the head's dtype."""
        for rows in _slices(len(self.hidden), self.how.chunk):
            yield rows, self.hidden[rows].to(self.how.dtype)

    def across(self, hidden: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Columns, their weight in the head's dtype, and a chunk's shaped logits there, which may be overwritten."""
        for columns in _slices(len(self.weight), self.how.columns):
            weight = self.weight[columns].to(self.how.dtype)
            at = (slice(len(hidden)), slice(len(weight)))
            low, logits = self.low[at], self.buffer[at]
            if self.bias is None:
                torch.mm(hidden, weight.T, out=low)
            else:
                torch.addmm(self.bias[columns].to(self.how.dtype), hidden, weight.T, out=low)
            if self.low is not self.buffer:
                logits.copy_(low)
            self.how.shape(logits)
            if self.copy is not None:
                self.copy[at].copy_(logits)
            yield columns, weight, logits

    def step(self, gradient: Tensor) -> Tensor:
        """∂/∂z before the shape, in the head's dtype, from ∂/∂z after it; in place."""
        at = tuple(map(slice, gradient.shape))
        self.how.shape.slope_(gradient, None if self.copy is None else self.copy[at])
        return gradient if self.low is self.buffer else self.low[at].copy_(gradient)


class _Softmax:
    """The softmax of a chunk's tokens over the tiles seen so far, in units of the largest exponential; (tokens, 1).

    The targets are kept apart from the others, so that 1 − p is no difference of near numbers where p is almost 1.
    """

    def __init__(self, hidden: Tensor, directed: bool) -> None:
        self.largest = torch.full((len(hidden), 1), -torch.inf, device=hidden.device)
        self.others = torch.zeros_like(self.largest)
        self.chosen = torch.zeros_like(self.largest)
        # Σ over the others of exp z · ∂z/∂hidden, (tokens, H)
        self.pull = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device) if directed else None

    def add(self, logits: Tensor, targets: _Targets) -> Tensor:
        """The tile's exponentials, 0 at the targets; in place."""
        self.chosen = targets.read(logits, self.chosen)
        largest = torch.maximum(self.largest, logits.amax(-1, keepdim=True))
        shrink = (self.largest - largest).exp_()
        self.largest = largest
        targets.clear_(logits.sub_(largest).exp_())
        self.others.mul_(shrink).add_(logits.sum(-1, keepdim=True))
        if self.pull is not None:
            self.pull.mul_(shrink)
        return logits

    def mass(self) -> Tensor:
        """Σ exp(z − largest)."""
        return self.others + (self.chosen - self.largest).exp_()

    def normalizer(self) -> Tensor:
        """log Σ exp z."""
        return self.mass().log_().add_(self.largest)

    def direction(self, weight: Tensor, shape: Shape) -> Tensor:
        """∂ log p/∂hidden = (1 − p) ∂z/∂hidden at the target − Σ over the others of p ∂z/∂hidden, (tokens, H).

        ``weight`` (tokens, H) is the head's at the targets.
        """
        mass = self.mass()
        slope = shape.slope_(self.others / mass, self.chosen.clone())
        return slope * weight - (0 if self.pull is None else self.pull / mass)


class _TokenLogProbs(torch.autograd.Function):  # type: ignore[misc]  # torch is not typed here
    """Saves the log-sum-exp of each token and recomputes the logits in backward.

    With a frozen head only ∂/∂hidden is asked for, which is a factor per token times a direction known in forward:
    then the directions are saved in place of the hidden states, and nothing is recomputed.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, how: _How) -> Tensor:
        logprobs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        normalizers = torch.empty_like(logprobs)
        frozen = not (weight.requires_grad or (bias is not None and bias.requires_grad))
        directions = torch.empty_like(hidden) if how.differentiated and frozen else None
        tiles = _Tiles(hidden, weight, bias, how, copied=directions is not None)
        for rows, chosen in tiles.chunks():
            softmax = _Softmax(chosen, directed=directions is not None)
            for columns, part, logits in tiles.across(chosen):
                exponentials = softmax.add(logits, _Targets.of(targets[rows], columns))
                if softmax.pull is not None:
                    _add_product_(softmax.pull, tiles.step(exponentials), part)
            normalizer = softmax.normalizer()
            normalizers[rows], logprobs[rows] = normalizer[:, 0], (softmax.chosen - normalizer)[:, 0]
            if directions is not None:
                directions[rows] = softmax.direction(weight[targets[rows]].to(how.dtype), how.shape).to(hidden.dtype)
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
        tiles = _Tiles(hidden, weight, bias, ctx.how, copied=True)
        for rows, chosen in tiles.chunks():
            factor = grad[rows, None]
            pull = torch.zeros(chosen.shape, dtype=torch.float32, device=hidden.device) if need_hidden else None
            for columns, part, logits in tiles.across(chosen):
                gradient = logits.sub_(normalizers[rows, None]).exp_().mul_(-factor)  # −g · softmax
                _Targets.of(targets[rows], columns).add_(gradient, factor)  # + g at the target
                step = tiles.step(gradient)
                if pull is not None:
                    _add_product_(pull, step, part)
                if grad_weight is not None:
                    _add_product_(grad_weight[columns], step.T, chosen)
                if grad_bias is not None:
                    grad_bias[columns] += step.sum(0, dtype=torch.float32)
            if grad_hidden is not None and pull is not None:
                grad_hidden[rows] = pull.to(hidden.dtype)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
            None,
            None,
        )


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left · right, the sum in fp32."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    else:
        total += (left @ right).float()


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
