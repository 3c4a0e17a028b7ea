"""Whole conversations, or the answers at every state, as what a stage is fitted to: rows, estimates of Q, comparisons.

Conversations are drawn on a game of `nashpo.tabular.trees` whose Q is known exactly.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from nashpo.llm.conversation.levels import Drawn, State, Trajectory, spans
from nashpo.llm.engines.engine import Completion
from nashpo.llm.prompts import Prompt
from nashpo.llm.transcript import Message
from nashpo.tabular.trees import TreeGame, q_values

ACTIONS, REPLIES, USER = 3, 2, 10
OUTCOMES = ACTIONS * REPLIES * ACTIONS


def game() -> TreeGame:
    """One context; P compares whole conversations, numbered as the product of first answer, reply, second answer."""
    rng = np.random.default_rng(4)
    first = np.arange(ACTIONS * REPLIES).reshape(1, ACTIONS, REPLIES)
    second = np.arange(OUTCOMES).reshape(-1, ACTIONS)
    upper = np.triu(rng.uniform(size=(OUTCOMES, OUTCOMES)), 1)
    P = upper + np.tril(1 - upper.T, -1) + 0.5 * np.eye(OUTCOMES)
    return TreeGame([first, second], P, chance=[rng.dirichlet(np.ones(REPLIES), (1, ACTIONS)), None])


GAME = game()


def policy(seed: int) -> np.ndarray:
    weights = np.exp(np.random.default_rng(seed).standard_normal(GAME.shape)) * GAME.mask
    return weights / weights.sum(1, keepdims=True)


def completion(first: int, reply: int, second: int) -> Completion:
    """Tokens of two answers (the action and an end token, 0) and of the reply between them."""
    ids = (1 + first, 0, USER + reply, 1 + second, 0)
    said: list[Message] = [{"role": "assistant", "content": str(first)}, {"role": "user", "content": str(reply)}]
    turns = (*said, {"role": "assistant", "content": str(second)})
    return Completion(ids, True, "", False, (1, 1, 0, 1, 1), turns)


@dataclass(frozen=True)
class Draws:
    """Trees of conversations: B prompts with K first answers each, b second answers behind each of them."""

    samples: list[tuple[Completion, ...]]
    outcomes: np.ndarray

    @classmethod
    def of(cls, pi: np.ndarray, B: int, K: int, b: int, seed: int) -> "Draws":
        rng = np.random.default_rng(seed)
        chance = GAME.layers[0].chance
        assert chance is not None
        samples, outcomes = [], []
        for _ in range(B):
            row = []
            for first in rng.choice(ACTIONS, K, p=pi[0]):
                reply = rng.choice(REPLIES, p=chance[0, first])
                state = 1 + int(GAME.layers[0].child[0, first, reply])
                row += [(first, reply, second) for second in rng.choice(ACTIONS, b, p=pi[state])]
            samples.append(tuple(completion(*one) for one in row))
            outcomes.append([(f * REPLIES + r) * ACTIONS + s for f, r, s in row])
        return cls(samples, np.array(outcomes))

    def wins(self, other: "Draws") -> Tensor:
        P = GAME.table.P[0]
        return torch.from_numpy(P[self.outcomes[:, :, None], other.outcomes[:, None, :]])


def prompts(count: int) -> list[Prompt]:
    return [Prompt.of([50, i], [50, i]) for i in range(count)]


def test_spans_are_the_answers() -> None:
    assert spans(completion(0, 1, 2)) == [(0, 2), (3, 5)]
    assert spans(Completion((4, 5, 0), True, "")) == [(0, 3)]
    assert spans(Completion((4, 5), True, "", False, (0, 1))) == [(1, 2)]


def test_whole_conversations_are_responses_with_their_mean_win_rate() -> None:
    drawn = Draws.of(policy(0), 3, 4, 1, 1)
    wins = drawn.wins(drawn)
    found = Trajectory().answer(prompts(3), drawn.samples, wins, own=True)
    assert found.responses.names == tuple(p.key for p in prompts(3))
    assert found.responses.sequences[2][1].mask == (0, 0, 1, 1, 0, 1, 1)
    assert_allclose(found.values, wins.mean(-1) - 0.5, rtol=0, atol=0)
    assert found.preferred is wins
    assert Trajectory().compared(found.responses, prompts(3)).tolist() == [4, 4, 4]


def test_a_row_per_state_scores_one_answer_behind_all_that_was_said() -> None:
    drawn = Draws.of(policy(0), 2, 3, 2, 1)
    found = State((3, 2)).answer(prompts(2), drawn.samples, drawn.wins(drawn), own=True)
    rows = found.responses.sequences
    assert [len(row) for row in rows] == [3, 2, 2, 2] * 2
    assert found.responses.names[:4] == (prompts(2)[0].key, *(f"{prompts(2)[0].key}/1/{i}" for i in range(3)))
    assert {one.mask for one in rows[0]} == {(0, 0, 1, 1)}
    assert {one.mask for one in rows[1]} == {(0, 0, 0, 0, 0, 1, 1)}
    for state in range(3):
        conversation = drawn.samples[0][2 * state]
        assert rows[0][state].ids == (50, 0, *conversation.ids[:2])
        assert rows[1 + state][1].ids == (50, 0, *drawn.samples[0][2 * state + 1].ids)
    assert found.responses.weights[0].tolist() == pytest.approx([1 / 3] * 3)
    assert found.responses.weights[1].tolist() == [0.5, 0.5, 0.0]
    assert State((3, 2)).compared(found.responses, prompts(2)).tolist() == [3, 0, 0, 0] * 2
    assert found.preferred is not None
    assert_allclose(found.preferred + found.preferred.mT, torch.ones_like(found.preferred), rtol=0, atol=1e-15)


@pytest.mark.parametrize("own", [True, False])
def test_estimates_of_q_are_unbiased(own: bool) -> None:
    """2,000 trees with K = 3, b = 2. At each state and action the mean estimate is within 4.2 standard errors of Q;
    at the first state against oneself, of (1 − 1/K) Q + 1/(2K). Of 21 z-scores one lies outside by chance with
    probability 6e-4; the seeds are fixed. With one's own branch counted at later states one z-score is 8.8."""
    K, b, B = 3, 2, 2000
    mine, theirs = policy(0), policy(0 if own else 1)
    drawn = Draws.of(mine, B, K, b, 2)
    other = drawn if own else Draws.of(theirs, B, K, 1, 3)
    found = State((K, b)).answer(prompts(B), drawn.samples, drawn.wins(other), own=own)
    exact = q_values(GAME, mine, theirs)
    exact[0] = exact[0] * (1 - 1 / K) + 0.5 / K if own else exact[0]
    errors: dict[tuple[int, int], list[float]] = {}
    for row, values in zip(found.responses.sequences, found.values.tolist(), strict=True):
        for one, value in zip(row, values):  # values are padded to K
            *said, action, _ = one.ids[2:]
            state = 0 if not said else 1 + int(GAME.layers[0].child[0, said[0] - 1, said[2] - USER])
            errors.setdefault((state, action - 1), []).append(value + 0.5 - exact[state, action - 1])
    assert len(errors) == GAME.mask.sum()
    scores = {
        key: np.mean(e) / (np.std(e) / np.sqrt(len(e) / K)) for key, e in errors.items()
    }  # of one tree: dependent
    assert max(abs(z) for z in scores.values()) < 4.2, scores


