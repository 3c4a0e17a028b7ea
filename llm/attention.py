"""Attention per sequence in a packed row: no token sees another sequence, and no N × N mask is ever built.

Shapes: query (1, heads, N, d), key and value (1, key heads, N, d), where N tokens of several pieces follow one another;
``bounds`` holds 0 = c_0 < c_1 < … = N. A piece is a sequence, or goes on from a prefix (`nashpo.llm.row`), whose keys
and values it sees before its own.

Each sequence goes through the mask and the attention that the model has anyway, so that its scaling, grouping, sliding
window, soft cap or sinks are its own. A piece with a prefix goes through them as the rest of a sequence whose beginning
is cached, so that a window counts positions, not places in the row. While a packed row is worked on, the model's
implementation ``X`` is called ``nashpo_packed|X``, a name registered with transformers. Its mask is a `PackedMask` (or
a `nashpo.llm.prefix_attention.RowMask`), which knows the boundaries and reaches every attention layer; a layer that
gets another mask attends as ``X`` does.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from transformers import AttentionInterface, AttentionMaskInterface

from nashpo.llm.prefix_attention import RowMask, at_once, attend, row_mask
from nashpo.llm.row import Prefix, Row

PREFIX = "nashpo_packed|"
KINDS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Layers whose sequences can be cut apart."""
PER_HEAD = frozenset({"s_aux"})
"""Tensors that attention takes beside query, key and value, and that know nothing of positions."""

_row: ContextVar[Row | None] = ContextVar("nashpo_packed_row", default=None)


@dataclass(frozen=True)
class PackedMask:
    """Boundaries of the pieces of a row, and the mask of each: None or what the model would build for it alone."""

    bounds: tuple[int, ...]
    masks: tuple[Any, ...]
    prefixes: tuple[Prefix | None, ...] = ()


@contextmanager
def packed_row(model: nn.Module, bounds: Sequence[int], prefixes: Sequence[Prefix | None] = ()) -> Iterator[None]:
    """A forward on one row of several sequences; the model's own attention is put back afterwards.

    Parameters
    ----------
    model : nn.Module
    bounds, prefixes
        As in `nashpo.llm.row.Row`.

    Raises
    ------
    ValueError
        If packed sequences would mix in this model.
    """
    root = _root(model)
    _check(root)
    switched = _switch(root.config.get_text_config())
    token = _row.set(Row(tuple(bounds), tuple(prefixes)))
    try:
        yield
    finally:
        _row.reset(token)
        if switched:
            _restore(root.config.get_text_config())


def packed_in_backward(model: nn.Module, result: Tensor) -> Tensor:
    """The result of a packed forward, whose backward goes with packed attention too.

    Activation checkpointing looks the attention up again in backward. Without it this changes nothing.
    """
    config = _root(model).config.get_text_config()
    return _PackedInBackward.apply(result, config)  # type: ignore[no-untyped-call,no-any-return]


class _PackedInBackward(torch.autograd.Function):  # type: ignore[misc]  # torch is not typed here
    """The identity. Its backward comes before that of all it stands behind, and its callback after all."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, config: Any) -> Tensor:
        ctx.config = config
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if _switch(ctx.config):
            Variable._execution_engine.queue_callback(partial(_restore, ctx.config))
        return grad, None


def _switch(config: Any) -> bool:
    """Rename the model's implementation to its packed form; False where it has that name."""
    own = config._attn_implementation or "eager"
    if own.startswith(PREFIX):
        return False
    AttentionInterface.register(PREFIX + own, partial(_attention, own))
    AttentionMaskInterface.register(PREFIX + own, partial(_mask, own))
    config._attn_implementation = PREFIX + own
    return True


def _restore(config: Any) -> None:
    config._attn_implementation = config._attn_implementation.removeprefix(PREFIX)


def _root(model: nn.Module) -> Any:
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


def _check(root: Any) -> None:
    base = root.get_base_model() if hasattr(root, "get_base_model") else root
    name = type(base).__name__
    if not getattr(base, "_supports_attention_backend", False):
        raise ValueError(f"{name} has attention of its own that cannot be packed: use padded batches")
    strange = set(getattr(base.config.get_text_config(), "layer_types", None) or ()) - KINDS
    if strange or getattr(base, "_is_stateful", False):
        kinds = ", ".join(sorted(strange)) or "recurrent ones"
        raise ValueError(f"{name} has layers that would mix packed sequences ({kinds}): use padded batches")


