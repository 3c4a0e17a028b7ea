"""Training a small Bradley-Terry reward model on judged pairs.

Shapes: N pairs, a batch of B; rewards r (B) in nats, and with c, d the chosen and the rejected response and p the
probability that c wins (1 where the data do not say), the loss is the mean of

    −p log σ(r_c − r_d) − (1 − p) log σ(r_d − r_c) .
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from nashpo.llm.judges.judge import Judge, Pair, ask
from nashpo.llm.judges.reward_model import TEMPLATE_KEY, encode
from nashpo.llm.judges.turns import checked_response

Encoded = tuple[list[int], list[int], float]
"""Token ids of the chosen and the rejected response, and the probability that the chosen one wins."""


@dataclass(frozen=True)
class RewardTraining:
    """How a reward model is trained: AdamW, one linear decay to 0, gradients clipped to norm 1.

    Attributes
    ----------
    epochs : int
    batch_size : int
        Pairs per step.
    learning_rate : float
    max_length : int
        Longest prompt and response in tokens; pairs with a longer one are left out.
    template : str, optional
        Plain text with ``{prompt}`` and ``{response}``; by default the tokenizer's chat template. The end token may be
        part of it. It is saved with the model.
    seed : int
        Of the head's weights, the order of the pairs and dropout.
    """

    epochs: int = 1
    batch_size: int = 16
    learning_rate: float = 1e-4
    max_length: int = 1024
    template: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class RewardReport:
    """What came of it.

    Attributes
    ----------
    losses : list of float
        Per step, nats per pair.
    pairs : int
        Pairs trained on.
    too_long : int
        Pairs left out.
    """

    losses: list[float]
    pairs: int
    too_long: int


def train_reward_model(
    model: str | os.PathLike[str],
    tokenizer: Any,
    pairs: Sequence[Mapping[str, Any]],
    folder: str | os.PathLike[str],
    training: RewardTraining | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> RewardReport:
    """Train a sequence classifier on pairs and save it as a folder that `RewardModel` reads.

    Parameters
    ----------
    model : path
        A transformers folder whose backbone is the start; a causal LM gets a new head with one output.
    tokenizer
        Of that model.
    pairs : N mappings
        ``prompt``, ``chosen``, ``rejected`` (texts, or the messages behind the prompt), and optionally
        ``chosen_probs`` in [0, 1].
    folder : path
        Where the model is saved; must not exist.
    training : RewardTraining, optional
    device : str
    progress : callable, optional
        Called with the steps done and the steps in all.

    Raises
    ------
    ValueError
        If the folder exists, no pair is short enough, a response is neither a text nor messages, or a probability is
        outside [0, 1].
    """
    from transformers import AutoModelForSequenceClassification

    training = training or RewardTraining()
    target = Path(folder)
    if target.exists():
        raise ValueError(f"{target} exists already: choose another folder for the reward model")
    rows = [_encoded(tokenizer, training.template, pair, number) for number, pair in enumerate(pairs)]
    kept = [row for row in rows if max(len(row[0]), len(row[1])) <= training.max_length]
    if not kept:
        raise ValueError(f"none of {len(rows)} pairs has two responses of at most {training.max_length} tokens")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(training.seed)
        classifier = AutoModelForSequenceClassification.from_pretrained(str(model), num_labels=1, dtype=torch.float32)
        classifier.config.get_text_config().pad_token_id = pad
        classifier.to(device).train()
        losses = _fit(classifier, kept, training, pad, progress)
    setattr(classifier.config, TEMPLATE_KEY, training.template)
    aside = target.with_name(target.name + ".part")
    classifier.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    os.replace(aside, target)
    return RewardReport(losses, len(kept), len(rows) - len(kept))


def _encoded(tokenizer: Any, template: str | None, pair: Mapping[str, Any], number: int) -> Encoded:
    weight = float(pair.get("chosen_probs", 1.0))
    if not 0 <= weight <= 1:
        raise ValueError(f"pair {number}: chosen_probs is {weight}; it must be in [0, 1]")
    sides = (checked_response(pair[side], f"pair {number}: {side}") for side in ("chosen", "rejected"))
    chosen, rejected = (encode(tokenizer, template, pair["prompt"], response) for response in sides)
    return chosen, rejected, weight


def _fit(
    model: Any,
    rows: Sequence[Encoded],
    training: RewardTraining,
    pad: int,
    progress: Callable[[int, int], None] | None,
) -> list[float]:
    steps = training.epochs * -(-len(rows) // training.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses: list[float] = []
    for batch in _batches(len(rows), training):
        some = [rows[n] for n in batch]
        ids, mask = _padded([row[0] for row in some] + [row[1] for row in some], pad)
        rewards = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits[:, 0].float()
        weights = torch.tensor([row[2] for row in some], device=rewards.device)
        loss = binary_cross_entropy_with_logits(rewards[: len(some)] - rewards[len(some) :], weights)
        if not bool(torch.isfinite(loss)):
            raise ValueError(f"the reward model's loss is {loss.item()} at step {len(losses)}: lower the learning rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if progress is not None:
            progress(len(losses), steps)
    return losses


def _batches(count: int, training: RewardTraining) -> Iterator[list[int]]:
    generator = torch.Generator().manual_seed(training.seed)
    for _ in range(training.epochs):
        order = torch.randperm(count, generator=generator).tolist()
        yield from (order[start : start + training.batch_size] for start in range(0, count, training.batch_size))


def _padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def pair_accuracy(judge: Judge, pairs: Sequence[Mapping[str, Any]]) -> float:
    """Share of pairs on which the judge prefers the chosen response; ties and abstentions count one half.

    Parameters
    ----------
    pairs : N mappings
        ``prompt``, ``chosen`` and ``rejected``.
    """
    verdicts = ask(judge, [Pair(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in pairs])
    wins = [0.5 if v.probability is None else (v.probability > 0.5) + 0.5 * (v.probability == 0.5) for v in verdicts]
    return sum(wins) / len(wins)
