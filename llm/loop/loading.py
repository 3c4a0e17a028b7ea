"""Models and tokenizers as a recipe names them."""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from nashpo.core.cli import one_line
from nashpo.llm.encoding import Encoder
from nashpo.llm.quantized import quantization_config
from nashpo.llm.recipe.places import CONFIG, weights_place
from nashpo.llm.recipe.schema import ModelSpec
from nashpo.llm.sharding import whole_weights

log = logging.getLogger(__name__)


def device() -> torch.device:
    """Where models live in this process."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(spec: ModelSpec, path: str | Path, key: str = "model.path") -> Any:
    """The tokenizer of a model's folder or name, with a pad token.

    Parameters
    ----------
    spec : ModelSpec
    path : str or path
        Where the model is.
    key : str
        What the recipe calls it, for messages.

    Raises
    ------
    ValueError
        If it is not there, or has neither a pad nor an end token.
    """
    key, name = (key, str(path)) if spec.tokenizer is None else ("model.tokenizer", spec.tokenizer)
    name = weights_place(key, name, "" if spec.tokenizer else CONFIG)
    revision = spec.revision if spec.tokenizer is None else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=spec.trust_remote_code, padding_side="left"
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ValueError(f"{key}: no tokenizer at {name} ({_short(error)})") from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"the tokenizer at {name} has neither a pad nor an end token: set one in its folder")
        tokenizer.pad_token = tokenizer.eos_token
        log.warning("the tokenizer has no pad token: set to its end token %r", tokenizer.eos_token)
    return tokenizer


def load_model(spec: ModelSpec, path: str | Path, key: str = "model.path") -> nn.Module:
    """A causal language model.

    Parameters
    ----------
    spec : ModelSpec
    path : str or path
        Where it is, a folder or a name on the hub.
    key : str
        What the recipe calls it, for messages.

    Raises
    ------
    ValueError
        If it is not there or cannot be loaded, holds an adapter, or lacks weights (transformers would draw them).
    """
    name = weights_place(key, str(path))
    options: dict[str, Any] = {"dtype": getattr(torch, spec.dtype), "trust_remote_code": spec.trust_remote_code}
    if spec.attention is not None:
        options["attn_implementation"] = spec.attention
    if str(path) == spec.path and spec.revision is not None:
        options["revision"] = spec.revision
    if spec.quantization is not None:
        options |= {"quantization_config": quantization_config(spec.quantization), "device_map": {"": device()}}
    try:
        model: Any
        with whole_weights():
            model, info = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{key}: no causal language model at {path} ({_short(error)})") from error
    if hasattr(model, "_hf_peft_config_loaded") and model._hf_peft_config_loaded:
        raise ValueError(f"{key} = {str(path)!r} holds an adapter: merge it into its base before it is trained on")
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"{key}: {path} is no whole causal language model: its weights lack {missing[0]}{more}")
    settings = getattr(model, "generation_config", None)
    if settings is not None and not settings.do_sample:
        settings.do_sample = True  # transformers refuses to save a temperature beside greedy decoding
    placed = model if spec.quantization is not None else model.to(device())  # quantized weights stay where they are
    return placed.eval()  # type: ignore[no-any-return]


def end_ids(tokenizer: Any, model: Any) -> tuple[int, ...]:
    """Every token that ends a response: the tokenizer's, and those of the model's generation settings."""
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = [] if end is None else [end] if isinstance(end, int) else list(end)
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return tuple(dict.fromkeys([*own, *ends]))


def encoder_of(spec: ModelSpec, tokenizer: Any, ends: tuple[int, ...]) -> Encoder:
    """Text as this model's token ids."""
    return Encoder(tokenizer, ends, spec.chat_template_kwargs)


def _short(error: BaseException) -> str:
    text = one_line(error)
    return text if len(text) <= 200 else f"{text[:197]}..."
