"""Claims about ONPO: its three forms, its regret, its average gap, its last iterate.

Shapes: T updates of G games; per-step quantities are (T, G), per-response ones (T, G, n). π_t is ``current``, π'_t is
``auxiliary``; r_t = Pπ_t, the forecast is m_t = r_{t−1} with m_1 = 0, and δ_t = r_t − m_t.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from nashpo.core.policies import kl, log_from_probabilities
from nashpo.core.rules import ONPO
from nashpo.core.theorems import Status, onpo_gap_with_path, onpo_path_length
from nashpo.tabular.claims.claim import (
    Claim,
    Ensemble,
    Floats,
    Interval,
    Numbers,
    Tally,
    bound_over,
    claim_of,
    declared,
)
from nashpo.tabular.claims.ensembles import (
    SEED,
    Played,
    cohort,
    cohort_numbers,
    horizon,
    log_uniform,
    random_policies,
    spread,
)
from nashpo.tabular.families import closed_form, interior
from nashpo.tabular.play import play

STEP_SIZES = (None, 0.5, None, 1.0, None, 2.0)
"""η of the cohorts in turn; None is log-uniform in [0.01, 1]. Above 1 only the identities and RVU are claimed."""


def step_size(index: int, rng: np.random.Generator) -> float:
    """η of a cohort."""
    drawn = log_uniform(rng, 0.01, 1.0)
    fixed = STEP_SIZES[index % len(STEP_SIZES)]
    return drawn if fixed is None else fixed


def _trajectory(quick: bool, index: int) -> Played:
    rng = np.random.default_rng([SEED, 3, index])
    eta = step_size(index, rng)
    return Played(ONPO(eta=eta), cohort(index), horizon(rng, quick), keep=("auxiliary",))


OPTIMISTIC = Ensemble(
    "optimistic", lambda quick: [partial(_trajectory, quick, i) for i in cohort_numbers(quick, 96, 30)]
)


def _forms(quick: bool, index: int) -> tuple[Played, Played, Played]:
    rng = np.random.default_rng([SEED, 4, index])
    eta = min(1.0, step_size(index, rng))
    steps = horizon(rng, quick)
    two, one, leader = (
        Played(ONPO(eta=eta, variant=variant), cohort(index), steps)
        for variant in ("two_sequences", "one_step", "leader")
    )
    return two, one, leader


FORMS = Ensemble("three forms", lambda quick: [partial(_forms, quick, i) for i in cohort_numbers(quick, 48, 16)])


def three_forms(runs: tuple[Played, Played, Played], tally: Tally) -> None:
    """Tolerance 1e-9 of 1 + |log π|: the forms round differently, and their trajectories drift apart with t."""
    two, *others = (run.log["current"] for run in runs)
    for other in others:
        tally.seen(runs[0].games, runs[0].T)
        tally.identity(other, two, scale=1 + np.abs(two))


def forecast_errors(run: Played) -> Floats:
    """range(δ_t)², (T, G)."""
    gain = run.gain[:-1]
    return spread(np.diff(gain, axis=0, prepend=np.zeros_like(gain[:1]))) ** 2


def path(run: Played) -> Numbers:
    """V_T = Σ_{2 <= t <= T} ‖π_t − π_{t−1}‖_1², (T, G)."""
    return np.cumsum(np.concatenate([np.zeros_like(run.move[:1]), run.move[:-1] ** 2]), axis=0)


def regret_identity(run: Played, tally: Tally) -> None:
    """For every response y in the place of u, hence for every u: both sides are linear in it."""
    tally.seen(run.games, run.T)
    current, auxiliary = run.log["current"][:-1], run.log["auxiliary"]
    before, after = auxiliary[:-1], auxiliary[1:]
    right = after - before + (kl(current, after) - kl(current, before))[..., None]
    tally.identity(run.rule.eta * run.excess, right, scale=1 + np.abs(after), rtol=1e-11)


def _regret_bound(run: Played, weight: float, negative: Floats) -> Floats:
    """KL(u ‖ π_1)/η + weight · η Σ range(δ)² − negative/η for u = e_y, (T, G, n)."""
    eta = run.rule.eta
    common = weight * eta * np.cumsum(forecast_errors(run), axis=0) - negative / eta
    return run.surprise / eta + common[..., None]


def variation_kl(run: Played, tally: Tally) -> None:
    """For every response y in the place of u, and every T."""
    tally.seen(run.games, run.T)
    stability = np.cumsum(kl(run.log["current"][:-1], run.log["auxiliary"][:-1]), axis=0)
    tally.inequality(run.regret, _regret_bound(run, 1 / 8, stability), noise=1e-11)


def variation_path(run: Played, tally: Tally) -> None:
    """For every response y in the place of u, and every T."""
    tally.seen(run.games, run.T)
    tally.inequality(run.regret, _regret_bound(run, 1 / 4, path(run) / 4), noise=1e-11)


AVERAGE_GAP = declared(ONPO, "onpo.average-gap")


def average_gap(run: Played, tally: Tally) -> None:
    """Also in its sharper form, with KL(u ‖ π_1), range(r_1) and the path length, for every response u."""
    eta = run.rule.eta
    if eta > 1:
        return
    tally.seen(run.games, run.T)
    tally.inequality(run.gap_average, bound_over(AVERAGE_GAP, run.rule, run.cohort.D, run.T_column))
    divergence: Numbers = run.surprise
    T, first, moved = run.T_column[..., None], spread(run.gain[0])[:, None], path(run)[..., None]
    sharper = onpo_gap_with_path(divergence, eta, T, first, moved)
    tally.inequality(2 * run.regret / T, sharper)


def path_length(run: Played, tally: Tally) -> None:
    if run.rule.eta >= 1:
        return
    tally.seen(run.games, run.T)
    tally.inequality(path(run), onpo_path_length(run.cohort.D, run.rule.eta, spread(run.gain[0])))


def lyapunov(run: Played, tally: Tally) -> None:
    """Tolerance 1e-12 nats: π* has a gap of about 1e-15, and enters once per step."""
    if run.rule.eta > 1:
        return
    tally.seen(run.games, run.T)
    auxiliary = run.log["auxiliary"][1:]
    theta = kl(log_from_probabilities(run.cohort.equilibrium), auxiliary) + kl(run.log["current"][:-1], auxiliary)
    tally.inequality(theta[1:], theta[:-1])


@dataclass(frozen=True)
class Converging:
    """KL(π* ‖ π_t) of ONPO at η = 1/8 on 3 x 3 games with an interior equilibrium, at the recorded t, (R, G)."""

    updates: np.ndarray
    divergence: Floats


def _converging(quick: bool) -> Converging:
    family = {"n": 3, "seed": SEED, "batch": 12}
    games, equilibrium = interior(**family), log_from_probabilities(closed_form("interior", **family))
    start = random_policies(np.random.default_rng([SEED, 5]), 12, 3)
    steps = 3000 if quick else 12_000
    run = play(ONPO(eta=0.125), games, steps, start=start, record=20, keep=("current",))
    return Converging(run.recorded, kl(equilibrium, run.kept["current"]))


CONVERGING = Ensemble("3 x 3 games with an interior equilibrium", lambda quick: [partial(_converging, quick)])


def last_iterate(sample: Converging, tally: Tally) -> None:
    """Slope of log KL(π* ‖ π_t) against t/1000, per game, above the rounding floor of 1e-12 nats."""
    tally.seen(sample.divergence.shape[1], len(sample.updates))
    slopes = []
    for divergence in sample.divergence.T:
        fitted = divergence > 1e-12
        fitted &= np.cumsum(~fitted) == 0
        slopes.append(np.polyfit(sample.updates[fitted] / 1000, np.log(divergence[fitted]), 1)[0])
    tally.demand(np.array(slopes) < 0)
    tally.keep("slopes", slopes)


def last_iterate_slope(tally: Tally) -> None:
    tally.slope = Interval.of_mean(tally.arrays.pop("slopes")[0])
    tally.demand(tally.slope.high < 0)


CLAIMS = (
    Claim(
        "onpo.three-forms",
        "two sequences = one step (2r_t − r_{t−1}) = follow the regularized leader, constant η",
        "derived; ONPO (2502.16852) Algorithm 1",
        "ONPO Alg. 1",
        Status.DERIVED,
        (FORMS,),
        three_forms,
    ),
    Claim(
        "onpo.regret-identity",
        "η⟨u − π_t, r_t⟩ = KL(u ‖ π'_t) − KL(u ‖ π'_{t+1}) + KL(π_t ‖ π'_{t+1}) − KL(π_t ‖ π'_t) for every u",
        "derived (three-point identity)",
        "three points",
        Status.DERIVED,
        (OPTIMISTIC,),
        regret_identity,
    ),
    Claim(
        "onpo.regret-by-kl",
        "regret(u) <= KL(u ‖ π_1)/η + (η/8) Σ range(δ_t)² − (1/η) Σ KL(π_t ‖ π'_t)",
        "derived (Hoeffding); sharper than the RVU bound of Syrgkanis et al. (2015)",
        "RVU",
        Status.DERIVED,
        (OPTIMISTIC,),
        variation_kl,
    ),
    Claim(
        "onpo.regret-by-path",
        "regret(u) <= KL(u ‖ π_1)/η + (η/4) Σ range(δ_t)² − (1/(4η)) Σ ‖π_t − π_{t−1}‖_1²",
        "derived (Hoeffding, Pinsker)",
        "RVU, Pinsker",
        Status.DERIVED,
        (OPTIMISTIC,),
        variation_path,
    ),
    claim_of(AVERAGE_GAP, "RVU", (OPTIMISTIC,), average_gap),
    Claim(
        "onpo.path-length",
        "Σ_t ‖π_t − π_{t−1}‖_1² <= 4(D + η² range(r_1)²/4)/(1 − η²) for η < 1",
        "derived (regret by path, regret >= 0)",
        "RVU",
        Status.DERIVED,
        (OPTIMISTIC,),
        path_length,
    ),
    Claim(
        "onpo.lyapunov",
        "KL(π* ‖ π'_t) + KL(π_{t−1} ‖ π'_t) never increases from t = 2 on, for η <= 1 and any equilibrium π*",
        "derived; behind ONPO (2502.16852) Theorem 3",
        "ONPO Thm 3",
        Status.DERIVED,
        (OPTIMISTIC,),
        lyapunov,
    ),
    Claim(
        "onpo.last-iterate",
        "log KL(π* ‖ π_t) falls linearly in t at η = 1/8 where the equilibrium is unique (slope per 1,000 updates)",
        "ONPO (2502.16852) Theorem 3, after Wei et al. (2021)",
        "ONPO Thm 3",
        Status.PUBLISHED,
        (CONVERGING,),
        last_iterate,
        last_iterate_slope,
    ),
)
