"""Which columns a file of preference pairs has, and what a cell of a prompt or a response says.

A prompt or response is text, or a conversation: a list of messages {"role": ..., "content": ...}. A conversation is
identified by its JSON, with keys sorted. Where there is no prompt, chosen and rejected are conversations that begin
with it: the prompt is what they share, short of the last message.
"""

import difflib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LABELS = ("label", "chosen_probs")
READ_PAST = ("chosen_probs_win", "chosen_probs_lose")
KNOWN = ("prompt", "chosen", "rejected", "label", "weight", "chosen_probs", *READ_PAST)
EXPECTED = (
    "expected prompt, chosen, rejected (TRL's names; no prompt where both are conversations that begin with it), and"
    " optionally label, weight, or chosen_probs, chosen_probs_win, chosen_probs_lose (UCLA's)"
)


class Codes(dict[str, int]):
    """A number for every text: its size when the text was first asked for. Texts are held once, as keys."""

    def __missing__(self, text: str) -> int:
        self[text] = code = len(self)
        return code


@dataclass(frozen=True)
class Columns:
    """The columns of a file.

    Attributes
    ----------
    prompt : bool
        Whether prompts stand in a column of their own.
    label : str, optional
        The column that holds the probability that chosen was preferred.
    weight : bool
    """

    prompt: bool
    label: str | None
    weight: bool

    @classmethod
    def of(cls, names: Sequence[str], ignore: Collection[str] = ()) -> "Columns":
        """From the names in a file.

        Raises
        ------
        ValueError
            A column that is neither known nor ignored, one that is missing, or two that contradict each other.
        """
        found = [name for name in names if name not in ignore]
        unknown = [name for name in found if name not in KNOWN]
        if "chosen" not in found or "rejected" not in found:
            missing = " and ".join(name for name in ("chosen", "rejected") if name not in found)
            raise ValueError(f"no column {missing} among {', '.join(map(repr, names)) or 'none'}; {EXPECTED}")
        if unknown:
            near = difflib.get_close_matches(unknown[0], KNOWN, n=1)
            mend = f" (did you mean {near[0]!r}?)" if near else ""
            shown = ", ".join(map(repr, unknown))
            raise ValueError(f"unknown columns {shown}{mend}; {EXPECTED}; have the others ignored by name")
        labels = [name for name in LABELS if name in found]
        if len(labels) > 1:
            raise ValueError("contradictory columns: label and chosen_probs both say how likely chosen was preferred")
        return cls("prompt" in found, labels[0] if labels else None, "weight" in found)

    @property
    def read(self) -> list[str]:
        """Names of the columns that are read."""
        wanted = {"prompt": self.prompt, "chosen": True, "rejected": True, "weight": self.weight}
        return [name for name, there in wanted.items() if there] + ([self.label] if self.label else [])

    @property
    def texts(self) -> list[str]:
        """Names of the columns of prompts and responses."""
        return ["prompt", "chosen", "rejected"] if self.prompt else ["chosen", "rejected"]


@dataclass(frozen=True)
class Rows:
    """Some rows of a file: codes of texts, and numbers as they stand there.

    Attributes
    ----------
    prompt, chosen, rejected : (m,)
    label, weight : (m,), optional
    places : (m,)
        Numbers of the rows or lines, from 1.
    """

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    label: np.ndarray | None
    weight: np.ndarray | None
    places: np.ndarray


def is_conversation(value: Any) -> bool:
    """Whether a cell is a list of messages."""
    return isinstance(value, list) and len(value) > 0 and all(isinstance(m, dict) and "role" in m for m in value)


def text_of(value: Any, name: str) -> str:
    """Text, or the JSON of a conversation.

    Raises
    ------
    ValueError
        Anything else.
    """
    if isinstance(value, str):
        return value
    if not is_conversation(value):
        raise ValueError(f"{name} is {json.dumps(value, default=str)[:40]}, neither text nor a list of messages")
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def split_conversations(chosen: Any, rejected: Any) -> tuple[str, str, str]:
    """Prompt, chosen and rejected of two conversations that begin with the same messages.

    Raises
    ------
    ValueError
        One is no conversation, or they have no message in common.
    """
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        if not is_conversation(value):
            raise ValueError(f"there is no prompt, and {name} is no conversation that could begin with it")
    common = 0
    while common < min(len(chosen), len(rejected)) - 1 and chosen[common] == rejected[common]:
        common += 1
    if not common:
        raise ValueError("there is no prompt, and chosen and rejected do not begin with the same message")
    return (
        text_of(chosen[:common], "prompt"),
        text_of(chosen[common:], "chosen"),
        text_of(rejected[common:], "rejected"),
    )
