"""The result of a run: recorded gaps, final policies, saved, loaded and exported as a table.

Shapes: R recorded steps; a policy is (..., n), a gap (R, ...), with the replicates of sampled feedback as the first of
the leading axes.
"""

import csv
import io
import json
import os
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from nashpo.core.store import replace_file

FORMAT = "nashpo-run-1"


@dataclass
class Run:
    """What `play` returns.

    Attributes
    ----------
    rule : str
        The rule and its hyperparameters in words.
    steps : int
        Number of updates.
    recorded : (R,)
        The recorded numbers of updates.
    gap_average, gap_last : (R, ...)
        Duality gap of the average iterate and of the last one, in [0, 1].
    average, last : (..., n)
        Final policies, probabilities. The average is the mean of π_1 … π_T, the last is π_{T+1}.
    kept : dict name -> (R, ..., n)
        Log-policies of the slots that were asked for (``average``: probabilities).
    weights : (...)
        Weights of the contexts in `mean_gap_average` and `mean_gap_last`.
    names : tuple of str, optional
        Labels of the responses.
    notes : dict
        The engine that ran, the feedback, bounds and whatever else describes the run; JSON-able.
    """

    rule: str
    steps: int
    recorded: np.ndarray
    gap_average: np.ndarray
    gap_last: np.ndarray
    average: np.ndarray
    last: np.ndarray
    kept: dict[str, np.ndarray] = field(default_factory=dict)
    weights: np.ndarray = field(default_factory=lambda: np.ones(()))
    names: tuple[str, ...] | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def mean(self, gaps: np.ndarray) -> np.ndarray:
        """Weighted mean over contexts of (R, ..., contexts); axes before the contexts are kept."""
        axes = self.weights.ndim
        return np.sum(gaps * self.weights, axis=tuple(range(-axes, 0))) if axes else np.asarray(gaps)

    @property
    def mean_gap_average(self) -> np.ndarray:
        """Duality gap of the average iterate, averaged over contexts, (R,) or (R, replicates)."""
        return self.mean(self.gap_average)

    @property
    def mean_gap_last(self) -> np.ndarray:
        """Duality gap of the last iterate, averaged over contexts, (R,) or (R, replicates)."""
        return self.mean(self.gap_last)

    def table(self) -> list[dict[str, float]]:
        """One row per recorded step, with means over contexts and replicates."""
        average = self.mean_gap_average.reshape(len(self.recorded), -1).mean(axis=1)
        last = self.mean_gap_last.reshape(len(self.recorded), -1).mean(axis=1)
        return [
            {"step": int(s), "gap_average": float(a), "gap_last": float(b)}
            for s, a, b in zip(self.recorded, average, last, strict=True)
        ]

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write `table` as CSV, to a temporary name and renamed."""
        text = io.StringIO()
        rows = self.table()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        replace_file(Path(path), text.getvalue().encode())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to an .npz file (no pickles), to a temporary name and renamed."""
        about = {"format": FORMAT, "rule": self.rule, "steps": self.steps, "names": self.names, "notes": self.notes}
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {f"kept:{name}": rows for name, rows in self.kept.items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, about=np.array(json.dumps(about)), **arrays)
        replace_file(Path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            If the file is not a saved run.
        """
        try:
            with np.load(path, allow_pickle=False) as saved:
                about = json.loads(str(saved["about"]))
                if about["format"] != FORMAT:
                    raise ValueError(f"format {about['format']}")
                arrays = {name: saved[name] for name in _ARRAYS}
                kept = {name[len("kept:") :]: saved[name] for name in saved.files if name.startswith("kept:")}
        except FileNotFoundError:
            raise
        except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} is not a saved run ({error})") from error
        names = tuple(about["names"]) if about["names"] is not None else None
        return cls(rule=about["rule"], steps=about["steps"], kept=kept, names=names, notes=about["notes"], **arrays)


_ARRAYS = ("recorded", "gap_average", "gap_last", "average", "last", "weights")
