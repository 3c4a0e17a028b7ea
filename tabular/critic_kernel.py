"""Compiled solver of the box-constrained critic, one instance after another over a batch.

    minimize  ⟨cost, f⟩ + λ Σ_{i≠j} wins[i, j] log(1 + exp(f_j − f_i))   over 0 <= f <= R

Projected Newton with Levenberg damping from a warm start; where that does not reach the tolerance (a few instances in
10⁵, with boxes that are wide against the slope of the log-loss), a log-barrier method from the centre of the box.

Shapes: B instances of n responses: ``cost``, ``values`` (B, n), ``wins`` (D, n, n) with D a divisor of B; instance b
has the data b mod D. Inside one instance m <= n responses were seen, and p pairs of them were compared. All float64.
"""

import numpy as np

from nashpo.tabular.compiled import compiled

Floats = np.ndarray
Integers = np.ndarray

_BARRIER_STEPS = 100
_ARMIJO = 1e-4
_HALVINGS = 50
_ROUNDING = 1e-15
"""Relative to the size of the terms in the objective: differences below it are not resolved."""


@compiled
def _pack_pairs(
    wins: Floats, lam: float, order: Integers, left: Integers, right: Integers, forward: Floats, back: Floats
) -> tuple[int, int]:
    """The seen responses and the compared pairs among them, numbered 0 … m − 1; returns (m, p).

    ``order[:m]`` are the seen responses, ``forward`` and ``back`` λ times the wins of ``left`` and of ``right``.
    """
    n = wins.shape[0]
    place = np.full(n, -1)
    m = p = 0
    for i in range(n):
        for j in range(i):
            won, lost = lam * wins[i, j], lam * wins[j, i]
            if won + lost > 0.0:
                for response in (i, j):
                    if place[response] < 0:
                        place[response] = m
                        order[m] = response
                        m += 1
                left[p], right[p], forward[p], back[p] = place[i], place[j], won, lost
                p += 1
    return m, p


@compiled
def _copy(source: Floats, target: Floats) -> None:
    for i in range(target.size):  # slices would do, but take seconds to compile
        target[i] = source[i]


@compiled
def _evaluate(
    f: Floats,
    cost: Floats,
    left: Integers,
    right: Integers,
    forward: Floats,
    back: Floats,
    m: int,
    p: int,
    gradient: Floats,
    hessian: Floats,
) -> float:
    """The objective; writes its gradient (m) and the lower triangle of its Hessian (m, m)."""
    value = 0.0
    for i in range(m):
        value += cost[i] * f[i]
        gradient[i] = cost[i]
        for j in range(i + 1):
            hessian[i, j] = 0.0
    for k in range(p):
        i, j = left[k], right[k]
        won, lost = forward[k], back[k]
        margin = f[i] - f[j]
        small = np.exp(-abs(margin))
        value += (won + lost) * np.log1p(small)
        large = 1.0 / (1.0 + small)  # σ(|f_i − f_j|)
        small = small * large  # σ(−|f_i − f_j|), to full relative precision
        if margin > 0.0:
            value += lost * margin
            pull = lost * large - won * small
        else:
            value -= won * margin
            pull = lost * small - won * large
        gradient[i] += pull
        gradient[j] -= pull
        curvature = (won + lost) * small * large
        hessian[max(i, j), min(i, j)] -= curvature
        hessian[i, i] += curvature
        hessian[j, j] += curvature
    return value


@compiled
def _frank_wolfe_gap(gradient: Floats, f: Floats, upper: float, m: int) -> float:
    """max over the box of ⟨gradient, f − x⟩ = Σ_i max(g_i f_i, g_i (f_i − R)): an upper bound on the suboptimality."""
    gap = 0.0
    for i in range(m):
        gap += max(gradient[i] * f[i], gradient[i] * (f[i] - upper))
    return gap


