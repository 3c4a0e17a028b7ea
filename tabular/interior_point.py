r"""Exact Nash equilibrium of a symmetric zero-sum game by a skew interior point.

Shapes: A = P - 1/2 is (..., n, n) and skew, mask and policy are (..., n), gap and iterations (...).

The equilibria of A are the points x of the simplex with A x <= 0. With s = v 1 - A x >= 0 the skew symmetry gives
x's = v, so that driving the products x_i s_i to zero drives v to zero, and the duality gap of (x, x) is at most 2 v:
primal and dual are one. Newton's method on x_i s_i = sigma mu, mu = v / n, 1'x = 1 needs the one matrix

    M = diag(s / x) - A,

whose symmetric part is positive, so it is never singular. Because M x = 2 s - v 1, the affine direction is
dx = (q / 1'q - x) / 2, dv = -(1 / 1'q + v) / 2 with M q = 1; Mehrotra's corrector and Gondzio's reuse the LU.

Which equilibrium is returned when there are several: where one response is beaten by none, the uniform policy over all
such responses (its gap is exactly 0); else a point in the relative interior of the equilibrium set (maximal support),
which is where the central path ends. Where the equilibrium is not unique, rounding leaves the place in the set
undetermined by 1e-6 to 1e-3 in probability (and the gap at 1e-14): compare gaps there, not policies.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas, lapack

from nashpo.tabular.interior_point_kernel import (
    BACKOFF,
    ITERATIONS,
    POLISH_GAP,
    POLISH_START,
    STRICT,
    VALUE_TOLERANCE,
    solve_games,
    unbeaten,
)

LARGEST_COMPILED = 64
"""Above this n LAPACK's LU beats the compiled loops."""
GAMES_PER_THREAD = 256
SINGLE_PRECISION_FROM = 48
SINGLE_PRECISION_UNTIL = 1e-7
"""An LU in single precision gives useful directions down to this v; s and v are always kept in double precision."""
SHORTEST_SINGLE_STEP = 0.2
CORRECTORS_FROM = 200
CENTRALITY_CORRECTORS = 4
"""A corrector costs O(n^2) beside the LU's O(n^3): worth it for large n."""

Array = NDArray[np.float64]
Active = NDArray[np.bool_]
Counts = NDArray[np.int64]
Direction = tuple[Array, float, Array, float]


@dataclass(frozen=True)
class SkewSolution:
    """An equilibrium of every game of a batch.

    Attributes
    ----------
    policy : (..., n) array
        Probabilities; exactly 0 on masked responses.
    gap : (...) array
        Duality gap 2 max_y (A policy)_y over the active responses, in win rate.
    iterations : (...) int array
        Interior-point iterations; 0 where a closed form was found first.
    """

    policy: Array
    gap: Array
    iterations: Counts


def solve_skew(A: Array, mask: Active | None = None) -> SkewSolution:
    """Solve max_x min_y x' A y over the simplex for skew A, each game of the batch on its own.

    Parameters
    ----------
    A : (..., n, n) array
        P - 1/2, skew up to rounding (the caller has validated it).
    mask : (..., n) bool array, optional
        Active responses; a masked response gets probability exactly 0 and its entries of A are never read.

    Returns
    -------
    SkewSolution
        With a gap of at most 1e-12 (measured: 2e-14), degenerate games included.

    Raises
    ------
    ValueError
        If A is not square or empty, a game has no active response, mask has another shape, or A holds a NaN.

    Notes
    -----
    Self-dual embedding by skew symmetry; predictor-corrector after Mehrotra, SIAM J. Optim. 2 (1992) 575; several
    centrality correctors after Gondzio, Comput. Optim. Appl. 6 (1996) 137. A vertex guessed from the iterate is
    accepted only where its support is odd, the system on it is regular, it is strictly complementary and its gap is
    below 1e-14; such an equilibrium is unique.
    """
    A = np.ascontiguousarray(A, dtype=np.float64)
    if A.ndim < 2 or A.shape[-1] != A.shape[-2] or A.shape[-1] == 0:
        raise ValueError(f"A must be square with at least one response, (..., n, n); its shape is {A.shape}")
    n = A.shape[-1]
    batch = A.shape[:-2]
    if mask is None:
        active = np.ones(A.shape[:-1], dtype=np.bool_)
    else:
        active = np.ascontiguousarray(mask, dtype=np.bool_)
        if active.shape != A.shape[:-1]:
            raise ValueError(f"mask must have the shape {A.shape[:-1]} of A without its last axis, not {active.shape}")
        if not active.any(axis=-1).all():
            empty = np.argwhere(~active.any(axis=-1))[0]
            raise ValueError(f"mask leaves no response in game {tuple(int(i) for i in empty)}: keep at least one")
    policy = np.empty(A.shape[:-1])
    gap = np.empty(batch)
    iterations = np.zeros(batch, dtype=np.int64)
    flat = (A.reshape(-1, n, n), active.reshape(-1, n), policy.reshape(-1, n), gap.reshape(-1), iterations.reshape(-1))
    if n <= LARGEST_COMPILED:
        _solve_small(*flat)
    else:
        _solve_large(*flat)
    if not np.isfinite(gap).all():
        raise ValueError("A holds a NaN or an infinity: every entry must be a win rate minus 1/2, in [-1/2, 1/2]")
    return SkewSolution(policy, gap, iterations)


