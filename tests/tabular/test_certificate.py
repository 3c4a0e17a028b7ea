"""The certificate: by hand, by brute force, and in 20,000 runs against a reward that is known.

A bound at the oracle level L(r*) cannot be exceeded at all (tolerance 1e-9, sums of terms of order R). At confidence
1 − δ at most δ·runs + 3σ violations are allowed, σ² = δ (1 − δ) runs: if each run failed with probability δ exactly,
the test would fail once in 740 times; the bound is conservative, so that it is rather never.
"""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from nashpo.tabular.certificate import certificate, plausible_level
from nashpo.tabular.certificate_study import learned_policies, study
from nashpo.tabular.instances import contextual_linear, rare_arms
from nashpo.tabular.preferences import PreferenceData
from nashpo.tabular.reward_model import maximum_likelihood_reward

METHODS = {"spac", "dpo", "ipo", "mle"}


@pytest.mark.parametrize(("N", "replicates"), [(100, 1000), (1600, 1000), (12_800, 500)])
def test_no_violations_on_rare_arms(N: int, replicates: int) -> None:
    """2,500 data sets, four methods each: 10,000 runs."""
    case = rare_arms(N)
    data = case.sample(N, seed=N, replicates=replicates)
    found = study(case, data, learned_policies(case, data))
    assert set(found) == METHODS
    for result in found.values():
        assert result.oracle_violations == 0
        assert result.violations <= result.allowed
        certified, truth = result.medians
        assert certified >= truth


def test_no_violations_where_the_level_is_tight() -> None:
    """10,000 runs of SPAC on 40 pairs of 2 responses at δ = ½, where the level has least to spare."""
    rng = np.random.default_rng(0)
    reward = np.array([1.0, 0.4])
    won = rng.binomial(40, 1 / (1 + np.exp(-0.6)), size=10_000).astype(float)
    wins = np.zeros((10_000, 2, 2))
    wins[:, 0, 1], wins[:, 1, 0] = won, 40 - won
    data = PreferenceData.from_counts(wins, independent=1)
    u, pi = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    for comparator, policy in ((u, pi), (pi, u)):
        truth = float((comparator - policy) @ reward)
        oracle = certificate(data, comparator, policy, 2.0, level=data.loss(reward))
        assert np.sum(truth > oracle.bound + 1e-9) == 0
        bound = certificate(data, comparator, policy, 2.0, delta=0.5).bound
        assert np.sum(truth > bound + 1e-9) <= 5000 + 3 * 50
    # Tight where it must be: the difference of two rewards is determined by the level's two roots.
    assert_allclose(oracle.bound, oracle.attained, atol=1e-6)


def test_no_violations_with_contexts() -> None:
    case = contextual_linear(prompts=5)
    data = case.sample(800, seed=3, replicates=200)
    for result in study(case, data, learned_policies(case, data, steps=50)).values():
        assert result.oracle_violations == 0
        assert result.violations <= result.allowed


def test_the_level_by_hand() -> None:
    """2 responses, N = 8 pairs, won 6 : 2: L(r̂) = −(¾ log ¾ + ¼ log ¼), B = log(1 + e³) − L(r̂), k = 2.

    N ε = 2 log(8 e B/2) + log 20.
    """
    data = PreferenceData.from_counts([[0, 6], [2, 0]])
    smallest = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert_allclose(data.loss(maximum_likelihood_reward(data, 3.0)), smallest, rtol=1e-14)
    spread = np.log1p(np.exp(3.0)) - smallest
    excess = (2 * np.log(8 * np.e * spread / 2) + np.log(20)) / 8
    level = plausible_level(data, 3.0, 0.05, np.asarray(smallest))
    assert_allclose(level, smallest + excess, rtol=1e-14)
    assert_allclose(certificate(data, [1, 0], [0, 1], 3.0).level, level, rtol=1e-9)
    # 4 ties add 4 log 2 to the loss and to N, and nothing to k; the third response was never in a pair.
    tied = PreferenceData.from_counts([[4, 6, 0], [2, 0, 0], [0, 0, 0]])
    with_ties = (8 * smallest + 4 * np.log(2)) / 12
    assert_allclose(tied.loss(maximum_likelihood_reward(tied, 3.0)), with_ties, rtol=1e-14)
    excess = (2 * np.log(12 * np.e * (np.log1p(np.exp(3.0)) - with_ties) / 2) + np.log(20)) / 12
    assert_allclose(plausible_level(tied, 3.0, 0.05, np.asarray(with_ties)), with_ties + excess, rtol=1e-14)


