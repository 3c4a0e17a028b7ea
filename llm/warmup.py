"""Supervised warm-up: a model is fitted to given responses, on transformers' Trainer, before self-play starts.

The loss is Σ_s w_s (−log π(y_s | x_s)) / Σ_s w_s |y_s| over the sequences s of one update, in nats per scored token:
with weights 1 the usual next-token loss. Weights that are a policy's probabilities of all responses to each prompt make
it a cross-entropy, whose minimizer is that policy.

Shapes: N sequences with one weight each; a batch from the data loader holds places, ``{"row": (B,)}``.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer

from nashpo.llm.config import SelfPlayConfig
from nashpo.llm.encoding import Encoder, is_conversation
from nashpo.llm.fit import Layout, NonFiniteLoss, without_dropout
from nashpo.llm.logs import LogSums
from nashpo.llm.responses import Scored
from nashpo.llm.stage_rows import collate, drop_repeated
from nashpo.llm.tiny_config import TinyModel
from nashpo.llm.tiny_game import tiny_target
from nashpo.llm.tiny_user import conversation_law
from nashpo.llm.trainer_setup import layout_of, rounded

log = logging.getLogger(__name__)
ANSWERS = ("chosen", "completion", "response")
"""Columns that a response to ``prompt`` may stand in; the first that a row has is taken."""


class WarmupData(Dataset):  # type: ignore[misc]  # torch is not typed here
    """Sequences with their weights; an item is its place.

    Attributes
    ----------
    sequences : tuple of N Scored
    weights : (N,) float64
        >= 0.
    dropped : int
        Rows that were left out because they were too long.

    Raises
    ------
    ValueError
        Without sequences, or with weights that are not N numbers >= 0.
    """

    def __init__(self, sequences: Sequence[Scored], weights: Sequence[float] | None = None, dropped: int = 0) -> None:
        self.sequences = tuple(sequences)
        self.weights = torch.tensor([1.0] * len(self.sequences) if weights is None else list(weights)).double()
        self.dropped = dropped
        if not self.sequences:
            raise ValueError(f"the warm-up has no sequences ({dropped} rows are longer than max_length)")
        if self.weights.shape != (len(self.sequences),) or not bool((self.weights >= 0).all()):
            raise ValueError(f"{len(self.sequences)} sequences need as many weights, each >= 0")

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, place: int) -> int:
        return place


def tiny_data(tiny: TinyModel) -> WarmupData:
    """Every response to every prompt of a tiny model, weighted by its probability under the policy that it is warmed up
    to. In conversations that includes the other side's, whose tokens are not scored."""
    pairs = [
        Scored((*prompt, *ids), (*(0,) * len(prompt), *mask))
        for prompt in tiny.prompt_ids
        for ids, mask in tiny.conversations
    ]
    return WarmupData(pairs, conversation_law(tiny, tiny_target(tiny)).ravel().tolist())


def supervised_data(rows: Sequence[Mapping[str, Any]], encoder: Encoder, max_length: int | None = None) -> WarmupData:
    """Rows of text, of conversations or of prompts with responses.

    Parameters
    ----------
    rows : sequence of mappings
        With ``text`` (all tokens but the first are scored; longer ones are cut into pieces), with ``messages`` (the
        assistant's turns are scored), or with ``prompt`` and one of `ANSWERS`. Other columns are not read.
    encoder : Encoder
    max_length : int, optional
        Longest sequence in tokens; a longer row with a response is left out.

    Raises
    ------
    ValueError
        A row without these columns, or one that the encoder refuses; rows are named by number.
    """
    found: list[Scored] = []
    dropped = 0
    for number, row in enumerate(rows):
        try:
            sequences = _sequences(row, encoder, max_length)
        except ValueError as error:
            raise ValueError(f"row {number} of the warm-up's data: {error}") from None
        fitting = [s for s in sequences if max_length is None or len(s.ids) <= max_length]
        dropped += not fitting
        found += fitting
    (log.warning if dropped else log.info)("warm-up: %d sequences, %d rows left out", len(found), dropped)
    return WarmupData(found, dropped=dropped)


def _sequences(row: Mapping[str, Any], encoder: Encoder, max_length: int | None) -> list[Scored]:
    if isinstance(row.get("text"), str):
        return _pieces(encoder, row["text"], max_length)
    if is_conversation(row.get("messages", ())):
        messages = list(row["messages"])
        first = next((i for i, turn in enumerate(messages) if turn["role"] == "assistant"), len(messages))
        return [_pair(encoder, messages[:first], messages[first:])]
    column = next((name for name in ANSWERS if row.get(name) is not None), None)
    if row.get("prompt") is None or column is None:
        shown = ", ".join(row) or "no columns"
        raise ValueError(f"it has {shown}; needed are text, or messages, or prompt and one of {', '.join(ANSWERS)}")
    return [_pair(encoder, row["prompt"], row[column])]


