"""The packaged configurations of ``accelerate launch``: accelerate reads them, and they say what their names do."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
import yaml
from accelerate.commands.config.config_args import ClusterConfig

from nashpo.llm.launch import accelerate_config, accelerate_configs, main

NAMES = ["ddp", "ddp-multi-node", "fsdp2", "fsdp2-multi-node", "zero3"]


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_reads_each(name: str) -> None:
    path = accelerate_config(name)
    found = ClusterConfig.from_yaml_file(yaml_file=str(path))
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}
    assert found.distributed_type == kinds[name.partition("-")[0]]
    assert found.num_machines == (2 if name.endswith("multi-node") else 1)
    assert found.num_processes == 8 * found.num_machines
    assert found.mixed_precision == "no"  # the recipe's business
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2-multi-node"])
def test_fsdp_is_the_second_version_and_leaves_loaded_weights_alone(name: str) -> None:
    config = yaml.safe_load(accelerate_config(name).read_text())["fsdp_config"]
    assert config["fsdp_version"] == 2
    assert config["fsdp_cpu_ram_efficient_loading"] is False
    assert config["fsdp_state_dict_type"] == "SHARDED_STATE_DICT"


def test_names_and_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert accelerate_configs() == NAMES
    assert main([]) == 0
    assert capsys.readouterr().out.split() == NAMES
    assert main(["fsdp2"]) == 0
    assert Path(capsys.readouterr().out.strip()) == accelerate_config("fsdp2")
    with pytest.raises(ValueError, match="no configuration 'fsdp' is packaged; did you mean 'fsdp2'"):
        accelerate_config("fsdp")
    assert main(["ddp2"]) == 2
    assert capsys.readouterr().err.startswith("nashpo: error: no configuration 'ddp2'")


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "nashpo.llm", "train", "--list"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "sppo-mistral-7b" in found.stdout


@pytest.mark.parametrize("status", [0, 2])
def test_a_process_group_ends_with_a_command_that_has_done_its_work(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Left over, it aborts the end of about every second process of two."""
    from nashpo.llm import __main__ as started

    monkeypatch.setattr(started, "main", lambda: status)
    assert started.run() == status  # and there is none
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert started.run() == status
        assert dist.is_initialized() == (status != 0)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
