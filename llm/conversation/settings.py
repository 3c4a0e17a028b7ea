"""Declaring and checking the settings of conversations: a value out of range is a ValueError of one line.

Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, field
from typing import Any


def setting(help: str, default: Any = MISSING, **metadata: Any) -> Any:
    """A field of a configuration with its line of help; without a default it must be given."""
    made: Field[Any] = field(default=default, metadata={"help": help, **metadata})
    return made


def require(name: str, value: Any, fits: bool, wanted: str) -> None:
    """ValueError that says what ``conversation.name`` must be, unless it fits."""
    if not fits:
        shown = list(value) if isinstance(value, tuple) else value  # as the recipe's list
        raise ValueError(f"conversation.{name} is {shown!r}; it must be {wanted}")


def whole(value: Any, least: int) -> bool:
    """Whether a value is a whole number (and no truth value), at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def texts(values: Any) -> bool:
    """Whether these are texts, none of them empty."""
    return all(isinstance(text, str) and text for text in values)


def check_places(name: str, value: Any, place: str) -> None:
    """That a setting is a text in which ``{place}`` stands once."""
    fits = isinstance(value, str) and value.count("{" + place + "}") == 1
    require(name, value, fits, "a text with {" + place + "} in it, once")
