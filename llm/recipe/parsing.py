"""Data as YAML has them made typed dataclasses, and back. A mistake is told with its place, its value and the mend.

`read` follows a dataclass's annotations. What an annotation cannot say stands in the metadata of a field: ``tagged``,
one of several dataclasses by a key; ``read``, a function of value and place, and its ``shorthand``; ``key``, the name
in YAML where it is another. A dataclass with a ``SHORTHAND`` may be written as the value of that one field. Places are
the keys from the top, joined by dots.
"""

import enum
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from nashpo.core.cli import suggestion
from nashpo.llm.recipe.yaml_text import shown

# ---------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Tagged:
    """One of several dataclasses, told apart by a key.

    Parameters
    ----------
    tag : str
        The key, as ``engine``.
    registry : str
        ``module:NAME`` of the mapping from tags to dataclasses, imported when it is needed.
    default : str, optional
        The tag where none is written.
    """

    tag: str
    registry: str
    default: str | None = None

    def kinds(self) -> Mapping[str, type]:
        """The dataclasses by their tags."""
        found: Mapping[str, type] = imported(self.registry)
        return found

    def read(self, value: Any, place: str) -> Any:
        """The dataclass that the mapping names, read."""
        if isinstance(value, str):
            value = {self.tag: value}
        if not isinstance(value, Mapping):
            raise _wrong(place, value, f"a mapping with the key {self.tag!r}")
        kinds = self.kinds()
        name = value.get(self.tag, self.default)
        at = joined(place, self.tag)
        if name is None:
            raise ValueError(f"{at} is missing; known: {', '.join(kinds)}")
        if name not in kinds:
            raise ValueError(f"{at} = {shown(name)} is unknown; {suggestion(str(name), kinds)}")
        return read(kinds[name], {k: v for k, v in value.items() if k != self.tag}, place)

    def dump(self, value: Any) -> dict[str, Any]:
        """The mapping that `read` makes the value from."""
        (name,) = (name for name, kind in self.kinds().items() if kind is type(value))
        return {self.tag: name, **dump(value)}


