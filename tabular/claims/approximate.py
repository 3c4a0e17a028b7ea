"""Claims about steps that were only fitted: what the residuals of the log-ratios cost the average policy.

Shapes: T updates of G games; residuals are (T, G, n) in nats (SPPO) or in win rates (ONPO). At every T the comparator u
is the best response to the average of π_1 … π_T. r_t = Pπ_t.
"""

from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from nashpo.core.policies import kl, log_normalize, logsumexp
from nashpo.core.theorems import Status, approximate_mwu_gap, approximate_onpo_gap
from nashpo.tabular.claims.claim import Claim, Ensemble, Floats, Numbers, Tally
from nashpo.tabular.claims.ensembles import SEED, cohort, cohort_numbers, gains, horizon, log_uniform, spread


@dataclass(frozen=True)
class Fitted:
    """A trajectory whose steps carry residuals.

    Attributes
    ----------
    A : (G, n, n)
    eta : float
    current : (T, G, n)
        log π_1 … log π_T.
    auxiliary : (T, G, n)
        log π'_1 … log π'_T; ``current`` where the rule has one sequence.
    residual : (T, G, n)
        ε_t of SPPO, or e'_t of ONPO's auxiliary sequence.
    forecast : (T, G, n)
        m_t, zero for SPPO.
    """

    A: Floats
    eta: float
    current: Floats
    auxiliary: Floats
    residual: Floats
    forecast: Floats

    @cached_property
    def policy(self) -> Floats:
        """π_1 … π_T, (T, G, n)."""
        return np.exp(self.current)

    @cached_property
    def gain(self) -> Floats:
        """Aπ_t, (T, G, n)."""
        return gains(self.A, self.policy)

    @cached_property
    def T(self) -> Numbers:
        """1 … T as (T, 1)."""
        return np.arange(1, len(self.current) + 1, dtype=np.float64)[:, None]

    @cached_property
    def comparator(self) -> np.ndarray:
        """u, the best response to the average of π_1 … π_T, as an index (T, G, 1)."""
        return np.argmax(np.cumsum(self.gain, axis=0), axis=-1)[..., None]

    @cached_property
    def gap(self) -> Floats:
        """Duality gap of the average, (T, G)."""
        return 2 * np.max(np.cumsum(self.gain, axis=0), axis=-1) / self.T

    def at_comparator(self, values: Floats) -> Floats:
        """values(u), (T, G), of (T, G, n) or (1, G, n)."""
        return np.take_along_axis(np.broadcast_to(values, self.gain.shape), self.comparator, axis=-1)[..., 0]

    @property
    def divergence(self) -> Floats:
        """KL(u ‖ π_1), (T, G)."""
        return self.at_comparator(-self.current[:1])

    @property
    def alignment(self) -> Floats:
        """Σ_t ⟨π_t − u, residual_t⟩, (T, G)."""
        own = np.sum(self.policy * self.residual, axis=-1)
        return np.cumsum(own, axis=0) - self.at_comparator(np.cumsum(self.residual, axis=0))


def _payoff(A: Floats, log_policy: Floats) -> Floats:
    return np.matmul(A, np.exp(log_policy)[..., None])[..., 0]


def fitted_weights(A: Floats, start: Floats, eta: float, residual: Floats) -> Fitted:
    """π_{t+1} ∝ π_t exp(η r_t + ε_t)."""
    current = [start]
    for epsilon in residual[:-1]:
        current.append(log_normalize(current[-1] + eta * _payoff(A, current[-1]) + epsilon))
    trajectory = np.stack(current)
    return Fitted(A, eta, trajectory, trajectory, residual, np.zeros_like(residual))


def fitted_optimism(A: Floats, start: Floats, eta: float, main: Floats, auxiliary: Floats) -> Fitted:
    """π'_{t+1} ∝ π'_t exp(η(r_t + e'_t)), π_{t+1} ∝ π'_{t+1} exp(η m_{t+1}), m_{t+1} = r_t + e_{t+1}, m_1 = 0."""
    pi, pi_auxiliary, forecast = [start], [start], [np.zeros_like(start)]
    for e_next, e_auxiliary in zip(main[1:], auxiliary[:-1], strict=True):
        payoff = _payoff(A, pi[-1])
        forecast.append(payoff + e_next)
        pi_auxiliary.append(log_normalize(pi_auxiliary[-1] + eta * (payoff + e_auxiliary)))
        pi.append(log_normalize(pi_auxiliary[-1] + eta * forecast[-1]))
    return Fitted(A, eta, np.stack(pi), np.stack(pi_auxiliary), auxiliary, np.stack(forecast))


