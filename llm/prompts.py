"""Prompts and preference pairs from files: read, named by their content, counted, and split over iterations.

Shapes: lists with one item per prompt. Lengths are in tokens.

A prompt is text, a conversation, or a list of token ids; `nashpo.llm.rows` finds it in a row.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from nashpo.llm.encoding import Text, is_conversation
from nashpo.llm.recipe.schema import DataSpec, Iterations
from nashpo.llm.rows import normalized, read_rows

__all__ = [
    "PairRow",
    "Prompt",
    "PromptEncoder",
    "PromptSet",
    "ReadReport",
    "load_pairs",
    "load_prompts",
    "prompt_text",
    "read_prompts",
    "read_rows",
    "split",
]
Item = TypeVar("Item")


class PromptEncoder(Protocol):
    """The part of `nashpo.llm.encoding.Encoder` that is needed here."""

    def prompt(self, prompt: Text, options: Mapping[str, Any] | None = None) -> list[int]:
        """The token ids of a prompt."""
        ...


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes
    ----------
    key : str
        BLAKE2b-128 of text and ids, in hexadecimal.
    text : Text
        As it was read: text, messages or token ids.
    ids : tuple of int
        With one begin token, or the chat template's header of the answer.
    """

    key: str
    text: Text
    ids: tuple[int, ...]

    @classmethod
    def of(cls, text: Text, ids: Sequence[int]) -> "Prompt":
        """A prompt, with its key."""
        content = _canonical({"text": text, "ids": list(ids)})
        return cls(hashlib.blake2b(content.encode(), digest_size=16).hexdigest(), text, tuple(ids))


@dataclass(frozen=True)
class PairRow:
    """A labelled pair.

    Attributes
    ----------
    prompt : Prompt
    row : dict
        The columns of `nashpo.llm.data` as they were read, with ``prompt`` among them.
    """

    prompt: Prompt
    row: dict[str, Any]


@dataclass(frozen=True)
class ReadReport:
    """How many rows there were, how many items came of them, and why others were left out.

    Attributes
    ----------
    rows, kept, heldout : int
        ``kept`` are for training, ``heldout`` for evaluation.
    left_out : mapping reason -> int
        ``duplicates``, ``too long``, ``beyond the limit``.
    """

    rows: int
    kept: int
    heldout: int
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{self.kept} of {self.rows} for training", f"{self.heldout} held out"]
        parts += [f"{count} {reason}" for reason, count in sorted(self.left_out.items()) if count]
        return ", ".join(parts)


@dataclass(frozen=True)
class PromptSet:
    """What was read: items (`Prompt` or `PairRow`) for training and for evaluation, no prompt in both."""

    training: list[Any]
    heldout: list[Any]
    report: ReadReport


def prompt_text(text: Text) -> str:
    """What a judge reads: the text, the only message beside a system's, or a transcript ``role: content``.

    Raises
    ------
    ValueError
        For token ids, or messages without text.
    """
    if isinstance(text, str):
        return text
    if not is_conversation(text):
        raise ValueError("a judge reads text, but the prompts are token ids: give them as text or messages")
    spoken = [message for message in text if message["role"] != "system"]
    if len(spoken) == 1 and spoken[0]["role"] == "user":
        return _content(spoken[0])
    return "\n\n".join(f"{message['role']}: {_content(message)}" for message in text)


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and all(isinstance(part, Mapping) and "text" in part for part in content):
        return "".join(part["text"] for part in content)
    raise ValueError(f"a message of role {message['role']!r} has no text: {content!r}")


# ------------------------------------------------------------------------------------------------------ rows to items


def load_prompts(
    spec: DataSpec, encoder: PromptEncoder, *, seed: int = 0, max_prompt_length: int | None = None
) -> PromptSet:
    """The prompts of a data set, each once.

    In this order: duplicates are left out, then come the shuffle, the limit, the token limit and the held-out part,
    which is taken off the end.

    Parameters
    ----------
    spec : DataSpec
    encoder : Encoder
    seed : int
        Of the shuffle.
    max_prompt_length : int, optional
        Longer prompts are left out and counted.

    Raises
    ------
    ValueError
        As `read_rows`; or a row without a prompt, or no prompt left.
    """
    found = _collected(spec, encoder, seed, max_prompt_length)
    return _held_out([prompt for prompt, _ in found.items], found, spec)


