"""Playing on preference data: SPAC's inequalities at every step, by hand where there is a closed form, and refusals.

Tolerances: the inequalities hold for exact critics; ours add their Frank–Wolfe gap of 1e-9 (1 + λ) and roundings of
order 1e-13 (1 + λ). Policies that are computed in two ways agree to 1e-12 where a critic is the same number, and to
1e-6 where two solves of the same critic are compared (its minimizer is known to the root of the gap).
"""

import dataclasses
import math
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.core.policies import mirror_step
from nashpo.core.rules import DPO, IPO, SPPO
from nashpo.core.rules.spac import SPAC
from nashpo.core.schedules import Power, Table
from nashpo.core.theorems import Setting
from nashpo.tabular.critic import Box, Constrained, LinearBall
from nashpo.tabular.instances import rare_arms
from nashpo.tabular.offline import OfflineRun, play_offline
from nashpo.tabular.preferences import PreferenceData
from nashpo.tabular.reward_model import maximum_likelihood_reward
from nashpo.tabular.spac_inequalities import inequalities

ROUNDING = 1e-13


@dataclasses.dataclass(frozen=True)
class Instance:
    """Replicates of contextual Bradley–Terry data with masks, and all that a run needs."""

    data: PreferenceData
    reward: np.ndarray
    reference: np.ndarray
    comparator: np.ndarray
    R: float


def instance(seed: int, N: int = 200, prompts: int = 3, n: int = 5, data_sets: int = 3) -> Instance:
    rng = np.random.default_rng(seed)
    R = float(rng.choice([0.5, 3.0, 8.0]))
    reward = rng.random((prompts, n)) * R
    mask = rng.random((prompts, n)) < 0.8
    mask[:, :2] = True
    behavior = rng.gamma(0.5, size=(prompts, n)) * mask
    behavior /= behavior.sum(axis=-1, keepdims=True)
    both = behavior[:, :, None] * behavior[:, None, :]
    pairs = rng.multinomial(N, (both / both.sum()).ravel(), size=data_sets).reshape(data_sets, prompts, n, n)
    wins = rng.binomial(pairs, 1 / (1 + np.exp(reward[:, None, :] - reward[:, :, None]))).astype(float)
    wins += np.swapaxes(pairs - wins, -1, -2)
    ties = np.trace(wins, axis1=-2, axis2=-1) / 2  # both orders of a tie were counted
    wins[..., np.arange(n), np.arange(n)] = 0
    data = PreferenceData.from_counts(wins, ties=ties, mask=mask, independent=1)
    reference = 0.9 * behavior + 0.1 * mask / mask.sum(axis=-1, keepdims=True)
    best = np.eye(n)[np.argmax(np.where(mask, reward, -1), axis=-1)]
    anyone = rng.random((prompts, n)) * mask
    comparator = [best, anyone / anyone.sum(axis=-1, keepdims=True)][seed % 2]
    return Instance(data, np.where(mask, reward, 0), reference, comparator, R)


@pytest.mark.parametrize("seed", range(12))
def test_the_inequalities_at_every_step(seed: int) -> None:
    """S1, S2, S3 and S4, with λ from 0 to 10⁶ and step sizes far from the tuned one, on data of any size."""
    rng = np.random.default_rng(seed)
    case = instance(seed, N=int(10 ** rng.uniform(1, 4)))
    lam = float([0.0, 1.0, 30.0, 1e6][seed % 4])
    rule = SPAC(eta=float(10 ** rng.uniform(-2, 1)) / case.R, lam=lam, R=case.R)
    run = play_offline(rule, case.data, 30, reference=case.reference, record="all")
    found = inequalities(rule, run, case.reward, case.comparator)
    assert set(found) == {"spac.pessimism", "spac.likelihood", "spac.decomposed", "spac.actor", "spac.certificate"}
    for name, (left, right) in found.items():
        assert left.shape == right.shape == (30, 3), name
        assert (left <= right + (1e-9 + ROUNDING) * (1 + lam) * (1 + case.R)).all(), name
    assert run.critic_gap is not None
    assert run.critic_gap.shape == (3,)
    assert (run.critic_gap <= 1e-9).all()
    assert run.critics.min() >= 0
    assert run.critics.max() <= case.R


