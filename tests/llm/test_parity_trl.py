"""Losses and gradients against TRL's DPOTrainer on the same batch (skipped where trl is not installed).

Documented factors: TRL's ``ipo`` divides each log-ratio by its completion's tokens (``length_normalize`` here), and its
``sppo_hard`` is the sum over a pair where ours is the mean, as in SPPO's official code.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

from nashpo.llm.config import SelfPlayConfig  # noqa: E402
from nashpo.llm.trainer import SelfPlayTrainer  # noqa: E402

CASES = [("sigmoid", 1.0, {}), ("ipo", 1.0, {"length_normalize": True}), ("sppo_hard", 2.0, {})]
BETA = 0.1


@pytest.mark.parametrize(("loss_type", "factor", "options"), CASES, ids=[case[0] for case in CASES])
def test_loss_and_gradient_are_trls(
    loss_type: str,
    factor: float,
    options: dict[str, Any],
    tmp_path: Path,
    tiny_llama: Callable[..., Any],
    byte_tokenizer: Callable[..., Any],
    small_pairs: list[dict[str, Any]],
) -> None:
    """The reference differs from the model, so that no log-ratio is 0. fp32 on both sides: rtol 1e-5."""
    rows = small_pairs[:4]
    reference, tokenizer = tiny_llama(2, attention_dropout=0.0), byte_tokenizer(begin=False)
    theirs = trl.DPOTrainer(
        model=tiny_llama(1, attention_dropout=0.0),
        ref_model=reference,
        args=trl.DPOConfig(
            output_dir=str(tmp_path / "theirs"),
            use_cpu=True,
            bf16=False,
            loss_type=[loss_type],
            beta=BETA,
            per_device_train_batch_size=len(rows),
            report_to=[],
            gradient_checkpointing=False,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    ours = SelfPlayTrainer(
        tiny_llama(1, attention_dropout=0.0),
        ref_model=reference,
        args=SelfPlayConfig(
            output_dir=str(tmp_path / "ours"),
            use_cpu=True,
            loss_type=loss_type,
            beta=BETA,
            per_device_train_batch_size=len(rows),
            **options,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    if loss_type == "sppo_hard":
        # SPPO's base is the policy that training starts from; TRL's is whatever the reference is.
        known = ours._stages[ours.train_dataset].known
        known["start"] = known["reference"]
    batch = next(iter(theirs.get_train_dataloader()))
    theirs.model.train()
    expected = theirs.compute_loss(theirs.model, batch)
    expected.backward()
    inputs = ours.data_collator(list(range(len(rows))))
    ours._first = False  # past the first batch, whose log-ratio would have to be 0
    with ours._comparable(ours.model):
        ours.model.train()
        found = factor * ours.compute_loss(ours.model, inputs)
        found.backward()
    np.testing.assert_allclose(found.item(), expected.item(), rtol=1e-5)
    gradients = {name: p.grad for name, p in ours.model.named_parameters()}
    for name, parameter in theirs.model.named_parameters():
        scale = parameter.grad.abs().max().item()
        np.testing.assert_allclose(gradients[name], parameter.grad, rtol=1e-5, atol=1e-5 * scale, err_msg=name)
