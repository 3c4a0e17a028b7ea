"""A chat model behind an OpenAI-compatible server as judge.

A pair is one question: instruction, first reply (A), second reply (B), and what is asked for. An answer that cannot be
read is followed by a reminder and read again, ``asks`` times in all; then the judge abstains. Answers that are late or
broken after all retries, and questions that the server refuses (too long, or filtered), are abstained from too; all are
counted. Nothing is guessed, and nothing is cut here. A response of several turns is its transcript; the packaged
question then says how to read one, a template of the user's own stays as it is. A server that is gone, or a spent
budget, ends the comparison with `Interrupted`, which holds what was answered.

Shapes: N pairs, N verdicts. Probabilities in [0, 1]; times in seconds.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

from nashpo.llm.http import Client, Waits
from nashpo.llm.http_errors import Refused, ServerDown, ServerError, Unanswered, WrongAnswer, member
from nashpo.llm.judges.answers import AGAIN, ASKED, CONVERSATIONS, QUESTION, READERS, from_logprobs, matched, under_key
from nashpo.llm.judges.api_config import APIJudgeConfig, read_template
from nashpo.llm.judges.interrupted import Interrupted
from nashpo.llm.judges.judge import Pair, Verdict
from nashpo.llm.prompts import prompt_text
from nashpo.llm.transcript import response_text

_PLACE = re.compile(r"\{(instruction|first|second)\}")
_TRIAL = Pair("Name a colour.", "Blue.", "I had rather not say.")
_QUESTION_REFUSED = (400, 413, 422)
"""Statuses that a single question can be the reason of."""


class APIJudge:
    """Asks a chat model which of two responses is better.

    Parameters
    ----------
    config : APIJudgeConfig
    waits : Waits, optional
        Between attempts.

    Attributes
    ----------
    counts : Counter
        Since this object was made: ``calls`` (questions asked, reminders included), ``unreadable`` (answers that were
        not what was asked for); pairs ``abstained`` from, and of these the ``broken``, ``late`` and ``refused`` ones.

    Raises
    ------
    ValueError
        On an API key that is not set or a template that cannot be read.
    """

    antisymmetric = False
    shared = True

    def __init__(self, config: APIJudgeConfig, waits: Waits | None = None) -> None:
        self.config = config
        self.name = f"api:{config.model}"
        self.counts: Counter[str] = Counter()
        asked = ASKED[config.answer]
        self._template = read_template(config.template) if config.template else QUESTION + asked
        self._conversations = self._template if config.template else CONVERSATIONS + asked
        self._again = AGAIN if config.template else asked
        self._lock = threading.Lock()
        self._stop: ServerError | None = None
        self._client = Client(
            config.url,
            api_key_env=config.api_key_env,
            timeout=config.timeout,
            retries=config.retries,
            patience=config.patience,
            concurrency=config.concurrency,
            waits=waits,
        )

    def describe(self) -> dict[str, Any]:
        """Model, question and how the answer is read; not the address and the key, which change no answer."""
        config = self.config
        return {
            "judge": "api",
            "model": config.model,
            "template": hashlib.blake2b(self._template.encode(), digest_size=16).hexdigest(),
            "system": config.system,
            "answer": config.answer,
            "pattern": config.pattern,
            "json_key": config.json_key,
            "logprobs": config.logprobs,
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
            "options": dict(config.options),
            "asks": config.asks,
        }

    def check(self) -> None:
        """Ask one small question, outside of the budget: address, key, model and fields are right if it is answered.

        Raises
        ------
        ValueError
            Where it is not, or not in the form that was asked for. A server that is not there is not waited for.
        """
        self._client.check()
        number, words = self._client.post("chat/completions", self._body(self._messages(_TRIAL)), self._read)
        if number is None:
            wanted = "log-probabilities of A and B" if self.config.logprobs else self.config.answer
            raise ValueError(
                f"judge {self.name!r} was asked for a {wanted} and said {str(words)[:160]!r}: mend judge.template,"
                " pattern, json_key or max_tokens"
            )

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """One verdict per pair.

        Raises
        ------
        Interrupted
            If the server was away for longer than ``patience``, refuses everything, or ``max_calls`` are spent.
        """
        self._stop = None
        found = self._client.each(self._verdict, pairs)
        answered = {place: verdict for place, verdict in enumerate(found) if verdict is not None}
        if len(answered) == len(pairs):
            return [answered[place] for place in range(len(pairs))]
        kept = sum(verdict.probability is not None for verdict in answered.values())
        left = len(pairs) - len(answered)
        if self._stop is not None:
            raise Interrupted(f"judge {self.name!r}: {self._stop}", answered)
        raise Interrupted(
            f"judge {self.name!r}: judge.max_calls = {self.config.max_calls} are spent; {kept} answers of this batch"
            f" are kept for the cache, {left} pairs are open: run the same command again for as many calls more",
            answered,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _verdict(self, pair: Pair) -> Verdict | None:
        """None where the pair could not be asked about now."""
        messages = self._messages(pair)
        said: list[Any] = []
        for _ in range(self.config.asks):
            if not self._may_call():
                return None
            try:
                number, words = self._client.post("chat/completions", self._body(messages), self._read)
            except WrongAnswer as error:
                return self._abstained("broken", said, error)
            except Unanswered as error:
                return self._abstained("late", said, error)
            except Refused as error:
                if error.status in _QUESTION_REFUSED:
                    return self._abstained("refused", said, error)
                self._stop = error
                return None
            except ServerDown as error:
                self._stop = error
                return None
            said.append(words)
            if number is not None:
                return Verdict(number, said)
            self._count("unreadable")
            if isinstance(words, str):
                again = {"role": "user", "content": self._again}
                messages = [*messages, {"role": "assistant", "content": words}, again]
        return self._abstained("unclear", said)

    def _may_call(self) -> bool:
        """Take one call from the budget, unless there is none or the server is gone."""
        with self._lock:
            limit = self.config.max_calls
            if self._stop is not None or (limit is not None and self.counts["calls"] >= limit):
                return False
            self.counts["calls"] += 1
            return True

    def _abstained(self, reason: str, said: list[Any], error: Exception | None = None) -> Verdict:
        self._count("abstained")
        if error is not None:
            self._count(reason)
        return Verdict(None, {"answers": said, "abstained": reason if error is None else f"{reason}: {error}"})

    def _count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1

    def _messages(self, pair: Pair) -> list[dict[str, str]]:
        first, second = response_text(pair.first), response_text(pair.second)
        texts = {"instruction": prompt_text(pair.prompt), "first": first, "second": second}
        single = isinstance(pair.first, str) and isinstance(pair.second, str)
        # In one pass: what looks like a place within the texts themselves stays as it is.
        question = _PLACE.sub(lambda match: texts[match[1]], self._template if single else self._conversations)
        system = [] if self.config.system is None else [{"role": "system", "content": self.config.system}]
        return [*system, {"role": "user", "content": question}]

    def _body(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        config = self.config
        body = {
            "model": config.model,
            "messages": messages,
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
            **({"logprobs": True, "top_logprobs": 20} if config.logprobs else {}),
            **config.options,
        }
        return {name: value for name, value in body.items() if value is not None}

    def _read(self, answer: Any) -> tuple[float | None, Any]:
        """The probability, None where it cannot be read, and what was said."""
        choice = member(answer, "choices", 0, kind=dict)
        message = member(choice, "message", kind=dict)
        refusal = message.get("content") is None and isinstance(message.get("refusal"), str)
        words: Any = str(message["refusal"]) if refusal else member(message, "content", kind=str)
        if self.config.logprobs:
            content = (choice.get("logprobs") or {}).get("content")
            first = content[0].get("top_logprobs") if isinstance(content, list) and content else None
            return from_logprobs(content), {"content": words, "top_logprobs": first}
        return self._said(words), words

    def _said(self, words: str) -> float | None:
        text: str | None = words
        if self.config.json_key is not None:
            text = under_key(words, self.config.json_key)
        if self.config.pattern is not None and text is not None:
            text = matched(text, self.config.pattern)
        return None if text is None else READERS[self.config.answer](text)
