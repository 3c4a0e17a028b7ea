"""The protocol of an engine: K responses per prompt from a policy, as token ids.

Shapes: a shard is a sequence of prompts; the answer has one tuple of K completions per prompt, in the order of the
prompts. Lengths are in tokens. Nothing here imports torch when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from nashpo.llm import settings
from nashpo.llm.settings import number, whole
from nashpo.llm.transcript import Message, Response

if TYPE_CHECKING:
    import torch

    from nashpo.llm.mixture import Parts
    from nashpo.llm.prompts import Prompt


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    The filters are applied to the logits in transformers' order: temperature, top-k, top-p, min-p.

    Attributes
    ----------
    K : int
        Responses per prompt, at least 1.
    max_new_tokens : int
        Longest response in tokens, its end token included.
    temperature : float
        > 0; logits are divided by it.
    top_p : float
        In (0, 1]: the smallest set of likeliest tokens of at least this probability; 1 keeps all.
    top_k : int
        The k likeliest tokens; 0 keeps all.
    min_p : float
        In [0, 1]: tokens of at least this share of the likeliest one's probability; 0 keeps all.

    Raises
    ------
    ValueError
        On a value out of range.
    """

    K: int = 5
    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        require("K", self.K, whole(self.K) and self.K >= 1, "a whole number of responses per prompt, at least 1")
        fits = whole(self.max_new_tokens) and self.max_new_tokens >= 1
        require("max_new_tokens", self.max_new_tokens, fits, "a whole number of tokens, at least 1")
        fits = number(self.temperature) and 0 < self.temperature < float("inf")
        require("temperature", self.temperature, fits, "positive; for nearly greedy responses take a small one")
        require("top_p", self.top_p, number(self.top_p) and 0 < self.top_p <= 1, "in (0, 1]; 1 keeps every token")
        fits = whole(self.top_k) and self.top_k >= 0
        require("top_k", self.top_k, fits, "a whole number, 0 or more; 0 keeps every token")
        require("min_p", self.min_p, number(self.min_p) and 0 <= self.min_p <= 1, "in [0, 1]; 0 keeps every token")

    @property
    def exact(self) -> bool:
        """Whether draws are from the policy itself, which is what the rules' theory is about."""
        return self.temperature == 1 and self.top_p == 1 and self.top_k == 0 and self.min_p == 0

    def to_json(self) -> dict[str, Any]:
        """The fields, and ``exact``."""
        return {**asdict(self), "exact": self.exact}


def require(name: str, value: Any, fits: bool, wanted: str) -> None:
    """ValueError that says what a setting of `sampling` must be, unless it fits."""
    settings.require(f"sampling.{name}", value, fits, wanted)


