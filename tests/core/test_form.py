"""The normal form: what a form may say, what it refuses and how, and how its coefficients are read at t."""

from typing import Any

import pytest

from nashpo.core.rules import Copy, Form, Payoff, Stage, critic, reward, win
from nashpo.core.rules.form import When
from nashpo.core.schedules import Power, Table

STEP = Stage("current", {"current": 1.0}, {win("current"): 0.5})


def test_the_smallest_form() -> None:
    form = Form({"current": "start"}, [STEP])
    assert form.policies == ("current",)
    assert form.payoffs == (win("current"),)
    assert not form.uses_reference
    assert form.horizon is None


def test_a_form_is_a_value() -> None:
    """Equal, hashable, and deaf to later changes of the mappings it was made from."""
    slots: dict[str, Any] = {"current": "start", "reference": "reference"}
    base: dict[str, Any] = {"current": 0.75, "reference": 0.25}
    payoffs: dict[Payoff, Any] = {win("current"): 0.5}
    stage = Stage("current", base, payoffs)
    form = Form(slots, [stage])
    slots["other"], base["current"] = "start", 9.0
    payoffs[win("reference")] = 1.0
    same = Form([("current", "start"), ("reference", "reference")], (Stage("current", stage.base, stage.payoffs),))
    assert form == same
    assert hash(form) == hash(same)
    assert form.uses_reference
    assert form.stages[0].base_at(0) == [("current", 0.75), ("reference", 0.25)]


def test_names_in_order_of_appearance() -> None:
    stages = [
        Stage("half", {"current": 1.0}, {win("current"): 0.5}),
        Stage("current", {"current": 1.0}, {win("half"): 0.5, win("current"): 0.1}),
    ]
    form = Form({"current": "start", "spare": None}, stages)
    assert form.policies == ("current", "spare", "half")
    assert form.payoffs == (win("current"), win("half"))


def test_responses_come_from_the_first_payoffs_policy_unless_said() -> None:
    assert STEP.on == "current"
    assert Stage("current", {"current": 1.0}).on is None
    assert Stage("current", {"current": 1.0}, {win("average"): 1.0}, on="current").on == "current"


def test_coefficients_are_read_at_t() -> None:
    """Base 1 − 1/(t + 1) and 1/(t + 1): at t = 0 the first is 0 and left out; payoffs of weight 0 too."""
    stage = Stage(
        "current",
        {"current": lambda t: 1 - 1 / (t + 1), "reference": Power(1.0)},
        {win("current"): Table((0.0, 0.5)), win("reference"): -0.25},
    )
    assert stage.base_at(0) == [("reference", 1.0)]
    assert stage.base_at(1) == [("current", 0.5), ("reference", 0.5)]
    assert stage.payoffs_at(0) == [(win("reference"), -0.25)]
    assert stage.payoffs_at(1) == [(win("current"), 0.5), (win("reference"), -0.25)]


