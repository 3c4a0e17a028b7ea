"""The one log-probability primitive: log π of marked tokens of a causal language model, summed per sequence.

Shapes: B sequences of T tokens; ``input_ids``, ``attention_mask`` and ``loss_mask`` are (B, T). ``loss_mask[b, t] = 1``
scores the token ``input_ids[b, t]`` given its prefix. Log-probabilities are in nats, float32.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nashpo.llm.head import CHUNK, Shape, readings, token_logprobs

_PROBE = (-40.0, -3.0, -0.5, 0.0, 0.25, 2.0, 25.0)
_shapes: WeakKeyDictionary[nn.Module, Shape] = WeakKeyDictionary()
"""Of models whose shape is not the first reading of their configuration."""


def sequence_logprobs(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, loss_mask: Tensor, *, chunk: int = CHUNK
) -> Tensor:
    """Σ_t log π(token_t | tokens before) over the tokens that ``loss_mask`` marks.

    Parameters
    ----------
    model : nn.Module
        A transformers causal language model, wrapped or not (adapters, data or parameter sharding). It is called
        through its own forward; train or eval mode is left as found.
    input_ids : (B, T) int
    attention_mask : (B, T)
        1 where a token exists; padding may stand on any side. Positions are counted over existing tokens.
    loss_mask : (B, T)
        1 where a token is scored: any number of spans per row. Column 0 must be 0, since it has no prefix.
    chunk : int
        Tokens whose logits exist at one time.

    Returns
    -------
    (B,) float32
        A row without scored tokens gives exactly 0.

    Raises
    ------
    ValueError
        Shapes that differ, masks of other values than 0 and 1, a scored token in column 0, on padding or without an
        existing token before it, or a model that `scored_token_logprobs` refuses.
    """
    scored = _checked(input_ids, attention_mask, loss_mask)
    rows, columns = scored.nonzero(as_tuple=True)
    inputs = {"attention_mask": attention_mask}
    if _takes(root_module(model), "position_ids"):
        inputs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
    tokens = scored_token_logprobs(model, input_ids, rows, columns, chunk=chunk, **inputs)
    return sum_by_owner(tokens, rows, len(input_ids))


def scored_token_logprobs(
    model: nn.Module,
    input_ids: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    predictors: Tensor | None = None,
    chunk: int = CHUNK,
    **inputs: Any,
) -> Tensor:
    """log π of single tokens, (M,) float32, from one forward of the model.

    Parameters
    ----------
    input_ids : (B, T)
    rows, columns : (M,)
        The scored tokens; columns >= 1.
    predictors : (M,), optional
        The columns whose hidden states predict them, for rows in which a token may not stand right behind its prefix;
        by default columns − 1.
    inputs
        What else the model's forward gets (attention_mask, position_ids, …).

    Raises
    ------
    ValueError
        A model without a plain output head, that calls it on other tokens than these or more than once, or that
        shapes its logits in a way that is not known here.
    """
    root = root_module(model)
    head = output_head(root)
    before = columns - 1 if predictors is None else predictors
    shapes = readings(root.config)
    shape = _shapes.get(root, shapes[0])
    result: list[Tensor] = []
    probes: list[Tensor] = []

    def replacement(hidden: Tensor) -> Tensor:
        if hidden.shape[:2] != input_ids.shape:
            raise ValueError(
                f"{type(root).__name__} hands {tuple(hidden.shape[:2])} positions to its output head for input_ids"
                f" {tuple(input_ids.shape)}: virtual tokens, as of prompt tuning, are not known here"
            )
        weight, bias = _whole(head.weight), _whole(getattr(head, "bias", None))
        device = weight.device
        if device.type == "meta":
            raise ValueError(f"the output head of {type(root).__name__} has no weights in memory (they are offloaded)")
        chosen = hidden[rows.to(hidden.device), before.to(hidden.device)].to(device)
        targets = input_ids[rows, columns].to(device)
        result.append(token_logprobs(chosen, weight, bias, targets, shape, chunk))
        probes.append(_probe(len(weight), hidden))
        return probes[0] + _nothing(result[0]).to(probes[0])

    with _replaced_forward(head, replacement):
        output = model(input_ids=input_ids, use_cache=False, **inputs)
    if len(result) != 1:
        raise ValueError(f"{type(root).__name__} called its output head {len(result)} times in one forward, not once")
    if not _fits(probes[0], output.logits, shape):
        found = next((other for other in shapes if _fits(probes[0], output.logits, other)), None)
        if found is None:
            raise ValueError(
                f"{type(root).__name__} shapes its logits after the head in a way that is not known here (not by"
                f" {shapes[0]}, for instance): log-probabilities would be wrong"
            )
        _shapes[root] = found
        return scored_token_logprobs(model, input_ids, rows, columns, predictors=before, chunk=chunk, **inputs)
    # The model's own output stays in the graph: sharding hooks wait for its gradient.
    return result[0] + _nothing(output.logits).to(result[0])


def sum_by_owner(tokens: Tensor, owners: Tensor, count: int) -> Tensor:
    """Sums of the tokens (M,) that belong to each of ``count`` sequences."""
    return tokens.new_zeros(count).index_add(0, owners.to(tokens.device), tokens)


def root_module(model: nn.Module) -> Any:
    """The model inside wrappers that keep it as ``module`` (data parallelism)."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


