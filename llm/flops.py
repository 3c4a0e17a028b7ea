"""What a language model computes: its shape, and the FLOPs and tokens of a batch in each of its layouts.

Shapes: P prompts with K responses each; lengths in tokens. A multiplication with an addition is 2 FLOPs. N is the
number of weights that a token is multiplied with: all but the embedding, which is looked up.

    forward      2 N per token, and 4 · layers · heads · head dim per pair (query, key) of attention
    full step    3 × forward (∂/∂activations and ∂/∂weights)
    LoRA step    2 × forward of the frozen weights (∂/∂activations alone), 3 × attention, 3 × adapters

Activation checkpointing computes the layers' forward once more. Norms, rotations and the softmax are left out: they are
below a per cent. Nothing here imports torch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A decoder with gated MLPs and grouped attention.

    Attributes
    ----------
    layers, hidden, heads, key_heads, head_dim, inner, vocabulary : int
        ``inner`` is the width of the MLP.
    tied : bool
        Whether the head is the embedding.
    norms : int
        Norms of a layer with one number per hidden unit.
    window : int, optional
        Tokens that a layer with a sliding window sees.
    windowed : int
        How many layers have it.
    """

    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    tied: bool = False
    norms: int = 2
    window: int | None = None
    windowed: int = 0

    @property
    def layer(self) -> int:
        """Weights of one layer's products."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.key_heads)
        return attention + 3 * self.hidden * self.inner

    @property
    def body(self) -> int:
        """Weights that every token is multiplied with."""
        return self.layers * self.layer

    @property
    def head(self) -> int:
        """Weights of the head, with which scored tokens alone are multiplied."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.body + self.head * (1 if self.tied else 2) + self.hidden * (self.layers * self.norms + 1)

    @property
    def attention(self) -> int:
        """FLOPs of the forward for one pair (query, key): a product of scores and one of values, in every layer."""
        return 4 * self.layers * self.heads * self.head_dim

    def cached(self, width: int = 2) -> int:
        """Bytes of keys and values per token of a sequence that is sampled."""
        return 2 * self.layers * self.key_heads * self.head_dim * width

    def kept(self, autocast: bool) -> float:
        """Bytes per token that a layer keeps for its backward in bf16, attention scores not among them.

        With bf16 weights two norms keep 6 H each (their input in fp32, the normalized one in bf16) and give the
        products 2 H each; under autocast from fp32 weights they keep 8 H each, and five products cast their input for
        themselves, 2 H each. Queries, keys, values and attention's output take 4 A d + 4 G d, its normalizers 4 A, the
        MLP 8 F, and every norm a number of its own.
        """
        around = (16 + 10) * self.hidden if autocast else (12 + 4) * self.hidden
        attention = 4 * (self.heads + self.key_heads) * self.head_dim + 4 * self.heads
        return around + (self.norms - 2) * 8 * self.hidden + attention + 8 * self.inner + 4 * self.norms

    def lora(self, rank: int) -> int:
        """Weights of adapters of this rank on all linear layers of the body."""
        queries, keys = self.heads * self.head_dim, self.key_heads * self.head_dim
        ends = 2 * (self.hidden + queries) + 2 * (self.hidden + keys) + 3 * (self.hidden + self.inner)
        return self.layers * rank * ends

    def pairs(self, length: int, before: int = 0) -> float:
        """Pairs (query, key) of the last ``length - before`` tokens of a sequence, the mean over the layers."""
        full = attended(length) - attended(before)
        if self.window is None or not self.windowed:
            return full
        near = attended(length, self.window) - attended(before, self.window)
        return full + (near - full) * self.windowed / self.layers


SHAPES = {
    "mistral-7b": Shape(32, 4096, 32, 8, 128, 14336, 32000),
    "llama-3-8b": Shape(32, 4096, 32, 8, 128, 14336, 128256),
    "gemma-2-9b": Shape(42, 3584, 16, 8, 256, 14336, 256000, tied=True, norms=4, window=4096, windowed=21),
    "llama-3-70b": Shape(80, 8192, 64, 8, 128, 28672, 128256),
}
"""From the models' ``config.json``."""


_NORMS = {"gemma2": 4, "gemma3": 4, "gemma3_text": 4}
"""Norms of a layer by model type; two in all others."""


