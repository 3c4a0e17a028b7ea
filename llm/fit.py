"""Fitting one stage by gradient descent: the reference trainer, one plain loop.

Shapes: B prompts with K responses each; log-probabilities (B, K) float64, in nats. Dropout is off in every
log-probability here, training included: a stage's loss compares two policies, not two dropout masks.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nashpo.llm.attention import packed
from nashpo.llm.logprobs import sequence_logprobs
from nashpo.llm.objectives import Objective, StageTensors, reduce
from nashpo.llm.packing import packed_logprobs
from nashpo.llm.prefix import LEAST, can_share, share_prefixes
from nashpo.llm.responses import Padded, Responses, Scored, StageData, pack

log = logging.getLogger(__name__)
FIRST_RATIO = 1e-4
"""Largest first log-ratio in fp32, in nats."""


class NonFiniteLoss(ValueError):
    """A loss that is NaN or infinite; the batch was saved."""


class Layout(Protocol):
    """How sequences are laid out for a forward."""

    def context(self, model: nn.Module) -> AbstractContextManager[Any]:
        """What must surround forward and backward."""
        ...

    def logprobs(self, model: nn.Module, sequences: Sequence[Scored]) -> Tensor:
        """log π of each sequence's scored tokens, (N,) float32."""
        ...


@dataclass(frozen=True)
class Packing:
    """Sequences in one row without padding."""

    def context(self, model: nn.Module) -> AbstractContextManager[Any]:
        return packed(getattr(model, "module", model))

    def logprobs(self, model: nn.Module, sequences: Sequence[Scored]) -> Tensor:
        return each_once(sequences, lambda some: packed_logprobs(model, pack(some).to(_device(model))))


@dataclass(frozen=True)
class SharedPrefix(Packing):
    """Packing in which the responses to one prompt share its tokens; plain packing where the model does not allow it.

    ``least`` is the share of a prompt's tokens that must be saved by it, in [0, 1). The numbers are those of the other
    layouts up to rounding.
    """

    least: float = LEAST

    def __post_init__(self) -> None:
        if not 0 <= self.least < 1:
            raise ValueError(f"least = {self.least} must be in [0, 1): the share of tokens that sharing must save")

    def logprobs(self, model: nn.Module, sequences: Sequence[Scored]) -> Tensor:
        if not can_share(model):
            return super().logprobs(model, sequences)

        def scored(some: Sequence[Scored]) -> Tensor:
            row = share_prefixes([(s.ids, s.mask) for s in some], self.least)
            return packed_logprobs(model, row.to(_device(model)))

        return each_once(sequences, scored)


@dataclass(frozen=True)
class Padding:
    """Sequences in rows of one length."""

    left: bool = False

    def context(self, model: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext()

    def logprobs(self, model: nn.Module, sequences: Sequence[Scored]) -> Tensor:
        def scored(some: Sequence[Scored]) -> Tensor:
            batch = Padded.from_sequences(some, left=self.left).to(_device(model))
            return sequence_logprobs(model, batch.input_ids, batch.attention_mask, batch.loss_mask)

        return each_once(sequences, scored)


def each_once(sequences: Sequence[Scored], score: Callable[[Sequence[Scored]], Tensor]) -> Tensor:
    """Scores of sequences, (N,), each distinct one computed once: draws of a peaked policy repeat themselves.

    Parameters
    ----------
    sequences : sequence of N Scored
    score : callable
        From M sequences to (M,).
    """
    places = {sequence: place for place, sequence in enumerate(dict.fromkeys(sequences))}
    if len(places) == len(sequences):
        return score(sequences)
    found = score(list(places))
    return found.index_select(0, torch.tensor([places[s] for s in sequences], device=found.device))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def cosine(progress: float) -> float:
    """Factor of the learning rate, from 1 at progress 0 to 0 at progress 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Progress:
    """What an observer of a fit sees before each update.

    Attributes
    ----------
    step : int
    loss : float
    prompts : tuple of int
        Which prompts the batch held.
    log_ratio : (len(prompts), K)
    """

    step: int
    loss: float
    prompts: tuple[int, ...]
    log_ratio: Tensor


Watch = Callable[[StageData, Tensor], Callable[[Progress], bool]]
"""From a stage's data and log base (B, K), an observer of its fit that returns True to end it."""


@dataclass(frozen=True)
class Settings:
    """How a stage is fitted.

    Attributes
    ----------
    steps : int
        Updates at most.
    optimizer : callable
        From parameters to a torch optimizer.
    schedule : callable
        From progress in [0, 1) to the factor of the learning rate.
    batch : int, optional
        Prompts per update, in an order drawn from the seed; all by default.
    micro : int, optional
        Prompts per forward, all those of the batch by default; changes nothing but memory.
    clip : float, optional
        Largest gradient norm.
    layout : Layout
    watch : Watch, optional
    folder : path, optional
        Where a batch of non-finite loss is saved; the working folder by default.
    """

    steps: int = 300
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = partial(torch.optim.Adam, lr=4e-3)
    schedule: Callable[[float], float] = cosine
    batch: int | None = None
    micro: int | None = None
    clip: float | None = None
    layout: Layout = field(default_factory=Packing)
    watch: Watch | None = None
    folder: str | Path = "."

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "micro"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value} must be at least 1")


