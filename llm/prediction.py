"""What the tables of `nashpo.tabular` predict for a run of a language model whose responses can be enumerated.

The same rule is played from the same start with the same feedback: K draws per prompt, compared with each other as the
run compares them, and each stage fitted to them, by tables in the place of the model. Many replicates make intervals.
The model's own fits are the one thing that is left out: a run leaves the intervals where it fits badly, or where it
moves responses that were not drawn (tables leave these where they are).

Shapes: B prompts with n responses each, T iterations, R replicates, C curves; policies are log-policies (B, n) in nats.
Gaps are means over prompts, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nashpo.core.policies import total_variation
from nashpo.core.rules import Rule
from nashpo.llm.objectives import All, Half, Labelled, Logistic, LogZ, Objective, Pairwise, Pointwise
from nashpo.tabular.counted import Counted
from nashpo.tabular.game import Game
from nashpo.tabular.play import play
from nashpo.tabular.projection import Softmax
from nashpo.tabular.run import Run

Floats = NDArray[np.float64]
REPLICATES = 1000
LEVEL = 0.95
_NORMALIZERS: Mapping[type, str] = {Half: "half", LogZ: "log_z"}
_TABLES: Mapping[type, Callable[[Any], Softmax]] = {
    Pointwise: lambda loss: Softmax("pointwise", _NORMALIZERS[type(loss.normalizer)]),
    Pairwise: lambda loss: Softmax("pairwise"),
    Labelled: lambda loss: Softmax("labelled"),
    Logistic: lambda loss: Softmax("logistic"),
}
"""The same loss on tables."""


def refusal(rule: Rule, objectives: Sequence[Objective], exact: bool) -> str:
    """Why a run cannot be predicted; empty where it can.

    Parameters
    ----------
    rule : Rule
    objectives : sequence of Objective
        Of the stages that are trained.
    exact : bool
        Whether responses are drawn from the policy itself, at temperature 1 and without truncation.
    """
    kinds = {payoff.kind for payoff in rule.form().payoffs}
    if not kinds <= {"win", "reward"}:
        return f"payoffs of kind {', '.join(sorted(kinds - {'win', 'reward'}))} are no comparisons of samples"
    if not exact:
        return "responses are not drawn from the policy itself (temperature, top_p, top_k or min_p)"
    if len(set(objectives)) != 1:
        return "the stages are fitted with different losses"
    (objective,) = set(objectives)
    if type(objective) not in _TABLES:
        return f"{type(objective).__name__} is no loss of tables on samples"
    if not isinstance(objective.pairs, All):  # type: ignore[attr-defined]
        return "only some of the K responses enter the loss, which leaves the others to the model"
    return ""


@dataclass(frozen=True)
class Prediction:
    """Intervals of a run's gaps.

    Attributes
    ----------
    gap_last, gap_average : (T, R)
        Of π_{t+1} and of the mean of π_1 … π_t, in each replicate.
    distance : (T, R)
        Total variation of each replicate's π_{t+1} from that of the exact game, mean over prompts.
    exact_last, exact_average : (T,)
        Of the exact game: every response seen, payoffs known.
    log_policies : (T, B, n)
        π_2 … π_{T+1} of the exact game.
    level : float
        Share of the replicates that lie inside the intervals of all iterations and both gaps.
    """

    gap_last: Floats
    gap_average: Floats
    distance: Floats
    exact_last: Floats
    exact_average: Floats
    log_policies: Floats
    level: float = LEVEL

    @cached_property
    def _band(self) -> tuple[Floats, Floats, Floats]:
        """The curves of both gaps, (2 T, R), and their intervals."""
        curves = np.concatenate([self.gap_last, self.gap_average])
        return curves, *simultaneous_band(curves, self.level)

    def at(self, t: int) -> dict[str, Any]:
        """After t iterations, JSON-able.

        Returns
        -------
        dict
            ``gap_last`` and ``gap_average``: ``median``, ``low``, ``high`` of the interval; ``exact``: both gaps of
            the exact game; ``total_variation``: ``median`` and ``high`` (the share ``level`` lies below) of the
            replicates' distance from it; ``level``, ``replicates``.
        """
        curves, low, high = self._band
        T = len(self.gap_last)
        rows = {"gap_last": t - 1, "gap_average": T + t - 1}
        intervals = {
            name: {"median": float(np.median(curves[row])), "low": float(low[row]), "high": float(high[row])}
            for name, row in rows.items()
        }
        away = self.distance[t - 1]
        return {
            **intervals,
            "exact": {"gap_last": float(self.exact_last[t - 1]), "gap_average": float(self.exact_average[t - 1])},
            "total_variation": {"median": float(np.median(away)), "high": float(np.quantile(away, self.level))},
            "level": self.level,
            "replicates": curves.shape[1],
        }


def predict(
    rule: Rule,
    game: Game,
    log_start: Floats,
    log_reference: Floats,
    objective: Objective,
    K: int,
    steps: int,
    seed: int,
    replicates: int = REPLICATES,
    level: float = LEVEL,
) -> Prediction:
    """Play the rule on tables, exactly and from K draws.

    Parameters
    ----------
    rule : Rule
    game : Game
        Of B contexts.
    log_start, log_reference : (B, n)
    objective : Objective
        The loss of all stages; see `refusal`.
    K : int
        Draws per prompt, at least 2; the comparison of a draw with itself is counted, so that a step acts like
        η (K − 1)/K in expectation.
    steps : int
        T.
    seed : int
        Of the replicates.
    replicates : int
    level : float
        In (0, 1).
    """
    start, reference = np.exp(log_start), np.exp(log_reference)

    def played(**how: Any) -> Run:
        return play(rule, game, steps, start=start, reference=reference, record="all", keep=("current",), **how)

    exact = played()
    sampled = played(feedback=Counted(K, seed, replicates), projection=_TABLES[type(objective)](objective))
    expected = exact.kept["current"]
    away = total_variation(np.exp(sampled.kept["current"]), np.exp(expected)[:, None])
    return Prediction(
        gap_last=sampled.mean_gap_last,
        gap_average=sampled.mean_gap_average,
        distance=np.mean(away, axis=-1),
        exact_last=exact.mean_gap_last,
        exact_average=exact.mean_gap_average,
        log_policies=expected,
        level=level,
    )


def simultaneous_band(curves: Floats, level: float) -> tuple[Floats, Floats]:
    """Intervals that hold for all curves together.

    From every curve's replicates the same number is cut off at either end, as many as leave at least a share ``level``
    of the replicates inside in every curve. A further replicate is inside with a probability of about ``level``.

    Parameters
    ----------
    curves : (C, R)
        Replicate r is column r.
    level : float
        In (0, 1).

    Returns
    -------
    low, high : (C,)
    """
    ordered = np.sort(curves, axis=1)
    # A replicate's depth: how many replicates, itself included, are at least as far out on its side.
    below = np.stack([np.searchsorted(row, values, "right") for row, values in zip(ordered, curves, strict=True)])
    above = np.stack(
        [len(row) - np.searchsorted(row, values, "left") for row, values in zip(ordered, curves, strict=True)]
    )
    depth = np.sort(np.minimum(below, above).min(axis=0))
    outside = int(np.floor((1 - level) * len(depth) + 1e-9))  # 1 − 0.95 is a little more than 0.05
    cut = int(depth[outside])
    cut = min(cut, (curves.shape[1] + 1) // 2)
    return ordered[:, cut - 1], ordered[:, -cut]
