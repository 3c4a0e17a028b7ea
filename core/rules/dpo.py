"""DPO: the closed form of KL-regularized reward maximization, and its iteration."""

from dataclasses import dataclass
from typing import Self

from nashpo.core.rules.form import Form, Stage, reward
from nashpo.core.rules.rule import Rule, check_weight


@dataclass(frozen=True)
class DPO(Rule):
    """π ∝ ref · exp(r(y)/τ), where r is the Bradley–Terry reward of pairs from the behavior policy. One step.

    On a game that is no Bradley–Terry game, r is the projection argmin_r −E P(y ≻ y') log σ(r(y) − r(y')) with y, y'
    drawn from the behavior policy; it diverges where a response never loses.

    Parameters
    ----------
    tau : float
        KL weight τ > 0, the paper's β.

    Notes
    -----
    Source: Rafailov et al., DPO (2305.18290).
    """

    tau: float
    name = "dpo"
    citations = ("dpo",)

    def __post_init__(self) -> None:
        check_weight(self.tau)

    @classmethod
    def from_paper(cls, beta: float) -> Self:
        """From the paper's β, our τ."""
        return cls(tau=beta)

    def form(self) -> Form:
        return Form(
            {"current": "start", "reference": "reference", "behavior": "behavior"},
            [Stage("current", {"reference": 1.0}, {reward("behavior"): 1 / self.tau})],
            horizon=1,
        )


@dataclass(frozen=True)
class IterativeDPO(Rule):
    """π_{t+1} ∝ π_t · exp(r_t(y)/τ) with r_t projected under π_t: DPO on fresh pairs from the current policy.

    Parameters
    ----------
    tau : float
        KL weight τ > 0 of each step.
    """

    tau: float
    name = "iterative-dpo"
    citations = ("dpo",)

    def __post_init__(self) -> None:
        check_weight(self.tau)

    @classmethod
    def from_paper(cls, beta: float) -> Self:
        """From the paper's β, our τ."""
        return cls(tau=beta)

    def form(self) -> Form:
        return Form({"current": "start"}, [Stage("current", {"current": 1.0}, {reward("current"): 1 / self.tau})])
