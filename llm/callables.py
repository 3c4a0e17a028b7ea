"""Python code of a recipe's author, named ``module:name`` and looked up on Python's path and in the working folder."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from nashpo.core.cli import one_line, suggestion


def named(target: str, key: str) -> Any:
    """What ``module:name`` names, its module imported now; of a class an instance, made without arguments.

    Parameters
    ----------
    target : str
    key : str
        What the recipe calls it, for messages.

    Raises
    ------
    ValueError
        If there is no such module or name, or it is a class that cannot be made without arguments.
    """
    module, _, name = target.partition(":")
    _look_here_too()
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{key}: cannot import {module!r} of {target!r} ({error}): it must lie in the working folder or on"
            " PYTHONPATH"
        ) from error
    except Exception as error:  # of any kind: it is not our code
        raise ValueError(f"{key}: importing {module!r} of {target!r} {failure(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{key}: {module} has no {part!r}; {suggestion(part, dir(found))}")
        found = getattr(found, part)
    return called(f"{key}: {target}", found) if inspect.isclass(found) else found


def called(what: str, function: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """What an author's function gives.

    Parameters
    ----------
    what : str
        The function, for messages.
    function : callable
    *args, **settings
        Handed over to it.

    Raises
    ------
    ValueError
        If it fails, however it fails: with the error, and the line that raised it.
    """
    try:
        return function(*args, **settings)
    except Exception as error:  # of any kind: it is not our code
        raise ValueError(f"{what} {failure(error)}") from error


def failure(error: Exception) -> str:
    """``failed with KeyError: 'n' (my_code.py, line 7)``: an error of an author's code, and where it was raised."""
    # The last line of the author's own: what it has called says little to the author.
    others = (__file__, "importlib", "site-packages", "<frozen")
    own = [f for f in traceback.extract_tb(error.__traceback__) if not any(part in f.filename for part in others)]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"failed with {type(error).__name__}: {one_line(error)}{place}"


def check_module(target: str, key: str) -> None:
    """That there is a module of the name in ``module:name``; it is not imported.

    Raises
    ------
    ValueError
    """
    module = target.partition(":")[0]
    _look_here_too()
    try:
        found = importlib.util.find_spec(module)
    except ImportError:
        found = None
    if found is None:
        raise ValueError(f"{key} = {target!r}: there is no module {module}")


def source_of(found: Any) -> str | None:
    """A hash of the source file of a function, or of an object's class; None where there is no file."""
    kind = found if inspect.isroutine(found) else type(found)
    try:
        return blake2b(Path(inspect.getfile(kind)).read_bytes(), digest_size=16).hexdigest()
    except (TypeError, OSError):
        return None


def _look_here_too() -> None:
    """Modules of the working folder are found, behind all others."""
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)