@compiled
def _newton_direction(
    slope: Floats, hessian: Floats, ridge: Floats, free: Integers, count: int, factor: Floats, direction: Floats
) -> bool:
    """Solve (H + diag(ridge)) d = −slope on the ``free`` coordinates by Cholesky; False where it breaks down."""
    for a in range(count):
        i = free[a]
        for b in range(a + 1):
            j = free[b]
            value = hessian[max(i, j), min(i, j)]
            if a == b:
                value += ridge[i]
            for k in range(b):
                value -= factor[a, k] * factor[b, k]
            if a != b:
                factor[a, b] = value / factor[b, b]
            elif value > 0.0:
                factor[a, a] = np.sqrt(value)
            else:
                return False
    for a in range(count):
        value = -slope[free[a]]
        for k in range(a):
            value -= factor[a, k] * direction[k]
        direction[a] = value / factor[a, a]
    for a in range(count - 1, -1, -1):
        value = direction[a]
        for k in range(a + 1, count):
            value -= factor[k, a] * direction[k]
        direction[a] = value / factor[a, a]
    return True


@compiled
def _projected_newton(
    f: Floats,
    cost: Floats,
    left: Integers,
    right: Integers,
    forward: Floats,
    back: Floats,
    m: int,
    p: int,
    upper: float,
    tolerance: float,
    limit: int,
) -> tuple[float, int]:
    """Improve ``f`` in place; returns (Frank–Wolfe gap, iterations).

    Newton on the coordinates that are not held by an edge, damped in proportion to |g|/R, so that flat directions (a
    group of responses that may shift together) move by about the box's width and not to infinity; then a backtracking
    search along the projected path. The point of least gap is returned: the gap need not fall in every step.
    """
    gradient, slope, trial_gradient = np.empty(m), np.empty(m), np.empty(m)
    hessian, factor = np.empty((m, m)), np.empty((m, m))
    direction, ridge, trial = np.empty(m), np.empty(m), np.empty(m)
    free = np.empty(m, np.int64)
    size = 0.0
    for i in range(m):
        size += upper * abs(cost[i])
    for k in range(p):
        size += forward[k] + back[k]
    value = _evaluate(f, cost, left, right, forward, back, m, p, gradient, hessian)
    best, best_gap = np.empty(m), _frank_wolfe_gap(gradient, f, upper, m)
    _copy(f, best)
    scale = 1.0
    iteration = 0
    while iteration < limit and best_gap > tolerance and scale < 1e12:
        iteration += 1
        count = 0
        steepest = trace = 0.0
        for i in range(m):
            if (f[i] <= 0.0 and gradient[i] > 0.0) or (f[i] >= upper and gradient[i] < 0.0):
                continue
            free[count] = i
            count += 1
            steepest = max(steepest, abs(gradient[i]))
            trace += hessian[i, i]
        if count == 0:
            break
        for i in range(m):
            ridge[i] = scale * steepest / upper + 1e-14 * trace + 1e-300
        moved = False
        step = 1.0
        if _newton_direction(gradient, hessian, ridge, free, count, factor, direction):
            _copy(gradient, slope)
            for _ in range(_HALVINGS):
                decrease = 0.0
                _copy(f, trial)
                for a in range(count):
                    i = free[a]
                    trial[i] = min(max(f[i] + step * direction[a], 0.0), upper)
                    decrease += slope[i] * (f[i] - trial[i])
                reached = _evaluate(trial, cost, left, right, forward, back, m, p, trial_gradient, hessian)
                if reached <= value - _ARMIJO * decrease + _ROUNDING * (abs(value) + size):
                    moved = decrease > 0.0
                    break
                step *= 0.5
        if not moved:
            scale = scale * 10.0 + 1e-3
            _evaluate(f, cost, left, right, forward, back, m, p, gradient, hessian)
            continue
        scale = max(scale * (0.1 if step == 1.0 else 2.0), 1e-8)
        value = reached
        _copy(trial, f)
        _copy(trial_gradient, gradient)
        gap = _frank_wolfe_gap(gradient, f, upper, m)
        if gap < best_gap:
            best_gap = gap
            _copy(f, best)
    _copy(best, f)
    return best_gap, iteration


