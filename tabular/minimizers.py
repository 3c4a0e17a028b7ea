"""Minimizers of the losses of `nashpo.core.losses` over all policies: what an unlimited softmax table is trained to.

Shapes: ``log_base, target, weights`` (..., n); pair weights, pair targets and win rates (..., n, n); the result is a
log-policy (..., n). Leading axes broadcast. log-ratios ``lr`` are log π(y) − log base(y) in nats.

A loss on some responses only does not determine the others. Of all minimizers of a loss on pairs the one returned has
the least KL(base ‖ π): responses that comparisons connect share out the probability that they had in the base, and a
response in no comparison keeps its own. A pointwise loss ties all responses of positive weight together by log Z, so
they count as connected. Left to itself, the pointwise square would hand the rest what its targets leave over, often
nothing, and a response of probability 0 never comes back.
"""

from typing import Any

import numpy as np

from nashpo.core.losses import logistic

_STEPS = 200
_ROUNDING = 4 * np.finfo(np.float64).eps


def _logsumexp(values: np.ndarray) -> np.ndarray:
    """log Σ exp over the last axis, kept; −inf for a row of nothing but −inf."""
    top = np.max(values, axis=-1, keepdims=True)
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return safe + np.log(np.sum(np.exp(values - safe), axis=-1, keepdims=True))


def _checked(what: str, values: np.ndarray) -> np.ndarray:
    if np.isnan(values).any() or (values < 0).any() or np.isinf(values).any():
        raise ValueError(f"{what} must be finite and >= 0; got {values[~((values >= 0) & np.isfinite(values))][0]}")
    return values


