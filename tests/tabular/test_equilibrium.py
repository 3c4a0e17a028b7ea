"""`nash`, and the equilibria of foreign solvers: gap 0, and fixed points of the rules that aim for them."""

import math
from collections.abc import Callable
from typing import Any

import array_api_strict
import nashpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from quantecon.game_theory import NormalFormGame, Player, lemke_howson
from quantecon.optimize import minmax

from nashpo.core.rules import COMAL, EGPO, INPO, ONPO, SPPO, IterativeIPO, NashMD, Rule
from nashpo.tabular import Game, duality_gap, families, nash, play
from nashpo.tabular.families import closed_form
from nashpo.tabular.testing import games, policies
from nashpo.tabular.win_rates import to_numpy

LIBRARIES = [np, torch, array_api_strict]


def quantecon_minmax(game: Game) -> np.ndarray:
    return minmax(game.A)[1]


def quantecon_lemke_howson(game: Game) -> np.ndarray:
    return lemke_howson(NormalFormGame((Player(game.A), Player(game.A))))[0]


def nashpy_vertices(game: Game) -> np.ndarray:
    """Vertex enumeration leaves −1e-17 here and there."""
    policy = np.clip(next(nashpy.Game(game.A, -game.A).vertex_enumeration())[0], 0, None)
    return policy / policy.sum()


def highs(game: Game) -> np.ndarray:
    return nash(game, method="highs").policy


