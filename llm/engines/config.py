"""Settings of the engines as they stand in a recipe under ``sampling``, one frozen dataclass per engine.

Lengths are in tokens, times in seconds. Loading this imports no torch: ``build`` imports the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import urlsplit

from nashpo.llm.engines.engine import Engine, EngineContext, Sampling, require
from nashpo.llm.settings import number, whole


def _setting(default: Any, help: str) -> Any:
    made: Any = field(default=default, metadata={"help": help})
    return made


def _options(help: str) -> Any:
    made: Any = field(default_factory=dict, metadata={"help": help})
    return made


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """What every engine is told.

    Raises
    ------
    ValueError
        On a value out of range, in one line that begins with ``sampling.``.
    """

    K: int = _setting(5, "responses per prompt")
    max_new_tokens: int = _setting(512, "longest response in tokens, its end token included")
    temperature: float = _setting(1.0, "> 0; the theory is about 1")
    top_p: float = _setting(1.0, "in (0, 1]; 1 keeps every token")
    top_k: int = _setting(0, "likeliest tokens kept; 0 keeps every token")
    min_p: float = _setting(0.0, "in [0, 1]: least share of the likeliest token's probability; 0 keeps every token")
    shard: int = _setting(64, "prompts per shard, the unit of resumption")

    def __post_init__(self) -> None:
        self.sampling()  # checks what it holds
        _at_least(1, self, "shard", "prompts")

    def sampling(self) -> Sampling:
        """The part that says which distribution is drawn from."""
        return Sampling(self.K, self.max_new_tokens, self.temperature, self.top_p, self.top_k, self.min_p)

    def build(self, context: EngineContext) -> Engine:
        """The engine, its module imported now."""
        raise NotImplementedError


def _at_least(least: int, config: SamplingConfig, name: str, what: str, optional: bool = False) -> None:
    value = getattr(config, name)
    if not (optional and value is None):
        require(name, value, whole(value) and value >= least, f"a whole number of {what}, at least {least}")


def _positive(config: SamplingConfig, name: str) -> None:
    value = getattr(config, name)
    require(name, value, number(value) and 0 < value < float("inf"), "a positive number of seconds")


@dataclass(frozen=True, kw_only=True)
class TransformersConfig(SamplingConfig):
    """transformers' ``generate`` on the training machine; see `nashpo.llm.engines.local`."""

    batch_size: int = _setting(64, "sequences generated at a time")
    batch_tokens: int | None = _setting(None, "most tokens of a batch, prompts and longest responses with padding")
    # 8 GiB for an 8B model of Llama 3's shape in bfloat16 (128 KiB per token), 1.8 GiB for Qwen2.5-1.5B (28 KiB).
    cache_tokens: int = _setting(
        65536, "most tokens whose keys and values are kept between the turns of conversations; 0 reads them anew"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(1, self, "batch_size", "sequences")
        _at_least(1, self, "batch_tokens", "tokens", optional=True)
        _at_least(0, self, "cache_tokens", "tokens")

    def build(self, context: EngineContext) -> Engine:
        """The engine, its module imported now."""
        from nashpo.llm.engines.local import TransformersEngine

        return TransformersEngine(self, context)


@dataclass(frozen=True, kw_only=True)
class ContinuousConfig(SamplingConfig):
    """transformers' continuous batching; see `nashpo.llm.engines.continuous`."""

    options: dict[str, Any] = _options("fields of transformers' ContinuousBatchingConfig, as max_batch_tokens")

    def __post_init__(self) -> None:
        super().__post_init__()
        _mapping(self, "options", own=("seed",))

    def build(self, context: EngineContext) -> Engine:
        """The engine, its module imported now."""
        from nashpo.llm.engines.continuous import ContinuousEngine

        return ContinuousEngine(self, context)


@dataclass(frozen=True, kw_only=True)
class VLLMConfig(SamplingConfig):
    """vLLM in this process; see `nashpo.llm.engines.vllm_engine`."""

    gpu_memory_utilization: float = _setting(
        0.9, "share of the GPU's memory for vLLM; the trainer's model needs its own"
    )
    tensor_parallel_size: int = _setting(1, "GPUs over which the weights are split")
    dtype: str = _setting("auto", "of weights and activations: auto (the model's own), bfloat16, float16, float32")
    max_model_len: int | None = _setting(None, "longest prompt and response together in tokens; default the model's")
    enforce_eager: bool = _setting(False, "run without CUDA graphs: less memory, slower")
    options: dict[str, Any] = _options("further keyword arguments of vllm.LLM")

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.gpu_memory_utilization
        require("gpu_memory_utilization", share, number(share) and 0 < share <= 1, "a share in (0, 1]")
        _at_least(1, self, "tensor_parallel_size", "GPUs")
        _at_least(1, self, "max_model_len", "tokens", optional=True)
        if isinstance(self.options, Mapping) and "hf_token" in self.options:  # options are stored with the data
            raise ValueError("sampling.options.hf_token: leave it out; the environment variable HF_TOKEN is read")
        own = ("model", "tokenizer", "seed", "generation_config", "gpu_memory_utilization", "tensor_parallel_size")
        _mapping(self, "options", own=(*own, "dtype", "max_model_len", "enforce_eager"))

    def build(self, context: EngineContext) -> Engine:
        """The engine, its module imported now."""
        from nashpo.llm.engines.vllm_engine import VLLMEngine

        return VLLMEngine(self, context)


def _mapping(config: SamplingConfig, name: str, own: tuple[str, ...]) -> None:
    value = getattr(config, name)
    require(name, value, isinstance(value, Mapping), "a mapping of option names to values")
    for key in own:
        require(f"{name}.{key}", value.get(key), key not in value, "left out: it is set from the recipe")


@dataclass(frozen=True, kw_only=True)
class RemoteConfig(SamplingConfig):
    """What both kinds of server have in common."""

    WEIGHTS = ("by_name", "lora", "command:...")
    OWN: ClassVar[tuple[str, ...]] = (
        *("model", "prompt", "messages", "n", "seed", "stream", "max_tokens", "temperature", "top_p", "stop"),
        *("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "generation_config"),
    )

    url: str = _setting("", "base address of the server up to /v1, as http://localhost:8000/v1")
    model: str = _setting("{policy}", "model name sent: {policy} is the policy's folder, other text is sent as is")
    weights: str = _setting(
        "by_name",
        "how the server gets new weights: by_name (it loads the folder that the request names), lora (vLLM's adapter"
        " endpoint), command:TEXT (run before sampling, {policy} is the folder)",
    )
    api_key_env: str | None = _setting(None, "name of the environment variable that holds the key")
    timeout: float = _setting(600.0, "seconds to wait for one answer")
    retries: int = _setting(5, "further attempts after a wrong or missing answer")
    patience: float = _setting(300.0, "seconds that an unreachable server is waited for")
    concurrency: int = _setting(8, "requests under way at one time")
    options: dict[str, Any] = _options("further fields of every request, as the server has them")

    def __post_init__(self) -> None:
        super().__post_init__()
        _mapping(self, "options", own=self.OWN)
        parts = urlsplit(self.url) if isinstance(self.url, str) else None
        fits = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)
        require("url", self.url, fits, "the server's address, as http://localhost:8000/v1")
        assert parts is not None
        if parts.username or parts.password:  # the address is stored with the data
            raise ValueError("sampling.url has a user name or password in it: put the key in api_key_env's variable")
        require("model", self.model, isinstance(self.model, str) and bool(self.model.strip()), "a model name")
        self._check_weights()
        key = self.api_key_env
        fits = key is None or (isinstance(key, str) and key.isidentifier())
        if not fits:  # not shown: it may be the key itself
            raise ValueError("sampling.api_key_env must be the name of an environment variable, not a key")
        _positive(self, "timeout")
        _at_least(0, self, "retries", "attempts")
        require("patience", self.patience, number(self.patience) and 0 <= self.patience < float("inf"), "seconds >= 0")
        _at_least(1, self, "concurrency", "requests")

    def _check_weights(self) -> None:
        named = self.weights in ("by_name", "lora")
        command = isinstance(self.weights, str) and self.weights.startswith("command:") and self.command() != ""
        require("weights", self.weights, named or command, f"one of {', '.join(self.WEIGHTS)}")
        if self.weights == "by_name" and "{policy}" not in self.model:
            raise ValueError(
                f"sampling.model is {self.model!r} and sampling.weights by_name: every iteration would be sampled from"
                " the same weights; put {policy} into the name, or tell the server by weights: command:..."
            )

    def command(self) -> str | None:
        """What ``weights: command:TEXT`` runs, None for other kinds."""
        return self.weights[len("command:") :].strip() if self.weights.startswith("command:") else None


@dataclass(frozen=True, kw_only=True)
class ServerConfig(RemoteConfig):
    """An OpenAI-compatible server with token ids in and out (vLLM, SGLang); see `nashpo.llm.engines.server`."""

    OWN = (*RemoteConfig.OWN, "top_k", "min_p", "stop_token_ids", "return_token_ids")

    def build(self, context: EngineContext) -> Engine:
        """The engine, its module imported now."""
        from nashpo.llm.engines.server import ServerEngine

        return ServerEngine(self, context)


@dataclass(frozen=True, kw_only=True)
class TextServerConfig(RemoteConfig):
    """A server that only has text (``transformers serve``); see `nashpo.llm.engines.text_server`."""

    DIALECTS = ("transformers", "openai")

    dialect: str = _setting(
        "transformers",
        "fields of a request: transformers (`transformers serve`, its generation_config) or openai (the API's own)",
    )
    concurrency: int = _setting(
        1,
        "requests under way at one time; `transformers serve` has one generator, which several would mix up",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require("dialect", self.dialect, self.dialect in self.DIALECTS, f"one of {', '.join(self.DIALECTS)}")

    def build(self, context: EngineContext) -> Engine:
        """The engine, its module imported now."""
        from nashpo.llm.engines.text_server import TextServerEngine

        return TextServerEngine(self, context)


ENGINES: dict[str, type[SamplingConfig]] = {
    "transformers": TransformersConfig,
    "continuous": ContinuousConfig,
    "vllm": VLLMConfig,
    "server": ServerConfig,
    "text_server": TextServerConfig,
}
"""Engines by their name in ``sampling: {engine: NAME, ...}``."""
