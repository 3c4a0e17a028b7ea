"""Rows of data files (JSON lines, JSON, Parquet, and what the package `datasets` reads), and their prompts.

A row is a dictionary. Its prompt is the column that the recipe names; otherwise ``prompt``, else ``instruction`` (as
alpaca_eval has it), else ``messages`` without a last answer. What the conversations ``chosen`` and ``rejected`` begin
with alike (as in UCLA's and TRL's data) goes before a prompt that is text.
"""

import gzip
import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nashpo.core.cli import suggestion
from nashpo.llm.encoding import is_conversation, is_tokenized
from nashpo.llm.recipe.schema import DataSpec

PROMPT_COLUMNS = ("prompt", "instruction")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_DATASETS_FILES = ("dataset_info.json", "dataset_dict.json", "state.json")


def read_rows(spec: DataSpec) -> list[dict[str, Any]]:
    """The rows of all files, as they are there.

    Raises
    ------
    ValueError
        A file that is missing, empty or of an unknown format, a line that is no JSON object, or a package that the
        format needs and that is not installed.
    """
    rows = [row for path in spec.paths for row in _rows(path, spec)]
    if not rows:
        raise ValueError(f"{', '.join(spec.paths)}: there are no rows")
    return rows


def _rows(path: str, spec: DataSpec) -> Iterator[dict[str, Any]]:
    place = Path(path).expanduser()
    name = spec.format if spec.format != "auto" else _format(path, place)
    return _READERS[name](path, place, spec)


def _format(path: str, place: Path) -> str:
    if place.is_dir():
        return "datasets" if any((place / name).exists() for name in _DATASETS_FILES) else "folder"
    bare = place.name.removesuffix(".gz")
    for suffix, name in {".jsonl": "jsonl", ".json": "json", ".parquet": "parquet"}.items():
        if bare.endswith(suffix):
            return name
    if not place.exists() and _HUB_NAME.fullmatch(path):
        return "hub"
    if not place.exists():
        raise _missing(path, place)
    raise ValueError(f"{path}: the format is not known by the name; set format to one of jsonl, json, parquet")


def _missing(path: str, place: Path) -> ValueError:
    folder = place.parent
    near = [found.name for found in folder.iterdir()] if folder.is_dir() else []
    if not near:
        return ValueError(f"{path}: there is no such file or folder")
    return ValueError(f"{path}: there is no such file; {suggestion(place.name, near, f'in {folder} are')[:300]}")


def _opened(path: str, place: Path) -> bytes:
    if not place.exists():
        raise _missing(path, place)
    data = place.read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def _jsonl(path: str, place: Path, spec: DataSpec) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_opened(path, place).splitlines(), 1):
        if line.strip():
            yield _object(_json(line, f"{path}, line {number}"), f"{path}, line {number}")


def _json_list(path: str, place: Path, spec: DataSpec) -> Iterator[dict[str, Any]]:
    found = _json(_opened(path, place), path)
    if not isinstance(found, list):
        raise ValueError(f"{path} must hold a list of objects, not {type(found).__name__}; is it JSON lines (.jsonl)?")
    return (_object(row, f"{path}, item {number}") for number, row in enumerate(found))


