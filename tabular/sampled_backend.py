"""A game asked through samples: K responses, their comparisons by a judge, and stages fitted to the answers.

Shapes: a policy is (replicates, ..., n); a response set is (replicates, ..., B, K) with B = ``batch`` sets per context.
Win rates and payoffs are centred, P − ½.

Every draw is a function of the seed and of a version's key: responses belong to the policy they are drawn from, and so
do the labels of comparisons among them, so that all payoffs of a stage, and all stages on the same policy, see the same
responses. The opponents of another policy belong to the question. The first r replicates of a run are the run with
``replicates = r``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nashpo.core.games import excess_payoff
from nashpo.core.policies import mirror_step
from nashpo.core.rules.form import Form, Payoff
from nashpo.core.selfplay import State, Term
from nashpo.tabular.exact import Average, probabilities
from nashpo.tabular.game import Game
from nashpo.tabular.judging import ESTIMATES, LABELS, PAIRS, Chosen, HardLabels, SoftLabels
from nashpo.tabular.noise import Faithful
from nashpo.tabular.projection import Projection
from nashpo.tabular.samples import Sample, pick
from nashpo.tabular.win_rates import to_numpy

if TYPE_CHECKING:
    from nashpo.tabular.sampled import Sampled


class KeyedPolicy(np.ndarray):
    """A log-policy (..., n) that knows the key of its version; the results of arithmetic are plain arrays."""

    key: str

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        plain = np.asarray(array)
        return plain[()] if return_scalar else plain


def keyed(log_policy: np.ndarray, key: str) -> KeyedPolicy:
    """A log-policy under a key."""
    policy = np.ascontiguousarray(log_policy).view(KeyedPolicy)
    policy.key = key
    return policy


@dataclass(frozen=True)
class Answer:
    """One payoff on one response set.

    Attributes
    ----------
    responses : (..., B, K) int
    values : (..., B, K)
        Estimated payoff P̂(y) − ½, as `Sampled.estimate` has it.
    scores : (..., B, K)
        The same, self-inclusive, for differences of two responses.
    excess : (..., B, K, K), optional
        Label − ½ of each comparison among the responses, skew; None where the opponent is another policy.
    """

    responses: np.ndarray
    values: np.ndarray
    scores: np.ndarray
    excess: np.ndarray | None

    def differences(self, chosen: Chosen) -> np.ndarray:
        """The estimated payoff difference of each pair, (..., B, M)."""
        return pick(self.scores, chosen.left) - pick(self.scores, chosen.right)

    def verdicts(self, chosen: Chosen, labels: SoftLabels | HardLabels) -> np.ndarray:
        """What each pair's own label says of its payoff difference, (..., B, M); without one, the estimates."""
        if self.excess is None:
            return self.differences(chosen)
        K = self.values.shape[-1]
        table = self.excess.reshape(*self.values.shape[:-1], K * K)
        own = pick(table, chosen.left * K + chosen.right)
        return labels.declared(own) if chosen.declared else own


