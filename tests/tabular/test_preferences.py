"""Preference data as counts: every number against a sum over the pairs themselves.

Sums over pairs are rounded in another order than sums over counts: they agree to 1e-12.
"""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.core.losses import bradley_terry
from nashpo.tabular.preferences import PreferenceData

WINS = np.array([[0.0, 3, 1], [1, 0, 0], [0, 2, 0]])


def pairs_of(wins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Winner and loser of every pair, one row each."""
    i, j = np.nonzero(wins)
    times = wins[i, j].astype(int)
    return np.repeat(i, times), np.repeat(j, times)


def test_the_diagonal_becomes_ties_and_the_argument_is_left_alone() -> None:
    given = WINS + np.diag([1.0, 0, 4])
    before = given.copy()
    data = PreferenceData.from_counts(given, ties=2)
    assert_array_equal(given, before)
    assert_array_equal(data.wins, WINS)
    assert data.ties == 7
    assert data.N == 14
    assert data.n == 3
    assert data.batch_shape == ()
    assert_array_equal(data.seen, [5, 6, 3])
    assert_array_equal(data.exists, [True] * 3)
    assert_allclose(data.frequencies, WINS / 14, rtol=1e-15)


def test_loss_is_the_mean_over_pairs() -> None:
    values = np.array([0.3, -1.2, 2.0])
    i, j = pairs_of(WINS)
    total = np.sum(bradley_terry(values[i], values[j])) + 5 * np.log(2)
    assert_allclose(PreferenceData.from_counts(WINS, ties=5).loss(values), total / (len(i) + 5), rtol=1e-12)


def test_soft_labels_count_on_both_sides() -> None:
    values = np.array([0.3, -1.2])
    data = PreferenceData.from_counts([[0, 0.75 + 0.5], [0.25 + 0.5, 0]])
    expected = (bradley_terry(values[0], values[1], 0.75) + bradley_terry(values[0], values[1], 0.5)) / 2
    assert_allclose(data.loss(values), expected, rtol=1e-12)
    assert data.N == 2


def test_loss_is_finite_where_a_response_is_certain_to_win() -> None:
    data = PreferenceData.from_counts([[0, 1], [0, 0]])
    assert_allclose(data.loss(np.array([1e4, 0.0])), 0.0, atol=1e-300)
    assert_allclose(data.loss(np.array([0.0, 1e4])), 1e4, rtol=1e-12)


def test_data_sets_and_prompts() -> None:
    rng = np.random.default_rng(0)
    wins = rng.integers(0, 5, (4, 2, 3, 3)).astype(float)  # 4 data sets of 2 prompts
    ties = rng.integers(0, 3, (4, 2)).astype(float)
    data = PreferenceData.from_counts(wins, ties=ties, independent=1)
    off = wins * (1 - np.eye(3))
    assert data.N.shape == (4,)
    assert_allclose(data.N, wins.sum(axis=(1, 2, 3)) + ties.sum(axis=1), rtol=1e-15)
    assert_allclose(data.weights, (wins.sum(axis=(0, 2, 3)) + ties.sum(axis=0)) / data.N.sum(), rtol=1e-14)
    assert_allclose(data.frequencies.sum(axis=(1, 2, 3)) + data.ties.sum(axis=1) / data.N, 1.0, rtol=1e-13)

    values = rng.normal(size=(4, 2, 3))
    policy = rng.dirichlet(np.ones(3), (4, 2))
    for s in range(4):
        single = PreferenceData.from_counts(off[s], ties=data.ties[s], weights=data.weights)
        assert_allclose(data.loss(values)[s], single.loss(values[s]), rtol=1e-12)
        assert_allclose(
            data.value(policy, values)[s], np.sum(data.weights[:, None] * policy[s] * values[s]), rtol=1e-12
        )
    steps = rng.normal(size=(7, 4, 2))  # axes before those of the data are kept
    assert data.over_prompts(steps).shape == (7, 4)


def test_weights_of_prompts_may_be_given() -> None:
    data = PreferenceData.from_counts(np.stack([WINS, WINS]), weights=[3, 1])
    assert_allclose(data.weights, [0.75, 0.25], rtol=1e-15)
    assert_allclose(data.over_prompts(np.array([1.0, 5.0])), 2.0, rtol=1e-15)


def test_win_rates_of_pairs_that_were_seen() -> None:
    rates = PreferenceData.from_counts(WINS).win_rates()
    assert_allclose(rates, [[0.5, 0.75, 1.0], [0.25, 0.5, 0.0], [0.0, 1.0, 0.5]], rtol=1e-15)
    assert_allclose(rates + rates.T, 1.0, rtol=1e-15)
    assert_array_equal(PreferenceData.from_counts([[0, 1, 0], [0, 0, 0], [0, 0, 0]]).win_rates()[2], [0.5] * 3)


def test_masks() -> None:
    wins = np.zeros((2, 3, 3))
    wins[:, 0, 1] = 1
    mask = [[True, True, False], [True, True, True]]
    data = PreferenceData.from_counts(wins, mask=mask)
    assert_array_equal(data.exists, mask)
    assert PreferenceData.from_counts(wins, mask=np.ones((2, 3), bool)).mask is None


@pytest.mark.parametrize(
    ("wins", "options", "says"),
    [
        (np.zeros((3, 2)), {}, r"wins has shape \(3, 2\)"),
        (np.zeros((0, 0)), {}, "wins has shape"),
        ([[0, -1], [0, 0]], {}, "negative or infinite"),
        ([[0, np.nan], [0, 0]], {}, "negative or infinite"),
        (np.eye(3), {}, "no informative pair at all"),
        (np.stack([WINS, np.eye(3)]), {"independent": 1}, "no informative pair at all"),
        (WINS, {"independent": 1}, "independent = 1, but wins has 0 leading axes"),
        (WINS, {"mask": [True, True, False]}, "its mask says does not exist"),
        (np.stack([WINS, WINS]), {"weights": [0, 0]}, "weights of the prompts"),
        (np.stack([WINS, WINS]), {"weights": [1, -1]}, "weights of the prompts"),
    ],
)
def test_bad_counts(wins: Any, options: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        PreferenceData.from_counts(wins, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ties", [-1.0, np.inf, np.nan])
def test_ties_that_are_no_weight_are_refused(ties: float) -> None:
    with pytest.raises(ValueError, match="ties has a negative or infinite entry"):
        PreferenceData.from_counts([[0, 3], [1, 0]], ties=ties)
