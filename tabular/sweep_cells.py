"""One cell of a sweep: its key, its run, and its file.

Shapes: R recorded steps; gaps are means over contexts, (R,).
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nashpo.core.rules import Rule
from nashpo.core.store import replace_file
from nashpo.tabular.game import Game
from nashpo.tabular.play import play

FORMAT = 1
"""Part of every key: a change of what a cell holds, or of how it is computed, makes old files strangers."""
FOLDER = "cells"


@dataclass(frozen=True)
class Outcome:
    """What a cell leaves: its rule, and gaps at the recorded steps, or why it could not be run.

    Attributes
    ----------
    rule : str
    steps : int
    recorded : list of int
    gap_average, gap_last : list of float
    error : str, optional
    """

    rule: str
    steps: int
    recorded: list[int]
    gap_average: list[float]
    gap_last: list[float]
    error: str | None = None

    @property
    def final(self) -> tuple[float, float]:
        """Gap of the average and of the last policy at the end; NaN where the cell could not be run."""
        return (float("nan"),) * 2 if self.error is not None else (self.gap_average[-1], self.gap_last[-1])


@dataclass(frozen=True)
class Ground:
    """What all cells of a sweep share: the game, and the policies that a run begins from.

    Attributes
    ----------
    game : Game
    start, reference, behavior : (..., n), optional
        As in `play`.
    """

    game: Game
    start: np.ndarray | None = None
    reference: np.ndarray | None = None
    behavior: np.ndarray | None = None

    @property
    def fingerprint(self) -> str:
        """A hash of every number in it; names do not matter."""
        digest = hashlib.sha256()
        game = self.game.as_numpy()
        for part in (game.P, game.mask, game.weights, game.reward, self.start, self.reference, self.behavior):
            array = None if part is None else np.ascontiguousarray(part)
            digest.update(b"-" if array is None else f"{array.shape}{array.dtype}".encode() + array.tobytes())
        return digest.hexdigest()

    def packed(self) -> bytes:
        """The whole in bytes, for a worker: joblib's Dask backend would scatter arrays to one worker, and if that one
        died they would be lost; bytes go along with every cell."""
        return pickle.dumps(self)


@lru_cache(maxsize=2)
def unpacked(data: bytes) -> Ground:
    """The ground of `Ground.packed`, kept in the worker."""
    ground: Ground = pickle.loads(data)
    return ground


def cell_key(fingerprint: str, rule: Rule, steps: int) -> str:
    """Name of a cell: a hash of the ground's fingerprint, the rule with its hyperparameters, and the steps."""
    told = json.dumps([FORMAT, fingerprint, rule.name, repr(rule), steps])
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def run_cell(packed: bytes, rule: Rule, steps: int) -> Outcome:
    """Play one cell, in whatever process this is.

    A rule that cannot be played on the game (a Bradley–Terry projection that diverges, a step off the simplex) is an
    outcome too, so that one cell does not end a sweep.
    """
    ground = unpacked(packed)
    try:
        run = play(rule, ground.game, steps, start=ground.start, reference=ground.reference, behavior=ground.behavior)
    except ValueError as error:
        return Outcome(repr(rule), steps, [], [], [], str(error))
    average, last = run.mean_gap_average, run.mean_gap_last
    return Outcome(repr(rule), steps, run.recorded.tolist(), average.tolist(), last.tolist())


class CellStore:
    """Finished cells, one JSON file each, that is either whole or not there.

    Parameters
    ----------
    folder : path
        Made where it is not there.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder) / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """The file of a cell."""
        return self.folder / f"{key}.json"

    def load(self, key: str) -> Outcome | None:
        """A finished cell, or None where it is missing or its file is damaged."""
        try:
            outcome = Outcome(**json.loads(self.path(key).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            return None  # not what `store` wrote: run the cell again and replace it
        lengths = {len(outcome.recorded), len(outcome.gap_average), len(outcome.gap_last)}
        return outcome if len(lengths) == 1 and (outcome.error is not None or outcome.recorded) else None

    def store(self, key: str, outcome: Outcome) -> None:
        """Write a cell aside, fsync and rename."""
        replace_file(self.path(key), json.dumps(_finite(asdict(outcome))).encode())


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    for name in ("gap_average", "gap_last"):
        if not np.all(np.isfinite(fields[name])):
            raise ValueError(f"{fields['rule']}: {name} is not finite")
    return fields
