"""Policy classes that are fitted to feedback instead of stepping exactly: tables and log-linear policies.

Shapes: log-policies (..., n), features (n, d) or (..., n, d); see `nashpo.tabular.samples.Sample` for the feedback. The
minimizers over all policies, `minimize_pointwise`, `minimize_pairwise` and `minimize_logistic`, are here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from nashpo.core.policies import log_normalize, logsumexp
from nashpo.core.rules.form import Form
from nashpo.tabular.minimizers import minimize_logistic, minimize_pairwise, minimize_pointwise
from nashpo.tabular.objectives import ACCEPTS, LOSSES, NORMALIZERS, Expansion, Objective
from nashpo.tabular.samples import Coordinates, Sample

__all__ = ["LogLinear", "Projection", "Softmax", "minimize_logistic", "minimize_pairwise", "minimize_pointwise"]

_STEPS = 100
_HALVINGS = 40
_TOLERANCE = 1e-13


@runtime_checkable
class Projection(Protocol):
    """How a stage is fitted."""

    loss: str

    def check(self, n: int, batch_shape: tuple[int, ...]) -> None:
        """Refuse a game that the class of policies does not fit (ValueError)."""
        ...

    def fit(self, log_base: np.ndarray, sample: Sample) -> np.ndarray:
        """The log-policy that minimizes the loss on the sample, from the base (..., n)."""
        ...


def _check_choice(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{what} = {value!r} is none of {', '.join(known)}")


@dataclass(frozen=True)
class Softmax:
    """Tables: one free logit per response, fitted to the minimum of the loss.

    Responses in no comparison keep their probability and those in comparisons share theirs; see
    `nashpo.tabular.minimizers`. With all responses enumerated the fitted policy is the exact step for ``pairwise``,
    ``labelled`` and ``log_z``, and off by second order in η for ``half`` (in l1 about 6e-10 at η = 0.01, 6e-7 at 0.1,
    6e-4 at 1).

    Parameters
    ----------
    loss : str
        ``pointwise`` (SPPO), ``pairwise`` on estimated payoffs, ``labelled`` on each pair's own label (ONPO, INPO,
        IPO), ``logistic`` (DPO).
    normalizer : str
        Of the pointwise loss: ``half``, SPPO's constant, or ``log_z``, from the base and the estimated payoffs on the
        sampled responses.

    Raises
    ------
    ValueError
        On an unknown loss or normalizer.
    """

    loss: str = "pointwise"
    normalizer: str = "half"

    def __post_init__(self) -> None:
        _check_choice("loss", self.loss, list(LOSSES))
        _check_choice("normalizer", self.normalizer, list(NORMALIZERS))

    def check(self, n: int, batch_shape: tuple[int, ...]) -> None:
        """Any game will do."""

    def fit(self, log_base: np.ndarray, sample: Sample) -> np.ndarray:
        """The minimizing table, (..., n)."""
        places = Coordinates(sample.responses, log_base.shape[-1])
        local = places.gather(log_base)
        mass = logsumexp(local)
        objective = LOSSES[self.loss](sample, places, local, self.normalizer)
        return log_normalize(places.scatter(log_base, objective.minimize(local - mass) + mass))


@dataclass(frozen=True, eq=False)
class LogLinear:
    """Log-linear policies: log π = log base + features · Δ − log Z, with the d numbers Δ fitted in every context.

    From log-linear starts and references, the uniform one say, all policies are log-linear, log π = features·θ − log Z.
    The class is realizable where the payoffs lie in the features' span (plus a constant), and misspecified otherwise.
    Of all minimizing Δ the one of least Euclidean norm is taken.

    Parameters
    ----------
    features : (n, d) or (..., n, d)
    loss, normalizer : str
        As in `Softmax`.
    ridge : float
        Adds ridge · |Δ|² to the mean loss. Few responses leave some directions of Δ all but undetermined; a small
        ridge, 1e-3 say, keeps noise from being blown up along them.

    Raises
    ------
    ValueError
        On features that are no finite table, an unknown loss or normalizer, or a negative ridge.
    """

    features: np.ndarray
    loss: str = "pointwise"
    normalizer: str = "half"
    ridge: float = 0.0

    def __post_init__(self) -> None:
        features = np.asarray(self.features, dtype=np.float64)
        if features.ndim < 2 or 0 in features.shape:
            raise ValueError(f"features have shape {features.shape}, expected (n, d) or (..., n, d)")
        if not np.isfinite(features).all():
            raise ValueError("features hold NaN or infinite entries")
        object.__setattr__(self, "features", features)
        _check_choice("loss", self.loss, list(LOSSES))
        _check_choice("normalizer", self.normalizer, list(NORMALIZERS))
        if not 0 <= self.ridge < np.inf:
            raise ValueError(f"ridge = {self.ridge} must be a number >= 0")

    def check(self, n: int, batch_shape: tuple[int, ...]) -> None:
        """One row of features per response, in every context or in each."""
        lead = self.features.shape[:-2]
        fits = len(lead) <= len(batch_shape) and all(a in (1, b) for a, b in zip(lead[::-1], batch_shape[::-1]))
        if self.features.shape[-2] != n or not fits:
            raise ValueError(
                f"features have shape {self.features.shape}, but the game has {n} responses and contexts {batch_shape}:"
                f" expected ({n}, d) or ({', '.join(str(k) for k in (*batch_shape, n))}, d)"
            )

    def fit(self, log_base: np.ndarray, sample: Sample) -> np.ndarray:
        """The minimizing log-linear policy, (..., n)."""
        places = Coordinates(sample.responses, log_base.shape[-1])
        local = places.gather(log_base)
        objective = LOSSES[self.loss](sample, places, local - logsumexp(local), self.normalizer)
        features = np.broadcast_to(self.features, (*log_base.shape, self.features.shape[-1]))
        rows = np.take_along_axis(features, places.responses[..., None], axis=-2)
        change = self._descend(objective, local, rows)
        return log_normalize(log_base + np.squeeze(features @ change[..., None], axis=-1))

    def _descend(self, objective: Objective, log_base: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """argmin_Δ loss(rows · Δ) + ridge |Δ|², by damped Newton steps of least norm; (..., d)."""
        across = np.swapaxes(rows, -1, -2)
        change = np.zeros((*rows.shape[:-2], rows.shape[-1]))

        def logits(change: np.ndarray) -> np.ndarray:
            return np.squeeze(rows @ change[..., None], axis=-1)

        def penalized(at: Expansion, change: np.ndarray) -> np.ndarray:
            return at.value + self.ridge * np.sum(change**2, axis=-1)

        at = objective.expand(log_base, logits(change))
        for _ in range(_STEPS):
            gradient = np.squeeze(across @ at.gradient[..., None], axis=-1) + 2 * self.ridge * change
            curvature = across @ at.curvature @ rows + 2 * self.ridge * np.eye(rows.shape[-1])
            step = -_solve_least_norm(curvature, gradient)
            value, promised = penalized(at, change), -np.sum(gradient * step, axis=-1)
            damping = np.ones(value.shape)
            for _ in range(_HALVINGS):
                trial = change + damping[..., None] * step
                at = objective.expand(log_base, logits(trial))
                # Below the rounding of the loss its values tell nothing, and Newton's step is right.
                worse = (penalized(at, trial) > value) & (promised > 1e-10 * np.abs(value))
                if not worse.any():
                    break
                damping = np.where(worse, damping / 2, damping)
            moved = np.max(np.abs(logits(trial - change)), initial=0.0)
            change = trial
            if moved <= _TOLERANCE * (1 + np.max(np.abs(logits(change)), initial=0.0)):
                break
        return change

    def __repr__(self) -> str:
        shape = "x".join(str(k) for k in self.features.shape)
        return f"LogLinear({shape} features, loss={self.loss!r}, normalizer={self.normalizer!r}, ridge={self.ridge!r})"


def _solve_least_norm(curvature: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """|curvature|⁻¹ gradient with absolute eigenvalues, hence uphill, and nothing along those that are 0; (..., d)."""
    sizes, vectors = np.linalg.eigh(curvature)
    sizes = np.abs(sizes)
    real = sizes > 1e-12 * np.max(sizes, axis=-1, keepdims=True)
    inverse = np.where(real, 1 / np.where(real, sizes, 1.0), 0.0)
    along = np.squeeze(np.swapaxes(vectors, -1, -2) @ gradient[..., None], axis=-1)
    return np.squeeze(vectors @ (inverse * along)[..., None], axis=-1)


def default_projection(form: Form) -> Softmax:
    """Tables on SPPO's pointwise loss, or on DPO's logistic one where the payoffs are rewards."""
    kinds = {payoff.kind for payoff in form.payoffs}
    return Softmax(next((loss for loss, kind in ACCEPTS.items() if kinds == {kind}), "pointwise"))


def checked_projection(projection: Any, form: Form, n: int, batch_shape: tuple[int, ...]) -> Projection:
    """The projection, the default where it is None, after checks that it fits the game and the rule's payoffs.

    Raises
    ------
    TypeError, ValueError
    """
    chosen = default_projection(form) if projection is None else projection
    if not isinstance(chosen, Projection):
        raise TypeError(f"projection = {projection!r} is no projection: give Softmax(...) or LogLinear(features)")
    chosen.check(n, batch_shape)
    accepts = ACCEPTS.get(chosen.loss)
    for payoff in form.payoffs:
        if accepts is not None and payoff.kind != accepts:
            fitting = ", ".join(loss for loss, kind in ACCEPTS.items() if kind == payoff.kind)
            raise ValueError(
                f"loss = {chosen.loss!r} does not fit a payoff of kind '{payoff.kind}'"
                + (f": use {fitting}" if fitting else ", and neither does another loss on samples")
            )
    return chosen
