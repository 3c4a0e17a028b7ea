"""Runs on conversations: rules at both levels, killed and gone on with, refused before anything is done."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import differences
from safetensors.torch import load_file
from test_loop_rules import recipe, rows

from nashpo.core.cli import main
from nashpo.llm.judges.function import Pairs
from nashpo.llm.loop.machine import train

HERE = Path(__file__).parent
TWO_TURNS = """
model: {build: {symbols: 2, length: 1, prompts: 3, turns: 2, replies: 2, hidden_size: 16, layers: 1, heads: 2}}
rule: {name: onpo, eta: 1.0}
conversation: {turns: 2, text_template: " {text} "}
sampling: {K: 4, max_new_tokens: 1, shard: 2}
training: {max_steps: 2, per_device_train_batch_size: 3, learning_rate: 1.0e-3, logging_steps: 1, save_steps: 2}
iterations: {count: 2, prompts: all}
evaluation: {K: 2}
output_dir: OUT
"""
JUDGE = "judge={kind: function, function: 'test_loop_conversations:longer', form: pairs}"


pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.mark.parametrize(
    ("rule", "level", "count"),
    [
        ("{name: sppo, eta: 1.0}", "trajectory", 1),
        ("{name: onpo, eta: 0.5, variant: one_step}", "trajectory", 2),  # asks for win rates against the policy before
        ("{name: nash-md, eta: 1.0, tau: 0.1}", "trajectory", 1),  # samples a geometric mixture
        ("{name: sppo, eta: 1.0}", "state", 1),
        ("{name: onpo, eta: 1.0}", "state", 2),  # two stages, whose comparisons are with themselves
        ("{name: onpo, eta: 0.5, variant: leader}", "state", 2),  # against the average of all policies before
        ("{name: egpo, eta: 1.0, tau: 0.1}", "state", 1),  # samples two policies
        ("{name: iterative-dpo, tau: 1.0}", "state", 1),  # learns from who beat whom
    ],
)
def test_rules_train_on_conversations_unchanged(tmp_path: Path, rule: str, level: str, count: int) -> None:
    changes = [f"rule={rule}", f"conversation.level={level}", f"iterations.count={count}", "conversation.branches=2"]
    outcome = train(recipe(tmp_path, *changes[: 3 if level == "trajectory" else 4], text=TWO_TURNS))
    assert outcome.new == count
    found = [row for row in rows(outcome.run) if row["phase"] == "train" and "loss" in row]
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in found)
    assert any(row["loss"] > 0 for row in found)
    leaves = 4 if level == "trajectory" else 8
    first = outcome.run / "iterations/001"
    samples = [json.loads(line) for path in sorted(first.glob("samples/*.jsonl")) for line in path.open()]
    assert all(len(row["completions"]) == leaves for row in samples)
    judged = [json.loads(line) for path in sorted(first.glob("judgements/*.jsonl")) for line in path.open()]
    assert all(len(row["wins"]) == leaves for row in judged)
    counts = json.loads((first / "samples/manifest.json").read_text())["counts"]
    assert counts["responses"] == 3 * leaves
    assert counts["states"] == [3, 3 * 4]
    assert counts["answers"] == [3 * 4, 3 * leaves]  # each once, however many conversations share it
    assert (counts["turns"], counts["other_side_tokens"]) == (3 * (4 + leaves), 3 * 4)
    # Equal responses of a row are one: as many rows as there are states with two different answers.
    (known, *_) = sorted(first.glob("logprobs/**/*.safetensors"))
    states = load_file(known)["logprobs"].shape[0]
    assert states == 3 if level == "trajectory" else 3 < states <= 3 * (1 + 4)


def test_kills_on_conversations_leave_no_trace(tmp_path: Path) -> None:
    """Three kills at random moments of an iteration at the level of states: bit-identical ends."""
    path = tmp_path / "recipe.yaml"
    text = TWO_TURNS.replace("max_steps: 2", "max_steps: 6").replace("count: 2", "count: 1")
    path.write_text(text.replace("turns: 2, text_template", "turns: 2, level: state, branches: 2, text_template"))
    command = [sys.executable, str(HERE / "killing.py"), str(path), "--kills", "3", "--seed", "2", "--no-report"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    result = json.loads(found.stdout)
    assert result["different"] == result["repeated"] == []
    assert result["kills"] > 0


def test_counts_of_sampling_are_stored_and_early_ends_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stops after two of three shards counts what an undisturbed one counts, and says what happened."""
    from nashpo.llm.conversation.users.function import FunctionUser

    class Counting(FunctionUser):
        """Ends all conversations but the first, and counts those; the call of number ``fails`` fails."""

        fails: int | None = None
        calls = 0

        def __init__(self, target: str, role: str = "user") -> None:
            super().__init__(target, role)
            self.counts = {"ended": 0}

        def reply(self, dialogues: Any, seed: int) -> Any:
            Counting.calls += 1
            if Counting.calls == Counting.fails:
                raise ValueError("gone")
            self.counts["ended"] += len(dialogues) - 1
            return [{"role": "user", "content": "red"}, *[None] * (len(dialogues) - 1)]

    monkeypatch.setattr("nashpo.llm.conversation.users.function.FunctionUser", Counting)
    monkeypatch.setitem(sys.modules, "curious_user", sys.modules[curious.__module__])
    changes = ["conversation.user={kind: function, function: 'curious_user:curious'}", JUDGE, "sampling.shard=1"]
    changes += ["iterations.count=1", "training.max_steps=1", "evaluation=null", "conversation.level=state"]
    compare, knows = Pairs.compare, set()
    monkeypatch.setattr(Pairs, "compare", lambda self, pairs: knows.add(self.conversations) or compare(self, pairs))
    told: list[str] = []
    calm = train(recipe(tmp_path / "calm", *changes, text=TWO_TURNS), say=told.append)
    Counting.calls, Counting.fails = 0, 3
    hit = recipe(tmp_path / "hit", *changes, text=TWO_TURNS)
    with pytest.raises(ValueError, match="gone"):
        train(hit)
    assert differences(calm.run, train(hit).run) == []
    counts = json.loads((calm.run / "iterations/001/samples/manifest.json").read_text())["counts"]
    assert (counts["states"], counts["answers"]) == ([3, 3], [12, 12])  # one of four went on, to four answers
    assert counts["other_side_ended"] == 9
    assert knows == {True}  # the judge, also where all of a call's conversations ended after one answer
    (line,) = [line for line in told if "first answers" in line]
    assert line.startswith("iteration 1, samples: 3 of 12 first answers were followed by a second one: the other side")


