"""Preference pairs from a Parquet file, through pyarrow, which is imported only here."""

import importlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nashpo.tabular.preference_columns import Codes, Columns, Rows, split_conversations, text_of

_MOST_ROWS = 1 << 19
_LEAST_ROWS = 1 << 12
_BATCH_BYTES = 1 << 28
_BUFFER_BYTES = 1 << 20


def parquet_rows(path: Path, ignore: Collection[str], prompts: Codes, responses: Codes) -> Iterator[Rows]:
    """Read rows, entering every new text into ``prompts`` or ``responses``.

    Text columns are hashed by Arrow while they are decoded, so that Python sees every distinct text once a batch;
    conversations are read row by row.

    Raises
    ------
    ValueError
        pyarrow is not installed; the file is truncated or damaged (after which row); columns of a wrong type; a cell
        that is missing.
    """
    pa, file = _open(path)
    with file:
        columns = Columns.of(file.schema_arrow.names, ignore)
        types = {name: file.schema_arrow.field(name).type for name in columns.read}
        _check_types(pa, columns, types)
        done = 0
        batches = _batches(file, columns.read)
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError):
                raise ValueError(f"the Parquet file is truncated or damaged after row {done}; copy it again") from None
            if batch is None:
                return
            yield _rows(pa, batch, columns, done, prompts, responses)
            done += batch.num_rows


def _batches(file: Any, names: list[str]) -> Iterator[Any]:
    """One row group after another: an iterator over all of them would keep what it has read."""
    for group in range(file.metadata.num_row_groups):
        info = file.metadata.row_group(group)
        rows = int(np.clip(_BATCH_BYTES * info.num_rows / max(info.total_byte_size, 1), _LEAST_ROWS, _MOST_ROWS))
        yield from file.iter_batches(batch_size=rows, row_groups=[group], columns=names)


def _open(path: Path) -> tuple[Any, Any]:
    try:
        pa, pq = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError("reading Parquet needs pyarrow: install nashpo[parquet], or write JSON lines") from None
    options = {"buffer_size": _BUFFER_BYTES, "page_checksum_verification": True}
    try:
        with pq.ParquetFile(path, **options) as file:
            text = [field.name for field in file.schema_arrow if _is_text(pa, field.type)]
        return pa, pq.ParquetFile(path, read_dictionary=text, **options)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError):
            raise
        raise ValueError(
            "the Parquet file is truncated or damaged before row 1: its index, which is written last, is missing or"
            " unreadable; copy it again"
        ) from None


def _is_text(pa: Any, kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_conversation(pa: Any, kind: Any) -> bool:
    return bool((pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_struct(kind.value_type))


def _check_types(pa: Any, columns: Columns, types: dict[str, Any]) -> None:
    for name in columns.texts:
        if not _is_text(pa, types[name]) and not _is_conversation(pa, types[name]):
            raise ValueError(f"column {name} holds {types[name]}; text or lists of messages are needed")
    if _is_text(pa, types["chosen"]) != _is_text(pa, types["rejected"]):
        raise ValueError("contradictory: one of chosen and rejected holds text, the other lists of messages")
    for name in columns.read[len(columns.texts) :]:
        kind = types[name]
        numeric = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean, pa.types.is_decimal)
        if not any(is_kind(kind) for is_kind in numeric):
            raise ValueError(f"column {name} holds {kind}; numbers are needed")


def _rows(pa: Any, batch: Any, columns: Columns, done: int, prompts: Codes, responses: Codes) -> Rows:
    for name in columns.read:
        if batch.column(name).null_count:
            at = int(np.argmax(batch.column(name).is_null().to_numpy(zero_copy_only=False)))
            raise ValueError(f"row {done + at + 1}: {name} is missing")
    if columns.prompt:
        prompt = _codes(pa, batch.column("prompt"), "prompt", prompts, done)
        chosen, rejected = (_codes(pa, batch.column(name), name, responses, done) for name in ("chosen", "rejected"))
    else:
        conversations = (batch.column("chosen").to_pylist(), batch.column("rejected").to_pylist())
        prompt, chosen, rejected = _split(*conversations, done, prompts, responses)
    return Rows(
        prompt,
        chosen,
        rejected,
        None if columns.label is None else _numbers(pa, batch.column(columns.label)),
        None if not columns.weight else _numbers(pa, batch.column("weight")),
        np.arange(done + 1, done + batch.num_rows + 1),
    )


def _codes(pa: Any, column: Any, name: str, table: Codes, done: int) -> np.ndarray:
    """Codes of a column's texts or conversations."""
    if _is_conversation(pa, column.type):
        found = np.empty(len(column), np.int64)
        for k, value in enumerate(column.to_pylist()):
            try:
                found[k] = table[text_of(value, name)]
            except ValueError as error:
                raise ValueError(f"row {done + k + 1}: {error}") from None
        return found
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    distinct = np.fromiter((table[text] for text in column.dictionary.to_pylist()), np.int64, len(column.dictionary))
    return distinct[column.indices.to_numpy()]


def _split(
    chosen: list[Any], rejected: list[Any], done: int, prompts: Codes, responses: Codes
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = np.empty((3, len(chosen)), np.int64)
    for k, pair in enumerate(zip(chosen, rejected, strict=True)):
        try:
            prompt, better, worse = split_conversations(*pair)
        except ValueError as error:
            raise ValueError(f"row {done + k + 1}: {error}") from None
        found[:, k] = prompts[prompt], responses[better], responses[worse]
    return found[0], found[1], found[2]


def _numbers(pa: Any, column: Any) -> np.ndarray:
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)
