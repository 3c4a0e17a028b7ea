"""A run folder of `nashpo train`, read for its report: recipe, metrics, evaluations, manifests.

Everything beside the recipe may be missing: a run may be unfinished, and may have no evaluation. Shapes: numbers and
intervals (mean, low, high) only; what comes from samples and judgements is in `nashpo.figures.training_shards`.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nashpo.figures.training_shards import Shards, json_rows, read_shards

RECIPE, STATE, METRICS, MANIFEST, LOG = "recipe.yaml", "state.json", "metrics.jsonl", "manifest.json", "log.jsonl"
RESULTS = Path("evaluation") / "results.json"
MODEL, CURRENT = "model", "current"
"""Folder of the weights, and the stage that writes them."""
ORDER = ("samples", "judgements", "logprobs", "train", MODEL, "evaluation")
BEFORE = ("tiny", "warmup", "start")
"""Folders of what comes before the first iteration."""

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; ``low`` and ``high`` are NaN where none is known."""

    mean: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Phase:
    """What the manifest of a phase that is done says; ``name`` is its folder, ``train/current``, ``kind`` its phase."""

    name: str
    kind: str
    seconds: float | None
    counts: Json
    versions: Json


@dataclass(frozen=True)
class Iteration:
    """One iteration: it samples from the policy before it and writes the next.

    Attributes
    ----------
    number : int
        1, 2, …
    results : mapping
        ``evaluation/results.json``; empty where there is none.
    phases : tuple of Phase
    steps : mapping stage -> rows
        Rows of ``metrics.jsonl`` about training, by step.
    shards : Shards
        Statistics of samples and judgements.
    """

    number: int
    results: Json = field(default_factory=dict)
    phases: tuple[Phase, ...] = ()
    steps: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    shards: Shards = field(default_factory=Shards)

    def interval(self, *path: str) -> Interval | None:
        """The interval at a place of the results; None where there is none. A bare number has no bounds."""
        return interval(at(self.results, *path))

    def value(self, *path: str) -> float | None:
        """The finite number at a place of the results."""
        return number(at(self.results, *path))


@dataclass(frozen=True)
class TrainingRun:
    """A run: recipe, phases before the first iteration, iterations; ``planned`` and ``done`` count iterations."""

    folder: Path
    recipe: Json
    before: tuple[Phase, ...] = ()
    iterations: tuple[Iteration, ...] = ()
    planned: int | None = None
    done: int = 0

    @property
    def finished(self) -> bool:
        """Whether every planned iteration is done."""
        return self.planned is not None and self.done >= self.planned

    def series(self, *path: str) -> dict[int, Interval]:
        """The interval at one place of the results, by iteration, where it was measured."""
        found = {iteration.number: iteration.interval(*path) for iteration in self.iterations}
        return {n: value for n, value in found.items() if value is not None}


def is_run(folder: Path) -> bool:
    """Whether `nashpo train` wrote the folder."""
    return (Path(folder) / RECIPE).is_file()


def load_run(folder: Path) -> TrainingRun:
    """Read a run.

    Parameters
    ----------
    folder : path
        The ``output_dir`` of `nashpo train`.

    Returns
    -------
    TrainingRun

    Raises
    ------
    ValueError
        If the folder is no run, or one of its files is damaged.
    """
    folder = Path(folder)
    recipe = _recipe(folder)
    rows = list(json_rows(folder / METRICS)) if (folder / METRICS).is_file() else []
    numbered = {int(path.name): path for path in folder.glob("iterations/*") if path.is_dir() and path.name.isdecimal()}
    iterations = []
    for n in sorted(numbered):
        steps = _steps(row for row in rows if row.get("iteration") == n and row.get("phase") == "train")
        steps = steps or _logged(numbered[n])
        results = _object(numbered[n] / RESULTS)
        iterations.append(Iteration(n, results, _phases(numbered[n]), steps, read_shards(numbered[n])))
    before = tuple(
        phase for part in BEFORE if (folder / part).is_dir() for phase in _phases(folder / part, within=part)
    )
    return TrainingRun(folder, recipe, before, tuple(iterations), _planned(recipe), _done(folder, numbered))


