"""Padding-free batches: several sequences in one row, with positions that start again and attention that does not mix.

Shapes: a packed row is (1, N); ``boundaries`` is (B + 1,), from 0 to N. Where sequences share their beginning
(`nashpo.llm.prefix`), a row holds what is left of each, its piece.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from nashpo.llm.attention import packed_in_backward, packed_row
from nashpo.llm.head import CHUNK
from nashpo.llm.logprobs import scored_token_logprobs, sum_by_owner
from nashpo.llm.row import Prefix, Row


@dataclass(frozen=True)
class Packed:
    """B sequences in one row.

    Attributes
    ----------
    input_ids, loss_mask : (1, N)
    position_ids : (1, N)
        Counted from 0 in each sequence; in a piece with a prefix, from the prefix's length.
    boundaries : (B + 1,) int32
    prefixes : tuple of B
        What each piece goes on from, None for a whole sequence; () where all are whole.
    """

    input_ids: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    boundaries: Tensor
    prefixes: tuple[Prefix | None, ...] = ()

    @classmethod
    def from_sequences(cls, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> "Packed":
        """From (token ids, loss mask) of each sequence.

        Raises
        ------
        ValueError
            No sequences, an empty one, or a mask that scores a first token or has another length.
        """
        check_sequences(sequences)
        return cls.from_pieces(sequences, ())

    @classmethod
    def from_pieces(
        cls, pieces: Sequence[tuple[Sequence[int], Sequence[int]]], prefixes: tuple[Prefix | None, ...]
    ) -> "Packed":
        """From (token ids, loss mask) of each piece and what it goes on from."""
        row = Row((0, *accumulate(len(ids) for ids, _ in pieces)), prefixes)
        places = zip(row.before(), row.lengths(), strict=True)
        return cls(
            torch.tensor([[token for ids, _ in pieces for token in ids]], dtype=torch.long),
            torch.tensor([[int(m) for _, mask in pieces for m in mask]], dtype=torch.long),
            torch.tensor([[p for before, n in places for p in range(before, before + n)]], dtype=torch.long),
            torch.tensor(row.bounds, dtype=torch.int32),
            prefixes,
        )

    @classmethod
    def from_padded(cls, input_ids: Tensor, attention_mask: Tensor, loss_mask: Tensor) -> "Packed":
        """From a padded batch (B, T), padding on any side."""
        exists = attention_mask.bool()
        rows = [(input_ids[b][exists[b]].tolist(), loss_mask[b][exists[b]].tolist()) for b in range(len(input_ids))]
        return cls.from_sequences(rows).to(input_ids.device)

    def to(self, device: torch.device | str) -> "Packed":
        """The same batch on a device."""
        ids, mask, positions = (x.to(device) for x in (self.input_ids, self.loss_mask, self.position_ids))
        return Packed(ids, mask, positions, self.boundaries.to(device), self.prefixes)


def check_sequences(sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
    """Refuse no sequences, an empty one, and a mask that scores a first token or has another length (ValueError)."""
    if not sequences:
        raise ValueError("no sequences to pack")
    for number, (ids, mask) in enumerate(sequences):
        if len(ids) == 0 or len(ids) != len(mask):
            raise ValueError(f"sequence {number} has {len(ids)} tokens and a loss mask of {len(mask)}")
        if mask[0]:
            raise ValueError(f"sequence {number} scores its first token, which has no prefix")


def packed_logprobs(model: nn.Module, batch: Packed, *, chunk: int = CHUNK) -> Tensor:
    """`sequence_logprobs` of a packed batch, (B,) float32: the same numbers without padding.

    Raises
    ------
    ValueError
        A scored first token, or a model in which packed sequences would mix, or which
        `nashpo.llm.logprobs.scored_token_logprobs` refuses.
    """
    _, columns = batch.loss_mask.nonzero(as_tuple=True)
    if bool((batch.position_ids[0, columns] == 0).any()):
        raise ValueError("loss_mask scores the first token of a sequence, which has no prefix")
    row = Row(tuple(batch.boundaries.tolist()), batch.prefixes)
    owners = torch.searchsorted(batch.boundaries, columns.to(batch.boundaries.dtype), right=True) - 1
    with packed_row(model, row.bounds, row.prefixes):
        tokens = scored_token_logprobs(
            model,
            batch.input_ids,
            torch.zeros_like(columns),
            columns,
            predictors=_predictors(row, columns, owners),
            chunk=chunk,
            attention_mask=torch.ones_like(batch.input_ids),
            position_ids=batch.position_ids,
        )
    return sum_by_owner(packed_in_backward(model, tokens), owners, len(batch.boundaries) - 1)


def _predictors(row: Row, columns: Tensor, owners: Tensor) -> Tensor:
    """The column before each: of a piece's first token, the last one of its prefix."""
    starts, ends = (torch.tensor(x, device=columns.device)[owners] for x in (row.bounds, row.ends()))
    return torch.where(columns == starts, ends, columns - 1)
