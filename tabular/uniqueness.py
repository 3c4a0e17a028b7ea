r"""Whether the equilibrium of a symmetric zero-sum game is unique, and its support.

Shapes: A = P - 1/2 is (..., n, n) and skew, policy, mask and support are (..., n), unique (...).

Let x be any equilibrium, S = {x > 0} its support and E = {(A x) = 0} the responses that tie with it; S lies in E. Some
equilibrium is strictly complementary, that is has S = E (Goldman and Tucker 1956; here primal and dual coincide).
Therefore x is the only equilibrium if and only if

1. S = E, and
2. the null space of A_SS is spanned by x_S.

If S != E, the strictly complementary equilibrium is another one. If S = E, every z near x on S with A_SS z = 0, 1'z = 1
is an equilibrium too; and if x is the only such z, then it is the only equilibrium, since that set is convex.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PROBABILITY_TOLERANCE = 1e-11
SLACK_TOLERANCE = 1e-11
"""Both lie far above the rounding of a solved equilibrium, about 1e-15, and below what generic games leave."""
RANK_TOLERANCE = 1e-12

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


def support_and_uniqueness(A: Array, policy: Array, mask: Flags | None = None) -> tuple[Flags, Flags]:
    """Decide for every game whether the given equilibrium is the only one.

    Parameters
    ----------
    A : (..., n, n) array
        P - 1/2, skew.
    policy : (..., n) array
        An equilibrium of every game (any of them), with a gap of at most about 1e-13.
    mask : (..., n) bool array, optional
        Active responses.

    Returns
    -------
    support : (..., n) bool array
        Where `policy` is positive; the support of the equilibrium where it is unique.
    unique : (...) bool array
        True where both conditions hold with a margin above rounding. A game so close to a degenerate one that the
        margin is lost (probabilities or slacks below 1e-11, singular values below 1e-12 of the largest) gets False:
        "not shown to be unique".

    Raises
    ------
    ValueError
        If A is not square, or policy or mask do not have the shape of A without its last axis.

    Notes
    -----
    Condition 2 is tested as the regularity of the bordered matrix [[A_SS, 1], [1', 0]], which is singular exactly
    where the null space of A_SS has a second dimension (x_S is in it, and 1'x = 1).
    """
    A = np.asarray(A, dtype=np.float64)
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ValueError(f"A must be square, (..., n, n); its shape is {A.shape}")
    policy = np.asarray(policy, dtype=np.float64)
    active = np.ones(A.shape[:-1], dtype=np.bool_) if mask is None else np.asarray(mask, dtype=np.bool_)
    for name, array in (("policy", policy), ("mask", active)):
        if array.shape != A.shape[:-1]:
            raise ValueError(f"{name} must have the shape {A.shape[:-1]} of A without its last axis, not {array.shape}")
    payoff = np.where(active[..., None] & active[..., None, :], A, 0.0)
    support = active & (policy > PROBABILITY_TOLERANCE)
    slack = -np.matmul(payoff, policy[..., None])[..., 0]
    tight = active & (slack <= SLACK_TOLERANCE)
    strictly_complementary = (support == tight).all(axis=-1)
    unique = np.zeros(A.shape[:-2], dtype=np.bool_)
    for game in zip(*np.nonzero(np.atleast_1d(strictly_complementary & (support.sum(axis=-1) % 2 == 1))), strict=True):
        place = game if unique.ndim else ()
        unique[place] = _null_space_is_a_line(payoff[place], np.flatnonzero(support[place]))
    return support, unique


def _null_space_is_a_line(A: Array, support: NDArray[np.int64]) -> bool:
    k = len(support)
    scale = float(np.abs(A[np.ix_(support, support)]).max()) or 1.0
    bordered = np.ones((k + 1, k + 1))
    bordered[:k, :k] = A[np.ix_(support, support)] / scale
    bordered[k, k] = 0.0
    singular = np.linalg.svd(bordered, compute_uv=False)
    return bool(singular[-1] > RANK_TOLERANCE * singular[0])
