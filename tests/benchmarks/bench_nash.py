"""Equilibrium solvers against foreign ones: ratios of times measured in one run on one BLAS thread.

    python tests/benchmarks/bench_nash.py [--quick] [--json FILE]

Every row times both sides on the same games, alternating, and compares the medians; the ratio is theirs / ours, so that
larger is better. A row also shows the worst gap (or log residual) that our side reached. Compilation is left out.
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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from quantecon.optimize import minmax
from scipy.optimize import linprog

from nashpo.tabular.interior_point import solve_skew
from nashpo.tabular.linear_program import solve_regularized_cvxpy
from nashpo.tabular.regularized import solve_regularized

Solver = Callable[[np.ndarray], object]


@dataclass(frozen=True)
class Row:
    task: str
    against: str
    ours_ms: float
    theirs_ms: float
    ratio: float
    target: float
    met: bool
    worst: float


def skew(upper: np.ndarray) -> np.ndarray:
    upper = np.triu(upper, 1)
    return upper - np.swapaxes(upper, -1, -2)


def uniform(n: int, rng: np.random.Generator) -> np.ndarray:
    return skew(rng.random((n, n)) - 0.5)


def bradley_terry(n: int, rng: np.random.Generator) -> np.ndarray:
    reward = 2.0 * rng.normal(size=n)
    return skew(0.5 * np.tanh((reward[:, None] - reward) / 2))


def scipy_highs(method: str) -> Solver:
    def solve(A: np.ndarray) -> object:
        n = len(A)
        return linprog(
            np.r_[np.zeros(n), 1.0],
            A_ub=np.column_stack([A, -np.ones(n)]),
            b_ub=np.zeros(n),
            A_eq=np.r_[np.ones(n), 0.0][None, :],
            b_eq=[1.0],
            bounds=[(0.0, None)] * n + [(None, None)],
            method=method,
        )

    return solve


def seconds(solve: Callable[[], object]) -> float:
    start = time.perf_counter()
    solve()
    return time.perf_counter() - start


def compare(
    task: str, against: str, target: float, games: Sequence[np.ndarray], ours: Solver, theirs: Solver, worst: float
) -> Row:
    """Median times over the games, our run and theirs on one game right after each other."""
    ours(games[0])
    if len(games[0]) <= 200:
        theirs(games[0])
    pairs = np.array([(seconds(lambda A=A: ours(A)), seconds(lambda A=A: theirs(A))) for A in games])
    mine, other = np.median(pairs, axis=0)
    ratio = float(other / mine)
    return Row(task, against, 1e3 * float(mine), 1e3 * float(other), ratio, target, ratio >= target, worst)


def worst_gap(games: Sequence[np.ndarray]) -> float:
    return max(float(np.max(solve_skew(A).gap)) for A in games)


def exact_rows(rng: np.random.Generator, quick: bool) -> list[Row]:
    large = [uniform(1000, rng) for _ in range(1 if quick else 3)]
    middle = [uniform(100, rng) for _ in range(50 if quick else 200)]
    beaten = [bradley_terry(100, rng) for _ in range(50 if quick else 200)]
    batch = [np.stack([uniform(10, rng) for _ in range(1000)])]
    highs, simplex = scipy_highs("highs-ipm"), scipy_highs("highs-ds")

    def one_by_one(games: np.ndarray) -> list[object]:
        one = scipy_highs("highs")
        return [one(A) for A in games]

    gap = worst_gap(large)
    rows = [compare("exact, n = 1000", "scipy HiGHS ipm", 5.0, large, solve_skew, highs, gap)]
    minmax(middle[0])
    rows.append(compare("exact, n = 1000", "QuantEcon minmax", 10.0, large[:1], solve_skew, minmax, gap))
    if not quick:
        rows.append(compare("exact, n = 1000", "scipy HiGHS simplex", 10.0, large[:1], solve_skew, simplex, gap))
    gap = worst_gap(middle)
    rows.append(compare("exact, n = 100, uniform", "QuantEcon minmax", 1 / 2.5, middle, solve_skew, minmax, gap))
    rows.append(compare("exact, n = 100, uniform", "scipy HiGHS ipm", 5.0, middle[:20], solve_skew, highs, gap))
    gap = worst_gap(beaten)
    rows.append(compare("exact, n = 100, one beats all", "QuantEcon minmax", 1.0, beaten, solve_skew, minmax, gap))
    gap = worst_gap(batch)
    rows.append(compare("exact, 1000 games of n = 10", "scipy, 1000 calls", 50.0, batch, solve_skew, one_by_one, gap))
    return rows


def regularized_rows(rng: np.random.Generator, quick: bool) -> list[Row]:
    rows = []
    n = 100
    games = [uniform(n, rng) for _ in range(3 if quick else 10)]
    for tau in (1.0, 0.1, 0.01, 1e-3):
        log_reference = np.log(rng.dirichlet(np.ones(n)))

        def ours(A: np.ndarray, tau: float = tau, reference: np.ndarray = log_reference) -> object:
            return solve_regularized(A, reference, tau)

        def theirs(A: np.ndarray, tau: float = tau, reference: np.ndarray = log_reference) -> object:
            try:
                return solve_regularized_cvxpy(A, reference, tau)
            except RuntimeError:  # Clarabel gives up; the time it took counts
                return None

        worst = max(float(solve_regularized(A, log_reference, tau).residual) for A in games)
        rows.append(compare(f"regularized, n = 100, tau = {tau:g}", "cvxpy Clarabel", 5.0, games, ours, theirs, worst))
    return rows


def table(rows: Sequence[Row]) -> str:
    head = f"{'task':34}{'against':22}{'ours ms':>10}{'theirs ms':>11}{'ratio':>9}{'target':>8}  {'worst':8} met"
    lines = [head, "-" * len(head)]
    for r in rows:
        numbers = f"{r.ours_ms:10.3f}{r.theirs_ms:11.3f}{r.ratio:9.2f}{r.target:8.2f}  {r.worst:8.1e}"
        lines.append(f"{r.task:34}{r.against:22}{numbers} {'yes' if r.met else 'NO'}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Equilibrium solvers against foreign ones, as ratios of one run.")
    parser.add_argument("--quick", action="store_true", help="fewer games, and no HiGHS simplex at n = 1000")
    parser.add_argument("--json", metavar="FILE", help="write the rows to FILE as well")
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    rows = exact_rows(rng, options.quick) + regularized_rows(rng, options.quick)
    print(table(rows))
    print("\nratio = theirs / ours; worst: largest gap (exact) or log residual in nats (regularized) of ours")
    if options.json:
        content = {"python": platform.python_version(), "numpy": np.__version__, "rows": [asdict(r) for r in rows]}
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
    return 0 if all(r.met for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
