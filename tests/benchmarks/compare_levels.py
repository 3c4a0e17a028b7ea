"""Both levels of conversations on the recipe ``tiny-multiturn``: the exact duality gap, iteration by iteration.

    python tests/benchmarks/compare_levels.py [--seeds 3] [KEY=VALUE ...]

Each pair of rows compares as many whole conversations per prompt (L): K of them drawn independently, whose conversation
takes the step (trajectory), or the leaves of a tree of K answers with b later ones each, where every answer takes the
step on an estimate of Q (state). ``answers`` is how many answers are drawn per prompt. Gaps are means over prompts and
seeds, ± their standard deviation over seeds.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from nashpo.llm.loop.machine import train
from nashpo.llm.recipe.schema import load_recipe

BUDGETS = ((16, 4, 4), (64, 8, 8), (128, 16, 8))
"""Whole conversations per prompt; the first answers and the later ones of a tree with as many leaves."""


PROMPTS = 6


def rows(first: int) -> str:
    """All states of all prompts in one batch, as the recipe has all prompts in one."""
    return f"training.per_device_train_batch_size={PROMPTS * (1 + first)}"


def gaps(folder: Path, changes: list[str]) -> list[float]:
    """The exact gap of the start and of every iterate."""
    run = train(load_recipe("tiny-multiturn", [f"output_dir={folder}", *changes])).run
    found = [json.loads(path.read_text())["exact"] for path in sorted(run.glob("iterations/*/evaluation/results.json"))]
    return [found[0]["gap_start"], *(one["gap_last"] for one in found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--level", choices=("trajectory", "state"), help="only this one")
    parser.add_argument("changes", nargs="*", help="key=value, as on the command line of nashpo train")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    with tempfile.TemporaryDirectory() as home:
        for leaves, first, later in BUDGETS:
            for level, keys, answers in (
                ("trajectory", [f"sampling.K={leaves}"], 2 * leaves),
                ("state", [f"sampling.K={first}", f"conversation.branches={later}", rows(first)], first + leaves),
            ):
                if args.level not in (None, level):
                    continue
                runs = []
                for seed in range(args.seeds):
                    folder = Path(home) / f"{level}-{leaves}-{seed}"
                    runs.append(gaps(folder, [f"conversation.level={level}", f"seed={seed}", *keys, *args.changes]))
                cells = (f"{m:.3f} ± {s:.3f}" for m, s in zip(np.mean(runs, 0), np.std(runs, 0), strict=True))
                lines.append(f"{leaves:>4} {level:<11}{answers:>8}  " + "  ".join(cells))
    print(f"{'L':>4} {'level':<11}{'answers':>8}  gap of the start, after iteration 1, 2, …")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
