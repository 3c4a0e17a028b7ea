"""The protocol of a judge: the probability that one response to a prompt beats another.

Shapes: N pairs are answered by N verdicts, in their order. Probabilities are in [0, 1]. Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from nashpo.llm.transcript import Response, response_text

Text = Any
"""A string, a list of messages ``{"role", "content"}``, or a list of token ids."""


@dataclass(frozen=True)
class Pair:
    """A question: does ``first`` beat ``second`` as a response to ``prompt``? The judge sees them in this order.

    A response is a text, or the turns of a conversation behind the prompt, which is compared as a whole: messages, the
    assistant's first and last and the other side's between them.
    """

    prompt: Text
    first: Response
    second: Response


@dataclass(frozen=True)
class Verdict:
    """A judge's answer to a `Pair`.

    Attributes
    ----------
    probability : float, optional
        P(first beats second) in [0, 1]; None where the judge abstained.
    raw : JSON
        What the judge said, as a score or a text.
    """

    probability: float | None
    raw: Any = None

    def to_json(self) -> dict[str, Any]:
        """The attributes."""
        return {"probability": self.probability, "raw": self.raw}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Verdict:
        """The verdict that `to_json` saved."""
        return cls(saved["probability"], saved["raw"])


class Judge(Protocol):
    """What compares responses.

    Attributes
    ----------
    name : str
        For messages.
    antisymmetric : bool
        Whether P(b, a) = 1 - P(a, b) by construction: then each pair is asked in one order only.
    """

    name: str
    antisymmetric: bool

    def describe(self) -> dict[str, Any]:
        """All that its answers depend on, as JSON without secrets; weights by a hash of their content."""
        ...

    def check(self) -> None:
        """Find out before long work whether it can be asked; ValueError with one line where not."""
        ...

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """One verdict per pair."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


@runtime_checkable
class SetJudge(Judge, Protocol):
    """A judge whose win rates depend on all responses of a set, not on the pair alone."""

    def wins(self, answers: Sequence[Sequence[Verdict | None]]) -> list[list[float | None]]:
        """Win rates (K, K) from the verdicts on all ordered pairs; none on the diagonal and on equal responses."""
        ...


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Settings of a judge as they stand in a recipe; one subclass per judge."""

    def build(self, device: str) -> Judge:
        """The judge, its module imported now and its weights not yet read.

        Parameters
        ----------
        device : str
            Where a model judge computes, as torch names it.
        """
        raise NotImplementedError


def canonical(value: Any) -> str:
    """JSON with sorted keys: equal values have equal texts."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def ask(judge: Judge, pairs: Sequence[Pair]) -> list[Verdict]:
    """The judge's verdicts, checked.

    Raises
    ------
    ValueError
        If their number is not that of the pairs, or a probability is no number of [0, 1]: the line names the judge and
        the pair.
    """
    verdicts = judge.compare(pairs)
    if len(verdicts) != len(pairs):
        raise ValueError(f"judge {judge.name!r} answered {len(verdicts)} of {len(pairs)} pairs; it must answer each")
    return [checked(judge, pair, verdict) for pair, verdict in zip(pairs, verdicts, strict=True)]


def checked(judge: Judge, pair: Pair, verdict: Verdict) -> Verdict:
    """The verdict with its probability as a float of [0, 1], or None; ValueError as in `ask`."""
    if verdict.probability is None:
        return verdict
    try:
        probability = float(verdict.probability)
    except (TypeError, ValueError):
        probability = math.nan
    if 0 <= probability <= 1:
        return Verdict(probability, verdict.raw)
    raise ValueError(
        f"judge {judge.name!r} answered {verdict.probability!r} for P({shown(response_text(pair.first))} beats"
        f" {shown(response_text(pair.second))}) on the prompt {shown(pair.prompt)}; it must be a number from 0 to 1, or"
        " None to abstain"
    )


def shown(text: Text, most: int = 48) -> str:
    """A text on one line and cut to ``most`` letters, in quotes, for messages."""
    line = text if isinstance(text, str) else canonical(text)
    return repr(line if len(line) <= most else line[: most - 1] + "…")
