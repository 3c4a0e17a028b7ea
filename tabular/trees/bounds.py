"""Bounds of the multi-turn rules, as functions of numbers or of arrays that broadcast.

Notation: H turns, T updates, eta the step that multiplies payoffs in [0, 1], tau the KL weight, and D the largest
KL_p(u ‖ π_1) in nats (`nashpo.tabular.trees.policies.largest_divergence`), at most H log W from the uniform start.
A duality gap is in [0, 1]. Trajectory-level rules have the bounds of the bandit (`nashpo.core.theorems`) with this D.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nashpo.core.theorems import onpo_gap

Numbers = Any


def state_mwu_gap(D: Numbers, eta: Numbers, H: int, T: Numbers) -> Numbers:
    """2D/(ηT) + Hη/4 for per-state SPPO: 2H(log W/(ηT) + η/8) from the uniform start (derived).

    J(u, π_t) − ½ = Σ_h E_u⟨u_h − π_{t,h}, Q_{t,h}⟩, and every state has the regret of the bandit.
    """
    return 2 * D / (eta * T) + H * eta / 4


def state_mwu_eta(D: Numbers, H: int, T: Numbers) -> Numbers:
    """√(8D/(HT)), which minimizes 2D/(ηT) + Hη/4; the minimum is `state_mwu_tuned_gap`."""
    return np.sqrt(8 * D / (H * T))


def state_mwu_tuned_gap(D: Numbers, H: int, T: Numbers) -> Numbers:
    """√(2HD/T)."""
    return np.sqrt(2 * H * D / T)


def trajectory_onpo_gap(D: Numbers, eta: Numbers, T: Numbers) -> Numbers:
    """2D/(ηT) + η/(2T) for ONPO on trajectories, η <= 1 (derived).

    The proof of the bandit with KL_p for KL: the soft maximum over a tree obeys KL_p(u ‖ π) − KL_p(u ‖ π⁺) =
    η E_u g − U for every u, stochastic turns or not, and U <= log E_π e^{ηg} by Jensen's inequality.
    """
    bound: Any = onpo_gap
    return bound(D, eta, T)


def mtpo_recursion(divergence: Numbers, eta: Numbers, tau: float, squared_ranges: Numbers) -> Numbers:
    """(1 − ητ) KL_p + (η²/8) E_{π*} Σ_h range(Q_t − τ log π_t/ref)²: one step of MTPO (derived)."""
    return (1 - eta * tau) * divergence + eta**2 / 8 * squared_ranges


def mtpo_range(H: int, tau: float, largest_surprise: Numbers) -> Numbers:
    """min(2^{H−1}, 1 + τ(H−1) log 1/ref_min), which bounds the range of Q_τ at a state when π_1 = ref (derived).

    Q_τ lies between −τ Σ KL(π_t ‖ ref) over the later turns and 1, and τ KL(π_t ‖ ref) at a state is at most the range
    of Q_τ there, since τ log π_t/ref is a weighted mean of earlier Q_τ, and at most τ log 1/ref_min.
    """
    return np.minimum(2.0 ** (H - 1), 1 + tau * (H - 1) * largest_surprise)


def mtpo_kl(H: int, tau: float, largest_surprise: Numbers, T: Numbers) -> Numbers:
    """2HQ²/(τ²(T + 1)) with Q of `mtpo_range`: KL_p(π*_τ ‖ π_{T+1}) at η_t = 2/(τ(t + 2)), π_1 = ref (derived).

    The recursion with range(Q_t − τ log π_t/ref) <= 2Q, times (t + 1)(t + 2), telescopes.
    """
    return 2 * H * mtpo_range(H, tau, largest_surprise) ** 2 / (tau**2 * (T + 1))


def mtpo_kl_published(H: int, tau: float, largest_surprise: Numbers, T: Numbers) -> Numbers:
    """32HQ²/(τ²(T + 1)) with Q = max(4τH log 1/ref_min, 1), as published by Shani et al. (2405.14655)."""
    return 32 * H * np.maximum(4 * tau * H * largest_surprise, 1.0) ** 2 / (tau**2 * (T + 1))
