"""Reading a table of numbers from CSV text as people really save it.

Accepted: a byte order mark; comma, semicolon, tab or blank as delimiter; a decimal comma where the delimiter is another
sign; a header row, row labels, or both; fractions such as 1/3. Refused with the row's number: ragged rows, empty cells,
text in the table, repeated names.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
FRACTION = re.compile(r"[+-]?\d+/0*[1-9]\d*")
INTEGER = re.compile(r"[+-]?\d+")

Rows = list[tuple[int, list[str]]]
"""Line numbers and cells."""


@dataclass(frozen=True)
class CsvTable:
    """A table: ``values`` (rows, columns), all integers, floats or fractions, and the labels that stood beside it."""

    values: np.ndarray[Any, Any]
    columns: tuple[str, ...] | None
    rows: tuple[str, ...] | None


def parse_csv(text: str) -> CsvTable:
    """Parse CSV text.

    Raises
    ------
    ValueError
        One line that names the row, and the column where there is one.
    """
    rows = _split(text.removeprefix("\ufeff"))
    if not rows:
        raise ValueError("the file is empty")
    header, body = _take_header(rows)
    labels, body = _take_labels(header, body)
    if not body:
        raise ValueError("the table has a header but no rows")
    width = len(body[0][1])
    for line, cells in body:
        if len(cells) != width:
            raise ValueError(f"row {line} has {len(cells)} columns, the rows before it {width}")
    columns = None
    if header is not None:
        if len(header) == width + 1 and labels is not None:
            header = header[1:]
        if len(header) != width:
            raise ValueError(f"the header names {len(header)} columns, the rows have {width}")
        columns = _distinct(header, "header")
    names = None if labels is None else _distinct(labels, "row labels")
    return CsvTable(_numbers(body), columns, names)


def _split(text: str) -> Rows:
    """Rows of stripped cells, split at the delimiter that gives every row the same number of columns."""
    candidates = [delimiter for delimiter in (";", "\t", ",") if delimiter in text]
    tables = [_read(text, delimiter) for delimiter in candidates]
    if not all(tables):
        return []  # nothing but delimiters
    for delimiter, rows in zip(candidates, tables, strict=True):
        widths = {len(cells) for _, cells in rows[1:]} or {len(rows[0][1])}
        if len(widths) == 1 and max(widths) > 1 and abs(len(rows[0][1]) - max(widths)) <= 1:
            return _decimal_points(rows) if delimiter != "," else rows
    if tables:  # ragged: the delimiter that was meant splits most of the rows
        meant = [k for k, rows in enumerate(tables) if sum(len(cells) > 1 for _, cells in rows) > len(rows) / 2]
        chosen = meant[0] if meant else 0
        return _decimal_points(tables[chosen]) if candidates[chosen] != "," else tables[chosen]
    return [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _read(text: str, delimiter: str) -> Rows:
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, skipinitialspace=True)
    rows = []
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                rows.append((reader.line_num, stripped))
    except csv.Error as error:
        raise ValueError(f"row {reader.line_num}: {error}") from None
    return rows


def _decimal_points(rows: Rows) -> Rows:
    def point(cell: str) -> str:
        changed = cell.replace(",", ".", 1)
        return changed if NUMBER.fullmatch(changed) else cell

    return [(line, [point(cell) for cell in cells]) for line, cells in rows]


def _is_number(cell: str) -> bool:
    return bool(NUMBER.fullmatch(cell) or FRACTION.fullmatch(cell))


def _take_header(rows: Rows) -> tuple[list[str] | None, Rows]:
    first = rows[0][1]
    labelled = len(rows) > 1 and _labelled(rows[1:])
    beside_labels = first[1:] if labelled and len(first) == len(rows[1][1]) else first
    if any(cell != "" and not _is_number(cell) for cell in beside_labels):
        return first, rows[1:]
    if first[0] == "" and len(first) > 1 and all(INTEGER.fullmatch(cell) for cell in first[1:]):
        return first, rows[1:]  # an empty corner above numbered rows
    # Numbers as names, as spreadsheets and data frames write them: 0 ... n-1 or 1 ... n above n rows.
    if len(rows) == len(first) + 1 and first in ([str(k + s) for k in range(len(first))] for s in (0, 1)):
        return first, rows[1:]
    return None, rows


def _labelled(body: Rows) -> bool:
    """Whether the first column holds names: some cell of it is text."""
    return any(cells[0] != "" and not _is_number(cells[0]) for _, cells in body)


def _take_labels(header: list[str] | None, body: Rows) -> tuple[list[str] | None, Rows]:
    corner = header is not None and header[0] == "" and all(len(cells) == len(header) for _, cells in body)
    if not body or not (corner or _labelled(body)):
        return None, body
    return [cells[0] for _, cells in body], [(line, cells[1:]) for line, cells in body]


def _distinct(names: list[str], what: str) -> tuple[str, ...]:
    seen: set[str] = set()
    for position, name in enumerate(names, 1):
        if name == "":
            raise ValueError(f"{what}: name {position} is empty")
        if name in seen:
            raise ValueError(f"{what}: the name {name!r} occurs twice; names must be distinct")
        seen.add(name)
    return tuple(names)


def _numbers(body: Rows) -> np.ndarray[Any, Any]:
    for line, cells in body:
        for column, cell in enumerate(cells, 1):
            if not _is_number(cell):
                what = "is empty" if cell == "" else f"is {cell!r}, not a number"
                raise ValueError(f"row {line}, number {column} {what}")
    flat = [cell for _, cells in body for cell in cells]
    if all(INTEGER.fullmatch(cell) for cell in flat):
        values: list[Any] = [int(cell) for cell in flat]
    elif any("/" in cell for cell in flat) and all(_is_finite(cell) for cell in flat):
        values = [Fraction(cell) for cell in flat]
    else:
        values = [float(Fraction(cell)) if "/" in cell else float(cell) for cell in flat]
    return np.array(values).reshape(len(body), len(body[0][1]))


def _is_finite(cell: str) -> bool:
    return cell.lower().lstrip("+-") not in ("nan", "inf", "infinity")
