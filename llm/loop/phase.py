"""One phase's folder: files that appear whole or not at all, and a manifest that says which of them count.

A phase is begun (its manifest says ``complete: false`` and holds the phase's key), writes its files, and is committed:
the manifest is replaced by one with every file's digest. A phase that was committed is never done again; one that was
only begun is continued, since a file in it is either whole or not there. The key is a function of everything that the
phase's result depends on, so that files of another run cannot be taken for this one's.

Of several processes the first reads and writes manifests, and all of them know what it found.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nashpo.core.store import replace_file
from nashpo.llm.loop.ranks import ALONE, Ranks

MANIFEST = "manifest.json"
FORMAT = 1
_SMALL = 256 * 2**20
"""Larger files are compared by their size when a phase is looked at."""
_PACKAGES = ("nashpo", "torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "numpy")


class PhaseError(ValueError):
    """A phase's folder that cannot be used."""


def digest(path: Path) -> str:
    """BLAKE2b of a file's bytes, 128 bits in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def key_of(*parts: Any) -> str:
    """A short name of JSON values, for keys and seeds."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


@cache
def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_json(path: Path, value: Any) -> None:
    """One JSON file, whole or not at all."""
    replace_file(path, (json.dumps(value, indent=1) + "\n").encode())


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """One JSON value a line, the file whole or not at all."""
    replace_file(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def read_lines(path: Path) -> list[Any]:
    """What `write_lines` wrote."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class Phase:
    """A phase and its folder.

    Parameters
    ----------
    folder : path
        Made by `begin`.
    name : str
        For people: samples, judgements, logprobs, train, model, evaluation, warmup, start.
    key : str
        See `key_of`.
    ranks : Ranks
        The processes that go through the phase together.

    Raises
    ------
    PhaseError
        If the folder holds a phase of another key, or a manifest that cannot be read.
    """

    def __init__(self, folder: Path, name: str, key: str, ranks: Ranks = ALONE) -> None:
        self.folder = folder
        self.name = name
        self.key = key
        self.ranks = ranks
        self._began = time.monotonic()
        self._manifest = ranks.first(self._read)

    def _read(self) -> dict[str, Any] | None:
        path = self.folder / MANIFEST
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise PhaseError(
                f"{path} is not a manifest ({error}): delete the folder {self.folder} to redo it"
            ) from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise PhaseError(f"{path} is of another format than {FORMAT}: delete the folder {self.folder} to redo it")
        if found.get("key") != self.key:
            raise PhaseError(
                f"{self.folder} was made by another run, with other settings or other data: give another output_dir, or"
                " delete the folder to redo it"
            )
        return found

    @property
    def committed(self) -> bool:
        """Whether the phase is done and its files are there with the sizes and (small ones) the bytes they had.

        Raises
        ------
        PhaseError
            If it was committed and a file has changed or is missing since.
        """
        return self.ranks.first(self._is_committed)

    def _is_committed(self) -> bool:
        if self._manifest is None or not self._manifest["complete"]:
            return False
        for name, (size, found) in self._manifest["files"].items():
            path = self.folder / name
            if not path.exists() or path.stat().st_size != size or (size < _SMALL and digest(path) != found):
                raise PhaseError(
                    f"{path} is missing or not as the phase '{self.name}' left it: restore it, or delete the folder"
                    f" {self.folder} to redo the phase"
                )
        return True

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as it is on disk."""
        return dict(self._manifest or {})

    def begin(self, **about: Any) -> None:
        """Make the folder and say whose it is; files of a phase that was begun before stay."""
        self._manifest = self.ranks.first(lambda: self._begun(about))

    def _begun(self, about: Mapping[str, Any]) -> dict[str, Any]:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._manifest is not None:
            return self._manifest
        return self._written({"complete": False, **about, "files": {}})

    def commit(self, files: Iterable[str] | None = None, **about: Any) -> None:
        """Say that the phase is done.

        Parameters
        ----------
        files : iterable of str, optional
            Names that count; default every file directly in the folder.
        about
            What else the manifest holds: counts, seed, engine, inputs.
        """
        self._manifest = self.ranks.first(lambda: self._committed(files, about))

    def _committed(self, files: Iterable[str] | None, about: Mapping[str, Any]) -> dict[str, Any]:
        for left in [p for p in self.folder.iterdir() if p.is_file() and _is_left(p.name)]:
            left.unlink()
        names = files if files is not None else (p.name for p in self.folder.iterdir() if p.is_file())
        chosen = sorted(name for name in names if name != MANIFEST)
        sizes = {name: [(self.folder / name).stat().st_size, digest(self.folder / name)] for name in chosen}
        return self._written(
            {
                "complete": True,
                **about,
                "files": sizes,
                "versions": versions(),
                "seconds": round(time.monotonic() - self._began, 3),
            }
        )

    def _written(self, rest: Mapping[str, Any]) -> dict[str, Any]:
        manifest = {"format": FORMAT, "phase": self.name, "key": self.key, **rest}
        write_json(self.folder / MANIFEST, manifest)
        return manifest


def _is_left(name: str) -> bool:
    """Whether a file is what a killed process was writing aside: ours, or safetensors' own."""
    return name.endswith(".part") or name.startswith(".tmp")


def sync_folder(folder: Path) -> None:
    """Every file below the folder on disk."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
