"""The critic against cvxpy, and SPAC on a large data set: ratios of times measured in one run on one thread.

    python tests/benchmarks/bench_critic.py [--quick] [--json FILE]

A ratio row solves the same problems on both sides: 8 responses, 1,000 replicates, ours in one batched call, theirs one
after another by cvxpy with Clarabel at its default tolerances, as a program that is built once and given new parameters
(``parametrized``, the fastest way to use it) and as a program that is built for every problem (``rebuilt``). "excess"
is how far the objective is above the lower one of both sides, divided by 1 + λ. Compilation is left out.

The other rows have no foreign side: they print seconds against a target and fail nothing.
"""

# ruff: noqa: E402  (the numbers of threads must be set before numpy is imported)
from __future__ import annotations

import os

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[variable] = "1"

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import cvxpy as cp
import numpy as np

from nashpo.core.rules.spac import SPAC
from nashpo.tabular.certificate import certificate
from nashpo.tabular.critic import Box
from nashpo.tabular.instances import full_coverage, rare_arms
from nashpo.tabular.offline import play_offline
from nashpo.tabular.preference_sampling import sample_preferences
from nashpo.tabular.preferences import PreferenceData

REPEATS = 5


@dataclass(frozen=True)
class Ratio:
    task: str
    against: str
    ours_ms: float
    theirs_ms: float
    ratio: float
    target: float
    met: bool
    our_excess: float
    their_excess: float


@dataclass(frozen=True)
class Timing:
    task: str
    seconds: float
    target: float | None
    note: str


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def parametrized(data: PreferenceData, direction: np.ndarray, lam: float, R: float) -> np.ndarray:
    """cvxpy with one parametrized program."""
    n = data.n
    i, j = np.nonzero(~np.eye(n, dtype=bool))
    f, cost, strength = cp.Variable(n), cp.Parameter(n), cp.Parameter(len(i), nonneg=True)
    program = cp.Problem(cp.Minimize(cost @ f + strength @ cp.logistic(f[j] - f[i])), [f >= 0, f <= R])
    values, frequencies = np.empty_like(direction), data.frequencies
    for k in range(len(direction)):
        cost.value, strength.value = direction[k] / (1 + lam), frequencies[k][i, j] * lam / (1 + lam)
        program.solve(solver=cp.CLARABEL)
        values[k] = np.clip(f.value, 0, R)
    return values


def rebuilt(data: PreferenceData, direction: np.ndarray, lam: float, R: float) -> np.ndarray:
    """cvxpy with a program per problem, over the pairs that occur."""
    values, frequencies = np.empty_like(direction), data.frequencies
    for k in range(len(direction)):
        i, j = np.nonzero(frequencies[k])
        f = cp.Variable(data.n)
        loss = cp.sum(cp.multiply(frequencies[k][i, j], cp.logistic(f[j] - f[i])))
        program = cp.Problem(cp.Minimize((direction[k] @ f + lam * loss) / (1 + lam)), [f >= 0, f <= R])
        program.solve(solver=cp.CLARABEL)
        values[k] = np.clip(f.value, 0, R)
    return values


THEIRS = {"cvxpy Clarabel, parametrized": parametrized, "cvxpy Clarabel, rebuilt": rebuilt}


