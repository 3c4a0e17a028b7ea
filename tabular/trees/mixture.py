r"""Mixtures of policies: one policy is drawn per episode and kept to its end.

Shapes: as in `nashpo.tabular.trees.game`; M policies are (M, N, W).

The mean of the *probabilities at every state* is another policy, with other outcomes: a state that only some of the
policies reach must weigh them by how often they do. What is averaged is the occupancy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nashpo.tabular.trees.game import TreeGame
from nashpo.tabular.trees.layers import Floats
from nashpo.tabular.trees.policies import log_policy, occupancy, uniform


def outcome_law(game: TreeGame, policy: Any, what: str = "policy") -> Floats:
    """The law of the outcome of an episode, (C, K)."""
    return game.law(occupancy(game, np.exp(log_policy(game, policy, what)))[1])


@dataclass(frozen=True)
class Mixture:
    """A mixture over trajectories, by its occupancy.

    Attributes
    ----------
    game : TreeGame
    occupancy : (N, W)
        Probability of each state and action in an episode: the mean of those of the policies.
    """

    game: TreeGame
    occupancy: Floats

    @classmethod
    def of(cls, game: TreeGame, policies: Iterable[Any], weights: Any = None) -> Mixture:
        """The mixture of policies (M, N, W) with weights (M,), uniform by default.

        Raises
        ------
        ValueError
            On no policies, one that is none, or weights that are negative or add up to 0.
        """
        flows = [occupancy(game, np.exp(log_policy(game, policy)))[0] for policy in policies]
        if not flows:
            raise ValueError("a mixture needs at least one policy")
        share = np.ones(len(flows)) if weights is None else np.asarray(weights, dtype=np.float64)
        if share.shape != (len(flows),) or not np.isfinite(share).all() or share.min() < 0 or share.sum() == 0:
            raise ValueError(f"weights = {weights} must be {len(flows)} numbers >= 0 that are not all 0")
        return cls(game, np.tensordot(share / share.sum(), np.stack(flows), axes=1))

    @property
    def law(self) -> Floats:
        """The law of the outcome, (C, K): the mean of those of the policies."""
        layer = self.game.layers[-1]
        return self.game.law(layer.push(self.occupancy[self.game.rows[-1], : layer.width]))

    @property
    def policy(self) -> Floats:
        """The single policy with this occupancy, (N, W), hence with the same win rates; uniform where never reached."""
        reach = self.occupancy.sum(axis=1, keepdims=True)
        return np.where(reach > 0, self.occupancy / np.where(reach > 0, reach, 1.0), uniform(self.game))
