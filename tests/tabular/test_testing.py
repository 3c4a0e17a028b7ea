"""`check_rule`: the package's rules pass it, and for each of its checks a broken rule or a broken step fails it."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace, is_numpy_array
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from nashpo.core.policies import log_normalize, mirror_step
from nashpo.core.rules import (
    COMAL,
    DPO,
    EGPO,
    INPO,
    IPO,
    ONPO,
    RULES,
    SPPO,
    Aim,
    Form,
    IterativeDPO,
    IterativeIPO,
    NashMD,
    Payoff,
    Rule,
    Stage,
    critic,
    win,
)
from nashpo.core.schedules import Power
from nashpo.core.theorems import Iterate, Measure, Status, Theorem
from nashpo.tabular import Game, engine, exact, families
from nashpo.tabular.strategies import drawable
from nashpo.tabular.testing import CHECKS, CheckResult, check_rule, games, policies, rules

PASSING = [
    SPPO(0.5),
    SPPO(5.0),
    SPPO(Power(1.0, 0.5)),
    ONPO(0.5),
    ONPO(0.5, "one_step"),
    ONPO(0.5, "leader"),
    INPO(0.3, 0.5),
    NashMD(0.3, 0.5),
    NashMD.scheduled(0.5),
    EGPO(0.3, 0.5),
    COMAL(0.3, 0.5, 3),
    IPO(0.5),
    IterativeIPO(2.0),
    DPO(0.5),
    IterativeDPO(2.0),
]


def outcomes(results: tuple[CheckResult, ...], check: str) -> list[bool]:
    return [result.passed for result in results if result.check == check]


@pytest.mark.parametrize("rule", PASSING, ids=repr)
def test_the_packages_rules_pass(rule: Rule) -> None:
    results = check_rule(rule)
    for check in ("form", "simplex", "relabelling", "shift", "losses", "libraries"):
        assert all(outcomes(results, check)), check
    assert any(outcomes(results, "fixed point")) == (rule.aim is not Aim.NOTHING)
    assert any(outcomes(results, "direction")) == (rule.aim is not Aim.NOTHING)
    assert any(outcomes(results, "theorems")) == bool(rule.theorems)
    assert any(outcomes(results, "engine"))  # DPO on the game with a reward
    assert all(result.note for result in results if not result.passed)


NEEDS_DATA = {"spac"}


def test_every_rule_that_a_game_can_answer_is_among_them() -> None:
    assert {rule.name for rule in PASSING} == set(RULES) - NEEDS_DATA


@settings(max_examples=15, deadline=None, derandomize=True)
@given(rules(), st.integers(0, 10**6))
def test_rules_with_random_hyperparameters_pass(rule: Rule, seed: int) -> None:
    check_rule(rule, games=[families.uniform_random(3, seed), families.cyclic(3, margin=0.6)], seed=seed)


@dataclass(frozen=True)
class Mutant(Rule):
    """A rule made of a function that gives its form."""

    make: Callable[["Mutant"], Form]
    eta: float = 0.5
    tau: float = 0.5
    name = "mutant"

    def form(self) -> Form:
        return self.make(self)


def one_stage(base: dict[str, Any], payoffs: dict[Payoff, Any]) -> Form:
    return Form({"current": "start", "reference": "reference"}, [Stage("current", base, payoffs)])


@dataclass(frozen=True)
class TowardsNash(Mutant):
    aim = Aim.NASH


@dataclass(frozen=True)
class TowardsRegularized(Mutant):
    aim = Aim.REGULARIZED_NASH


@dataclass(frozen=True)
class NearRegularized(Mutant):
    aim = Aim.NEAR_REGULARIZED_NASH


@dataclass(frozen=True)
class WithoutTau(Rule):
    eta: float = 0.5
    name = "without tau"
    aim = Aim.REGULARIZED_NASH

    def form(self) -> Form:
        return SPPO(self.eta).form()


@dataclass
class Melting(Rule):
    eta: float = 0.5
    name = "not frozen"

    def form(self) -> Form:
        return SPPO(self.eta).form()


def claim(bound: float, iterate: Iterate, measure: Measure) -> Theorem:
    return Theorem(
        "mutant.claim", "", iterate, measure, "", Status.DERIVED, None, lambda r, s: True, lambda r, s: bound / s.T
    )


@dataclass(frozen=True)
class TooGood(TowardsNash):
    """The bound of ONPO on the steps of SPPO, with a constant that no run keeps."""

    theorems = (claim(0.05, Iterate.AVERAGE, Measure.DUALITY_GAP),)


@dataclass(frozen=True)
class TooGoodLast(TowardsRegularized):
    theorems = (claim(1e-3, Iterate.LAST, Measure.KL_TO_EQUILIBRIUM),)


CALLS = iter(range(10**9))
MUTANTS: list[tuple[str, Rule, str]] = [
    ("form", Mutant(lambda m: one_stage({"current": 0.9}, {win("current"): m.eta})), r"add up to 1"),
    ("form", Mutant(lambda m: one_stage({"current": 1.5, "reference": -0.5}, {})), r"must be >= 0"),
    ("form", Mutant(lambda m: one_stage({"current": 1.0}, {win("nobody"): m.eta})), r"does not exist there"),
    ("form", Mutant(lambda m: one_stage({"current": 1.0}, {win("current"): float("nan")})), r"must be a finite number"),
    ("form", Mutant(lambda m: one_stage({"current": 1.0}, {win("current"): next(CALLS)})), r"two different forms"),
    ("form", Mutant(lambda m: "a form"), r"returned str"),  # type: ignore[arg-type, return-value]
    ("form", Melting(), r"must be a frozen dataclass"),
    # INPO is no method for the un-regularized game, nor SPPO for the regularized one.
    ("fixed point", TowardsNash(lambda m: INPO(m.eta, m.tau).form()), r"starting at a Nash .* it moved by"),
    ("fixed point", TowardsRegularized(lambda m: SPPO(m.eta).form()), r"starting at the equilibrium .* it moved by"),
    ("fixed point", TowardsRegularized(lambda m: INPO(m.eta, 1.1 * m.tau).form()), r"it moved by"),
    ("fixed point", TowardsRegularized(lambda m: NashMD(m.eta, m.tau).form()), r"it moved by"),
    ("fixed point", WithoutTau(), r"has no number tau"),
    ("fixed point", NearRegularized(lambda m: INPO(m.eta, 2 * m.tau).form()), r"does not shrink linearly"),
    ("direction", TowardsNash(lambda m: one_stage({"current": 1.0}, {win("current"): -m.eta})), r"is a sign wrong\?"),
    ("theorems", TooGood(lambda m: SPPO(m.eta).form()), r"mutant.claim is violated by .* after 1 update"),
    ("theorems", TooGoodLast(lambda m: INPO(m.eta, m.tau).form()), r"mutant.claim is violated"),
]


@pytest.mark.parametrize(("check", "rule", "message"), MUTANTS)
def test_a_broken_rule_fails_the_right_check(check: str, rule: Rule, message: str) -> None:
    """The failure names the check, the rule and the game, then the numbers."""
    with pytest.raises(AssertionError, match=rf"^check '{check}' fails for .* on .*: .*{message}") as failure:
        check_rule(rule)
    assert "\n" not in str(failure.value)


def unnormalized(base: Any, gains: Any) -> Any:
    return mirror_step(base, gains) + 1e-9


def floored(base: Any, gains: Any) -> Any:
    """Gives a zero probability a tiny one."""
    xp = array_namespace(base[0][1])
    return log_normalize(xp.clip(mirror_step(base, gains), -700.0, None))


def linear(base: Any, gains: Any) -> Any:
    """π (1 + ηg) in the place of π exp(ηg): normalized and symmetric, but a constant matters."""
    xp = array_namespace(base[0][1])
    gain = sum(b * g for b, g in gains) if gains else xp.zeros_like(base[0][1])
    return log_normalize(mirror_step(base, []) + xp.log(1 + 0.5 * gain))


def hasty(base: Any, gains: Any) -> Any:
    """Five per cent too far: no symmetry and no fixed point notices."""
    return mirror_step(base, [(1.05 * b, g) for b, g in gains])


def rounded_elsewhere(base: Any, gains: Any) -> Any:
    """Loses digits in every library but numpy."""
    step = mirror_step(base, gains)
    return step if is_numpy_array(step) else log_normalize(step * (1 + 1e-10))


BROKEN_STEPS = [
    ("simplex", unnormalized, r"add up to 1 only within 1e-09"),
    ("simplex", floored, r"a probability that was zero became positive"),
    ("shift", linear, r"policy 'current' differs by"),
    ("losses", hasty, r"the minimizer of the pointwise square with log Z is .* from the exact step of 'current'"),
    ("libraries", rounded_elsewhere, r"numpy and torch: policy 'current' differs by"),
]


@pytest.mark.parametrize(("check", "step", "message"), BROKEN_STEPS)
def test_a_broken_step_fails_the_right_check(
    check: str, step: Callable, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "mirror_step", step)
    with pytest.raises(AssertionError, match=rf"^check '{check}' fails for SPPO.*{message}"):
        check_rule(SPPO(0.5))


def favoured_first(game: Game, payoff: Payoff, policy: Any) -> Any:
    """A payoff by the response's place in the list."""
    xp = array_namespace(policy)
    return xp.zeros_like(policy) + xp.asarray([0.1] + [0.0] * (game.n - 1), dtype=policy.dtype)


