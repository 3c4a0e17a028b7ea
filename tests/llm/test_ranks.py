"""Several processes do what one does: the same files, the same numbers; one that fails ends the job with one line, and
the run goes on when it is started again. `ranks_world.py` plays the runs, all once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import contents, differences
from safetensors.numpy import load_file

from nashpo.llm.loop.ranks import ALONE, of_job
from nashpo.llm.recipe.training import shared
from nashpo.llm.sharding import asked_for, check_asked

HERE = Path(__file__).parent
SCENARIOS = ("group", "worlds", "talking", "killed", "full", "broken", "refused")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs."""
    folder = tmp_path_factory.mktemp("ranks")
    found = subprocess.run(
        [sys.executable, str(HERE / "ranks_world.py"), str(folder), *SCENARIOS],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=600,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return folder


def found(world: Path, scenario: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((world / f"{scenario}.json").read_text())
    return result


def told(world: Path, run: str, rank: int) -> str:
    """What a process said; its last error where it has one."""
    lines = (world / f"{run}.log.{rank}").read_text().splitlines()
    errors = [line for line in lines if line.startswith("nashpo: error: ")]
    assert len(errors) <= 1, lines
    assert not any("Traceback" in line for line in lines), lines
    return errors[0] if errors else "\n".join(lines)


# ------------------------------------------------------------------------------------------------- one and the same run


@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_makes_the_same_run(world: Path, processes: int) -> None:
    """Two iterations of ONPO on 7 prompts, updates of 4 and 2: samples, judgements and win rates are the same bytes,
    and so are log-probabilities under the start. Weights differ by the order of sums in fp32: 1e-5 where 1e-7 is
    measured; log-probabilities of two tokens under such weights, too."""
    assert found(world, "worlds")[str(processes)] == [0] * processes
    one, many = world / "world-1", world / f"world-{processes}"
    different = [name for name in differences(one, many) if not name.startswith("judge_cache")]
    start = ("samples/", "judgements/", "logprobs/start", "logprobs/reference", "README.md", "config.json")
    assert not [name for name in different if any(part in name for part in start)]
    assert {name.rpartition("/")[2] for name in different} <= {
        "manifest.json", "model.safetensors", "log.jsonl", "results.json", "metrics.jsonl",
        "iterations-001-model.safetensors", "iterations-002-model.safetensors",
        "iterations-001-auxiliary.safetensors", "iterations-002-auxiliary.safetensors",
    }  # fmt: skip
    for name in different:
        if name.endswith(".safetensors"):
            expected, got = load_file(one / name), load_file(many / name)
            for key in expected:
                np.testing.assert_allclose(got[key], expected[key], rtol=0, atol=1e-5, err_msg=f"{name}: {key}")
    close(one, many)


def close(one: Path, other: Path) -> None:
    """The figures of two runs agree: 1e-4, since gradient norms near 3 are sums of squares in fp32. ``epoch`` counts a
    process's own micro-batches, of which the last may be shorter."""
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)]
    assert len(rows[0]) == len(rows[1])
    for expected, got in zip(*rows, strict=True):
        assert expected.keys() == got.keys()
        expected.pop("epoch", None), got.pop("epoch", None)
        numbers = [name for name in expected if isinstance(expected[name], int | float)]
        assert {name: expected[name] for name in expected if name not in numbers} == {
            name: got[name] for name in got if name not in numbers
        }
        for name in numbers:
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("user", ["table", "function"])
def test_two_processes_have_the_conversations_of_one(world: Path, user: str) -> None:
    """The same samples, judgements and log-probabilities under the start, byte for byte; weights to 1e-5."""
    assert found(world, "talking")[f"{user}-1"] == [0]
    assert found(world, "talking")[f"{user}-2"] == [0, 0]
    one, two = contents(world / f"{user}-1"), contents(world / f"{user}-2")
    names = [
        n
        for n in one
        if n.startswith("iterations") and n.endswith((".jsonl", "start.safetensors")) and "train" not in n
    ]
    assert len([name for name in names if "/samples/" in name]) == 3
    assert not [name for name in names if one[name] != two[name]]
    row = json.loads(one["iterations/001/samples/00000.jsonl"].splitlines()[0])
    assert len(row["completions"]) == 8
    assert any(len(completion.get("turns", ())) == 3 for completion in row["completions"])
    weights = "iterations/001/model/model.safetensors"
    expected, got = (load_file(world / f"{user}-{n}" / weights) for n in (1, 2))
    for key in expected:
        np.testing.assert_allclose(got[key], expected[key], rtol=0, atol=1e-5, err_msg=key)


