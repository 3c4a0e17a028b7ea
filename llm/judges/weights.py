"""Where the weights of a judge lie, and what identifies them: a hub commit, or a hash of the files' content."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

SMALL = ("*.json", "*.model", "*.txt", "*.jinja")
"""Files of a model besides its weights."""
IGNORED = ("training_args.bin", "trainer_state.json", "manifest.json")
"""Files of a folder that no answer depends on."""


def find_folder(path: str, revision: str | None = None, small: bool = False) -> Path:
    """The folder with a model's files: ``path`` itself, or the hub's snapshot, downloaded where it is not there yet.

    Parameters
    ----------
    small : bool
        Of a hub name, only configuration and tokenizer.

    Raises
    ------
    ValueError
        If there is no such folder and the hub does not give it.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or path.startswith(".") or path.count("/") > 1 or folder.exists():
        raise ValueError(f"judge: there is no folder {path!r}; give the folder of the weights, or a name on the hub")
    from huggingface_hub import snapshot_download

    try:
        found = Path(snapshot_download(path, revision=revision, allow_patterns=[*SMALL]))
        if not small:
            # pytorch_model.bin only where there is nothing better: many repositories hold the weights twice.
            found = Path(snapshot_download(path, revision=revision, allow_patterns=[*SMALL, "*.safetensors"]))
            if not any(found.glob("*.safetensors")):
                found = Path(snapshot_download(path, revision=revision, allow_patterns=[*SMALL, "*.bin"]))
    except Exception as error:  # the hub's client has many: no such repository, no access, no network
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(
            f"judge: {path!r} is no folder here and cannot be had from the hub ({reason}): give a folder, check the"
            " name, or download it before"
        ) from error
    return found


def fingerprint(path: str, folder: Path) -> dict[str, Any]:
    """What identifies the weights in ``folder``, which `find_folder` found for ``path``."""
    if folder.parent.name == "snapshots" and not Path(path).is_dir():
        return {"hub": path, "commit": folder.name}
    safe = any(folder.glob("*.safetensors"))
    patterns = (*SMALL, "*.safetensors") if safe else (*SMALL, "*.bin")
    files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.name not in IGNORED})
    content = blake2b(digest_size=16)
    for file in files:
        state = file.stat()
        content.update(f"{file.name}\0{_digest(file, state.st_size, state.st_mtime_ns)}\n".encode())
    return {"content": content.hexdigest()}


@lru_cache(maxsize=1024)
def _digest(file: Path, size: int, changed: int) -> str:
    """Hash of a file's bytes, remembered as long as its size and time stay."""
    content = blake2b(digest_size=16)
    with open(file, "rb") as opened:
        while block := opened.read(1 << 22):
            content.update(block)
    return content.hexdigest()


def read_state(folder: Path) -> dict[str, Any]:
    """The tensors of a checkpoint in one file, ``model.safetensors`` or ``pytorch_model.bin``.

    Raises
    ------
    ValueError
        If there is neither, or a pickle holds more than tensors.
    """
    safe, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    if safe.is_file():
        from safetensors.torch import load_file

        tensors: dict[str, Any] = load_file(safe)
        return tensors
    if pickled.is_file():
        import pickle

        import torch

        try:
            tensors = torch.load(pickled, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{pickled} holds more than tensors and is not loaded: convert it to safetensors"
            ) from error
        return tensors
    raise ValueError(f"{folder} holds neither model.safetensors nor pytorch_model.bin")


def check_keys(folder: Path, found: dict[str, Any], wanted: dict[str, Any], kind: str) -> None:
    """That a checkpoint has the tensors of a model, in their shapes, and no others.

    Raises
    ------
    ValueError
        With the first that is missing, unexpected, or of another shape.
    """
    missing = sorted(wanted.keys() - found.keys())
    unexpected = sorted(found.keys() - wanted.keys())
    if missing or unexpected:
        said = [_some("lacks", missing), _some("has besides", unexpected)]
        raise ValueError(f"{folder} is no {kind} checkpoint: it {' and '.join(part for part in said if part)}")
    for name in sorted(wanted):
        if found[name].shape != wanted[name].shape:
            here, there = tuple(found[name].shape), tuple(wanted[name].shape)
            raise ValueError(f"{folder} does not fit its configuration: {name} is {here} instead of {there}")


def _some(verb: str, names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{verb} {names[0]}{more}" if names else ""