class SampledBackend:
    """A game asked through samples, and stages fitted to the answers; handles are `KeyedPolicy` and `Average`.

    Parameters
    ----------
    feedback : Sampled
    game : Game
        On numpy arrays.
    origins : mapping origin -> log-policy (..., n)
    projection : Projection
    """

    def __init__(self, feedback: Sampled, game: Game, origins: Mapping[str, Any], projection: Projection) -> None:
        self.feedback = feedback
        self.game = game
        self.projection = projection
        lead = (feedback.replicates, *game.batch_shape, game.n)
        self.origins = {origin: keyed(np.broadcast_to(to_numpy(x), lead), origin) for origin, x in origins.items()}
        self.labels = LABELS[feedback.labels]
        self.noise = feedback.noise if feedback.noise is not None else Faithful()
        # Index of the context, to read P without copying it once per replicate.
        self.context = tuple(k[None, ..., None, None] for k in np.indices(game.batch_shape, sparse=True))

    def check(self, form: Form) -> None:
        """Refuse payoffs that are not judged, and rewards of other responses than the drawn ones."""
        for stage in form.stages:
            for payoff, _ in stage.payoffs:
                if payoff.kind not in ("win", "reward"):
                    raise ValueError(f"samples of a game have no payoff of kind '{payoff.kind}' (only win, reward)")
                if payoff.kind == "reward" and payoff.policy != stage.on:
                    raise ValueError(
                        f"stage '{stage.writes}' learns the reward under '{payoff.policy}' from responses of"
                        f" '{stage.on}': a reward is fitted on the pairs it is judged on"
                    )

    def start(self, origin: str) -> KeyedPolicy:
        """The log-policy of an origin, once per replicate."""
        return self.origins[origin]

    def ask(self, key: str, payoff: Payoff, policy: Any, on: Any) -> Answer:
        """The payoff on K responses of ``on``, from comparisons with each other or with K responses of ``policy``."""
        responses = self.responses(on, on.key)
        # A policy's own responses are its opponents, and are compared once.
        own = isinstance(policy, KeyedPolicy) and policy.key == on.key
        return self._among(responses, policy, on.key) if own else self._against(responses, policy, key)

    def responses(self, policy: Any, key: str) -> np.ndarray:
        """The response sets (replicates, ..., B, K) that belong to a policy and a key."""
        cumulated = np.cumsum(probabilities(policy), axis=-1)
        count = self.feedback.batch * self.feedback.K
        uniform = self._rng(key, "responses").random((*cumulated.shape[:-1], count)) * cumulated[..., -1:]
        # The first response whose cumulated probability exceeds u; rounding may leave u at the very top.
        found = np.sum(cumulated[..., None, :] <= uniform[..., :, None], axis=-1)
        top = np.argmax(cumulated >= cumulated[..., -1:], axis=-1)[..., None]
        return np.minimum(found, top).reshape(*cumulated.shape[:-1], self.feedback.batch, self.feedback.K)

    def _rng(self, *parts: str) -> np.random.Generator:
        text = "\0".join((str(int(self.feedback.seed)), *parts))
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest)))

    def _judge(self, first: np.ndarray, second: np.ndarray, margin: Callable[[], np.ndarray], key: str) -> np.ndarray:
        """Label − ½ of each comparison (replicates, ..., B, M)."""
        win_rates = self.game.P[(*self.context, first, second)]
        labels = self.labels.draw(win_rates, self._rng(key, "labels"))
        rng = self._rng(key, "noise")
        return self.labels.draw(self.noise.corrupt(labels, margin, rng), rng) - 0.5

    def _gains(self, policy: Any, responses: np.ndarray) -> np.ndarray:
        """True P(y ≻ π) − ½ of the responses, which an adversary knows."""
        gains = excess_payoff(self.game.A, probabilities(policy))
        return pick(gains, responses.reshape(*gains.shape[:-1], -1)).reshape(responses.shape)

    def _among(self, responses: np.ndarray, policy: Any, key: str) -> Answer:
        K = self.feedback.K
        i, j = np.triu_indices(K, 1)

        def margin() -> np.ndarray:
            gains = self._gains(policy, responses)
            return gains[..., i] - gains[..., j]

        upper = np.zeros((*responses.shape, K))
        upper[..., i, j] = self._judge(responses[..., i], responses[..., j], margin, key)
        excess = upper - np.swapaxes(upper, -1, -2)
        wins = np.sum(excess, axis=-1)
        return Answer(responses, wins / ESTIMATES[self.feedback.estimate](K), wins / K, excess)

    def _against(self, responses: np.ndarray, policy: Any, key: str) -> Answer:
        K = self.feedback.K
        opponents = self.responses(policy, key)

        def margin() -> np.ndarray:
            gains = self._gains(policy, responses)
            return np.repeat(gains - np.mean(gains, axis=-1, keepdims=True), K, axis=-1)

        each, other = np.repeat(responses, K, axis=-1), np.tile(opponents, K)
        excess = self._judge(each, other, margin, key)
        values = np.mean(excess.reshape(*responses.shape, K), axis=-1)
        return Answer(responses, values, values, None)

    def project(self, key: str, base: list[tuple[float, Any]], terms: list[Term], on: Any) -> KeyedPolicy:
        """The policy of the projection's class that minimizes its loss on the stage's responses."""
        if not terms:
            return keyed(mirror_step([(a, np.asarray(policy)) for a, policy in base], []), key)
        log_base = np.sum([a * np.asarray(policy) for a, policy in base], axis=0)
        return keyed(self.projection.fit(log_base, self.sample(terms)), key)

    def sample(self, terms: Sequence[Term]) -> Sample:
        """The stage's payoffs added up on their common responses, and the pairs chosen by them."""
        answers: list[Answer] = [term.answer for term in terms]
        gains = np.sum([term.weight * term.answer.values for term in terms], axis=0)
        chosen = PAIRS[self.feedback.pairs](gains)
        differences = np.sum([term.weight * term.answer.differences(chosen) for term in terms], axis=0)
        labels = np.sum([term.weight * term.answer.verdicts(chosen, self.labels) for term in terms], axis=0)
        lead, sets, K = gains.shape[:-2], self.feedback.batch, self.feedback.K
        offset = K * np.arange(sets)[:, None]

        def flat(values: np.ndarray) -> np.ndarray:
            return values.reshape(*lead, -1)

        return Sample(
            responses=flat(answers[0].responses),
            values=flat(gains),
            points=flat(chosen.points) / sets,
            left=flat(chosen.left + offset),
            right=flat(chosen.right + offset),
            differences=flat(differences),
            labels=flat(labels),
            pair_weights=flat(chosen.weight) / sets,
            step=terms[0].weight if len(terms) == 1 and answers[0].excess is not None else None,
        )

    def mix(self, key: str, average: Average | None, policy: Any, count: int) -> Average:
        """One more policy in the sum of probabilities."""
        added = probabilities(policy)
        return Average(added if average is None else average.total + added, count + 1)

    def forget(self, state: State) -> None:
        """Nothing outlives its state."""