def residuals(rng: np.random.Generator, shape: tuple[int, ...], largest: float) -> Floats:
    """Normal residuals of a random size, part of them the same at every step (a policy that cannot be fitted)."""
    size = log_uniform(rng, 1e-4, largest)
    lasting = rng.random() * rng.standard_normal((1, *shape[1:]))
    return size * (rng.standard_normal(shape) + lasting)


def _weights(quick: bool, index: int) -> Fitted:
    rng = np.random.default_rng([SEED, 16, index])
    games = cohort(index)
    eta = log_uniform(rng, 0.01, 4)
    shape = (horizon(rng, quick), *games.start.shape)
    return fitted_weights(games.game.A, games.log_start, eta, residuals(rng, shape, 1.0))


def _optimism(quick: bool, index: int) -> Fitted:
    rng = np.random.default_rng([SEED, 17, index])
    games = cohort(index)
    eta = log_uniform(rng, 0.01, 2)
    shape = (horizon(rng, quick), *games.start.shape)
    main, auxiliary = residuals(rng, shape, 0.5), residuals(rng, shape, 0.5)
    return fitted_optimism(games.game.A, games.log_start, eta, main, auxiliary)


FITTED_WEIGHTS = Ensemble(
    "SPPO, fitted", lambda quick: [partial(_weights, quick, i) for i in cohort_numbers(quick, 96, 16)]
)
FITTED_OPTIMISM = Ensemble(
    "ONPO, fitted", lambda quick: [partial(_optimism, quick, i) for i in cohort_numbers(quick, 96, 16)]
)


def _squared_ranges(run: Fitted) -> Floats:
    """Σ range(g_t + ε_t/η)², (T, G)."""
    return np.cumsum(spread(run.gain + run.residual / run.eta) ** 2, axis=0)


def residual_cost(run: Fitted, tally: Tally) -> None:
    tally.seen(len(run.A), len(run.current))
    bound = approximate_mwu_gap(run.divergence, run.eta, run.T, _squared_ranges(run), run.alignment)
    tally.inequality(run.gap, bound)


def loss_cost(run: Fitted, tally: Tally) -> None:
    """δ_t = E(ε_t(y) − ε_t(y'))² = 2 Var ε_t over π_t, and χ²(u ‖ π_t) = 1/π_t(u) − 1 at u, a response."""
    tally.seen(len(run.A), len(run.current))
    mean = np.sum(run.policy * run.residual, axis=-1, keepdims=True)
    # √(χ²(u ‖ π_t) δ_t/2) for every response in the place of u (u depends on T, not on t), in logs: χ² overflows.
    with np.errstate(divide="ignore", over="ignore"):
        log_variance = logsumexp(run.current + 2 * np.log(np.abs(run.residual - mean)))
        log_chi2 = np.log1p(-run.policy) - run.current
        terms = np.exp((log_chi2 + log_variance) / 2)
    cost = run.at_comparator(np.cumsum(terms, axis=0))
    tally.inequality(run.gap, approximate_mwu_gap(run.divergence, run.eta, run.T, _squared_ranges(run), cost))


def optimistic_cost(run: Fitted, tally: Tally) -> None:
    tally.seen(len(run.A), len(run.current))
    squared = np.cumsum(spread(run.gain + run.residual - run.forecast) ** 2, axis=0)
    stability = np.cumsum(kl(run.current, run.auxiliary), axis=0)
    bound = approximate_onpo_gap(run.divergence, run.eta, run.T, squared, stability, run.alignment)
    tally.inequality(run.gap, bound)


CLAIMS = (
    Claim(
        "approximate.sppo",
        "gap(average) <= (2/T)[KL(u ‖ π_1)/η + (η/8) Σ range(r_t + ε_t/η)² + (1/η) Σ ⟨π_t − u, ε_t⟩]",
        "derived (Hoeffding)",
        "Hoeffding",
        Status.DERIVED,
        (FITTED_WEIGHTS,),
        residual_cost,
    ),
    Claim(
        "approximate.sppo-loss",
        "gap(average) <= (2/T)[KL(u ‖ π_1)/η + (η/8) Σ range(r_t + ε_t/η)² + (1/η) Σ √(χ²(u ‖ π_t) δ_t/2)]",
        "derived (Hoeffding, Cauchy and Schwarz)",
        "Cauchy",
        Status.DERIVED,
        (FITTED_WEIGHTS,),
        loss_cost,
    ),
    Claim(
        "approximate.onpo",
        "gap(average) <= (2/T)[KL(u ‖ π_1)/η + (η/8) Σ range(r_t + e'_t − m_t)² − (1/η) Σ KL(π_t ‖ π'_t)"
        " + Σ ⟨π_t − u, e'_t⟩]",
        "derived (Hoeffding)",
        "RVU",
        Status.DERIVED,
        (FITTED_OPTIMISM,),
        optimistic_cost,
    ),
)
