"""The supervised warm-up: the loss that it says, the policy that it aims for, and what a stopped one goes on with."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from nashpo.llm.config import SelfPlayConfig
from nashpo.llm.encoding import Encoder
from nashpo.llm.exact import enumerated_log_policy
from nashpo.llm.fit import NonFiniteLoss
from nashpo.llm.responses import Scored
from nashpo.llm.tiny import tiny_llama, tiny_tokenizer
from nashpo.llm.tiny_config import TinyModel
from nashpo.llm.tiny_game import tiny_target
from nashpo.llm.warmup import WarmupData, WarmupTrainer, supervised_data, tiny_data, warm_up

torch.set_num_threads(1)  # fastest for models this small
TINY = TinyModel(prompts=4)
Make = Callable[..., Any]


def arguments(folder: Path, **options: Any) -> SelfPlayConfig:
    """Six steps of SGD on batches of eight."""
    given = {
        "output_dir": str(folder),
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "optim": "sgd",
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "padding_free": False,
        "report_to": "none",
        **options,
    }
    return SelfPlayConfig(**given)


def weights(model: Any) -> np.ndarray:
    """All weights in one row."""
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


def losses(trainer: WarmupTrainer) -> list[float]:
    """The logged ones."""
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


# --------------------------------------------------------------------------------------------------- the tiny model's


def test_the_tiny_model_is_warmed_up_to_its_target(tmp_path: Path) -> None:
    """Cross-entropy to within 0.002 nats per token of the target's own entropy, total variation below 3 %."""
    model, target = tiny_llama(TINY), tiny_target(TINY)
    options = {"optim": "adamw_torch", "learning_rate": 5e-3, "lr_scheduler_type": "cosine", "max_steps": 150}
    before = enumerated_log_policy(model, TINY.prompt_ids, TINY.completions)
    trainer = warm_up(model, tiny_data(TINY), arguments(tmp_path, **options, per_device_train_batch_size=64))
    log_policy = enumerated_log_policy(model, TINY.prompt_ids, TINY.completions)
    lengths = np.array([len(ids) for ids in TINY.completions])
    entropy = -(target * np.log(target)).sum() / (target * lengths).sum()
    assert losses(trainer)[-1] == pytest.approx(entropy, abs=0.002)
    assert losses(trainer)[0] > entropy + 0.02
    distance = np.abs(np.exp(log_policy) - target).sum(-1) / 2
    assert distance.max() < 0.03
    assert (np.abs(np.exp(before) - target).sum(-1) / 2).min() > 0.1


# --------------------------------------------------------------------------------------------------------- the loss


def uneven(count: int) -> WarmupData:
    """Random sequences of uneven lengths and weights."""
    rng = np.random.default_rng(0)
    sequences = [
        Scored.completion(
            rng.integers(0, 3, rng.integers(1, 4)).tolist(), rng.integers(0, 4, rng.integers(1, 6)).tolist()
        )
        for _ in range(count)
    ]
    return WarmupData(sequences, rng.uniform(0.2, 2.0, count).tolist())


def test_loss_is_the_weighted_mean_over_scored_tokens(tmp_path: Path) -> None:
    """Of the first batch, by a full softmax in float64, one sequence at a time: rtol 1e-5 for float32 sums."""
    model, data = tiny_llama(TINY), uneven(8)
    model.double()
    total = tokens = 0.0
    for sequence, weight in zip(data.sequences, data.weights.tolist(), strict=True):
        ids = torch.tensor([sequence.ids])
        with torch.no_grad():
            found = model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
        mask = torch.tensor(sequence.mask[1:])
        total -= weight * float((found * mask).sum())
        tokens += weight * sum(sequence.mask)
    trainer = warm_up(model.float(), data, arguments(tmp_path, max_steps=1))
    assert losses(trainer)[0] == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"padding_free": True},
        {"padding_free": True, "share_prefix": False},
    ],
    ids=["two parts", "four parts", "shared prefixes", "packed"],
)
def test_how_a_batch_is_cut_and_laid_out_changes_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    """Weights and losses after six steps, to the rounding of float32 gradients."""
    trained = []
    for own in ({}, options):
        model = tiny_llama(TINY)
        trainer = warm_up(model, uneven(8), arguments(tmp_path, **own), tiny_tokenizer(TINY))
        trained.append((weights(model), losses(trainer)))
    np.testing.assert_allclose(trained[1][0], trained[0][0], rtol=0, atol=2e-6)
    np.testing.assert_allclose(trained[1][1], trained[0][1], rtol=1e-5)
    assert np.abs(trained[0][0] - weights(tiny_llama(TINY))).max() > 1e-3


