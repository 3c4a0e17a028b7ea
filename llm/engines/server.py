"""An OpenAI-compatible server that takes and gives token ids: vLLM, SGLang.

A response is one request to ``/completions`` with the prompt's ids, its own seed, and ``return_token_ids: true``, which
vLLM has since 0.10.2 and SGLang since July 2026. Before that vLLM gives ids as ``token_id:17`` among the
log-probabilities: ``options: {logprobs: 0, return_tokens_as_token_ids: true}``. All settings of the distribution are
sent, since servers take what is missing from the model's own generation settings.

The same request need not give the same response again: a server's arithmetic depends on what else is in its batches,
and SGLang heeds seeds only with --enable-deterministic-inference. A shard that was written stays as it is.

Prompts that begin with earlier prompts and responses, as a conversation's turns do, are not read again by vLLM (prefix
caching, on by default since V1) and SGLang (its radix cache, unless --disable-radix-cache): the ids are sent as they
were drawn, so that beginnings are equal. Other servers may read all anew; the responses' distribution is the same.

Shapes: B prompts, K responses each. Lengths are in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nashpo.llm.engines.config import ServerConfig
from nashpo.llm.engines.engine import Completion, EngineContext, PolicySource, check_ends
from nashpo.llm.engines.remote import client, models, request_seed, version, weights
from nashpo.llm.http import Client
from nashpo.llm.http_errors import Refused, ServerError, Unanswered, WrongAnswer, member

if TYPE_CHECKING:
    from nashpo.llm.prompts import Prompt

_AS_TOKEN = "token_id:"


class NoTokenIds(ValueError):
    """The server has no token ids to give."""


class ServerEngine:
    """Responses from a server, as the ids that it drew.

    Parameters
    ----------
    config : ServerConfig
    context : EngineContext

    Raises
    ------
    ValueError
        On an API key that is not set.
    """

    kind = "ids"
    shared = True

    def __init__(self, config: ServerConfig, context: EngineContext) -> None:
        self.config = config
        self.context = context
        self.client: Client = client(config)
        self._weights = weights(config, self.client)

    def describe(self) -> dict[str, Any]:
        """Sampling and further fields; where the server stands and how often it is asked change no distribution."""
        return {
            "engine": "server",
            "sampling": self.config.sampling().to_json(),
            "options": dict(self.config.options),
            "reproducible": False,
        }

    def about_server(self) -> dict[str, Any]:
        """Version (where the server tells it) and models: to be stored with the data, and different from day to day."""
        return {"version": version(self.client), "models": models(self.client)}

    def check(self) -> None:
        """That the server answers and a response can end.

        Raises
        ------
        ValueError
            Where one of them is not so. A server that is not there is not waited for.
        """
        check_ends(self.context)
        models(self.client, patience=0.0)

    def sample(self, policy: PolicySource, prompts: Sequence[Prompt], seed: int) -> list[tuple[Completion, ...]]:
        """K completions of every prompt.

        Raises
        ------
        ServerDown
            If the server is away for longer than ``patience``.
        NoTokenIds
            If answers come without token ids.
        ValueError
            On a request that is refused, or whose answers are wrong after all retries: it names the prompt.
        """
        empty = next((prompt.key for prompt in prompts if not prompt.ids), None)
        if empty is not None:
            raise ValueError(f"prompt {empty[:12]} has no token that a response could follow")
        model = self._weights.name(policy)
        K = self.config.K

        def draw(row: tuple[Prompt, int]) -> Completion:
            prompt, k = row
            body = self._body(model, prompt, request_seed(seed, prompt.key, k))
            try:
                return self.client.post("completions", body, lambda answer: self._read(prompt, answer))
            except (Refused, Unanswered, WrongAnswer) as error:
                raise ServerError(f"response {k} to prompt {prompt.key[:12]}: {error}") from None

        rows = [(prompt, k) for prompt in prompts for k in range(K)]
        drawn = self.client.each(draw, rows, self.context.progress)
        return [tuple(drawn[place * K : (place + 1) * K]) for place in range(len(prompts))]

    def close(self) -> None:
        """Unload what was loaded."""
        self._weights.close()

    def _body(self, model: str, prompt: Prompt, seed: int) -> dict[str, Any]:
        sampling = self.config.sampling()
        return {
            "model": model,
            "prompt": list(prompt.ids),
            "n": 1,
            "seed": seed,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,  # both servers' word for all tokens
            "min_p": sampling.min_p,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": list(self.context.end_ids),
            "return_token_ids": True,
            **self.config.options,
        }

    def _read(self, prompt: Prompt, answer: Any) -> Completion:
        choices = member(answer, "choices", kind=list)
        if len(choices) != 1:
            raise WrongAnswer(f"it has {len(choices)} choices where 1 was asked for")
        choice = member(answer, "choices", 0, kind=dict)
        reason = member(choice, "finish_reason", kind=str)
        if reason not in ("stop", "length"):
            raise WrongAnswer(f"its finish_reason is {reason!r}, not stop or length")
        seen = choice.get("prompt_token_ids") or answer.get("prompt_token_ids")
        if seen is not None and seen != list(prompt.ids):
            raise WrongAnswer(f"it continues a prompt of {len(seen)} tokens that are not the {len(prompt.ids)} sent")
        ids = self._ended(self._ids(choice), choice, reason)
        limit, ends = self.config.max_new_tokens, self.context.end_ids
        if len(ids) > limit:
            raise WrongAnswer(f"it has {len(ids)} tokens where max_new_tokens is {limit}")
        early = next((place for place, token in enumerate(ids[:-1]) if token in ends), None)
        if early is not None:
            raise WrongAnswer(f"it goes on behind its end token {ids[early]} at place {early}")
        return Completion.drawn(ids, ends, self.context.tokenizer)

    def _ids(self, choice: dict[str, Any]) -> list[int]:
        ids = choice.get("token_ids")
        if ids is None:
            logprobs = choice.get("logprobs")
            tokens = logprobs.get("tokens") if isinstance(logprobs, dict) else None
            if not isinstance(tokens, list) or not all(isinstance(t, str) and t.startswith(_AS_TOKEN) for t in tokens):
                raise NoTokenIds(
                    f"{self.client.url} gives no token ids (return_token_ids): use vLLM 0.10.2 or newer, a new SGLang,"
                    " or the engine text_server, which tokenizes the text again"
                )
            words = [token.removeprefix(_AS_TOKEN) for token in tokens]
            ids = [int(word) if word.isdecimal() else None for word in words]
        if not isinstance(ids, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise WrongAnswer("its token_ids are not a list of whole numbers")
        size = self.context.vocabulary
        outside = next((i for i in ids if i < 0 or (size is not None and i >= size)), None)
        if outside is not None:
            raise WrongAnswer(f"its token id {outside} is outside the tokenizer's vocabulary of {size}")
        return ids

    def _ended(self, ids: list[int], choice: dict[str, Any], reason: str) -> list[int]:
        """With the end token, which some servers tell beside the ids (vLLM's stop_reason, SGLang's matched_stop)."""
        ends = self.context.end_ids
        if reason == "stop" and not (ids and ids[-1] in ends):
            told = next(
                (choice[name] for name in ("stop_reason", "matched_stop") if choice.get(name) is not None), None
            )
            if isinstance(told, bool) or told not in ends:
                raise WrongAnswer(f"it stopped, but by no end token of {list(ends)} (stop_reason {told!r})")
            ids = [*ids, told]
        if not ids:
            raise WrongAnswer("it has no tokens")
        return ids
