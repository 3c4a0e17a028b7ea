"""The claims hold; a changed coefficient of a rule or of a bound makes one fail; the helpers count what they should.

Tolerances are the claims' own (float64 rounding); everything is seeded.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.core import theorems
from nashpo.core.rules import COMAL, EGPO, INPO, ONPO, RULES, SPPO, NashMD, onpo
from nashpo.core.rules.form import Copy, Form, Stage, win
from nashpo.core.rules.rule import pull
from nashpo.core.schedules import scaled
from nashpo.core.theorems import Measure, Status
from nashpo.tabular.claims import CLAIMS, Verification, rates, run_claims
from nashpo.tabular.claims.approximate import Fitted, fitted_optimism, fitted_weights
from nashpo.tabular.claims.claim import Claim, Ensemble, Interval, Result, Tally, bound_over
from nashpo.tabular.claims.ensembles import ARGUMENTS, SIZES, Played, cohort
from nashpo.tabular.claims.losses import expected_estimate, gradient, labelled_loss
from nashpo.tabular.claims.multiplicative_weights import AVERAGE_GAP, last_gap_floor
from nashpo.tabular.families import FAMILIES


def check(*identifiers: str) -> dict[str, Result]:
    """The named claims, checked quickly."""
    found = run_claims([CLAIMS[name] for name in identifiers], quick=True)
    return {result.claim.id: result for result in found.results}


@pytest.fixture(scope="module")
def quick() -> Verification:
    return run_claims(CLAIMS.values(), quick=True)


@pytest.mark.parametrize("identifier", CLAIMS)
def test_claim_holds(quick: Verification, identifier: str) -> None:
    result = next(r for r in quick.results if r.claim.id == identifier)
    tally = result.tally
    assert result.holds, f"{tally.violations} violations, worst slack {tally.slack}, error {tally.error}"
    assert tally.games > 0
    assert tally.steps >= tally.games
    assert np.isfinite(tally.slack) or np.isfinite(tally.error) or tally.slope is not None or tally.remarks
    assert result.verdict == ("refuted" if result.claim.status is Status.REFUTED else "holds")


def test_the_list_of_claims() -> None:
    """At least 23, and one for every theorem about a game that a rule declares, with its words and status."""
    assert len(CLAIMS) >= 23
    for rule in RULES.values():
        for theorem in rule.theorems:
            if theorem.measure in (Measure.DUALITY_GAP, Measure.KL_TO_EQUILIBRIUM):
                claim = CLAIMS[theorem.id]
                assert (claim.statement, claim.source, claim.status) == (
                    theorem.statement,
                    theorem.source,
                    theorem.status,
                )
    assert [c.id for c in CLAIMS.values() if c.status is Status.REFUTED] == ["onpo.printed-theorem-2"]
    assert all(len(claim.brief) <= 12 and len(claim.id) <= 22 for claim in CLAIMS.values())


def test_bounds_are_as_tight_as_they_are_known_to_be(quick: Verification) -> None:
    """A measured quantity that fell to nothing would satisfy every bound: smallest rhs/lhs stay near their known
    values (1.00 to 1.4 in thousands of runs), and are never below 1 by more than rounding."""
    ratios = {result.claim.id: result.tally.ratio for result in quick.results}
    for identifier, largest in {
        "sppo.log-partition": 1.01,
        "sppo.average-gap": 1.4,
        "sppo.theorem-4.1": 1.6,
        "sppo.tuned-gap": 2.0,
        "onpo.theorem-1": 2.3,
        "onpo.regret-by-kl": 1.05,
        "onpo.regret-by-path": 1.1,
        "onpo.average-gap": 1.1,
        "onpo.lyapunov": 1.01,
        "onpo.printed-theorem-2": 1.05,
        "nash-md.step-recursion": 1.2,
        "inpo.last-iterate": 1.05,
        "egpo.last-iterate": 1.1,
        "comal.proximal-point": 1.01,
        "regularized.bias": 2.0,
        "approximate.sppo": 1.2,
        "approximate.sppo-loss": 1.3,
        "approximate.onpo": 1.05,
    }.items():
        assert 1 - 1e-9 <= ratios[identifier] <= largest, identifier


def test_arrays_for_the_figures(quick: Verification) -> None:
    arrays = quick.arrays
    games, counts = arrays["rates/sppo_gap"].shape
    assert games == len(arrays["rates/families"]) == 24
    assert set(arrays["rates/families"]) == {"cyclic", "interior"}
    assert arrays["rates/T"].shape == (counts,)
    assert arrays["rates/T"][0] == 256
    for name in ("onpo_gap", "sppo_bound", "onpo_bound"):
        assert arrays[f"rates/{name}"].shape == (games, counts)
    for name in ("sppo_slope", "onpo_slope", "difference"):
        low, mid, high = arrays[f"rates/{name}"]
        assert low < mid < high
    assert_array_equal(arrays["refuted/n"], [3, 10, 100, 1000])
    assert arrays["refuted/gap"].shape == (4, len(arrays["refuted/T"]))
    scaled_gap = arrays["refuted/T"] * arrays["refuted/gap"]
    assert (scaled_gap[1:, -1] > arrays["refuted/printed"][1:]).all()
    assert (scaled_gap <= arrays["refuted/corrected"][:, None]).all()
    # T · gap at large T, printed and corrected constants for n = 10 and 1000, as calibrated independently.
    assert_allclose(scaled_gap[[1, 3], -1], [8.79, 27.13], atol=0.01)
    assert_allclose(arrays["refuted/printed"], [4.19, 6.07, 8.58, 10.51], atol=0.01)
    assert_allclose(arrays["refuted/corrected"], [4.64, 9.46, 18.67, 27.88], atol=0.01)


# One changed coefficient per rule. Each entry: the rule, its form with the change, a claim that must fail.

Forms = Callable[[Any], Form]


def sppo(rule: SPPO) -> Form:
    return Form({"current": "start"}, [Stage("current", {"current": 1.0}, {win("current"): scaled(rule.eta, 1.001)})])


def optimism_on_the_wrong_side(rule: ONPO) -> Form:
    """The main policy steps away from the forecast instead of towards it."""
    stages = [
        Stage("auxiliary", {"auxiliary": 1.0}, {win("current"): rule.eta}),
        Stage("current", {"auxiliary": 1.0}, {win("current"): scaled(rule.eta, -1.0)}),
    ]
    return Form({"current": "start", "auxiliary": "start"}, stages)


def auxiliary_steps_too_far(rule: ONPO) -> Form:
    stages = [
        Stage("auxiliary", {"auxiliary": 1.0}, {win("current"): scaled(rule.eta, 1.001)}),
        Stage("current", {"auxiliary": 1.0}, {win("current"): rule.eta}),
    ]
    return Form({"current": "start", "auxiliary": "start"}, stages)


def inpo(rule: INPO) -> Form:
    stage = Stage("current", pull(scaled(rule.eta, 0.99), rule.tau), {win("current"): rule.eta})
    return Form({"current": "start", "reference": "reference"}, [stage])


def nash_md_payoff(rule: NashMD) -> Form:
    stages = [
        Stage("mixture", pull(rule.eta, rule.tau)),
        Stage("current", {"mixture": 1.0}, {win("mixture"): scaled(rule.eta, 1.001)}),
    ]
    return Form({"current": "start", "reference": "reference"}, stages)


def nash_md_mixture(rule: NashMD) -> Form:
    stages = [
        Stage("mixture", pull(scaled(rule.eta, 0.999), rule.tau)),
        Stage("current", {"mixture": 1.0}, {win("mixture"): rule.eta}),
    ]
    return Form({"current": "start", "reference": "reference"}, stages)


def egpo_half(rule: EGPO) -> Form:
    base = pull(rule.eta, rule.tau)
    stages = [
        Stage("half", base, {win("current"): scaled(rule.eta, 0.99)}),
        Stage("current", base, {win("half"): rule.eta}),
    ]
    return Form({"current": "start", "reference": "reference"}, stages)


def egpo_current(rule: EGPO) -> Form:
    base = pull(rule.eta, rule.tau)
    stages = [
        Stage("half", base, {win("current"): rule.eta}),
        Stage("current", pull(scaled(rule.eta, 0.99), rule.tau), {win("half"): rule.eta}),
    ]
    return Form({"current": "start", "reference": "reference"}, stages)


def comal_payoff(rule: COMAL) -> Form:
    stage = Stage("current", pull(rule.eta, rule.tau), {win("current"): scaled(rule.eta, 0.999)})
    return Form(
        {"current": "start", "reference": "reference"}, [stage], [Copy("current", "reference", "new", rule.inner)]
    )


def comal_copy(rule: COMAL) -> Form:
    stage = Stage("current", pull(rule.eta, rule.tau), {win("current"): rule.eta})
    return Form({"current": "start", "reference": "reference"}, [stage], [Copy("current", "reference", "new", 1)])


@pytest.mark.parametrize(
    ("rule", "form", "identifier"),
    [
        (SPPO, sppo, "sppo.log-partition"),
        (SPPO, sppo, "sppo.regret-identity"),
        (ONPO, optimism_on_the_wrong_side, "onpo.average-gap"),
        (ONPO, optimism_on_the_wrong_side, "onpo.lyapunov"),
        (ONPO, optimism_on_the_wrong_side, "onpo.rate"),
        (ONPO, auxiliary_steps_too_far, "onpo.regret-identity"),
        (INPO, inpo, "inpo.step-identity"),
        (INPO, inpo, "inpo.last-iterate"),
        (NashMD, nash_md_payoff, "nash-md.step-identity"),
        (NashMD, nash_md_mixture, "nash-md.step-identity"),
        (EGPO, egpo_half, "egpo.step-identity"),
        (EGPO, egpo_current, "egpo.last-iterate"),
        (COMAL, comal_payoff, "comal.proximal-point"),
        (COMAL, comal_copy, "comal.proximal-point"),
    ],
)
def test_a_changed_rule_is_caught(monkeypatch: pytest.MonkeyPatch, rule: type, form: Forms, identifier: str) -> None:
    monkeypatch.setattr(rule, "form", form)
    result = check(identifier)[identifier]
    assert result.tally.violations > 0
    assert result.verdict == "FAILS"


@pytest.mark.parametrize(
    ("variant", "mutant"),
    [
        ("two_sequences", lambda eta: auxiliary_steps_too_far(ONPO(eta=eta))),
        ("one_step", lambda eta: onpo.one_step(0.999 * eta)),
        ("leader", lambda eta: onpo.leader(1.001 * eta)),
    ],
)
def test_a_changed_form_of_onpo_is_caught(
    monkeypatch: pytest.MonkeyPatch, variant: str, mutant: Callable[[float], Form]
) -> None:
    monkeypatch.setitem(onpo.VARIANTS, variant, mutant)
    assert not check("onpo.three-forms")["onpo.three-forms"].holds


@pytest.mark.parametrize(
    ("name", "changed", "identifier"),
    [
        ("mwu_gap", lambda D, eta, T: 1.7 * D / (eta * T) + eta / 4, "sppo.average-gap"),
        ("mwu_gap_freund_schapire", lambda D, eta, T: D / (eta * T) + eta / 4, "sppo.theorem-4.1"),
        ("mwu_tuned_gap", lambda D, T: np.sqrt(D / (2 * T)), "sppo.tuned-gap"),
        ("omd_printed_gap", lambda D, T: 1.5 * np.sqrt(D / T), "onpo.theorem-1"),
        ("onpo_gap", lambda D, eta, T: 1.8 * D / (eta * T) + eta / (2 * T), "onpo.average-gap"),
        ("nash_md_kl", lambda tau, T: 1 / (50 * tau**2 * (T + 1)), "nash-md.last-iterate"),
        ("nash_md_kl_munos", lambda tau, T: 1 / (50 * tau**2 * (T + 1)), "nash-md.theorem-1"),
        ("nash_md_kl_constant", lambda kl, eta, tau, T: (1 - eta * tau) ** T * kl, "nash-md.constant-step"),
        ("linear_kl", lambda kl, eta, tau, T: (1 - 1.2 * eta * tau) ** T * kl, "inpo.last-iterate"),
        ("linear_kl", lambda kl, eta, tau, T: (1 - 1.2 * eta * tau) ** T * kl, "egpo.last-iterate"),
        ("onpo_printed_gap", lambda D, T: (4 * D + 0.25) / T, "onpo.printed-theorem-2"),
    ],
)
def test_a_changed_bound_is_caught(
    monkeypatch: pytest.MonkeyPatch, name: str, changed: Callable[..., Any], identifier: str
) -> None:
    """The last row: a bound that is not violated is no longer refuted."""
    monkeypatch.setattr(theorems, name, changed)
    assert not check(identifier)[identifier].holds


def test_counts() -> None:
    """Worked by hand: (lhs, rhs) = (1, 1), (2, 3), (2, 1) gives one violation, slack -1, tightness 1/2."""
    tally = Tally()
    tally.seen(3, 2)
    tally.inequality([1.0, 2.0, 2.0], [1.0, 3.0, 1.0])
    assert (tally.games, tally.steps, tally.violations, tally.slack, tally.ratio) == (3, 6, 1, -1.0, 0.5)
    tally.identity([1.0, 2.0], [1.0, 2.5], scale=5.0, rtol=0.01)
    assert tally.violations == 2
    assert tally.error == 0.1
    tally.demand([True, False])
    assert tally.violations == 3
    other = Tally()
    other.seen(1, 1)
    other.add(tally)
    assert (other.games, other.steps, other.violations, other.slack, other.error) == (4, 7, 3, -1.0, 0.1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nan_is_a_violation(bad: float) -> None:
    tally = Tally()
    tally.inequality(bad - bad, 1.0)
    tally.inequality(1.0, bad - bad)
    tally.identity(bad - bad, 1.0, scale=1.0)
    assert tally.violations == 3


def test_rounding_is_no_violation_and_more_than_rounding_is() -> None:
    tally = Tally()
    tally.inequality([1.0 + 1e-10, 1e-13], [1.0, 0.0])
    assert tally.violations == 0
    tally.inequality([1.0 + 1e-8, 1e-11], [1.0, 0.0])
    assert tally.violations == 2


def test_a_claim_that_saw_nothing_does_not_hold() -> None:
    nothing = Ensemble("nothing", lambda quick: [])
    claim = Claim("x.y", "", "", "", Status.DERIVED, (nothing,), lambda sample, tally: None)
    assert not run_claims([claim]).results[0].holds


def test_interval_of_a_mean() -> None:
    """Values 1, 2, 3: mean 2, standard error 1/√3, t_{.975, 2} = 4.302653, so 2 ± 2.484."""
    interval = Interval.of_mean(np.array([1.0, 2.0, 3.0]))
    assert_allclose([interval.low, interval.mid, interval.high], [-0.484138, 2.0, 4.484138], atol=1e-6)
    assert interval.inside(-1, 5)
    assert not interval.inside(0, 5)
    assert not interval.inside(-1, 4)


@pytest.mark.parametrize(("slope", "holds"), [(-0.5, True), (-0.3, False), (-1.0, False)])
def test_a_slope_outside_its_interval_fails(slope: float, holds: bool) -> None:
    T = np.array([256, 512, 1024])

    def game(scale: float) -> rates.Rates:
        return rates.Rates("x", T, {"sppo": scale * T**slope}, {"sppo": np.ones(3)})

    def samples(quick: bool) -> list[Callable[[], rates.Rates]]:
        return [partial(game, scale) for scale in (0.1, 0.2, 0.3)]

    claim = replace(CLAIMS["sppo.rate"], ensembles=(Ensemble("synthetic", samples),))
    assert run_claims([claim]).results[0].holds is holds


def test_samples_do_not_depend_on_the_claims_that_share_them(quick: Verification) -> None:
    alone = check("sppo.diverges")["sppo.diverges"].tally
    together = next(r.tally for r in quick.results if r.claim.id == "sppo.diverges")
    assert (alone.games, alone.steps, alone.slack, alone.error) == (
        together.games,
        together.steps,
        together.slack,
        together.error,
    )


def test_progress_ends_at_the_total() -> None:
    told: list[tuple[int, int]] = []
    run_claims([CLAIMS["losses.labelled-pairs"]], True, lambda done, of: told.append((done, of)))
    assert told[-1][0] == told[-1][1] == len(told)


def test_cohorts_hold_all_families() -> None:
    assert set(ARGUMENTS) == set(FAMILIES)
    seen = {family for index in range(len(SIZES)) for family in cohort(index).families}
    assert seen == set(FAMILIES)
    for index in range(len(SIZES)):
        games = cohort(index)
        assert_allclose(games.start.sum(axis=-1), 1, rtol=1e-14)
        assert (games.start > 0).all()
        gap = 2 * np.max(np.einsum("gij,gj->gi", games.game.A, games.equilibrium), axis=-1)
        # Rounding: the solver reaches 1e-14 or so.
        assert_allclose(gap, 0, atol=1e-12)


def played() -> Iterator[tuple[Played, Fitted]]:
    for index in range(4):
        games = cohort(index)
        zeros = np.zeros((30, *games.start.shape))
        start = games.log_start
        yield Played(SPPO(eta=0.7), games, 30), fitted_weights(games.game.A, start, 0.7, zeros)
        yield Played(ONPO(eta=0.7), games, 30), fitted_optimism(games.game.A, start, 0.7, zeros, zeros)


def test_without_residuals_the_fitted_steps_are_the_rules() -> None:
    """Tolerance: 30 steps of rounding in logarithms of order 10."""
    for run, fitted in played():
        assert_allclose(fitted.current, run.log["current"][:30], atol=1e-12)
        assert_allclose(fitted.gap, run.gap_average, atol=1e-14)


def test_the_floor_of_the_last_gap_is_positive_and_below_the_start() -> None:
    for index in range(4):
        games = cohort(index)
        if not games.interior.any():
            continue
        chosen = games.where(games.interior)
        floor = last_gap_floor(chosen)
        gap = 2 * np.max(np.einsum("gij,gj->gi", chosen.game.A, chosen.start), axis=-1)
        assert (floor <= gap + 1e-15).all()
        assert (floor >= 0).all()


def test_expected_estimate_by_hand() -> None:
    """P(0, 1) = .8, π = (¼, ¾), K = 2: E P̂(0) = ½(.5 + ¼·.5 + ¾·.8) = .6125, E P̂(1) = ½(.5 + ¼·.2 + ¾·.5) = .4625."""
    P = np.array([[0.5, 0.8], [0.2, 0.5]])
    assert_allclose(expected_estimate(P, np.array([0.25, 0.75]), 2), [0.6125, 0.4625], rtol=1e-15)


def test_gradient_by_complex_steps_is_the_gradient() -> None:
    """Against central differences of step 1e-5, whose own error is 1e-10."""
    P, policy = np.array([[0.5, 0.8], [0.2, 0.5]]), np.array([0.25, 0.75])
    loss, h = labelled_loss(P, policy, 0.5), np.array([[0.3, -0.2]])
    steps = 1e-5 * np.eye(2)
    differences = (loss(h[:, None] + steps) - loss(h[:, None] - steps)) / 2e-5
    assert_allclose(gradient(loss, h), differences, atol=1e-9)


def test_a_bound_whose_assumptions_fail_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sppo\.average-gap does not apply"):
        bound_over(AVERAGE_GAP, SPPO(eta=lambda t: 0.1), 1.0, 10)
