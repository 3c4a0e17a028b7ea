"""Reading games from files a user brings, or from the name of a family.

Shapes: a game's file holds ``P: (..., n, n)``. Formats: .npy, .npz, .csv (also .tsv, .txt), .json, and .jsonl or
.jsonl.gz for judged responses. Every error is a `ValueError` of one line that begins with the file's name.
"""

from __future__ import annotations

import difflib
from os import PathLike
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nashpo.tabular.csv_table import parse_csv
from nashpo.tabular.game import Game
from nashpo.tabular.judged import is_judged, read_judged
from nashpo.tabular.policy_files import read_policy
from nashpo.tabular.raw_files import json_numbers, load_arrays, named, read_json, read_text, reader, split_npz
from nashpo.tabular.specs import game_from_spec, is_spec

__all__ = ["game_from_spec", "open_game", "read_game", "read_policy"]

GAME_KEYS = ("P", "weights", "mask", "names", "reward")


def open_game(text: str | PathLike[str], symmetrize: bool = False) -> Game:
    """The game a command is given: a file, or a family such as ``cyclic:n=5`` (see `game_from_spec`).

    A file wins where both could be meant.

    Raises
    ------
    ValueError
        As `read_game` and `game_from_spec`.
    """
    spec = str(text)
    if not spec.strip():
        raise ValueError("no game given: name a file, or a family such as cyclic:n=5")
    if is_spec(spec) and not Path(spec).exists():
        try:
            return game_from_spec(spec)
        except ValueError as error:
            if "unknown family" in str(error):
                raise ValueError(f"{error} (and no file has this name)") from None
            raise
    return read_game(text, symmetrize)


def read_game(path: str | PathLike[str], symmetrize: bool = False) -> Game:
    """Read a game from a file.

    Parameters
    ----------
    path : path
        ``.npy``: the win rates. ``.npz``: an array named P or the only one with square last axes, otherwise
        ``FILE.npz:NAME``; arrays named weights, mask, names and reward are used beside P. ``.csv``: a table, with or
        without a header and row labels, which become names. ``.json``: a matrix, or an object with P and any of
        weights, mask, names, reward. ``.jsonl``, ``.jsonl.gz``: judged responses (`nashpo.tabular.judged`).
    symmetrize : bool
        Take (P + 1 - P^T)/2 instead of refusing a table with P + P^T != 1.

    Raises
    ------
    ValueError
        The file is not there, unreadable, empty, truncated, damaged or a pickle, or what it holds is no game.
    """
    if is_judged(path):
        return read_judged(path).game
    file, array = split_npz(str(path))
    with named(str(path)):
        readers = {".npy": _numpy_game, ".npz": _numpy_game, ".csv": _csv_game, ".json": _json_game}
        fields = reader(file, readers)(file, array)
        P = fields.pop("P")
        if not symmetrize:
            return Game(P, **fields)
        if fields.pop("reward", None) is not None:
            raise ValueError("a game with a declared reward is antisymmetric already and cannot be symmetrized")
        return Game.symmetrized(P, **fields)


def _numpy_game(path: Path, array: str | None) -> dict[str, Any]:
    loaded = load_arrays(path)
    return _from_arrays(loaded, path, array) if isinstance(loaded, dict) else {"P": loaded}


def _from_arrays(arrays: dict[str, NDArray[Any]], path: Path, array: str | None) -> dict[str, Any]:
    if not arrays:
        raise ValueError("the archive holds no array")
    square = [name for name, x in arrays.items() if x.ndim >= 2 and x.shape[-1] == x.shape[-2]]
    if array is None:
        array = "P" if "P" in arrays else square[0] if len(square) == 1 else None
    if array is None:
        shapes = ", ".join(f"{name} {arrays[name].shape}" for name in arrays)
        raise ValueError(f"holds several arrays and none is named P: {shapes}; choose one as {path.name}:NAME")
    if array not in arrays:
        raise ValueError(f"holds no array {array!r}; it has {', '.join(arrays)}")
    beside = {name: arrays[name] for name in GAME_KEYS[1:] if name in arrays and name != array}
    if "names" in beside:
        return {"P": arrays[array], **beside, "names": [str(name) for name in beside["names"]]}
    return {"P": arrays[array], **beside}


def _csv_game(path: Path, _: str | None) -> dict[str, Any]:
    table = parse_csv(read_text(path))
    if table.columns is not None and table.rows is not None and table.columns != table.rows:
        pairs = zip(table.columns, table.rows, strict=False)
        at, (column, row) = next(((k, pair) for k, pair in enumerate(pairs, 1) if pair[0] != pair[1]), (0, ("", "")))
        if at == 0:
            raise ValueError(f"{len(table.rows)} rows and {len(table.columns)} columns; the table must be square")
        raise ValueError(f"header and row labels differ: column {at} is {column!r}, row {at} is {row!r}")
    return {"P": table.values, "names": table.columns or table.rows}


def _json_game(path: Path, _: str | None) -> dict[str, Any]:
    content = read_json(path)
    if isinstance(content, list):
        return {"P": json_numbers(content)}
    if not isinstance(content, dict) or "P" not in content:
        raise ValueError('must hold a matrix or an object such as {"P": [[0.5, 0.7], [0.3, 0.5]], "names": ["a", "b"]}')
    for key in content:
        if key not in GAME_KEYS:
            near = difflib.get_close_matches(key, GAME_KEYS, n=1)
            mend = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(GAME_KEYS)}"
            raise ValueError(f"unknown key {key!r}; {mend}")
    names = content.get("names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError("names must be a list of strings")
    return {**content, "P": json_numbers(content["P"])}
