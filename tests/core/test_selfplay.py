"""The self-play loop: what an iteration means, when feedback is asked, and the order of observing and committing.

The guests that it hosts are in test_selfplay_fitted.py (long projections, killed and resumed) and
test_selfplay_critic.py.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from nashpo.core.rules import COMAL, EGPO, INPO, IPO, ONPO, SPPO, Copy, Form, NashMD, Payoff, Stage, win
from nashpo.core.selfplay import Backend, StageTrace, State, Term, Version, begin, iterate, self_play
from nashpo.tabular import Game
from nashpo.tabular.exact import Average, ExactBackend

P = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]])
START = np.array([0.5, 0.3, 0.2])
REFERENCE = np.array([0.2, 0.3, 0.5])


def exact_backend() -> ExactBackend:
    origins = {"start": np.log(START), "reference": np.log(REFERENCE), "behavior": np.log(REFERENCE)}
    return ExactBackend(Game(P), origins)


# --- When feedback is asked ----------------------------------------------------------------------------------------


class Counting(ExactBackend):
    """The exact backend, with a list of what it was asked and told."""

    def __init__(self) -> None:
        exact = exact_backend()
        super().__init__(exact.game, exact.origins)
        self.events: list[tuple[str, str]] = []

    def ask(self, key: str, payoff: Payoff, policy: Any, on: Any) -> Any:
        self.events.append(("ask", key))
        return super().ask(key, payoff, policy, on)

    def project(self, key: str, base: Any, terms: Any, on: Any) -> Any:
        self.events.append(("project", key))
        return super().project(key, base, terms, on)

    def mix(self, key: str, average: Any, policy: Any, count: int) -> Any:
        self.events.append(("mix", key))
        return super().mix(key, average, policy, count)

    def forget(self, state: State) -> None:
        self.events.append(("forget", str(state.t)))

    def count(self, kind: str) -> int:
        return sum(event[0] == kind for event in self.events)


def anchored(every: int) -> Form:
    """Play against an anchor that moves to `current` every so often, on the anchor's own responses."""
    stage = Stage("current", {"current": 1.0}, {win("anchor"): 0.5})
    return Form({"current": "start", "anchor": "reference"}, [stage], [Copy("current", "anchor", "new", every)])


STANDING = Form({"current": "start", "anchor": "reference"}, [Stage("current", {"anchor": 1.0}, {win("anchor"): 0.5})])
"""The same question and the same projection in every iteration."""

JUDGE_CALLS = [
    ("SPPO", SPPO(0.5).form(), 5),
    ("ONPO, two sequences", ONPO(0.5).form(), 5),
    ("ONPO, one step", ONPO(0.5, "one_step").form(), 9),
    ("ONPO, leader", ONPO(0.5, "leader").form(), 10),
    ("INPO", INPO(0.4, 0.5).form(), 5),
    ("Nash-MD", NashMD(0.4, 0.5).form(), 5),
    ("EGPO", EGPO(0.4, 0.5).form(), 10),
    ("COMAL", COMAL(0.4, 0.5, 2).form(), 5),
    ("an anchor that stands", anchored(9), 1),
    ("an anchor that moves after iterations 1 and 3", anchored(2), 3),
    ("an anchor that is base and opponent", STANDING, 1),
]


@pytest.mark.parametrize(("form", "calls"), [row[1:] for row in JUDGE_CALLS], ids=[row[0] for row in JUDGE_CALLS])
def test_judge_calls_for_five_iterations(form: Form, calls: int) -> None:
    """One-step ONPO has no `previous` at first, hence 9. An answer about a policy that stands is asked once."""
    backend = Counting()
    self_play(form, backend, 5)
    assert backend.count("ask") == calls
    assert backend.count("project") == 5 * len(form.stages)
    assert backend.count("mix") == 5


def test_onpo_asks_once_in_each_iteration_and_egpo_twice() -> None:
    """The order of operations within an iteration, and `forget` only where there is a store."""
    for rule, expected in (
        (ONPO(0.5), ["mix", "ask", "project", "project"]),
        (EGPO(0.4, 0.5), ["mix", "ask", "project", "ask", "project"]),
        (NashMD(0.4, 0.5), ["mix", "project", "ask", "project"]),
    ):
        backend = Counting()
        self_play(rule.form(), backend, 2)
        assert [kind for kind, _ in backend.events] == expected * 2


@pytest.mark.parametrize("form", [row[1] for row in JUDGE_CALLS], ids=[row[0] for row in JUDGE_CALLS])
def test_keys_are_a_function_of_rule_and_state(form: Form) -> None:
    """Two runs use the same keys, one run uses each key once, and another step size other ones for its projections."""
    runs = [Counting(), Counting()]
    for backend in runs:
        self_play(form, backend, 5)
    assert runs[0].events == runs[1].events
    keys = [key for _, key in runs[0].events]
    assert len(set(keys)) == len(keys)


