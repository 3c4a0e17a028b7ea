"""What a run that stops says: one line with the cause, where it was, that nothing is lost, and how to go on."""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nashpo.core.cli import one_line

GO_ON = "what was finished is kept: mend it and run the same command again"


class RunStopped(ValueError):
    """A run that stopped before its end, with everything kept."""


@contextmanager
def explained(where: Callable[[], str], run: Path) -> Iterator[None]:
    """Errors of a phase, told with their place in the run.

    Raises
    ------
    RunStopped
        In place of what a phase raised.
    """
    try:
        yield
    except RunStopped:
        raise
    except OSError as error:
        raise RunStopped(f"{where()}: {one_line(error)}; {_room(error, run)}{GO_ON}") from error
    except (ValueError, RuntimeError, MemoryError, ModuleNotFoundError) as error:
        raise RunStopped(f"{where()}: {one_line(error)}; {_room(error, run)}{GO_ON}") from error
    except Exception as error:  # a library's own kinds, safetensors' among them
        if "No space left" in str(error) or "os error 28" in str(error):
            raise RunStopped(f"{where()}: no space left on the disk; {_room(error, run)}{GO_ON}") from error
        raise


def _room(error: BaseException, run: Path) -> str:
    """How much room the run's disk has, where that may be the cause."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    if not full:
        return ""
    return f"{shutil.disk_usage(run).free / 2**20:.0f} MiB are free at {run}; "
