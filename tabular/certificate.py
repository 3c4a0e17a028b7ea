"""A computable certificate of an offline policy: an upper bound on J(u) − J(π) from the data alone.

Shapes: policies (..., n); the bound has the shape of ``data.N`` (one per data set). Units are those of the reward,
which is assumed to lie in [0, R] and to generate the labels by the Bradley–Terry model.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nashpo.tabular.critic import Box, Critic
from nashpo.tabular.data_policies import policy_on
from nashpo.tabular.preferences import PreferenceData
from nashpo.tabular.reward_model import maximum_likelihood_reward

_SMALLEST = 1e-12
"""Smallest multiplier κ, relative to the largest one that can be the best."""
_BISECTIONS = 36
_LOOSE = 1e-7
"""Times R: where the bound is this close to the advantage under a plausible reward, it is not improved further."""
_LOSS_ROUNDING = 1e-8


@dataclass(frozen=True)
class Certificate:
    """An upper bound on J(u) − J(π), valid for all u and π at once with probability at least 1 − delta.

    Attributes
    ----------
    bound : (data sets)
        May be negative. About R where u plays what the data do not contain.
    attained : (data sets)
        E_x ⟨u − π, r⟩ of the worst plausible reward that was found, at most ``bound``: no certificate at this level
        can be below it. The two meet but for the last digits, unless the level is the likelihood's own maximum.
    level : (data sets)
        The log-loss up to which a reward is plausible, L(r̂) + ε; infinite where the data exclude no reward.
    delta : float
    """

    bound: np.ndarray
    attained: np.ndarray
    level: np.ndarray
    delta: float


def plausible_level(data: PreferenceData, R: float, delta: float, mle_loss: np.ndarray) -> np.ndarray:
    """L(r̂) + ε with N ε = k log(e N B / k) + log(1/δ) and B = log(1 + e^R) − L(r̂); +inf where N B < k.

    With probability at least 1 − δ the true reward's log-loss is below it. Here k is the number of responses that occur
    in an informative pair.

    Notes
    -----
    Derived: for a uniform prior over the box E ∫ exp(−N (L(r) − L(r*))) dr = 1; Markov's inequality,
    and convexity of L on the shrunken box (1 − s) r̂ + s [0, R]^k with s = k/(N B). It holds around any r̂ of the box, so
    that an inexact maximum of the likelihood does no harm. Soft labels and weights of pairs in [0, 1] are covered by
    Jensen's inequality; pairs that are counted more than once for one label are not.
    """
    axes = tuple(range(data.independent, data.wins.ndim - 1))
    k = (data.seen > 0).sum(axis=axes)
    spread = np.logaddexp(0, R) - mle_loss
    enough = data.N * spread >= k
    ratio = np.where(enough, data.N * spread / k, 1.0)
    excess = (k * (1 + np.log(ratio)) - np.log(delta)) / data.N
    return np.where(enough, mle_loss + excess, np.inf)


def certificate(
    data: PreferenceData, comparator: Any, policy: Any, R: float, delta: float = 0.05, level: Any = None
) -> Certificate:
    """max { E_x ⟨u − π, r⟩ : r ∈ [0, R], L_D(r) <= level }, computed from above.

    Parameters
    ----------
    data : PreferenceData
        Bradley–Terry labels.
    comparator, policy : (..., n)
        u and π, probabilities.
    R : float
        Largest reward, > 0.
    delta : float
        Confidence is 1 − delta; in (0, 1).
    level : (data sets), optional
        The log-loss that the true reward is known not to exceed (L(r*) itself, say); by default `plausible_level`.

    Returns
    -------
    Certificate

    Raises
    ------
    ValueError
        delta outside (0, 1), R <= 0, policies that are none or do not fit the data, or a level below the smallest
        log-loss of any reward in the box.

    Notes
    -----
    Lagrangian dual: every κ >= 0 gives the valid bound κ · level − min_r { ⟨π − u, r⟩ + κ L(r) }, in which the minimum
    is replaced by its computed value minus its Frank–Wolfe gap. κ is found by bisection on L(r_κ) = level; the least
    of all bounds that were computed is returned, so inexact solves and a coarse κ only loosen it. The best κ is at most
    2R/(level − L(r̂)), since the bound is R or less at κ = 0 and grows at least by level − L(r̂) per unit.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta = {delta:g} must lie strictly between 0 and 1: confidence is 1 - delta")
    box = Box(R)
    direction = np.exp(policy_on(data, policy, "policy")) - np.exp(policy_on(data, comparator, "comparator"))
    reward = maximum_likelihood_reward(data, R)
    smallest = data.loss(reward)
    if level is None:
        level = plausible_level(data, R, delta, smallest)
    level = np.asarray(np.broadcast_to(level, data.N.shape), np.float64)
    room = level - smallest
    if not (room >= -_LOSS_ROUNDING).all():
        raise ValueError(
            f"level = {level[~(room >= -_LOSS_ROUNDING)].flat[0]:g} is below the smallest log-loss in [0, {R:g}],"
            f" {smallest[~(room >= -_LOSS_ROUNDING)].flat[0]:g}: no reward is plausible; raise it, or R"
        )

    def advantage(values: np.ndarray) -> np.ndarray:
        return data.over_prompts(-(direction * values).sum(axis=-1))

    bound = data.over_prompts(R * np.maximum(-direction, 0).sum(axis=-1))  # κ = 0
    tight = ~np.isfinite(level)  # then κ = 0 is the best
    attained = np.where(tight, bound, advantage(reward))
    finite = np.where(tight, 0.0, level)
    high = np.log(2 * R / np.maximum(np.where(tight, 1.0, room), _LOSS_ROUNDING))
    low = high + np.log(_SMALLEST)
    warm: Critic | None = None
    for _ in range(_BISECTIONS):
        done = tight | (bound - attained <= _LOOSE * R)
        if done.all():
            break
        middle = (low + high) / 2
        kappa = np.exp(middle)
        # Not `solve`: a bound with a large gap is loose but valid.
        warm = box.minimize(data, direction, kappa, warm)
        loss, gain = data.loss(warm.values), advantage(warm.values)
        bound = np.where(tight, bound, np.minimum(bound, kappa * (finite - loss) + gain + warm.gap))
        plausible = loss <= level
        attained = np.where(plausible & ~tight, np.maximum(attained, gain), attained)
        # Where it is done κ stays, which the next solve finds solved at once.
        low = np.where(done | ~plausible, middle, low)
        high = np.where(done | plausible, middle, high)
    return Certificate(np.asarray(bound), np.asarray(attained), level, delta)
