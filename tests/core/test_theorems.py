"""Bounds by hand, the rows that rules declare, and every declared theorem held against every step of real runs.

A theorem that is refuted as printed is a row too: its counterexample is here, with the bound that replaces it.
"""

import dataclasses
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from nashpo.core import theorems as bound
from nashpo.core.policies import kl, log_from_probabilities
from nashpo.core.rules import COMAL, EGPO, INPO, ONPO, RULES, SPPO, NashMD, Rule
from nashpo.core.schedules import Power
from nashpo.core.theorems import Iterate, Measure, Setting, Status
from nashpo.tabular import Game, bounds, families, nash, play, tune

D = math.log(4)

BY_HAND = [
    # D = 2, η = ½, T = 16: 4/8 + 1/8; e^-½ = .606531, 1 − .393469/.5 = .213061, + 4/8.
    (bound.mwu_gap(2.0, 0.5, 16), 0.625),
    (bound.mwu_gap_freund_schapire(2.0, 0.5, 16), 1 - (1 - math.exp(-0.5)) / 0.5 + 0.5),
    # D = 2, T = 16: η = √(16/16) = 1, gap √(4/16).
    (bound.mwu_tuned_eta(2.0, 16), 1.0),
    (bound.mwu_tuned_gap(2.0, 16), 0.5),
    (bound.omd_printed_gap(4.0, 16), 2.0),
    # D = 2, η = ½, T = 16: 4/8 + ½/32.
    (bound.onpo_gap(2.0, 0.5, 16), 0.515625),
    # V = 0 and ρ₁ = 1 is the bound above; V = 1 takes away (1 − ¼)/(2 · ½ · 16) = .046875.
    (bound.onpo_gap_with_path(2.0, 0.5, 16, 1.0, 0.0), 0.515625),
    (bound.onpo_gap_with_path(2.0, 0.5, 16, 1.0, 1.0), 0.46875),
    # 4(2 + 1/16)/(3/4) = 11.
    (bound.onpo_path_length(2.0, 0.5), 11.0),
    (bound.onpo_printed_eta(0.04), 0.2),
    (bound.onpo_printed_eta(4.0), 0.5),
    (bound.onpo_printed_gap(4.0, 16), 0.5),
    # τ = ½, T = 7: 1/(2 · ¼ · 8) and 8/(¼ · 8).
    (bound.nash_md_kl(0.5, 7), 0.25),
    (bound.nash_md_kl_munos(0.5, 7), 4.0),
    # KL = 2, η = ½, τ = ½: ¾ · 2 + 1/32; twice: 1.125 + 1/8 · (1 − 9/16) = 1.125 + .0546875.
    (bound.nash_md_recursion(2.0, 0.5, 0.5), 1.53125),
    (bound.nash_md_kl_constant(2.0, 0.5, 0.5, 2), 1.1796875),
    (bound.linear_kl(2.0, 0.5, 0.5, 2), 1.125),
    # τ = ½: 2/(1 + 1). τ = ¾: 2(5/4 − 3/4).
    (bound.inpo_largest_eta(0.5), 1.0),
    (bound.egpo_largest_eta(0.75), 1.0),
    (bound.regularization_bias(2.0, 0.25), 1.0),
    # D = 2, η = ½, R = 2, T = 16: 2/8 + ½ · 4/8.
    (bound.spac_actor(2.0, 0.5, 2.0, 16), 0.5),
    (bound.spac_pessimism(0.5, 2.0, 0.75, 0.25), 1.5),
    (bound.spac_decomposition(0.5, 0.25, 2.0, 0.75, 0.25), 1.75),
    (bound.dpo_rare_arm_floor(0.5), 0.5 / (1 + math.e)),
    # (2/4)[1/½ + (½/8) · 8 + 2/½] = ½ (2 + ½ + 4); with stability 1: ½ (2 + ½ − 2 + 2).
    (bound.approximate_mwu_gap(1.0, 0.5, 4, 8.0, 2.0), 3.25),
    (bound.approximate_onpo_gap(1.0, 0.5, 4, 8.0, 1.0, 2.0), 1.25),
]


@pytest.mark.parametrize(("value", "expected"), BY_HAND)
def test_bounds_by_hand(value: float, expected: float) -> None:
    assert_allclose(value, expected, rtol=1e-14)


def test_a_recursion_ends_where_its_closed_form_says() -> None:
    """Five Nash-MD steps one by one against the sum in closed form."""
    divergence = 1.7
    for _ in range(5):
        divergence = bound.nash_md_recursion(divergence, 0.3, 0.4)
    assert_allclose(bound.nash_md_kl_constant(1.7, 0.3, 0.4, 5), divergence, rtol=1e-14)


def test_the_scheduled_recursion_stays_below_its_bound() -> None:
    """η_t = 2/(τ(t + 2)): from any start the recursion is below 1/(2τ²(T + 1)) from the first step on."""
    tau, divergence = 0.3, 50.0
    for t in range(200):
        divergence = bound.nash_md_recursion(divergence, 2 / (tau * (t + 2)), tau)
        assert divergence <= bound.nash_md_kl(tau, t + 1) * (1 + 1e-12)


