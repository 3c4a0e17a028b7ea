"""The packaged recipe `self-play-conversation` on real text: AlpacaEval's prompts and a user who asks again.

A small byte-BPE model learns conversations made of AlpacaEval's responses, a reward model of the same size its judged
pairs. That everything fits together is shown, and nothing about how good ONPO is.
"""

import json
import re
from pathlib import Path
from typing import Any

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
    lines,
    played,
    save_model,
    win_matrix,
    written,
)

from nashpo.core.cli import main
from nashpo.llm.judges.train_reward import RewardTraining, train_reward_model

TEMPLATE = (
    "<s>{% for m in messages %}### {{ m.role }}\n{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}### assistant\n{% endif %}"
)
AGAIN = "Shorter, please."
PROMPTS, HELD_OUT, K, LONGEST = 20, 8, 4, 40

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the AlpacaEval data are not here")


def conversation(row: dict[str, Any]) -> dict[str, Any]:
    """A prompt, a response, the user's turn and a shorter response."""
    said = [("user", row["prompt"]), ("assistant", row["chosen"]), ("user", AGAIN), ("assistant", row["chosen"][:30])]
    return {"messages": [{"role": role, "content": content} for role, content in said]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Everything that a user does: files made, then one command."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("conversation")
    pairs = [{**row, "prompt": row["prompt"].strip()} for row in judged_pairs()]
    own, learned = pairs[:PROMPTS], pairs[PROMPTS:]
    tokenizer = byte_bpe(text for row in learned for text in row.values())
    tokenizer.chat_template = TEMPLATE
    save_model(tokenizer, home / "model")
    reward = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in learned]
    train_reward_model(home / "model", tokenizer, reward, home / "judge", RewardTraining(learning_rate=2e-3))
    command = [
        "train",
        "self-play-conversation",
        f"model.path={home / 'model'}",
        f"prompts.path={written(home / 'prompts.jsonl', [{'prompt': row['prompt']} for row in own])}",
        f"prompts.heldout={HELD_OUT}",
        f"judge.path={home / 'judge'}",
        f"conversation.user={{kind: script, says: ['{AGAIN}']}}",
        f"sampling.K={K}",
        f"sampling.max_new_tokens={LONGEST}",
        f"warmup.data={{path: {written(home / 'talks.jsonl', [conversation(row) for row in learned[:320]])}}}",
        "warmup.training={learning_rate: 3.0e-3, per_device_train_batch_size: 8, num_train_epochs: 1}",
        "training.learning_rate=1.0e-3",
        "training.gradient_accumulation_steps=1",
        f"output_dir={home / 'run'}",
        "--quiet",
    ]
    return played(home, command)


def tokenizer_of(run: Run) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(run.path / "start")


def test_each_conversation_is_what_the_chat_template_prints(run: Run) -> None:
    """Both answers are the sampler's own tokens; all else is the template's, and only the answers are scored."""
    tokenizer = tokenizer_of(run)
    rows = run.rows("iterations/*/samples/*.jsonl") + run.rows("iterations/*/evaluation/samples/*/*.jsonl")
    between = tokenizer(f"\n### user\n{AGAIN}\n### assistant\n", add_special_tokens=False)["input_ids"]
    cut = 0
    for row in rows:
        header = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        assert row["prompt_ids"] == header
        assert header[0] == BOS
        for one in row["completions"]:
            first = one["mask"].index(0)
            middle = one["ids"][first : len(one["ids"]) - sum(one["mask"][first:])]
            closed = one["ids"][first - 1] == EOS
            assert middle == (between if closed else [EOS, *between])  # an answer that was cut is closed, unscored
            assert closed or first == LONGEST
            assert one["mask"] == [1] * first + [0] * len(middle) + [1] * (len(one["ids"]) - first - len(middle))
            assert [turn["role"] for turn in one["turns"]] == ["assistant", "user", "assistant"]
            assert one["turns"][1]["content"] == AGAIN
            assert one["text"] == "\n\n".join(
                [one["turns"][0]["content"], f"user: {AGAIN}", f"assistant: {one['turns'][2]['content']}"]
            )
            cut += not closed
    assert 0 < cut < K * len(rows)  # both kinds were seen


def test_log_probabilities_are_those_of_the_answers_alone(run: Run) -> None:
    check_stored_log_probabilities(run, K)


def test_whole_conversations_are_judged(run: Run) -> None:
    """K different conversations, no two of them equal to the judge; `test_judges_conversations` says what it sees."""
    samples = {row["prompt_key"]: row["completions"] for row in run.rows("iterations/*/samples/*.jsonl")}
    for row in run.rows("iterations/*/judgements/*.jsonl"):
        P = win_matrix(row, K)
        texts = [one["text"] for one in samples[row["prompt_key"]]]
        assert len(set(texts)) == K
        assert (P[~np.eye(K, dtype=bool)] != 0.5).all()


def test_the_run_learns_and_tells_what_it_did(run: Run) -> None:
    for number in (1, 2):
        log = [row for row in run.rows(f"iterations/{number:03d}/train/current/log.jsonl") if "loss" in row]
        assert abs(log[0]["rewards/margins"]) <= 1e-3  # before the first update π is π_t
        assert abs(log[-1]["theory/kl_last_iterate"]) > 1e-4
    manifest = json.loads((run.path / "iterations/001/samples/manifest.json").read_text())
    counts = manifest["counts"]
    assert counts["turns"] == 2 * counts["responses"]
    assert counts["tokens"] == sum(
        sum(one["mask"]) for row in run.rows("iterations/001/samples/*.jsonl") for one in row["completions"]
    )
    assert manifest["engine"]["conversation"]["user"]["says"] == [AGAIN]
    rate = run.results(2)["win_rates"]["reference"]
    assert 0 <= rate["low"] <= rate["mean"] <= rate["high"] <= 1
    assert rate["prompts"] == HELD_OUT
    report = re.sub("<[^>]*>", "", (run.path / "report.html").read_text())
    assert f"user: {AGAIN}" in report
    assert "Finished: 2 of 2 iterations" in report


def test_the_same_command_again_does_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    check_the_same_command_does_nothing(run, capsys)


def test_a_template_that_forgets_is_refused_before_anything_is_done(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Earlier answers are left out of this template's text: one line, exit status 2, and no sample."""
    home = run.path.parent
    tokenizer = tokenizer_of(run)
    tokenizer.chat_template = TEMPLATE.replace(
        "{{ m.content }}", "{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    command = [word for word in run.command if not word.startswith("output_dir")]
    command += [f"model.tokenizer={tmp_path / 'tokenizer'}", f"output_dir={tmp_path / 'run'}"]
    assert main(command) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the chat template prints earlier turns otherwise once a conversation goes on" in line
    assert not (tmp_path / "run/iterations").exists()
    assert lines(home / "prompts.jsonl")
