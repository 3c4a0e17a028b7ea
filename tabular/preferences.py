"""Preference data as sufficient statistics: how often which response was preferred to which, per prompt.

Shapes: ``wins`` (..., n, n), where wins[..., i, j] is the (weighted) number of pairs in which response i was preferred
to j; a soft label p adds p to one side and 1 − p to the other. The first ``independent`` leading axes are data sets of
their own (replicates), the others are prompts of one data set; ``N`` has the shape of the former.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from nashpo.core.losses import logistic


@dataclass(frozen=True)
class PreferenceData:
    """Preference pairs, reduced: cost grows with distinct pairs and not with their number.

    Attributes
    ----------
    wins : (..., n, n)
        Zero diagonal.
    ties : (...)
        Weight of pairs whose two responses are equal. They tell nothing and cost log 2 each; they count in N.
    mask : (..., n), optional
        True where a response exists.
    weights : (prompts)
        Weights of the prompts, adding up to 1; by default each prompt's share of the pairs.
    independent : int
        Number of leading axes that are data sets of their own.
    prompts, responses : optional
        The texts: one prompt per context, and per context the list of its distinct responses.
    names : tuple of str, optional
        Labels of the n responses, where all prompts share them.
    """

    wins: np.ndarray
    ties: np.ndarray
    mask: np.ndarray | None
    weights: np.ndarray
    independent: int = 0
    prompts: tuple[str, ...] | None = None
    responses: tuple[tuple[str, ...], ...] | None = None
    names: tuple[str, ...] | None = None

    @classmethod
    def from_counts(
        cls,
        wins: Any,
        *,
        ties: Any = None,
        mask: Any = None,
        weights: Any = None,
        independent: int = 0,
        prompts: tuple[str, ...] | None = None,
        responses: tuple[tuple[str, ...], ...] | None = None,
        names: tuple[str, ...] | None = None,
    ) -> Self:
        """From counts; what stands on the diagonal of ``wins`` is added to the ties.

        Raises
        ------
        ValueError
            Not square, negative or not finite counts, weights that are negative or of zero sum, or a data set without
            one informative pair.
        """
        counts = np.array(wins, dtype=np.float64)
        if counts.ndim < 2 or counts.shape[-1] != counts.shape[-2] or counts.size == 0:
            raise ValueError(f"wins has shape {counts.shape}; it must be (..., n, n): how often i was preferred to j")
        if not np.all(np.isfinite(counts)) or counts.min() < 0:
            raise ValueError("wins has a negative or infinite entry: counts of pairs are needed")
        batch = counts.shape[:-2]
        if not 0 <= independent <= len(batch):
            raise ValueError(f"independent = {independent}, but wins has {len(batch)} leading axes")
        equal = np.zeros(batch) if ties is None else np.broadcast_to(np.asarray(ties, np.float64), batch)
        if not np.all(np.isfinite(equal)) or equal.min() < 0:
            raise ValueError("ties has a negative or infinite entry: the weight of pairs of equal responses is needed")
        equal = equal + np.trace(counts, axis1=-2, axis2=-1)
        counts[..., np.arange(counts.shape[-1]), np.arange(counts.shape[-1])] = 0
        exists = None if mask is None else np.broadcast_to(np.asarray(mask, bool), counts.shape[:-1])
        if exists is not None:
            both = exists[..., :, None] & exists[..., None, :]
            if counts[~both].any():
                raise ValueError("wins counts a pair with a response that its mask says does not exist")
            exists = None if exists.all() else exists
        prompt_axes = tuple(range(independent, len(batch)))
        if (counts.sum(axis=(*prompt_axes, -2, -1)) == 0).any():
            raise ValueError("no informative pair at all: every pair is of equal responses; nothing can be learned")
        if weights is None:
            share = (counts.sum(axis=(-2, -1)) + equal).sum(axis=tuple(range(independent)))
        else:
            share = np.array(np.broadcast_to(np.asarray(weights, np.float64), batch[independent:]))
            if not np.all(np.isfinite(share)) or share.min() < 0 or share.sum() == 0:
                raise ValueError("weights of the prompts must be >= 0, finite, and not all 0")
        return cls(counts, equal, exists, share / share.sum(), independent, prompts, responses, names)

    @property
    def n(self) -> int:
        """Number of responses per prompt (the largest, where prompts differ)."""
        return int(self.wins.shape[-1])

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Data sets, then prompts."""
        return self.wins.shape[:-2]

    @property
    def _prompt_axes(self) -> tuple[int, ...]:
        return tuple(range(self.independent - len(self.batch_shape), 0))

    @property
    def exists(self) -> np.ndarray:
        """The mask, spelled out, (..., n)."""
        return np.ones(self.wins.shape[:-1], bool) if self.mask is None else self.mask

    @property
    def seen(self) -> np.ndarray:
        """Weight of the pairs that each response is in, (..., n)."""
        return self.wins.sum(axis=-1) + self.wins.sum(axis=-2)

    @property
    def N(self) -> np.ndarray:
        """Number (weight) of pairs of each data set, ties included; shape of the independent axes."""
        return np.asarray((self.wins.sum(axis=(-2, -1)) + self.ties).sum(axis=self._prompt_axes))

    @property
    def frequencies(self) -> np.ndarray:
        """wins / N, (..., n, n): the weights of the data loss, which add up to 1 with the ties."""
        return self.wins / self.N.reshape(self.N.shape + (1,) * (self.wins.ndim - self.N.ndim))

    def over_prompts(self, values: np.ndarray) -> np.ndarray:
        """Weighted mean over prompts of (..., batch): axes of data sets and those before them are kept."""
        axes = self.weights.ndim
        return np.sum(values * self.weights, axis=tuple(range(-axes, 0))) if axes else np.asarray(values)

    def loss(self, values: np.ndarray) -> np.ndarray:
        """L_D(f) = −(1/N) Σ log σ(f(preferred) − f(other)) in nats, per data set.

        Parameters
        ----------
        values : (..., n)
            A reward or critic.
        """
        each = logistic(values[..., :, None], values[..., None, :], 1.0)
        total = np.sum(np.where(self.wins > 0, self.wins * each, 0.0), axis=(-2, -1)) + self.ties * np.log(2.0)
        return np.asarray(total.sum(axis=self._prompt_axes)) / self.N

    def value(self, policy: np.ndarray, reward: np.ndarray) -> np.ndarray:
        """J(π) = E_x E_{y∼π} r(x, y), per data set."""
        return self.over_prompts(np.sum(policy * reward, axis=-1))

    def win_rates(self) -> np.ndarray:
        """The empirical win matrix (..., n, n): wins over pairs seen, ½ where a pair was never seen."""
        pairs = self.wins + np.swapaxes(self.wins, -1, -2)
        return np.where(pairs > 0, self.wins / np.where(pairs > 0, pairs, 1.0), 0.5)