def test_what_all_processes_would_share_is_asked_by_the_first(world: Path) -> None:
    """As often as by one process alone."""
    one, two = ((world / f"function-{n}.asked").read_text().split() for n in (1, 2))
    assert one == two == ["0"] * 3  # the shards of samples


def test_only_the_first_process_tells_and_writes(world: Path) -> None:
    assert "iteration 2 of 2 done" in told(world, "world-4", 0)
    for rank in (1, 2, 3):
        assert "done" not in told(world, "world-4", rank)
    assert not list(world.glob("world-*/failed"))
    assert not list((world / "world-4").rglob("*.part"))


def test_uneven_updates_were_trained(world: Path) -> None:
    manifest = json.loads((world / "world-1/iterations/001/train/current/manifest.json").read_bytes())
    assert manifest["counts"] == {"steps": 4, "prompts": 6}  # one prompt got the same response four times


# --------------------------------------------------------------------------------------------------------------- faults


def test_a_killed_process_ends_the_job_and_one_process_goes_on(world: Path) -> None:
    """2 processes → 1, from the checkpoint of step 2 of 4: what was finished stays, and the run is that of one process
    to 1e-5."""
    result = found(world, "killed")
    assert result["first"] == [2, -9]
    assert result["checkpoints"] == ["iterations/001/train/auxiliary/checkpoint-2/complete.json"]
    line = told(world, "killed", 0).splitlines()[0]
    assert "iteration 1, train auxiliary: another process of the job is gone (killed" in line
    assert line.endswith("run the same command again")
    assert result["second"] == [0]
    calm, killed = contents(world / "world-1"), contents(world / "killed")
    for name in ("iterations/001/samples/00000.jsonl", "iterations/001/logprobs/start.safetensors"):
        assert calm[name] == killed[name]
    weights = "iterations/001/model/model.safetensors"
    expected, got = load_file(world / "world-1" / weights), load_file(world / "killed" / weights)
    for key in expected:
        np.testing.assert_allclose(got[key], expected[key], rtol=0, atol=1e-5, err_msg=key)
    logs = [
        [json.loads(line) for line in (world / run / "iterations/001/train/auxiliary/log.jsonl").open()]
        for run in ("world-1", "killed")
    ]
    assert [row["step"] for row in logs[1]] == [row["step"] for row in logs[0]] == [1, 2, 3, 4]
    np.testing.assert_allclose([r["loss"] for r in logs[1]], [r["loss"] for r in logs[0]], rtol=1e-5)
    np.testing.assert_allclose([r["num_tokens"] for r in logs[1]], [r["num_tokens"] for r in logs[0]], rtol=0)


def test_a_full_disk_of_one_process_ends_the_job_and_a_rerun_goes_on(world: Path) -> None:
    """Each process tells the same cause; files of the other one stay."""
    result = found(world, "full")
    assert result["first"] == [2, 2]
    assert result["samples"] == ["00000.jsonl", "00002.jsonl"]
    for rank, who in ((0, "rank 1 of 2: "), (1, "")):
        line = told(world, "full", rank)
        assert f"iteration 1, samples: {who}" in line
        assert "00001.jsonl: No space left on device" in line
        assert "run the same command again" in line
    assert result["second"] == [0, 0]
    assert contents(world / "full")["iterations/001/samples/00001.jsonl"]
    weights = "iterations/001/model/model.safetensors"
    assert (world / "full" / weights).read_bytes() == (world / "world-2" / weights).read_bytes()


