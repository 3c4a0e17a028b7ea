"""A conversation behind a prompt as one text, and what a judge may be handed: a text or the messages themselves.

A conversation's *turns* are messages ``{"role", "content"}``: the assistant's first and last, the other side's (a
user's, a tool's) between them. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, str]
"""``{"role": ..., "content": ...}`` with text in both."""
Response = Any
"""What answers a prompt: a text, or the turns of a conversation of more than one."""


def transcript(turns: Sequence[Mapping[str, str]]) -> str:
    """The turns as a text: the first answer as it is, every later turn after an empty line and behind its role.

    A conversation of one answer is that answer, so that it reads like any other response.
    """
    first, *rest = turns
    return "\n\n".join([first["content"], *(f"{turn['role']}: {turn['content']}" for turn in rest)])


def response_text(response: Response) -> str:
    """A response as a text: itself, or the `transcript` of its turns."""
    return response if isinstance(response, str) else transcript(response)
