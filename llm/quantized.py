"""Weights and optimizer states in few bits, by the package bitsandbytes, which is optional.

QLoRA: a base model in 4 bits, frozen, and an adapter in float32 (Dettmers et al., arXiv:2305.14314).
"""

import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

from nashpo.core.cli import suggestion

PACKAGE = "bitsandbytes"
_PAGED, _SHORT = "paged_", ("adamw_8bit", "lion_8bit", "lion_32bit", "ademamix")
_BITS = ("load_in_4bit", "load_in_8bit")


def check_optimizer(name: str) -> None:
    """Refuse an optimizer of ``training.optim`` whose package is not installed.

    Raises
    ------
    ValueError
        Names an optimizer that needs no package.
    """
    needed = name.startswith((_PAGED, *_SHORT)) or "_bnb" in name
    if needed and not _installed():
        raise ValueError(
            f"training.optim = {name!r} needs the package {PACKAGE}, not installed here: pip install {PACKAGE}, or take"
            " rmsprop or adamw_torch_fused"
        )


def quantization_config(fields: Mapping[str, Any]) -> Any:
    """transformers' ``BitsAndBytesConfig`` of a recipe's ``model.quantization``.

    Parameters
    ----------
    fields : mapping
        ``load_in_4bit`` or ``load_in_8bit``, ``bnb_4bit_quant_type``, ``bnb_4bit_compute_dtype``, …

    Raises
    ------
    ValueError
        If the package is not installed, or on a field that it does not have.
    """
    if not _installed():
        raise ValueError(f"model.quantization needs the package {PACKAGE}, not installed here: pip install {PACKAGE}")
    from transformers import BitsAndBytesConfig

    known = [name for name in inspect.signature(BitsAndBytesConfig.__init__).parameters if name != "self"]
    for name in fields:
        if name not in known:
            raise ValueError(f"unknown key model.quantization.{name}; {suggestion(name, known, 'known')}")
    try:
        return BitsAndBytesConfig(**fields)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"model.quantization: {' '.join(str(error).split())}") from None


def check_quantization(fields: Mapping[str, Any], adapted: bool) -> None:
    """What can be seen in a recipe: bits are named, and an adapter is trained, since such weights cannot be.

    Raises
    ------
    ValueError
    """
    if sum(fields.get(name) is True for name in _BITS) != 1:
        raise ValueError(f"model.quantization = {dict(fields)} needs exactly one of {' and '.join(_BITS)}: true")
    if not adapted:
        raise ValueError("model.quantization freezes the weights: give model.adapter, which is what is trained")


def _installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None