def test_the_bound_by_hand() -> None:
    """2 responses: the worst plausible r_0 − r_1 is the larger root m of −¾ log σ(m) − ¼ log σ(−m) = level."""
    data = PreferenceData.from_counts([[0, 600], [200, 0]])

    def loss(m: float) -> float:
        return float(0.75 * np.logaddexp(0, -m) + 0.25 * np.logaddexp(0, m))

    level = loss(1.6)
    found = certificate(data, [1.0, 0.0], [0.0, 1.0], 3.0, level=level)
    assert_allclose(found.bound, 1.6, atol=1e-6)
    assert_allclose(found.attained, 1.6, atol=1e-6)
    assert_allclose(certificate(data, [0.6, 0.4], [0.4, 0.6], 3.0, level=level).bound, 0.2 * 1.6, atol=1e-6)
    # The other way round it is the smaller root, and negative: the data prove that response 1 is worse.
    low, high = -1.0, np.log(3)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if loss(middle) > level else (low, middle)
    assert_allclose(certificate(data, [0.0, 1.0], [1.0, 0.0], 3.0, level=level).bound, -low, atol=1e-6)
    # A box of 1 ends before the root does.
    assert_allclose(certificate(data, [1.0, 0.0], [0.0, 1.0], 1.0, level=level).bound, 1.0, atol=1e-6)


def test_no_plausible_reward_beats_the_bound() -> None:
    """Brute force over 2,000 random rewards in the box per data set; and a plausible one attains the bound."""
    rng = np.random.default_rng(4)
    for _ in range(10):
        wins = rng.poisson(4.0, size=(2, 4, 4)).astype(float)
        data = PreferenceData.from_counts(wins)
        u, pi = rng.dirichlet(np.ones(4), size=(2, 2))
        found = certificate(data, u, pi, 2.0, delta=0.3)
        mle = maximum_likelihood_reward(data, 2.0)
        rewards = mle + rng.random((2000, 1, 1)) * (rng.random((2000, 2, 4)) * 2 - mle)
        plausible = data.loss(rewards) <= found.level
        assert plausible.sum() > 100
        gains = data.value(u - pi, rewards)
        assert gains[plausible].max() <= found.bound
        assert found.attained <= found.bound
        assert_allclose(found.bound, found.attained, atol=1e-6)


def test_what_the_data_do_not_contain() -> None:
    """Against a response that was never seen: the whole box, less what the seen ones are known to be worth."""
    data = PreferenceData.from_counts([[0, 50, 0], [50, 0, 0], [0, 0, 0]])
    assert_allclose(certificate(data, [0, 0, 1.0], [0.5, 0.5, 0], 3.0).bound, 3.0, rtol=1e-6)
    # Two pairs say nothing at all: N B < k.
    few = PreferenceData.from_counts(np.eye(4, k=2) * [1, 1, 1, 1])
    found = certificate(few, [1.0, 0, 0, 0], [0, 1.0, 0, 0], 0.1)
    assert np.isinf(found.level)
    assert_allclose([found.bound, found.attained], 0.1, rtol=1e-12)
    # A policy is as good as itself.
    assert abs(certificate(data, [0.5, 0.5, 0], [0.5, 0.5, 0], 3.0).bound) <= 1e-12


def test_more_confidence_costs_more() -> None:
    case = rare_arms(400)
    data = case.sample(400, seed=5, replicates=20)
    bounds = [certificate(data, case.comparator, case.reference, case.R, delta).bound for delta in (0.5, 0.05, 1e-6)]
    assert (np.diff(bounds, axis=0) >= -1e-6).all()
    assert np.diff(bounds, axis=0).max() > 1e-3


def test_bad_input() -> None:
    data = PreferenceData.from_counts([[0, 6], [2, 0]])
    for delta in (0.0, 1.0, -0.1, 2.0, np.nan):
        with pytest.raises(ValueError, match="delta = .* must lie strictly between 0 and 1"):
            certificate(data, [1, 0], [0, 1], 3.0, delta)
    with pytest.raises(ValueError, match="R = 0 must be"):
        certificate(data, [1, 0], [0, 1], 0.0)
    with pytest.raises(ValueError, match="comparator has shape"):
        certificate(data, [1, 0, 0], [0, 1], 3.0)
    with pytest.raises(ValueError, match="policy does not add up to 1"):
        certificate(data, [1, 0], [0, 2], 3.0)
    with pytest.raises(ValueError, match="level = 0.1 is below the smallest log-loss"):
        certificate(data, [1, 0], [0, 1], 3.0, level=0.1)
    masked = PreferenceData.from_counts([[0, 6, 0], [2, 0, 0], [0, 0, 0]], mask=[True, True, False])
    with pytest.raises(ValueError, match="does not exist"):
        certificate(masked, [0, 0, 1], [0, 1, 0], 3.0)
