"""The adversarial critic: the worst reward for a policy that preference data allow, over a convex class.

    f = argmin_{f ∈ F} { E_π f − E_ref f + λ L_D(f) }

Shapes: policies and critics (..., n); ``lam`` a number or one per data set; a gap is one number per data set. A class F
is an object with one method, `solve`: `Box` is compiled and batched, `LinearBall` is numpy, `Constrained` is cvxpy.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nashpo.tabular.preferences import PreferenceData

RELATIVE_GAP = 1e-9
"""A critic's objective is solved to this times 1 + λ."""
_NEWTON_STEPS = 60
_CONE_GAP = 1e-9
_CONE_ACCEPTED = 1e-3
"""Times 1 + λ. The gap is of first order in the error of f, so that it is about the root of what Clarabel is asked."""


@dataclass(frozen=True)
class Critic:
    """A solved critic.

    Attributes
    ----------
    values : (..., n)
        f, zero at responses that do not exist.
    gap : (data sets)
        The Frank–Wolfe gap max_{x ∈ F} ⟨∇(objective)(f), f − x⟩ of each data set, an upper bound on how far the
        objective is from its minimum. For the box it is Σ_i max(g_i f_i, g_i (f_i − R)).
    parameters : (data sets, d), optional
        θ of a linear class.
    """

    values: np.ndarray
    gap: np.ndarray
    parameters: np.ndarray | None = None


class CriticClass(Protocol):
    """A convex class of critics."""

    def solve(self, data: PreferenceData, direction: np.ndarray, lam: Any, warm: Critic | None = None) -> Critic:
        """argmin over the class of E_x ⟨direction, f⟩ + λ L_D(f), for a direction such as π − ref, (..., n)."""
        ...


@dataclass(frozen=True)
class Box:
    """F = [0, R] per response: the tabular class, solved by projected Newton in compiled code.

    Parameters
    ----------
    R : float
        Largest value, > 0. Float64 resolves boxes up to about 10³ to the promised gap; log-odds of 40 are certainty.

    Raises
    ------
    ValueError
        R is not a positive number.
    """

    R: float

    def __post_init__(self) -> None:
        if not (self.R > 0 and np.isfinite(self.R)):
            raise ValueError(f"R = {self.R:g} must be a number > 0: it bounds the reward")

    def solve(self, data: PreferenceData, direction: np.ndarray, lam: Any, warm: Critic | None = None) -> Critic:
        """Solve every context of every data set in one call, from ``warm`` (R/2 by default).

        The objective separates over contexts: context x has cost ρ_x · direction_x and win frequencies wins_x / N.
        Responses without data are 0 or R by the sign of their cost; where that is 0 they keep their warm value.

        Returns
        -------
        Critic
            Its gap is at most 1e-9 · (1 + λ) per data set.

        Raises
        ------
        ValueError
            λ < 0 or not finite, a direction that is not finite, or a box so wide that float64 does not resolve the gap.
        """
        found = self.minimize(data, direction, lam, warm)
        allowed = RELATIVE_GAP * (1 + _per_data_set(lam, found.gap.shape))
        if (found.gap > allowed).any():
            raise ValueError(
                f"a critic in [0, {self.R:g}] is {np.max(found.gap / allowed):.3g} times farther from its minimum than"
                " 1e-9 (1 + lam): float64 does not resolve so wide a box; lower R, log-odds of 40 are certainty"
            )
        return found

    def minimize(
        self,
        data: PreferenceData,
        direction: np.ndarray,
        lam: Any,
        warm: Critic | None = None,
        polish: int = 0,
    ) -> Critic:
        """As `solve`, but whatever gap was reached is only reported, however large.

        Parameters
        ----------
        polish : int
            Newton iterations beyond the promised gap, as far as float64 goes.
        """
        from nashpo.tabular.critic_kernel import solve_batch  # numba is slow to import

        shape = np.broadcast_shapes(np.shape(direction), data.wins.shape[:-1])
        n = shape[-1]
        weight = _checked_lam(lam, data, shape[:-1])
        exists = np.broadcast_to(data.exists, shape)
        cost = np.where(exists, data.weights[..., None] * direction, 0.0).reshape(-1, n)
        if not np.isfinite(cost).all():
            raise ValueError("the critic's direction has an entry that is NaN or infinite: probabilities are needed")
        start = np.full(shape, self.R / 2) if warm is None else np.array(np.broadcast_to(warm.values, shape))
        values = np.ascontiguousarray(start.reshape(-1, n))
        gaps, iterations = np.empty(len(values)), np.empty(len(values), np.int64)
        # Writable, since the kernel would be compiled a second time for arrays that are not.
        wins = np.require(data.wins.reshape(-1, n, n), np.float64, ["C", "W"])
        scale = np.ascontiguousarray(weight / _per_context(data.N, data, shape[:-1])).reshape(-1)
        # The gap of a data set is the sum over its contexts, so each gets its share of the tolerance.
        contexts = max(1, int(np.prod(data.weights.shape)))
        tolerance = np.ascontiguousarray(RELATIVE_GAP * (1 + weight) / contexts).reshape(-1)
        solve_batch(cost, wins, scale, float(self.R), tolerance, _NEWTON_STEPS, values, gaps, iterations)
        if polish:
            solve_batch(cost, wins, scale, float(self.R), 0 * tolerance, polish, values, gaps, iterations)
        total = gaps.reshape(shape[:-1]).sum(axis=_prompt_axes(data))
        return Critic(np.where(exists, values.reshape(shape), 0.0), np.asarray(total))


