"""The bound printed with ONPO's Theorem 2, its counterexample, and the bound that holds.

Shapes: gaps of one game after T = 1, 2, … updates, (R,).
"""

from dataclasses import dataclass
from functools import partial
from math import log

import numpy as np

from nashpo.core.rules import ONPO
from nashpo.core.theorems import Setting, onpo_gap, onpo_printed_eta, onpo_printed_gap
from nashpo.tabular.claims.claim import Ensemble, Floats, Numbers, Tally, claim_of, declared
from nashpo.tabular.families import dominance
from nashpo.tabular.play import geometric, play

SIZES = (3, 10, 100, 1000)
VIOLATED_FROM = 10
"""The printed bound is violated on the dominance game from this number of responses on."""
PRINTED = declared(ONPO, "onpo.printed-theorem-2")


@dataclass(frozen=True)
class Counterexample:
    """ONPO from the uniform policy on the dominance game of n responses; gaps at T = 1, 2, …, (R,)."""

    n: int
    D: float
    rule: ONPO
    eta: float
    T: Numbers
    gap: Floats


def _counterexample(quick: bool, n: int) -> Counterexample:
    steps = 500 if quick else 2000
    D = log(n)
    eta = onpo_printed_eta(D)
    rule = ONPO(eta=eta)
    run = play(rule, dominance(n), steps, record="all")
    return Counterexample(n, D, rule, eta, run.recorded, run.gap_average)


DOMINANCE = Ensemble("dominance", lambda quick: [partial(_counterexample, quick, n) for n in SIZES])


def printed(sample: Counterexample, tally: Tally) -> None:
    """The claim holds when the printed bound fails at the last T for n >= 10 and the corrected one never does."""
    tally.seen(1, len(sample.T))
    tally.inequality(sample.gap, onpo_gap(sample.D, sample.eta, sample.T))
    T = float(sample.T[-1])
    drawn = np.array(geometric(int(T), 8)) - 1
    bound = PRINTED.bound(sample.rule, Setting(sample.D, int(T)))
    if sample.n >= VIOLATED_FROM:
        tally.demand(PRINTED.applies(sample.rule, Setting(sample.D, int(T))))
        tally.demand(sample.gap[-1] > bound)
    corrected = T * onpo_gap(sample.D, sample.eta, T)
    tally.keep("refuted/n", sample.n)
    tally.keep("refuted/T", sample.T[drawn])
    tally.keep("refuted/gap", sample.gap[drawn])
    tally.keep("refuted/printed", T * onpo_printed_gap(sample.D, T))
    tally.keep("refuted/corrected", corrected)
    tally.remarks.append(
        f"n = {sample.n}: T x gap = {T * sample.gap[-1]:.2f} at T = {T:.0f};"
        f" printed 4 sqrt(D) = {T * bound:.2f}, corrected 2D/eta + eta/2 = {corrected:.2f}"
    )


def stack_counterexamples(tally: Tally) -> None:
    """The arrays of the figure: (4,) and (4, R), T as (R,)."""
    stacked = {name: np.stack(rows) for name, rows in tally.arrays.items()}
    stacked["refuted/T"] = stacked["refuted/T"][0]
    tally.arrays = {name: [rows] for name, rows in stacked.items()}


CLAIMS = (claim_of(PRINTED, "ONPO Thm 2", (DOMINANCE,), printed, stack_counterexamples),)
