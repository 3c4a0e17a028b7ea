"""What a claim is, how one is checked, and what a check leaves behind.

A claim states an inequality or an identity about rules or games. It is checked on the samples of an ensemble (games,
mostly with the trajectory of a rule) at every step of every game, and the counts are added up in a `Tally`.

Shapes: a quantity handed to a tally is an array over whatever it was evaluated at, typically (T, G) for T steps of G
games or (T, G, n) where it holds for every response. Duality gaps are in [0, 1], divergences and regrets in nats.

Tolerances: an inequality lhs <= rhs counts as violated beyond ``rtol · max(|lhs|, |rhs|) + noise``, and an identity
beyond ``rtol · scale``. Both come from float64 rounding (eps = 2.2e-16) in sums of some hundreds of terms; each claim
states its own where the default does not do. A NaN is a violation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nashpo.core.rules.rule import Rule
from nashpo.core.theorems import Setting, Status, Theorem

Floats = NDArray[np.float64]
Numbers = Any
"""An array that goes into a bound of `nashpo.core.theorems`: those are annotated for numbers, and broadcast."""

RTOL = 1e-9
NOISE = 1e-12
"""About 5,000 roundings of a number of order 1: an accumulated win rate or divergence is not resolved below it."""
RATIO_FLOOR = 1e-9
"""A bound's tightness rhs/lhs is taken only where lhs exceeds this: below, it compares roundings."""


@dataclass(frozen=True)
class Interval:
    """An estimate with a 95 % confidence interval."""

    low: float
    mid: float
    high: float

    @classmethod
    def of_mean(cls, values: Floats) -> "Interval":
        """The mean of independent values and its interval by Student's t."""
        from scipy.special import stdtrit

        mid = float(np.mean(values))
        half = float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(len(values)))
        return cls(mid - half, mid, mid + half)

    def inside(self, low: float, high: float) -> bool:
        """Whether the whole interval lies in [low, high]."""
        return low <= self.low and self.high <= high


@dataclass
class Tally:
    """Counts of one claim over the samples seen so far.

    Attributes
    ----------
    games, steps : int
        Games, and (game, step) pairs at which the claim was evaluated.
    violations : int
        Entries beyond the tolerance, and demands that were not met.
    slack : float
        Smallest rhs − lhs of the inequalities; +inf where there were none.
    ratio : float
        Smallest rhs/lhs of the inequalities, 1 where a bound is attained.
    error : float
        Largest relative error of the identities; NaN where there were none.
    slope : Interval, optional
    arrays : dict name -> list of arrays
        What a figure or the claim's conclusion needs, one entry per sample.
    remarks : list of str
        Lines for the reader.
    """

    games: int = 0
    steps: int = 0
    violations: int = 0
    slack: float = np.inf
    ratio: float = np.inf
    error: float = np.nan
    slope: Interval | None = None
    arrays: dict[str, list[np.ndarray]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def seen(self, games: int, steps: int) -> None:
        """Count ``games`` more games of ``steps`` steps each."""
        self.games += int(games)
        self.steps += int(games) * int(steps)

    def inequality(
        self,
        lhs: ArrayLike,
        rhs: ArrayLike,
        *,
        rtol: float = RTOL,
        noise: ArrayLike = NOISE,
        floor: float = RATIO_FLOOR,
    ) -> None:
        """Check lhs <= rhs entry by entry."""
        small, large = np.broadcast_arrays(np.asarray(lhs, dtype=np.float64), np.asarray(rhs, dtype=np.float64))
        if small.size == 0:
            return
        slack = large - small
        allowed = rtol * np.maximum(np.abs(small), np.abs(large)) + noise
        self.violations += int(np.count_nonzero(~(slack >= -allowed)))
        self.slack = min(self.slack, float(np.min(slack)))
        telling = small > floor
        if telling.any():
            self.ratio = min(self.ratio, float(np.min(large[telling] / small[telling])))

    def identity(self, left: ArrayLike, right: ArrayLike, *, scale: ArrayLike, rtol: float = RTOL) -> None:
        """Check left = right entry by entry; the error is relative to ``scale``, the size of the terms in the sums."""
        error = np.abs(np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)) / scale
        if error.size == 0:
            return
        self.violations += int(np.count_nonzero(~(error <= rtol)))
        self.error = float(np.fmax(self.error, np.max(error)))

    def demand(self, facts: ArrayLike) -> None:
        """Check that every one of the facts is true."""
        self.violations += int(np.count_nonzero(~np.asarray(facts, dtype=bool)))

    def keep(self, name: str, values: ArrayLike) -> None:
        """Keep an array for the conclusion or for the results file."""
        self.arrays.setdefault(name, []).append(np.asarray(values))

    def add(self, other: "Tally") -> None:
        """Add the counts of another sample."""
        self.games += other.games
        self.steps += other.steps
        self.violations += other.violations
        self.slack = min(self.slack, other.slack)
        self.ratio = min(self.ratio, other.ratio)
        self.error = float(np.fmax(self.error, other.error))
        for name, rows in other.arrays.items():
            self.arrays.setdefault(name, []).extend(rows)
        self.remarks += other.remarks


