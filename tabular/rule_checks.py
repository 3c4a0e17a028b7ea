"""What any rule must keep, one step at a time: the form, the simplex, symmetries, array libraries, the engine.

Shapes: an `Arena` holds a game with ``P: (..., n, n)`` and policies (..., n). Every comparison is of single iterations
from a common state: trajectories that differ by rounding drift apart, and where a game cycles they do so exponentially.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nashpo.core.policies import Array, log_from_probabilities
from nashpo.core.rules import Form, Payoff, Rule
from nashpo.core.rules.form import AVERAGE
from nashpo.core.selfplay import Backend, StageTrace, State, Version, begin, iterate
from nashpo.core.tables import fingerprint
from nashpo.tabular.exact import Average, ExactBackend, probabilities
from nashpo.tabular.game import Game
from nashpo.tabular.win_rates import to_numpy

STEPS = 8
ROUNDING = 1e-12
SHIFT = 0.3


class NotApplicable(Exception):
    """A check that says nothing about this rule on this game, and why."""


@dataclasses.dataclass(frozen=True)
class Arena:
    """A game and where the policies begin, probabilities (..., n) with full support on the responses that exist."""

    name: str
    game: Game
    start: np.ndarray
    reference: np.ndarray
    behavior: np.ndarray

    def backend(self, **begin_as: np.ndarray) -> ExactBackend:
        """The exact backend on this game, some policies replaced."""
        policies = {"start": self.start, "reference": self.reference, "behavior": self.behavior} | begin_as
        return ExactBackend(self.game, {name: log_from_probabilities(policy) for name, policy in policies.items()})


def require(holds: bool | np.bool_, message: str) -> None:
    """AssertionError with the message unless the condition holds, also under ``python -O``."""
    if not holds:
        raise AssertionError(message)


def steps_of(form: Form, wanted: int = STEPS) -> int:
    """``wanted`` iterations, or the horizon where that is shorter."""
    return wanted if form.horizon is None else min(wanted, form.horizon)


def iterations(form: Form, backend: Backend, steps: int) -> Iterator[tuple[State, State, tuple[StageTrace, ...]]]:
    """Every iteration: the state before, the state after, what the stages did."""
    backend.check(form)
    state = begin(form, backend)
    for _ in range(steps):
        after, trace = iterate(form, backend, state)
        yield state, after, trace
        state = after


def tolerance(form: Form, t: int) -> float:
    """1e-12 per step, times the payoffs' weights where they are above 1: stage upon stage, rounding grows by those."""
    grown = ROUNDING
    for stage in form.stages:
        grown *= max(1.0, sum(abs(weight) for _, weight in stage.payoffs_at(t)))
    return grown


def carried(state: State, convert: Callable[[Array], Array]) -> State:
    """The state with every policy converted and no answer remembered."""

    def version(one: Version | None) -> Version | None:
        if one is None:
            return None
        if isinstance(one.handle, Average):
            return Version(one.key, Average(convert(one.handle.total), one.handle.count))
        return Version(one.key, convert(one.handle))

    slots = {name: version(one) for name, one in state.slots.items()}
    return State(state.t, slots, version(state.average), {}, state.fingerprint)


def policies_of(state: State) -> dict[str, np.ndarray]:
    """Probabilities of every slot that is present, and of the average, as numpy arrays."""
    versions = {**state.slots, AVERAGE: state.average}
    return {name: to_numpy(probabilities(one.handle)) for name, one in versions.items() if one is not None}


def require_equal(form: Form, t: int, ours: State, theirs: State, back: Callable[[np.ndarray], np.ndarray]) -> None:
    """AssertionError unless both states hold the same policies."""
    mine, other = policies_of(ours), policies_of(theirs)
    require(mine.keys() == other.keys(), f"after iteration {t} one has policies {list(mine)}, the other {list(other)}")
    allowed = tolerance(form, t)
    for name, policy in mine.items():
        difference = float(np.max(np.abs(policy - back(other[name]))))
        require(
            difference <= allowed, f"policy '{name}' differs by {difference:.3g} > {allowed:.1g} in iteration t = {t}"
        )


def check_form(rule: Rule, arena: Arena) -> str:
    """form() is a `Form` whose coefficients are sound at every t, the same at every call; the rule hashes."""
    parameters = getattr(rule, "__dataclass_params__", None)
    require(parameters is not None and parameters.frozen, "a rule must be a frozen dataclass")
    try:
        form = rule.form()
        require(isinstance(form, Form), f"form() returned {type(form).__name__} and not a Form")
        steps = steps_of(form, 100)
        for t in range(steps):
            for stage in form.stages:
                stage.base_at(t)
                stage.payoffs_at(t)
    except ValueError as refused:
        raise AssertionError(f"the form is refused: {refused}") from refused
    first, second = fingerprint(form, steps), fingerprint(rule.form(), steps)
    require(first == second, "two calls of form() gave two different forms: a stored run could not be continued")
    require(hash(rule) == hash(dataclasses.replace(rule)), "equal rules must hash alike")  # type: ignore[type-var]
    return f"{steps} iterations"


