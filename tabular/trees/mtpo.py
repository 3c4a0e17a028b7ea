"""MTPO: a mirror step at every state towards the equilibrium of the KL-regularized multi-turn game."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from nashpo.core.rules.form import Form, Payoff, Stage
from nashpo.core.rules.rule import Aim, Rule, check_regularized_step, pull
from nashpo.core.schedules import Coef, Power

REGULARIZED_WIN = "regularized-win"
"""The payoff Q of the KL-regularized game; see `nashpo.tabular.trees.values.regularized_q`."""


def schedule(tau: float) -> Power:
    """η_t = 2/(τ(t + 2)) for t = 0, 1, …"""
    return Power(scale=2 / tau, exponent=1.0, shift=2.0)


@dataclass(frozen=True)
class MTPO(Rule):
    """π_{t+1}(·|x) ∝ π_t^{1−ητ} ref^{ητ} exp(η Q_τ^{π_t,π_t}(x, ·)).

    Q_τ charges τ KL(π_t ‖ ref) for the turns that follow, so that what is reached is the equilibrium of the regularized
    game over whole episodes. In a game of one turn it is INPO with the same steps.

    Parameters
    ----------
    eta : Coef
        Step size η > 0 with ητ <= 1; the theorem's is ``MTPO.scheduled(tau)``.
    tau : float
        KL weight τ > 0 (the paper's α).

    Notes
    -----
    Source: Shani et al., Multi-turn reinforcement learning from preference human feedback (2405.14655).
    """

    eta: Coef
    tau: float
    name = "mtpo"
    aim = Aim.REGULARIZED_NASH

    def __post_init__(self) -> None:
        check_regularized_step(self.eta, self.tau)

    @classmethod
    def scheduled(cls, tau: float) -> Self:
        """With the theorem's step η_t = 2/(τ(t + 2))."""
        return cls(eta=schedule(tau), tau=tau)

    def form(self) -> Form:
        payoff = Payoff(REGULARIZED_WIN, "current", (("tau", self.tau),))
        return Form(
            {"current": "start", "reference": "reference"},
            [Stage("current", pull(self.eta, self.tau), {payoff: self.eta})],
        )
