"""Fitted steps without sampling: every response counts with its probability, and the payoffs are exact.

What is left of a fit is then the policy class (a misspecified `LogLinear`) or the loss (SPPO's constant ½).

Shapes: policies (..., n), as in `nashpo.tabular.exact`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nashpo.core.games import excess_payoff
from nashpo.core.policies import mirror_step
from nashpo.core.rules.form import Form, Payoff
from nashpo.core.selfplay import Term
from nashpo.tabular import simulation
from nashpo.tabular.exact import Average, ExactBackend, probabilities
from nashpo.tabular.game import Game
from nashpo.tabular.projection import Projection, checked_projection
from nashpo.tabular.samples import Sample
from nashpo.tabular.simulation import Recording
from nashpo.tabular.win_rates import to_numpy


@dataclass(frozen=True)
class Enumerated:
    """Feedback on all responses, for ``play(..., feedback=Enumerated(), projection=...)``; there is no replicate axis.

    The loss of a stage is its population loss, with responses, or independent pairs of them, from the stage's policy.
    """

    def simulate(
        self,
        form: Form,
        game: Game,
        origins: Mapping[str, Any],
        steps: int,
        record_at: Sequence[int],
        keep: Sequence[str],
        projection: Any,
    ) -> Recording:
        """Run the form with fitted stages. See `nashpo.tabular.play.Feedback`."""
        fitted = checked_projection(projection, form, game.n, game.batch_shape)
        game = game.as_numpy()
        lead = (*game.batch_shape, game.n)
        starts = {origin: np.broadcast_to(to_numpy(x), lead) for origin, x in origins.items()}
        return simulation.simulate(form, EnumeratedBackend(game, starts, fitted), game, steps, record_at, keep)


@dataclass(frozen=True)
class ExactAnswer:
    """Payoffs of all responses (..., n), and what a pair's own label says of their difference (..., n, n)."""

    values: np.ndarray
    labels: np.ndarray
    own: bool


class EnumeratedBackend(ExactBackend):
    """The exact backend with the mirror step replaced by a projection.

    Parameters
    ----------
    game : Game
        On numpy arrays.
    origins : mapping origin -> log-policy (..., n)
    projection : Projection
    """

    def __init__(self, game: Game, origins: Mapping[str, Any], projection: Projection) -> None:
        super().__init__(game, origins)
        self.projection = projection

    def ask(self, key: str, payoff: Payoff, policy: Any, on: Any) -> ExactAnswer:
        """The win rates of all responses, and of all pairs where the opponent is the policy that is sampled."""
        values = excess_payoff(self.game.A, probabilities(policy))
        own = not isinstance(policy, Average) and np.array_equal(policy, on)
        return ExactAnswer(values, self.game.A if own else values[..., :, None] - values[..., None, :], own)

    def project(self, key: str, base: list[tuple[float, Any]], terms: list[Term], on: Any) -> np.ndarray:
        """The policy of the projection's class that minimizes the population loss."""
        if not terms:
            return mirror_step(base, [])
        log_base = np.sum([a * policy for a, policy in base], axis=0)
        sample = Sample.enumerated(
            on=probabilities(on),
            values=np.sum([term.weight * term.answer.values for term in terms], axis=0),
            labels=np.sum([term.weight * term.answer.labels for term in terms], axis=0),
            step=terms[0].weight if len(terms) == 1 and terms[0].answer.own else None,
        )
        return self.projection.fit(log_base, sample)
