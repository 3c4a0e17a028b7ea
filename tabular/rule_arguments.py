"""Rules from the command line: ``--rule onpo --eta 0.1`` becomes ``ONPO(eta=0.1)``.

The options are the fields of the rules' dataclasses, each read in the type of its annotation, so that a rule added to
`RULES` has its options here without more code. No arrays, hence no shapes.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any

from nashpo.core.cli import suggestion
from nashpo.core.rules import RULES, Rule
from nashpo.core.schedules import Coef, Power

SCHEDULE = "power:SCALE,EXPONENT,SHIFT, which is SCALE/(t + SHIFT)^EXPONENT at t = 0, 1, ... (left out, both are 1)"
"""A line of help for schedules."""
HELP = {
    "eta": "step size, multiplies win rates: a number, 'tuned' (the minimizer of the rule's bound for these steps), or"
    f" {SCHEDULE}",
    "tau": "KL weight of the regularized game, > 0",
    "inner": "iterations between two moves of the reference",
    "variant": "form of the rule: two_sequences, one_step or leader",
    "lam": "weight of the data in the critic's objective, >= 0",
    "R": "largest reward, > 0",
}
"""A line of help for every hyperparameter."""

TUNED = "tuned"
Tuner = Callable[[Rule], Rule]
PLAYABLE: dict[str, type[Rule]] = {name: kind for name, kind in RULES.items() if not kind.needs_data}
"""The rules that a game can answer."""


def rule_class(name: str) -> type[Rule]:
    """The rule of a name (case does not matter, ``_`` stands for ``-``).

    Raises
    ------
    ValueError
        On an unknown name; suggests the nearest.
    """
    key = name.strip().lower().replace("_", "-")
    if key not in RULES:
        raise ValueError(f"unknown rule {name!r}; {suggestion(key, RULES, 'the rules are')}")
    return RULES[key]


def playable_class(name: str) -> type[Rule]:
    """`rule_class` of a rule that a game can answer.

    Raises
    ------
    ValueError
        Also where the rule learns from preference data only.
    """
    key = name.strip().lower().replace("_", "-")
    if key not in RULES:
        raise ValueError(f"unknown rule {name!r}; {suggestion(key, PLAYABLE, 'the rules are')}")
    kind = RULES[key]
    if kind.needs_data:
        raise ValueError(
            f"{kind.name} learns from preference data, not from a game: nashpo offline DATA --rule {kind.name}"
        )
    return kind


def hyperparameters(kind: type[Rule]) -> dict[str, Any]:
    """Names and annotated types of a rule's hyperparameters, in order."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}  # type: ignore[arg-type]


def required(kind: type[Rule]) -> list[str]:
    """Hyperparameters without a default."""
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    missing = dataclasses.MISSING
    return [field.name for field in fields if field.default is missing and field.default_factory is missing]


def add_rule_arguments(parser: argparse.ArgumentParser) -> None:
    """``--rule`` and one option per hyperparameter of any rule, all read as text."""
    group = parser.add_argument_group("rule")
    group.add_argument("--rule", required=True, metavar="NAME", help=f"one of {', '.join(PLAYABLE)}")
    for name in all_hyperparameters():
        users = [rule for rule, kind in PLAYABLE.items() if name in hyperparameters(kind)]
        for_whom = "" if len(users) > len(PLAYABLE) // 2 else f" ({', '.join(users)})"
        text = f"{HELP.get(name, 'hyperparameter')}{for_whom}".replace("%", "%%")
        group.add_argument(option(name), dest=name, metavar="VALUE", help=text)


def all_hyperparameters() -> list[str]:
    """Every hyperparameter of every rule that a game can answer, each once."""
    return list(dict.fromkeys(name for kind in PLAYABLE.values() for name in hyperparameters(kind)))


def given_hyperparameters(options: argparse.Namespace) -> dict[str, str]:
    """The hyperparameters that were given, as text."""
    named = ((name, getattr(options, name, None)) for name in all_hyperparameters())
    return {name: text for name, text in named if text is not None}


