"""The one log-probability primitive: log π of marked tokens of a causal language model, summed per sequence.

Shapes: B sequences of T tokens; ``input_ids``, ``attention_mask`` and ``loss_mask`` are (B, T). ``loss_mask[b, t] = 1``
scores the token ``input_ids[b, t]`` given its prefix. Log-probabilities are in nats, float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nashpo.llm.head import CHUNK, Shape, shape_of, token_logprobs

_PROBE = (-40.0, -3.0, -0.5, 0.0, 0.25, 2.0, 25.0)


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
        Shapes that differ, a scored token in column 0 or on padding, or a model whose logits are shaped in a way that
        this function does not know.
    """
    scored = _checked(input_ids, attention_mask, loss_mask)
    rows, columns = scored.nonzero(as_tuple=True)
    position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
    tokens = scored_token_logprobs(
        model, input_ids, rows, columns, chunk=chunk, attention_mask=attention_mask, position_ids=position_ids
    )
    return torch.zeros(len(input_ids), dtype=torch.float32, device=tokens.device).index_add(0, rows, tokens)


def scored_token_logprobs(
    model: nn.Module, input_ids: Tensor, rows: Tensor, columns: Tensor, *, chunk: int = CHUNK, **inputs: Any
) -> Tensor:
    """log π of single tokens, (M,) float32, from one forward of the model.

    Parameters
    ----------
    input_ids : (B, T)
    rows, columns : (M,)
        The scored tokens; columns >= 1.
    inputs
        What else the model's forward gets (attention_mask, position_ids, …).
    """
    head = output_head(model)
    shape = shape_of(model.config)
    targets = input_ids[rows, columns]
    result: list[Tensor] = []

    def replacement(hidden: Tensor) -> Tensor:
        chosen = hidden[rows.to(hidden.device), columns.to(hidden.device) - 1]
        weight, bias = head.weight, getattr(head, "bias", None)
        result.append(token_logprobs(chosen, weight, bias, targets.to(hidden.device), shape, chunk))
        return hidden.new_tensor(_PROBE)[None, None, :] + 0 * result[0].sum().to(hidden.dtype)

    with _replaced_forward(head, replacement):
        output = model(input_ids=input_ids, use_cache=False, **inputs)
    if len(result) != 1:
        raise ValueError(f"{type(model).__name__} called its output head {len(result)} times in one forward, not once")
    _check_shape(model, output.logits, shape)
    # The model's own output stays in the graph: sharding hooks wait for its gradient.
    return result[0] + 0 * output.logits.sum().float().nan_to_num()


def output_head(model: nn.Module) -> nn.Module:
    """The layer that turns hidden states into logits.

    Raises
    ------
    ValueError
        If there is none, or it is no linear layer with a plain weight (an adapter on the head, for instance).
    """
    unwrapped = getattr(model, "module", model)
    head = unwrapped.get_output_embeddings()
    if head is None or not isinstance(getattr(head, "weight", None), Tensor):
        raise ValueError(f"{type(unwrapped).__name__} has no linear output head to score tokens with")
    if hasattr(head, "base_layer"):
        raise ValueError("the output head carries an adapter: leave lm_head out of the adapter's target modules")
    return head


@contextmanager
def _replaced_forward(head: nn.Module, replacement: Any) -> Iterator[None]:
    """The head's forward replaced on the instance, so that the root's forward, and every hook on it, runs as it is."""
    head.forward = replacement
    try:
        yield
    finally:
        del head.forward


def _check_shape(model: nn.Module, logits: Tensor, shape: Shape) -> None:
    probe = torch.tensor(_PROBE, dtype=torch.float32, device=logits.device)
    expected = shape(probe.to(logits.dtype).float())
    seen = logits.detach().float().flatten()
    if seen.shape != expected.shape or not torch.allclose(seen, expected, rtol=2e-2, atol=1e-2):
        raise ValueError(
            f"{type(model).__name__} shapes its logits after the head in a way that is not known here (scale"
            f" {shape.scale:g}, soft cap {shape.cap}): log-probabilities would be wrong"
        )


def _checked(input_ids: Tensor, attention_mask: Tensor, loss_mask: Tensor) -> Tensor:
    if not (input_ids.shape == attention_mask.shape == loss_mask.shape) or input_ids.ndim != 2:
        raise ValueError(
            f"input_ids {tuple(input_ids.shape)}, attention_mask {tuple(attention_mask.shape)} and loss_mask"
            f" {tuple(loss_mask.shape)} must have one shape (B, T)"
        )
    scored = loss_mask.bool()
    if bool(scored[:, 0].any()):
        raise ValueError("loss_mask scores column 0: the first token has no prefix to be scored from")
    if bool((scored & ~attention_mask.bool()).any()):
        raise ValueError("loss_mask scores a padding token (attention_mask is 0 there)")
    return scored
