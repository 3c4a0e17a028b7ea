"""SPAC's inequalities S1–S4 along a run, as pairs (left, right) of what must not exceed what.

Shapes: K recorded steps; policies and critics (K, ..., n), every side (K, data sets). All in reward units but for the
log-loss in nats. They hold exactly for exact critics, whatever the data, as long as r* lies in the critics' class; a
critic within a Frank–Wolfe gap ε of its minimum adds ε to the right sides, at most 1e-9 · (1 + λ) for the box.
"""

from typing import Any

import numpy as np

from nashpo.core import theorems as bound
from nashpo.core.rules.spac import SPAC
from nashpo.core.schedules import value
from nashpo.core.theorems import Setting
from nashpo.tabular.critic import Box
from nashpo.tabular.data_policies import policy_on
from nashpo.tabular.offline import OfflineRun
from nashpo.tabular.reward_model import check_reward, maximum_likelihood_reward

Sides = tuple[np.ndarray, np.ndarray]


def inequalities(rule: SPAC, run: OfflineRun, reward: Any, comparator: Any) -> dict[str, Sides]:
    """Both sides of every inequality at every step s = 1 … K of a run.

    ================  ===========================================================================================
    spac.pessimism    S1: (E_{π_t} − E_ref) f_t <= (E_{π_t} − E_ref) r* + λ (L(r*) − L(f_t))
    spac.likelihood   L(r̂) <= L(f_t) for the maximum-likelihood reward r̂
    spac.decomposed   S2: J(u) − J(π_t) <= (E_u − E_ref)(r* − f_t) + ⟨u − π_t, f_t⟩ + λ (L(r*) − L(f_t))
    spac.actor        S3: mean over t <= s of ⟨u − π_t, f_t⟩ <= D/(ηs) + ηR²/8, for constant η
    spac.certificate  S4: J(u) − J(average) <= D/(ηs) + ηR²/8 + (E_u − E_ref) r* + λ L(r*) − min_f [(E_u − E_ref) f +
                      λ L(f)], for constant η and λ
    ================  ===========================================================================================

    Parameters
    ----------
    rule : SPAC
        The rule of the run. Where η or λ is a schedule, the inequalities that need a constant are left out.
    run : OfflineRun
        Of the box [0, R], recorded at every step (``record="all"``).
    reward : (..., n)
        r*, in [0, R].
    comparator : (..., n)
        u, probabilities.

    Raises
    ------
    ValueError
        A run that was not recorded at every step, a reward outside [0, R], or a comparator that is no policy.
    """
    steps = len(run.recorded)
    if steps != run.steps:
        raise ValueError(f"{steps} of {run.steps} steps were recorded; the inequalities need record='all'")
    check_reward(reward, rule.R)
    data, policies, critics = run.data, run.policies, run.critics
    truth = np.broadcast_to(np.asarray(reward, np.float64), run.reference.shape)
    u = np.exp(policy_on(data, comparator, "comparator"))
    lam = np.array([value(rule.lam, t) for t in range(steps)]).reshape(steps, *(1,) * data.independent)
    loss = np.stack([data.loss(f) for f in critics])
    loss_of_truth = data.loss(truth)
    short = data.value(u, truth) - data.value(policies, truth)
    actor_gap = data.value(u - policies, critics)
    above_reference = policies - run.reference
    sides = {
        "spac.pessimism": (
            data.value(above_reference, critics),
            bound.spac_pessimism(data.value(above_reference, truth), lam, loss_of_truth, loss),
        ),
        "spac.likelihood": (
            np.broadcast_to(data.loss(maximum_likelihood_reward(data, rule.R)), loss.shape),
            loss,
        ),
        "spac.decomposed": (
            short,
            bound.spac_decomposition(
                data.value(u - run.reference, truth - critics), actor_gap, lam, loss_of_truth, loss
            ),
        ),
    }
    if not bound.constant(rule.eta):
        return sides
    declared = {theorem.id: theorem for theorem in rule.theorems}
    count = np.arange(1, steps + 1).reshape(lam.shape)
    D = float(run.notes["D"])
    mean_gap = np.cumsum(actor_gap, axis=0) / count
    actor = np.array([declared["spac.actor"].bound(rule, Setting(D, s)) for s in range(1, steps + 1)])
    sides["spac.actor"] = (mean_gap, np.broadcast_to(actor.reshape(count.shape), mean_gap.shape))
    if bound.constant(rule.lam):
        hardest = Box(rule.R).solve(data, u - run.reference, rule.lam).values
        cost = data.value(u - run.reference, truth - hardest) + rule.lam * (loss_of_truth - data.loss(hardest))
        average = data.value(u, truth) - data.value(run.recorded_average, truth)
        sides["spac.certificate"] = (average, sides["spac.actor"][1] + cost)
    return sides
