"""Settings on the command line: ``key.key=value`` put into a recipe's data before they are read."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from nashpo.llm.recipe.parsing import Tagged, joined, yaml_key
from nashpo.llm.recipe.yaml_text import parse_yaml, shown


def override(raw: dict[str, Any], kind: Any, assignment: str) -> None:
    """Set one key of a raw mapping, as ``training.learning_rate=1e-6``; the value is YAML.

    Parameters
    ----------
    raw : dict
        Changed in place.
    kind : dataclass
        What the mapping will be read as: so that a shorthand on the way is written out first.
    assignment : str
        ``key.key=value``. An empty value is null.

    Raises
    ------
    ValueError
        Without ``=``, or if the way leads through a value that is no mapping.
    """
    name, equals, text = assignment.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ValueError(f"override {assignment!r} must be key=value, as rule.eta=100 or training.max_steps=50")
    value = parse_yaml(text, f"override {name}")
    at, place = raw, ""
    for key in keys[:-1]:
        place, kind = joined(place, key), _kind_of(kind, key)
        inner = at.get(key)
        shorthand = _shorthand(kind)
        if inner is None:
            inner = {}
        elif not isinstance(inner, Mapping):
            if shorthand is None:
                raise ValueError(f"override {name}: {place} is {shown(inner)}, which has no keys of its own")
            inner = {shorthand: inner}
        at[key] = at = dict(inner)
    at[keys[-1]] = value


def _kind_of(kind: Any, key: str) -> Any:
    """What is known of the mapping below a key: its dataclass, its `Tagged`, or its shorthand."""
    if not is_dataclass(kind):
        return None
    for f in fields(kind):
        if yaml_key(f) == key:
            if "tagged" in f.metadata or "shorthand" in f.metadata:
                return f.metadata.get("tagged") or f.metadata["shorthand"]
            hint = get_type_hints(kind)[f.name]
            return next((m for m in (get_args(hint) or (hint,)) if is_dataclass(m)), None)
    return None


def _shorthand(kind: Any) -> str | None:
    if isinstance(kind, str):
        return kind
    found: str | None = kind.tag if isinstance(kind, Tagged) else getattr(kind, "SHORTHAND", None)
    return found