def test_what_one_process_fails_of_in_training_is_told_by_all(world: Path) -> None:
    assert found(world, "broken")["first"] == [2, 2]
    own = "iteration 1, train auxiliary: no memory for 3 sequences; what was finished is kept"
    assert own in told(world, "broken", 1)
    assert f"rank 1 of 2: {own}" in told(world, "broken", 0)


def test_what_cannot_be_done_is_refused_by_all_before_any_work(world: Path) -> None:
    result = found(world, "refused")
    assert result["shared"] == result["sharded"] == [2, 2]
    for rank in (0, 1):
        assert "an update of 3 prompts" in told(world, "shared", rank)
        assert "ACCELERATE_USE_FSDP asks for models that are shared out over GPUs" in told(world, "sharded", rank)
    assert not list((world / "sharded").rglob("samples"))


# -------------------------------------------------------------------------------------------------- what they know each


def test_a_group(world: Path) -> None:
    assert found(world, "group")["first"] == [0, 0, 0]
    each = [json.loads((world / f"group-{rank}.json").read_text()) for rank in range(3)]
    assert [one["place"] for one in each] == [[0, 3, True], [1, 3, False], [2, 3, False]]
    assert each[0]["first"] == each[1]["first"] == each[2]["first"]
    assert all(one["gathered"] == [0, 10, 20] for one in each)
    assert [one["dealt"] for one in each] == [[[0, 3], [0, 1, 2, 3, 4]], [[1, 4], []], [[2], []]]
    assert [one["failed"] for one in each] == ["ValueError: the first failed", *["RankError: the first failed"] * 2]
    line = "rank 2 of 3: a/file: No space left on device"
    assert [one["together"] for one in each] == [line, line, "own: No space left on device"]
    for rank in (0, 2):
        assert "lost: another process of the job is gone" in told(world, "group.log"[:-4], rank)


def test_one_process_without_a_launcher_waits_for_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert of_job() is ALONE
    ALONE.barrier()
    assert ALONE.first(lambda: 3) == 3
    assert ALONE.gather("x") == ["x"]
    assert list(ALONE.deal("abc")) == list(ALONE.deal("abc", by_first=True)) == ["a", "b", "c"]
    with pytest.raises(ZeroDivisionError), ALONE.last_words(tmp_path), ALONE.together():
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_an_update_is_shared_out() -> None:
    def sizes(micro: int, steps: int, processes: int) -> tuple[int, int]:
        training = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": steps}
        found = shared(training, processes)
        return found["per_device_train_batch_size"], found["gradient_accumulation_steps"]

    assert sizes(4, 16, 1) == (4, 16)
    assert sizes(4, 16, 8) == (4, 2)
    assert sizes(4, 16, 64) == (1, 1)
    assert sizes(8, 1, 4) == (2, 1)
    assert sizes(4, 3, 2) == (3, 2)
    assert sizes(1, 12, 3) == (1, 4)
    assert shared({}, 4) == {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    with pytest.raises(ValueError, match="an update of 6 prompts .* to 4 processes: make it a multiple of 4"):
        sizes(3, 2, 4)


def test_sharding_is_asked_for_by_the_recipe_or_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(variable, raising=False)
    assert asked_for({"fsdp": None}) is None
    check_asked({}, 1, "cpu")
    assert asked_for({"fsdp": "full_shard"}) == "training.fsdp"
    assert asked_for({"deepspeed": {"zero_optimization": {"stage": 3}}}) == "training.deepspeed"
    check_asked({"fsdp": True}, 2, "cuda")
    for processes, device in ((1, "cuda"), (2, "cpu")):
        with pytest.raises(ValueError, match=rf"training.fsdp asks .* {processes} process\(es\) on {device}"):
            check_asked({"fsdp": True}, processes, device)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert asked_for({}) == "ACCELERATE_USE_FSDP"
