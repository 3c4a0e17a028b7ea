"""What samples and judgements say about a policy: win rates with intervals, gaps, intransitivity, lengths, divergences.

Shapes: B prompts with K responses each (K' of another policy); win matrices (B, K, K') with None where the judge
abstained. A conversation is one response: its text is its transcript, its length that of the policy's turns alone. Win
rates are in [0, 1], lengths in tokens, divergences in nats per response. Intervals are 95 % over
prompts, by `nashpo.llm.intervals`: `rate_interval` of win rates and gaps, `mean_interval` of lengths and divergences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nashpo.llm.encoding import Text
from nashpo.llm.intervals import mean_interval, rate_interval
from nashpo.llm.judges.matrix import Judged
from nashpo.llm.response_games import cycles, longer_wins, mean_win, sample_gap, unanswered

SHOWN = 12
"""Prompts whose responses are kept side by side."""


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
    found = (longer_wins(one.wins, lengths, texts) for one, lengths, texts in rows)
    longer = [rate for rate in found if rate is not None]
    finished = [end for row in samples.finished for end in row]
    return {
        "policy": policy,
        "prompts": len(samples.texts),
        "K": max((len(row) for row in samples.texts), default=0),
        "gap": rate_interval([sample_gap(one.wins) for one in judged], seed),
        "cyclic_share": sum(c for c, _ in counted) / triples if triples else None,
        "triples": triples,
        "asymmetry": sum(asymmetries) / len(asymmetries) if asymmetries else None,
        "abstained": missing / asked if asked else 0.0,
        "length_bias": sum(longer) / len(longer) - 0.5 if longer else None,
        "tokens": _lengths(samples),
        "finished_share": sum(finished) / len(finished) if finished else None,
    }


def _lengths(samples: PolicySamples) -> dict[str, Any] | None:
    return mean_interval([sum(row) / len(row) for row in samples.lengths if row], least=0)


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
        Of the intervals of win rates.
    """
    rates = {name: rate_interval([mean_win(one.wins) for one in found], seed) for name, found in judged.items()}
    controlled = {name: _controlled(current, others[name], found, seed) for name, found in judged.items()}
    lengths = {"current": _lengths(current), **{name: _lengths(s) for name, s in others.items()}}
    divergences = {name: mean_interval([sum(row) / len(row) for row in rows if row]) for name, rows in kl.items()}
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
