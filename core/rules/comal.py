"""COMAL and MPO: regularized self-play whose reference moves to the current policy every few iterations."""

from dataclasses import dataclass
from typing import Self

from nashpo.core.rules.form import Copy, Form, Stage, win
from nashpo.core.rules.rule import Aim, Rule, check_regularized_step, pull
from nashpo.core.schedules import Coef


@dataclass(frozen=True)
class COMAL(Rule):
    """INPO with ``reference := current`` every ``inner`` iterations, an inexact proximal point method.

    With exact proximal steps the last iterate approaches a Nash equilibrium of the original game:
    KL(π* ‖ π_{k+1}) <= KL(π* ‖ π_k) − KL(π_{k+1} ‖ π_k). With too few inner iterations it can diverge.

    Parameters
    ----------
    eta : Coef
        Step size η > 0 with ητ <= 1.
    tau : float
        KL weight τ > 0 of the inner, regularized game.
    inner : int
        Iterations between two moves of the reference.

    Notes
    -----
    Source: Liu et al., COMAL (2410.23223); Wang et al., Magnetic Preference Optimization (2410.16714) is the same map.
    """

    eta: Coef
    tau: float
    inner: int
    name = "comal"
    aim = Aim.NASH
    citations = ("comal", "mpo")

    def __post_init__(self) -> None:
        check_regularized_step(self.eta, self.tau)
        if self.inner < 1 or int(self.inner) != self.inner:
            raise ValueError(
                f"inner = {self.inner} must be a whole number >= 1: iterations between moves of the reference"
            )

    @classmethod
    def from_paper(cls, eta: float, tau: float, inner: int) -> Self:
        """From COMAL's η, which is the inverse step, its τ, and the number of inner iterations."""
        return cls(eta=1 / eta, tau=tau, inner=inner)

    def form(self) -> Form:
        return Form(
            {"current": "start", "reference": "reference"},
            [Stage("current", pull(self.eta, self.tau), {win("current"): self.eta})],
            [Copy("current", "reference", "new", self.inner)],
        )
