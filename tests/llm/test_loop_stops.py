"""A run that is stopped, by whatever: nothing is lost, nothing is done twice, and one line says how to go on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from killing import committed, differences
from test_loop_rules import recipe, rows

from nashpo.llm.loop.lock import locked
from nashpo.llm.loop.machine import train
from nashpo.llm.loop.messages import RunStopped

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_a_finished_run_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = recipe(tmp_path, "evaluation=null", "iterations.count=1")
    first = train(chosen)
    times = {path: path.stat().st_mtime_ns for path in first.run.rglob("*") if path.is_file() and path.name != "lock"}
    monkeypatch.setattr("nashpo.llm.loop.machine.prepare", lambda *a: pytest.fail("a finished run was prepared again"))
    again = train(chosen)
    assert again.new == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_another_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    train(recipe(tmp_path, "evaluation=null", "iterations.count=1"))
    with pytest.raises(ValueError, match=r"rule\.eta: 1\.0 -> 2\.0.*output_dir.*--from") as caught:
        train(recipe(tmp_path, "evaluation=null", "iterations.count=1", "rule.eta=2.0"))
    assert "\n" not in str(caught.value)
    split = "iterations.prompts=split"
    with pytest.raises(ValueError, match="iterations.prompts: .all. -> .split."):
        train(recipe(tmp_path, "evaluation=null", "iterations.count=1", split))


def test_more_iterations_continue_a_run_on_the_same_prompts(tmp_path: Path) -> None:
    changes = ("evaluation=null",)
    whole = train(recipe(tmp_path / "whole", *changes, "iterations.count=2"))
    train(recipe(tmp_path / "grown", *changes, "iterations.count=1"))
    before = committed(tmp_path / "grown/run")
    grown = train(recipe(tmp_path / "grown", *changes, "iterations.count=2"))
    assert grown.new == 1
    after = committed(grown.run)
    assert {name for name in before if name not in after} == {"iterations/001/auxiliary/manifest.json"}  # is not needed
    assert all(after.get(name, data) == data for name, data in before.items())
    assert differences(whole.run, grown.run) == ["iterations/001/model/README.md"]  # it tells the recipe of its day


def test_a_run_in_use_is_refused(tmp_path: Path) -> None:
    chosen = recipe(tmp_path, "evaluation=null")
    code = (
        "import sys\nfrom pathlib import Path\nfrom nashpo.llm.loop.lock import locked\n"
        "with locked(Path(sys.argv[1])):\n print('held', flush=True)\n sys.stdin.read()"
    )
    (tmp_path / "run").mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="in use by another process"):
        train(chosen)
    holder.kill()  # a crash frees it
    holder.wait()
    with locked(tmp_path / "run"):
        pass


def test_keep_last_deletes_weights_and_never_data(tmp_path: Path) -> None:
    outcome = train(recipe(tmp_path, "keep_last=1", "iterations.count=3"))
    folders = [outcome.run / f"iterations/{number:03d}" for number in (1, 2, 3)]
    assert [(folder / "model").exists() for folder in folders] == [False, False, True]
    assert [(folder / "auxiliary").exists() for folder in folders] == [False, False, True]  # ONPO needs the last one
    assert all((folder / "samples/00000.jsonl").exists() for folder in folders)
    assert all((folder / "judgements/00000.jsonl").exists() for folder in folders)
    assert not list(outcome.run.rglob("checkpoint-*"))


def test_without_keep_last_every_iterate_stays(tmp_path: Path) -> None:
    outcome = train(recipe(tmp_path, "evaluation=null"))
    assert all((outcome.run / f"iterations/{number:03d}/model/config.json").exists() for number in (1, 2))


class Judge:
    """Prefers the longer text; dies on call number ``dies``."""

    calls = 0
    dies: int | None = None


def longer(prompts: list[str], firsts: list[str], seconds: list[str]) -> list[float]:
    """A judge as `nashpo.llm.judges.function` calls it."""
    Judge.calls += 1
    if Judge.dies is not None and Judge.calls >= Judge.dies:
        raise ConnectionError("the judge is gone")
    return [0.9 if len(a) > len(b) else 0.1 if len(a) < len(b) else 0.5 for a, b in zip(firsts, seconds)]


def test_a_judge_that_dies_loses_nothing(tmp_path: Path) -> None:
    judge = f"judge={{kind: function, function: '{__name__}:longer'}}"
    sys.modules.setdefault(__name__, sys.modules[longer.__module__])
    Judge.calls, Judge.dies = 0, None
    calm = train(recipe(tmp_path / "calm", judge))
    asked = Judge.calls
    Judge.calls, Judge.dies = 0, 3
    with pytest.raises(RunStopped, match=r"iteration \d, .*judge.*gone.*run the same command again") as caught:
        train(recipe(tmp_path / "hit", judge))
    assert "\n" not in str(caught.value)
    before = committed(tmp_path / "hit/run")
    assert before
    Judge.dies = None
    hit = train(recipe(tmp_path / "hit", judge))
    after = committed(hit.run)
    assert all(after.get(name, data) == data for name, data in before.items())
    assert differences(calm.run, hit.run) == []
    assert Judge.calls <= asked + 1  # the call that failed, and none that was answered before


def test_a_loss_that_is_not_finite_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match=r"iteration 1, train.*loss is not finite.*nonfinite-batch.json") as caught:
        train(recipe(tmp_path, "evaluation=null", "training.learning_rate=1.0e+30", "training.max_steps=4"))
    assert "\n" not in str(caught.value)
    assert rows_of_samples(tmp_path / "run") > 0


def rows_of_samples(run: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in run.rglob("samples/*.jsonl"))


def test_a_new_run_from_an_old_iterate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nashpo.llm.commands.train import main

    first = train(recipe(tmp_path / "first", "evaluation=null"))
    text = str(tmp_path / "first/recipe.yaml")
    new = tmp_path / "second"
    common = [f"output_dir={new}", "evaluation=null", "rule={name: sppo, eta: 1.0}", "iterations.count=1", "--quiet"]
    assert main([text, "--from", f"{first.run}@1", *common]) == 0
    assert "report:" in capsys.readouterr().out
    line = json.loads((new / "start/manifest.json").read_text())
    assert line["model"].endswith("iterations/001/model")
    with pytest.raises(ValueError, match=r"no weights at .*009/model.*has iterates \[1, 2\]"):
        main([text, "--from", f"{first.run}@9", *common])
    with pytest.raises(ValueError, match="must be RUN@N"):
        main([text, "--from", str(first.run), *common])


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """The run's folder is a file system of 120 KiB, mounted in a name space of the child's own, then a larger one."""
    calm = train(recipe(tmp_path / "calm", "evaluation=null"))
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    again = f"{sys.executable} {HERE / 'full_disk.py'} {tmp_path / 'calm/recipe.yaml'} {disk / 'run'}"
    script = f"""
        set -e
        mount -t tmpfs -o size=120k tmpfs {disk}
        {again} > {out / "full.txt"} 2>&1 || true
        mount -o remount,size=20m {disk}
        {again} > {out / "again.txt"} 2>&1
        cp -r {disk / "run"} {out / "run"}
    """
    tool = shutil.which("unshare")
    if tool is None:
        pytest.skip("no unshare: a small file system cannot be made")
    probe = subprocess.run([tool, "-rm", "mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("no file system can be mounted here")
    found = subprocess.run(
        [tool, "-rm", "sh", "-c", script], capture_output=True, text=True, check=False, env={**os.environ}
    )
    told = (out / "full.txt").read_text() if (out / "full.txt").exists() else ""
    assert found.returncode == 0, found.stderr + told + _text(out / "again.txt")
    last = told.strip().splitlines()[-1]
    assert "nashpo: error: iteration 1" in last, told
    assert "o space left" in last
    assert "run the same command again" in last
    # A model card names the installed version, which a script outside of the checkout may not see.
    assert [name for name in differences(calm.run, out / "run") if not name.endswith("README.md")] == []


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_metrics_hold_each_row_once(tmp_path: Path) -> None:
    found = rows(train(recipe(tmp_path)).run)
    keys = [(r["iteration"], r["phase"], r.get("stage"), r.get("folder"), r.get("step"), "loss" in r) for r in found]
    assert len(keys) == len(set(keys))
    assert not any("runtime" in name or "per_second" in name for row in found for name in row)