class Stop(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Ends the training after some steps, as a process that is killed."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_stopped_warm_up_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Weights and logs bit for bit, from a checkpoint in the middle of an epoch."""
    options = {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 2, "logging_steps": 4}
    whole, stopped = tiny_llama(TINY), tiny_llama(TINY)
    expected = warm_up(whole, uneven(29), arguments(tmp_path / "whole", **options))
    with pytest.raises(KeyboardInterrupt):
        warm_up(stopped, uneven(29), arguments(tmp_path / "part", **options), callbacks=[Stop(3)])
    again = tiny_llama(replace(TINY, seed=5))
    checkpoint = str(tmp_path / "part" / "checkpoint-2")
    found = warm_up(again, uneven(29), arguments(tmp_path / "part", **options), resume_from_checkpoint=checkpoint)
    np.testing.assert_array_equal(weights(again), weights(whole))
    assert losses(found) == losses(expected)


def test_a_loss_that_is_no_number_is_told(tmp_path: Path) -> None:
    model = tiny_llama(TINY)
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    with pytest.raises(NonFiniteLoss, match=r"warm-up's loss is nan at step 0: lower warmup.training's learning_rate"):
        warm_up(model, uneven(8), arguments(tmp_path))


# ---------------------------------------------------------------------------------------------------------- the data


def test_rows_of_text_are_scored_behind_their_first_token_and_cut_into_pieces(byte_tokenizer: Make) -> None:
    encoder = Encoder(byte_tokenizer())
    ids = byte_tokenizer()("abcdef")["input_ids"]
    (whole,) = supervised_data([{"text": "abcdef"}], encoder).sequences
    assert whole.ids == (*ids, 1)
    assert whole.mask == (0, *(1,) * len(ids))
    pieces = supervised_data([{"text": "abcdef", "id": 3}], encoder, max_length=3).sequences
    assert [piece.ids for piece in pieces] == [whole.ids[:3], whole.ids[3:6], whole.ids[6:]]
    assert all(piece.mask == (0, *(1,) * (len(piece.ids) - 1)) for piece in pieces)


@pytest.mark.parametrize("column", ["chosen", "completion", "response"])
def test_rows_with_a_prompt_score_the_response(column: str, byte_tokenizer: Make) -> None:
    encoder = Encoder(byte_tokenizer())
    rows = [{"prompt": "ab", column: "cde", "rejected": "x"}, {"prompt": "ab", column: "c" * 40}]
    data = supervised_data(rows, encoder, max_length=10)
    (found,) = data.sequences
    assert found == encoder.response("ab", encoder.prompt("ab"), "cde")[0]
    assert sum(found.mask) == 4
    assert data.dropped == 1
    assert data.weights.tolist() == [1.0]


def test_conversations_score_the_assistants_turns(byte_tokenizer: Make) -> None:
    template = (
        "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    tokenizer = byte_tokenizer(template=template)
    messages = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
    (found,) = supervised_data([{"messages": messages}], Encoder(tokenizer)).sequences
    scored = [token for token, m in zip(found.ids, found.mask, strict=True) if m]
    assert tokenizer.decode(scored) == "cd</s>"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"text": "ab"}, {"prompt": "ab"}],
            "row 1 of the warm-up's data: it has prompt; needed are text, or messages",
        ),
        ([{"prompt": "ab", "chosen": ""}], "row 0 of the warm-up's data: an empty completion has nothing to score"),
        ([{"prompt": "ab", "chosen": "c" * 50}], r"no sequences \(1 rows are longer than max_length\)"),
    ],
)
def test_bad_rows_are_told(rows: list[dict[str, Any]], message: str, byte_tokenizer: Make) -> None:
    with pytest.raises(ValueError, match=message):
        supervised_data(rows, Encoder(byte_tokenizer()), max_length=20)


def test_bad_weights_are_told() -> None:
    with pytest.raises(ValueError, match="1 sequences need as many weights, each >= 0"):
        WarmupData([Scored.completion([0], [1])], [-1.0])
