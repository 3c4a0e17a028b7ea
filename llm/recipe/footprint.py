"""How big a run is: parameters counted on the meta device from config.json alone, memory and disk estimated from them.

Sizes are in bytes. Memory is an estimate to choose hardware by, not a measurement: what an allocator wastes, what an
engine of its own process takes and what a judge takes are not in it.
"""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nashpo.core.cli import suggestion
from nashpo.llm.flops import Shape, shape_of
from nashpo.llm.recipe.places import weights_place
from nashpo.llm.recipe.schema import ModelSpec

WIDTH: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_STATES: tuple[tuple[str, float], ...] = (
    ("adafactor", 0.01),
    ("ademamix", 3),
    ("rmsprop", 1),
    ("adagrad", 1),
    ("lion", 1),
    ("lomo", 0),
    ("sgd", 0),
)
"""Numbers per parameter that an optimizer keeps, by the beginning of its name; of all others two, as Adam."""
_INSIDE = 34
"""Bytes per token and hidden unit that a layer keeps for its backward in 16 bits (Korthikanti et al. 2022, without
the attention scores, which fused attention does not keep)."""


@dataclass(frozen=True)
class Size:
    """A model's size.

    Attributes
    ----------
    parameters : int
    trained : int
        Those that get gradients: all, or an adapter's.
    width : int
        Bytes of one weight.
    layers, hidden : int
    cached : int
        Bytes of keys and values per token of a sequence that is sampled.
    shape : Shape, optional
        What it computes, where its configuration is that of a usual decoder.
    """

    parameters: int
    trained: int
    width: int
    layers: int
    hidden: int
    cached: int
    shape: Shape | None = None

    @property
    def weights(self) -> int:
        """Bytes in memory of one policy."""
        return self.parameters * self.width

    @property
    def saved(self) -> int:
        """Bytes on disk of one iterate: the model, or its adapter alone."""
        return self.trained * self.width

    def optimizer(self, name: str, width: int | None = None) -> int:
        """Bytes of the optimizer's states, by its name in ``training.optim``; of a state's number, default those of a
        weight."""
        bare = name.removeprefix("paged_")
        states = next((count for begin, count in _STATES if bare.startswith(begin)), 2)
        each = 1 if "8bit" in name else 0.5 if "4bit" in name else width or self.width
        return int(self.trained * states * each)

    def activations(self, tokens: int, checkpointing: bool, mixed: bool) -> int:
        """Bytes that forward and backward keep for so many tokens of one micro-batch, roughly."""
        factor = 1 if self.width == 2 or mixed else 2
        layer = _INSIDE * self.hidden * tokens * factor
        return layer + self.layers * 2 * factor * self.hidden * tokens if checkpointing else self.layers * layer


def measure(model: ModelSpec) -> Size:
    """The size of a recipe's model; no weights are read.

    Raises
    ------
    ValueError
        If its configuration cannot be read, or peft is missing or refuses the adapter's fields.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if model.build is not None:
        from nashpo.llm.tiny import tiny_llama

        found: Any = tiny_llama(model.build)
        config = found.config
    else:
        config = read_config(model)
        with torch.device("meta"):
            found = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    parameters = sum(p.numel() for p in found.parameters())
    trained = parameters if model.adapter is None else _adapter_parameters(found, model.adapter)
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", 1)
    each = getattr(text, "head_dim", None) or text.hidden_size // heads
    width = WIDTH[model.dtype]
    grouped = getattr(text, "num_key_value_heads", None) or heads
    cached = 2 * text.num_hidden_layers * grouped * each * width
    return Size(parameters, trained, width, text.num_hidden_layers, text.hidden_size, cached, shape_of(config))


def read_config(model: ModelSpec, key: str = "model.path") -> Any:
    """The configuration of a model, from its folder or the hub.

    Parameters
    ----------
    model : ModelSpec
    key : str
        What the recipe calls it, for messages.

    Raises
    ------
    ValueError
        Says how to give a folder instead.
    """
    from transformers import AutoConfig

    path = str(model.path)
    place = weights_place(key, path)
    try:
        return AutoConfig.from_pretrained(place, revision=model.revision, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        problem = " ".join(str(error).split())
        problem = problem if len(problem) < 200 else f"{problem[:197]}..."
        raise ValueError(
            f"{key} = {path!r}: no configuration could be read ({problem}). For a plan without network, or of a"
            f" model that asks for a licence, give a folder with its config.json by {key}=FOLDER"
        ) from None


def has_tokenizer(model: ModelSpec) -> bool:
    """Whether a tokenizer may be there: False only for a folder that has none of its files."""
    if model.build is not None:
        return True
    folder = Path(str(model.tokenizer or model.path)).expanduser()
    return not folder.is_dir() or any((folder / name).exists() for name in TOKENIZER_FILES)


def _adapter_parameters(model: Any, adapter: Mapping[str, Any]) -> int:
    import torch

    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError:
        raise ValueError("model.adapter needs the package peft, which is not installed: pip install peft") from None
    known = [f.name for f in fields(LoraConfig) if f.init]
    if (unknown := next((name for name in adapter if name not in known), None)) is not None:
        raise ValueError(
            f"model.adapter: {unknown!r} is no field of peft's LoraConfig; {suggestion(unknown, known, 'fields are')}"
        )
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = get_peft_model(model, LoraConfig(**{"task_type": "CAUSAL_LM", **adapter}))
    except (ValueError, TypeError) as error:
        raise ValueError(f"model.adapter: {error}") from None
    return sum(p.numel() for p in made.parameters() if p.requires_grad)


def free_disk(folder: Path) -> int:
    """Bytes that are free where a folder is, or would be made."""
    import shutil

    there = folder.expanduser().absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def processes() -> int:
    """How many processes a launcher has started; 1 without one."""
    return max(1, int(os.environ.get("WORLD_SIZE", "1")))
