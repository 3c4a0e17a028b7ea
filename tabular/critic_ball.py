"""The critic that is linear in features, over a ball: Newton steps whose quadratic models are solved on the ball.

    minimize  ⟨cost, θ⟩ + Σ_k strength_k log(1 + exp(−⟨differences_k, θ⟩))   over ‖θ‖₂ <= radius

Shapes: ``cost`` and θ (d,), ``differences`` (pairs, d), the features of the preferred response minus those of the
other, ``strength`` (pairs,) >= 0.
"""

import numpy as np

from nashpo.core.losses import logistic

_STEPS = 200
_HALVINGS = 50
_BISECTIONS = 200
_ARMIJO = 1e-4
_ROUNDING = 1e-15
_FLAT = 1e-13
"""Relative curvature below which a direction of the quadratic model counts as flat."""


def minimize_on_ball(
    cost: np.ndarray, differences: np.ndarray, strength: np.ndarray, radius: float, tolerance: float, start: np.ndarray
) -> tuple[np.ndarray, float]:
    """Minimize from ``start``; returns (θ, Frank–Wolfe gap).

    Each step minimizes the second-order model over the ball exactly (its KKT multiplier by bisection) and searches the
    segment to that point, which is feasible since the ball is convex. The gap ⟨∇, θ⟩ + radius ‖∇‖ bounds the
    suboptimality; the point of least gap is returned, also where ``tolerance`` was not reached.
    """
    theta = start * min(1.0, radius / max(float(np.linalg.norm(start)), 1e-300))
    size = radius * float(np.abs(cost).sum()) + float(strength.sum())

    def objective(theta: np.ndarray) -> float:
        margin = differences @ theta
        return float(cost @ theta + strength @ logistic(margin, np.zeros_like(margin), 1.0))

    value = objective(theta)
    best, best_gap = theta, np.inf
    for _ in range(_STEPS):
        margin = differences @ theta
        lost = 0.5 - 0.5 * np.tanh(margin / 2)  # σ(−margin)
        gradient = cost - differences.T @ (strength * lost)
        gap = max(0.0, float(gradient @ theta + radius * np.linalg.norm(gradient)))
        if gap < best_gap:
            best, best_gap = theta, gap
        if gap <= tolerance:
            break
        bend = strength * np.exp(-logistic(margin, 0 * margin, 1.0) - logistic(-margin, 0 * margin, 1.0))
        hessian = (differences * bend[:, None]).T @ differences
        direction = _model_minimizer(gradient - hessian @ theta, hessian, radius, theta) - theta
        decrease = -float(gradient @ direction)
        if not decrease > 0:
            break
        step = 1.0
        for _ in range(_HALVINGS):
            reached = objective(theta + step * direction)
            if reached <= value - _ARMIJO * step * decrease + _ROUNDING * (abs(value) + size):
                break
            step /= 2
        theta, value = theta + step * direction, reached
    return best, best_gap


def _model_minimizer(linear: np.ndarray, hessian: np.ndarray, radius: float, theta: np.ndarray) -> np.ndarray:
    """argmin ⟨linear, s⟩ + ½ sᵀ hessian s over ‖s‖ <= radius; flat directions without a slope stay at ``theta``."""
    curvature, basis = np.linalg.eigh(hessian)
    pull, place = -(basis.T @ linear), basis.T @ theta
    top = max(float(curvature[-1]), 0.0)
    curvature = np.maximum(curvature, 0.0)
    flat = curvature <= _FLAT * top
    idle = flat & (np.abs(pull) <= _FLAT * (np.abs(pull).max() + top * radius))
    if not (flat & ~idle).any():
        inside = np.where(flat, place, pull / np.where(flat, 1.0, curvature))
        if np.linalg.norm(inside) <= radius:
            return basis @ inside
    # On the sphere s = pull / (curvature + μ), and ‖s‖ falls in μ from above radius to below it.
    low, high = 0.0, float(np.linalg.norm(pull)) / radius
    for _ in range(_BISECTIONS):
        mu = (low + high) / 2
        if mu in (low, high):
            break
        longer = np.linalg.norm(pull / (curvature + mu)) > radius
        low, high = (mu, high) if longer else (low, mu)
    outside = pull / (curvature + high)
    return basis @ (outside * min(1.0, radius / max(float(np.linalg.norm(outside)), 1e-300)))