@dataclass(frozen=True)
class LinearBall:
    """F = {features · θ : ‖θ‖₂ <= radius}, one θ for all prompts of a data set.

    Solved by Newton steps on the ball (`nashpo.tabular.critic_ball`), warm-started from the θ of the last critic. The
    values lie in ± radius · max ‖features‖ and not in [0, R]: bounds that speak of R hold with the range in its place.

    Parameters
    ----------
    features : (..., n, d)
        Features of every response.
    radius : float
        > 0.

    Raises
    ------
    ValueError
        Features that are not finite, or a radius that is not positive.
    """

    features: np.ndarray
    radius: float

    def __post_init__(self) -> None:
        if np.ndim(self.features) < 2 or not np.isfinite(self.features).all():
            raise ValueError(f"features have shape {np.shape(self.features)} or are not finite: (..., n, d) is needed")
        if not (self.radius > 0 and np.isfinite(self.radius)):
            raise ValueError(f"radius = {self.radius:g} must be a number > 0")

    def solve(self, data: PreferenceData, direction: np.ndarray, lam: Any, warm: Critic | None = None) -> Critic:
        """One problem in θ per data set.

        Returns
        -------
        Critic
            Its gap ⟨∇, θ⟩ + radius ‖∇‖ is at most 1e-9 · (1 + λ).

        Raises
        ------
        ValueError
            λ < 0, features that do not fit the data, or a gap that float64 does not reach (huge features or radius).
        """
        from nashpo.tabular.critic_ball import minimize_on_ball

        batch, n, d = data.batch_shape, data.n, np.shape(self.features)[-1]
        try:
            features = np.broadcast_to(np.asarray(self.features, np.float64), (*batch, n, d))
        except ValueError:
            raise ValueError(
                f"features have shape {np.shape(self.features)}; the data need (..., {n}, d) that fits {batch}"
            ) from None
        weights = _checked_lam(lam, data, batch)
        cost = _cost(data, direction)
        sets = batch[: data.independent]
        theta, gap = np.zeros((*sets, d)), np.zeros(sets)
        for index in np.ndindex(sets):
            lam_here = float(weights[index].flat[0])
            wins = data.wins[index].reshape(-1, n, n) * (lam_here / data.N[index])
            context, i, j = np.nonzero(wins)
            phi = features[index].reshape(-1, n, d)
            start = theta[index] if warm is None or warm.parameters is None else warm.parameters[index]
            allowed = RELATIVE_GAP * (1 + lam_here)
            theta[index], gap[index] = minimize_on_ball(
                np.einsum("xn,xnd->d", cost[index].reshape(-1, n), phi),
                phi[context, i] - phi[context, j],
                wins[context, i, j],
                self.radius,
                allowed,
                start,
            )
            if gap[index] > allowed:
                raise ValueError(
                    f"a linear critic is {gap[index] / allowed:.3g} times farther from its minimum than 1e-9 (1 + lam):"
                    " scale the features to order 1"
                )
        expanded = theta.reshape(*sets, *(1,) * len(batch[data.independent :]), d, 1)
        values = np.where(data.exists, (features @ expanded)[..., 0], 0.0)
        return Critic(values, gap, theta)