def misjudged(game: Game, payoff: Payoff, policy: Any) -> Any:
    """Ten per cent too much, which labels on pairs contradict."""
    return 1.1 * exact.win_feedback(game, payoff, policy)


BROKEN_FEEDBACK = [
    ("relabelling", "place", favoured_first, r"policy 'current' differs by"),
    ("losses", "win", misjudged, r"the minimizer of the pairwise square with soft labels"),
]


@pytest.mark.parametrize(("check", "kind", "answer", "message"), BROKEN_FEEDBACK)
def test_broken_feedback_fails_the_right_check(
    check: str, kind: str, answer: Callable, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(exact.FEEDBACK, kind, answer)
    rule = Mutant(lambda m: one_stage({"current": 1.0}, {Payoff(kind, "current"): m.eta}))
    with pytest.raises(AssertionError, match=rf"^check '{check}' fails for .*{message}"):
        check_rule(rule)


def test_a_broken_engine_fails_the_right_check(monkeypatch: pytest.MonkeyPatch) -> None:
    real = engine.simulate_compiled

    def drifting(*arguments: Any, **options: Any) -> Any:
        recording = real(*arguments, **options)
        recording.kept["current"] = log_normalize(recording.kept["current"] * (1 + 1e-10))
        return recording

    monkeypatch.setattr(engine, "simulate_compiled", drifting)
    with pytest.raises(AssertionError, match=r"^check 'engine' fails for SPPO.* policy 'current' differs by"):
        check_rule(SPPO(0.5))


def test_every_check_has_been_seen_to_fail() -> None:
    failing = {row[0] for row in (*MUTANTS, *BROKEN_STEPS, *BROKEN_FEEDBACK)} | {"engine"}
    assert failing == set(CHECKS)


def test_a_wrong_sign_breaks_the_theorems_too() -> None:
    """Without the check of the direction, SPPO's bound still finds the rule that walks away from the best response."""

    @dataclass(frozen=True)
    class Backwards(SPPO):
        def form(self) -> Form:
            return Form({"current": "start"}, [Stage("current", {"current": 1.0}, {win("current"): -self.eta})])

    from nashpo.tabular.rule_checks import Arena

    even = np.full(4, 0.25)
    arena = Arena("a game with one best response", families.dominance(4), even, even, even)
    with pytest.raises(AssertionError, match=r"sppo\.average-gap is violated by .*Backwards"):
        CHECKS["theorems"](Backwards(0.5), arena)


def test_a_rule_that_needs_data_is_refused() -> None:
    rule = Mutant(lambda m: one_stage({"current": 1.0}, {critic("current", lam=1.0): m.eta}))
    with pytest.raises(ValueError, match="a game has no payoff of kind 'critic'"):
        check_rule(rule)


def test_games_of_ones_own() -> None:
    """Tuples of checks × games; the notes say what was checked."""
    mine = [families.comal(), families.uniform_random(3, 1, batch=2)]
    results = check_rule(SPPO(0.5), games=mine)
    assert len(results) == 2 * len(CHECKS)
    assert {result.game for result in results} == {f"game {i} ({game!r})" for i, game in enumerate(mine)}
    assert results[0] == CheckResult("form", f"game 0 ({mine[0]!r})", True, "100 iterations")
    libraries = next(result for result in results if result.check == "libraries")
    assert libraries.note == "numpy, torch, array_api_strict"
    direction = next(result for result in results if result.check == "direction")
    assert (direction.passed, direction.note) == (False, "no response dominates all others")


def test_games_of_one_response_and_torch_games() -> None:
    torch = pytest.importorskip("torch")
    check_rule(ONPO(0.5), games=[Game([[0.5]]), families.cyclic(3, 0.5).to(torch)])


def test_the_seed_decides() -> None:
    assert check_rule(NashMD(0.3, 0.5), seed=1) == check_rule(NashMD(0.3, 0.5), seed=1)
    assert check_rule(NashMD(0.3, 0.5), seed=1) != check_rule(NashMD(0.3, 0.5), seed=2)


# --- Strategies ----------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data(), games())
def test_drawn_games_and_policies_are_sound(data: Any, game: Game) -> None:
    assert_allclose(game.P + np.swapaxes(game.P, -1, -2), 1, rtol=0, atol=1e-15)
    exists = np.ones(game.P.shape[:-1], bool) if game.mask is None else game.mask
    assert exists.any(axis=-1).all()
    full, sparse = data.draw(policies(game)), data.draw(policies(game, full_support=False))
    for policy in (full, sparse):
        assert_allclose(policy.sum(axis=-1), 1, rtol=1e-14)
        assert (policy[~exists] == 0).all()
    assert (full[exists] > 0).all()


REACH = settings(max_examples=2000, phases=[Phase.generate], derandomize=True)


def test_the_strategies_reach_what_they_promise() -> None:
    """`find` fails where no example of 2,000 has the property."""
    find(games(), lambda game: game.mask is not None and not game.mask.all(), settings=REACH)
    find(games(), lambda game: bool((game.P == 1).any()), settings=REACH)
    find(games(), lambda game: game.batch_shape == (3,), settings=REACH)
    find(games(), lambda game: game.n == 1, settings=REACH)
    game = families.cyclic(3)
    find(policies(game, full_support=False), lambda policy: bool((policy == 0).any()), settings=REACH)
    for kind in drawable():
        find(rules(), lambda rule, kind=kind: type(rule) is kind, settings=REACH)
    find(rules(), lambda rule: callable(getattr(rule, "eta", None)), settings=REACH)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(games(n=st.integers(2, 3), batch_shape=st.just(()), ragged=False, certain=False))
def test_games_without_certainties(game: Game) -> None:
    assert game.batch_shape == ()
    assert game.mask is None
    assert ((game.P > 0) & (game.P < 1)).all()
    assert 2 <= game.n <= 3


def test_every_rule_that_a_game_can_answer_is_drawable() -> None:
    assert {kind.name for kind in drawable()} == set(RULES) - NEEDS_DATA


@settings(max_examples=50, deadline=None, derandomize=True)
@given(rules([INPO, EGPO]))
def test_drawn_rules_are_valid_at_every_step(rule: Rule) -> None:
    for t in range(50):
        for stage in rule.form().stages:
            stage.base_at(t)


def test_an_unknown_hyperparameter_is_named() -> None:
    @dataclass(frozen=True)
    class Own(Rule):
        warmth: float
        name = "own"

        def form(self) -> Form:
            return SPPO(self.warmth).form()

    with pytest.raises(ValueError, match=r"no strategy for warmth of Own: add it to .*HYPERPARAMETERS"):
        find(rules([Own]), lambda rule: True)


def test_testing_has_no_other_names() -> None:
    import nashpo.tabular.testing as testing

    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        testing.nothing  # noqa: B018
    assert dataclasses.is_dataclass(CheckResult)
