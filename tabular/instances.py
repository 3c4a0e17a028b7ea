"""Offline instances with a known truth: what covers what is stated, so that failures can be predicted.

Shapes: policies and rewards (..., n) over prompts (...); replicates of data sets come first.

On `full_coverage` all methods should agree; on `rare_arms` and `bad_arm_trap`, which have the same rewards, only the
coverage differs: maximum likelihood is fooled by responses that were seen a few times, at every N. `contextual_linear`
has features, `misspecified` has intransitive preferences, which no reward explains.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nashpo.core.games import duality_gap
from nashpo.tabular.coverage import Coverage, coverage
from nashpo.tabular.equilibrium import nash
from nashpo.tabular.families import cyclic
from nashpo.tabular.game import Game
from nashpo.tabular.preference_sampling import Labels, reward_game, sample_preferences
from nashpo.tabular.preferences import PreferenceData

REWARD_BOX = 3.0
_GOOD, _OK = 1.5, 1.0


@dataclass(frozen=True)
class OfflineInstance:
    """A truth, the policy that data come from, and what a learned policy is compared with.

    Attributes
    ----------
    name : str
    game : Game
        The preferences, with ``reward`` where they are Bradley–Terry.
    behavior : (..., n)
        Policy that pairs are drawn from.
    reference : (..., n)
        Policy that rules start from and stay near.
    R : float
        Box of the reward, at least its range.
    comparator : (..., n)
        A best policy of the truth: greedy, or a Nash equilibrium where there is no reward.
    features : (..., n, d), optional
        Features in which the reward is linear, with a parameter of norm at most ``radius``.
    radius : float, optional
    """

    name: str
    game: Game
    behavior: np.ndarray
    reference: np.ndarray
    R: float
    comparator: np.ndarray
    features: np.ndarray | None = None
    radius: float | None = None

    @property
    def reward(self) -> np.ndarray | None:
        """The true reward in [0, R], (..., n); None where preferences have none."""
        return self.game.reward

    @property
    def D(self) -> float:
        """max log 1/reference, in nats."""
        return float(np.log(1 / self.reference.min()))

    @cached_property
    def coverage(self) -> Coverage:
        """Coverage of the comparator by the behavior policy."""
        return coverage(self.comparator, self.behavior, weights=self.game.weights)

    def sample(self, N: int, seed: int, replicates: int | None = None, labels: Labels = "hard") -> PreferenceData:
        """N independent pairs from the behavior policy; see `sample_preferences`."""
        return sample_preferences(self.game, self.behavior, N, seed, replicates, labels)

    def suboptimality(self, policy: Any) -> np.ndarray:
        """J(comparator) − J(π), mean over prompts; where preferences have no reward, the duality gap of π in [0, 1].

        Parameters
        ----------
        policy : (..., *prompts, n)
            Axes before the prompts (steps, replicates) are kept.
        """
        played = np.asarray(policy, np.float64)
        if self.reward is None:
            return np.asarray(self.game.mean(duality_gap(self.game.A, played, self.game.mask)))
        return np.asarray(self.game.mean(np.sum((self.comparator - played) * self.reward, axis=-1)))


def rare_arms(N: int, n: int = 8, rare: int = 6) -> OfflineInstance:
    """Two well-covered responses and ``rare`` bad ones with behavior 1/N each, so that each is seen O(1) times.

    r* = 1.5 for the good response, 1 for the next, 0 for the others. Single-policy coverage of the good response is
    about 2, all-policy coverage is N.

    Parameters
    ----------
    N : int
        Number of pairs that will be drawn, > rare.
    n : int
        Number of responses, at least rare + 2. Those that are not rare share what is left.
    rare : int
    """
    if n < rare + 2 or rare < 0:
        raise ValueError(f"n = {n} must be at least rare + 2 = {rare + 2}: there are a good response and a next one")
    if rare >= N:
        raise ValueError(f"N = {N} must be larger than rare = {rare}: every rare response has probability 1/N")
    behavior = np.full(n, (1 - rare / N) / (n - rare))
    behavior[n - rare :] = 1 / N
    return _bandit("rare arms", _good_and_ok(n), behavior)


def bad_arm_trap(N: int, traps: int = 32) -> OfflineInstance:
    """Rare arms with so many of them that one has nearly surely won every pair it was in.

    Each trap is in about 2 pairs and wins one with probability q = (σ(−1.5) + σ(−1))/2, so that it has only wins with
    probability e^{−2}(e^{2q} − 1) = .077; of 32 traps none has with probability .076. A maximum-likelihood reward puts
    such a trap at the edge of its box.
    """
    instance = rare_arms(N, traps + 2, traps)
    return _bandit("bad arm trap", _good_and_ok(traps + 2), instance.behavior)


def full_coverage(n: int = 8) -> OfflineInstance:
    """The rewards of `rare_arms`, with every response covered alike: all methods should agree as N grows."""
    return _bandit("full coverage", _good_and_ok(n), np.full(n, 1 / n))


def contextual_linear(
    prompts: int = 8, n: int = 6, d: int = 3, seed: int = 0, covered: int = 2, spread: float = 0.05
) -> OfflineInstance:
    """Prompts with features: rewards are linear, r* = features · θ*, and each prompt's data cover few responses.

    θ* and the features are drawn on the sphere; a constant feature puts r* = (R/2)(1 + φ·θ) into [0, R]. A tabular
    critic knows a prompt only from its own pairs, a linear one from all.

    Parameters
    ----------
    prompts, n, d : int
        Number of prompts, of responses, and of features before the constant one.
    seed : int
    covered : int
        Number of responses of each prompt that behavior plays mostly, in 1 … n.
    spread : float in (0, 1]
        Probability of the uniform policy that is mixed in.
    """
    if min(prompts, n, d) < 1 or not 1 <= covered <= n or not 0 < spread <= 1:
        raise ValueError(
            f"prompts = {prompts}, n = {n}, d = {d}, covered = {covered}, spread = {spread:g}: counts must be positive,"
            " covered at most n, and spread in (0, 1]"
        )
    rng = np.random.default_rng(seed)
    theta, features = _sphere(rng, (d,)), _sphere(rng, (prompts, n, d))
    reward = REWARD_BOX / 2 * (1 + features @ theta)
    ranks = np.argsort(np.argsort(rng.random((prompts, n)), axis=-1), axis=-1)
    behavior = (1 - spread) * (ranks < covered) / covered + spread / n
    return OfflineInstance(
        "contextual linear",
        reward_game(reward),
        behavior,
        behavior,
        REWARD_BOX,
        np.eye(n)[np.argmax(reward, axis=-1)],
        np.concatenate([features, np.ones((prompts, n, 1))], axis=-1),
        float(REWARD_BOX / np.sqrt(2)),
    )


def misspecified(n: int = 3, margin: float = 0.6) -> OfflineInstance:
    """Intransitive preferences, a circle of n responses, under a behavior policy that plays them unevenly.

    No reward explains them. What maximum likelihood, DPO and SPAC fit is the Bradley–Terry projection under the
    behavior policy's pairs; SPAC's guarantee does not apply, and suboptimality is the duality gap.

    Parameters
    ----------
    n : odd int >= 3
    margin : float in (0, 1]
        How much each response beats the (n − 1)/2 next ones by.
    """
    game = cyclic(n, margin)
    behavior = np.arange(n, 0, -1) / (n * (n + 1) / 2)
    return OfflineInstance("misspecified", game, behavior, behavior, REWARD_BOX, np.asarray(nash(game).policy))


def _bandit(name: str, reward: np.ndarray, behavior: np.ndarray) -> OfflineInstance:
    game = reward_game(reward)
    return OfflineInstance(name, game, behavior, behavior, REWARD_BOX, np.eye(reward.size)[int(np.argmax(reward))])


def _good_and_ok(n: int) -> np.ndarray:
    if n < 2:
        raise ValueError(f"n = {n} must be at least 2")
    return np.concatenate([[_GOOD, _OK], np.zeros(n - 2)])


def _sphere(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


INSTANCES = {f.__name__: f for f in (rare_arms, bad_arm_trap, full_coverage, contextual_linear, misspecified)}
"""The generators by name; the first two take the number of pairs N."""
