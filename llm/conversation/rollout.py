"""An engine that draws whole conversations: one answer at a time by another engine, and the other side's turns between.

A prompt's conversations are the leaves of a tree. (w_1, …, w_H) says how many answers are drawn at each state of a
depth: (K, 1, …, 1) for K independent conversations, (K, b, …, b) for a tree whose states of every depth have several
continuations. Leaves are numbered in the order of the draws, so that leaf i lies below answer i // (w_{h+1} ⋯ w_H) of
depth h; a conversation that ended early stands for all leaves that it would have had.

Noise belongs to a state: an answer is drawn under a key that is a hash of the prompt's key and of the draws on the way,
so that equal histories of different conversations get independent answers, whatever batch they are in.

Shapes: B prompts with L = w_1 ⋯ w_H conversations each. Lengths are in tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

from nashpo.llm.conversation.turns import TurnWriter
from nashpo.llm.conversation.user import Dialogue, Text, User
from nashpo.llm.engines.engine import Completion, Engine, Keeping, PolicySource
from nashpo.llm.prompts import Prompt
from nashpo.llm.transcript import Message, transcript


@dataclass(frozen=True)
class Limits:
    """When a conversation ends.

    Attributes
    ----------
    answer : int
        Longest answer, ``max_new_tokens`` of the inner engine.
    behind : int, optional
        Most tokens behind the prompt, of both sides.
    whole : int, optional
        Most tokens with the prompt: the model's positions, the trainer's longest sequence.
    stop : tuple of str
        Texts; a message of the other side with one of them is not said, and ends the conversation.
    """

    answer: int
    behind: int | None = None
    whole: int | None = None
    stop: tuple[str, ...] = ()

    def fit(self, prompt: int, behind: int) -> bool:
        """Whether one more answer fits behind so many tokens."""
        most = behind + self.answer
        return (self.behind is None or most <= self.behind) and (self.whole is None or prompt + most <= self.whole)


@dataclass(frozen=True)
class _Node:
    """A conversation up to and with an answer; ``before`` is what an engine of text read before that answer."""

    place: int
    prompt: Prompt
    path: tuple[int, ...]
    before: Text
    ids: tuple[int, ...]
    mask: tuple[int, ...]
    turns: tuple[Message, ...]
    finished: bool
    retokenized: bool

    @property
    def end(self) -> int | None:
        """The end token that the answer was drawn with."""
        return self.ids[-1] if self.finished else None

    def key(self, *more: int | str) -> str:
        """Of this conversation, or of a draw behind it."""
        return _key(self.prompt, *self.path, *more)

    def completion(self) -> Completion:
        if len(self.turns) == 1:
            return Completion(self.ids, self.finished, self.turns[0]["content"], self.retokenized)
        text = transcript(self.turns)
        return Completion(self.ids, self.finished, text, self.retokenized, self.mask, self.turns)


def _key(prompt: Prompt, *path: int | str) -> str:
    text = "/".join([prompt.key, *map(str, path)])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class ConversationEngine:
    """Conversations by another engine's answers.

    Parameters
    ----------
    inner : Engine
        Draws one answer per prompt (K = 1).
    user : User
    writer : TurnWriter
    draws : tuple of int
        Answers drawn at each state of depth 1, …, H.
    limits : Limits
    about : mapping
        Of the recipe, for `describe`.
    """

    def __init__(
        self,
        inner: Engine,
        user: User,
        writer: TurnWriter,
        draws: Sequence[int],
        limits: Limits,
        about: dict[str, Any],
    ) -> None:
        self.inner = inner
        self.user = user
        self.writer = writer
        self.draws = tuple(draws)
        self.limits = limits
        self.about = about

    @property
    def kind(self) -> str:
        """The inner engine's."""
        return self.inner.kind

    @property
    def shared(self) -> bool:
        """Whether all processes would share the inner engine or the other side."""
        return bool(getattr(self.inner, "shared", False) or self.user.shared)

    @property
    def counts(self) -> dict[str, int]:
        """The inner engine's and the other side's, where they count something."""
        user = {f"other_side_{name}": n for name, n in getattr(self.user, "counts", {}).items()}
        return {**getattr(self.inner, "counts", {}), **user}

    def describe(self) -> dict[str, Any]:
        """The inner engine's description, with the conversation and the other side."""
        inner, user = self.inner.describe(), self.user.describe()
        sampling = {**inner.get("sampling", {}), "K": self.draws[0]}
        reproducible = bool(inner.get("reproducible") and user.get("reproducible"))
        conversation = {**self.about, "user": user, "draws": list(self.draws), "longest": self.limits.whole}
        return {**inner, "sampling": sampling, "conversation": conversation, "reproducible": reproducible}

    def check(self) -> None:
        """As the inner engine and the other side.

        Raises
        ------
        ValueError
            Where one of them cannot be asked.
        """
        self.inner.check()
        self.user.check()

    def sample(self, policy: PolicySource, prompts: Sequence[Prompt], seed: int) -> list[tuple[Completion, ...]]:
        """L conversations behind every prompt.

        Raises
        ------
        ValueError
            As the inner engine, the other side and `TurnWriter.between`.
        """
        leaves: list[dict[int, _Node]] = [{} for _ in prompts]
        with _keeping(self.inner):
            nodes = self._first(policy, prompts, seed)
            for depth in range(1, len(self.draws)):
                if not nodes:
                    break
                nodes, ended = self._next(policy, nodes, depth, seed)
                for node in ended:
                    leaves[node.place] |= self._leaves(node)
        for node in nodes:
            leaves[node.place] |= self._leaves(node)
        return [tuple(found[i].completion() for i in range(prod(self.draws))) for found in leaves]

    def _first(self, policy: PolicySource, prompts: Sequence[Prompt], seed: int) -> list[_Node]:
        rows = [(place, prompt, k) for place, prompt in enumerate(prompts) for k in range(self.draws[0])]
        asked = [Prompt(_key(prompt, k), prompt.text, prompt.ids) for _, prompt, k in rows]
        return [
            _Node(place, prompt, (k,), prompt.text, c.ids, (1,) * len(c.ids), (_answer(c),), c.finished, c.retokenized)
            for (place, prompt, k), c in zip(rows, self._drawn(policy, asked, seed), strict=True)
        ]

    def _drawn(self, policy: PolicySource, asked: Sequence[Prompt], seed: int) -> list[Completion]:
        """One answer to each, which must have a token: by their tokens answers are told from what stands between."""
        drawn = [completion for (completion,) in self.inner.sample(policy, asked, seed)] if asked else []
        if not all(completion.ids for completion in drawn):
            raise ValueError("the engine gave an empty response: each response needs at least one token")
        return drawn

    def _next(
        self, policy: PolicySource, nodes: Sequence[_Node], depth: int, seed: int
    ) -> tuple[list[_Node], list[_Node]]:
        """One more answer where a conversation goes on; those that end here."""
        going, ended = self._replied(nodes, seed)
        rows = [(node, reply, between, j) for node, reply, between in going for j in range(self.draws[depth])]
        asked = [
            Prompt(
                node.key(j),
                self.writer.text(node.before, node.turns[-1], node.end, reply),
                (*node.prompt.ids, *node.ids, *between),
            )
            for node, reply, between, j in rows
        ]
        drawn = self._drawn(policy, asked, seed)
        following = [
            _Node(
                node.place,
                node.prompt,
                (*node.path, j),
                prompt.text,
                (*node.ids, *between, *c.ids),
                (*node.mask, *(0,) * len(between), *(1,) * len(c.ids)),
                (*node.turns, reply, _answer(c)),
                c.finished,
                node.retokenized or c.retokenized,
            )
            for (node, reply, between, j), prompt, c in zip(rows, asked, drawn, strict=True)
        ]
        return following, ended

    def _replied(self, nodes: Sequence[_Node], seed: int) -> tuple[list[tuple[_Node, Message, list[int]]], list[_Node]]:
        """What the other side says, and the tokens that this puts before the next answer; and where it ends."""
        dialogues = [Dialogue(node.key("user"), node.prompt.text, node.turns) for node in nodes]
        replies = self.user.reply(dialogues, seed)
        going, ended = [], []
        for node, reply in zip(nodes, replies, strict=True):
            stops = reply is None or any(text in reply["content"] for text in self.limits.stop)
            if reply is None or stops or not self.writer.follows(node.prompt, node.turns[-1]):
                ended.append(node)
                continue
            between = self.writer.between(node.prompt, node.turns, reply, node.finished)
            if self.limits.fit(len(node.prompt.ids), len(node.ids) + len(between)):
                going.append((node, reply, between))
            else:
                ended.append(node)
        return going, ended

    def _leaves(self, node: _Node) -> dict[int, _Node]:
        """All leaves that a conversation stands for, by their numbers."""
        number = 0
        for draw, width in zip(node.path, self.draws):
            number = number * width + draw
        below = prod(self.draws[len(node.path) :])
        return dict.fromkeys(range(number * below, (number + 1) * below), node)

    def close(self) -> None:
        """Give back what engine and other side hold."""
        self.inner.close()
        self.user.close()


def _answer(completion: Completion) -> Message:
    return {"role": "assistant", "content": completion.text}


def _keeping(engine: Engine) -> AbstractContextManager[None]:
    """Within, an engine that can keeps what it has read, so that later turns read only what is new."""
    return engine.keeping() if isinstance(engine, Keeping) else nullcontext()
