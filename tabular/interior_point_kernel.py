"""The skew interior point of `interior_point` compiled for many small games, one game after the other.

Shapes: A (games, n, n), mask (games, n), policy (games, n). Everything here works on C-contiguous float64 arrays.
The loops release the GIL, so that `interior_point` can split the games over threads.
"""

from __future__ import annotations

import numpy as np

from nashpo.tabular.compiled import compiled

VALUE_TOLERANCE = 1e-14
"""The iteration ends at this v, where the gap is at most 2e-14; further on, rounding moves x within a face of ties."""
ITERATIONS = 100
BACKOFF = 0.995
"""Share of the way to the boundary that one step takes."""
POLISH_START = 1e-3
"""The support is guessed once v is below this: earlier guesses are wrong and cost a linear system each."""
POLISH_GAP = 1e-14
STRICT = 1e-11
"""Probabilities on, and slacks off, a polished support must exceed this, far above their rounding (1e-15)."""


@compiled
def unbeaten(A: np.ndarray, mask: np.ndarray, policy: np.ndarray, g: int) -> bool:
    """In game g, write the uniform policy over the responses that no active one beats; False if there is none."""
    n = A.shape[1]
    count = 0
    for i in range(n):
        policy[g, i] = 0.0
        if not mask[g, i]:
            continue
        beaten = False
        for j in range(n):
            if mask[g, j] and not A[g, i, j] >= 0.0:
                beaten = True
                break
        if not beaten:
            policy[g, i] = 1.0
            count += 1
    if count == 0:
        return False
    for i in range(n):
        policy[g, i] /= count
    return True


@compiled
def _factor(M: np.ndarray, pivot: np.ndarray, n: int) -> bool:
    """LU with partial pivoting of the leading n x n block of M, in place; False if a pivot is zero or not finite."""
    for k in range(n):
        p = k
        best = abs(M[k, k])
        for i in range(k + 1, n):
            if abs(M[i, k]) > best:
                best = abs(M[i, k])
                p = i
        pivot[k] = p
        if not (0.0 < best < np.inf):
            return False
        if p != k:
            for j in range(n):
                M[k, j], M[p, j] = M[p, j], M[k, j]
        inverse = 1.0 / M[k, k]
        for i in range(k + 1, n):
            factor = M[i, k] * inverse
            M[i, k] = factor
            for j in range(k + 1, n):
                M[i, j] -= factor * M[k, j]
    return True


@compiled
def _solve(M: np.ndarray, pivot: np.ndarray, b: np.ndarray, n: int) -> None:
    """Overwrite b[:n] with the solution, given `_factor`'s result."""
    for k in range(n):
        p = pivot[k]
        if p != k:
            b[k], b[p] = b[p], b[k]
    for i in range(1, n):
        total = b[i]
        for j in range(i):
            total -= M[i, j] * b[j]
        b[i] = total
    for i in range(n - 1, -1, -1):
        total = b[i]
        for j in range(i + 1, n):
            total -= M[i, j] * b[j]
        b[i] = total / M[i, i]


@compiled
def _polish(
    A: np.ndarray, x: np.ndarray, s: np.ndarray, n: int, M: np.ndarray, pivot: np.ndarray, z: np.ndarray
) -> tuple[float, bool]:
    """Solve A_SS z = 0, 1'z = 1 on the guessed support S = {x > s} into z; return its gap and strictness.

    The gap is infinite where the guess is refused: S even (a skew matrix of even order is generically regular), the
    system singular, or a component negative. Strict: z > 0 on S and A z < 0 off S, so that the equilibrium is unique.
    """
    k = 0
    index = np.empty(n, np.int64)
    for i in range(n):
        if x[i] > s[i]:
            index[k] = i
            k += 1
    if k % 2 == 0:
        return np.inf, False
    b = np.empty(k + 1)
    for a in range(k):
        b[a] = 0.0
    for a in range(k):
        for c in range(k):
            M[a, c] = A[index[a], index[c]]
        M[a, k] = 1.0
        M[k, a] = 1.0
    M[k, k] = 0.0
    b[k] = 1.0
    if not _factor(M, pivot, k + 1):
        return np.inf, False
    _solve(M, pivot, b, k + 1)
    total = 0.0
    strict = True
    for a in range(k):
        if not b[a] >= 0.0:
            return np.inf, False
        strict = strict and b[a] > STRICT
        total += b[a]
    for i in range(n):
        z[i] = 0.0
    for a in range(k):
        z[index[a]] = b[a] / total
    worst = -np.inf
    for i in range(n):
        g = 0.0
        for a in range(k):
            g += A[i, index[a]] * z[index[a]]
        worst = max(worst, g)
        strict = strict and (x[i] > s[i] or g < -STRICT)
    return 2.0 * worst, strict


@compiled
def _copy(source: np.ndarray, target: np.ndarray, n: int) -> None:
    for i in range(n):
        target[i] = source[i]


@compiled
def _sum(x: np.ndarray, n: int) -> float:
    total = 0.0
    for i in range(n):
        total += x[i]
    return total


@compiled
def _gap(A: np.ndarray, x: np.ndarray, n: int) -> float:
    worst = -np.inf
    for i in range(n):
        g = 0.0
        for j in range(n):
            g += A[i, j] * x[j]
        worst = max(worst, g)
    return 2.0 * worst


