"""Weights and optimizer states in few bits: what is refused, and what transformers is asked for. The package that does
it is not installed here, so that a fake stands for it."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop_rules import recipe

from nashpo.core.rules import DPO
from nashpo.llm.loop import loading
from nashpo.llm.loop.machine import train
from nashpo.llm.quantized import check_optimizer, quantization_config
from nashpo.llm.recipe.plan import plan
from nashpo.llm.recipe.schema import ModelSpec

ADAPTER = "model.adapter={r: 2, target_modules: [q_proj]}"


@pytest.fixture(autouse=True)
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is not there, wherever this runs."""
    find = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> Any:
        return None if name == "bitsandbytes" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is said to be there."""
    monkeypatch.setattr("nashpo.llm.quantized._installed", lambda: True)


@pytest.mark.parametrize("name", ["adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "rmsprop_bnb_8bit", "lion_8bit"])
def test_an_optimizer_without_its_package_is_refused_before_any_work(
    name: str, trainer: Any, tmp_path: Path, missing: None
) -> None:
    line = f"training.optim = '{name}' needs the package bitsandbytes.*pip install bitsandbytes, or take rmsprop"
    with pytest.raises(ValueError, match=line):
        check_optimizer(name)
    with pytest.raises(ValueError, match=line):
        trainer(DPO(tau=0.1), optim=name)
    chosen = recipe(tmp_path, f"training.optim={name}")
    with pytest.raises(ValueError, match=line):
        plan(chosen)
    with pytest.raises(ValueError, match=line):
        train(chosen)
    assert not list((tmp_path / "run").rglob("samples"))


@pytest.mark.parametrize("name", ["rmsprop", "adamw_torch", "adamw_torch_fused", "sgd", "adamw_torch_8bit"])
def test_optimizers_of_other_packages_are_left_alone(name: str) -> None:
    check_optimizer(name)


def test_an_optimizer_with_its_package_is_taken(there: None) -> None:
    check_optimizer("paged_adamw_8bit")


def test_quantized_weights_need_bits_and_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs exactly one of load_in_4bit and load_in_8bit: true"):
        recipe(tmp_path, ADAPTER, "model.quantization={bnb_4bit_quant_type: nf4}")
    with pytest.raises(ValueError, match=r"needs exactly one of"):
        recipe(tmp_path, ADAPTER, "model.quantization={load_in_4bit: true, load_in_8bit: true}")
    with pytest.raises(ValueError, match=r"freezes the weights: give model.adapter"):
        recipe(tmp_path, "model.quantization={load_in_4bit: true}")
    chosen = recipe(tmp_path, ADAPTER, "model.quantization={load_in_4bit: true, bnb_4bit_quant_type: nf4}")
    assert chosen.to_dict()["model"]["quantization"] == {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    with pytest.raises(ValueError, match="model.quantization needs the package bitsandbytes"):
        train(chosen)


def test_the_configuration_is_transformers_own(there: None) -> None:
    found = quantization_config(
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}
    )
    assert found.load_in_4bit
    assert found.bnb_4bit_quant_type == "nf4"
    assert found.bnb_4bit_compute_dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"unknown key model.quantization.bnb_4bit_type; did you mean 'bnb_4bit_quant"):
        quantization_config({"load_in_4bit": True, "bnb_4bit_type": "nf4"})
    with pytest.raises(ValueError, match=r"^model.quantization: .*llm_int8_threshold"):
        quantization_config({"load_in_8bit": True, "llm_int8_threshold": "high"})


class _Fake:
    """A model that has been put on its device in 4 bits, and must not be moved."""

    generation_config = None

    def to(self, device: Any) -> Any:
        raise AssertionError("quantized weights are not moved")

    def eval(self) -> "_Fake":
        return self


def test_a_quantized_model_is_loaded_where_it_stays(
    there: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def load(name: str, **options: Any) -> Any:
        asked.update(options)
        return _Fake(), {"missing_keys": []}

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", load)
    (tmp_path / "config.json").write_text("{}")
    spec = ModelSpec(path=str(tmp_path), dtype="bfloat16", quantization={"load_in_4bit": True}, adapter={"r": 2})
    assert isinstance(loading.load_model(spec, tmp_path), _Fake)
    assert asked["quantization_config"].load_in_4bit
    assert asked["device_map"] == {"": loading.device()}
    assert asked["dtype"] == torch.bfloat16
