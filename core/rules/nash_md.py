"""Nash-MD: a mirror step from the geometric mixture of the current policy and the reference."""

from dataclasses import dataclass
from typing import Self

from nashpo.core import theorems as bound
from nashpo.core.rules.form import Form, Stage, win
from nashpo.core.rules.rule import Aim, Rule, check_regularized_step, pull
from nashpo.core.schedules import Coef, Power
from nashpo.core.theorems import Iterate, Measure, Setting, Status, Theorem


def has_theorem_step(rule: "NashMD", setting: Setting) -> bool:
    """Whether the step is η_t = 2/(τ(t + 2)), as the theorem asks."""
    return rule.eta == schedule(rule.tau)


def schedule(tau: float) -> Power:
    """η_t = 2/(τ(t + 2)) for t = 0, 1, …"""
    return Power(scale=2 / tau, exponent=1.0, shift=2.0)


@dataclass(frozen=True)
class NashMD(Rule):
    """mix_t ∝ π_t^{1−ητ} ref^{ητ}, then π_{t+1} ∝ mix_t exp(η P(y ≻ mix_t)).

    Parameters
    ----------
    eta : Coef
        Step size η > 0 with ητ <= 1. A constant η has its fixed point at a distance linear in η from π*_τ; the
        schedule 2/(τ(t + 2)), ``NashMD.scheduled(tau)``, reaches π*_τ.
    tau : float
        KL weight τ > 0 of the regularized game.

    Notes
    -----
    Source: Munos et al., Nash learning from human feedback (2312.00886), Theorem 1.
    """

    eta: Coef
    tau: float
    name = "nash-md"
    aim = Aim.NEAR_REGULARIZED_NASH
    citations = ("nash-md",)
    theorems = (
        Theorem(
            "nash-md.last-iterate",
            "KL(π*_τ ‖ π_{T+1}) <= 1/(2τ²(T + 1)) at η_t = 2/(τ(t + 2))",
            Iterate.LAST,
            Measure.KL_TO_EQUILIBRIUM,
            "derived; sharper than the constant cited for Munos et al. (2312.00886) Theorem 1",
            Status.DERIVED,
            -1.0,
            has_theorem_step,
            lambda rule, s: bound.nash_md_kl(rule.tau, s.T),
        ),
        Theorem(
            "nash-md.theorem-1",
            "KL(π*_τ ‖ π_{T+1}) <= 8/(τ²(T + 1)) at η_t = 2/(τ(t + 2))",
            Iterate.LAST,
            Measure.KL_TO_EQUILIBRIUM,
            "Munos et al. (2312.00886) Theorem 1, constant as commonly cited",
            Status.PUBLISHED,
            -1.0,
            has_theorem_step,
            lambda rule, s: bound.nash_md_kl_munos(rule.tau, s.T),
        ),
        Theorem(
            "nash-md.constant-step",
            "KL(π*_τ ‖ π_{T+1}) <= (1 − ητ)^T KL(π*_τ ‖ π_1) + η/(8τ) (1 − (1 − ητ)^T)",
            Iterate.LAST,
            Measure.KL_TO_EQUILIBRIUM,
            "derived",
            Status.DERIVED,
            None,
            lambda rule, s: bound.constant(rule.eta) and s.kl_start is not None,
            lambda rule, s: bound.nash_md_kl_constant(s.kl_start or 0.0, rule.eta, rule.tau, s.T),
        ),
    )

    def __post_init__(self) -> None:
        check_regularized_step(self.eta, self.tau)

    @classmethod
    def scheduled(cls, tau: float) -> Self:
        """With the theorem's step η_t = 2/(τ(t + 2))."""
        return cls(eta=schedule(tau), tau=tau)

    @classmethod
    def from_paper(cls, eta: Coef, tau: float) -> Self:
        """From the paper's η and τ, which are ours."""
        return cls(eta=eta, tau=tau)

    def form(self) -> Form:
        return Form(
            {"current": "start", "reference": "reference"},
            [
                Stage("mixture", pull(self.eta, self.tau)),
                Stage("current", {"mixture": 1.0}, {win("mixture"): self.eta}),
            ],
        )

    def tuned(self, setting: Setting) -> Self:
        return type(self).scheduled(self.tau)
