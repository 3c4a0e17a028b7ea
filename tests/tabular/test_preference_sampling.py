"""Sampled pairs: against their expectations, at a stated error rate, and that seeds and refusals work.

Statistical tests compare counts with their mean at 5 standard deviations of a binomial count: one comparison errs with
probability about 6e-7, all of the file's (fewer than 2,000) below 0.2 %. Seeds are fixed.
"""

import time
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.tabular.families import cyclic, uniform_random
from nashpo.tabular.game import Game
from nashpo.tabular.preference_sampling import draw_pairs, reward_game, sample_preferences

SIGMAS = 5.0


def close_counts(counts: np.ndarray, N: Any, probability: np.ndarray) -> None:
    """Counts of N draws, or of N replicates' total, within 5 standard deviations of N·probability."""
    deviation = np.sqrt(N * probability * (1 - probability))
    assert np.all(np.abs(counts - N * probability) <= SIGMAS * deviation + 1e-9)


def test_pairs_labels_and_ties_have_their_probabilities() -> None:
    game = uniform_random(5, seed=1)
    behavior = np.array([0.5, 0.2, 0.2, 0.1, 0.0])
    data = sample_preferences(game, behavior, N=400, seed=2, replicates=1000)
    assert data.wins.shape == (1000, 5, 5)
    assert data.independent == 1
    assert_array_equal(data.N, np.full(1000, 400.0))
    pair = behavior[:, None] * behavior
    expected = 2 * pair * game.P
    np.fill_diagonal(expected, 0.0)
    close_counts(data.wins.sum(axis=0), 400_000, expected)
    close_counts(data.ties.sum(), 400_000, np.sum(behavior**2))
    # Across replicates the spread is that of independent draws: the ratio of variances has a standard deviation of
    # √(2/1000) = .045, and at 20 entries lies within 5 of these.
    some = expected > 0.01
    spread = data.wins.var(axis=0)[some] / (400 * expected * (1 - expected))[some]
    assert np.all(np.abs(spread - 1) <= SIGMAS * np.sqrt(2 / 1000))


def test_a_reward_gives_bradley_terry_labels() -> None:
    reward = np.array([1.5, 1.0, 0.0])
    data = sample_preferences(reward, None, N=100_000, seed=0)
    assert data.wins.shape == (3, 3)
    assert data.independent == 0
    P = 1 / (1 + np.exp(reward - reward[:, None]))
    expected = 2 / 9 * P
    np.fill_diagonal(expected, 0.0)
    close_counts(data.wins, 100_000, expected)


def test_soft_labels_are_the_probabilities() -> None:
    game = cyclic(3, margin=0.5)
    data = sample_preferences(game, [0.5, 0.3, 0.2], N=50, seed=3, replicates=6, labels="soft")
    pairs = data.wins + np.swapaxes(data.wins, -1, -2)
    assert_array_equal(pairs, np.round(pairs))
    assert_allclose(data.wins, np.where(pairs > 0, pairs * game.P, 0.0), rtol=1e-14, atol=1e-300)
    hard = sample_preferences(game, [0.5, 0.3, 0.2], N=50, seed=3, replicates=6)
    assert_array_equal(hard.wins, np.round(hard.wins))


def test_prompts_are_drawn_from_the_weights_of_the_game() -> None:
    reward = np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    game = reward_game(reward, weights=[0.8, 0.2], mask=[[True, True, False], [True] * 3], names=["a", "b", "c"])
    behavior = [[0.5, 0.5, 0.0], [0.2, 0.2, 0.6]]
    data = sample_preferences(game, behavior, N=50, seed=4, replicates=2000)
    assert_array_equal(data.N, np.full(2000, 50.0))
    assert_array_equal(data.weights, [0.8, 0.2])
    assert data.names == ("a", "b", "c")
    close_counts((data.wins.sum(axis=(0, 2, 3)) + data.ties.sum(axis=0)), 100_000, np.array([0.8, 0.2]))
    assert_array_equal(data.exists[0], [[True, True, False], [True] * 3])
    assert not data.wins[:, 0, 2].any()
    assert not data.wins[:, 0, :, 2].any()


def test_what_behavior_never_plays_never_occurs() -> None:
    """The last cell of a multinomial draw gets what rounding leaves over: it must be none of these, at 10^15 pairs."""
    rng = np.random.default_rng(0)
    behavior = np.concatenate([rng.dirichlet(np.full(8, 0.3), 300), np.zeros((300, 2))], axis=-1)
    counts = np.full((20, 300), 10**15)
    wins, ties = draw_pairs(rng, np.full((300, 10, 10), 0.5), behavior, counts)
    assert not wins[..., 8:, :].any()
    assert not wins[..., :, 8:].any()
    assert_array_equal(wins.sum(axis=(-2, -1)) + ties, counts)


def test_seeds() -> None:
    arguments = (np.array([1.0, 0.0, 0.5]), None, 30)
    first = sample_preferences(*arguments, seed=1, replicates=3)
    assert_array_equal(first.wins, sample_preferences(*arguments, seed=1, replicates=3).wins)
    assert not np.array_equal(first.wins, sample_preferences(*arguments, seed=2, replicates=3).wins)
    assert not np.array_equal(first.wins[0], first.wins[1])


def test_cost_does_not_grow_with_the_number_of_pairs() -> None:
    """A million times more pairs cost no more than 30 times the time (they cost about the same)."""

    def seconds(N: int) -> float:
        start = time.perf_counter()
        sample_preferences(np.zeros(8), None, N, seed=0, replicates=200)
        return time.perf_counter() - start

    few = min(seconds(10**3) for _ in range(5))
    many = min(seconds(10**9) for _ in range(5))
    assert many < 30 * few


@pytest.mark.parametrize(
    ("truth", "behavior", "options", "says"),
    [
        (np.zeros(3), None, {"N": 0}, "N = 0 and replicates = None must be at least 1"),
        (np.zeros(3), None, {"replicates": 0}, "replicates = 0 must be at least 1"),
        (np.zeros(3), [0.5, 0.5], {}, "behavior has shape"),
        (np.zeros(3), [0.5, 0.2, 0.2], {}, "behavior does not add up to 1"),
        (np.zeros(3), [1.0, 0.0, 0.0], {}, "no informative pair at all"),
        (np.zeros(3), None, {"labels": "firm"}, "labels = 'firm' is none of hard, soft"),
        (np.array([0.0, np.nan]), None, {}, "the reward has shape"),
        (Game([[0.5, 0.9], [0.1, 0.5]], mask=[True, False]), [0.5, 0.5], {}, "a response that does not exist"),
    ],
)
def test_refusals(truth: Any, behavior: Any, options: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        sample_preferences(truth, behavior, **({"N": 10, "seed": 0} | options))
    assert "\n" not in str(caught.value)
