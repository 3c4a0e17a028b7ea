"""SPAC's losses against its exact step: merged they agree, the practical one does not, and by how much.

Tolerances: 1e-6 in probabilities for a minimizer that BFGS finds; central differences of step 1e-6 are right to 1e-8.
"""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from nashpo.core.losses import bradley_terry, identity_term, log_sigmoid_term
from nashpo.core.rules.spac import SPAC
from nashpo.tabular.critic import Box
from nashpo.tabular.instances import rare_arms
from nashpo.tabular.preferences import PreferenceData
from nashpo.tabular.spac_losses import (
    SLOPES,
    PracticalLoss,
    Smoothing,
    exact_step,
    merged_loss,
    minimize_softmax,
    practical_departure,
    steepest_fall,
)


def case(seed: int) -> tuple[PreferenceData, np.ndarray, np.ndarray, Any]:
    """Data that hold every response, so that a box of 40 does not bind."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 6))
    wins = rng.integers(3, 30, size=(n, n)).astype(float)
    np.fill_diagonal(wins, 0)
    policy, reference = rng.dirichlet(np.full(n, 3.0), size=2)
    rule = SPAC(eta=float(rng.uniform(0.1, 2)), lam=float(rng.choice([20.0, 100.0, 1000.0])), R=40.0)
    return PreferenceData.from_counts(wins, ties=rng.integers(0, 9)), policy, reference, rule


@pytest.mark.parametrize("seed", range(12))
def test_the_merged_loss_has_the_exact_step_as_its_minimizer(seed: int) -> None:
    data, policy, reference, rule = case(seed)
    critic = Box(rule.R).solve(data, policy - reference, rule.lam).values
    assert np.ptp(critic) < 0.9 * rule.R  # the box does not bind
    exact = exact_step(rule, data, policy, reference)
    assert_allclose(exact, policy * np.exp(rule.eta * critic) / np.sum(policy * np.exp(rule.eta * critic)), rtol=1e-12)
    assert_allclose(minimize_softmax(merged_loss(rule, data, policy, reference)), exact, atol=1e-6)


def test_a_box_that_binds_is_not_in_the_loss() -> None:
    """The critic is held at the edges and the policy of the loss goes on."""
    data, policy, reference, rule = case(0)
    tight = SPAC(eta=rule.eta, lam=rule.lam, R=0.3)
    loss = minimize_softmax(merged_loss(tight, data, policy, reference))
    assert np.abs(loss - exact_step(tight, data, policy, reference)).max() > 1e-3


def test_the_merged_loss_is_the_critics_objective() -> None:
    """(E_π_t − E_ref) f + λ L_D(f) at f = (1/η) log(π/π_t), whatever constant is added to f."""
    rng = np.random.default_rng(1)
    data, policy, reference, rule = case(1)
    loss = merged_loss(rule, data, policy, reference)
    for _ in range(5):
        f = rng.normal(size=policy.size)
        value, _ = loss(np.log(policy) + rule.eta * f)
        pairs = np.sum(data.frequencies * bradley_terry(f[:, None], f[None, :]))
        assert_allclose(value, (policy - reference) @ f + rule.lam * pairs, rtol=1e-12)
        assert_allclose(loss(np.log(policy) + rule.eta * (f + 7.0))[0], value, rtol=1e-12)


@pytest.mark.parametrize("smoothing", SLOPES, ids=lambda f: f.__name__)
def test_gradients(smoothing: Smoothing) -> None:
    rng = np.random.default_rng(2)
    data, policy, reference, rule = case(2)
    weights = rng.random(policy.size)
    loss = PracticalLoss(data, np.log(policy), rule.eta, 3.0, 0.7, smoothing, weights)
    logits = rng.normal(size=policy.size)
    steps = 1e-6 * np.eye(policy.size)
    numeric = [(loss(logits + step)[0] - loss(logits - step)[0]) / 2e-6 for step in steps]
    assert_allclose(loss(logits)[1], numeric, rtol=1e-6, atol=1e-7)


def test_the_practical_loss_departs() -> None:
    """Where the data speak, by little (and less with more weight on them); on rare arms, entirely.

    There the rare response that only won has no critic in a box to hold it back: the practical loss, taken to its
    minimum, plays it as maximum likelihood does.
    """
    data, policy, reference, rule = case(3)
    small = [
        practical_departure(SPAC(eta=rule.eta, lam=lam, R=40.0), data, policy, reference).total_variation
        for lam in (20.0, 100.0, 1000.0)
    ]
    assert small[0] > small[1] > small[2] > 1e-9
    assert small[0] < 0.1
    arms = rare_arms(400)
    drawn = arms.sample(400, seed=0, replicates=1)
    one = PreferenceData.from_counts(drawn.wins[0], ties=drawn.ties[0])
    assert ((one.wins.sum(axis=0) == 0) & (one.wins.sum(axis=1) > 0)).any()  # some response only won
    found = practical_departure(SPAC.for_data(400, 400, arms.D, arms.R), one, arms.reference, arms.reference)
    assert found.total_variation > 0.9
    assert_allclose(found.total_variation, np.abs(found.exact - found.practical).sum() / 2, rtol=1e-12)


def test_without_counter_term_or_smoothing_there_is_no_minimum() -> None:
    """Two responses, won 1 : 1, all self-generated mass on one: the identity term drives it to 0 without end.

    π(0) = e^−s: the pair costs lam_pref s/(2η) and the critic term earns lam_critic s.
    """
    data = PreferenceData.from_counts([[0, 1], [1, 0]])
    rule = SPAC(eta=1.0, lam=1.0, R=3.0)
    policy = np.array([0.999, 0.001])
    with pytest.raises(ValueError, match="unbounded below"):
        practical_departure(rule, data, policy, lam_critic=2.0, smoothing=identity_term)
    loss = PracticalLoss(data, np.log(policy), 1.0, 1.0, 2.0, identity_term, policy)
    assert_allclose(steepest_fall(loss), 0.5 - 2 * 0.999, rtol=1e-12)
    far = [loss(np.log(policy) - [s, 0.0])[0] for s in (100.0, 200.0)]
    assert_allclose(far[1] - far[0], 100 * (0.5 - 2 * 0.999), rtol=1e-9)
    # Held by the pairs it exists, and the smoothing makes it exist in any case.
    assert practical_departure(rule, data, policy, lam_critic=0.1, smoothing=identity_term).practical.min() > 0
    assert practical_departure(rule, data, policy, lam_critic=2.0, smoothing=log_sigmoid_term).practical.min() > 0


def test_bad_input() -> None:
    data, policy, reference, rule = case(4)
    many = PreferenceData.from_counts(np.stack([data.wins, data.wins]), independent=1)
    with pytest.raises(ValueError, match="one data set of one prompt"):
        exact_step(rule, many, policy, reference)
    with pytest.raises(ValueError, match="policy needs full support"):
        exact_step(rule, data, np.eye(policy.size)[0], reference)
    large = PreferenceData.from_counts(np.ones((17, 17)))
    with pytest.raises(ValueError, match="17 responses are too many"):
        practical_departure(rule, large, np.full(17, 1 / 17))
