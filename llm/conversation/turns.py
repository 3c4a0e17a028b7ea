"""The tokens between two answers of a conversation, and whether a chat template keeps what was said.

The answers' tokens are the sampler's own and are never tokenized again. What stands between answer h and answer h + 1
(the end of a turn, the other side's message, the header of the next answer) is cut out of the chat template's own
text: with m messages up to and with answer h,

    header = template(m − 1, answer open),   answered = template(m),   next = template(m + 1, answer open),

``next`` must begin with ``answered`` and ``answered`` with ``header``: then the tokens of ``next`` behind the end of
answer h are what a deployed model would read there. Templates that strip reasoning from earlier answers, or move the
system message to the last turn, fail this check: a model would be trained on other prefixes than it meets.

Shapes: token ids are lists of int.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from nashpo.llm.encoding import Encoder, Text, is_conversation
from nashpo.llm.prompts import Prompt
from nashpo.llm.transcript import Message

MARK = "{text}"
"""In ``text_template``: where the other side's text goes."""
_PROBES = ("Yes.", "<think>\nOne.\n</think>\n\nTwo.")
_SHOWN = 60


class TurnWriter:
    """Writes the other side's turns.

    Parameters
    ----------
    encoder : Encoder
        The prompts' own.
    text_template : str, optional
        How the other side's turn is written behind a prompt that is plain text or token ids, with ``{text}`` in it.
        None: prompts must be conversations.
    """

    def __init__(self, encoder: Encoder, text_template: str | None = None) -> None:
        self.encoder = encoder
        self.text_template = text_template

    def check(self, prompts: Sequence[Prompt], role: str = "user") -> None:
        """Hold the chat template against prompts, before anything is sampled.

        Every prompt must be printed by the template's own settings; behind one prompt of each sequence of roles (with
        and without a system message, say) a short conversation is tried.

        Parameters
        ----------
        prompts : sequence of Prompt
        role : str
            Of the other side's messages.

        Raises
        ------
        ValueError
            As `between`; on a prompt that has tools or template settings of its own.
        """
        tried = set()
        for prompt in prompts:
            self._check_kind(prompt)
            if not is_conversation(prompt.text):
                continue
            if self.encoder.chat(prompt.text, False) != list(prompt.ids):
                raise ValueError(
                    f"prompt {prompt.key[:12]} has tools or chat_template_kwargs of its own row: conversations go on"
                    " with the template's own settings only; give them for all prompts by model.chat_template_kwargs"
                )
            roles = tuple(message["role"] for message in prompt.text)
            if roles not in tried:
                self._try(prompt, role)
            tried.add(roles)

    def _try(self, prompt: Prompt, role: str) -> None:
        """Three answers behind a prompt."""
        source = str(getattr(self.encoder.tokenizer, "chat_template", ""))
        for answer in _PROBES if "think" in source else _PROBES[:1]:
            turns: list[Message] = []
            for _ in range(2):
                turns.append({"role": "assistant", "content": answer})
                self.between(prompt, turns, {"role": role, "content": "Why?"}, True)
                turns.append({"role": role, "content": "Why?"})

    def follows(self, prompt: Prompt, answer: Message) -> bool:
        """Whether a conversation can go on behind an answer: not every chat template prints an empty one."""
        return bool(answer["content"].strip()) or not is_conversation(prompt.text) or self._takes_empty

    @cached_property
    def _takes_empty(self) -> bool:
        said: list[Mapping[str, Any]] = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": ""}]
        try:
            return bool(self._by_template(said, {"role": "user", "content": "Why?"}, True))
        except ValueError:
            return False

    def between(self, prompt: Prompt, turns: Sequence[Message], reply: Message, finished: bool) -> list[int]:
        """The tokens behind an answer up to the begin of the next one; none of them is scored.

        Parameters
        ----------
        prompt : Prompt
        turns : sequence of Message
            Behind the prompt, the last one is the answer.
        reply : Message
            The other side's.
        finished : bool
            Whether the answer's tokens end with an end token. One that was cut gets the template's, which is then not
            scored: the policy did not draw it.

        Raises
        ------
        ValueError
            On a prompt of plain text without ``text_template``; if the template refuses the roles, prints earlier turns
            otherwise once the conversation goes on, or leaves out a part of the answer; if nothing stands between the
            answers.
        """
        self._check_kind(prompt)
        if is_conversation(prompt.text):
            found = self._by_template([*prompt.text, *turns], reply, finished)
        else:
            assert self.text_template is not None
            found = self.encoder.text_ids(self.text_template.replace(MARK, reply["content"]))
        if not found:
            raise ValueError(f"the {reply['role']}'s turn {reply['content']!r} has no tokens: let it say something")
        return found

    def text(self, before: Text, answer: Message, end: int | None, reply: Message) -> Text:
        """What an engine of text reads before the next answer, in the prompt's own form.

        Parameters
        ----------
        before : Text
            What it read before this answer: messages, or one text.
        answer : Message
        end : int, optional
            The end token that the answer was drawn with, which stands in a plain text too: the next answer is scored
            behind it. None of an answer that was cut.
        reply : Message
            The other side's.
        """
        if is_conversation(before):
            return [*before, answer, reply]
        if not isinstance(before, str):
            return before  # token ids: an engine that needs text refuses them
        assert self.text_template is not None
        closed = "" if end is None else str(self.encoder.tokenizer.decode([end]))
        return before + answer["content"] + closed + self.text_template.replace(MARK, reply["content"])

    def _check_kind(self, prompt: Prompt) -> None:
        if not is_conversation(prompt.text) and self.text_template is None:
            raise ValueError(
                f"prompt {prompt.key[:12]} is plain text, and nothing says how a conversation goes on behind it: set"
                " prompts.chat=true for the model's chat template, or conversation.text_template with {text} in it"
            )

    def _by_template(self, messages: list[Mapping[str, Any]], reply: Message, finished: bool) -> list[int]:
        header = self.encoder.chat(messages[:-1], answered=False)
        answered = self.encoder.chat(messages, answered=True)
        try:
            following = self.encoder.chat([*messages, reply], answered=False)
        except ValueError as error:  # up to the answer it takes them
            raise ValueError(
                f"{error}; let conversation.user.role, or the role of the function's messages, be one that it takes"
                f" behind an answer and not {reply['role']!r}, or take another template"
            ) from None
        header_text = self.encoder.chat_text(messages[:-1], answered=False)
        answered_text = self.encoder.chat_text(messages, answered=True)
        if answered[: len(header)] != header:  # where only a token was merged across the header's end, all is well
            _check_kept(header_text, answered_text)
        _check_whole(str(messages[-1]["content"]), answered_text.removeprefix(header_text))
        ends = self.encoder.end_ids
        end = next((i for i in range(len(answered) - 1, len(header) - 1, -1) if answered[i] in ends), None)
        if end is not None and following[: end + 1] == answered[: end + 1]:
            return following[end + 1 :] if finished else following[end:]
        following_text = self.encoder.chat_text([*messages, reply], answered=False)
        closed = answered_text.rstrip()  # spaces behind an answer may be joined with what follows
        _check_kept(closed, following_text)
        return self.encoder.text_ids(following_text[len(closed) :])  # a template that closes an answer by no end token


def _check_kept(before: str, after: str) -> None:
    """Refuse a template that prints the same messages otherwise once more messages follow."""
    if after.startswith(before):
        return
    place = next((i for i, (a, b) in enumerate(zip(before, after)) if a != b), len(after))
    raise ValueError(
        "the chat template prints earlier turns otherwise once a conversation goes on (it strips or re-orders them):"
        f" where {before[place : place + _SHOWN]!r} stood, it then prints {after[place : place + _SHOWN]!r}. The model"
        " would be trained on prefixes that it never meets: take a template that keeps all turns, or"
        " chat_template_kwargs that make this one keep them"
    )


def _check_whole(answer: str, printed: str) -> None:
    """Refuse a template that drops a part of the last answer; spaces and line breaks may change."""
    if "".join(answer.split()) not in "".join(printed.split()):
        raise ValueError(
            f"the chat template leaves out a part of an answer, which begins with {answer[:_SHOWN]!r}: take a template"
            " that keeps all of it"
        )
