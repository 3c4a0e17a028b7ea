"""Playing a rule on preference data: the same loop as on games, with feedback from the data alone.

Shapes: policies are (..., n) with the leading axes of the data (data sets, then prompts); a value per data set has the
shape of ``data.N``. Rewards and critics are in [0, R].
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from nashpo.core.games import excess_payoff
from nashpo.core.policies import largest_log_weight
from nashpo.core.rules.form import CURRENT, Payoff
from nashpo.core.rules.rule import Rule
from nashpo.core.selfplay import StageTrace, State, self_play
from nashpo.tabular.critic import Box, Critic, CriticClass
from nashpo.tabular.data_policies import Responses, reference_on
from nashpo.tabular.exact import LogPolicyBackend
from nashpo.tabular.play import DEFAULT_STEPS, Record, record_steps, starting_points
from nashpo.tabular.preferences import PreferenceData
from nashpo.tabular.reward_model import maximum_likelihood_reward

_ROUNDING = 1e-13
"""Relative difference of probabilities that some hundreds of normalizations may leave."""


class OfflineBackend(LogPolicyBackend):
    """Feedback from preference data: critics, maximum-likelihood rewards and empirical win rates.

    Parameters
    ----------
    data : PreferenceData
    origins : mapping origin -> log-policy (..., n)
    critics : CriticClass, optional
        The class of the critic; by default the box [0, R] with the R of the rule's payoff.
    R : float
        Box of the maximum-likelihood reward (DPO's data).
    """

    def __init__(
        self, data: PreferenceData, origins: dict[str, np.ndarray], critics: CriticClass | None = None, R: float = 3.0
    ) -> None:
        kinds = {"critic": self.critic, "reward": self.reward, "win": self.win}
        super().__init__(origins, kinds, "preference data")
        self.data = data
        self.critics = critics
        self.R = R
        self.reference = np.exp(origins["reference"])
        self.worst_gap: np.ndarray | None = None
        self._warm: Critic | None = None

    @cached_property
    def _reward(self) -> np.ndarray:
        return maximum_likelihood_reward(self.data, self.R)

    @cached_property
    def _advantage(self) -> np.ndarray:
        return self.data.win_rates() - 0.5

    def critic(self, payoff: Payoff, policy: np.ndarray) -> np.ndarray:
        """The critic against the policy, warm-started from the last one."""
        params = dict(payoff.params)
        critics = self.critics if self.critics is not None else Box(params["R"])
        direction = policy - self.reference
        # Where the policy is the reference the critic must not be decided by a rounding's sign: at λ = 0, or at a
        # response without data, that would be 0 or R.
        direction = np.where(np.abs(direction) <= _ROUNDING * self.reference, 0.0, direction)
        solved = critics.solve(self.data, direction, params["lam"], self._warm)
        self._warm = solved
        relative = solved.gap / (1 + params["lam"])
        self.worst_gap = relative if self.worst_gap is None else np.maximum(self.worst_gap, relative)
        return solved.values

    def reward(self, payoff: Payoff, policy: np.ndarray) -> np.ndarray:
        """The maximum-likelihood reward in [0, R], whatever policy the data came from."""
        return self._reward

    def win(self, payoff: Payoff, policy: np.ndarray) -> np.ndarray:
        """Win rate against the policy under the empirical win matrix (½ where a pair was never seen), minus ½."""
        return excess_payoff(self._advantage, policy)


@dataclass
class OfflineRun:
    """What `play_offline` returns.

    Attributes
    ----------
    rule : str
    steps : int
    recorded : (K,)
        Recorded numbers of updates.
    average, last : (..., n)
        Final policies, probabilities.
    recorded_average, recorded_last : (K, ..., n)
        The same at the recorded steps.
    critics : (K, ..., n)
        The payoff of the last stage of each recorded update: f_t for SPAC.
    policies : (K, ..., n)
        The policy π_t that each of those critics was fitted against.
    data : PreferenceData
    reference : (..., n)
        Probabilities.
    R : float
        The reward box that certificates assume.
    critic_gap : (data sets), optional
        The largest (objective − lower bound)/(1 + λ) of any critic of the run; None where the rule has no critic.
    """

    rule: str
    steps: int
    recorded: np.ndarray
    average: np.ndarray
    last: np.ndarray
    recorded_average: np.ndarray
    recorded_last: np.ndarray
    critics: np.ndarray
    policies: np.ndarray
    data: PreferenceData
    reference: np.ndarray
    R: float
    critic_gap: np.ndarray | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def certificate(self, comparator: Any, delta: float = 0.05, policy: np.ndarray | None = None) -> np.ndarray:
        """Upper bound on J(u) − J(π) for a comparator u, at confidence 1 − delta, without the true reward.

        Parameters are those of `nashpo.tabular.certificate.certificate`; π is the average iterate by default.
        """
        from nashpo.tabular.certificate import certificate

        return certificate(self.data, comparator, self.average if policy is None else policy, self.R, delta).bound


def play_offline(
    rule: Rule,
    data: PreferenceData,
    steps: int | None = None,
    *,
    start: Any = None,
    reference: Any = None,
    behavior: Any = None,
    record: Record = "last",
    critics: CriticClass | None = None,
    R: float | None = None,
) -> OfflineRun:
    """Learn a policy from a fixed set of preference pairs.

    Parameters
    ----------
    rule : Rule
        `SPAC`, or a baseline: `DPO` and `IPO` (one step), `SPPO` or `ONPO` (Nash of the empirical win matrix).
    data : PreferenceData
    steps : int, optional
        Number of updates; default 1000, or the rule's horizon where that is shorter.
    start : (..., n), optional
        π_1; by default the reference.
    reference : (..., n), optional
        Positive at the responses that were seen; by default uniform over the responses that exist.
    behavior : (..., n), optional
        Policy that win rates are taken against (IPO); by default the reference.
    record : str, int or list of int
        Steps at which policies and critics are kept, as in `play`.
    critics : CriticClass, optional
        Class of the critic; by default the box [0, R].
    R : float, optional
        Largest reward; by default the rule's, or 3.

    Returns
    -------
    OfflineRun

    Raises
    ------
    ValueError
        On a payoff that data do not answer, policies that are none, a reference that gives a seen response probability
        zero, R <= 0, or steps outside 1 … horizon.
    """
    form = rule.form()
    if steps is None:
        steps = min(DEFAULT_STEPS, form.horizon or DEFAULT_STEPS)
    form.check_horizon(steps)
    largest = float(R if R is not None else getattr(rule, "R", 3.0))
    if not largest > 0:
        raise ValueError(f"R = {largest:g} must be > 0: it bounds the reward")
    wanted = record_steps(record, steps)
    view: Any = Responses(data)
    base = np.exp(reference_on(data, reference))
    origins = starting_points(view, base if start is None else start, base, behavior, form)
    backend = OfflineBackend(data, origins, critics, largest)
    kept: dict[str, list[np.ndarray]] = {"average": [], "last": [], "critics": [], "policies": []}

    def observe(before: State, after: State, trace: tuple[StageTrace, ...]) -> None:
        if after.t not in recorded:
            return
        average, current, found = after.average, after.slots[CURRENT], before.slots[CURRENT]
        assert average is not None  # folded in every iteration
        assert current is not None  # Form demands an origin for it
        assert found is not None
        kept["average"].append(average.handle.policy)
        kept["last"].append(np.exp(current.handle))
        kept["policies"].append(np.exp(found.handle))
        kept["critics"].append(trace[-1].terms[-1].answer)

    recorded = set(wanted)
    self_play(form, backend, steps, observe=observe)
    return OfflineRun(
        rule=repr(rule),
        steps=steps,
        recorded=np.asarray(wanted),
        average=kept["average"][-1],
        last=kept["last"][-1],
        recorded_average=np.asarray(kept["average"]),
        recorded_last=np.asarray(kept["last"]),
        critics=np.asarray(kept["critics"]),
        policies=np.asarray(kept["policies"]),
        data=data,
        reference=base,
        R=largest,
        critic_gap=backend.worst_gap,
        notes={"D": float(np.max(largest_log_weight(origins["start"], data.mask)))},
    )
