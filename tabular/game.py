"""The game that every tabular command plays: a table of win rates, or one table per context.

Shapes: ``P: (..., n, n)``, ``policy, mask, reward: (..., n)``, ``weights: (...)``. The leading axes are contexts
(prompts) and are called ``batch_shape``. Arrays may come from any library of the array API standard and stay in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array

from nashpo.tabular.win_rates import (
    ROUNDING,
    Array,
    as_float64,
    check_antisymmetry,
    check_range,
    checked_mask,
    checked_names,
    checked_reward,
    checked_weights,
    exactly_antisymmetric,
    to_numpy,
    win_rates,
)


class Game:
    r"""A symmetric two-player constant-sum game given by win rates, with optional contexts.

    :math:`P_{ij} = \mathbb{P}(i \succ j)` with :math:`P + P^\top = 1` and diagonal 1/2. The payoff of policy
    :math:`\pi` against :math:`\pi'` is :math:`J(\pi, \pi') = \pi^\top P \pi'`, and :math:`A = P - 1/2` is
    skew-symmetric. With leading axes, every context is a game of its own, and scores are averaged over contexts with
    ``weights``.

    Parameters
    ----------
    P : array (..., n, n)
        Win rates in [0, 1]. Lists become numpy arrays; every real dtype becomes float64. An *integer* or boolean matrix
        cannot hold 1/2, so its diagonal is set. `fractions.Fraction` entries are kept exactly, in `rational`.
    weights : array, optional
        Weights of the contexts, broadcastable to ``(...)``; normalized to sum 1. Default: uniform.
    mask : bool array, optional
        ``True`` where a response exists, broadcastable to ``(..., n)``. Entries of P at a missing response are ignored
        (they may be NaN) and stored as 1/2, so that it never gains nor loses; policies give it probability 0.
    names : sequence of str, optional
        n distinct labels of the responses.
    reward : array (..., n), optional
        A declared Bradley-Terry reward (nats): :math:`P_{ij} = \sigma(r_i - r_j)`, checked.
    tolerance : float
        Largest accepted :math:`|P_{ij} + P_{ji} - 1|` (win rate). Widened to 8 eps of the given dtype, so that float32
        tables pass. What passes is made antisymmetric, as in `symmetrized`.

    Raises
    ------
    ValueError
        P empty, not square, NaN, outside [0, 1] or not antisymmetric; weights negative, NaN, of zero sum or of wrong
        shape; a context without responses; names repeated or of wrong number; a reward that does not give P.
    TypeError
        P, weights, mask or reward do not hold real numbers.

    Notes
    -----
    `A` is skew to the last bit: it is computed as :math:`(P - P^\top)/2`, whose rounding is odd. Games are not to be
    changed after they are made: the attributes are read-only, the arrays are not locked.
    """

    __slots__ = ("_A", "_P", "_mask", "_names", "_rational", "_reward", "_weights")

    def __init__(
        self,
        P: Array,
        weights: Array | None = None,
        mask: Array | None = None,
        *,
        names: Sequence[str] | None = None,
        reward: Array | None = None,
        tolerance: float = 1e-9,
    ) -> None:
        given, rational = win_rates(P)
        xp = array_namespace(given)
        batch_shape, n = given.shape[:-2], given.shape[-1]
        self._names = checked_names(names, n)
        self._mask = checked_mask(xp, mask, given)

        missing = None if self._mask is None else ~(self._mask[..., :, None] & self._mask[..., None, :])
        table = as_float64(xp, given, "P", device(given))
        if xp.isdtype(given.dtype, ("integral", "bool")):
            table = xp.where(xp.eye(n, dtype=xp.bool, device=device(given)), 0.5, table)
        elif xp.isdtype(given.dtype, "real floating"):
            tolerance = max(tolerance, 8 * float(xp.finfo(given.dtype).eps))
        if missing is not None:
            table = xp.where(missing, 0.5, table)
        check_range(xp, table, tolerance, self._names)
        check_antisymmetry(xp, table, tolerance, self._names)

        table = xp.clip(table, 0.0, 1.0)
        transposed = xp.matrix_transpose(table)
        # Averaging a pair like (1e-20, 1.0) would halve the small win rate: pairs that are right to the last bit stay.
        exact = xp.abs(table + transposed - 1.0) <= ROUNDING
        self._P = xp.where(exact, table, 0.5 + 0.5 * (table - transposed))
        self._A = 0.5 * (self._P - xp.matrix_transpose(self._P))
        self._rational = exactly_antisymmetric(rational, missing)
        self._weights = checked_weights(xp, weights, batch_shape, device(given))
        self._reward = reward
        if reward is not None:
            self._reward = checked_reward(xp, reward, self._P, self._mask, tolerance, self._names)

    @classmethod
    def symmetrized(
        cls,
        P: Array,
        weights: Array | None = None,
        mask: Array | None = None,
        *,
        names: Sequence[str] | None = None,
    ) -> Game:
        r"""Game of the nearest antisymmetric table, :math:`(P + 1 - P^\top)/2`; the diagonal becomes 1/2.

        Parameters
        ----------
        P : array (..., n, n)
            Win rates in [0, 1] that need not satisfy :math:`P + P^\top = 1` (a judge with position bias, say).
        weights, mask, names
            As in `Game`.

        Raises
        ------
        ValueError, TypeError
            As `Game`, but for antisymmetry.
        """
        given, rational = win_rates(P)
        xp = array_namespace(given)
        table = as_float64(xp, given, "P", device(given))
        known = checked_mask(xp, mask, given)
        missing = None if known is None else ~(known[..., :, None] & known[..., None, :])
        if missing is not None:
            table = xp.where(missing, 0.5, table)
        check_range(xp, table, 1e-9, checked_names(names, table.shape[-1]))
        if rational is not None:
            exact = exactly_antisymmetric(rational, missing)
            return cls(exact, weights, mask, names=names)
        return cls(0.5 + 0.5 * (table - xp.matrix_transpose(table)), weights, mask, names=names)

    @property
    def P(self) -> Array:
        """Win rates (..., n, n), float64; 1/2 at missing responses."""
        return self._P

    @property
    def A(self) -> Array:
        """Centred win rates P - 1/2, (..., n, n), skew-symmetric to the last bit; 0 at missing responses."""
        return self._A

    @property
    def weights(self) -> Array:
        """Weights of the contexts, shape ``batch_shape``, sum 1."""
        return self._weights

    @property
    def mask(self) -> Array | None:
        """Which responses exist, bool (..., n); ``None`` where all do."""
        return self._mask

    @property
    def names(self) -> tuple[str, ...] | None:
        """Labels of the n responses, or ``None``."""
        return self._names

    @property
    def reward(self) -> Array | None:
        """Declared Bradley-Terry reward (..., n) in nats, 0 at missing responses; ``None`` where none was declared."""
        return self._reward

    @property
    def rational(self) -> np.ndarray[Any, Any] | None:
        """The win rates as `fractions.Fraction`, exactly antisymmetric, where P was given so; else ``None``."""
        return self._rational

    @property
    def n(self) -> int:
        """Number of responses."""
        return int(self._P.shape[-1])

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the contexts; ``()`` for a single game."""
        return tuple(int(k) for k in self._P.shape[:-2])

    @property
    def xp(self) -> ModuleType:
        """The array library of P, as an array-API namespace."""
        return array_namespace(self._P)

    def label(self, response: int) -> str:
        """Name of a response, or its number where the game has no names."""
        return str(response) if self._names is None else self._names[response]

    def payoff(self, policy: Array) -> Array:
        r"""Win rate of every response against a policy, :math:`(P \pi)_y`, shape (..., n).

        A missing response gets 1/2: it is neither a gain nor a loss, and never a strictly best response.
        """
        xp = self.xp
        return xp.matmul(self._P, policy[..., None])[..., 0]

    def win_rate(self, policy: Array, opponent: Array) -> Array:
        r"""Win rate of a policy against another in every context, :math:`\pi^\top P \pi'`, shape (...)."""
        return self.xp.sum(policy * self.payoff(opponent), axis=-1)

    def mean(self, values: Array) -> Array:
        """Weighted mean over the contexts.

        Parameters
        ----------
        values : array (..., *batch_shape)
            One number per context; axes before those of the contexts (recorded steps, say) are kept.

        Returns
        -------
        array (...)

        Raises
        ------
        ValueError
            If the last axes are not ``batch_shape``.
        """
        axes = len(self.batch_shape)
        shape = tuple(values.shape)
        if shape[len(shape) - axes :] != self.batch_shape:
            raise ValueError(f"values have shape {shape}, but the last axes must be the contexts {self.batch_shape}")
        if axes == 0:
            return values
        return self.xp.sum(values * self._weights, axis=tuple(range(-axes, 0)))

    def select(self, index: int | slice | tuple[int | slice, ...]) -> Game:
        """The game of one context (an integer per context axis), or of several (slices; weights normalized anew)."""
        parts = index if isinstance(index, tuple) else (index,)
        if len(parts) > len(self.batch_shape):
            raise IndexError(f"{len(parts)} indices for the context axes {self.batch_shape}")
        at = (*parts, ...)
        weights = self._weights[at]
        return Game(
            self._P[at] if self._rational is None else self._rational[at],
            None if weights.ndim == 0 else weights,
            None if self._mask is None else self._mask[at],
            names=self._names,
            reward=None if self._reward is None else self._reward[at],
        )

    def as_numpy(self) -> Game:
        """The same game on numpy arrays (itself, where it already is)."""
        return self if is_numpy_array(self._P) else self._converted(to_numpy)

    def to(self, xp: ModuleType, device: Any = None) -> Game:
        """The same game on the arrays of another library, ``game.to(torch, "cuda")``, always in float64."""
        return self._converted(lambda x: xp.asarray(to_numpy(x), device=device))

    def _converted(self, convert: Any) -> Game:
        """The same numbers in other arrays; they were checked when this game was made."""
        other = object.__new__(Game)
        for field in ("_P", "_A", "_weights", "_mask", "_reward"):
            value = getattr(self, field)
            setattr(other, field, None if value is None else convert(value))
        other._names, other._rational = self._names, self._rational
        return other

    def __repr__(self) -> str:
        parts = [f"n={self.n}"]
        if self.batch_shape:
            parts.append(f"batch_shape={self.batch_shape}")
        if self._mask is not None:
            parts.append("ragged")
        if self._names is not None:
            shown = [*self._names[:3], "..."] if self.n > 4 else [*self._names]
            parts.append(f"names=({', '.join(shown)})")
        if self._reward is not None:
            parts.append("Bradley-Terry")
        return f"Game({', '.join(parts)}, {self.xp.__name__.rsplit('.', 1)[-1]})"
