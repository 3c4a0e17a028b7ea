"""Games named on the command line: ``family:argument=value,...``, for example ``cyclic:n=5,margin=0.8``."""

from __future__ import annotations

import difflib
from typing import Any

from nashpo.tabular.families import FAMILIES, Family
from nashpo.tabular.game import Game


def game_from_spec(text: str) -> Game:
    """Game of a family from its name and arguments.

    Parameters
    ----------
    text : str
        ``NAME`` or ``NAME:KEY=VALUE,KEY=VALUE``; the name is a key of `FAMILIES` (``-`` may stand for ``_``), the keys
        are arguments of its generator. ``batch`` is written ``64`` or ``8x8``.

    Raises
    ------
    ValueError
        Unknown family or argument (with the nearest known one), a value of the wrong kind, or one that the family
        refuses.

    Examples
    --------
    >>> game_from_spec("cyclic:n=5,margin=0.8").n
    5
    """
    name, _, listed = text.partition(":")
    key = name.strip().replace("-", "_")
    if key not in FAMILIES:
        raise ValueError(f"unknown family of games {name.strip()!r}; {_nearest(key, list(FAMILIES))}")
    family = FAMILIES[key]
    arguments: dict[str, Any] = {}
    for part in arguments_of(text, _example(family)):
        argument, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise ValueError(f"{part!r} is not KEY=VALUE; write for example {_example(family)}")
        if argument not in family.parameters:
            raise ValueError(
                f"family {key} has no argument {argument!r}; {_nearest(argument, list(family.parameters))}"
            )
        if argument in arguments:
            raise ValueError(f"argument {argument!r} is given twice")
        arguments[argument] = _value(argument, value, family.parameters[argument])
    try:
        return family.make(**arguments)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def arguments_of(text: str, example: str) -> list[str]:
    """The parts between the commas behind the colon of ``NAME:KEY=VALUE,...``; none where there is no colon.

    Parameters
    ----------
    text, example : str
        The example is for the message.

    Raises
    ------
    ValueError
        Nothing stands before, between or behind the commas, or behind the colon.
    """
    _, colon, listed = text.partition(":")
    parts = [part.strip() for part in listed.split(",")] if colon else []
    if not all(parts):
        place = "behind the colon" if len(parts) == 1 else f"at comma {max(parts.index(''), 1)}"
        raise ValueError(f"{text!r} has no KEY=VALUE {place}; write for example {example}")
    return parts


def is_spec(text: str) -> bool:
    """Whether a text names a family of games (rightly or with a slip) rather than a file."""
    name = text.partition(":")[0].strip()
    return name.replace("-", "_") in FAMILIES or (name != "" and not set(name) & set("./\\"))


def _value(argument: str, value: str, default: Any) -> Any:
    """Read a value in the type of the argument's default."""
    kind: type = type(default)
    try:
        if kind is tuple:
            return tuple(int(axis) for axis in value.lower().split("x"))
        return kind(value)
    except ValueError:
        expected = {int: "an integer", float: "a number", tuple: "sizes such as 64 or 8x8"}[kind]
        raise ValueError(f"{argument} is {value!r}, but must be {expected}") from None


def _example(family: Family) -> str:
    shown = [f"{name}={value}" for name, value in family.parameters.items() if value != ()]
    return f"{family.name}:{','.join(shown)}" if shown else family.name


def _nearest(word: str, known: list[str]) -> str:
    """``did you mean ...?`` where something is near, else the list."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
