"""KL-regularized Nash by Newton: the log residual everywhere, cvxpy as oracle, closed forms, masks, batches.

Tolerances: the promise is a residual of 1e-12 nats down to tau = 1e-3, where the logarithms reach 500 and one unit in
their last place is 1.1e-13.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nashpo.tabular.linear_program import solve_regularized_cvxpy
from nashpo.tabular.regularized import solve_regularized

PROMISE = 1e-12
TAUS = [10.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3]


def skew(upper: np.ndarray) -> np.ndarray:
    upper = np.triu(upper, 1)
    return upper - np.swapaxes(upper, -1, -2)


def games(kind: str, count: int, n: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "uniform":
        return skew(rng.random((count, n, n)) - 0.5)
    if kind == "tournament":
        return skew(rng.choice([-0.5, 0.5], (count, n, n)))
    if kind == "ties":
        return skew(rng.choice([-0.5, 0.0, 0.5], (count, n, n)))
    reward = rng.normal(size=(count, n)) * 10.0 ** rng.integers(-6, 4, (count, 1))
    return skew(0.5 * np.tanh((reward[:, :, None] - reward[:, None, :]) / 2))


def references(spread: float, count: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Log-probabilities from 0 down to `spread` powers of ten, both ends taken."""
    logits = -np.log(10.0) * spread * rng.random((count, n))
    logits[:, 0], logits[:, -1] = -np.log(10.0) * spread, 0.0
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def residual_of(A: np.ndarray, log_reference: np.ndarray, tau: float, log_policy: np.ndarray) -> np.ndarray:
    """By the definition, with P = A + 1/2 and log Z as a number of its own."""
    target = log_reference + np.einsum("...ij,...j->...i", A + 0.5, np.exp(log_policy)) / tau
    target -= np.logaddexp.reduce(target, axis=-1, keepdims=True)
    return np.abs(log_policy - target).max(axis=-1)


@pytest.mark.parametrize("spread", [0.0, 12.0])
@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("kind", ["uniform", "tournament", "ties", "bradley-terry"])
def test_residual_on_every_family(kind: str, tau: float, spread: float) -> None:
    for n, count in ((1, 2), (2, 10), (3, 20), (6, 20), (25, 6), (90, 2)):
        rng = np.random.default_rng(n)
        A, reference = games(kind, count, n, rng), references(spread, count, n, rng)
        solution = solve_regularized(A, reference, tau)
        assert solution.residual.max() <= PROMISE
        # A second evaluation of the same residual, through P: it differs by the rounding of P / tau, 3e-13 at 1e-3.
        assert residual_of(A, reference, tau, solution.log_policy).max() <= 2 * PROMISE
        np.testing.assert_allclose(np.exp(solution.log_policy).sum(axis=-1), 1.0, rtol=0, atol=1e-14)
        assert solution.iterations.max() <= 120


@pytest.mark.parametrize("spread", [0.0, 12.0])
def test_thousand_responses_at_small_tau(spread: float) -> None:
    rng = np.random.default_rng(0)
    A, reference = games("uniform", 1, 1000, rng)[0], references(spread, 1, 1000, rng)[0]
    solution = solve_regularized(A, reference, 1e-3)
    assert solution.log_policy.shape == (1000,)
    assert solution.residual.shape == ()
    assert solution.residual <= PROMISE
    assert solution.iterations <= 60


def test_two_responses_by_hand() -> None:
    """A = [[0, a], [-a, 0]], uniform ref, tau = 1: the log-odds are a p_2 + a p_1 = a, so p_1 = 1 / (1 + e^-a)."""
    a = 0.4
    solution = solve_regularized(np.array([[0, a], [-a, 0]]), np.log([0.5, 0.5]), 1.0)
    np.testing.assert_allclose(np.exp(solution.log_policy), [1 / (1 + np.exp(-a)), 1 / (1 + np.exp(a))], atol=1e-15)


def test_indifferent_judge_keeps_the_reference() -> None:
    reference = references(12.0, 1, 7, np.random.default_rng(0))[0]
    solution = solve_regularized(np.zeros((7, 7)), reference, 0.05)
    np.testing.assert_allclose(solution.log_policy, reference, rtol=0, atol=1e-14)


