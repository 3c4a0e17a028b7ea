"""Declaring and checking settings of a recipe's parts: a value out of range is a ValueError of one line.

Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, field
from typing import Any


def setting(help: str, default: Any = MISSING, **metadata: Any) -> Any:
    """A field of a configuration with its line of help; without a default it must be given."""
    made: Field[Any] = field(default=default, metadata={"help": help, **metadata})
    return made


def require(key: str, value: Any, fits: bool, wanted: str) -> None:
    """ValueError that says what a key of the recipe must be, unless its value fits."""
    if not fits:
        raise ValueError(f"{key} is {value!r}; it must be {wanted}")


def whole(value: Any, least: int | None = None) -> bool:
    """Whether a setting is an integer (and not a truth value), at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def number(value: Any) -> bool:
    """Whether a setting is a number (and not a truth value)."""
    return isinstance(value, int | float) and not isinstance(value, bool)
