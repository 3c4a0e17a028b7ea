"""A conversation that waits for the other side, as messages from its prompt on. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nashpo.llm.conversation.user import Dialogue


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
