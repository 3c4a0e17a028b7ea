"""Folders, manifests, locks and checkpoints of a run: what counts after a crash, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nashpo.llm.loop.checkpoints import MARKER, checkpoints, is_complete, last_complete, mark
from nashpo.llm.loop.lock import locked
from nashpo.llm.loop.phase import MANIFEST, Phase, PhaseError, key_of, read_lines, write_lines


def test_a_phase_is_committed_once(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    phase = Phase(folder, "samples", "k")
    assert not phase.committed
    phase.begin(seed=3)
    assert not Phase(folder, "samples", "k").committed  # begun is not done
    write_lines(folder / "00000.jsonl", [{"a": 1}, {"b": [2, 3]}])
    phase.commit(seed=3, counts={"rows": 2})
    again = Phase(folder, "samples", "k")
    assert again.committed
    assert again.manifest["counts"] == {"rows": 2}
    assert again.manifest["seed"] == 3
    assert set(again.manifest["versions"]) >= {"python", "torch", "transformers"}
    assert read_lines(folder / "00000.jsonl") == [{"a": 1}, {"b": [2, 3]}]


@pytest.mark.parametrize("harm", ["changed", "longer", "gone"])
def test_a_committed_file_that_changed_is_told(tmp_path: Path, harm: str) -> None:
    phase = Phase(tmp_path / "p", "samples", "k")
    phase.begin()
    path = phase.folder / "00000.jsonl"
    path.write_text("abc\n")
    phase.commit()
    if harm == "gone":
        path.unlink()
    else:
        path.write_text("abd\n" if harm == "changed" else "abcd\n")
    with pytest.raises(PhaseError, match="00000.jsonl is missing or not as the phase 'samples' left it"):
        _ = Phase(phase.folder, "samples", "k").committed


def test_another_runs_folder_is_refused(tmp_path: Path) -> None:
    Phase(tmp_path, "samples", "one").begin()
    with pytest.raises(PhaseError, match="made by another run"):
        Phase(tmp_path, "samples", "two")


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"format": 99})])
def test_a_damaged_manifest_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(PhaseError, match="delete the folder"):
        Phase(tmp_path, "samples", "k")


def test_a_part_that_a_crash_left_does_not_count(tmp_path: Path) -> None:
    phase = Phase(tmp_path, "samples", "k")
    phase.begin()
    (tmp_path / "00000.jsonl.123.part").write_text("half")
    (tmp_path / ".tmpAb12").write_text("as safetensors writes aside")
    phase.commit()
    assert phase.manifest["files"] == {}
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_keys_tell_apart_what_json_tells_apart() -> None:
    keys = {key_of(x) for x in ("1", 1, 1.5, [1], {"a": 1}, {"a": "1"}, None, ["1"])}
    assert len(keys) == 8
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})


def test_one_process_at_a_time(tmp_path: Path) -> None:
    code = (
        f"from pathlib import Path\nfrom nashpo.llm.loop.lock import locked\nwith locked(Path({str(tmp_path)!r})): pass"
    )
    with locked(tmp_path):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert other.returncode == 1
        assert "is in use by another process (process " in other.stderr
    subprocess.run([sys.executable, "-c", code], check=True)


def _checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"):
        (path / name).write_text(f"{name} {step}")
    return path


@pytest.mark.parametrize("missing", ["optimizer.pt", "scheduler.pt", MARKER])
def test_a_checkpoint_that_lacks_a_file_is_passed_over(tmp_path: Path, missing: str) -> None:
    for step in (5, 10):
        mark(_checkpoint(tmp_path, step))
    assert last_complete(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / missing).unlink()
    assert last_complete(tmp_path) == tmp_path / "checkpoint-5"
    assert checkpoints(tmp_path) == [tmp_path / "checkpoint-5"]


def test_a_checkpoint_with_another_byte_is_passed_over(tmp_path: Path) -> None:
    path = _checkpoint(tmp_path, 5)
    mark(path)
    assert is_complete(path)
    (path / "optimizer.pt").write_text("optimizer.pt 6")
    assert not is_complete(path)
    assert last_complete(tmp_path) is None
