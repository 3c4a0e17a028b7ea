"""Claims about rates: slopes of log gap(average) against log T on games where no response beats all others.

Shapes: G games, K values of T (geometric from 256); gaps and bounds are (G, K), per game (K,).

A slope is fitted per game by least squares; the interval of their mean is Student's t over the games, which are drawn
independently. Intervals that pass: [-0.65, -0.35] for SPPO with η made for each T, [-1.3, -0.85] for ONPO with η = ½,
and below -0.3 for their paired difference. Only cyclic and interior games tell the two apart: on Bradley–Terry games
SPPO at a fixed η shows a slope of -1 too.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from nashpo.core.rules import ONPO, SPPO
from nashpo.core.theorems import Setting, Status
from nashpo.tabular.claims.claim import Claim, Ensemble, Floats, Interval, Tally, bound_over, declared
from nashpo.tabular.claims.ensembles import SEED
from nashpo.tabular.families import cyclic, interior
from nashpo.tabular.game import Game
from nashpo.tabular.play import play

SIZES = (3, 5, 7)
SHORTEST = 256
ONPO_ETA = 0.5
"""The step of ONPO's Theorem 2 wherever D >= 1/4."""
SPPO_SLOPES = (-0.65, -0.35)
ONPO_SLOPES = (-1.3, -0.85)
SEPARATION = -0.3


@dataclass(frozen=True)
class Rates:
    """Gaps of the average after T updates and the bounds on them, by rule, (K,), for one game and start."""

    family: str
    T: np.ndarray
    gap: dict[str, Floats]
    bound: dict[str, Floats]


SPPO_BOUND = declared(SPPO, "sppo.tuned-gap")
ONPO_BOUND = declared(ONPO, "onpo.average-gap")


def _game(family: str, n: int, rng: np.random.Generator) -> Game:
    if family == "cyclic":
        return cyclic(n, margin=float(rng.uniform(0.4, 1)))
    return interior(n, seed=int(rng.integers(2**31)))


def _rates(quick: bool, family: str, n: int, index: int) -> Rates:
    rng = np.random.default_rng([SEED, 18, len(family), n, index])
    game = _game(family, n, rng)
    # Not uniform: that is the equilibrium of a cyclic game.
    weights = np.exp(rng.standard_normal(n))
    start = weights / weights.sum()
    D = float(np.max(-np.log(start)))
    T = np.rint(SHORTEST * 2 ** np.arange(0, 4.5 if quick else 6.5, 0.5)).astype(np.int64)
    tuned = [SPPO(eta=1.0).tuned(Setting(D, int(t))) for t in T]
    sppo = [play(rule, game, int(t), start=start, record="last").gap_average[-1] for rule, t in zip(tuned, T)]
    onpo = ONPO(eta=ONPO_ETA)
    run = play(onpo, game, int(T[-1]), start=start, record=[int(t) for t in T])
    return Rates(
        family,
        T,
        {"sppo": np.array(sppo), "onpo": run.gap_average},
        {
            "sppo": np.array([bound_over(SPPO_BOUND, rule, D, int(t)) for rule, t in zip(tuned, T)]),
            "onpo": np.array([bound_over(ONPO_BOUND, onpo, D, int(t)) for t in T]),
        },
    )


def _samples(quick: bool) -> list[Callable[[], Rates]]:
    places = itertools.product(("cyclic", "interior"), SIZES, range(4 if quick else 8))
    return [partial(_rates, quick, *place) for place in places]


RATES = Ensemble("cyclic and interior games", _samples)


def slope(T: np.ndarray, gap: Floats) -> float:
    """Least-squares slope of log gap against log T."""
    return float(np.polyfit(np.log(T), np.log(gap), 1)[0])


def one_rule(name: str, sample: Rates, tally: Tally) -> None:
    """The bound at every T; the slopes for the conclusion."""
    tally.seen(1, len(sample.T))
    tally.inequality(sample.gap[name], sample.bound[name])
    tally.keep("rates/families", sample.family)
    tally.keep(f"rates/{name}_gap", sample.gap[name])
    tally.keep(f"rates/{name}_bound", sample.bound[name])
    tally.keep("rates/T", sample.T)
    tally.keep("slopes", slope(sample.T, sample.gap[name]))


def both_rules(sample: Rates, tally: Tally) -> None:
    tally.seen(1, len(sample.T))
    tally.keep("slopes", slope(sample.T, sample.gap["onpo"]) - slope(sample.T, sample.gap["sppo"]))


def conclude(key: str, low: float, high: float, tally: Tally) -> None:
    """The interval of the slopes must lie in [low, high]; the arrays of all games are stacked."""
    joined = {name: np.stack(rows) for name, rows in tally.arrays.items()}
    tally.slope = Interval.of_mean(joined.pop("slopes"))
    tally.demand(tally.slope.inside(low, high))
    joined[f"rates/{key}"] = np.array([tally.slope.low, tally.slope.mid, tally.slope.high])
    if "rates/T" in joined:
        joined["rates/T"] = joined["rates/T"][0]
    tally.arrays = {name: [values] for name, values in joined.items()}


CLAIMS = (
    Claim(
        "sppo.rate",
        "log gap(average) falls as log T with slope in [-0.65, -0.35] for η = √(8D/T)",
        "SPPO (2405.00675) Theorem 4.1: O(1/√T)",
        "SPPO Thm 4.1",
        Status.PUBLISHED,
        (RATES,),
        partial(one_rule, "sppo"),
        partial(conclude, "sppo_slope", *SPPO_SLOPES),
    ),
    Claim(
        "onpo.rate",
        "log gap(average) falls as log T with slope in [-1.3, -0.85] for η = ½",
        "ONPO (2502.16852) Theorem 2: the order O(1/T), which holds with the corrected constant",
        "ONPO Thm 2",
        Status.PUBLISHED,
        (RATES,),
        partial(one_rule, "onpo"),
        partial(conclude, "onpo_slope", *ONPO_SLOPES),
    ),
    Claim(
        "onpo.faster-than-sppo",
        "the slope of ONPO less that of SPPO on the same game and start is below -0.3",
        "SPPO (2405.00675) Theorem 4.1 and ONPO (2502.16852) Theorem 2",
        "both",
        Status.PUBLISHED,
        (RATES,),
        both_rules,
        partial(conclude, "difference", -np.inf, SEPARATION),
    ),
)
