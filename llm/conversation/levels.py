r"""What a stage is fitted to, from conversations and who won: whole conversations, or the answers at every state.

Both variants read the same win rates of whole conversations. At the level of *trajectories* a response is a whole
conversation and earns its win rate; the other side's probabilities stand in the policy's and in the base's law of
conversations alike and cancel in every log-ratio, which is why its tokens are not scored. At the level of *states* a
response is one answer to a state x_h (the prompt and all that was said), and earns an estimate of

    Q_h(x_h, y) = E[ P(x_{H+1} ≻ π') | x_h, y ]

the mean win rate of the leaves below it against conversations of the opponent from the same prompt. Among the leaves of
one tree, those below the same first answer are no independent draws of π' for a later state and are left out there; at
the first state all leaves count, the comparison with oneself (½) included, as with responses of one turn.

Shapes: B prompts with L = w_1 ⋯ w_H leaves each (`nashpo.llm.conversation.rollout`), win matrices (B, L, L'), NaN where
the judge abstained; S states of all prompts with at most W = max w_h continuations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nashpo.llm.engines.engine import Completion
from nashpo.llm.prompts import Prompt
from nashpo.llm.responses import Answer, Responses, Scored

Samples = Sequence[Sequence[Completion]]


class Level(Protocol):
    """Turns samples and win rates into what is fitted."""

    @property
    def rows(self) -> str:
        """What a row of what is fitted stands for, for messages: ``prompts`` or ``states``."""
        ...

    def answer(self, prompts: Sequence[Prompt], samples: Samples, wins: Tensor, own: bool) -> Answer:
        """Responses with centred payoffs; ``own`` where the samples were compared among themselves."""
        ...

    def responses(self, prompts: Sequence[Prompt], samples: Samples) -> Responses:
        """The responses alone."""
        ...

    def compared(self, responses: Responses, prompts: Sequence[Prompt]) -> Tensor:
        """(S,) int: K where a row's payoffs are means over its own K responses, themselves included; otherwise 0."""
        ...


def scored(prompt: Prompt, completion: Completion) -> Scored:
    """Prompt and completion as one sequence."""
    if completion.mask is None:
        return Scored.completion(prompt.ids, completion.ids)
    return Scored((*prompt.ids, *completion.ids), (0,) * len(prompt.ids) + completion.mask)


@dataclass(frozen=True)
class Trajectory:
    """A response is all that was drawn behind the prompt."""

    @property
    def rows(self) -> str:
        """``prompts``."""
        return "prompts"

    def responses(self, prompts: Sequence[Prompt], samples: Samples) -> Responses:
        """One row per prompt, named by it."""
        rows = [[scored(p, c) for c in row] for p, row in zip(prompts, samples, strict=True)]
        return Responses.drawn(rows, [p.key for p in prompts])

    def answer(self, prompts: Sequence[Prompt], samples: Samples, wins: Tensor, own: bool) -> Answer:
        """Mean win rates, centred: P̂(y ≻ π) − ½; NaN where a comparison is missing.

        Among K responses of one policy the comparison with oneself, ½, is counted, as in SPPO: the step is then
        η (K − 1)/K in expectation.
        """
        return Answer(self.responses(prompts, samples), wins.mean(-1) - 0.5, wins if own else None)

    def compared(self, responses: Responses, prompts: Sequence[Prompt]) -> Tensor:
        """All rows."""
        return torch.tensor([len(row) for row in responses.sequences])


@dataclass(frozen=True)
class Drawn:
    """How much was drawn as the assistant's n-th turn.

    Attributes
    ----------
    states : int
        At which this turn was drawn: of the prompt, 1; later as many as there are answers before it that were followed.
    answers, tokens : int
        The assistant's.
    between : int
        Tokens between the answers before and these, the other side's among them.
    """

    states: int = 0
    answers: int = 0
    tokens: int = 0
    between: int = 0

    def __add__(self, other: Drawn) -> Drawn:
        return Drawn(
            self.states + other.states,
            self.answers + other.answers,
            self.tokens + other.tokens,
            self.between + other.between,
        )


@dataclass(frozen=True)
class _State:
    """A state of one tree: its depth h = 0, 1, …, its number among those of its depth, and its children's leaves."""

    depth: int
    number: int
    first: int
    below: int
    width: int

    def leaf(self, child: int) -> int:
        """The first leaf below a child."""
        return self.first + child * self.below

    @property
    def leaves(self) -> slice:
        """All leaves below the state."""
        return slice(self.first, self.first + self.width * self.below)


