"""The exact backend: a rule's form evaluated on all responses, on arrays of any library.

Shapes: ``game.A`` (..., n, n); a policy's handle is its log-policy (..., n), the average's is an `Average`. This is the
reference for the compiled engine, and the path for torch and CUDA arrays.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from array_api_compat import array_namespace

from nashpo.core.games import excess_payoff
from nashpo.core.policies import Array, mirror_step
from nashpo.core.rules.form import Form, Payoff
from nashpo.core.selfplay import State, Term
from nashpo.tabular.bradley_terry import bradley_terry_projection
from nashpo.tabular.game import Game


@dataclass(frozen=True)
class Average:
    """A mixture of ``count`` policies, as the sum of their probabilities (..., n)."""

    total: Array
    count: int

    @property
    def policy(self) -> Array:
        """The mean of the probabilities."""
        return self.total / self.count


def probabilities(policy: Array | Average) -> Array:
    """π of a handle, (..., n)."""
    if isinstance(policy, Average):
        return policy.policy
    return array_namespace(policy).exp(policy)


def win_feedback(game: Game, payoff: Payoff, policy: Array) -> Array:
    """P(y ≻ π) − ½; the constant drops out of every step."""
    return excess_payoff(game.A, policy)


def reward_feedback(game: Game, payoff: Payoff, policy: Array) -> Array:
    """The declared reward, or the Bradley–Terry projection under the policy."""
    return game.reward if game.reward is not None else bradley_terry_projection(game.P, policy)


FEEDBACK: dict[str, Callable[[Game, Payoff, Array], Array]] = {"win": win_feedback, "reward": reward_feedback}
"""Payoff kinds that a game can answer."""


class LogPolicyBackend:
    """Projection by the mirror step itself, on log-policies; feedback from wherever the payoffs are known.

    Parameters
    ----------
    origins : mapping origin -> log-policy (..., n)
        For ``start``, ``reference`` and ``behavior``.
    feedback : mapping kind -> callable (payoff, policy) -> (..., n)
        What every response earns, given the payoff and the probabilities of the policy that it is about.
    source : str
        What answers, in messages: "a game", "preference data".
    """

    def __init__(
        self, origins: Mapping[str, Array], feedback: Mapping[str, Callable[[Payoff, Array], Array]], source: str
    ) -> None:
        self.origins = origins
        self.feedback = feedback
        self.source = source

    def check(self, form: Form) -> None:
        """Refuse payoffs that the source does not know."""
        for payoff in form.payoffs:
            if payoff.kind not in self.feedback:
                known = ", ".join(self.feedback)
                raise ValueError(
                    f"{self.source} has no payoff of kind '{payoff.kind}', which this rule needs (only {known})"
                )

    def start(self, origin: str) -> Array:
        """The log-policy of an origin."""
        return self.origins[origin]

    def ask(self, key: str, payoff: Payoff, policy: Array | Average, on: Array) -> Array:
        """The payoff of every response."""
        return self.feedback[payoff.kind](payoff, probabilities(policy))

    def project(self, key: str, base: list[tuple[float, Array]], terms: list[Term], on: Array | None) -> Array:
        """The mirror step."""
        return mirror_step(base, [(term.weight, term.answer) for term in terms])

    def mix(self, key: str, average: Average | None, policy: Array, count: int) -> Average:
        """One more policy in the sum of probabilities."""
        added = probabilities(policy)
        return Average(added if average is None else average.total + added, count + 1)

    def forget(self, state: State) -> None:
        """Nothing outlives its state."""


class ExactBackend(LogPolicyBackend):
    """A game's own payoffs, without sampling or fitting.

    Parameters
    ----------
    game : Game
    origins : mapping origin -> log-policy (..., n)
    """

    def __init__(self, game: Game, origins: Mapping[str, Array]) -> None:
        super().__init__(origins, {kind: partial(answer, game) for kind, answer in FEEDBACK.items()}, "a game")
        self.game = game
