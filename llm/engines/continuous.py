"""transformers' continuous batching: a finished sequence gives its place to the next one.

Draws are the engine's own, from torch's generator in the order in which it batches requests; it is seeded, but that
order may depend on timing, so a shard drawn again may differ (``reproducible: false``). Filters are transformers' own.
Made for GPUs. On a processor it sizes its cache by the machine's memory, which took half a minute on one with 2 cores;
``options: {page_size: 16, num_blocks: 64, max_batch_tokens: 256}`` bounds it. The options are those of the installed
transformers, and their names change with it (5.17: ``block_size``, later ``page_size``).

Within a call equal beginnings of prompts are shared in whole blocks, if all layers are full attention (its
``allow_block_sharing``, on by default). Between calls nothing is: each has a cache of its own, so that every turn of a
conversation is read from its beginning. For conversations the ``transformers`` engine keeps what it read.

Shapes: B·K requests, each a prompt of one shard; lengths in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import configuration_utils

from nashpo.llm.engines.config import ContinuousConfig
from nashpo.llm.engines.engine import Completion, EngineContext, PolicySource, check_ends, check_lengths
from nashpo.llm.engines.local import generating, positions
from nashpo.llm.sampling import derived_seed

if TYPE_CHECKING:
    from nashpo.llm.prompts import Prompt


def available() -> bool:
    """Whether the installed transformers has continuous batching."""
    return hasattr(GenerationMixin, "generate_batch") and hasattr(configuration_utils, "ContinuousBatchingConfig")


class ContinuousEngine:
    """Responses by ``generate_batch`` of the policies' own modules.

    Parameters
    ----------
    config : ContinuousConfig
    context : EngineContext
        Its device is not asked: a policy generates where its weights are.
    """

    kind = "ids"

    def __init__(self, config: ContinuousConfig, context: EngineContext) -> None:
        self.config = config
        self.context = context

    def describe(self) -> dict[str, Any]:
        """Engine, versions, sampling and the options given."""
        return {
            "engine": "continuous",
            "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
            "sampling": self.config.sampling().to_json(),
            "options": dict(self.config.options),
            "reproducible": False,
        }

    def check(self) -> None:
        """That continuous batching is there and knows the options.

        Raises
        ------
        ValueError
            If it is not, or on an unknown option or an end token outside the vocabulary.
        """
        check_ends(self.context)
        if not available():
            raise ValueError(
                f"transformers {transformers.__version__} has no continuous batching: use sampling.engine transformers"
            )
        self._batching(0)

    def _batching(self, seed: int) -> Any:
        try:
            return configuration_utils.ContinuousBatchingConfig(**self.config.options, seed=seed)
        except TypeError as error:
            raise ValueError(f"sampling.options: transformers' ContinuousBatchingConfig says: {error}") from None

    def sample(self, policy: PolicySource, prompts: Sequence[Prompt], seed: int) -> list[tuple[Completion, ...]]:
        """K completions of every prompt.

        Raises
        ------
        ValueError
            On a mixture of policies, an empty or too long prompt, or a request that the engine did not finish.
        """
        if len(policy.parts) > 1:
            raise ValueError(
                f"policy '{policy.name}' is a mixture of {len(policy.parts)} models, which continuous batching cannot"
                " draw: use sampling.engine transformers"
            )
        sampling = self.config.sampling()
        asked = [list(prompt.ids) for prompt in prompts for _ in range(sampling.K)]
        key = derived_seed(seed, "\0".join(prompt.key for prompt in prompts))
        with policy.parts[0][1]() as module, generating(module) as model:
            check_lengths(prompts, sampling, positions(model))
            device = next(model.parameters()).device
            devices = [device] if device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):  # the engine seeds the process's generators
                found = model.generate_batch(asked, self._generation(model), self._batching(key % 2**32))
        outputs = list(found.values())
        failed = next((output.error for output in outputs if output.error), None)
        if failed is not None or [list(output.prompt_ids) for output in outputs] != asked:
            reason = failed or f"{len(outputs)} of {len(asked)} responses came back"
            raise ValueError(f"continuous batching failed: {reason}; its own log says more")
        self.context.progress(len(outputs))
        end_ids, tokenizer = self.context.end_ids, self.context.tokenizer
        rows = [Completion.drawn(output.generated_tokens, end_ids, tokenizer) for output in outputs]
        return [tuple(rows[i : i + sampling.K]) for i in range(0, len(rows), sampling.K)]

    def _generation(self, model: Any) -> GenerationConfig:
        sampling, vocabulary = self.config.sampling(), self.context.vocabulary
        rows = model.get_output_embeddings().weight.shape[0]
        unknown = [] if vocabulary is None else list(range(vocabulary, rows))
        return GenerationConfig(
            do_sample=True,
            temperature=float(sampling.temperature),
            top_k=sampling.top_k,
            top_p=float(sampling.top_p),
            min_p=sampling.min_p or None,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=list(self.context.end_ids) or -1,
            pad_token_id=self.context.pad_id,
            suppress_tokens=unknown or None,
        )

    def close(self) -> None:
        """Nothing is held."""
