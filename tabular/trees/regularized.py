r"""The equilibrium of the KL-regularized multi-turn game, by Newton's method on what the outcomes earn.

Shapes: policies (N, W), what the outcomes earn (C, K).

J_τ(π, ρ) = J(π, ρ) − τ KL_p(π ‖ ref) + τ KL_p(ρ ‖ ref) has one equilibrium. Against it the outcomes earn g = Aν, and
it is the soft best response to g, whose law of outcomes is the gradient of a convex function, the soft value. So g
solves g − A ∇U(g) = 0 with the Jacobian 1 − A S, S = ∇²U >= 0: A is skew, so it is never singular.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nashpo.tabular.trees.game import TreeGame
from nashpo.tabular.trees.layers import Floats
from nashpo.tabular.trees.policies import log_policy, occupancy
from nashpo.tabular.trees.values import soft_policy

ITERATIONS = 200
LARGEST_RESIDUAL = 1e-9
"""An equilibrium whose outcomes earn something that is less certain than this (win rate over τ) is refused."""


def regularized_nash(game: TreeGame, tau: float, reference: Any = None) -> Floats:
    """The log-policy π*_τ of the KL-regularized game, (N, W).

    Parameters
    ----------
    game : TreeGame
    tau : float
        KL weight, > 0.
    reference : (N, W), optional
        Full support; uniform by default.

    Raises
    ------
    ValueError
        tau <= 0, a reference without full support, or a tau too small for double precision.
    """
    if not (tau > 0 and np.isfinite(tau)):
        raise ValueError(f"tau = {tau:g} must be a finite number > 0")
    log_reference = log_policy(game, reference, "reference", full_support=True)
    A, n = game.table.A, game.table.n
    earned = np.zeros((game.contexts, n))
    log_pi, residual = _residual(game, log_reference, earned, tau)
    for _ in range(ITERATIONS):
        if np.abs(residual).max() <= 1e-15 * n:
            break
        jacobian = np.eye(n) - A @ _hessian(game, log_pi, tau)
        step = np.linalg.solve(jacobian, residual[..., None])[..., 0]
        length = np.ones((game.contexts, 1))
        before = np.abs(residual).max(axis=1, keepdims=True)
        for _ in range(40):
            trial = earned - length * step
            log_trial, new = _residual(game, log_reference, trial, tau)
            worse = np.abs(new).max(axis=1, keepdims=True) > (1 - 0.1 * length) * before
            if not worse.any():
                break
            length = np.where(worse, length / 2, length)
        if np.abs(new).max() >= np.abs(residual).max():
            break
        earned, log_pi, residual = trial, log_trial, new
    if not np.abs(residual).max() <= LARGEST_RESIDUAL * min(tau, 1.0):
        raise ValueError(
            f"tau = {tau:g} is too small: the equilibrium is only known to {np.abs(residual).max():.1g} in win rate"
        )
    return log_pi


def _residual(game: TreeGame, log_reference: Floats, earned: Floats, tau: float) -> tuple[Floats, Floats]:
    """The soft best response to what the outcomes earn, and g − Aν of it."""
    log_pi, _ = soft_policy(game, log_reference, earned / tau)
    return log_pi, earned - game.payoff(game.law(occupancy(game, np.exp(log_pi))[1]))


def _hessian(game: TreeGame, log_pi: Floats, tau: float) -> Floats:
    """∇²U, (C, K, K): the covariance over actions of the law of the outcome, summed over the states reached."""
    policy = np.exp(log_pi)
    flow, _ = occupancy(game, policy)
    n = game.table.n
    law = np.zeros((len(game.outcome), n))
    law[np.arange(len(law)), game.outcome] = 1.0
    total = np.zeros((game.contexts, n, n))
    for rows, layer in zip(reversed(game.rows), reversed(game.layers)):
        after = layer.expect(law)
        law = (policy[rows, : layer.width, None] * after).sum(axis=1)
        spread = np.sqrt(flow[rows, : layer.width])[..., None] * (after - law[:, None, :])
        order = np.argsort(layer.context, kind="stable")
        ends = np.cumsum(np.bincount(layer.context, minlength=game.contexts))[:-1]
        for c, states in enumerate(np.split(order, ends)):
            rows_of_context = spread[states].reshape(-1, n)
            total[c] += rows_of_context.T @ rows_of_context
    return total / tau
