"""vLLM in this process: weights are loaded from the policy's folder, prompts and responses are token ids.

Written to vLLM's interface as of 2026 (``LLM``, ``SamplingParams``, prompts as ``prompt_token_ids``) and tested against
an imitation of it: no real vLLM was run. What its documentation and sources say, and this relies on: with ``n = K`` and
a seed s, response i is drawn with seed s + i; token ids of a response include the end token; with ``generation_config:
vllm`` the model's own sampling defaults are not asked.

A seeded response still depends on how vLLM batches it, through rounding (``reproducible: false``). min-p is applied
before top-k and top-p there, after them in transformers: with both, the distributions differ a little. With ``dtype:
auto`` vLLM may take half precision for float32 weights.

The turns of a conversation are prompts of token ids that begin with all that was drawn before, and vLLM does not read
such beginnings again: since its V1 engine prefix caching is on by default, in whole blocks of tokens and as long as its
cache has room (``options: {enable_prefix_caching: false}`` turns it off). Models that are not plain attention may be
exempt.

Memory: every policy gets an engine of its own, which is shut down before the next one starts and by `close`; so the GPU
is free for training only after `close`.

Shapes: B prompts of one shard, K responses each; lengths in tokens.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nashpo.llm.engines.config import VLLMConfig
from nashpo.llm.engines.engine import Completion, EngineContext, PolicySource, check_ends, check_lengths
from nashpo.llm.sampling import derived_seed

if TYPE_CHECKING:
    from nashpo.llm.prompts import Prompt

COLDEST = 0.01
"""vLLM takes no lower temperature: it raises what is lower to this, or decodes greedily."""

NEVER = -100.0
"""A bias in nats on ids that the tokenizer does not know; a token's odds shrink by e^100."""


class VLLMEngine:
    """Responses by ``vllm.LLM``.

    Parameters
    ----------
    config : VLLMConfig
    context : EngineContext
        Its device is not asked: vLLM takes the visible GPUs.
    """

    kind = "ids"

    def __init__(self, config: VLLMConfig, context: EngineContext) -> None:
        self.config = config
        self.context = context
        self._folder: Path | None = None
        self._running: Any = None

    def describe(self) -> dict[str, Any]:
        """Engine, version, sampling and what the model was told."""
        return {
            "engine": "vllm",
            "versions": {"vllm": self._vllm().__version__, "torch": torch.__version__},
            "sampling": self.config.sampling().to_json(),
            "dtype": self.config.dtype,
            "options": dict(self.config.options),
            "reproducible": False,
        }

    def check(self) -> None:
        """That vLLM can be imported and takes the settings.

        Raises
        ------
        ValueError
            If it cannot, if the temperature is below what it takes, or on an end token outside the vocabulary.
        """
        check_ends(self.context)
        self._vllm()
        if self.config.temperature < COLDEST:
            raise ValueError(
                f"sampling.temperature is {self.config.temperature}; vLLM takes none below {COLDEST}: raise it, or use"
                " sampling.engine transformers"
            )

    def _vllm(self) -> Any:
        try:
            return import_module("vllm")
        except ImportError as error:
            raise ValueError(
                f"sampling.engine vllm needs the package vllm ({error}): install it, or use engine transformers"
            ) from None

    def sample(self, policy: PolicySource, prompts: Sequence[Prompt], seed: int) -> list[tuple[Completion, ...]]:
        """K completions of every prompt.

        Raises
        ------
        ValueError
            On a policy without a folder (a mixture), an empty or too long prompt, or a response that vLLM gave up.
        """
        sampling = self.config.sampling()
        folder = policy.folder().resolve()
        model = _text_config(folder)
        check_lengths(prompts, sampling, self.config.max_model_len or model.get("max_position_embeddings"))
        engine = self._engine(folder)
        asked = [{"prompt_token_ids": list(prompt.ids)} for prompt in prompts]
        told = [self._params(derived_seed(seed, prompt.key), model.get("vocab_size")) for prompt in prompts]
        outputs = engine.generate(asked, told, use_tqdm=False)
        if [len(output.outputs) for output in outputs] != [sampling.K] * len(prompts):
            raise ValueError(f"vLLM answered {len(outputs)} of {len(prompts)} prompts, or not {sampling.K} times each")
        found = [tuple(self._completion(one) for one in output.outputs) for output in outputs]
        self.context.progress(len(prompts) * sampling.K)
        return found

    def _engine(self, folder: Path) -> Any:
        if self._folder != folder:
            self.close()
            config = self.config
            length = {} if config.max_model_len is None else {"max_model_len": config.max_model_len}
            self._running = self._vllm().LLM(
                model=str(folder),
                seed=0,  # every request brings its own
                generation_config="vllm",
                dtype=config.dtype,
                tensor_parallel_size=config.tensor_parallel_size,
                gpu_memory_utilization=config.gpu_memory_utilization,
                enforce_eager=config.enforce_eager,
                **length,
                **config.options,
            )
            self._folder = folder
        return self._running

    def _params(self, seed: int, rows: int | None) -> Any:
        sampling, vocabulary = self.config.sampling(), self.context.vocabulary
        unknown = range(vocabulary, rows) if vocabulary is not None and rows is not None else range(0)
        return self._vllm().SamplingParams(
            n=sampling.K,
            seed=seed,
            temperature=float(sampling.temperature),
            top_p=float(sampling.top_p),
            top_k=sampling.top_k,
            min_p=float(sampling.min_p),
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=list(self.context.end_ids),
            ignore_eos=True,  # the end tokens are those named, no others
            detokenize=False,
            logit_bias=dict.fromkeys(unknown, NEVER) or None,
        )

    def _completion(self, one: Any) -> Completion:
        completion = Completion.drawn(list(one.token_ids), self.context.end_ids, self.context.tokenizer)
        if one.finish_reason != ("stop" if completion.finished else "length"):
            raise ValueError(
                f"vLLM ended a response of {len(one.token_ids)} tokens by {one.finish_reason!r}, which its token ids do"
                " not show: nothing was kept"
            )
        return completion

    def close(self) -> None:
        """Shut the running engine down and free its memory."""
        if self._running is None:
            return
        engine, self._running, self._folder = self._running, None, None
        stop = getattr(engine, "shutdown", None) or engine.llm_engine.engine_core.shutdown
        stop()
        del engine, stop
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _text_config(folder: Path) -> dict[str, Any]:
    """The language model's part of a folder's ``config.json``."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} is no transformers folder: it has no config.json")
    whole: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    part: dict[str, Any] = whole.get("text_config") or whole
    return part
