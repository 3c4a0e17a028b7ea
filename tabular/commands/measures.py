"""What a played rule is held against: the equilibrium that it aims for, its divergence from it, and its bounds.

Shapes: R recorded steps; a run's policies are (..., n), with the replicates of sampled feedback before the contexts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nashpo.core.policies import kl
from nashpo.core.rules import Aim, Rule
from nashpo.core.theorems import Iterate, Measure, Setting, Status, Theorem
from nashpo.tabular.equilibrium import Equilibrium, nash
from nashpo.tabular.game import Game
from nashpo.tabular.run import Run

ROUNDING = 1e-12
"""A bound that is missed by less than this, in win-rate units or nats, is not missed: gaps and divergences of float64
policies carry errors of about 1e-15 times the logarithms in them, and a linearly shrinking bound falls below that."""
REGULARIZED = (Aim.REGULARIZED_NASH, Aim.NEAR_REGULARIZED_NASH)


@dataclass(frozen=True)
class Target:
    """The equilibrium of the game, and the one that the rule aims for where that is another."""

    nash: Equilibrium
    regularized: Equilibrium | None
    comparable: bool
    """Whether a distance to the aim means something: it is unique in every context and the rule aims for it."""

    @property
    def aim(self) -> Equilibrium:
        """Of the regularized game for a regularized rule."""
        return self.nash if self.regularized is None else self.regularized

    @property
    def symbol(self) -> str:
        """How the aim is written."""
        return "π*" if self.regularized is None else "π*_τ"


def target(rule: Rule, game: Game, start: Any, reference: Any) -> Target:
    """Solve the game, and its regularized form where the rule aims for that (the reference defaults to the start)."""
    solved = nash(game)
    tau = getattr(rule, "tau", None)
    if rule.aim in REGULARIZED and tau is not None:
        anchor = start if reference is None else reference
        return Target(solved, nash(game, tau=tau, reference=anchor), True)
    return Target(solved, None, rule.aim is Aim.NASH and bool(np.all(solved.unique)))


def divergence(aimed: Target, run: Run) -> np.ndarray | None:
    """KL(π* ‖ π_{s+1}) in nats at the recorded steps, (R, ...), or None where it means nothing."""
    if not aimed.comparable or "current" not in run.kept:
        return None
    return np.asarray(kl(np.asarray(aimed.aim.log_policy), run.kept["current"]))


@dataclass(frozen=True)
class Check:
    """A declared bound beside what was measured.

    Attributes
    ----------
    theorem : Theorem
    bound : float
    measured : float, optional
        The largest over contexts, since a bound holds in every one; None where nothing comparable was measured.
    exact : bool
        Whether the bound is about this run: bounds are stated for exact feedback.
    """

    theorem: Theorem
    bound: float
    measured: float | None
    exact: bool = True

    @property
    def holds(self) -> bool | None:
        """Whether the inequality held; None where it was not to be checked."""
        if self.measured is None or not self.exact or not math.isfinite(self.bound):
            return None
        return self.measured <= self.bound * (1 + ROUNDING) + ROUNDING

    @property
    def failed(self) -> bool:
        """Whether a bound that should hold does not."""
        return self.holds is False and self.theorem.status is not Status.REFUTED

    @property
    def verdict(self) -> str:
        """In words."""
        if self.measured is None:
            return "not measured"
        if not self.exact:
            return "for exact feedback only"
        if not math.isfinite(self.bound):
            return "says nothing"
        if self.theorem.status is Status.REFUTED:
            return "not violated here" if self.holds else "violated, as refuted"
        if self.holds:
            return "holds" if self.measured <= self.bound else "holds to rounding"
        return "VIOLATED"


def checks(rule: Rule, where: Setting, run: Run, kl_last: np.ndarray | None, exact: bool) -> list[Check]:
    """Every declared bound that applies, at the end of the run."""
    measured: dict[tuple[Iterate, Measure], np.ndarray | None] = {
        (Iterate.AVERAGE, Measure.DUALITY_GAP): run.gap_average,
        (Iterate.LAST, Measure.DUALITY_GAP): run.gap_last,
        (Iterate.LAST, Measure.KL_TO_EQUILIBRIUM): kl_last,
    }
    found = []
    for theorem, bound in rule.bounds(where):
        values = measured.get((theorem.iterate, theorem.measure))
        found.append(Check(theorem, bound, None if values is None else float(np.max(values[-1])), exact))
    return found


def bound_curves(rule: Rule, where: Setting, run: Run, measure: Measure) -> dict[str, np.ndarray]:
    """Every declared bound of a measure at the recorded steps, (R,), NaN where it does not apply."""
    curves: dict[str, np.ndarray] = {}
    for at, step in enumerate(run.recorded):
        for theorem, bound in rule.bounds(replace(where, T=int(step))):
            if theorem.measure is measure:
                label = f"{theorem.id} ({theorem.status.value})"
                curves.setdefault(label, np.full(len(run.recorded), np.nan))[at] = bound
    return curves
