"""What fitted steps cost: the duality gap of the average bounded in terms of what the fits left over.

Shapes: trajectories (T + 1, ..., n) of log-policies π_1 … π_{T+1}, ``A`` (..., n, n) that broadcasts against one
policy; results (...). All responses must be enumerated: on a sample neither the range nor the part at the best response
is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nashpo.core.games import best_response, duality_gap, excess_payoff
from nashpo.core.theorems import approximate_mwu_gap, approximate_onpo_gap
from nashpo.tabular.game import Game
from nashpo.tabular.policy_input import log_policy
from nashpo.tabular.run import Run
from nashpo.tabular.win_rates import to_numpy


@dataclass(frozen=True)
class ResidualCertificate:
    """A bound that holds for the very run it was computed from.

    Attributes
    ----------
    gap : (...)
        Duality gap of the mean of π_1 … π_T.
    bound : (...)
        Never below ``gap`` but for rounding; inf where a response was given up or never had probability.
    residual_range : (T, ...)
        max − min over responses of the step's residual in nats: 0 for an exact step.
    """

    gap: np.ndarray
    bound: np.ndarray
    residual_range: np.ndarray


def _range(values: np.ndarray, played: np.ndarray) -> np.ndarray:
    return np.max(np.where(played, values, -np.inf), axis=-1) - np.min(np.where(played, values, np.inf), axis=-1)


def _change(new: np.ndarray, old: np.ndarray, played: np.ndarray) -> np.ndarray:
    """log new − log old where the start plays, 0 elsewhere; −inf where a response was given up."""
    with np.errstate(invalid="ignore"):
        return np.where(played, np.where(new == -np.inf, -np.inf, new - old), 0.0)


def _checked(eta: float, log_policies: np.ndarray, what: str) -> np.ndarray:
    if not (isinstance(eta, (int, float, np.number)) and 0 < eta < np.inf):
        raise ValueError(f"eta = {eta!r} must be a constant step size > 0")
    log_policies = np.asarray(log_policies, dtype=float)
    if log_policies.ndim < 2 or len(log_policies) < 2:
        raise ValueError(f"{what} has shape {log_policies.shape}, expected (T + 1, ..., n) with T >= 1 updates")
    if np.isnan(log_policies).any():
        raise ValueError(f"{what} holds NaN: give log-policies")
    return log_policies


def _at(values: np.ndarray, response: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, response[..., None], axis=-1)[..., 0]


def residual_certificate(
    eta: float, log_policies: np.ndarray, A: np.ndarray, mask: np.ndarray | None = None
) -> ResidualCertificate:
    """Bound the gap of any sequence of policies as that of SPPO (MWU) with step η whose steps were only fitted.

    With ε_t = log π_{t+1} − log π_t − η g_t the residual of step t, g_t = Aπ_t, u the best response to the average::

        gap <= (2/T) [KL(u ‖ π_1)/η + (η/8) Σ_t range(g_t + ε_t/η)² + (1/η) Σ_t ⟨π_t − u, ε_t⟩]

    Parameters
    ----------
    eta : float
        The step size that the fits aimed for; the bound holds for every η > 0.
    log_policies : (T + 1, ..., n)
        π_1 … π_{T+1}.
    A : (..., n, n)
        P − ½ of the game.
    mask : (..., n), optional
        Which responses exist.

    Returns
    -------
    ResidualCertificate

    Raises
    ------
    ValueError
        On a step size that is not positive, fewer than two policies, or NaN.

    Notes
    -----
    Derived: exact multiplicative weights on the payoffs g_t + ε_t/η.
    """
    log_policies = _checked(eta, log_policies, "log_policies")
    T, policies = len(log_policies) - 1, np.exp(log_policies[:-1])
    played = log_policies[0] > -np.inf
    average = np.mean(policies, axis=0)
    u = best_response(A, average, mask)
    change = _change(log_policies[1:], log_policies[:-1], played)
    given_up = np.any(change == -np.inf, axis=(0, -1))
    change = np.where(change == -np.inf, 0.0, change)
    residual = np.where(played, change - eta * excess_payoff(A, policies), 0.0)
    squares = np.sum(_range(change / eta, played) ** 2, axis=0)
    alignment = np.sum(np.sum(policies * residual, axis=-1), axis=0) - _at(np.sum(residual, axis=0), u)
    divergence = -_at(log_policies[0], u)
    bound = approximate_mwu_gap(divergence, eta, T, squares, alignment)
    return ResidualCertificate(
        gap=duality_gap(A, average, mask),
        bound=np.where(given_up | np.isinf(divergence), np.inf, bound),
        residual_range=_range(residual, played),
    )


def optimistic_residual_certificate(
    eta: float,
    log_policies: np.ndarray,
    log_auxiliary: np.ndarray,
    A: np.ndarray,
    mask: np.ndarray | None = None,
) -> ResidualCertificate:
    """Bound the gap of two sequences of policies as that of ONPO with step η whose steps were only fitted.

    With r_t = Aπ_t, e'_t = (log π'_{t+1} − log π'_t)/η − r_t the residual of the auxiliary step in win rates, the
    forecast m_{t+1} = (log π_{t+1} − log π'_{t+1})/η, m_1 = 0, and u the best response to the average::

        gap <= (2/T) [KL(u ‖ π_1)/η + (η/8) Σ_t range(r_t + e'_t − m_t)²
                      − (1/η) Σ_t KL(π_t ‖ π'_t) + Σ_t ⟨π_t − u, e'_t⟩]

    Parameters
    ----------
    eta : float
    log_policies, log_auxiliary : (T + 1, ..., n)
        π_1 … π_{T+1} and π'_1 … π'_{T+1}, with π'_1 = π_1.
    A, mask
        As in `residual_certificate`.

    Returns
    -------
    ResidualCertificate
        ``residual_range`` is that of η e'_t, in nats.

    Raises
    ------
    ValueError
        As in `residual_certificate`; and if the two sequences do not begin alike.

    Notes
    -----
    Derived: optimistic mirror descent on the payoffs r_t + e'_t with those forecasts.
    """
    log_policies = _checked(eta, log_policies, "log_policies")
    log_auxiliary = _checked(eta, log_auxiliary, "log_auxiliary")
    if log_policies.shape != log_auxiliary.shape or not np.array_equal(log_policies[0], log_auxiliary[0]):
        raise ValueError("log_auxiliary must have the shape of log_policies and begin with the same policy")
    T, policies = len(log_policies) - 1, np.exp(log_policies[:-1])
    played = log_policies[0] > -np.inf
    average = np.mean(policies, axis=0)
    u = best_response(A, average, mask)
    gain = _change(log_auxiliary[1:], log_auxiliary[:-1], played) / eta
    forecast = _change(log_policies[:-1], log_auxiliary[:-1], played) / eta
    given_up = np.any((gain == -np.inf) | (forecast == -np.inf), axis=(0, -1))
    gain, forecast = (np.where(x == -np.inf, 0.0, x) for x in (gain, forecast))
    residual = np.where(played, gain - excess_payoff(A, policies), 0.0)
    squares = np.sum(_range(gain - forecast, played) ** 2, axis=0)
    stability = np.sum(np.sum(policies * eta * forecast, axis=-1), axis=0)
    alignment = np.sum(np.sum(policies * residual, axis=-1), axis=0) - _at(np.sum(residual, axis=0), u)
    divergence = -_at(log_policies[0], u)
    bound = approximate_onpo_gap(divergence, eta, T, squares, stability, alignment)
    return ResidualCertificate(
        gap=duality_gap(A, average, mask),
        bound=np.where(given_up | np.isinf(divergence), np.inf, bound),
        residual_range=eta * _range(residual, played),
    )


def certify(run: Run, eta: float, game: Game, start: Any = None) -> ResidualCertificate:
    """`residual_certificate` of a run of SPPO, sampled or exact, that recorded all its policies.

    Parameters
    ----------
    run : Run
        Of ``play(..., record="all", keep=("current",))``.
    eta : float
        The rule's constant step size.
    game : Game
    start : (..., n), optional
        The run's start.

    Returns
    -------
    ResidualCertificate
        Shapes as in ``run.gap_average[0]``.

    Raises
    ------
    ValueError
        If the run did not keep every policy, or as in `residual_certificate`.
    """
    if "current" not in run.kept or len(run.recorded) != run.steps:
        raise ValueError("the run did not keep all its policies: play it with record='all', keep=('current',)")
    game = game.as_numpy()
    later = run.kept["current"]
    first = np.broadcast_to(to_numpy(log_policy(game, start, "start")), later.shape[1:])
    return residual_certificate(eta, np.concatenate([first[None], later]), game.A, game.mask)