def _mask(own: str, **named: Any) -> Any:
    """The model's own mask; in a packed forward that of each piece."""
    build = AttentionMaskInterface()[own]
    row = _row.get()
    if row is None:
        return build(**named)
    if named.get("use_vmap") or not named.get("allow_is_causal_skip", True):
        raise ValueError("a mask that is not only causal, sliding or chunked cannot be packed: use padded batches")
    if row.prefixes and at_once(own, named["device"], named["config"]):
        return row_mask(row, named["mask_function"], named["device"])
    sizes = list(zip(row.lengths(), row.before(), strict=True))
    masks = {}
    for length, before in set(sizes):
        alone = {"q_length": length, "kv_length": before + length, "q_offset": before, "kv_offset": 0}
        masks[length, before] = build(**(named | alone | {"attention_mask": None}))
    return PackedMask(row.bounds, tuple(masks[size] for size in sizes), row.prefixes)


def _attention(
    own: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: PackedMask | RowMask | Tensor | None,
    **named: Any,
) -> tuple[Tensor, Any]:
    """The model's own attention; in a packed row, on each piece.

    Raises
    ------
    ValueError
        In a packed forward, if the mask or something else that depends on positions does not come per sequence.
    """
    name = type(module).__name__
    if not isinstance(attention_mask, PackedMask | RowMask):
        if _row.get() is not None:
            raise ValueError(f"{name} builds a mask of its own, that cannot be packed: use padded batches")
        return _own_attention(own, module)(module, query, key, value, attention_mask, **named)
    positions = named.pop("position_ids", None)
    others = [other for other, x in named.items() if isinstance(x, Tensor) and other not in PER_HEAD]
    count = attention_mask.bounds[-1]
    if others or any(x.shape[0] != 1 or x.shape[2] != count for x in (query, key, value)):
        extra = ", ".join(others) or "a prefix"
        raise ValueError(f"{name} attends by {extra} too, which cannot be packed: use padded batches")
    if isinstance(attention_mask, RowMask):
        return attend(module, query, key, value, attention_mask, **named), None
    own_attention = _own_attention(own, module)
    row = Row(attention_mask.bounds, attention_mask.prefixes)
    # One split for all pieces: the backward of a slice would fill a whole row for each.
    queries, keys, values = (x.split(row.lengths(), dim=2) for x in (query, key, value))
    heads = {prefix: _begun(prefix, keys, values) for prefix in set(row.prefixes) if prefix is not None}
    pieces = []
    for i, (start, mask) in enumerate(zip(row.bounds, attention_mask.masks, strict=False)):
        k, v = keys[i], values[i]
        if row.prefixes and (prefix := row.prefixes[i]) is not None:
            k, v = (torch.cat(two, dim=2) for two in zip(heads[prefix], (k, v), strict=True))
        if positions is not None:
            named["position_ids"] = positions[..., start : start + queries[i].shape[2]]
        pieces.append(own_attention(module, queries[i], k, v, mask, **named)[0])
    return torch.cat(pieces, dim=1), None


def _begun(prefix: Prefix, keys: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Keys and values of a prefix."""
    return keys[prefix.piece][:, :, : prefix.tokens], values[prefix.piece][:, :, : prefix.tokens]


def _own_attention(own: str, module: nn.Module) -> Callable[..., tuple[Tensor, Any]]:
    """The function that the module's own file looks up under this name."""
    for kind in type(module).__mro__:
        home = sys.modules[kind.__module__]
        if hasattr(home, "ALL_ATTENTION_FUNCTIONS"):
            eager = getattr(home, "eager_attention_forward", None)
            return home.ALL_ATTENTION_FUNCTIONS.get_interface(own, eager)
    raise ValueError(f"{type(module).__name__} has no attention {own!r} to be found: use padded batches")


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Nothing: what a packed forward needs travels with its graph."""
    yield
