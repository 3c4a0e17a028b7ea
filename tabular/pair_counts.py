"""Counting preference pairs: rows of (prompt, response, response) become one table of wins per prompt.

Shapes: chunks of rows are arrays (m,) of non-negative integer codes below 2³¹; the result is a `PreferenceData` with
``wins`` (prompts, n, n), where n is the largest number of distinct responses of a prompt. Memory grows with distinct
pairs and not with rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nashpo.tabular.preferences import PreferenceData

_HALF = 32
_LOW = (1 << _HALF) - 1
_CHUNK = 1 << 20
MAX_TABLE_GIB = 1.0
"""Largest table of wins that is made unasked. Reading and playing take about three times as much."""


@dataclass(frozen=True)
class ReadReport:
    """What was counted.

    Attributes
    ----------
    pairs : int
        Rows that were kept, ties among them.
    ties : int
        Rows whose two responses are equal. They are kept: they count in N and tell nothing.
    prompts : int
        Distinct prompts.
    single_response_prompts : int
        Prompts with one distinct response. They are kept: nothing can be gained or lost there.
    responses : int
        Distinct responses, summed over prompts.
    largest : int
        n, the largest number of distinct responses of a prompt.
    soft_labels : int
        Rows whose label is neither 0 nor 1.
    skipped : int
        Rows of weight 0. They are left out, with their responses.
    """

    pairs: int
    ties: int
    prompts: int
    single_response_prompts: int
    responses: int
    largest: int
    soft_labels: int
    skipped: int

    def __str__(self) -> str:
        single = f" ({self.single_response_prompts:,} with one response)" if self.single_response_prompts else ""
        parts = [
            f"{self.pairs:,} pairs over {self.prompts:,} prompts{single}",
            f"{self.responses:,} distinct responses, at most {self.largest:,} for a prompt",
            f"{self.ties:,} ties",
        ]
        if self.soft_labels:
            parts.append(f"{self.soft_labels:,} soft labels")
        if self.skipped:
            parts.append(f"{self.skipped:,} rows of weight 0 skipped")
        return "; ".join(parts)


class PairCounts:
    """Adds chunks of rows up, remembering every distinct (prompt, response) and every distinct pair of these.

    A *slot* is a distinct (prompt, response); slots are numbered in order of first appearance, a row's first response
    before its second.
    """

    def __init__(self) -> None:
        self._keys = np.empty(0, np.int64)  # prompt and response code of every slot in one number, sorted
        self._slots = np.empty(0, np.int64)
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._merged = self._pending = 0
        self._undecided = True
        self.pairs = self.ties = self.soft_labels = self.skipped = 0

    def add(
        self,
        prompt: np.ndarray,
        first: np.ndarray,
        second: np.ndarray,
        label: np.ndarray | None = None,
        weight: np.ndarray | None = None,
    ) -> None:
        """Add rows; ``label`` in [0, 1] is the probability that ``first`` was preferred, 1 by default."""
        if weight is not None and not weight.all():
            kept = weight > 0
            self.skipped += int(kept.size - kept.sum())
            prompt, first, second, weight = prompt[kept], first[kept], second[kept], weight[kept]
            label = None if label is None else label[kept]
        if not prompt.size:
            return
        a, b = self._find(prompt, first, second)
        self.pairs += int(a.size)
        self.ties += int((a == b).sum())
        if label is not None:
            self.soft_labels += int(((label != 0) & (label != 1)).sum())
        if label is None or (label[a != b] != 0.5).any():
            self._undecided = False
        gain = np.ones(a.size) if weight is None else weight
        wins = gain if label is None else gain * label
        self._push(*_sum_by_key(a << _HALF | b, wins, gain - wins))

    def _push(self, keys: np.ndarray, wins: np.ndarray, losses: np.ndarray) -> None:
        self._parts.append((keys, wins, losses))
        self._pending += keys.size
        if self._pending > self._merged + _CHUNK:  # so that merging costs O(log) passes, whatever the number of chunks
            self._merge()

    def _merge(self) -> None:
        keys, wins, losses = (np.concatenate(parts) for parts in zip(*self._parts, strict=True))
        self._parts = [_sum_by_key(keys, wins, losses)]
        self._merged, self._pending = int(self._parts[0][0].size), 0

    def _find(self, prompt: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slots of both responses; new ones are entered."""
        keys = np.stack([prompt << _HALF | first, prompt << _HALF | second], axis=1).reshape(-1)
        at = self._locate(keys)
        missing = keys if at is None else keys[self._keys[at] != keys]
        if missing.size:
            new, appeared = np.unique(missing, return_index=True)
            slots = np.empty(new.size, np.int64)
            slots[np.argsort(appeared)] = self._keys.size + np.arange(new.size)
            where = np.searchsorted(self._keys, new)
            self._keys, self._slots = np.insert(self._keys, where, new), np.insert(self._slots, where, slots)
            at = self._locate(keys)
        found = self._slots[at]
        return found[::2], found[1::2]

    def _locate(self, keys: np.ndarray) -> np.ndarray | None:
        return np.minimum(np.searchsorted(self._keys, keys), self._keys.size - 1) if self._keys.size else None

    def data(
        self,
        prompt_name: Callable[[int], str],
        response_name: Callable[[int], str],
        *,
        n: int | None = None,
        max_table_gib: float = MAX_TABLE_GIB,
    ) -> tuple[PreferenceData, ReadReport]:
        """The reduced data.

        Parameters
        ----------
        prompt_name, response_name : callable
            Text of a code.
        n : int, optional
            Response codes are 0 … n − 1 and mean the same in every prompt: the axis of responses keeps them. By
            default every prompt has its own distinct responses, in order of first appearance, and a mask.
        max_table_gib : float
            Refuse, before it is allocated, a table of wins that is larger.

        Raises
        ------
        ValueError
            No row, no informative pair, every label ½, or a table larger than ``max_table_gib``.
        """
        if not self.pairs:
            raise ValueError(f"no pair at all ({self.skipped} rows of weight 0): nothing can be learned")
        if self._undecided and self.ties < self.pairs:
            raise ValueError("every label is 1/2: no pair says which response is better, so nothing can be learned")
        self._merge()
        codes = self._keys[np.argsort(self._slots)]
        _, appeared, inverse = np.unique(codes >> _HALF, return_index=True, return_inverse=True)
        order = np.argsort(appeared)
        prompt_of = np.argsort(order)[inverse]  # prompts in order of first appearance
        count = np.bincount(prompt_of)
        response_of = codes & _LOW
        by_prompt = np.argsort(prompt_of, kind="stable")
        begin = np.cumsum(count) - count
        if n is None:
            local = np.empty(codes.size, np.int64)
            local[by_prompt] = np.arange(codes.size) - np.repeat(begin, count)
        else:
            local = response_of
        size = int(count.max()) if n is None else n
        prompts = tuple(prompt_name(code) for code in (codes >> _HALF)[appeared[order]].tolist())
        _check_memory(prompts, count, size, max_table_gib)

        wins = self._table(prompt_of, local, len(prompts), size)
        names = [response_name(code) for code in response_of[by_prompt].tolist()]
        ends = (begin + count).tolist()
        found = PreferenceData.from_counts(
            wins,
            mask=None if n is not None else np.arange(size) < count[:, None],
            prompts=prompts,
            responses=None if n is not None else tuple(tuple(names[a:b]) for a, b in zip(begin.tolist(), ends)),
        )
        single = int((count == 1).sum())
        return found, ReadReport(
            self.pairs, self.ties, len(prompts), single, int(codes.size), size, self.soft_labels, self.skipped
        )

    def _table(self, prompt_of: np.ndarray, local: np.ndarray, prompts: int, n: int) -> np.ndarray:
        keys, won, lost = self._parts[0]
        a, b = keys >> _HALF, keys & _LOW
        wins = np.zeros(prompts * n * n)
        context = prompt_of[a] * n
        wins[(context + local[a]) * n + local[b]] += won  # the pairs are distinct: no place occurs twice
        wins[(context + local[b]) * n + local[a]] += lost
        return wins.reshape(prompts, n, n)


def _sum_by_key(keys: np.ndarray, wins: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    distinct, inverse = np.unique(keys, return_inverse=True)
    return distinct, np.bincount(inverse, weights=wins), np.bincount(inverse, weights=losses)


def _check_memory(prompts: tuple[str, ...], count: np.ndarray, n: int, limit: float) -> None:
    needed = len(prompts) * n * n * 8 / 2**30
    if needed > limit:
        largest = prompts[int(np.argmax(count))]
        shown = largest if len(largest) <= 60 else largest[:57] + "..."
        raise ValueError(
            f"a table of {len(prompts)} prompts x {n} x {n} responses needs {needed:.3g} GiB, more than the limit of"
            f" {limit:g} GiB: raise max_table_gib, or thin out prompts with many responses (most has {shown!r})"
        )
