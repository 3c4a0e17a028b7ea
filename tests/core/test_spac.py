"""SPAC as a rule: its form, its scaling with the data, the theorems that it declares, and its losses by hand.

Tolerances: a few float64 roundings.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from nashpo.core import theorems as bound
from nashpo.core.losses import bradley_terry, chi_link, chi_po, identity_term, log_sigmoid_term, spac_practical
from nashpo.core.rules.form import critic
from nashpo.core.rules.spac import SPAC
from nashpo.core.schedules import Power, Table
from nashpo.core.theorems import Iterate, Measure, Setting, Status


def test_the_form() -> None:
    """{current: 1} ; {critic(current; λ, R): η} → current, without a reference in the base."""
    form = SPAC(eta=0.5, lam=20.0, R=3.0).form()
    assert form.policies == ("current",)
    assert not form.uses_reference
    assert form.horizon is None
    (stage,) = form.stages
    assert stage.base_at(0) == [("current", 1.0)]
    assert stage.payoffs_at(7) == [(critic("current", lam=20.0, R=3.0), 0.5)]
    assert stage.on == "current"
    assert form.copies == ()


def test_schedules_are_evaluated_at_t() -> None:
    (stage,) = SPAC(eta=Power(1.0, 0.5), lam=Table((5.0, 50.0)), R=3.0).form().stages
    assert stage.payoffs_at(0) == [(critic("current", lam=5.0, R=3.0), 1.0)]
    assert stage.payoffs_at(3) == [(critic("current", lam=50.0, R=3.0), 0.5)]


def test_the_scaling_with_the_data() -> None:
    """N = 400, T = 200, D = 4, R = 2: λ = √(4·400) = 40 and η = √(8·4/200)/2 = .2; coverage 9 makes λ 60."""
    rule: Any = SPAC.for_data(400, 200, 4.0, 2.0)
    assert_allclose([rule.lam, rule.eta, rule.R], [40.0, 0.2, 2.0], rtol=1e-15)
    rule = SPAC.for_data(400, 200, 4.0, 2.0, coverage=9.0)
    assert_allclose(rule.lam, 60.0, rtol=1e-15)


def test_the_actors_bound_is_least_at_that_step() -> None:
    """D/(ηT) + ηR²/8 = R √(D/(2T)) at η = √(8D/T)/R: 2 √(4/400) = .2."""
    rule: Any = SPAC.for_data(400, 200, 4.0, 2.0)
    least = bound.spac_actor(4.0, rule.eta, 2.0, 200)
    assert_allclose(least, 0.2, rtol=1e-15)
    for factor in (0.9, 1.1):
        assert bound.spac_actor(4.0, factor * rule.eta, 2.0, 200) > least


def test_the_theorems() -> None:
    rule = SPAC(eta=0.2, lam=40.0, R=2.0)
    by_id = {theorem.id: theorem for theorem in rule.theorems}
    assert set(by_id) == {"spac.actor", "spac.certificate", "spac.rate"}
    without = {t.id: b for t, b in rule.bounds(Setting(4.0, 200))}
    assert set(without) == {"spac.actor"}
    assert_allclose(without["spac.actor"], 0.1 + 0.1, rtol=1e-15)
    with_cost = {t.id: b for t, b in rule.bounds(Setting(4.0, 200, pessimism_cost=0.25))}
    assert_allclose(with_cost["spac.certificate"], 0.45, rtol=1e-15)
    assert SPAC(eta=Power(1.0), lam=1.0, R=1.0).bounds(Setting(4.0, 200)) == []
    assert by_id["spac.rate"].status is Status.PUBLISHED
    assert by_id["spac.rate"].order == -0.5
    assert {t.status for t in rule.theorems} == {Status.PUBLISHED, Status.DERIVED}
    assert by_id["spac.actor"].measure is Measure.ACTOR_REGRET
    assert {t.iterate for t in rule.theorems} == {Iterate.AVERAGE}


def test_the_certificate_takes_arrays() -> None:
    """A cost per data set, as claims hand it over."""
    rule = SPAC(eta=0.2, lam=40.0, R=2.0)
    (certificate,) = [t for t in rule.theorems if t.id == "spac.certificate"]
    costs = np.array([0.0, 0.25])
    setting = Setting(4.0, 200, pessimism_cost=costs)  # type: ignore[arg-type]
    assert_allclose(certificate.bound(rule, setting), [0.2, 0.45], rtol=1e-15)


def test_bounds_by_hand() -> None:
    """S1: .3 + 2 (.7 − .5) = .7. S2: .1 + .4 + 2 (.7 − .5) = .9. DPO's floor at β = ½: ½ σ(−1)."""
    assert_allclose(bound.spac_pessimism(0.3, 2.0, 0.7, 0.5), 0.7, rtol=1e-15)
    assert_allclose(bound.spac_decomposition(0.1, 0.4, 2.0, 0.7, 0.5), 0.9, rtol=1e-15)
    assert_allclose(bound.dpo_rare_arm_floor(0.5), 0.5 / (1 + math.e), rtol=1e-15)


def test_losses_by_hand() -> None:
    """Values 2 and 1, the first preferred with probability ¾: ¾ log(1 + e⁻¹) + ¼ log(1 + e) = .563262.

    The practical loss at log-ratios (½, 0) of the pair and −½ of a self-generated response, β = 2, weights 3 and 4:
    3 log(1 + e⁻¹) + 4 · (−½) plain, and + 4 log(1 + e^−½) smoothed. χPO at π/ref = 2 and 1, β = ½:
    ½ ((2 + log 2) − 1) = .846574, −log σ = .356…; clipped at .5 it is log(1 + e^−½).
    """
    assert_allclose(
        bradley_terry(np.array(2.0), np.array(1.0), 0.75), 0.75 * math.log1p(math.exp(-1)) + 0.25 * math.log1p(math.e)
    )
    terms = (np.array(0.5), np.array(0.0), np.array(-0.5), 2.0, 3.0, 4.0)
    pair = 3 * math.log1p(math.exp(-1))
    assert_allclose(spac_practical(*terms, identity_term), pair - 2, rtol=1e-15)
    assert_allclose(spac_practical(*terms, log_sigmoid_term), pair + 4 * math.log1p(math.exp(-0.5)), rtol=1e-15)
    twice = np.array(math.log(2))
    assert_allclose(chi_link(twice), 2 + math.log(2), rtol=1e-15)
    margin = (1 + math.log(2)) / 2
    assert_allclose(chi_po(twice, np.array(0.0), 0.5, 10.0), math.log1p(math.exp(-margin)), rtol=1e-15)
    assert_allclose(chi_po(twice, np.array(0.0), 0.5, 0.5), math.log1p(math.exp(-0.5)), rtol=1e-15)


def test_refusals() -> None:
    rule = SPAC(eta=0.5, lam=0.0, R=3.0)  # λ = 0 is legal
    cases: list[tuple[dict[str, Any], str]] = [
        ({"eta": 0.0}, "eta = 0 must be > 0"),
        ({"lam": -1.0}, "lam = -1 must be >= 0"),
        ({"lam": math.inf}, "must be a finite number"),
        ({"R": 0.0}, "R = 0 must be > 0"),
        ({"lam": Power(-1.0)}, "lam = -1 at t = 0 must be >= 0"),
    ]
    for changes, match in cases:
        with pytest.raises(ValueError, match=match):
            dataclasses.replace(rule, **changes)
    assert hash(rule) == hash(SPAC(eta=0.5, lam=0.0, R=3.0))