def imported(target: str) -> Any:
    """What ``module:NAME`` names, imported now."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def joined(place: str, key: str) -> str:
    """The place of a key."""
    return f"{place}.{key}" if place else key


def read(kind: Any, value: Any, place: str = "") -> Any:
    """A value of a type.

    Parameters
    ----------
    kind
        A dataclass, a simple type, ``X | Y``, ``list[X]``, ``tuple[X, ...]``, ``dict[str, X]``, ``Literal`` or ``Any``.
    value
        Of YAML: mappings, lists, text, numbers, truth values, None.
    place : str
        For messages.

    Raises
    ------
    ValueError
        Unknown, missing or wrong; names place and value, and the nearest key or choice.
    """
    if kind is Any:
        return value
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _read_union(get_args(kind), value, place)
    if origin is typing.Literal:
        return _read_choice(get_args(kind), value, place)
    if is_dataclass(kind):
        return _read_fields(kind, value, place)
    reader = _SIMPLE.get(origin or kind)
    if reader is None:
        raise _wrong(place, value, f"a {getattr(kind, '__name__', kind)}, which YAML cannot hold")
    return reader(get_args(kind), value, place)


def _read_union(members: Sequence[Any], value: Any, place: str) -> Any:
    if value is None and type(None) in members:
        return None
    choices = [m for m in members if isinstance(m, type) and issubclass(m, enum.Enum)]
    if choices and isinstance(value, str):
        return _read_choice([str(choice.value) for choice in choices[0]], value, place)
    members = [m for m in members if m is not type(None) and _readable(m)]
    if len(members) == 1:
        return read(members[0], value, place)
    for member in members:
        try:
            return read(member, value, place)
        except ValueError:
            continue
    raise _wrong(place, value, " or ".join(_named(m) for m in members))


def _read_choice(choices: Sequence[Any], value: Any, place: str) -> Any:
    if value not in choices:
        mend = suggestion(str(value), [str(choice) for choice in choices], "it must be one of")
        raise ValueError(f"{place} = {shown(value)} is unknown; {mend}")
    return value


def _readable(kind: Any) -> bool:
    return kind is Any or is_dataclass(kind) or (get_origin(kind) or kind) in {*_SIMPLE, typing.Literal}


def _read_fields(kind: Any, value: Any, place: str) -> Any:
    own = {yaml_key(f): f for f in fields(kind) if f.init}
    shorthand = getattr(kind, "SHORTHAND", None)
    if not isinstance(value, Mapping):
        if shorthand is None or value is None:
            raise _wrong(place, value, f"a mapping of {', '.join(own)}")
        value = {shorthand: value}
    for key in value:
        if key not in own:
            raise ValueError(f"unknown key {joined(place, str(key))}; {suggestion(str(key), own)}")
    hints = get_type_hints(kind)
    found = {}
    for key, f in own.items():
        if key in value:
            found[f.name] = _read_field(f, hints[f.name], value[key], joined(place, key))
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{joined(place, key)} is missing{_help(f)}")
    try:
        return kind(**found)
    except (ValueError, TypeError) as error:
        # A check that knows its place is left alone.
        known = any(str(error).startswith(start) for start in (f"{place}.", f"{place} ", f"{place}:")) or not place
        raise ValueError(str(error) if known else f"{place}: {error}") from None


def _read_field(f: Field[Any], hint: Any, value: Any, place: str) -> Any:
    optional = type(None) in get_args(hint)
    if value is None and (optional or f.metadata.get("tagged")):
        return f.default if f.default is not MISSING else None
    if (tagged := f.metadata.get("tagged")) is not None:
        return tagged.read(value, place)
    if (reader := f.metadata.get("read")) is not None:
        return reader(value, place)
    return read(hint, value, place)


def yaml_key(f: Field[Any]) -> str:
    """What a field is called in YAML."""
    key: str = f.metadata.get("key", f.name)
    return key


def _help(f: Field[Any]) -> str:
    return f": {f.metadata['help']}" if "help" in f.metadata else ""


def _wrong(place: str, value: Any, wanted: str) -> ValueError:
    return ValueError(f"{place or 'the recipe'} = {shown(value)} must be {wanted}")


def _read_bool(_: Any, value: Any, place: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(place, value, "true or false")
    return value


def _read_int(_: Any, value: Any, place: str) -> int:
    if isinstance(value, float) and value.is_integer():
        raise _wrong(place, value, f"a whole number: write {int(value)}")
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(place, value, "a whole number")
    return value


def _read_float(_: Any, value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(place, value, "a number")
    return float(value)


def _read_str(_: Any, value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise _wrong(place, value, "text" + ("" if value is None else ": put it in quotes if it is meant so"))
    return value


def _read_path(_: Any, value: Any, place: str) -> Path:
    if not isinstance(value, str) or not value:
        raise _wrong(place, value, "a path")
    return Path(value).expanduser()


def _read_list(inner: Sequence[Any], value: Any, place: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise _wrong(place, value, "a list")
    return [read(inner[0] if inner else Any, item, f"{place}[{i}]") for i, item in enumerate(value)]


def _read_tuple(inner: Sequence[Any], value: Any, place: str) -> tuple[Any, ...]:
    return tuple(_read_list(inner, value, place))


def _read_dict(inner: Sequence[Any], value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(place, value, "a mapping")
    for key in value:
        if not isinstance(key, str):
            raise ValueError(f"{place} has the key {shown(key)}, which is no text: put it in quotes")
    kind = inner[1] if len(inner) == 2 else Any
    return {key: read(kind, item, joined(place, key)) for key, item in value.items()}


_SIMPLE: dict[Any, Any] = {
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: _read_str,
    Path: _read_path,
    list: _read_list,
    tuple: _read_tuple,
    dict: _read_dict,
}
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}


def _named(kind: Any) -> str:
    return _NAMES.get(get_origin(kind) or kind, "a list" if get_origin(kind) in (list, tuple) else "a mapping")


# ----------------------------------------------------------------------------------------------------------- writing


def dump(value: Any) -> Any:
    """What `read` makes the value from, as mappings, lists, text, numbers, truth values and None."""
    if is_dataclass(value) and not isinstance(value, type):
        found = {}
        for f in fields(value):
            inner = getattr(value, f.name)
            tagged = f.metadata.get("tagged")
            found[yaml_key(f)] = tagged.dump(inner) if tagged is not None and inner is not None else dump(inner)
        return found
    if isinstance(value, Mapping):
        return {key: dump(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [dump(inner) for inner in value]
    if isinstance(value, enum.Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two mappings of `dump`, a line per key: ``rule.eta: 1.0 -> 2.0``.

    A key that only one of them has is ``(not there)`` in the other.
    """
    before, after = dict(_leaves(old)), dict(_leaves(new))
    keys = dict.fromkeys([*before, *after])
    return [
        f"{key}: {before.get(key, '(not there)')} -> {after.get(key, '(not there)')}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _leaves(value: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        at = joined(place, str(key))
        if isinstance(inner, Mapping) and inner:
            yield from _leaves(inner, at)
        else:
            yield at, json.dumps(inner, ensure_ascii=False)
