"""A server that only has text, as ``transformers serve``: the lesser kind of engine.

A response is one request with its own seed (such servers ignore ``n`` and ``logprobs``), and its text is tokenized
here, once. So the ids that are scored need not be the ids that were drawn:

- special tokens within a response are lost, and bytes that were no text arrive as U+FFFD, which is counted;
- another split of the same text into tokens has another log-probability;
- ``finish_reason`` says whether the response ended; its end token is taken to be the first of the recipe's. A response
  that ended with its last possible token counts as cut off.

All completions are marked ``retokenized``. Text goes to ``/completions``, conversations to ``/chat/completions``, where
the server's chat template writes the prompt: where the server counts other prompt tokens than the recipe's tokenizer,
that is counted too (``options: {chat_template_kwargs: ...}`` may be what is missing).

A text that is empty because it ended at once is a response: its end token. A text that is empty for other reasons holds
only special tokens; it is drawn anew with another seed, and counted: such responses cannot be had through text.

``transformers serve`` has one random generator for all requests, seeded by each: with ``concurrency: 1`` the same
request gives the same text, with more it does not.

Whether a conversation's earlier turns are read again is the server's matter. What was drawn arrives there as text that
is tokenized once more, so that a server which keeps beginnings may find fewer of them.

Shapes: B prompts, K responses each. Lengths are in tokens.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nashpo.llm.encoding import Encoder, is_conversation
from nashpo.llm.engines.config import TextServerConfig
from nashpo.llm.engines.engine import Completion, EngineContext, PolicySource, Sampling, check_ends, decoded
from nashpo.llm.engines.remote import client, request_seed, version, weights
from nashpo.llm.http import Client
from nashpo.llm.http_errors import Refused, ServerError, Unanswered, WrongAnswer, member

if TYPE_CHECKING:
    from nashpo.llm.prompts import Prompt

REPLACEMENT = "�"


def _transformers(sampling: Sampling, context: EngineContext) -> dict[str, Any]:
    """`transformers serve` samples only where generation_config says so; it takes that whole, as JSON in a string."""
    settings = {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": 1.0,
        "max_new_tokens": sampling.max_new_tokens,
        "eos_token_id": list(context.end_ids),
        "pad_token_id": context.pad_id,
    }
    return {"generation_config": json.dumps(settings), "max_tokens": sampling.max_new_tokens}


def _openai(sampling: Sampling, context: EngineContext) -> dict[str, Any]:
    """The API's own fields; top_k and min_p, which it has not, where they are on."""
    fields = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_new_tokens}
    extra = {"top_k": sampling.top_k, "min_p": sampling.min_p}
    return {**fields, **{name: value for name, value in extra.items() if value}}


DIALECTS: dict[str, Callable[[Sampling, EngineContext], dict[str, Any]]] = {
    "transformers": _transformers,
    "openai": _openai,
}
"""Fields that say what is drawn from, by ``sampling.dialect``."""


