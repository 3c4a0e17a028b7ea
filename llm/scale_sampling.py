"""Sampling on paper: how many forwards a set of responses takes, and how long they last.

Shapes: P prompts with K responses each; p and r are lengths in tokens. Sizes are bytes, times seconds. Nothing here
imports torch.
"""

import math
from dataclasses import dataclass, replace

from nashpo.llm.flops import Batch, Shape, forward_flops
from nashpo.llm.hardware import Cluster, Hardware
from nashpo.llm.lengths import Lengths
from nashpo.llm.scale import WIDTH, Phase, phase_of

SLOTS = 256
"""Sequences that a sampler works on at a time, where its memory holds them: the default of vLLM's ``max_num_seqs``."""
SAMPLER_MEMORY = 0.9
"""Of a GPU's memory for weights, keys and values while sampling."""


@dataclass(frozen=True)
class Sampler:
    """How responses are drawn.

    Attributes
    ----------
    split : int
        g, GPUs that hold one copy of the weights.
    slots : int
        Sequences at a time on one copy, at most.
    call : int, optional
        Prompts that one copy is given at a time; by default its whole share. A call ends with its longest response.
    continuous : bool
        Whether a finished sequence gives its place to the next one. Otherwise a batch ends with its longest.
    prefix : bool
        Whether a prompt is read once for all its responses.
    overhead : float
        Seconds per forward in which the GPU waits for the program: an assumption, 5 ms for an engine that is made for
        sampling; see `EAGER` for transformers' own.
    """

    split: int = 1
    slots: int = SLOTS
    call: int | None = None
    continuous: bool = True
    prefix: bool = True
    overhead: float = 0.005


EAGER = 0.025
"""Seconds per forward that transformers' own sampling waits for the program, which starts kernels one by one: an
assumption."""


def slots(shape: Shape, lengths: Lengths, sampler: Sampler, hardware: Hardware) -> int:
    """Sequences that fit beside the weights: free bytes / (bytes of keys and values of a mean sequence), at most
    ``sampler.slots``.

    Raises
    ------
    ValueError
        If the weights alone do not fit.
    """
    free = SAMPLER_MEMORY * hardware.memory * sampler.split - WIDTH * shape.parameters
    each = shape.cached(WIDTH) * (lengths.prompt + lengths.response)
    if free < each:
        raise ValueError(
            f"{WIDTH * shape.parameters / 1e9:.0f} GB of weights do not fit {sampler.split} × {hardware.name}: sample"
            " with the weights split over more GPUs"
        )
    return max(1, min(sampler.slots, int(free / each)))


def decoding_steps(lengths: Lengths, requests: float, places: int, continuous: bool) -> float:
    """Forwards of a call that draws ``requests`` responses in ``places`` places.

    Continuous: (requests − places) · mean / places until the last one has begun, then the longest of those that are
    left. Otherwise one after another the batches' longest.
    """
    places = min(places, max(1, math.ceil(requests)))
    if not continuous:
        return requests / places * lengths.longest(places)
    return (requests - places) * lengths.response / places + lengths.longest(places)


def sampling(
    shape: Shape,
    lengths: Lengths,
    prompts: int,
    K: int,
    cluster: Cluster,
    sampler: Sampler = Sampler(),
) -> Phase:
    """P · K responses.

    Each copy of the weights makes `decoding_steps` forwards per call, each of which reads all weights and the keys and
    values of its sequences: K P (p r + r²/2) of them in all. Prompts are read P times, or K P times without
    ``sampler.prefix``; that part is bound by computing and is added.
    """
    copies = cluster.gpus / sampler.split
    places = slots(shape, lengths, sampler, cluster.hardware)
    requests = prompts * K / copies
    call = requests if sampler.call is None else min(requests, sampler.call * K)
    steps = requests / call * decoding_steps(lengths, call, places, sampler.continuous)
    p, r = lengths.prompt, lengths.response
    seen, fed = p * r + lengths.squared / 2, r
    if not sampler.continuous:  # finished rows go on as padding
        most = lengths.longest(min(places, max(1, math.ceil(call))))
        seen, fed = p * most + most**2 / 2, most
    moved = copies * steps * WIDTH * shape.parameters + prompts * K * seen * shape.cached(WIDTH)
    decoded = Batch(prompts * K * fed, prompts * K * fed, prompts * K * seen)
    read = Batch(p, 1, shape.pairs(round(p))).times(prompts * (1 if sampler.prefix else K))
    begin = cluster.forward(forward_flops(shape, read))
    flops = forward_flops(shape, decoded)
    # Tensor parallel: two sums of the hidden states per layer, which every GPU sends and receives about once.
    sent = 4 * shape.layers * shape.hidden * WIDTH * (decoded.tokens + read.tokens) / copies * (sampler.split > 1)
    tokens = decoded.tokens + read.tokens
    times = cluster.forward(flops), cluster.read(moved) + steps * sampler.overhead, cluster.send(sent)
    phase = phase_of("sampling", tokens, flops + forward_flops(shape, read), moved, sent, *times)
    return replace(phase, seconds=begin + phase.seconds)
