"""A training that was stopped goes on as if it had not been: weights and logs, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained import weights
from transformers import TrainerCallback

from nashpo.core.rules import DPO, IPO

Make = Callable[..., Any]
WALL_CLOCK = ("_runtime", "_per_second", "train_loss")


class Killed(Exception):
    """What stops a training here."""


class KillAt(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Stops a training in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


def history(made: Any) -> list[dict[str, float]]:
    """The logs without what depends on the clock."""
    return [
        {name: value for name, value in row.items() if not name.endswith(WALL_CLOCK)} for row in made.state.log_history
    ]


@pytest.mark.parametrize("same", [False, True], ids=["new trainer", "same trainer"])
def test_killed_and_resumed_is_as_never_stopped(same: bool, trainer: Make, tmp_path: Path, small_pairs: Any) -> None:
    """12 updates over three epochs of uneven last batches, checkpoints every 5, logs every 3, killed after 8."""
    options = {
        "max_steps": 12,
        "save_strategy": "steps",
        "save_steps": 5,
        "logging_steps": 3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "optim": "rmsprop",
        "eval_strategy": "steps",
        "eval_steps": 4,
        "eval_dataset": small_pairs[:5],
    }
    whole = trainer(DPO(tau=0.3), output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    assert [row["step"] for row in whole.state.log_history if "loss" in row] == [3, 5, 6, 9, 10, 12]
    stopped = trainer(DPO(tau=0.3), callbacks=[KillAt(8)], **options)
    with pytest.raises(Killed):
        stopped.train()
    resumed = stopped if same else trainer(DPO(tau=0.3), **options)
    resumed.remove_callback(KillAt)
    if same:  # sums of the stopped run must not leak
        assert stopped._sums.tokens > 0
        stopped.current_flos = 0  # transformers' own, which do
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-5"))
    assert history(resumed) == history(whole)
    np.testing.assert_array_equal(weights(resumed.model), weights(whole.model))


@pytest.mark.parametrize("strategy", ["epoch", "best"])
def test_a_log_precedes_every_checkpoint(strategy: str, trainer: Make, small_pairs: Any) -> None:
    """Also where an epoch or an evaluation asks for it."""
    made = trainer(
        IPO(tau=0.3),
        save_strategy=strategy,
        logging_steps=100,
        max_steps=4,
        eval_strategy="epoch",
        eval_dataset=small_pairs[:5],
        metric_for_best_model="eval_loss",
    )
    made.train()
    saved = {int(path.name.split("-")[1]) for path in Path(made.args.output_dir).glob("checkpoint-*")}
    assert saved
    assert saved <= {row["step"] for row in made.state.log_history if "loss" in row}


def test_tokens_are_those_of_the_rows_that_were_trained(trainer: Make) -> None:
    made = trainer(IPO(tau=0.3), num_train_epochs=2, logging_steps=1)
    made.train()
    expected = 2 * made.train_dataset.tokens(range(13))
    assert [row for row in made.state.log_history if "loss" in row][-1]["num_tokens"] == expected


def test_resuming_starts_from_the_same_reference(trainer: Make) -> None:
    """Stopped after 2 of 4 updates and resumed: the same weights as without the stop, bit for bit."""
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    whole = trainer(IPO(tau=0.3), **options)
    whole.train()
    resumed = trainer(IPO(tau=0.3), **options)
    resumed.train(resume_from_checkpoint=str(Path(resumed.args.output_dir) / "checkpoint-2"))
    np.testing.assert_array_equal(weights(whole.model), weights(resumed.model))
