"""Hiding a part of the judge, learning from the rest, and asking the judge what was learned.

Shapes: judged responses are (prompts, models); regrets are (methods, replicates).

Two questions, asked anew in every replicate with a sparse behavior policy over models (probabilities ∝ 1, ½, ¼, … in
random order). The policy that pairs are drawn from is the reference of every method:

- hidden prompts: the judge is hidden at a random part of the prompts. Pairs of the other prompts are pooled; what is
  learned is which model to play, and it is judged at the hidden prompts, against the best single model.
- hidden answers: single judgements are hidden. Every prompt has its own pairs, of visible answers, and its own policy;
  it is judged at all prompts, against the best answer that pairs could show.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nashpo.core.rules import Rule
from nashpo.tabular.baselines import chi_po, ipo, mle_greedy, mle_kl
from nashpo.tabular.commands.offline_methods import DEFAULT_TAU, Learned, Settings, learn
from nashpo.tabular.judged import Judged
from nashpo.tabular.judged_pairs import HeldOut, geometric_behavior, split_judged, split_judged_prompts
from nashpo.tabular.preferences import PreferenceData

WEIGHTS = {"dpo": (0.1, 0.3, 1.0), "ipo": (0.03, 0.1, 0.3)}
"""KL weights of the baselines: a grid, whose best member only the judge can tell."""
STEPS = 500
"""Default number of updates; on these data 250 to 4,000 give the same picture."""


@dataclass(frozen=True)
class Setting:
    """One of the two questions.

    Attributes
    ----------
    title : str
    split : callable
        `split_judged_prompts` or `split_judged`.
    comparator : str
        Attribute of `HeldOut` that regret is measured against.
    against : str
        The same in words.
    times : int
        Replicates per replicate that was asked for: pooled pairs are one small table, which costs little, and regrets
        of a single model vary much.
    """

    title: str
    split: Callable[..., tuple[PreferenceData, HeldOut]]
    comparator: str
    against: str
    times: int = 1


SETTINGS = (
    Setting("hidden prompts", split_judged_prompts, "best_model", "the best single model", times=5),
    Setting("hidden answers", split_judged, "best_covered", "the best answer that pairs could show"),
)


@dataclass(frozen=True)
class Outcome:
    """Regrets of one setting.

    Attributes
    ----------
    setting : Setting
    methods : tuple of str
        The rule's policy first, the behavior last.
    regret : (methods, replicates)
        J(comparator) − J(π) by the judge's rewards, in [0, R].
    win_rate : (methods, replicates)
        Over the baseline, by the judge.
    unseen : (methods, replicates)
        Probability of answers that no pair contains, mean over prompts.
    N, ties : (replicates)
        Pairs learned from.
    rule : Rule
        Of the last replicate (lam depends on N).
    steps : int
    """

    setting: Setting
    methods: tuple[str, ...]
    regret: np.ndarray
    win_rate: np.ndarray
    unseen: np.ndarray
    N: np.ndarray
    ties: np.ndarray
    rule: Rule
    steps: int


def outcome(
    setting: Setting,
    judged: Judged,
    kind: type[Rule],
    texts: Mapping[str, str],
    settings: Settings,
    hidden: float,
    per_prompt: int,
    seed: int,
    replicates: int,
    temperature: float,
    progress: Any,
) -> Outcome:
    """Regrets of every method over the replicates of one setting."""
    measured, N, ties = [], [], []
    for replicate in range(setting.times * replicates):
        order, draw_seed = np.random.SeedSequence([seed, replicate]).generate_state(2).tolist()
        behavior = geometric_behavior(judged.game.n, order)
        data, held_out = setting.split(
            judged, behavior, per_prompt, hidden, draw_seed, R=settings.R, temperature=temperature
        )
        reference = behavior if data.wins.ndim == 2 else held_out.behavior
        learned, policies = methods(kind, texts, data, replace(settings, reference=reference))
        u = _everywhere(getattr(held_out, setting.comparator), behavior, held_out.exists)
        rows = []
        for policy in policies.values():
            played = _everywhere(policy, behavior, held_out.exists)
            unseen = float(data.over_prompts(np.sum(np.where(data.seen > 0, 0.0, policy), axis=-1)))
            rows.append((held_out.regret(played, u), held_out.win_rate_over_baseline(played), unseen))
        measured.append(rows)
        N.append(float(data.N))
        ties.append(float(np.sum(data.ties)))
        progress.update()
    regret, win_rate, unseen = np.moveaxis(np.array(measured), 0, -1).swapaxes(0, 1)
    return Outcome(
        setting, tuple(policies), regret, win_rate, unseen, np.array(N), np.array(ties), learned.rule, learned.steps
    )


def methods(
    kind: type[Rule], texts: Mapping[str, str], data: PreferenceData, settings: Settings
) -> tuple[Learned, dict[str, np.ndarray]]:
    """The rule and the baselines, every KL weight of `WEIGHTS`."""
    learned = learn(kind, texts, data, settings, STEPS)
    reference, R = settings.reference, settings.R
    found = {method.label: method.policy for method in learned.methods}
    # In a table DPO is MLE + KL, which a reference that plays only what pairs can show does not stop.
    found |= {f"DPO, tau = {tau:g}": mle_kl(data, R, tau, reference) for tau in WEIGHTS["dpo"]}
    found |= {f"IPO, tau = {tau:g}": ipo(data, tau, reference) for tau in WEIGHTS["ipo"]}
    found |= {f"χPO, tau = {DEFAULT_TAU:g}": chi_po(data, R, DEFAULT_TAU, reference)}
    assert reference is not None  # the behavior policy
    return learned, found | {"MLE, greedy": mle_greedy(data, R), "behavior": reference}


def _restricted(behavior: np.ndarray, exists: np.ndarray) -> np.ndarray:
    played = np.where(exists, behavior, 0.0)
    return played / played.sum(axis=-1, keepdims=True)


def _everywhere(policy: np.ndarray, behavior: np.ndarray, exists: np.ndarray) -> np.ndarray:
    """A policy over models at every prompt; the behavior where none of the models that it plays has an answer."""
    played = np.where(exists, policy, 0.0)
    total = played.sum(axis=-1, keepdims=True)
    return np.where(total > 0, played / np.where(total > 0, total, 1.0), _restricted(behavior, exists))
