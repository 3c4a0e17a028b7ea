"""The store: what comes back, what is refused, and that a crash at any moment leaves the old state or the new one."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nashpo.core import store
from nashpo.core.rules import critic, win
from nashpo.core.selfplay import State, Version
from nashpo.core.store import FileStore, replace_file

STATE = State(
    t=3,
    slots={"current": Version("a1", "file-a"), "previous": None, "reference": Version("reference", {"path": "r"})},
    average=Version("m3", ["file-a", "file-b"]),
    answers={
        (win("current"), "a1", "a1"): "answer-1",
        (critic("current", lam=0.1, R=3.0), "a1", "a1"): {"values": [0.1, 1e-300, 1 / 3]},
    },
    fingerprint="f00d",
)


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    """Floats too, to the last bit: 1/3 and 1e-300 inside an answer, 0.1 among a payoff's parameters."""
    kept = FileStore(tmp_path / "state.json")
    assert kept.load() is None
    kept.commit(STATE)
    assert kept.load() == STATE
    later = State(4, {"current": Version("b", "file-b")}, None, {}, "beef")
    kept.commit(later)
    assert kept.load() == later
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


class Killed(BaseException):
    """A crash; no handler of ordinary errors may catch it."""


CALLS = ["open", "fsync", "replace"]


@pytest.mark.parametrize("first", [True, False], ids=["first commit", "second commit"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("nth", range(4))
def test_a_crash_leaves_the_old_state_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int, after: bool, first: bool
) -> None:
    """Killed just before or just after each system call: write aside, fsync, rename, fsync of the folder."""
    kept = FileStore(tmp_path / "state.json")
    old = None if first else State(2, {"current": Version("z", "file-z")})
    if old is not None:
        kept.commit(old)
    calls: list[str] = []

    def killing(name: str, real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            mine = len(calls) - 1
            if mine == nth and not after:
                raise Killed
            result = real(*arguments, **options)
            if mine == nth:
                raise Killed
            return result

        return call

    with monkeypatch.context() as patch:
        for name in ("fsync", "replace"):
            patch.setattr(store.os, name, killing(name, getattr(os, name)))
        patch.setattr(store, "open", killing("open", open), raising=False)
        with pytest.raises(Killed):
            kept.commit(STATE)
    renamed = "replace" in calls[:-1] or (calls[-1] == "replace" and after)
    assert FileStore(tmp_path / "state.json").load() == (STATE if renamed else old)
    kept.commit(STATE)
    assert kept.load() == STATE
    assert calls == ["open", "fsync", "replace", "fsync"][: nth + 1]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"format": 99, "t": 0}', b'{"format": 1, "t": 0}', b"\x80\x04\x95"],
    ids=repr,
)
def test_a_foreign_file_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"state.json is not a state of a run \(.*\): delete it to start anew"
    ) as error:
        FileStore(path).load()
    assert "\n" not in str(error.value)


def test_a_truncated_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    FileStore(path).commit(STATE)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="is not a state of a run"):
        FileStore(path).load()


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    FileStore(path).commit(STATE)
    saved = json.loads(path.read_text())
    assert saved["t"] == 3
    assert saved["slots"]["previous"] is None


def test_handles_that_are_not_json_are_refused(tmp_path: Path) -> None:
    """And what was there before stays."""
    kept = FileStore(tmp_path / "state.json")
    kept.commit(STATE)
    with pytest.raises(TypeError, match="not JSON serializable"):
        kept.commit(State(4, {"current": Version("b", object())}))
    assert kept.load() == STATE


def test_replace_file_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "data"
    replace_file(path, b"one")
    replace_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]