FOREIGN: dict[str, Callable[[Game], np.ndarray]] = {
    "QuantEcon minmax": quantecon_minmax,
    "QuantEcon Lemke-Howson": quantecon_lemke_howson,
    "nashpy vertices": nashpy_vertices,
    "HiGHS": highs,
}
GAMES = {
    "comal": families.comal(),
    "interior": families.interior(5, seed=1),
    "uniform random": families.uniform_random(6, seed=2),
    "tournament": families.tournament(7, seed=3),
    "cyclic": families.cyclic(5, margin=0.7),
    "dominance": families.dominance(4),
    "Bradley-Terry": families.bradley_terry(5, seed=4),
    "annotators": families.annotators(5, seed=5),
}
TOWARDS_NASH: list[Rule] = [SPPO(0.5), ONPO(0.5), ONPO(0.5, "one_step"), ONPO(0.5, "leader"), IterativeIPO(2.0)]


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("solver", FOREIGN)
def test_a_foreign_equilibrium_has_gap_zero_and_stays(solver: str, name: str) -> None:
    """Gap 1e-9 at most, the tolerance of the linear programs; ten steps at η = ½ move it by no more than 1e-8.

    A response that the equilibrium does not play has probability 0 and stays there; on its support all earn ½.
    """
    game = GAMES[name]
    policy = FOREIGN[solver](game)
    assert_allclose(duality_gap(game, policy), 0, atol=1e-9)
    for rule in TOWARDS_NASH:
        run = play(rule, game, 10, start=policy)
        assert_allclose(run.last, policy, rtol=0, atol=1e-8)
        assert_allclose(run.average, policy, rtol=0, atol=1e-8)
    if policy.min() > 0:  # a reference needs full support
        assert_allclose(play(COMAL(0.5, 0.5, 2), game, 10, start=policy).last, policy, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", GAMES)
def test_our_equilibrium_is_the_foreign_one_where_it_is_unique(name: str) -> None:
    game = GAMES[name]
    ours = nash(game)
    assert bool(ours.unique), "all these games have one equilibrium"
    assert_allclose(ours.gap, 0, atol=1e-12)
    for solve in FOREIGN.values():
        assert_allclose(solve(game), ours.policy, rtol=0, atol=1e-7)
    assert_array_equal(ours.support, ours.policy > 1e-9)


@pytest.mark.parametrize("tau", [0.1, 1.0])
@pytest.mark.parametrize("name", ["comal", "uniform random", "Bradley-Terry"])
def test_the_cones_regularized_equilibrium_stays(name: str, tau: float) -> None:
    """cvxpy's exponential cone leaves about 1e-6 of probability; Newton's answer is held to 1e-12 beside it."""
    game = GAMES[name]
    reference = np.random.default_rng(0).dirichlet(np.full(game.n, 2.0))
    foreign = nash(game, tau=tau, reference=reference, method="cvxpy").policy
    ours = nash(game, tau=tau, reference=reference)
    assert_allclose(foreign, ours.policy, rtol=0, atol=1e-4)
    assert_allclose(duality_gap(game, foreign, tau=tau, reference=reference), 0, atol=1e-6)
    for rule in (INPO(0.2, tau), EGPO(0.2, tau)):
        for start, tolerance in ((foreign, 1e-4), (ours.policy, 1e-12)):
            run = play(rule, game, 10, start=start, reference=reference)
            assert_allclose(run.last, start, rtol=0, atol=tolerance)


def test_nash_mds_fixed_point_is_at_a_distance_linear_in_eta() -> None:
    """At η = .02, .01, .005 the distance halves within 3 % each time; the regularized equilibrium itself moves."""
    game, tau = GAMES["uniform random"], 0.2
    target = nash(game, tau=tau).policy
    distances = []
    for eta in (0.02, 0.01, 0.005):
        settled = play(NashMD(eta, tau), game, math.ceil(12 / (eta * tau)), start=target, reference=[1 / 6] * 6).last
        again = play(NashMD(eta, tau), game, 10, start=settled, reference=[1 / 6] * 6).last
        assert_allclose(again, settled, rtol=0, atol=1e-6)
        distances.append(np.abs(settled - target).max())
    assert distances[0] > 1e-4
    assert_allclose(np.array(distances[:-1]) / distances[1:], 2, rtol=0.03)


@pytest.mark.parametrize(
    ("family", "arguments"),
    [
        ("cyclic", {"n": 7, "margin": 0.4}),
        ("interior", {"n": 5, "seed": 3, "batch": (2, 2)}),
        ("dominance", {"n": 6}),
        ("bradley_terry", {"n": 6, "seed": 1, "batch": 3}),
        ("slow", {"n": 5, "ratio": 0.3}),
        ("comal", {}),
    ],
)
def test_closed_forms(family: str, arguments: dict) -> None:
    equilibrium = nash(families.FAMILIES[family].make(**arguments))
    assert_allclose(equilibrium.policy, closed_form(family, **arguments), rtol=0, atol=1e-11)
    assert_allclose(equilibrium.gap, 0, atol=1e-12)
    assert np.all(equilibrium.unique)


@pytest.mark.parametrize("xp", LIBRARIES, ids=lambda xp: xp.__name__)
def test_answers_come_in_the_games_own_arrays(xp: Any) -> None:
    """A ragged batch of two contexts: in the second only a and c exist, and a beats c."""
    game = Game(np.stack([families.comal().P] * 2), mask=[[True] * 3, [True, False, True]]).to(xp)
    plain, regularized = nash(game), nash(game, tau=0.5)
    for field in ("policy", "log_policy", "gap"):
        assert type(getattr(plain, field)) is type(xp.asarray([0.0])), field
    for field in ("policy", "log_policy", "gap", "residual"):
        assert type(getattr(regularized, field)) is type(xp.asarray([0.0])), field
    assert_allclose(to_numpy(plain.policy), [[4 / 11, 3 / 11, 4 / 11], [1, 0, 0]], rtol=0, atol=1e-12)
    assert to_numpy(plain.log_policy)[1, 1] == -np.inf
    # What is said about the equilibrium is numpy's.
    assert_array_equal(plain.support, [[True] * 3, [True, False, False]], strict=True)
    assert_array_equal(plain.unique, [True, True], strict=True)
    assert_array_equal(regularized.support, [[True] * 3, [True, False, True]], strict=True)
    assert_array_equal(regularized.unique, [True, True], strict=True)
    assert (plain.tau, regularized.tau) == (0.0, 0.5)
    assert to_numpy(regularized.policy)[1, 1] == 0


def test_ties_have_many_equilibria() -> None:
    """All win rates ½: every policy is one; the interior point returns one of full support, and not as the only one."""
    equilibrium = nash(Game(np.full((4, 4), 0.5)))
    assert not bool(equilibrium.unique)
    assert (equilibrium.policy > 0.01).all()
    dummies = nash(families.cyclic(3, dummies=2))
    assert not bool(dummies.unique)
    assert_allclose(dummies.gap, 0, atol=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(games())
def test_the_gap_is_zero_on_every_game(game: Game) -> None:
    equilibrium = nash(game)
    assert_allclose(equilibrium.policy.sum(axis=-1), 1, rtol=1e-12)
    assert (equilibrium.policy >= 0).all()
    assert_allclose(equilibrium.gap, 0, atol=1e-12)
    if game.mask is not None:
        assert (equilibrium.policy[~game.mask] == 0).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data(), games(), st.sampled_from([0.01, 0.1, 1.0, 10.0]))
def test_the_regularized_equilibrium_solves_its_equation(data: Any, game: Game, tau: float) -> None:
    """log π − log ref − Pπ/τ is one constant on the responses that exist, to 1e-12 · (1 + 1/τ) of rounding."""
    reference = data.draw(policies(game))
    equilibrium = nash(game, tau=tau, reference=reference)
    assert (equilibrium.residual <= 1e-12).all()
    exists = np.ones(reference.shape, bool) if game.mask is None else game.mask
    payoff = (game.A @ equilibrium.policy[..., None])[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        left = equilibrium.log_policy - np.log(reference) - payoff / tau
    largest = np.where(exists, left, -np.inf).max(axis=-1)
    smallest = np.where(exists, left, np.inf).min(axis=-1)
    assert (largest - smallest <= 1e-12 * (1 + 1 / tau)).all()


def test_limits_of_the_kl_weight() -> None:
    """τ → ∞ gives the reference, within 1/(2τ) in log-ratio; τ → 0 the equilibrium: gap at most 2τ D (claim 19)."""
    game, reference = families.comal(), np.array([0.6, 0.3, 0.1])
    heavy = nash(game, tau=1e6, reference=reference).policy
    assert_allclose(np.log(heavy / reference), 0, atol=1e-6)
    for tau in (0.1, 0.01, 0.001):
        light = nash(game, tau=tau, reference=reference).policy
        assert 0 <= duality_gap(game, light) <= 2 * tau * math.log(10)
    assert_allclose(light, np.array([4, 3, 4]) / 11, rtol=0, atol=0.02)


def test_the_exact_certificate() -> None:
    """Win rates in tenths are rationals: the certificate is (4, 3, 4)/11 itself, every inequality checked exactly."""
    equilibrium = nash(families.comal(), exact=True)
    (certificate,) = equilibrium.exact
    assert_allclose([float(x) for x in certificate.policy], np.array([4, 3, 4]) / 11, rtol=1e-12)
    assert_allclose(equilibrium.gap, 0, atol=1e-15)


@pytest.mark.parametrize("method", ["interior", "highs", "cvxpy"])
def test_every_method_solves_batches(method: str) -> None:
    game = Game(families.uniform_random(4, seed=1, batch=3).P, mask=[[True] * 4, [True, True, True, False], [True] * 4])
    equilibrium = nash(game, method=method)
    assert_allclose(equilibrium.gap, 0, atol=1e-6)
    assert equilibrium.policy[1, 3] == 0


def test_tau_zero_is_the_plain_game() -> None:
    assert_array_equal(nash(families.comal(), tau=0).policy, nash(families.comal()).policy)


REFUSED = [
    ({"method": "simplex"}, r"method = 'simplex' is none of interior, highs, cvxpy"),
    ({"tau": -0.1}, r"tau = -0.1 must be a finite number >= 0"),
    ({"tau": math.nan}, r"tau = nan must be a finite number >= 0"),
    ({"tau": math.inf}, r"tau = inf must be a finite number >= 0"),
    ({"reference": [0.2, 0.3, 0.5]}, r"a reference needs tau > 0"),
    ({"tau": 0.1, "reference": [0.5, 0.5, 0.0]}, r"reference gives probability 0 to response c"),
    ({"tau": 0.1, "reference": [0.5, 0.5]}, r"reference has shape \(2,\)"),
    ({"tau": 0.1, "exact": True}, r"a regularized equilibrium is not rational"),
    ({"tau": 0.1, "method": "highs"}, r"method='highs' solves linear programs"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_bad_input_is_refused_in_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        nash(families.comal(), **arguments)
    assert "\n" not in str(error.value)
