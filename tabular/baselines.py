"""Offline baselines on preference data: what others make of the same pairs, each as a policy in closed form.

Shapes: policies (..., n), probabilities, with the leading axes of the data. Rewards are the maximum-likelihood ones of
the box [0, R]; what the data leave open is in the gauge of `maximum_likelihood_reward`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import wrightomega

from nashpo.core.policies import mirror_step
from nashpo.core.rules import DPO
from nashpo.tabular.data_policies import reference_on
from nashpo.tabular.equilibrium import nash
from nashpo.tabular.game import Game
from nashpo.tabular.minimizers import minimize_pairwise
from nashpo.tabular.offline import play_offline
from nashpo.tabular.preferences import PreferenceData
from nashpo.tabular.reward_model import maximum_likelihood_reward

TIE = 1e-6
"""Times R: rewards this close to the largest one share the greedy policy."""
_BISECTIONS = 100


def mle_greedy(data: PreferenceData, R: float) -> np.ndarray:
    """The response of the largest maximum-likelihood reward in [0, R] per prompt.

    Only responses that occur in an informative pair compete: the likelihood says nothing about the others. Responses
    within 1e-6 · R of the largest share the probability equally. At the edge R ties are common (every response that
    only won is there), and picking the first of them would favour whichever response comes first. A prompt without any
    informative pair gets the uniform policy.

    Raises
    ------
    ValueError
        R <= 0.
    """
    reward = maximum_likelihood_reward(data, R)
    seen = data.seen > 0
    candidates = np.where(seen.any(axis=-1, keepdims=True), seen, data.exists)
    eligible = np.where(candidates, reward, -np.inf)
    best = eligible >= eligible.max(axis=-1, keepdims=True) - TIE * R
    return best / best.sum(axis=-1, keepdims=True)


def mle_kl(data: PreferenceData, R: float, beta: float, reference: Any = None) -> np.ndarray:
    """argmax_π E_π r̂ − β KL(π ‖ ref) = ref · exp(r̂/β) / Z: RLHF with the maximum-likelihood reward r̂ in [0, R].

    Raises
    ------
    ValueError
        R <= 0, beta <= 0, or a reference that is none or gives a seen response probability 0.
    """
    _check_beta(beta)
    reward = maximum_likelihood_reward(data, R)
    return np.exp(mirror_step([(1.0, reference_on(data, reference))], [(1 / beta, reward)]))


def dpo(data: PreferenceData, R: float, beta: float, reference: Any = None) -> np.ndarray:
    """DPO (2305.18290): argmin_π −(1/N) Σ log σ(β log π/ref(preferred) − β log π/ref(other)), one update of the rule.

    In a table this is `mle_kl`: with r = β log π/ref the loss is the log-loss of r, and every r in [0, R] is reached.
    Without the box the minimizer does not exist as soon as one response only won or only lost; R is what stops it, as
    early stopping does in practice.

    Raises
    ------
    ValueError
        As `mle_kl`, and a reference without full support.
    """
    _check_beta(beta)
    return play_offline(DPO(tau=beta), data, 1, reference=reference, R=R).last


def ipo(data: PreferenceData, beta: float, reference: Any = None) -> np.ndarray:
    """IPO (2310.12036): argmin_π (1/N) Σ (log π/ref(preferred) − log π/ref(other) − 1/(2β))², the loss of its eq. 17.

    Least squares on the pairs that occur, without a reward model or a box. With many pairs drawn independently from
    ref it is ref · exp(P(y ≻ ref)/β), the update of the rule `IPO`. Groups of responses that were never compared with
    each other keep the probability that the reference gives them.

    Raises
    ------
    ValueError
        beta <= 0, or a reference that is none or gives a seen response probability 0.
    """
    _check_beta(beta)
    pairs = data.wins + np.swapaxes(data.wins, -1, -2)
    log_reference = reference_on(data, reference)
    target = (data.win_rates() - 0.5) / beta
    return np.exp(minimize_pairwise(log_reference, target, pairs))


def chi_po(data: PreferenceData, R: float, beta: float, reference: Any = None) -> np.ndarray:
    """χPO (2407.13399): argmax_π E_π r̂ − β E_π[π/ref] / 2 − β KL(π ‖ ref), by its link φ(z) = z + log z.

    π/ref = φ⁻¹((r̂ − c)/β) with φ⁻¹(x) = W(eˣ), Lambert's function, and c such that Σ π = 1: between min r̂ − β, where
    every ratio is 1 or more, and max r̂ − β. It is the minimizer of `nashpo.core.losses.chi_po` over the policies whose
    rewards β φ(π/ref) differ by R at most; there the loss's clip at ± 2R does nothing.

    Raises
    ------
    ValueError
        As `mle_kl`.
    """
    _check_beta(beta)
    log_reference = reference_on(data, reference)
    scaled = maximum_likelihood_reward(data, R) / beta
    played = log_reference > -np.inf
    low = np.min(np.where(played, scaled, np.inf), axis=-1, keepdims=True) - 1
    high = np.max(np.where(played, scaled, -np.inf), axis=-1, keepdims=True) - 1
    reference_weight = np.exp(log_reference)
    for _ in range(_BISECTIONS):
        c = (low + high) / 2
        heavy = np.sum(reference_weight * wrightomega(scaled - c), axis=-1, keepdims=True) >= 1
        low, high = np.where(heavy, c, low), np.where(heavy, high, c)
    policy = reference_weight * wrightomega(scaled - (low + high) / 2)
    return policy / policy.sum(axis=-1, keepdims=True)


def offline_nash(data: PreferenceData, pessimism: float | None = None) -> np.ndarray:
    """A maximin policy of the empirical win matrix, or of lower confidence bounds on it.

    Without pessimism: a Nash equilibrium of P̂ (½ where a pair was never seen), the one of largest support that the
    interior-point solver finds. With ``pessimism`` = δ: max_π min_j Σ_i π_i max(0, P̂_ij − √(log(m/δ)/(2 n_ij))), with 0
    where a pair was never seen and ½ on the diagonal, by HiGHS. All entries at once are below the truth with
    probability 1 − δ (Hoeffding's inequality for the m ordered pairs that were seen in the data set; unweighted pairs).
    Where several policies are optimal, HiGHS returns a vertex.

    Pessimism is no cure here: an opponent may play any response, so that a policy is judged also against those that the
    data never show it against, and the maximin policy hedges by playing them. What it needs is coverage of the pairs
    (u, any response) and not of u alone.

    Raises
    ------
    ValueError
        pessimism outside (0, 1).
    """
    rates = data.win_rates()
    if pessimism is None:
        game = Game(rates, mask=data.mask, weights=np.full(data.batch_shape, 1.0) if data.batch_shape else None)
        return np.asarray(nash(game).policy)
    if not 0 < pessimism < 1:
        raise ValueError(f"pessimism = {pessimism:g} must lie strictly between 0 and 1: it is the delta of the bounds")
    pairs = data.wins + np.swapaxes(data.wins, -1, -2)
    contexts = tuple(range(data.independent, pairs.ndim))
    m = (pairs > 0).sum(axis=contexts, keepdims=True)
    with np.errstate(divide="ignore"):
        width = np.sqrt(np.log(m / pessimism) / (2 * pairs))
    low = np.where(pairs > 0, np.maximum(rates - width, 0.0), 0.0)
    low[..., np.arange(data.n), np.arange(data.n)] = 0.5
    policy = np.zeros(data.exists.shape)
    for context in np.ndindex(data.batch_shape):
        some = np.flatnonzero(data.exists[context])
        policy[(*context, some)] = _maximin(low[context][np.ix_(some, some)])
    return policy


def _maximin(payoff: np.ndarray) -> np.ndarray:
    """argmax_x min_j Σ_i x_i payoff_ij over the simplex, (n,), a linear program."""
    from scipy.optimize import linprog

    n = len(payoff)
    result = linprog(
        np.r_[np.zeros(n), -1.0],
        A_ub=np.column_stack([-payoff.T, np.ones(n)]),
        b_ub=np.zeros(n),
        A_eq=np.r_[np.ones(n), 0.0][None, :],
        b_eq=[1.0],
        bounds=[(0.0, None)] * n + [(None, None)],
        method="highs",
    )
    if result.x is None:
        raise RuntimeError(f"HiGHS found no maximin policy of {n} responses: {result.message}")
    x = np.maximum(result.x[:n], 0.0)
    return x / x.sum()


def _check_beta(beta: float) -> None:
    if not (beta > 0 and np.isfinite(beta)):
        raise ValueError(f"beta = {beta:g} must be a number > 0: it is the KL weight")


@dataclass(frozen=True)
class Choices:
    """What the baselines need besides the data.

    Attributes
    ----------
    R : float
        Largest reward.
    beta : float
        KL weight of RLHF, DPO, IPO and χPO.
    reference : (..., n), optional
        Uniform by default.
    delta : float
        Confidence of the pessimistic win matrix is 1 − delta.
    """

    R: float = 3.0
    beta: float = 0.1
    reference: Any = None
    delta: float = 0.05


BASELINES: dict[str, Callable[[PreferenceData, Choices], np.ndarray]] = {
    "mle": lambda data, choices: mle_greedy(data, choices.R),
    "mle+kl": lambda data, choices: mle_kl(data, choices.R, choices.beta, choices.reference),
    "dpo": lambda data, choices: dpo(data, choices.R, choices.beta, choices.reference),
    "ipo": lambda data, choices: ipo(data, choices.beta, choices.reference),
    "chi-po": lambda data, choices: chi_po(data, choices.R, choices.beta, choices.reference),
    "nash": lambda data, choices: offline_nash(data),
    "nash+pessimism": lambda data, choices: offline_nash(data, choices.delta),
}
"""Every baseline by its name on the command line: (data, choices) -> policy (..., n)."""
