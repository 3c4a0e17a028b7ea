"""Coverage constants: closed forms, sums by hand, and what data show of a behavior policy. Rounding: 1e-12."""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.tabular.coverage import Coverage, coverage, empirical_coverage, rare_responses, seen_share
from nashpo.tabular.preference_sampling import sample_preferences
from nashpo.tabular.preferences import PreferenceData


def numbers(found: Coverage) -> list[float]:
    return [float(x) for x in (found.single_policy, found.second_moment, found.chi_square, found.all_policy)]


def test_a_point_mass() -> None:
    mu = np.array([0.5, 0.3, 0.2])
    assert_allclose(numbers(coverage([0.0, 0.0, 1.0], mu)), [5.0, 5.0, 4.0, 5.0], rtol=1e-12)
    assert_allclose(numbers(coverage([1.0, 0.0, 0.0], mu)), [2.0, 2.0, 1.0, 5.0], rtol=1e-12)


def test_a_policy_covers_itself() -> None:
    mu = np.random.default_rng(0).dirichlet(np.ones(6))
    assert_allclose(numbers(coverage(mu, mu)), [1.0, 1.0, 0.0, 1 / mu.min()], rtol=1e-12, atol=1e-12)


def test_chi_square_is_its_definition_and_the_maximum_bounds_the_mean() -> None:
    rng = np.random.default_rng(1)
    u, mu = rng.dirichlet(np.ones(5), (40, 3)), rng.dirichlet(np.ones(5), (40, 3))
    weights = np.array([0.5, 0.3, 0.2])
    found = coverage(u, mu, weights=weights, independent=1)
    assert found.second_moment.shape == (40,)
    assert_allclose(found.chi_square, np.sum((u - mu) ** 2 / mu, axis=-1) @ weights, rtol=1e-11)
    assert_allclose(found.single_policy, (u / mu).max(axis=(1, 2)), rtol=1e-12)
    assert_allclose(found.all_policy, (1 / mu).max(axis=(1, 2)), rtol=1e-12)
    assert np.all(found.second_moment <= found.single_policy)
    assert np.all(found.single_policy <= found.all_policy)


def test_what_is_never_seen_is_infinite_only_for_who_plays_it() -> None:
    mu = [0.5, 0.5, 0.0]
    assert numbers(coverage([0.0, 0.9, 0.1], mu)) == [np.inf] * 4
    assert_allclose(numbers(coverage([0.0, 1.0, 0.0], mu)), [2.0, 2.0, 1.0, np.inf], rtol=1e-12)


def test_masks_and_prompts_of_weight_zero_are_left_out() -> None:
    mu = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    u = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    mask = [[True, True, False], [True, True, True]]
    assert_allclose(numbers(coverage(u, mu, weights=[1, 0], mask=mask)), [2.0, 2.0, 1.0, 2.0], rtol=1e-12)
    assert numbers(coverage(u, mu, weights=[1, 1], mask=mask)) == [np.inf] * 4


def test_empirical_coverage_counts_places_in_pairs() -> None:
    data = PreferenceData.from_counts([[0, 3, 0], [1, 0, 0], [0, 0, 0]], ties=1)  # 5 pairs, 10 places
    assert_allclose(seen_share(data), [0.4, 0.4, 0.0], rtol=1e-15)
    assert_allclose(numbers(empirical_coverage(data, [1.0, 0.0, 0.0])), [2.5, 2.5, 1.5, np.inf], rtol=1e-12)


def test_empirical_coverage_tends_to_that_of_the_informative_pairs() -> None:
    """μ(y)(1 − μ(y)), since pairs y = y' show nothing; 10⁶ pairs leave a relative error of 1 % (5 deviations)."""
    mu = np.array([0.6, 0.3, 0.1])
    data = sample_preferences(np.zeros((2, 3)), mu, N=10**6, seed=0, replicates=3)
    u = np.array([0.0, 0.5, 0.5])
    expected = coverage(u, mu * (1 - mu))
    found = empirical_coverage(data, u)
    assert found.single_policy.shape == (3,)
    assert_allclose(found.second_moment, np.full(3, expected.second_moment), rtol=0.01)
    assert_allclose(found.single_policy, np.full(3, expected.single_policy), rtol=0.01)


def test_rare_responses() -> None:
    wins = np.zeros((5, 5))
    wins[0, 1:4] = [50, 6, 5]
    data = PreferenceData.from_counts(wins, mask=[True] * 5)
    # 5 responses: log2(5/.05) = 6.6 pairs. By default what was seen less, or never, is rare.
    assert_array_equal(rare_responses(data), [False, False, True, True, True])
    assert_array_equal(rare_responses(data, 6), [False, False, False, True, True])
    assert_array_equal(rare_responses(data, 0), [False] * 5)


def test_rare_responses_of_many_prompts_and_data_sets() -> None:
    wins = np.zeros((2, 3, 2, 2))
    wins[..., 0, 1] = [[6, 7, 8], [7, 7, 1]]
    mask = np.ones((2, 3, 2), bool)
    mask[0, 2, 1] = False
    wins[0, 2] = 0
    data = PreferenceData.from_counts(wins, mask=mask, independent=1)
    # 5 responses in the first data set (6.6 pairs), 6 in the second (6.9 pairs); what does not exist is not rare.
    expected = [[[True, True], [False, False], [True, False]], [[False, False], [False, False], [True, True]]]
    assert_array_equal(rare_responses(data), expected)


def test_the_default_threshold_keeps_lucky_responses_out() -> None:
    """Fair coins: in at most 5 % of data sets, one of the 8 responses has won all of its log2(8/.05) or more pairs.

    In 4,000 data sets 5 % are 200 ± 14: more than 270 would be 5 deviations off.
    """
    behavior = np.array([0.3, 0.3] + [0.4 / 6] * 6)
    data = sample_preferences(np.zeros(8), behavior, N=60, seed=0, replicates=4000)
    lucky = (data.wins.sum(axis=-1) == data.seen) & (data.seen > 0)
    fooled = (lucky & ~rare_responses(data)).any(axis=-1).sum()
    assert fooled <= 270
    assert (lucky & rare_responses(data)).any(axis=-1).sum() > 270  # so that the threshold does something


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: coverage([0.5, 0.5], [1.0]), None),
        (lambda: coverage([0.5, 0.5], [0.2, 0.3, 0.5]), "which does not fit"),
        (lambda: coverage([0.5, -0.5], [0.5, 0.5]), "the comparator has an entry that is negative"),
        (lambda: coverage([0.5, 0.5], [0.5, np.nan]), "the behavior has an entry"),
        (lambda: coverage(np.full((2, 2), 0.5), [0.5, 0.5], weights=[0, 0]), "weights of the prompts"),
        (lambda: rare_responses(PreferenceData.from_counts([[0, 1], [0, 0]]), -1), "threshold = -1 must be >= 0"),
    ],
)
def test_refusals(call: Any, says: str | None) -> None:
    if says is None:
        call()
        return
    with pytest.raises(ValueError, match=says):
        call()
