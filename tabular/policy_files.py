"""Reading a policy (a start or a reference) from a file.

Shapes: the file holds ``(n,)`` or ``(*batch_shape, n)``, the result is ``(*batch_shape, n)``.
"""

from __future__ import annotations

import difflib
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nashpo.tabular.csv_table import parse_csv
from nashpo.tabular.game import Game
from nashpo.tabular.raw_files import json_numbers, load_arrays, named, read_json, read_text, reader, split_npz


def read_policy(path: str | PathLike[str], game: Game, full_support: bool = False) -> NDArray[np.float64]:
    """Read a policy of a game (a start or a reference) from a file.

    Parameters
    ----------
    path : path
        ``.npy``, ``.npz`` (one array), ``.csv`` (a row, a column, a column of names and one of numbers, or a row per
        context) or ``.json`` (a list, or an object from names to probabilities; names left out get 0).
    game : Game
        The policy has shape (n,) or ``(*batch_shape, n)``. One of shape (n,) is used in every context; where responses
        are missing it is restricted to the others and normalized.
    full_support : bool
        Refuse a probability of zero, as a reference must.

    Returns
    -------
    array (*batch_shape, n)
        Sums to 1 in every context.

    Raises
    ------
    ValueError
        As `read_game`; NaN, a negative probability, a sum further than 1e-6 from 1, a wrong length, an unknown name,
        probability on a missing response, or zeros where ``full_support``.
    """
    file, array = split_npz(str(path))
    with named(str(path)):
        readers = {".npy": _numpy_policy, ".npz": _numpy_policy, ".csv": _csv_policy, ".json": _json_policy}
        return _checked_policy(reader(file, readers)(file, array, game), game, full_support)


def _checked_policy(values: Any, game: Game, full_support: bool) -> NDArray[np.float64]:
    try:
        policy = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("a policy must be a list of real numbers, or one list per context") from None
    if policy.ndim == 0 or policy.shape[-1] != game.n:
        length = policy.shape[-1] if policy.ndim else 0
        raise ValueError(f"the policy has {length} entries, but the game has {game.n} responses")
    if policy.shape not in ((game.n,), (*game.batch_shape, game.n)):
        raise ValueError(f"the policy has shape {policy.shape}, expected ({game.n},) or {(*game.batch_shape, game.n)}")
    bad = ~(np.isfinite(policy) & (policy >= 0))
    if bad.any():
        at = tuple(np.argwhere(bad)[0])
        raise ValueError(f"probability {policy[at]:g} of response {_where(at, game)} must be finite and >= 0")
    total = policy.sum(axis=-1, keepdims=True)
    wrong = np.abs(total - 1) > 1e-6
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0])
        raise ValueError(f"the policy{_context(at[:-1])} sums to {total[at]:.9g}, not to 1; divide it by its sum")
    shared = policy.ndim == 1
    policy = np.broadcast_to(policy, (*game.batch_shape, game.n)).copy()
    mask = np.ones_like(policy, dtype=bool) if game.mask is None else game.as_numpy().mask
    assert mask is not None
    lost = ~mask & (policy > 0)
    if lost.any() and not shared:
        at = tuple(np.argwhere(lost)[0])
        raise ValueError(f"probability {policy[at]:g} of response {_where(at, game)}, which is missing there")
    policy[~mask] = 0.0
    kept = policy.sum(axis=-1, keepdims=True)
    if (kept == 0).any():
        at = tuple(np.argwhere(kept == 0)[0])
        raise ValueError(f"the policy has no probability on the responses that exist{_context(at[:-1])}")
    if full_support and (mask & (policy == 0)).any():
        at = tuple(np.argwhere(mask & (policy == 0))[0])
        raise ValueError(f"response {_where(at, game)} has probability 0, but every response needs a positive one")
    return policy / kept


def _context(at: tuple[Any, ...]) -> str:
    return f" in context {', '.join(str(int(k)) for k in at)}" if at else ""


def _where(at: tuple[Any, ...], game: Game) -> str:
    response = int(at[-1])
    return (str(response) if game.names is None else repr(game.names[response])) + _context(at[:-1])


def _numpy_policy(path: Path, array: str | None, _: Game) -> Any:
    loaded = load_arrays(path)
    return _one_array(loaded, path, array) if isinstance(loaded, dict) else loaded


def _one_array(arrays: dict[str, NDArray[Any]], path: Path, array: str | None) -> NDArray[Any]:
    if array is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    name = "policy" if array is None else array
    if name not in arrays:
        raise ValueError(f"holds no array {name!r}, only {', '.join(arrays) or 'none'}; choose one as {path.name}:NAME")
    return arrays[name]


def _csv_policy(path: Path, _: str | None, game: Game) -> Any:
    table = parse_csv(read_text(path))
    values = table.values.astype(np.float64)
    if values.shape[1] == 1 and table.rows is not None:
        return _by_name(dict(zip(table.rows, values[:, 0].tolist(), strict=True)), game)
    if table.columns is not None and values.shape[0] == 1 and table.columns != game.names and game.names is not None:
        return _by_name(dict(zip(table.columns, values[0].tolist(), strict=True)), game)
    return values[:, 0] if values.shape[1] == 1 and game.n != 1 else values[0] if values.shape[0] == 1 else values


def _json_policy(path: Path, _: str | None, game: Game) -> Any:
    content = read_json(path)
    if isinstance(content, dict) and list(content) == ["policy"]:
        content = content["policy"]
    if isinstance(content, dict):
        return _by_name({name: json_numbers(value, repr(name)) for name, value in content.items()}, game)
    if not isinstance(content, list):
        raise ValueError("must hold a list of probabilities or an object from names to probabilities")
    return json_numbers(content, "policy")


def _by_name(probabilities: dict[str, Any], game: Game) -> list[Any]:
    names = [str(k) for k in range(game.n)] if game.names is None else list(game.names)
    for name in probabilities:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            mend = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names[:20])}"
            raise ValueError(f"the game has no response {name!r}; {mend}")
    return [probabilities.get(name, 0.0) for name in names]