@dataclass(frozen=True)
class Completion:
    """One response.

    Attributes
    ----------
    ids : tuple of int
        Token ids, with the end token where the response finished.
    finished : bool
        Whether it ended by an end token; otherwise it was cut at ``max_new_tokens``.
    text : str
        The ids decoded without special tokens: what a judge reads.
    retokenized : bool
        Whether the ids are not the sampler's own but the text's, tokenized again.
    mask : tuple of int, optional
        1 on tokens that are scored; None where all are.
    turns : tuple of Message, optional
        The messages of a conversation of several turns, whose `transcript` is ``text``; None for a single answer.
    """

    ids: tuple[int, ...]
    finished: bool
    text: str
    retokenized: bool = False
    mask: tuple[int, ...] | None = None
    turns: tuple[Message, ...] | None = None

    @property
    def scored(self) -> int:
        """How many of its tokens are the policy's."""
        return len(self.ids) if self.mask is None else sum(self.mask)

    @property
    def response(self) -> Response:
        """What a judge is handed: the text, or the messages of a conversation."""
        return self.text if self.turns is None else list(self.turns)

    @classmethod
    def drawn(cls, tokens: Sequence[int], end_ids: Collection[int], tokenizer: Any) -> Completion:
        """Sampled ids up to and with the first end token; what stands behind it is padding."""
        place = next((i for i, token in enumerate(tokens) if token in end_ids), None)
        ids = tuple(tokens) if place is None else tuple(tokens[: place + 1])
        return cls(ids, place is not None, decoded(tokenizer, ids))

    def to_json(self) -> dict[str, Any]:
        """Lists, numbers and text only; ``mask`` and ``turns`` where there are any."""
        saved = {"ids": list(self.ids), "text": self.text, "finished": self.finished, "retokenized": self.retokenized}
        if self.mask is not None:
            saved["mask"] = list(self.mask)
        return saved if self.turns is None else {**saved, "turns": [dict(turn) for turn in self.turns]}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Completion:
        """What `to_json` gave."""
        mask, turns = saved.get("mask"), saved.get("turns")
        return cls(
            tuple(saved["ids"]),
            saved["finished"],
            saved["text"],
            saved.get("retokenized", False),
            None if mask is None else tuple(mask),
            None if turns is None else tuple(turns),
        )


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of token ids without special tokens, spaces left as they are; empty where there is no tokenizer."""
    if tokenizer is None:
        return ""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class PolicySource(Protocol):
    """A policy as an engine gets it."""

    @property
    def name(self) -> str:
        """For messages, and for servers that know policies by name."""
        ...

    @property
    def parts(self) -> Parts:
        """The geometric mixture that it is; a single model is ``[(1.0, use)]``."""
        ...

    def folder(self) -> Path:
        """A transformers folder with its configuration, safetensors and tokenizer; ValueError for a mixture."""
        ...


class Engine(Protocol):
    """Draws responses."""

    @property
    def kind(self) -> str:
        """``ids`` where token ids go in and out, ``text`` for the lesser kind that only has text."""
        ...

    def describe(self) -> dict[str, Any]:
        """Engine, versions and sampling, stored with the data: JSON without secrets, the same before and after
        sampling. ``reproducible`` says whether the same call gives the same responses again."""
        ...

    def check(self) -> None:
        """ValueError where sampling could not work, before any long work."""
        ...

    def sample(self, policy: PolicySource, prompts: Sequence[Prompt], seed: int) -> list[tuple[Completion, ...]]:
        """K completions of every prompt of one shard, in the prompts' order; a function of its arguments only."""
        ...

    def close(self) -> None:
        """Give back memory and processes; a later `sample` starts them again."""
        ...


@runtime_checkable
class Keeping(Protocol):
    """An engine that has to be told how long the beginnings of later prompts are worth keeping."""

    def keeping(self) -> AbstractContextManager[None]:
        """Within it, `Engine.sample` does not read again what earlier calls of it read or drew."""
        ...


@dataclass(frozen=True)
class EngineContext:
    """What an engine is told besides its own settings.

    Attributes
    ----------
    tokenizer
        A transformers tokenizer, or None where only token ids are wanted.
    end_ids : tuple of int
        Tokens that end a response.
    pad_id : int
        Any id; padding is masked.
    vocabulary : int, optional
        Ids from here on are never drawn (models with more rows than their tokenizer has tokens).
    device : torch.device
    progress : callable
        Called with the number of responses that were finished since its last call.
    """

    tokenizer: Any
    end_ids: tuple[int, ...]
    pad_id: int
    vocabulary: int | None
    device: torch.device
    progress: Callable[[int], None]


def check_ends(context: EngineContext) -> None:
    """That a response can end.

    Raises
    ------
    ValueError
        If an end token is one that is never drawn.
    """
    outside = [i for i in context.end_ids if i < 0 or (context.vocabulary is not None and i >= context.vocabulary)]
    if outside:
        raise ValueError(
            f"end token {outside[0]} is outside the tokenizer's vocabulary of {context.vocabulary} and would never be"
            " drawn: give end tokens that the tokenizer has"
        )


def check_lengths(prompts: Sequence[Prompt], sampling: Sampling, limit: int | None) -> None:
    """That every prompt has a token, and fits the model's positions with its longest response.

    Parameters
    ----------
    limit : int, optional
        The model's ``max_position_embeddings``; None where it has none.

    Raises
    ------
    ValueError
        On an empty prompt, and on the longest one if it is too long.
    """
    empty = next((prompt.key for prompt in prompts if not prompt.ids), None)
    if empty is not None:
        raise ValueError(f"a prompt (key {empty[:12]}) has no token that a response could follow")
    longest = max(prompts, key=lambda prompt: len(prompt.ids), default=None)
    if longest is None or limit is None or len(longest.ids) + sampling.max_new_tokens <= limit:
        return
    raise ValueError(
        f"a prompt of {len(longest.ids)} tokens (key {longest.key[:12]}) and a response of max_new_tokens ="
        f" {sampling.max_new_tokens} do not fit the model's {limit} positions: lower max_new_tokens or leave out long"
        " prompts"
    )
