"""A plan and how it is printed: at most 100 columns. Sizes are in bytes, lengths in tokens."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nashpo.llm.recipe.counting import Work
from nashpo.llm.recipe.footprint import Size
from nashpo.llm.recipe.schema import Recipe
from nashpo.llm.recipe.timing import Timing

_COLUMNS = 100
_HEADS = {"prompt_tokens": "prompt tok.", "response_tokens": "response tok."}


@dataclass(frozen=True)
class Phase:
    """One row of the plan: what is done and how much of it."""

    iteration: int
    phase: str
    what: str
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Plan:
    """What a recipe would do.

    Attributes
    ----------
    phases : tuple of Phase
    totals : mapping -> int
        ``responses``, ``turns`` (the assistant's, of conversations), ``questions`` (both orders), ``steps``,
        ``prompt_tokens``, ``response_tokens`` (the assistant's, at most).
    data : str
        How many prompts were read and why others were left out.
    tokens : str
        How lengths were found.
    disk, memory : mapping -> int
        Bytes by what takes them; memory of the machine that trains.
    hardware : str
        The fewest GPUs that the training fits; empty where that is not known.
    time : Timing
        Seconds by phase.
    notes, warnings : tuple of str
        What a report repeats; what should be looked at first.
    """

    title: str
    data: str
    tokens: str
    phases: tuple[Phase, ...]
    totals: Mapping[str, int]
    disk: Mapping[str, int]
    memory: Mapping[str, int]
    hardware: str
    time: Timing
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [*_wrapped(self.title), *_wrapped(f"data: {self.data}"), *_wrapped(f"tokens: {self.tokens}"), ""]
        lines += _table(self.phases)
        lines += ["", *_wrapped("in all: " + ", ".join(f"{n:,} {_words(name)}" for name, n in self.totals.items()))]
        for name, sizes in (("disk", self.disk), ("memory, estimated", self.memory)):
            lines += ["", f"{name}:", *(f"  {size_text(size):>10}  {what}" for what, size in sizes.items())]
        if self.hardware:
            lines += _wrapped(f"  training fits, by these figures: {self.hardware}")
        lines += ["", *_wrapped(f"time, predicted and not measured, on {self.time.told}:")]
        lines += [f"  {_hours(one):>10}  {_hours(most):>10}  {what}" for what, (one, most) in self.time.seconds.items()]
        for name, texts in (("note", self.notes), ("warning", self.warnings)):
            lines += [line for text in texts for line in ["", *_wrapped(f"{name}: {text}")]]
        return "\n".join(lines)


@dataclass
class Draft:
    """What is gathered for a plan.

    Attributes
    ----------
    parts : list
        The prompts of each iteration.
    held_out : list
        Those of the evaluation.
    work : list of Work
        What the rule does in each iteration.
    stored : int
        The assistant's tokens of all responses that are stored, at most.
    """

    recipe: Recipe
    size: Size
    parts: list[list[Any]]
    held_out: list[Any]
    work: list[Work]
    phases: list[Phase] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stored: int = 0

    @property
    def mean_length(self) -> float:
        """Of a prompt, in tokens."""
        items = [item for part in self.parts for item in part]
        return sum(map(length, items)) / len(items)

    def add(self, iteration: int, phase: str, what: str, **counts: int) -> None:
        """One more row of the plan."""
        self.phases.append(Phase(iteration, phase, what, counts))


def ids_of(item: Any) -> Sequence[int]:
    """Token ids of a prompt, or of a pair's."""
    found: Sequence[int] = getattr(item, "prompt", item).ids
    return found


def length(item: Any) -> int:
    """Tokens of a prompt, or of a pair's."""
    return len(ids_of(item))


def _table(phases: Sequence[Phase]) -> list[str]:
    names = list(dict.fromkeys(name for phase in phases for name in phase.counts))
    head = ["it.", "phase", "of", *(_HEADS.get(name, name) for name in names)]
    rows = [
        [str(p.iteration or "-"), p.phase, p.what, *(f"{p.counts[n]:,}" if n in p.counts else "" for n in names)]
        for p in phases
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    spare = _COLUMNS - sum(widths) - 2 * (len(widths) - 1)
    widths[2] = max(8, widths[2] + min(0, spare))
    return [
        "  ".join(_cell(text, width, i) for i, (text, width) in enumerate(zip(row, widths))) for row in [head, *rows]
    ]


def _cell(text: str, width: int, column: int) -> str:
    text = text if len(text) <= width else f"{text[: width - 1]}…"
    return text.ljust(width) if column in (1, 2) else text.rjust(width)


def _words(name: str) -> str:
    return {"prompt_tokens": "prompt tokens", "response_tokens": "response tokens (at most)"}.get(name, name)


def size_text(number: int) -> str:
    """Bytes with a unit."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number} B"


def _hours(seconds: float) -> str:
    """Seconds in a unit of their size."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
