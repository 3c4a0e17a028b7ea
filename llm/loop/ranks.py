"""The processes of one job: who writes, who does which part of the work, and how all learn that one has failed.

``accelerate launch`` and ``torchrun`` start a command once per process, rank 0 to N − 1. All of them go through the
phases of a run in the same order. What decides something or writes a file is done by the first; what takes long is
dealt to all of them. Without a launcher there is one process, `ALONE`, for which all of this does nothing.

They meet by a process group of their own on the CPU, so that waiting for each other is bounded by `WAIT` and not by the
few minutes after which a training's exchange of gradients is given up.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from nashpo.core.cli import one_line

T = TypeVar("T")
WAIT = 24 * 60
"""Minutes that a process waits for the others by default: the first may judge alone for hours."""
PATIENCE = "NASHPO_RANK_TIMEOUT"
"""Environment variable with another number of minutes."""
FAILED = "failed"
"""Folder in a run where a process leaves its last words for the others."""
_EXCHANGE = re.compile(r"gloo/|NCCL|ProcessGroup")
"""What errors name that come of an exchange between processes; torch has them as RuntimeError."""


class RankError(ValueError):
    """Another process of the job has failed."""


class Lost(RankError):
    """Another process of the job is gone without a word, or did not come in time."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its job.

    Attributes
    ----------
    rank : int
    world : int
        How many there are.
    group
        Of `torch.distributed`, on the CPU; None for one process.
    """

    rank: int = 0
    world: int = 1
    group: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.gather(None)

    def gather(self, value: T) -> list[T]:
        """One value of each process, in their order.

        Raises
        ------
        Lost
        """
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.world
        try:
            dist.all_gather_object(found, value, group=self.group)
        except RuntimeError as error:
            raise Lost(_lost(error)) from error
        return found

    def first(self, work: Callable[[], T]) -> T:
        """Work that the first process does while the others wait, and what comes of it, for all.

        Raises
        ------
        RankError
            On the others, if it fails there.
        """
        if self.world == 1:
            return work()
        result: tuple[Any, str | None] = (None, None)
        failure: Exception | None = None
        if self.is_first:
            try:
                result = (work(), None)
            except Exception as error:
                failure, result = error, (None, one_line(error))
        value, problem = self._broadcast(result)
        if failure is not None:
            raise failure
        if problem is not None:
            raise RankError(problem)
        return value

    def _broadcast(self, value: T) -> T:
        import torch.distributed as dist

        held: list[Any] = [value]
        try:
            dist.broadcast_object_list(held, src=0, group=self.group)
        except RuntimeError as error:
            raise Lost(_lost(error)) from error
        return held[0]

    def deal(self, work: Sequence[T], by_first: bool = False) -> Sequence[T]:
        """This process's share of the work, dealt out in turn.

        Parameters
        ----------
        work : sequence
            The same on all processes.
        by_first : bool
            The first does all of it: a service that all would share.
        """
        if by_first:
            return work if self.is_first else work[:0]
        return work[self.rank :: self.world]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work that each process has its share of; all leave when all are done.

        Raises
        ------
        RankError
            If another process failed in it.
        """
        if self.world == 1:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        problems = self.gather(None if failure is None else one_line(failure))
        if failure is not None:
            raise failure
        for rank, problem in enumerate(problems):
            if problem is not None:
                raise RankError(f"rank {rank} of {self.world}: {problem}")

    @contextmanager
    def last_words(self, run: Path) -> Iterator[None]:
        """Tell the other processes what this one fails of, and be told what another has failed of.

        A process that fails in the middle of a training just goes away for the others. So it leaves its message in the
        run's folder, and those that lose it take the message for their own.

        Raises
        ------
        RankError
            In place of an error that came of another process's failure.
        """
        if self.world == 1:
            yield
            return
        try:
            yield
        except Exception as error:
            if _has(error, Lost):
                told = self._found(run)
                if told is not None:
                    raise RankError(told) from error
            elif not _has(error, RankError):
                self._leave(run, one_line(error))
            raise

    @contextmanager
    def naming_losses(self) -> Iterator[None]:
        """Errors of a training's exchange of gradients, told as what they are.

        Raises
        ------
        Lost
        """
        try:
            yield
        except RuntimeError as error:
            if self.world > 1 and _EXCHANGE.search(str(error)):
                raise Lost(_lost(error)) from error
            raise

    def _leave(self, run: Path, words: str) -> None:
        folder = run / FAILED
        try:
            folder.mkdir(exist_ok=True)
            aside = folder / f"{self.rank}.part"
            aside.write_text(words, encoding="utf-8")
            aside.replace(folder / f"{self.rank}.txt")
        except OSError:
            pass  # the disk may be what failed

    def _found(self, run: Path) -> str | None:
        for path in sorted((run / FAILED).glob("*.txt")):
            words = path.read_text(encoding="utf-8")
            return f"rank {path.stem} of {self.world}: {words}"
        return None


ALONE = Ranks()
"""The only process."""


def is_shared(service: Any) -> bool:
    """Whether an engine or a judge is one that all processes would share, as a server or a function that may be paid
    for or remember things: then the first process asks it alone. Such a class has ``shared = True``."""
    return bool(getattr(service, "shared", False))


def of_job() -> Ranks:
    """The processes that a launcher has started, joined; `ALONE` without one.

    Joins by the environment that ``accelerate launch`` and ``torchrun`` set: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
    MASTER_PORT.

    Raises
    ------
    ValueError
        If the processes cannot find each other, or a GPU is missing.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world <= 1:
        return ALONE
    import torch
    import torch.distributed as dist

    backend = "gloo"
    if not dist.is_initialized() and torch.cuda.is_available():
        local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= there:
            raise ValueError(
                f"process {os.environ.get('RANK')} has no GPU: {there} are visible and its place on this machine is"
                f" {local}; start at most {there} processes here"
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    patience = timedelta(minutes=_patience())
    try:
        if not dist.is_initialized():
            dist.init_process_group(backend)
        group = dist.new_group(backend="gloo", timeout=patience)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the {world} processes of the job do not find each other: {one_line(error)}") from error
    return Ranks(dist.get_rank(), dist.get_world_size(), group)


def _patience() -> float:
    given = os.environ.get(PATIENCE, str(WAIT))
    try:
        minutes = float(given)
    except ValueError:
        minutes = 0.0
    if not minutes > 0:
        raise ValueError(f"{PATIENCE}={given} must be a number of minutes above 0")
    return minutes


def _has(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether an error is of a kind, or was raised because of one that is."""
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__
    return False


def _lost(error: BaseException) -> str:
    """What is told where a process went without a word."""
    words = one_line(error)
    shown = words if len(words) < 160 else f"{words[:157]}..."
    return (
        "another process of the job is gone (killed, out of memory, or its machine lost) or did not come within"
        f" {_patience():g} minutes ({shown})"
    )
