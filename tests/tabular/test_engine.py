"""The compiled engine against the loop with the exact backend, one iteration at a time.

Tolerance 1e-12: one iteration is some tens of sums and products of numbers of size 1 to 100, each right to 2.2e-16, and
matrix products of up to 131 terms. Trajectories drift apart, so each iteration of the loop starts from the engine's own
state, or there are only a few of them. Random games are seeded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.core.policies import log_from_probabilities
from nashpo.core.rules import (
    COMAL,
    DPO,
    EGPO,
    INPO,
    IPO,
    ONPO,
    RULES,
    SPPO,
    Copy,
    Form,
    IterativeDPO,
    IterativeIPO,
    NashMD,
    Rule,
    Stage,
    critic,
    reward,
    win,
)
from nashpo.core.schedules import Affine, Coef, Power, Ramp, Table, value
from nashpo.core.selfplay import State, Version, begin, iterate
from nashpo.core.tables import tables
from nashpo.tabular import compiled, engine, engine_kernel
from nashpo.tabular.coefficients import coefficients, values
from nashpo.tabular.engine import refusal, simulate_compiled
from nashpo.tabular.exact import Average, ExactBackend
from nashpo.tabular.game import Game
from nashpo.tabular.simulation import Recording, simulate

TOLERANCE = 1e-12


def zigzag(t: int) -> float:
    """A schedule that is a plain function."""
    return 0.1 + 0.1 * (t % 3)


RULES_HERE: list[Rule] = [
    SPPO(0.3),
    SPPO(Power(1.0, 0.5)),
    *(ONPO(0.5, variant) for variant in ("two_sequences", "one_step", "leader")),
    *(ONPO(Table((0.5, 0.1, 0.7)), variant) for variant in ("two_sequences", "one_step", "leader")),
    INPO(0.3, 0.5),
    INPO(Power(0.6), 0.5),
    INPO(zigzag, 0.5),
    NashMD(0.4, 0.2),
    NashMD.scheduled(0.7),
    EGPO(0.6, 0.3),
    EGPO(Power(0.6, 0.5), 0.3),
    COMAL(0.5, 0.4, 1),
    COMAL(0.5, 0.4, 7),
    IPO(0.2),
    IterativeIPO(3.0),
    DPO(0.7),
    IterativeDPO(3.0),
]


@dataclass(frozen=True)
class Arena:
    """A game and the log-policies that its slots begin as."""

    game: Game
    origins: Mapping[str, np.ndarray]

    @property
    def backend(self) -> ExactBackend:
        return ExactBackend(self.game, self.origins)


def arena(
    n: int, batch: tuple[int, ...] = (), seed: int = 0, *, ragged: bool = False, zeros: bool = False, bt: bool = False
) -> Arena:
    """A random game; response 0 exists everywhere, and every policy plays it."""
    rng = np.random.default_rng(seed)
    shape = (*batch, n)
    r = rng.normal(size=shape)
    margin = rng.uniform(-0.5, 0.5, (*shape, n))
    P = 1 / (1 + np.exp(r[..., None, :] - r[..., :, None])) if bt else 0.5 + (margin - np.swapaxes(margin, -1, -2)) / 2
    mask = (rng.random(shape) < 0.7) | (np.arange(n) == 0) if ragged else np.ones(shape, dtype=bool)
    game = Game(P, mask=mask if ragged else None, reward=r if bt else None)

    def policy(holes: bool) -> np.ndarray:
        weight = rng.exponential(size=shape) * mask
        if holes:
            weight *= (rng.random(shape) < 0.6) | (np.arange(n) == 0)
        return log_from_probabilities(weight / weight.sum(axis=-1, keepdims=True))

    return Arena(game, {"start": policy(zeros), "reference": policy(False), "behavior": policy(zeros)})


def assert_same(ours: Recording, theirs: Recording) -> None:
    assert_array_equal(ours.steps, theirs.steps)
    for field in ("gap_average", "gap_last", "average", "last"):
        one, other = getattr(ours, field), getattr(theirs, field)
        assert one.shape == other.shape
        assert_allclose(one, other, rtol=0, atol=TOLERANCE, err_msg=field)
    assert set(ours.kept) == set(theirs.kept)
    for name in ours.kept:
        assert ours.kept[name].shape == theirs.kept[name].shape
        assert_allclose(ours.kept[name], theirs.kept[name], rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def both(form: Form, where: Arena, steps: int, keep: list[str]) -> tuple[Recording, Recording]:
    at = range(1, steps + 1)
    return (
        simulate_compiled(form, where.game, where.origins, steps, at, keep),
        simulate(form, where.backend, where.game, steps, at, keep),
    )


def assert_each_step(form: Form, where: Arena, steps: int) -> None:
    """One iteration of the loop from each state of the engine gives the engine's next state."""
    names = [name for name, _ in form.slots]
    kept = simulate_compiled(form, where.game, where.origins, steps, range(1, steps + 1), [*names, "average"]).kept
    state = begin(form, where.backend)
    for row in range(steps):
        state, _ = iterate(form, where.backend, state)
        for name in names:
            version = state.slots[name]
            assert version is not None
            assert_allclose(kept[name][row], version.handle, rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"{name} {row}")
        assert state.average is not None
        assert_allclose(kept["average"][row], state.average.handle.policy, rtol=0, atol=TOLERANCE)
        slots = {name: Version(f"{name} {row}", kept[name][row]) for name in names}
        total = Average(kept["average"][row] * (row + 1), row + 1)
        state = State(row + 1, slots, Version(f"average {row}", total))


