r"""Values by dynamic programming, all states of a depth at once: Q against an opponent, hard and soft maxima.

Shapes: ``ends: (C, K)`` is what each outcome earns; a Q-function is (N, W), 0 where there is no such action; values of
contexts are (C,). An opponent enters through the law of its outcomes alone, (C, K): its policy is marginalized.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nashpo.tabular.trees.game import TreeGame
from nashpo.tabular.trees.layers import Floats
from nashpo.tabular.trees.mixture import Mixture, outcome_law
from nashpo.tabular.trees.policies import log_policy


def expected_ends(game: TreeGame, policy: Floats, ends: Floats) -> Floats:
    """E[ends of the outcome | x_h, y_h] when the policy goes on from there, (N, W)."""
    q = np.zeros(game.shape)
    value = game.at_ends(ends)
    for rows, layer in zip(reversed(game.rows), reversed(game.layers)):
        found = np.where(layer.exists, layer.expect(value), 0.0)
        q[rows, : layer.width] = found
        value = (policy[rows, : layer.width] * found).sum(axis=1)
    return q


def q_values(game: TreeGame, policy: Any, opponent: Any) -> Floats:
    r"""Win rate of every action, if the policy goes on after it, against an opponent.

    .. math:: Q_h^{\pi,\pi'}(x_h, y_h) = E_\pi[P(x_{H+1} \succ x'_{H+1}) \mid x_h, y_h]

    with :math:`x'_{H+1}` the end of the opponent's own episode *from the first turn*: the opponent's policy is
    marginalized, it does not start at :math:`x_h`.

    Parameters
    ----------
    game : TreeGame
    policy : (N, W)
    opponent : (N, W) or Mixture

    Returns
    -------
    (N, W)
        In [0, 1]; 0 where there is no such action.

    Raises
    ------
    ValueError
        On a policy that is none.
    """
    pi = np.exp(log_policy(game, policy))
    law = opponent.law if isinstance(opponent, Mixture) else outcome_law(game, opponent, "opponent")
    return expected_ends(game, pi, game.payoff(law)) + 0.5 * game.mask


def regularized_q(
    game: TreeGame, log_pi: Floats, log_reference: Floats, tau: float, ends: Floats
) -> tuple[Floats, Floats]:
    """Q of the KL-regularized game, which charges the divergence of the turns *after* this one, and its value.

    Q(x, y) = E V(x'), V(x) = Σ_y π(y|x) Q(x, y) − τ KL(π(·|x) ‖ ref(·|x)), V = ends at the end.

    Returns
    -------
    (N, W) and (C,)
        Q, and V at the first state of each context.
    """
    q = np.zeros(game.shape)
    value = game.at_ends(ends)
    for rows, layer in zip(reversed(game.rows), reversed(game.layers)):
        found = np.where(layer.exists, layer.expect(value), 0.0)
        q[rows, : layer.width] = found
        log_here = log_pi[rows, : layer.width]
        played = log_here > -np.inf
        ratio = np.where(played, log_here - np.where(played, log_reference[rows, : layer.width], 0.0), 0.0)
        value = (np.exp(log_here) * (found - tau * ratio)).sum(axis=1)
    return q, value


def best_value(game: TreeGame, ends: Floats) -> Floats:
    """max_u E_u[ends], (C,)."""
    value = game.at_ends(ends)
    for layer in reversed(game.layers):
        value = np.where(layer.exists, layer.expect(value), -np.inf).max(axis=1)
    return value


def best_policy(game: TreeGame, ends: Floats) -> Floats:
    """A deterministic policy that attains `best_value` from every state, (N, W)."""
    policy = np.zeros(game.shape)
    value = game.at_ends(ends)
    for rows, layer in zip(reversed(game.rows), reversed(game.layers)):
        found = np.where(layer.exists, layer.expect(value), -np.inf)
        choice = found.argmax(axis=1)
        policy[np.arange(rows.start, rows.stop), choice] = 1.0
        value = found[np.arange(len(choice)), choice]
    return policy


def soft_policy(game: TreeGame, log_base: Floats, ends: Floats) -> tuple[Floats, Floats]:
    r"""The policy that maximizes E_π[ends] − Σ_i a_i KL_p(π ‖ π_i), and the maximum.

    .. math:: \pi(y|x) \propto e^{b(x, y) + E U(x')}, \quad U(x) = \log \sum_y e^{b(x, y) + E U(x')}

    with b = ``log_base`` = Σ_i a_i log π_i, Σ_i a_i = 1, and U = ends at the end. In a deterministic tree this is the
    mirror step on whole trajectories, π ∝ Π_i π_i^{a_i} e^{ends}.

    Returns
    -------
    (N, W) and (C,)
        The log-policy, and U at the first state of each context.
    """
    log_new = np.full(game.shape, -np.inf)
    value = game.at_ends(ends)
    for rows, layer in zip(reversed(game.rows), reversed(game.layers)):
        logits = log_base[rows, : layer.width] + layer.expect(value)
        top = logits.max(axis=1)
        logits -= top[:, None]
        more = np.log(np.exp(logits).sum(axis=1))
        log_new[rows, : layer.width] = logits - more[:, None]
        value = top + more
    return log_new, value
