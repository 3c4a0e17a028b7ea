"""Runs of several processes for `test_ranks`: each is a forked child of this one, which has imported everything.

    python tests/llm/ranks_world.py FOLDER SCENARIO ...

Scenarios leave their runs and logs in the folder, and what happened in ``SCENARIO.json``.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forked import fork

RECIPE = """
model: {build: {symbols: 3, length: 2, prompts: 7, hidden_size: 16, layers: 1, heads: 2}}
rule: {name: onpo, eta: 1.0}
sampling: {K: 4, max_new_tokens: 2, shard: 3}
training: {num_train_epochs: 2, per_device_train_batch_size: 2, gradient_accumulation_steps: 2, learning_rate: 1.0e-2,
  optim: sgd, logging_steps: 1, save_steps: 2, per_device_eval_batch_size: 2}
iterations: {count: 2, prompts: all}
evaluation: {K: 2}
output_dir: OUT
"""
"""Updates of 4 of at most 7 prompts, the second one of every epoch with fewer; 3 shards of samples, up to 4 batches to
score."""
SECONDS = 120
"""After which a process counts as hanging."""
SHORT = ("iterations.count=1", "evaluation=null")

Work = Callable[[int], Any]


def fork_ranks(world: int, log: Path, work: Work) -> list[int]:
    """Exit statuses of so many processes that each do the work of their rank, as ``nashpo`` would exit; what rank r
    tells is in ``LOG.r``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [_fork(rank, world, port, Path(f"{log}.{rank}"), work) for rank in range(world)]
    until = time.monotonic() + SECONDS
    found: dict[int, int] = {}
    while len(found) < world and time.monotonic() < until:
        for rank, pid in enumerate(children):
            if rank not in found and (done := os.waitpid(pid, os.WNOHANG))[0]:
                found[rank] = os.waitstatus_to_exitcode(done[1])
        time.sleep(0.02)
    for rank, pid in enumerate(children):
        if rank not in found:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            found[rank] = 999  # it hung
    return [found[rank] for rank in range(world)]


def _fork(rank: int, world: int, port: int, log: Path, work: Work) -> int:
    def ranked() -> int:
        if world > 1:
            names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
            os.environ |= dict(zip(names, map(str, (rank, rank, world, world, port)), strict=True))
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        try:
            work(rank)
        except ValueError as error:
            print(f"nashpo: error: {' '.join(str(error).split())}")
            return 2
        return 0

    return fork(log, ranked)


def recipe(run: Path, *changes: str) -> Any:
    """The recipe above, in a folder."""
    from nashpo.llm.recipe.schema import parse_recipe

    return parse_recipe(RECIPE, "recipe", [f"output_dir={run}", *changes])


def calm(rank: int) -> None:
    """Spoils nothing."""


def play(run: Path, world: int, before: Work = calm, *changes: str) -> list[int]:
    """A run by so many processes; ``before`` spoils one of them."""

    def work(rank: int) -> None:
        from nashpo.llm.loop.machine import train

        before(rank)
        train(recipe(run, *changes), say=print)

    return fork_ranks(world, run.with_suffix(".log"), work)


# -------------------------------------------------------------------------------------------------------- the scenarios


def worlds(folder: Path) -> dict[str, Any]:
    """The same run by 1, 2 and 4 processes."""
    return {str(n): play(folder / f"world-{n}", n) for n in (1, 2, 4)}


def killed(folder: Path) -> dict[str, Any]:
    """The second of two processes is killed in training, after a checkpoint; one process goes on."""

    def kill(rank: int) -> None:
        from nashpo.llm.trainer import SelfPlayTrainer

        original = SelfPlayTrainer.training_step

        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            if rank == 1 and self.state.global_step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, *args, **kwargs)

        SelfPlayTrainer.training_step = step

    run = folder / "killed"
    first = play(run, 2, kill, *SHORT)
    checkpoints = [str(path.relative_to(run)) for path in run.rglob("checkpoint-*/complete.json")]
    return {"first": first, "checkpoints": checkpoints, "second": play(run, 1, calm, *SHORT)}


def full(folder: Path) -> dict[str, Any]:
    """The disk of the second of two processes is full when it writes samples; both go on."""

    def fill(rank: int) -> None:
        from nashpo.llm.loop import sampling

        original = sampling.write_lines

        def write(path: Path, rows: Any) -> None:
            if rank == 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            original(path, rows)

        sampling.write_lines = write

    run = folder / "full"
    first = play(run, 2, fill, *SHORT)
    samples = sorted(path.name for path in run.rglob("samples/*.jsonl"))
    return {"first": first, "samples": samples, "second": play(run, 2, calm, *SHORT)}


