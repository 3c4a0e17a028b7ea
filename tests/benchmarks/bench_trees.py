"""Multi-turn games of 10^5 states: seconds that a thousand updates take, at states and on whole trajectories.

    python tests/benchmarks/bench_trees.py [--quick] [--json FILE]

One BLAS thread. The goal is 60 s for T = 1000 on 10^5 states, gaps recorded at 4 steps per octave included. States are
counted with the final ones.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from nashpo.core.rules import ONPO, SPPO, Rule
from nashpo.tabular.trees import MTPO, TreeGame, families, play

GOAL = 60.0
"""Seconds for 1000 updates on 10^5 states."""

GAMES: dict[str, TreeGame] = {
    "one deep tree": families.random_tree(8, 4, outcomes=256),
    "many contexts": families.random_tree(3, 4, contexts=1177),
    "stochastic user": families.stochastic_users(4, 4, 4, contexts=2, outcomes=256),
}
RULES: dict[str, tuple[Rule, str]] = {
    "SPPO at states": (SPPO(eta=0.1), "state"),
    "ONPO at states": (ONPO(eta=0.5), "state"),
    "ONPO on trajectories": (ONPO(eta=0.5), "trajectory"),
    "MTPO": (MTPO.scheduled(0.1), "state"),
}


@dataclass(frozen=True)
class Row:
    game: str
    states: int
    rule: str
    steps: int
    seconds: float
    per_thousand: float
    met: bool


def row(name: str, game: TreeGame, rule: str, steps: int) -> Row:
    made, level = RULES[rule]
    play(made, game, 2, level=level)
    start = time.perf_counter()
    play(made, game, steps, level=level)
    seconds = time.perf_counter() - start
    thousand = 1000 * seconds / steps
    return Row(name, game.states, rule, steps, seconds, thousand, thousand <= GOAL)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Seconds of a thousand updates on multi-turn games of 10^5 states.")
    parser.add_argument("--quick", action="store_true", help="50 updates instead of 1000")
    parser.add_argument("--json", metavar="FILE", help="write the rows to FILE as well")
    options = parser.parse_args(arguments)
    print(f"{'game':18}{'states':>9}  {'rule':22}{'steps':>6}{'s':>8}{'s/1000':>9}{'goal':>6}  met")
    rows = []
    for name, game in GAMES.items():
        for rule in RULES:
            r = row(name, game, rule, 50 if options.quick else 1000)
            rows.append(r)
            print(
                f"{r.game:18}{r.states:9,}  {r.rule:22}{r.steps:6}{r.seconds:8.1f}{r.per_thousand:9.1f}"
                f"{GOAL:6.0f}  {'yes' if r.met else 'NO'}"
            )
    if options.json:
        content = {"python": platform.python_version(), "numpy": np.__version__, "rows": [asdict(r) for r in rows]}
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
    return 0 if all(r.met for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
