"""The losses of `nashpo.core.losses` on a sample, ready to be minimized by a table or by a parametric policy.

Shapes: m places (`nashpo.tabular.samples.Coordinates`); ``log_base`` (..., m) with −inf where there is nothing, and
``change`` (..., m) = log π − log base up to a constant. An objective knows its minimizer over tables (`minimize`), and
its value, gradient and curvature in ``change`` (`expand`) for everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from nashpo.core.losses import logistic, pairwise_square, pointwise_square
from nashpo.core.policies import log_normalize, logsumexp
from nashpo.tabular.minimizers import minimize_logistic, minimize_pairwise, minimize_pointwise
from nashpo.tabular.samples import Coordinates, Sample


class Expansion(NamedTuple):
    """Value (...), gradient (..., m) and second derivatives (..., m, m) of a loss in the logits."""

    value: np.ndarray
    gradient: np.ndarray
    curvature: np.ndarray


class Objective(Protocol):
    """A loss on a sample."""

    def minimize(self, log_base: np.ndarray) -> np.ndarray:
        """The minimizing log-policy over tables, (..., m)."""
        ...

    def expand(self, log_base: np.ndarray, change: np.ndarray) -> Expansion:
        """The loss around log π = log_base + change − log Z."""
        ...


@dataclass(frozen=True)
class Points:
    """Σ_y weights(y) · pointwise_square(log ratio, target).

    log Z, and with it the log-ratio, is that of the responses of positive weight: both policies are taken conditional
    on them. (With all responses seen this is the plain loss.) It is not convex where the mean residual is positive.
    """

    weights: np.ndarray
    target: np.ndarray

    def minimize(self, log_base: np.ndarray) -> np.ndarray:
        return minimize_pointwise(_normalized(log_base), self.target, self.weights)

    def expand(self, log_base: np.ndarray, change: np.ndarray) -> Expansion:
        weights = np.where(log_base > -np.inf, self.weights, 0.0)
        seen = weights > 0
        none = ~seen.any(axis=-1, keepdims=True)
        base = log_normalize(np.where(seen | none, np.where(none, 0.0, log_base), -np.inf))
        fitted = log_normalize(np.where(seen | none, base + change, -np.inf))
        ratio = np.where(seen, fitted - np.where(seen, base, 0.0), 0.0)
        residual = np.where(seen, ratio - self.target, 0.0)
        value = np.sum(weights * pointwise_square(ratio, self.target), axis=-1)
        pull = weights * residual
        total = np.sum(pull, axis=-1, keepdims=True)
        policy = np.exp(fitted)
        gradient = 2 * (pull - policy * total)
        eye = np.eye(weights.shape[-1])
        cross = weights[..., :, None] * policy[..., None, :]
        outer = policy[..., :, None] * policy[..., None, :]
        squares = weights[..., None] * eye - cross - np.swapaxes(cross, -1, -2)
        squares = squares + np.sum(weights, axis=-1)[..., None, None] * outer
        bend = total[..., None] * (policy[..., None] * eye - outer)
        return Expansion(value, gradient, 2 * (squares - bend))


@dataclass(frozen=True)
class Pairs:
    """Σ_ij weights_ij · pairwise_square(lr_i, lr_j, target_ij)."""

    weights: np.ndarray
    target: np.ndarray

    def minimize(self, log_base: np.ndarray) -> np.ndarray:
        return minimize_pairwise(log_base, self.target, self.weights)

    def expand(self, log_base: np.ndarray, change: np.ndarray) -> Expansion:
        weights = _usable(log_base, self.weights)
        left, right = change[..., :, None], change[..., None, :]
        value = np.sum(weights * pairwise_square(left, right, self.target), axis=(-1, -2))
        pull = weights * (left - right - self.target)
        gradient = 2 * np.sum(pull - np.swapaxes(pull, -1, -2), axis=-1)
        return Expansion(value, gradient, 2 * _laplacian(weights + np.swapaxes(weights, -1, -2)))


@dataclass(frozen=True)
class Preferences:
    """Σ_ij weights_ij (p_ij logistic(lr_i, lr_j, β) + (1 − p_ij) logistic(lr_j, lr_i, β)), p_ij the label of i ≻ j."""

    weights: np.ndarray
    preferred: np.ndarray
    beta: float

    @property
    def wins(self) -> np.ndarray:
        """How often i was preferred to j, from pairs in either order."""
        lost = self.weights * (1 - self.preferred)
        return self.weights * self.preferred + np.swapaxes(lost, -1, -2)

    def minimize(self, log_base: np.ndarray) -> np.ndarray:
        return minimize_logistic(log_base, self.wins, np.ones(self.weights.shape), self.beta)

    def expand(self, log_base: np.ndarray, change: np.ndarray) -> Expansion:
        wins = _usable(log_base, self.wins)
        left, right = change[..., :, None], change[..., None, :]
        value = np.sum(wins * logistic(left, right, self.beta), axis=(-1, -2))
        surprise = 0.5 - 0.5 * np.tanh(self.beta * (left - right) / 2)
        pull = wins * surprise
        gradient = -self.beta * np.sum(pull - np.swapaxes(pull, -1, -2), axis=-1)
        bend = self.beta**2 * wins * surprise * np.swapaxes(surprise, -1, -2)
        return Expansion(value, gradient, _laplacian(bend + np.swapaxes(bend, -1, -2)))


def _normalized(log_base: np.ndarray) -> np.ndarray:
    return log_base - logsumexp(log_base)


def _usable(log_base: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pair weights without those of responses that the base does not play."""
    there = log_base > -np.inf
    return np.where(there[..., :, None] & there[..., None, :], weights, 0.0)


