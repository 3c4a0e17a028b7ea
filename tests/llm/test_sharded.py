"""Log-probabilities, gradients, weights and rounding of models whose parameters are shared out over two processes, and
that FSDP which was asked for is not silently something else. `sharded_world.py` is what the processes do."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from nashpo.core.rules import DPO
from nashpo.llm.sharding import check_asked, check_sharding, gathered, is_sharded, keep_numbers, whole_weights

HERE = Path(__file__).parent


def test_a_model_in_shards_gives_what_the_whole_model_gives(tmp_path: Path) -> None:
    """Every parameter is a DTensor; log-probabilities and gradients to 1e-5 of the full-logits form, padded, packed and
    with shared prompts; the gathered weights bit for bit."""
    command = [sys.executable, str(HERE / "sharded_world.py"), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr
    for rank in range(2):
        assert (tmp_path / f"log.{rank}").read_text().endswith("done\n")


def test_a_whole_model_is_not_gathered() -> None:
    assert gathered(nn.Linear(2, 2), keep=True) is None
    assert not is_sharded(torch.zeros(2))


def accelerator(kind: str, processes: int = 2, device: str = "cpu", version: int | None = None) -> Any:
    """What `check_sharding` reads of accelerate's object."""
    plugin = None if version is None else SimpleNamespace(fsdp_version=version)
    return SimpleNamespace(
        mixed_precision="bf16",
        distributed_type=SimpleNamespace(value=kind),
        num_processes=processes,
        device=torch.device(device),
        state=SimpleNamespace(fsdp_plugin=plugin),
    )


def test_asking_for_sharding_and_getting_something_else_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(variable, raising=False)
    plain, fsdp = SimpleNamespace(fsdp=None, deepspeed=None), SimpleNamespace(fsdp=True, deepspeed=None)
    check_sharding(plain, accelerator("MULTI_CPU"))
    check_sharding(fsdp, accelerator("FSDP", device="cuda", version=2))
    check_sharding(SimpleNamespace(fsdp=None, deepspeed={"x": 1}), accelerator("DEEPSPEED"))
    with pytest.raises(ValueError, match=r"training.fsdp asks for FSDP, and accelerate gives data parallelism on 2 pr"):
        check_sharding(fsdp, accelerator("MULTI_CPU"))
    with pytest.raises(ValueError, match=r"training.deepspeed asks for DEEPSPEED, and accelerate gives no distribut"):
        check_sharding(SimpleNamespace(fsdp=None, deepspeed="zero3.json"), accelerator("NO", 1))
    rounded = SimpleNamespace(fsdp=True, deepspeed=None, bf16_rounding="stochastic")
    with pytest.raises(ValueError, match="bf16_rounding has no effect beside FSDP with training.bf16"):
        check_sharding(rounded, accelerator("FSDP", version=2))
    with pytest.raises(ValueError, match="first version is not known here: set fsdp_version: 2"):
        check_sharding(fsdp, accelerator("FSDP", version=1))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"ACCELERATE_USE_FSDP asks for FSDP.*on 2 process\(es\) on cpu"):
        check_sharding(plain, accelerator("MULTI_CPU"))


class Configuration:
    """Of DeepSpeed, as transformers holds it while arguments that asked for it exist."""

    def is_zero3(self) -> bool:
        return True


def test_models_that_are_read_are_whole_under_deepspeed() -> None:
    from transformers.integrations import deepspeed

    with whole_weights():
        assert not deepspeed.is_deepspeed_zero3_enabled()
    held = Configuration()
    deepspeed.set_hf_deepspeed_config(held)
    try:
        assert deepspeed.is_deepspeed_zero3_enabled()
        with whole_weights():
            assert not deepspeed.is_deepspeed_zero3_enabled()
        assert deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()


def test_deepspeed_in_16_bits_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match=r"training.deepspeed with training.bf16 rounds the weights.*FSDP"):
        check_asked({"deepspeed": "zero3.json", "bf16": True}, 8, "cuda")
    check_asked({"deepspeed": "zero3.json", "tf32": True}, 8, "cuda")


def test_fsdp_gathers_parameters_as_they_are() -> None:
    """So that 16-bit arithmetic is autocast's, as it is without FSDP."""
    made = accelerator("FSDP", version=2)
    made.state.fsdp_plugin.mixed_precision_policy = "bf16"
    keep_numbers(made)
    policy = made.state.fsdp_plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (None, None, None)
    other = accelerator("MULTI_GPU", version=2)
    other.state.fsdp_plugin.mixed_precision_policy = "bf16"
    keep_numbers(other)
    assert other.state.fsdp_plugin.mixed_precision_policy == "bf16"


def test_the_trainer_refuses_fsdp_on_the_cpu(trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="ACCELERATE_USE_FSDP asks for FSDP, and accelerate gives no distribution"):
        trainer(DPO(tau=0.1))