def test_keys_tell_coefficients_and_origins_apart() -> None:
    keys = []
    for rule in (SPPO(0.5), SPPO(0.5 + 2**-50), INPO(0.5, 1.0), INPO(0.5, 0.5)):
        backend = Counting()
        self_play(rule.form(), backend, 1)
        keys.append(next(key for kind, key in backend.events if kind == "project"))
    assert len(set(keys)) == 4


def test_an_answer_is_kept_as_long_as_its_policies_are_in_a_slot() -> None:
    """SPPO's answer is about a policy that was overwritten; the anchor's stays until the anchor moves."""
    backend = exact_backend()
    assert self_play(SPPO(0.5).form(), backend, 3).answers == {}
    (question,) = self_play(anchored(9), backend, 3).answers
    assert question == (win(""), "reference", "reference")  # the version counts, not the name that asked
    assert self_play(anchored(3), backend, 3).answers == {}


def test_the_order_of_observing_committing_and_forgetting() -> None:
    events: list[tuple[str, int]] = []

    class Witness(Counting):
        def forget(self, state: State) -> None:
            events.append(("forget", state.t))

    class Memory:
        def load(self) -> State | None:
            return None

        def commit(self, state: State) -> None:
            events.append(("commit", state.t))

    def observe(before: State, after: State, trace: tuple[StageTrace, ...]) -> None:
        assert after.t == before.t + 1
        events.append(("observe", before.t))

    self_play(SPPO(0.5).form(), Witness(), 2, store=Memory(), observe=observe)
    assert events == [("observe", 0), ("commit", 1), ("forget", 1), ("observe", 1), ("commit", 2), ("forget", 2)]


# --- What an iteration means ---------------------------------------------------------------------------------------


class Names:
    """A backend whose policies are words, so that one can read what was done to what."""

    def check(self, form: Form) -> None: ...

    def start(self, origin: str) -> str:
        return origin

    def ask(self, key: str, payoff: Payoff, policy: str, on: str) -> str:
        return f"win({policy})"

    def project(self, key: str, base: list[tuple[float, str]], terms: list[Term], on: str | None) -> str:
        mixed = " ".join(f"{a:g}*{policy}" for a, policy in base)
        return f"[{mixed}{''.join(f' {term.weight:+g}*{term.answer}' for term in terms)}]"

    def mix(self, key: str, average: str | None, policy: str, count: int) -> str:
        return f"mean({count} of {average}, {policy})" if average else f"mean({policy})"

    def forget(self, state: State) -> None: ...


def words(form: Form, steps: int) -> dict[str, Any]:
    backend: Backend = Names()
    state = self_play(form, backend, steps)
    return {name: version and version.handle for name, version in {**state.slots, "average": state.average}.items()}


def test_the_average_includes_the_policy_that_the_iteration_found() -> None:
    """After T updates the average is the mean of π_1 … π_T; in the first iteration it is π_1 alone."""
    leader = words(ONPO(0.5, "leader").form(), 1)
    assert leader["current"] == "[1*start +0.5*win(mean(start)) +0.5*win(start)]"
    assert leader["average"] == "mean(start)"
    sppo = words(SPPO(0.5).form(), 2)
    assert sppo["average"] == "mean(1 of mean(start), [1*start +0.5*win(start)])"


def test_stages_read_names_in_sequence() -> None:
    """ONPO's second stage reads the new auxiliary and the unwritten current; EGPO's the new half."""
    onpo = words(ONPO(0.5).form(), 1)
    auxiliary = "[1*start +0.5*win(start)]"
    assert onpo["auxiliary"] == auxiliary
    assert onpo["current"] == f"[1*{auxiliary} +0.5*win(start)]"
    egpo = words(EGPO(0.5, 0.5).form(), 1)
    half = "[0.75*start 0.25*reference +0.5*win(start)]"
    assert egpo["current"] == f"[0.75*start 0.25*reference +0.5*win({half})]"


def test_an_absent_slot_earns_nothing() -> None:
    """One-step ONPO: 2η r_1 first; then 2η r_2 − η r_1 with the policy that the iteration found."""
    first = "[1*start +1*win(start)]"
    assert words(ONPO(0.5, "one_step").form(), 1) == {
        "current": first,
        "previous": "start",
        "average": "mean(start)",
    }
    second = words(ONPO(0.5, "one_step").form(), 2)
    assert second["current"] == f"[1*{first} +1*win({first}) -0.5*win(start)]"
    assert second["previous"] == first


SHIFT = Stage("current", {"current": 1.0}, {win("current"): 1.0})


def test_chained_copies_act_together() -> None:
    """previous := old current and older := old previous at once: older lags by two, not by one."""
    form = Form(
        {"current": "start", "previous": None, "older": None},
        [SHIFT],
        [Copy("current", "previous", "old"), Copy("previous", "older", "old")],
    )
    one, two, three = (words(form, steps) for steps in (1, 2, 3))
    assert (one["previous"], one["older"]) == ("start", None)
    assert (two["previous"], two["older"]) == (one["current"], "start")
    assert (three["previous"], three["older"]) == (two["current"], one["current"])
    # The order in which they are written does not matter, nor does NEW for slots that no stage writes.
    other = Form(form.slots, [SHIFT], [Copy("previous", "older", "new"), Copy("current", "previous", "old")])
    assert words(other, 3) == three


