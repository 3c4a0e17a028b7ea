"""The protocol of the other side of a conversation: what it answers to the assistant, or that it has nothing to say.

The other side belongs to the decision process and is no player: rules move the assistant's tokens alone. Nothing here
imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nashpo.llm.transcript import Message

Text = Any
"""A string, a list of messages, or a list of token ids."""


@dataclass(frozen=True)
class Dialogue:
    """A conversation that waits for the other side.

    Attributes
    ----------
    key : str
        Of this conversation at this point, a function of the prompt and of which draw it is: what is random about an
        answer must follow from it and from the seed.
    prompt : Text
        As it was read: text, messages or token ids.
    turns : tuple of Message
        Behind the prompt; the first and the last are the assistant's.
    """

    key: str
    prompt: Text
    turns: tuple[Message, ...]

    @property
    def number(self) -> int:
        """How many answers the assistant has given."""
        return (len(self.turns) + 1) // 2


class User(Protocol):
    """The other side.

    Attributes
    ----------
    name : str
        For messages.
    shared : bool
        Whether all processes of a job would share it, as a server or a function that remembers things: then the first
        process asks it alone.
    """

    name: str
    shared: bool

    def describe(self) -> dict[str, Any]:
        """All that its answers depend on, as JSON without secrets; ``reproducible`` says whether the same call gives
        the same answers again."""
        ...

    def check(self) -> None:
        """Find out before long work whether it can be asked; ValueError with one line where not."""
        ...

    def reply(self, dialogues: Sequence[Dialogue], seed: int) -> list[Message | None]:
        """One message per dialogue, or None where it has nothing more to say; a function of its arguments only."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...
