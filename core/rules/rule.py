"""What a rule is: hyperparameters, a `Form`, the equilibrium it aims for, and the theorems it declares.

A new rule is one frozen dataclass with one method; see `Rule`.
"""

from abc import ABC, abstractmethod
from enum import Enum
from typing import Any, ClassVar, Self

from nashpo.core.rules.form import Form
from nashpo.core.schedules import Coef, check_coefficient, scaled
from nashpo.core.theorems import Setting, Theorem


class Aim(Enum):
    """The policy that is a fixed point of the rule."""

    NASH = "a Nash equilibrium of the game"
    REGULARIZED_NASH = "the equilibrium of the KL-regularized game"
    NEAR_REGULARIZED_NASH = "a point at a distance linear in eta from the equilibrium of the KL-regularized game"
    NOTHING = "no equilibrium"


class Rule(ABC):
    """Base of every update rule; subclasses are frozen dataclasses.

    Examples
    --------
    A rule of one's own::

        @dataclass(frozen=True)
        class Damped(Rule):
            eta: float = 0.1
            name = "damped"
            aim = Aim.NASH

            def form(self) -> Form:
                stage = Stage("current", {"current": 1.0}, {win("current"): self.eta / 2})
                return Form({"current": "start"}, [stage])
    """

    name: ClassVar[str] = ""
    aim: ClassVar[Aim] = Aim.NOTHING
    theorems: ClassVar[tuple[Theorem, ...]] = ()
    citations: ClassVar[tuple[str, ...]] = ()
    needs_data: ClassVar[bool] = False

    @abstractmethod
    def form(self) -> Form:
        """The rule in normal form."""

    def tuned(self, setting: Setting) -> Self:
        """The rule with the step size that minimizes its declared bound.

        Raises
        ------
        ValueError
            If the rule declares no bound with a step size to choose.
        """
        raise ValueError(f"{type(self).__name__} declares no bound that depends on a step size: choose eta yourself")

    def bounds(self, setting: Setting) -> list[tuple[Theorem, float]]:
        """Every declared theorem whose assumptions hold, with its bound."""
        return [(theorem, theorem.bound(self, setting)) for theorem in self.theorems if theorem.applies(self, setting)]


def check_step(eta: Coef) -> None:
    """Refuse a step size that is not positive (ValueError)."""
    check_coefficient("eta", eta, above=0)


def check_weight(tau: Any) -> None:
    """Refuse a KL weight that is not a positive number (ValueError)."""
    if callable(tau):
        raise ValueError(
            "tau must be a number: a KL weight that changes with t changes the game; use a schedule for eta"
        )
    check_coefficient("tau", tau, above=0)


def check_regularized_step(eta: Coef, tau: float) -> None:
    """Refuse eta <= 0, tau <= 0 and eta · tau > 1: the current policy would weigh less than nothing (ValueError)."""
    check_step(eta)
    check_weight(tau)
    largest = f"use eta <= 1/tau = {1 / tau:g}"
    check_coefficient("eta * tau", scaled(eta, tau), at_most=1 + 1e-12, mend=largest)


def pull(eta: Coef, tau: float) -> dict[str, Coef]:
    """The base {current: 1 − ητ, reference: ητ} of the KL-regularized rules."""
    return {"current": scaled(eta, -tau, 1.0), "reference": scaled(eta, tau)}
