"""A packed row cut into pieces: where each begins, and what it goes on from.

Shapes: N tokens in B pieces; piece i holds the tokens ``bounds[i]`` to ``bounds[i + 1]``.
"""

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Prefix:
    """What a piece goes on from: the first ``tokens`` tokens of an earlier ``piece``, which has no prefix itself."""

    piece: int
    tokens: int


@dataclass(frozen=True)
class Row:
    """The pieces of a row.

    Attributes
    ----------
    bounds : tuple of B + 1 int
        0 = c_0 < c_1 < … < c_B = N.
    prefixes : tuple of B
        What each piece goes on from, None for a sequence of its own; () where none has a prefix.
    """

    bounds: tuple[int, ...]
    prefixes: tuple[Prefix | None, ...] = ()

    def lengths(self) -> list[int]:
        """Tokens of each piece."""
        return [stop - start for start, stop in pairwise(self.bounds)]

    def before(self) -> list[int]:
        """Tokens of each piece's prefix, which is the position of its first token."""
        return [0 if p is None else p.tokens for p in self.prefixes] or [0] * (len(self.bounds) - 1)

    def ends(self) -> list[int]:
        """The place of the token before each piece's first one: its prefix's last; −1 where there is none."""
        places = [-1 if p is None else self.bounds[p.piece] + p.tokens - 1 for p in self.prefixes]
        return places or [-1] * (len(self.bounds) - 1)
