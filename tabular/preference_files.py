"""Reading preference pairs from a file: prompt, chosen, rejected become wins per prompt.

Shapes: the result is a `PreferenceData` with ``wins`` (prompts, n, n) and a mask where prompts differ in their number
of responses. Responses that repeat within a prompt are identified, so that a finite game per prompt is recovered. Every
error is a `ValueError` of one line that begins with the file's name.
"""

from collections.abc import Collection
from os import PathLike
from pathlib import Path

import numpy as np

from nashpo.tabular.pair_counts import MAX_TABLE_GIB, PairCounts, ReadReport
from nashpo.tabular.preference_arrays import from_arrays
from nashpo.tabular.preference_columns import Codes, Rows
from nashpo.tabular.preference_jsonl import json_rows
from nashpo.tabular.preference_parquet import parquet_rows
from nashpo.tabular.preferences import PreferenceData
from nashpo.tabular.raw_files import named

__all__ = ["ReadReport", "from_arrays", "read_preferences"]

_PARQUET = b"PAR1"
_OTHER_KINDS = {b"PK\x03\x04": "a NumPy or zip archive", b"\x93NUM": "a NumPy array"}
_TABLES = (".csv", ".tsv")


def read_preferences(
    path: str | PathLike[str], *, ignore: Collection[str] = (), max_table_gib: float = MAX_TABLE_GIB
) -> tuple[PreferenceData, ReadReport]:
    """Read preference pairs and reduce them to counts, in chunks: no text is held twice.

    Parameters
    ----------
    path : path
        JSON lines, plain or gzipped, or Parquet (which needs pyarrow, the extra ``nashpo[parquet]``); told by content.
        Columns: ``prompt``, ``chosen``, ``rejected``, each text or a list of messages, or ``chosen`` and ``rejected``
        alone, conversations that begin with the prompt. Optional: ``label`` or ``chosen_probs``, the probability in
        [0, 1] that chosen was preferred (1 where neither is there); ``weight`` >= 0. The columns ``chosen_probs_win``
        and ``chosen_probs_lose``, which are averages over further responses, are read past.
    ignore : collection of str
        Names of further columns to read past; others are refused, so that no misspelt label is lost.
    max_table_gib : float
        Refuse a larger table of wins (prompts × n² × 8 bytes) before it is allocated. Reading and playing
        take about three times this, beside the distinct texts.

    Returns
    -------
    data : PreferenceData
        Prompts, and responses within a prompt, in order of first appearance; conversations as JSON.
    report : ReadReport

    Raises
    ------
    ValueError
        The file is not there, empty, of another kind (CSV, NumPy), truncated or damaged (after which line or row);
        columns that are unknown, missing or contradictory; a line with other columns than the first; a cell of the
        wrong kind; a label outside [0, 1]; a negative weight; no informative pair; every label ½; a table that is too
        large.
    """
    with named(str(path)):
        with Path(path).open("rb") as file:
            start = file.read(4)
        if not start:
            raise ValueError("the file is empty: no preference pairs")
        _refuse_other_kinds(Path(path), start)
        reader, unit = (parquet_rows, "row") if start == _PARQUET else (json_rows, "line")
        prompts, responses, counts = Codes(), Codes(), PairCounts()
        some = False
        for rows in reader(Path(path), ignore, prompts, responses):
            some = True
            _check_numbers(rows, unit)
            counts.add(rows.prompt, rows.chosen, rows.rejected, rows.label, rows.weight)
        if not some:
            raise ValueError("the file holds no preference pairs")
        prompt_texts, response_texts = list(prompts), list(responses)
        return counts.data(prompt_texts.__getitem__, response_texts.__getitem__, max_table_gib=max_table_gib)


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    """Told by content; CSV, which has no sign of its own, by the name of a file that is no JSON."""
    table = "a table of comma- or tab-separated values"
    text = path.suffix.lower() in _TABLES and start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] not in (b"{", b"")
    kind = _OTHER_KINDS.get(start, table if text else None)
    if kind is not None:
        raise ValueError(
            f"is {kind}, and preference pairs are read from JSON lines (an object with prompt, chosen and rejected per"
            " line) or Parquet; save them so. Win rates are a game: nashpo solve or play reads them"
        )


def _check_numbers(rows: Rows, unit: str) -> None:
    for name, values, largest, mend in (
        ("label", rows.label, 1.0, "it is the probability that chosen was preferred, in [0, 1]"),
        ("weight", rows.weight, np.inf, "it must be a finite number >= 0"),
    ):
        if values is None:
            continue
        wrong = ~(np.isfinite(values) & (values >= 0) & (values <= largest))
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ValueError(f"{unit} {rows.places[at]}: the {name} is {values[at]:g}; {mend}")
