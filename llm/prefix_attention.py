"""Attention of a row with shared prefixes in one call: FlexAttention with a block mask, on CUDA.

Shapes: query (1, heads, N, d), key and value (1, key heads, N, d), as in `nashpo.llm.attention`, which attends piece
by piece wherever this does not serve. FlexAttention is compiled at its first call and skips blocks of 128 × 128 scores
in which no token sees another. Scale, soft cap, grouping and sinks are those that the model hands to its attention.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from nashpo.llm.row import Row

OWN = frozenset({"eager", "sdpa", "flex_attention"})
"""The models' implementations that compute what FlexAttention does."""
DEVICES = frozenset({"cuda"})
"""Kinds of device on which FlexAttention has a backward and a kernel of its own."""
SMALLEST_HEAD = 16


@dataclass(frozen=True)
class RowMask:
    """Boundaries of the pieces of a row, and which tokens of all see which, as FlexAttention's block mask."""

    bounds: tuple[int, ...]
    blocks: Any


def at_once(own: str, device: torch.device | str, config: Any) -> bool:
    """Whether a row with prefixes is attended in one call."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return own in OWN and torch.device(device).type in DEVICES and size >= SMALLEST_HEAD


def row_mask(row: Row, mask_function: Callable[..., Any], device: torch.device | str) -> RowMask:
    """The block mask of a row, under the model's own rule for two positions of one sequence.

    Parameters
    ----------
    row : Row
    mask_function : callable
        From batch, head and the positions of query and key to whether the one sees the other: causal, within a window.
    device : torch.device or str
    """
    from torch.nn.attention.flex_attention import create_block_mask

    count, kind = row.bounds[-1], torch.device(device).type
    sees = seen_by(row, mask_function, device)
    blocks = create_block_mask(sees, 1, None, count, count, device=str(device), _compile=kind == "cuda")
    return RowMask(row.bounds, blocks)


def seen_by(row: Row, mask_function: Callable[..., Any], device: torch.device | str) -> Callable[..., Any]:
    """Whether a query sees a key, by their places in the row: in one piece or in its prefix, and by their positions."""
    lengths = torch.tensor(row.lengths(), device=device)

    def of_tokens(values: list[int]) -> Tensor:
        return torch.tensor(values, device=device).repeat_interleave(lengths)

    pieces = of_tokens(list(range(len(lengths))))
    positions = torch.arange(row.bounds[-1], device=device) - of_tokens(list(row.bounds[:-1])) + of_tokens(row.before())
    stops = of_tokens([end + 1 for end in row.ends()])
    starts = stops - of_tokens(row.before())

    def sees(batch: Any, head: Any, query: Any, key: Any) -> Any:
        near = (pieces[query] == pieces[key]) | ((key >= starts[query]) & (key < stops[query]))
        return near & mask_function(batch, head, positions[query], positions[key])

    return sees


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: RowMask, **named: Any) -> Tensor:
    """The attention of the whole row, (1, N, heads, d)."""
    flex: Any = AttentionInterface()["flex_attention"]
    result: Tensor = flex(module, query, key, value, mask.blocks, **named)[0]
    return result
