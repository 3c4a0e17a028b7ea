"""The probabilities of UCLA's published SPPO code, for reproduction: they are not those of its paper.

Shapes: K responses; scores s (K, K) in nats, s_ij the judge's score margin of i over j when it sees i first, 0 on the
diagonal. The code ranks the set and compares the ranks' scores:

    score_i = (1/K) Σ_j (s_ij − s_ji) ,      P_ij = σ(score_i − score_j) .

So P is transitive inside each set, depends on the other K − 2 responses, and is twice as sharp as the paper's σ(s_ij)
where s_ij = r_i − r_j.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nashpo.llm.judges.judge import Judge, Pair, Verdict


class UCLAAverageScores:
    """A judge with scores, read as UCLA's code does.

    Compared with other responses than the set's own, each pair is a set of two: P = σ(s_12 − s_21).

    Parameters
    ----------
    judge : Judge
        Its raw answers are ``{"score": s_ij}``, as those of `nashpo.llm.judges.pairrm.PairRM`.
    """

    antisymmetric = False

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.name = f"ucla_{judge.name}"

    def describe(self) -> dict[str, Any]:
        """What the judge says of itself, and how it is read."""
        return {"reading": "ucla_average_scores", "of": self.judge.describe()}

    def check(self) -> None:
        """As the judge's."""
        self.judge.check()

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """The judge's own answers."""
        return self.judge.compare(pairs)

    def close(self) -> None:
        """As the judge's."""
        self.judge.close()

    def wins(self, answers: Sequence[Sequence[Verdict | None]]) -> list[list[float | None]]:
        """P (K, K); a response with an unanswered comparison has no score, and no win rate.

        Raises
        ------
        ValueError
            If a raw answer has no score.
        """
        K = len(answers)
        scores = [_mean([self._margin(answers, i, j) for j in range(K)]) for i in range(K)]
        wins: list[list[float | None]] = [[0.5] * K for _ in range(K)]
        for i in range(K):
            for j in range(i):
                one, two = scores[i], scores[j]
                win = None if one is None or two is None else _sigmoid(one - two)
                wins[i][j], wins[j][i] = win, None if win is None else 1.0 - win
        return wins

    def _margin(self, answers: Sequence[Sequence[Verdict | None]], i: int, j: int) -> float | None:
        """s_ij − s_ji; 0 for equal texts, which are not asked."""
        forward, backward = answers[i][j], answers[j][i]
        if forward is None or backward is None:
            return 0.0
        if forward.probability is None or backward.probability is None:
            return None
        return self._score(forward) - self._score(backward)

    def _score(self, verdict: Verdict) -> float:
        if not isinstance(verdict.raw, dict) or "score" not in verdict.raw:
            raise ValueError(f"judge {self.name!r} needs scores of pairs, and {self.judge.name!r} gives none")
        return float(verdict.raw["score"])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(values) if len(known) == len(values) else None


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
