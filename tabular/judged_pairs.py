"""Judged responses as preference data, with a part of the judge hidden: real data on which offline rules can fail.

Shapes: judged responses are (prompts, models); data have ``wins`` (prompts, n, n) with n the number of models.

The judge said how likely each answer beats one baseline answer. Pairs of two models' answers are labelled through that
common baseline, by the difference of their logits: the data are Bradley–Terry by construction, which is what SPAC, DPO
and the certificate assume. Rewards are the judge's logits at a temperature, recentred into [0, R]:
r = R/2 + logit(p)/temperature, clipped to [0, R], so that the baseline's is R/2.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nashpo.tabular.game import Game
from nashpo.tabular.judged import Judged
from nashpo.tabular.preference_sampling import Labels, draw_pairs, reward_game
from nashpo.tabular.preferences import PreferenceData
from nashpo.tabular.win_rates import to_numpy

REWARD_BOX = 6.0


@dataclass(frozen=True)
class HeldOut:
    """What is needed to judge a policy by the judge that the data hide.

    Attributes
    ----------
    reward : (prompts, n)
        The judge's reward in [0, R].
    win_rate : (prompts, n)
        The judge's own win rate of every answer over the baseline, in [0, 1].
    exists : (prompts, n)
    behavior : (prompts, n)
        The policy that pairs were drawn from, renormalized over visible answers; uniform where it plays none of them.
    covered : (prompts, n)
        Which answers pairs could contain: visible ones that the behavior plays.
    R : float
    """

    reward: np.ndarray
    win_rate: np.ndarray
    exists: np.ndarray
    behavior: np.ndarray
    covered: np.ndarray
    R: float

    @cached_property
    def best(self) -> np.ndarray:
        """The best answer to every prompt, hidden ones included, (prompts, n)."""
        return _greedy(self.reward, self.exists)

    @cached_property
    def best_covered(self) -> np.ndarray:
        """The best covered answer, (prompts, n): what data can lead to. The behavior where no answer is covered."""
        some = self.covered.any(axis=-1, keepdims=True)
        return np.where(some, _greedy(self.reward, self.covered), self.behavior)

    @cached_property
    def best_model(self) -> np.ndarray:
        """The model of largest mean reward over the prompts that it answers, (n,)."""
        mean = np.sum(self.reward * self.exists, axis=0) / np.maximum(self.exists.sum(axis=0), 1)
        return _greedy(mean, np.any(self.exists, axis=0))

    def value(self, policy: Any) -> float:
        """J(π), mean over prompts of E_{y∼π} r(x, y); a policy over models (n,) is played at every prompt.

        Where a model has no answer the policy is renormalized over those that have.

        Raises
        ------
        ValueError
            A policy of another shape, or without an answer to some prompt.
        """
        return self._mean(policy, self.reward)

    def regret(self, policy: Any, comparator: Any = None) -> float:
        """J(u) − J(π); u is `best` by default, and `best_covered` is the fairer one."""
        return self.value(self.best if comparator is None else comparator) - self.value(policy)

    def win_rate_over_baseline(self, policy: Any) -> float:
        """Mean win rate over the baseline answer, as the judge gave it."""
        return self._mean(policy, self.win_rate)

    def _mean(self, policy: Any, values: np.ndarray) -> float:
        given = np.asarray(policy, np.float64)
        if given.shape not in (self.reward.shape, self.reward.shape[-1:]):
            raise ValueError(f"the policy has shape {given.shape}, but prompts x models is {self.reward.shape}")
        played = np.where(self.exists, given, 0.0)
        total = played.sum(axis=-1, keepdims=True)
        if not np.all(total > 0):
            raise ValueError(f"the policy plays no answer to prompt {int(np.argmin(total))}")
        return float(np.mean(np.sum(played / total * values, axis=-1)))


def split_judged(
    judged: Judged,
    behavior: Any,
    pairs_per_prompt: int,
    hidden_fraction: float,
    seed: int,
    labels: Labels = "hard",
    *,
    R: float = REWARD_BOX,
    temperature: float | None = None,
) -> tuple[PreferenceData, HeldOut]:
    """Hide a random part of the judgements and draw preference pairs of the rest, from a behavior policy over models.

    Parameters
    ----------
    judged : Judged
    behavior : (n,) or (prompts, n)
        Probabilities of the models; zeros are allowed.
    pairs_per_prompt : int
        Pairs y, y' ∼ behavior, ties included.
    hidden_fraction : float in [0, 1)
        Each judgement, of an answer to a prompt, is hidden with this probability: no pair contains the answer, though
        a policy may play it.
    seed : int
    labels : "hard" or "soft"
    R, temperature : float
        As in `recentred_reward`.

    Returns
    -------
    data : PreferenceData
        Prompts of equal weight. Prompts without a visible answer that the behavior plays have no pairs.
    held_out : HeldOut
        With regrets over all prompts and answers.

    Raises
    ------
    ValueError
        On numbers outside their ranges, a behavior that is no policy, or no informative pair.
    """
    _check_fraction(hidden_fraction)
    rng = np.random.default_rng(seed)
    reward, exists, win_rate = _parts(judged, R, temperature)
    visible = exists & (rng.random(exists.shape) >= hidden_fraction)
    policy, covered = _restricted(behavior, visible, exists)
    counts = np.where(covered.any(axis=-1), _at_least_one(pairs_per_prompt), 0)
    game = reward_game(reward, mask=exists, names=judged.models)
    data = _drawn(rng, game, policy, counts, labels, judged.prompts)
    return data, HeldOut(reward, win_rate, exists, policy, covered, R)


def split_judged_prompts(
    judged: Judged,
    behavior: Any,
    pairs_per_prompt: int,
    hidden_fraction: float,
    seed: int,
    labels: Labels = "hard",
    *,
    R: float = REWARD_BOX,
    temperature: float | None = None,
) -> tuple[PreferenceData, HeldOut]:
    """Hide the judge at a random part of the prompts; learn which *model* to play from the rest.

    The pairs of all visible prompts are pooled into one context whose responses are the models, so that what is learned
    applies to the hidden prompts. The pooled labels are a mixture of Bradley–Terry models, which is only nearly one.

    Parameters
    ----------
    judged, behavior, pairs_per_prompt, labels, R, temperature
        As in `split_judged`; behavior is (n,) here.
    hidden_fraction : float in (0, 1)
        Each prompt is hidden with this probability.
    seed : int

    Returns
    -------
    data : PreferenceData
        ``wins`` (n, n), names are the models.
    held_out : HeldOut
        With regrets over the hidden prompts only, for a policy over models (n,). No such policy reaches ``best``, which
        is per prompt: compare with ``best_model``. An answer counts as covered where the behavior plays its model.

    Raises
    ------
    ValueError
        As `split_judged`; or where no prompt or all prompts are hidden.
    """
    _check_fraction(hidden_fraction)
    rng = np.random.default_rng(seed)
    reward, exists, win_rate = _parts(judged, R, temperature)
    hidden = rng.random(exists.shape[:1]) < hidden_fraction
    if hidden.all() or not hidden.any():
        raise ValueError(f"hidden_fraction = {hidden_fraction:g} hides {int(hidden.sum())} of {hidden.size} prompts")
    policy, covered = _restricted(behavior, exists, exists)
    counts = np.where(covered.any(axis=-1) & ~hidden, _at_least_one(pairs_per_prompt), 0)
    each = _drawn(rng, reward_game(reward, mask=exists), policy, counts, labels, judged.prompts)
    data = PreferenceData.from_counts(each.wins.sum(axis=0), ties=each.ties.sum(axis=0), names=judged.models)
    return data, HeldOut(reward[hidden], win_rate[hidden], exists[hidden], policy[hidden], covered[hidden], R)


def from_judged(
    judged: Judged,
    pairs: int | None = None,
    seed: int = 0,
    *,
    models: Any = None,
    R: float = REWARD_BOX,
    temperature: float | None = None,
) -> PreferenceData:
    """Every pair of answers to every prompt: model against baseline, and model against model through the baseline.

    Parameters
    ----------
    judged : Judged
    pairs : int, optional
        Number of hard labels drawn for each pair; by default each pair counts once, with its soft label.
    seed : int
        For hard labels.
    models : sequence of str, optional
        Names of the models that are compared; all by default. The others stay responses that no pair contains.
    R, temperature : float
        As in `recentred_reward`.

    Raises
    ------
    ValueError
        A name that is no model, fewer than two models, pairs < 1, R <= 0 or temperature <= 0.
    """
    reward, exists, _ = _parts(judged, R, temperature)
    for name in models or ():
        if name not in judged.models:
            raise ValueError(f"{name!r} is no model here; there are {', '.join(judged.models)}")
    chosen = np.array([models is None or name in models for name in judged.models])
    if chosen.sum() < 2:
        raise ValueError("one model alone cannot be compared: name two or more")
    game = reward_game(reward, mask=exists, names=judged.models)
    compared = exists & chosen
    both = compared[:, :, None] & compared[:, None, :] & ~np.eye(game.n, dtype=bool)
    P = np.where(both, game.P, 0.0)
    if pairs is None:
        wins = P
    else:
        upper = np.where(np.triu(both), _at_least_one(pairs), 0)
        won = np.random.default_rng(seed).binomial(upper, P)
        wins = won + np.swapaxes(upper - won, -1, -2)
    return PreferenceData.from_counts(
        wins, mask=exists, weights=game.weights, prompts=judged.prompts, names=judged.models
    )


def recentred_reward(judged: Judged, R: float = REWARD_BOX, temperature: float | None = None) -> np.ndarray:
    """The judge's reward in [0, R], (prompts, n): R/2 + logit(p)/temperature, clipped; 0 where there is no answer.

    Parameters
    ----------
    judged : Judged
    R : float
        Largest reward, > 0.
    temperature : float, optional
        1 leaves the judge's probabilities as they are, and clips those outside [σ(−R/2), σ(R/2)]: on AlpacaEval, where
        the judge is very sure, most of them. By default the least at which nothing is clipped: the order of all
        answers is kept, and labels are those of a less certain judge.

    Raises
    ------
    ValueError
        R <= 0 or temperature <= 0.
    """
    return _parts(judged, R, temperature)[0]


def geometric_behavior(n: int, seed: int, ratio: float = 0.5) -> np.ndarray:
    """A sparse behavior policy: probabilities ∝ 1, ratio, ratio², … in random order, (n,).

    Raises
    ------
    ValueError
        n < 1, or a ratio outside (0, 1].
    """
    if n < 1 or not 0 < ratio <= 1:
        raise ValueError(f"n = {n} must be at least 1 and ratio = {ratio:g} in (0, 1]")
    weights = ratio ** np.random.default_rng(seed).permutation(n).astype(np.float64)
    return weights / weights.sum()


def _parts(judged: Judged, R: float, temperature: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reward, which answers exist, and the judge's own win rates."""
    if not R > 0:
        raise ValueError(f"R = {R:g} must be > 0: it bounds the reward")
    game = judged.game.as_numpy()
    logits = to_numpy(game.reward)
    exists = np.ones(logits.shape, bool) if game.mask is None else to_numpy(game.mask)
    if temperature is None:
        temperature = max(float(np.abs(logits[exists]).max()) / (R / 2), np.finfo(float).tiny)
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature:g} must be > 0")
    reward = np.where(exists, np.clip(R / 2 + logits / temperature, 0.0, R), 0.0)
    baseline = game.n - 1
    return reward, exists, game.P[:, :, baseline]


