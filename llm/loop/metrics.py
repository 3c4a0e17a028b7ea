"""RUN/metrics.jsonl: the figures of every finished iteration, one JSON object a line, made anew from the phases' files.

A row has ``iteration`` (from 1) and ``phase``; a training row also ``stage`` and ``step``. Being made from files that
are whole or not there, it holds no row twice, however often the run was stopped.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nashpo.llm.loop.evaluating import RESULTS
from nashpo.llm.loop.phase import MANIFEST, read_lines, write_lines
from nashpo.llm.loop.training import LOG

METRICS = "metrics.jsonl"


def write_metrics(run: Path, iterations: int) -> None:
    """Rows of iterations 1 … ``iterations``."""
    write_lines(run / METRICS, (row for number in range(1, iterations + 1) for row in _rows(run, number)))


def _rows(run: Path, number: int) -> Iterator[dict[str, Any]]:
    folder = run / f"iterations/{number:03d}"
    for phase in ("samples", "judgements"):
        for path in sorted((folder / phase).rglob(MANIFEST)):
            manifest = json.loads(path.read_bytes())
            name = str(path.parent.relative_to(folder))
            yield {"iteration": number, "phase": phase, "folder": name, **_numbers(manifest.get("counts", {}))}
    for path in sorted((folder / "train").glob(f"*/{LOG}")):
        for row in read_lines(path):
            yield {"iteration": number, "phase": "train", "stage": path.parent.name, **row}
    results = folder / "evaluation" / RESULTS
    if results.exists():
        yield {"iteration": number, "phase": "evaluation", **_flat(json.loads(results.read_bytes()))}


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested numbers under names joined by '/'; lists are left to the results' own file."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "iteration":
            found[prefix + name] = value
    return found
