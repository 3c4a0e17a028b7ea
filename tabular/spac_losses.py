"""SPAC's step as the minimizer of a loss over softmax policies, and how far the practical loss is from it.

With f = (1/η) log(π/π_t) the critic's objective becomes a loss of the new policy alone,

    (E_{π_t} − E_ref) (1/η) log(π/π_t) + λ L_D((1/η) log(π/π_t)),

since a constant added to f changes nothing: the gauge Σ_y π_t(y) e^{η f(y)} = 1 is no restriction. Its minimizer over
all policies is therefore π = π_t e^{η f_t} / Z with f_t the critic over all functions: critic and actor step are one
minimization. It is SPAC's exact step wherever the box [0, R] does not bind (up to a shift), and it exists only if the
data hold every response against the linear term. The practical loss leaves out −E_ref and passes the log-ratio through
−log σ(−·); then the minimizer is another policy.

Shapes: one data set of one prompt: log-policies and policies (n,).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nashpo.core.losses import identity_term, log_sigmoid_term, spac_practical
from nashpo.core.policies import Array, log_normalize, mirror_step, total_variation
from nashpo.core.rules.spac import SPAC
from nashpo.core.schedules import value
from nashpo.tabular.critic import Box
from nashpo.tabular.data_policies import policy_on, reference_on
from nashpo.tabular.preferences import PreferenceData

Smoothing = Callable[[Array], Array]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(x / 2)


SLOPES: dict[Smoothing, Callable[[np.ndarray], np.ndarray]] = {identity_term: np.ones_like, log_sigmoid_term: _sigmoid}
"""Smoothings of the critic term with their derivatives."""
_GRADIENT = 1e-11
_FAR = np.array([-1e3])
_RESTARTS = 6
_MOST = 16


@dataclass(frozen=True)
class PracticalLoss:
    """E_D of `spac_practical` with an expectation over responses in the place of the self-generated ones.

        lam_pref · E_D[−log σ((lr_w − lr_l)/η)] + lam_critic · Σ_y weights(y) smoothing(lr(y)),   lr = log π/π_t

    Attributes
    ----------
    data : PreferenceData
        One data set of one prompt.
    log_policy : (n,)
        log π_t, of full support.
    eta : float
    lam_pref, lam_critic : float
    smoothing : callable
        One of `SLOPES`.
    weights : (n,)
        π_t for self-generated responses; π_t − ref with `identity_term` is the merged objective of the theory.
    """

    data: PreferenceData
    log_policy: np.ndarray
    eta: float
    lam_pref: float
    lam_critic: float
    smoothing: Smoothing
    weights: np.ndarray

    def __call__(self, logits: np.ndarray) -> tuple[float, np.ndarray]:
        """Loss and gradient at the softmax policy of the logits (n,)."""
        log_new = log_normalize(logits)
        ratio = log_new - self.log_policy
        share = self.data.frequencies
        pairs = share * spac_practical(
            ratio[:, None], ratio[None, :], 0.0 * ratio, 1 / self.eta, self.lam_pref, 0.0, self.smoothing
        )
        loss = float(pairs.sum() + self.lam_critic * self.weights @ self.smoothing(ratio))
        lost = share * _sigmoid((ratio[None, :] - ratio[:, None]) / self.eta) * (self.lam_pref / self.eta)
        slope = lost.sum(axis=0) - lost.sum(axis=1) + self.lam_critic * self.weights * SLOPES[self.smoothing](ratio)
        return loss, slope - np.exp(log_new) * slope.sum()


def steepest_fall(loss: PracticalLoss) -> float:
    """The smallest slope of the loss, per nat, as the responses of some set S lose all their probability.

    lam_pref/η · (frequency of S beating the others) − lam_critic · weights(S) · (slope of the smoothing at −∞), over
    all 2ⁿ − 2 sets; 0 where none is negative. Negative: the loss is unbounded below. Far out the loss is linear between
    such directions, so that no other one can fall.
    """
    n = loss.log_policy.size
    sets = (np.arange(1, 2**n - 1)[:, None] >> np.arange(n)) & 1
    beats = np.einsum("si,ij,sj->s", sets, loss.data.frequencies, 1 - sets, optimize=True)
    falls = loss.lam_critic * SLOPES[loss.smoothing](_FAR)[0] * (sets @ loss.weights)
    return float(np.min(loss.lam_pref / loss.eta * beats - falls, initial=0.0))


def minimize_softmax(loss: PracticalLoss, seed: int = 0) -> np.ndarray:
    """argmin over all policies, (n,) probabilities, by BFGS on logits from π_t and from random starts.

    The merged objective is convex in the logits; with the smoothing it need not be, and the best local minimum is
    returned. Where the infimum lies at infinity (a response that only won, or only lost), it stops where the gradient
    is 1e-11.

    Raises
    ------
    ValueError
        If the loss is unbounded below: without a smoothing it is so as soon as some responses are not held by the
        pairs. Or more than 16 responses, for which that is not checked.
    """
    from scipy.optimize import minimize

    n = loss.log_policy.size
    if n > _MOST:
        raise ValueError(f"{n} responses are too many to compare losses on: at most {_MOST}")
    if steepest_fall(loss) < -1e-12:
        raise ValueError(
            "the loss is unbounded below: it falls without end as responses that the pairs do not hold lose their"
            " probability; use log_sigmoid_term, or a larger lam_pref"
        )
    rng = np.random.default_rng(seed)
    starts = [loss.log_policy, *(loss.log_policy + rng.normal(size=(_RESTARTS, n)))]
    options: Any = {"gtol": _GRADIENT, "maxiter": 5000}
    with warnings.catch_warnings():
        # A line search that ends at rounding says so; the best of all starts is taken anyway.
        warnings.simplefilter("ignore", RuntimeWarning)
        found = [minimize(loss, start, jac=True, method="BFGS", options=options) for start in starts]
    return np.exp(log_normalize(min(found, key=lambda result: result.fun).x))


def merged_loss(rule: SPAC, data: PreferenceData, policy: Any, reference: Any = None, t: int = 0) -> PracticalLoss:
    """The loss whose minimizer is π_t e^{η f_t}/Z for the critic f_t over all functions: weights (π_t − ref)/η and λ.

    Raises
    ------
    ValueError
        Data of more than one prompt, or policies that are none; π_t needs full support.
    """
    log_policy = _one_policy(data, policy)
    eta = value(rule.eta, t)
    drift = np.exp(log_policy) - np.exp(reference_on(data, reference))
    return PracticalLoss(data, log_policy, eta, value(rule.lam, t), 1 / eta, identity_term, drift)


def exact_step(rule: SPAC, data: PreferenceData, policy: Any, reference: Any = None, t: int = 0) -> np.ndarray:
    """π_{t+1} ∝ π_t e^{η f_t} with the critic f_t of the box [0, R], (n,) probabilities."""
    log_policy = _one_policy(data, policy)
    drift = np.exp(log_policy) - np.exp(reference_on(data, reference))
    critic = Box(rule.R).solve(data, drift, value(rule.lam, t)).values
    return np.exp(mirror_step([(1.0, log_policy)], [(value(rule.eta, t), critic)]))


@dataclass(frozen=True)
class Departure:
    """The practical minimizer beside the exact step; ``total_variation`` is ½ Σ |difference|, in [0, 1]."""

    exact: np.ndarray
    practical: np.ndarray
    total_variation: float


def practical_departure(
    rule: SPAC,
    data: PreferenceData,
    policy: Any,
    reference: Any = None,
    lam_critic: float | None = None,
    smoothing: Smoothing = log_sigmoid_term,
    t: int = 0,
) -> Departure:
    """How far the minimizer of SPAC's practical loss is from the exact step with the same η and λ.

    The practical loss has λ on the pairs and its critic term on responses of π_t alone.

    Parameters
    ----------
    rule : SPAC
    data : PreferenceData
        One data set of one prompt.
    policy, reference : (n,)
        π_t, of full support, and ref (uniform by default).
    lam_critic : float, optional
        Weight of the critic term; by default 2/η: −log σ(−x) has slope ½ at 0, so that to first order this is the
        theory's 1/η.
    smoothing : callable

    Raises
    ------
    ValueError
        As `minimize_softmax` and `merged_loss`.
    """
    theory = merged_loss(rule, data, policy, reference, t)
    weight = 2 / theory.eta if lam_critic is None else lam_critic
    weights = np.exp(theory.log_policy)
    loss = PracticalLoss(data, theory.log_policy, theory.eta, theory.lam_pref, weight, smoothing, weights)
    practical, exact = minimize_softmax(loss), exact_step(rule, data, policy, reference, t)
    return Departure(exact, practical, float(total_variation(exact, practical)))


def _one_policy(data: PreferenceData, policy: Any) -> np.ndarray:
    """log π_t of the only prompt."""
    if data.batch_shape:
        raise ValueError(f"the data have leading axes {data.batch_shape}: give one data set of one prompt at a time")
    log_policy = policy_on(data, policy, "policy")
    if np.isneginf(log_policy).any():
        raise ValueError("policy needs full support: log-ratios are against it")
    return log_policy