def at(entries: Any, *path: str) -> Any:
    """What stands at a path of nested objects, None where something on the way is missing."""
    for key in path:
        entries = entries.get(key) if isinstance(entries, Mapping) else None
    return entries


def number(value: Any) -> float | None:
    """The value as a float, if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def interval(value: Any) -> Interval | None:
    """{"mean" or "median", "low", "high"} or a bare number as an interval; of one prompt no bounds are known."""
    if isinstance(value, Mapping):
        mean = number(value.get("mean", value.get("median")))
        bounds = [None if value.get("prompts") == 1 else number(value.get(name)) for name in ("low", "high")]
        low, high = (math.nan if bound is None else bound for bound in bounds)
        return None if mean is None else Interval(mean, low, high)
    bare = number(value)
    return None if bare is None else Interval(bare)


def _recipe(folder: Path) -> Json:
    from nashpo.llm.recipe.yaml_text import parse_mapping

    path = folder / RECIPE
    if not path.is_file():
        raise ValueError(f"{folder} is no run: there is no {RECIPE} in it; give the output_dir of `nashpo train`")
    try:
        return parse_mapping(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text ({error}); restore the recipe that the run was started with") from error


def _object(path: Path) -> Json:
    """A JSON object from a file; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); delete it and run `nashpo train` again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no JSON object; delete it and run `nashpo train` again")
    return found


def _phases(folder: Path, within: str = "") -> tuple[Phase, ...]:
    """The manifests below a folder, in the order of the phases."""
    found = [
        ("/".join(filter(None, (within, *path.parent.relative_to(folder).parts))), path)
        for path in folder.rglob(MANIFEST)
    ]
    named = sorted(found, key=lambda entry: (_order(entry[0]), entry[0]))
    return tuple(_phase(name, manifest) for name, path in named if (manifest := _object(path)).get("complete", True))


def _order(name: str) -> int:
    """Place of a phase's folder within an iteration; further models of a stage come after the training."""
    first = name.partition("/")[0]
    return ORDER.index(first) if first in ORDER else ORDER.index(MODEL)


def _phase(name: str, manifest: Json) -> Phase:
    counts, versions = (part if isinstance(part := manifest.get(key), dict) else {} for key in ("counts", "versions"))
    kind = str(manifest.get("phase") or name.partition("/")[0])
    return Phase(name, kind, number(manifest.get("seconds")), counts, versions)


def _steps(rows: Iterable[Json]) -> dict[str, list[Json]]:
    """Rows of one iteration by stage and step. Rows of one step are one: a trainer ends with a row of its own."""
    stages: dict[str, dict[float, dict[str, Any]]] = {}
    for row in rows:
        step = number(row.get("step"))
        if step is not None:
            known = stages.setdefault(str(row.get("stage") or CURRENT), {})
            known[step] = {**known.get(step, {}), **row}
    return {stage: [rows[step] for step in sorted(rows)] for stage, rows in stages.items()}


def _logged(iteration: Path) -> dict[str, list[Json]]:
    """The same from the logs of the stages, where ``metrics.jsonl`` has nothing."""
    stages = (path.parent for path in sorted(iteration.glob(f"train/*/{LOG}")))
    found = {path.name: _steps({**row, "stage": path.name} for row in json_rows(path / LOG)) for path in stages}
    return {stage: rows[stage] for stage, rows in found.items() if rows}


def _planned(recipe: Json) -> int | None:
    asked = recipe.get("iterations")
    count = number(asked.get("count") if isinstance(asked, Mapping) else asked)
    return None if count is None else int(count)


def _done(folder: Path, numbered: Mapping[int, Path]) -> int:
    """Iterations that are done: committed, or with weights, or followed by another one."""
    committed = number(_object(folder / STATE).get("t"))
    weights = {n: _object(path / MODEL / MANIFEST) for n, path in numbered.items()}
    with_weights = [n for n, manifest in weights.items() if manifest and manifest.get("complete", True)]
    return max([0 if committed is None else int(committed), *with_weights, max(numbered, default=1) - 1])
