"""How a judge's verdicts are read: soft or hard labels, the divisor of an average, and which responses enter the loss.

Shapes: comparisons (...), response sets (..., B, K) of estimated gains; B sets of K responses, M pairs per set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


class SoftLabels:
    """The judge tells its win rate."""

    def draw(self, win_rates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The win rates."""
        return win_rates

    def declared(self, excess: np.ndarray) -> np.ndarray:
        """Label − ½ of a pair whose first response was chosen as the better one: as judged."""
        return excess


class HardLabels:
    """The judge tells a winner: one Bernoulli(P) coin per comparison."""

    def draw(self, win_rates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """1 where the first response won, else 0."""
        return (rng.random(win_rates.shape) < win_rates).astype(np.float64)

    def declared(self, excess: np.ndarray) -> np.ndarray:
        """Label − ½ of a pair whose first response was chosen as the better one: it won."""
        return np.full_like(excess, 0.5)


LABELS: dict[str, SoftLabels | HardLabels] = {"soft": SoftLabels(), "hard": HardLabels()}
ESTIMATES: dict[str, Callable[[int], int]] = {"self": lambda K: K, "unbiased": lambda K: K - 1}
"""What the sum of a response's comparisons is divided by, where its opponents are the other responses of its set."""


@dataclass(frozen=True)
class Chosen:
    """The places (..., B, M) of each pair's members in its response set, and the points' weights (..., B, K)."""

    left: np.ndarray
    right: np.ndarray
    weight: np.ndarray
    points: np.ndarray
    declared: bool = False


def _fixed(gains: np.ndarray, left: np.ndarray, right: np.ndarray) -> Chosen:
    lead, K = gains.shape[:-1], gains.shape[-1]
    points = np.bincount(np.concatenate([left, right]), minlength=K) / (2 * len(left))
    left, right = (np.broadcast_to(side, (*lead, len(side))) for side in (left, right))
    return Chosen(left, right, np.full(left.shape, 1 / left.shape[-1]), np.broadcast_to(points, gains.shape))


def every_pair(gains: np.ndarray) -> Chosen:
    """All K (K − 1)/2 pairs, which are independent of the labels but not of each other."""
    return _fixed(gains, *np.triu_indices(gains.shape[-1], 1))


def independent_pairs(gains: np.ndarray) -> Chosen:
    """The ⌊K/2⌋ disjoint pairs (1, 2), (3, 4), …; a last one left over serves the estimates only."""
    first = np.arange(0, gains.shape[-1] - 1, 2)
    return _fixed(gains, first, first + 1)


def best_and_worst(gains: np.ndarray) -> Chosen:
    """The responses of largest and of smallest estimated gain; nothing where all are equal."""
    best, worst = (choose(gains, axis=-1)[..., None] for choose in (np.argmax, np.argmin))
    weight = (best != worst).astype(np.float64)
    points = np.zeros(gains.shape)
    for place in (best, worst):
        np.put_along_axis(points, place, weight / 2, axis=-1)
    return Chosen(best, worst, weight, points, declared=True)


PAIRS: dict[str, Callable[[np.ndarray], Chosen]] = {
    "all": every_pair,
    "iid": independent_pairs,
    "best_worst": best_and_worst,
}
