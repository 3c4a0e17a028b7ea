"""A rule's exact steps against the minimizers of its losses: what makes the fitted projection the same method.

Shapes: ``log_base, gains, on: (..., n)`` of one stage, ``pairs: (..., n, n)`` the joint law of an independent pair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nashpo.core.policies import logsumexp
from nashpo.core.rules import Rule
from nashpo.core.rules.form import Stage
from nashpo.core.selfplay import StageTrace
from nashpo.tabular.game import Game
from nashpo.tabular.projection import minimize_logistic, minimize_pairwise, minimize_pointwise
from nashpo.tabular.rule_checks import Arena, NotApplicable, iterations, require, steps_of

ITERATIONS = 3
SMALLEST_WEIGHT = 1e-100
LOSS_TOLERANCE = 1e-10
"""Of probabilities, in l1: minimizers are right to about 1e-13 in log-ratios, times 1/tau where a reward is scaled."""


@dataclass(frozen=True)
class Fit:
    """What one stage's losses are made of.

    ``gains`` is Σ b g and ``weight`` the only payoff's b. ``self_play`` is true where that payoff is the win rate
    against the policy that the responses come from, ``rewarded`` where it is the reward fitted on those responses.
    """

    game: Game
    log_base: np.ndarray
    gains: np.ndarray
    on: np.ndarray
    exact: np.ndarray
    weight: float
    self_play: bool
    rewarded: bool
    base_is_on: bool

    @property
    def pairs(self) -> np.ndarray:
        """π(y) π(y') of the policy that the responses come from."""
        return self.on[..., :, None] * self.on[..., None, :]


def describe(game: Game, stage: Stage, trace: StageTrace) -> Fit:
    """The losses' ingredients of one stage as it was run."""
    on = trace.on
    assert on is not None  # a stage with payoffs has one
    only = trace.terms[0] if len(trace.terms) == 1 else None
    about_on = only is not None and only.payoff.policy == stage.on
    return Fit(
        game=game,
        log_base=np.sum([a * version.handle for a, version in trace.base], axis=0),
        gains=np.sum([term.weight * term.answer for term in trace.terms], axis=0),
        on=np.exp(on.handle),
        exact=np.exp(trace.result.handle),
        weight=only.weight if only is not None else 0.0,
        self_play=about_on and only is not None and only.payoff.kind == "win",
        rewarded=about_on and only is not None and only.payoff.kind == "reward",
        base_is_on=[(a, version.key) for a, version in trace.base] == [(1.0, on.key)],
    )


Found = tuple[np.ndarray, float | np.ndarray]
"""A loss's minimizer, a log-policy (..., n), and how far in l1 it may be from the exact step, (...)."""


def pointwise(fit: Fit) -> Found:
    """The square of SPPO with the true log Z."""
    log_partition = logsumexp(fit.log_base + fit.gains)
    return minimize_pointwise(fit.log_base, fit.gains - log_partition, fit.on), LOSS_TOLERANCE


def pairwise(fit: Fit) -> Found:
    """The square on pairs, in which log Z cancels."""
    target = fit.gains[..., :, None] - fit.gains[..., None, :]
    return minimize_pairwise(fit.log_base, target, fit.pairs), LOSS_TOLERANCE


def soft_labels(fit: Fit) -> Found | None:
    """The square on pairs with the label η (P(y ≻ y') − ½), legal where pairs come from the opponent."""
    if not fit.self_play:
        return None
    return minimize_pairwise(fit.log_base, fit.weight * np.asarray(fit.game.A), fit.pairs), LOSS_TOLERANCE


def logistic(fit: Fit) -> Found | None:
    """The loss of DPO, where the payoff is a reward."""
    if not fit.rewarded:
        return None
    return minimize_logistic(fit.log_base, np.asarray(fit.game.P), fit.pairs, 1 / fit.weight), LOSS_TOLERANCE


def constant_half(fit: Fit) -> Found | None:
    """The square of SPPO with η/2 for log Z, which is too small by δ = KL(π_t ‖ π_{t+1}) <= η² range(g)²/8.

    Its minimizer is at most δ above the exact step in log-probability, so that the two are 2 (e^δ − 1) apart in l1.
    """
    if not (fit.self_play and fit.base_is_on):
        return None
    played = fit.on > 0
    largest = np.max(np.where(played, fit.gains, -np.inf), axis=-1)
    smallest = np.min(np.where(played, fit.gains, np.inf), axis=-1)
    short = (largest - smallest) ** 2 / 8
    return minimize_pointwise(fit.log_base, fit.gains, fit.on), 2 * np.expm1(short) + LOSS_TOLERANCE


LOSSES: dict[str, Callable[[Fit], Found | None]] = {
    "pointwise square with log Z": pointwise,
    "pairwise square": pairwise,
    "pairwise square with soft labels": soft_labels,
    "logistic": logistic,
    "pointwise square with the constant 1/2": constant_half,
}
"""Every loss with its minimizer; None where it is not legal for the stage."""


def check_losses(rule: Rule, arena: Arena) -> str:
    """Each stage's exact step minimizes every loss that is legal for it."""
    form = rule.form()
    used = set()
    for before, _, traces in iterations(form, arena.backend(), steps_of(form, ITERATIONS)):
        for trace in traces:
            if not trace.terms:
                continue
            fit = describe(arena.game, form.stages[trace.stage], trace)
            if np.min(np.where(fit.log_base > -np.inf, fit.on, 1.0)) < SMALLEST_WEIGHT:
                continue  # weights of pairs underflow: such a loss no longer sees every response
            for name, loss in LOSSES.items():
                found = loss(fit)
                if found is None:
                    continue
                log_policy, allowed = found
                distance = np.sum(np.abs(np.exp(log_policy) - fit.exact), axis=-1)
                require(
                    np.all(distance <= allowed),
                    f"the minimizer of the {name} is {np.max(distance):.3g} > {np.max(allowed):.3g} (l1) from the exact"
                    f" step of '{trace.writes}' in iteration t = {before.t}",
                )
                used.add(name)
    if not used:
        raise NotApplicable("no stage has a payoff, or the responses that it is fitted on have no weight")
    return ", ".join(sorted(used))