def shape_of(config: Any) -> Shape | None:
    """The shape that a transformers configuration describes, None where it lacks what a decoder of this kind has."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    sizes = [size for name in names if isinstance(size := getattr(text, name, None), int)]
    if len(sizes) < len(names):
        return None
    layers, hidden, heads, inner, vocabulary = sizes
    window = getattr(text, "sliding_window", None)
    kinds = list(getattr(text, "layer_types", None) or ["sliding_attention"] * layers)
    return Shape(
        layers,
        hidden,
        heads,
        getattr(text, "num_key_value_heads", None) or heads,
        getattr(text, "head_dim", None) or hidden // heads,
        inner,
        vocabulary,
        bool(getattr(text, "tie_word_embeddings", False)),
        _NORMS.get(getattr(text, "model_type", ""), 2),
        window,
        kinds.count("sliding_attention") if window else 0,
    )


def attended(length: int, window: int | None = None) -> float:
    """Pairs (query, key) of causal attention over a sequence: Σ_{i=1..length} min(i, window)."""
    reach = length if window is None else min(length, window)
    return reach * (reach + 1) / 2 + (length - reach) * reach


@dataclass(frozen=True)
class Batch:
    """What goes through a model.

    Attributes
    ----------
    tokens : float
        That layers see, padding included.
    scored : float
        That the head sees.
    pairs : float
        Pairs (query, key) of attention.
    useful : float
        Tokens without padding, a prompt counted once per response: the same in every layout.
    """

    tokens: float = 0
    scored: float = 0
    pairs: float = 0
    useful: float = 0

    def __add__(self, other: "Batch") -> "Batch":
        return Batch(
            self.tokens + other.tokens,
            self.scored + other.scored,
            self.pairs + other.pairs,
            self.useful + other.useful,
        )

    def times(self, count: float) -> "Batch":
        """So many of them."""
        return Batch(self.tokens * count, self.scored * count, self.pairs * count, self.useful * count)


Rows = Sequence[tuple[int, Sequence[int]]]
"""Per prompt its length and those of its responses."""


def packed(shape: Shape, rows: Rows) -> Batch:
    """Every prompt beside each of its responses, without padding."""
    return _sum(Batch(p + r, r, shape.pairs(p + r), p + r) for p, responses in rows for r in responses)


def shared(shape: Shape, rows: Rows) -> Batch:
    """Every prompt once, its responses behind it without padding."""
    prompts = _sum(Batch(p, 0, shape.pairs(p), 0) for p, _ in rows)
    return prompts + _sum(Batch(r, r, shape.pairs(p + r, p), p + r) for p, responses in rows for r in responses)


def padded(shape: Shape, rows: Rows, micro: int) -> Batch:
    """Rows of one length, those of ``micro`` prompts at a time; masked scores are computed, causal ones are not."""
    found = Batch()
    for start in range(0, len(rows), micro):
        lengths = [p + r for p, responses in rows[start : start + micro] for r in responses]
        scored = sum(r for _, responses in rows[start : start + micro] for r in responses)
        longest = max(lengths)
        found += Batch(longest, 0, shape.pairs(longest), 0).times(len(lengths)) + Batch(0, scored, 0, sum(lengths))
    return found


def _sum(parts: Iterable[Batch]) -> Batch:
    total = Batch()
    for part in parts:
        total += part
    return total


def forward_flops(shape: Shape, batch: Batch) -> float:
    """2 N per token, attention, and the head on scored tokens."""
    return 2 * shape.body * batch.tokens + 2 * shape.head * batch.scored + shape.attention * batch.pairs


def training_flops(shape: Shape, batch: Batch, rank: int | None = None) -> float:
    """Forward and backward, recomputation not counted: what MFU is about.

    Parameters
    ----------
    shape : Shape
    batch : Batch
    rank : int, optional
        Of adapters on all linear layers; the whole model is trained by default.
    """
    if rank is None:
        return 3 * forward_flops(shape, batch)
    frozen = 2 * (forward_flops(shape, batch) - shape.attention * batch.pairs)
    return frozen + 3 * shape.attention * batch.pairs + 6 * shape.lora(rank) * batch.tokens


def recomputed_flops(shape: Shape, batch: Batch) -> float:
    """What activation checkpointing adds: the layers' forward, without the head."""
    return 2 * shape.body * batch.tokens + shape.attention * batch.pairs