@dataclass(frozen=True)
class FitReport:
    """What a fit did.

    Attributes
    ----------
    steps : int
        Updates made.
    first_loss, last_loss : float
    first_ratio : float
        Largest |log π_θ − log π_start| before any update; 0 up to rounding.
    allowed_ratio : float
        What it was held to.
    """

    steps: int
    first_loss: float
    last_loss: float
    first_ratio: float
    allowed_ratio: float


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Every dropout probability of the model at 0, put back afterwards; train or eval mode is not touched."""
    found: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        for name in ("p", "attention_dropout", "dropout"):
            value = getattr(module, name, None)
            if isinstance(value, float) and value and (name != "p" or "Dropout" in type(module).__name__):
                found.append((module, name, value))
                setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in found:
            setattr(module, name, value)


def policy_logprobs(model: nn.Module, responses: Responses, layout: Layout, micro: int | None = None) -> Tensor:
    """log π of every response, (B, K) float64 without gradient; 0 where a response is missing."""
    training = model.training
    model.eval()
    rows = []
    try:
        with torch.no_grad(), without_dropout(model), layout.context(model):
            for prompts in _chunks(list(range(len(responses))), micro):
                logprobs = layout.logprobs(model, responses.rows(prompts))
                rows.append(responses.grid(logprobs, prompts).double())
    finally:
        model.train(training)
    return torch.cat(rows)


def fit(
    model: nn.Module,
    data: StageData,
    base: Sequence[tuple[float, Tensor]],
    objective: Objective,
    settings: Settings,
    seed: int,
    *,
    started: int | None = 0,
    log_importance: Tensor | None = None,
) -> FitReport:
    """Fit the model in place to one stage: log π_θ ≈ Σ a log π_i + Σ b g − log Z.

    Parameters
    ----------
    model : nn.Module
        With the weights that training begins from; its parameters that require a gradient are trained.
    data : StageData
    base : sequence of (a, log-probabilities (B, K))
        The base policies on the data's responses, from `policy_logprobs` under the same layout and precision.
    objective : Objective
        The loss, reduced by `nashpo.llm.objectives.reduce`.
    settings : Settings
    seed : int
        Of the order of the prompts.
    started : int, optional
        Which base policy the model begins as. Its log-ratio to that policy must then be 0: to 1e-4 nats in fp32, to
        four times the spread between two packings of one batch in lower precisions. None skips the check.
    log_importance : (B, K), optional
        See `StageTensors`.

    Raises
    ------
    ValueError
        If the first log-ratio is not 0.
    NonFiniteLoss
        With the prompts' names, which are saved in ``nonfinite-batch.json``.
    """
    device = _device(model)
    log_base = sum((a * logprobs for a, logprobs in base[1:]), base[0][0] * base[0][1])
    order = _order(len(data.responses), settings.batch, seed)
    observer = None if settings.watch is None else settings.watch(data, log_base)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = settings.optimizer(parameters)
    rates = [group["lr"] for group in optimizer.param_groups]
    training = model.training
    model.train()
    first_ratio = allowed = first_loss = loss = 0.0
    done = 0
    try:
        with without_dropout(model), settings.layout.context(model):
            if started is not None:
                first_ratio, allowed = _check_first_ratio(model, data.responses, base[started][1], settings)
            for step in range(settings.steps):
                prompts = next(order)
                optimizer.zero_grad(set_to_none=True)
                loss, log_ratio = 0.0, []
                for part in _chunks(prompts, settings.micro):
                    logprobs = settings.layout.logprobs(model, data.responses.rows(part))
                    tensors = _tensors(data, part, data.responses.grid(logprobs, part), log_base, log_importance)
                    part_loss = reduce(objective.losses(tensors)) * (len(part) / len(prompts))
                    part_loss.backward()
                    loss += part_loss.item()
                    log_ratio.append(tensors.log_ratio.detach())
                if not math.isfinite(loss):
                    raise _non_finite(loss, step, [data.responses.names[b] for b in prompts], settings.folder)
                first_loss = loss if step == 0 else first_loss
                if observer is not None and observer(Progress(step, loss, tuple(prompts), torch.cat(log_ratio))):
                    break
                if settings.clip is not None:
                    nn.utils.clip_grad_norm_(parameters, settings.clip)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * settings.schedule(step / settings.steps)
                optimizer.step()
                done = step + 1
    finally:
        model.train(training)
    log.debug("fitted on %s in %d steps: loss %.3g to %.3g", device, done, first_loss, loss)
    return FitReport(done, first_loss, loss, first_ratio, allowed)


def _tensors(
    data: StageData, prompts: list[int], logprobs: Tensor, log_base: Tensor, log_importance: Tensor | None
) -> StageTensors:
    """The loss's ingredients for some prompts. The log-ratio is a difference in float64: a sequence's
    log-probability may be hundreds of nats, and what is left of it small."""

    def take(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[prompts].to(logprobs.device)

    log_ratio = logprobs.double() - log_base[prompts].to(logprobs.device)
    target, weights = data.target[prompts].to(logprobs.device), data.responses.weights[prompts].to(logprobs.device)
    generated = take(data.generated)
    return StageTensors(log_ratio, target, weights, take(data.preferred), data.step, take(log_importance), generated)


def _check_first_ratio(
    model: nn.Module, responses: Responses, expected: Tensor, settings: Settings
) -> tuple[float, float]:
    """Largest |log π_θ − log π_start| on the first prompts, and what is allowed."""
    prompts = list(range(len(responses)))[: settings.micro]
    sequences = responses.rows(prompts)
    with torch.no_grad():
        logprobs = settings.layout.logprobs(model, sequences)
        allowed = FIRST_RATIO
        precision = next(model.parameters()).dtype
        if precision != torch.float32 or torch.is_autocast_enabled(logprobs.device.type):
            again = settings.layout.logprobs(model, sequences[::-1]).flip(0)
            halves = [settings.layout.logprobs(model, half) for half in (sequences[::2], sequences[1::2]) if half]
            apart = torch.empty_like(logprobs)
            for first, half in enumerate(halves):
                apart[first::2] = half
            spread = max((logprobs - other).abs().max().item() for other in (again, apart))
            allowed = max(FIRST_RATIO, 4 * spread)
            log.info("spread of log-probabilities between packings of one batch: %.3g nats (%s)", spread, precision)
    found = (responses.grid(logprobs, prompts).double().cpu() - expected[prompts].cpu()).abs().max().item()
    log.info("first log-ratio: %.3g nats, %.3g allowed", found, allowed)
    if not found <= allowed:
        raise ValueError(
            f"before any update the log-ratio to the base policy is {found:.3g} nats where {allowed:.3g} is allowed;"
            " what usually breaks it: dropout that is on, base log-probabilities of another dtype, kernel or engine,"
            " a stale base policy, or padding tokens that were scored"
        )
    return found, allowed


def _non_finite(loss: float, step: int, names: list[str], folder: str | Path) -> NonFiniteLoss:
    path = Path(folder) / "nonfinite-batch.json"
    path.write_text(json.dumps({"step": step, "loss": str(loss), "prompts": names}, indent=1))
    return NonFiniteLoss(f"the loss is {loss} at step {step}: the batch's {len(names)} prompts are named in {path}")


def _order(count: int, batch: int | None, seed: int) -> Iterator[list[int]]:
    """Batches without end: every prompt once per pass, each pass in a new order."""
    size = count if batch is None else min(batch, count)
    generator = torch.Generator().manual_seed(seed)
    queue: list[int] = []
    while True:
        while len(queue) < size:
            queue += torch.randperm(count, generator=generator).tolist() if size < count else list(range(count))
        yield queue[:size]
        queue = queue[size:]


def _chunks(items: list[int], size: int | None) -> list[list[int]]:
    return [items] if size is None else [items[i : i + size] for i in range(0, len(items), size)]