def _laplacian(weights: np.ndarray) -> np.ndarray:
    """Σ_j weights_ij (x_i − x_j) as a matrix."""
    degree = np.sum(weights, axis=-1)
    return degree[..., None] * np.eye(weights.shape[-1]) - weights


def half(log_base: np.ndarray, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """SPPO's normalizer: η/2, which centred values contain already."""
    return np.zeros((*values.shape[:-1], 1))


def log_z(log_base: np.ndarray, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """log Σ_y base(y) e^values(y) over the sampled responses, base conditional on them."""
    seen = (weights > 0) & (log_base > -np.inf)
    none = ~seen.any(axis=-1, keepdims=True)
    base = np.where(seen, log_base, np.where(none, 0.0, -np.inf))
    return logsumexp(base + np.where(seen, values, 0.0)) - logsumexp(base)


NORMALIZERS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {"half": half, "log_z": log_z}
"""What a pointwise target subtracts in the place of log Z."""


def pointwise(sample: Sample, places: Coordinates, log_base: np.ndarray, normalizer: str) -> Points:
    """log ratio on η (P̂ − ½), or on η P̂ − log Z: the loss of SPPO."""
    weights, values = places.points(sample)
    return Points(weights, values - NORMALIZERS[normalizer](log_base, weights, values))


def pairwise(sample: Sample, places: Coordinates, log_base: np.ndarray, normalizer: str) -> Pairs:
    """Differences of log-ratios on differences of estimated payoffs, η (P̂(y) − P̂(y'))."""
    return Pairs(*places.pairs(sample, sample.differences))


def labelled(sample: Sample, places: Coordinates, log_base: np.ndarray, normalizer: str) -> Pairs:
    """Differences of log-ratios on the pair's own label: ±η/2 if hard, η (P(y ≻ y') − ½) if soft (ONPO, INPO, IPO)."""
    return Pairs(*places.pairs(sample, sample.labels))


def preferred(sample: Sample, places: Coordinates, log_base: np.ndarray, normalizer: str) -> Preferences:
    """The loss of DPO with β = 1/η."""
    if sample.step is None:
        raise ValueError(
            "loss = 'logistic' needs a single payoff that is judged among the responses themselves (DPO's reward)"
        )
    weights, labels = places.pairs(sample, sample.labels / sample.step)
    return Preferences(weights, 0.5 + labels, 1 / sample.step)


LOSSES: dict[str, Callable[[Sample, Coordinates, np.ndarray, str], Objective]] = {
    "pointwise": pointwise,
    "pairwise": pairwise,
    "labelled": labelled,
    "logistic": preferred,
}
"""Loss -> its objective on a sample."""

ACCEPTS = {"pointwise": "win", "pairwise": "win", "labelled": "win", "logistic": "reward"}
"""Loss -> the kind of payoff that its minimizer adds: a reward is what the logistic loss finds."""
