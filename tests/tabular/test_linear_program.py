"""The general-purpose solvers find the same equilibria as ours, up to their own tolerances."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nashpo.tabular.interior_point import solve_skew
from nashpo.tabular.linear_program import solve_cvxpy, solve_highs, solve_regularized_cvxpy

SOLVERS = [solve_highs, solve_cvxpy]


def skew(upper: np.ndarray) -> np.ndarray:
    upper = np.triu(upper, 1)
    return upper - upper.T


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("n", [1, 2, 3, 8, 30])
def test_gap(solve: Callable[[np.ndarray], np.ndarray], n: int) -> None:
    """HiGHS keeps feasibility to 1e-7, Clarabel to 1e-8; the gap is twice the largest violation."""
    rng = np.random.default_rng(n)
    for A in (skew(rng.random((n, n)) - 0.5), skew(rng.choice([-0.5, 0.0, 0.5], (n, n))), np.zeros((n, n))):
        policy = solve(A)
        assert policy.shape == (n,)
        assert (policy >= 0.0).all()
        np.testing.assert_allclose(policy.sum(), 1.0, rtol=0, atol=1e-14)
        assert 2.0 * (A @ policy).max() <= 2e-7


@pytest.mark.parametrize("solve", SOLVERS)
def test_rock_paper_scissors_by_hand(solve: Callable[[np.ndarray], np.ndarray]) -> None:
    """Rock beats scissors by .1, paper rock by .2, scissors paper by .4: the policy is (4, 1, 2) / 7."""
    A = np.array([[0, -0.2, 0.1], [0.2, 0, -0.4], [-0.1, 0.4, 0]])
    np.testing.assert_allclose(solve(A), np.array([4, 1, 2]) / 7, rtol=0, atol=1e-6)


def test_same_policy_as_the_interior_point_where_unique() -> None:
    A = skew(np.random.default_rng(1).choice([-0.5, 0.5], (21, 21)))
    for solve in SOLVERS:
        np.testing.assert_allclose(solve(A), solve_skew(A).policy, rtol=0, atol=1e-6)


def test_regularized_two_responses_by_hand() -> None:
    """With a uniform reference and tau = 1 the log-odds are a: p_1 = 1 / (1 + e^-a). The reference need not sum to 1.

    Clarabel stops at 1e-8 in the objective, which is quadratic near its minimum: about 1e-4 in probability.
    """
    a = 0.4
    policy = solve_regularized_cvxpy(np.array([[0, a], [-a, 0]]), np.array([3.0, 3.0]), 1.0)
    np.testing.assert_allclose(policy[0], 1 / (1 + np.exp(-a)), rtol=0, atol=1e-4)


def test_bad_input() -> None:
    for solve in SOLVERS:
        with pytest.raises(ValueError, match="one square matrix"):
            solve(np.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match="tau must be positive"):
        solve_regularized_cvxpy(np.zeros((2, 2)), np.zeros(2), 0.0)
    with pytest.raises(ValueError, match="full support"):
        solve_regularized_cvxpy(np.zeros((2, 2)), np.array([0.0, -np.inf]), 1.0)
