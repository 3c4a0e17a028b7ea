"""A child process that has imported everything already: a fork, its output in a file, its exit status a number."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path


def fork(log: Path, work: Callable[[], int]) -> int:
    """Start the work in a child, which exits with what it returns, or with 1 and a traceback in the log; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with open(log, "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = work()
    except BaseException as error:
        import traceback

        traceback.print_exception(error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