def test_constant_in_the_log_reference_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    A, reference = games("uniform", 1, 8, rng)[0], references(3.0, 1, 8, rng)[0]
    first = solve_regularized(A, reference, 0.1).log_policy
    np.testing.assert_allclose(solve_regularized(A, reference + 5.0, 0.1).log_policy, first, rtol=0, atol=1e-12)


def test_small_tau_approaches_the_exact_equilibrium() -> None:
    """pi_tau is its own best response in J_tau, so (A pi_tau)_y <= tau log(1 / ref_y) and the gap is <= 2 tau log n."""
    A = games("tournament", 5, 9, np.random.default_rng(4))
    policy = np.exp(solve_regularized(A, np.full((5, 9), -np.log(9.0)), 1e-3).log_policy)
    gap = 2.0 * np.einsum("bij,bj->bi", A, policy).max(axis=-1)
    assert (gap <= 2e-3 * np.log(9.0)).all()


@pytest.mark.parametrize("tau", [1.0, 0.1, 0.02])
def test_agrees_with_the_exponential_cone(tau: float) -> None:
    """Clarabel stops at 1e-8 in the objective, which is quadratic near its minimum: about 1e-4 in probability."""
    rng = np.random.default_rng(6)
    A, reference = games("uniform", 1, 12, rng)[0], references(2.0, 1, 12, rng)[0]
    policy = np.exp(solve_regularized(A, reference, tau).log_policy)
    np.testing.assert_allclose(policy, solve_regularized_cvxpy(A, reference, tau), rtol=0, atol=1e-4)


def test_batch_with_its_own_tau_equals_single_calls() -> None:
    rng = np.random.default_rng(7)
    A = games("tournament", 6, 5, rng).reshape(2, 3, 5, 5)
    reference = references(6.0, 6, 5, rng).reshape(2, 3, 5)
    tau = np.array([10.0, 0.1, 1e-3])
    batch = solve_regularized(A, reference, tau)
    assert batch.residual.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        single = solve_regularized(A[i, j], reference[i, j], tau[j])
        # The residual of both is below 1e-12; the inverse Jacobian, of norm at most about 10 here, carries it over.
        np.testing.assert_allclose(batch.log_policy[i, j], single.log_policy, rtol=0, atol=1e-10)


def test_masked_responses_are_not_there() -> None:
    rng = np.random.default_rng(8)
    A, reference = games("uniform", 4, 9, rng), references(4.0, 4, 9, rng)
    mask = rng.random((4, 9)) < 0.6
    mask[:, 0] = True
    dirty = np.where(mask[:, :, None] & mask[:, None, :], A, np.nan)
    solution = solve_regularized(dirty, np.where(mask, reference, -np.inf), 0.05, mask)
    assert np.isneginf(solution.log_policy[~mask]).all()
    assert solution.residual.max() <= PROMISE
    for g in range(4):
        keep = mask[g]
        inner = solve_regularized(A[g][np.ix_(keep, keep)], reference[g, keep], 0.05)
        np.testing.assert_allclose(solution.log_policy[g, keep], inner.log_policy, rtol=0, atol=1e-11)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.floats(-3.0, 1.0), st.floats(0.0, 12.0))
def test_residual_on_random_problems(seed: int, n: int, log_tau: float, spread: float) -> None:
    rng = np.random.default_rng(seed)
    A = games(["uniform", "tournament", "ties", "bradley-terry"][seed % 4], 1, n, rng)[0]
    assert solve_regularized(A, references(spread, 1, n, rng)[0], 10.0**log_tau).residual <= PROMISE


@pytest.mark.parametrize(
    ("A", "reference", "tau", "message"),
    [
        (np.zeros((2, 3)), np.zeros(3), 1.0, "square"),
        (np.zeros((2, 2)), np.zeros(2), 0.0, "tau must be positive"),
        (np.zeros((2, 2)), np.zeros(2), -1.0, "tau must be positive"),
        (np.zeros((2, 2)), np.zeros(2), np.nan, "tau must be positive"),
        (np.zeros((2, 2)), np.array([0.0, -np.inf]), 1.0, "full support"),
        (np.array([[0.0, np.nan], [np.nan, 0.0]]), np.zeros(2), 1.0, "NaN"),
    ],
)
def test_bad_input(A: np.ndarray, reference: np.ndarray, tau: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve_regularized(A, reference, tau)
