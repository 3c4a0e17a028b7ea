"""The packaged recipe `self-play-small` on real text: two SPPO iterations judged by a reward model made here.

A small byte-BPE model learns the responses that AlpacaEval's judge liked; a reward model of the same size learns its
judged pairs. That everything fits together is shown, and nothing about how good SPPO is. Skipped where the AlpacaEval
data (CC BY-NC, not part of the product) are absent.
"""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from real_text import (
    BOS,
    DATA,
    EOS,
    Run,
    byte_bpe,
    check_stored_log_probabilities,
    check_the_same_command_does_nothing,
    judged_pairs,
    played,
    save_model,
    win_matrix,
    written,
)
from safetensors.torch import load_file

from nashpo.llm.judges.config import RewardModelConfig
from nashpo.llm.judges.reward_model import RewardModel
from nashpo.llm.judges.train_reward import RewardTraining, pair_accuracy, train_reward_model

ROOM = Path(__file__).parents[2] / "llm"
PROMPTS, HELD_OUT, K, LONGEST = 32, 12, 4, 64
UNSEEN = 128
"""Pairs that the reward model does not learn, the run's prompts among them."""

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the AlpacaEval data are not here")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Everything that a user does: files made, then one command."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("real")
    pairs = judged_pairs()
    own, unseen, learned = pairs[:PROMPTS], pairs[:UNSEEN], pairs[UNSEEN:]
    tokenizer = byte_bpe(text for row in learned for text in row.values())
    save_model(tokenizer, home / "model")
    training = RewardTraining(template="{prompt}{response}</s>", learning_rate=2e-3)
    train_reward_model(home / "model", tokenizer, learned, home / "liked-by-gpt4", training)
    accuracy = pair_accuracy(RewardModel(RewardModelConfig(path=str(home / "liked-by-gpt4")), "cpu"), unseen)
    command = [
        "train",
        "self-play-small",
        f"model.path={home / 'model'}",
        f"prompts.path={written(home / 'prompts.jsonl', [{'prompt': row['prompt']} for row in own])}",
        f"prompts.heldout={HELD_OUT}",
        f"judge.path={home / 'liked-by-gpt4'}",
        f"sampling.K={K}",
        f"sampling.max_new_tokens={LONGEST}",
        f"warmup.data={{path: {written(home / 'liked.jsonl', learned[:480])}}}",
        "warmup.training={learning_rate: 3.0e-3, per_device_train_batch_size: 8, num_train_epochs: 1}",
        "training.learning_rate=1.0e-3",
        "training.gradient_accumulation_steps=1",
        "training.logging_steps=1",
        f"output_dir={home / 'run'}",
        "--quiet",
    ]
    return played(home, command, accuracy)


# ---------------------------------------------------------------------------------------------- what the page promises


def test_every_file_and_key_of_the_documented_table_is_there(run: Run) -> None:
    page = (ROOM / "README.md").read_text()
    evaluation = {"win_rates", "length_controlled", "samples", "lengths", "kl", "exact", "side_by_side"}
    completion = {"ids", "text", "finished", "retokenized"}
    first = run.path / "iterations/001"
    found = {
        "state.json": set(json.loads((run.path / "state.json").read_text())),
        "iterations/001/samples/*.jsonl": set(run.rows("iterations/001/samples/*.jsonl")[0]),
        "iterations/001/judgements/*.jsonl": set(run.rows("iterations/001/judgements/*.jsonl")[0]),
        "iterations/001/logprobs/POLICY.safetensors": set(load_file(first / "logprobs/start.safetensors")),
        "any `manifest.json`": set(json.loads((first / "samples/manifest.json").read_text())),
    }
    wanted = {
        "state.json": {"t", "slots", "average", "answers", "fingerprint"},
        "iterations/001/samples/*.jsonl": {"prompt_key", "prompt", "prompt_ids", "completions"},
        "iterations/001/judgements/*.jsonl": {"prompt_key", "wins", "raw", "asymmetry"},
        "iterations/001/logprobs/POLICY.safetensors": {"logprobs"},
        "any `manifest.json`": {"format", "phase", "key", "complete", "files", "versions", "seconds", "counts"},
    }
    for name, keys in wanted.items():
        (row,) = [line for line in page.splitlines() if line.startswith((f"| `{name}`", f"| {name}"))]
        assert keys <= set(re.findall(r"`(\w+)`", row)), f"{name} is documented otherwise"
        assert keys <= found[name], name
    for name in (*evaluation, *completion):
        assert f"`{name}`" in page
    assert evaluation <= set(run.results(1))
    completions = run.rows("iterations/001/samples/*.jsonl")[0]["completions"]
    assert all(set(one) == completion for one in completions)
    assert {row["phase"] for row in run.rows("metrics.jsonl")} == {"samples", "judgements", "train", "evaluation"}
    for name in ("recipe.yaml", "judge_cache.jsonl", "lock", "start/manifest.json", "report.html"):
        assert (run.path / name).is_file(), name
    for number in (1, 2):
        files = ("model/model.safetensors", "model/README.md", "train/current/log.jsonl", "evaluation/results.json")
        assert all((run.path / f"iterations/{number:03d}" / name).is_file() for name in files)
        folders = [path.parent for path in (run.path / f"iterations/{number:03d}").rglob("manifest.json")]
        assert {f.name for f in folders} >= {"samples", "judgements", "logprobs", "current", "model", "evaluation"}
        assert all(json.loads((f / "manifest.json").read_text())["complete"] for f in folders)


def test_the_same_command_again_does_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    check_the_same_command_does_nothing(run, capsys)


