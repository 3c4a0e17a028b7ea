"""The compiled engine against a plain numpy loop and against the matrix-vector product: ratios of one run.

    python tests/benchmarks/bench_play.py [--quick] [--json FILE]

One BLAS thread. Every figure is the best of several repetitions, in which all sides take turns; compilation is left
out. The bound of a step is its matrix-vector products by numpy (OpenBLAS), which read the whole matrix; the engine
reads half of it where it is large (A is skew), and can exceed the bound.
"""

# ruff: noqa: E402  (the numbers of threads must be set before numpy is imported)
from __future__ import annotations

import os

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from nashpo.core.rules import COMAL, EGPO, INPO, ONPO, SPPO, NashMD, Rule
from nashpo.tabular.engine import simulate_compiled
from nashpo.tabular.game import Game
from nashpo.tabular.play import starting_points

ETA, TAU = 0.1, 0.1
Run = Callable[[], object]


@dataclass(frozen=True)
class Kind:
    """A rule, how many different policies it asks about in an iteration, and the ratio to numpy at n = 10 to reach."""

    rule: Rule
    products: int
    target: float


KINDS = {
    "SPPO": Kind(SPPO(ETA), 1, 20.0),
    "INPO": Kind(INPO(ETA, TAU), 1, 20.0),
    "COMAL": Kind(COMAL(ETA, TAU, 10), 1, 20.0),
    "Nash-MD": Kind(NashMD(ETA, TAU), 1, 10.0),
    "Nash-MD, scheduled": Kind(NashMD.scheduled(TAU), 1, 10.0),
    "EGPO": Kind(EGPO(ETA, TAU), 2, 10.0),
    "ONPO": Kind(ONPO(ETA), 1, 10.0),
    "ONPO, one step": Kind(ONPO(ETA, "one_step"), 1, 10.0),
    "ONPO, leader": Kind(ONPO(ETA, "leader"), 2, 10.0),
}


@dataclass(frozen=True)
class Row:
    task: str
    steps_per_s: float
    numpy_per_s: float | None
    bound_per_s: float | None
    ratio: float
    ratio_to: str
    target: float | None
    met: bool


def random_game(n: int, games: int | None = None) -> Game:
    shape = (n, n) if games is None else (games, n, n)
    upper = np.triu(np.random.default_rng(n).random(shape) - 0.5, 1)
    return Game(0.5 + upper - np.swapaxes(upper, -1, -2))


def engine(rule: Rule, game: Game, steps: int, threads: int = 1) -> Run:
    form = rule.form()
    origins = starting_points(game, None, None, None, form)
    return lambda: simulate_compiled(form, game, origins, steps, [steps], threads=threads)


def numpy_loop(game: Game, steps: int) -> Run:
    """SPPO as one writes it by hand, the average included."""
    A, n = game.A, game.n

    def run() -> np.ndarray:
        policy = np.full(n, 1.0 / n)
        log = np.log(policy)
        total = np.zeros(n)
        for _ in range(steps):
            total += policy
            log = log + ETA * (A @ policy)
            log -= log.max()
            policy = np.exp(log)
            policy /= policy.sum()
        return total / steps

    return run


def products(game: Game, steps: int) -> Run:
    A, policy, gain = game.A, np.full(game.n, 1.0 / game.n), np.empty(game.n)

    def run() -> None:
        for _ in range(steps):
            np.dot(A, policy, out=gain)

    return run


def best_times(runs: Sequence[Run], repetitions: int) -> list[float]:
    """Smallest seconds of each, taken in turns."""
    for run in runs:
        run()
    times = np.full((repetitions, len(runs)), np.inf)
    for row in times:
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run()
            row[i] = time.perf_counter() - start
    return [float(t) for t in times.min(axis=0)]


def single_rows(n: int, steps: int, repetitions: int) -> list[Row]:
    """One game: the ratio to numpy where n is small, the share of the bound where it is large."""
    game = random_game(n)
    fewer = max(1, steps // 20)
    runs = [numpy_loop(game, fewer), products(game, fewer)]
    loop, product, *ours = best_times([*runs, *(engine(k.rule, game, steps) for k in KINDS.values())], repetitions)
    rows = []
    for (name, kind), seconds in zip(KINDS.items(), ours):
        speed, numpy_speed, bound = steps / seconds, fewer / loop, fewer / product / kind.products
        if n <= 10:
            ratio, to, target = speed / numpy_speed, "numpy SPPO", kind.target
        else:
            ratio, to, target = speed / bound, "bound", 0.9
        rows.append(Row(f"{name}, n = {n}", speed, numpy_speed, bound, ratio, to, target, ratio >= target))
    return rows


def thread_row(n: int, steps: int, repetitions: int, games: int = 64) -> Row:
    game = random_game(n, games)
    rule = ONPO(ETA)
    one, two = best_times([engine(rule, game, steps, threads) for threads in (1, 2)], repetitions)
    ratio = one / two
    met = ratio >= 1.8
    return Row(f"ONPO, n = {n}, {games} games", games * steps / two, None, None, ratio, "one thread", 1.8, met)


def table(rows: Sequence[Row]) -> str:
    head = f"{'task':30}{'steps/s':>12}{'numpy/s':>12}{'bound/s':>12}{'ratio':>9} {'to':12}{'target':>7}  met"
    lines = [head, "-" * len(head)]
    for r in rows:
        speeds = [f"{x:12,.0f}" if x is not None else 12 * " " for x in (r.steps_per_s, r.numpy_per_s, r.bound_per_s)]
        target = f"{r.target:7.2f}" if r.target is not None else 7 * " "
        lines.append(f"{r.task:30}{''.join(speeds)}{r.ratio:9.2f} {r.ratio_to:12}{target}  {'yes' if r.met else 'NO'}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Steps per second of the compiled engine, as ratios of one run.")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--json", metavar="FILE", help="write the rows to FILE as well")
    options = parser.parse_args(arguments)
    repetitions = 5 if options.quick else 20
    rows = []
    for n, steps in ((10, 50_000), (100, 10_000), (1000, 200)):
        rows += single_rows(n, steps, repetitions)
    # Short and often, so that a machine with other work finds both cores free once.
    for n, steps in ((10, 1500), (100, 250)):
        rows.append(thread_row(n, steps, 10 * repetitions))
    print(table(rows))
    print("\nnumpy/s: steps of a plain numpy loop of SPPO; bound/s: steps of the rule's matrix-vector products alone")
    if options.json:
        content = {"python": platform.python_version(), "numpy": np.__version__, "rows": [asdict(r) for r in rows]}
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
    return 0 if all(r.met for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
