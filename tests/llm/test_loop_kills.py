"""Runs killed with SIGKILL at random moments end as if nothing had happened. `killing.py` does it more often."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from killing import differences
from test_loop_rules import RECIPE, recipe

from nashpo.llm.loop.machine import train
from nashpo.llm.loop.phase import Phase

HERE = Path(__file__).parent


def test_five_kills_over_two_iterations(tmp_path: Path) -> None:
    """Weights, samples, judgements and figures of every step are bit-identical, and no committed phase changed."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("max_steps: 2", "max_steps: 12").replace("save_steps: 2", "save_steps: 4"))
    command = [sys.executable, str(HERE / "killing.py"), str(path), "--kills", "5", "--seed", "1"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert '"different": []' in found.stdout
    assert '"repeated": []' in found.stdout


class Killed(BaseException):
    """What nothing catches."""


@pytest.mark.usefixtures("quick_runs")
@pytest.mark.parametrize("where", ["between the commits", "before checkpoints are deleted"])
def test_a_kill_at_the_end_of_a_training_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The model is committed and its training is not; both are, and checkpoints are still there."""
    changes = ("evaluation=null", "iterations.count=1", "training.save_steps=1")
    calm = train(recipe(tmp_path / "calm", *changes))
    commit, delete = Phase.commit, shutil.rmtree

    def committing(phase: Phase, *args: Any, **about: Any) -> None:
        if phase.name == "train":
            raise Killed
        commit(phase, *args, **about)

    def deleting(path: Path, *args: Any, **options: Any) -> None:
        if Path(path).name.startswith("checkpoint-"):
            raise Killed
        delete(path, *args, **options)

    with monkeypatch.context() as patched:
        if where == "between the commits":
            patched.setattr(Phase, "commit", committing)
        else:
            patched.setattr(shutil, "rmtree", deleting)
        with pytest.raises(Killed):
            train(recipe(tmp_path / "hit", *changes))
    assert list((tmp_path / "hit/run").rglob("checkpoint-*"))
    hit = train(recipe(tmp_path / "hit", *changes))
    assert differences(calm.run, hit.run) == []
