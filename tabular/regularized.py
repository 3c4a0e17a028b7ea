r"""Nash equilibrium of the KL-regularized game by Newton's method in log space.

Shapes: A = P - 1/2 is (..., n, n) and skew, log_reference, log_policy and mask are (..., n), tau, residual and
iterations (...). Logarithms are natural (nats).

The equilibrium of J_tau(pi, pi') = P(pi beats pi') - tau KL(pi || ref) + tau KL(pi' || ref) is the only solution of

    log pi = log ref + A pi / tau - log Z,

that is of F(u) = u - log ref - A softmax(u) / tau = 0 with log Z = logsumexp(u). The Jacobian

    I - A (diag pi - pi pi') / tau

has the eigenvalues 1 - i lambda / tau, so it is never singular: Newton's direction exists and decreases |F| everywhere.
A small tau is reached through larger ones: F has steep folds there, where a line search alone creeps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LARGEST_DIRECT_TAU = 0.25
"""Newton goes straight to any tau above this; below, tau falls by `TAU_RATIO` from stage to stage."""
TAU_RATIO = 4.0
STAGE_RESIDUAL = 0.5
"""A stage before the last is left at this residual, in nats: it only has to be near."""
SETTLED = 1e-9
ITERATIONS = 200
HALF_UNIT = 2.0**-53
HALVINGS = 30
SUFFICIENT_DECREASE = 1e-4

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RegularizedSolution:
    """An equilibrium of every regularized game of a batch.

    Attributes
    ----------
    log_policy : (..., n) array
        Log-probabilities in nats; -inf exactly on masked responses.
    residual : (...) array
        max_y |log pi(y) - (log ref(y) + (A pi)_y / tau - log Z)| in nats, over the active responses.
    iterations : (...) int array
        Newton steps, those on the way to a small tau included.
    """

    log_policy: Array
    residual: Array
    iterations: NDArray[np.int64]


def solve_regularized(
    A: Array, log_reference: Array, tau: ArrayLike, mask: NDArray[np.bool_] | None = None
) -> RegularizedSolution:
    """Solve max_pi min_pi' pi' A pi' - tau KL(pi || ref) + tau KL(pi' || ref), each game of the batch on its own.

    Parameters
    ----------
    A : (..., n, n) array
        P - 1/2, skew up to rounding (the caller has validated it).
    log_reference : (..., n) array
        Log-probabilities of the reference in nats, finite on active responses; need not be normalized.
    tau : float or (...) array
        KL weight, positive.
    mask : (..., n) bool array, optional
        Active responses; a masked response gets log-probability -inf and its entries of A are never used.

    Returns
    -------
    RegularizedSolution
        With a residual of at most 1e-12 for tau from 10 down to 1e-3. Rounding of the logarithms, which are of order
        1 / tau, bounds it below by about 1e-16 / tau, so that a smaller tau has a larger residual.

    Raises
    ------
    ValueError
        If A is not square or empty or not finite, a game has no active response, tau is not positive and finite, or
        log_reference is not finite on an active response.

    Notes
    -----
    The fixed point is the first-order condition; uniqueness and full support follow from strong monotonicity.
    """
    A = np.asarray(A, dtype=np.float64)
    if A.ndim < 2 or A.shape[-1] != A.shape[-2] or A.shape[-1] == 0:
        raise ValueError(f"A must be square with at least one response, (..., n, n); its shape is {A.shape}")
    batch, n = A.shape[:-2], A.shape[-1]
    weight = np.broadcast_to(np.asarray(tau, dtype=np.float64), batch)
    if not (np.isfinite(weight) & (weight > 0.0)).all():
        bad = weight[~(np.isfinite(weight) & (weight > 0.0))][0]
        raise ValueError(f"tau must be positive and finite, not {bad}: for tau = 0 solve the game without reference")
    active = np.broadcast_to(True if mask is None else np.asarray(mask, dtype=np.bool_), A.shape[:-1])
    if not active.any(axis=-1).all():
        raise ValueError("mask leaves a game without responses: keep at least one in every game")
    reference = np.where(active, np.broadcast_to(np.asarray(log_reference, dtype=np.float64), A.shape[:-1]), 0.0)
    if not np.isfinite(reference).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(reference))[0])
        raise ValueError(f"log_reference is {reference[place]} at {place}: the reference needs full support")
    payoff = A if mask is None else np.where(active[..., None] & active[..., None, :], A, 0.0)
    if not np.isfinite(payoff).all():
        raise ValueError("A holds a NaN or an infinity: every entry must be a win rate minus 1/2, in [-1/2, 1/2]")

    games = _Games(
        payoff.reshape(-1, n, n), reference.reshape(-1, n), active.reshape(-1, n), np.ascontiguousarray(weight.ravel())
    )
    u, iterations = _solve(games)
    log_policy = _log_softmax(u, games.active)
    residual = _residual(games, log_policy)
    return RegularizedSolution(log_policy.reshape(A.shape[:-1]), residual.reshape(batch), iterations.reshape(batch))


@dataclass(frozen=True)
class _Games:
    """A flat batch: A (b, n, n), log_reference and active (b, n), tau (b,)."""

    A: Array
    log_reference: Array
    active: NDArray[np.bool_]
    tau: Array

    def at(self, index: NDArray[np.int64], tau: Array) -> _Games:
        whole = len(index) == len(self.A)
        A = self.A if whole else self.A[index]
        return _Games(A, self.log_reference[index], self.active[index], tau)


def _log_softmax(u: Array, active: NDArray[np.bool_]) -> Array:
    u = np.where(active, u, -np.inf)
    u = u - u.max(axis=-1, keepdims=True)
    return u - np.log(np.exp(u).sum(axis=-1, keepdims=True))


def _response(games: _Games, policy: Array) -> Array:
    """A policy / tau: what the equilibrium adds to log ref."""
    return np.matmul(games.A, policy[..., None])[..., 0] / games.tau[:, None]


def _residual(games: _Games, log_policy: Array) -> Array:
    target = games.log_reference + _response(games, np.exp(log_policy))
    target = _log_softmax(target, games.active)
    difference = np.subtract(log_policy, target, out=np.zeros_like(target), where=games.active)
    return np.abs(difference).max(axis=-1)


def _solve(games: _Games) -> tuple[Array, NDArray[np.int64]]:
    """Go through the stages tau 4^k, ..., 4 tau, tau; every game has its own number of them."""
    u = games.log_reference.copy()
    iterations = np.zeros(len(u), dtype=np.int64)
    stages = np.ceil(np.log(np.maximum(LARGEST_DIRECT_TAU / games.tau, 1.0)) / np.log(TAU_RATIO)).astype(np.int64)
    for stage in range(int(stages.max(initial=0)), -1, -1):
        index = np.flatnonzero(stages >= stage)
        part = games.at(index, games.tau[index] * TAU_RATIO**stage)
        u[index], steps = _newton(part, u[index], STAGE_RESIDUAL if stage > 0 else 0.0)
        iterations[index] += steps
    return u, iterations


def _newton(games: _Games, u: Array, tolerance: float) -> tuple[Array, NDArray[np.int64]]:
    """Damped Newton on F until max |F| <= tolerance or rounding ends the decrease."""
    left = np.arange(len(u))
    iterations = np.zeros(len(u), dtype=np.int64)
    part, w = games, u.copy()
    F, policy = _equations(part, w)
    going = _worst(F) > np.maximum(tolerance, _rounding(w))
    for _ in range(ITERATIONS):
        if not going.all():
            u[left] = w
            left = left[going]
            part, w, F, policy = part.at(np.flatnonzero(going), part.tau[going]), w[going], F[going], policy[going]
        if len(left) == 0:
            return u, iterations
        before = np.linalg.norm(F, axis=-1)
        w, F, policy, moved = _line_search(part, w, F, policy, _direction(part, F, policy))
        iterations[left] += moved
        # Near the solution Newton is quadratic: a step there that does not even halve |F| has met rounding.
        creeping = (_worst(F) < SETTLED) & (np.linalg.norm(F, axis=-1) > 0.5 * before)
        going = moved & ~creeping & (_worst(F) > np.maximum(tolerance, _rounding(w)))
    u[left] = w
    return u, iterations


def _worst(F: Array) -> Array:
    return np.abs(F).max(axis=-1)


def _rounding(u: Array) -> Array:
    """Half a unit in the last place of the largest logarithm: no residual is resolved below it."""
    return HALF_UNIT * np.maximum(1.0, np.abs(u).max(axis=-1))


def _equations(games: _Games, u: Array) -> tuple[Array, Array]:
    """F(u), which is 0 on masked responses, and softmax(u)."""
    policy = np.exp(_log_softmax(u, games.active))
    return u - games.log_reference - _response(games, policy), policy


def _direction(games: _Games, F: Array, policy: Array) -> Array:
    """Newton's direction -(I - A (diag pi - pi pi') / tau)^-1 F."""
    scaled = policy / games.tau[:, None]
    jacobian = games.A * -scaled[:, None, :]
    jacobian += _response(games, policy)[:, :, None] * policy[:, None, :]
    diagonal = np.arange(F.shape[-1])
    jacobian[:, diagonal, diagonal] += 1.0
    return np.asarray(np.linalg.solve(jacobian, -F[..., None])[..., 0], dtype=np.float64)


def _line_search(
    games: _Games, u: Array, F: Array, policy: Array, direction: Array
) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
    """Halve the step of every game until |F| decreases; the games where it never does stay and are not `moved`."""
    norm = np.linalg.norm(F, axis=-1)
    u_new, F_new, policy_new = u.copy(), F.copy(), policy.copy()
    pending = np.arange(len(u))
    step = 1.0
    for _ in range(HALVINGS):
        part = games if len(pending) == len(u) else games.at(pending, games.tau[pending])
        trial = u[pending] + step * direction[pending]
        F_trial, policy_trial = _equations(part, trial)
        accepted = np.linalg.norm(F_trial, axis=-1) <= (1.0 - SUFFICIENT_DECREASE * step) * norm[pending]
        chosen = pending[accepted]
        u_new[chosen], F_new[chosen], policy_new[chosen] = trial[accepted], F_trial[accepted], policy_trial[accepted]
        pending = pending[~accepted]
        if len(pending) == 0:
            break
        step *= 0.5
    moved = np.ones(len(u), dtype=np.bool_)
    moved[pending] = False
    return u_new, F_new, policy_new, moved
