"""The game of K responses to one prompt: its duality gap, its cycles, whether the longer response wins.

Shapes: ``wins`` is (K, K), the win rate of the row against the column in [0, 1], None or NaN where the judge abstained;
``texts`` and ``lengths`` (tokens of the policy) are those of the K responses. Equal texts are one response. Nothing
here needs torch, so that a report of a run reads it too.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Wins = Sequence[Sequence[float | None]] | Array


def mean_win(wins: Wins) -> float | None:
    """Mean of the comparisons that were answered; ``wins`` may be (K, K')."""
    known = [p for line in _matrix(wins).tolist() for p in line if p == p]
    return sum(known) / len(known) if known else None


def sample_gap(wins: Wins) -> float | None:
    """Duality gap of the uniform policy over K responses in their own K × K game, 2 (max_i P̂_i − ½).

    It bounds from below the duality gap of the policy that draws one of these K. Of the policy that they were drawn
    from it is an estimate only: too low because few deviations are tried, and too high because K draws stand for the
    whole policy (at the equilibrium of rock, paper, scissors it is 0.36 on average for K = 5 and 0.15 for K = 32).
    None where a comparison is missing.
    """
    matrix = _matrix(wins)
    if not matrix.size or np.isnan(matrix).any():
        return None
    return float(2 * (matrix.mean(axis=1).max() - 0.5))


def cycles(wins: Wins, texts: Sequence[Hashable]) -> tuple[int, int]:
    """How many triples of different responses are a cycle i ≻ j ≻ k ≻ i, and of how many with three strict winners.

    For i < j < k the entries (i, j), (j, k) and (k, i) are read. Both counts are sums of products of three 0-1
    matrices, exact in float64.
    """
    matrix = _matrix(wins)
    differ = _differ(texts)
    up, down = np.triu(np.ones_like(matrix)), np.tril(np.ones_like(matrix))
    won, lost = (matrix > 0.5) & differ, (matrix < 0.5) & differ

    def triples(kind: NDArray[np.bool_]) -> int:
        """Σ over i < j < k of kind_ij kind_jk kind_ki; the diagonal is no response that differs."""
        above, below = kind * up, kind * down
        return int(((above @ above) * below.T).sum())

    return triples(won) + triples(lost), triples(won | lost)


def longer_wins(wins: Wins, lengths: Sequence[int] | NDArray[np.int64], texts: Sequence[Hashable]) -> float | None:
    """Mean probability that the longer of two responses wins; ½ without a bias, None without such a pair.

    Longer is who said more tokens itself, whatever the other side of a conversation said. Equal texts are no such pair:
    their numbers of tokens may differ by the end token, which no judge sees. Of a pair the entry above the diagonal is
    read.
    """
    matrix, tokens = _matrix(wins), np.asarray(lengths)
    i, j = np.nonzero(np.triu(_differ(texts) & (tokens[:, None] != tokens) & ~np.isnan(matrix)))
    if not len(i):
        return None
    return float(np.where(tokens[i] > tokens[j], matrix[i, j], 1 - matrix[i, j]).mean())


def unanswered(wins: Wins, texts: Sequence[Hashable]) -> tuple[int, int]:
    """How many pairs of different responses have no win rate, and of how many: equal texts are never asked about."""
    asked = np.isnan(_matrix(wins)[np.triu(_differ(texts))])
    return int(asked.sum()), len(asked)


def _matrix(wins: Wins) -> Array:
    """NaN for None."""
    matrix = np.array(wins, dtype=np.float64)
    return matrix if matrix.ndim == 2 else np.empty((0, 0))


def _differ(texts: Sequence[Hashable]) -> NDArray[np.bool_]:
    """(K, K): whether two responses are different texts."""
    numbers = {text: k for k, text in enumerate(texts)}
    places = np.array([numbers[text] for text in texts], dtype=np.int64)
    return np.asarray(places[:, None] != places)
