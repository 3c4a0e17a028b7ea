"""Results on disk: what `nashpo verify` and `nashpo sweep` measured, and what a figure still needs besides.

Files in a results folder: ``results.npz`` (by `nashpo verify`), ``sweep.npz`` (by `nashpo sweep`), and ``figures.npz``
(experiments that only figures need, computed once and kept). Keys are ``<group>/<name>``; a group comes from one of the
files as a whole.
"""

import io
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from nashpo.core.store import replace_file

RESULTS, SWEEP, CACHE = "results.npz", "sweep.npz", "figures.npz"
FORMAT = 1
"""Goes up when an experiment changes, so that what was kept is computed anew."""

Arrays = dict[str, np.ndarray]


def load(directory: Path, names: Sequence[str] = (RESULTS, SWEEP)) -> Arrays:
    """The measured results of a folder.

    Parameters
    ----------
    directory : path
    names : sequence of str
        Files to read, those of them that are there.

    Returns
    -------
    dict name -> array

    Raises
    ------
    ValueError
        If there is no such folder, none of the files in it, or one is damaged.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"there is no results folder {directory}: run `nashpo verify --out {directory}` first")
    found = [directory / name for name in names if (directory / name).is_file()]
    if not found:
        missing = " or ".join(names)
        raise ValueError(f"the folder {directory} holds no {missing}: run `nashpo verify --out {directory}` first")
    results: Arrays = {}
    for path in found:
        try:
            results |= _read(path)
        except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is damaged or not a file of arrays ({error}); run the command again") from error
    return results


def complete(results: Arrays, needs: Iterable[str], directory: Path | None = None) -> Arrays:
    """The results together with the experiments that some keys still ask for.

    Parameters
    ----------
    results : dict name -> array
    needs : iterable of str
        Keys that figures read. A group of which the results hold nothing is computed, if it is an experiment.
    directory : path, optional
        Where computed groups are kept for the next time, as far as it can be written.

    Returns
    -------
    dict name -> array
        Keys that neither hold are left out.
    """
    from nashpo.tabular.experiments import EXPERIMENTS

    present = {_group(key) for key in results}
    wanted = {_group(key) for key in needs} & set(EXPERIMENTS) - present
    if not wanted:
        return dict(results)
    kept = {} if directory is None else _cached(Path(directory) / CACHE)
    missing = wanted - {_group(key) for key in kept}
    for group in sorted(missing):
        kept |= EXPERIMENTS[group]()
    if missing and directory is not None:
        with suppress(OSError):  # a folder that cannot be written only costs the computation again
            _write(Path(directory) / CACHE, kept)
    return {key: value for key, value in kept.items() if _group(key) in wanted} | results


def _group(key: str) -> str:
    return key.partition("/")[0]


def _read(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as saved:
        return {name: saved[name] for name in saved.files}


def _cached(path: Path) -> Arrays:
    try:
        kept = _read(path)
        same = int(kept.pop("format")) == FORMAT
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile):
        return {}
    return kept if same else {}


def _write(path: Path, arrays: Arrays) -> None:
    buffer = io.BytesIO()
    entries: dict[str, Any] = arrays | {"format": np.array(FORMAT)}
    np.savez_compressed(buffer, **entries)
    replace_file(path, buffer.getvalue())
