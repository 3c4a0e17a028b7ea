"""Claims about training on pairs and samples, by exact enumeration of every pair and of every sample of K responses.

Shapes: a game is P (n, n), the sampling policy π (n,); M policies are tried as log-ratios h = log π_θ/π_t, (M, n).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from nashpo.core.losses import labelled_square, pairwise_square
from nashpo.core.theorems import Status
from nashpo.tabular.claims.claim import Claim, Ensemble, Floats, Tally
from nashpo.tabular.claims.ensembles import SEED, cohort_numbers, draw_cohort, log_uniform

POLICIES = 8
IMAGINARY = 1e-40
"""Step of the complex-step derivative Im f(x + i·step)/step, which has no cancellation and no error but rounding."""


@dataclass(frozen=True)
class Pairs:
    """Games of n responses whose policy pairs are drawn from, and policies to fit.

    Attributes
    ----------
    P : (G, n, n)
    policy : (G, n)
        π_t.
    eta : float
    log_ratios : (M, n)
        log π_θ/π_t of the policies that are tried, up to a constant.
    """

    P: Floats
    policy: Floats
    eta: float
    log_ratios: Floats


def _pairs(quick: bool, index: int) -> Pairs:
    rng = np.random.default_rng([SEED, 14, index])
    games = draw_cohort(int(rng.integers(2, 8)), rng)
    log_ratios = log_uniform(rng, 0.1, 3) * rng.standard_normal((POLICIES, games.game.n))
    return Pairs(games.game.P, games.start, log_uniform(rng, 0.01, 10), log_ratios)


PAIRS = Ensemble("all pairs", lambda quick: [partial(_pairs, quick, i) for i in cohort_numbers(quick, 120, 20)])

Loss = Callable[[Floats], Floats]


def labelled_loss(P: Floats, policy: Floats, eta: float) -> Loss:
    """E (h_w − h_l − η/2)² over y, y' ~ π and over which of them wins; (..., n) log-ratios to (...)."""
    pairs = policy[:, None] * policy[None, :]

    def loss(h: Floats) -> Floats:
        a, b = h[..., :, None], h[..., None, :]
        wins, losses = labelled_square(a, b, eta / 2), labelled_square(b, a, eta / 2)
        return np.sum(pairs * (P * wins + P.T * losses), axis=(-2, -1))

    return loss


def regression_loss(target: Floats, policy: Floats) -> Loss:
    """E (h(y) − h(y') − target(y, y'))² over y, y' ~ π; (..., n) log-ratios to (...)."""
    pairs = policy[:, None] * policy[None, :]

    def loss(h: Floats) -> Floats:
        return np.sum(pairs * pairwise_square(h[..., :, None], h[..., None, :], target), axis=(-2, -1))

    return loss


def gradient(loss: Loss, h: Floats) -> Floats:
    """∂ loss/∂h, (M, n), by complex steps."""
    steps = h[:, None, :] + 1j * IMAGINARY * np.eye(h.shape[-1])
    return np.imag(loss(steps)) / IMAGINARY


def labelled_pairs(sample: Pairs, tally: Tally) -> None:
    """Tolerance 1e-12 of 1 + the loss: sums of at most 100 products."""
    tally.seen(len(sample.P), POLICIES)
    eta, h = sample.eta, sample.log_ratios
    for P, policy in zip(sample.P, sample.policy, strict=True):
        g = P @ policy
        difference = g[:, None] - g[None, :]
        exact = regression_loss(eta * difference, policy)
        pairs = policy[:, None] * policy[None, :]
        offset = eta**2 * np.sum(pairs * difference**2)
        labelled, soft = labelled_loss(P, policy, eta), regression_loss(eta * (P - 0.5), policy)
        for loss, constant in (
            (labelled, eta**2 / 4 - offset),
            (soft, eta**2 * np.sum(pairs * (P - 0.5) ** 2) - offset),
        ):
            scale = 1 + eta**2 + exact(h)
            tally.identity(loss(h) - exact(h), constant, scale=scale, rtol=1e-12)
            tally.identity(gradient(loss, h), gradient(exact, h), scale=scale[:, None], rtol=1e-12)


@dataclass(frozen=True)
class Samples:
    """Games whose every sample of K responses is enumerated: P (G, n, n), policy (G, n)."""

    P: Floats
    policy: Floats
    K: int


def _samples(quick: bool, index: int) -> Samples:
    rng = np.random.default_rng([SEED, 15, index])
    K = 2 + index % 4
    games = draw_cohort(int(rng.integers(2, 5 if quick or K > 4 else 6)), rng)
    return Samples(games.game.P, games.start, K)


SAMPLES = Ensemble("all samples", lambda quick: [partial(_samples, quick, i) for i in cohort_numbers(quick, 48, 16)])


def expected_estimate(P: Floats, policy: Floats, K: int) -> Floats:
    """E[P̂(y_1) | y_1 = y] over all n^K samples y_1 … y_K ~ π, with P̂(y_i) = (1/K) Σ_k P(y_i, y_k), (n,)."""
    n = len(policy)
    sample = np.indices((n,) * K).reshape(K, -1)
    estimate = P[sample[0], sample].mean(axis=0)
    weight = policy[sample[1:]].prod(axis=0)
    return np.bincount(sample[0], weight * estimate, n).astype(np.float64)


def shrinkage(sample: Samples, tally: Tally) -> None:
    """Tolerance 1e-12 of a win rate: sums of at most 5^5 products."""
    tally.seen(len(sample.P), 1)
    K = sample.K
    for P, policy in zip(sample.P, sample.policy, strict=True):
        expected = expected_estimate(P, policy, K)
        tally.identity(expected - 0.5, (K - 1) / K * (P @ policy - 0.5), scale=1.0, rtol=1e-12)


CLAIMS = (
    Claim(
        "losses.labelled-pairs",
        "E(h_w − h_l − η/2)² = E(h − h' − η(g − g'))² + const, in value and gradient, for pairs drawn i.i.d. from π_t;"
        " so with soft labels",
        "INPO (2407.00617) Proposition 6; ONPO (2502.16852) Algorithm 1",
        "INPO Prop 6",
        Status.PUBLISHED,
        (PAIRS,),
        labelled_pairs,
    ),
    Claim(
        "sampling.shrinkage",
        "E[P̂(y) − ½] = ((K − 1)/K)(P(y ≻ π) − ½) for SPPO's estimate from K responses, y among them",
        "derived; SPPO (2405.00675) eq. 4.5",
        "SPPO eq. 4.5",
        Status.DERIVED,
        (SAMPLES,),
        shrinkage,
    ),
)
