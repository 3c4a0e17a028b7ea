"""Bytes of a user's file turned into plain arrays, text or JSON; nothing in a file is ever executed.

Every error is a `ValueError` of one line; under `named` it begins with the file's name.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nashpo.tabular.csv_table import FRACTION

SUFFIXES = ".npy, .npz, .csv, .json, .jsonl or .jsonl.gz"


@contextmanager
def named(path: str) -> Iterator[None]:
    """Put the file's name before what went wrong, in one line."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is a directory, not a file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def split_npz(path: str) -> tuple[Path, str | None]:
    """``FILE.npz:NAME`` in its two parts."""
    head, colon, name = path.rpartition(":")
    if colon and head.lower().endswith(".npz"):
        return Path(head), name
    return Path(path), None


def reader(path: Path, readers: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The reader for a file's suffix."""
    suffix = {".tsv": ".csv", ".txt": ".csv"}.get(path.suffix.lower(), path.suffix.lower())
    if suffix in readers:
        return readers[suffix]
    if not path.exists():
        raise FileNotFoundError(path)
    if path.is_dir():
        raise IsADirectoryError(path)
    raise ValueError(f"unknown kind of file {path.suffix!r}; give {SUFFIXES}")


def read_text(path: Path) -> str:
    """UTF-8 text, with or without a byte order mark; not empty."""
    data = path.read_bytes()
    refuse_pickle(data)
    text = data.decode("utf-8-sig")
    if not text.strip():
        raise ValueError("the file is empty")
    return text


def refuse_pickle(start: bytes) -> None:
    """Refuse a file that starts as pickles of protocol 2 and later do; older ones are text and fail as such."""
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise ValueError("is a pickle, which is never loaded since it could run code; save plain numbers instead")


def load_arrays(path: Path) -> dict[str, NDArray[Any]] | NDArray[Any]:
    """An array from .npy, or all arrays of an .npz by name."""
    with path.open("rb") as file:
        start = file.read(2)
    if not start:
        raise ValueError("the file is empty")
    refuse_pickle(start)
    try:
        # numpy leaves a file open that it opened by name and found damaged.
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except OSError:
        raise
    except Exception as error:
        # Damaged headers make zipfile, zlib and numpy's header parser raise a dozen types, TokenError among them.
        # numpy says "Object arrays cannot be loaded when allow_pickle=False" for a pickle inside its own format.
        if "pickle" in str(error) and start in (b"\x93N", b"PK"):
            raise ValueError(
                "holds Python objects, a pickle, which is never loaded since it could run code; save plain numbers"
            ) from None
        if start in (b"\x93N", b"PK"):
            raise ValueError("is truncated or damaged") from None
        raise ValueError("is not in numpy's format") from None


def read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path), object_pairs_hook=distinct_keys)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError("is nested too deeply for a table") from None


def distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} occurs twice")
        found[key] = value
    return found


def json_numbers(value: Any, place: str = "P") -> Any:
    """Nested lists with fractions ("1/3") and gaps (null, for masked entries) turned into numbers."""
    if isinstance(value, list):
        lengths = [len(entry) if isinstance(entry, list) else -1 for entry in value]
        for row, length in enumerate(lengths):
            if length != lengths[0]:
                raise ValueError(
                    f"{place}[{row}] has {length} entries, {place}[0] has {lengths[0]}".replace("-1", "no")
                )
        return [json_numbers(entry, f"{place}[{k}]") for k, entry in enumerate(value)]
    if value is None:
        return float("nan")
    if isinstance(value, str) and FRACTION.fullmatch(value.strip()):
        return Fraction(value.strip())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise ValueError(f"{place} is {json.dumps(value)[:40]}, not a number")
