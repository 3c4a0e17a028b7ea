"""Sampled feedback by counts: K draws per context as how often each response came up, for small games and large K.

Shapes: R replicates; a policy is (R, ..., n), and so are the shares of the responses among K draws.

What a stage learns from K draws with soft labels, all pairs, is a function of the counts: so the law is that of
`nashpo.tabular.sampled.Sampled` with its defaults, at a cost of n² and not K² per context and replicate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nashpo.core.games import excess_payoff
from nashpo.core.rules.form import Form, Payoff
from nashpo.core.selfplay import Term
from nashpo.tabular import simulation
from nashpo.tabular.exact import probabilities
from nashpo.tabular.game import Game
from nashpo.tabular.projection import checked_projection
from nashpo.tabular.sampled import Sampled
from nashpo.tabular.sampled_backend import KeyedPolicy, SampledBackend
from nashpo.tabular.samples import Sample
from nashpo.tabular.simulation import Recording


@dataclass(frozen=True)
class Counted:
    """Feedback from K responses per context and iteration, for ``play(..., feedback=Counted(...))``.

    Parameters
    ----------
    K : int
        Responses per set, at least 2; the comparison of a response with itself is counted, as in `Sampled`.
    seed : int
        Fixes all draws, at least 0.
    replicates : int
        Independent runs, the first axis of the results.

    Raises
    ------
    ValueError
        On values out of range.
    """

    K: int
    seed: int = 0
    replicates: int = 1

    def __post_init__(self) -> None:
        self.sampled()

    def sampled(self) -> Sampled:
        """The same feedback, draw by draw."""
        return Sampled(K=self.K, seed=self.seed, replicates=self.replicates)

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
        """Run the form from samples; gaps are measured on the game itself. See `nashpo.tabular.play.Feedback`."""
        fitted = checked_projection(projection, form, game.n, game.batch_shape)
        backend = CountedBackend(self.sampled(), game.as_numpy(), origins, fitted)
        return simulation.simulate(form, backend, backend.game, steps, record_at, keep)


@dataclass(frozen=True)
class CountedAnswer:
    """One payoff on the responses of one policy.

    Attributes
    ----------
    shares : (..., n)
        Of the K draws from the policy that the responses come from.
    gains : (..., n)
        P̂(y) − ½ of every response against the draws of the payoff's policy.
    own : bool
        Whether these are the very same draws.
    """

    shares: np.ndarray
    gains: np.ndarray
    own: bool


class CountedBackend(SampledBackend):
    """`SampledBackend` with counts in the place of draws."""

    def ask(self, key: str, payoff: Payoff, policy: Any, on: Any) -> Any:
        """The payoff on the draws of ``on``, against themselves or against draws of ``policy``."""
        shares = self.shares(on, on.key)
        own = isinstance(policy, KeyedPolicy) and policy.key == on.key
        against = shares if own else self.shares(policy, key)
        return CountedAnswer(shares, excess_payoff(self.game.A, against), own)

    def shares(self, policy: Any, key: str) -> np.ndarray:
        """Shares (replicates, ..., n) of the responses among the K draws that belong to a policy and a key."""
        chances = np.asarray(probabilities(policy))
        chances = chances / np.sum(chances, axis=-1, keepdims=True)
        return self._rng(key, "counts").multinomial(self.feedback.K, chances) / self.feedback.K

    def sample(self, terms: Sequence[Term]) -> Sample:
        """The stage's payoffs added up on their common responses, every pair weighted by both shares."""
        answers: list[CountedAnswer] = [term.answer for term in terms]
        gains = sum(term.weight * answer.gains for term, answer in zip(terms, answers, strict=True))
        labels = sum(
            term.weight * (self.game.A if answer.own else answer.gains[..., :, None] - answer.gains[..., None, :])
            for term, answer in zip(terms, answers, strict=True)
        )
        step = terms[0].weight if len(terms) == 1 and answers[0].own else None
        return Sample.enumerated(answers[0].shares, np.asarray(gains), np.asarray(labels), step)
