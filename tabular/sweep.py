"""A map of rules over step sizes (and KL weights, and inner iterations) on one game, cell by cell and resumable.

Shapes: R rows (a rule with everything but its step size), E step sizes; gaps (R, E), means over contexts, NaN where a
rule does not allow the cell.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nashpo.core.rules import Rule
from nashpo.tabular.rule_arguments import hyperparameters, option, playable_class, required
from nashpo.tabular.sweep_cells import CellStore, Ground, Outcome, cell_key, run_cell
from nashpo.tabular.workers import run_all

SYMBOLS = {"tau": "τ", "inner": "k"}
MOST_POINTS = 10_000


@dataclass(frozen=True)
class Row:
    """A rule with all its hyperparameters but the step size."""

    kind: type[Rule]
    fixed: tuple[tuple[str, Any], ...]
    label: str

    def at(self, eta: float) -> Rule:
        """The rule at a step size (ValueError where it does not allow it)."""
        make: Any = self.kind
        rule: Rule = make(eta=eta, **dict(self.fixed))
        return rule


@dataclass(frozen=True)
class Grid:
    """What is swept.

    Attributes
    ----------
    rows : tuple of Row
    eta : (E,) tuple of float
    steps : int
        T, the same for every cell.
    """

    rows: tuple[Row, ...]
    eta: tuple[float, ...]
    steps: int

    def cells(self) -> tuple[dict[tuple[int, int], Rule], dict[tuple[int, int], str]]:
        """Rules by (row, column), and why the others are not allowed.

        Raises
        ------
        ValueError
            If a row has no cell that its rule allows.
        """
        allowed: dict[tuple[int, int], Rule] = {}
        refused: dict[tuple[int, int], str] = {}
        for r, row in enumerate(self.rows):
            for e, eta in enumerate(self.eta):
                try:
                    allowed[r, e] = row.at(eta)
                    allowed[r, e].form().check_horizon(self.steps)
                except ValueError as error:
                    allowed.pop((r, e), None)
                    refused[r, e] = str(error)
            if all((r, e) in refused for e in range(len(self.eta))):
                raise ValueError(f"'{row.label}' allows no cell of the grid: {refused[r, len(self.eta) - 1]}")
        return allowed, refused


def parse_grid(name: str, text: str) -> list[float]:
    """Numbers of an axis: ``0.1``, a list ``0.01,0.1,1``, or ``0.01:10:13``, spaced logarithmically, ends included.

    Raises
    ------
    ValueError
        Names the option and what is wrong; all numbers must be > 0.
    """
    shown = f"{option(name)} {text}"
    parts = text.split(":") if ":" in text else text.split(",")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        raise ValueError(f"{shown}: give numbers, such as 0.01,0.1,1, or LOW:HIGH:COUNT, such as 0.01:10:13") from None
    if any(not math.isfinite(x) or x <= 0 for x in numbers):
        wrong = next(x for x in numbers if not math.isfinite(x) or x <= 0)
        raise ValueError(f"{shown}: {wrong:g} must be a finite number > 0")
    if ":" not in text:
        return list(dict.fromkeys(numbers))
    if len(numbers) != 3 or numbers[2] != int(numbers[2]) or not 1 <= numbers[2] <= MOST_POINTS:
        raise ValueError(f"{shown}: a range is LOW:HIGH:COUNT with a whole COUNT from 1 to {MOST_POINTS}")
    low, high, count = numbers[0], numbers[1], int(numbers[2])
    return np.geomspace(low, high, count).tolist() if count > 1 else [low]


def whole(name: str, numbers: Sequence[float], spaced: bool) -> list[int]:
    """The numbers of an axis of whole numbers; those of a range are rounded.

    Raises
    ------
    ValueError
    """
    rounded = [round(x) for x in numbers]
    if not spaced and any(x != y for x, y in zip(numbers, rounded, strict=True)):
        raise ValueError(f"{option(name)}: whole numbers are needed")
    return sorted({max(1, x) for x in rounded})


def make_rows(names: Sequence[str], axes: Mapping[str, Sequence[Any]]) -> tuple[Row, ...]:
    """Every rule with every combination of the axes that it has.

    Parameters
    ----------
    names : sequence of str
        Names of rules.
    axes : mapping hyperparameter -> values
        ``tau``, ``inner``, ``variant``; not ``eta``.

    Raises
    ------
    ValueError
        Unknown rule, a rule without a step size, a hyperparameter that is missing or that no rule has.
    """
    kinds = list(dict.fromkeys(playable_class(name) for name in names))
    for name in axes:
        if not any(name in hyperparameters(kind) for kind in kinds):
            raise ValueError(
                f"{option(name)} is given, but {', '.join(k.name for k in kinds)} has no such hyperparameter"
            )
    rows = []
    for kind in kinds:
        known = hyperparameters(kind)
        if "eta" not in known:
            raise ValueError(f"rule '{kind.name}' has no step size --eta to sweep")
        missing = [option(name) for name in required(kind) if name != "eta" and name not in axes]
        if missing:
            raise ValueError(f"rule '{kind.name}' needs {' and '.join(missing)}")
        own = [name for name in known if name in axes]
        for values in itertools.product(*(axes[name] for name in own)):
            fixed = tuple(zip(own, values, strict=True))
            told = [f"{SYMBOLS.get(k, k)}={v:g}" if not isinstance(v, str) else v for k, v in fixed if len(axes[k]) > 1]
            rows.append(Row(kind, fixed, " ".join([kind.name, *told])))
    return tuple(rows)


@dataclass(frozen=True)
class Sweep:
    """The map of a finished sweep.

    Attributes
    ----------
    grid : Grid
    gap_average, gap_last : (R, E)
    refused : dict (row, column) -> reason
        Cells that were not run, or that could not be.
    computed, reused : int
        Cells run now, and cells found finished.
    """

    grid: Grid
    gap_average: np.ndarray
    gap_last: np.ndarray
    refused: dict[tuple[int, int], str]
    computed: int
    reused: int

    def arrays(self) -> dict[str, np.ndarray]:
        """The map under the names that `nashpo.figures.sweep` reads, and COMAL's (inner, ητ) map where it is one."""
        grid = self.grid
        found = {
            "sweep/rules": np.array([row.label for row in grid.rows]),
            "sweep/eta": np.array(grid.eta),
            "sweep/gap_average": self.gap_average,
            "sweep/gap_last": self.gap_last,
            "sweep/steps": np.array(grid.steps),
        }
        return found | self._comal()

    def _comal(self) -> dict[str, np.ndarray]:
        rows = [(r, dict(row.fixed)) for r, row in enumerate(self.grid.rows) if row.kind.name == "comal"]
        inner = sorted({fixed["inner"] for _, fixed in rows})
        tau = sorted({fixed["tau"] for _, fixed in rows})
        eta = self.grid.eta
        if len(inner) < 2 or len(tau) * len(eta) < 2 or (len(tau) > 1 and len(eta) > 1):
            return {}  # a map over ητ needs one of eta and tau fixed: the gap depends on both
        products = sorted((e * t, column, t) for column, e in enumerate(eta) for t in tau)
        gaps = np.full((len(inner), len(products)), np.nan)
        where = {(fixed["inner"], fixed["tau"]): r for r, fixed in rows}
        for i, k in enumerate(inner):
            for j, (_, column, t) in enumerate(products):
                gaps[i, j] = self.gap_last[where[k, t], column]
        allowed = [j for j, (product, _, _) in enumerate(products) if product <= 1 + 1e-12]
        return {
            "comal/inner": np.array(inner),
            "comal/eta_tau": np.array([products[j][0] for j in allowed]),
            "comal/gap_last": gaps[:, allowed],
        } | ({"comal/tau": np.array(tau[0])} if len(tau) == 1 else {})

    def best(self) -> list[dict[str, Any]]:
        """For every row the step sizes of the smallest gaps, of the average and of the last policy."""
        told = []
        for row, average, last in zip(self.grid.rows, self.gap_average, self.gap_last, strict=True):
            entry: dict[str, Any] = {"rule": row.label}
            for name, gaps in (("average", average), ("last", last)):
                known = not np.all(np.isnan(gaps))
                at = int(np.nanargmin(gaps)) if known else 0
                entry[f"eta_{name}"] = self.grid.eta[at] if known else math.nan
                entry[f"gap_{name}"] = float(gaps[at])
            told.append(entry)
        return told