@compiled
def _longest_step(x: np.ndarray, dx: np.ndarray, s: np.ndarray, ds: np.ndarray, n: int) -> float:
    """The largest step in [0, 1] that keeps x and s nonnegative."""
    ratio = 1.0
    for i in range(n):
        ratio = max(ratio, -dx[i] / x[i], -ds[i] / s[i])
    return 1.0 / ratio


@compiled
def _iterate(A: np.ndarray, n: int, policy: np.ndarray) -> int:
    """Interior point on the leading n x n block of A from the uniform policy into policy[:n]; its iterations."""
    M = np.empty((n + 1, n + 1))
    pivot = np.empty(n + 1, np.int64)
    x = np.empty(n)
    for i in range(n):
        x[i] = 1.0 / n
    s, q, p = np.empty(n), np.empty(n), np.empty(n)
    dx, ds = np.empty(n), np.empty(n)
    z = np.empty(n)
    low, high = np.inf, -np.inf
    for i in range(n):
        s[i] = 0.0
        for j in range(n):
            s[i] -= A[i, j] * x[j]
        low, high = min(low, s[i]), max(high, s[i])
    v = -low + max(-low, high)
    _copy(x, policy, n)
    if v <= VALUE_TOLERANCE:
        return 0
    for i in range(n):
        s[i] += v
    best = _gap(A, x, n)
    iteration = 0
    while iteration < ITERATIONS and v > VALUE_TOLERANCE:
        iteration += 1
        for i in range(n):
            for j in range(n):
                M[i, j] = -A[i, j]
            M[i, i] += s[i] / x[i]
        if not _factor(M, pivot, n):
            break
        # Predictor: since M x = 2 s - v 1, one solve for q = M^-1 1 gives the whole affine direction.
        for i in range(n):
            q[i] = 1.0
        _solve(M, pivot, q, n)
        total = _sum(q, n)
        dv = -0.5 * (1.0 / total + v)
        for i in range(n):
            dx[i] = 0.5 * (q[i] / total - x[i])
            ds[i] = -s[i] - s[i] / x[i] * dx[i]
        step = _longest_step(x, dx, s, ds, n)
        sigma = ((v + step * dv) / v) ** 3
        # Corrector: the same LU, with the centring and the second-order term of x s = sigma mu.
        for i in range(n):
            p[i] = (sigma * v / n - dx[i] * ds[i]) / x[i]
        for i in range(n):
            z[i] = p[i]
        _solve(M, pivot, p, n)
        shift = _sum(p, n) / total
        dv += shift
        for i in range(n):
            change = p[i] - shift * q[i]
            ds[i] += z[i] - s[i] / x[i] * change
            dx[i] += change
        step = BACKOFF * _longest_step(x, dx, s, ds, n)
        v += step * dv
        norm = 0.0
        for i in range(n):
            x[i] += step * dx[i]
            norm += x[i]
        if not (np.isfinite(norm) and np.isfinite(v)):
            break
        for i in range(n):
            x[i] /= norm
            s[i] += step * ds[i]
        gap = _gap(A, x, n)
        if gap < best:
            best = gap
            _copy(x, policy, n)
        if v < POLISH_START:
            gap, strict = _polish(A, x, s, n, M, pivot, z)
            if strict and gap <= POLISH_GAP:
                _copy(z, policy, n)
                return iteration
    # What the barrier leaves on responses outside the support is dropped where that costs nothing.
    for i in range(n):
        z[i] = policy[i] if x[i] > s[i] else 0.0
    norm = _sum(z, n)
    for i in range(n):
        z[i] /= norm
    if _gap(A, z, n) <= max(best, VALUE_TOLERANCE):
        _copy(z, policy, n)
    elif best > POLISH_GAP:
        gap, strict = _polish(A, x, s, n, M, pivot, z)
        if gap < best:
            _copy(z, policy, n)
    return iteration


@compiled
def solve_games(A: np.ndarray, mask: np.ndarray, policy: np.ndarray, gap: np.ndarray, iterations: np.ndarray) -> None:
    """Fill policy, gap and iterations for every game; masked responses get probability exactly 0."""
    games, n, _ = A.shape
    active = np.empty(n, np.int64)
    game = np.empty((n, n))
    x = np.empty(n)
    for g in range(games):
        iterations[g] = 0
        if not unbeaten(A, mask, policy, g):
            k = 0
            for i in range(n):
                if mask[g, i]:
                    active[k] = i
                    k += 1
            for a in range(k):
                for b in range(k):
                    game[a, b] = A[g, active[a], active[b]]
            iterations[g] = _iterate(game, k, x)
            for i in range(n):
                policy[g, i] = 0.0
            for a in range(k):
                policy[g, active[a]] = x[a]
        worst = -np.inf
        for i in range(n):
            if mask[g, i]:
                total = 0.0
                for j in range(n):
                    if mask[g, j]:
                        total += A[g, i, j] * policy[g, j]
                # A NaN in A must reach the caller, and max would drop it.
                if total > worst or total != total:
                    worst = total
        gap[g] = 2.0 * worst
