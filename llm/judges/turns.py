"""Responses as judges compare them: a text, or the turns of a conversation behind the prompt, checked and told apart.

A judge compares whole conversations. Equal are two responses that are equal texts, or equal lists of messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nashpo.llm.judges.judge import canonical, shown
from nashpo.llm.transcript import Response

Identity = tuple[str, bool]
"""Equal for equal responses, and ordered: the text, or a conversation's JSON, and whether it is a conversation."""


def identity(response: Response) -> Identity:
    """What tells a response apart from others; texts among themselves are ordered as texts are."""
    return (response, False) if isinstance(response, str) else (canonical(response), True)


def checked_response(response: Any, where: str) -> Response:
    """The response, with a conversation as a list of messages and a conversation of one answer as its text.

    Parameters
    ----------
    response : str or sequence of messages
    where : str
        Which one it is, for the message.

    Raises
    ------
    ValueError
        If it is neither, or a conversation does not begin and end with the assistant's turn.
    """
    if isinstance(response, str):
        return response
    if not (isinstance(response, Sequence) and response and all(_is_message(turn) for turn in response)):
        raise ValueError(
            f"{where} is {shown(response)}; it must be a text, or a list of messages with role and content in text"
        )
    for side, turn in (("begin", response[0]), ("end", response[-1])):
        if turn["role"] != "assistant":
            raise ValueError(
                f"{where}, a conversation, {side}s with a message of role {turn['role']!r}; the turns behind a prompt"
                f" must {side} with the assistant's"
            )
    return response[0]["content"] if len(response) == 1 else [dict(turn) for turn in response]


def _is_message(turn: Any) -> bool:
    return isinstance(turn, Mapping) and all(isinstance(turn.get(key), str) for key in ("role", "content"))