def ratios(quick: bool) -> list[Ratio]:
    """Cold solves: no warm start, from the middle of the box."""
    rows = []
    rng = np.random.default_rng(0)
    count, few = 1000, 50 if quick else 1000
    for instance, N in ((rare_arms(1600), 1600), (full_coverage(8), 1600)):
        data = instance.sample(N, seed=0, replicates=count)
        lam = 2.0 * N**0.5
        direction = rng.dirichlet(np.ones(8), size=count) - instance.reference
        box = Box(instance.R)
        found = box.solve(data, direction, lam)
        ours = float(np.median([seconds(partial(box.solve, data, direction, lam)) for _ in range(REPEATS)]))
        part = PreferenceData.from_counts(data.wins[:few], ties=data.ties[:few], independent=1)
        reached = part.value(direction[:few], found.values[:few]) + lam * part.loss(found.values[:few])
        for name, solve in THEIRS.items():
            start = time.perf_counter()
            values = solve(part, direction[:few], lam, instance.R)
            theirs = (time.perf_counter() - start) * count / few
            other = part.value(direction[:few], values) + lam * part.loss(values)
            best = np.minimum(reached, other)
            excess = [float(np.max(x - best) / (1 + lam)) for x in (reached, other)]
            ratio = theirs / ours
            rows.append(
                Ratio(
                    f"8 responses x {count:,}, {instance.name}",
                    name,
                    1e3 * ours,
                    1e3 * theirs,
                    ratio,
                    200.0,
                    ratio >= 200 and excess[0] <= max(excess[1], 1e-9),
                    *excess,
                )
            )
    return rows


def timings(quick: bool) -> list[Timing]:
    rng = np.random.default_rng(1)
    reward = 3 * rng.random(50)
    behavior = rng.dirichlet(np.ones(50))
    data = sample_preferences(reward, behavior, 100_000, 0, 1)
    D = float(np.log(1 / behavior.min()))
    rule = SPAC.for_data(100_000, 400, D, 3.0)
    play_offline(rule, data, 1, reference=behavior)
    repeats = 1 if quick else 3
    big = min(seconds(lambda: play_offline(rule, data, 400, reference=behavior)) for _ in range(repeats))
    rows = [Timing("SPAC, N = 100,000, 50 responses, T = 400", big, 0.5, "")]

    instance = rare_arms(12_800)
    arms = instance.sample(12_800, seed=0, replicates=200)
    long = SPAC.for_data(12_800, 1600, instance.D, instance.R)
    T = 160 if quick else 1600
    taken = seconds(lambda: play_offline(long, arms, T, reference=instance.reference))
    note = f"{1e6 * taken / (200 * T):.2f} us per critic and step"
    rows.append(Timing(f"SPAC, 200 rare-arm data sets, T = {T}", taken, None, note))
    run = play_offline(long, arms, 50, reference=instance.reference)
    taken = seconds(lambda: certificate(arms, instance.comparator, run.average, instance.R))
    rows.append(Timing("certificates of 200 rare-arm data sets", taken, None, f"{1e3 * taken / 200:.3f} ms each"))
    return rows


def table(rows: Sequence[Ratio], times: Sequence[Timing]) -> str:
    head = f"{'task':36}{'against':30}{'ours ms':>9}{'theirs ms':>11}{'ratio':>8}{'target':>8}  {'excess':17} met"
    lines = [head, "-" * len(head)]
    for r in rows:
        numbers = f"{r.ours_ms:9.2f}{r.theirs_ms:11.0f}{r.ratio:8.0f}{r.target:8.0f}"
        excess = f"{r.our_excess:.1e}/{r.their_excess:.1e}"
        lines.append(f"{r.task:36}{r.against:30}{numbers}  {excess:17} {'yes' if r.met else 'NO'}")
    lines.append("")
    for t in times:
        target = f"(target {t.target:g} s)" if t.target is not None else ""
        lines.append(f"{t.task:46}{t.seconds:8.3f} s  {target} {t.note}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The critic against cvxpy, and SPAC on a large data set.")
    parser.add_argument("--quick", action="store_true", help="50 problems for cvxpy instead of 1,000")
    parser.add_argument("--json", metavar="FILE", help="write the rows to FILE as well")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", message="Solution may be inaccurate")
    rows, times = ratios(options.quick), timings(options.quick)
    print(table(rows, times))
    print("\nratio = theirs / ours; excess: how far ours / theirs is above the better of both, over 1 + lambda")
    if options.json:
        content = {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "cvxpy": cp.__version__,
            "ratios": [asdict(r) for r in rows],
            "timings": [asdict(t) for t in times],
        }
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
    return 0 if all(r.met for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
