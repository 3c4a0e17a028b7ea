"""Activation checkpointing under the trainer: in both spellings of transformers, reentrant or not, with packed rows and
shared prompts, on a whole model and under an adapter, the gradient is the one without it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nashpo.core.rules import SPPO
from nashpo.llm.recipe.training import arguments

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def gradient(made: Any) -> dict[str, Tensor]:
    """What one step of plain gradient descent with learning rate 1 takes off the weights."""
    before = {name: p.detach().clone() for name, p in made.model.named_parameters() if p.requires_grad}
    made.train()
    return {name: before[name] - p.detach() for name, p in made.model.named_parameters() if p.requires_grad}


WAYS = (("activation_checkpointing", False), ("activation_checkpointing", True), ("gradient_checkpointing", False))
"""Spelling, and whether the checkpoints are of the reentrant kind."""


@pytest.mark.parametrize("adapted", [False, True], ids=["whole", "adapter"])
def test_the_gradient_is_the_same(adapted: bool, trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 1e-6 of the largest entry: the same fp32 operations, summed in the same order. Layers are really run twice."""
    from transformers.models.llama.modeling_llama import LlamaAttention

    calls = 0
    forward = LlamaAttention.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaAttention, "forward", counted)
    step = {"learning_rate": 1.0, "max_steps": 1, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}

    def run(**chosen: Any) -> tuple[dict[str, Tensor], int]:
        nonlocal calls
        if adapted:
            from peft import LoraConfig

            chosen["peft_config"] = LoraConfig(
                task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False
            )
        calls = 0
        return gradient(trainer(SPPO(eta=2.0), **step, **chosen)), calls

    expected, once = run()
    largest = max(g.abs().max().item() for g in expected.values())
    assert largest > 0
    for spelling, reentrant in WAYS:
        found, twice = run(**arguments({spelling: True, f"{spelling}_kwargs": {"use_reentrant": reentrant}}))
        assert twice == once + 2  # both layers, in the one backward
        for name, g in expected.items():
            torch.testing.assert_close(found[name], g, rtol=0, atol=1e-6 * largest, msg=f"{spelling}: {name}")