def _json(data: bytes, place: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:  # UnicodeDecodeError among them
        raise ValueError(f"{place}: no JSON ({error})") from None


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{place} holds {type(row).__name__}, but a row must be an object")
    return row


def _parquet(path: str, place: Path, spec: DataSpec) -> Iterator[dict[str, Any]]:
    if not place.exists():
        raise _missing(path, place)
    table = _package("pyarrow.parquet", path, "pip install 'nashpo[parquet]'").read_table(place)
    return iter(table.to_pylist())


def _folder(path: str, place: Path, spec: DataSpec) -> Iterator[dict[str, Any]]:
    files = [f for f in sorted(place.iterdir()) if f.name.removesuffix(".gz").endswith((".jsonl", ".json", ".parquet"))]
    if not files:
        raise ValueError(f"{path}: the folder has no .jsonl, .json or .parquet file, and is none of `datasets`")
    return (row for f in files for row in _READERS[_format(str(f), f)](str(f), f, spec))


def _saved(path: str, place: Path, spec: DataSpec) -> Iterator[dict[str, Any]]:
    found = _package("datasets", path, "pip install datasets").load_from_disk(str(place))
    if isinstance(found, Mapping):
        if spec.split not in found:
            raise ValueError(f"{path} has no split {spec.split!r}; {suggestion(spec.split, found)}")
        found = found[spec.split]
    return (dict(row) for row in found)


def _hub(path: str, place: Path, spec: DataSpec) -> Iterator[dict[str, Any]]:
    mend = "pip install datasets, or download the files and give their path (there is no such file here now)"
    library = _package("datasets", path, mend)
    try:
        found = library.load_dataset(path, split=spec.split)
    except Exception as error:  # the library's own, of many kinds
        raise ValueError(f"{path} (split {spec.split}) was not read from the hub: {error}") from None
    return (dict(row) for row in found)


def _package(name: str, path: str, mend: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        needed = name.partition(".")[0]
        raise ValueError(f"{path} needs the package {needed}, which is not installed: {mend}") from None


_READERS: Mapping[str, Callable[[str, Path, DataSpec], Iterator[dict[str, Any]]]] = {
    "jsonl": _jsonl,
    "json": _json_list,
    "parquet": _parquet,
    "folder": _folder,
    "datasets": _saved,
    "hub": _hub,
}


def normalized(row: Mapping[str, Any], spec: DataSpec) -> dict[str, Any]:
    """A row with its prompt under ``prompt``, as a conversation where the recipe says so, without ignored columns.

    Raises
    ------
    ValueError
        If no prompt is found, or it is neither text, nor a conversation, nor token ids.
    """
    made = {name: value for name, value in row.items() if name not in spec.ignored_columns}
    made = _with_prompt(made, spec)
    prompt = made["prompt"]
    if not isinstance(prompt, str) and not (is_conversation(prompt) or (prompt and is_tokenized(prompt))):
        raise ValueError(f"the prompt must be text, messages or token ids, not {type(prompt).__name__}")
    if isinstance(prompt, str) and (spec.chat or spec.system is not None):
        prompt = [{"role": "user", "content": prompt}]
    if spec.system is not None:
        if not is_conversation(prompt):
            raise ValueError("a system message cannot be put before a prompt of token ids")
        prompt = [{"role": "system", "content": spec.system}, *(m for m in prompt if m["role"] != "system")]
    return {**made, "prompt": prompt}


def _with_prompt(row: dict[str, Any], spec: DataSpec) -> dict[str, Any]:
    chosen: Any = row.get("chosen")
    rejected: Any = row.get("rejected")
    if spec.prompt is not None:
        if spec.prompt not in row:
            raise ValueError(f"there is no column {spec.prompt!r}; {suggestion(spec.prompt, row, 'the columns are')}")
        value = row.pop(spec.prompt)
        row["prompt"] = _asked(value) if is_conversation(value) else value
    elif (named := next((name for name in PROMPT_COLUMNS if row.get(name) is not None), None)) is not None:
        row["prompt"] = row.pop(named)
    elif not is_conversation(chosen) and is_conversation(row.get("messages")):
        row["prompt"] = _asked(row.pop("messages"))
    if not (is_conversation(chosen) and is_conversation(rejected)) or chosen[0]["role"] == "assistant":
        if row.get("prompt") is None:
            raise ValueError(f"there is no prompt: name its column by prompt; the columns are {', '.join(row)}")
        return row
    # Conversations that hold the prompt themselves; where both do not begin alike the column must say it.
    alike = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    alike = len(_asked(chosen[:alike]))
    if not alike and row.get("prompt") is None:
        raise ValueError("chosen and rejected are conversations that begin differently: give the prompt as a column")
    if is_conversation(row.get("prompt")) or not alike:
        return row
    return {**row, "prompt": chosen[:alike], "chosen": chosen[alike:], "rejected": rejected[alike:]}


def _asked(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Messages up to the last that is no assistant's."""
    asked = list(messages)
    while asked and asked[-1]["role"] == "assistant":
        asked.pop()
    return asked
