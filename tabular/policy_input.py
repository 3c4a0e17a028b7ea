"""Policies that a user gives (start, reference, behavior): checked, normalized and taken to log space.

Shapes: probabilities (..., n) that broadcast against the game's contexts; the result is a log-policy of the full shape.
"""

from typing import Any

from array_api_compat import device, is_array_api_obj

from nashpo.core.policies import Array, log_from_probabilities
from nashpo.tabular.game import Game
from nashpo.tabular.win_rates import to_numpy

_SUM_TOLERANCE = 1e-6


def uniform(game: Game) -> Array:
    """The uniform policy over the responses that exist, (..., n)."""
    xp = game.xp
    exists = xp.ones(game.P.shape[:-1], dtype=xp.bool, device=device(game.P)) if game.mask is None else game.mask
    weight = xp.astype(exists, xp.float64)
    return weight / xp.sum(weight, axis=-1, keepdims=True)


def log_policy(game: Game, policy: Any, what: str, full_support: bool = False) -> Array:
    """log π of the game's full shape, from probabilities.

    Parameters
    ----------
    game : Game
    policy : array (..., n) or None
        None is uniform. Rows may be off by 1e-6 from adding up to one and are normalized.
    what : str
        Name in messages: ``start``, ``reference``, ``behavior``.
    full_support : bool
        Refuse a probability of zero at a response that exists.

    Raises
    ------
    ValueError
        Wrong length, NaN, negative, a sum that is not 1, or zeros where full support is needed.
    """
    xp = game.xp
    if policy is None:
        return log_from_probabilities(uniform(game))
    given = to_numpy(policy) if is_array_api_obj(policy) else policy
    values = xp.asarray(given, dtype=xp.float64, device=device(game.P))
    shape = tuple(game.P.shape[:-1])
    if values.ndim == 0 or values.shape[-1] != shape[-1]:
        raise ValueError(
            f"{what} has shape {tuple(values.shape)}, but the game has {shape[-1]} responses: give one each"
        )
    try:
        values = xp.broadcast_to(values, shape)
    except (ValueError, RuntimeError):
        raise ValueError(f"{what} has shape {tuple(values.shape)}, which does not fit the game's {shape}") from None
    if not bool(xp.all(xp.isfinite(values))):
        raise ValueError(f"{what} has an entry that is NaN or infinite: probabilities are needed")
    if float(xp.min(values)) < 0:
        raise ValueError(f"{what} has the negative probability {float(xp.min(values)):g}")
    total = xp.sum(values, axis=-1, keepdims=True)
    off = float(xp.max(xp.abs(total - 1)))
    if off > _SUM_TOLERANCE:
        raise ValueError(f"{what} does not add up to 1 (off by {off:g}): divide it by its sum")
    if game.mask is not None:
        lost = float(xp.max(xp.where(game.mask, xp.zeros_like(values), values)))
        if lost > 0:
            raise ValueError(f"{what} gives probability {lost:g} to a response that does not exist in its context")
    if full_support:
        needed = values if game.mask is None else xp.where(game.mask, values, xp.ones_like(values))
        if float(xp.min(needed)) <= 0:
            where = int(xp.argmin(xp.reshape(needed, (-1,)))) % shape[-1]
            raise ValueError(
                f"{what} gives probability 0 to response {game.label(where)}: it needs full support, since its"
                " logarithm is a base of the rule; mix in a little of the uniform policy"
            )
    return log_from_probabilities(values / total)
