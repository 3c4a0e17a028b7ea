"""A Python callable as a judge, named ``module:name`` and called in the form that the recipe says.

Shapes: N pairs. The forms, chosen by name:

- ``pairs``: ``f(prompts, firsts, seconds)`` gives N probabilities that the first response wins; None abstains. A
  response is a text. In a run on conversations, and wherever one response of a call has several turns, all responses to
  prompts of messages are lists of messages, also one that ended after its first answer; behind a prompt that is text a
  response of several turns is its transcript.
- ``ranks``: an object with ``judge(prompts, completions, shuffle_order=False)``, completions N lists of two, gives the
  place of the better one, 0 or 1, and −1 where it failed (TRL's BasePairwiseJudge). Responses are texts, of several
  turns their transcripts.
- ``probabilities``: the same with ``return_scores=True`` gives N probabilities (TRL's PairRMJudge).
- ``reward``: ``f(prompts=..., completions=...)`` gives one reward r per completion, in nats, or None (TRL's reward
  functions); P = σ(r_first − r_second). As in TRL a prompt of messages is answered by a list of messages, the
  assistant's one or all turns behind the prompt, and a text by a text, of several turns their transcript.

A class is made without arguments. The module is looked up on Python's path and in the working folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from nashpo.llm.callables import called, named, source_of
from nashpo.llm.judges.judge import Pair, Text, Verdict, canonical
from nashpo.llm.judges.turns import identity
from nashpo.llm.transcript import Response, response_text


class FunctionJudge:
    """Base of the forms.

    Parameters
    ----------
    target : str
        ``module:name``.
    function : callable or object
        What it names.
    """

    form: str
    antisymmetric = False
    shared = True
    conversations = False
    """Whether responses are those of a run on conversations, also where all of a call ended after one answer."""

    def __init__(self, target: str, function: Any) -> None:
        self.name = target
        self.function = function
        self.call: Callable[..., Any] = self._callable()

    def _callable(self) -> Callable[..., Any]:
        if not callable(self.function):
            raise ValueError(f"judge.function: {self.name} is no function, which the form {self.form!r} needs")
        function: Callable[..., Any] = self.function
        return function

    def describe(self) -> dict[str, Any]:
        """The name, the form, and a hash of the source file, so that a changed judge is asked anew."""
        return {"judge": "function", "function": self.name, "form": self.form, "source": source_of(self.function)}

    def check(self) -> None:
        """Nothing is left to check: it was imported when it was made."""

    def close(self) -> None:
        """Nothing to give back."""

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """One verdict per pair."""
        raise NotImplementedError

    def _ask(self, *args: Any, **settings: Any) -> Any:
        """What it answers."""
        return called(f"judge {self.name!r}", self.call, *args, **settings)

    def _list(self, answers: Any, count: int, what: str) -> list[Any]:
        """The answers as a list of the right length."""
        try:
            answered = list(answers)
        except TypeError:
            raise ValueError(f"judge {self.name!r} answered {answers!r}; it must give a list") from None
        if len(answered) != count:
            raise ValueError(f"judge {self.name!r} answered {len(answered)} numbers for {count} {what}")
        return answered


class Pairs(FunctionJudge):
    """The form ``pairs``."""

    form = "pairs"

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """As the function says."""
        whole = self.conversations or not all(isinstance(one, str) for p in pairs for one in (p.first, p.second))
        firsts = [_given(p.prompt, p.first, whole) for p in pairs]
        seconds = [_given(p.prompt, p.second, whole) for p in pairs]
        answers = self._ask([p.prompt for p in pairs], firsts, seconds)
        return [a if isinstance(a, Verdict) else Verdict(_plain(a)) for a in self._list(answers, len(pairs), "pairs")]


class Ranks(FunctionJudge):
    """The form ``ranks``: probabilities 1 and 0."""

    form = "ranks"
    verdicts = {0: 1.0, 1: 0.0, -1: None}

    def _callable(self) -> Callable[..., Any]:
        method = getattr(self.function, "judge", None)
        if not callable(method):
            raise ValueError(f"judge.function: {self.name} has no method judge, which the form {self.form!r} needs")
        function: Callable[..., Any] = method
        return function

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """1 where the first is better, 0 where the second is, an abstention where it failed."""
        answers = self._ask([p.prompt for p in pairs], _texts(pairs), shuffle_order=False)
        return [self._verdict(rank) for rank in self._list(answers, len(pairs), "pairs")]

    def _verdict(self, rank: Any) -> Verdict:
        if rank not in self.verdicts:
            raise ValueError(f"judge {self.name!r} answered {rank!r}; of two responses the better is 0 or 1, or -1")
        return Verdict(self.verdicts[rank], int(rank))


class Probabilities(Ranks):
    """The form ``probabilities``."""

    form = "probabilities"

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """As the judge says."""
        answers = self._ask([p.prompt for p in pairs], _texts(pairs), shuffle_order=False, return_scores=True)
        return [Verdict(_plain(answer)) for answer in self._list(answers, len(pairs), "pairs")]


class Reward(FunctionJudge):
    """The form ``reward``; every response is asked about once."""

    form = "reward"
    antisymmetric = True

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """σ(r_first − r_second); an abstention where a reward is None."""
        asked = {(canonical(p.prompt), identity(one)): (p.prompt, one) for p in pairs for one in (p.first, p.second)}
        prompts = [prompt for prompt, _ in asked.values()]
        completions = [_given(prompt, response, True) for prompt, response in asked.values()]
        answers = self._list(self._ask(prompts=prompts, completions=completions), len(asked), "completions")
        rewards = dict(zip(asked, map(_plain, answers), strict=True))
        keys = [(canonical(p.prompt), identity(p.first), identity(p.second)) for p in pairs]
        return [_odds(rewards[prompt, first], rewards[prompt, second]) for prompt, first, second in keys]


FORMS: dict[str, type[FunctionJudge]] = {kind.form: kind for kind in (Pairs, Ranks, Probabilities, Reward)}


def function_judge(target: str, form: str) -> FunctionJudge:
    """The judge that ``module:name`` names.

    Raises
    ------
    ValueError
        If there is no such module or name, or it cannot be called in this form.
    """
    return FORMS[form](target, named(target, "judge.function"))


def _plain(answer: Any) -> Any:
    """A number of numpy or torch as Python's own; anything else as it is, to be refused with its value."""
    return answer.item() if hasattr(answer, "item") else answer


def _given(prompt: Text, response: Response, messages: bool) -> Response:
    """A response as a function gets it: a text behind a text, otherwise messages, which are copies that it may change.

    A response of one turn is a message only where ``messages`` are asked for.
    """
    if isinstance(prompt, str) or (isinstance(response, str) and not messages):
        return response_text(response)
    if isinstance(response, str):
        return [{"role": "assistant", "content": response}]
    return [dict(turn) for turn in response]


def _texts(pairs: Sequence[Pair]) -> list[list[str]]:
    return [[response_text(p.first), response_text(p.second)] for p in pairs]


def _odds(first: float | None, second: float | None) -> Verdict:
    raw = {"rewards": [first, second]}
    if first is None or second is None:
        return Verdict(None, raw)
    margin = first - second
    small = math.exp(-abs(margin))  # nan stays nan, and is refused
    return Verdict(1 / (1 + small) if margin >= 0 else small / (1 + small), raw)
