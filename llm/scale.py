"""How long the phases of self-play take on given GPUs, what moves, and how much memory they need: a model on paper.

Shapes: P prompts per iteration with K responses each; lengths in tokens. Sizes are bytes, times seconds, N the model's
weights, n GPUs of which g hold one copy of the weights together while sampling. Each phase takes the longest of its
computing, its reading of memory and its sending, which are assumed to overlap:

    computing   FLOPs / (n · peak · efficiency)
    reading     bytes / (n · bandwidth · efficiency)
    sending     bytes over links / (rate · efficiency)

Nothing here imports torch. ``python -m nashpo.llm.scale`` prints the tables of ``llm/SCALE.md``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nashpo.llm.flops import Batch, Shape, forward_flops, recomputed_flops, training_flops
from nashpo.llm.hardware import Cluster
from nashpo.llm.lengths import Lengths

WIDTH = 2
"""Bytes of a weight in forward and backward, of a key or a value, and of one sent between processes."""
STORE = 2e9
"""Bytes/s between a machine and the disk that all share: an assumption."""
MICRO = 8192
"""Tokens that pass through the weights at a time."""


@dataclass(frozen=True)
class Phase:
    """What one phase does, on all GPUs together.

    Attributes
    ----------
    name : str
    tokens : float
        Through layers.
    flops : float
        Executed, recomputation included.
    moved : float
        Bytes between GPUs and their memories, roughly: weights, keys and values, what layers write and read.
    sent : float
        Bytes that one GPU sends, or that go to disk and back.
    seconds : float
        From beginning to end.
    bound : str
        What takes longest: ``compute``, ``memory`` or ``links``.
    """

    name: str
    tokens: float
    flops: float
    moved: float
    sent: float
    seconds: float
    bound: str

    def times(self, count: float) -> Phase:
        """So many of them, one after another."""
        sums = {name: count * getattr(self, name) for name in ("tokens", "flops", "moved", "sent", "seconds")}
        return replace(self, **sums)


def phase_of(
    name: str, tokens: float, flops: float, moved: float, sent: float, compute: float, memory: float, links: float
) -> Phase:
    """A phase that takes the longest of three times, in seconds."""
    times = {"compute": compute, "memory": memory, "links": links}
    bound = max(times, key=lambda what: times[what])
    return Phase(name, tokens, flops, moved, sent, times[bound], bound)


def gpu_hours(phases: Sequence[Phase], gpus: int) -> float:
    """Hours of all GPUs, idle ones too."""
    return gpus * sum(phase.seconds for phase in phases) / 3600


def cost(phases: Sequence[Phase], gpus: int, price: float) -> float:
    """GPU-hours times the price of one, in the price's currency."""
    return gpu_hours(phases, gpus) * price


@dataclass(frozen=True)
class JudgeShape:
    """A judge that reads a prompt and two responses.

    Attributes
    ----------
    body : int
        Weights that each token is multiplied with.
    attention : int
        FLOPs per pair (query, key).
    causal : bool
    kept : float
        Bytes per token that all layers write.
    prompt, response : int, optional
        Tokens of each that are read at most.
    single : bool
        Whether it computes in fp32.
    """

    body: int
    attention: int
    causal: bool
    kept: float
    prompt: int | None = None
    response: int | None = None
    single: bool = False

    def question(self, lengths: Lengths) -> tuple[float, float]:
        """Mean tokens and mean FLOPs of one question."""
        p = _cut(lengths.prompts, self.prompt)
        r = _cut(lengths.responses, self.response)
        tokens = p + 2 * r
        pairs = tokens * (tokens + 1) / 2 if self.causal else tokens**2
        return tokens, 2 * self.body * tokens + self.attention * pairs


def _cut(values: Sequence[float], most: int | None) -> float:
    return math.fsum(x if most is None else min(x, most) for x in values) / len(values)


PAIRRM: JudgeShape = JudgeShape(24 * 12 * 1024**2, 24 * 8 * 1024, False, 24 * 34 * 1024, 1224, 412)
"""DeBERTa-v3-large: 24 layers of 12 · 1024² weights; three products of scores and one of values per pair."""