def _restricted(behavior: Any, visible: np.ndarray, exists: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The behavior over visible answers, and which answers it plays; at a prompt where it plays none it is uniform."""
    given = np.asarray(behavior, np.float64)
    if given.shape not in (visible.shape, visible.shape[-1:]):
        raise ValueError(f"behavior has shape {given.shape}, but prompts x models is {visible.shape}")
    if not np.all(np.isfinite(given)) or given.min() < 0 or np.abs(given.sum(axis=-1) - 1).max() > 1e-6:
        raise ValueError("behavior must hold probabilities: >= 0, with sum 1")
    played = np.where(visible, given, 0.0)
    covered = played > 0
    played = np.where(covered.any(axis=-1, keepdims=True), played, exists)
    return played / played.sum(axis=-1, keepdims=True), covered


def _drawn(
    rng: np.random.Generator,
    game: Game,
    policy: np.ndarray,
    counts: np.ndarray,
    labels: Labels,
    prompts: tuple[str, ...],
) -> PreferenceData:
    wins, ties = draw_pairs(rng, game.P, policy, counts[None], labels)
    return PreferenceData.from_counts(
        wins[0], ties=ties[0], mask=game.mask, weights=game.weights, prompts=prompts, names=game.names
    )


def _greedy(reward: np.ndarray, among: np.ndarray) -> np.ndarray:
    choice = np.argmax(np.where(among, reward, -np.inf), axis=-1)
    return np.eye(reward.shape[-1])[choice]


def _at_least_one(pairs: int) -> int:
    if pairs < 1:
        raise ValueError(f"{pairs} pairs: at least 1 is needed")
    return int(pairs)


def _check_fraction(hidden_fraction: float) -> None:
    if not 0 <= hidden_fraction < 1:
        raise ValueError(f"hidden_fraction = {hidden_fraction:g} must be in [0, 1)")
