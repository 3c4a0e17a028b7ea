"""Rules on multi-turn games: equalities with the bandit, and changed code that the claims catch.

Tolerance 1e-12 of win rates and probabilities: some hundreds of steps of rounding.
"""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from nashpo.core.rules import DPO, EGPO, INPO, ONPO, SPPO, NashMD, Rule
from nashpo.core.rules.form import Form, Stage
from nashpo.core.rules.onpo import VARIANTS
from nashpo.core.schedules import scaled
from nashpo.tabular import play as bandit_play
from nashpo.tabular.claims import CLAIMS, run_claims
from nashpo.tabular.families import uniform_random
from nashpo.tabular.game import Game
from nashpo.tabular.trees import MTPO, Mixture, bounds, duality_gap, families, leaf_game, leaf_policy, play
from nashpo.tabular.trees import backend as backends
from nashpo.tabular.trees.mtpo import schedule
from nashpo.tabular.trees.policies import kl, log_policy, uniform
from nashpo.tabular.trees.regularized import regularized_nash

RULES: list[Rule] = [
    SPPO(eta=0.7),
    *(ONPO(eta=0.7, variant=v) for v in VARIANTS),
    INPO(eta=0.5, tau=0.2),
    EGPO(eta=0.5, tau=0.2),
    NashMD.scheduled(0.2),
]


def ragged() -> Game:
    mask = np.ones((3, 5), bool)
    mask[1, 2:] = False
    return Game(uniform_random(5, 0, 3).P, [1, 2, 3], mask)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("level", ["state", "trajectory"])