def test_copies_can_swap() -> None:
    form = Form({"current": "start", "a": "reference", "b": "behavior"}, [SHIFT], [Copy("a", "b"), Copy("b", "a")])
    assert [words(form, steps)["a"] for steps in (1, 2, 3)] == ["behavior", "reference", "behavior"]


def test_new_and_old_copies_and_every() -> None:
    """`new` takes what the stages wrote, `old` what the iteration found; every = 2 acts at the end of the second."""
    form = Form(
        {"current": "start", "new": "reference", "old": "reference", "slow": "reference"},
        [SHIFT],
        [Copy("current", "new"), Copy("current", "old", "old"), Copy("current", "slow", "new", 2)],
    )
    one, two, three = (words(form, steps) for steps in (1, 2, 3))
    assert (one["new"], one["old"], one["slow"]) == (one["current"], "start", "reference")
    assert (two["new"], two["old"], two["slow"]) == (two["current"], one["current"], two["current"])
    assert three["slow"] == two["current"]


def test_a_base_that_is_the_average_is_refused() -> None:
    with pytest.raises(ValueError, match="'average' is legal as an opponent only"):
        Form({"current": "start"}, [Stage("current", {"average": 1.0}, {win("current"): 0.5})])


def test_a_copy_may_take_a_policy_away_and_reading_it_says_so() -> None:
    """`lost` is never written: copied over `current` after two iterations, or over a base."""
    slots = {"current": "start", "anchor": "reference", "lost": None}
    with pytest.raises(ValueError, match="'current' is absent at t = 2"):
        self_play(Form(slots, [SHIFT], [Copy("lost", "current", "new", 2)]), Names(), 3)
    pulled = Stage("current", {"anchor": 1.0}, {win("current"): 1.0})
    with pytest.raises(ValueError, match="stage 'current' reads 'anchor', which is absent at t = 2"):
        self_play(Form(slots, [pulled], [Copy("lost", "anchor", "new", 2)]), Names(), 3)


def test_steps_and_horizon_are_checked() -> None:
    with pytest.raises(ValueError, match="steps = 0 must be at least 1"):
        self_play(SPPO(0.5).form(), Names(), 0)
    with pytest.raises(ValueError, match="horizon of 1: use its iterative form"):
        self_play(IPO(0.5).form(), Names(), 2)


def test_an_iteration_by_hand() -> None:
    """SPPO with η = 2 log 2 from (½, ½) on P = ((½, 1), (0, ½)): Aπ = (¼, −¼), weights √2 : 1/√2, so (⅔, ⅓)."""
    game = Game([[0.5, 1.0], [0.0, 0.5]])
    backend = ExactBackend(game, {"start": np.log([0.5, 0.5])})
    form = SPPO(2 * math.log(2)).form()
    state, trace = iterate(form, backend, begin(form, backend))
    assert_allclose(np.exp(state.slots["current"].handle), [2 / 3, 1 / 3], rtol=1e-15)
    assert_allclose(state.average.handle.policy, [0.5, 0.5], rtol=1e-15)
    assert (trace[0].stage, trace[0].writes) == (0, "current")
    assert_allclose(trace[0].terms[0].answer, [0.25, -0.25], rtol=1e-15)


@pytest.mark.parametrize(
    "rule",
    [SPPO(0.5), ONPO(0.5), ONPO(0.5, "one_step"), ONPO(0.5, "leader"), EGPO(0.4, 0.5), NashMD(0.4, 0.5)],
    ids=repr,
)
def test_the_trace_carries_what_certificates_need(rule: Any) -> None:
    """log π_new − Σ a log π − Σ b g is the same for every response, −log Z: the residual of an exact step is 0."""

    def residuals(trace: tuple[StageTrace, ...]) -> Iterator[np.ndarray]:
        for stage in trace:
            made = sum(a * version.handle for a, version in stage.base)
            made = made + sum(term.weight * term.answer for term in stage.terms)
            yield stage.result.handle - made

    def observe(before: State, after: State, trace: tuple[StageTrace, ...]) -> None:
        assert len(trace) == len(rule.form().stages)
        for residual in residuals(trace):
            assert_allclose(residual, residual[0], rtol=0, atol=1e-14)

    self_play(rule.form(), exact_backend(), 4, observe=observe)


def test_states_are_left_alone() -> None:
    """An iteration makes a new state and does not touch the one it began with: replaying gives the same."""
    form, backend = ONPO(0.5).form(), exact_backend()
    state, _ = iterate(form, backend, begin(form, backend))
    copied = {name: version.handle.copy() for name, version in state.slots.items()}
    first, second = (iterate(form, backend, state)[0] for _ in range(2))
    for name, handle in copied.items():
        assert (state.slots[name].handle == handle).all()
        assert first.slots[name].key == second.slots[name].key
        assert (first.slots[name].handle == second.slots[name].handle).all()
    assert isinstance(first.average.handle, Average)
    assert Version("k", 1) == Version("k", 1)