def sweep(
    grid: Grid,
    ground: Ground,
    store: CellStore,
    *,
    jobs: int = 1,
    backend: str = "loky",
    scheduler: str | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Sweep:
    """Run the cells that are not in the store yet, and gather the map.

    Parameters
    ----------
    grid : Grid
    ground : Ground
        The game and where runs begin.
    store : CellStore
        Every finished cell is stored at once, under a hash of everything that it depends on.
    jobs, backend, scheduler
        As in `run_all`.
    progress : callable (cells), optional
        Told of finished cells.

    Raises
    ------
    ValueError, OSError, WorkersDied
        As `Grid.cells` and `run_all`; finished cells stay stored.
    """
    allowed, refused = grid.cells()
    fingerprint = ground.fingerprint
    keys = {place: cell_key(fingerprint, rule, grid.steps) for place, rule in allowed.items()}
    found = {key: outcome for key in set(keys.values()) if (outcome := store.load(key)) is not None}
    reused = len(found)
    if progress is not None:
        progress(reused)
    packed = ground.packed()
    calls = {
        keys[place]: partial(run_cell, packed, rule, grid.steps)
        for place, rule in allowed.items()
        if keys[place] not in found
    }

    def finished(key: str, outcome: Outcome) -> None:
        store.store(key, outcome)
        found[key] = outcome
        if progress is not None:
            progress(1)

    run_all(calls, finished, jobs=jobs, backend=backend, scheduler=scheduler)
    gaps = np.full((2, len(grid.rows), len(grid.eta)), np.nan)
    for (r, e), key in keys.items():
        gaps[:, r, e] = found[key].final
        error = found[key].error
        if error is not None:
            refused[r, e] = error
    return Sweep(grid, gaps[0], gaps[1], refused, len(calls), reused)