def output_head(model: nn.Module) -> nn.Module:
    """The layer that turns hidden states into logits.

    Raises
    ------
    ValueError
        If there is none, or it is no linear layer with a plain weight (an adapter on the head, for instance).
    """
    root = root_module(model)
    head = root.get_output_embeddings()
    if hasattr(head, "base_layer"):
        raise ValueError("the output head carries an adapter: leave lm_head out of the adapter's target modules")
    weight = getattr(head, "weight", None)
    shape = getattr(weight, "ds_shape", getattr(weight, "shape", ()))  # DeepSpeed's of a weight that it holds in parts
    if not isinstance(weight, Tensor) or len(shape) != 2 or not weight.is_floating_point():
        raise ValueError(f"{type(root).__name__} has no linear output head to score tokens with")
    return head


@contextmanager
def _replaced_forward(head: nn.Module, replacement: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The head's forward replaced on the instance, so that the root's forward, and every hook on it, runs as it is."""
    found = head.__dict__.get("forward")  # offloading hooks of other packages stand here
    head.forward = replacement
    try:
        yield
    finally:
        del head.forward
        if found is not None:
            head.forward = found


def _probe(vocabulary: int, hidden: Tensor) -> Tensor:
    """One position of made-up logits, (1, 1, V)."""
    probe = torch.tensor(_PROBE, dtype=torch.float32).repeat(-(-vocabulary // len(_PROBE)))[:vocabulary]
    return probe.to(hidden.device, hidden.dtype)[None, None]


def _whole(values: Any) -> Any:
    """A parameter that is spread over processes (a DTensor, as of tensor parallelism) in one piece, differentiably.
    FSDP gathers the head's before its forward."""
    return values.full_tensor() if hasattr(values, "full_tensor") else values


def _nothing(values: Tensor) -> Tensor:
    """0 that depends on the values in the graph, whatever they are."""
    return (0 * values.sum()).nan_to_num()


def _fits(probe: Tensor, logits: Tensor, shape: Shape) -> bool:
    """Whether the model did to the probe what the shape says."""
    expected = shape(probe.float().clone()).to(logits.device)
    seen = logits.detach().float()
    tolerance = 4 * torch.finfo(min(probe.dtype, logits.dtype, key=lambda dtype: dtype.itemsize)).eps
    return seen.shape == expected.shape and torch.allclose(seen, expected, rtol=tolerance, atol=tolerance)


def _takes(root: Any, name: str) -> bool:
    """Whether the model's forward takes this argument."""
    base = root.get_base_model() if hasattr(root, "get_base_model") else root
    parameters = inspect.signature(base.forward).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _checked(input_ids: Tensor, attention_mask: Tensor, loss_mask: Tensor) -> Tensor:
    if not (input_ids.shape == attention_mask.shape == loss_mask.shape) or input_ids.ndim != 2:
        raise ValueError(
            f"input_ids {tuple(input_ids.shape)}, attention_mask {tuple(attention_mask.shape)} and loss_mask"
            f" {tuple(loss_mask.shape)} must have one shape (B, T)"
        )
    for name, mask in (("attention_mask", attention_mask), ("loss_mask", loss_mask)):
        if mask.dtype != torch.bool and bool(((mask != 0) & (mask != 1)).any()):
            raise ValueError(f"{name} holds other values than 0 and 1")
    scored, exists = loss_mask.bool(), attention_mask.bool()
    if bool(scored[:, 0].any()):
        raise ValueError("loss_mask scores column 0: the first token has no prefix to be scored from")
    if bool((scored & ~exists).any()):
        raise ValueError("loss_mask scores a padding token (attention_mask is 0 there)")
    if bool((scored[:, 1:] & ~exists[:, :-1]).any()):
        raise ValueError("loss_mask scores a token right after padding: its prefix ends in a token that does not exist")
    return scored
