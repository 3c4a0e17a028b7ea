"""Preference games: win rate, payoff, duality gap and regret, un-regularized and KL-regularized.

Shapes: ``advantage`` A = P − ½ is (..., n, n) and skew-symmetric, where P[i, j] is the probability that response i is
preferred to response j; a policy is (..., n); a result per game is (...). Win rates lie in [0, 1], divergences are in
nats. ``mask`` (..., n) is true where a response exists.

Everything is written with A and not with P: Aπ = Pπ − ½ for a normalized π, and A loses no digit to the constant.
"""

from typing import Protocol

from array_api_compat import array_namespace

from nashpo.core.policies import Array, kl, log_normalize, logsumexp


class PreferenceGame(Protocol):
    """What the theory needs of a game: a response's win rate against a policy."""

    def payoff(self, policy: Array) -> Array:
        """P(y ≻ π) for every response y, shape (..., n)."""
        ...


def excess_payoff(advantage: Array, policy: Array) -> Array:
    """(Aπ)(y) = P(y ≻ π) − ½ for every response y, shape (..., n), in [−½, ½]."""
    xp = array_namespace(advantage, policy)
    return xp.squeeze(xp.matmul(advantage, policy[..., None]), axis=-1)


def win_rate(advantage: Array, policy: Array, opponent: Array) -> Array:
    """P(π ≻ ρ) = ½ + πᵀAρ, the probability that a response of π beats one of ρ; shape (...)."""
    xp = array_namespace(advantage, policy, opponent)
    return 0.5 + xp.sum(policy * excess_payoff(advantage, opponent), axis=-1)


def _where_exists(values: Array, mask: Array | None) -> Array:
    xp = array_namespace(values)
    return values if mask is None else xp.where(mask, values, -xp.inf)


def best_response(advantage: Array, policy: Array, mask: Array | None = None) -> Array:
    """Index of a response with the largest win rate against the policy, shape (...)."""
    xp = array_namespace(advantage, policy)
    return xp.argmax(_where_exists(excess_payoff(advantage, policy), mask), axis=-1)


def duality_gap(advantage: Array, policy: Array, mask: Array | None = None) -> Array:
    """Duality gap max_u P(u ≻ π) − min_v P(π ≻ v) = 2 max_y (Aπ)(y), in [0, 1]; shape (...).

    One matrix–vector product, by the symmetry P + Pᵀ = 1. Zero exactly at a Nash equilibrium (von Neumann winner).
    Source: SPPO (2405.00675), ONPO (2502.16852).
    """
    xp = array_namespace(advantage, policy)
    return 2 * xp.max(_where_exists(excess_payoff(advantage, policy), mask), axis=-1)


def regularized_duality_gap(
    advantage: Array, log_policy: Array, log_reference: Array, tau: float, mask: Array | None = None
) -> Array:
    """Duality gap of the KL-regularized game J_τ(π, ρ) = P(π ≻ ρ) − τ KL(π ‖ ref) + τ KL(ρ ‖ ref); shape (...).

    The best response is ref · exp(Pπ/τ)/Z, so that the gap is ``2 [τ log E_ref exp(Aπ/τ) + τ KL(π ‖ ref)]``.

    Parameters
    ----------
    advantage : (..., n, n)
    log_policy, log_reference : (..., n)
        Masked responses have −inf in both.
    tau : float
        KL weight, > 0.

    Notes
    -----
    Source: Nash-MD (2312.00886) for the game; the closed form is derived.
    """
    xp = array_namespace(advantage, log_policy)
    gain = excess_payoff(advantage, xp.exp(log_policy))
    soft = xp.squeeze(logsumexp(_where_exists(log_reference + gain / tau, mask)), axis=-1)
    return 2 * tau * (soft + kl(log_policy, log_reference))


def regularized_residual(
    advantage: Array, log_policy: Array, log_reference: Array, tau: float, mask: Array | None = None
) -> Array:
    """max_y |log π(y) − log ref(y) − (Aπ)(y)/τ + log Z| in nats, shape (...).

    Zero exactly at the regularized equilibrium, and its certificate. A duality gap cannot serve as one: it can be 2e-10
    where a log-probability is off by several nats.
    """
    xp = array_namespace(advantage, log_policy)
    exists = log_reference > -xp.inf if mask is None else mask
    gain = excess_payoff(advantage, xp.exp(log_policy))
    step = log_normalize(_where_exists(log_reference + gain / tau, exists))
    zero = xp.zeros_like(log_policy)
    error = xp.abs(xp.where(exists, log_policy, zero) - xp.where(exists, step, zero))
    return xp.max(error, axis=-1)


def regret(excess_payoffs: Array, policies: Array, mask: Array | None = None) -> Array:
    """External regret max_u Σ_t ⟨u − π_t, g_t⟩ of a trajectory in its own payoffs, shape (...).

    Parameters
    ----------
    excess_payoffs, policies : (T, ..., n)
        g_t − ½ = Aπ_t and π_t; a constant shift of g_t does not change the regret.

    Notes
    -----
    In self-play duality_gap(mean of π_t) = 2 · regret / T exactly.
    """
    xp = array_namespace(excess_payoffs, policies)
    best = xp.max(_where_exists(xp.sum(excess_payoffs, axis=0), mask), axis=-1)
    return best - xp.sum(xp.sum(excess_payoffs * policies, axis=-1), axis=0)
