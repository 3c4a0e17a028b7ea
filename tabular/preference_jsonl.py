"""Preference pairs from JSON lines, plain or gzipped."""

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from nashpo.tabular.json_lines import text_lines
from nashpo.tabular.preference_columns import Codes, Columns, Rows, split_conversations, text_of
from nashpo.tabular.raw_files import distinct_keys

_CHUNK = 1 << 18
_DECODER = json.JSONDecoder(object_pairs_hook=distinct_keys)  # json.loads would make a new one for every line


def json_rows(path: Path, ignore: Collection[str], prompts: Codes, responses: Codes) -> Iterator[Rows]:
    """Read rows, entering every new text into ``prompts`` or ``responses``.

    Raises
    ------
    ValueError
        A line that is not JSON, no object, or has other columns or other kinds of cells than the first.
    """
    lines = text_lines(path)
    form: _Form | None = None
    buffer = _Buffer()
    for number, line in lines:
        record = _record(number, line)
        try:
            if form is None:
                form = _Form.of(record, ignore)
            prompt, chosen, rejected = form.texts(record)
            if form.columns.label is not None:
                buffer.label.append(_number(record[form.columns.label], form.columns.label))
            if form.columns.weight:
                buffer.weight.append(_number(record["weight"], "weight"))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        buffer.prompt.append(prompts[prompt])
        buffer.chosen.append(responses[chosen])
        buffer.rejected.append(responses[rejected])
        buffer.places.append(number)
        if len(buffer.places) == _CHUNK:
            yield buffer.rows(form.columns)
            buffer = _Buffer()
    if form is not None and buffer.places:
        yield buffer.rows(form.columns)


@dataclass(frozen=True)
class _Form:
    """What the first line has, and so every line must have."""

    columns: Columns
    keys: frozenset[str]
    kinds: tuple[type, ...]
    cells: Callable[[dict[str, Any]], Any]

    @classmethod
    def of(cls, record: dict[str, Any], ignore: Collection[str]) -> "_Form":
        if "responses" in record and "chosen" not in record:
            raise ValueError("these are judged responses and not preference pairs; read them with read_judged")
        columns = Columns.of(list(record), ignore)
        kinds = tuple(type(record[name]) for name in columns.texts)
        if kinds[-1] is not kinds[-2]:
            raise ValueError(f"contradictory: chosen is a {kinds[-2].__name__}, rejected is a {kinds[-1].__name__}")
        return cls(columns, frozenset(record), kinds, itemgetter(*columns.texts))

    def texts(self, record: dict[str, Any]) -> tuple[str, str, str]:
        """Prompt, chosen and rejected of a row."""
        if record.keys() != self.keys:
            lacking, more = sorted(self.keys - record.keys()), sorted(record.keys() - self.keys)
            parts = [f"{word} {', '.join(names)}" for word, names in (("lacks", lacking), ("has", more)) if names]
            raise ValueError(f"{' and '.join(parts)}, unlike the first line: every line needs the same columns")
        cells = self.cells(record)
        if tuple(map(type, cells)) != self.kinds:
            name = next(n for n, c, kind in zip(self.columns.texts, cells, self.kinds) if type(c) is not kind)
            raise ValueError(f"{name} is {json.dumps(record[name])[:40]}, unlike the first line's in kind")
        if not self.columns.prompt:
            return split_conversations(*cells)
        if self.kinds == (str, str, str):
            return cells
        prompt, chosen, rejected = map(text_of, cells, self.columns.texts)
        return prompt, chosen, rejected


@dataclass
class _Buffer:
    prompt: list[int] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    label: list[float] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)

    def rows(self, columns: Columns) -> Rows:
        return Rows(
            np.array(self.prompt, np.int64),
            np.array(self.chosen, np.int64),
            np.array(self.rejected, np.int64),
            np.array(self.label, np.float64) if columns.label else None,
            np.array(self.weight, np.float64) if columns.weight else None,
            np.array(self.places, np.int64),
        )


def _record(number: int, line: str) -> dict[str, Any]:
    try:
        record = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number}: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f'line {number} must be an object such as {{"prompt": ..., "chosen": ..., "rejected": ...}}')
    return record


def _number(value: Any, name: str) -> float:
    if not isinstance(value, int | float):  # true and false are labels too
        raise ValueError(f"{name} is {json.dumps(value)[:40]}, not a number")
    return float(value)
