"""Keys and values that are kept between the turns of a conversation, so that its history is not read again.

A batch looks as it does when everything is read anew: rows padded on the left to W columns. Of them the first W − n are
filled from what is kept, and the last n are read, n being what the least kept row needs. So no padding stands between
kept and new tokens, positions follow from the mask as always, and where nothing is kept n is W. Rows that are equal are
read once and expanded. What is kept was computed token by token, in other batches: it differs from what would be read
by rounding only, which `nashpo.llm.engines.noise` says the effect of.

Only plain full attention can be continued so. A model is asked by one token what its ``generate`` caches: anything but
`DynamicLayer` (windows, recurrent states, quantized or static layers), positions of a model's own making, or rotary
frequencies that change with the length of the sequence, and the model is read anew.

Shapes: N rows of W columns, U of them distinct; keys and values of a layer are (N, H, T, D), those of a row (H, T, D).
Lengths are in tokens.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, GenerationMixin
from transformers.cache_utils import DynamicLayer

Ids = tuple[int, ...]
Layers = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of one row, (H, T, D) each, per layer."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Keys and values of ``tokens`` consecutive tokens, which all sequences that begin alike share."""

    tokens: int
    layers: Layers


@dataclass(eq=False)
class Kept:
    """A sequence whose keys and values are kept.

    Attributes
    ----------
    ids : tuple of int
    pieces : tuple of (Piece, int)
        In order, each with how many of its first tokens are meant; these add up to the length of ``ids``.
    used : int
        The last call that found it.
    """

    ids: Ids
    pieces: tuple[tuple[Piece, int], ...]
    used: int

    def first(self, length: int) -> Iterator[tuple[Piece, int]]:
        """The pieces of its first ``length`` tokens."""
        for piece, tokens in self.pieces:
            if length <= 0:
                return
            yield piece, min(tokens, length)
            length -= tokens


