"""What a rule claims: its fixed point, its direction, its losses, its theorems.

Shapes: an `Arena` holds a game with ``P: (..., n, n)`` and policies (..., n); a distance of policies is the largest one
over responses and contexts. Measures: a duality gap in [0, 1], a divergence in nats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np

from nashpo.core.policies import kl, log_from_probabilities
from nashpo.core.rules import Aim, Rule
from nashpo.core.rules.form import CURRENT
from nashpo.core.selfplay import begin, iterate
from nashpo.core.theorems import Iterate, Measure, Setting, Status, Theorem
from nashpo.tabular.equilibrium import nash
from nashpo.tabular.play import play, setting
from nashpo.tabular.policy_input import uniform
from nashpo.tabular.rule_checks import (
    ROUNDING,
    Arena,
    NotApplicable,
    carried,
    iterations,
    policies_of,
    require,
    steps_of,
    tolerance,
)
from nashpo.tabular.run import Run

FIXED_POINT_TOLERANCE = 1e-9
"""Of one iteration, times its payoffs' weights: solved equilibria leave payoffs unequal by 1e-12."""
BOUND_TOLERANCE = 1e-11
THEOREM_STEPS = 64
TUNED_STEPS = (4, 16, THEOREM_STEPS)


def _regularized_equilibrium(rule: Rule, arena: Arena) -> np.ndarray:
    tau = getattr(rule, "tau", None)
    require(isinstance(tau, (int, float)), f"aims for {rule.aim.value}, but has no number tau, the weight of that game")
    return np.asarray(nash(arena.game, tau=tau, reference=arena.reference).policy)


def _stays(rule: Rule, arena: Arena, policy: np.ndarray, **begin_as: np.ndarray) -> str:
    form = rule.form()
    backend = arena.backend(start=policy, **begin_as)
    backend.check(form)
    state = begin(form, backend)
    log_policy = backend.origins["start"]
    for t in range(steps_of(form)):
        state, _ = iterate(form, backend, state)
        moved = float(np.max(np.abs(policies_of(state)[CURRENT] - policy)))
        allowed = FIXED_POINT_TOLERANCE * max(1.0, tolerance(form, t) / ROUNDING)
        require(moved <= allowed, f"starting at {rule.aim.value}, it moved by {moved:.3g} in iteration t = {t}")
        state = carried(state, partial(_set_right, log_policy, allowed))
    return ""


def _set_right(equilibrium: np.ndarray, allowed: float, policy: np.ndarray) -> np.ndarray:
    """The equilibrium for a log-policy that is back at it: an unstable one would magnify its own rounding."""
    return equilibrium if np.max(np.abs(np.exp(policy) - np.exp(equilibrium))) <= allowed else policy


def _stays_at_nash(rule: Rule, arena: Arena) -> str:
    policy = np.asarray(nash(arena.game).policy)
    form = rule.form()
    moving = {stage.writes for stage in form.stages} | {copy.target for copy in form.copies}
    # A reference that the rule moves stands still at the equilibrium only; one that it leaves alone must not matter.
    moved_origins = {
        origin: policy
        for origin in ("reference", "behavior")
        if all(name in moving for name, begins in form.slots if begins == origin)
    }
    return _stays(rule, arena, policy, **moved_origins)


def _stays_at_regularized_nash(rule: Rule, arena: Arena) -> str:
    return _stays(rule, arena, _regularized_equilibrium(rule, arena))


NEAR_STEP = 0.1
HALVING = 0.6
"""A distance linear in eta halves with eta; at eta = 0.1 the next order is worth a few per cent."""


def _stops_near_regularized_nash(rule: Rule, arena: Arena) -> str:
    require(
        "eta" in {field.name for field in dataclasses.fields(rule)},  # type: ignore[arg-type]
        f"aims for {rule.aim.value}, but has no hyperparameter eta to make smaller",
    )
    equilibrium = _regularized_equilibrium(rule, arena)
    tau = float(rule.tau)  # type: ignore[attr-defined]
    step = min(NEAR_STEP, NEAR_STEP / tau)
    distances = []
    for eta in (step, step / 2, step / 4):
        smaller: Rule = dataclasses.replace(rule, eta=eta)  # type: ignore[type-var]
        settled = int(np.ceil(8 / (eta * tau)))
        run = play(smaller, arena.game, settled, start=equilibrium, reference=arena.reference, record="last")
        distances.append(float(np.max(np.abs(run.last - equilibrium))))
    shown = ", ".join(f"{distance:.3g}" for distance in distances)
    for larger, smaller_distance in zip(distances, distances[1:], strict=False):
        require(
            smaller_distance <= HALVING * larger + FIXED_POINT_TOLERANCE,
            f"the distance of its fixed point from the equilibrium does not shrink linearly: {shown} at eta = {step:g}"
            " and its half and quarter",
        )
    return f"distances {shown}"


def _aims_at_nothing(rule: Rule, arena: Arena) -> str:
    raise NotApplicable("the rule aims for no equilibrium")


