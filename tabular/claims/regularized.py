"""Claims about the KL-regularized game: Nash-MD, INPO, EGPO, the proximal point method, and the bias of τ.

Shapes: T updates of G games; per-step quantities are (T, G). π*_τ is the regularized equilibrium, A = P − ½.

Tolerances: π*_τ is solved to a residual of 1e-12 nats, which the divergences from it inherit.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from math import ceil
from typing import Any

import numpy as np

from nashpo.core.games import duality_gap
from nashpo.core.policies import kl, log_from_probabilities
from nashpo.core.rules import COMAL, EGPO, INPO, NashMD
from nashpo.core.rules.rule import Rule
from nashpo.core.schedules import value
from nashpo.core.theorems import (
    Status,
    Theorem,
    egpo_largest_eta,
    inpo_largest_eta,
    nash_md_recursion,
    regularization_bias,
)
from nashpo.tabular.claims.claim import Claim, Ensemble, Floats, Numbers, Tally, bound_over, claim_of, declared
from nashpo.tabular.claims.ensembles import (
    SEED,
    Cohort,
    Played,
    best,
    cohort,
    cohort_numbers,
    gains,
    horizon,
    log_uniform,
)
from nashpo.tabular.play import play
from nashpo.tabular.regularized import solve_regularized

SOLVED = 1e-11
"""Noise of a divergence from a solved π*_τ, in nats: ten times its residual."""


@lru_cache(maxsize=256)
def regularized(index: int) -> tuple[float, Floats]:
    """τ of a cohort, log-uniform in [0.02, 2], and log π*_τ (G, n)."""
    tau = log_uniform(np.random.default_rng([SEED, 6, index]), 0.02, 2)
    games = cohort(index)
    return tau, solve_regularized(games.game.A, log_from_probabilities(games.reference), tau).log_policy


class Anchored(Played):
    """A trajectory of a rule of the regularized game, with the equilibrium it aims for."""

    def __init__(self, rule: Rule, index: int, steps: int, keep: tuple[str, ...] = ()) -> None:
        super().__init__(rule, cohort(index), steps, keep)
        self.target = regularized(index)[1]

    @cached_property
    def divergence(self) -> Numbers:
        """KL(π*_τ ‖ π_t) for t = 1 … T + 1, (T + 1, G)."""
        return kl(self.target, self.log["current"])

    def bound(self, theorem: Theorem) -> Floats:
        """The theorem's bound after 1 … T updates, (T, G)."""
        T = self.T_column[:, 0]
        starts = zip(self.cohort.D, self.divergence[0], strict=True)
        return np.stack([bound_over(theorem, self.rule, float(D), T, float(k)) for D, k in starts], axis=1)

    @property
    def eta(self) -> Numbers:
        """η_t as a column (T, 1)."""
        return np.array([value(self.rule.eta, t) for t in range(self.T)])[:, None]


def _share(index: int, rng: np.random.Generator) -> float:
    """Which part of the largest step a theorem allows a cohort takes: all of it for every fourth cohort."""
    part = float(rng.uniform(0.02, 1))
    return 1.0 if index % 4 == 0 else part


def _nash_md(quick: bool, index: int) -> Anchored:
    rng = np.random.default_rng([SEED, 7, index])
    tau = regularized(index)[0]
    rule = NashMD(eta=_share(index, rng) / tau, tau=tau)
    return Anchored(rule, index, horizon(rng, quick), keep=("mixture",))


def _nash_md_scheduled(quick: bool, index: int) -> Anchored:
    rng = np.random.default_rng([SEED, 8, index])
    rule = NashMD.scheduled(regularized(index)[0])
    return Anchored(rule, index, horizon(rng, quick), keep=("mixture",))


def _inpo(quick: bool, index: int) -> Anchored:
    rng = np.random.default_rng([SEED, 9, index])
    tau = regularized(index)[0]
    return Anchored(INPO(eta=_share(index, rng) * inpo_largest_eta(tau), tau=tau), index, horizon(rng, quick))


def _inpo_beyond(quick: bool, index: int) -> Anchored:
    rng = np.random.default_rng([SEED, 10, index])
    tau = regularized(index)[0]
    return Anchored(INPO(eta=0.999 * _share(index, rng) / tau, tau=tau), index, horizon(rng, quick))


def _egpo(quick: bool, index: int) -> Anchored:
    rng = np.random.default_rng([SEED, 11, index])
    tau = regularized(index)[0]
    eta = _share(index, rng) * egpo_largest_eta(tau)
    return Anchored(EGPO(eta=eta, tau=tau), index, horizon(rng, quick), keep=("half",))


def _ensemble(name: str, make: Any) -> Ensemble:
    return Ensemble(name, lambda quick: [partial(make, quick, i) for i in cohort_numbers(quick, 64, 16)])


CONSTANT = _ensemble("Nash-MD, constant step", _nash_md)
SCHEDULED = _ensemble("Nash-MD, the theorem's step", _nash_md_scheduled)
INSIDE = _ensemble("INPO, steps that contract", _inpo)
BEYOND = _ensemble("INPO, any step", _inpo_beyond)
EXTRAGRADIENT = _ensemble("EGPO, steps that contract", _egpo)

