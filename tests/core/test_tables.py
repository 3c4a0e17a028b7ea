"""Coefficient tables and the fingerprint. On random forms three readers agree: loop, engine, and an interpreter here.

Tolerance of that: they do the same arithmetic in another order, 12 iterations with |coefficients| <= 1, 1e-11.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from nashpo.core.policies import log_from_probabilities
from nashpo.core.rules import COMAL, ONPO, SPPO, Copy, Form, NashMD, Stage, critic, win
from nashpo.core.schedules import Power, Ramp, Table
from nashpo.core.selfplay import self_play
from nashpo.core.tables import Tables, fingerprint, tables
from nashpo.tabular import Game
from nashpo.tabular.engine import simulate_compiled
from nashpo.tabular.exact import ExactBackend, probabilities
from nashpo.tabular.testing import games, policies, rules


def test_tables_of_one_step_onpo() -> None:
    """Payoffs 2η and −η with η = ¼; `previous` is absent at first and takes the old `current` at every end."""
    table = tables(ONPO(0.25, "one_step").form(), 7)
    assert table.policies == ("current", "previous", "average")
    assert table.origins == ("start", None, None)
    assert table.payoffs == (win("current"), win("previous"))
    assert table.payoff_policy == (0, 1)
    assert table.writes == (0,)
    assert table.base == (((1.0, 0.0, 0.0),),)
    assert table.weights == (((0.5, -0.25),),)
    assert table.copies == ((0, 1, 1, 1),)


def test_tables_of_comal() -> None:
    table = tables(COMAL(0.5, 0.5, 3).form(), 7)
    assert table.base == (((0.75, 0.25, 0.0),),)
    assert table.copies == ((0, 1, 0, 3),)


def test_one_row_per_iteration_where_a_coefficient_depends_on_t() -> None:
    """Leader form of ONPO with η = ½: the average weighs ½, 1, 3/2; Nash-MD at τ = ½: ητ = 1, 2/3, ½."""
    leader = tables(ONPO(0.5, "leader").form(), 3)
    assert leader.weights == (((0.5, 0.5),), ((1.0, 0.5),), ((1.5, 0.5),))
    scheduled = tables(NashMD.scheduled(0.5).form(), 3)
    pulled = [[row[0][i] for i in range(2)] for row in scheduled.base]
    assert_allclose(pulled, [[0.0, 1.0], [1 / 3, 2 / 3], [0.5, 0.5]], rtol=1e-14)
    assert len(tables(SPPO(0.5).form(), 1000).base) == 1


def test_equal_names_in_one_stage_add_up() -> None:
    stage = Stage("current", [("current", 0.25), ("current", 0.75)], [(win("current"), 0.5), (win("current"), 0.25)])
    table = tables(Form({"current": "start"}, [stage]), 1)
    assert table.base == (((1.0, 0.0),),)
    assert table.weights == (((0.75,),),)


def test_every_row_is_checked() -> None:
    stage = Stage("current", {"current": lambda t: 1 - t / 8, "reference": lambda t: t / 4})
    with pytest.raises(ValueError, match="at t = 1"):
        tables(Form({"current": "start", "reference": "reference"}, [stage]), 3)


def interpret(table: Tables, game: Game, origins: dict[str, np.ndarray], steps: int) -> dict[str, np.ndarray]:
    """The four operations (mean, gain, step, copy) on probabilities, with powers instead of logarithms."""
    average = len(table.policies) - 1
    held = [None if origin is None else np.exp(origins[origin]) for origin in table.origins]
    total = np.zeros_like(np.exp(origins["start"]))
    for t in range(steps):
        row = min(t, len(table.base) - 1)
        found = list(held)
        total = total + held[table.policies.index("current")]
        held[average] = total / (t + 1)
        for s, written in enumerate(table.writes):
            weights = np.ones_like(total)
            for m, a in enumerate(table.base[row][s]):
                if a != 0:
                    weights = weights * held[m] ** a
            for g, b in enumerate(table.weights[row][s]):
                about = held[table.payoff_policy[g]]
                if b != 0 and about is not None:
                    weights = weights * np.exp(b * (game.A @ about[..., None])[..., 0])
            held[written] = weights / weights.sum(axis=-1, keepdims=True)
        left = list(held)
        for source, target, old, every in table.copies:
            if (t + 1) % every == 0:
                held[target] = (found if old else left)[source]
    return {name: held[m] for m, name in enumerate(table.policies) if held[m] is not None}


SLOTS = ("current", "reference", "one", "two")


@st.composite
def forms(draw: Any) -> Form:
    """Random forms: up to three stages, names of one iteration, absent slots, schedules, chained and late copies."""
    origins = {
        "current": draw(st.sampled_from(["start", "reference"])),
        "reference": "reference",
        "one": draw(st.sampled_from(["start", None])),
        "two": None,
    }
    readable = [name for name, origin in origins.items() if origin is not None]
    opponents = [*SLOTS, "average"]
    share = st.floats(0.05, 0.95)
    stages: list[Stage] = []
    writes = ["half"] * draw(st.booleans()) + draw(st.lists(st.sampled_from(SLOTS), max_size=1)) + ["current"]
    for name in writes:
        if name == "half" or len(readable) < 2:
            base: dict[str, Any] = {readable[0]: 1.0}
        else:
            first, second = draw(st.permutations(readable))[:2]
            a = draw(share)
            base = {first: a, second: 1 - a}
        weight = st.one_of(
            st.floats(-1, 1),
            st.lists(st.floats(-1, 1), min_size=1, max_size=5).map(lambda values: Table(tuple(values))),
        )
        against = draw(st.lists(st.sampled_from(opponents), max_size=3, unique=True))
        if name == "current" and "half" in writes:
            against = list(dict.fromkeys(["half", *against]))
        payoffs = {win(opponent): draw(weight) for opponent in against}
        stages.append(Stage(name, base, payoffs, on=draw(st.sampled_from(readable)) if payoffs else None))
        if name not in opponents:
            opponents.append(name)
        if name not in readable:
            readable.append(name)
    copies = []
    for target in draw(st.lists(st.sampled_from(["reference", "one", "two"]), max_size=3, unique=True)):
        # Only a slot that may be absent takes one that may be.
        sources = SLOTS if origins[target] is None else ("current", "reference")
        value, every = draw(st.sampled_from(["new", "old"])), draw(st.sampled_from([1, 1, 2, 3]))
        copies.append(Copy(draw(st.sampled_from(sources)), target, value, every))
    return Form(origins, stages, copies)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data(), forms(), games(n=st.integers(2, 4)), st.integers(1, 12))
def test_loop_and_tables_agree_on_random_forms(data: Any, form: Form, game: Game, steps: int) -> None:
    origins = {name: log_from_probabilities(data.draw(policies(game))) for name in ("start", "reference")}
    state = self_play(form, ExactBackend(game, origins), steps)
    table = interpret(tables(form, steps), game, origins, steps)
    for name, version in {**state.slots, "average": state.average}.items():
        assert (version is None) == (name not in table)
        if version is not None:
            assert_allclose(probabilities(version.handle), table[name], rtol=0, atol=1e-11)
    compiled = simulate_compiled(form, game, origins, steps, [steps])
    assert_allclose(compiled.last, table["current"], rtol=0, atol=1e-11)
    assert_allclose(compiled.average, table["average"], rtol=0, atol=1e-11)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rules(), st.integers(1, 6))
def test_tables_of_every_rule_are_finite(rule: Any, steps: int) -> None:
    table = tables(rule.form(), steps)
    assert np.isfinite(np.array(table.base)).all()
    assert_allclose(np.array(table.base).sum(axis=-1), 1, rtol=1e-12)


def test_fingerprints_of_different_rules_differ() -> None:
    pair = {"current": "start", "reference": "reference"}
    forms_of_rules = [
        SPPO(0.5).form(),
        SPPO(0.5 + 2**-50).form(),
        *(ONPO(0.5, variant).form() for variant in ("two_sequences", "one_step", "leader")),
        COMAL(0.5, 0.5, 2).form(),
        COMAL(0.5, 0.5, 3).form(),
        NashMD(0.5, 0.5).form(),
        NashMD.scheduled(0.5).form(),
        Form({"current": "start"}, [Stage("current", {"current": 1.0}, {critic("current", lam=1.0): 0.5})]),
        Form({"current": "start"}, [Stage("current", {"current": 1.0}, {critic("current", lam=2.0): 0.5})]),
        Form({"current": "reference"}, [Stage("current", {"current": 1.0}, {win("current"): 0.5})]),
        *(Form(pair, [Stage("current", {"current": 1.0}, {win("current"): 0.5}, on=on)]) for on in pair),
    ]
    assert len({fingerprint(form, 4) for form in forms_of_rules}) == len(forms_of_rules)


def test_a_fingerprint_covers_finished_iterations_only() -> None:
    """Table (½, ½, 1) and (½, ½, 2) agree on two iterations and differ on three: more steps may be added."""
    one, other = (SPPO(Table((0.5, 0.5, last))).form() for last in (1.0, 2.0))
    assert fingerprint(one, 2) == fingerprint(other, 2)
    assert fingerprint(one, 3) != fingerprint(other, 3)
    assert fingerprint(SPPO(0.5).form(), 2) == fingerprint(SPPO(0.5).form(), 2000)


def test_a_fingerprint_does_not_depend_on_how_a_schedule_is_written() -> None:
    """1/(t + 1) as a class or as a function, a parameter of a payoff included."""
    for make in (lambda eta: SPPO(eta).form(), lambda eta: _critic_form(eta)):
        assert fingerprint(make(Power(1.0)), 5) == fingerprint(make(lambda t: 1 / (t + 1)), 5)
        assert fingerprint(make(Power(1.0)), 5) != fingerprint(make(Ramp(1.0)), 5)


def _critic_form(lam: Any) -> Form:
    return Form({"current": "start"}, [Stage("current", {"current": 1.0}, {critic("current", lam=lam): 0.5})])
