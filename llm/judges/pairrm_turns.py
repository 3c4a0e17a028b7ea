"""How PairRM reads a conversation: as LLM-Blender's comparison of conversations writes it, on which it was trained.

Of a conversation u_1, a_1, …, u_n, a_n of user and assistant, prompt included, the source holds what the user says with
numbered gaps, and a candidate fills them:

    source     <instruction>USER: u_1 / Assistant: <Response 1> / USER: u_2 / Assistant: <Response 2> / …
    candidate  <Response 1>: a_1 / <Response 2>: a_2 / …                                 ( / is a line break)

That needs one user for both candidates. Where the users' turns or their number differ, or other roles speak, there is
no published form: then the prompt is the source as always, and the candidates are the transcripts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nashpo.llm.judges.chat import messages
from nashpo.llm.judges.judge import Pair
from nashpo.llm.prompts import prompt_text
from nashpo.llm.transcript import response_text

# As published, its misprint included: the weights know it so.
INSTRUCTION = "Finish the following coversation in each i-th turn by filling in <Response i> with your response."


def parts(pair: Pair) -> tuple[str, str, str]:
    """Source and candidates: texts as they are, conversations as above."""
    if not (isinstance(pair.first, str) or isinstance(pair.second, str)):
        first, second = messages(pair.prompt, pair.first), messages(pair.prompt, pair.second)
        if _said(first) is not None and _said(first) == _said(second):
            return INSTRUCTION + _source(first), _candidate(first), _candidate(second)
    return prompt_text(pair.prompt), response_text(pair.first), response_text(pair.second)


def _said(turns: Sequence[dict[str, Any]]) -> list[Any] | None:
    """What the user says, where user and assistant alternate in text; else None."""
    fits = all(
        turn["role"] == role and isinstance(turn["content"], str)
        for turn, role in zip(turns, ("user", "assistant") * len(turns), strict=False)
    )
    return [turn["content"] for turn in turns[::2]] if fits else None


def _source(turns: Sequence[dict[str, Any]]) -> str:
    lines = (f"USER: {turn['content']}\nAssistant: <Response {n}>" for n, turn in enumerate(turns[::2], 1))
    return "\n".join(lines)


def _candidate(turns: Sequence[dict[str, Any]]) -> str:
    return "\n".join(f"<Response {n}>: {turn['content']}" for n, turn in enumerate(turns[1::2], 1))
