"""Claims about SPPO, which is multiplicative weights on win rates, and about self-play as such.

Shapes: T updates of G games; per-step quantities are (T, G), per-response ones (T, G, n). r_t = Pπ_t, A = P − ½.
"""

from dataclasses import dataclass
from functools import partial
from math import sqrt

import numpy as np

from nashpo.core.policies import kl, log_from_probabilities, log_partition
from nashpo.core.rules import SPPO
from nashpo.core.theorems import Setting, Status
from nashpo.tabular.claims.claim import Claim, Ensemble, Floats, Tally, bound_over, claim_of, declared
from nashpo.tabular.claims.ensembles import (
    SEED,
    Cohort,
    Played,
    best,
    cohort,
    cohort_numbers,
    horizon,
    log_uniform,
    random_policies,
    spread,
)
from nashpo.tabular.claims.optimistic import OPTIMISTIC
from nashpo.tabular.play import play


def _trajectory(quick: bool, index: int) -> Played:
    rng = np.random.default_rng([SEED, 1, index])
    return Played(SPPO(eta=log_uniform(rng, 3e-3, 8)), cohort(index), horizon(rng, quick))


WEIGHTS = Ensemble(
    "multiplicative weights", lambda quick: [partial(_trajectory, quick, i) for i in cohort_numbers(quick, 96, 32)]
)


@dataclass(frozen=True)
class Tuned:
    """Games whose starts have the same D, and the final gaps of SPPO at two step sizes made for that D and T.

    Attributes
    ----------
    D : float
    T : int
    rules, gaps : sequence of SPPO and of (G,)
        At η = √(8D/T) and at η = √(D/T).
    """

    D: float
    T: int
    rules: tuple[SPPO, SPPO]
    gaps: tuple[Floats, Floats]


def _tuned(quick: bool, index: int) -> Tuned:
    rng = np.random.default_rng([SEED, 2, index])
    games = cohort(index)
    one = random_policies(rng, 1, games.game.n)[0]
    same_D = games.starting_at(np.stack([rng.permutation(one) for _ in games.families]))
    D = float(same_D.D.max())
    T = int(round(log_uniform(rng, 1, 400 if quick else 4000)))
    rules = (SPPO(eta=1.0).tuned(Setting(D, T)), SPPO(eta=sqrt(D / T)))
    gaps = tuple(play(rule, same_D.game, T, start=same_D.start, record="last").gap_average[-1] for rule in rules)
    return Tuned(D, T, rules, (gaps[0], gaps[1]))


TUNED = Ensemble("tuned steps", lambda quick: [partial(_tuned, quick, i) for i in cohort_numbers(quick, 128, 32)])


def gap_is_regret(run: Played, tally: Tally) -> None:
    """Tolerance 1e-12 of a win rate: about 400 roundings of 1 in the two sums."""
    tally.seen(run.games, run.T)
    tally.identity(run.gap_average, 2 * best(run.regret) / run.T_column, scale=1.0, rtol=1e-12)


def regret_identity(run: Played, tally: Tally) -> None:
    """For every response y in the place of u, hence for every u: both sides are linear in it."""
    tally.seen(run.games, run.T)
    after = -run.log["current"][1:]
    right = run.surprise - after + np.cumsum(run.step_kl, axis=0)[..., None]
    tally.identity(run.rule.eta * run.regret, right, scale=1 + np.abs(after) + run.surprise, rtol=1e-10)


def partition(run: Played, tally: Tally) -> None:
    """Tolerance 1e-12 nats: some thousand roundings of logarithms of order 1."""
    tally.seen(run.games, run.T)
    eta = run.rule.eta
    log_z = log_partition(run.log["current"][:-1], run.gain[:-1], eta)
    tally.identity(log_z, run.step_kl, scale=1 + log_z, rtol=1e-12)
    tally.inequality(0.0, log_z)
    tally.inequality(log_z, eta**2 * spread(run.gain[:-1]) ** 2 / 8)


AVERAGE_GAP = declared(SPPO, "sppo.average-gap")
THEOREM_4_1 = declared(SPPO, "sppo.theorem-4.1")
TUNED_GAP = declared(SPPO, "sppo.tuned-gap")
ONPO_THEOREM_1 = declared(SPPO, "onpo.theorem-1")


def average_gap(run: Played, tally: Tally) -> None:
    tally.seen(run.games, run.T)
    tally.inequality(run.gap_average, bound_over(AVERAGE_GAP, run.rule, run.cohort.D, run.T_column))


def theorem_4_1(run: Played, tally: Tally) -> None:
    tally.seen(run.games, run.T)
    tally.inequality(run.gap_average, bound_over(THEOREM_4_1, run.rule, run.cohort.D, run.T_column))


