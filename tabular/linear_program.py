r"""The same equilibria by general-purpose convex solvers: slower, fewer digits, and independent of our own.

Shapes: one game at a time, A = P - 1/2 (n, n) skew, log_reference and policy (n,).

The exact equilibrium is the linear program

    minimize v   subject to   A x <= v 1,   1'x = 1,   x >= 0,

whose value is 0. The KL-regularized one, with the opponent's best response eliminated, is the exponential-cone program

    minimize KL(x || ref) + logsumexp(log ref + A x / tau)   over the simplex,

whose value is also 0, by the symmetry of the game. On a game with several equilibria a simplex method returns a vertex
of the set: compare gaps there, not policies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def solve_highs(A: Array) -> Array:
    """Solve the linear program by HiGHS through scipy, at its default choice of algorithm.

    Parameters
    ----------
    A : (n, n) array
        P - 1/2, skew.

    Returns
    -------
    (n,) array
        Equilibrium policy; its gap is of the order of HiGHS's feasibility tolerance, 1e-7 at worst.

    Raises
    ------
    ValueError
        If A is not one square matrix.
    RuntimeError
        If HiGHS stops without an optimum.
    """
    from scipy.optimize import linprog

    n = _order(A)
    result = linprog(
        np.r_[np.zeros(n), 1.0],
        A_ub=np.column_stack([A, -np.ones(n)]),
        b_ub=np.zeros(n),
        A_eq=np.r_[np.ones(n), 0.0][None, :],
        b_eq=[1.0],
        bounds=[(0.0, None)] * n + [(None, None)],
        method="highs",
    )
    if result.x is None:
        raise RuntimeError(f"HiGHS found no equilibrium of a game of {n} responses: {result.message}")
    return _on_simplex(result.x[:n])


def solve_cvxpy(A: Array) -> Array:
    """Solve the linear program by cvxpy with Clarabel, an interior-point method.

    Parameters
    ----------
    A : (n, n) array
        P - 1/2, skew.

    Returns
    -------
    (n,) array
        Equilibrium policy, with a gap of about 1e-9.

    Raises
    ------
    ValueError
        If A is not one square matrix.
    RuntimeError
        If Clarabel stops without an optimum.
    """
    import cvxpy as cp

    n = _order(A)
    x, v = cp.Variable(n, nonneg=True), cp.Variable()
    return _minimize(cp.Problem(cp.Minimize(v), [A @ x <= v, cp.sum(x) == 1]), x)


def solve_regularized_cvxpy(A: Array, log_reference: Array, tau: float) -> Array:
    """Solve the exponential-cone program by cvxpy with Clarabel.

    Parameters
    ----------
    A : (n, n) array
        P - 1/2, skew.
    log_reference : (n,) array
        Log-probabilities of the reference in nats, finite.
    tau : float
        KL weight, positive.

    Returns
    -------
    (n,) array
        Equilibrium policy; about 1e-5 in probability from the exact one, and small probabilities carry no digits.

    Raises
    ------
    ValueError
        If A is not one square matrix, tau is not positive or log_reference is not finite.
    RuntimeError
        If Clarabel stops without an optimum.
    """
    import cvxpy as cp

    n = _order(A)
    log_reference = np.asarray(log_reference, dtype=np.float64)
    if not tau > 0.0:
        raise ValueError(f"tau must be positive, not {tau}")
    if log_reference.shape != (n,) or not np.isfinite(log_reference).all():
        raise ValueError(f"log_reference must hold {n} finite log-probabilities: the reference needs full support")
    log_reference = log_reference - np.logaddexp.reduce(log_reference)
    x = cp.Variable(n, nonneg=True)
    divergence = -cp.sum(cp.entr(x)) - log_reference @ x
    response = cp.log_sum_exp(log_reference + A @ x / tau)
    return _minimize(cp.Problem(cp.Minimize(divergence + response), [cp.sum(x) == 1]), x)


def _order(A: Array) -> int:
    shape = np.shape(A)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ValueError(
            f"A must be one square matrix (n, n), n >= 1; its shape is {shape}: solve batches game by game"
        )
    return int(shape[0])


def _minimize(problem: Any, x: Any) -> Array:
    import cvxpy as cp

    try:
        problem.solve(solver=cp.CLARABEL)
    except cp.SolverError as error:
        raise RuntimeError(f"Clarabel found no equilibrium: {error}") from error
    if x.value is None:
        raise RuntimeError(f"Clarabel found no equilibrium: {problem.status}")
    return _on_simplex(x.value)


def _on_simplex(x: Array) -> Array:
    """Remove what the solver's tolerance leaves: negative probabilities and a sum off 1."""
    x = np.maximum(np.asarray(x, dtype=np.float64), 0.0)
    return x / x.sum()
