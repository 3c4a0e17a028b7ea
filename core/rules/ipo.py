"""IPO: the KL-regularized best response to the behavior policy, and its iteration."""

from dataclasses import dataclass
from typing import Self

from nashpo.core.rules.form import Form, Stage, win
from nashpo.core.rules.rule import Aim, Rule, check_weight


@dataclass(frozen=True)
class IPO(Rule):
    """π ∝ ref · exp(P(y ≻ μ)/τ), where μ is the behavior policy that the pairs came from. One step.

    Parameters
    ----------
    tau : float
        KL weight τ > 0.

    Notes
    -----
    Source: Azar et al., IPO (2310.12036). A best response to μ and not an equilibrium.
    """

    tau: float
    name = "ipo"
    citations = ("ipo",)

    def __post_init__(self) -> None:
        check_weight(self.tau)

    @classmethod
    def from_paper(cls, tau: float) -> Self:
        """From the paper's τ, which is ours."""
        return cls(tau=tau)

    def form(self) -> Form:
        return Form(
            {"current": "start", "reference": "reference", "behavior": "behavior"},
            [Stage("current", {"reference": 1.0}, {win("behavior"): 1 / self.tau})],
            horizon=1,
        )


@dataclass(frozen=True)
class IterativeIPO(Rule):
    """π_{t+1} ∝ π_t · exp(P(y ≻ π_t)/τ): IPO on fresh pairs, with the reference moved to the current policy.

    The same map as SPPO with η = 1/τ, so that its fixed points are those of SPPO.

    Parameters
    ----------
    tau : float
        KL weight τ > 0 of each step.
    """

    tau: float
    name = "iterative-ipo"
    aim = Aim.NASH
    citations = ("ipo",)

    def __post_init__(self) -> None:
        check_weight(self.tau)

    @classmethod
    def from_paper(cls, tau: float) -> Self:
        """From the paper's τ, which is ours."""
        return cls(tau=tau)

    def form(self) -> Form:
        return Form({"current": "start"}, [Stage("current", {"current": 1.0}, {win("current"): 1 / self.tau})])