def pair_lm(shape: Shape) -> JudgeShape:
    """A causal LM that reads both responses and answers with one token."""
    return JudgeShape(shape.body, shape.attention, True, shape.layers * shape.kept(autocast=False))


def judging(judge: JudgeShape, lengths: Lengths, questions: float, cluster: Cluster) -> Phase:
    """``questions`` passes, shared among the GPUs, each of which has the whole judge."""
    tokens, flops = judge.question(lengths)
    moved = _moved(WIDTH * judge.body, judge.kept, questions * tokens)
    times = cluster.forward(questions * flops, judge.single), cluster.read(moved), 0.0
    return phase_of("judging", questions * tokens, questions * flops, moved, 0, *times)


def scoring(shape: Shape, batch: Batch, cluster: Cluster) -> Phase:
    """Log-probabilities of a batch under one policy, without gradient."""
    flops = forward_flops(shape, batch)
    moved = _moved(WIDTH * shape.parameters, shape.layers * shape.kept(autocast=False), batch.tokens)
    times = cluster.forward(flops), cluster.read(moved), 0.0
    return phase_of("log-probabilities", batch.tokens, flops, moved, 0, *times)


def _moved(weights: float, kept: float, tokens: float) -> float:
    """Bytes of one pass: the weights once per `MICRO` tokens, what layers write once more to read it."""
    return tokens * (weights / MICRO + 2 * kept)


@dataclass(frozen=True)
class Fit:
    """How a stage is trained.

    Attributes
    ----------
    weight, gradient, states : float
        Bytes per trained weight: fp32 or bf16 weights, their gradients, all states of the optimizer.
    micro : float
        Tokens of a micro-batch on one GPU.
    updates : float
        Steps of the optimizer.
    checkpointing : bool
        Whether layers are computed again in backward.
    rank : int, optional
        Of LoRA adapters on all linear layers; the frozen weights have ``weight`` bytes each.
    autocast : bool
        Whether fp32 weights are cast to bf16 in each forward.
    """

    weight: float = 4
    gradient: float = 4
    states: float = 4
    micro: float = 8192
    updates: float = 1
    checkpointing: bool = True
    rank: int | None = None
    autocast: bool = True


def training(shape: Shape, batch: Batch, fit: Fit, cluster: Cluster) -> Phase:
    """One stage: ``batch`` is all that is trained on.

    With several GPUs everything is sharded over all of them (FSDP, ZeRO-3): in each micro-batch a GPU receives the
    weights twice in bf16 and sends its gradients once in fp32, 8 bytes per weight. Each update reads and writes
    weights, gradients and states once, when all computing is done.
    """
    gpus = cluster.gpus
    flops = training_flops(shape, batch, fit.rank)
    flops += recomputed_flops(shape, batch) if fit.checkpointing else 0
    trained = shape.parameters if fit.rank is None else shape.lora(fit.rank)
    micros = max(fit.updates, batch.tokens / (gpus * fit.micro))
    through = micros * (2 * WIDTH * shape.parameters + 4 * trained)
    sent = through * (gpus - 1) / gpus
    written = shape.layers * shape.kept(fit.autocast)
    moved = (4 if fit.checkpointing else 3) * _moved(WIDTH * shape.parameters, written, batch.tokens)
    updated = fit.updates * 2 * (fit.weight + fit.gradient + fit.states) * trained
    times = cluster.train(flops), cluster.read(moved), cluster.send(sent, through)
    phase = phase_of("training", batch.tokens, flops, moved + updated, sent, *times)
    return replace(phase, seconds=phase.seconds + cluster.read(updated))


def exchange(shape: Shape) -> Phase:
    """New weights in bf16 to the shared disk, and from there to every machine that samples, all at the same time."""
    sent = 2 * WIDTH * shape.parameters
    return Phase("weights", 0, 0, 0, sent, sent / STORE, "links")


if __name__ == "__main__":
    from nashpo.llm.scale_page import main

    main()