def broken(folder: Path) -> dict[str, Any]:
    """The second of two processes fails in the middle of a training, where the first waits for its gradients."""

    def spoil(rank: int) -> None:
        from nashpo.llm.trainer import SelfPlayTrainer

        original = SelfPlayTrainer.training_step

        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            if rank == 1 and self.state.global_step == 1:
                raise MemoryError("no memory for 3 sequences")
            return original(self, *args, **kwargs)

        SelfPlayTrainer.training_step = step

    return {"first": play(folder / "broken", 2, spoil, *SHORT)}


def asks(conversations: list[Any], seeds: list[int]) -> list[str | None]:
    """The other side of `talking`, which writes down who asked."""
    with open(os.environ["ASKED_BY"], "a") as file:
        file.write(f"{os.environ.get('RANK', '0')}\n")
    return [("red", "green", None)[seed % 3] for seed in seeds]


def wins(prompts: list[str], firsts: list[str], seconds: list[str]) -> list[float]:
    """The judge of `talking`."""
    return [0.5 + 0.4 * ((len(a) > len(b)) - (len(a) < len(b))) for a, b in zip(firsts, seconds, strict=True)]


def talking(folder: Path) -> dict[str, Any]:
    """Conversations by one and by two processes: with a table, which each process has, and with a function, which all
    would share."""
    turns = [
        "model.build={symbols: 3, length: 1, prompts: 7, turns: 2, hidden_size: 16, layers: 1, heads: 2}",
        "conversation={turns: 2, level: state, branches: 2, text_template: ' {text} '}",
        "sampling.max_new_tokens=1",
        "training.max_steps=2",
    ]
    shared = [
        "conversation.user={kind: function, function: 'ranks_world:asks'}",
        "judge={kind: function, function: 'ranks_world:wins'}",
    ]
    found = {}
    for name, changes in (("table", turns), ("function", [*turns, *shared])):
        for world in (1, 2):
            os.environ["ASKED_BY"] = str(folder / f"{name}-{world}.asked")
            found[f"{name}-{world}"] = play(folder / f"{name}-{world}", world, calm, *SHORT, *changes)
    return found


def refused(folder: Path) -> dict[str, Any]:
    """What cannot be shared out, and what asks for sharding on the CPU."""
    odd = ("training.gradient_accumulation_steps=1", "training.per_device_train_batch_size=3")
    shared = play(folder / "shared", 2, calm, *odd)
    sharded = play(folder / "sharded", 2, lambda rank: os.environ.update(ACCELERATE_USE_FSDP="true"), *SHORT)
    return {"shared": shared, "sharded": sharded}


def group(folder: Path) -> dict[str, Any]:
    """What three processes learn of each other."""

    def work(rank: int) -> None:
        from nashpo.llm.loop.ranks import RankError, of_job

        ranks = of_job()

        def fails() -> int:
            raise ValueError("the first\nfailed")

        def told(work: Callable[[], Any]) -> str:
            try:
                work()
            except ValueError as error:
                return f"{type(error).__name__}: {' '.join(str(error).split())}"
            return ""

        def some() -> None:
            with ranks.together():
                if rank == 2:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/file")

        found = {
            "place": [ranks.rank, ranks.world, ranks.is_first],
            "first": ranks.first(lambda: {"from": os.getpid()}),
            "gathered": ranks.gather(rank * 10),
            "dealt": [list(ranks.deal(range(5))), list(ranks.deal(range(5), by_first=True))],
            "failed": told(lambda: ranks.first(fails)),
        }
        try:
            some()
        except RankError as error:
            found["together"] = str(error)
        except OSError as error:
            found["together"] = f"own: {error.strerror}"
        ranks.barrier()
        (folder / f"group-{rank}.json").write_text(json.dumps(found))
        if rank == 1:
            os._exit(0)  # without a word
        try:
            ranks.barrier()
        except RankError as error:
            print(f"lost: {error}")

    return {"first": fork_ranks(3, folder / "group.log", work)}


def main() -> int:
    """The script."""
    import torch

    torch.set_num_threads(1)
    from nashpo.llm.loop import machine  # before the forks

    machine.write_report = lambda run: (run / machine.REPORT).touch()  # pictures take half of a tiny run's time
    gc.collect()
    gc.freeze()  # what was imported need not be looked through in every child
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        began = time.monotonic()
        found = globals()[name](folder)
        found["seconds"] = round(time.monotonic() - began, 1)
        (folder / f"{name}.json").write_text(json.dumps(found))
        print(name, found, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
