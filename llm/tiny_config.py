"""A language model small enough that all its responses can be enumerated: its settings, vocabulary, prompts, responses.

The vocabulary is V words and one end token, which is also the pad token; there is no begin token. A response has at
most L tokens: fewer than L words and the end token, or L words, cut as any engine cuts at ``max_new_tokens`` = L. So
there are n = 1 + V + … + V^L responses, each with a text of its own, and their probabilities add up to 1: no token has
probability that an enumeration would miss. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product, zip_longest
from typing import Any

import numpy as np

WORDS = ("red", "green", "blue", "white", "black", "amber")
"""The words that there are; a model of V symbols uses the first V."""
END = "<end>"
_PROMPT = (2, 3)
"""Words of a prompt."""
_MOST = 400
"""Responses per prompt: games are tables of n × n win rates."""


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TinyWarmup:
    """The policy that the tiny model is warmed up to: every prompt's is (1 − uniform) · Dirichlet + uniform / n.

    Raises
    ------
    ValueError
        On a value out of range.
    """

    concentration: float = _setting(1.0, "of the Dirichlet law that each prompt's policy is drawn from; > 0")
    uniform: float = _setting(0.7, "share of the uniform policy, in (0, 1]: no response is rarer than uniform / n")

    def __post_init__(self) -> None:
        if not 0 < self.concentration < float("inf"):
            raise ValueError(f"warmup.concentration = {self.concentration!r} must be a number > 0")
        if not 0 < self.uniform <= 1:
            raise ValueError(f"warmup.uniform = {self.uniform!r} must be in (0, 1]")


@dataclass(frozen=True)
class TinyModel:
    """A small Llama with random weights, its tokenizer, its prompts and a game for each of them.

    Raises
    ------
    ValueError
        On a value out of range.
    """

    symbols: int = _setting(3, "words of the vocabulary, V, 2 to 6")
    length: int = _setting(2, "longest response in tokens, L; sampling.max_new_tokens must be the same")
    prompts: int = _setting(6, "number of prompts, of 2 and 3 words by turns")
    hidden_size: int = _setting(32, "width; a multiple of 2 heads")
    layers: int = _setting(2, "decoder layers")
    heads: int = _setting(4, "attention heads")
    spread: float = _setting(1.0, "standard deviation of the first logits, about; > 0")
    seed: int = _setting(0, "of weights, prompts, games and of the policy to warm up to")
    warmup: TinyWarmup = field(default_factory=TinyWarmup, metadata={"help": "the policy before self-play"})

    def __post_init__(self) -> None:
        for name, least in (("length", 1), ("prompts", 1), ("layers", 1), ("heads", 1), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} = {value} must be at least {least}")
        if not 2 <= self.symbols <= len(WORDS):
            raise ValueError(f"symbols = {self.symbols} must be 2 to {len(WORDS)}")
        if self.hidden_size < 2 or self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size = {self.hidden_size} must be a multiple of 2 heads, {2 * self.heads}")
        if not 0 < self.spread < float("inf"):
            raise ValueError(f"spread = {self.spread!r} must be a number > 0")
        if not 4 <= self.n <= _MOST:
            raise ValueError(
                f"symbols = {self.symbols} and length = {self.length} make {self.n} responses per prompt; 4 to {_MOST}"
                " can be played: change the length"
            )
        if len(known := self.prompt_ids) < self.prompts:
            raise ValueError(f"prompts = {self.prompts}, but {self.symbols} symbols make {len(known)}: take fewer")

    @property
    def words(self) -> tuple[str, ...]:
        """The symbols, by token id."""
        return WORDS[: self.symbols]

    @property
    def end_id(self) -> int:
        """Token id of the end token, the last of the vocabulary."""
        return self.symbols

    @property
    def n(self) -> int:
        """Responses per prompt."""
        return sum(self.symbols**k for k in range(self.length + 1))

    @property
    def completions(self) -> tuple[tuple[int, ...], ...]:
        """Token ids of all responses, the end token included where they have one; the shortest first."""
        ended = [(*ids, self.end_id) for ids in self._sequences(range(self.length))]
        return (*ended, *self._sequences([self.length]))

    @property
    def responses(self) -> tuple[str, ...]:
        """The responses' texts, in the order of `completions`."""
        return tuple(self.text(ids) for ids in self.completions)

    @property
    def prompt_ids(self) -> tuple[tuple[int, ...], ...]:
        """Token ids of the prompts: of 2 and 3 words by turns.

        None is the beginning of another one, which would share its next words with that one's responses; and none
        repeats one word, since a model without a begin token cannot count its own repetitions.
        """
        short, long = (self._prompts(length) for length in _PROMPT)
        short = short[: (self.prompts + 1) // 2]
        long = [ids for ids in long if ids[: _PROMPT[0]] not in short][: self.prompts // 2]
        return tuple(ids for pair in zip_longest(short, long) for ids in pair if ids is not None)

    def _prompts(self, length: int) -> list[tuple[int, ...]]:
        """All that may be prompts, in a random order."""
        every = [ids for ids in self._sequences([length]) if len(set(ids)) > 1]
        return [every[i] for i in self.random(f"prompts of {length}").permutation(len(every))]

    @property
    def prompt_texts(self) -> tuple[str, ...]:
        """The prompts' texts, in the order of `prompt_ids`."""
        return tuple(self.text(ids) for ids in self.prompt_ids)

    def text(self, ids: tuple[int, ...]) -> str:
        """What the tokenizer decodes ids to, the end token left out."""
        return " ".join(self.words[i] for i in ids if i != self.end_id)

    def random(self, what: str) -> np.random.Generator:
        """A random stream of its own for one part of the model."""
        return np.random.default_rng([self.seed, *what.encode()])

    def _sequences(self, lengths: Any) -> Iterator[tuple[int, ...]]:
        for length in lengths:
            yield from product(range(self.symbols), repeat=length)
