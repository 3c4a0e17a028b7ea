"""What makes a table of numbers a game: reading and checking win rates, masks, weights, names and rewards.

Shapes: ``P: (..., n, n)``, ``mask, reward: (..., n)``, ``weights: (...)``. Every error is one line that names the
entry, its value and the mend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj, is_numpy_array, is_torch_array, to_device

Array = Any
"""An array of any library of the array API standard."""

ROUNDING = 2.0**-53
"""A pair whose computed sum is this close to 1 is kept as given, since at most its last bit is off."""


def to_numpy(x: Array) -> np.ndarray[Any, Any]:
    """A numpy copy of an array of any library and device (numpy arrays: themselves)."""
    if is_numpy_array(x):
        return x
    if is_torch_array(x):
        return np.array(x.detach().cpu().numpy())
    try:
        return np.array(x)
    except (TypeError, RuntimeError):  # memory of an accelerator
        return np.array(to_device(x, "cpu"))


def win_rates(P: Array) -> tuple[Array, np.ndarray[Any, Any] | None]:
    """P as a (..., n, n) array, and as exact fractions where it was given in them."""
    if hasattr(P, "batch_shape"):
        raise TypeError("P is already a Game; pass its win rates, game.P")
    rational = None
    if not is_array_api_obj(P) or P.dtype == object:
        try:
            P = np.asarray(P)
        except ValueError:
            raise ValueError("P is ragged: its rows have different lengths") from None
        if P.dtype == object:
            try:
                rational = np.vectorize(Fraction, otypes=[object])(P) if P.size else None
                P = P.astype(np.float64)
            except (TypeError, ValueError, OverflowError):
                raise TypeError("P must hold real numbers or fractions, with all rows of one length") from None
    shape = tuple(P.shape)
    if 0 in shape or len(shape) == 0:
        raise ValueError(f"P is empty: shape {shape}; it needs at least one response")
    if len(shape) < 2 or shape[-1] != shape[-2]:
        raise ValueError(f"P is not square: shape {shape}, expected (..., n, n)")
    return P, rational


def as_float64(xp: Any, value: Array, what: str, where: Any) -> Array:
    """An array of any library, or nested lists, as float64 in the library xp on the device ``where``."""
    if is_array_api_obj(value):
        if is_numpy_array(value) and value.dtype.kind not in "biuf":
            raise TypeError(f"{what} must hold real numbers, not {value.dtype}")
        if array_namespace(value) is not xp:
            value = xp.asarray(to_numpy(value), device=where)
        if not xp.isdtype(value.dtype, ("bool", "integral", "real floating")):
            raise TypeError(f"{what} must hold real numbers, not {value.dtype}")
        return xp.astype(value, xp.float64)
    try:
        return xp.asarray(value, dtype=xp.float64, device=where)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{what} must be an array of real numbers") from None


def _place(xp: Any, score: Array) -> tuple[int, ...]:
    """Index of the largest entry."""
    return tuple(int(k) for k in np.unravel_index(int(xp.argmax(xp.reshape(score, (-1,)))), tuple(score.shape)))


def _cell(at: tuple[int, ...], names: tuple[str, ...] | None) -> str:
    """An entry of P in words: ``P[3, 0, 1]``, or ``P('a' over 'b') in context 3``."""
    if names is None:
        return f"P[{', '.join(map(str, at))}]"
    *context, i, j = at
    place = f" in context {', '.join(map(str, context))}" if context else ""
    return f"P({names[i]!r} over {names[j]!r}){place}"


def check_range(xp: Any, P: Array, tolerance: float, names: tuple[str, ...] | None) -> None:
    """Refuse NaN, infinities and entries outside [0, 1] by more than the tolerance."""
    finite = xp.isfinite(P)
    if not bool(xp.all(finite)):
        at = _place(xp, xp.astype(~finite, xp.int64))
        raise ValueError(f"{_cell(at, names)} is {float(P[at]):g}; win rates must be numbers in [0, 1]")
    outside = xp.maximum(P - 1.0, -P)
    at = _place(xp, outside)
    if float(outside[at]) > tolerance:
        hint = "; divide percentages by 100" if 1.5 < float(xp.max(P)) <= 100 and float(xp.min(P)) >= 0 else ""
        raise ValueError(f"{_cell(at, names)} = {float(P[at]):.10g} lies outside [0, 1]{hint}")


def check_antisymmetry(xp: Any, P: Array, tolerance: float, names: tuple[str, ...] | None) -> None:
    """Refuse a pair whose win rates do not sum to 1, or a diagonal entry that is not 1/2; names the worst."""
    error = xp.abs(P + xp.matrix_transpose(P) - 1.0)
    at = _place(xp, error)
    if float(error[at]) <= tolerance:
        return
    *context, i, j = at
    mend = "Game.symmetrized(P), or --symmetrize, takes (P + 1 - P^T)/2"
    if i == j:
        raise ValueError(f"diagonal: {_cell(at, names)} = {float(P[at]):.10g} must be 1/2; {mend}")
    back = (*context, j, i)
    total = float(P[at]) + float(P[back])
    raise ValueError(
        f"P + P^T is not 1: {_cell(at, names)} = {float(P[at]):.10g} and "
        f"{_cell(back, names)} = {float(P[back]):.10g} sum to {total:.10g}; {mend}"
    )


def exactly_antisymmetric(P: np.ndarray[Any, Any] | None, missing: Array | None) -> np.ndarray[Any, Any] | None:
    """(P + 1 - P^T)/2 in rational arithmetic, 1/2 at missing responses."""
    if P is None:
        return None
    if missing is not None:
        P = P.copy()
        P[to_numpy(missing)] = Fraction(1, 2)
    return (P - np.swapaxes(P, -1, -2) + 1) / Fraction(2)


def checked_names(names: Sequence[str] | None, n: int) -> tuple[str, ...] | None:
    """n distinct labels."""
    if names is None:
        return None
    labels = tuple(str(name) for name in names)
    if len(labels) != n:
        raise ValueError(f"{len(labels)} names for {n} responses")
    seen: set[str] = set()
    for name in labels:
        if name in seen:
            raise ValueError(f"the name {name!r} occurs twice; names must be distinct")
        seen.add(name)
    return labels


def _broadcast(xp: Any, value: Array, shape: tuple[int, ...], what: str) -> Array:
    try:
        return xp.broadcast_to(value, shape)
    except (ValueError, RuntimeError):
        raise ValueError(f"{what} have shape {tuple(value.shape)}, which does not fit {shape}") from None


def checked_mask(xp: Any, mask: Array | None, P: Array) -> Array | None:
    """Mask of the full shape (..., n), or None where every response exists."""
    if mask is None:
        return None
    mask = xp.asarray(to_numpy(mask) if is_array_api_obj(mask) else mask, device=device(P))
    if not xp.isdtype(mask.dtype, "bool"):
        raise TypeError(f"mask must hold booleans (True where a response exists), not {mask.dtype}")
    mask = _broadcast(xp, mask, tuple(P.shape[:-1]), "mask entries")
    some = xp.any(mask, axis=-1)
    if not bool(xp.all(some)):
        at = _place(xp, xp.astype(~some, xp.int64)) if some.ndim else ()
        raise ValueError(f"context {', '.join(map(str, at)) or 0} has no response: the mask is False everywhere")
    return None if bool(xp.all(mask)) else xp.asarray(mask, copy=True)


def checked_weights(xp: Any, weights: Array | None, batch_shape: tuple[int, ...], where: Any) -> Array:
    """Weights of shape batch_shape with sum 1."""
    if weights is None:
        return xp.full(batch_shape, 1.0 / math.prod(batch_shape), dtype=xp.float64, device=where)
    given = as_float64(xp, weights, "weights", where)
    values = _broadcast(xp, given, tuple(batch_shape), "weights")
    bad = ~(xp.isfinite(values) & (values >= 0))
    if bool(xp.any(bad)):
        at = _place(xp, xp.astype(bad, xp.int64))
        raise ValueError(f"weight{list(at)} is {float(values[at]):g}; weights must be finite and >= 0")
    largest = float(xp.max(values))
    if largest == 0.0:
        raise ValueError("weights sum to zero; at least one must be positive")
    values = values / largest  # the sum of large weights could overflow
    return xp.asarray(values / xp.sum(values), device=where)


def checked_reward(
    xp: Any, reward: Array, P: Array, mask: Array | None, tolerance: float, names: tuple[str, ...] | None
) -> Array:
    """Finite reward (..., n) that gives P, 0 at missing responses."""
    given = as_float64(xp, reward, "reward", device(P))
    r = xp.asarray(_broadcast(xp, given, tuple(P.shape[:-1]), "rewards"), copy=True)
    if mask is not None:
        r = xp.where(mask, r, 0.0)
    if not bool(xp.all(xp.isfinite(r))):
        at = _place(xp, xp.astype(~xp.isfinite(r), xp.int64))
        raise ValueError(f"reward{list(at)} is {float(r[at]):g}; rewards must be finite")
    modelled = bradley_terry_win_rates(xp, r)
    if mask is not None:
        modelled = xp.where(mask[..., :, None] & mask[..., None, :], modelled, 0.5)
    error = xp.triu(xp.abs(modelled - P))  # a wrong pair is wrong in both orders; report it in one
    at = _place(xp, error)
    if float(error[at]) > tolerance:
        raise ValueError(
            f"the reward does not give P: {_cell(at, names)} = {float(P[at]):.10g}, "
            f"but sigmoid(r_i - r_j) = {float(modelled[at]):.10g}"
        )
    return r


def bradley_terry_win_rates(xp: Any, reward: Array) -> Array:
    r"""Win rates :math:`\sigma(r_i - r_j)` (..., n, n) of a reward (..., n), the small ones to full relative precision.

    The logistic is evaluated as :math:`e^{-|d|}/(1 + e^{-|d|})` or its complement, so no exponential overflows.
    """
    difference = reward[..., :, None] - reward[..., None, :]
    small = xp.exp(-xp.abs(difference))
    small = small / (1.0 + small)
    return xp.where(difference < 0, small, 1.0 - small)