FIXED_POINTS: dict[Aim, Callable[[Rule, Arena], str]] = {
    Aim.NASH: _stays_at_nash,
    Aim.REGULARIZED_NASH: _stays_at_regularized_nash,
    Aim.NEAR_REGULARIZED_NASH: _stops_near_regularized_nash,
    Aim.NOTHING: _aims_at_nothing,
}


def check_fixed_point(rule: Rule, arena: Arena) -> str:
    """Started at the equilibrium that it aims for, the rule stays there (or at a distance linear in eta)."""
    return FIXED_POINTS[rule.aim](rule, arena)


def check_direction(rule: Rule, arena: Arena) -> str:
    """From the uniform policy, one iteration makes a response that dominates all others more probable.

    Dominates: against every opponent it wins more often than any other response does. Then it earns most whatever the
    stages ask, and no step size is too large.
    """
    if rule.aim is Aim.NOTHING:
        raise NotApplicable("the rule aims for no equilibrium")
    game = arena.game
    exists = np.ones(game.A.shape[:-1], dtype=bool) if game.mask is None else np.asarray(game.mask)
    ahead = game.A[..., :, None, :] - game.A[..., None, :, :]  # (…, i, k, j): how much better i does than k against j
    counts = exists[..., None, :, None] & exists[..., None, None, :] & ~np.eye(game.n, dtype=bool)[:, :, None]
    dominates = np.min(np.where(counts, ahead, np.inf), axis=(-1, -2)) > 1e-6
    dominates &= exists & (np.sum(exists, axis=-1, keepdims=True) > 1)
    if not dominates.any():
        raise NotApplicable("no response dominates all others")
    even = uniform(game)
    backend = arena.backend(start=even, reference=even, behavior=even)
    _, after, _ = next(iterations(rule.form(), backend, 1))
    gained = (policies_of(after)[CURRENT] - even)[dominates]
    require(gained.min() > 0, f"the response that dominates all others changed by {gained.min():.3g}: is a sign wrong?")
    return ""


def _measure_gap(rule: Rule, arena: Arena, run: Run, iterate: Iterate) -> np.ndarray:
    return run.gap_average if iterate is Iterate.AVERAGE else run.gap_last


def _measure_kl(rule: Rule, arena: Arena, run: Run, iterate: Iterate) -> np.ndarray:
    if rule.aim is Aim.NASH:
        found = nash(arena.game)
        if not np.all(found.unique):
            raise NotApplicable("the equilibrium is not unique")
        target = np.asarray(found.policy)
    else:
        target = _regularized_equilibrium(rule, arena)
    average = iterate is Iterate.AVERAGE
    reached = log_from_probabilities(run.kept["average"]) if average else run.kept[CURRENT]
    return np.asarray(kl(np.broadcast_to(log_from_probabilities(target), reached.shape), reached))


MEASURES: dict[Measure, Callable[[Rule, Arena, Run, Iterate], np.ndarray]] = {
    Measure.DUALITY_GAP: _measure_gap,
    Measure.KL_TO_EQUILIBRIUM: _measure_kl,
}
"""What a game alone can measure, (R, ...); other theorems need data."""


def _check_bounds(rule: Rule, arena: Arena, at: Setting, theorems: list[Theorem], recorded: list[int]) -> int:
    """Compare every theorem that applies at each recorded step; the number of inequalities."""
    run = play(
        rule,
        arena.game,
        recorded[-1],
        start=arena.start,
        reference=arena.reference,
        behavior=arena.behavior,
        record=recorded,
        keep=(CURRENT, "average"),
    )
    inequalities = 0
    for theorem in theorems:
        applying = [row for row, T in enumerate(recorded) if theorem.applies(rule, dataclasses.replace(at, T=T))]
        if not applying:
            continue
        measured = MEASURES[theorem.measure](rule, arena, run, theorem.iterate)
        for row in applying:
            bound = theorem.bound(rule, dataclasses.replace(at, T=recorded[row]))
            value = float(np.max(measured[row]))
            require(
                value <= bound + BOUND_TOLERANCE,
                f"{theorem.id} is violated by {rule!r} after {recorded[row]} update(s): {value:.6g} > {bound:.6g}",
            )
            inequalities += np.size(measured[row])
    return inequalities


def check_theorems(rule: Rule, arena: Arena) -> str:
    """Declared theorems hold at every step, for the rule as it is and with the step size of its bound."""
    theorems = [theorem for theorem in rule.theorems if theorem.status is not Status.REFUTED]
    measurable = [theorem for theorem in theorems if theorem.measure in MEASURES]
    if not measurable:
        raise NotApplicable("no theorem is declared that a game can check")
    steps = steps_of(rule.form(), THEOREM_STEPS)
    at = setting(rule, arena.game, steps, start=arena.start, reference=arena.reference)
    inequalities = _check_bounds(rule, arena, at, measurable, list(range(1, steps + 1)))
    for T in sorted({min(T, steps) for T in TUNED_STEPS}):
        try:
            tuned = rule.tuned(dataclasses.replace(at, T=T))
        except ValueError:
            break  # no step size to choose
        inequalities += _check_bounds(tuned, arena, at, measurable, list(range(1, T + 1)))
    if inequalities == 0:
        raise NotApplicable("no declared theorem applies to these hyperparameters")
    return f"{inequalities} inequalities"