def minimize_pointwise(log_base: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """argmin_π Σ_y weights(y) · pointwise_square(log π(y) − log base(y), target(y)) over the simplex.

    Parameters
    ----------
    log_base : (..., n)
        Need not be normalized; −inf stays −inf.
    target : (..., n)
        In nats, e.g. η g(y) − log Z, or SPPO's η (g(y) − ½).
    weights : (..., n)
        >= 0. Responses of weight 0 keep their probability in the (normalized) base.

    Returns
    -------
    (..., n)
        Log-policy, to a few roundings of log π. Where Σ_y base(y) exp(target(y)) is below the probability there is to
        share, the problem is not convex: the branch continuous in that sum is followed, a local minimum.

    Raises
    ------
    ValueError
        If a weight is negative or not finite.

    Notes
    -----
    With a = log base + target, stationarity reads w(y) (log π(y) − a(y)) = −λ π(y), hence log π = a − W(λ e^a / w) with
    Lambert's W, and one equation Σ π = 1 is left. It is solved in v = log π(y°) − a(y°), where y° has the largest
    e^a / w, by Newton's method kept in a bracket.
    """
    log_base, target, weights = np.broadcast_arrays(*(np.asarray(x, dtype=float) for x in (log_base, target, weights)))
    _checked("weights", weights)
    shape = log_base.shape
    start = log_base - _logsumexp(log_base)
    seen = (weights > 0) & (log_base > -np.inf)
    flat = seen.reshape(-1, shape[-1])
    rows = np.flatnonzero(flat.any(axis=-1))
    result = start.copy().reshape(-1, shape[-1])
    if len(rows) == 0:
        return start
    mask = flat[rows]
    kept = np.where(mask, result[rows], -np.inf)
    aim = np.where(mask, log_base.reshape(-1, shape[-1])[rows] + target.reshape(-1, shape[-1])[rows], -np.inf)
    with np.errstate(divide="ignore"):
        log_weights = np.log(np.where(mask, weights.reshape(-1, shape[-1])[rows], 1.0))
    fitted = _share(aim, log_weights, _logsumexp(kept)[:, 0])
    result[rows] = np.where(mask, fitted, result[rows])
    return result.reshape(shape)


def _share(aim: np.ndarray, log_weights: np.ndarray, log_mass: np.ndarray) -> np.ndarray:
    """The u with w (u − aim) = −λ e^u and Σ e^u = mass, for rows (B, n) with −inf where there is nothing."""
    pull = np.where(aim > -np.inf, aim - log_weights, -np.inf)
    first = np.argmax(pull, axis=-1)
    row = np.arange(len(aim))
    log_kappa = pull - pull[row, first][:, None]  # W of the first is -v, of the others W(kappa * lambda)

    def at(v: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log-policy, H = log Σ e^u − log mass and dH/dv."""
        w = _lambert(v, log_kappa[which])
        kappa = np.exp(log_kappa[which])
        # dW/dv = (dlambda/dv) kappa e^-W / (1 + W), with dlambda/dv = -(1 - v) e^-v; the product is kept in one exp
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            slope = (1 - v)[:, None] * np.exp(log_kappa[which] - v[:, None] - w) / (1 + w)
        slope = np.where(kappa > 0, slope, 0.0)
        index = np.arange(len(v))
        w[index, first[which]], slope[index, first[which]] = -v, 1.0
        u = aim[which] - w
        total = _logsumexp(u)
        share = np.exp(u - total)
        return u, total[:, 0] - log_mass[which], np.sum(np.where(share > 0, share * slope, 0.0), axis=-1)

    v = np.zeros(len(aim))
    u, height, slope = at(v, row)
    # For v < 0 every u falls by |v| at most, so that the root is below -H(0). For v > 0 the first u alone, which is
    # aim + v, must not exceed the mass.
    high = np.where(height > 0, -height, log_mass - aim[row, first])
    low = np.where(height > 0, 2 * high - 1, 0.0)
    open_rows = np.flatnonzero(height > 0)
    while len(open_rows):
        open_rows = open_rows[at(low[open_rows], open_rows)[1] > 0]
        low[open_rows] *= 2
    active = row
    for _ in range(_STEPS):
        scale = 1 + np.abs(aim[active, first[active]]) + np.abs(v[active])
        active = active[(np.abs(height[active]) > _ROUNDING * scale) & (high[active] - low[active] > _ROUNDING * scale)]
        if len(active) == 0:
            break
        up = height[active] > 0
        high[active] = np.where(up, np.minimum(v[active], high[active]), high[active])
        low[active] = np.where(up, low[active], np.maximum(v[active], low[active]))
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = v[active] - height[active] / slope[active]
        inside = (newton >= low[active]) & (newton <= high[active])
        v[active] = np.where(inside, newton, (low[active] + high[active]) / 2)
        u[active], height[active], slope[active] = at(v[active], active)
    return u - height[:, None]


def _lambert(v: np.ndarray, log_kappa: np.ndarray) -> np.ndarray:
    """W_0(κ λ) at λ = −v e^{−v}, shape (B, n), for v of either sign and without overflow."""
    from scipy.special import lambertw, wrightomega  # slow to import, and only pointwise losses need it

    v = v[:, None]
    with np.errstate(divide="ignore"):
        log_size = np.log(np.abs(v)) - v + log_kappa
    positive = wrightomega(np.where(v < 0, log_size, -np.inf))
    size: Any = np.exp(np.where(v > 0, np.minimum(log_size, -1.0), -np.inf))
    return np.where(v < 0, positive, np.real(lambertw(-size)))


def minimize_pairwise(log_base: np.ndarray, target: np.ndarray, pair_weights: np.ndarray) -> np.ndarray:
    """argmin_π Σ_ij pair_weights_ij · pairwise_square(lr_i, lr_j, target_ij).

    Parameters
    ----------
    log_base : (..., n)
        Need not be normalized; −inf stays −inf, and pairs with such a response do not count.
    target : (..., n, n)
        In nats, antisymmetric in its two last axes, e.g. η (g_i − g_j) or η (P_ij − ½).
    pair_weights : (..., n, n)
        >= 0; for independent pairs of a policy μ, μ_i μ_j.

    Returns
    -------
    (..., n)
        Log-policy: one linear system per row, whose matrix is scaled to the weights' sizes, so that log-ratios are
        right to about 1e-13 for product weights of any size. Responses that no chain of positive weights connects share
        nothing (see the module).

    Raises
    ------
    ValueError
        If a weight is negative or not finite.
    """
    log_base, target, pair_weights = _pairs(log_base, target, pair_weights)
    rhs = np.sum(pair_weights * target - np.swapaxes(pair_weights * target, -1, -2), axis=-1)
    both = pair_weights + np.swapaxes(pair_weights, -1, -2)
    together = connected(both)
    return keep_mass(log_base, solve_laplacian(both, rhs, together), together)


def minimize_logistic(log_base: np.ndarray, P: np.ndarray, pair_weights: np.ndarray, beta: float) -> np.ndarray:
    """argmin_π Σ_ij pair_weights_ij P_ij · logistic(lr_i, lr_j, beta), the population loss of DPO.

    Parameters
    ----------
    log_base : (..., n)
        Need not be normalized; −inf stays −inf, and pairs with such a response do not count.
    P : (..., n, n)
        Probability that i is preferred to j, or how often it was.
    pair_weights : (..., n, n)
        >= 0, and symmetric unless P counts; for independent pairs of a policy μ, μ_i μ_j.
    beta : float
        > 0.

    Returns
    -------
    (..., n)
        Log-policy, by damped Newton steps on a convex function to a gradient of 1e-13 of each response's weight.

    Raises
    ------
    ValueError
        If the infimum is not attained, because some compared responses never lose; if ``beta`` <= 0 or a weight is
        negative or not finite.
    """
    if not beta > 0:
        raise ValueError(f"beta = {beta} must be > 0")
    log_base, P, pair_weights = _pairs(log_base, P, pair_weights)
    wins = _checked("win rates times pair weights", pair_weights * P)
    together = connected(wins + np.swapaxes(wins, -1, -2))
    if not np.array_equal(reachable(wins) & together, together):
        raise ValueError(
            "the logistic loss has no minimizer: some compared responses never lose, so that their log-ratios grow"
            " without end; use soft labels, keep win rates off 0 and 1, or fit a log-linear policy with a ridge"
        )
    value = np.zeros(log_base.shape)

    def loss_at(value: np.ndarray) -> np.ndarray:
        return np.sum(wins * logistic(value[..., :, None], value[..., None, :], 1.0), axis=(-1, -2))

    size = np.sum(wins + np.swapaxes(wins, -1, -2), axis=-1)
    loss = loss_at(value)
    for _ in range(_STEPS):
        lost = 0.5 - 0.5 * np.tanh((value[..., :, None] - value[..., None, :]) / 2)
        gain = np.sum(wins * lost - np.swapaxes(wins * lost, -1, -2), axis=-1)
        if np.all(np.abs(gain) <= 1e-13 * size):
            break
        bend = wins * lost * np.swapaxes(lost, -1, -2)
        step = solve_laplacian(bend + np.swapaxes(bend, -1, -2), gain, together)
        damping = np.ones(loss.shape)
        for _ in range(40):
            trial = value + damping[..., None] * step
            trial_loss = loss_at(trial)
            worse = trial_loss > loss + _ROUNDING * np.abs(loss)
            if not worse.any():
                break
            damping = np.where(worse, damping / 2, damping)
        value, loss = trial, trial_loss
    return keep_mass(log_base, value / beta, together)


def _pairs(
    log_base: np.ndarray, table: np.ndarray, pair_weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arguments as float arrays of one leading shape; weights 0 on the diagonal and where the base has nothing."""
    log_base, table, pair_weights = (np.asarray(x, dtype=float) for x in (log_base, table, pair_weights))
    n = log_base.shape[-1]
    lead = np.broadcast_shapes(log_base.shape[:-1], table.shape[:-2], pair_weights.shape[:-2])
    there = log_base > -np.inf
    usable = there[..., :, None] & there[..., None, :] & ~np.eye(n, dtype=bool)
    weights = np.where(usable, _checked("pair_weights", pair_weights), 0.0)
    return (
        np.broadcast_to(log_base, (*lead, n)),
        np.broadcast_to(table, (*lead, n, n)),
        np.broadcast_to(weights, (*lead, n, n)),
    )


def reachable(edges: np.ndarray) -> np.ndarray:
    """Whether j can be reached from i over positive edges, itself included; bool (..., n, n)."""
    n = edges.shape[-1]
    reach = ((edges > 0) | np.eye(n, dtype=bool)).astype(np.float32)
    for _ in range(max(1, (n - 1).bit_length())):
        reach = (reach @ reach > 0).astype(np.float32)
    return reach > 0


def connected(weights: np.ndarray) -> np.ndarray:
    """Whether a chain of positive symmetric weights joins i and j; bool (..., n, n)."""
    if weights.size and np.all((weights > 0) | np.eye(weights.shape[-1], dtype=bool)):
        return np.ones(weights.shape, dtype=bool)
    return reachable(weights)


def solve_laplacian(weights: np.ndarray, rhs: np.ndarray, together: np.ndarray) -> np.ndarray:
    """d with Σ_j weights_ij (d_i − d_j) = rhs_i, for symmetric weights whose components are ``together``; (..., n).

    The gauge of a component is Σ degree · d = 0. Scaled by its degrees the matrix is a normalized Laplacian, whose
    eigenvalues lie in [0, 2] whatever the weights' sizes; each component's null vector is given the eigenvalue 1.
    """
    degree = np.sum(weights, axis=-1)
    root = np.sqrt(degree)
    inverse = np.where(root > 0, 1 / np.where(root > 0, root, 1.0), 0.0)
    volume = np.sum(np.where(together, degree[..., None, :], 0.0), axis=-1)
    null = np.where(together, root[..., :, None] * root[..., None, :], 0.0)
    null = null / np.where(volume > 0, volume, 1.0)[..., None]
    alone = (degree == 0)[..., None] & np.eye(weights.shape[-1], dtype=bool)
    touched = (degree > 0)[..., None] & np.eye(weights.shape[-1], dtype=bool)
    matrix = touched - inverse[..., :, None] * weights * inverse[..., None, :] + null + alone
    return inverse * np.linalg.solve(matrix, (inverse * rhs)[..., None])[..., 0]


def keep_mass(log_base: np.ndarray, change: np.ndarray, together: np.ndarray) -> np.ndarray:
    """π ∝ base · e^change within each component, every component with its probability in the base; log π (..., n)."""
    start = log_base - _logsumexp(log_base)
    moved = start + change
    before = _logsumexp(np.where(together, start[..., None, :], -np.inf))[..., 0]
    after = _logsumexp(np.where(together, moved[..., None, :], -np.inf))[..., 0]
    there = start > -np.inf
    return np.where(there, moved - np.where(there, after, 0.0) + np.where(there, before, 0.0), -np.inf)
