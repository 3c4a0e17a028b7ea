"""INPO: mirror descent on the KL-regularized game (magnetic mirror descent)."""

from dataclasses import dataclass
from typing import Self

from nashpo.core import theorems as bound
from nashpo.core.rules.form import Form, Stage, win
from nashpo.core.rules.rule import Aim, Rule, check_regularized_step, pull
from nashpo.core.schedules import Coef
from nashpo.core.theorems import Iterate, Measure, Setting, Status, Theorem


def contracts(rule: "INPO", setting: Setting) -> bool:
    """Whether η/(1 − ητ) <= 4τ, the condition of the last-iterate contraction."""
    return (
        bound.constant(rule.eta)
        and setting.kl_start is not None
        and rule.eta <= bound.inpo_largest_eta(rule.tau) * (1 + 1e-12)
    )


@dataclass(frozen=True)
class INPO(Rule):
    """π_{t+1} ∝ π_t^{1−ητ} ref^{ητ} exp(η P(y ≻ π_t)).

    Parameters
    ----------
    eta : Coef
        Step size η > 0 with ητ <= 1; the inverse of the paper's η.
    tau : float
        KL weight τ > 0 of the regularized game.

    Notes
    -----
    Source: Zhang et al., INPO (2407.00617), Algorithm 1; the contraction is derived and needs η <= 4τ/(1 + 4τ²).
    """

    eta: Coef
    tau: float
    name = "inpo"
    aim = Aim.REGULARIZED_NASH
    citations = ("inpo",)
    theorems = (
        Theorem(
            "inpo.last-iterate",
            "KL(π*_τ ‖ π_{T+1}) <= (1 − ητ)^T KL(π*_τ ‖ π_1) for η/(1 − ητ) <= 4τ",
            Iterate.LAST,
            Measure.KL_TO_EQUILIBRIUM,
            "derived; sharper than INPO (2407.00617) Theorem 4",
            Status.DERIVED,
            None,
            contracts,
            lambda rule, s: bound.linear_kl(s.kl_start or 0.0, rule.eta, rule.tau, s.T),
        ),
    )

    def __post_init__(self) -> None:
        check_regularized_step(self.eta, self.tau)

    @classmethod
    def from_paper(cls, eta: float, tau: float) -> Self:
        """From the paper's η, the inverse step (its LLM runs: η = 0.005, τ = η/3), and its τ."""
        return cls(eta=1 / eta, tau=tau)

    def form(self) -> Form:
        return Form(
            {"current": "start", "reference": "reference"},
            [Stage("current", pull(self.eta, self.tau), {win("current"): self.eta})],
        )

    def tuned(self, setting: Setting) -> Self:
        return type(self)(eta=bound.inpo_largest_eta(self.tau), tau=self.tau)
