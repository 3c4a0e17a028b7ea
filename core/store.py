"""A state of self-play in one JSON file that is either the old one or the new one, whatever happens in between."""

import json
import os
from pathlib import Path
from typing import Any

from nashpo.core.rules.form import Payoff
from nashpo.core.selfplay import State, Version

FORMAT = 1


def replace_file(path: Path, data: bytes) -> None:
    """Write beside the file, fsync, rename over it, fsync the folder: a reader sees the old bytes or the new ones."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    with open(aside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _version(pair: list[Any] | None) -> Version | None:
    return None if pair is None else Version(pair[0], pair[1])


def _pair(version: Version | None) -> list[Any] | None:
    return None if version is None else [version.key, version.handle]


class FileStore:
    """States of one run, kept in ``path``; the backend's handles must be JSON.

    Parameters
    ----------
    path : path
        Its folder must exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def load(self) -> State | None:
        """The last committed state, or None where there is none.

        Raises
        ------
        ValueError
            If the file is there but was not written by `commit`.
        """
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            saved = json.loads(raw)
            if saved["format"] != FORMAT:
                raise ValueError(f"format {saved['format']}")
            answers = {
                (Payoff(kind, policy, tuple((k, v) for k, v in params)), about, on): answer
                for (kind, policy, params), about, on, answer in saved["answers"]
            }
            slots = {name: _version(pair) for name, pair in saved["slots"].items()}
            return State(saved["t"], slots, _version(saved["average"]), answers, saved["fingerprint"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is not a state of a run ({error}): delete it to start anew") from error

    def commit(self, state: State) -> None:
        """Write the state aside, fsync and rename."""
        answers = [
            [[payoff.kind, payoff.policy, payoff.params], about, on, answer]
            for (payoff, about, on), answer in state.answers.items()
        ]
        saved = {
            "format": FORMAT,
            "t": state.t,
            "slots": {name: _pair(version) for name, version in state.slots.items()},
            "average": _pair(state.average),
            "answers": answers,
            "fingerprint": state.fingerprint,
        }
        replace_file(self.path, json.dumps(saved).encode())