# -------------------------------------------------------------------------------------------------------- the sequences


def test_one_begin_and_one_end_token_per_sequence(run: Run) -> None:
    rows = run.rows("iterations/*/samples/*.jsonl") + run.rows("iterations/*/evaluation/samples/*/*.jsonl")
    # Two parts of the prompts, then the held-out ones: current and reference, and in iteration 2 the previous one.
    assert len(rows) == PROMPTS - HELD_OUT + 5 * HELD_OUT
    finished = 0
    for row in rows:
        assert row["prompt_ids"][0] == BOS
        assert BOS not in row["prompt_ids"][1:]
        assert EOS not in row["prompt_ids"]
        for one in row["completions"]:
            assert one["ids"][0] != BOS  # none is put before a response; a policy may draw one later, as any token
            assert one["ids"].count(EOS) == int(one["finished"])
            assert one["finished"] == (one["ids"][-1] == EOS)
            assert one["finished"] or len(one["ids"]) == LONGEST
            assert not one["retokenized"]
            finished += one["finished"]
    assert finished  # the warm-up has taught the model to end


def test_every_prompt_is_trained_on_once_and_none_that_is_held_out(run: Run) -> None:
    trained = [row["prompt"] for row in run.rows("iterations/*/samples/*.jsonl")]
    held = {row["prompt"] for row in run.rows("iterations/*/evaluation/samples/*/*.jsonl")}
    assert len(trained) == len(set(trained)) == PROMPTS - HELD_OUT
    assert len(held) == HELD_OUT
    assert not held & set(trained)


def test_stored_log_probabilities_are_those_of_the_starting_policy(run: Run) -> None:
    check_stored_log_probabilities(run, K)


# ------------------------------------------------------------------------------------------------ judging and training


def test_win_matrices_are_symmetric(run: Run) -> None:
    rows = run.rows("iterations/*/judgements/*.jsonl")
    assert len(rows) == PROMPTS - HELD_OUT
    for row in rows:
        win_matrix(row, K)
    assert len({p for row in rows for line in row["wins"] for p in line}) > K * len(rows)  # the judge tells them apart


def test_the_first_log_ratio_of_each_iteration_is_zero_and_all_figures_are_finite(run: Run) -> None:
    for number in (1, 2):
        log = [row for row in run.rows(f"iterations/{number:03d}/train/current/log.jsonl") if "loss" in row]
        assert [row["step"] for row in log] == [1, 2, 3]  # 10 prompts, 4 a step
        # Before the first update π is π_t: what is left is fp32 rounding, which the trainer bounds by 1e-4 nats.
        for name in ("theory/kl_last_iterate", "rewards/chosen", "rewards/rejected", "rewards/margins"):
            assert abs(log[0][name]) <= 1e-3, name
        assert abs(log[-1]["theory/kl_last_iterate"]) > 1e-4  # and training moves it
    figures = [v for row in run.rows("metrics.jsonl") for v in row.values() if isinstance(v, int | float)]
    assert len(figures) > 100
    assert all(map(math.isfinite, figures))
    old, new = (load_file(run.path / f"iterations/00{i}/model/model.safetensors") for i in (1, 2))
    assert any(not torch.equal(old[name], new[name]) for name in old)


def test_the_length_bias_of_the_judge_is_measured(run: Run) -> None:
    for number in (1, 2):
        samples = run.rows(f"iterations/{number:03d}/samples/*.jsonl")
        judged = {row["prompt_key"]: row["wins"] for row in run.rows(f"iterations/{number:03d}/judgements/*.jsonl")}
        means = []
        for row in samples:
            lengths, wins = [len(one["ids"]) for one in row["completions"]], judged[row["prompt_key"]]
            texts = [one["text"] for one in row["completions"]]
            pairs = [(i, j) for i in range(K) for j in range(K) if lengths[i] > lengths[j] and texts[i] != texts[j]]
            means += [np.mean([wins[i][j] for i, j in pairs])] if pairs else []
        # The mean of at most 10 prompts' means of at most 6 numbers in [0, 1].
        assert run.results(number)["samples"]["length_bias"] == pytest.approx(np.mean(means) - 0.5, abs=1e-14)


def test_the_win_rate_against_the_reference_is_reported_with_its_interval(run: Run) -> None:
    rate = run.results(2)["win_rates"]["reference"]
    judged = run.rows("iterations/002/evaluation/judgements/reference/*.jsonl")
    wins = [np.mean(row["wins"]) for row in judged]
    assert rate["prompts"] == len(wins) == HELD_OUT
    assert rate["mean"] == pytest.approx(np.mean(wins), abs=1e-14)
    assert 0 < rate["low"] < rate["mean"] < rate["high"] < 1
    assert f"against reference {rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]" in run.printed
    assert run.results(1)["win_rates"]["reference"] == run.results(1)["win_rates"]["previous"]  # they are one policy
    assert run.accuracy >= 0.65  # on pairs that it has not seen; P(84 or more of 128 heads of a coin) is 3e-4
    bias = run.results(2)["samples"]["length_bias"]
    print(f"win rate {rate}, reward model's accuracy {run.accuracy:.2f} on {UNSEEN} pairs, its length bias {bias:.3f}")


def test_the_report_names_the_judge_and_the_figures(run: Run) -> None:
    report = (run.path / "report.html").read_text()
    assert "reward_model" in report
    assert "liked-by-gpt4" in report
    rate = run.results(2)["win_rates"]["reference"]
    for number in (rate["mean"], rate["low"], rate["high"]):
        assert f"{number:.3f}" in report
    assert "Finished: 2 of 2 iterations" in re.sub("<[^>]*>", "", report)
