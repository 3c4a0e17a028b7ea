"""The certificate of fitted steps: it bounds every run's own gap, and without residuals is the exact rule's bound."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.core.games import duality_gap
from nashpo.core.policies import log_normalize
from nashpo.core.rules import ONPO, SPPO
from nashpo.core.theorems import mwu_gap, onpo_gap
from nashpo.tabular.enumerated import Enumerated
from nashpo.tabular.game import Game
from nashpo.tabular.noise import AdversarialFlips, RandomFlips
from nashpo.tabular.play import play
from nashpo.tabular.projection import LogLinear, Softmax
from nashpo.tabular.residuals import certify, optimistic_residual_certificate, residual_certificate
from nashpo.tabular.sampled import Sampled

ROUNDING = 1e-12
FEEDBACKS = {
    "soft": (Sampled(replicates=20), Softmax()),
    "hard": (Sampled(K=3, labels="hard", replicates=20), Softmax("pairwise")),
    "iid": (Sampled(K=4, pairs="iid", labels="hard", replicates=20), Softmax("labelled")),
    "best and worst": (Sampled(pairs="best_worst", labels="hard", replicates=20), Softmax("labelled")),
    "random flips": (Sampled(labels="hard", noise=RandomFlips(0.3), replicates=20), Softmax()),
    "adversary": (Sampled(labels="hard", noise=AdversarialFlips(0.3), replicates=20), Softmax()),
    "misspecified": (Sampled(replicates=20), "linear"),
}


def games(n, seed, contexts=()):
    upper = np.triu(np.random.default_rng(seed).random((*contexts, n, n)) - 0.5, 1)
    return Game(0.5 + upper - np.swapaxes(upper, -1, -2))


def ensemble(projection, seed):
    """Games, step sizes and projections of one feedback: sizes 2 … 8, T = 1 … 40, η = .03 … 3."""
    rng = np.random.default_rng(seed)
    for case in range(12):
        n, T, eta = int(rng.integers(2, 9)), int(rng.integers(1, 41)), float(10 ** rng.uniform(-1.5, 0.5))
        linear = LogLinear(rng.normal(size=(n, 2)), "pairwise", ridge=1e-2)
        yield games(n, 100 * seed + case, (3,)), T, eta, linear if projection == "linear" else projection


@pytest.mark.parametrize("name", FEEDBACKS)
def test_the_certificate_bounds_the_gap_of_every_sampled_run(name):
    """12 ensembles of 60 runs for each kind of feedback: no violation beyond rounding, and no vacuous certificate."""
    feedback, projection = FEEDBACKS[name]
    slack, useful = [], []
    for game, T, eta, fitted in ensemble(projection, list(FEEDBACKS).index(name)):
        run = play(SPPO(eta), game, T, record="all", keep=["current"], feedback=feedback, projection=fitted)
        found = certify(run, eta, game)
        assert found.gap.shape == (20, 3)
        assert found.residual_range.shape == (T, 20, 3)
        assert_allclose(found.gap, run.gap_average[-1], atol=ROUNDING)
        slack.append(np.min(found.bound - found.gap))
        useful.append(np.mean(found.bound < 1))
    assert min(slack) > -ROUNDING
    assert max(useful) > 0.5


@pytest.mark.parametrize("name", FEEDBACKS)
def test_the_certificate_of_both_sequences_bounds_the_gap(name):
    feedback, projection = FEEDBACKS[name]
    for game, T, eta, fitted in ensemble(projection, 50 + list(FEEDBACKS).index(name)):
        run = play(
            ONPO(eta), game, T, record="all", keep=["current", "auxiliary"], feedback=feedback, projection=fitted
        )
        start = np.broadcast_to(-np.log(game.n), (1, *run.last.shape))
        sequences = (np.concatenate([start, run.kept[slot]]) for slot in ("current", "auxiliary"))
        found = optimistic_residual_certificate(eta, *sequences, game.A)
        assert np.all(found.bound >= found.gap - ROUNDING)
        assert_allclose(found.gap, run.gap_average[-1], atol=ROUNDING)


def test_exact_steps_leave_no_residual_and_a_bound_within_the_theorem():
    """range(g_t)² <= 1 and KL(u ‖ π_1) <= D, so that the certificate is at most 2D/(ηT) + η/4 (ONPO: + η/(2T))."""
    for seed in range(20):
        game, T, eta = games(5, seed), 30, 0.4
        run = play(SPPO(eta), game, T, record="all", keep=["current"])
        found = certify(run, eta, game)
        assert np.max(found.residual_range) < 1e-13
        assert found.gap <= found.bound <= mwu_gap(np.log(5), eta, T)
        two = play(ONPO(eta), game, T, record="all", keep=["current", "auxiliary"])
        start = np.full((1, 5), -np.log(5))
        sequences = (np.concatenate([start, two.kept[slot]]) for slot in ("current", "auxiliary"))
        both = optimistic_residual_certificate(eta, *sequences, game.A)
        assert np.max(both.residual_range) < 1e-13
        assert both.gap <= both.bound <= onpo_gap(np.log(5), eta, T)


def test_any_sequence_is_bounded_and_the_bound_is_attained_up_to_a_little():
    """Sequences that no rule made, 3,000 of them: the inequality is about policies, not about how they were found."""
    ratios = []
    for seed in range(3000):
        rng = np.random.default_rng(seed)
        n, T, eta = int(rng.integers(2, 6)), int(rng.integers(1, 12)), float(10 ** rng.uniform(-2, 1))
        game = games(n, seed)
        walk = log_normalize(np.cumsum(10 ** rng.uniform(-2, 0.5) * rng.normal(size=(T + 1, n)), axis=0))
        found = residual_certificate(eta, walk, game.A)
        ratios.append(float(found.bound / found.gap))
    assert 1 - ROUNDING < min(ratios) < 1.05


def test_a_misspecified_class_pays_and_a_realizable_one_does_not():
    """A = Φ M Φᵀ: with the four columns of Φ the run is the exact one; with two its gap is .25, not .08."""
    rng = np.random.default_rng(3)
    features, upper = rng.normal(size=(8, 4)), np.triu(rng.normal(size=(4, 4)), 1)
    A = features @ (upper - upper.T) @ features.T
    game, eta, T = Game(0.5 + 0.5 * A / np.max(np.abs(A))), 0.5, 60
    exact = play(SPPO(eta), game, T, record="all", keep=["current"])
    runs = {
        d: play(
            SPPO(eta),
            game,
            T,
            record="all",
            keep=["current"],
            feedback=Enumerated(),
            projection=LogLinear(features[:, :d], "pairwise"),
        )
        for d in (4, 2)
    }
    assert_allclose(runs[4].kept["current"], exact.kept["current"], atol=1e-8)
    realizable, misspecified = (certify(runs[d], eta, game) for d in (4, 2))
    assert np.max(realizable.residual_range) < 1e-9
    assert np.min(misspecified.residual_range) > 1e-2
    assert misspecified.gap > 2 * realizable.gap
    assert misspecified.bound >= misspecified.gap


def test_masked_games_and_starts_with_zeros():
    mask = np.array([True, True, True, False])
    game = Game(games(4, 5).P, mask=mask)
    run = play(SPPO(0.3), game, 10, record="all", keep=["current"], feedback=Sampled(replicates=3))
    found = certify(run, 0.3, game)
    assert np.all(found.bound >= found.gap)
    assert np.isfinite(found.bound).all()
    # The best response against a start that gave it up has KL(u ‖ π_1) = inf.
    beaten = Game([[0.5, 0.9], [0.1, 0.5]])
    run = play(SPPO(0.3), beaten, 3, start=[0.0, 1.0], record="all", keep=["current"])
    found = certify(run, 0.3, beaten, start=[0.0, 1.0])
    assert found.bound == np.inf
    assert_allclose(found.gap, 0.8)


def test_a_response_given_up_leaves_no_certificate():
    trajectory = np.log([[0.5, 0.5], [0.6, 0.4], [0.6, 0.4]])
    trajectory[2] = [0.0, -np.inf]
    A = np.array([[0.0, 0.2], [-0.2, 0.0]])
    assert residual_certificate(0.5, trajectory, A).bound == np.inf
    assert_array_equal(residual_certificate(0.5, trajectory, A).gap, duality_gap(A, np.array([0.55, 0.45])))
    assert np.isfinite(residual_certificate(0.5, trajectory[:2], A).bound)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, A: residual_certificate(0.0, p, A), r"eta = 0.0 must be a constant step size > 0"),
        (lambda p, A: residual_certificate(lambda t: 1, p, A), r"must be a constant step size > 0"),
        (lambda p, A: residual_certificate(0.1, p[:1], A), r"log_policies has shape \(1, 2\), expected \(T \+ 1"),
        (lambda p, A: residual_certificate(0.1, p * np.nan, A), "log_policies holds NaN"),
        (lambda p, A: optimistic_residual_certificate(0.1, p, p[:2], A), "log_auxiliary must have the shape"),
        (lambda p, A: optimistic_residual_certificate(0.1, p, p + 0.1, A), "begin with the same policy"),
        (lambda p, A: certify(play(SPPO(0.1), Game(A + 0.5), 4), 0.1, Game(A + 0.5)), "did not keep all its policies"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(np.full((3, 2), np.log(0.5)), np.array([[0.0, 0.2], [-0.2, 0.0]]))