@dataclass(frozen=True)
class State:
    """A response is one answer to a state.

    Parameters
    ----------
    draws : tuple of int
        Answers drawn at each state of depth 1, …, H.
    """

    draws: tuple[int, ...]

    @property
    def rows(self) -> str:
        """``states``."""
        return "states"

    def _states(self) -> Iterator[_State]:
        """All that there can be, the prompt first."""
        for depth, width in enumerate(self.draws):
            below = prod(self.draws[depth + 1 :])
            for number in range(prod(self.draws[:depth])):
                yield _State(depth, number, number * width * below, below, width)

    def _reached(self, row: Sequence[Completion]) -> Iterator[_State]:
        """Those at which an answer was drawn: the conversation had not ended before."""
        for state in self._states():
            if len(spans(row[state.first])) > state.depth:
                yield state

    def drawn(self, row: Sequence[Completion]) -> list[Drawn]:
        """What was drawn behind a prompt, by the assistant's turns: each answer once, however many leaves share it."""
        found = [Drawn() for _ in self.draws]
        for state in self._reached(row):
            where = [spans(row[state.leaf(j)])[state.depth] for j in range(state.width)]
            before = spans(row[state.first])[state.depth - 1][1] if state.depth else 0
            between = where[0][0] - before
            found[state.depth] += Drawn(1, state.width, sum(end - begin for begin, end in where), between)
        return found

    def responses(self, prompts: Sequence[Prompt], samples: Samples) -> Responses:
        """One row per state, named by its prompt and its place in the tree."""
        rows, names = [], []
        for prompt, row in zip(prompts, samples, strict=True):
            for state in self._reached(row):
                rows.append([_turn(prompt, row[state.leaf(j)], state.depth) for j in range(state.width)])
                names.append(prompt.key if state.depth == 0 else f"{prompt.key}/{state.depth}/{state.number}")
        return Responses.drawn(rows, names)

    def answer(self, prompts: Sequence[Prompt], samples: Samples, wins: Tensor, own: bool) -> Answer:
        """Estimates of Q − ½, and who beat whom: the mean over the leaves below both; NaN where a comparison lacks.

        Who beat whom is the payoff at the prompt alone. At a later state it says which answer goes on better from there
        against the others there: right for losses on rewards, and no estimate of Q.
        """
        responses = self.responses(prompts, samples)
        values, preferred = [], []
        for row, won in zip(samples, wins, strict=True):
            root = torch.arange(len(row)) // prod(self.draws[1:])
            for state in self._reached(row):
                mine = won[state.leaves]
                if own and state.depth > 0:
                    mine = mine[:, root != root[state.first]]
                values.append(mine.mean(-1).reshape(state.width, state.below).mean(-1) - 0.5)
                if own:
                    among = won[state.leaves, state.leaves].reshape(state.width, state.below, state.width, state.below)
                    preferred.append(among.mean((1, 3)))
        return Answer(responses, pad_sequence(values, batch_first=True), _padded(preferred) if own else None)

    def compared(self, responses: Responses, prompts: Sequence[Prompt]) -> Tensor:
        """The prompts' own rows."""
        first = {prompt.key for prompt in prompts}
        rows = zip(responses.names, responses.sequences, strict=True)
        return torch.tensor([len(row) if name in first else 0 for name, row in rows])


LEVELS: dict[str, Callable[[tuple[int, ...]], Level]] = {"trajectory": lambda draws: Trajectory(), "state": State}
"""By the recipe's name, from the answers drawn at each state of a depth."""


def spans(completion: Completion) -> list[tuple[int, int]]:
    """Where the policy's answers stand among a completion's tokens: [begin, end) of each."""
    mask = completion.mask
    if mask is None:
        return [(0, len(completion.ids))]
    edges = [i for i in range(len(mask) + 1) if (mask[i - 1] if i else 0) != (mask[i] if i < len(mask) else 0)]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _turn(prompt: Prompt, completion: Completion, depth: int) -> Scored:
    """The answer of one depth, behind all that was said before it."""
    begin, end = spans(completion)[depth]
    return Scored.completion((*prompt.ids, *completion.ids[:begin]), completion.ids[begin:end])


def _padded(matrices: Sequence[Tensor]) -> Tensor:
    """(S, W, W), ½ where there is nothing."""
    width = max(len(one) for one in matrices)
    padded = torch.full((len(matrices), width, width), 0.5, dtype=torch.float64)
    for s, one in enumerate(matrices):
        padded[s, : len(one), : len(one)] = one
    return padded