@dataclass(frozen=True)
class Ensemble:
    """Samples that claims are checked on; equal arguments give equal samples.

    Attributes
    ----------
    name : str
    samples : callable (quick) -> sequence of callables
        One callable per sample, which makes it when it is called: a sample is dropped once its claims are checked.
    """

    name: str
    samples: Callable[[bool], Sequence[Callable[[], Any]]]


@dataclass(frozen=True)
class Claim:
    """A statement with its check.

    Attributes
    ----------
    id : str
        For instance ``sppo.average-gap``; equal to the id of the `Theorem` that a rule declares, where one does.
    statement : str
        The inequality or identity.
    source : str
        Paper and theorem, or how it is derived.
    brief : str
        The source in at most 12 characters, for the printed table.
    status : Status
    ensembles : tuple of Ensemble
    check : callable (sample, tally)
        Evaluates the claim on one sample.
    conclude : callable (tally), optional
        Called once after all samples: slopes and verdicts over the whole ensemble.
    """

    id: str
    statement: str
    source: str
    brief: str
    status: Status
    ensembles: tuple[Ensemble, ...]
    check: Callable[[Any, Tally], None]
    conclude: Callable[[Tally], None] | None = None


@dataclass(frozen=True)
class Result:
    """A claim and what its check found."""

    claim: Claim
    tally: Tally

    @property
    def holds(self) -> bool:
        """Whether it was evaluated at all and nothing spoke against it."""
        return self.tally.violations == 0 and self.tally.games > 0

    @property
    def verdict(self) -> str:
        """``holds``, ``refuted`` (a claim refuted as printed whose counterexample stands) or ``FAILS``."""
        if not self.holds:
            return "FAILS"
        return "refuted" if self.claim.status is Status.REFUTED else "holds"


def declared(rule: type[Rule], identifier: str) -> Theorem:
    """The theorem of that id that a rule declares.

    Raises
    ------
    KeyError
    """
    return {theorem.id: theorem for theorem in rule.theorems}[identifier]


def claim_of(
    theorem: Theorem,
    brief: str,
    ensembles: tuple[Ensemble, ...],
    check: Callable[[Any, Tally], None],
    conclude: Callable[[Tally], None] | None = None,
) -> Claim:
    """The claim that checks a declared theorem: id, statement, source and status are the theorem's."""
    return Claim(theorem.id, theorem.statement, theorem.source, brief, theorem.status, ensembles, check, conclude)


def bound_over(theorem: Theorem, rule: Rule, D: Numbers, T: Numbers, kl_start: float | None = None) -> Numbers:
    """A theorem's bound at numbers or at arrays of D and T, which broadcast.

    Raises
    ------
    ValueError
        If the theorem's assumptions do not hold: the claim would be about something else.
    """
    setting = Setting(D, T, kl_start)
    if not theorem.applies(rule, setting):
        raise ValueError(f"{theorem.id} does not apply to {rule!r}")
    return theorem.bound(rule, setting)
