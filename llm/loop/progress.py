"""Progress bars of a run's phases on a terminal, and where the run is for messages."""

import sys
from typing import Any

from tqdm import tqdm


class Bars:
    """One bar at a time, for the phase that is under way.

    Parameters
    ----------
    quiet : bool
        Draw nothing.
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._bar: Any = None
        self._phase = ""
        self._iteration = 0

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def iteration(self, number: int) -> None:
        """Which iteration is under way, counted from 1."""
        self._iteration = number
        self._phase = ""

    def phase(self, name: str) -> None:
        """What is being done, for messages."""
        self._phase = name

    def where(self) -> str:
        """``iteration 2, samples``."""
        parts = [f"iteration {self._iteration}"] if self._iteration else []
        return ", ".join([*parts, *([self._phase] if self._phase else [])])

    def __call__(self, phase: str, done: int, total: int) -> None:
        """So many of so many are done."""
        self._phase = phase
        if self.quiet or not total:
            self._close()
            return
        if self._bar is None or self._bar.desc != f"{self.where()}: " or self._bar.total != total:
            self._close()
            self._bar = tqdm(total=total, desc=self.where(), file=sys.stderr, dynamic_ncols=True, leave=False)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
