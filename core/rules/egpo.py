"""EGPO: extragradient on the KL-regularized game."""

from dataclasses import dataclass
from typing import Self

from nashpo.core import theorems as bound
from nashpo.core.rules.form import Form, Stage, win
from nashpo.core.rules.rule import Aim, Rule, check_regularized_step, pull
from nashpo.core.schedules import Coef
from nashpo.core.theorems import Iterate, Measure, Setting, Status, Theorem


def contracts(rule: "EGPO", setting: Setting) -> bool:
    """Whether η <= 2(√(1 + τ²) − τ), the condition of the last-iterate contraction."""
    return (
        bound.constant(rule.eta)
        and setting.kl_start is not None
        and rule.eta <= bound.egpo_largest_eta(rule.tau) * (1 + 1e-12)
    )


@dataclass(frozen=True)
class EGPO(Rule):
    """half ∝ π_t^{1−ητ} ref^{ητ} exp(η P(y ≻ π_t)), then π_{t+1} ∝ π_t^{1−ητ} ref^{ητ} exp(η P(y ≻ half)).

    Parameters
    ----------
    eta : Coef
        Step size η > 0 with ητ <= 1.
    tau : float
        KL weight τ > 0 of the regularized game, the paper's β.

    Notes
    -----
    Source: Zhou et al., EGPO (2503.08942). The contraction with the step condition used here is derived.
    """

    eta: Coef
    tau: float
    name = "egpo"
    aim = Aim.REGULARIZED_NASH
    citations = ("egpo",)
    theorems = (
        Theorem(
            "egpo.last-iterate",
            "KL(π*_τ ‖ π_{T+1}) <= (1 − ητ)^T KL(π*_τ ‖ π_1) for η <= 2(√(1 + τ²) − τ)",
            Iterate.LAST,
            Measure.KL_TO_EQUILIBRIUM,
            "derived; the linear rate of EGPO (2503.08942)",
            Status.DERIVED,
            None,
            contracts,
            lambda rule, s: bound.linear_kl(s.kl_start or 0.0, rule.eta, rule.tau, s.T),
        ),
    )

    def __post_init__(self) -> None:
        check_regularized_step(self.eta, self.tau)

    @classmethod
    def from_paper(cls, eta: Coef, beta: float) -> Self:
        """From the paper's η, which is ours, and its β, our τ."""
        return cls(eta=eta, tau=beta)

    def form(self) -> Form:
        base = pull(self.eta, self.tau)
        return Form(
            {"current": "start", "reference": "reference"},
            [Stage("half", base, {win("current"): self.eta}), Stage("current", base, {win("half"): self.eta})],
        )

    def tuned(self, setting: Setting) -> Self:
        return type(self)(eta=bound.egpo_largest_eta(self.tau), tau=self.tau)
