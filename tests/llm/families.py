"""Tiny random models of several families, the naive log-probabilities, and batches with every kind of padding."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

VOCABULARY = 97
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
# Sliding windows of 6 are shorter than the sequences; caps of 5 and scales bite at the weights used here.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": 6}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 8, "sliding_window": 6, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 3.0},
    ),
    "qwen3": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "phi": ("Phi", {}),
    "cohere": ("Cohere", {"logit_scale": 0.3}),
    "granite": ("Granite", {"logits_scaling": 4.0}),
    "gpt2": (
        "GPT2",
        {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),  # the one whose positions are absolute: rotary ones do not notice a shift
}


def build(family: str, seed: int = 0, attention: str | None = None, **changes: Any) -> Any:
    """A seeded model with weights large enough that its policy is far from uniform."""
    name, special = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **special, **changes})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    if family == "gpt2":  # differences between positions, not only noise
        model.transformer.wpe.weight.data *= 10
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def padded_batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Six rows of 24: padding left, right, on both sides and none; several spans; a row without scored tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (6, 24), generator=generator)
    exists, scored = torch.ones(6, 24, dtype=torch.long), torch.zeros(6, 24, dtype=torch.long)
    exists[0, :7] = 0
    exists[1, 15:] = 0
    exists[2, :3] = exists[2, 20:] = 0
    exists[3, :2] = 0
    scored[0, 10:14] = scored[0, 17:19] = scored[0, 23] = 1
    scored[1, 3:15] = 1
    scored[2, 4:20] = 1
    scored[4, 1:] = 1
    scored[5, 1] = scored[5, 12:20] = 1
    return ids, exists, scored


def naive(model: Any, ids: Tensor, exists: Tensor, scored: Tensor) -> Tensor:
    """The full-logits form."""
    positions = (exists.cumsum(-1) - 1).clamp_min(0)
    logits = model(input_ids=ids, attention_mask=exists, position_ids=positions, use_cache=False).logits
    tokens = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (tokens * scored[:, 1:]).sum(-1)


def gradients(model: nn.Module, logprobs: Tensor) -> dict[str, Tensor]:
    """∂/∂θ of a sum with different weights per sequence."""
    weights = torch.linspace(-1, 1.5, len(logprobs))
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad((weights * logprobs).sum(), list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def assert_same(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Within the tolerance of the largest expected size (fp32 sums over some hundred products)."""
    error, size = (found - expected).abs().max().item(), expected.abs().max().item()
    assert error <= tolerance * size, f"off by {error:.3g} where the size is {size:.3g}"


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    # A gradient that is zero in theory (the key bias under softmax) is rounding noise: measure it against the largest.
    largest = max(g.abs().max().item() for g in expected.values())
    for name, gradient in expected.items():
        error, size = (found[name] - gradient).abs().max().item(), gradient.abs().max().item()
        assert error <= tolerance * max(size, 1e-2 * largest), (
            f"{name}: off by {error:.3g} where the size is {size:.3g}"
        )


def twin(model: Any) -> Any:
    """A copy that shares nothing."""
    return copy.deepcopy(model)


class Shapes(TorchDispatchMode):
    """Collects the shape of every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.seen |= {tuple(x.shape) for x in tree_leaves(result) if isinstance(x, Tensor)}
        return result
