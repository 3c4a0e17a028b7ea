"""Runs of ``nashpo train`` that are killed with SIGKILL at random moments, and what must be equal afterwards.

    python tests/llm/killing.py RECIPE --kills 20 [KEY=VALUE ...]

A run is a forked child of this process, in which everything heavy is imported once. It is killed after a random time,
started again, and so on; then it is left to finish and held against a run that nobody touched.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from forked import fork

WALL_CLOCK = ("seconds", "versions")
"""Keys of a manifest that tell when and where."""
IGNORED = ("lock", "report.html", "judge_cache.jsonl")
"""Files that hold times, or the order in which things were asked."""


def fork_train(recipe: Any, run: Path, log: Path) -> int:
    """Start a run in a child process; its pid."""

    def work() -> int:
        from dataclasses import replace

        from nashpo.llm.loop.machine import train

        train(replace(recipe, output_dir=run))
        return 0

    return fork(log, work)


def finish(pid: int) -> int:
    """The child's exit status; negative for a signal."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def committed(run: Path) -> dict[str, bytes]:
    """The manifests of phases that are done."""
    found = {}
    for path in run.rglob("manifest.json"):
        data = path.read_bytes()
        if json.loads(data)["complete"]:
            found[str(path.relative_to(run))] = data
    return found


def contents(run: Path) -> dict[str, Any]:
    """Everything that must be the same, by file."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        name = str(path.relative_to(run))
        if path.name in IGNORED or path.suffix == ".part":
            continue
        if path.name == "manifest.json":
            manifest = json.loads(path.read_bytes())
            found[name] = {key: value for key, value in manifest.items() if key not in WALL_CLOCK}
        elif name == "recipe.yaml":
            found[name] = [line for line in path.read_text().splitlines() if not line.startswith("output_dir")]
        else:
            found[name] = path.read_bytes()
    return found


def differences(run: Path, other: Path) -> list[str]:
    """Files that differ or are missing in one of the runs."""
    one, two = contents(run), contents(other)
    return [name for name in sorted({*one, *two}) if one.get(name) != two.get(name)]


def kill_and_resume(recipe: Any, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Play a recipe undisturbed and killed ``kills`` times.

    Returns
    -------
    dict
        ``kills`` that hit, ``seconds`` of the undisturbed run, ``repeated`` phases that were committed and changed
        afterwards, ``different`` files.
    """
    calm, killed, log = folder / "calm", folder / "killed", folder / "log.txt"
    began = time.monotonic()
    status = finish(fork_train(recipe, calm, log))
    if status:
        raise RuntimeError(f"the undisturbed run ended with {status}:\n{log.read_text()}")
    seconds = time.monotonic() - began
    rng = random.Random(seed)
    hit, repeated, before = 0, set(), {}
    while hit < kills:
        pid = fork_train(recipe, killed, log)
        # Runs go on where they stopped, so that short times keep all kills within one run.
        time.sleep(rng.uniform(0, 1.6 * seconds / max(1, kills)) + 0.05)
        os.kill(pid, signal.SIGKILL)
        status = finish(pid)
        if status == 0:
            break  # it was faster
        if status != -signal.SIGKILL:
            raise RuntimeError(f"a resumed run ended with {status}:\n{log.read_text()}")
        hit += 1
        now = committed(killed)
        repeated |= {name for name, data in before.items() if name in now and now[name] != data}
        before = now
    status = finish(fork_train(recipe, killed, log))
    if status:
        raise RuntimeError(f"the last resumption ended with {status}:\n{log.read_text()}")
    now = committed(killed)
    repeated |= {name for name, data in before.items() if name in now and now[name] != data}
    return {
        "kills": hit,
        "seconds": round(seconds, 2),
        "repeated": sorted(repeated),
        "different": differences(calm, killed),
    }


def main() -> int:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("changes", nargs="*")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep both runs, and print where")
    parser.add_argument("--no-report", action="store_true", help="draw nothing, which takes a third of a tiny run")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    from nashpo.llm.loop import machine  # before the forks
    from nashpo.llm.recipe.schema import load_recipe

    if options.no_report:
        machine.write_report = lambda run: (run / machine.REPORT).touch()
    recipe = load_recipe(options.recipe, options.changes)
    gc.freeze()  # what was imported need not be looked through in every child
    folder = Path(tempfile.mkdtemp(prefix="nashpo-kills-"))
    result = kill_and_resume(recipe, folder, options.kills, options.seed)
    print(json.dumps(result, indent=1))
    if not options.keep:
        shutil.rmtree(folder)
    else:
        print(folder)
    return 1 if result["repeated"] or result["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