def test_one_turn_is_the_bandit(rule: Rule, level: str) -> None:
    game = ragged()
    flat = bandit_play(rule, game, 100)
    run = play(rule, families.bandit(game), 100, level=level)
    assert_allclose(run.gap_average, flat.gap_average, atol=1e-12)
    assert_allclose(run.gap_last, flat.gap_last, atol=1e-12)
    assert_allclose(run.last, flat.last, atol=1e-12)
    assert_allclose(run.average.policy, flat.average, atol=1e-12)
    assert_allclose(run.mean_gap_average, flat.mean_gap_average, atol=1e-12)
    assert_allclose(run.mean_gap_last, flat.mean_gap_last, atol=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_trajectories_of_a_token_tree_are_the_responses_of_its_leaf_game(rule: Rule) -> None:
    game = families.token_tree(3, 3, seed=1, contexts=2)
    start = np.random.default_rng(0).random(game.shape) * game.mask + 1e-3 * game.mask
    start /= start.sum(axis=1, keepdims=True)
    flat = bandit_play(rule, leaf_game(game), 200, start=leaf_policy(game, start))
    run = play(rule, game, 200, level="trajectory", start=start)
    assert_allclose(run.gap_average, flat.gap_average, atol=1e-12)
    assert_allclose(run.gap_last, flat.gap_last, atol=1e-12)
    assert_allclose(leaf_policy(game, run.last), flat.last, atol=1e-12)
    assert_allclose(leaf_policy(game, run.average.policy), flat.average, atol=1e-12)


def test_mtpo_of_one_turn_is_inpo() -> None:
    game = uniform_random(4, 2, 3)
    flat = bandit_play(INPO(eta=schedule(0.3), tau=0.3), game, 100)
    run = play(MTPO.scheduled(0.3), families.bandit(game), 100)
    assert_allclose(run.last, flat.last, atol=1e-12)


def test_mtpo_reaches_the_regularized_equilibrium() -> None:
    """To 1e-9 in KL_p (measured: 1e-11 after 2,000 updates), with the theorem's steps 1/τ, 2/(3τ), 1/(2τ), …"""
    game = families.stochastic_users(2, 2, 2, seed=3, contexts=3)
    run = play(MTPO.scheduled(0.1), game, 2000, record="last")
    assert (kl(game, regularized_nash(game, 0.1), log_policy(game, run.last)) < 1e-9).all()
    assert_allclose([schedule(0.1)(t) for t in range(3)], [10, 20 / 3, 5], rtol=1e-15)


def test_states_and_trajectories_differ_in_games_of_several_turns() -> None:
    game = families.random_tree(3, 2, seed=1)
    one, other = (play(SPPO(eta=1.0), game, 20, level=level).last for level in ("state", "trajectory"))
    assert np.abs(one - other).max() > 1e-3


def test_what_is_recorded() -> None:
    """The gap of the mixture of π_1 … π_s, and of π_{s+1}, recomputed from the kept policies."""
    game = families.stochastic_users(2, 2, 2, seed=3, contexts=2)
    run = play(ONPO(eta=0.5), game, 30, record=10, keep=["current", "auxiliary"])
    assert run.recorded.tolist() == [10, 20, 30]
    every = play(ONPO(eta=0.5), game, 30, record="all", keep=["current"])
    policies = [uniform(game), *np.exp(every.kept["current"])]
    for place, s in enumerate(run.recorded):
        assert_allclose(run.gap_average[place], duality_gap(game, Mixture.of(game, policies[:s])), atol=1e-13)
        assert_allclose(run.gap_last[place], duality_gap(game, policies[s]), atol=1e-13)
        assert_allclose(np.exp(run.kept["current"][place]), policies[s], atol=1e-15)
    assert run.kept["auxiliary"].shape == (3, *game.shape)


@pytest.mark.parametrize(
    ("rule", "level", "message"),
    [
        (DPO(tau=0.1), "state", "no payoff of kind 'reward' at the level of a state"),
        (MTPO.scheduled(0.1), "trajectory", "no payoff of kind 'regularized-win' at the level of a trajectory"),
    ],
)
def test_payoffs_that_are_not_known_are_refused(rule: Rule, level: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        play(rule, families.random_tree(), 1, level=level)


def test_mtpo_needs_a_reference_of_full_support_and_a_step_that_fits() -> None:
    game = families.random_tree(2, 2)
    point = np.array([[1.0, 0.0]] * 3)
    with pytest.raises(ValueError, match="needs full support"):
        play(MTPO.scheduled(0.1), game, 3, start=point)
    with pytest.raises(ValueError, match="eta \\* tau"):
        MTPO(eta=2.0, tau=1.0)


def test_bounds_by_hand() -> None:
    assert_allclose(bounds.state_mwu_gap(3.0, 0.5, 3, 8), 2 * 3 / 4 + 3 / 8, rtol=1e-15)
    eta = bounds.state_mwu_eta(3.0, 2, 100)
    assert_allclose(bounds.state_mwu_gap(3.0, eta, 2, 100), bounds.state_mwu_tuned_gap(3.0, 2, 100), rtol=1e-14)
    # One turn: the range of a win rate is 1.
    assert bounds.mtpo_range(1, 0.1, 5.0) == 1
    assert_allclose(bounds.mtpo_range(3, 0.1, 5.0), 2.0)
    assert bounds.mtpo_range(3, 10.0, 5.0) == 4
    assert_allclose(bounds.mtpo_kl(1, 0.1, 5.0, 99), 2 / (0.01 * 100), rtol=1e-14)
    assert_allclose(bounds.mtpo_kl_published(2, 0.5, 1.0, 3), 32 * 2 * 16 / (0.25 * 4), rtol=1e-14)


# Broken code, and the claims that notice.


def holds(identifier: str) -> bool:
    return run_claims([CLAIMS[identifier]], quick=True).results[0].holds


def averaged_probabilities(self: Any, key: str, average: Any, policy: Any, count: int) -> Any:
    """The trap: the mean of the probabilities of every state."""

    before = 0.0 if average is None else average.total_probabilities
    total = before + policy.probabilities
    mixed = backends.TreePolicy(self.game, np.asarray(log_policy(self.game, total / (count + 1))))
    made = backends.TreeAverage((count + 1) * mixed.occupancy, (count + 1) * mixed.law, count + 1)
    object.__setattr__(made, "total_probabilities", total)
    return made


def from_the_state_on(self: Any, payoff: Any, policy: Any, on: Any) -> np.ndarray:
    """The other trap: the opponent starts at the state too, so that its earlier turns are not marginalized."""
    game = self.game
    laws, after = np.zeros((len(game.outcome), game.table.n)), []
    laws[np.arange(len(laws)), game.outcome] = 1.0
    for rows, layer in zip(reversed(game.rows), reversed(game.layers)):
        each = layer.expect(laws) * layer.exists[..., None]
        laws = (policy.probabilities[rows, : layer.width, None] * each).sum(axis=1)
        after.append((rows, layer, each, laws))
    q = np.zeros(game.shape)
    for rows, layer, each, theirs in after:
        ends = np.einsum("skl,sl->sk", game.table.A[layer.context], theirs)
        q[rows, : layer.width] = np.einsum("swk,sk->sw", each, ends)
    return q


def test_averaging_probabilities_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    assert holds("multiturn.mixture")
    assert holds("multiturn.sppo-rate")
    monkeypatch.setattr(backends.TreeBackend, "mix", averaged_probabilities)
    assert not holds("multiturn.mixture")


def test_an_opponent_that_is_not_marginalized_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    assert holds("multiturn.onpo-rate")
    monkeypatch.setitem(backends.FEEDBACK, "win", from_the_state_on)
    assert not holds("multiturn.onpo-rate")
    assert not holds("multiturn.sppo-rate")


@pytest.mark.parametrize(
    ("name", "changed", "identifier"),
    [
        ("state_mwu_gap", lambda D, eta, H, T: D / (eta * T) + eta / 8, "multiturn.sppo-states"),
        ("mtpo_recursion", lambda kl, eta, tau, squares: (1 - eta * tau) * kl + eta**2 / 80 * squares,
         "multiturn.mtpo-step"),
    ],
)  # fmt: skip
def test_a_changed_bound_is_caught(monkeypatch: pytest.MonkeyPatch, name: str, changed: Any, identifier: str) -> None:
    monkeypatch.setattr(bounds, name, changed)
    assert not holds(identifier)


def test_a_changed_rule_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = MTPO.form

    def steps_too_far(rule: MTPO) -> Form:
        (stage,) = honest(rule).stages
        payoffs = {payoff: scaled(weight, 1.001) for payoff, weight in stage.payoffs}
        return Form(honest(rule).slots, [Stage(stage.writes, stage.base, payoffs)])

    monkeypatch.setattr(MTPO, "form", steps_too_far)
    assert not holds("multiturn.mtpo-step")


def test_mtpo_without_the_later_divergence_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """INPO at every state, which forgets what later turns pay."""
    monkeypatch.setitem(backends.FEEDBACK, "regularized-win", backends.StateBackend.win)
    assert not holds("multiturn.mtpo-step")


def test_a_large_step_stalls_at_states_and_not_on_trajectories() -> None:
    """The claim's finding on one game: from T = 1,000 to 4,000 the gap stays, or falls to a quarter."""
    game = families.tournament_tree(3, 2, 3)
    gaps = {}
    for level in ("state", "trajectory"):
        gaps[level] = play(ONPO(eta=4.0), game, 4000, level=level, record=[1000, 4000]).gap_average[:, 0]
    assert set(np.unique(game.table.P)) == {0, 0.5, 1}
    assert gaps["state"][1] > 0.6 * gaps["state"][0]
    assert gaps["trajectory"][1] < 0.4 * gaps["trajectory"][0]
