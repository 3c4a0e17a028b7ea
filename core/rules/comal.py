"""COMAL and MPO: regularized self-play whose reference moves to the current policy every few iterations."""

from dataclasses import dataclass
from numbers import Integral
from typing import Self

from nashpo.core.rules.form import Copy, Form, Stage, win
from nashpo.core.rules.rule import Aim, Rule, check_regularized_step, pull
from nashpo.core.schedules import Coef


@dataclass(frozen=True)
class COMAL(Rule):
    """π_{t+1} ∝ π_t^{1−ητ} ref^{ητ} exp(η P(y ≻ π_t)), and ref := π_{t+1} every ``inner`` iterations.

    INPO with a moving reference: an inexact proximal point method.

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
        if not isinstance(self.inner, Integral) or self.inner < 1:
            raise ValueError(
                f"inner = {self.inner!r} must be a whole number >= 1: iterations between moves of the reference"
            )

    @classmethod
    def from_paper(cls, eta: Coef, tau: float, inner: int) -> Self:
        """From COMAL's η and τ, which are ours, and the number of inner iterations.

        Its runs are summarized as η⁻¹ = .002 → .1 with an inner rate (1 − ητ/2)^k, so that η multiplies payoffs there;
        that is read in a summary and not in the paper.
        """
        return cls(eta=eta, tau=tau, inner=inner)

    def form(self) -> Form:
        return Form(
            {"current": "start", "reference": "reference"},
            [Stage("current", pull(self.eta, self.tau), {win("current"): self.eta})],
            [Copy("current", "reference", "new", self.inner)],
        )
