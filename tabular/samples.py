"""What one stage learned from its responses, and its reduction to the few responses that were drawn.

Shapes: L responses per context and replicate, M pairs of them; ``responses, values, points`` (..., L),
``left, right, labels, pair_weights`` (..., M). Coordinates count the m = min(L, n) places of `Coordinates`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sample:
    """Responses with their estimated gains, and pairs of them with labels.

    Attributes
    ----------
    responses : (..., L) int
        Which responses; repetitions count as often as they occur.
    values : (..., L)
        Σ_j b_j (P̂_j(y) − ½), the stage's weighted payoffs in nats.
    points : (..., L)
        Weights of the responses in a pointwise loss, summing to 1.
    left, right : (..., M) int
        Places in ``responses`` of the members of each pair.
    differences : (..., M)
        Estimated gain of the left one minus that of the right one, in nats: η (P̂(y) − P̂(y')).
    labels : (..., M)
        What the pair itself says about that difference, in nats: η (label − ½), where the label is 1 if the left one
        won (its win rate, if soft).
    pair_weights : (..., M)
        Weights of the pairs, summing to 1.
    step : float or None
        The only payoff's weight b, where there is a single payoff and it is judged among the responses themselves.
    """

    responses: np.ndarray
    values: np.ndarray
    points: np.ndarray
    left: np.ndarray
    right: np.ndarray
    differences: np.ndarray
    labels: np.ndarray
    pair_weights: np.ndarray
    step: float | None = None

    @classmethod
    def enumerated(cls, on: np.ndarray, values: np.ndarray, labels: np.ndarray, step: float | None = None) -> Sample:
        """All n responses with the probabilities of ``on`` (..., n) in place of draws: the population's loss.

        Parameters
        ----------
        on, values : (..., n)
        labels : (..., n, n)
        """
        lead, n = np.broadcast_shapes(on.shape, values.shape)[:-1], on.shape[-1]
        left, right = (np.broadcast_to(k.ravel(), (*lead, n * n)) for k in np.indices((n, n)))
        on, values = (np.broadcast_to(x, (*lead, n)) for x in (on, values))
        return cls(
            responses=np.broadcast_to(np.arange(n), (*lead, n)),
            values=values,
            points=on,
            left=left,
            right=right,
            differences=pick(values, left) - pick(values, right),
            labels=np.broadcast_to(labels, (*lead, n, n)).reshape(*lead, n * n),
            pair_weights=(on[..., :, None] * on[..., None, :]).reshape(*lead, n * n),
            step=step,
        )


def pick(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """values[..., places], with the same leading axes in both."""
    return np.take_along_axis(values, places, axis=-1)


def tally(places: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    """Sum of the weights that fall on each place: (..., L) → (..., size)."""
    rows = int(np.prod(places.shape[:-1]))
    flat = places.reshape(rows, -1) + size * np.arange(rows)[:, None]
    counts = np.bincount(flat.ravel(), np.broadcast_to(weights, places.shape).ravel(), rows * size)
    return counts.reshape(*places.shape[:-1], size)


class Coordinates:
    """Places for the distinct responses of a sample: their first occurrences, or all n where that is fewer.

    Fitting five draws among a thousand responses then costs systems of size five.

    Parameters
    ----------
    responses : (..., L) int
    n : int
    """

    def __init__(self, responses: np.ndarray, n: int) -> None:
        count = responses.shape[-1]
        self.n = n
        self.size = min(count, n)
        if count < n:
            same = responses[..., :, None] == responses[..., None, :]
            self.of_draw = np.argmax(same, axis=-1)
            self.responses = responses
            self.real = self.of_draw == np.arange(count)
        else:
            self.of_draw = responses
            self.responses = np.broadcast_to(np.arange(n), (*responses.shape[:-1], n))
            self.real = np.ones(self.responses.shape, dtype=bool)

    def gather(self, log_policy: np.ndarray) -> np.ndarray:
        """(..., n) → (..., m), −inf at places that repeat a response."""
        return np.where(self.real, pick(log_policy, self.responses), -np.inf)

    def scatter(self, log_policy: np.ndarray, local: np.ndarray) -> np.ndarray:
        """``log_policy`` (..., n) with the places' responses overwritten by ``local`` (..., m)."""
        lead = (int(np.prod(local.shape[:-1])), -1)
        result = log_policy.copy()
        rows, places = np.nonzero(self.real.reshape(lead))
        result.reshape(lead[0], self.n)[rows, self.responses.reshape(lead)[rows, places]] = local.reshape(lead)[
            rows, places
        ]
        return result

    def points(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Weights and mean values of the places, (..., m) each."""
        weights = tally(self.of_draw, sample.points, self.size)
        sums = tally(self.of_draw, sample.points * sample.values, self.size)
        return weights, _ratio(sums, weights)

    def pairs(self, sample: Sample, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights and mean targets of the ordered pairs of places, (..., m, m) each, of targets (..., M)."""
        cell = pick(self.of_draw, sample.left) * self.size + pick(self.of_draw, sample.right)
        weights = tally(cell, sample.pair_weights, self.size**2)
        means = _ratio(tally(cell, sample.pair_weights * targets, self.size**2), weights)
        square = (*weights.shape[:-1], self.size, self.size)
        return weights.reshape(square), means.reshape(square)


def _ratio(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.where(weights > 0, sums / np.where(weights > 0, weights, 1.0), 0.0)