def _solve_small(A: Array, active: Active, policy: Array, gap: Array, iterations: Counts) -> None:
    """Run the compiled kernel, the games split over the threads that numba may use."""
    games = len(A)
    threads = min(numba.get_num_threads(), games // GAMES_PER_THREAD)
    if threads < 2:
        solve_games(A, active, policy, gap, iterations)
        return
    edges = [games * k // threads for k in range(threads + 1)]
    parts = [slice(a, b) for a, b in pairwise(edges)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda p: solve_games(A[p], active[p], policy[p], gap[p], iterations[p]), parts))


def _solve_large(A: Array, active: Active, policy: Array, gap: Array, iterations: Counts) -> None:
    """Solve game by game with LAPACK, on the active responses alone."""
    for g, (matrix, keep) in enumerate(zip(A, active, strict=True)):
        whole = bool(keep.all())
        if not unbeaten(A, active, policy, g):
            if whole:
                policy[g], iterations[g] = _interior_point(matrix)
            else:
                policy[g] = 0.0
                policy[g, keep], iterations[g] = _interior_point(np.ascontiguousarray(matrix[np.ix_(keep, keep)]))
        if whole:
            gap[g] = 2.0 * _payoffs(matrix, policy[g]).max()
        else:
            gap[g] = 2.0 * (matrix[np.ix_(keep, keep)] @ policy[g, keep]).max()


class _Factorization:
    """LU of M = diag(d) - A, in single or double precision, in one buffer that is used again and again."""

    def __init__(self, A: Array, dtype: type[np.floating]) -> None:
        single = dtype is np.float32
        self._getrf = lapack.sgetrf if single else lapack.dgetrf
        self._getrs = lapack.sgetrs if single else lapack.dgetrs
        self._A = A.astype(dtype, copy=False)
        self._buffer = np.empty_like(self._A)
        self._dtype = dtype

    def factor(self, d: Array) -> bool:
        # LAPACK reads columns: the transpose of a row-major A is -A, so a plain copy puts -A in place.
        np.copyto(self._buffer, self._A)
        with np.errstate(over="ignore"):
            self._buffer.reshape(-1)[:: len(d) + 1] += d.astype(self._dtype)
        self._lu, self._pivot, info = self._getrf(self._buffer.T, overwrite_a=1)
        return bool(info == 0)

    def solve(self, b: Array) -> Array:
        x, _ = self._getrs(self._lu, self._pivot, b.astype(self._dtype))
        return x.astype(np.float64)


def _payoffs(A: Array, x: Array) -> Array:
    """A x by scipy's BLAS, where the LU runs too: numpy brings its own, and the threads of two BLAS pools collide.

    Measured at n = 1000 with two threads: 0.15 s for a game in one pool, 0.5 s in two.
    """
    return blas.dgemv(1.0, A.T, x, trans=1)


def _longest_step(x: Array, dx: Array, s: Array, ds: Array) -> float:
    """The largest step in [0, 1] that keeps x and s nonnegative."""
    return 1.0 / max(1.0, float(-(dx / x).min()), float(-(ds / s).min()))


def _interior_point(A: Array) -> tuple[Array, int]:
    """One game without closed form; the equilibrium and the number of iterations."""
    n = len(A)
    x = np.full(n, 1.0 / n)
    g = _payoffs(A, x)
    v = float(g.max() + np.abs(g).max())
    best, policy = 2.0 * float(g.max()), x
    if not v > VALUE_TOLERANCE:  # also where A holds a NaN
        return policy, 0
    s = v - g
    matrix = _Factorization(A, np.float32 if n >= SINGLE_PRECISION_FROM else np.float64)
    single = n >= SINGLE_PRECISION_FROM
    iteration = 0
    while iteration < ITERATIONS and v > VALUE_TOLERANCE:
        iteration += 1
        direction = _direction(A, x, s, v, matrix)
        if single and (direction is None or direction[3] < SHORTEST_SINGLE_STEP):
            single, matrix = False, _Factorization(A, np.float64)
            direction = _direction(A, x, s, v, matrix)
        if direction is None:
            break
        dx, dv, ds, step = direction
        step *= BACKOFF
        x = x + step * dx
        x /= x.sum()
        v += step * dv
        s = s + step * ds
        gap = 2.0 * float(_payoffs(A, x).max())
        if gap < best:
            best, policy = gap, x
        if v < POLISH_START:
            vertex, vertex_gap, strict = _polish(A, x > s)
            if strict and vertex_gap <= POLISH_GAP:
                return vertex, iteration
        if single and v < SINGLE_PRECISION_UNTIL:
            single, matrix = False, _Factorization(A, np.float64)
    # What the barrier leaves on responses outside the support is dropped where that costs nothing.
    trimmed = np.where(x > s, policy, 0.0)
    trimmed /= trimmed.sum()
    if 2.0 * _payoffs(A, trimmed).max() <= max(best, VALUE_TOLERANCE):
        return trimmed, iteration
    if best > POLISH_GAP:
        vertex, vertex_gap, _ = _polish(A, x > s)
        if vertex_gap < best:
            return vertex, iteration
    return policy, iteration


def _direction(A: Array, x: Array, s: Array, v: float, matrix: _Factorization) -> Direction | None:
    """Predictor, corrector and centrality correctors on one LU: (dx, dv, ds, longest step); None if it fails.

    ds = dv - A dx is multiplied out, so that s = v 1 - A x holds whatever the precision of the LU.
    """
    n = len(x)
    if not matrix.factor(s / x):
        return None
    q = matrix.solve(np.ones(n))
    total = float(q.sum())
    if not (np.isfinite(total) and total > 0.0):
        return None
    dx = 0.5 * (q / total - x)
    dv = -0.5 * (1.0 / total + v)
    ds = dv - _payoffs(A, dx)
    sigma = (1.0 + _longest_step(x, dx, s, ds) * dv / v) ** 3
    target = sigma * v / n
    residual = target - dx * ds
    step = 0.0
    correctors = 0
    while True:
        p = matrix.solve(residual / x)
        shift = float(p.sum()) / total
        dx_new, dv_new = dx + (p - shift * q), dv + shift
        ds_new = dv_new - _payoffs(A, dx_new)
        step_new = _longest_step(x, dx_new, s, ds_new)
        # The first pass is Mehrotra's corrector and is always taken, a later one only where it lengthens the step.
        if not (correctors == 0 or step_new > step + 0.01):
            break
        dx, dv, ds, step = dx_new, dv_new, ds_new, step_new
        if correctors == (CENTRALITY_CORRECTORS if n >= CORRECTORS_FROM else 0):
            break
        correctors += 1
        # Gondzio: aim at a longer step and move the outlying products x_i s_i back towards the path.
        longer = min(1.0, 1.08 * step + 0.08)
        product = (x + longer * dx) * (s + longer * ds)
        low, high = 0.1 * target, 10.0 * target
        residual = np.where(
            product < low, low - product, np.where(product > high, np.maximum(high - product, -high), 0.0)
        )
    return (dx, dv, ds, step) if np.isfinite(step) and np.isfinite(dv) else None


def _polish(A: Array, support: Active) -> tuple[Array, float, bool]:
    """Solve A_SS z = 0, 1'z = 1 on a guessed support; the vertex, its gap and whether it is strictly complementary.

    The gap is infinite where the guess is refused: an even support (a skew matrix of even order is generically
    regular), a singular system, or a negative component.
    """
    n, k = len(A), int(support.sum())
    if k % 2 == 0:
        return np.empty(0), np.inf, False
    index = np.flatnonzero(support)
    bordered = np.ones((k + 1, k + 1), order="F")
    bordered[:k, :k] = A[np.ix_(index, index)]
    bordered[k, k] = 0.0
    _, _, z, info = lapack.dgesv(bordered, np.r_[np.zeros(k), 1.0], overwrite_a=1)
    z = z[:k]
    if info != 0 or not (z >= 0.0).all():
        return np.empty(0), np.inf, False
    vertex = np.zeros(n)
    vertex[index] = z / z.sum()
    g = _payoffs(A, vertex)
    strict = bool(z.min() > STRICT and (k == n or g[~support].max() < -STRICT))
    return vertex, 2.0 * float(g.max()), strict
