"""Bounds as functions, and theorems as rows: statement, measure, source, status, order, bound.

Notation: D = max_y log 1/π_1(y) in nats (KL(u ‖ π_1) <= D for every u), T the number of updates, eta the step size that
multiplies payoffs in [0, 1], tau the KL weight of the regularized game. A duality gap is in [0, 1] win-rate units, a
KL divergence in nats. The average iterate is the mean of π_1 … π_T, the last one π_{T+1}.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeGuard

from nashpo.core.schedules import Coef


class Status(Enum):
    """How far a statement can be trusted."""

    PUBLISHED = "published"
    DERIVED = "derived"
    MEASURED = "measured"
    REFUTED = "refuted as printed"


class Iterate(Enum):
    """Which policy of a run a statement is about."""

    AVERAGE = "average"
    LAST = "last"


class Measure(Enum):
    """What is bounded."""

    DUALITY_GAP = "duality gap"
    KL_TO_EQUILIBRIUM = "KL from the equilibrium"
    ACTOR_REGRET = "mean actor regret"
    SUBOPTIMALITY = "suboptimality"


@dataclass(frozen=True)
class Setting:
    """What a bound may depend on besides the rule.

    Attributes
    ----------
    D : float
        max_y log 1/π_1(y) in nats.
    T : int
        Number of updates.
    kl_start : float, optional
        KL(π* ‖ π_1) from the equilibrium that the rule aims for, in nats.
    pessimism_cost : float, optional
        Offline rules: (E_u − E_ref) r* + λ L(r*) − min_f [(E_u − E_ref) f + λ L(f)], in reward units.
    """

    D: float
    T: int
    kl_start: float | None = None
    pessimism_cost: float | None = None


@dataclass(frozen=True)
class Theorem:
    """One statement about a rule's iterates.

    Attributes
    ----------
    id : str
        For instance ``sppo.average-gap``; the claim of `nashpo verify` that checks it has the same name.
    statement : str
        The inequality in words and symbols.
    iterate, measure, status
        Which policy, which quantity, how far to trust it.
    source : str
        Paper and theorem number, or where the derivation is.
    order : float, optional
        Slope of log(bound) against log(T), where it is a power of T.
    applies : callable (rule, setting) -> bool
        Whether the statement's assumptions hold.
    bound : callable (rule, setting) -> float
    """

    id: str
    statement: str
    iterate: Iterate
    measure: Measure
    source: str
    status: Status
    order: float | None
    applies: Callable[[Any, Setting], bool]
    bound: Callable[[Any, Setting], float]


def constant(coef: Coef) -> TypeGuard[float]:
    """Whether a hyperparameter is a number and not a schedule."""
    return not callable(coef)


def mwu_gap(D: float, eta: float, T: float) -> float:
    """2D/(ηT) + η/4: duality gap of the average iterate of SPPO (multiplicative weights), any constant η > 0, any T.

    Derived: regret <= KL(u ‖ π_1)/η + (η/8) Σ range(g_t)² by Hoeffding's lemma, and gap = 2 regret/T.
    """
    return 2 * D / (eta * T) + eta / 4


def mwu_gap_freund_schapire(D: float, eta: float, T: float) -> float:
    """1 − (1 − e^{−η})/η + 2D/(ηT): SPPO Theorem 4.1 with its constants, after Freund and Schapire (1999)."""
    return 1 + math.expm1(-eta) / eta + 2 * D / (eta * T)


def mwu_tuned_eta(D: float, T: float) -> float:
    """√(8D/T), which minimizes 2D/(ηT) + η/4."""
    return math.sqrt(8 * D / T)


def mwu_tuned_gap(D: float, T: float) -> float:
    """√(2D/T), the value of that minimum."""
    return math.sqrt(2 * D / T)


def omd_printed_gap(D: float, T: float) -> float:
    """4√(D/T), the gap of mirror descent with η = √(D/T) as printed in ONPO (2502.16852) Theorem 1."""
    return 4 * math.sqrt(D / T)


def onpo_gap(D: float, eta: float, T: float) -> float:
    """2D/(ηT) + η/(2T): gap of the average iterate of ONPO for 0 < η <= 1 (derived; replaces the printed Theorem 2)."""
    return 2 * D / (eta * T) + eta / (2 * T)


def onpo_gap_with_path(divergence: float, eta: float, T: float, first_range: float, path: float) -> float:
    """2KL(u‖π_1)/(ηT) + ηρ₁²/(2T) − (1 − η²)V/(2ηT) with ρ₁ = range(r_1), V = Σ_t ‖π_t − π_{t−1}‖₁² (derived)."""
    return (2 * divergence / eta + eta * first_range**2 / 2 - (1 - eta**2) * path / (2 * eta)) / T


def onpo_path_length(D: float, eta: float, first_range: float = 1.0) -> float:
    """4(D + η²ρ₁²/4)/(1 − η²), which bounds Σ_t ‖π_t − π_{t−1}‖₁² for η < 1 (derived)."""
    return 4 * (D + eta**2 * first_range**2 / 4) / (1 - eta**2)


def onpo_printed_eta(D: float) -> float:
    """min(½, √D), the step of ONPO's Theorem 2."""
    return min(0.5, math.sqrt(D))