class TextServerEngine:
    """Responses from a server, as text that is tokenized again.

    Parameters
    ----------
    config : TextServerConfig
    context : EngineContext

    Attributes
    ----------
    counts : Counter
        Since this object was made: ``replacement_characters`` (U+FFFD in texts), ``ended_at_once`` (empty responses),
        ``redrawn`` (responses without text), ``changed_text`` (responses whose tokens say another text),
        ``other_prompt_length`` (requests for which the server counted other prompt tokens).

    Raises
    ------
    ValueError
        On an API key that is not set.
    """

    kind = "text"
    shared = True

    def __init__(self, config: TextServerConfig, context: EngineContext) -> None:
        self.config = config
        self.context = context
        self.counts: Counter[str] = Counter()
        self.client: Client = client(config)
        self._weights = weights(config, self.client)
        self._encoder = Encoder(context.tokenizer, context.end_ids)
        self._lock = threading.Lock()

    def describe(self) -> dict[str, Any]:
        """Sampling and further fields; where the server stands and how often it is asked change no distribution."""
        return {
            "engine": "text_server",
            "retokenized": True,
            "dialect": self.config.dialect,
            "sampling": self.config.sampling().to_json(),
            "options": dict(self.config.options),
            "reproducible": self.config.dialect == "transformers" and self.config.concurrency == 1,
        }

    def about_server(self) -> dict[str, Any]:
        """Version, where the server tells it."""
        return {"version": version(self.client)}

    def check(self) -> None:
        """That something answers and a response can end.

        Raises
        ------
        ValueError
            Where one of them is not so. A server that is not there is not waited for.
        """
        if not self.context.end_ids:
            raise ValueError("text_server needs an end token: text alone does not say where a response ended")
        check_ends(self.context)
        self.client.check()

    def sample(self, policy: PolicySource, prompts: Sequence[Prompt], seed: int) -> list[tuple[Completion, ...]]:
        """K completions of every prompt.

        Raises
        ------
        ServerDown
            If the server is away for longer than ``patience``.
        ValueError
            On a prompt of token ids, a request that is refused, or one whose answers are wrong after all retries: it
            names the prompt.
        """
        ids = next((p.key for p in prompts if not isinstance(p.text, str) and not is_conversation(p.text)), None)
        if ids is not None:
            raise ValueError(f"prompt {ids[:12]} is token ids: text_server takes text and conversations only")
        model = self._weights.name(policy)
        fields = DIALECTS[self.config.dialect](self.config.sampling(), self.context)
        K = self.config.K

        def draw(row: tuple[Prompt, int]) -> tuple[str, bool]:
            prompt, k = row
            path, asked = _question(prompt)
            for again in range(self.config.retries + 1):
                own = {"model": model, "seed": request_seed(seed, prompt.key, k, again)}
                body = {**own, **asked, **fields, **self.config.options}
                try:
                    found = self.client.post(path, body, lambda answer: self._read(prompt, path, answer))
                except (Refused, Unanswered, WrongAnswer) as error:
                    raise ServerError(f"response {k} to prompt {prompt.key[:12]}: {error}") from None
                if found is not None:
                    return found
                self._count("redrawn", 1)
            raise ServerError(
                f"response {k} to prompt {prompt.key[:12]}: {self.client.url} gave no text in"
                f" {self.config.retries + 1} draws; use an engine with token ids"
            )

        rows = [(prompt, k) for prompt in prompts for k in range(K)]
        drawn = self.client.each(draw, rows, self.context.progress)
        made = [self._tokenized(prompt, *text) for (prompt, _), text in zip(rows, drawn, strict=True)]
        return [tuple(made[place * K : (place + 1) * K]) for place in range(len(prompts))]

    def close(self) -> None:
        """Unload what was loaded."""
        self._weights.close()

    def _read(self, prompt: Prompt, path: str, answer: Any) -> tuple[str, bool] | None:
        """Text, and whether it ended; None for a response that left no text."""
        choices = member(answer, "choices", kind=list)
        if len(choices) != 1:
            raise WrongAnswer(f"it has {len(choices)} choices where 1 was asked for")
        where: tuple[str | int, ...] = ("message", "content") if path == _CHAT else ("text",)
        text = member(answer, "choices", 0, *where, kind=str)
        reason = member(answer, "choices", 0, "finish_reason", kind=str)
        if reason not in ("stop", "length"):
            raise WrongAnswer(f"its finish_reason is {reason!r}, not stop or length")
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        if text == "" and (reason == "length" or usage.get("completion_tokens", 1) not in (0, 1)):
            return None
        self._count("other_prompt_length", usage.get("prompt_tokens", len(prompt.ids)) != len(prompt.ids))
        return text, reason == "stop"

    def _tokenized(self, prompt: Prompt, text: str, ended: bool) -> Completion:
        ends = self.context.end_ids
        if text == "":
            self._count("ended_at_once", 1)
            return Completion(ends[:1], True, "", retokenized=True)
        begin = list(prompt.ids)
        # Text goes on where its prompt's text ended; behind a chat template's header it stands by itself.
        before = prompt.text if isinstance(prompt.text, str) else begin
        scored, _ = self._encoder.response(before, begin, text)
        ids = scored.ids[len(begin) :]
        if not ended and ids[-1:] and ids[-1] in ends:
            ids = ids[:-1]
        if not ids:
            raise ServerError(
                f"a response to prompt {prompt.key[:12]}, {text!r}, has no token in the recipe's tokenizer"
            )
        self._count("replacement_characters", text.count(REPLACEMENT))
        self._count("changed_text", decoded(self.context.tokenizer, ids) != text)
        return Completion(ids, ended, text, retokenized=True)

    def _count(self, name: str, number: int) -> None:
        with self._lock:
            self.counts[name] += int(number)


_CHAT = "chat/completions"


def _question(prompt: Prompt) -> tuple[str, dict[str, Any]]:
    """Path and fields of a request for a prompt."""
    if isinstance(prompt.text, str):
        return "completions", {"prompt": prompt.text}
    return _CHAT, {"messages": [dict(message) for message in prompt.text]}
