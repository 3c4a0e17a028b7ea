"""Exact equilibria: of the game, of its KL-regularized form, and with a certificate in rational arithmetic.

Shapes: policies (..., n), gaps and residuals (...) per context.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nashpo.core.games import duality_gap, regularized_duality_gap, regularized_residual
from nashpo.core.policies import log_from_probabilities
from nashpo.tabular.game import Game
from nashpo.tabular.policy_input import log_policy as checked_log_policy
from nashpo.tabular.win_rates import to_numpy


@dataclass(frozen=True)
class Equilibrium:
    """A Nash equilibrium of a preference game, or of its KL-regularized form.

    Attributes
    ----------
    game : Game
    log_policy : (..., n)
    gap : (...)
        Duality gap; of the regularized game where tau > 0.
    tau : float
        0 for the un-regularized game.
    residual : (...), optional
        Regularized: max_y |log π(y) − log ref(y) − (Pπ)(y)/τ + log Z|, the certificate that a gap cannot give.
    exact : list, optional
        The certificate in rational arithmetic (`nashpo.tabular.rational.ExactEquilibrium`), one per context.
    """

    game: Game
    policy: Any
    gap: Any
    tau: float = 0.0
    residual: Any = None
    exact: list[Any] | None = None
    _log_policy: Any = None

    @cached_property
    def log_policy(self) -> Any:
        """log π*, (..., n), in nats."""
        return log_from_probabilities(self.policy) if self._log_policy is None else self._log_policy

    @cached_property
    def _support_and_unique(self) -> tuple[np.ndarray, np.ndarray]:
        if self.tau:
            exists = self.policy > 0 if self.game.mask is None else self.game.mask
            everywhere = np.broadcast_to(to_numpy(exists), self.policy.shape)
            return everywhere, np.ones(self.policy.shape[:-1], bool)
        from nashpo.tabular.uniqueness import support_and_uniqueness

        local = self.game.as_numpy()
        return support_and_uniqueness(local.A, to_numpy(self.policy), local.mask)

    @property
    def support(self) -> np.ndarray:
        """Which responses the equilibrium plays, bool (..., n)."""
        return self._support_and_unique[0]

    @property
    def unique(self) -> np.ndarray:
        """Whether it was shown to be the only equilibrium, bool (...); a distance to it means something only then."""
        return self._support_and_unique[1]


LARGEST_RESIDUAL = 1e-6
"""A regularized equilibrium whose log-probabilities are less certain than this (nats) is refused."""


def nash(
    game: Game, tau: float | None = None, reference: Any = None, *, method: str = "interior", exact: bool = False
) -> Equilibrium:
    """Nash equilibrium (von Neumann winner) of a preference game.

    Without ``tau`` it solves max_π min_ρ P(π ≻ ρ), whose value is ½ by symmetry; with it the game
    J_τ(π, ρ) = P(π ≻ ρ) − τ KL(π ‖ ref) + τ KL(ρ ‖ ref), whose unique equilibrium satisfies π ∝ ref · exp(Pπ/τ).

    Parameters
    ----------
    game : Game
        Any batch of contexts; ragged ones too. Computed in numpy and returned in the game's own arrays.
    tau : float, optional
        KL weight; None or 0 for the un-regularized game.
    reference : (..., n), optional
        Full support; uniform by default. Needs tau > 0.
    method : str
        "interior" (the skew interior point; Newton where tau > 0), "highs" or "cvxpy", which are slower and serve as
        cross-checks. Where equilibria are many the interior point returns one with many responses (uniform over the
        unbeaten ones, where there are any) and a linear program returns a vertex.
    exact : bool
        Certify in rational arithmetic: every inequality is verified exactly. Un-regularized games only.

    Returns
    -------
    Equilibrium

    Raises
    ------
    ValueError
        tau < 0, a reference without tau or without full support, an unknown method, or exact with tau.
    """
    if not isinstance(game, Game):
        raise TypeError("game is no Game: give Game(P)")
    if tau is not None and not isinstance(tau, int | float | np.number):
        raise TypeError(f"tau = {tau!r} must be a number")
    if method not in METHODS:
        raise ValueError(f"method = {method!r} is none of {', '.join(METHODS)}")
    if tau is not None and not (tau >= 0 and np.isfinite(tau)):
        raise ValueError(f"tau = {tau:g} must be a finite number >= 0")
    if not tau:
        if reference is not None:
            raise ValueError("a reference needs tau > 0: the un-regularized game has none")
        return _unregularized(game, METHODS[method][0], exact)
    if exact:
        raise ValueError("exact=True is for the un-regularized game: a regularized equilibrium is not rational")
    return _regularized(game, tau, reference, METHODS[method][1])


def _unregularized(game: Game, solve: Callable[..., np.ndarray], exact: bool) -> Equilibrium:
    local = game.as_numpy()
    policy = solve(local.A, local.mask)
    certificates = None
    if exact:
        certificates, policy = _certify(local, policy)
    gap = duality_gap(local.A, policy, local.mask)
    back = game.xp.asarray
    return Equilibrium(game, back(policy), back(np.asarray(gap)), exact=certificates)


def _certify(game: Game, policy: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """A rational certificate per context, on the responses that exist, and the policies that they certify."""
    from nashpo.tabular.rational import certify

    table = game.P if game.rational is None else game.rational
    certificates, exact = [], np.zeros_like(policy)
    for context in np.ndindex(game.batch_shape):
        some = np.ones(game.n, bool) if game.mask is None else game.mask[context]
        certificate = certify(table[context][np.ix_(some, some)].tolist(), policy[context][some])
        certificates.append(certificate)
        exact[context][some] = [float(x) for x in certificate.policy]
    return certificates, exact


def _regularized(game: Game, tau: float, reference: Any, method: Callable[..., np.ndarray]) -> Equilibrium:
    local = game.as_numpy()
    log_reference = checked_log_policy(local, reference, "reference", full_support=True)
    log_policy = method(local.A, log_reference, tau, local.mask)
    back = game.xp.asarray
    residual = np.asarray(regularized_residual(local.A, log_policy, log_reference, tau, local.mask))
    if not residual.max() <= LARGEST_RESIDUAL and method is METHODS["interior"][1]:
        raise ValueError(
            f"tau = {tau:g} is too small for double precision: the equilibrium is only known to"
            f" {residual.max():.1g} nats; use tau >= 1e-6, or the un-regularized game"
        )
    gap = regularized_duality_gap(local.A, log_policy, log_reference, tau, local.mask)
    return Equilibrium(
        game,
        policy=back(np.exp(log_policy)),
        gap=back(np.asarray(gap)),
        tau=tau,
        residual=back(residual),
        _log_policy=back(log_policy),
    )


def _one_by_one(solve: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A solver of one game applied to every context, on the responses that exist."""

    def solve_all(A: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        policies = np.zeros(A.shape[:-1])
        for context in np.ndindex(A.shape[:-2]):
            some = np.ones(A.shape[-1], bool) if mask is None else mask[context]
            policies[context][some] = solve(A[context][np.ix_(some, some)])
        return policies

    return solve_all


def _interior(A: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    from nashpo.tabular.interior_point import solve_skew

    return solve_skew(A, mask).policy


def _newton(A: np.ndarray, log_reference: np.ndarray, tau: float, mask: np.ndarray | None) -> np.ndarray:
    from nashpo.tabular.regularized import solve_regularized

    return solve_regularized(A, log_reference, tau, mask).log_policy


def _highs(A: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    from nashpo.tabular.linear_program import solve_highs

    return _one_by_one(solve_highs)(A, mask)


def _cvxpy(A: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    from nashpo.tabular.linear_program import solve_cvxpy

    return _one_by_one(solve_cvxpy)(A, mask)


def _cone(A: np.ndarray, log_reference: np.ndarray, tau: float, mask: np.ndarray | None) -> np.ndarray:
    from nashpo.tabular.linear_program import solve_regularized_cvxpy

    log_policies = np.full(A.shape[:-1], -np.inf)
    for context in np.ndindex(A.shape[:-2]):
        some = np.ones(A.shape[-1], bool) if mask is None else mask[context]
        policy = solve_regularized_cvxpy(A[context][np.ix_(some, some)], log_reference[context][some], tau)
        log_policies[context][some] = log_from_probabilities(policy)
    return log_policies


def _no_linear_program(*_: Any) -> np.ndarray:
    raise ValueError("method='highs' solves linear programs; a regularized game needs 'interior' or 'cvxpy'")


METHODS: dict[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    "interior": (_interior, _newton),
    "highs": (_highs, _no_linear_program),
    "cvxpy": (_cvxpy, _cone),
}
