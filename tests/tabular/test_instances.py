"""Offline instances: their constants in closed form, and that each shows what it was made to show.

Where methods are compared on drawn data, seeds are fixed, and the margins are several standard errors, as stated.
"""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.tabular.bradley_terry import bradley_terry_projection
from nashpo.tabular.instances import (
    INSTANCES,
    OfflineInstance,
    bad_arm_trap,
    contextual_linear,
    full_coverage,
    misspecified,
    rare_arms,
)


def every() -> list[OfflineInstance]:
    return [rare_arms(100), bad_arm_trap(200), full_coverage(), contextual_linear(), misspecified()]


def greedy(data: Any) -> np.ndarray:
    """Maximum-likelihood greedy without a box: a response that won all of its pairs comes first."""
    rates = data.wins.sum(axis=-1) / np.maximum(data.seen, 1)
    best = rates == rates.max(axis=-1, keepdims=True)
    return best / best.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("instance", every(), ids=lambda i: i.name)
def test_what_every_instance_promises(instance: OfflineInstance) -> None:
    shape = (*instance.game.batch_shape, instance.game.n)
    for policy in (instance.behavior, instance.reference, instance.comparator):
        assert policy.shape == shape
        assert_allclose(policy.sum(axis=-1), 1.0, rtol=1e-12)
        assert policy.min() >= 0
    assert instance.behavior.min() > 0
    assert_allclose(instance.D, np.log(1 / instance.reference.min()), rtol=1e-14)
    if instance.reward is not None:
        assert instance.reward.min() >= 0
        assert instance.reward.max() <= instance.R
    # The comparator is the best there is: nothing has a negative suboptimality, and its own is 0.
    policies = np.random.default_rng(0).dirichlet(np.ones(shape[-1]), (50, *shape[:-1]))
    assert instance.suboptimality(policies).shape == (50,)
    assert instance.suboptimality(policies).min() > 0
    assert_allclose(instance.suboptimality(instance.comparator), 0.0, atol=1e-8)
    assert np.isfinite(instance.coverage.second_moment)
    data = instance.sample(500, seed=1, replicates=3)
    assert data.wins.shape == (3, *shape, shape[-1])
    assert_array_equal(data.N, [500.0] * 3)
    assert instance.sample(500, seed=1).wins.shape == (*shape, shape[-1])
    assert_array_equal(instance.sample(500, seed=1, replicates=3).wins, data.wins)


def test_rare_arms_in_closed_form() -> None:
    for N in (100, 12_800):
        instance = rare_arms(N)
        assert_allclose(instance.behavior, [(1 - 6 / N) / 2] * 2 + [1 / N] * 6, rtol=1e-14)
        assert_array_equal(instance.reward, [1.5, 1.0, 0, 0, 0, 0, 0, 0])
        assert_array_equal(instance.comparator, np.eye(8)[0])
        assert_allclose(instance.coverage.single_policy, 2 / (1 - 6 / N), rtol=1e-12)
        assert_allclose(instance.coverage.all_policy, N, rtol=1e-12)
        assert_allclose(instance.suboptimality(np.eye(8)), [0, 0.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5], rtol=1e-14)
    assert rare_arms(100, n=5, rare=2).behavior.tolist() == [0.98 / 3] * 3 + [0.01] * 2


def test_rare_arms_fool_the_greedy_at_every_size() -> None:
    """Each rare arm is in 2 informative pairs on average and wins one with probability .2256, so that some arm has only
    wins with probability 1 − (1 − .0772)^6 = .38 at every N; 2,000 replicates have a standard error of .011.
    """
    q = (1 / (1 + np.exp(1.5)) + 1 / (1 + np.exp(1.0))) / 2
    expected = 1 - (1 - np.exp(-2) * (np.exp(2 * q) - 1)) ** 6
    for N in (400, 12_800):
        data = rare_arms(N).sample(N, seed=0, replicates=2000)
        wins, seen = data.wins.sum(axis=-1)[:, 2:], data.seen[:, 2:]
        assert abs(((wins == seen) & (seen > 0)).any(axis=-1).mean() - expected) < 0.05


def test_the_trap_nearly_always_closes() -> None:
    """One of 32 traps has only wins with probability 1 − .076; 2,000 replicates have a standard error of .006."""
    instance = bad_arm_trap(4000)
    assert instance.reward is not None
    assert instance.reward.shape == (34,)
    data = instance.sample(4000, seed=0, replicates=2000)
    wins, seen = data.wins.sum(axis=-1)[:, 2:], data.seen[:, 2:]
    assert abs(((wins == seen) & (seen > 0)).any(axis=-1).mean() - (1 - 0.076)) < 0.03
    assert instance.suboptimality(greedy(data)).mean() > 1.3


def test_full_coverage_leaves_nothing_to_be_fooled_by() -> None:
    instance = full_coverage()
    assert_allclose(instance.coverage.all_policy, 8.0, rtol=1e-12)
    assert instance.suboptimality(greedy(instance.sample(20_000, seed=0, replicates=200))).mean() == 0.0


def test_contextual_rewards_are_linear_in_features() -> None:
    instance = contextual_linear(prompts=5, n=4, d=3, seed=2, covered=2, spread=0.1)
    assert instance.features is not None
    assert instance.reward is not None
    assert instance.radius is not None
    features = instance.features.reshape(-1, 4)
    theta, residuals, _, _ = np.linalg.lstsq(features, instance.reward.reshape(-1))
    assert_allclose(features @ theta, instance.reward.reshape(-1), atol=1e-12)
    assert_allclose(np.linalg.norm(theta), instance.radius, rtol=1e-10)
    assert_allclose(np.sort(instance.behavior, axis=-1), np.tile([0.025, 0.025, 0.475, 0.475], (5, 1)), rtol=1e-12)
    assert_array_equal(instance.comparator.argmax(axis=-1), instance.reward.argmax(axis=-1))
    first, same, other = (contextual_linear(seed=seed).game.P for seed in (1, 1, 2))
    assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_misspecified_preferences_have_no_reward_and_a_projection_that_misleads() -> None:
    instance = misspecified()
    assert instance.reward is None
    assert_allclose(instance.comparator, 1 / 3, atol=1e-8)
    # The greedy policy of the Bradley–Terry projection is a single response, whose gap is the margin.
    projected = bradley_terry_projection(instance.game.P, instance.behavior)
    assert np.ptp(projected) > 0.05
    assert_allclose(instance.suboptimality(np.eye(3)[projected.argmax()]), 0.6, rtol=1e-12)
    assert_allclose(instance.suboptimality(np.eye(3)), [0.6] * 3, rtol=1e-12)


def test_instances_by_name() -> None:
    assert set(INSTANCES) == {"rare_arms", "bad_arm_trap", "full_coverage", "contextual_linear", "misspecified"}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: rare_arms(6), "N = 6 must be larger than rare = 6"),
        (lambda: rare_arms(100, n=7), "n = 7 must be at least rare"),
        (lambda: bad_arm_trap(30), "N = 30 must be larger than rare = 32"),
        (lambda: full_coverage(1), "n = 1 must be at least 2"),
        (lambda: contextual_linear(covered=9), "covered at most n"),
        (lambda: contextual_linear(spread=0.0), "spread in"),
        (lambda: misspecified(4), "odd n"),
    ],
)
def test_refusals(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
