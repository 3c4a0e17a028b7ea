"""Critics against cvxpy, against their own Frank–Wolfe gap, and by hand.

Tolerances: a critic's objective is promised to 1e-9 (1 + λ); Clarabel is asked for 1e-9 and trusted to 1e-7 (1 + λ).
Where a minimizer and not a minimum is compared, its error is about the square root of the objective's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.tabular.critic import RELATIVE_GAP, Box, Constrained, Critic, LinearBall
from nashpo.tabular.critic_ball import minimize_on_ball
from nashpo.tabular.critic_kernel import solve_batch
from nashpo.tabular.preferences import PreferenceData
from nashpo.tabular.reward_model import check_reward, maximum_likelihood_reward

ARMS = 8


def objective(data: PreferenceData, direction: np.ndarray, lam: Any, f: np.ndarray) -> np.ndarray:
    """E_x ⟨direction, f⟩ + λ L_D(f) per data set."""
    return data.value(direction, f) + lam * data.loss(f)


def member(data: PreferenceData, k: int) -> PreferenceData:
    """Data set k of a batch."""
    mask = None if data.mask is None else data.mask[k]
    return PreferenceData.from_counts(data.wins[k], ties=data.ties[k], mask=mask, weights=data.weights)


def frank_wolfe(data: PreferenceData, direction: np.ndarray, lam: float, f: np.ndarray, R: float) -> np.ndarray:
    """The box's gap of one data set, written anew: Σ max(g f, g (f − R)) with the gradient by its formula."""
    lost = 1 / (1 + np.exp(f[..., :, None] - f[..., None, :]))  # σ(f_j − f_i), how surely i should have lost
    share = data.wins / data.N
    gradient = data.weights[..., None] * direction + lam * (
        np.sum(np.swapaxes(share * lost, -1, -2), axis=-1) - np.sum(share * lost, axis=-1)
    )
    return np.sum(np.maximum(gradient * f, gradient * (f - R)))


# --- the box against cvxpy -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One data set of 8 responses, a direction and λ."""

    wins: np.ndarray
    direction: np.ndarray
    lam: float


def _full(rng: np.random.Generator) -> np.ndarray:
    return rng.poisson(rng.gamma(0.5, 20, size=(ARMS, ARMS))).astype(float)


def _separable(rng: np.random.Generator) -> np.ndarray:
    return np.triu(_full(rng))