def _pair(encoder: Encoder, prompt: Any, response: Any) -> Scored:
    return encoder.response(prompt, encoder.prompt(prompt), response)[0]


def _pieces(encoder: Encoder, text: str, max_length: int | None) -> list[Scored]:
    """The text's tokens behind a begin token where there is one, and before an end token, cut into pieces."""
    ids = [*encoder.prompt(text), *encoder.end_ids[:1]]
    size = max_length or len(ids)
    pieces = [ids[i : i + size] for i in range(0, len(ids), size)]
    return [Scored(tuple(piece), (0, *(1,) * (len(piece) - 1))) for piece in pieces if len(piece) > 1]


class WarmupTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed here
    """transformers' Trainer on `WarmupData`.

    Parameters
    ----------
    model : nn.Module
        Trained in place.
    args : SelfPlayConfig
        ``padding_free`` and ``disable_dropout`` are heeded; batches count sequences.
    train_dataset : WarmupData
    processing_class, callbacks
        As in transformers' Trainer.
    """

    def __init__(
        self,
        model: nn.Module,
        args: SelfPlayConfig,
        train_dataset: WarmupData,
        processing_class: Any = None,
        callbacks: Any = None,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            data_collator=collate,
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
        )
        # The loss is divided by the tokens of the whole update here; transformers before 5.23 asks the first of these.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._layout: Layout = layout_of(args, processing_class)
        self.add_callback(LogSums())  # a log before each checkpoint: a resumed run has the logs of one never stopped

    def create_optimizer(self, *model: Any) -> torch.optim.Optimizer:
        """As in transformers' Trainer; 16-bit weights are rounded as ``args.bf16_rounding`` says."""
        self.optimizer = rounded(super().create_optimizer(*model), self.args)
        return self.optimizer

    def _tokens(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Σ w |y| of a batch."""
        data: WarmupData = self.train_dataset
        rows = batch["row"].tolist()
        lengths = torch.tensor([sum(data.sequences[row].mask) for row in rows], dtype=torch.float64)
        return (batch["weight"].cpu() * data.weights[rows] * lengths).sum()

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The batches of one update, and the weighted number of their scored tokens on all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            drop_repeated(batches[-1], self.accelerator)
        total = sum((self._tokens(batch) for batch in batches), torch.zeros((), dtype=torch.float64))
        return batches, self.accelerator.reduce(total.to(device), "sum")

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one micro-batch."""
        with self._layout.context(model):
            if not self.args.disable_dropout:
                return super().training_step(model, inputs, num_items_in_batch)
            with without_dropout(model):
                return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """−Σ w log π / Σ w |y|, the last sum over all micro-batches and processes of the update."""
        data: WarmupData = self.train_dataset
        rows = inputs["row"].tolist()
        logprobs = self._layout.logprobs(model, [data.sequences[row] for row in rows]).double()
        weights = inputs["weight"].to(logprobs.device) * data.weights[rows].to(logprobs.device)
        total = self._tokens(inputs).to(logprobs.device) if num_items_in_batch is None else num_items_in_batch
        loss = -(weights * logprobs).sum() * (self.accelerator.num_processes / total)
        if not math.isfinite(loss.item()):
            raise NonFiniteLoss(
                f"the warm-up's loss is {loss.item()} at step {self.state.global_step}: lower warmup.training's"
                " learning_rate, or look for broken data"
            )
        return loss.float()

    def floating_point_ops(self, inputs: Any) -> int:
        """From the tokens of the batch's sequences."""
        data: WarmupData = self.train_dataset
        tokens = sum(len(data.sequences[row].ids) for row in inputs["row"].tolist())
        return int(super().floating_point_ops({self.model.main_input_name: torch.empty(1, tokens, device="meta")}))


def warm_up(
    model: nn.Module,
    data: WarmupData,
    args: SelfPlayConfig,
    tokenizer: Any = None,
    callbacks: Sequence[Any] = (),
    resume_from_checkpoint: str | None = None,
) -> WarmupTrainer:
    """Train the model in place.

    Parameters
    ----------
    model : nn.Module
    data : WarmupData
    args : SelfPlayConfig
        Checkpoints go to its ``output_dir``.
    tokenizer, callbacks
        As in transformers' Trainer.
    resume_from_checkpoint : str, optional
        A complete checkpoint of the same training: it ends with the weights of one that was never stopped.

    Returns
    -------
    WarmupTrainer
        Its ``state.log_history`` holds the logs.

    Raises
    ------
    ValueError
        `nashpo.llm.fit.NonFiniteLoss` on a loss that is no number.
    """
    trainer = WarmupTrainer(model, args, data, tokenizer, list(callbacks))
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    return trainer
