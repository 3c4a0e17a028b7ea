"""A synthetic run folder in the layout of `nashpo train`, plainly made up: no number here was computed by a rule."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

RECIPE: dict[str, Any] = {
    "model": {"path": None, "build": {"symbols": 4, "length": 2, "hidden_size": 32}, "dtype": "float32"},
    "rule": {"name": "onpo", "eta": 0.5},
    "prompts": {"path": "prompts.jsonl", "heldout": 16},
    "sampling": {"engine": "transformers", "K": 5, "max_new_tokens": 64, "temperature": 1.0, "top_p": 1.0},
    "judge": {"kind": "table", "game": "cyclic:n=5"},
    "training": {"learning_rate": 5e-4, "hub_token": "hf_secret"},
    "iterations": {"count": 3, "prompts": "split"},
    "evaluation": {"exact": True},
    "output_dir": "out",
    "seed": 7,
}
VERSIONS = {"nashpo": "0.1.0", "torch": "2.13.0"}
STAGES = ("auxiliary", "current")


def write_run(
    folder: Path,
    done: int = 3,
    begun: int = 0,
    recipe: dict[str, Any] | None = None,
    evaluation: bool = True,
    exact: bool = True,
    prompts: int = 24,
    response: str = "It is",
) -> Path:
    """A run with some iterations done and the next one begun (its samples are there, its judgements are not).

    Parameters
    ----------
    folder : path
        Made.
    done, begun : int
    recipe : dict, optional
        Entries that replace those of `RECIPE`.
    evaluation, exact : bool
        Whether results.json is there, and whether its exact part is known.
    prompts : int
    response : str
        What every response begins with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | (recipe or {}), sort_keys=False))
    manifest(folder / "start", "start", {}, 1.5)
    rows = []
    for n in range(1, done + begun + 1):
        rng = np.random.default_rng(n)
        iteration = folder / "iterations" / f"{n:03d}"
        write_samples(iteration, n, rng, prompts, response)
        if n > done:
            continue
        write_judgements(iteration, n, rng, prompts)
        manifest(iteration / "logprobs", "logprobs", {"policies": 2, "prompts": prompts - 1}, 4.0)
        for stage in STAGES:
            rows += steps(n, stage, rng)
            manifest(iteration / "train" / stage, "train", {"steps": 40, "prompts": prompts - 1}, 21.0)
            manifest(iteration / ("model" if stage == "current" else stage), "model", {}, 20.5)
        if evaluation:
            write_results(iteration, n, exact, response)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def manifest(folder: Path, phase: str, counts: dict[str, Any], seconds: float, **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    about = {"format": 1, "phase": phase, "key": "k", "complete": True, "files": {}, "seed": 7, "versions": VERSIONS}
    (folder / "manifest.json").write_text(json.dumps(about | {"counts": counts, "seconds": seconds} | more))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_samples(iteration: Path, n: int, rng: np.random.Generator, prompts: int, response: str) -> None:
    """Two shards; a prompt is text, then chat, in turn."""
    rows = []
    for p in range(prompts):
        lengths = rng.integers(5, 12 + 6 * n, 5)
        completions = [
            {"ids": list(range(length)), "text": f"{response} {'so ' * int(length)}", "finished": bool(length < 25)}
            for length in lengths
        ]
        prompt = f"Why {p}?" if p % 2 else [{"role": "user", "content": f"Why {p}?"}]
        rows.append({"prompt_key": f"key {p}", "prompt": prompt, "prompt_ids": [1, p], "completions": completions})
    half = len(rows) // 2
    for place, shard in enumerate((rows[:half], rows[half:])):
        write_lines(iteration / "samples" / f"{place:05d}.jsonl", shard)
    counts = {"prompts": prompts, "responses": 5 * prompts, "tokens": 100 * prompts, "retokenized": 0}
    manifest(iteration / "samples", "samples", counts, 12.0)


def write_judgements(iteration: Path, n: int, rng: np.random.Generator, prompts: int) -> None:
    """Random win rates, ever closer to ½; the judge abstained on the first prompt."""
    rows = []
    for p in range(prompts):
        upper = np.triu(rng.uniform(-0.5, 0.5, (5, 5)) / n, 1)
        wins: list[list[float | None]] = (0.5 + upper - upper.T).tolist()
        if p == 0:
            wins[0][1] = wins[1][0] = None
        rows.append({"prompt_key": f"key {p}", "wins": wins, "raw": [], "asymmetry": 0.02 * n})
    write_lines(iteration / "judgements" / "00000.jsonl", rows)
    manifest(iteration / "judgements", "judgements", {"prompts": prompts, "abstained": 2, "asymmetry": 0.02 * n}, 8.0)


def steps(n: int, stage: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    offset = 0.0 if stage == "current" else 0.02
    return [
        {
            "iteration": n,
            "phase": "train",
            "stage": stage,
            "step": step,
            "loss": (0.4 + offset) * np.exp(-step / 20) / n + 0.05 + 0.01 * rng.random(),
            "theory/regression_residual": (0.3 + offset) * np.exp(-step / 15) + 0.06 + 0.01 * rng.random(),
            "theory/regression_residual_centred": 0.2 * np.exp(-step / 15) + 0.04 + 0.01 * rng.random(),
            "theory/kl_reference": 0.3 * (n - 1) + 0.3 * (1 - np.exp(-step / 20)),
            "theory/kl_last_iterate": 0.3 * (1 - np.exp(-step / 20)),
        }
        for step in range(2, 42, 2)
    ]


def band(mean: float, half: float, name: str = "mean", **more: Any) -> dict[str, Any]:
    return {name: mean, "low": mean - half, "high": mean + half, **more}


def write_results(iteration: Path, n: int, exact: bool, response: str) -> None:
    predicted = {
        "gap_last": band(0.42 * 0.55**n, 0.1 * 0.6**n, "median"),
        "gap_average": band(0.36 * 0.7**n, 0.08 * 0.6**n, "median"),
    }
    found = {
        "iteration": n,
        "win_rates": {
            "reference": band(0.5 + 0.06 * n, 0.05, prompts=16),
            "previous": band(0.55 - 0.01 * n, 0.05, prompts=16),
        },
        "length_controlled": {"reference": band(0.5 + 0.04 * n, 0.06)},
        "samples": {
            "policy": f"iteration {n - 1}",
            "prompts": 24,
            "K": 5,
            "gap": band(0.4 / n, 0.05),
            "cyclic_share": 0.15 + 0.03 * n,
            "triples": 230,
            "asymmetry": 0.02 * n,
            "abstained": 1,
            "length_bias": 0.01 * n,
            "tokens": band(12 + 3 * n, 1.0),
            "finished_share": 0.98,
        },
        "lengths": {"current": band(14 + 3 * n, 1.0), "reference": band(13.5, 1.0)},
        "exact": {
            "gap_last": 0.45 * 0.55**n,
            "gap_average": 0.38 * 0.68**n,
            "certificate": 2.5 / n,
            "prediction": predicted,
            "total_variation_from_prediction": 0.03,
        }
        if exact
        else None,
        "kl": {"reference": band(0.31 * n, 0.05), "last": band(0.3, 0.05)},
        "side_by_side": [
            {"prompt": f"Why {p}?", "current": f"{response} new {p}", "reference": f"{response} old {p}", "win": 0.75}
            for p in range(6)
        ],
    }
    folder = iteration / "evaluation"
    manifest(folder, "evaluation", {"prompts": 16}, 15.0)
    manifest(folder / "samples" / "current", "samples", {"prompts": 16}, 6.0)
    (folder / "results.json").write_text(json.dumps(found))