def _two_groups(rng: np.random.Generator) -> np.ndarray:
    return np.kron(np.eye(2), np.ones((ARMS // 2, ARMS // 2))) * _full(rng)


def _two_responses(rng: np.random.Generator) -> np.ndarray:
    wins = np.zeros((ARMS, ARMS))
    wins[0, 1], wins[1, 0] = rng.integers(1, 9), rng.integers(0, 9)
    return wins


def _rare(rng: np.random.Generator) -> np.ndarray:
    mu = np.r_[0.5, 0.5, np.full(ARMS - 2, 1e-3)]
    return rng.poisson(1000 * np.outer(mu, mu)).astype(float) + _two_responses(rng)


SHAPES = [_full, _separable, _two_groups, _two_responses, _rare]
LAMBDAS = [0.0, 1e-3, 1.0, 30.0, 1e3, 1e6]


def problems(count: int, seed: int) -> Iterator[Problem]:
    rng = np.random.default_rng(seed)
    for k in range(count):
        wins = SHAPES[k % len(SHAPES)](rng) + np.eye(ARMS, k=1)  # never empty
        np.fill_diagonal(wins, 0)
        policy, reference = rng.dirichlet(np.ones(ARMS) * rng.choice([0.1, 1, 10]), size=2)
        yield Problem(wins, policy - reference, LAMBDAS[(k // len(SHAPES)) % len(LAMBDAS)])


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize(("R", "count"), [(1.0, 120), (3.0, 260), (10.0, 120)])
def test_500_random_problems_against_cvxpy(R: float, count: int) -> None:
    """One parametrized program, solved again and again; ours in one batched call. λ = 0 and λ = 10⁶ are among them."""
    batch = list(problems(count, seed=int(R)))
    data = PreferenceData.from_counts(np.stack([p.wins for p in batch]), independent=1)
    direction, lam = np.stack([p.direction for p in batch]), np.array([p.lam for p in batch])
    ours = Box(R).solve(data, direction, lam)
    assert (ours.gap <= RELATIVE_GAP * (1 + lam)).all()
    reached = objective(data, direction, lam, ours.values)

    i, j = np.nonzero(~np.eye(ARMS, dtype=bool))
    f, cost, strength = cp.Variable(ARMS), cp.Parameter(ARMS), cp.Parameter(len(i), nonneg=True)
    program = cp.Problem(cp.Minimize(cost @ f + strength @ cp.logistic(f[j] - f[i])), [f >= 0, f <= R])
    theirs = np.empty_like(ours.values)
    for k, problem in enumerate(batch):
        # Divided by 1 + λ, so that the solver's tolerances are relative to it.
        cost.value = problem.direction / (1 + problem.lam)
        strength.value = data.frequencies[k][i, j] * problem.lam / (1 + problem.lam)
        program.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
        theirs[k] = np.clip(f.value, 0, R)
    difference = (reached - objective(data, direction, lam, theirs)) / (1 + lam)
    assert difference.max() <= 1e-9
    assert difference.min() >= -1e-7


def hard_problem(rng: np.random.Generator) -> tuple[float, float, np.ndarray, np.ndarray, np.ndarray]:
    """λ, R, cost, frequencies and start, over as many orders of magnitude as float64 is promised to bear."""
    n = int(rng.choice([1, 2, 3, 4, 8, 12, 20]))
    wins = rng.poisson(rng.gamma(0.3, size=(n, n)) * 10 ** rng.uniform(-1, 2)).astype(float)
    kind = rng.integers(6)
    if kind == 1:
        wins = np.triu(wins)
    elif kind == 2:
        group = rng.integers(3, size=n)
        wins *= group[:, None] == group
    elif kind == 3:
        mu = np.full(n, 1e-4)
        mu[:2] = 0.5
        wins = rng.poisson(10 ** rng.uniform(0, 7) * np.outer(mu, mu)).astype(float)
    elif kind == 4:
        wins *= 10 ** rng.uniform(-6, 6, size=(n, n))
    elif kind == 5:
        wins = np.diag(rng.integers(0, 4, n - 1), 1) + np.diag(rng.integers(0, 4, n - 1), -1) + np.zeros((n, n))
    np.fill_diagonal(wins, 0)
    share = wins / max(wins.sum(), 1.0) * rng.choice([1, 0.5, 1e-3])
    R = float(rng.choice([1e-3, 0.1, 1, 3, 10, 100, 1e3]))
    lam = float(rng.choice([0, 1e-6, 1e-3, 1, 10, 1e3, 1e6, 1e9]) * rng.uniform(0.5, 2))
    policy = rng.dirichlet(np.full(n, 10 ** rng.uniform(-1, 1)))
    cost = (policy - rng.dirichlet(np.ones(n))) * rng.choice([1, 1, 1e-4, 0])
    start = [np.full(n, R / 2), rng.uniform(0, R, n), R * rng.integers(0, 2, n).astype(float)][rng.integers(3)]
    return lam, R, cost, np.ascontiguousarray(share), start


def solve(
    lam: float, R: float, cost: np.ndarray, share: np.ndarray, start: np.ndarray, limit: int
) -> tuple[np.ndarray, float]:
    values, gap, iterations = start[None].copy(), np.empty(1), np.empty(1, np.int64)
    tolerance = np.array([RELATIVE_GAP * (1 + lam)])
    solve_batch(cost[None], share[None], np.array([lam]), R, tolerance, limit, values, gap, iterations)
    return values[0], float(gap[0])


def test_the_gap_is_reached_on_hard_problems() -> None:
    """λ from 0 to 2·10⁹, R from 10⁻³ to 10³, separable and disconnected data, one response, any start.

    By the Newton steps, and by the barrier method alone (no Newton step allowed), with the same minimum.
    """
    rng = np.random.default_rng(0)
    for _ in range(3000):
        lam, R, cost, share, start = hard_problem(rng)
        allowed = RELATIVE_GAP * (1 + lam)
        values, gap = solve(lam, R, cost, share, start, 60)
        barrier, barrier_gap = solve(lam, R, cost, share, start, 0)
        assert 0 <= gap <= allowed
        assert 0 <= barrier_gap <= allowed
        for f in (values, barrier):
            assert f.min() >= 0
            assert f.max() <= R
        loss = [cost @ f + lam * np.sum(share * np.logaddexp(0, f[None, :] - f[:, None])) for f in (values, barrier)]
        # The gaps bound the difference; 4e-16 is a rounding of the terms that are added up.
        assert abs(loss[0] - loss[1]) <= 2 * allowed + 4e-16 * (R + lam * R)


# --- what the box promises -------------------------------------------------------------------------------------------


def contextual(seed: int, prompts: int = 3, data_sets: int = 2, n: int = 5) -> tuple[PreferenceData, np.ndarray]:
    """Replicates of a contextual data set with a mask (one prompt has a single response), and a direction."""
    rng = np.random.default_rng(seed)
    mask = rng.random((prompts, n)) < 0.8
    mask[:, 0] = True
    mask[0] = np.arange(n) == 0
    mask[1] = True
    wins = rng.poisson(2.0, size=(data_sets, prompts, n, n)) * (mask[:, :, None] & mask[:, None, :])
    data = PreferenceData.from_counts(wins, mask=mask, independent=1)
    policy = rng.random((2, data_sets, prompts, n)) * mask
    policy /= policy.sum(axis=-1, keepdims=True)
    return data, policy[0] - policy[1]


def test_the_reported_gap_is_the_gap() -> None:
    """Summed over the contexts of a data set, and within the tolerance of the data set and not of each context."""
    for seed in range(20):
        data, direction = contextual(seed)
        for lam in (0.0, 3.0, 1e4):
            found = Box(2.0).solve(data, direction, lam)
            assert found.gap.shape == (2,)
            for k in range(2):
                written_anew = frank_wolfe(member(data, k), direction[k], lam, found.values[k], 2.0)
                assert_allclose(found.gap[k], written_anew, rtol=1e-6, atol=1e-14 * (1 + lam))
                assert written_anew <= RELATIVE_GAP * (1 + lam)
            assert_array_equal(found.values[~np.broadcast_to(data.exists, found.values.shape)], 0.0)


def test_two_responses_by_hand() -> None:
    """One win each of 2 pairs, direction (¼, −¼), λ = 1: in m = f_0 − f_1 the objective is m/4 + ½ log σ⁻¹ both ways.

    Its derivative ¼ + ½ (σ(m) − σ(−m)) = ¼ + σ(m) − ½ vanishes at σ(m) = ¼, m = −log 3.
    """
    data = PreferenceData.from_counts([[0, 1], [1, 0]])
    f = Box(3.0).solve(data, np.array([0.25, -0.25]), 1.0).values
    assert_allclose(f[0] - f[1], -np.log(3), atol=1e-4)
    # In a box of width 1 the difference −log 3 does not fit: the critic is at opposite corners.
    assert_array_equal(Box(1.0).solve(data, np.array([0.25, -0.25]), 1.0).values, [0.0, 1.0])


def test_responses_without_data_are_decided_by_the_direction() -> None:
    """0 where π > ref, R where π < ref; where π = ref they stay where the last critic was."""
    data = PreferenceData.from_counts(np.pad([[0.0, 4.0], [2.0, 0.0]], (0, 3)))
    direction = np.array([0.0, 0.0, 0.3, -0.3, 0.0])
    assert_array_equal(Box(2.0).solve(data, direction, 5.0).values[2:], [0.0, 2.0, 1.0])
    warm = Critic(np.full(5, 0.25), np.zeros(()))
    assert_array_equal(Box(2.0).solve(data, direction, 5.0, warm).values[2:], [0.0, 2.0, 0.25])
    # Without weight on the data it is so for all.
    everything = Box(2.0).solve(data, np.array([0.1, -0.1, 0.3, -0.3, 0.0]), 0.0)
    assert_array_equal(everything.values, [0.0, 2.0, 0.0, 2.0, 1.0])
    assert float(everything.gap) == 0.0


def test_a_batch_is_its_members() -> None:
    data, direction = contextual(3, data_sets=4)
    lam = np.array([0.0, 1.0, 50.0, 1e6])
    together = Box(3.0).solve(data, direction, lam)
    for k in range(4):
        found = Box(3.0).solve(member(data, k), direction[k], lam[k])
        assert_array_equal(together.values[k], found.values)
        assert_array_equal(together.gap[k], found.gap)


def test_several_directions_on_one_data_set() -> None:
    data, direction = contextual(4)
    many = np.stack([direction, -direction, 0 * direction])
    together = Box(3.0).solve(data, many, 7.0)
    assert together.gap.shape == (3, 2)
    for k in range(3):
        assert_array_equal(together.values[k], Box(3.0).solve(data, many[k], 7.0).values)


def test_a_warm_start_at_the_solution_stays_there() -> None:
    data, direction = contextual(5)
    first = Box(3.0).solve(data, direction, 20.0)
    assert_array_equal(Box(3.0).solve(data, direction, 20.0, first).values, first.values)


@pytest.mark.parametrize("lam", [-1.0, np.nan, np.inf])
def test_bad_weights_are_refused(lam: float) -> None:
    data, direction = contextual(6)
    for critics in (Box(3.0), LinearBall(np.ones((5, 1)), 1.0), Constrained(lambda f: [f >= 0, f <= 1])):
        with pytest.raises(ValueError, match="lam = .* must be a finite number >= 0"):
            critics.solve(data, direction, lam)


def test_other_bad_input() -> None:
    data, direction = contextual(7)
    for R in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="R = .* must be a number > 0"):
            Box(R)
    with pytest.raises(ValueError, match="NaN or infinite"):
        Box(1.0).solve(data, direction * np.nan, 1.0)
    with pytest.raises(ValueError, match="float64 does not resolve so wide a box"):
        Box(1e9).solve(data, direction, 1e3)
    assert Box(1e9).minimize(data, direction, 1e3).gap.max() > RELATIVE_GAP  # not raised, but not hidden either
    with pytest.raises(ValueError, match=r"features have shape \(4, 1\); the data need"):
        LinearBall(np.ones((4, 1)), 1.0).solve(data, direction, 1.0)
    with pytest.raises(ValueError, match="not finite"):
        LinearBall(np.full((5, 1), np.nan), 1.0)
    with pytest.raises(ValueError, match="radius = 0 must be"):
        LinearBall(np.ones((5, 1)), 0.0)


# --- other classes ---------------------------------------------------------------------------------------------------


def test_the_linear_ball_against_cvxpy() -> None:
    rng = np.random.default_rng(0)
    for k, lam in enumerate([0.0, 1e-2, 1.0, 50.0, 1e4, 1e6] * 2):
        data, direction = contextual(100 + k)
        features = rng.normal(size=(3, 5, 1 + k % 4))
        radius = float(10 ** rng.uniform(-1, 1))
        found = LinearBall(features, radius).solve(data, direction, lam)
        assert found.parameters is not None
        assert found.parameters.shape == (2, features.shape[-1])
        assert np.linalg.norm(found.parameters, axis=-1).max() <= radius * (1 + 1e-14)
        assert (found.gap <= RELATIVE_GAP * (1 + lam)).all()
        for s in range(2):
            theta = cp.Variable(features.shape[-1])
            f = [features[x] @ theta for x in range(3)]
            share = data.frequencies[s]
            loss = sum(
                share[x, i, j] * cp.logistic(f[x][j] - f[x][i]) for x, i, j in zip(*np.nonzero(share), strict=True)
            )
            linear = sum((data.weights[x] * np.where(data.exists[s, x], direction[s, x], 0)) @ f[x] for x in range(3))
            program = cp.Problem(cp.Minimize((linear + lam * loss) / (1 + lam)), [cp.norm(theta, 2) <= radius])
            program.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
            ties = lam * data.ties[s].sum() / data.N[s] * np.log(2)
            ours = objective(data, direction, lam, found.values)[s] - ties
            assert abs(ours / (1 + lam) - program.value) <= 1e-7


def test_the_linear_ball_by_hand() -> None:
    """Without data θ = −radius · b/‖b‖ for the direction's mean feature b; and the gap is ⟨∇, θ⟩ + radius ‖∇‖."""
    theta, gap = minimize_on_ball(np.array([3.0, -4.0]), np.zeros((0, 2)), np.zeros(0), 2.0, 1e-12, np.zeros(2))
    assert_allclose(theta, [-1.2, 1.6], rtol=1e-14)
    assert gap <= 1e-12
    # One feature, one pair of difference 1 and strength 1: ¼ − σ(−θ) = 0 at θ = log 3, inside a ball of 2 …
    theta, gap = minimize_on_ball(np.array([0.25]), np.ones((1, 1)), np.ones(1), 2.0, 1e-12, np.zeros(1))
    assert_allclose(theta, [np.log(3)], atol=1e-6)
    # … and on the edge of a ball of 1.
    theta, gap = minimize_on_ball(np.array([0.25]), np.ones((1, 1)), np.ones(1), 1.0, 1e-12, np.zeros(1))
    assert_allclose(theta, [1.0], rtol=1e-14)


def test_the_linear_ball_on_hard_problems() -> None:
    """Features that repeat, radii from 10⁻² to 10², strengths up to 10⁹: the promised gap, from any start."""
    rng = np.random.default_rng(1)
    for _ in range(500):
        d, pairs = rng.integers(1, 8), rng.integers(0, 30)
        differences = rng.normal(size=(pairs, d)) * rng.integers(0, 2, size=d)
        lam = 10 ** rng.uniform(-3, 9)
        strength = lam * rng.dirichlet(np.full(pairs, 0.3)) if pairs else np.zeros(0)
        radius = 10 ** rng.uniform(-2, 2)
        start = rng.normal(size=d) * radius
        theta, gap = minimize_on_ball(rng.normal(size=d), differences, strength, radius, 1e-9 * (1 + lam), start)
        assert gap <= 1e-9 * (1 + lam)
        assert np.linalg.norm(theta) <= radius * (1 + 1e-14)


def test_a_cvxpy_class_that_is_the_box() -> None:
    for seed, lam in enumerate([0.0, 2.0, 300.0]):
        data, direction = contextual(20 + seed)
        box = Box(1.5).solve(data, direction, lam)
        stated = Constrained(lambda f: [f >= 0, f <= 1.5]).solve(data, direction, lam)
        assert (stated.gap <= 1e-3 * (1 + lam)).all()
        difference = objective(data, direction, lam, stated.values) - objective(data, direction, lam, box.values)
        assert abs(difference).max() <= 1e-7 * (1 + lam)


def test_a_cvxpy_class_of_monotone_critics() -> None:
    """Responses in an order: where the data speak against it, neighbours are pooled."""
    data = PreferenceData.from_counts([[0, 0, 6], [1, 0, 0], [0, 1, 0]])
    found = Constrained(lambda f: [f >= 0, f <= 3, cp.diff(f) >= 0]).solve(data, np.zeros(3), 10.0)
    assert np.diff(found.values).min() >= -1e-6
    free = Box(3.0).solve(data, np.zeros(3), 10.0)
    assert data.loss(free.values) < data.loss(found.values) - 0.1


def test_cvxpy_classes_that_are_none() -> None:
    data, direction = contextual(30)
    with pytest.raises(ValueError, match="class is empty"):
        Constrained(lambda f: [f >= 1, f <= 0]).solve(data, direction, 1.0)
    with pytest.raises(ValueError, match="unbounded over its class"):
        Constrained(lambda f: [f >= 0]).solve(data, direction, 0.0)


# --- the maximum-likelihood reward -----------------------------------------------------------------------------------


def test_the_likelihood_by_hand() -> None:
    """3 wins against 1: a difference of log 3, with mean R/2; a response without data has R/2."""
    reward = maximum_likelihood_reward(PreferenceData.from_counts([[0, 3, 0], [1, 0, 0], [0, 0, 0]]), 4.0)
    assert_allclose(reward, [2 + np.log(3) / 2, 2 - np.log(3) / 2, 2.0], atol=1e-12)
    # Only wins: opposite edges.
    assert_array_equal(maximum_likelihood_reward(PreferenceData.from_counts([[0, 3], [0, 0]]), 4.0), [4.0, 0.0])


def test_the_gauge_is_the_one_of_gradient_descent() -> None:
    """Two groups that were never compared, from R/2 by plain gradient descent, without meeting an edge."""
    rng = np.random.default_rng(2)
    wins = np.kron(np.eye(2), np.ones((3, 3))) * rng.integers(3, 12, size=(6, 6))
    np.fill_diagonal(wins, 0)
    data = PreferenceData.from_counts(wins)
    r = np.full(6, 5.0)
    share = data.frequencies
    for _ in range(20_000):
        lost = 1 / (1 + np.exp(r[:, None] - r[None, :]))
        r += 0.5 * np.sum(share * lost - (share * lost).T, axis=1)
    assert_allclose(maximum_likelihood_reward(data, 10.0), r, atol=1e-9)


def test_the_likelihood_is_stationary() -> None:
    """Inside the box the gradient vanishes to rounding: the polish goes beyond the promised gap."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        wins = rng.integers(1, 30, size=(6, 6)).astype(float)
        np.fill_diagonal(wins, 0)
        data = PreferenceData.from_counts(wins)
        r = maximum_likelihood_reward(data, 20.0)
        lost = 1 / (1 + np.exp(r[:, None] - r[None, :]))
        gradient = np.sum(data.frequencies * lost - (data.frequencies * lost).T, axis=1)
        assert_allclose(gradient, 0, atol=1e-14)


def test_stated_rewards_lie_in_the_box() -> None:
    check_reward(np.array([0.0, 3.0]), 3.0)
    with pytest.raises(ValueError, match="R = 2 is below the largest reward 3"):
        check_reward(np.array([0.0, 3.0]), 2.0)
    with pytest.raises(ValueError, match="smallest reward is -1"):
        check_reward(np.array([-1.0, 1.0]), 2.0)
    with pytest.raises(ValueError, match="NaN"):
        check_reward(np.array([np.nan]), 2.0)
