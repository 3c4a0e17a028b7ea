"""Prompts with responses as conversations, for judges with a chat template.

A response of several turns stands behind its prompt's messages as one conversation. A template that leaves a turn out
would have the judge compare something else than what was said, and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nashpo.core.cli import one_line
from nashpo.llm.judges.judge import Text
from nashpo.llm.transcript import Response


def messages(prompt: Text, response: Response | None = None) -> list[dict[str, Any]]:
    """A prompt as a conversation; behind it a response as the assistant's turn, or all turns of a conversation.

    Raises
    ------
    ValueError
        If the prompt is given as token ids.
    """
    if isinstance(prompt, str):
        turns: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    elif prompt and all(hasattr(turn, "keys") for turn in prompt):
        turns = [dict(turn) for turn in prompt]
    else:
        raise ValueError("a model judge reads text: give prompts as text or messages, not as token ids")
    if response is None:
        return turns
    answers = [{"role": "assistant", "content": response}] if isinstance(response, str) else map(dict, response)
    return [*turns, *answers]


def whole_conversation(tokenizer: Any, prompt: Text, response: Response | None) -> list[dict[str, Any]]:
    """The `messages`, all turns of a conversation shown by the tokenizer's chat template.

    Each turn is changed once to see whether what is printed changes with it. Parts of a turn may be left out, as some
    templates do with the reasoning of earlier answers.

    Raises
    ------
    ValueError
        If the template leaves out a turn behind the prompt, or refuses the conversation; or as `messages` does.
    """
    turns = messages(prompt, response)
    if response is None or isinstance(response, str):
        return turns
    printed = _printed(tokenizer, turns)
    for place in range(len(turns) - len(response), len(turns)):
        turn = turns[place]
        other = [*turns[:place], {**turn, "content": turn["content"] + "x"}, *turns[place + 1 :]]
        if _printed(tokenizer, other) == printed:
            raise ValueError(
                f"judge: the chat template of {tokenizer.name_or_path} leaves out turn {place + 1} ({turn['role']}) of"
                f" a conversation of {len(turns)}, and the judge must see all of it: choose a judge whose template"
                " shows earlier turns"
            )
    return turns


def _printed(tokenizer: Any, turns: Sequence[dict[str, Any]]) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(list(turns), tokenize=False))
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise ValueError(
            f"judge: the chat template of {tokenizer.name_or_path} refuses a conversation of {roles}"
            f" ({one_line(error)}): choose a judge whose template takes these roles"
        ) from error