NASH_MD_LAST = declared(NashMD, "nash-md.last-iterate")
NASH_MD_MUNOS = declared(NashMD, "nash-md.theorem-1")
NASH_MD_CONSTANT = declared(NashMD, "nash-md.constant-step")
INPO_LAST = declared(INPO, "inpo.last-iterate")
EGPO_LAST = declared(EGPO, "egpo.last-iterate")


def nash_md_identity(run: Anchored, tally: Tally) -> None:
    """Scale: 1 + KL(π*_τ ‖ π_t), the largest of the terms."""
    tally.seen(run.games, run.T)
    mixture, old, new = run.log["mixture"], run.log["current"][:-1], run.log["current"][1:]
    pull = run.eta * run.rule.tau
    kept = (1 - pull) * (run.divergence[:-1] - kl(mixture, old))
    right = kept - pull * kl(mixture, run.target) + kl(mixture, new)
    tally.identity(run.divergence[1:], right, scale=1 + run.divergence[:-1], rtol=SOLVED)


def recursion(run: Anchored, tally: Tally) -> None:
    tally.seen(run.games, run.T)
    allowed = nash_md_recursion(run.divergence[:-1], run.eta, run.rule.tau)
    tally.inequality(run.divergence[1:], allowed, noise=SOLVED)


def _after_every_step(theorem: Theorem, run: Anchored, tally: Tally) -> None:
    tally.seen(run.games, run.T)
    tally.inequality(run.divergence[1:], run.bound(theorem), noise=SOLVED)


def _contraction(theorem: Theorem, run: Anchored, tally: Tally) -> None:
    """The step KL' <= (1 − ητ) KL, and (1 − ητ)^T KL(π*_τ ‖ π_1) after T steps."""
    tally.seen(run.games, run.T)
    shrink = 1 - run.rule.eta * run.rule.tau
    tally.inequality(run.divergence[1:], shrink * run.divergence[:-1], noise=SOLVED)
    tally.inequality(run.divergence[1:], run.bound(theorem), noise=SOLVED)


def inpo_identity(run: Anchored, tally: Tally) -> None:
    """Scale: 1 + KL(π*_τ ‖ π_t), the largest of the terms."""
    tally.seen(run.games, run.T)
    eta, tau = run.rule.eta, run.rule.tau
    old, new = run.log["current"][:-1], run.log["current"][1:]
    turn = np.sum((np.exp(run.target) - run.policy[1:]) * (run.gain[:-1] - run.gain[1:]), axis=-1)
    right = (1 - eta * tau) * (run.divergence[:-1] - kl(new, old)) - eta * tau * kl(new, run.target) - eta * turn
    tally.identity(run.divergence[1:], right, scale=1 + run.divergence[:-1], rtol=SOLVED)


def egpo_identity(run: Anchored, tally: Tally) -> None:
    """Scale: 1 + KL(π*_τ ‖ π_t), the largest of the terms."""
    tally.seen(run.games, run.T)
    eta, tau = run.rule.eta, run.rule.tau
    half, old, new = run.log["half"], run.log["current"][:-1], run.log["current"][1:]
    turn = np.sum((np.exp(half) - run.policy[1:]) * (gains(run.A, np.exp(half)) - run.gain[:-1]), axis=-1)
    right = (1 - eta * tau) * (run.divergence[:-1] - kl(half, old)) - eta * tau * kl(half, run.target) - eta * turn
    tally.identity(run.divergence[1:] + kl(new, half), right, scale=1 + run.divergence[:-1], rtol=SOLVED)


@dataclass(frozen=True)
class Proximal:
    """Exact proximal steps π_{k+1} = π*_τ(reference π_k), and COMAL with long inner loops; log π, (K + 1, G, n)."""

    cohort: Cohort
    exact: Floats
    comal: Floats


def _proximal(quick: bool, index: int) -> Proximal:
    rng = np.random.default_rng([SEED, 12, index])
    tau = log_uniform(rng, 0.1, 2)
    games = cohort(index)
    count = 4 if quick else 10
    exact = [games.log_start]
    for _ in range(count):
        exact.append(solve_regularized(games.game.A, exact[-1], tau).log_policy)
    eta = inpo_largest_eta(tau)
    # (1 − ητ)^inner <= e^-60: the inner loop ends at its fixed point, to rounding.
    inner = ceil(60 / (eta * tau))
    rule = COMAL(eta=eta, tau=tau, inner=inner)
    ends = [inner * (k + 1) for k in range(count)]
    run = play(rule, games.game, ends[-1], start=games.start, record=ends, keep=("current",))
    return Proximal(games, np.stack(exact), np.concatenate([games.log_start[None], run.kept["current"]]))


PROXIMAL = Ensemble(
    "exact proximal steps", lambda quick: [partial(_proximal, quick, i) for i in cohort_numbers(quick, 48, 10)]
)


