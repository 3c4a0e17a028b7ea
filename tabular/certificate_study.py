"""Certificate against truth, for the policies of several methods on replicates of a data set whose reward is known.

Shapes: G data sets (the first axis of the data), policies (G, ..., n); every number per data set is (G,).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nashpo.core.rules.spac import SPAC
from nashpo.tabular.baselines import BASELINES, Choices
from nashpo.tabular.certificate import certificate
from nashpo.tabular.instances import OfflineInstance
from nashpo.tabular.offline import play_offline
from nashpo.tabular.preferences import PreferenceData
from nashpo.tabular.reward_model import check_reward

ROUNDING = 1e-9
"""What the truth may exceed a bound by: sums of some tens of terms of order R, and 1e-10 in the dual's value."""
STEPS = 100


@dataclass(frozen=True)
class Study:
    """One method's certificates.

    Attributes
    ----------
    truth : (G,)
        J(u) − J(π).
    oracle : (G,)
        The certificate at the level L(r*), which the truth cannot exceed.
    bound : (G,)
        The certificate at confidence 1 − delta.
    delta : float
    """

    truth: np.ndarray
    oracle: np.ndarray
    bound: np.ndarray
    delta: float

    @property
    def oracle_violations(self) -> int:
        """Data sets in which the truth exceeds the certificate at the oracle level: a defect wherever not 0."""
        return int(np.sum(self.truth > self.oracle + ROUNDING))

    @property
    def violations(self) -> int:
        """Data sets in which the truth exceeds the certificate; see `allowed`."""
        return int(np.sum(self.truth > self.bound + ROUNDING))

    @property
    def allowed(self) -> float:
        """δ G + 3 √(δ (1 − δ) G): more would be seen once in 740 studies if each failed with probability δ exactly."""
        count = len(self.truth)
        return self.delta * count + 3 * math.sqrt(self.delta * (1 - self.delta) * count)

    @property
    def medians(self) -> tuple[float, float]:
        """Medians of certificate and truth."""
        return float(np.median(self.bound)), float(np.median(self.truth))


def learned_policies(
    instance: OfflineInstance, data: PreferenceData, beta: float = 0.1, steps: int = STEPS
) -> dict[str, np.ndarray]:
    """What SPAC (average, λ = 2√N, η tuned for ``steps``), DPO, IPO and MLE + greedy learn from every data set.

    All data sets must have the same number of pairs.
    """
    N = float(data.N.flat[0])
    rule = SPAC.for_data(N, steps, instance.D, instance.R)
    choices = Choices(R=instance.R, beta=beta, reference=instance.reference)
    policies = {"spac": play_offline(rule, data, steps, reference=instance.reference).average}
    return policies | {name: BASELINES[name](data, choices) for name in ("dpo", "ipo", "mle")}


def study(
    instance: OfflineInstance, data: PreferenceData, policies: Mapping[str, np.ndarray], delta: float = 0.05
) -> dict[str, Study]:
    """Certify every policy against the instance's comparator.

    Parameters
    ----------
    instance : OfflineInstance
        With a reward.
    data : PreferenceData
        With one leading axis of data sets.
    policies : mapping name -> (G, ..., n)
    delta : float

    Raises
    ------
    ValueError
        An instance without a reward or with one outside [0, R], or as `certificate`.
    """
    if instance.reward is None:
        raise ValueError(f"the instance '{instance.name}' has no reward: there is no truth to certify")
    check_reward(instance.reward, instance.R)
    level = data.loss(instance.reward)
    found = {}
    for name, policy in policies.items():
        truth = data.value(instance.comparator - policy, instance.reward)
        oracle = certificate(data, instance.comparator, policy, instance.R, delta, level=level)
        bound = certificate(data, instance.comparator, policy, instance.R, delta)
        found[name] = Study(truth, oracle.bound, bound.bound, delta)
    return found