def test_the_inequalities_are_close_to_what_they_bound() -> None:
    """So that a wrong factor in a bound is seen: with r* = f_t the sides of S1 and S2 are equal, near f_t almost.

    Inside the box the sides' difference is λ times the second-order part of L(r*), so that a first-order term with a
    wrong factor would be negative for r* on one side of f_t.
    """
    rng = np.random.default_rng(0)
    wins = rng.integers(30, 60, size=(4, 4)).astype(float)
    data, R = PreferenceData.from_counts(wins), 9.0
    rule = SPAC(eta=0.2, lam=20.0, R=R)
    run = play_offline(rule, data, 5, reference=[0.4, 0.3, 0.2, 0.1], record="all")
    critic = run.critics[3]
    assert 0.1 < critic.min() < critic.max() < R - 0.1
    for size in (0.0, *[1e-3] * 20):
        truth = critic + size * rng.normal(size=4)
        found = inequalities(rule, run, truth, [1.0, 0, 0, 0])
        for name in ("spac.pessimism", "spac.decomposed"):
            left, right = found[name]
            assert_allclose(left[3], right[3], atol=1e-12 + 20 * size**2 * 10)
            assert left[3] <= right[3] + 1e-8, name


def test_schedules_leave_out_what_needs_constants() -> None:
    case = instance(2)
    rule = SPAC(eta=Power(0.3, 0.5), lam=Table((5.0, 50.0)), R=case.R)
    run = play_offline(rule, case.data, 20, reference=case.reference, record="all")
    found = inequalities(rule, run, case.reward, case.comparator)
    assert set(found) == {"spac.pessimism", "spac.likelihood", "spac.decomposed"}
    for left, right in found.values():
        assert (left <= right + 1e-7).all()
    constant_step = dataclasses.replace(rule, eta=0.3)
    run = play_offline(constant_step, case.data, 20, reference=case.reference, record="all")
    assert "spac.actor" in inequalities(constant_step, run, case.reward, case.comparator)


def test_the_declared_theorems_are_these() -> None:
    case = instance(4)
    rule = SPAC(eta=0.2, lam=10.0, R=case.R)
    run = play_offline(rule, case.data, 7, reference=case.reference, record="all")
    found = inequalities(rule, run, case.reward, case.comparator)
    D = run.notes["D"]
    assert_allclose(D, np.log(1 / case.reference[case.data.exists[0]].min()), rtol=1e-12)
    bounds = {t.id: b for t, b in rule.bounds(Setting(D, 7, pessimism_cost=0.5))}
    assert_allclose(found["spac.actor"][1][-1], bounds["spac.actor"], rtol=1e-14)
    assert_allclose(bounds["spac.certificate"] - bounds["spac.actor"], 0.5, rtol=1e-14)


def test_each_step_is_the_mirror_step_with_its_critic() -> None:
    case = instance(3)
    rule = SPAC(eta=0.7, lam=12.0, R=case.R)
    run = play_offline(rule, case.data, 10, reference=case.reference, record="all")
    assert_allclose(run.policies[0], np.broadcast_to(case.reference, run.policies[0].shape), rtol=1e-14)
    with np.errstate(divide="ignore"):
        logs = np.log(run.policies)
    for t in range(10):
        expected = np.exp(mirror_step([(1.0, logs[t])], [(0.7, run.critics[t])]))
        assert_allclose(run.recorded_last[t], expected, rtol=1e-11, atol=1e-300)
        assert_allclose(run.recorded_average[t], run.policies[: t + 1].mean(axis=0), rtol=1e-12)
        fresh = Box(case.R).solve(case.data, run.policies[t] - case.reference, 12.0)
        objective = [
            case.data.value(run.policies[t] - case.reference, f) + 12.0 * case.data.loss(f)
            for f in (run.critics[t], fresh.values)
        ]
        assert_allclose(objective[0], objective[1], atol=2e-9 * 13)
    assert_array_equal(run.last, run.recorded_last[-1])
    assert_array_equal(run.average, run.recorded_average[-1])


def test_without_weight_on_the_data_the_reference_stays() -> None:
    """λ = 0: the first critic has nothing to decide by, stays at R/2, and so does every later one."""
    case = instance(5)
    run = play_offline(SPAC(eta=1.0, lam=0.0, R=case.R), case.data, 5, reference=case.reference, record="all")
    assert_array_equal(run.critics[:, case.data.exists], case.R / 2)
    assert_allclose(run.last, np.broadcast_to(case.reference, run.last.shape), rtol=1e-13)