def proximal_point(sample: Proximal, tally: Tally) -> None:
    """For the exact steps and for COMAL's, which are the same policies once its inner loops have converged."""
    tally.seen(len(sample.cohort.families), len(sample.exact) - 1)
    equilibrium = log_from_probabilities(sample.cohort.equilibrium)
    for steps in (sample.exact, sample.comal):
        distance = kl(equilibrium, steps)
        tally.inequality(distance[1:], distance[:-1] - kl(steps[1:], steps[:-1]), noise=SOLVED)
    tally.identity(np.exp(sample.comal), np.exp(sample.exact), scale=1.0)


@dataclass(frozen=True)
class Biased:
    """Regularized equilibria of a cohort at several τ, log-policies (K, G, n)."""

    cohort: Cohort
    taus: Numbers
    equilibria: Floats


def _biased(quick: bool, index: int) -> Biased:
    rng = np.random.default_rng([SEED, 13, index])
    games = cohort(index)
    taus = np.array([log_uniform(rng, 0.003, 5) for _ in range(4 if quick else 12)])
    log_reference = log_from_probabilities(games.reference)
    solved = [solve_regularized(games.game.A, log_reference, tau).log_policy for tau in taus]
    return Biased(games, taus, np.stack(solved))


BIASED = Ensemble(
    "regularized equilibria", lambda quick: [partial(_biased, quick, i) for i in cohort_numbers(quick, 96, 16)]
)


def bias(sample: Biased, tally: Tally) -> None:
    """The maximum over u is at a response: KL(u ‖ ref) − KL(u ‖ π*_τ) is linear in u. One step per τ."""
    tally.seen(len(sample.cohort.families), len(sample.taus))
    log_reference = log_from_probabilities(sample.cohort.reference)
    tau = sample.taus[:, None]
    gap = duality_gap(sample.cohort.game.A, np.exp(sample.equilibria))
    gain = best(sample.equilibria - log_reference) - kl(sample.equilibria, log_reference)
    tally.identity(gap, 2 * tau * gain, scale=1 + tau, rtol=SOLVED)
    tally.inequality(gap, regularization_bias(best(-log_reference), tau), noise=SOLVED)


CLAIMS = (
    Claim(
        "nash-md.step-identity",
        "KL(π* ‖ π') = (1 − ητ)[KL(π* ‖ π) − KL(m ‖ π)] − ητ KL(m ‖ π*) + KL(m ‖ π') with π* = π*_τ and the mixture m",
        "derived (three-point identity)",
        "three points",
        Status.DERIVED,
        (CONSTANT, SCHEDULED),
        nash_md_identity,
    ),
    Claim(
        "nash-md.step-recursion",
        "KL(π*_τ ‖ π_{t+1}) <= (1 − ητ) KL(π*_τ ‖ π_t) + η²/8, for constant η and for η_t = 2/(τ(t + 2))",
        "derived (Hoeffding)",
        "Hoeffding",
        Status.DERIVED,
        (CONSTANT, SCHEDULED),
        recursion,
    ),
    claim_of(NASH_MD_LAST, "recursion", (SCHEDULED,), partial(_after_every_step, NASH_MD_LAST)),
    claim_of(NASH_MD_MUNOS, "Munos Thm 1", (SCHEDULED,), partial(_after_every_step, NASH_MD_MUNOS)),
    claim_of(NASH_MD_CONSTANT, "recursion", (CONSTANT,), partial(_after_every_step, NASH_MD_CONSTANT)),
    claim_of(INPO_LAST, "three points", (INSIDE,), partial(_contraction, INPO_LAST)),
    Claim(
        "inpo.step-identity",
        "KL(π* ‖ π') = (1 − ητ)[KL(π* ‖ π) − KL(π' ‖ π)] − ητ KL(π' ‖ π*) − η⟨π* − π', A(π − π')⟩ with π* = π*_τ",
        "derived (three-point identity)",
        "three points",
        Status.DERIVED,
        (INSIDE, BEYOND),
        inpo_identity,
    ),
    claim_of(EGPO_LAST, "three points", (EXTRAGRADIENT,), partial(_contraction, EGPO_LAST)),
    Claim(
        "egpo.step-identity",
        "KL(π* ‖ π') + KL(π' ‖ w) = (1 − ητ)[KL(π* ‖ π) − KL(w ‖ π)] − ητ KL(w ‖ π*) − η⟨w − π', A(w − π)⟩ with the"
        " half step w",
        "derived (three-point identity)",
        "three points",
        Status.DERIVED,
        (EXTRAGRADIENT,),
        egpo_identity,
    ),
    Claim(
        "comal.proximal-point",
        "KL(π* ‖ π_{k+1}) <= KL(π* ‖ π_k) − KL(π_{k+1} ‖ π_k) for exact proximal steps and any τ",
        "derived; sharper than COMAL (2410.23223) as summarized",
        "COMAL",
        Status.DERIVED,
        (PROXIMAL,),
        proximal_point,
    ),
    Claim(
        "regularized.bias",
        "gap(π*_τ) = 2τ max_u [KL(u ‖ ref) − KL(u ‖ π*_τ) − KL(π*_τ ‖ ref)] <= 2τ max_y log 1/ref(y)",
        "derived (fixed point of π*_τ)",
        "fixed point",
        Status.DERIVED,
        (BIASED,),
        bias,
    ),
)