def tuned_gap(sample: Tuned, tally: Tally) -> None:
    """One check per game, at the T that η was made for."""
    tally.seen(len(sample.gaps[0]), 1)
    tally.inequality(sample.gaps[0], bound_over(TUNED_GAP, sample.rules[0], sample.D, sample.T))


def onpo_theorem_1(sample: Tuned, tally: Tally) -> None:
    """One check per game, at the T that η was made for."""
    tally.seen(len(sample.gaps[1]), 1)
    tally.inequality(sample.gaps[1], bound_over(ONPO_THEOREM_1, sample.rules[1], sample.D, sample.T))


def last_gap_floor(games: Cohort) -> Floats:
    """A gap that a policy at KL(π* ‖ π) >= KL(π* ‖ π_1) cannot fall below, (G,).

    π* is the only equilibrium and has full support. With d = π − π* and m = min_y π*(y): either some π(y) < π*(y)/2,
    so that ‖d‖_2 >= m/2, or KL(π* ‖ π) <= Σ d²/π <= 2‖d‖_2²/m. Further ‖Ad‖_∞ >= σ‖d‖_2/√n with σ the smallest
    singular value of A on vectors of sum 0, and ⟨π*, Ad⟩ = 0 makes max_y (Ad)_y >= m/(1 − m) · ‖Ad‖_∞.
    """
    n = games.game.n
    equilibrium = games.closed_form
    least = equilibrium.min(axis=-1)
    tangent = np.linalg.svd(np.ones((1, n)))[2][1:].T
    sigma = np.linalg.svd(games.game.A @ tangent, compute_uv=False)[:, -1]
    start = kl(log_from_probabilities(equilibrium), games.log_start)
    distance = np.minimum(least / 2, np.sqrt(least * start / 2))
    return 2 * least / (1 - least) * sigma / np.sqrt(n) * distance


def diverges(run: Played, tally: Tally) -> None:
    """Tolerance 1e-11 of 1 + KL(π* ‖ π_t): the rounding of π* is met again at every step."""
    chosen = run.cohort.interior
    tally.seen(int(chosen.sum()), run.T)
    if not chosen.any():
        return
    distance = kl(log_from_probabilities(run.cohort.closed_form[chosen]), run.log["current"][:, chosen])
    moved = run.step_kl[:, chosen]
    tally.identity(np.diff(distance, axis=0), moved, scale=1 + distance[1:], rtol=1e-11)
    tally.inequality(last_gap_floor(run.cohort.where(chosen)), run.gap_last[:, chosen])


CLAIMS = (
    Claim(
        "game.gap-is-regret",
        "gap(average) = 2 max_u Σ_t ⟨u − π_t, r_t⟩ / T",
        "derived (skew symmetry of P − ½)",
        "symmetry",
        Status.DERIVED,
        (WEIGHTS, OPTIMISTIC),
        gap_is_regret,
    ),
    Claim(
        "sppo.regret-identity",
        "Σ_t ⟨u − π_t, r_t⟩ = [KL(u ‖ π_1) − KL(u ‖ π_{T+1}) + Σ_t KL(π_t ‖ π_{t+1})]/η for every u",
        "derived (telescoping)",
        "telescoping",
        Status.DERIVED,
        (WEIGHTS,),
        regret_identity,
    ),
    Claim(
        "sppo.log-partition",
        "0 <= log Z_t − η/2 = KL(π_t ‖ π_{t+1}) <= η² range(r_t)²/8",
        "derived (Hoeffding); the constant ½ of SPPO (2405.00675) eq. 4.6",
        "SPPO eq. 4.6",
        Status.DERIVED,
        (WEIGHTS,),
        partition,
    ),
    claim_of(AVERAGE_GAP, "Hoeffding", (WEIGHTS,), average_gap),
    claim_of(THEOREM_4_1, "SPPO Thm 4.1", (WEIGHTS,), theorem_4_1),
    claim_of(TUNED_GAP, "SPPO Thm 4.1", (TUNED,), tuned_gap),
    claim_of(ONPO_THEOREM_1, "ONPO Thm 1", (TUNED,), onpo_theorem_1),
    Claim(
        "sppo.diverges",
        "KL(π* ‖ π_{t+1}) = KL(π* ‖ π_t) + KL(π_t ‖ π_{t+1}) at a unique interior π*, and where π_1 ≠ π* the last gap"
        " keeps above a floor > 0",
        "derived",
        "telescoping",
        Status.DERIVED,
        (WEIGHTS,),
        diverges,
    ),
)
