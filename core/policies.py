"""Policies in log space: normalization, the mirror step that every rule is made of, and distances between policies.

Shapes: a log-policy is (..., n), the last axis runs over the n responses of one prompt and the leading axes over
contexts, games or replicates. -inf is probability zero; at least one response per row must have positive probability.
Arrays may come from any library with the array API (numpy, torch, array-api-strict); float64 in `tabular`.
"""

from collections.abc import Sequence
from typing import Any

from array_api_compat import array_namespace

Array = Any
"""An array of any library that follows the array API."""


def logsumexp(values: Array) -> Array:
    """log Σ_y exp(values_y) over the last axis, kept as an axis of length one.

    Parameters
    ----------
    values : (..., n)
        -inf entries are allowed, a row of nothing but -inf is not.

    Returns
    -------
    (..., 1)
    """
    xp = array_namespace(values)
    top = xp.max(values, axis=-1, keepdims=True)
    return top + xp.log(xp.sum(xp.exp(values - top), axis=-1, keepdims=True))


def log_normalize(logits: Array) -> Array:
    """Log-policy of unnormalized logits: logits − log Σ_y exp(logits_y), shape (..., n)."""
    xp = array_namespace(logits)
    # The largest logit is taken away first: adding it to the logarithm would cost the digits of a large one.
    centred = logits - xp.max(logits, axis=-1, keepdims=True)
    return centred - xp.log(xp.sum(xp.exp(centred), axis=-1, keepdims=True))


def mirror_step(base: Sequence[tuple[float, Array]], gains: Sequence[tuple[float, Array]]) -> Array:
    """The exact KL mirror step, an affine map in log space.

    Solves argmax_π Σ_j b_j ⟨π, g_j⟩ − Σ_i a_i KL(π ‖ π_i) with Σ_i a_i = 1, whose solution is::

        log π(y) = Σ_i a_i log π_i(y) + Σ_j b_j g_j(y) − log Z

    Parameters
    ----------
    base : sequence of (a_i, log π_i), each (..., n)
        Coefficients a_i >= 0 that add up to one. A policy with coefficient 0 is skipped, so that its zero
        probabilities do not turn into 0 · (−inf).
    gains : sequence of (b_j, g_j), each (..., n)
        Payoffs and their weights; weight 0 is skipped.

    Returns
    -------
    (..., n)
        The normalized log-policy.

    Notes
    -----
    Source: SPPO (2405.00675) eq. 4.1 for one base policy; every rule of `nashpo.core.rules` is such a map.
    """
    logits = None
    for coefficient, term in (*base, *gains):
        if coefficient != 0:
            logits = coefficient * term if logits is None else logits + coefficient * term
    if logits is None:
        raise ValueError("a mirror step needs at least one base policy with a positive coefficient")
    return log_normalize(logits)


def log_partition(log_policy: Array, gain: Array, weight: float = 1.0) -> Array:
    """log Z = log E_{y∼π} exp(weight · g(y)), the normalizer of one step from π; shape (...)."""
    xp = array_namespace(log_policy)
    return xp.squeeze(logsumexp(log_policy + weight * gain), axis=-1)


def log_from_probabilities(policy: Array) -> Array:
    """log π with log 0 = −inf and no warning; shape (..., n)."""
    xp = array_namespace(policy)
    positive = policy > 0
    return xp.where(positive, xp.log(xp.where(positive, policy, xp.ones_like(policy))), -xp.inf)


def kl(log_policy: Array, log_other: Array) -> Array:
    """Kullback–Leibler divergence KL(π ‖ ρ) = Σ_y π(y) (log π(y) − log ρ(y)) in nats, shape (...).

    0 log 0 counts as 0; a response that π plays and ρ does not makes it +inf.
    """
    xp = array_namespace(log_policy, log_other)
    played = log_policy > -xp.inf
    safe = xp.where(played, log_policy, xp.zeros_like(log_policy))
    other = xp.where(played, log_other, xp.zeros_like(log_other))
    weight = xp.where(played, xp.exp(safe), xp.zeros_like(safe))
    return xp.sum(weight * (safe - other), axis=-1)


def total_variation(policy: Array, other: Array) -> Array:
    """Total variation distance ½ Σ_y |π(y) − ρ(y)| of two probability vectors, shape (...)."""
    xp = array_namespace(policy, other)
    return xp.sum(xp.abs(policy - other), axis=-1) / 2


def largest_log_weight(log_policy: Array, mask: Array | None = None) -> Array:
    """D = max_y log 1/π(y) in nats over the responses that exist: the diameter of every bound; shape (...)."""
    xp = array_namespace(log_policy)
    surprise = -log_policy
    if mask is not None:
        surprise = xp.where(mask, surprise, xp.zeros_like(surprise))
    return xp.max(surprise, axis=-1) + 0.0  # a certain response has log 1 = 0, whose negative is −0
