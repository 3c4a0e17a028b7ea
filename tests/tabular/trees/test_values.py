"""Q, best responses and mixtures against plain recursion, and what goes wrong without each of their two traps.

Tolerance 1e-13: sums of some dozens of products of probabilities and win rates.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # helpers of this folder are imported by name

import brute
import numpy as np
import pytest
from numpy.testing import assert_allclose

from nashpo.core.policies import kl as row_kl
from nashpo.tabular.trees import Mixture, TreeGame, best_response, duality_gap, families, q_values, win_rate
from nashpo.tabular.trees.policies import kl, largest_divergence, log_policy, occupancy, uniform
from nashpo.tabular.trees.values import best_value, regularized_q, soft_policy

SMALL = {
    "tree": families.random_tree(3, 2, seed=3),
    "users": families.stochastic_users(2, 2, 2, seed=5, contexts=2),
    "process": families.random_process(3, 2, 3, 2, seed=7),
    "tokens": families.token_tree(2, 3, seed=1, contexts=2),
    "ragged": TreeGame([[[0, 1], [2, -1]], [[0, 1], [2, -1], [3, 4]]], families.random_tree(1, 3, seed=2).table.P[0]),
}


def random_policy(game: TreeGame, seed: int) -> np.ndarray:
    weights = np.where(game.mask, np.exp(np.random.default_rng(seed).standard_normal(game.shape)), 0)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.fixture(params=SMALL)
def game(request: pytest.FixtureRequest) -> TreeGame:
    return SMALL[request.param]


def test_win_rate_and_q_by_recursion(game: TreeGame) -> None:
    pi, opponent = random_policy(game, 0), random_policy(game, 1)
    q = q_values(game, pi, opponent)
    for c in range(game.contexts):
        P, theirs = game.table.P[c], brute.law(game, c, opponent)
        assert_allclose(win_rate(game, pi, opponent)[c], brute.law(game, c, pi) @ P @ theirs, rtol=1e-13)
        for h, rows in enumerate(game.rows):
            for state in np.flatnonzero(game.layers[h].context == c):
                for action, branches in brute.moves(game, h, int(state)):
                    value = sum(p * brute.law(game, c, pi, h + 1, after) @ P @ theirs for after, p in branches)
                    assert_allclose(q[rows.start + state, action], value, rtol=1e-13)
    assert (q[~game.mask] == 0).all()


def test_an_opponent_that_starts_at_the_state_gives_another_q() -> None:
    """Dropping the marginalization: both players compared from x_h on. Then a symmetric game is won and lost nowhere
    on average, Σ_y π(y|x) Q(x, y) = ½ at every state, which is false."""
    game = SMALL["tree"]
    pi = random_policy(game, 0)
    q = q_values(game, pi, pi)
    value = (pi * q).sum(axis=1)
    assert_allclose(value[0], 0.5, rtol=1e-13)
    assert np.abs(value[1:] - 0.5).max() > 0.05


def test_best_response_by_all_deterministic_policies(game: TreeGame) -> None:
    opponent = random_policy(game, 2)
    wins = np.max([win_rate(game, u, opponent) for u in brute.deterministic_policies(game)], axis=0)
    assert_allclose(win_rate(game, best_response(game, opponent), opponent), wins, rtol=1e-13)
    assert_allclose(duality_gap(game, opponent), 2 * (wins - 0.5), atol=1e-13)


def test_a_mixture_is_over_trajectories(game: TreeGame) -> None:
    """Its law is the mean of the laws; the single policy of its occupancy plays the same against everyone."""
    policies = [random_policy(game, seed) ** 3 for seed in range(4)]
    policies = [p / p.sum(axis=1, keepdims=True) for p in policies]
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    mixed = Mixture.of(game, policies, weights)
    for c in range(game.contexts):
        law = np.average([brute.law(game, c, p) for p in policies], axis=0, weights=weights)
        assert_allclose(mixed.law[c], law, rtol=1e-13)
        assert_allclose(brute.law(game, c, mixed.policy), law, rtol=1e-13)
    other = random_policy(game, 9)
    assert_allclose(win_rate(game, mixed.policy, other), win_rate(game, mixed, other), rtol=1e-13)
    assert_allclose(q_values(game, other, mixed), q_values(game, other, mixed.policy), rtol=1e-13)


def test_averaging_the_probabilities_of_states_is_another_policy() -> None:
    """By hand: half the time left then left, half the time right then right. The mixture never goes left-right; the
    mean of the probabilities does so a quarter of the time."""
    game = families.random_tree(2, 2)
    left, right = np.zeros((3, 2)), np.zeros((3, 2))
    left[:, 0], right[:, 1] = 1, 1
    mixed = Mixture.of(game, [left, right])
    assert_allclose(mixed.law, [[0.5, 0, 0, 0.5]], rtol=0)
    assert_allclose(game.law(occupancy(game, (left + right) / 2)[1]), [[0.25] * 4], rtol=0)


def test_mixtures_are_checked() -> None:
    game = SMALL["tree"]
    with pytest.raises(ValueError, match="at least one policy"):
        Mixture.of(game, [])
    with pytest.raises(ValueError, match="must be 1 numbers >= 0"):
        Mixture.of(game, [uniform(game)], [-1.0])
    with pytest.raises(ValueError, match="give mixture.policy"):
        duality_gap(game, Mixture.of(game, [uniform(game)]), tau=0.1)
    with pytest.raises(ValueError, match="tau = -1 must be >= 0"):
        duality_gap(game, uniform(game), tau=-1)


def test_divergence_is_that_of_trajectories(game: TreeGame) -> None:
    pi, other = random_policy(game, 0), random_policy(game, 1)
    for c in range(game.contexts):
        total = 0.0
        for sequence, chance, _ in brute.ends(game, c):
            mine, theirs = (np.prod([p[at] for at in sequence]) for p in (pi, other))
            total += chance * mine * np.log(mine / theirs)
        assert_allclose(kl(game, log_policy(game, pi), log_policy(game, other))[c], total, atol=1e-13)
    worst = np.max([kl(game, log_policy(game, u), log_policy(game, pi)) for u in brute.deterministic_policies(game)], 0)
    assert_allclose(largest_divergence(game, log_policy(game, pi)), worst, rtol=1e-13)


def test_states_that_are_not_reached_cost_no_divergence() -> None:
    game = families.random_tree(2, 2)
    left = np.array([[1, 0], [0.5, 0.5], [0.5, 0.5]])
    same = np.array([[1, 0], [0.5, 0.5], [0, 1]])
    assert kl(game, log_policy(game, left), log_policy(game, same))[0] == 0
    assert kl(game, log_policy(game, left), log_policy(game, 1 - same))[0] == np.inf


def test_regularized_values(game: TreeGame) -> None:
    """V = E[ends] − τ KL_p(π ‖ ref), and Σ_y π(y|x) Q(x, y) is V of the first turn before its own divergence."""
    log_pi, log_reference = (log_policy(game, random_policy(game, seed)) for seed in (0, 1))
    ends = np.random.default_rng(2).standard_normal((game.contexts, game.table.n))
    q, value = regularized_q(game, log_pi, log_reference, 0.3, ends)
    law = game.law(occupancy(game, np.exp(log_pi))[1])
    assert_allclose(value, (law * ends).sum(axis=1) - 0.3 * kl(game, log_pi, log_reference), atol=1e-13)
    first = game.rows[0]
    own = np.asarray(row_kl(log_pi[first], log_reference[first]))
    assert_allclose((np.exp(log_pi[first]) * q[first]).sum(axis=1) - 0.3 * own, value, atol=1e-13)


def test_soft_policy_is_the_mirror_step(game: TreeGame) -> None:
    """Its value is E[ends] − KL_p, no other policy has a larger one, and a small step is a hard one in the limit."""
    base = log_policy(game, random_policy(game, 0))
    ends = np.random.default_rng(1).standard_normal((game.contexts, game.table.n))
    log_pi, value = soft_policy(game, base, ends)

    def score(log_other: np.ndarray) -> np.ndarray:
        law = game.law(occupancy(game, np.exp(log_other))[1])
        return (law * ends).sum(axis=1) - kl(game, log_other, base)

    assert_allclose(score(log_pi), value, atol=1e-13)
    assert (score(log_policy(game, random_policy(game, 5))) < value).all()
    assert_allclose(soft_policy(game, base, 1e6 * ends)[1] / 1e6, best_value(game, ends), atol=1e-4)
