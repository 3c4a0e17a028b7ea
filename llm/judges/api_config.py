"""Settings of the API judge as they stand in a recipe under ``judge: {kind: api, ...}``. Loading this imports no torch.

Times are in seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nashpo.llm.http_address import check_address
from nashpo.llm.judges.judge import Judge, JudgeConfig
from nashpo.llm.judges.settings import check_count, require
from nashpo.llm.settings import setting

ANSWERS = ("choice", "probability")
PLACES = ("instruction", "first", "second")
_OWN = ("model", "messages", "n", "stream", "logprobs", "top_logprobs")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


@dataclass(frozen=True, kw_only=True)
class APIJudgeConfig(JudgeConfig):
    """An OpenAI-compatible chat model as judge; see `nashpo.llm.judges.api`."""

    url: str = setting("base address of the server up to /v1, as http://localhost:8000/v1")
    model: str = setting("model name sent")
    template: str | None = setting(
        "file with the question, with {instruction}, {first} and {second}; default the packaged one", None
    )
    system: str | None = setting("system message; default none", None)
    answer: str = setting("what the answer says: choice (A, B or tie) or probability (that A is better)", "choice")
    pattern: str | None = setting("regular expression whose (first) group is the answer; default the whole text", None)
    json_key: str | None = setting("the answer stands under this key of a JSON object; default it is no JSON", None)
    logprobs: bool = setting("read the probability from the log-probabilities of A and B as the first token", False)
    temperature: float = setting("of the judge's own sampling; 0 is greedy", 0.0)
    max_tokens: int = setting("longest answer; judges that think aloud need more", 64)
    options: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "further fields of every request; null leaves out one that is sent otherwise"},
    )
    asks: int = setting("times that a pair is asked about before the judge abstains from it", 3)
    max_calls: int | None = setting("most questions asked each time the command is started; default no limit", None)
    api_key_env: str | None = setting("name of the environment variable that holds the key", None)
    timeout: float = setting("seconds to wait for one answer", 120.0)
    retries: int = setting("further attempts after a broken or missing answer", 5)
    patience: float = setting("seconds that an unreachable server is waited for", 300.0)
    concurrency: int = setting("requests under way at one time", 8)

    def __post_init__(self) -> None:
        check_address("judge.url", self.url)
        require("model", self.model, isinstance(self.model, str) and bool(self.model.strip()), "a model name")
        require("answer", self.answer, self.answer in ANSWERS, f"one of {', '.join(ANSWERS)}")
        if self.logprobs and (self.answer != "choice" or self.pattern is not None or self.json_key is not None):
            raise ValueError("judge.logprobs reads A or B as the first token: leave out answer, pattern and json_key")
        self._check_pattern()
        fits = isinstance(self.options, Mapping) and not any(name in self.options for name in _OWN)
        require("options", self.options, fits, f"a mapping of fields, without {', '.join(_OWN)}")
        key = self.api_key_env
        if not (key is None or (isinstance(key, str) and key.isidentifier())):  # not shown: it may be the key itself
            raise ValueError("judge.api_key_env must be the name of an environment variable, not a key")
        require("temperature", self.temperature, _number(self.temperature) and self.temperature >= 0, "0 or more")
        require("timeout", self.timeout, _number(self.timeout) and self.timeout > 0, "a positive number of seconds")
        require("patience", self.patience, _number(self.patience) and self.patience >= 0, "seconds >= 0")
        check_count("max_tokens", self.max_tokens, "tokens")
        check_count("asks", self.asks, "times")
        check_count("retries", self.retries, "attempts", 0)
        check_count("concurrency", self.concurrency, "requests")
        if self.max_calls is not None:
            check_count("max_calls", self.max_calls, "calls")
        if self.template is not None:
            read_template(self.template)

    def _check_pattern(self) -> None:
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except (re.error, TypeError) as error:
                raise ValueError(f"judge.pattern {self.pattern!r} is no regular expression: {error}") from None

    def build(self, device: str) -> Judge:
        """The judge, its module imported now; the server computes, whatever the device is."""
        from nashpo.llm.judges.api import APIJudge

        return APIJudge(self)


def read_template(path: str) -> str:
    """The question in a file.

    Raises
    ------
    ValueError
        If the file cannot be read, or does not hold each of the three places once.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"judge.template {path} cannot be read: {error}") from None
    wrong = next((place for place in PLACES if text.count("{" + place + "}") != 1), None)
    if wrong is not None:
        count = text.count("{" + wrong + "}")
        raise ValueError(f"judge.template {path} has {{{wrong}}} {count} times; it must have it once")
    return text
