"""The offline baselines: each is the minimizer or maximizer that it says it is.

Tolerances: 1e-12 for closed forms, 1e-6 where a general-purpose minimizer is the judge.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize

from nashpo.core.losses import chi_link, labelled_square, logistic
from nashpo.core.losses import chi_po as chi_po_loss
from nashpo.core.policies import log_normalize
from nashpo.core.rules import DPO, IPO
from nashpo.tabular.baselines import BASELINES, Choices, chi_po, dpo, ipo, mle_greedy, mle_kl, offline_nash
from nashpo.tabular.instances import rare_arms
from nashpo.tabular.offline import play_offline
from nashpo.tabular.preferences import PreferenceData
from nashpo.tabular.reward_model import maximum_likelihood_reward

REFERENCE = np.array([0.4, 0.3, 0.2, 0.1])


def covered(seed: int = 0, n: int = 4) -> PreferenceData:
    """Every pair was seen with both outcomes, so that nothing is at an edge of a wide box."""
    wins = np.random.default_rng(seed).integers(5, 40, size=(n, n)).astype(float)
    np.fill_diagonal(wins, 0)
    return PreferenceData.from_counts(wins)


def minimizer(loss_of_ratios: Callable[[np.ndarray], float], reference: np.ndarray) -> np.ndarray:
    """argmin over softmax policies of a function of log π/ref, by BFGS."""

    def loss(logits: np.ndarray) -> float:
        return loss_of_ratios(log_normalize(logits) - np.log(reference))

    options: Any = {"gtol": 1e-9}
    found = minimize(loss, np.log(reference), method="BFGS", options=options)
    return np.exp(log_normalize(found.x))


def test_greedy_by_hand() -> None:
    data = PreferenceData.from_counts([[0, 3, 0], [1, 0, 0], [0, 0, 0]])
    assert_array_equal(mle_greedy(data, 4.0), [1.0, 0.0, 0.0])


def test_greedy_shares_ties_at_the_edge() -> None:
    """0 and 3 only won and are both at R; 2 was never seen and has R/2, but does not compete."""
    wins = np.zeros((4, 4))
    wins[0, 1] = wins[3, 1] = 1
    assert_allclose(mle_greedy(PreferenceData.from_counts(wins), 4.0), [0.5, 0, 0, 0.5], rtol=1e-15)
    # A response without data is no candidate even where all the others have lost.
    assert_allclose(mle_greedy(PreferenceData.from_counts([[0, 1, 0], [1, 0, 0], [0, 0, 0]]), 4.0), [0.5, 0.5, 0.0])


def test_greedy_shares_ties_inside_the_box() -> None:
    """0 beat 2 by 7 : 3 and 1 beat it by 91 : 39: equal rewards, but not in the last digit."""
    wins = np.zeros((4, 4))
    wins[0, 2], wins[2, 0], wins[1, 2], wins[2, 1], wins[3, 2], wins[2, 3] = 7, 3, 91, 39, 1, 5
    assert_array_equal(mle_greedy(PreferenceData.from_counts(wins), 5.0), [0.5, 0.5, 0, 0])


def test_greedy_does_not_care_for_the_order() -> None:
    """Relabelled responses, on data with ties at the edge."""
    data = rare_arms(100).sample(100, seed=0, replicates=200)
    order = np.random.default_rng(1).permutation(8)
    moved = PreferenceData.from_counts(data.wins[:, order][:, :, order], ties=data.ties, independent=1)
    assert_array_equal(mle_greedy(data, 3.0)[:, order], mle_greedy(moved, 3.0))
    assert ((mle_greedy(data, 3.0) > 0).sum(axis=-1) > 1).any()


def test_prompts_without_pairs_get_the_uniform_policy() -> None:
    wins = np.zeros((2, 3, 3))
    wins[0, 0, 1] = 1
    mask = np.array([[True, True, True], [True, True, False]])
    policy = mle_greedy(PreferenceData.from_counts(wins, mask=mask), 3.0)
    assert_allclose(policy, [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], rtol=1e-15)


def test_dpo_is_rlhf_in_a_table() -> None:
    data = rare_arms(100).sample(100, seed=2, replicates=20)
    reference = rare_arms(100).reference
    for beta in (0.05, 1.0):
        ours = dpo(data, 3.0, beta, reference)
        assert_allclose(ours, mle_kl(data, 3.0, beta, reference), rtol=1e-12)
        assert_allclose(ours, play_offline(DPO(tau=beta), data, reference=reference, R=3.0).last, rtol=1e-15)
    r = maximum_likelihood_reward(data, 3.0)
    expected = reference * np.exp(r / 0.5)
    assert_allclose(mle_kl(data, 3.0, 0.5, reference), expected / expected.sum(axis=-1, keepdims=True), rtol=1e-12)


def test_dpo_minimizes_its_loss() -> None:
    data = covered()

    def loss(ratio: np.ndarray) -> float:
        return float(np.sum(data.frequencies * logistic(ratio[:, None], ratio[None, :], 0.7)))

    assert_allclose(dpo(data, 50.0, 0.7, REFERENCE), minimizer(loss, REFERENCE), atol=1e-6)


def test_ipo_minimizes_its_loss() -> None:
    data = covered(1)

    def loss(ratio: np.ndarray) -> float:
        return float(np.sum(data.frequencies * labelled_square(ratio[:, None], ratio[None, :], 1 / (2 * 0.4))))

    assert_allclose(ipo(data, 0.4, REFERENCE), minimizer(loss, REFERENCE), atol=1e-6)


def test_ipo_with_all_pairs_of_the_reference_is_the_rule() -> None:
    """Pairs in exact proportion to ref(y) ref(y') with soft labels: π ∝ ref · exp(P(y ≻ ref)/β)."""
    rng = np.random.default_rng(3)
    upper = np.triu(rng.random((4, 4)), 1)
    P = upper + np.tril(1 - upper.T, -1) + np.eye(4) / 2
    data = PreferenceData.from_counts(1e4 * REFERENCE[:, None] * REFERENCE * P)
    assert_allclose(ipo(data, 0.3, REFERENCE), play_offline(IPO(tau=0.3), data, reference=REFERENCE).last, rtol=1e-10)


def test_ipo_keeps_what_was_not_compared() -> None:
    data = PreferenceData.from_counts(np.pad([[0.0, 5.0], [1.0, 0.0]], (0, 2)))
    assert_allclose(ipo(data, 0.3, REFERENCE)[2:], REFERENCE[2:], rtol=1e-12)


def test_chi_po_solves_its_link() -> None:
    """β φ(π/ref) = r̂ − c with one c for all responses, over nine orders of magnitude of β."""
    data = rare_arms(100).sample(100, seed=4, replicates=10)
    reference = rare_arms(100).reference
    r = maximum_likelihood_reward(data, 3.0)
    for beta in (1e-3, 0.1, 1.0, 1e6):
        policy = chi_po(data, 3.0, beta, reference)
        assert_allclose(policy.sum(axis=-1), 1, rtol=1e-14)
        with np.errstate(divide="ignore"):
            offset = r - beta * chi_link(np.log(policy / reference))
        reached = np.where(policy > 1e-300, offset, np.nan)
        spread = np.nanmax(reached, axis=-1) - np.nanmin(reached, axis=-1)
        assert spread.max() <= 1e-11 * (1 + beta)


def test_chi_po_minimizes_its_loss() -> None:
    data = covered(2)

    def loss(ratio: np.ndarray) -> float:
        return float(np.sum(data.frequencies * chi_po_loss(ratio[:, None], ratio[None, :], 0.3, clip=100.0)))

    assert_allclose(chi_po(data, 50.0, 0.3, REFERENCE), minimizer(loss, REFERENCE), atol=1e-6)


def test_chi_po_is_more_careful_than_dpo() -> None:
    """A rare response at the edge of the box: π/ref grows like r̂/β and not like exp(r̂/β)."""
    wins = np.zeros((3, 3))
    wins[:2, :2] = [[0, 60], [40, 0]]
    wins[2, 1] = 1
    data, reference = PreferenceData.from_counts(wins), np.array([0.499, 0.499, 0.002])
    assert dpo(data, 3.0, 0.1, reference)[2] > 0.9
    assert chi_po(data, 3.0, 0.1, reference)[2] < 0.1


def test_the_nash_equilibrium_of_the_data() -> None:
    """Without pessimism: no response beats it in the empirical win matrix."""
    rng = np.random.default_rng(5)
    data = PreferenceData.from_counts(rng.poisson(2.0, size=(6, 5, 5)).astype(float), independent=1)
    policy = offline_nash(data)
    gain = np.einsum("kij,kj->ki", data.win_rates(), policy)
    assert_allclose(gain.max(axis=-1), 0.5, atol=1e-8)


def test_pessimistic_nash_by_hand() -> None:
    """2 responses, 100 pairs won 70 : 30, δ = .05, m = 2: width √(log 40/200) = .1358.

    Lower bounds .5642 and .1642 against ½ on the diagonal: response 0 earns ½ or more against both, so it is played.
    """
    data = PreferenceData.from_counts([[0, 70], [30, 0]])
    assert_allclose(offline_nash(data, 0.05), [1.0, 0.0], atol=1e-9)
    # With 6 pairs the bounds are .0588 and 0: against 1 the payoff of x is .0588 x_0 + ½ x_1, against 0 it is ½ x_0.
    few = PreferenceData.from_counts([[0, 4], [2, 0]])
    low = 4 / 6 - np.sqrt(np.log(40) / 12)
    x = 0.5 / (1 - low)
    assert_allclose(offline_nash(few, 0.05)[0], x, atol=1e-9)


def test_pessimistic_nash_is_maximin() -> None:
    """By duality: the opponent's best policy of the same lower bounds gives the same value."""
    rng = np.random.default_rng(6)
    wins = rng.poisson(6.0, size=(8, 4, 4)).astype(float)
    data = PreferenceData.from_counts(wins, independent=1)
    policy = offline_nash(data, 0.1)
    pairs = data.wins + np.swapaxes(data.wins, -1, -2)
    for k in range(8):
        m = int((pairs[k] > 0).sum())
        with np.errstate(divide="ignore"):
            low = np.where(
                pairs[k] > 0, np.maximum(data.win_rates()[k] - np.sqrt(np.log(m / 0.1) / 2 / pairs[k]), 0), 0
            )
        np.fill_diagonal(low, 0.5)
        value = (low.T @ policy[k]).min()
        grid = rng.dirichlet(np.ones(4), size=20_000)
        assert (grid @ low).min(axis=1).max() <= value + 1e-9


def test_pessimistic_nash_hedges_against_what_was_never_seen() -> None:
    """On rare arms it plays the rare ones, since a policy is judged against them too: covering one is not enough."""
    case = rare_arms(1600)
    policy = offline_nash(case.sample(1600, seed=7, replicates=5), 0.05)
    assert case.suboptimality(policy).min() > 1.0


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_on_contextual_replicates(name: str) -> None:
    """Policies of the data's shape that give nothing to responses that do not exist."""
    rng = np.random.default_rng(8)
    mask = np.array([[True] * 4, [True, True, False, True], [True, False, False, False]])
    wins = rng.poisson(1.0, size=(2, 3, 4, 4)) * (mask[:, :, None] & mask[:, None, :])
    data = PreferenceData.from_counts(wins, mask=mask, independent=1)
    reference = mask * REFERENCE / (mask * REFERENCE).sum(axis=-1, keepdims=True)
    for choices in (Choices(), Choices(R=1.0, beta=0.5, reference=reference, delta=0.3)):
        policy = BASELINES[name](data, choices)
        assert policy.shape == (2, 3, 4)
        assert_allclose(policy.sum(axis=-1), 1, rtol=1e-12)
        assert policy.min() >= 0
        assert_array_equal(policy[:, ~mask], 0.0)
        for k in range(2):
            one = PreferenceData.from_counts(data.wins[k], ties=data.ties[k], mask=mask)
            assert_allclose(BASELINES[name](one, choices), policy[k], atol=1e-8)


def test_bad_input() -> None:
    data = covered()
    for name in ("mle", "mle+kl", "dpo", "chi-po"):
        with pytest.raises(ValueError, match="R = -1 must be"):
            BASELINES[name](data, Choices(R=-1.0))
    for name in ("mle+kl", "dpo", "ipo", "chi-po"):
        for beta in (0.0, -1.0, np.nan, np.inf):
            with pytest.raises(ValueError, match="beta = .* must be a number > 0"):
                BASELINES[name](data, Choices(beta=beta))
        with pytest.raises(ValueError, match="reference gives probability 0 to response 1"):
            BASELINES[name](data, Choices(reference=np.array([0.5, 0.0, 0.3, 0.2])))
    for pessimism in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="pessimism = .* must lie strictly between 0 and 1"):
            offline_nash(data, pessimism)