def test_with_all_weight_on_the_data_the_critic_is_the_likelihood() -> None:
    """λ = 10⁸ on data that determine every reward: π_{t+1} ∝ ref · exp(η t r̂)."""
    rng = np.random.default_rng(6)
    wins = rng.integers(20, 60, size=(4, 4)).astype(float)
    np.fill_diagonal(wins, 0)
    data = PreferenceData.from_counts(wins)
    reference = np.array([0.4, 0.3, 0.2, 0.1])
    run = play_offline(SPAC(eta=0.3, lam=1e8, R=6.0), data, 10, reference=reference)
    expected = reference * np.exp(3.0 * maximum_likelihood_reward(data, 6.0))
    assert_allclose(run.last, expected / expected.sum(), atol=1e-4)


def test_a_batch_is_its_members() -> None:
    case = instance(7)
    rule = SPAC(eta=0.3, lam=15.0, R=case.R)
    together = play_offline(rule, case.data, 25, reference=case.reference, record=[5, 25])
    for k in range(3):
        alone = PreferenceData.from_counts(
            case.data.wins[k], ties=case.data.ties[k], mask=case.data.exists[k], weights=case.data.weights
        )
        run = play_offline(rule, alone, 25, reference=case.reference, record=[5, 25])
        assert_allclose(together.recorded_average[:, k], run.recorded_average, rtol=1e-6, atol=1e-6)
        assert_allclose(together.recorded_last[:, k], run.recorded_last, rtol=1e-6, atol=1e-6)


def test_recording() -> None:
    case = instance(8)
    rule = SPAC(eta=0.3, lam=15.0, R=case.R)
    every = play_offline(rule, case.data, 12, reference=case.reference, record="all")
    some = play_offline(rule, case.data, 12, reference=case.reference, record=[1, 4, 12])
    assert_array_equal(every.recorded, np.arange(1, 13))
    assert_array_equal(some.recorded, [1, 4, 12])
    for name in ("recorded_average", "recorded_last", "critics", "policies"):
        assert_array_equal(getattr(some, name), getattr(every, name)[[0, 3, 11]])
    last = play_offline(rule, case.data, 12, reference=case.reference)
    assert_array_equal(last.recorded, [12])
    assert_array_equal(last.average, every.average)
    with pytest.raises(ValueError, match="record='all'"):
        inequalities(rule, some, case.reward, case.comparator)


def test_start_and_reference_are_two_things() -> None:
    case = instance(9)
    rule = SPAC(eta=0.3, lam=15.0, R=case.R)
    start = case.data.exists[0] / case.data.exists[0].sum(axis=-1, keepdims=True)
    run = play_offline(rule, case.data, 3, start=start, reference=case.reference, record="all")
    assert_allclose(run.policies[0], np.broadcast_to(start, run.policies[0].shape), rtol=1e-14)
    assert_allclose(run.reference, np.broadcast_to(case.reference, run.reference.shape), rtol=1e-14)
    alone = play_offline(rule, case.data, 3, start=case.reference, record="all")
    assert_allclose(alone.reference, np.broadcast_to(start, alone.reference.shape), rtol=1e-14)  # uniform by default


@pytest.mark.parametrize("rule", [DPO(tau=0.3), IPO(tau=0.3), SPPO(eta=0.5)], ids=lambda rule: rule.name)
def test_other_rules_run_on_data(rule: DPO | IPO | SPPO) -> None:
    case = instance(10)
    run = play_offline(rule, case.data, 1, reference=case.reference)
    assert_allclose(run.last.sum(axis=-1), 1, rtol=1e-12)
    assert run.critic_gap is None
    if not isinstance(rule, DPO):
        win = np.sum(case.data.win_rates() * case.reference[:, None, :], axis=-1)
        weight = 0.5 if isinstance(rule, SPPO) else 1 / rule.tau
        expected = case.reference * np.exp(weight * win)
        assert_allclose(run.last, expected / expected.sum(axis=-1, keepdims=True), rtol=1e-12)


def test_a_linear_class() -> None:
    """With one feature per response and a wide ball the critics of the box and of the ball do the same to a policy,
    as long as the box does not bind."""
    rng = np.random.default_rng(11)
    wins = rng.integers(30, 60, size=(2, 4, 4)).astype(float)
    data = PreferenceData.from_counts(wins, independent=1)
    reference = np.full(4, 0.25)
    rule = SPAC(eta=0.3, lam=50.0, R=10.0)
    box = play_offline(rule, data, 10, reference=reference)
    ball = play_offline(rule, data, 10, reference=reference, critics=LinearBall(np.eye(4), 20.0))
    assert_allclose(ball.average, box.average, atol=1e-6)
    assert ball.critic_gap is not None
    assert ball.critic_gap.max() <= 1e-9
    # One feature that says nothing leaves the policy where it was.
    idle = play_offline(rule, data, 10, reference=reference, critics=LinearBall(np.ones((4, 1)), 1.0))
    assert_allclose(idle.last, np.broadcast_to(reference, idle.last.shape), rtol=1e-9)


