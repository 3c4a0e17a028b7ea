"""A language model small enough that all its responses can be enumerated: its settings, vocabulary, prompts, responses.

The vocabulary is V words and one end token, which is also the pad token; there is no begin token. An answer has at
most L tokens: fewer than L words and the end token, or L words, cut as any engine cuts at ``max_new_tokens`` = L. So
there are m = 1 + V + … + V^L answers, each with a text of its own, and their probabilities add up to 1: no token has
probability that an enumeration would miss. A response is one answer, or a conversation of H answers (``turns``) with
one of R replies of the other side behind each but the last: n = m (R m)^(H−1) responses. A reply is a word, written as
such behind the answer, so that what follows a prompt can be read in one way only. Nothing here imports torch.

Shapes: B prompts; N = B Σ_h (R m)^h states, after each of which one of m answers is drawn; they and the conversations
are in the order of `nashpo.tabular.trees.game.TreeGame`: turn by turn, prompt by prompt, the first answer outermost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product, zip_longest
from typing import Any

import numpy as np

from nashpo.llm.transcript import Message, transcript

WORDS = ("red", "green", "blue", "white", "black", "amber")
"""The words that there are; a model of V symbols uses the first V."""
END = "<end>"
ROLES = ("assistant", "user")
_PROMPT = (2, 3)
"""Words of a prompt."""
_MOST = 400
"""Responses per prompt: games are tables of n × n win rates."""


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TinyWarmup:
    """The policy that the tiny model is warmed up to: at every state (1 − uniform) · Dirichlet + uniform / m.

    Raises
    ------
    ValueError
        On a value out of range.
    """

    concentration: float = _setting(1.0, "of the Dirichlet law that each state's policy is drawn from; > 0")
    uniform: float = _setting(0.7, "share of the uniform policy, in (0, 1]: no answer is rarer than uniform / m")

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
    length: int = _setting(2, "longest answer in tokens, L; sampling.max_new_tokens must be the same")
    prompts: int = _setting(6, "number of prompts, of 2 and 3 words by turns")
    hidden_size: int = _setting(32, "width; a multiple of 2 heads")
    layers: int = _setting(2, "decoder layers")
    heads: int = _setting(4, "attention heads")
    turns: int = _setting(1, "answers per response, H; conversation.turns must be the same where it is above 1")
    replies: int = _setting(2, "words that the other side may say between two answers, R, at most V")
    spread: float = _setting(1.0, "standard deviation of the first logits, about; > 0")
    seed: int = _setting(0, "of weights, prompts, games and of the policy to warm up to")
    warmup: TinyWarmup = field(default_factory=TinyWarmup, metadata={"help": "the policy before self-play"})

    def __post_init__(self) -> None:
        for name, least in (("length", 1), ("prompts", 1), ("layers", 1), ("heads", 1), ("turns", 1), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} = {value} must be at least {least}")
        if not 2 <= self.symbols <= len(WORDS):
            raise ValueError(f"symbols = {self.symbols} must be 2 to {len(WORDS)}")
        if not 1 <= self.replies <= self.symbols:
            raise ValueError(f"replies = {self.replies} must be 1 to {self.symbols}, the number of symbols")
        if self.hidden_size < 2 or self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size = {self.hidden_size} must be a multiple of 2 heads, {2 * self.heads}")
        if not 0 < self.spread < float("inf"):
            raise ValueError(f"spread = {self.spread!r} must be a number > 0")
        if not 4 <= self.n <= _MOST:
            more = "" if self.turns == 1 else f", turns = {self.turns} and replies = {self.replies}"
            joint = " and " if self.turns == 1 else ", "
            raise ValueError(
                f"symbols = {self.symbols}{joint}length = {self.length}{more} make {self.n} responses per prompt;"
                f" 4 to {_MOST} can be played: change the {'length' if self.turns == 1 else 'length or the turns'}"
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
    def answers(self) -> int:
        """Answers that may be given at a state, m."""
        return sum(self.symbols**k for k in range(self.length + 1))

    @property
    def n(self) -> int:
        """Responses per prompt: whole conversations where there are several turns."""
        return self.answers * (self.replies * self.answers) ** (self.turns - 1)

    @property
    def turn_completions(self) -> tuple[tuple[int, ...], ...]:
        """Token ids of all answers, the end token included where they have one; the shortest first."""
        ended = [(*ids, self.end_id) for ids in self._sequences(range(self.length))]
        return (*ended, *self._sequences([self.length]))

    @property
    def reply_ids(self) -> tuple[int, ...]:
        """The words that the other side may say, on every prompt the same, by token id."""
        return tuple(int(i) for i in self.random("replies").permutation(self.symbols)[: self.replies])

    @property
    def conversations(self) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
        """All responses, as token ids behind a prompt and 1 on those of the assistant's answers.

        Answers y and replies r, by their places, make the conversation at place ((y_1 R + r_1) m + y_2) R + …
        """
        answers, replies = self.turn_completions, [(word,) for word in self.reply_ids]
        return tuple(_joined(parts) for parts in self._paths(answers, replies, self.turns))

    @property
    def completions(self) -> tuple[tuple[int, ...], ...]:
        """Token ids of all responses behind a prompt."""
        return tuple(ids for ids, _ in self.conversations)

    @property
    def responses(self) -> tuple[str, ...]:
        """The responses' texts, in the order of `completions`; those of conversations are transcripts."""
        answers = [self.text(ids) for ids in self.turn_completions]
        replies = [self.words[word] for word in self.reply_ids]
        return tuple(transcript(_messages(parts)) for parts in self._paths(answers, replies, self.turns))

    @property
    def states(self) -> tuple[tuple[int, ...], ...]:
        """Token ids after which an answer is drawn, prompts included, (N,)."""
        answers, replies = self.turn_completions, [(word,) for word in self.reply_ids]
        said: list[list[tuple[int, ...]]] = [[()]]
        for turn in range(1, self.turns):
            begun = self._paths(answers, replies, turn)
            said.append([(*_joined(parts)[0], *reply) for parts in begun for reply in replies])
        return tuple((*prompt, *ids) for part in said for prompt in self.prompt_ids for ids in part)

    def _paths(self, answers: Sequence[Any], replies: Sequence[Any], turns: int) -> Iterator[tuple[Any, ...]]:
        """Answers and replies by turns, beginning and ending with an answer."""
        return product(answers, *[replies, answers] * (turns - 1))

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


def _joined(parts: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Answers and replies by turns as one sequence, and 1 on the answers' tokens."""
    mask = [1 - number % 2 for number, ids in enumerate(parts) for _ in ids]
    return tuple(i for ids in parts for i in ids), tuple(mask)


def _messages(texts: Sequence[str]) -> list[Message]:
    """Texts of answers and replies by turns as messages."""
    return [{"role": ROLES[number % 2], "content": text} for number, text in enumerate(texts)]
