"""Judges that err: random flips of labels, and an adversary with a budget.

Shapes: labels of the M comparisons of one response set, ``labels`` (..., M) in [0, 1], 1 where the first response won;
``margin`` (..., M) is how much better the first response truly is, P(y ≻ π) − P(y' ≻ π) against the opponent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Noise(Protocol):
    """What a judge's error does to labels."""

    def corrupt(self, labels: np.ndarray, margin: Callable[[], np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Labels (..., M) after the error; a hard label that comes back inside (0, 1) is a coin to be tossed."""
        ...


def _check_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f"rate = {rate} must lie in [0, 1]: it is the share of labels that are flipped")


@dataclass(frozen=True)
class Faithful:
    """A judge without error."""

    def corrupt(self, labels: np.ndarray, margin: Callable[[], np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """The labels."""
        return labels


@dataclass(frozen=True)
class RandomFlips:
    """Each label is flipped with probability ``rate``, independently.

    A soft label p becomes its expectation, (1 − rate) p + rate (1 − p).
    Expected payoffs shrink to (1 − 2 rate) (P − ½), so that the step is that of η (1 − 2 rate).

    Parameters
    ----------
    rate : float
        In [0, 1]; beyond ½ the judge says the opposite.
    """

    rate: float

    def __post_init__(self) -> None:
        _check_rate(self.rate)

    def corrupt(self, labels: np.ndarray, margin: Callable[[], np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """(1 − rate) labels + rate (1 − labels)."""
        return labels + self.rate * (1 - 2 * labels)


@dataclass(frozen=True)
class AdversarialFlips:
    """An adversary flips up to a share ``rate`` of the labels of each response set, after seeing them and the game.

    It minimizes Σ_i (P̂(y_i) − ½) (P(y_i ≻ π) − ½), the agreement of the estimated payoffs with the true ones, to which
    a comparison contributes (2 label − 1)(P(y_i ≻ π) − P(y_j ≻ π)) up to a factor: it flips the comparisons where that
    is largest, as long as it is positive. These are the wins of truly better responses, the clearest first. A label
    becomes 1 − label, soft or hard. The budget is rate · M per response set, a fraction of a label being a chance.

    Parameters
    ----------
    rate : float
        In [0, 1].
    """

    rate: float

    def __post_init__(self) -> None:
        _check_rate(self.rate)

    def corrupt(self, labels: np.ndarray, margin: Callable[[], np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """The labels with the most informative ones flipped."""
        agreement = (2 * labels - 1) * margin()
        budget = np.floor(self.rate * labels.shape[-1] + rng.random((*labels.shape[:-1], 1)))
        rank = np.argsort(np.argsort(-agreement, axis=-1, kind="stable"), axis=-1, kind="stable")
        return np.where((rank < budget) & (agreement > 0), 1 - labels, labels)