def test_a_stated_class() -> None:
    case = instance(12, data_sets=2)
    R = case.R
    rule = SPAC(eta=0.3 / R, lam=15.0, R=R)
    stated = play_offline(
        rule, case.data, 4, reference=case.reference, critics=Constrained(lambda f: [f >= 0, f <= R]), record="all"
    )
    assert stated.critic_gap is not None
    assert 0 < stated.critic_gap.max() <= 1e-3
    for t in range(4):
        box = Box(R).solve(case.data, stated.policies[t] - case.reference, 15.0)
        objective = [
            case.data.value(stated.policies[t] - case.reference, f) + 15.0 * case.data.loss(f)
            for f in (stated.critics[t], box.values)
        ]
        assert_allclose(objective[0], objective[1], atol=1e-7 * 16)
    with pytest.raises(ValueError, match="class is empty"):
        play_offline(rule, case.data, 1, critics=Constrained(lambda f: [cp.sum(f) >= 1, f <= 0]))


def test_rare_arms_are_where_maximum_likelihood_fails() -> None:
    """N = 1,600, 50 data sets: SPAC's average is below a tenth, the greedy response of MLE above a half (.75 ± .09)."""
    case = rare_arms(1600)
    data = case.sample(1600, seed=0, replicates=50)
    rule = SPAC.for_data(1600, 400, case.D, case.R)
    run = play_offline(rule, data, 400, reference=case.reference)
    assert case.suboptimality(run.average).mean() < 0.1
    reward = maximum_likelihood_reward(data, case.R)
    greedy = np.eye(8)[np.argmax(np.where(data.seen > 0, reward, -1)[:, ::-1], axis=-1)][:, ::-1]
    assert case.suboptimality(greedy).mean() > 0.5


def refused(match: str, **changes: Any) -> None:
    case = instance(13)
    arguments: dict[str, Any] = {"steps": 2, "reference": case.reference} | changes
    with pytest.raises(ValueError, match=match):
        play_offline(arguments.pop("rule", SPAC(eta=0.3, lam=1.0, R=3.0)), case.data, **arguments)


def test_refusals() -> None:
    case = instance(13)
    first = int(np.argmax(case.data.seen[0, 0]))
    lost = case.reference.copy()
    lost[0, first] = 0
    lost[0] /= lost[0].sum()
    refused(rf"reference gives probability 0 to response {first} of context \(0, 0\)", reference=lost)
    refused("R = 0 must be > 0", R=0.0)
    refused("steps = 0", steps=0)
    refused("reference has shape", reference=np.ones(3) / 3)
    refused("horizon", rule=DPO(tau=1.0))
    one = PreferenceData.from_counts([[0, 3, 0], [1, 0, 0], [0, 0, 0]], names=("a", "b", "c"))
    with pytest.raises(ValueError, match="reference gives probability 0 to response b, which the data contain"):
        play_offline(SPAC(eta=0.3, lam=1.0, R=3.0), one, 2, reference=[0.5, 0.0, 0.5])
    # A response that the data never show may have probability 0: it keeps it.
    run = play_offline(SPAC(eta=0.3, lam=1.0, R=3.0), one, 2, reference=[0.5, 0.5, 0.0])
    assert run.last[2] == 0
    assert math.isinf(run.notes["D"])


def test_certificates_of_a_run() -> None:
    case = instance(14)
    rule = SPAC(eta=0.3, lam=15.0, R=case.R)
    run: OfflineRun = play_offline(rule, case.data, 20, reference=case.reference)
    short = case.data.value(case.comparator - run.average, case.reward)
    assert (run.certificate(case.comparator) >= short).all()
    assert (run.certificate(run.average) <= 1e-6).all()
    loose, tight = run.certificate(case.comparator, 0.01), run.certificate(case.comparator, 0.5)
    assert (tight <= loose).all()
    assert run.certificate(case.comparator, policy=run.last).shape == (3,)