def names_of(form: Form) -> list[str]:
    return [*form.policies, "average"]


def shown(rule: Rule) -> str:
    return repr(rule).split(" at 0x")[0][:60]  # workers must agree on names, and an address differs


def test_every_rule_of_the_package_is_here() -> None:
    assert {type(rule) for rule in RULES_HERE} == {rule for rule in RULES.values() if not rule.needs_data}


@pytest.mark.parametrize("rule", RULES_HERE, ids=shown)
@pytest.mark.parametrize("batch", [(), (2, 3)], ids=str)
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_a_rule_runs_as_in_the_loop(rule: Rule, batch: tuple[int, ...], ragged: bool) -> None:
    form = rule.form()
    where = arena(6, batch, seed=1, ragged=ragged, bt=isinstance(rule, (DPO, IterativeDPO)))
    steps = form.horizon or 5
    assert_same(*both(form, where, steps, names_of(form)))
    if form.horizon is None:
        assert_each_step(form, where, 40)


@pytest.mark.parametrize("rule", [r for r in RULES_HERE if not isinstance(r, (DPO, IterativeDPO))], ids=shown)
def test_zeros_of_the_start_stay_zeros(rule: Rule) -> None:
    form = rule.form()
    where = arena(7, (3,), seed=2, ragged=True, zeros=True)
    ours, theirs = both(form, where, form.horizon or 4, names_of(form))
    assert_same(ours, theirs)
    if isinstance(rule, (SPPO, ONPO)):
        assert_array_equal(np.isneginf(ours.kept["current"][-1]), np.isneginf(where.origins["start"]))
        assert (ours.last[np.isneginf(where.origins["start"])] == 0).all()


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9, 127, 128, 129, 130, 131])
def test_every_number_of_responses(n: int) -> None:
    """The gain has two algorithms that meet at n = 128; the second takes four rows at a time."""
    where = arena(n, seed=n, ragged=n > 100)
    for rule in (ONPO(0.5), EGPO(0.6, 0.3)):
        assert_same(*both(rule.form(), where, 3, names_of(rule.form())))


LOCAL = ("x", "y")


@st.composite
def forms(draw: st.DrawFn) -> tuple[Form, int]:
    """Any form: slots of every origin, stages over each other's policies, schedules, zero weights, chained copies."""
    steps = draw(st.integers(1, 6))
    extra = draw(st.lists(st.sampled_from(["a", "b", "c"]), unique=True))
    origins = st.sampled_from(["start", "reference", "behavior", None])
    slots = {"current": draw(st.sampled_from(["start", "reference"]))} | {name: draw(origins) for name in extra}
    order = draw(st.permutations(list(slots)))

    def varied(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[float, ...]]:
        return st.one_of(numbers.map(lambda x: (x,)), st.lists(numbers, min_size=steps, max_size=steps).map(tuple))

    readable = {name for name, origin in slots.items() if origin is not None}
    opponents = {*slots, "average"}
    unread: set[str] = set()
    stages = []
    count = draw(st.integers(1, 4))
    for s in range(count):
        writes = draw(st.sampled_from([*slots, *(LOCAL if s < count - 1 else ())]))
        chosen = draw(st.lists(st.sampled_from(sorted(readable)), min_size=1, max_size=3, unique=True))
        chosen = list(dict.fromkeys([*chosen, *sorted(unread)]))
        rows = [draw(varied(st.sampled_from([0.0, 0.5, 1.0, 2.5]))) for _ in chosen]
        wide = [[*row, *row[-1:] * (steps - len(row))] for row in rows]
        wide[0] = [x + (sum(column) == 0) for x, column in zip(wide[0], zip(*wide))]
        total = [sum(column) for column in zip(*wide)]
        shares = [tuple(x / all_of for x, all_of in zip(row, total)) for row in wide]
        base = {name: share[0] if len(set(share)) == 1 else Table(share) for name, share in zip(chosen, shares)}
        weight = varied(st.sampled_from([-1.0, -0.3, 0.0, 0.4, 1.5]))
        payoffs = {}
        for name in draw(st.lists(st.sampled_from(sorted(opponents)), max_size=3, unique=True)):
            kind = draw(st.sampled_from([win, win, win, reward]))
            drawn = draw(weight)
            payoffs[kind(name)] = drawn[0] if len(drawn) == 1 else Table(drawn)
        stages.append(Stage(writes, base, payoffs, on=draw(st.sampled_from(sorted(readable))) if payoffs else None))
        unread -= set(chosen)
        readable.add(writes)
        opponents.add(writes)
        if writes not in slots:
            unread.add(writes)
    targets = draw(st.lists(st.sampled_from(order), unique=True))
    every = st.integers(1, 3)
    when = st.sampled_from(["new", "old"])
    copies = [Copy(draw(st.sampled_from(order)), target, draw(when), draw(every)) for target in targets]
    return Form([(name, slots[name]) for name in order], stages, copies), steps


