"""Gumbel noise that is a function of what is drawn and of nothing else, and the draws it makes.

With independent standard Gumbel variables g_v, argmax_v (l_v + g_v) is a draw from softmax(l). Here g is computed, not
taken from a stream: of token v at position t of response k to prompt x it is a hash of (seed, x, k, t, v). So a draw
does not depend on which other responses are drawn, in which order, or in how large a batch. What is left is rounding:
a model's logits differ in their last bits from one batch shape to another, and a token changes where the two best
values of l + g are as near to each other as that. The chance per token is about the size of the rounding error of the
logits, near 1e-6 in float32 and 1e-2 in bfloat16; a response that changed once goes another way from there.

Shapes: N rows, each one response to one prompt; V tokens in the vocabulary; logits in nats.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from nashpo.llm.engines.engine import Sampling

ENTRIES = {"cpu": 2**20, "cuda": 2**25}
"""Numbers of noise that exist at one time by kind of device, 8 bytes each: rows are worked off in pieces of about this
size. On a processor they fit its cache, which was 1.7 times as fast as pieces four times as large."""


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


# The increment and the multipliers of the SplitMix64 generator (Steele, Lea, Flood 2014; Stafford's variant 13).
_GAMMA = 0x9E3779B97F4A7C15
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; torch's own keeps the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mixed(x: Tensor) -> Tensor:
    """A bijection of 64-bit integers in which every output bit depends on all input bits; ``x`` is overwritten."""
    x = x.bitwise_xor_(_shifted(x, 30)).mul_(_FIRST)
    x = x.bitwise_xor_(_shifted(x, 27)).mul_(_SECOND)
    return x.bitwise_xor_(_shifted(x, 31))


def row_key(seed: int, prompt_key: str, k: int) -> int:
    """The 64-bit key of response k to a prompt."""
    text = f"nashpo noise 1\0{seed}\0{prompt_key}\0{k}"
    return _signed(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()))


def uniform(keys: Tensor, position: int, size: int) -> Tensor:
    """Uniform numbers strictly between 0 and 1, (N, size) float64.

    Parameters
    ----------
    keys : (N,) int64
        `row_key` of every row.
    position : int
        Of the token in its response, from 0.
    size : int
        V.
    """
    rows = _mixed(keys + _signed((position + 1) * _GAMMA))
    tokens = _mixed(torch.arange(1, size + 1, device=keys.device) * _signed(_GAMMA))
    bits = _shifted(_mixed(rows[:, None] ^ tokens), 12)
    return bits.double().add_(0.5).mul_(2.0**-52)  # 52 bits and a half: exact, never 0 or 1


def gumbel(keys: Tensor, position: int, size: int) -> Tensor:
    """Standard Gumbel numbers −log(−log u) of `uniform`, (N, size) float64, between −3.6 and 36.8."""
    return uniform(keys, position, size).log_().neg_().log_().neg_()


def draw(logits: Tensor, keys: Tensor, position: int) -> Tensor:
    """One token per row from softmax(logits), (N,) int64.

    Parameters
    ----------
    logits : (N, V)
        −inf on tokens that cannot be drawn.
    keys, position
        As in `uniform`.
    """
    size = logits.shape[-1]
    step = max(1, ENTRIES.get(logits.device.type, 2**22) // size)
    pieces = zip(logits.split(step), keys.split(step), strict=True)
    return torch.cat([gumbel(some, position, size).add_(piece).argmax(-1) for piece, some in pieces])


class KeyedDraw(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed here
    """Turns logits into the choice of one token per row, so that greedy ``generate`` samples; the last processor.

    Parameters
    ----------
    keys : (N,) int64
        `row_key` of every row of the batch.
    prompt_length : int
        Tokens of the padded prompts.

    Attributes
    ----------
    broken : (N,) bool
        Rows whose logits were not numbers at some position.
    """

    def __init__(self, keys: Tensor, prompt_length: int) -> None:
        self.keys = keys
        self.prompt_length = prompt_length
        self.broken = torch.zeros_like(keys, dtype=torch.bool)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """0 at the drawn token and −inf elsewhere, (N, V)."""
        self.broken |= scores.amax(-1).isnan()
        tokens = draw(scores, self.keys, input_ids.shape[1] - self.prompt_length)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens[:, None], 0.0)


class OnlyKnown(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed here
    """Masks ids from ``size`` on, which the tokenizer does not know."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The logits with −inf there."""
        unknown = torch.arange(scores.shape[-1], device=scores.device) >= self.size
        return scores.masked_fill(unknown, -torch.inf)


def filters(sampling: Sampling, vocabulary: int | None = None) -> list[LogitsProcessor]:
    """Vocabulary, temperature, top-k, top-p and min-p as transformers applies them, and only those that are on."""
    table: Sequence[tuple[bool, type[LogitsProcessor], float | None]] = (
        (vocabulary is not None, OnlyKnown, vocabulary),
        (sampling.temperature != 1, TemperatureLogitsWarper, float(sampling.temperature)),
        (sampling.top_k > 0, TopKLogitsWarper, sampling.top_k),
        (sampling.top_p < 1, TopPLogitsWarper, sampling.top_p),
        (sampling.min_p > 0, MinPLogitsWarper, sampling.min_p),
    )
    return [make(value) for on, make, value in table if on]


def filtered(logits: Tensor, sampling: Sampling, vocabulary: int | None = None) -> Tensor:
    """Logits of the distribution that is drawn from, (N, V)."""
    ids = torch.zeros(len(logits), 1, dtype=torch.long, device=logits.device)
    return LogitsProcessorList(filters(sampling, vocabulary))(ids, logits)