def rule_from(name: str, given: Mapping[str, str], tuner: Tuner | None = None) -> Rule:
    """The rule that a command line names.

    Parameters
    ----------
    name : str
        A key of `PLAYABLE`.
    given : mapping hyperparameter -> text
    tuner : callable (rule) -> rule, optional
        Chooses the step size of ``--eta tuned``: `nashpo.tabular.play.tune` for a game and a number of steps.

    Raises
    ------
    ValueError
        Unknown rule (with the nearest), a hyperparameter that is missing or that the rule does not have, text that is
        no value, or a value that the rule refuses.
    """
    kind: Any = playable_class(name)
    kinds = hyperparameters(kind)
    known = ", ".join(option(k) for k in kinds) or "none"
    foreign = [option(k) for k in given if k not in kinds]
    if foreign:
        raise ValueError(f"rule '{kind.name}' has no {' and no '.join(foreign)}; its hyperparameters: {known}")
    missing = [k for k in required(kind) if k not in given]
    if missing:
        told = ", ".join(f"{option(k)} ({HELP[k].partition(':')[0]})" if k in HELP else option(k) for k in missing)
        raise ValueError(f"rule '{kind.name}' needs {told}")
    values = {k: _read(k, kinds[k], text) for k, text in given.items() if text != TUNED}
    if len(values) == len(given):
        return kind(**values)
    if tuner is None or given.get("eta") != TUNED or kinds["eta"] != Coef:
        wrong = next(k for k in given if given[k] == TUNED)
        raise ValueError(f"{option(wrong)} cannot be '{TUNED}' here: give a number")
    # Any legal step makes the rule whose `tuned` replaces it; 1/(1 + tau) satisfies eta * tau <= 1.
    return tuner(kind(eta=1 / (1 + max(values.get("tau", 0.0), 0.0)), **values))


def described(rule: Rule) -> dict[str, Any]:
    """Name and hyperparameters for JSON; a schedule becomes its text."""
    fields = dataclasses.fields(rule)  # type: ignore[arg-type]
    values = {field.name: getattr(rule, field.name) for field in fields}
    return {"name": rule.name} | {k: repr(v) if callable(v) else v for k, v in values.items()}


def in_words(rule: Rule) -> str:
    """Name and hyperparameters for a heading, numbers to four digits."""
    values = {k: v for k, v in described(rule).items() if k != "name"}
    shown = [f"{k} = {v:.4g}" if isinstance(v, float) else f"{k} = {v}" for k, v in values.items()]
    return ", ".join([rule.name, *shown])


def option(name: str) -> str:
    """The option of a hyperparameter, ``--eta``."""
    return "--" + name.replace("_", "-")


def number(name: str, text: str) -> float:
    """A finite float.

    Raises
    ------
    ValueError
    """
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{option(name)} is {text!r}, not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{option(name)} is {text}; it must be a finite number")
    return value


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{option(name)} is {text!r}, not a whole number") from None


def coefficient(name: str, text: str, word: str = TUNED) -> Coef:
    """A number, or a schedule ``power:SCALE,EXPONENT,SHIFT``.

    Parameters
    ----------
    name, text : str
    word : str
        What the command accepts instead, for the message.

    Raises
    ------
    ValueError
    """
    kind, colon, listed = text.partition(":")
    if not colon:
        try:
            float(text)
        except ValueError:
            raise ValueError(
                f"{option(name)} is {text!r}; give a number, '{word}', or power:SCALE,EXPONENT,SHIFT"
            ) from None
        return number(name, text)
    parts = listed.split(",")
    if kind != "power" or not 1 <= len(parts) <= 3:
        raise ValueError(f"{option(name)} is {text!r}; a schedule is power:SCALE,EXPONENT,SHIFT, such as power:2,1,2")
    schedule = Power(*(number(name, part) for part in parts))
    if schedule.shift <= 0 or schedule.exponent < 0:
        raise ValueError(f"{option(name)} is {text!r}; SHIFT must be > 0 and EXPONENT >= 0")
    return schedule


READERS: dict[Any, Callable[[str, str], Any]] = {
    float: number,
    int: _whole,
    str: lambda name, text: text.replace("-", "_"),
    Coef: coefficient,
}
"""How the text of a hyperparameter is read, by the type of its annotation."""


def _read(name: str, kind: Any, text: str) -> Any:
    if kind not in READERS:
        raise ValueError(f"{option(name)} cannot be given on the command line (it is a {kind}); use Python")
    return READERS[kind](name, text.strip())
