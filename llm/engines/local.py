"""The default engine: transformers' ``generate`` with noise that belongs to the response, not to the batch.

``generate`` decodes greedily, and a processor behind all others makes its choice a draw (`nashpo.llm.engines.noise`).
In float32 the responses depend on (weights, prompt, seed, k) only, up to rounding that `noise` describes; the same
shard on the same machine gives the same responses bit for bit, in any order of its prompts. A prompt that stands twice
gets the same responses twice.

Within `TransformersEngine.keeping` a prompt that goes on from a sequence that was drawn before, as the next turn of a
conversation does, is continued from that sequence's keys and values (`nashpo.llm.engines.prefixes`). Then responses
also depend, through rounding, on the calls before in the same context; the same calls give the same responses.

A geometric mixture is drawn token by token (`nashpo.llm.mixture`): filters and noise act on the mixture's logits.

Shapes: R = B·K rows, one per prompt and k, generated in batches of N rows padded on the left. Lengths are in tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList

from nashpo.llm.engines.config import TransformersConfig
from nashpo.llm.engines.engine import Completion, EngineContext, PolicySource, check_ends, check_lengths
from nashpo.llm.engines.noise import KeyedDraw, filters, row_key
from nashpo.llm.engines.prefixes import Prefixes
from nashpo.llm.logprobs import root_module
from nashpo.llm.mixture import MixtureProcessor, Parts
from nashpo.llm.responses import Padded, Scored

if TYPE_CHECKING:
    from nashpo.llm.prompts import Prompt


@dataclass(frozen=True)
class Row:
    """Response ``k`` to the prompt at ``place`` of the shard, before it is drawn."""

    ids: tuple[int, ...]
    prompt_key: str
    k: int
    place: int


def batches(rows: Sequence[Row], count: int, tokens: int | None, max_new_tokens: int) -> Iterator[list[Row]]:
    """Rows of like length together, the longest first so that memory runs out early or not at all.

    Parameters
    ----------
    rows : sequence of Row
    count : int
        Most rows of a batch.
    tokens : int, optional
        Most tokens of a batch, padding and longest responses counted; a row that alone has more is a batch of its own.
    max_new_tokens : int
    """
    # Whatever the prompts' order, and equal prompts side by side.
    ordered = sorted(rows, key=lambda row: (-len(row.ids), row.ids, row.prompt_key, row.k))
    while ordered:
        width = len(ordered[0].ids) + max_new_tokens
        size = count if tokens is None else max(1, min(count, tokens // width))
        yield ordered[:size]
        ordered = ordered[size:]


class TransformersEngine:
    """Responses by ``generate`` of the policies' own modules.

    Parameters
    ----------
    config : TransformersConfig
    context : EngineContext
        Its device is not asked: a policy generates where its weights are.
    """

    kind = "ids"

    def __init__(self, config: TransformersConfig, context: EngineContext) -> None:
        self.config = config
        self.context = context
        self._prefixes: Prefixes | None = None

    def describe(self) -> dict[str, Any]:
        """Engine, versions, sampling and batches; which device and number format is the policy's own matter."""
        return {
            "engine": "transformers",
            "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
            "sampling": self.config.sampling().to_json(),
            "batch_size": self.config.batch_size,
            "batch_tokens": self.config.batch_tokens,
            "cache_tokens": self.config.cache_tokens,
            "noise": "gumbel, keyed on seed, prompt, k and position",
            "reproducible": True,
        }

    def check(self) -> None:
        """That a response can end.

        Raises
        ------
        ValueError
            If an end token is outside the vocabulary.
        """
        check_ends(self.context)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Within it keys and values of what is drawn are kept, at most ``cache_tokens`` tokens of the policy that was
        sampled last; all is given back at its end. Equal prompts of a batch are read once.

        Mixtures, and models whose caches are more than plain full attention, are read anew as without it.
        """
        if self._prefixes is not None or not self.config.cache_tokens:
            yield
            return
        self._prefixes = Prefixes(self.config.cache_tokens)
        try:
            yield
        finally:
            self._prefixes = None

    def sample(self, policy: PolicySource, prompts: Sequence[Prompt], seed: int) -> list[tuple[Completion, ...]]:
        """K completions of every prompt.

        Raises
        ------
        ValueError
            On a prompt without tokens or too long for the model, or on logits that are not numbers.
        MemoryError
            If a batch does not fit the device.
        """
        sampling = self.config.sampling()
        rows = [Row(tuple(p.ids), p.key, k, place) for place, p in enumerate(prompts) for k in range(sampling.K)]
        found: dict[tuple[int, int], Completion] = {}
        (_, use), others = policy.parts[0], policy.parts[1:]
        with use() as module, generating(module) as model:
            check_lengths(prompts, sampling, positions(model))
            prefixes = None if others else self._prefixes
            if prefixes is not None and not prefixes.begin(policy, model):
                prefixes = None
            for batch in self._batches(rows, prefixes):
                drawn = self._drawn(model, others, batch, seed, policy.name, prefixes)
                found.update(((row.place, row.k), completion) for row, completion in zip(batch, drawn, strict=True))
                self.context.progress(len(batch))
        return [tuple(found[place, k] for k in range(sampling.K)) for place in range(len(prompts))]

    def _batches(self, rows: Sequence[Row], prefixes: Prefixes | None) -> Iterator[list[Row]]:
        """Rows of which half or more is kept apart from those that are read as a whole, and before them."""
        config = self.config
        groups: tuple[list[Row], list[Row]] = ([], [])
        for row in sorted(rows, key=lambda row: row.ids):  # what is found stays longest, whatever the prompts' order
            kept = 0 if prefixes is None else prefixes.find(row.ids)[1]
            groups[2 * kept < len(row.ids)].append(row)
        for group in groups:
            yield from batches(group, config.batch_size, config.batch_tokens, config.max_new_tokens)

    def _drawn(
        self, model: Any, others: Parts, batch: Sequence[Row], seed: int, name: str, prefixes: Prefixes | None
    ) -> list[Completion]:
        sampling = self.config.sampling()
        device = next(model.parameters()).device
        prompts = [Scored(row.ids, (0,) * len(row.ids)) for row in batch]
        padded = Padded.from_sequences(prompts, self.context.pad_id, left=True).to(device)
        length = padded.input_ids.shape[1]
        keys = torch.tensor([row_key(seed, row.prompt_key, row.k) for row in batch], device=device)
        choice = KeyedDraw(keys, length)
        processors = LogitsProcessorList([*filters(sampling, self.context.vocabulary), choice])
        if others:
            processors.insert(0, MixtureProcessor(1 - sum(a for a, _ in others), others, padded.attention_mask))
        generation = GenerationConfig(
            do_sample=False,
            max_new_tokens=sampling.max_new_tokens,
            pad_token_id=self.context.pad_id,
            eos_token_id=list(self.context.end_ids) or None,
            bos_token_id=None,
            use_cache=True,
        )
        inputs = {"input_ids": padded.input_ids, "attention_mask": padded.attention_mask}
        reading, kept = None, ""
        try:
            if prefixes is not None:
                kept = f" or sampling.cache_tokens (now {self.config.cache_tokens})"
                reading = prefixes.read(model, [row.ids for row in batch], **inputs)
            past = {} if reading is None else {"past_key_values": reading.cache}
            output: Tensor = model.generate(**inputs, **past, generation_config=generation, logits_processor=processors)
            ends, tokenizer = self.context.end_ids, self.context.tokenizer
            completions = [Completion.drawn(tokens, ends, tokenizer) for tokens in output[:, length:].tolist()]
            if reading is not None:
                reading.keep([completion.ids for completion in completions])
        except torch.OutOfMemoryError as error:
            raise MemoryError(
                f"{len(batch)} sequences of up to {length + sampling.max_new_tokens} tokens do not fit {device}: lower"
                f" sampling.batch_size (now {self.config.batch_size}){kept}"
            ) from error
        if choice.broken.any():
            where = batch[int(choice.broken.nonzero()[0])].prompt_key
            raise ValueError(f"policy '{name}' gives logits that are not numbers (NaN) after prompt {where[:12]}")
        return completions

    def close(self) -> None:
        """Give back what is kept."""
        if self._prefixes is not None:
            self._prefixes.clear()


def positions(model: Any) -> int | None:
    """How many positions a transformers model has, None where its configuration does not say."""
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit


@contextmanager
def generating(module: nn.Module) -> Iterator[Any]:
    """The transformers model inside wrappers, in eval mode and without generation settings of its own: what is drawn
    from is said by the recipe alone. All is put back."""
    model = root_module(module)
    if hasattr(model, "get_base_model"):  # adapters live in the layers of the model that peft wraps
        model = model.get_base_model()
    modes = [(part, part.training) for part in model.modules()]
    own = model.generation_config
    try:
        model.generation_config = GenerationConfig()
        model.eval()  # dropout is off with it
        with torch.no_grad():
            yield model
    finally:
        model.generation_config = own
        for part, training in modes:
            part.training = training
