"""The token-wise geometric mixture of language models, and how far it is from the sequence-level one.

The theory of Nash-MD mixes sequences, π_mix(y) ∝ Π_i π_i(y)^{a_i}; sampling from that needs a sum over all responses.
As in the paper, responses are drawn token by token from p(v) ∝ Π_i p_i(v | prefix)^{a_i} instead. Both give a response
the same product of powers, up to the normalizers: with w(y) = Π_t Σ_v Π_i p_i(v | y_<t)^{a_i},

    sequence-level(y) = token-wise(y) · w(y) / E_{token-wise} w

Shapes: N sequences; V tokens in the vocabulary; log-probabilities in nats.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LogitsProcessor

from nashpo.core.policies import log_normalize, total_variation
from nashpo.llm.fit import without_dropout
from nashpo.llm.logprobs import output_head
from nashpo.llm.responses import Padded, Scored

ENTRIES = 2**26
"""Logits that exist at one time in `log_mass`, half a gigabyte in float64."""

Use = Callable[[], AbstractContextManager[nn.Module]]
"""Lends a policy's module, as ``partial(policies.use, name)``."""

Parts = Sequence[tuple[float, Use]]
"""A geometric mixture: weights a_i, which add up to 1, and policies."""


class MixtureProcessor(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed here
    """Turns the logits of the model that generates into those of the mixture; one object per call of ``generate``.

    The other policies keep key-value caches of their own, so that a token costs one forward of one token each.

    Parameters
    ----------
    weight : float
        a of the model that generates.
    others : Parts
        The other policies; their weights and ``weight`` add up to 1.
    attention_mask : (N, T)
        Of the prompts, padded on the left as ``generate`` gets them.

    Raises
    ------
    ValueError
        On weights that do not add up to 1.
    """

    def __init__(self, weight: float, others: Parts, attention_mask: Tensor) -> None:
        total = weight + sum(a for a, _ in others)
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the weights of a geometric mixture add up to {total:g}, not 1")
        self.weight = weight
        self.others = others
        self.attention_mask = attention_mask
        self.caches = [DynamicCache() for _ in others]
        self.seen = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """log Π_i p_i^{a_i}, normalized."""
        count, length = input_ids.shape
        if self.seen and length != self.seen + 1:
            raise ValueError("a MixtureProcessor serves one call of generate without beams: make a new one")
        mask = torch.cat([self.attention_mask, self.attention_mask.new_ones(count, length)], dim=1)[:, :length]
        positions = (mask.long().cumsum(-1) - 1).clamp_min(0)[:, self.seen :]
        mixed = self.weight * scores.float().log_softmax(-1)
        for (a, use), cache in zip(self.others, self.caches, strict=True):
            with torch.no_grad(), use() as model:
                output = model(
                    input_ids=input_ids[:, self.seen :],
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                )
            mixed = mixed + a * output.logits[:, -1].float().log_softmax(-1)
        self.seen = length
        return mixed.log_softmax(-1)


def log_mass(parts: Parts, sequences: Sequence[Scored]) -> Tensor:
    """log w(y) of every sequence: Σ_t log Σ_v Π_i p_i(v | y_<t)^{a_i} over its scored tokens, (N,), at most 0.

    Whole logits are needed here; they are held for at most `ENTRIES` numbers at a time, or for one sequence.
    """
    with parts[0][1]() as model:
        vocabulary = output_head(model).weight.shape[0]
    size = max(1, ENTRIES // (vocabulary * max(len(s.ids) for s in sequences)))
    return torch.cat([_log_mass(parts, sequences[i : i + size]) for i in range(0, len(sequences), size)])


def _log_mass(parts: Parts, sequences: Sequence[Scored]) -> Tensor:
    batch = Padded.from_sequences(sequences)
    mixed: Any = 0.0
    positions = (batch.attention_mask.cumsum(-1) - 1).clamp_min(0)
    for a, use in parts:
        with torch.no_grad(), use() as model, without_dropout(model):
            device = next(model.parameters()).device
            output = model(
                input_ids=batch.input_ids.to(device),
                attention_mask=batch.attention_mask.to(device),
                position_ids=positions.to(device),
                use_cache=False,
            )
            mixed = mixed + a * output.logits[:, :-1].double().log_softmax(-1)
    return (mixed.logsumexp(-1) * batch.loss_mask[:, 1:].to(mixed.device)).sum(-1).cpu()


def token_wise_distance(log_masses: Tensor, weights: Tensor) -> Tensor:
    """Total variation between the token-wise and the sequence-level mixture, (B,).

    Parameters
    ----------
    log_masses : (B, K)
        `log_mass` of responses.
    weights : (B, K)
        Token-wise probabilities where all responses are enumerated, and the result is exact; 1/K for token-wise draws,
        and it is an estimate (biased upwards by the spread of w over few draws).
    """
    sequence_level = log_normalize(weights.log() + log_masses).exp()
    return total_variation(weights, sequence_level)