def test_parameters_of_a_payoff_are_read_at_t() -> None:
    payoff = critic("current", lam=Power(6.0), R=3.0)
    assert payoff.at(2) == Payoff("critic", "current", (("R", 3.0), ("lam", 2.0)))
    stage = Stage("current", {"current": 1.0}, {payoff: 0.5})
    assert stage.payoffs_at(1) == [(Payoff("critic", "current", (("R", 3.0), ("lam", 3.0))), 0.5)]
    assert hash(payoff) == hash(critic("current", R=3.0, lam=Power(6.0)))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"current": 0.9}, r"add up to 0.9\b"),
        ({"current": 1.1, "reference": -0.1}, r"current: 1.1, reference: -0.1"),
        ({"current": lambda t: 1 - 0.2 * t, "reference": lambda t: 0.2 * t}, r"at t = 6.*is eta \* tau above 1\?"),
    ],
)
def test_a_base_off_the_simplex_is_refused(base: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stage("current", base).base_at(6)


def test_a_base_within_rounding_of_the_simplex_passes() -> None:
    """0.1 added ten times is 1 − 1.1e-16."""
    stage = Stage("current", {f"p{i}": 0.1 for i in range(10)})
    assert len(stage.base_at(0)) == 10


def test_copies() -> None:
    """every = 3 acts at the end of iterations 2, 5, 8, that is after 3, 6, 9 of them."""
    copy = Copy("current", "reference", "new", 3)
    assert copy.value is When.NEW
    assert [t for t in range(9) if copy.due(t)] == [2, 5, 8]
    assert Copy("current", "previous", "old").value is When.OLD


START = {"current": "start"}
PREVIOUS = {"current": "start", "previous": None}


def step(base: str = "current", opponent: str = "current", writes: str = "current", on: str | None = None) -> Stage:
    return Stage(writes, {base: 1.0}, {win(opponent): 0.5}, on=on)


REFUSED = [
    ({}, [STEP], (), r"needs a slot 'current' with an origin"),
    ({"current": None}, [STEP], (), r"needs a slot 'current' with an origin"),
    ({"current": "middle"}, [STEP], (), r"origin 'middle'; the origins are 'start', 'reference', 'behavior', None"),
    ({**START, "average": "start"}, [STEP], (), r"'average' is kept by the loop and cannot be a slot"),
    (START, [], (), r"at least one stage"),
    (START, [step(base="average")], (), r"'average' is legal as an opponent only: a base needs log-probabilities"),
    (START, [step(base="reference")], (), r"reads 'reference' as a base, which may be absent"),
    (PREVIOUS, [step(base="previous")], (), r"reads 'previous' as a base, which may be absent"),
    (START, [step(opponent="half")], (), r"payoff against 'half', which does not exist there"),
    (START, [step(opponent="average")], (), r"regresses on responses of 'average', which may be absent"),
    (PREVIOUS, [step(opponent="previous")], (), r"regresses on responses of 'previous', which may be absent"),
    (START, [step(on="nobody")], (), r"regresses on responses of 'nobody'"),
    (START, [STEP, step(writes="average")], (), r"'average' is kept by the loop and cannot be written"),
    (START, [STEP, step(writes="unread")], (), r"writes 'unread', which is no slot and is never read"),
    (START, [step(base="half"), step(writes="half")], (), r"reads 'half' as a base, which may be absent"),
    (START, [STEP], [Copy("current", "lost")], r"copy current -> lost: 'lost' is no slot"),
    (START, [STEP], [Copy("lost", "current")], r"copy lost -> current: 'lost' is no slot"),
    (PREVIOUS, [STEP], [Copy("current", "previous"), Copy("current", "previous", "old")], r"two copies .* same target"),
]


@pytest.mark.parametrize(("slots", "stages", "copies", "message"), REFUSED)
def test_an_unsound_form_is_refused_in_one_line(slots: dict, stages: list, copies: list, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Form(slots, stages, copies)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("every", [0, -1, 1.5])
def test_a_copy_that_is_never_due_is_refused(every: Any) -> None:
    with pytest.raises(ValueError, match=r"every = .* must be a whole number >= 1"):
        Copy("current", "reference", "new", every)


def test_a_copy_of_no_version_is_refused() -> None:
    with pytest.raises(ValueError, match="newest"):
        Copy("current", "reference", "newest")


def test_a_name_of_one_iteration_may_be_read_after_it_was_written() -> None:
    stages = [step(writes="half"), step(base="half", opponent="half")]
    assert Form(START, stages).policies == ("current", "half")


def test_horizon() -> None:
    form = Form(START, [STEP], horizon=2)
    form.check_horizon(2)
    with pytest.raises(ValueError, match="steps = 3, but this rule has a horizon of 2: use its iterative form"):
        form.check_horizon(3)
    with pytest.raises(ValueError, match="steps = 0 must be at least 1"):
        form.check_horizon(0)
    with pytest.raises(ValueError, match="horizon = 0 must be at least 1"):
        Form(START, [STEP], horizon=0)


def test_kinds_of_payoff() -> None:
    assert win("a") == Payoff("win", "a")
    assert reward("a") == Payoff("reward", "a")
    assert win("a") != reward("a") != critic("a")