def load_pairs(
    spec: DataSpec, encoder: PromptEncoder, *, seed: int = 0, max_prompt_length: int | None = None
) -> PromptSet:
    """Labelled pairs as `PairRow`; of several pairs with one prompt the first is kept. Otherwise as `load_prompts`.

    Raises
    ------
    ValueError
        As `load_prompts`, or if a row lacks ``chosen`` or ``rejected``.
    """
    found = _collected(spec, encoder, seed, max_prompt_length)
    for _, row in found.items:
        if missing := [name for name in ("chosen", "rejected") if row.get(name) is None]:
            raise ValueError(f"{_where(spec)}: pairs need the columns chosen and rejected; {missing[0]} is missing")
    return _held_out([PairRow(prompt, row) for prompt, row in found.items], found, spec)


def read_prompts(spec: DataSpec, encoder: PromptEncoder, *, seed: int = 0) -> list[Prompt]:
    """`load_prompts`, its training part: everything where nothing is held out."""
    return load_prompts(spec, encoder, seed=seed).training


@dataclass(frozen=True)
class _Collected:
    items: list[tuple[Prompt, dict[str, Any]]]
    rows: int
    left_out: Counter[str]


def _collected(spec: DataSpec, encoder: PromptEncoder, seed: int, longest: int | None) -> _Collected:
    left_out: Counter[str] = Counter()
    unique: dict[str, dict[str, Any]] = {}
    rows = read_rows(spec)
    for number, row in enumerate(rows):
        try:
            made = normalized(row, spec)
        except ValueError as error:
            raise ValueError(f"{_where(spec)}, row {number}: {error}") from None
        left_out["duplicates"] += unique.setdefault(_canonical(made["prompt"]), made) is not made
    names = list(unique)
    if spec.shuffle:  # by hash, so that the order of the others does not depend on what is left out
        names.sort(key=lambda name: hashlib.blake2b(f"{seed}\n{name}".encode(), digest_size=16).digest())
    if spec.limit is not None:
        left_out["beyond the limit"] += max(0, len(names) - spec.limit)
        names = names[: spec.limit]
    items = []
    for name in names:
        row = unique[name]
        try:
            ids = encoder.prompt(row["prompt"], _template_options(row))
        except ValueError as error:
            raise ValueError(f"{_where(spec)}: {error}") from None
        if longest is not None and len(ids) > longest:
            left_out["too long"] += 1
            continue
        items.append((Prompt.of(row["prompt"], ids), row))
    return _Collected(items, len(rows), left_out)


def _held_out(items: list[Any], found: _Collected, spec: DataSpec) -> PromptSet:
    share = isinstance(spec.heldout, float)
    count = max(1, int(spec.heldout * len(items))) if share and spec.heldout else int(spec.heldout)
    if len(items) <= count:
        out = ", ".join(f"{number} {reason}" for reason, number in sorted(found.left_out.items()) if number)
        raise ValueError(
            f"{_where(spec)}: {len(items)} prompts are left of {found.rows} rows{f' ({out})' if out else ''}, and"
            f" heldout = {spec.heldout} takes {count}: none remains for training"
        )
    cut = len(items) - count
    report = ReadReport(found.rows, cut, count, dict(+found.left_out))
    return PromptSet(items[:cut], items[cut:], report)


def _where(spec: DataSpec) -> str:
    return ", ".join(spec.paths)


def _template_options(row: Mapping[str, Any]) -> dict[str, Any]:
    tools = {"tools": row["tools"]} if row.get("tools") is not None else {}
    return {**(row.get("chat_template_kwargs") or {}), **tools}


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


# ------------------------------------------------------------------------------------------------------------- splits


def split(prompts: Sequence[Item], iterations: Iterations) -> list[list[Item]]:
    """The prompts of each iteration.

    ``split`` cuts consecutive parts in order, of equal size but for the first few, which have one more where the
    number does not divide. ``all`` gives every iteration the same ones. ``per_iteration`` keeps the first of each part.

    Raises
    ------
    ValueError
        If there are too few.
    """
    count, limit = iterations.count, iterations.per_iteration
    parts = count if iterations.prompts == "split" else 1
    if len(prompts) < parts * (limit or 1):
        each = f"{limit} prompts" if limit else "at least 1 prompt"
        raise ValueError(
            f"{len(prompts)} prompts are too few for {count} iterations of {each} (iterations.prompts ="
            f" {iterations.prompts}): give more, or fewer iterations, a smaller per_iteration or prompts: all"
        )
    size, rest = divmod(len(prompts), parts)
    begins = [i * size + min(i, rest) for i in range(parts + 1)]
    cut = [list(prompts[a:b])[:limit] for a, b in zip(begins, begins[1:])]
    return cut if parts == count else [list(cut[0]) for _ in range(count)]
