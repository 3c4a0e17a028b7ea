"""The rule of a recipe: ``{name: onpo, eta: 100}``, read by the fields of the rule's own dataclass.

A step size that changes with the iteration t is a mapping, ``eta: {schedule: power, scale: 2, exponent: 1, shift: 2}``
or ``eta: {schedule: table, values: [1.0, 0.5]}``. A rule of one's own is named by ``module:Class``.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from nashpo.core.cli import suggestion
from nashpo.core.rules import RULES, Rule
from nashpo.core.schedules import Coef, Power, Table
from nashpo.llm.recipe.parsing import Tagged, dump, imported, joined, read

SCHEDULES: dict[str, type] = {"power": Power, "table": Table}
_SCHEDULE = Tagged("schedule", "nashpo.llm.recipe.rules:SCHEDULES")


def read_spec(value: Any, place: str) -> dict[str, Any]:
    """The canonical mapping of a rule: its name and all its hyperparameters.

    Raises
    ------
    ValueError
        An unknown rule or hyperparameter (with the nearest name), a missing one, or what the rule itself refuses.
    """
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ValueError(f"{place} must be a mapping with a name, as {{name: onpo, eta: 100}}; known: {_known()}")
    kind = _kind(value["name"], joined(place, "name"))
    found: dict[str, Any] = {}
    own = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]  # checked by _kind
    hints = get_type_hints(kind)
    for key, inner in value.items():
        if key == "name":
            continue
        if key not in own:
            raise ValueError(f"unknown key {joined(place, str(key))}; {suggestion(str(key), own)}")
        found[key] = _read_coefficient(hints[key], inner, joined(place, key))
    rule = _built(kind, found, place)
    return {"name": value["name"], **{name: _dumped(getattr(rule, name)) for name in own}}


def build(spec: Mapping[str, Any]) -> Rule:
    """The rule of a canonical mapping."""
    kind = _kind(spec["name"], "rule.name")
    hints = get_type_hints(kind)
    return _built(
        kind, {k: _read_coefficient(hints[k], v, f"rule.{k}") for k, v in spec.items() if k != "name"}, "rule"
    )


def _known() -> str:
    return ", ".join(RULES)


def _kind(name: str, place: str) -> type[Rule]:
    if name in RULES:
        return RULES[name]
    if ":" not in name:
        raise ValueError(f"{place} = {name!r} is no rule; {suggestion(name, RULES)}")
    try:
        kind: Any = imported(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{place} = {name!r} cannot be imported: {error}") from None
    if not (isinstance(kind, type) and issubclass(kind, Rule) and is_dataclass(kind)):
        raise ValueError(f"{place} = {name!r} is no dataclass that derives from nashpo.core.rules.Rule")
    return kind


def _built(kind: type[Rule], found: dict[str, Any], place: str) -> Rule:
    try:
        return kind(**found)
    except (ValueError, TypeError) as error:
        missing = [f.name for f in fields(kind) if f.name not in found]  # type: ignore[arg-type]
        unnamed = "required positional argument" in str(error) or "required keyword-only" in str(error)
        problem = f"{', '.join(missing)} is missing for {kind.name or kind.__name__}" if unnamed else str(error)
        raise ValueError(f"{place}: {problem}") from None


def _read_coefficient(hint: Any, value: Any, place: str) -> Any:
    if hint == Coef:
        return _SCHEDULE.read(value, place) if isinstance(value, Mapping) else read(float, value, place)
    return read(hint, value, place)


def _dumped(value: Any) -> Any:
    return _SCHEDULE.dump(value) if isinstance(value, Power | Table) else dump(value)
