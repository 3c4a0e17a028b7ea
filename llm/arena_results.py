"""What an arena's comparisons say: the results that ``arena.json`` holds.

Shapes: M policies, B prompts, K responses of each policy to each prompt; the win rate of a pair on a prompt is the mean
over its K × K pairs of responses. Win rates are in [0, 1], lengths in tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from nashpo.llm import length_control
from nashpo.llm.engines.config import SamplingConfig
from nashpo.llm.entrants import Entrant
from nashpo.llm.evaluation import PolicySamples
from nashpo.llm.intervals import mean_interval
from nashpo.llm.judges.judge import Judge
from nashpo.llm.judges.matrix import Judged
from nashpo.llm.leaderboard import Harness
from nashpo.llm.loop.conversing import Talk
from nashpo.llm.loop.sampling import Samples
from nashpo.llm.prompts import Prompt
from nashpo.llm.response_games import mean_win
from nashpo.llm.standings import Array, standings

Interval = list[float | None]
Matrix = list[list[float | None]]


class Results(TypedDict):
    """What ``arena.json`` holds. Intervals are [low, high], 95 % over prompts (`nashpo.llm.standings`).

    Attributes
    ----------
    format : int
        1.
    policies : M str
    prompts, K, seed : int
    wins, low, high : (M, M)
        Mean win rate of the row against the column, and its interval; diagonal ½.
    judged : (M, M) of int
        Prompts behind each entry.
    nash : M
        Nash weights of ``wins``; equal to what ``nashpo solve wins.npy`` prints.
    nash_interval : M intervals
    nash_gap : float
        Duality gap of ``nash`` in ``wins``: the solver's error.
    nash_unique : bool
        Whether ``nash`` was shown to be the only equilibrium.
    exploitability : M
        Duality gap of each policy by itself in the game ``wins``, 2 (max_j P_ji − ½), in [0, 1].
    exploitability_interval : M intervals
    exploited_by : M of str or None
        The policy that does it; None where none beats it.
    length_controlled : (M, M) or None
        Length-controlled win rates (`nashpo.llm.length_control`), None where there is no fit; None in all where there
        is no fit at all.
    length_controlled_low, length_controlled_high : (M, M) or None
    tokens : M of {"mean", "low", "high", "prompts"}
        Length of the responses.
    finished : M
        Share of responses that ended by themselves.
    abstained : float
        Share of the comparisons of different responses that the judge did not answer.
    asymmetry : float or None
        Mean of |p_ij + p_ji − 1| of a judge that was asked in both orders.
    weights : M str
        Hashes of the policies' weights.
    judge, sampling : mapping
        As they describe themselves.
    lm_eval : mapping policy -> task -> metric -> number, or None
    notes : list of str
        What should be known about these numbers.
    """

    format: int
    policies: list[str]
    prompts: int
    K: int
    seed: int
    wins: Matrix
    low: Matrix
    high: Matrix
    judged: list[list[int]]
    nash: list[float]
    nash_interval: list[Interval]
    nash_gap: float
    nash_unique: bool
    exploitability: list[float]
    exploitability_interval: list[Interval]
    exploited_by: list[str | None]
    length_controlled: Matrix | None
    length_controlled_low: Matrix | None
    length_controlled_high: Matrix | None
    tokens: list[dict[str, Any] | None]
    finished: list[float]
    abstained: float
    asymmetry: float | None
    weights: list[str]
    judge: dict[str, Any]
    sampling: dict[str, Any]
    lm_eval: dict[str, Any] | None
    notes: list[str]


@dataclass(frozen=True)
class Terms:
    """How the policies are compared.

    Attributes
    ----------
    sampling : SamplingConfig
        Its ``K`` is the number of responses to each prompt.
    judge : Judge
    seed : int
        Of samples and intervals.
    harness : Harness, optional
        Tasks of lm-eval for each policy.
    talk : Talk, optional
        Where whole conversations are compared.
    """

    sampling: SamplingConfig
    judge: Judge
    seed: int
    harness: Harness | None = None
    talk: Talk | None = None


@dataclass(frozen=True)
class Played:
    """What was sampled and judged: policies, their responses, and the verdicts on pairs (i, j) of policies, i < j."""

    entrants: list[Entrant]
    prompts: Sequence[Prompt]
    samples: list[Samples]
    judged: Mapping[tuple[int, int], list[Judged]]
    sampling: dict[str, Any]


def results(played: Played, terms: Terms, scores: dict[str, Any] | None = None) -> Results:
    """What the comparisons say."""
    M, B = len(played.entrants), len(played.prompts)
    names = [entrant.label for entrant in played.entrants]
    rates = np.full((M, M, B), np.nan)
    for (i, j), verdicts in played.judged.items():
        rates[i, j] = [np.nan if (p := mean_win(one.wins)) is None else p for one in verdicts]
    table = standings(rates, names, terms.seed)
    described = [_described(samples) for samples in played.samples]
    controlled = _controlled(described, played.judged, terms.seed)
    asked, missing = _asked(described, played.judged)
    asymmetries = [one.asymmetry for found in played.judged.values() for one in found if one.asymmetry is not None]
    ended = [[end for row in one.finished for end in row] for one in described]
    lengths = [[sum(row) / len(row) for row in one.lengths] for one in described]
    found: Results = {
        "format": 1,
        "policies": names,
        "prompts": B,
        "K": terms.sampling.K,
        "seed": terms.seed,
        "wins": table.wins.tolist(),
        "low": _matrix(table.low),
        "high": _matrix(table.high),
        "judged": table.judged.tolist(),
        "nash": table.nash.tolist(),
        "nash_interval": _matrix(np.stack([table.nash_low, table.nash_high], axis=-1)),
        "nash_gap": table.nash_gap,
        "nash_unique": table.nash_unique,
        "exploitability": table.exploitability.tolist(),
        "exploitability_interval": _matrix(np.stack([table.exploitability_low, table.exploitability_high], axis=-1)),
        "exploited_by": [None if i == j else names[j] for i, j in enumerate(table.exploited_by.tolist())],
        "length_controlled": controlled[0],
        "length_controlled_low": controlled[1],
        "length_controlled_high": controlled[2],
        "tokens": [mean_interval(row, least=0) for row in lengths],
        "finished": [sum(row) / len(row) for row in ended],
        "abstained": missing / asked if asked else 0.0,
        "asymmetry": sum(asymmetries) / len(asymmetries) if asymmetries else None,
        "weights": [entrant.weights for entrant in played.entrants],
        "judge": terms.judge.describe(),
        "sampling": played.sampling,
        "lm_eval": scores,
        "notes": [],
    }
    found["notes"] = _notes(found, terms)
    return found


def _matrix(values: Array) -> Matrix:
    """JSON has no NaN."""
    return [[float(x) if np.isfinite(x) else None for x in row] for row in values]


def _described(samples: Samples) -> PolicySamples:
    return PolicySamples(
        [[c.text for c in row] for row in samples],
        [[c.scored for c in row] for row in samples],
        [[c.finished for c in row] for row in samples],
    )


def _controlled(
    described: Sequence[PolicySamples], judged: Mapping[tuple[int, int], Sequence[Judged]], seed: int
) -> tuple[Matrix | None, Matrix | None, Matrix | None]:
    """Length-controlled win rates and their bounds."""
    M = len(described)
    tables = np.full((3, M, M), np.nan)
    tables[:, range(M), range(M)] = 0.5
    for (i, j), verdicts in judged.items():
        wins = [one.wins for one in verdicts]
        fit = length_control.length_controlled(described[i].lengths, described[j].lengths, wins, seed)
        if fit is not None:
            mean, low, high = fit["mean"], fit["low"], fit["high"]
            tables[:, i, j], tables[:, j, i] = (mean, low, high), (1 - mean, 1 - high, 1 - low)
    if np.isnan(tables[0]).sum() == M * (M - 1):
        return None, None, None
    rate, low, high = (_matrix(table) for table in tables)
    return rate, low, high


def _asked(described: Sequence[PolicySamples], judged: Mapping[tuple[int, int], Sequence[Judged]]) -> tuple[int, int]:
    """Comparisons of different responses, and those of them that the judge did not answer."""
    asked = missing = 0
    for (i, j), verdicts in judged.items():
        for one, mine, theirs in zip(verdicts, described[i].texts, described[j].texts, strict=True):
            answers = [
                p for a, line in zip(mine, one.wins, strict=True) for b, p in zip(theirs, line, strict=True) if a != b
            ]
            asked += len(answers)
            missing += sum(p is None for p in answers)
    return asked, missing


def _notes(found: Results, terms: Terms) -> list[str]:
    notes = []
    drawn = terms.sampling.sampling()
    if not drawn.exact:
        notes.append(
            f"responses were drawn at temperature {drawn.temperature:g}, top_p {drawn.top_p:g}, top_k {drawn.top_k},"
            f" min_p {drawn.min_p:g}: these are win rates of that distribution"
        )
    if terms.talk is not None:
        turns = terms.talk.config.turns
        notes.append(f"responses are whole conversations of up to {turns} answers; lengths are of the answers alone")
    if found["length_controlled"] is None:
        fewest = f"there is no fit: it needs {length_control.FEWEST} prompts, lengths that differ and no side that wins"
        reason = f"{fewest} everything" if length_control.available() else length_control.MISSING
        notes.append(f"no length-controlled win rates ({reason})")
    if found["abstained"]:
        notes.append(f"the judge abstained on {found['abstained']:.1%} of the comparisons")
    if not found["nash_unique"]:
        notes.append("the Nash weights were not shown to be the only ones: others may be as good")
    return notes