@dataclass(frozen=True)
class Constrained:
    """F = {f : constraints(f)}, any class that cvxpy can state.

    Parameters
    ----------
    constraints : callable (cvxpy.Variable) -> list of constraints
        Of the vector f of a data set: contexts one after another, each with its n responses.
    """

    constraints: Callable[[Any], list[Any]]

    def solve(self, data: PreferenceData, direction: np.ndarray, lam: Any, warm: Critic | None = None) -> Critic:
        """Two programs per data set by Clarabel: the critic, and the linear one that is its Frank–Wolfe gap.

        Returns
        -------
        Critic
            Its gap is measured and at most 1e-3 · (1 + λ). Clarabel is asked for an objective within 1e-9 · (1 + λ);
            the gap is a bound that needs no trust in the solver, and is about the root of the error.

        Raises
        ------
        ValueError
            If the class is empty, the objective is unbounded over it, or the solver did not reach that gap.
        """
        import cvxpy as cp

        shape, sets = (*data.batch_shape, data.n), data.batch_shape[: data.independent]
        weights = _checked_lam(lam, data, data.batch_shape)
        cost = _cost(data, direction)
        values, gap = np.empty(shape), np.zeros(sets)
        for index in np.ndindex(sets):
            lam_here = float(weights[index].flat[0])
            wins = data.wins[index].reshape(-1, data.n, data.n) * (lam_here / data.N[index])
            context, i, j = np.nonzero(wins)
            left, right, strength = context * data.n + i, context * data.n + j, wins[context, i, j]
            linear = cost[index].reshape(-1)
            f = cp.Variable(linear.size)
            constraints = list(self.constraints(f))
            loss = cp.sum(cp.multiply(strength, cp.logistic(f[right] - f[left])))
            # Divided by 1 + λ, so that the solver's own tolerances are relative to it.
            best = _solve_cone((linear @ f + loss) / (1 + lam_here), f, constraints)
            # σ(f_right − f_left), from which the gradient of the log-loss is a difference per pair.
            pull = strength * (0.5 + 0.5 * np.tanh((best[right] - best[left]) / 2))
            gradient = linear + np.bincount(right, pull, linear.size) - np.bincount(left, pull, linear.size)
            lowest = _solve_cone(gradient @ f / (1 + lam_here), f, constraints)
            gap[index] = max(0.0, float(gradient @ (best - lowest)))
            if not gap[index] <= _CONE_ACCEPTED * (1 + lam_here):
                raise ValueError(
                    f"cvxpy left the critic a gap of {gap[index]:.3g} at lam = {lam_here:g}: scale or bound the class"
                )
            values[index] = np.reshape(best, values[index].shape)
        return Critic(np.where(data.exists, values, 0.0), gap)


def _solve_cone(objective: Any, f: Any, constraints: list[Any]) -> np.ndarray:
    """argmin of a cvxpy expression, or a ValueError that says what is wrong with the class."""
    import cvxpy as cp

    problem = cp.Problem(cp.Minimize(objective), constraints)
    try:
        with warnings.catch_warnings():
            # The gap is measured by the caller, whatever the solver thinks of its accuracy.
            warnings.filterwarnings("ignore", message="Solution may be inaccurate")
            problem.solve(solver=cp.CLARABEL, tol_gap_abs=_CONE_GAP, tol_gap_rel=_CONE_GAP, tol_feas=_CONE_GAP)
    except cp.SolverError as error:
        raise ValueError(f"cvxpy found no critic in this class ({error}): scale or bound it") from error
    if problem.status.startswith("infeasible"):
        raise ValueError("the critic's class is empty: no f satisfies its constraints; loosen them")
    if problem.status.startswith("unbounded"):
        raise ValueError("the critic's objective is unbounded over its class: add bounds such as 0 <= f <= R")
    if f.value is None:
        raise ValueError(f"cvxpy found no critic in this class ({problem.status}): scale or bound it")
    return np.asarray(f.value, np.float64)


def _prompt_axes(data: PreferenceData) -> tuple[int, ...]:
    """The axes of an array (..., contexts) that are prompts, counted from the end."""
    return tuple(range(-data.weights.ndim, 0))


def _per_context(given: Any, data: PreferenceData, batch: tuple[int, ...]) -> np.ndarray:
    """A number per data set, repeated over its prompts."""
    values = np.asarray(given, np.float64)
    return np.broadcast_to(values.reshape(values.shape + (1,) * data.weights.ndim if values.ndim else ()), batch)


def _per_data_set(given: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(np.asarray(given, np.float64), shape)


def _checked_lam(lam: Any, data: PreferenceData, batch: tuple[int, ...]) -> np.ndarray:
    """λ of every context."""
    values = np.asarray(lam, np.float64)
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        raise ValueError(f"lam = {values[wrong].flat[0]:g} must be a finite number >= 0: it weighs the data")
    return _per_context(values, data, batch)


def _cost(data: PreferenceData, direction: np.ndarray) -> np.ndarray:
    """The linear term (contexts, n): each prompt's weight times the direction."""
    full = np.broadcast_to(direction, (*data.batch_shape, data.n))
    return np.where(data.exists, data.weights[..., None] * full, 0.0)
