"""What the other side reads of a conversation: its messages, and by what text a prompt is known. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nashpo.llm.conversation.user import Dialogue, Text
from nashpo.llm.judges.judge import canonical


def conversation(dialogue: Dialogue) -> list[dict[str, Any]]:
    """The prompt's messages and the turns behind it; a prompt that is text becomes a user's message.

    Raises
    ------
    ValueError
        If the prompt is token ids.
    """
    prompt = dialogue.prompt
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    elif not all(isinstance(message, Mapping) for message in prompt):
        raise ValueError(
            f"conversation {dialogue.key[:12]} begins with token ids, which the other side cannot read: give prompts as"
            " text or messages"
        )
    return [dict(message) for message in [*prompt, *dialogue.turns]]


def prompt_key(prompt: Text) -> str:
    """By what a prompt is known: a text and the same text as a user's only message, beside a system's or not, are one.

    Token ids are known by their JSON.
    """
    from nashpo.llm.prompts import prompt_text

    try:
        return prompt_text(prompt)
    except ValueError:  # token ids
        return canonical(prompt)
