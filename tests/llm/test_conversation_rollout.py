"""Conversations are drawn turn by turn: tokens and masks, independent noise, ends, budgets, trees of branches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from engine_world import Policy, context

from nashpo.llm.conversation.rollout import ConversationEngine, Limits
from nashpo.llm.conversation.turns import TurnWriter
from nashpo.llm.conversation.user import Dialogue
from nashpo.llm.encoding import Encoder
from nashpo.llm.engines.config import TransformersConfig
from nashpo.llm.engines.engine import Completion
from nashpo.llm.prompts import Prompt
from nashpo.llm.transcript import Message, transcript

Make = Callable[..., Any]
ANSWER = 6
ENDS = (1, *range(200, 259))
"""Many tokens end an answer, so that answers are of all lengths."""


@dataclass
class Says:
    """Says the n-th text after the n-th answer; None ends the conversation."""

    texts: Sequence[str | None]
    name: str = "says"
    shared: bool = False
    asked: list[Dialogue] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        return {"says": list(self.texts), "reproducible": True}

    def check(self) -> None:
        pass

    def reply(self, dialogues: Sequence[Dialogue], seed: int) -> list[Message | None]:
        self.asked += dialogues
        texts = [self.texts[dialogue.number - 1] for dialogue in dialogues]
        return [None if text is None else {"role": "user", "content": text} for text in texts]

    def close(self) -> None:
        pass


@dataclass
class World:
    """A tiny model, prompts and a maker of engines."""

    tokenizer: Any
    model: Any
    prompts: list[Prompt]

    def engine(self, user: Says, draws: tuple[int, ...], **limits: Any) -> ConversationEngine:
        config = TransformersConfig(K=1, max_new_tokens=ANSWER, batch_size=5)
        inner = config.build(context(self.tokenizer, ENDS, 259))
        writer = TurnWriter(Encoder(self.tokenizer, ENDS), "|{text}|")
        return ConversationEngine(inner, user, writer, draws, Limits(ANSWER, **limits), {"turns": len(draws)})

    def sample(self, user: Says, draws: tuple[int, ...], seed: int = 0, **limits: Any) -> list[tuple[Completion, ...]]:
        return self.engine(user, draws, **limits).sample(Policy.of(self.model), self.prompts, seed)


@pytest.fixture(scope="module")
def world(byte_tokenizer: Make, tiny_llama: Make) -> World:
    torch.set_num_threads(1)
    tokenizer = byte_tokenizer(begin=False)
    model = tiny_llama(0, initializer_range=0.3).eval()
    encoder = Encoder(tokenizer, (1,))
    texts = ["Hello?", "What is it?", "Well", "So then, my friend"]
    return World(tokenizer, model, [Prompt.of(text, encoder.prompt(text)) for text in texts])


def pieces(completion: Completion) -> list[tuple[int, tuple[int, ...]]]:
    """Runs of equal mask with their tokens."""
    found: list[tuple[int, tuple[int, ...]]] = []
    mask = completion.mask or (1,) * len(completion.ids)
    for token, scored in zip(completion.ids, mask, strict=True):
        if found and found[-1][0] == scored:
            found[-1] = (scored, (*found[-1][1], token))
        else:
            found.append((scored, (token,)))
    return found


def test_only_the_assistants_tokens_are_scored(world: World) -> None:
    drawn = world.sample(Says(["Why?", "And?"]), (3, 1, 1))
    between = [tuple(world.tokenizer(f"|{text}|", add_special_tokens=False)["input_ids"]) for text in ("Why?", "And?")]
    for row in drawn:
        assert len(row) == 3
        for one in row:
            runs = pieces(one)
            assert [scored for scored, _ in runs] == [1, 0, 1, 0, 1]
            assert [runs[1][1], runs[3][1]] == between
            assert all(len(tokens) <= ANSWER for scored, tokens in runs if scored)
            assert one.turns is not None
            assert [turn["role"] for turn in one.turns] == ["assistant", "user", "assistant", "user", "assistant"]
            assert one.text == transcript(one.turns)
            assert one.scored == sum(len(tokens) for scored, tokens in runs if scored)
            assert one.finished == (one.ids[-1] in ENDS)
            assert Completion.from_json(one.to_json()) == one


def test_each_answer_is_a_draw_behind_all_that_was_said(world: World) -> None:
    """The second answer is what the inner engine draws behind prompt, first answer and reply under the state's key."""
    engine = world.engine(Says(["Why?"]), (2, 1))
    (row, *_) = engine.sample(Policy.of(world.model), world.prompts, 3)
    one = row[1]
    (_, first), (_, between), (_, last) = pieces(one)
    from nashpo.llm.conversation.rollout import _key

    behind = Prompt(_key(world.prompts[0], 1, 0), "", (*world.prompts[0].ids, *first, *between))
    ((again,),) = engine.inner.sample(Policy.of(world.model), [behind], 3)
    assert again.ids == last