def test_tuned_steps_minimize_their_bounds() -> None:
    etas = np.geomspace(1e-3, 30, 2001)
    for T in (10, 1000):
        assert min(bound.mwu_gap(D, eta, T) for eta in etas) >= bound.mwu_tuned_gap(D, T) - 1e-12
        tuned = min(1.0, 2 * math.sqrt(D))
        assert min(bound.onpo_gap(D, eta, T) for eta in etas[etas <= 1]) >= bound.onpo_gap(D, tuned, T) - 1e-12


def test_largest_steps_are_the_edge_of_their_conditions() -> None:
    """INPO: η/(1 − ητ) = 4τ at the edge. EGPO: (η/2)² + ητ = 1, from which 2(√(1 + τ²) − τ) follows."""
    for tau in (1e-3, 0.1, 1.0, 30.0):
        inpo, egpo = bound.inpo_largest_eta(tau), bound.egpo_largest_eta(tau)
        assert_allclose(inpo / (1 - inpo * tau), 4 * tau, rtol=1e-9)
        assert_allclose((egpo / 2) ** 2 + egpo * tau, 1, rtol=1e-12)
        assert inpo * tau < 1
        assert egpo * tau < 1


ALL = [theorem for rule in RULES.values() for theorem in rule.theorems]


def test_rows_are_well_formed() -> None:
    assert len({theorem.id for theorem in ALL}) == len(ALL)
    for theorem in ALL:
        assert theorem.statement
        assert theorem.source
        assert isinstance(theorem.status, Status)
        assert isinstance(theorem.iterate, Iterate)
        assert isinstance(theorem.measure, Measure)


def test_what_is_declared() -> None:
    """The list of THEORY.md section 6 that hangs on rules; the only refuted row is ONPO's Theorem 2 as printed."""
    assert {theorem.id for theorem in ALL} >= {
        "sppo.average-gap",
        "sppo.theorem-4.1",
        "sppo.tuned-gap",
        "onpo.theorem-1",
        "onpo.average-gap",
        "onpo.printed-theorem-2",
        "inpo.last-iterate",
        "nash-md.last-iterate",
        "nash-md.theorem-1",
        "nash-md.constant-step",
        "egpo.last-iterate",
    }
    assert [theorem.id for theorem in ALL if theorem.status is Status.REFUTED] == ["onpo.printed-theorem-2"]


APPLIES = [
    (SPPO(0.5), 9, {"sppo.average-gap", "sppo.theorem-4.1"}),
    (SPPO(bound.mwu_tuned_eta(D, 9)), 9, {"sppo.average-gap", "sppo.theorem-4.1", "sppo.tuned-gap"}),
    (SPPO(math.sqrt(D / 9)), 9, {"sppo.average-gap", "sppo.theorem-4.1", "onpo.theorem-1"}),
    (SPPO(Power(1.0)), 9, set()),
    (ONPO(1.0), 9, {"onpo.average-gap"}),
    (ONPO(1.01), 9, set()),
    (ONPO(0.5), 9, {"onpo.average-gap", "onpo.printed-theorem-2"}),
    (INPO(0.8, 0.25), 9, {"inpo.last-iterate"}),
    (INPO(0.81, 0.25), 9, set()),
    (EGPO(1.0, 0.75), 9, {"egpo.last-iterate"}),
    (EGPO(1.001, 0.75), 9, set()),
    (NashMD(0.5, 0.5), 9, {"nash-md.constant-step"}),
    (NashMD.scheduled(0.5), 9, {"nash-md.last-iterate", "nash-md.theorem-1"}),
    (COMAL(0.5, 0.5, 3), 9, set()),
]


@pytest.mark.parametrize(("rule", "T", "expected"), APPLIES, ids=lambda x: repr(x) if isinstance(x, Rule) else None)
def test_a_theorem_applies_where_its_assumptions_hold(rule: Rule, T: int, expected: set[str]) -> None:
    """D = log 4 > ¼, so ONPO's printed step is ½; INPO at τ = ¼: η <= 1/1.25 = .8; EGPO at τ = ¾: η <= 1."""
    found = {theorem.id for theorem, _ in rule.bounds(Setting(D=D, T=T, kl_start=1.0))}
    assert found == expected


ORDERED = {
    "sppo.tuned-gap": SPPO(0.5),
    "onpo.theorem-1": SPPO(0.5),
    "onpo.average-gap": ONPO(0.5),
    "onpo.printed-theorem-2": ONPO(0.5),
    "nash-md.last-iterate": NashMD.scheduled(0.5),
    "nash-md.theorem-1": NashMD.scheduled(0.5),
}


@pytest.mark.parametrize("name", ORDERED)
def test_the_declared_order_is_the_slope_of_the_bound(name: str) -> None:
    """Slope of log(bound) against log(T) from T = 10⁶ to 10⁷ at the step that the statement is for."""
    theorem = next(theorem for theorem in ALL if theorem.id == name)
    values = [theorem.bound(ORDERED[name], Setting(D, T)) for T in (10**6, 10**7)]
    assert_allclose(math.log10(values[1] / values[0]), theorem.order, rtol=1e-6)