def test_a_conversation_that_ended_early_has_no_later_state() -> None:
    drawn = Draws.of(policy(0), 1, 3, 2, 1)
    short = Completion((2, 0), True, "2")
    row = (*drawn.samples[0][:2], short, short, *drawn.samples[0][4:])
    wins = torch.full((1, 6, 6), 0.5, dtype=torch.float64)
    wins[0, :2, 2:4], wins[0, 2:4, :2] = 1.0, 0.0
    found = State((3, 2)).answer(prompts(1), [row], wins, own=True)
    assert [name.partition("/")[2] for name in found.responses.names] == ["", "1/0", "1/2"]
    assert_allclose(found.values[0], [1 / 6, -1 / 6, 0], atol=1e-15)
    assert found.preferred is not None
    assert_allclose(found.preferred[0], [[0.5, 1, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0.5]], atol=1e-15)


def test_answers_that_leaves_share_are_drawn_once() -> None:
    """Three first answers with two second ones each; the conversations of one of them ended there."""
    drawn = Draws.of(policy(0), 1, 3, 2, 1).samples[0]
    short = Completion((2, 0, 0), True, "2")
    tree = State((3, 2))
    assert tree.drawn(drawn) == [Drawn(1, 3, 3 * 2, 0), Drawn(3, 6, 6 * 2, 3)]
    assert tree.drawn((*drawn[:2], short, short, *drawn[4:])) == [Drawn(1, 3, 7, 0), Drawn(2, 4, 8, 2)]
    assert tree.drawn((short,) * 6) == [Drawn(1, 3, 9, 0), Drawn()]
    assert State((6, 1)).drawn(drawn) == [Drawn(1, 6, 12, 0), Drawn(6, 6, 12, 6)]


def test_a_missing_comparison_is_seen_in_every_row_that_needs_it() -> None:
    drawn = Draws.of(policy(0), 1, 2, 2, 1)
    wins = drawn.wins(drawn).clone()
    wins[0, 0, 3] = wins[0, 3, 0] = float("nan")
    found = State((2, 2)).answer(prompts(1), drawn.samples, wins, own=True)
    assert found.values.isnan().tolist() == [[True, True], [True, False], [False, True]]


def test_with_one_turn_both_levels_are_one() -> None:
    samples = [tuple(Completion((k, 0), True, str(k)) for k in (4, 5, 6))]
    wins = torch.tensor([[[0.5, 0.7, 0.2], [0.3, 0.5, 0.9], [0.8, 0.1, 0.5]]], dtype=torch.float64)
    one, other = (level.answer(prompts(1), samples, wins, own=True) for level in (State((3,)), Trajectory()))
    assert one.responses.sequences == other.responses.sequences
    assert one.responses.names == other.responses.names
    assert_allclose(one.values, other.values, atol=1e-16)
    assert one.preferred is not None
    assert torch.equal(one.preferred, wins)