def present_throughout(form: Form, where: Arena, steps: int) -> list[str] | None:
    """The policies that exist after every iteration, or None where the form reads an absent one."""
    state = begin(form, where.backend)
    present = {name for name, _ in form.slots}
    for _ in range(steps):
        try:
            state, _ = iterate(form, where.backend, state)
        except (ValueError, AssertionError):
            return None
        present &= {name for name, version in state.slots.items() if version is not None}
    return None if "current" not in present else sorted(present | (set(form.policies) - set(dict(form.slots))))


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(forms(), st.integers(0, 3), st.booleans(), st.sampled_from([(), (2,)]))
def test_any_form_runs_as_in_the_loop(drawn: tuple[Form, int], seed: int, zeros: bool, batch: tuple[int, ...]) -> None:
    form, steps = drawn
    where = arena(4, batch, seed, ragged=bool(batch), zeros=zeros, bt=True)
    present = present_throughout(form, where, steps)
    if present is None:
        with pytest.raises(ValueError, match="absent"):
            simulate_compiled(form, where.game, where.origins, steps, range(1, steps + 1))
        return
    assert_same(*both(form, where, steps, [*present, "average"]))


def test_a_changed_coefficient_changes_the_result() -> None:
    """So that no agreement above is one of a coefficient that nothing depends on."""
    where = arena(5, seed=3)
    numbers = {"a": 0.25, "b": 0.75, "c": 0.4, "d": 0.6, "e": 0.3, "f": 0.8, "g": -0.5, "h": 0.2}

    def run(x: Mapping[str, float]) -> np.ndarray:
        form = Form(
            {"current": "start", "reference": "reference", "previous": None},
            [
                Stage("half", {"current": x["a"], "reference": x["b"]}, {win("current"): x["e"]}),
                Stage(
                    "current",
                    {"half": x["c"], "current": x["d"]},
                    {win("half"): x["f"], win("previous"): x["g"], win("average"): x["h"]},
                ),
            ],
            [Copy("current", "previous", "old")],
        )
        return simulate_compiled(form, where.game, where.origins, 3, [3]).last

    original = run(numbers)
    changes = [{"a": 0.3, "b": 0.7}, {"c": 0.5, "d": 0.5}, {"e": 0.31}, {"f": 0.81}, {"g": -0.51}, {"h": 0.21}]
    for change in changes:
        assert abs(run(numbers | change) - original).max() > 1e-5


def test_copies_take_the_version_they_name() -> None:
    """One slot after the other, each an iteration behind: chained copies of old versions shift, those of new do not."""
    where = arena(4, seed=4)

    def kept(value_of: str) -> dict[str, np.ndarray]:
        form = Form(
            {"current": "start", "one": "start", "two": "reference"},
            [Stage("current", {"current": 1.0}, {win("current"): 0.7})],
            [Copy("current", "one", value_of), Copy("one", "two", value_of, 2)],
        )
        return simulate_compiled(form, where.game, where.origins, 6, range(1, 7), ["current", "one", "two"]).kept

    old, new = kept("old"), kept("new")
    assert_array_equal(old["one"][1:], old["current"][:-1])
    assert_array_equal(old["two"][1], old["one"][0])
    assert_array_equal(old["two"][0], where.origins["reference"])
    assert_array_equal(new["one"], new["current"])
    assert_array_equal(new["two"][[1, 3, 5]], new["one"][[0, 2, 4]])  # copies act together: `one` before its own copy
    assert_array_equal(new["two"][2], new["two"][1])


