"""The exact backends of multi-turn games: a rule's form evaluated at every state, or on whole trajectories.

Shapes: as in `nashpo.tabular.trees.game`. A policy's handle is a `TreePolicy`, the average's a `TreeAverage`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from nashpo.core.policies import mirror_step
from nashpo.core.rules.form import Form, Payoff
from nashpo.core.selfplay import State, Term
from nashpo.tabular.trees.game import TreeGame
from nashpo.tabular.trees.layers import Floats
from nashpo.tabular.trees.mixture import Mixture
from nashpo.tabular.trees.mtpo import REGULARIZED_WIN
from nashpo.tabular.trees.policies import occupancy
from nashpo.tabular.trees.values import expected_ends, regularized_q, soft_policy


@dataclass(frozen=True)
class TreePolicy:
    """A policy by its logarithm (N, W); probabilities and occupancy are computed once."""

    game: TreeGame
    log: Floats

    @cached_property
    def probabilities(self) -> Floats:
        """π, (N, W)."""
        return np.exp(self.log)

    @cached_property
    def _occupancy(self) -> tuple[Floats, Floats]:
        return occupancy(self.game, self.probabilities)

    @property
    def occupancy(self) -> Floats:
        """Probability of each state and action in an episode, (N, W)."""
        return self._occupancy[0]

    @cached_property
    def law(self) -> Floats:
        """The law of the outcome, (C, K)."""
        return self.game.law(self._occupancy[1])


@dataclass(frozen=True)
class TreeAverage:
    """A mixture over trajectories of ``count`` policies, as the sums of their occupancies and laws of outcomes."""

    total: Floats
    total_law: Floats
    count: int

    @property
    def law(self) -> Floats:
        """The law of the outcome, (C, K)."""
        return self.total_law / self.count

    def mixture(self, game: TreeGame) -> Mixture:
        """The mixture by its mean occupancy."""
        return Mixture(game, self.total / self.count)


Opponent = TreePolicy | TreeAverage


class TreeBackend:
    """What both backends share: origins, mixtures over trajectories.

    Parameters
    ----------
    game : TreeGame
    origins : mapping origin -> log-policy (N, W)
        For ``start``, ``reference`` and ``behavior``.
    """

    level: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]

    def __init__(self, game: TreeGame, origins: Mapping[str, Floats]) -> None:
        self.game = game
        self.origins = {name: TreePolicy(game, log) for name, log in origins.items()}

    def check(self, form: Form) -> None:
        """Refuse payoffs that are not known here."""
        for payoff in form.payoffs:
            if payoff.kind not in self.kinds:
                raise ValueError(
                    f"a multi-turn game has no payoff of kind '{payoff.kind}' at the level of a {self.level}, which"
                    f" this rule needs (only {', '.join(self.kinds)})"
                )

    def start(self, origin: str) -> TreePolicy:
        """The policy of an origin."""
        return self.origins[origin]

    def mix(self, key: str, average: TreeAverage | None, policy: TreePolicy, count: int) -> TreeAverage:
        """One more policy in the mixture: occupancies add up, probabilities at a state do not."""
        if average is None:
            return TreeAverage(policy.occupancy, policy.law, 1)
        return TreeAverage(average.total + policy.occupancy, average.total_law + policy.law, count + 1)

    def forget(self, state: State) -> None:
        """Nothing outlives its state."""


class StateBackend(TreeBackend):
    """Every state steps by itself; what its actions earn is Q instead of the win rate.

    ``ask`` answers Q_h^{on,π}(x, y) − ½: the responses are those of ``on``, which also goes on after them, and the
    payoff is about π, an opponent that plays from the first turn.
    """

    level = "state"
    kinds = ("win", REGULARIZED_WIN)

    def ask(self, key: str, payoff: Payoff, policy: Opponent, on: TreePolicy) -> Floats:
        """Q of every state and action, (N, W)."""
        return FEEDBACK[payoff.kind](self, payoff, policy, on)

    def win(self, payoff: Payoff, policy: Opponent, on: TreePolicy) -> Floats:
        """Q − ½; the constant drops out of every step."""
        return expected_ends(self.game, on.probabilities, self.game.payoff(policy.law))

    def regularized_win(self, payoff: Payoff, policy: Opponent, on: TreePolicy) -> Floats:
        """Q_τ, up to a constant."""
        tau = float(dict(payoff.params)["tau"])
        reference = self.origins["reference"].log
        return regularized_q(self.game, on.log, reference, tau, self.game.payoff(policy.law))[0]

    def project(
        self, key: str, base: list[tuple[float, TreePolicy]], terms: list[Term], on: TreePolicy | None
    ) -> TreePolicy:
        """The mirror step at every state."""
        logs = [(a, policy.log) for a, policy in base]
        return TreePolicy(self.game, mirror_step(logs, [(term.weight, term.answer) for term in terms]))


FEEDBACK: dict[str, Callable[[StateBackend, Payoff, Opponent, TreePolicy], Floats]] = {
    "win": StateBackend.win,
    REGULARIZED_WIN: StateBackend.regularized_win,
}
"""Payoff kinds that a state's actions can earn."""


class TrajectoryBackend(TreeBackend):
    """The mirror step on whole trajectories, by one backward pass.

    It solves argmax_π Σ_j b_j E_π g_j − Σ_i a_i KL_p(π ‖ π_i) over policies, KL_p between laws of trajectories. In a
    deterministic tree this is the step of the leaf game. With stochastic turns, which nobody controls, the theorems
    about average and last iterates hold as well: their proofs use KL_p(u ‖ π_t) − KL_p(u ‖ π_{t+1}) = b E_u g − U,
    which telescopes along an episode.
    """

    level = "trajectory"
    kinds = ("win",)

    def ask(self, key: str, payoff: Payoff, policy: Opponent, on: TreePolicy) -> Floats:
        """P(outcome ≻ π) − ½ of every outcome, (C, K)."""
        return self.game.payoff(policy.law)

    def project(
        self, key: str, base: list[tuple[float, TreePolicy]], terms: list[Term], on: TreePolicy | None
    ) -> TreePolicy:
        """The mirror step on trajectories."""
        logits = sum(a * policy.log for a, policy in base)
        ends = np.zeros((self.game.contexts, self.game.table.n))
        for term in terms:
            ends = ends + term.weight * term.answer
        return TreePolicy(self.game, soft_policy(self.game, np.asarray(logits), ends)[0])


LEVELS: dict[str, type[StateBackend] | type[TrajectoryBackend]] = {
    "state": StateBackend,
    "trajectory": TrajectoryBackend,
}
"""Where a step is taken."""
