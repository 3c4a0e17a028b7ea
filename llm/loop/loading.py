"""Models and tokenizers as a recipe names them."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from nashpo.llm.encoding import Encoder
from nashpo.llm.recipe.schema import ModelSpec

log = logging.getLogger(__name__)
ADAPTER = "adapter_config.json"


def device() -> torch.device:
    """Where models live in this process."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(spec: ModelSpec, path: str | Path) -> Any:
    """The tokenizer of a model's folder or name, with a pad token.

    Raises
    ------
    ValueError
        If it is not there, or has neither a pad nor an end token.
    """
    name = str(spec.tokenizer or path)
    revision = spec.revision if spec.tokenizer is None else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=spec.trust_remote_code, padding_side="left"
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"model.tokenizer: no tokenizer at {name} ({_first_line(error)})") from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"the tokenizer at {name} has neither a pad nor an end token: set one in its folder")
        tokenizer.pad_token = tokenizer.eos_token
        log.warning("the tokenizer has no pad token: set to its end token %r", tokenizer.eos_token)
    return tokenizer


def load_model(spec: ModelSpec, path: str | Path) -> nn.Module:
    """A causal language model; a folder that holds an adapter is loaded with its base and merged.

    Raises
    ------
    ValueError
        If it is not there or cannot be loaded.
    """
    options: dict[str, Any] = {"dtype": getattr(torch, spec.dtype), "trust_remote_code": spec.trust_remote_code}
    if spec.attention is not None:
        options["attn_implementation"] = spec.attention
    if str(path) == spec.path and spec.revision is not None:
        options["revision"] = spec.revision
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(str(path), **options)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"model.path: no causal language model at {path} ({_first_line(error)})") from error
    if hasattr(model, "_hf_peft_config_loaded") and model._hf_peft_config_loaded:
        raise ValueError(f"model.path: {path} holds an adapter: merge it into its base first")
    settings = getattr(model, "generation_config", None)
    if settings is not None and not settings.do_sample:
        settings.do_sample = True  # transformers refuses to save a temperature beside greedy decoding
    return model.to(device()).eval()  # type: ignore[no-any-return]


def end_ids(tokenizer: Any, model: Any) -> tuple[int, ...]:
    """Every token that ends a response: the tokenizer's, and those of the model's generation settings."""
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = [] if end is None else [end] if isinstance(end, int) else list(end)
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return tuple(dict.fromkeys([*own, *ends]))


def encoder_of(spec: ModelSpec, tokenizer: Any, ends: tuple[int, ...]) -> Encoder:
    """Text as this model's token ids."""
    return Encoder(tokenizer, ends, spec.chat_template_kwargs)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