class Prefixes:
    """What is kept of one policy, found by its beginning.

    Sequences that the present call of `sample` does not begin with are dropped for new ones, those not used for
    longest first; what it does begin with stays, and where there is no room left a new sequence is not kept. So what is
    kept follows from the calls, not from time or free memory.

    Parameters
    ----------
    limit : int
        Most tokens kept, those that several sequences share counted once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        """Give everything back."""
        self.tokens = 0
        self._call = 0
        self._policy: object = None
        self._empty: Layers = ()
        self._ordered: list[Ids] = []
        self._kept: dict[Ids, Kept] = {}  # those not used for longest first
        self._holders: Counter[Piece] = Counter()

    def begin(self, policy: object, model: Any) -> bool:
        """A new call; whether the policy's model can be continued. Another policy's keys and values are given back."""
        if policy is not self._policy:
            self.clear()
            self._policy, self._empty = policy, plain_layers(model)
        self._call += 1
        return bool(self._empty)

    def find(self, ids: Ids) -> tuple[Kept | None, int]:
        """The kept sequence with the longest common beginning, and its length; (None, 0) where there is none."""
        place = bisect_left(self._ordered, ids)  # in lexicographic order it is a neighbour
        near = [(common(known, ids), known) for known in self._ordered[max(0, place - 1) : place + 1]]
        length, known = max(near, key=lambda pair: pair[0], default=(0, ()))
        return (self._touched(known), length) if length else (None, 0)

    def _touched(self, ids: Ids) -> Kept:
        kept = self._kept.pop(ids)
        self._kept[ids] = kept
        kept.used = self._call
        return kept

    def extend(self, base: Kept | None, length: int, ids: Ids, take: Callable[[int, int], Piece]) -> Kept | None:
        """Keep a sequence whose first ``length`` tokens are those of ``base``; None where there is no room.

        Parameters
        ----------
        take : callable
            Called with begin and end, gives the piece of these tokens of the sequence.
        """
        if ids in self._kept:
            return self._touched(ids)
        if not self._room(len(ids) - length):
            return None
        begin = () if base is None else tuple(base.first(length))
        kept = Kept(ids, (*begin, (take(length, len(ids)), len(ids) - length)), self._call)
        for piece, _ in kept.pieces:
            self.tokens += 0 if self._holders[piece] else piece.tokens
            self._holders[piece] += 1
        self._kept[ids] = kept
        insort(self._ordered, ids)
        return kept

    def _room(self, tokens: int) -> bool:
        while self.tokens + tokens > self.limit:
            oldest = next(iter(self._kept.values()), None)
            if oldest is None or oldest.used == self._call:
                return False
            self._drop(oldest)
        return True

    def _drop(self, kept: Kept) -> None:
        del self._kept[kept.ids]
        del self._ordered[bisect_left(self._ordered, kept.ids)]
        for piece, _ in kept.pieces:
            self._holders[piece] -= 1
            if not self._holders[piece]:
                del self._holders[piece]
                self.tokens -= piece.tokens

    def read(self, model: Any, sequences: Sequence[Ids], input_ids: Tensor, attention_mask: Tensor) -> Reading:
        """The cache that ``generate`` goes on from, for a batch of prompts.

        Parameters
        ----------
        model
            The transformers model that `begin` was told of.
        sequences : N tuples of int
        input_ids, attention_mask : (N, W)
            The same, padded on the left.
        """
        rows: dict[Ids, int] = {}  # in their order, the first of equal ones
        for row, ids in enumerate(sequences):
            rows.setdefault(ids, row)
        found = {ids: self.find(ids) for ids in rows}
        width = input_ids.shape[1]
        unread = max(1, *(len(ids) - length for ids, (_, length) in found.items()))
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        if unread < width:
            parts = [(kept, len(ids) - unread) for ids, (kept, _) in found.items()]
            for layer, (keys, values) in enumerate(assembled(parts, width - unread, self._empty)):
                cache.update(keys, values, layer)
        if len(rows) < len(sequences):
            if unread > 1:  # all but the last token, of which generate needs the logits
                some = list(rows.values())
                read_only(model, input_ids[some, :-1], attention_mask[some, :-1], past_key_values=cache)
            places = {ids: place for place, ids in enumerate(rows)}
            cache.batch_select_indices(torch.tensor([places[ids] for ids in sequences], device=input_ids.device))
        return Reading(self, cache, tuple(sequences), found, width)


@dataclass(frozen=True)
class Reading:
    """A batch that is continued: ``cache`` is for ``generate``, which adds to it what it draws."""

    prefixes: Prefixes
    cache: DynamicCache
    sequences: tuple[Ids, ...]
    found: dict[Ids, tuple[Kept | None, int]]
    width: int

    def keep(self, responses: Sequence[Ids]) -> None:
        """Keep the prompts with their responses, without the last token of each: it was drawn, but never read."""
        for row, (ids, response) in enumerate(zip(self.sequences, responses, strict=True)):
            base, length = self.found[ids]
            if length < len(ids):
                base, length = self.prefixes.extend(base, length, ids, self._taker(row)), len(ids)
            if base is not None and len(response) > 1:
                self.prefixes.extend(base, length, ids + response[:-1], self._taker(row))

    def _taker(self, row: int) -> Callable[[int, int], Piece]:
        start = self.width - len(self.sequences[row])

        def take(begin: int, end: int) -> Piece:
            columns = slice(start + begin, start + end)
            layers = ((layer.keys[row, :, columns], layer.values[row, :, columns]) for layer in self.cache.layers)
            return Piece(end - begin, tuple((keys.clone(), values.clone()) for keys, values in layers))

        return take


def common(first: Ids, second: Ids) -> int:
    """Length of the common beginning."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def assembled(parts: Sequence[tuple[Kept | None, int]], columns: int, empty: Layers) -> Iterator[tuple[Tensor, Tensor]]:
    """Keys and values of the first tokens of some sequences, per layer, (U, H, columns, D) each.

    They stand at the right; the zeros before them are masked. A length below 1 is a row of zeros.
    """
    for layer, templates in enumerate(empty):
        made = [t.new_zeros(len(parts), t.shape[0], columns, t.shape[2]) for t in templates]
        for row, (kept, length) in enumerate(parts):
            place = columns - length
            for piece, tokens in () if kept is None else kept.first(length):
                for whole, part in zip(made, piece.layers[layer], strict=True):
                    whole[row, :, place : place + tokens] = part[:, :tokens]
                place += tokens
        yield made[0], made[1]


def read_only(model: Any, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Any:
    """What ``generate`` gives when it reads the input, chooses one token and stops; its cache ends with the input."""
    once = GenerationConfig(do_sample=False, max_new_tokens=1, use_cache=True, return_dict_in_generate=True)
    return model.generate(input_ids=input_ids, attention_mask=attention_mask, generation_config=once, **options)


def plain_layers(model: Any) -> Layers:
    """Keys and values of no token, per layer, of a model whose cache can be cut and put together; () for others."""
    own_positions = "_prepare_position_ids_for_generation"
    if getattr(type(model), own_positions, None) is not getattr(GenerationMixin, own_positions, None):
        return ()
    rotary = getattr(model.config.get_text_config(decoder=True), "rope_parameters", None)
    if any(kind == "longrope" or "dynamic" in kind for kind in rope_types(rotary)):
        return ()
    one = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    cache: Any = getattr(read_only(model, one, torch.ones_like(one)), "past_key_values", None)
    layers = cache.layers if type(cache) is DynamicCache else []
    if not layers or not all(type(layer) is DynamicLayer and layer.get_seq_length() == 1 for layer in layers):
        return ()
    return tuple((layer.keys[0, :, :0].clone(), layer.values[0, :, :0].clone()) for layer in layers)


def rope_types(parameters: Any) -> Iterator[str]:
    """The kinds of rotary embedding that a configuration's ``rope_parameters`` name, at any depth."""
    if isinstance(parameters, dict):
        yield str(parameters.get("rope_type", "default"))
        for inner in parameters.values():
            yield from rope_types(inner)
