"""Preference data from arrays of ids, one entry per pair.

Shapes: every array is (m,) over pairs; the result has ``wins`` (prompts, n, n).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from nashpo.tabular.pair_counts import MAX_TABLE_GIB, PairCounts
from nashpo.tabular.preferences import PreferenceData

_CODES = 2**31
_CHUNK = 1 << 20
_RANGES = {1.0: "[0, 1]", np.inf: "[0, infinity)"}


def from_arrays(
    prompt_ids: Any,
    first_ids: Any,
    second_ids: Any,
    labels: Any = None,
    weights: Any = None,
    *,
    n: int | None = None,
    max_table_gib: float = MAX_TABLE_GIB,
) -> PreferenceData:
    """Preference data from arrays of ids, one entry per pair.

    Parameters
    ----------
    prompt_ids, first_ids, second_ids : (m,)
        Integers or strings. Responses are the same where prompt and id are.
    labels : (m,), optional
        In [0, 1]: probability that the first was preferred; 1 by default.
    weights : (m,), optional
        >= 0; pairs of weight 0 are left out.
    n : int, optional
        Response ids are 0 … n − 1 and mean the same in every prompt (models, say): ``wins[x, i, j]`` then belongs to
        the ids i and j. By default every prompt has its own responses, in order of first appearance.
    max_table_gib : float
        Refuse a larger table of wins.

    Returns
    -------
    PreferenceData
        Prompts in order of first appearance, with their ids as names.

    Raises
    ------
    ValueError
        Arrays of different lengths, ids that are neither integers nor strings or lie outside 0 … n − 1, labels outside
        [0, 1] or all ½, negative weights, no informative pair, a table that is too large.
    """
    ids = {"prompt_ids": prompt_ids, "first_ids": first_ids, "second_ids": second_ids}
    given = {name: np.asarray(x) for name, x in (ids | {"labels": labels, "weights": weights}).items() if x is not None}
    length = given["prompt_ids"].shape
    for name, array in given.items():
        if array.ndim != 1 or array.shape != length:
            raise ValueError(f"{name} has shape {array.shape}, prompt_ids has {length}: one entry per pair is needed")
    if not length[0]:
        raise ValueError("the arrays are empty: no pair to learn from")
    label = _numbers("labels", given.get("labels"), 1.0)
    weight = _numbers("weights", given.get("weights"), np.inf)
    prompts, prompt_name = _codes("prompt_ids", given["prompt_ids"])
    both, response_name = _codes("response ids", np.concatenate([given["first_ids"], given["second_ids"]]))
    if n is not None and (response_name is not str or both.max() >= n):
        raise ValueError(f"n = {n} is given, so response ids must be integers from 0 to {n - 1}")
    first, second = both[: length[0]], both[length[0] :]
    counts = PairCounts()
    for begin in range(0, length[0], _CHUNK):
        rows = slice(begin, begin + _CHUNK)
        counts.add(
            prompts[rows],
            first[rows],
            second[rows],
            None if label is None else label[rows],
            None if weight is None else weight[rows],
        )
    return counts.data(prompt_name, response_name, n=n, max_table_gib=max_table_gib)[0]


def _codes(what: str, ids: np.ndarray) -> tuple[np.ndarray, Callable[[int], str]]:
    """Codes below 2³¹ for ids, and the name of a code."""
    if ids.dtype.kind in "iu" and ids.min() >= 0 and ids.max() < _CODES:
        return ids.astype(np.int64), str
    if ids.dtype.kind not in "iuU":
        raise ValueError(f"{what} hold {ids.dtype}; integers or strings are needed")
    distinct, codes = np.unique(ids, return_inverse=True)
    return codes, lambda code: str(distinct[code])


def _numbers(what: str, values: np.ndarray | None, largest: float) -> np.ndarray | None:
    """Finite numbers in [0, largest]."""
    if values is None:
        return None
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{what} hold {values.dtype}; numbers are needed")
    wrong = ~(np.isfinite(values) & (values >= 0) & (values <= largest))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(f"{what}[{at}] = {values[at]:g} lies outside {_RANGES[largest]}")
    return values.astype(np.float64)