@compiled
def _log_barrier(
    f: Floats,
    cost: Floats,
    left: Integers,
    right: Integers,
    forward: Floats,
    back: Floats,
    m: int,
    p: int,
    upper: float,
    tolerance: float,
) -> float:
    """Write the minimizer to ``f`` by following the central path from the middle of the box; returns its gap.

    At the centre for μ the gradient is μ/f − μ/(R − f), so that the Frank–Wolfe gap is at most m μ.
    """
    gradient, slope, shift, ridge = np.empty(m), np.empty(m), np.empty(m), np.empty(m)
    hessian, factor = np.empty((m, m)), np.empty((m, m))
    direction, trial = np.empty(m), np.empty(m)
    free = np.arange(m)
    for i in range(m):
        f[i] = upper / 2
    value = _evaluate(f, cost, left, right, forward, back, m, p, gradient, hessian)
    gap = _frank_wolfe_gap(gradient, f, upper, m)
    size = gap
    for k in range(p):
        size += forward[k] + back[k]
    best, best_gap = np.empty(m), gap
    _copy(f, best)
    mu = 0.1 * gap / m
    while best_gap > tolerance and mu > 1e-3 * tolerance / m:
        for _ in range(_BARRIER_STEPS):
            if gap <= 2 * m * mu:
                break
            for i in range(m):
                slope[i] = gradient[i] - mu / f[i] + mu / (upper - f[i])
                ridge[i] = mu / f[i] ** 2 + mu / (upper - f[i]) ** 2
            if not _newton_direction(slope, hessian, ridge, free, m, factor, direction):
                break
            decrement = 0.0
            step = 1.0
            for i in range(m):
                decrement -= slope[i] * direction[i]
                room = (upper - f[i]) if direction[i] > 0.0 else f[i]
                step = min(step, 0.99 * room / max(abs(direction[i]), 1e-300))
            merit = value
            for i in range(m):
                merit -= mu * (np.log(f[i]) + np.log(upper - f[i]))
            for _ in range(_HALVINGS):
                for i in range(m):
                    trial[i] = f[i] + step * direction[i]
                reached = _evaluate(trial, cost, left, right, forward, back, m, p, shift, hessian)
                value = reached
                for i in range(m):
                    reached -= mu * (np.log(trial[i]) + np.log(upper - trial[i]))
                if reached <= merit - _ARMIJO * step * decrement + _ROUNDING * (abs(merit) + size):
                    break
                step *= 0.5
            _copy(trial, f)
            _copy(shift, gradient)
            gap = _frank_wolfe_gap(gradient, f, upper, m)
            if gap < best_gap:
                best_gap = gap
                _copy(f, best)
        mu *= 0.1
    _copy(best, f)
    return best_gap


@compiled
def _solve_one(
    cost: Floats, wins: Floats, lam: float, upper: float, tolerance: float, limit: int, f: Floats
) -> tuple[float, int]:
    """Minimize from the warm start ``f``, in place; returns (Frank–Wolfe gap, Newton iterations)."""
    n = f.size
    order = np.empty(n, np.int64)
    most = n * (n - 1) // 2
    left, right = np.empty(most, np.int64), np.empty(most, np.int64)
    forward, back = np.empty(most), np.empty(most)
    m, p = _pack_pairs(wins, lam, order, left, right, forward, back)
    packed, packed_cost = np.empty(m), np.empty(m)
    for a in range(m):
        packed[a] = min(max(f[order[a]], 0.0), upper)
        packed_cost[a] = cost[order[a]]
    # Responses without data: the linear term alone decides, and without one they stay where they were.
    for i in range(n):
        f[i] = min(max(f[i], 0.0), upper) if cost[i] == 0.0 else (0.0 if cost[i] > 0.0 else upper)
    gap, iterations = 0.0, 0
    if m > 0:
        gap, iterations = _projected_newton(
            packed, packed_cost, left, right, forward, back, m, p, upper, tolerance, limit
        )
        if gap > tolerance > 0.0:
            found = np.empty(m)
            other = _log_barrier(found, packed_cost, left, right, forward, back, m, p, upper, tolerance)
            if other < gap:
                # A few Newton steps more put responses that belong on an edge there.
                gap = _projected_newton(
                    found, packed_cost, left, right, forward, back, m, p, upper, 0.1 * tolerance, 5
                )[0]
                packed = found
    for a in range(m):
        f[order[a]] = packed[a]
    return gap, iterations


@compiled
def solve_batch(
    cost: Floats,
    wins: Floats,
    lam: Floats,
    upper: float,
    tolerance: Floats,
    limit: int,
    values: Floats,
    gaps: Floats,
    iterations: Integers,
) -> None:
    """Every instance of a batch; ``values`` holds the warm starts and receives the critics.

    With tolerance 0 it makes up to ``limit`` Newton iterations and keeps the best point.
    """
    for b in range(cost.shape[0]):
        gaps[b], iterations[b] = _solve_one(
            cost[b], wins[b % wins.shape[0]], lam[b], upper, tolerance[b], limit, values[b]
        )