def test_a_gain_moves_along_with_its_policy() -> None:
    """One-step ONPO asks once per iteration: with A taken away, the second iteration still knows P π_1."""
    where = arena(5, seed=5)
    form = ONPO(0.5, "one_step").form()
    table = tables(form, 1)
    games = engine._games(where.game)
    memory = engine._memory(table, where.origins, 1, 5)
    records = engine_kernel.Records(np.empty((0, 1)), np.empty((0, 1)), np.empty((0, 0, 1, 5)))
    program = engine._program(form, table, 0, 2, np.zeros(0, dtype=np.int64), [])
    first, second = (memory.held[0, list(table.policies).index(name)] for name in ("current", "previous"))
    assert second == engine_kernel.ABSENT
    engine_kernel.play_games(0, 1, 0, 1, 0, games, program, memory, records)
    assert memory.held[0, list(table.policies).index("previous")] == first
    assert memory.known[0, first]
    expected = memory.log[0, memory.held[0, 0]] - 0.5 * (where.game.A @ np.exp(where.origins["start"]))
    nothing = games._replace(A=np.zeros_like(games.A))
    engine_kernel.play_games(0, 1, 1, 2, 0, nothing, program, memory, records)
    expected -= np.log(np.exp(expected).sum())
    assert_allclose(memory.log[0, memory.held[0, 0]], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("rule", [NashMD.scheduled(0.7), COMAL(0.5, 0.4, 7)], ids=shown)
def test_threads_and_calls_change_no_bit(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    where = arena(5, (3, 3), seed=6)

    def run(threads: int) -> Recording:
        at = [1, 2, 16, 17, 18, 50]
        return simulate_compiled(
            rule.form(), where.game, where.origins, 50, at, ["current", "average"], threads=threads
        )

    alone = run(1)
    together = run(4)
    monkeypatch.setattr(engine, "_LONGEST", 17)
    in_pieces = run(2)
    for other in (together, in_pieces):
        for field in ("gap_average", "gap_last", "average", "last"):
            assert_array_equal(getattr(alone, field), getattr(other, field))
        assert_array_equal(alone.kept["current"], other.kept["current"])
        assert_array_equal(alone.kept["average"], other.kept["average"])


def test_the_exponential_is_right_to_one_rounding() -> None:
    """Two units of 2.2e-16: its own rounding, and the C library's."""
    rng = np.random.default_rng(7)
    x = np.concatenate([-rng.exponential(size=3000), -707.9 * rng.random(3000), -np.geomspace(1e-300, 1, 100), [0.0]])
    ours = np.array([engine_kernel.exponential(v) for v in x])
    assert_allclose(ours, np.exp(x), rtol=4.5e-16, atol=0)
    assert [engine_kernel.exponential(v) for v in (0.0, -0.0, -708.5, -1e308, -np.inf)] == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_logits_far_below_zero_are_normalized() -> None:
    """Every response that the start plays loses to the reference: their logits are -1600, whose exponential is 0."""
    start, reference = (log_from_probabilities(np.array(p)) for p in ([0.6, 0.4, 0.0], [1e-9, 1e-9, 1 - 2e-9]))
    P = [[0.5, 0.5, 0.1], [0.5, 0.5, 0.1], [0.9, 0.9, 0.5]]
    where = Arena(Game(P), {"start": start, "reference": reference})
    form = Form(
        {"current": "start", "reference": "reference"},
        [Stage("current", {"current": 1.0}, {win("reference"): 4000.0})],
    )
    assert_same(*both(form, where, 3, ["current"]))


def test_coefficients_at_many_iterations_are_those_at_each() -> None:
    t = np.arange(3, 20)
    power = Power(2.0, 0.7, 1.5)
    for coef in (
        0.3,
        2,
        power,
        Affine(power, 0.5, 1.0),
        Ramp(power),
        Ramp(0.4),
        Table((1.0, 2.0, 3.0)),
        lambda s: s / 3,
    ):
        assert_allclose(values(coef, t), [value(coef, int(s)) for s in t], rtol=1e-15, atol=0)


def test_coefficients_are_the_tables() -> None:
    for rule in RULES_HERE:
        form = rule.form()
        table = tables(form, 12)
        base, weights = coefficients(form, table, 0, 12)
        assert_allclose(base, np.array(table.base), rtol=1e-15, atol=1e-16)
        assert_allclose(weights.ravel(), list(chain(*chain(*table.weights))), rtol=1e-15, atol=0)


def complaint(run: Callable[..., object], *arguments: object) -> str:
    """What a run complains about, or nothing."""
    try:
        run(*arguments)
    except (ValueError, ZeroDivisionError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize(
    ("eta", "both_go_wrong"),
    [
        (lambda t: 0.5 if t < 3 else 3.0, False),
        (lambda t: 0.5 if t < 3 else np.nan, True),
        (lambda t: 1.0 / (3 - t), True),
        (Power(1.0, 1.0, -3.0), True),
    ],
    ids=["off the simplex", "nan", "divided by zero", "power divided by zero"],
)
def test_a_schedule_that_goes_wrong_is_refused_as_in_the_loop(eta: Coef, both_go_wrong: bool) -> None:
    """As a base and as a weight; the message is that of the iteration where it happens."""
    where = arena(3)
    pulled = Form(
        {"current": "start", "reference": "reference"},
        [Stage("current", {"current": Affine(eta, -0.5, 1.0), "reference": Affine(eta, 0.5)})],
    )
    weighed = Form({"current": "start"}, [Stage("current", {"current": 1.0}, {win("current"): eta})])
    for form, goes_wrong in ((pulled, True), (weighed, both_go_wrong)):
        ours = complaint(simulate_compiled, form, where.game, where.origins, 6, [6])
        theirs = complaint(simulate, form, where.backend, where.game, 6, [6])
        assert ours == theirs
        assert bool(ours) == goes_wrong


def test_absent_policies_are_refused_as_in_the_loop() -> None:
    where = arena(3)
    one_step = ONPO(0.5, "one_step").form()
    lost = Form(
        {"current": "start", "anchor": "reference", "nothing": None},
        [Stage("current", {"anchor": 1.0}, {win("current"): 0.5})],
        [Copy("nothing", "anchor", "new", 3)],
    )
    regressed = Form(
        {"current": "start", "anchor": "reference", "nothing": None},
        [Stage("current", {"current": 1.0}, {win("current"): 0.5}, on="anchor")],
        [Copy("nothing", "anchor", "new", 2)],
    )
    unfilled = Form({"current": "start", "nothing": None}, [Stage("current", {"current": 1.0}, {win("current"): 0.5})])
    cases = [(one_step, ["elsewhere"], 2), (unfilled, ["nothing"], 2), (lost, [], 5), (regressed, [], 5)]
    for form, keep, steps in cases:
        with pytest.raises(ValueError, match="absent") as theirs:
            simulate(form, where.backend, where.game, steps, [steps], keep)
        with pytest.raises(ValueError, match="absent") as ours:
            simulate_compiled(form, where.game, where.origins, steps, [steps], keep)
        assert str(ours.value) == str(theirs.value)
    assert simulate_compiled(lost, where.game, where.origins, 3, [3]).last.shape == (3,)


def test_a_policy_that_leaves_play_is_refused() -> None:
    where = arena(3)
    form = Form(
        {"current": "start", "nothing": None},
        [Stage("current", {"current": 1.0}, {win("current"): 0.5})],
        [Copy("nothing", "current", "new", 2)],
    )
    for steps, record_at in ((2, [1]), (2, [2]), (3, [1])):
        with pytest.raises(ValueError, match="'current' cannot be .*: it is absent"):
            simulate_compiled(form, where.game, where.origins, steps, record_at)


def test_refusals() -> None:
    plain, declared = arena(3).game, arena(3, bt=True).game
    spac = Form({"current": "start"}, [Stage("current", {"current": 1.0}, {critic("current", lam=1.0): 0.5})])
    assert refusal(SPPO(0.1).form(), plain) is None
    assert refusal(IterativeDPO(1.0).form(), declared) is None
    assert "reward" in str(refusal(IterativeDPO(1.0).form(), plain))
    assert "'critic'" in str(refusal(spac, plain))
    with pytest.raises(ValueError, match="compiled engine cannot run this"):
        simulate_compiled(spac, plain, {}, 1, [1])
    with pytest.raises(ValueError, match="horizon"):
        simulate_compiled(IPO(0.1).form(), plain, {}, 2, [2])


def test_without_a_writable_cache_it_still_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(cache: bool = False, **options: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")
        return lambda function: ("compiled", function)

    monkeypatch.setattr(compiled, "njit", njit)
    assert compiled.compiled(fastmath={"contract"})(abs) == ("compiled", abs)
