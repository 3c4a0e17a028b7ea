"""Packed rows in which the responses to one prompt share its tokens, so that the prompt is computed once.

A row holds, per prompt, [prompt, response 1] [response 2] … [response K]; every response's positions go on from the
prompt's end, it attends to the prompt and to itself, and its first token is predicted by the prompt's last one.

Shapes: as in `nashpo.llm.packing`. A prompt of p tokens with responses of r_1, …, r_K tokens takes p + Σ r_k tokens
instead of K p + Σ r_k.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from torch import nn

from nashpo.llm.logprobs import root_module
from nashpo.llm.packing import Packed, check_sequences
from nashpo.llm.prefix_attention import OWN
from nashpo.llm.row import Prefix

LEAST = 0.02
"""Share of the tokens that must be saved. On CPU, a saving of 2 % was worth its masks on a Llama of 30 M parameters."""
KINDS = frozenset({"full_attention", "sliding_attention"})
"""Layers that see positions only, not the places of the row."""


def share_prefixes(sequences: Sequence[tuple[Sequence[int], Sequence[int]]], least: float = 0.0) -> Packed:
    """A row in which sequences of one prompt that follow one another share it.

    A sequence's prompt is what stands before its first scored token. Whether a prompt is shared depends on its own
    responses only, not on what else is in the row.

    Parameters
    ----------
    sequences : sequence of (token ids, loss mask)
    least : float
        A prompt is shared where this saves more than this share of its sequences' tokens,
        (K − 1) p > least · (K p + Σ r_k).

    Raises
    ------
    ValueError
        What `Packed.from_sequences` refuses, and a sequence without a scored token: it has no response.
    """
    check_sequences(sequences)
    for number, (ids, mask) in enumerate(sequences):
        if not any(mask):
            raise ValueError(
                f"sequence {number} has {len(ids)} tokens and none is scored: an empty response cannot share a prompt"
            )
    pieces: list[tuple[Sequence[int], Sequence[int]]] = []
    prefixes: list[Prefix | None] = []
    for prompt, members in groupby(sequences, key=lambda sequence: _prompt(*sequence)):
        group = list(members)
        shared = (len(group) - 1) * len(prompt) > least * sum(len(ids) for ids, _ in group)
        first, cut = len(pieces), len(prompt) if shared else 0
        pieces += [group[0], *((ids[cut:], mask[cut:]) for ids, mask in group[1:])]
        prefixes += [None, *[Prefix(first, cut) if shared else None] * (len(group) - 1)]
    return Packed.from_pieces(pieces, tuple(prefixes) if any(prefixes) else ())


def _prompt(ids: Sequence[int], mask: Sequence[int]) -> tuple[int, ...]:
    return tuple(ids[: list(mask).index(1)])


def can_share(model: nn.Module) -> bool:
    """Whether the model attends so that a prompt's tokens can be shared.

    Its attention must be one of transformers' own in which a query may have more keys before it than there are
    queries, and its layers must not go by places in the row (chunks do).
    """
    root: Any = root_module(model)
    base = root.get_base_model() if hasattr(root, "get_base_model") else root
    config = base.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    return (config._attn_implementation or "eager") in OWN and kinds <= KINDS
