"""The computations behind the figures about offline learning that show a claim rather than check one.

Shapes: B replicates, C coverages, L weights of the data, M methods, n responses. Suboptimalities are in reward units.
Every experiment returns arrays under keys ``<experiment>/<name>`` and takes a few seconds at most.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from nashpo.core.rules import SPAC
from nashpo.tabular.baselines import chi_po, dpo, ipo, mle_greedy, offline_nash
from nashpo.tabular.certificate import certificate
from nashpo.tabular.instances import OfflineInstance, rare_arms
from nashpo.tabular.offline import play_offline
from nashpo.tabular.preferences import PreferenceData

Results = dict[str, np.ndarray]

N = 1600
SEED = 7406
LAMBDAS = tuple(float(f"{x:.2g}") for x in np.geomspace(1, 3200, 10))
COVERAGES = tuple(float(f"{x:.2g}") for x in np.geomspace(1.25, 320, 9))
DELTA = 0.05


def covered(C: float, N: int = N) -> OfflineInstance:
    """The rare-arm instance with the good response played with probability 1/C, and the next one in its place.

    Parameters
    ----------
    C : float
        Coverage of the good response, > N/(N − 6) and below N.
    N : int
        Number of pairs.
    """
    instance = rare_arms(N)
    behavior = instance.behavior.copy()
    behavior[:2] = 1 / C, behavior[:2].sum() - 1 / C
    return replace(instance, behavior=behavior, reference=behavior)


def pessimism_map(
    lam: tuple[float, ...] = LAMBDAS,
    coverage: tuple[float, ...] = COVERAGES,
    replicates: int = 40,
    steps: int = 300,
) -> Results:
    """Suboptimality of SPAC's average against the weight of the data and the coverage of the good response.

    Returns
    -------
    dict
        ``pessimism/lam`` (L,), ``coverage`` (C,), ``suboptimality`` (L, C) means over replicates, ``N``, ``steps`` and
        ``replicates`` ().
    """
    instances = [covered(C) for C in coverage]
    samples = [instance.sample(N, SEED + k, replicates) for k, instance in enumerate(instances)]
    # All coverages in one call: each replicate is a data set of its own, with its own reference.
    data = PreferenceData.from_counts(
        np.concatenate([sample.wins for sample in samples]),
        ties=np.concatenate([sample.ties for sample in samples]),
        independent=1,
    )
    reference = np.repeat([instance.reference for instance in instances], replicates, axis=0)
    D = max(instance.D for instance in instances)
    found = np.empty((len(lam), len(coverage)))
    for row, weight in enumerate(lam):
        rule = replace(SPAC.for_data(N, steps, D, instances[0].R), lam=weight)
        average = play_offline(rule, data, steps, reference=reference).average
        found[row] = instances[0].suboptimality(average).reshape(len(coverage), replicates).mean(axis=-1)
    return {
        "pessimism/lam": np.array(lam),
        "pessimism/coverage": np.array(coverage),
        "pessimism/suboptimality": found,
        "pessimism/N": np.array(N),
        "pessimism/steps": np.array(steps),
        "pessimism/replicates": np.array(replicates),
    }


def policies(replicates: int = 200, steps: int = 1600) -> Results:
    """What each method's policy puts on each response of the rare-arm instance.

    Returns
    -------
    dict
        ``policies/methods`` (M,), ``arms`` (n,), ``probability`` (M, n) means over replicates; ``suboptimality``
        and ``certificate`` (M,) means, against the good response at confidence 95 %; ``N`` and ``replicates`` ().
    """
    instance = rare_arms(N)
    data = instance.sample(N, SEED, replicates)
    R, reference = instance.R, instance.reference
    run = play_offline(SPAC.for_data(N, steps, instance.D, R), data, steps, reference=reference)
    found = {
        "SPAC, average": run.average,
        "SPAC, last": run.last,
        "MLE, greedy": mle_greedy(data, R),
        **{f"DPO, τ = {tau:g}": dpo(data, R, tau, reference) for tau in (0.1, 0.3, 1.0)},
        **{f"IPO, τ = {tau:g}": ipo(data, tau, reference) for tau in (0.03, 0.1)},
        "χPO, τ = 0.1": chi_po(data, R, 0.1, reference),
        "Nash of the win rates": offline_nash(data),
        "Nash, pessimistic": offline_nash(data, DELTA),
        "reference": np.broadcast_to(reference, run.average.shape),
    }
    bounds = [certificate(data, instance.comparator, p, R, DELTA).bound.mean() for p in found.values()]
    return {
        "policies/methods": np.array(list(found)),
        "policies/arms": np.array(["good", "next", *(f"rare\n{k + 1}" for k in range(data.n - 2))]),
        "policies/probability": np.array([policy.mean(axis=0) for policy in found.values()]),
        "policies/suboptimality": np.array([instance.suboptimality(policy).mean() for policy in found.values()]),
        "policies/certificate": np.array(bounds),
        "policies/N": np.array(N),
        "policies/replicates": np.array(replicates),
    }


EXPERIMENTS: dict[str, Callable[[], Results]] = {"pessimism": pessimism_map, "policies": policies}
"""Experiments by the prefix of the keys that they make."""