def check_simplex(rule: Rule, arena: Arena) -> str:
    """Probabilities add up to 1; a response is played exactly where every base policy of the stage plays it."""
    form = rule.form()
    exists = arena.start > 0
    zeroed = arena.start.copy()
    if int(exists.sum(axis=-1).min()) > 2:
        zeroed[..., np.argmax(exists.all(axis=tuple(range(exists.ndim - 1))))] = 0.0
        zeroed /= zeroed.sum(axis=-1, keepdims=True)
    for before, after, trace in iterations(form, arena.backend(start=zeroed), steps_of(form)):
        for stage in trace:
            where = f"in policy '{stage.writes}' after iteration t = {before.t}"
            policy = np.exp(stage.result.handle)
            require(not np.isnan(policy).any(), f"NaN {where}")
            off = float(np.max(np.abs(policy.sum(axis=-1) - 1)))
            require(off <= ROUNDING, f"probabilities add up to 1 only within {off:.3g} {where}")
            played = np.all([version.handle > -np.inf for _, version in stage.base], axis=0)
            require(not (policy[~played] > 0).any(), f"a probability that was zero became positive {where}")
            require(
                (stage.result.handle[played] > -np.inf).all(), f"a probability that was positive became zero {where}"
            )
        average = policies_of(after)[AVERAGE]
        off = float(np.max(np.abs(average.sum(axis=-1) - 1)))
        require(off <= ROUNDING, f"the average adds up to 1 only within {off:.3g} after iteration t = {before.t}")
    return ""


def relabelled(game: Game, order: np.ndarray) -> Game:
    """The same game with its responses in another order."""
    P = game.P[..., order, :][..., :, order]
    mask = None if game.mask is None else game.mask[..., order]
    reward = None if game.reward is None else game.reward[..., order]
    return Game(P, game.weights if game.batch_shape else None, mask, reward=reward)


def check_relabelling(rule: Rule, arena: Arena) -> str:
    """Responses in another order give the same policies in that order."""
    if arena.game.n == 1:
        raise NotApplicable("one response has no other order")
    form = rule.form()
    order = np.roll(np.arange(arena.game.n), 1)
    inverse = np.argsort(order)
    plain = arena.backend()
    other = ExactBackend(relabelled(arena.game, order), {k: v[..., order] for k, v in plain.origins.items()})
    for before, after, _ in iterations(form, plain, steps_of(form)):
        theirs, _ = iterate(form, other, carried(before, lambda policy: policy[..., order]))
        require_equal(form, before.t, after, theirs, lambda policy: policy[..., inverse])
    return ""


class ShiftedPayoffs(ExactBackend):
    """The exact backend with a constant added to every payoff."""

    def ask(self, key: str, payoff: Payoff, policy: Array | Average, on: Array) -> Array:
        """The payoff of every response, plus a constant."""
        return super().ask(key, payoff, policy, on) + SHIFT


def check_shift(rule: Rule, arena: Arena) -> str:
    """A constant added to all payoffs changes nothing."""
    form = rule.form()
    plain = arena.backend()
    other = ShiftedPayoffs(arena.game, plain.origins)
    for before, after, _ in iterations(form, plain, steps_of(form)):
        theirs, _ = iterate(form, other, carried(before, lambda policy: policy))
        require_equal(form, before.t, after, theirs, lambda policy: policy)
    return ""


LIBRARIES = ("torch", "array_api_strict")


def check_libraries(rule: Rule, arena: Arena) -> str:
    """torch and array-api-strict, where they are installed, give numpy's policies."""
    form = rule.form()
    installed = [name for name in LIBRARIES if importlib.util.find_spec(name) is not None]
    if not installed:
        raise NotApplicable(f"neither {' nor '.join(LIBRARIES)} is installed")
    plain = arena.backend()
    for name in installed:
        xp: Any = importlib.import_module(name)
        other = ExactBackend(arena.game.to(xp), {k: xp.asarray(v) for k, v in plain.origins.items()})
        for before, after, _ in iterations(form, plain, steps_of(form)):
            theirs, _ = iterate(form, other, carried(before, xp.asarray))
            try:
                require_equal(form, before.t, after, theirs, lambda policy: policy)
            except AssertionError as difference:
                raise AssertionError(f"numpy and {name}: {difference}") from None
    return ", ".join(("numpy", *installed))


def check_engine(rule: Rule, arena: Arena) -> str:
    """One iteration of the array path from each state of the compiled trajectory gives the next one."""
    from nashpo.tabular.engine import refusal, simulate_compiled

    form = rule.form()
    reason = refusal(form, arena.game)
    if reason:
        raise NotApplicable(f"not compiled: {reason}")
    steps = steps_of(form)
    backend = arena.backend()
    states = [after for _, after, _ in iterations(form, backend, steps)]
    # A slot that is absent for a while cannot be kept: the array path's own version stands in for it.
    names = [name for name in dict(form.slots) if all(state.slots[name] is not None for state in states)]
    recorded = range(1, steps + 1)
    kept = simulate_compiled(form, arena.game, backend.origins, steps, recorded, [*names, AVERAGE]).kept

    def compiled_state(row: int) -> State:
        state = states[row]
        slots = dict(state.slots) | {name: Version(f"{name} {row}", kept[name][row]) for name in names}
        average = Version(f"average {row}", Average(kept[AVERAGE][row] * state.t, state.t))
        return State(state.t, slots, average)

    require_equal(form, 0, states[0], compiled_state(0), lambda policy: policy)
    for row in range(steps - 1):
        ours, _ = iterate(form, backend, compiled_state(row))
        require_equal(form, row + 1, ours, compiled_state(row + 1), lambda policy: policy)
    return f"{steps} steps"
