"""Statistics of an iteration's samples and judgements: lengths, K x K games, the judge's consistency.

Shapes: S responses in all, N judged prompts with K responses each; win rates ``wins`` are (N, K, K) in [0, 1], NaN
where the judge abstained. Lengths are tokens of the policy, without those of the other side of a conversation.
"""

import itertools
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nashpo.llm.response_games import cycles, longer_wins, sample_gap

MOST = 2000
"""Prompts read per iteration: enough for a figure, and a report of a large run stays a matter of seconds."""
EXAMPLES = 3

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Example:
    """A prompt with the response that the judge liked best and the one that it liked least."""

    prompt: Any
    best: str
    worst: str
    win: float


@dataclass(frozen=True)
class Shards:
    """What was read.

    Attributes
    ----------
    prompts : int
        Prompts whose samples were read, at most `MOST`.
    all_read : bool
        Whether these are all prompts of the iteration.
    tokens : (S,)
        Length of every response.
    prompt_tokens : (prompts,)
        Mean length of the responses to each prompt that has any.
    finished : float, optional
        Share of responses that ended by themselves.
    retokenized : int
        Responses that came as text and were tokenized here.
    judged, abstained : int
        Prompts with judgements, and those of them with a pair on which the judge abstained.
    gaps : (N,)
        Duality gap of the uniform policy in each prompt's K x K game, where every pair was judged.
    asymmetry : float, optional
        Mean of \\|P(a over b) + P(b over a) − 1\\| before symmetrizing.
    cyclic, triples : int
        Triples of different responses of which each beats the next, and all that were judged without a tie.
    longer_wins : float, optional
        Mean over prompts of the win rate of the longer response, over pairs of different texts and lengths.
    examples : tuple of Example
    """

    prompts: int = 0
    all_read: bool = True
    tokens: Array = field(default_factory=lambda: np.empty(0))
    prompt_tokens: Array = field(default_factory=lambda: np.empty(0))
    finished: float | None = None
    retokenized: int = 0
    judged: int = 0
    abstained: int = 0
    gaps: Array = field(default_factory=lambda: np.empty(0))
    asymmetry: float | None = None
    cyclic: int = 0
    triples: int = 0
    longer_wins: float | None = None
    examples: tuple[Example, ...] = ()


def json_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Objects of a JSON Lines file; a last line that was torn by a crash is left out.

    Raises
    ------
    ValueError
        If another line is no JSON object.
    """
    with path.open("rb") as file:
        for place, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                raise ValueError(f"line {place} of {path} is not JSON ({error}); restore or delete the file") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {place} of {path} is no JSON object; restore or delete the file")
            yield row


@dataclass(frozen=True)
class _Sampled:
    """What is kept of a prompt's samples; token ids are counted and let go."""

    key: Any
    prompt: Any
    texts: tuple[str, ...]
    lengths: NDArray[np.int64]
    finished: tuple[bool, ...]
    retokenized: int


def read_shards(iteration: Path, most: int = MOST) -> Shards:
    """Statistics of ``samples/*.jsonl`` and ``judgements/*.jsonl`` of the folder of an iteration.

    Raises
    ------
    ValueError
        If a shard is damaged.
    """
    drawn = _rows(iteration / "samples")
    samples = [_sampled(row) for row in itertools.islice(drawn, most)]
    judgements = list(itertools.islice(_rows(iteration / "judgements"), most))
    # Line n of the judgements is about line n of the samples; a prompt may be there twice.
    pairs = itertools.zip_longest(samples[: len(judgements)], judgements)
    wins = [
        (sampled if sampled is not None and sampled.key == row.get("prompt_key") else None, matrix)
        for sampled, row in pairs
        if (matrix := _matrix(row)) is not None
    ]
    complete = [(sampled, matrix) for sampled, matrix in wins if np.isfinite(matrix).all()]
    asymmetries = [float(x) for row in judgements if isinstance(x := row.get("asymmetry"), int | float)]
    counted = [cycles(matrix, _texts(sampled, matrix)) for sampled, matrix in wins]
    longer = [rate for sampled, matrix in wins if (rate := _longer_wins(sampled, matrix)) is not None]
    examples = (_example(sampled, matrix) for sampled, matrix in complete)
    finished = [end for sampled in samples for end in sampled.finished]
    return Shards(
        prompts=len(samples),
        all_read=next(drawn, None) is None,
        tokens=np.concatenate([np.empty(0), *(sampled.lengths for sampled in samples)]),
        prompt_tokens=np.array([sampled.lengths.mean() for sampled in samples if len(sampled.lengths)]),
        finished=float(np.mean(finished)) if finished else None,
        retokenized=sum(sampled.retokenized for sampled in samples),
        judged=len(judgements),
        abstained=len(judgements) - len(complete),
        gaps=np.array([gap for _, matrix in wins if (gap := sample_gap(matrix)) is not None]),
        asymmetry=float(np.mean(asymmetries)) if asymmetries else None,
        cyclic=sum(cyclic for cyclic, _ in counted),
        triples=sum(triples for _, triples in counted),
        longer_wins=float(np.mean(longer)) if longer else None,
        examples=tuple(itertools.islice((example for example in examples if example is not None), EXAMPLES)),
    )


def _rows(folder: Path) -> Iterator[Mapping[str, Any]]:
    for path in sorted(folder.glob("*.jsonl")):
        yield from json_rows(path)


def _sampled(row: Mapping[str, Any]) -> _Sampled:
    found = row.get("completions")
    answers = [answer for answer in found if isinstance(answer, dict)] if isinstance(found, list) else []
    return _Sampled(
        row.get("prompt_key"),
        row.get("prompt"),
        tuple(str(answer.get("text", "")) for answer in answers),
        np.array([_length(answer) for answer in answers], dtype=np.int64),
        tuple(bool(answer.get("finished")) for answer in answers),
        sum(bool(answer.get("retokenized")) for answer in answers),
    )


def _length(answer: Mapping[str, Any]) -> int:
    """Tokens of the policy: all of them, or those that a conversation's mask marks."""
    mask = answer.get("mask")
    return len(answer.get("ids") or ()) if mask is None else sum(map(bool, mask))


def _matrix(row: Mapping[str, Any]) -> Array | None:
    """The K x K win rates of a line with NaN for an abstention; None where it holds no square matrix."""
    try:
        wins = np.array(row.get("wins"), dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return wins if wins.ndim == 2 and wins.shape[0] == wins.shape[1] > 0 else None


def _longer_wins(sampled: _Sampled | None, wins: Array) -> float | None:
    """None also where the samples are not there or their number is another."""
    if sampled is None or len(sampled.lengths) != len(wins):
        return None
    return longer_wins(wins, sampled.lengths, sampled.texts)


def _texts(sampled: _Sampled | None, wins: Array) -> Sequence[Hashable]:
    """Numbers, all different, where the texts are not known."""
    return range(len(wins)) if sampled is None or len(sampled.texts) != len(wins) else sampled.texts


def _example(sampled: _Sampled | None, wins: Array) -> Example | None:
    """None where the samples are not there or their number is another."""
    if sampled is None or len(sampled.texts) != len(wins) or len(wins) < 2:
        return None
    means = wins.mean(axis=1)
    best, worst = int(means.argmax()), int(means.argmin())
    if best == worst:
        best, worst = 0, 1
    return Example(sampled.prompt, sampled.texts[best], sampled.texts[worst], float(wins[best, worst]))
