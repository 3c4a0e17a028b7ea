"""Exact Nash by the skew interior point: the gap everywhere, foreign solvers, batches, masks, degenerate games.

Tolerances: a gap of 1e-12 is the promise; the solver stops at 2e-14 and rounding of A x adds about 1e-16 n^(1/2).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nashpo.tabular import interior_point
from nashpo.tabular.interior_point import solve_skew
from nashpo.tabular.linear_program import solve_highs

PROMISE = 1e-12


def skew(upper: np.ndarray) -> np.ndarray:
    upper = np.triu(upper, 1)
    return upper - np.swapaxes(upper, -1, -2)


def uniform(n: int, rng: np.random.Generator) -> np.ndarray:
    return skew(rng.random((n, n)) - 0.5)


def tournament(n: int, rng: np.random.Generator) -> np.ndarray:
    return skew(rng.choice([-0.5, 0.5], (n, n)))


def ties(n: int, rng: np.random.Generator) -> np.ndarray:
    return skew(rng.choice([-0.5, 0.0, 0.5], (n, n)))


def duplicates(n: int, rng: np.random.Generator) -> np.ndarray:
    index = rng.integers(0, max(1, n // 2), n)
    return uniform(n, rng)[np.ix_(index, index)]


def cycle(n: int, rng: np.random.Generator) -> np.ndarray:
    A = np.zeros((n, n))
    for i in range(n):
        A[i, (i + 1) % n] += 0.5
        A[(i + 1) % n, i] -= 0.5
    return A


def all_equal(n: int, rng: np.random.Generator) -> np.ndarray:
    return np.zeros((n, n))


def bradley_terry_huge(n: int, rng: np.random.Generator) -> np.ndarray:
    reward = rng.normal(size=n) * 10.0 ** rng.integers(-8, 4)
    return skew(0.5 * np.tanh((reward[:, None] - reward) / 2))


def low_rank(n: int, rng: np.random.Generator) -> np.ndarray:
    u, v = rng.normal(size=(2, n, 1))
    return skew(0.5 * np.tanh((u @ v.T - v @ u.T) * 10.0 ** rng.integers(-3, 3)))


def tiny_margins(n: int, rng: np.random.Generator) -> np.ndarray:
    return uniform(n, rng) * 10.0 ** -rng.integers(1, 15)


def mixed_scales(n: int, rng: np.random.Generator) -> np.ndarray:
    return skew(rng.choice([1e-12, 1e-9, 1e-6, 1e-3, 0.5], (n, n)) * rng.choice([-1, 1], (n, n)))


FAMILIES = [
    uniform,
    tournament,
    ties,
    duplicates,
    cycle,
    all_equal,
    bradley_terry_huge,
    low_rank,
    tiny_margins,
    mixed_scales,
]
Family = Callable[[int, np.random.Generator], np.ndarray]


def gap_of(A: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 2.0 * np.einsum("...ij,...j->...i", A, x).max(axis=-1)


def assert_equilibrium(A: np.ndarray, policy: np.ndarray) -> None:
    assert np.isfinite(policy).all()
    assert (policy >= 0.0).all()
    np.testing.assert_allclose(policy.sum(axis=-1), 1.0, rtol=0, atol=1e-14)
    assert gap_of(A, policy).max() <= PROMISE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 20, 64])
def test_gap_of_a_batch_on_every_family(family: Family, n: int) -> None:
    rng = np.random.default_rng(n)
    A = np.stack([family(n, rng) for _ in range(40 if n <= 20 else 8)])
    solution = solve_skew(A)
    assert_equilibrium(A, solution.policy)
    np.testing.assert_allclose(solution.gap, gap_of(A, solution.policy), rtol=0, atol=1e-15)
    assert solution.iterations.max() < 60


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [65, 120])
def test_gap_on_the_lapack_path(family: Family, n: int) -> None:
    A = family(n, np.random.default_rng(n))
    solution = solve_skew(A)
    assert solution.policy.shape == (n,)
    assert solution.gap.shape == ()
    assert_equilibrium(A, solution.policy)
    assert solution.iterations < 60


def test_thousand_responses() -> None:
    A = uniform(1000, np.random.default_rng(0))
    solution = solve_skew(A)
    assert_equilibrium(A, solution.policy)
    assert solution.iterations <= 20


def test_rock_paper_scissors_by_hand() -> None:
    """Rock beats scissors by a, paper beats rock by b, scissors beat paper by c: x is proportional to (c, a, b).

    With A x = 0 for rows (0, -b, a), (b, 0, -c), (-a, c, 0): the first says x_p / x_s = a / b. For a, b, c = .1, .2, .4
    the policy is (4, 1, 2) / 7.
    """
    a, b, c = 0.1, 0.2, 0.4
    A = np.array([[0, -b, a], [b, 0, -c], [-a, c, 0]])
    np.testing.assert_allclose(solve_skew(A).policy, np.array([4, 1, 2]) / 7, rtol=0, atol=1e-14)


def test_dominated_dummies_get_exactly_nothing() -> None:
    A = np.zeros((5, 5))
    A[:3, :3] = cycle(3, np.random.default_rng(0))
    A[:3, 3:], A[3:, :3] = 0.2, -0.2
    policy = solve_skew(A).policy
    np.testing.assert_allclose(policy[:3], 1 / 3, rtol=0, atol=1e-14)
    assert (policy[3:] == 0.0).all()


@pytest.mark.parametrize("copies", [2, 40])
def test_dummies_beside_ties_get_exactly_nothing(copies: int) -> None:
    """Every response of a cycle doubled, so that no vertex is accepted and the iteration runs to its end."""
    rock_paper_scissors = cycle(3, np.random.default_rng(0))
    index = np.arange(3 * copies) % 3
    n = len(index)
    A = np.zeros((n + 4, n + 4))
    A[:n, :n] = rock_paper_scissors[np.ix_(index, index)]
    A[:n, n:], A[n:, :n] = 0.2, -0.2
    A[0, n], A[n, 0] = -0.1, 0.1  # one dummy beats one response
    solution = solve_skew(A)
    assert_equilibrium(A, solution.policy)
    assert (solution.policy[n:] == 0.0).all()


def test_unbeaten_responses_share_the_policy_with_gap_zero() -> None:
    A = bradley_terry_huge(6, np.random.default_rng(3))
    one = solve_skew(A)
    assert sorted(one.policy) == [0, 0, 0, 0, 0, 1]
    assert one.gap == 0.0
    assert one.iterations == 0
    assert (solve_skew(np.zeros((4, 4))).policy == 0.25).all()
    tied = np.zeros((3, 3))
    tied[:2, 2], tied[2, :2] = 0.3, -0.3
    assert (solve_skew(tied).policy == [0.5, 0.5, 0.0]).all()


def test_maximal_support_where_no_response_is_unbeaten() -> None:
    """Rock-paper-scissors with rock doubled: every split of rock's third is an equilibrium; the path plays both.

    Its limit is the even split, which rounding reaches to 1e-3 only: the payoff does not see the difference.
    """
    index = [0, 0, 1, 2]
    A = cycle(3, np.random.default_rng(0))[np.ix_(index, index)]
    np.testing.assert_allclose(solve_skew(A).policy, [1 / 6, 1 / 6, 1 / 3, 1 / 3], rtol=0, atol=1e-3)


def test_both_paths_agree_where_the_equilibrium_is_unique(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    for n in (3, 9, 30, 60):
        A = tournament(n, rng)
        compiled = solve_skew(A).policy
        with monkeypatch.context() as patch:
            patch.setattr(interior_point, "LARGEST_COMPILED", 0)
            lapack = solve_skew(A).policy
        np.testing.assert_allclose(compiled, lapack, rtol=0, atol=1e-11)


@pytest.mark.parametrize("n", [12, 80])
def test_masked_responses_are_not_there(n: int) -> None:
    rng = np.random.default_rng(n)
    A = np.stack([uniform(n, rng) for _ in range(6)]).reshape(2, 3, n, n)
    mask = rng.random((2, 3, n)) < 0.6
    mask[0, 0] = False
    mask[0, 0, 2] = True
    dirty = np.where(mask[..., None] & mask[..., None, :], A, np.nan)
    solution = solve_skew(dirty, mask)
    assert (solution.policy[~mask] == 0.0).all()
    assert solution.policy[0, 0, 2] == 1.0
    for game in np.ndindex(2, 3):
        keep = mask[game]
        inner = A[game][np.ix_(keep, keep)]
        assert_equilibrium(inner, solution.policy[game][keep])
        np.testing.assert_allclose(solution.policy[game][keep], solve_skew(inner).policy, rtol=0, atol=1e-11)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    A = np.stack([uniform(4, rng) for _ in range(50)])
    whole = solve_skew(A)
    monkeypatch.setattr(interior_point, "GAMES_PER_THREAD", 10)
    monkeypatch.setattr(interior_point.numba, "get_num_threads", lambda: 3)
    split = solve_skew(A)
    assert (split.policy == whole.policy).all()
    assert (split.iterations == whole.iterations).all()


@pytest.mark.parametrize("n", [3, 10, 40])
def test_agrees_with_highs_and_quantecon_where_unique(n: int) -> None:
    """A {0,1} tournament has one equilibrium (Fisher and Ryan 1992). HiGHS stops at a feasibility of 1e-7."""
    minmax = pytest.importorskip("quantecon.optimize").minmax
    rng = np.random.default_rng(n)
    for _ in range(5):
        A = tournament(n, rng)
        policy = solve_skew(A).policy
        np.testing.assert_allclose(policy, solve_highs(A), rtol=0, atol=1e-6)
        value, x, y = minmax(A)
        np.testing.assert_allclose(policy, x, rtol=0, atol=1e-9)
        np.testing.assert_allclose(policy, y, rtol=0, atol=1e-9)
        assert abs(value) <= PROMISE


def test_agrees_with_nashpy_where_unique() -> None:
    nashpy = pytest.importorskip("nashpy")
    rng = np.random.default_rng(2)
    for n in (3, 5):
        A = uniform(n, rng)
        ours = solve_skew(A).policy
        assert gap_of(A, ours) <= PROMISE
        theirs = [x for x, _ in nashpy.Game(A, -A).vertex_enumeration()]
        assert min(np.abs(x - ours).max() for x in theirs) < 1e-9


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(1, 9).flatmap(lambda n: arrays(np.float64, (n, n), elements=st.floats(-0.5, 0.5))))
def test_gap_on_adversarial_matrices(upper: np.ndarray) -> None:
    A = skew(upper)
    assert_equilibrium(A, solve_skew(A).policy)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12))
def test_relabelling_moves_the_policy_along(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    A, order = uniform(n, rng), rng.permutation(n)
    moved = solve_skew(A[np.ix_(order, order)]).policy
    assert gap_of(A[np.ix_(order, order)], solve_skew(A).policy[order]) <= PROMISE
    # A nearly singular support spreads rounding: 1e-16 over the smallest singular value, rarely below 1e-8 here.
    np.testing.assert_allclose(moved, solve_skew(A).policy[order], rtol=0, atol=1e-7)


def test_empty_batch() -> None:
    assert solve_skew(np.zeros((0, 3, 3))).policy.shape == (0, 3)


@pytest.mark.parametrize(
    ("A", "mask", "message"),
    [
        (np.zeros((2, 3)), None, "square"),
        (np.zeros((0, 0)), None, "at least one response"),
        (np.zeros((2, 3, 3)), np.ones(3, bool), "mask must have the shape"),
        (np.zeros((2, 2)), np.zeros(2, bool), "mask leaves no response"),
        (np.array([[0.0, np.nan], [np.nan, 0.0]]), None, "NaN"),
        (np.full((70, 70), np.nan), None, "NaN"),
    ],
)
def test_bad_input(A: np.ndarray, mask: np.ndarray | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve_skew(A, mask)
