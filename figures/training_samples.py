"""Sample responses side by side, as HTML. Prompts and responses are anything; all of it is escaped here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from nashpo.figures.training_run import Iteration, Json, TrainingRun, number

MOST = 4
"""Pairs per iteration."""
LONGEST = 3000
"""Letters of one text."""


@dataclass(frozen=True)
class Sides:
    """A prompt with two responses and their heads."""

    prompt: str
    left: tuple[str, str]
    right: tuple[str, str]


def side_by_side(run: TrainingRun) -> str:
    """A box per iteration, the last one open; empty where there is nothing to show."""
    boxes = []
    shown = [(i, pairs) for i in run.iterations if (pairs := list(_pairs(i))[:MOST])]
    for iteration, pairs in shown:
        is_open = " open" if iteration is shown[-1][0] else ""
        inside = "\n".join(_box(pair) for pair in pairs)
        boxes.append(f"<details{is_open}><summary>Iteration {iteration.number}</summary>{inside}</details>")
    return "\n".join(boxes)


def text_of(text: Any) -> str:
    """What a reader sees of a prompt: the string, messages as ``role: content``, or token ids."""
    if isinstance(text, str):
        return text
    if isinstance(text, list) and text and all(isinstance(part, Mapping) for part in text):
        return "\n".join(f"{part.get('role', '?')}: {part.get('content', '')}" for part in text)
    if isinstance(text, list):
        return "token ids " + " ".join(str(part) for part in text)
    return "" if text is None else str(text)


def _pairs(iteration: Iteration) -> Iterator[Sides]:
    """Of the evaluation, else the best and the worst one of the training samples."""
    evaluated = iteration.results.get("side_by_side")
    if isinstance(evaluated, list) and evaluated:
        yield from (_evaluated(pair) for pair in evaluated if isinstance(pair, Mapping))
        return
    for e in iteration.shards.examples:
        heads = (f"training sample, win rate {e.win:.2f}", "training sample that the judge liked least")
        yield Sides(text_of(e.prompt), (heads[0], e.best), (heads[1], e.worst))


def _evaluated(pair: Json) -> Sides:
    win = number(pair.get("win"))
    head = "new policy" if win is None else f"new policy, win rate {win:.2f}"
    return Sides(
        text_of(pair.get("prompt")),
        (head, text_of(pair.get("current"))),
        ("reference", text_of(pair.get("reference"))),
    )


def _box(pair: Sides) -> str:
    sides = "".join(
        f'<div><h4>{escape(head)}</h4><div class="said">{_cut(text)}</div></div>'
        for head, text in (pair.left, pair.right)
    )
    return f'<div class="pair"><div class="said">{_cut(pair.prompt)}</div><div class="sides">{sides}</div></div>'


def _cut(text: str) -> str:
    """Escaped, with an end that says how much was cut off."""
    more = f' <em class="unfinished">… {len(text) - LONGEST:,} more letters</em>' if len(text) > LONGEST else ""
    return (escape(text[:LONGEST]) or '<em class="unfinished">(empty)</em>') + more
