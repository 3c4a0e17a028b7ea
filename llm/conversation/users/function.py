"""The other side as a Python callable: a simulator of yours, an environment, a tool.

Shapes: N dialogues. ``f(conversations, seeds)`` is called with N lists of messages, from the prompt on (a prompt that
is text becomes a user's message) to the assistant's last answer, and N whole numbers; it gives N answers, each a text,
a message ``{"role", "content"}``, or None where there is nothing more to say. What is random about an answer must
follow from its number, so that a run that was stopped goes on as it would have gone on. A callable that cannot promise
this says so by an attribute ``reproducible = False``.

A class is made without arguments. The module is looked up on Python's path and in the working folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nashpo.llm.callables import called, named, source_of
from nashpo.llm.conversation.user import Dialogue
from nashpo.llm.conversation.users.draws import derived
from nashpo.llm.conversation.users.messages import conversation
from nashpo.llm.transcript import Message

_SHOWN = 80


class FunctionUser:
    """What ``module:name`` names, as the other side.

    Parameters
    ----------
    target : str
        ``module:name``.
    role : str
        Of answers that are text.

    Raises
    ------
    ValueError
        If there is no such module or name, it is no function, or it is a class that cannot be made without arguments.
    """

    shared = True

    def __init__(self, target: str, role: str = "user") -> None:
        self.name = target
        self.function: Callable[..., Any] = named(target, "conversation.user.function")
        if not callable(self.function):
            raise ValueError(f"conversation.user.function: {target} is no function")
        self._role = role

    def describe(self) -> dict[str, Any]:
        """The name, a hash of the source file, and the role."""
        return {
            "user": "function",
            "function": self.name,
            "source": source_of(self.function),
            "role": self._role,
            "reproducible": bool(getattr(self.function, "reproducible", True)),
        }

    def check(self) -> None:
        """Nothing is left to check: it was imported when it was made."""

    def reply(self, dialogues: Sequence[Dialogue], seed: int) -> list[Message | None]:
        """What the function answers, in one call.

        Raises
        ------
        ValueError
            If it fails, gives another number of answers, or something that is no answer.
        """
        if not dialogues:
            return []
        asked = [conversation(dialogue) for dialogue in dialogues]
        seeds = [derived(seed, dialogue.key) for dialogue in dialogues]
        answers = called(f"user {self.name!r}", self.function, asked, seeds)
        if not isinstance(answers, Sequence) or isinstance(answers, str):
            raise ValueError(f"user {self.name!r} answered {_cut(answers)}; it must give a list, one per conversation")
        if len(answers) != len(dialogues):
            raise ValueError(f"user {self.name!r} gave {len(answers)} answers to {len(dialogues)} conversations")
        return [self._message(answer) for answer in answers]

    def _message(self, answer: Any) -> Message | None:
        if answer is None:
            return None
        if isinstance(answer, str):
            answer = {"role": self._role, "content": answer}
        fits = isinstance(answer, Mapping) and all(isinstance(answer.get(key), str) for key in ("role", "content"))
        if not fits or answer["role"] == "assistant" or answer.keys() != {"role", "content"} or not answer["content"]:
            raise ValueError(
                f"user {self.name!r} answered {_cut(answer)}; an answer is a text that is not empty, a message with"
                " role (not assistant) and content, or None"
            )
        return {"role": answer["role"], "content": answer["content"]}

    def close(self) -> None:
        """Nothing to give back."""


def _cut(answer: Any) -> str:
    text = " ".join(repr(answer).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
