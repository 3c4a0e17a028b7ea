"""SPAC, self-play with an adversarial critic: offline alignment that is pessimistic where the data are silent."""

import math
from dataclasses import dataclass
from typing import Self

from nashpo.core import theorems as bound
from nashpo.core.rules.form import Form, Stage, critic
from nashpo.core.rules.rule import Rule, check_step
from nashpo.core.schedules import Coef, check_coefficient
from nashpo.core.theorems import Iterate, Measure, Status, Theorem


@dataclass(frozen=True)
class SPAC(Rule):
    """π_{t+1}(y) ∝ π_t(y) exp(η f_t(y)), where the critic f_t is the worst one for π_t that the data allow.

    f_t = argmin_{f ∈ F} { E_{π_t} f − E_ref f + λ L_D(f) }, with L_D the Bradley–Terry log-loss of the preference data
    and F a convex class, [0, R] per response by default. The output is the average iterate.

    Parameters
    ----------
    eta : Coef
        Step size η > 0 of the actor, in 1/reward units; √(8D/T)/R in theory.
    lam : Coef
        Weight λ >= 0 of the data; in theory it grows like √(C·N) with N pairs of coverage C (`for_data`). Small λ means
        more pessimism.
    R : float
        Largest reward, > 0; critics lie in [0, R].

    Notes
    -----
    Source: Ji et al., SPAC (2406.04274); the form of the critic's objective is this project's reading of summaries, and
    the inequalities that are checked are derived here.
    """

    eta: Coef
    lam: Coef
    R: float
    name = "spac"
    citations = ("spac",)
    needs_data = True
    theorems = (
        Theorem(
            "spac.actor",
            "mean over t of <u − π_t, f_t> <= D/(ηT) + ηR²/8",
            Iterate.AVERAGE,
            Measure.ACTOR_REGRET,
            "derived (Hoeffding), S3",
            Status.DERIVED,
            None,
            lambda rule, s: bound.constant(rule.eta),
            lambda rule, s: bound.spac_actor(s.D, rule.eta, rule.R, s.T),
        ),
        Theorem(
            "spac.certificate",
            "J(u) − J(average) <= D/(ηT) + ηR²/8 + (E_u − E_ref) r* + λ L(r*) − min_f [(E_u − E_ref) f + λ L(f)]",
            Iterate.AVERAGE,
            Measure.SUBOPTIMALITY,
            "derived, S4",
            Status.DERIVED,
            None,
            lambda rule, s: bound.constant(rule.eta) and s.pessimism_cost is not None,
            lambda rule, s: (
                bound.spac_actor(s.D, rule.eta, rule.R, s.T) + (0.0 if s.pessimism_cost is None else s.pessimism_cost)
            ),
        ),
        Theorem(
            "spac.rate",
            "suboptimality = Õ(N^-1/2 + T^-1/2) under single-policy concentrability, at λ ∝ √(C·N)",
            Iterate.AVERAGE,
            Measure.SUBOPTIMALITY,
            "SPAC (2406.04274), main theorem as its abstract and summaries state it (no constants)",
            Status.PUBLISHED,
            -0.5,
            lambda rule, s: False,
            lambda rule, s: math.nan,
        ),
    )

    def __post_init__(self) -> None:
        check_step(self.eta)
        check_coefficient("lam", self.lam, at_least=0, mend="0 ignores the data")
        check_coefficient("R", self.R, above=0, mend="it bounds the reward")

    @classmethod
    def for_data(cls, N: float, T: int, D: float, R: float, coverage: float = 4.0) -> Self:
        """λ = √(C·N) and η = √(8D/T)/R, the scaling of the theory.

        Parameters
        ----------
        N : float
            Number of preference pairs.
        T : int
            Number of actor steps.
        D : float
            max_y log 1/ref(y) in nats.
        R : float
            Largest reward.
        coverage : float
            C; 4 gives λ = 2√N.
        """
        return cls(eta=bound.mwu_tuned_eta(D, T) / R, lam=math.sqrt(coverage * N), R=R)

    def form(self) -> Form:
        payoffs = {critic("current", lam=self.lam, R=self.R): self.eta}
        return Form({"current": "start"}, [Stage("current", {"current": 1.0}, payoffs)])