def test_every_theorem_on_a_game_with_an_order_is_measured() -> None:
    on_games = (Measure.DUALITY_GAP, Measure.KL_TO_EQUILIBRIUM)
    assert {t.id for t in ALL if t.order is not None and t.measure in on_games} == set(ORDERED)


GAMES = {
    "cyclic": families.cyclic(5, margin=0.9),
    "interior": families.interior(3, seed=1),
    "uniform random": families.uniform_random(6, seed=2),
    "tournament": families.tournament(5, seed=3),
    "dominance": families.dominance(4),
    "Bradley-Terry": families.bradley_terry(5, seed=4),
    "slow": families.slow(3, ratio=0.3),
    "contexts": families.uniform_random(4, seed=5, batch=3),
}
T = 100
DECLARING = [
    SPPO(0.05),
    SPPO(1.0),
    SPPO(10.0),
    ONPO(0.05),
    ONPO(1.0),
    INPO(0.3, 0.1),
    INPO(0.8, 0.25),
    EGPO(0.4, 0.1),
    EGPO(1.0, 0.75),
    NashMD(0.5, 0.1),
    NashMD.scheduled(0.3),
]


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("rule", DECLARING, ids=repr)
def test_declared_theorems_hold_at_every_step(rule: Rule, name: str) -> None:
    """Every update of 100, every context; 1e-11 for rounding and for the solved equilibrium.

    The distance to the equilibrium is measured here on its own: not with the function that tests rules for users.
    """
    game = GAMES[name]
    rng = np.random.default_rng(7)
    start, reference = (rng.dirichlet(np.ones(game.n), game.batch_shape) * 0.9 + 0.1 / game.n for _ in range(2))
    run = play(rule, game, T, start=start, reference=reference, record="all", keep=("current",))
    settings = [Setting(float(np.max(-np.log(start))), s) for s in range(1, T + 1)]
    divergence = None
    if hasattr(rule, "tau"):
        target = log_from_probabilities(nash(game, tau=rule.tau, reference=reference).policy)
        divergence = np.max(kl(target, run.kept["current"]).reshape(T, -1), axis=1)
        first = float(np.max(kl(target, np.log(start))))
        settings = [dataclasses.replace(s, kl_start=first) for s in settings]
    checked = 0
    for row, setting in enumerate(settings):
        for theorem, value in rule.bounds(setting):
            measured = {
                (Measure.DUALITY_GAP, Iterate.AVERAGE): np.max(run.gap_average[row]),
                (Measure.KL_TO_EQUILIBRIUM, Iterate.LAST): divergence[row] if divergence is not None else np.nan,
            }[theorem.measure, theorem.iterate]
            if theorem.status is not Status.REFUTED:
                assert measured <= value + 1e-11, f"{theorem.id} at T = {row + 1}"
                checked += 1
    assert checked >= T


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize(("kind", "updates"), [(SPPO, 3), (SPPO, 80), (ONPO, 80)])
def test_tuned_rules_keep_their_bounds(kind: type[Rule], updates: int, name: str) -> None:
    """`tune` picks the minimizer, and the bounds of the tuned run hold, √(2D/T) of SPPO included."""
    game = GAMES[name]
    rule = tune(kind(0.5), game, updates)
    run = play(rule, game, updates, record="last")
    held = bounds(rule, game, updates)
    assert "sppo.tuned-gap" in {theorem.id for theorem, _ in held} or kind is ONPO
    for theorem, value in held:
        if theorem.status is not Status.REFUTED:
            assert np.max(run.gap_average) <= value + 1e-12


@pytest.mark.parametrize(
    ("n", "times_gap", "printed", "corrected"),
    [(3, 4.12, 4.19, 4.64), (10, 8.79, 6.07, 9.46), (100, 17.93, 8.58, 18.67)],
)
def test_the_printed_theorem_2_is_refuted(n: int, times_gap: float, printed: float, corrected: float) -> None:
    """Dominance game, uniform start, η = ½: T · gap at T = 2000 as THEORY.md 7.4 has it, to its two decimals.

    4√D: 4√1.0986 = 4.19, 4√2.3026 = 6.07, 4√4.6052 = 8.58. 4D + ¼: 4.64, 9.46, 18.67.
    """
    game, rule = families.dominance(n), ONPO(0.5)
    gap = float(play(rule, game, 2000, record="last").gap_average[-1])
    values = {theorem.id: value * 2000 for theorem, value in bounds(rule, game, 2000)}
    assert_allclose(
        [2000 * gap, values["onpo.printed-theorem-2"], values["onpo.average-gap"]],
        [times_gap, printed, corrected],
        rtol=0,
        atol=0.0051,
    )
    assert (2000 * gap > values["onpo.printed-theorem-2"]) == (n >= 10)
    assert 2000 * gap < values["onpo.average-gap"]


def test_ties_meet_the_gap_zero() -> None:
    """All win rates ½: every gap is 0 and every bound positive."""
    run = play(SPPO(1.0), Game(np.full((3, 3), 0.5)), 5, record="all")
    assert_allclose(run.gap_average, 0, atol=1e-15)
