"""Text and conversations as token ids: one begin token, one end token, and prompts that all their responses share.

A sequence's ids are the prompt's ids followed by the response's, so that every response to a prompt is scored after the
same tokens, the ones that a sampler would be given. Where a tokenizer would merge the last letters of a prompt with the
first ones of a response, the response is tokenized by itself; such boundaries are counted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from nashpo.llm.responses import Scored

Text = Any
"""A string, a list of messages ``{"role", "content"}``, or a list of token ids."""


def is_conversation(text: Text) -> bool:
    """Whether this is a list of messages."""
    return isinstance(text, Sequence) and len(text) > 0 and isinstance(text[0], Mapping) and "role" in text[0]


def is_tokenized(text: Text) -> bool:
    """Whether this is a list of token ids, the empty list included."""
    return isinstance(text, Sequence) and not isinstance(text, str) and all(isinstance(x, int) for x in text)


class Encoder:
    """Turns prompts and responses into `Scored` sequences.

    Parameters
    ----------
    tokenizer
        A transformers tokenizer, or None where all data are token ids.
    end_ids : sequence of int
        Tokens that end a response (a chat model often has several); default the tokenizer's end token. The first is
        appended to text without one.
    template_kwargs : mapping, optional
        For the chat template.

    Attributes
    ----------
    counts : Counter
        ``missing_eos``: responses given as ids without an end token; ``boundary``: texts whose prompt and response the
        tokenizer would have merged.
    """

    def __init__(
        self, tokenizer: Any, end_ids: Sequence[int] = (), template_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        own = getattr(tokenizer, "eos_token_id", None)
        self.end_ids = tuple(dict.fromkeys([*end_ids, *([] if own is None else [own])]))
        self.template_kwargs = dict(template_kwargs or {})
        self.counts: Counter[str] = Counter()
        self._begin = [] if tokenizer is None else _begin_ids(tokenizer)

    def begin_length(self, ids: Sequence[int]) -> int:
        """How many begin tokens the ids start with."""
        return len(self._begin) if list(ids[: len(self._begin)]) == self._begin else 0

    def prompt(self, prompt: Text, options: Mapping[str, Any] | None = None) -> list[int]:
        """The token ids of a prompt; of a conversation, with the header of the answer.

        Raises
        ------
        ValueError
            If it has no token: the first token of a response needs a prefix.
        """
        if is_tokenized(prompt):
            ids = list(prompt)
        elif is_conversation(prompt):
            ids = self._template(prompt, options, add_generation_prompt=True)
        else:
            ids = self._begin + self._ids(prompt)
            if self._begin and ids[1:2] == self._begin:
                ids = ids[1:]  # the text itself begins with the begin token
        if not ids:
            raise ValueError("an empty prompt has no token that a response could follow: the tokenizer adds none")
        return ids

    def chat(self, messages: Sequence[Mapping[str, Any]], answered: bool) -> list[int]:
        """Messages as the chat template prints them; with the header of the next answer unless they are ``answered``.

        Raises
        ------
        ValueError
            Without a chat template, or where it refuses the messages.
        """
        try:
            return self._template(messages, None, add_generation_prompt=not answered)
        except TemplateError as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise ValueError(f"the chat template refuses messages of the roles {roles}: {error}") from None

    def chat_text(self, messages: Sequence[Mapping[str, Any]], answered: bool) -> str:
        """`chat` before it is tokenized."""
        tokenizer = self._need_tokenizer()
        return str(
            tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=not answered, **self.template_kwargs
            )
        )

    def text_ids(self, text: str) -> list[int]:
        """A text by itself, without begin and end tokens."""
        return self._ids(text)

    def response(
        self, prompt: Text, ids: list[int], response: Text, options: Mapping[str, Any] | None = None
    ) -> tuple[Scored, bool]:
        """A prompt, its token ids and a response to it, as one sequence; and whether the response ends.

        Raises
        ------
        ValueError
            If the response is empty.
        """
        if is_tokenized(response):
            if not response:
                raise ValueError("an empty completion has nothing to score")
            ended = any(token in self.end_ids for token in response)
            self.counts["missing_eos"] += not ended
            return Scored.completion(ids, response), ended
        if is_conversation(response):
            return self._turns(prompt, ids, response, options), True
        if response == "":
            raise ValueError("an empty completion has nothing to score")
        if not isinstance(response, str):
            raise ValueError(f"a response must be text, messages or token ids, not {type(response).__name__}")
        if is_conversation(prompt):
            return self._turns(prompt, ids, [{"role": "assistant", "content": response}], options), True
        return Scored.completion(ids, self._ended(self._continuation(prompt, ids, response))), True

    def _turns(
        self, prompt: Text, ids: list[int], turns: Sequence[Mapping[str, Any]], options: Mapping[str, Any] | None
    ) -> Scored:
        """A conversation that goes on: the assistant's turns are scored, each with its end token and without what the
        template prints behind it."""
        if not is_conversation(prompt):
            prompt = [{"role": "user", "content": prompt}]
        if not any(turn["role"] == "assistant" for turn in turns):
            raise ValueError("a completion of messages needs at least one of role 'assistant'")
        row, mask = list(ids), [0] * len(ids)
        for number, turn in enumerate(turns):
            history = [*prompt, *turns[:number]]
            scored = turn["role"] == "assistant"
            if scored and not turn.get("content") and not turn.get("tool_calls"):
                raise ValueError("an empty completion has nothing to score")
            if scored:
                start = row if number == 0 else self._template(history, options, add_generation_prompt=True)
                row, mask = self._extended(row, mask, start, False)
            whole = self._template([*history, turn], options)
            row, mask = self._extended(row, mask, whole, scored)
        last = max(place for place, m in enumerate(mask) if m)
        return Scored(tuple(row[: last + 1]), tuple(mask[: last + 1]))

    def _extended(self, row: list[int], mask: list[int], whole: list[int], scored: bool) -> tuple[list[int], list[int]]:
        """``row`` continued to ``whole``, which should begin with it; a scored turn is scored to its end token."""
        common = next((i for i, (a, b) in enumerate(zip(row, whole)) if a != b), min(len(row), len(whole)))
        if any(mask[common:]) or 2 * common < len(row):
            raise ValueError("the chat template rewrites earlier turns of a conversation: give such data as token ids")
        self.counts["boundary"] += common < len(row)
        if not scored:
            return row[:common] + whole[common:], mask[:common] + [0] * (len(whole) - common)
        # The answer's header in ``row`` stays where the template prints another one: it is what a sampler is given.
        turn = self._ended(whole[common:])
        rest = whole[common + len(turn) :]
        return row + turn + rest, mask + [1] * len(turn) + [0] * len(rest)

    def _ended(self, ids: list[int]) -> list[int]:
        """Up to and with the first end token, which is appended where there is none."""
        place = next((i for i, token in enumerate(ids) if token in self.end_ids), None)
        if place is not None:
            return ids[: place + 1]
        return ids + list(self.end_ids[:1])

    def _continuation(self, prompt: Text, ids: list[int], response: str) -> list[int]:
        if not isinstance(prompt, str):
            return self._ids(response)
        whole = self._begin + self._ids(prompt + response)
        if self._begin and whole[1:2] == self._begin:
            whole = whole[1:]
        if whole[: len(ids)] == ids:
            return whole[len(ids) :]
        self.counts["boundary"] += 1
        return self._ids(response)

    def _ids(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise ValueError(f"a prompt must be text, messages or token ids, not {type(text).__name__}")
        return list(self._need_tokenizer()(text, add_special_tokens=False)["input_ids"])

    def _template(self, messages: Sequence[Any], options: Mapping[str, Any] | None, **kwargs: Any) -> list[int]:
        tokenizer = self._need_tokenizer()
        if getattr(tokenizer, "chat_template", None) is None:
            raise ValueError("the data are conversations, but the tokenizer has no chat template")
        options = {**self.template_kwargs, **(options or {})}
        # return_dict: transformers 5 gives a dictionary otherwise. The template writes the begin token itself.
        ids = tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=False, **kwargs, **options)
        return list(ids)

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ValueError("the data are text: give the tokenizer as processing_class")
        return self.tokenizer


def _begin_ids(tokenizer: Any) -> list[int]:
    """The begin token where the tokenizer puts one before a text by itself."""
    begin = getattr(tokenizer, "bos_token_id", None)
    return [begin] if begin is not None and list(tokenizer("a")["input_ids"])[:1] == [begin] else []
