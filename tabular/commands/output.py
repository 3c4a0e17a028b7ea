"""What every command prints and writes: tables within 100 columns, numbers, JSON, files that replace the old at once.

Nothing here knows a game; no shapes.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import tempfile
import textwrap
import threading
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nashpo.core.store import replace_file

WIDTH = 100
"""No line of a table is wider, in columns of a terminal."""
GAP = "  "
FIGURE_KINDS = (".png", ".svg", ".pdf")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, indent: str = "  ") -> str:
    """Aligned columns under a header.

    Parameters
    ----------
    header : sequence of str
    rows : sequence of rows of str
    left : int
        That many columns are text and aligned left; the others are numbers and aligned right.
    indent : str

    Returns
    -------
    str
        No line wider than `WIDTH`: the widest text column gives way, by an ellipsis.
    """
    cells = [[clean(cell) for cell in row] for row in (header, *rows)]
    widths = [max(columns(row[k]) for row in cells) for k in range(len(header))]
    spare = WIDTH - len(indent) - len(GAP) * (len(widths) - 1)
    while sum(widths) > spare:
        widest = max(range(left) if left else range(len(widths)), key=lambda k: widths[k])
        if widths[widest] <= 4:
            break
        widths[widest] = max(4, widths[widest] - (sum(widths) - spare))
    lines = []
    for row in cells:
        padded = [pad(cell, width, k < left) for k, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append((indent + GAP.join(padded)).rstrip())
    return "\n".join(lines)


def pairs(rows: Sequence[tuple[str, str]], indent: str = "  ") -> str:
    """Labels and what is said of them, the latter wrapped within `WIDTH`."""
    width = max(columns(label) for label, _ in rows)
    lines = []
    for label, text in rows:
        first = indent + pad(label, width, True) + GAP
        lines.append(paragraph(text, first, " " * (len(indent) + width + len(GAP))))
    return "\n".join(lines)


def paragraph(text: str, first: str = "", rest: str = "") -> str:
    """Text wrapped within `WIDTH`; ``first`` and ``rest`` begin its first line and the others."""
    filled = textwrap.fill(
        clean(text), WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=True
    )
    return filled or first.rstrip()


def pad(text: str, width: int, left: bool) -> str:
    """Text in a column of a width, cut with an ellipsis where it is longer."""
    if columns(text) > width:
        while columns(text) > width - 1:
            text = text[:-1]
        text += "…"
    blank = " " * (width - columns(text))
    return text + blank if left else blank + text


def columns(text: str) -> int:
    """Columns of a terminal that a text takes: wide letters of East Asian scripts take two, combining marks none."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def clean(text: str) -> str:
    """Control characters, which a name from a file may hold, as '?': a terminal would obey them."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def number(value: Any, digits: int = 4) -> str:
    """A number for a table: short, with an exponent where it is very small or large."""
    x = float(value)
    if math.isnan(x):
        return "-"
    return "0" if x == 0 else f"{x:.{digits}g}"


def probability(value: Any) -> str:
    """A probability with six digits after the point, or with an exponent below 1e-4; 1e-16 is not 0."""
    x = float(value)
    return f"{x:.6f}" if x == 0 or x >= 1e-4 or math.isnan(x) else f"{x:.2e}"


def json_text(report: Mapping[str, Any]) -> str:
    """Strict JSON, a line for every key of the outermost object; numbers that are not finite become null."""
    entries = (f"  {_dumped(str(key))}: {_dumped(_plain(value))}" for key, value in report.items())
    return "{\n" + ",\n".join(entries) + "\n}"


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def writable(path: str, kinds: Sequence[str] = ()) -> Path:
    """The path of a file to write, tried before any long work.

    Raises
    ------
    ValueError
        A folder of that name, a folder that is not there or cannot be written, or a suffix that is none of ``kinds``.
    """
    target = Path(path)
    if kinds and target.suffix.lower() not in kinds:
        raise ValueError(f"{path}: unknown kind of file {target.suffix!r}; give {', '.join(kinds)}")
    if target.is_dir():
        raise ValueError(f"{path}: is a directory, not a file")
    _try_folder(target.parent, path)
    return target


def writable_folder(path: str) -> Path:
    """The path of a folder to write to, made where it is not there, and tried.

    Raises
    ------
    ValueError
    """
    target = Path(path)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"{path}: is a file, not a directory") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror})") from None
    _try_folder(target, path)
    return target


def _try_folder(folder: Path, shown: str) -> None:
    if not folder.is_dir():
        raise ValueError(f"{shown}: cannot be written: there is no folder {folder}; make it first")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{shown}: cannot be written ({error.strerror})") from None


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure in the kind of its suffix, in place of the old file at once."""
    from nashpo.figures import style

    buffer = io.BytesIO()
    with style.apply():
        figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=style.PNG_DPI)
    replace_file(path, buffer.getvalue())


def save_arrays(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Write an .npz, in place of the old file at once."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    replace_file(path, buffer.getvalue())


def bar(total: int, what: str, unit: str) -> tqdm:
    """A progress bar on a terminal, nothing in a pipe."""
    return tqdm(total=total, desc=what, unit=unit, disable=not sys.stderr.isatty(), leave=False, dynamic_ncols=True)


@contextmanager
def working(what: str, quiet: float = 1.0) -> Iterator[None]:
    """The time that a single long computation takes, shown on a terminal once it took ``quiet`` seconds."""
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()

    def show() -> None:
        if ended.wait(quiet):
            return
        with tqdm(desc=what, bar_format="{desc} ... {elapsed}", leave=False) as shown:
            shown.start_t -= quiet
            while not ended.wait(0.25):
                shown.refresh()

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def say(text: str = "") -> None:
    """Print a line or several."""
    print(text)


def note(text: str) -> None:
    """A remark on stderr, so that it does not mix with ``--json``."""
    print(f"nashpo: {text}", file=sys.stderr)


def cores() -> int:
    """Cores that this process may use."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
