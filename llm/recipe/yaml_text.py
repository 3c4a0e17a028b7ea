"""YAML documents as data and back: safely, no key twice, 1e-6 as a number, mistakes told with their line."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
"""Numbers such as 1e-6, which YAML 1.1 reads as text."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml is not typed here
    """Safe; refuses a key that stands twice, where YAML would keep the last one silently."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for name, _ in node.value:
            if name.value in seen and name.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name.value!r} stands twice", name.start_mark
                )
            seen.add(name.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # yaml is not typed here
    """Safe; puts text in quotes that `_Loader` would read as a number."""


for _way in (_Loader, _Dumper):
    _way.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_yaml(text: str, place: str) -> Any:
    """The data of one YAML document.

    Raises
    ------
    ValueError
        Names the place and the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ValueError(f"{place}{line}: {problem}") from None


def parse_mapping(text: str, place: str) -> dict[str, Any]:
    """A YAML document that is a mapping.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    found = parse_yaml(text, place)
    if not isinstance(found, dict):
        raise ValueError(f"{place} holds {shown(found)}, but must be a mapping of keys to values")
    return found


def to_yaml(value: Mapping[str, Any]) -> str:
    """A mapping as a YAML document, keys in their order."""
    return str(yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