class User:
    """Says red or green, or nothing more; fails on call number ``fails``."""

    calls = 0
    fails: int | None = None


def curious(conversations: list[Any], seeds: list[int]) -> list[str | None]:
    """The other side of a test."""
    User.calls += 1
    if User.calls == User.fails:
        raise KeyError("gone")
    return [("red", "green", None)[seed % 3] for seed in seeds]


def test_a_user_that_fails_halfway_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit status 2, and the same command goes on to where an undisturbed run ends."""
    monkeypatch.setitem(sys.modules, "curious_user", sys.modules[curious.__module__])
    changes = ["conversation.user={kind: function, function: 'curious_user:curious'}", JUDGE, "sampling.shard=1"]
    changes += ["iterations.count=1", "training.max_steps=1"]
    monkeypatch.setattr(User, "fails", None)
    monkeypatch.setattr(User, "calls", 0)
    calm = train(recipe(tmp_path / "calm", *changes, text=TWO_TURNS))
    asked = User.calls
    assert asked == 3 + 2 * 3  # three shards of samples, and of two policies' evaluation, one later turn each
    monkeypatch.setattr(User, "fails", 2)
    monkeypatch.setattr(User, "calls", 0)
    recipe(tmp_path / "hit", *changes, text=TWO_TURNS)
    command = ["train", str(tmp_path / "hit/recipe.yaml"), f"output_dir={tmp_path / 'hit/run'}", *changes, "--quiet"]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert (
        "iteration 1, samples: user 'curious_user:curious' failed with KeyError: 'gone' (test_loop_conversations.py, "
        in told
    )
    assert [path.name for path in tmp_path.glob("hit/run/iterations/001/samples/*.jsonl")] == ["00000.jsonl"]
    assert main(command) == 0
    assert User.calls == asked + 1  # the call that failed, and none that was answered before
    assert differences(calm.run, tmp_path / "hit/run") == []


def test_the_other_sides_words_change_the_run_and_its_keys(tmp_path: Path) -> None:
    """Another user makes other conversations, and a run that began with one is not gone on with the other."""
    says = "conversation.user={{kind: script, says: [{}]}}"
    for word in ("red", "green"):
        outcome = train(recipe(tmp_path / word, says.format(word), JUDGE, "iterations.count=1", text=TWO_TURNS))
        lines = (outcome.run / "iterations/001/samples/00000.jsonl").read_text().splitlines()
        turns = [one["turns"] for line in lines for one in json.loads(line)["completions"]]
        assert {turn[1]["content"] for turn in turns} == {word}
    with pytest.raises(ValueError, match=r"conversation\.user"):
        train(recipe(tmp_path / "red", says.format("green"), JUDGE, "iterations.count=1", text=TWO_TURNS))


def longer(prompts: list[str], firsts: list[str], seconds: list[str]) -> list[float]:
    """The judge of a test."""
    return [0.5 + 0.4 * ((len(a) > len(b)) - (len(a) < len(b))) for a, b in zip(firsts, seconds, strict=True)]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["rule={name: dpo, tau: 0.1}", "iterations.count=1"], "dpo"),
        (["conversation.turns=3"], "turns"),
        (["conversation.text_template=null"], "text_template"),
        (["conversation.branches=2"], r"conversation\.branches"),
        (["conversation=null"], "conversation"),
        (["conversation.level=state", "sampling.K=64"], "4,096 conversations per prompt"),
        (["conversation.user={kind: parrot}"], r"conversation\.user\.kind"),
        (["conversation.user={kind: script, path: nowhere.jsonl}"], "nowhere.jsonl"),
        (["conversation.level=state", "objective=labelled"], "labelled margin is wrong at conversation.level = state"),
        (["conversation.level=state", "rule={name: sppo, eta: 1}", "objective=pointwise"], "set objective=pairwise"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_sampled(tmp_path: Path, changes: list[str], line: str) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        train(recipe(tmp_path, *changes, text=TWO_TURNS))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/iterations").exists()
