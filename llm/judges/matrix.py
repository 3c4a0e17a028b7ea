"""Win matrices of sets of responses, texts or conversations: every pair asked in both orders, and symmetrized.

Shapes: B prompts with K responses each, compared among themselves, (K, K), or with K' others, (K, K'). Win rates are in
[0, 1], and None where the judge abstained. With p_ij the judge's probability that i beats j when it sees i first,

    P_ij = (p_ij + 1 - p_ji) / 2 ,    so that P + P^T = 1.

The judge's asymmetry is the mean of |p_ij + p_ji - 1|: 0 for a judge that does not care which response comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from nashpo.llm.judges.cache import Cache, Keys
from nashpo.llm.judges.interrupted import Interrupted
from nashpo.llm.judges.judge import Judge, Pair, SetJudge, Text, Verdict, ask, canonical, checked
from nashpo.llm.judges.turns import Identity, checked_response, identity
from nashpo.llm.transcript import Response

BATCH = 256
"""Questions that a judge is given at once, and that the cache keeps or loses together."""

Wins = list[list[float | None]]
Question = tuple[str, Identity, Identity]
Both = tuple[Verdict | None, Verdict | None]


@dataclass(frozen=True)
class Judged:
    """Who beats whom among the responses to one prompt.

    Attributes
    ----------
    wins : (K, K') list
        Symmetrized win rates; None where the judge abstained in one of the orders.
    raw : list of dict
        ``{"i", "j", "forward", "backward"}`` for every pair of different responses: the verdicts on (i, j) and (j, i)
        as ``{"probability", "raw"}``; null where that order was not asked.
    asymmetry : float, optional
        Mean of |p_ij + p_ji - 1| over the pairs answered in both orders; None where there are none.
    """

    wins: Wins
    raw: list[dict[str, Any]] = field(default_factory=list)
    asymmetry: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The attributes."""
        return {"wins": self.wins, "raw": self.raw, "asymmetry": self.asymmetry}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Judged:
        """What `to_json` saved; other keys are ignored."""
        return cls(saved["wins"], saved["raw"], saved["asymmetry"])


def symmetrized(forward: float, backward: float) -> float:
    """(p_ij + 1 - p_ji) / 2."""
    return (forward + (1.0 - backward)) / 2


def check_wins(wins: Wins) -> None:
    """That a square matrix is a game: diagonal 1/2, P + P^T = 1, and both entries of a pair known or both unknown.

    Raises
    ------
    ValueError
        With the first entry that is not so.
    """
    for i, row in enumerate(wins):
        for j in range(i + 1):
            here, there = row[j], wins[j][i]
            if (here is None) != (there is None):
                raise ValueError(f"win matrix: entry ({i}, {j}) is {here} and entry ({j}, {i}) is {there}")
            # The sum of p and 1 - p rounds to 1: anything farther off is no rounding.
            if here is not None and there is not None and not abs(here + there - 1.0) <= 2.0**-52:
                raise ValueError(f"win matrix: entries ({i}, {j}) and ({j}, {i}), {here} and {there}, must sum to 1")


def judge_responses(
    judge: Judge,
    prompts: Sequence[Text],
    responses: Sequence[Sequence[Response]],
    others: Sequence[Sequence[Response]] | None = None,
    cache: Cache | None = None,
    progress: Callable[[int], None] | None = None,
    batch: int = BATCH,
) -> list[Judged]:
    """Win matrices of responses.

    Equal responses are 1/2 without being asked, and equal questions are asked once. An antisymmetric judge is asked in
    one order: the one in which the texts are sorted; of a conversation it is its JSON that is sorted.

    Parameters
    ----------
    judge : Judge
        A `SetJudge` reads the win rates from all verdicts of a set; compared with ``others``, each pair is a set.
    prompts : B texts
    responses : B lists of K texts or conversations
        A conversation is the list of messages behind the prompt, the assistant's first and last.
    others : B lists of K' texts or conversations, optional
        Compare with these; by default the responses among themselves.
    cache : Cache, optional
        Asked first and told afterwards, batch by batch.
    progress : callable, optional
        Called with the number of pairs (i, j) that were finished since its last call.
    batch : int
        Questions per call of the judge.

    Raises
    ------
    ValueError
        If the lists do not match, a response is neither a text nor such a list, or a verdict is no probability.
    Interrupted
        From the judge, after the cache was told what had been answered.
    """
    if not len(prompts) == len(responses) == (len(prompts) if others is None else len(others)):
        rest = "" if others is None else f" and {len(others)} lists of others"
        raise ValueError(f"{len(prompts)} prompts, {len(responses)} lists of responses{rest}: there must be as many")
    rows = _checked(responses, "response")
    columns = [None] * len(rows) if others is None else _checked(others, "other response")
    sets = [_Set(judge, *one) for one in zip(prompts, rows, columns, strict=True)]
    answers = _answers(judge, sets, cache, progress, batch)
    return [one.judged(answers) for one in sets]


def _checked(lists: Sequence[Sequence[Response]], what: str) -> list[list[Response]]:
    return [
        [checked_response(one, f"{what} {k} to prompt {b}") for k, one in enumerate(row)] for b, row in enumerate(lists)
    ]


class _Set:
    """The responses to one prompt and what must be asked about them."""

    def __init__(
        self, judge: Judge, prompt: Text, rows: Sequence[Response], columns: Sequence[Response] | None
    ) -> None:
        self.antisymmetric = judge.antisymmetric
        self.by_set = judge if isinstance(judge, SetJudge) else None
        self.prompt, self.key = prompt, canonical(prompt)
        self.own = columns is None
        self.rows = [identity(response) for response in rows]
        self.columns = self.rows if columns is None else [identity(response) for response in columns]
        self.responses = dict(zip(self.rows, rows, strict=True))
        if columns is not None:
            self.responses.update(zip(self.columns, columns, strict=True))

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Places (i, j) of pairs; i < j among themselves."""
        for i in range(len(self.rows)):
            for j in range(i + 1 if self.own else 0, len(self.columns)):
                yield i, j

    def questions(self, i: int, j: int) -> tuple[Question | None, Question | None]:
        """Whether i beats j when i is seen first, and whether j beats i when j is; None where not to be asked."""
        one, two = self.rows[i], self.columns[j]
        if one == two:
            return None, None
        forward, backward = (self.key, one, two), (self.key, two, one)
        if self.antisymmetric:
            return (forward, None) if one < two else (None, backward)
        return forward, backward

    def pair(self, question: Question) -> Pair:
        """What the judge is asked."""
        return Pair(self.prompt, self.responses[question[1]], self.responses[question[2]])

    def judged(self, answers: dict[Question, Verdict]) -> Judged:
        verdicts: dict[tuple[int, int], Both] = {}
        for i, j in self.pairs():
            forward, backward = self.questions(i, j)
            verdicts[i, j] = (forward and answers[forward], backward and answers[backward])
        raw = [
            {"i": i, "j": j, "forward": _json(forward), "backward": _json(backward)}
            for (i, j), (forward, backward) in verdicts.items()
            if forward is not None or backward is not None
        ]
        sums = [
            ahead.probability + behind.probability
            for ahead, behind in verdicts.values()
            if ahead and behind and ahead.probability is not None and behind.probability is not None
        ]
        asymmetry = sum(abs(total - 1.0) for total in sums) / len(sums) if sums else None
        wins = self._own_wins(verdicts) if self.own else self._wins(verdicts)
        return Judged(wins, raw, asymmetry)

    def _own_wins(self, verdicts: dict[tuple[int, int], Both]) -> Wins:
        K = len(self.rows)
        if self.by_set is not None:
            grid: list[list[Verdict | None]] = [[None] * K for _ in range(K)]
            for (i, j), (forward, backward) in verdicts.items():
                grid[i][j], grid[j][i] = forward, backward
            wins = self.by_set.wins(grid)
        else:
            wins = [[0.5] * K for _ in range(K)]
            for (i, j), both in verdicts.items():
                win = _win(*both)
                wins[i][j], wins[j][i] = win, None if win is None else 1.0 - win
        check_wins(wins)
        return wins

    def _wins(self, verdicts: dict[tuple[int, int], Both]) -> Wins:
        def win(forward: Verdict | None, backward: Verdict | None) -> float | None:
            if self.by_set is None:
                return _win(forward, backward)
            return self.by_set.wins([[None, forward], [backward, None]])[0][1]

        return [[win(*verdicts[i, j]) for j in range(len(self.columns))] for i in range(len(self.rows))]


def _json(verdict: Verdict | None) -> dict[str, Any] | None:
    return None if verdict is None else verdict.to_json()


def _win(forward: Verdict | None, backward: Verdict | None) -> float | None:
    """P(i beats j) from what was asked; None where an answer is missing, 1/2 for equal responses."""
    if forward is None and backward is None:
        return 0.5
    ahead = None if forward is None else forward.probability
    behind = None if backward is None else backward.probability
    if forward is None:
        return None if behind is None else 1.0 - behind
    if backward is None:
        return ahead
    return None if ahead is None or behind is None else symmetrized(ahead, behind)


def _answers(
    judge: Judge, sets: Sequence[_Set], cache: Cache | None, progress: Callable[[int], None] | None, batch: int
) -> dict[Question, Verdict]:
    """Verdicts on all questions of the sets, each asked once."""
    asked: dict[Question, Pair] = {}
    first: dict[Question, int] = {}  # the number of the first pair that needs it
    pairs = 0
    for one in sets:
        for i, j in one.pairs():
            for question in one.questions(i, j):
                if question is not None and question not in asked:
                    asked[question] = one.pair(question)
                    first[question] = pairs
            pairs += 1
    keys = None if cache is None else Keys(judge)
    answers: dict[Question, Verdict] = {}
    if cache is not None and keys is not None:
        for question, pair in asked.items():
            known = cache.get(keys(pair))
            if known is not None:
                answers[question] = known
    missing = [question for question in asked if question not in answers]
    told = 0
    for start in range(0, len(missing), batch):
        some = missing[start : start + batch]
        pairs_asked = [asked[question] for question in some]
        try:
            verdicts = ask(judge, pairs_asked)
        except Interrupted as stop:
            if cache is not None and keys is not None:
                known_ones = [(pairs_asked[place], verdict) for place, verdict in stop.answered.items()]
                cache.put((keys(pair), checked(judge, pair, verdict)) for pair, verdict in known_ones)
            raise
        if cache is not None and keys is not None:
            cache.put((keys(pair), verdict) for pair, verdict in zip(pairs_asked, verdicts, strict=True))
        answers.update(zip(some, verdicts, strict=True))
        if progress is not None and start + batch < len(missing):
            finished = first[missing[start + batch]]  # all pairs before that of the next question
            progress(finished - told)
            told = finished
    if progress is not None:
        progress(pairs - told)
    return answers
