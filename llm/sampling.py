"""Responses of a policy: a minimal seeded generator, and the enumeration of all responses where there are few.

Shapes: B prompts with K responses each, as token ids. A policy is given as a geometric mixture of models, `Parts`; a
single model is ``[(1.0, use)]``. Larger engines have the same call.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from nashpo.core.policies import log_normalize
from nashpo.llm.fit import Layout, Packing, policy_logprobs, without_dropout
from nashpo.llm.mixture import MixtureProcessor, Parts
from nashpo.llm.responses import Padded, Responses, Scored


def derived_seed(seed: int, key: str) -> int:
    """A seed for one piece of work, from the run's seed and the work's key."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=7).digest())


class Sampler(Protocol):
    """Where responses come from."""

    def __call__(self, parts: Parts, prompts: Sequence[Sequence[int]], seed: int) -> Responses:
        """Responses of the mixture to every prompt; the same for the same seed."""
        ...


class _OnlyKnown(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed here
    """Masks ids that the tokenizer does not know."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_fill(-1, torch.arange(self.size, scores.shape[-1], device=scores.device), -torch.inf)


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    K: int,
    max_new_tokens: int,
    seed: int,
    *,
    pad_id: int = 0,
    eos_id: int | None = None,
    vocabulary: int | None = None,
    others: Parts = (),
) -> list[list[tuple[int, ...]]]:
    """K responses to every prompt at temperature 1, without truncation of the distribution.

    Parameters
    ----------
    model : nn.Module
    prompts : B sequences of token ids
    K, max_new_tokens, seed : int
    pad_id : int
        Any id; padding stands on the left and is masked.
    eos_id : int, optional
        Ends a response, and is part of it. A response without one has ``max_new_tokens`` tokens.
    vocabulary : int, optional
        Ids from here on are never drawn (models with more rows than their tokenizer has tokens).
    others : Parts
        Other policies of a token-wise geometric mixture; the model's own weight is what is left of 1.

    Returns
    -------
    B lists of K tuples of token ids
    """
    batch = Padded.from_sequences([Scored(tuple(p), (0,) * len(p)) for p in prompts], pad_id, left=True)
    device = next(model.parameters()).device
    ids, mask = (x.repeat_interleave(K, 0).to(device) for x in (batch.input_ids, batch.attention_mask))
    processors = LogitsProcessorList()
    if others:
        processors.append(MixtureProcessor(1 - sum(a for a, _ in others), others, mask))
    if vocabulary is not None:
        processors.append(_OnlyKnown(vocabulary))
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad_id,
        eos_token_id=eos_id,
        bos_token_id=None,
    )
    training = model.training
    model.eval()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.no_grad(), without_dropout(model), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            output = model.generate(
                input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=processors
            )
    finally:
        model.train(training)
    rows = [_until_end(row, eos_id) for row in output[:, ids.shape[1] :].tolist()]
    return [rows[i : i + K] for i in range(0, len(rows), K)]


def _until_end(tokens: list[int], eos_id: int | None) -> tuple[int, ...]:
    if eos_id is not None and eos_id in tokens:
        tokens = tokens[: tokens.index(eos_id) + 1]
    return tuple(tokens)


@dataclass(frozen=True)
class Generate:
    """K draws per prompt by `generate`; see there. ``rows`` prompts are drawn at a time, all by default."""

    K: int
    max_new_tokens: int
    pad_id: int = 0
    eos_id: int | None = None
    vocabulary: int | None = None
    rows: int | None = None

    def __call__(self, parts: Parts, prompts: Sequence[Sequence[int]], seed: int) -> Responses:
        (_, use), others = parts[0], parts[1:]
        size = self.rows or len(prompts)
        sequences: list[list[Scored]] = []
        with use() as model:
            for start in range(0, len(prompts), size):
                some = prompts[start : start + size]
                drawn = generate(
                    model,
                    some,
                    self.K,
                    self.max_new_tokens,
                    derived_seed(seed, str(start)),
                    pad_id=self.pad_id,
                    eos_id=self.eos_id,
                    vocabulary=self.vocabulary,
                    others=others,
                )
                sequences += [
                    [Scored.completion(p, tokens) for tokens in row] for p, row in zip(some, drawn, strict=True)
                ]
        return Responses.drawn(sequences)


@dataclass(frozen=True)
class Enumerate:
    """All responses there are, weighted by the policy's probabilities: expectations become exact sums.

    Parameters
    ----------
    completions : sequence of token id sequences
        Every response of positive probability, the same for every prompt.
    layout : Layout
        The fit's own.
    """

    completions: tuple[tuple[int, ...], ...]
    layout: Layout = field(default_factory=Packing)

    def __call__(self, parts: Parts, prompts: Sequence[Sequence[int]], seed: int) -> Responses:
        rows = [[Scored.completion(prompt, c) for c in self.completions] for prompt in prompts]
        responses = Responses.drawn(rows)
        log_policy = torch.zeros_like(responses.weights)
        for a, use in parts:
            with use() as model:
                log_policy += a * policy_logprobs(model, responses, self.layout)
        return Responses(responses.sequences, log_normalize(log_policy).exp(), True, responses.names)
