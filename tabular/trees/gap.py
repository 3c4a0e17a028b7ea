"""Measures of a policy or a mixture: win rate, best response, duality gap.

Shapes: a policy is (N, W) or a `Mixture`; results are (C,) per context (`TreeGame.mean` averages them).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nashpo.tabular.trees.game import TreeGame
from nashpo.tabular.trees.layers import Floats
from nashpo.tabular.trees.mixture import Mixture, outcome_law
from nashpo.tabular.trees.policies import kl, log_policy
from nashpo.tabular.trees.values import best_policy, best_value, soft_policy


def law_of(game: TreeGame, player: Any, what: str = "policy") -> Floats:
    """The law of the outcome of a policy or of a mixture over trajectories, (C, K)."""
    return player.law if isinstance(player, Mixture) else outcome_law(game, player, what)


def win_rate(game: TreeGame, player: Any, opponent: Any) -> Floats:
    """J(π, π') = P(x_{H+1} ≻ x'_{H+1}), in [0, 1], per context."""
    mine, theirs = law_of(game, player), law_of(game, opponent, "opponent")
    return 0.5 + (mine * game.payoff(theirs)).sum(axis=1)


def best_response(game: TreeGame, opponent: Any) -> Floats:
    """A deterministic policy (N, W) with the largest win rate against a policy or a mixture."""
    return best_policy(game, game.payoff(law_of(game, opponent, "opponent")))


def duality_gap(game: TreeGame, player: Any, tau: float | None = None, reference: Any = None) -> Floats:
    """How much a player can be exploited: max_u J(u, π) − min_v J(π, v) = 2 (max_u J(u, π) − ½), per context.

    Parameters
    ----------
    game : TreeGame
    player : (N, W) or Mixture
        A mixture is over trajectories: one policy is drawn per episode.
    tau : float, optional
        KL weight of the regularized game J_τ(π, ρ) = J(π, ρ) − τ KL_p(π ‖ ref) + τ KL_p(ρ ‖ ref); single policies only.
    reference : (N, W), optional
        Full support; uniform by default.

    Raises
    ------
    ValueError
        On a policy that is none, tau < 0, or a mixture in a regularized game.
    """
    if tau is None or tau == 0:
        return 2 * best_value(game, game.payoff(law_of(game, player)))
    if not tau > 0:
        raise ValueError(f"tau = {tau:g} must be >= 0")
    if isinstance(player, Mixture):
        raise ValueError("a mixture has no KL divergence of its own here: give mixture.policy, which plays the same")
    log_reference = log_policy(game, reference, "reference", full_support=True)
    _, soft = soft_policy(game, log_reference, game.payoff(law_of(game, player)) / tau)
    return np.asarray(2 * tau * (soft + kl(game, log_policy(game, player), log_reference)))
