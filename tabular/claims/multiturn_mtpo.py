"""Claims about MTPO: its step, and how near its last iterate is to the equilibrium of the regularized game.

Shapes: as in `nashpo.tabular.claims.multiturn`.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from nashpo.core.policies import log_partition
from nashpo.core.theorems import Status
from nashpo.tabular.claims.claim import Floats, Numbers, Tally
from nashpo.tabular.claims.ensembles import log_uniform
from nashpo.tabular.claims.multiturn import MTPO_SOURCE, Conversations, conversations, multiturn_claim
from nashpo.tabular.trees import bounds
from nashpo.tabular.trees.gap import law_of
from nashpo.tabular.trees.mtpo import MTPO
from nashpo.tabular.trees.policies import kl, log_policy, occupancy, over_contexts
from nashpo.tabular.trees.regularized import regularized_nash
from nashpo.tabular.trees.values import regularized_q

REGULARIZED = conversations("multi-turn, MTPO", 4, "state", lambda rng: MTPO.scheduled(tau=log_uniform(rng, 0.05, 1)))


def _to_equilibrium(run: Conversations) -> tuple[Floats, Floats]:
    """π*_τ in logs, and KL_p(π*_τ ‖ π_t) for t = 1 … T + 1, (T + 1, C)."""
    goal = regularized_nash(run.game, run.rule.tau, run.start)
    return goal, np.stack([kl(run.game, goal, log_pi) for log_pi in run.log])


def mtpo_step(run: Conversations, tally: Tally) -> None:
    """The identity holds for any policy in the place of π*_τ; here it is checked there, to 1e-9 of its largest term.

    Noise 1e-11 of a divergence: that of π*_τ, which is solved to 1e-14 or so, over τ.
    """
    run.seen(tally)
    game, tau = run.game, run.rule.tau
    goal, distance = _to_equilibrium(run)
    flow, arrived = occupancy(game, np.exp(goal))
    reach, law = flow.sum(axis=1), game.law(arrived)
    log_reference = log_policy(game, run.start)
    known = np.where(game.mask, log_reference, 0.0)
    paid = kl(game, goal, log_reference)
    for t, log_pi in enumerate(run.log[:-1]):
        ends = game.payoff(law_of(game, np.exp(log_pi)))
        q, _ = regularized_q(game, log_pi, log_reference, tau, ends)
        eta, pi = run.rule.eta(t), np.exp(log_pi)
        drive = np.where(game.mask, q - tau * (np.where(game.mask, log_pi, 0.0) - known), 0.0)
        drive -= (pi * drive).sum(axis=1, keepdims=True)
        won = (law * ends).sum(axis=1) - tau * paid + tau * kl(game, log_pi, log_reference)
        spent = over_contexts(game, reach * log_partition(log_pi, drive, eta))
        left = (1 - eta * tau) * distance[t] - eta * won + spent
        tally.identity(distance[t + 1], left, scale=1 + eta + distance[t] + spent)
        ranges = np.where(game.mask, drive, -np.inf).max(axis=1) - np.where(game.mask, drive, np.inf).min(axis=1)
        bound = bounds.mtpo_recursion(distance[t], eta, tau, over_contexts(game, reach * ranges**2))
        tally.inequality(distance[t + 1], bound, noise=1e-11)


def mtpo_last(bound: Callable[..., Numbers], run: Conversations, tally: Tally) -> None:
    run.seen(tally)
    surprise = np.full(run.game.contexts, 0.0)
    np.maximum.at(surprise, run.game.context, np.where(run.game.mask, -run.log[0], 0.0).max(axis=1))
    allowed = bound(run.game.horizon, run.rule.tau, surprise, run.T)
    tally.inequality(_to_equilibrium(run)[1][1:], allowed, noise=1e-11)


CLAIMS = (
    multiturn_claim(
        "mtpo-step",
        "KL_p(π* ‖ π_{t+1}) = (1 − ητ) KL_p(π* ‖ π_t) − η (J_τ(π*, π_t) − ½) + E_{π*} Σ_h log E_{π_t} exp(η(G − E G))"
        " <= (1 − ητ) KL_p(π* ‖ π_t) + (η²/8) E_{π*} Σ_h range(G)², G = Q_τ − τ log π_t/ref, π* = π*_τ",
        "derived (value difference, Hoeffding at every state)",
        "Hoeffding",
        Status.DERIVED,
        REGULARIZED,
        mtpo_step,
    ),
    multiturn_claim(
        "mtpo-last",
        "MTPO, η_t = 2/(τ(t + 2)), π_1 = ref: KL_p(π*_τ ‖ π_{T+1}) <= 2HQ²/(τ²(T + 1)),"
        " Q = min(2^(H−1), 1 + τ(H−1) log 1/ref_min)",
        f"derived; sharper than the bound of {MTPO_SOURCE}",
        "derived",
        Status.DERIVED,
        REGULARIZED,
        partial(mtpo_last, bounds.mtpo_kl),
    ),
    multiturn_claim(
        "mtpo-theorem",
        "MTPO, η_t = 2/(τ(t + 2)), π_1 = ref: KL_p(π*_τ ‖ π_{T+1}) <= 32HQ²/(τ²(T + 1)), Q = max(4τH log 1/ref_min, 1)",
        f"{MTPO_SOURCE}, its last-iterate theorem",
        "MTPO",
        Status.PUBLISHED,
        REGULARIZED,
        partial(mtpo_last, bounds.mtpo_kl_published),
    ),
)
