"""What a judge has said, on disk, so that no question is paid for twice.

The file is append-only JSON Lines, one line per batch of answers: ``{"answers": [[key, probability, raw], ...]}``. A
key is a hash of the judge's description, the prompt and the two responses in their order, of a conversation its
messages. A batch is written whole or not at all, so that a run that was killed asks the same batches again. Abstentions
are not kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any

from nashpo.llm.judges.judge import Judge, Pair, Verdict, canonical


class Cache:
    """Verdicts by content.

    Only keys and places are held in memory, about 150 bytes per answer.

    Parameters
    ----------
    path : path
        Made where it does not exist; its folder must. One process at a time may write it.

    Raises
    ------
    ValueError
        If a line other than a torn last one cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._writer = open(self.path, "ab", buffering=0)  # noqa: SIM115 (open until `close`)
        self._reader = open(self.path, "rb")  # noqa: SIM115
        self._places: dict[bytes, int] = {}
        self._last: tuple[int, dict[bytes, Verdict]] = (-1, {})
        try:
            self._end = self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> int:
        """Index the lines; cut off a torn last one; the length that is left."""
        place = 0
        for number, line in enumerate(self._reader, 1):
            if not line.endswith(b"\n"):
                self._writer.truncate(place)  # the process died while it wrote this batch
                break
            try:
                keys = list(_answers(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.path}, line {number}, is no line of a judge's cache ({error}): remove the line to go on"
                ) from error
            self._places.update(dict.fromkeys(keys, place))
            place += len(line)
        return place

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: bytes) -> Verdict | None:
        """The verdict under a key of `keys`, or None."""
        place = self._places.get(key)
        if place is None:
            return None
        if self._last[0] != place:
            self._reader.seek(place)
            self._last = (place, _answers(self._reader.readline()))
        return self._last[1][key]

    def put(self, answers: Iterable[tuple[bytes, Verdict]]) -> None:
        """Append a batch, on disk when this returns; abstentions are left out.

        Raises
        ------
        OSError
            Where the disk is full: the file is as it was before.
        """
        kept = [(key, verdict) for key, verdict in answers if verdict.probability is not None]
        if not kept:
            return
        batch = [[key.hex(), verdict.probability, verdict.raw] for key, verdict in kept]
        line = json.dumps({"answers": batch}, ensure_ascii=False).encode() + b"\n"
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._writer.write(rest) :]
            os.fsync(self._writer.fileno())
        except OSError:
            self._writer.truncate(self._end)
            raise
        self._places.update(dict.fromkeys((key for key, _ in kept), self._end))
        self._end += len(line)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
        self._reader.close()

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _answers(line: bytes) -> dict[bytes, Verdict]:
    return {bytes.fromhex(key): Verdict(probability, raw) for key, probability, raw in json.loads(line)["answers"]}


class Keys:
    """The cache's keys of one judge: 16-byte BLAKE2b hashes of its description and a pair."""

    def __init__(self, judge: Judge) -> None:
        about: Any = judge.describe()
        self._judge = canonical(about)

    def __call__(self, pair: Pair) -> bytes:
        text = canonical([self._judge, pair.prompt, pair.first, pair.second])
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
