"""Attention per sequence in a packed row: no token sees another sequence, and no N × N mask is ever built.

Shapes: query (1, heads, N, d), key and value (1, key heads, N, d), where N tokens of several sequences follow one
another; ``cu_seq_lens_q`` holds the boundaries 0 = c_0 < c_1 < … = N. Registered with transformers as
``nashpo_packed``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "nashpo_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence; sliding windows and logit soft-capping as the model asks.

    Raises
    ------
    ValueError
        If the model does not hand the sequence boundaries through to its attention.
    """
    if cu_seq_lens_q is None:
        raise ValueError(f"{type(module).__name__} hands no sequence boundaries to its attention: use padded batches")
    bounds = cu_seq_lens_q.tolist()
    pieces = []
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        q, k, v = (x[:, :, start:stop] for x in (query, key, value))
        pieces.append(_attend(q, k, v, dropout, scaling, sliding_window, softcap))
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


def _attend(
    q: Tensor, k: Tensor, v: Tensor, dropout: float, scaling: float | None, window: int | None, softcap: float | None
) -> Tensor:
    length = q.shape[2]
    grouped = q.shape[1] != k.shape[1]
    windowed = window is not None and length > window
    if softcap is None and not windowed:
        return scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=length > 1, scale=scaling, enable_gqa=grouped
        )
    visible = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    if window is not None and windowed:
        visible = visible.triu(1 - window)
    if softcap is None:
        return scaled_dot_product_attention(
            q, k, v, attn_mask=visible, dropout_p=dropout, scale=scaling, enable_gqa=grouped
        )
    if grouped:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh((q @ k.transpose(2, 3)) * scale / softcap)
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1, dtype=torch.float32).to(q.dtype)
    return nn.functional.dropout(weights, p=dropout) @ v


def no_mask(*_: Any, **__: Any) -> None:
    """The mask of packed attention: none, since sequences are cut apart."""
    return


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, no_mask)


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """The model with packed attention; its own implementation is put back afterwards.

    The boundaries travel as arguments of the forward, so that activation checkpointing sees them in backward too, but
    the implementation is looked up again there: keep backward inside this context.
    """
    config = model.config
    found = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = found