def onpo_printed_gap(D: float, T: float) -> float:
    """4√D/T, as printed in the main text of ONPO (2502.16852, NeurIPS 2025), Theorem 2. Violated; see `onpo_gap`."""
    return 4 * math.sqrt(D) / T


def nash_md_kl(tau: float, T: float) -> float:
    """1/(2τ²(T + 1)): KL(π*_τ ‖ π_{T+1}) of Nash-MD with η_t = 2/(τ(t + 2)) (derived from the per-step recursion)."""
    return 1 / (2 * tau**2 * (T + 1))


def nash_md_kl_munos(tau: float, T: float) -> float:
    """8/(τ²(T + 1)), the same as published by Munos et al. (2312.00886) Theorem 1."""
    return 8 / (tau**2 * (T + 1))


def nash_md_recursion(divergence: float, eta: float, tau: float) -> float:
    """(1 − ητ) KL + η²/8: one Nash-MD step (derived)."""
    return (1 - eta * tau) * divergence + eta**2 / 8


def nash_md_kl_constant(divergence: float, eta: float, tau: float, T: int) -> float:
    """The recursion with constant η, T times: (1 − ητ)^T KL + (η/(8τ)) (1 − (1 − ητ)^T)."""
    shrink = (1 - eta * tau) ** T
    return shrink * divergence + eta / (8 * tau) * (1 - shrink)


def linear_kl(divergence: float, eta: float, tau: float, T: int) -> float:
    """(1 − ητ)^T KL(π*_τ ‖ π_1), the last-iterate contraction of INPO and EGPO under their step conditions."""
    return (1 - eta * tau) ** T * divergence


def inpo_largest_eta(tau: float) -> float:
    """4τ/(1 + 4τ²), the largest step with η/(1 − ητ) <= 4τ."""
    return 4 * tau / (1 + 4 * tau**2)


def egpo_largest_eta(tau: float) -> float:
    """2(√(1 + τ²) − τ), computed as 2/(√(1 + τ²) + τ)."""
    return 2 / (math.sqrt(1 + tau**2) + tau)


def regularization_bias(D_reference: float, tau: float) -> float:
    """2τD_ref: the un-regularized duality gap of the regularized equilibrium π*_τ (derived)."""
    return 2 * tau * D_reference


def spac_actor(D: float, eta: float, R: float, T: float) -> float:
    """D/(ηT) + ηR²/8: mean regret of the actor against any comparator, for critics in [0, R] (derived, S3)."""
    return D / (eta * T) + eta * R**2 / 8


def spac_pessimism(advantage_of_truth: Any, lam: Any, loss_of_truth: Any, loss_of_critic: Any) -> Any:
    """(E_π − E_ref) r* + λ (L(r*) − L(f)), which bounds (E_π − E_ref) f for the critic f of π (derived, S1)."""
    return advantage_of_truth + lam * (loss_of_truth - loss_of_critic)


def spac_decomposition(comparator_error: Any, actor_gap: Any, lam: Any, loss_of_truth: Any, loss_of_critic: Any) -> Any:
    """(E_u − E_ref)(r* − f_t) + <u − π_t, f_t> + λ (L(r*) − L(f_t)), which bounds J(u) − J(π_t) (derived, S2)."""
    return comparator_error + actor_gap + lam * (loss_of_truth - loss_of_critic)


def dpo_rare_arm_floor(beta: float) -> float:
    """½σ(−1/(2β)): DPO's suboptimality on the rare-arm instance as N grows, for every fixed β (derived)."""
    return 0.5 / (1 + math.exp(1 / (2 * beta)))


def approximate_mwu_gap(divergence: Any, eta: float, T: int, squared_ranges: Any, alignment: Any) -> Any:
    """Gap of the average iterate when each SPPO step was only fitted (derived).

    (2/T) [KL(u ‖ π_1)/η + (η/8) Σ range(g_t + ε_t/η)² + (1/η) Σ ⟨π_t − u, ε_t⟩], where ε_t is the log-ratio residual of
    step t, ``squared_ranges`` and ``alignment`` are the two sums, and u is the best response to the average.
    """
    return 2 / T * (divergence / eta + eta / 8 * squared_ranges + alignment / eta)


def approximate_onpo_gap(
    divergence: Any, eta: float, T: int, squared_ranges: Any, stability: Any, alignment: Any
) -> Any:
    """Gap of the average iterate when both ONPO sequences were only fitted (derived).

    (2/T) [KL(u ‖ π_1)/η + (η/8) Σ range(r_t + e'_t − m_t)² − (1/η) Σ KL(π_t ‖ π'_t) + Σ ⟨π_t − u, e'_t⟩].
    """
    return 2 / T * (divergence / eta + eta / 8 * squared_ranges - stability / eta + alignment)
