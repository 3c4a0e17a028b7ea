"""What samples and judgements say about a policy: win rates with intervals, gaps, intransitivity, lengths, divergences.

Shapes: B prompts with K responses each (K' of another policy); win matrices (B, K, K') with None where the judge
abstained. A conversation is one response: its text is its transcript, its length that of the policy's turns alone. Win
rates are in [0, 1], lengths in tokens, divergences in nats per response. Intervals are 95 % percentile bootstraps over
prompts, which are the independent draws; responses to one prompt are not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from nashpo.llm.encoding import Text
from nashpo.llm.judges.matrix import Judged

RESAMPLES = 2000
SHOWN = 12
"""Prompts whose responses are kept side by side."""
Wins = Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class PolicySamples:
    """Responses of one policy to B prompts, K each.

    Attributes
    ----------
    texts : B lists of K str
    lengths : B lists of K int
        In the policy's tokens: those of the other side of a conversation do not count.
    finished : B lists of K bool
        Whether the response ended by itself.
    """

    texts: Sequence[Sequence[str]]
    lengths: Sequence[Sequence[int]]
    finished: Sequence[Sequence[bool]]


def interval(values: Sequence[float | None], seed: int) -> dict[str, Any] | None:
    """Mean of one number per prompt and its 95 % bootstrap interval over prompts; None without numbers.

    Of one prompt the interval has no width, which says nothing: look at ``prompts``, the number of numbers.
    """
    known = np.array([v for v in values if v is not None], dtype=float)
    if not len(known):
        return None
    rng = np.random.default_rng([seed, len(known)])
    means = [known[rng.integers(0, len(known), len(known))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(known.mean()), "low": float(low), "high": float(high), "prompts": len(known)}


def mean_win(wins: Wins) -> float | None:
    """Mean of the comparisons that were answered."""
    known = [p for line in wins for p in line if p is not None]
    return sum(known) / len(known) if known else None


def sample_gap(wins: Wins) -> float | None:
    """Duality gap of the uniform policy over K responses in their own K × K game, 2 (max_i P̂_i − ½).

    It bounds from below the duality gap of the policy that draws one of these K. Of the policy that they were drawn
    from it is an estimate only: too low because few deviations are tried, and too high because K draws stand for the
    whole policy (at the equilibrium of rock, paper, scissors it is 0.35 on average for K = 5 and 0.15 for K = 32).
    None where a comparison is missing.
    """
    if not wins or any(p is None for line in wins for p in line):
        return None
    return 2 * (max(sum(p for p in line if p is not None) / len(line) for line in wins) - 0.5)


def cycles(wins: Wins, texts: Sequence[str]) -> tuple[int, int]:
    """How many triples of different responses are a cycle i ≻ j ≻ k ≻ i, and of how many with three strict winners."""
    cyclic = strict = 0
    for i, j, k in combinations(range(len(wins)), 3):
        if len({texts[i], texts[j], texts[k]}) < 3:
            continue
        ij, jk, ki = wins[i][j], wins[j][k], wins[k][i]
        if ij is None or jk is None or ki is None or 0.5 in (ij, jk, ki):
            continue
        strict += 1
        cyclic += (ij > 0.5) == (jk > 0.5) == (ki > 0.5)
    return cyclic, strict


def longer_wins(wins: Wins, lengths: Sequence[int], texts: Sequence[str]) -> float | None:
    """Mean probability that the longer of two responses wins; ½ without a bias, None without such a pair.

    Longer is who said more tokens itself, whatever the other side of a conversation said. Equal texts are no such pair:
    their numbers of tokens may differ by the end token, which no judge sees.
    """
    found = []
    for i, j in combinations(range(len(wins)), 2):
        p = wins[i][j]
        if p is not None and lengths[i] != lengths[j] and texts[i] != texts[j]:
            found.append(p if lengths[i] > lengths[j] else 1 - p)
    return sum(found) / len(found) if found else None


def unanswered(wins: Wins, texts: Sequence[str]) -> tuple[int, int]:
    """How many pairs of different responses have no win rate, and of how many: equal texts are never asked about."""
    asked = [wins[i][j] for i, j in combinations(range(len(wins)), 2) if texts[i] != texts[j]]
    return sum(p is None for p in asked), len(asked)


def describe_samples(policy: str, samples: PolicySamples, judged: Sequence[Judged], seed: int) -> dict[str, Any]:
    """What the responses that an iteration was trained on say about policy and judge.

    ``gap`` is `sample_gap`; ``cyclic_share`` that of `cycles` among the ``triples``; ``asymmetry`` the mean of
    |p_ij + p_ji − 1| of a judge that was asked in both orders; ``abstained`` the share of pairs of different responses
    without a win rate; ``length_bias`` is `longer_wins` − ½; ``finished_share`` that of responses that ended by
    themselves.
    """
    counted = [cycles(one.wins, texts) for one, texts in zip(judged, samples.texts, strict=True)]
    triples = sum(strict for _, strict in counted)
    asymmetries = [one.asymmetry for one in judged if one.asymmetry is not None]
    answers = [unanswered(one.wins, texts) for one, texts in zip(judged, samples.texts, strict=True)]
    missing, asked = (sum(column) for column in zip(*answers)) if answers else (0, 0)
    rows = zip(judged, samples.lengths, samples.texts, strict=True)
    biases = [longer_wins(one.wins, lengths, texts) for one, lengths, texts in rows]
    finished = [end for row in samples.finished for end in row]
    return {
        "policy": policy,
        "prompts": len(samples.texts),
        "K": max((len(row) for row in samples.texts), default=0),
        "gap": interval([sample_gap(one.wins) for one in judged], seed),
        "cyclic_share": sum(c for c, _ in counted) / triples if triples else None,
        "triples": triples,
        "asymmetry": sum(asymmetries) / len(asymmetries) if asymmetries else None,
        "abstained": missing / asked if asked else 0.0,
        "length_bias": _less_half(interval(biases, seed)),
        "tokens": _lengths(samples, seed),
        "finished_share": sum(finished) / len(finished) if finished else None,
    }


def _less_half(found: dict[str, Any] | None) -> float | None:
    return None if found is None else found["mean"] - 0.5


def _lengths(samples: PolicySamples, seed: int) -> dict[str, Any] | None:
    return interval([sum(row) / len(row) for row in samples.lengths if row], seed)


def summary(
    iteration: int,
    prompts: Sequence[Text],
    current: PolicySamples,
    others: Mapping[str, PolicySamples],
    judged: Mapping[str, Sequence[Judged]],
    training: tuple[str, PolicySamples, Sequence[Judged]] | None,
    kl: Mapping[str, Sequence[Sequence[float]]],
    exact: Mapping[str, Any] | None,
    seed: int,
) -> dict[str, Any]:
    """Everything that ``evaluation/results.json`` holds, JSON only.

    Parameters
    ----------
    iteration : int
        Counted from 1.
    prompts : B prompts
    current : PolicySamples
        Of the new iterate.
    others : mapping name -> PolicySamples
        Of its opponents, ``reference`` and ``previous``.
    judged : mapping name -> B Judged
        The new iterate's responses against each opponent's.
    training : (policy, samples, judgements), optional
        What the iteration was trained on.
    kl : mapping name -> (B, K)
        log π_new(y) − log π_name(y) on the new iterate's responses; its mean is KL(π_new ‖ π_name).
    exact : mapping, optional
        What is known exactly.
    seed : int
        Of the bootstrap.
    """
    rates = {name: interval([mean_win(one.wins) for one in found], seed) for name, found in judged.items()}
    controlled = {name: _controlled(current, others[name], found, seed) for name, found in judged.items()}
    lengths = {"current": _lengths(current, seed), **{name: _lengths(s, seed) for name, s in others.items()}}
    divergences = {name: interval([sum(row) / len(row) for row in rows if row], seed) for name, rows in kl.items()}
    return {
        "iteration": iteration,
        "win_rates": rates,
        "length_controlled": controlled or None,
        "samples": None if training is None else describe_samples(*training, seed),
        "lengths": lengths,
        "exact": None if exact is None else dict(exact),
        "kl": {("last" if name == "previous" else name): value for name, value in divergences.items()} or None,
        "side_by_side": _side_by_side(prompts, current, others, judged),
    }


def _controlled(
    current: PolicySamples, other: PolicySamples, judged: Sequence[Judged], seed: int
) -> dict[str, Any] | None:
    from nashpo.llm.length_control import length_controlled

    return length_controlled(current.lengths, other.lengths, [one.wins for one in judged], seed)


def _side_by_side(
    prompts: Sequence[Text],
    current: PolicySamples,
    others: Mapping[str, PolicySamples],
    judged: Mapping[str, Sequence[Judged]],
) -> list[dict[str, Any]]:
    """Only beside the reference's responses: the key says whose they are."""
    if "reference" not in others:
        return []
    wins = judged.get("reference")
    return [
        {
            "prompt": prompts[b],
            "current": current.texts[b][0],
            "reference": others["reference"].texts[b][0],
            "win": None if wins is None else wins[b].wins[0][0],
        }
        for b in range(min(SHOWN, len(prompts)))
    ]
