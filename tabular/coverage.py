"""How well data cover what a policy plays: the constants that decide what can be learned from them.

Shapes: policies (..., n) over prompts (...), with ``weights`` of the prompts; every constant is one number per data
set, an average or a maximum over prompts. A constant is infinite where something is played that the data never show.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nashpo.tabular.preferences import PreferenceData

_CHANCE = 0.05


@dataclass(frozen=True)
class Coverage:
    """Coverage of a comparator u by a distribution μ of responses.

    Attributes
    ----------
    single_policy : (...)
        C_∞ = max_{x, y: u(y) > 0} u(y)/μ(y), single-policy concentrability.
    second_moment : (...)
        C_2 = E_x E_{y∼u} u(y)/μ(y) = 1 + χ² <= C_∞, its form in variances: the error of a mean under u when it is
        estimated from samples of μ. SPAC's λ ∝ √(C·N) takes this one.
    chi_square : (...)
        χ²(u ‖ μ) = Σ_y (u − μ)²/μ = C_2 − 1, averaged over prompts.
    all_policy : (...)
        max_{x, y} 1/μ(y), what covers every comparator.
    """

    single_policy: np.ndarray
    second_moment: np.ndarray
    chi_square: np.ndarray
    all_policy: np.ndarray


def coverage(
    comparator: Any, behavior: Any, *, weights: Any = None, mask: Any = None, independent: int = 0
) -> Coverage:
    """Coverage of a comparator by a behavior policy.

    Parameters
    ----------
    comparator, behavior : (..., n)
        u and μ, probabilities that broadcast against each other.
    weights : (...), optional
        Weights of the prompts; uniform by default. Prompts of weight 0 are left out.
    mask : (..., n), optional
        True where a response exists.
    independent : int
        Number of leading axes that are kept (replicates); the others are prompts.

    Raises
    ------
    ValueError
        Shapes that do not fit, negative entries, weights that are negative or of zero sum.
    """
    u, mu = _policies(comparator, behavior)
    exists = np.ones(u.shape, bool) if mask is None else np.broadcast_to(np.asarray(mask, bool), u.shape)
    prompts = u.shape[independent:-1]
    axes = tuple(range(independent, u.ndim - 1))
    share = np.broadcast_to(np.asarray(1.0 if weights is None else weights, np.float64), prompts)
    if not np.all(np.isfinite(share)) or np.min(share) < 0 or np.sum(share) == 0:
        raise ValueError("weights of the prompts must be >= 0, finite, and not all 0")
    share = share / share.sum()
    there = exists & (share > 0)[..., None]

    played = there & (u > 0)
    worst = np.max(np.where(played, _ratio(u, mu), 0.0), axis=(*axes, -1))
    second = np.sum(share * np.sum(np.where(played, _ratio(u * u, mu), 0.0), axis=-1), axis=axes)
    largest = np.max(np.where(there, _ratio(np.ones_like(u), mu), 0.0), axis=(*axes, -1))
    return Coverage(np.asarray(worst), np.asarray(second), np.asarray(second - 1.0), np.asarray(largest))


def empirical_coverage(data: PreferenceData, comparator: Any) -> Coverage:
    """Coverage of a comparator by the data: μ(y) is the share of the 2N_x places in pairs of prompt x that y takes.

    Only informative pairs count: ties take places and show nothing, so that μ adds up to 1 minus the share of ties, and
    C_2 − 1 is then above χ². With pairs drawn from a behavior policy, μ tends to behavior(y)·(1 − behavior(y)).

    Parameters
    ----------
    data : PreferenceData
    comparator : (..., n)

    Raises
    ------
    ValueError
        A comparator that does not fit the data.
    """
    return coverage(comparator, seen_share(data), weights=data.weights, mask=data.exists, independent=data.independent)


def seen_share(data: PreferenceData) -> np.ndarray:
    """seen / 2N_x, (..., n): zero where a response was in no informative pair."""
    pairs = data.wins.sum(axis=(-2, -1)) + data.ties
    return data.seen / np.where(pairs > 0, 2 * pairs, 1.0)[..., None]


def rare_responses(data: PreferenceData, threshold: Any = None) -> np.ndarray:
    """Which responses are too rare to trust: in fewer informative pairs than ``threshold``, bool (..., n).

    Parameters
    ----------
    data : PreferenceData
    threshold : float, optional
        By default log₂(k/0.05), where k is the number of responses of the data set: of k responses that are as good as
        those they met, the chance that one with that many pairs has won them all is then at most 5 %.

    Raises
    ------
    ValueError
        threshold < 0.
    """
    if threshold is None:
        axes = tuple(range(data.independent, data.wins.ndim - 1))
        threshold = np.log2(data.exists.sum(axis=axes, keepdims=True) / _CHANCE)
    elif not threshold >= 0:
        raise ValueError(f"threshold = {threshold:g} must be >= 0: it is a number of pairs")
    return data.exists & (data.seen < threshold)


def _policies(comparator: Any, behavior: Any) -> tuple[np.ndarray, np.ndarray]:
    u, mu = np.asarray(comparator, np.float64), np.asarray(behavior, np.float64)
    try:
        shape = np.broadcast_shapes(u.shape, mu.shape)
    except ValueError:
        raise ValueError(f"the comparator has shape {u.shape}, which does not fit {mu.shape}") from None
    for name, policy in (("comparator", u), ("behavior", mu)):
        if policy.ndim == 0 or not np.all(np.isfinite(policy)) or policy.min() < 0:
            raise ValueError(f"the {name} has an entry that is negative or not finite: probabilities are needed")
    return np.broadcast_to(u, shape), np.broadcast_to(mu, shape)


def _ratio(numerator: np.ndarray, mu: np.ndarray) -> np.ndarray:
    return np.where(mu > 0, numerator / np.where(mu > 0, mu, 1.0), np.inf)
