"""Runs on conversations: every rule at both levels, killed and gone on with, refused before anything is done."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_loop_rules import recipe, rows

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


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("level", ["trajectory", "state"])
@pytest.mark.parametrize(
    "rule",
    [
        "{name: sppo, eta: 1.0}",
        "{name: onpo, eta: 1.0}",
        "{name: onpo, eta: 0.5, variant: one_step}",  # asks for win rates against the policy before
        "{name: egpo, eta: 1.0, tau: 0.1}",
        "{name: nash-md, eta: 1.0, tau: 0.1}",  # samples a geometric mixture
        "{name: iterative-dpo, tau: 1.0}",
    ],
)
def test_rules_train_on_conversations_unchanged(tmp_path: Path, rule: str, level: str) -> None:
    changes = [f"rule={rule}", f"conversation.level={level}", "conversation.branches=2"]
    outcome = train(recipe(tmp_path, *changes[: 2 if level == "trajectory" else 3], text=TWO_TURNS))
    assert outcome.new == 2
    found = [row for row in rows(outcome.run) if row["phase"] == "train" and "loss" in row]
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in found)
    assert any(row["loss"] > 0 for row in found)
    leaves = 4 if level == "trajectory" else 8
    first = outcome.run / "iterations/001"
    samples = [json.loads(line) for path in sorted(first.glob("samples/*.jsonl")) for line in path.open()]
    assert all(len(row["completions"]) == leaves for row in samples)
    judged = [json.loads(line) for path in sorted(first.glob("judgements/*.jsonl")) for line in path.open()]
    assert all(len(row["wins"]) == leaves for row in judged)
    # Equal responses of a row are one: as many rows as there are states with two different answers.
    (known, *_) = sorted(first.glob("logprobs/**/*.safetensors"))
    states = load_file(known)["logprobs"].shape[0]
    assert states == 3 if level == "trajectory" else 3 < states <= 3 * (1 + 4)


def test_kills_on_conversations_leave_no_trace(tmp_path: Path) -> None:
    """Three kills at random moments over two iterations at the level of states: bit-identical ends."""
    path = tmp_path / "recipe.yaml"
    text = TWO_TURNS.replace("max_steps: 2", "max_steps: 12").replace("save_steps: 2", "save_steps: 4")
    path.write_text(text.replace("turns: 2, text_template", "turns: 2, level: state, branches: 2, text_template"))
    command = [sys.executable, str(HERE / "killing.py"), str(path), "--kills", "3", "--seed", "2"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert '"different": []' in found.stdout
    assert '"repeated": []' in found.stdout


def test_the_other_sides_words_change_the_run_and_its_keys(tmp_path: Path) -> None:
    """Another user makes other conversations, and a run that began with one is not gone on with the other."""
    says = "conversation.user={{kind: script, says: [{}]}}"
    judge = "judge={kind: function, function: 'test_loop_conversations:longer', form: pairs}"
    for word in ("red", "green"):
        outcome = train(recipe(tmp_path / word, says.format(word), judge, text=TWO_TURNS))
        lines = (outcome.run / "iterations/001/samples/00000.jsonl").read_text().splitlines()
        turns = [one["turns"] for line in lines for one in json.loads(line)["completions"]]
        assert {turn[1]["content"] for turn in turns} == {word}
    with pytest.raises(ValueError, match=r"conversation\.user"):
        train(recipe(tmp_path / "red", says.format("green"), judge, text=TWO_TURNS))


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
    ],
)
def test_a_mistake_is_one_line_before_anything_is_sampled(tmp_path: Path, changes: list[str], line: str) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        train(recipe(tmp_path, *changes, text=TWO_TURNS))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/iterations").exists()
