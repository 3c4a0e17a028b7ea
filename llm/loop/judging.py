"""The judging phase: win matrices of an iteration's responses. A conversation is one response, compared as a whole.

Shapes: B prompts, K responses of one policy and K' of another (or the same K); win matrices (B, K, K'), NaN where the
judge abstained.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nashpo.llm.judges.cache import Cache
from nashpo.llm.judges.judge import Judge
from nashpo.llm.judges.matrix import Judged, judge_responses
from nashpo.llm.loop.phase import Phase, key_of, read_lines, write_lines
from nashpo.llm.loop.ranks import ALONE, Ranks, is_shared
from nashpo.llm.loop.sampling import Progress, Samples
from nashpo.llm.prompts import Prompt
from nashpo.llm.transcript import Response

SHARD = 32
"""Prompts per file. Within a shard the judge's cache remembers what was asked."""


def judge(
    folder: Path,
    by: Judge,
    prompts: Sequence[Prompt],
    samples: Samples,
    others: Samples | None,
    cache: Cache | None,
    progress: Progress,
    ranks: Ranks = ALONE,
) -> list[Judged]:
    """Who beats whom, read back where it was asked before.

    Parameters
    ----------
    others : B tuples of K' Completion, optional
        Compare with these; by default the samples among themselves.
    ranks : Ranks
        The files are dealt to them; a judge that all share is asked by the first.
    """
    said, others_said = _said(samples), None if others is None else _said(others)
    about, by_first = by.describe(), is_shared(by)
    key = key_of("judgements", about, [p.key for p in prompts], said, others_said)
    phase = Phase(folder, "judgements", key, ranks)
    if not phase.committed:
        phase.begin(judge=about)
        count = -(-len(prompts) // SHARD)
        missing = ranks.first(lambda: [n for n in range(count) if not (folder / _name(n)).exists()])
        progress("judgements", (count - len(missing)) * SHARD, len(prompts))
        with ranks.together():
            for done, number in enumerate(ranks.deal(missing, by_first), 1):
                some = slice(number * SHARD, (number + 1) * SHARD)
                judged = judge_responses(
                    by,
                    [p.text for p in prompts[some]],
                    said[some],
                    None if others_said is None else others_said[some],
                    cache=cache,
                )
                lines = zip(prompts[some], judged, strict=True)
                write_lines(
                    folder / _name(number), ({"prompt_key": prompt.key, **one.to_json()} for prompt, one in lines)
                )
                left = len(missing) - done * (1 if by_first else ranks.world)
                progress("judgements", min(len(prompts), (count - max(0, left)) * SHARD), len(prompts))
        found = _read(folder, len(prompts))
        phase.commit(judge=about, counts=_counts(found))
    return _read(folder, len(prompts))


def _name(number: int) -> str:
    return f"{number:05d}.jsonl"


def _said(samples: Samples) -> list[list[Response]]:
    return [[completion.response for completion in row] for row in samples]


def _read(folder: Path, count: int) -> list[Judged]:
    files = [folder / _name(number) for number in range(-(-count // SHARD))]
    return [Judged.from_json(line) for path in files for line in read_lines(path)]


def _counts(judged: Sequence[Judged]) -> dict[str, Any]:
    asymmetries = [one.asymmetry for one in judged if one.asymmetry is not None]
    abstained = sum(p is None for one in judged for line in one.wins for p in line)
    return {
        "prompts": len(judged),
        "abstained": abstained,
        "asymmetry": sum(asymmetries) / len(asymmetries) if asymmetries else None,
    }


def win_matrices(judged: Sequence[Judged]) -> Tensor:
    """(B, K, K') float64, NaN where the judge abstained."""
    return torch.tensor(
        [[[float("nan") if p is None else p for p in line] for line in one.wins] for one in judged],
        dtype=torch.float64,
    )
