"""Checking the settings of a judge: a value out of range is a ValueError of one line.

Nothing here imports torch.
"""

from __future__ import annotations

from typing import Any

from nashpo.llm import settings
from nashpo.llm.settings import number, whole


def require(name: str, value: Any, fits: bool, wanted: str) -> None:
    """ValueError that says what ``judge.name`` must be, unless it fits."""
    settings.require(f"judge.{name}", value, fits, wanted)


def check_count(name: str, value: Any, what: str, least: int = 1) -> None:
    """That a setting is a whole number of something, at least ``least``."""
    require(name, value, whole(value, least), f"a whole number of {what}, at least {least}")


def check_positive(name: str, value: Any) -> None:
    """That a setting is a finite number above 0."""
    require(name, value, number(value) and 0 < value < float("inf"), "a positive number")


def check_template(name: str, value: str, places: tuple[str, ...]) -> None:
    """That a setting is a text with each of the places ``{place}`` once, and no other braces."""
    wanted = f"a text with {' and '.join('{' + place + '}' for place in places)} once each and no other braces"
    try:
        filled = value.format(**dict.fromkeys(places, ""))
        once = all(value.count("{" + place + "}") == 1 for place in places)
    except (KeyError, IndexError, ValueError, AttributeError):
        filled, once = "", False
    require(name, value, once and "{" not in filled and "}" not in filled, wanted)
