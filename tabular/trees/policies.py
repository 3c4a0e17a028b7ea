"""Policies of a multi-turn game: checked and taken to log space, their occupancy, and distances between them.

Shapes: (N, W) as in `nashpo.tabular.trees.game`; a log-policy has −inf where there is no such action.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nashpo.core import policies
from nashpo.core.policies import log_from_probabilities
from nashpo.tabular.trees.game import TreeGame
from nashpo.tabular.trees.layers import Floats

_SUM_TOLERANCE = 1e-6


def uniform(game: TreeGame) -> Floats:
    """The policy that is uniform over the actions of every state, (N, W)."""
    return game.mask / game.mask.sum(axis=1, keepdims=True)


def log_policy(game: TreeGame, policy: Any, what: str = "policy", full_support: bool = False) -> Floats:
    """log π, (N, W), from probabilities; None is uniform.

    Rows may be off by 1e-6 from adding up to one and are normalized.

    Raises
    ------
    ValueError
        Wrong shape, NaN, negative, a sum that is not 1, weight on an action that does not exist, or zeros where full
        support is needed.
    """
    if policy is None:
        return np.asarray(log_from_probabilities(uniform(game)))
    values = np.asarray(policy, dtype=np.float64)
    if values.shape != game.shape:
        raise ValueError(f"{what} has shape {values.shape}, but the game's policies are {game.shape}: a row per state")
    if not np.isfinite(values).all():
        raise ValueError(f"{what} has an entry that is NaN or infinite: probabilities are needed")
    if values.min() < 0:
        raise ValueError(f"{what} has the negative probability {values.min():g}")
    if values[~game.mask].any():
        row = int(np.flatnonzero((values * ~game.mask).any(axis=1))[0])
        raise ValueError(f"{what} gives probability to an action that state {row} does not have")
    total = values.sum(axis=1, keepdims=True)
    off = np.abs(total - 1)
    if off.max() > _SUM_TOLERANCE:
        raise ValueError(f"{what} does not add up to 1 in state {int(off.argmax())} (off by {off.max():g})")
    if full_support and (values[game.mask] <= 0).any():
        row = int(np.flatnonzero(((values <= 0) & game.mask).any(axis=1))[0])
        raise ValueError(f"{what} gives probability 0 to an action of state {row}: it needs full support")
    return np.asarray(log_from_probabilities(values / total))


def occupancy(game: TreeGame, policy: Floats) -> tuple[Floats, Floats]:
    """Probability of every state and action, and of every final state, of an episode of a policy.

    Parameters
    ----------
    game : TreeGame
    policy : (N, W)
        Probabilities, as `log_policy` checks them; not checked again.

    Returns
    -------
    (N, W) and (L,)
        Within each context they add up to 1 at every depth.
    """
    flows = np.zeros(game.shape)
    arrived = np.ones(game.contexts)
    for rows, layer in zip(game.rows, game.layers):
        flow = arrived[:, None] * policy[rows, : layer.width]
        flows[rows, : layer.width] = flow
        arrived = layer.push(flow)
    return flows, arrived


def over_contexts(game: TreeGame, values: Floats) -> Floats:
    """Sum over the decision states of each context, (C,) of (N,)."""
    return np.asarray(np.bincount(game.context, values, game.contexts), dtype=np.float64)


def kl(game: TreeGame, log_pi: Floats, log_other: Floats) -> Floats:
    """KL_p(π ‖ ρ) = E_π Σ_h KL(π(·|x_h) ‖ ρ(·|x_h)) in nats, (C,): that of the two laws of trajectories.

    States that π does not reach do not count; +inf where π goes where ρ does not.
    """
    flow, _ = occupancy(game, np.exp(log_pi))
    reach = flow.sum(axis=1)
    each = np.asarray(policies.kl(log_pi, log_other))
    return over_contexts(game, np.where(reach > 0, reach * np.where(reach > 0, each, 0.0), 0.0))


def largest_divergence(game: TreeGame, log_pi: Floats) -> Floats:
    """D = max_u KL_p(u ‖ π) in nats, (C,): at most H log W from the uniform policy.

    Convex in u at every state, so that a deterministic u attains it: the longest path of −log π.
    """
    worst = np.zeros(len(game.final_context))
    for rows, layer in zip(reversed(game.rows), reversed(game.layers)):
        cost = -log_pi[rows, : layer.width]
        worst = np.where(layer.exists, cost + layer.expect(worst), -np.inf).max(axis=1)
    return worst + 0.0
