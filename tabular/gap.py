"""Measures of a policy on a game: duality gap, best response, distance to an equilibrium.

Shapes: a policy is (..., n) probabilities, a measure (...) per context (`Game.mean` averages over contexts).
"""

from nashpo.core import games
from nashpo.core.policies import Array, kl, log_from_probabilities
from nashpo.tabular.game import Game
from nashpo.tabular.policy_input import log_policy


def duality_gap(game: Game, policy: Array, tau: float | None = None, reference: Array | None = None) -> Array:
    """How much a policy can be exploited: max_u J(u, π) − min_v J(π, v), per context.

    Parameters
    ----------
    game : Game
    policy : (..., n)
        Probabilities; checked and normalized as `play` does its start.
    tau : float, optional
        Without it the game is un-regularized and the gap is 2 max_y (P(y ≻ π) − ½) in [0, 1]. With it, the gap of
        J_τ(π, ρ) = P(π ≻ ρ) − τ KL(π ‖ ref) + τ KL(ρ ‖ ref).
    reference : (..., n), optional
        Full support; uniform by default.

    Returns
    -------
    (...)

    Raises
    ------
    ValueError
        On a policy that is none, tau < 0, or a reference with zeros.
    """
    log_pi = log_policy(game, policy, "policy")
    if tau is None or tau == 0:
        return games.duality_gap(game.A, game.xp.exp(log_pi), game.mask)
    if not tau > 0:
        raise ValueError(f"tau = {tau:g} must be >= 0")
    log_reference = log_policy(game, reference, "reference", full_support=True)
    return games.regularized_duality_gap(game.A, log_pi, log_reference, tau, game.mask)


def best_response(game: Game, policy: Array) -> Array:
    """Index of a response with the largest win rate against the policy, (...)."""
    return games.best_response(game.A, game.xp.exp(log_policy(game, policy, "policy")), game.mask)


def kl_to(game: Game, equilibrium: Array, policy: Array) -> Array:
    """KL(π* ‖ π) in nats, (...): the Lyapunov function of every mirror method; +inf where π misses π*'s support."""
    return kl(log_from_probabilities(equilibrium), log_policy(game, policy, "policy"))
