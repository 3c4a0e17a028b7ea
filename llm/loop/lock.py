"""One process at a time in a run's folder; the lock is the operating system's, so that a crash frees it."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = "lock"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run's folder.

    Raises
    ------
    ValueError
        If it is a file, or another process holds it.
    """
    if run.exists() and not run.is_dir():
        raise ValueError(f"output_dir = {run} is a file: give another folder")
    run.mkdir(parents=True, exist_ok=True)
    with open(run / LOCK, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise ValueError(f"{run} is in use by another process ({owner}): wait for it, or stop it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
