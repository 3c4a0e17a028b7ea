"""Ten million preference pairs over ten thousand prompts: read, reduced and played within 4 GiB and 120 s.

    python tests/benchmarks/bench_preferences.py [--pairs 10000000] [--prompts 10000] [--responses 16] [--steps 300]
        [--formats parquet,jsonl,jsonl.gz,arrays] [--json FILE]

Files are made in a temporary folder (texts of about 200 characters in shuffled order; labels from a Bradley–Terry
reward); making them is not timed. Every format is measured in a process of its own: the seconds include imports and
compilation, the peak is that process's largest resident size.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LIMIT_SECONDS = 120.0
LIMIT_GIB = 4.0
FORMATS = ("parquet", "jsonl", "jsonl.gz", "arrays")
_CHUNK = 500_000
_R = 3.0


def texts(rng: np.random.Generator, start: Sequence[str], words: int) -> list[str]:
    known = np.array([f"w{k:04d}" for k in range(5000)])
    drawn = known[rng.integers(0, known.size, (len(start), words))]
    return [f"{head} {' '.join(row)}" for head, row in zip(start, drawn, strict=True)]


def pairs(number: int, prompts: int, responses: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Prompt, chosen and rejected of the pairs, in chunks; responses are numbered within their prompt."""
    rng = np.random.default_rng(1)
    reward = np.random.default_rng(2).uniform(0, _R, (prompts, responses))
    for begin in range(0, number, _CHUNK):
        m = min(_CHUNK, number - begin)
        prompt, a, b = (rng.integers(0, k, m) for k in (prompts, responses, responses))
        first_wins = rng.random(m) < 1 / (1 + np.exp(reward[prompt, b] - reward[prompt, a]))
        yield prompt, np.where(first_wins, a, b), np.where(first_wins, b, a)


def make(kind: str, folder: Path, args: argparse.Namespace) -> Path:
    path = folder / f"pairs.{kind}"
    rng = np.random.default_rng(0)
    prompt_texts = texts(rng, [f"prompt {x}:" for x in range(args.prompts)], 16)
    heads = [f"response {y} to {x}:" for x in range(args.prompts) for y in range(args.responses)]
    response_texts = texts(rng, heads, 30)
    chunks = pairs(args.pairs, args.prompts, args.responses)
    if kind == "arrays":
        found = [np.concatenate(parts) for parts in zip(*chunks, strict=True)]
        with path.open("wb") as file:
            np.savez(file, prompt=found[0], chosen=found[1], rejected=found[2])
    elif kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([(name, pa.string()) for name in ("prompt", "chosen", "rejected")])
        known = pa.array(prompt_texts), pa.array(response_texts)
        with pq.ParquetWriter(path, schema) as writer:
            for prompt, a, b in chunks:
                at = prompt * args.responses
                columns = [known[0].take(prompt), known[1].take(at + a), known[1].take(at + b)]
                writer.write_table(pa.table(columns, schema=schema))
    else:
        quoted = [json.dumps(text) for text in prompt_texts], [json.dumps(text) for text in response_texts]
        with gzip.open(path, "wt", compresslevel=1) if kind == "jsonl.gz" else path.open("w") as lines:
            for prompt, a, b in chunks:
                at = prompt * args.responses
                for x, better, worse in zip(prompt.tolist(), (at + a).tolist(), (at + b).tolist(), strict=True):
                    head, good, bad = quoted[0][x], quoted[1][better], quoted[1][worse]
                    lines.write(f'{{"prompt": {head}, "chosen": {good}, "rejected": {bad}}}\n')
    return path


def measure(path: Path, steps: int) -> dict[str, Any]:
    """Read, reduce and play in this process."""
    start = time.perf_counter()
    from nashpo.core.rules.spac import SPAC
    from nashpo.tabular.offline import play_offline
    from nashpo.tabular.preference_files import from_arrays, read_preferences

    if path.suffix == ".arrays":
        with np.load(path) as arrays:
            data = from_arrays(arrays["prompt"], arrays["chosen"], arrays["rejected"])
    else:
        data, _ = read_preferences(path)
    read = time.perf_counter()
    rule = SPAC.for_data(N=float(data.N), T=steps, D=float(np.log(data.n)), R=_R)
    run = play_offline(rule, data, steps)
    end = time.perf_counter()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    reward = np.random.default_rng(2).uniform(0, _R, data.wins.shape[:-1])
    return {
        "pairs": float(data.N),
        "prompts": data.wins.shape[0],
        "responses": data.n,
        "steps": steps,
        "read_s": read - start,
        "play_s": end - read,
        "total_s": end - start,
        "processor_s": usage.ru_utime + usage.ru_stime,
        "peak_gib": usage.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20),
        # Prompts and responses of a file come in order of first appearance: the truth is matched by its text.
        "regret": float(np.mean(reward_order(data, reward).max(axis=-1)) - played(data, run.average, reward)),
    }


def reward_order(data: Any, reward: np.ndarray) -> np.ndarray:
    """The true rewards in the order of the data's prompts and responses."""
    number = lambda text, at: int(text.split(" ")[at].rstrip(":")) if " " in text else int(text)  # noqa: E731
    prompt = np.array([number(text, 1) for text in data.prompts])
    found = np.full(data.wins.shape[:-1], -np.inf)
    for x, names in enumerate(data.responses):
        found[x, : len(names)] = reward[prompt[x], [number(text, 1) for text in names]]
    return found


def played(data: Any, policy: np.ndarray, reward: np.ndarray) -> float:
    values = reward_order(data, reward)
    return float(np.mean(np.sum(policy * np.where(np.isfinite(values), values, 0.0), axis=-1)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10_000_000)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--responses", type=int, default=16)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--measure", metavar="PATH", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure), args.steps)))
        return 0
    found = {}
    for kind in args.formats.split(","):
        if kind not in FORMATS:
            parser.error(f"unknown format {kind!r}; known: {', '.join(FORMATS)}")
        with tempfile.TemporaryDirectory() as folder:
            path = make(kind, Path(folder), args)
            command = [sys.executable, __file__, "--measure", str(path), "--steps", str(args.steps)]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            row["file_gib"] = path.stat().st_size / 2**30
        row["met"] = row["total_s"] <= LIMIT_SECONDS and row["peak_gib"] <= LIMIT_GIB
        found[kind] = row
        verdict = "within" if row["met"] else "NOT within"
        print(
            f"{kind:9s} {row['file_gib']:.2f} GiB: read {row['read_s']:.1f} s,"
            f" {row['steps']} steps {row['play_s']:.1f} s, sum {row['total_s']:.1f} s"
            f" (processor time {row['processor_s']:.1f} s); peak {row['peak_gib']:.2f} GiB; regret {row['regret']:.4f};"
            f" {verdict} {LIMIT_SECONDS:g} s and {LIMIT_GIB:g} GiB",
            flush=True,
        )
    if args.json:
        result = {"python": platform.python_version(), "numpy": np.__version__, "machine": platform.machine()}
        Path(args.json).write_text(json.dumps(result | {"formats": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
