"""Checking the settings of conversations: a value out of range is a ValueError of one line.

Nothing here imports torch.
"""

from __future__ import annotations

from typing import Any

from nashpo.llm import settings


def require(name: str, value: Any, fits: bool, wanted: str) -> None:
    """ValueError that says what ``conversation.name`` must be, unless it fits."""
    shown = list(value) if isinstance(value, tuple) else value  # as the recipe's list
    settings.require(f"conversation.{name}", shown, fits, wanted)


def texts(values: Any) -> bool:
    """Whether these are texts, none of them empty."""
    return all(isinstance(text, str) and text for text in values)


def check_places(name: str, value: Any, place: str) -> None:
    """That a setting is a text in which ``{place}`` stands once."""
    fits = isinstance(value, str) and value.count("{" + place + "}") == 1
    require(name, value, fits, "a text with {" + place + "} in it, once")
