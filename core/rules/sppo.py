"""SPPO, self-play preference optimization: multiplicative weights on the win rate against oneself."""

import math
from dataclasses import dataclass
from typing import Self

from nashpo.core import theorems as bound
from nashpo.core.rules.form import Form, Stage, win
from nashpo.core.rules.rule import Aim, Rule, check_step
from nashpo.core.schedules import Coef
from nashpo.core.theorems import Iterate, Measure, Setting, Status, Theorem


@dataclass(frozen=True)
class SPPO(Rule):
    """π_{t+1}(y) ∝ π_t(y) exp(η P(y ≻ π_t)).

    The average iterate approaches the Nash equilibrium at rate √(2D/T) for η = √(8D/T); the last iterate spirals away
    from an interior one.

    Parameters
    ----------
    eta : Coef
        Step size η > 0; multiplies win rates.

    Notes
    -----
    Source: Wu et al., SPPO (2405.00675), eq. 4.1 and Theorem 4.1.
    """

    eta: Coef
    name = "sppo"
    aim = Aim.NASH
    citations = ("sppo", "freund-schapire")
    theorems = (
        Theorem(
            "sppo.average-gap",
            "gap(average) <= 2D/(ηT) + η/4",
            Iterate.AVERAGE,
            Measure.DUALITY_GAP,
            "derived (Hoeffding); implies SPPO Theorem 4.1",
            Status.DERIVED,
            None,
            lambda rule, s: bound.constant(rule.eta),
            lambda rule, s: bound.mwu_gap(s.D, rule.eta, s.T),
        ),
        Theorem(
            "sppo.theorem-4.1",
            "gap(average) <= 1 − (1 − e^−η)/η + 2D/(ηT)",
            Iterate.AVERAGE,
            Measure.DUALITY_GAP,
            "SPPO (2405.00675) Theorem 4.1, constants of Freund and Schapire (1999)",
            Status.PUBLISHED,
            None,
            lambda rule, s: bound.constant(rule.eta),
            lambda rule, s: bound.mwu_gap_freund_schapire(s.D, rule.eta, s.T),
        ),
        Theorem(
            "sppo.tuned-gap",
            "gap(average) <= √(2D/T) at η = √(8D/T)",
            Iterate.AVERAGE,
            Measure.DUALITY_GAP,
            "derived; the rate of SPPO (2405.00675) Theorem 4.1",
            Status.DERIVED,
            -0.5,
            lambda rule, s: bound.constant(rule.eta) and math.isclose(rule.eta, bound.mwu_tuned_eta(s.D, s.T)),
            lambda rule, s: bound.mwu_tuned_gap(s.D, s.T),
        ),
        Theorem(
            "onpo.theorem-1",
            "gap(average) <= 4√(D/T) at η = √(D/T)",
            Iterate.AVERAGE,
            Measure.DUALITY_GAP,
            "ONPO (2502.16852) Theorem 1",
            Status.PUBLISHED,
            -0.5,
            lambda rule, s: bound.constant(rule.eta) and math.isclose(rule.eta, math.sqrt(s.D / s.T)),
            lambda rule, s: bound.omd_printed_gap(s.D, s.T),
        ),
    )

    def __post_init__(self) -> None:
        check_step(self.eta)

    @classmethod
    def from_paper(cls, eta: Coef) -> Self:
        """From the paper's η, which is ours (1e3 in its experiments)."""
        return cls(eta=eta)

    @classmethod
    def from_code(cls, beta: float) -> Self:
        """From the official code's ``beta`` = 1/η (0.001 in its scripts)."""
        return cls(eta=1 / beta)

    def form(self) -> Form:
        return Form({"current": "start"}, [Stage("current", {"current": 1.0}, {win("current"): self.eta})])

    def tuned(self, setting: Setting) -> Self:
        return type(self)(eta=bound.mwu_tuned_eta(setting.D, setting.T))