def test_equal_histories_get_independent_answers(world: World) -> None:
    """A model with one first answer: K second answers behind one and the same history are different draws."""
    user = Says(["Why?"])
    engine = world.engine(user, (6, 1))
    inner = engine.inner

    class FirstIsFixed:
        def sample(self, policy: Any, prompts: Sequence[Prompt], seed: int) -> list[tuple[Completion, ...]]:
            if all(prompt.text in [p.text for p in world.prompts] for prompt in prompts):
                return [(Completion((50, 1), True, "x"),) for _ in prompts]
            return inner.sample(policy, prompts, seed)

    engine.inner = FirstIsFixed()  # type: ignore[assignment]
    drawn = engine.sample(Policy.of(world.model), world.prompts, 0)
    assert {one.ids[:2] for row in drawn for one in row} == {(50, 1)}
    assert len({one.ids for row in drawn for one in row}) > 20  # of 24; a short second answer may come twice
    assert len({dialogue.key for dialogue in user.asked}) == 24


def test_the_same_call_gives_the_same_conversations_in_any_order(world: World) -> None:
    user, policy = Says(["Why?"]), Policy.of(world.model)
    engine = world.engine(user, (3, 1))
    there = engine.sample(policy, world.prompts, 7)
    assert engine.sample(policy, world.prompts, 7) == there
    assert engine.sample(policy, world.prompts[::-1], 7) == there[::-1]
    assert engine.sample(policy, [world.prompts[1]] * 2, 7) == [there[1]] * 2
    assert engine.sample(policy, world.prompts, 8) != there


def test_a_conversation_ends_where_the_other_side_has_nothing_to_say(world: World) -> None:
    drawn = world.sample(Says([None]), (2, 1))
    assert all(one.turns is None and one.mask is None for row in drawn for one in row)
    assert all(len(one.ids) <= ANSWER for row in drawn for one in row)


def test_a_stop_text_ends_it_and_is_not_said(world: World) -> None:
    drawn = world.sample(Says(["Why?", "well [END] done"]), (2, 1, 1), stop=("[END]",))
    assert all(one.turns is not None and len(one.turns) == 3 for row in drawn for one in row)
    assert not any("END" in one.text for row in drawn for one in row)


@pytest.mark.parametrize("budget", ["behind", "whole"])
def test_a_turn_is_begun_only_if_it_fits(world: World, budget: str) -> None:
    limit = {"behind": 2 * ANSWER + 6 - 1, "whole": 2 * ANSWER + 6 + 8}[budget]
    drawn = world.sample(Says(["Why?"]), (4, 1), **{budget: limit})
    between = 6
    for prompt, row in zip(world.prompts, drawn, strict=True):
        for one in row:
            first = len(pieces(one)[0][1])
            taken = first + between + ANSWER + (len(prompt.ids) if budget == "whole" else 0)
            assert (one.turns is not None) == (taken <= limit)
    assert {one.turns is None for row in drawn for one in row} == {True, False}


def test_leaves_of_a_tree_share_what_was_said_before(world: World) -> None:
    drawn = world.sample(Says(["Why?", "And?"]), (3, 2, 2))
    for row in drawn:
        assert len(row) == 12
        firsts = [pieces(one)[0][1] for one in row]
        seconds = [tuple(pieces(one)[:3]) for one in row]
        assert all(firsts[i] == firsts[4 * (i // 4)] for i in range(12))
        assert all(seconds[i] == seconds[2 * (i // 2)] for i in range(12))
        assert len({one.ids for one in row}) > 6


def test_a_branch_that_ends_early_stands_for_all_its_leaves(world: World) -> None:
    @dataclass
    class Sometimes(Says):
        def reply(self, dialogues: Sequence[Dialogue], seed: int) -> list[Message | None]:
            said = super().reply(dialogues, seed)
            return [None if int(d.key, 16) % 2 else reply for d, reply in zip(dialogues, said, strict=True)]

    drawn = world.sample(Sometimes(["Why?"]), (4, 3))
    groups = [row[3 * k : 3 * k + 3] for row in drawn for k in range(4)]
    ended = [group for group in groups if group[0].turns is None]
    assert 0 < len(ended) < len(groups)
    assert all(group[0] == group[1] == group[2] for group in ended)
    assert all(one.turns is not None for group in groups if group not in ended for one in group)


def test_an_answer_without_tokens_is_refused(world: World) -> None:
    """Masks would no longer tell one answer from the next."""
    engine = world.engine(Says(["Why?"]), (2, 1))
    inner = engine.inner

    class Mute:
        def sample(self, policy: Any, prompts: Sequence[Prompt], seed: int) -> list[tuple[Completion, ...]]:
            drawn = inner.sample(policy, prompts, seed)
            first = all(prompt.text in [p.text for p in world.prompts] for prompt in prompts)
            return drawn if first else [(Completion((), True, ""),), *drawn[1:]]

    engine.inner = Mute()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="the engine gave an empty response"):
        engine.sample(Policy.of(world.model), world.prompts, 0)


def test_nobody_is_asked_once_all_have_ended(world: World) -> None:
    user = Says([None, "And?"])
    world.sample(user, (2, 1, 1))
    assert len(user.asked) == 2 * len(world.prompts)


def test_the_description_has_both_sides(world: World) -> None:
    engine = world.engine(Says(["Why?"]), (4, 2), behind=100)
    about = engine.describe()
    assert about["sampling"]["K"] == 4
    assert about["conversation"]["user"] == {"says": ["Why?"], "reproducible": True}
    assert about["conversation"]["draws"] == [4, 2]
    assert about["reproducible"]
    assert not engine.shared
    assert world.engine(Says(["Why?"], shared=True), (4, 2)).shared
