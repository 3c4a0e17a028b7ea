"""The trainer: one stage of a rule, fitted with transformers' Trainer.

    from nashpo.core.rules import DPO  # or IPO(tau=0.1), SPAC(eta=10, lam=1, R=1), SPPO(eta=10), …
    from nashpo.llm.config import SelfPlayConfig
    from nashpo.llm.trainer import SelfPlayTrainer
    args = SelfPlayConfig(output_dir="out", num_train_epochs=1)
    SelfPlayTrainer("path/to/model", args=args, train_dataset=pairs, rule=DPO(tau=0.1)).train()

``pairs`` is a list of ``{"prompt", "chosen", "rejected"}``, or any data set of `nashpo.llm.data`.

Shapes: B rows with K responses each, log-probabilities (B, K) float64 in nats. A batch from the data loader holds rows'
places and weights, ``{"weight": (B,), "row": (B,)}``; their sequences are looked up and packed by the trainer.

The loss is the weighted mean over the rows of a whole update: over its micro-batches and over all processes. A row that
a sampler repeats to fill the last batch of an epoch has weight 0. So neither the way that a batch is cut into
micro-batches nor the number of processes changes the gradient.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from nashpo.core.rules import Rule
from nashpo.llm import trainer_setup as setup
from nashpo.llm.config import SelfPlayConfig
from nashpo.llm.fit import Layout, without_dropout
from nashpo.llm.known import Compared, Lender, lenders, shared_logprobs, without_adapters
from nashpo.llm.logs import LogSums
from nashpo.llm.metrics import Batch, describe
from nashpo.llm.objectives import Objective, per_prompt
from nashpo.llm.preferences import PreferenceData
from nashpo.llm.responses import Responses
from nashpo.llm.sharding import check_sharding, keep_numbers
from nashpo.llm.stage_rows import StageRows, collate, drop_repeated
from nashpo.llm.stages import REFERENCE, Job
from nashpo.llm.trainer_checks import check_first_ratio, refuse_non_finite


class SelfPlayTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed here
    """Fit one stage of a rule to preference data.

    Parameters
    ----------
    model : str or nn.Module
        A causal language model, or its name (loaded in fp32 unless ``model_init_kwargs`` says otherwise). Training
        begins here; rules call this policy ``current``.
    ref_model : nn.Module, optional
        The policy ``reference``; default the model as it begins, or the model with its adapters off.
    args : SelfPlayConfig
    data_collator
        Not used; batches are rows' places.
    train_dataset, eval_dataset
        See `nashpo.llm.data`; or what was answered before, `nashpo.llm.preferences.PreferenceData.from_stage`, which
        is taken as it is. ``eval_dataset`` may be a dictionary of several.
    processing_class
        The tokenizer; default that of the model's name, and none where all data are encoded.
    compute_metrics : callable, optional
        Gets predictions (N, 2), the rewards of chosen and rejected.
    callbacks, optimizers
        As in transformers' Trainer.
    peft_config : peft.PeftConfig, optional
        Train adapters of this kind.
    rule : Rule, optional
        What is trained; default the one of ``args.loss_type`` and ``args.beta``.
    objective : Objective, optional
        The loss; default the one of the rule's paper.
    policies : mapping name -> nn.Module, optional
        Policies of other slots that the rule's stage has in its base, for instance ``auxiliary``.
    job : Job, optional
        What is trained, in the place of a rule: a stage of any number of payoffs, on data from `from_stage`. Its base
        names policies that are known, lent by ``policies`` or ``ref_model`` (called ``reference``), or the job's
        ``start``, the one that the model begins as.
    known : mapping policy -> (N, K), optional
        Log-probabilities of the training data in nats, by `nashpo.llm.known.stage_logprobs`; of evaluation data, see
        `from_stage`. They are used in the place of a model, so that only the one that is trained need be in memory.

    Raises
    ------
    ValueError
        Before training: a rule or policy that is missing, ``ref_model is model``, several visible GPUs without a
        launcher, or data that cannot be used. In training: a first log-ratio that is not 0, and a non-finite loss
        (`nashpo.llm.fit.NonFiniteLoss`, with the batch's rows saved in ``nonfinite-batch.json``).
    """

    _tag_names = ("nashpo", "self-play")

    def __init__(
        self,
        model: str | nn.Module,
        ref_model: nn.Module | None = None,
        args: SelfPlayConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Any = None,
        callbacks: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        *,
        rule: Rule | None = None,
        objective: Objective | None = None,
        policies: Mapping[str, nn.Module] | None = None,
        job: Job | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> None:
        args = SelfPlayConfig(output_dir="self-play") if args is None else args
        given = dict(policies or {})
        setup.check_arguments(model, args, data_collator, {"ref_model": ref_model, **given})
        self.rule, self.job = setup.what_to_train(rule, job, args, {**given, **(known or {})})
        self.objective = setup.loss_of(self.rule, self.job, objective, args)
        self.beta = args.beta if args.beta is not None else 1 / self.job.scale
        train_dataset = setup.with_known(train_dataset, known)
        processing_class = setup.tokenizer_of(processing_class, model, train_dataset, eval_dataset)
        model = setup.model_of(model, args, peft_config)
        self._layout: Layout = setup.layout_of(args, processing_class)
        self._encoder = setup.encoder_of(processing_class, model, args)
        self._stages: WeakKeyDictionary[PreferenceData, StageRows] = WeakKeyDictionary()
        train, evaluation = (
            setup.encoded(rows, self._encoder, model, self.objective, self.job, args)
            for rows in (train_dataset, eval_dataset)
        )
        super().__init__(
            model=model,
            args=args,
            data_collator=collate,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        check_sharding(args, self.accelerator)
        keep_numbers(self.accelerator)
        # The loss is divided by the rows of the whole update here; transformers before 5.23 asks the first of these.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._sums = LogSums()
        self.add_callback(self._sums)
        self._first = True
        lent = self._lenders(ref_model, given)
        in_step = not args.precompute_ref_log_probs and REFERENCE in lent
        self._compared = Compared(self.job, lent, implied=job is None, in_step=in_step)
        self._precompute(train, evaluation)

    def _lenders(self, ref_model: nn.Module | None, given: Mapping[str, nn.Module]) -> dict[str, Lender]:
        """How to get at each policy but the start, which is gone once training has begun."""
        own = {} if ref_model is None else {REFERENCE: ref_model}
        adapters = hasattr(self.model, "disable_adapter")
        own |= given
        implied = self.rule is not None and REFERENCE not in own and not adapters
        if implied and not self.args.precompute_ref_log_probs:
            own[REFERENCE] = deepcopy(self.model)
        lent = lenders(own, self.args.device if self.place_model_on_device else None)
        if adapters:
            lent.setdefault(REFERENCE, partial(without_adapters, self.model, self.accelerator.unwrap_model))
        return lent

    def _precompute(self, *datasets: Any) -> None:
        """Log-probabilities of the policies that are compared with, by the kernel that training uses."""
        start = self.model if self.state.global_step == 0 else None
        for data in setup.each(*datasets):
            if data not in self._stages:
                known = self._compared.logprobs(data, start, self._score)
                self._stages[data] = StageRows(setup.stage_of(data, self.job), self._compared.base(data), known)

    def _score(self, model: nn.Module, responses: Responses) -> Tensor:
        batch_size = self.args.precompute_ref_batch_size or self.args.per_device_eval_batch_size
        return shared_logprobs(self.accelerator, model, responses, self._layout, batch_size)

    def create_optimizer(self, *model: Any) -> torch.optim.Optimizer:
        """As in transformers' Trainer; 16-bit weights are rounded as ``args.bf16_rounding`` says."""
        self.optimizer = setup.rounded(super().create_optimizer(*model), self.args)
        return self.optimizer

    # ------------------------------------------------------------------------------------------------------- the loss

    def _comparable(self, model: nn.Module) -> ExitStack:
        """What forward and backward need around them: dropout off, attention per sequence."""
        stack = ExitStack()
        if self.args.disable_dropout:
            stack.enter_context(without_dropout(model))
        stack.enter_context(self._layout.context(model))
        return stack

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The batches of one update, and the weight of their rows on all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            drop_repeated(batches[-1], self.accelerator)
        total = sum((batch["weight"].sum() for batch in batches), torch.zeros((), dtype=torch.float64))
        return batches, self.accelerator.reduce(total.to(device), "sum")

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one micro-batch."""
        with self._comparable(model):
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Σ_b w_b loss_b / Σ w, the last sum over ``num_items_in_batch`` (all micro-batches and processes)."""
        training = model.training
        data = self._data_of(training)
        weight, rows = inputs["weight"], inputs["row"].tolist()
        batch = self._batch(model, data, rows)
        per_row = per_prompt(self.objective.losses(batch.stage))
        names, step = [data.responses.names[row] for row in rows], self.state.global_step
        refuse_non_finite(per_row, batch.stage.log_ratio, names, step, self.args.output_dir)
        if training and step == 0 and self._first and self.args.disable_dropout and self.job.start in batch.known:
            start = batch.known[self.job.start]
            lower = self.args.bf16 or self.args.fp16
            check_first_ratio(model, batch.logprobs, start, data.responses, rows, self._layout, lower)
            self._first = False
        metrics = describe(batch, per_row.detach(), self.beta, self.job, data.samples[rows].to(per_row.device))
        means = self._sums.train if training else self._sums.evaluation
        means.add({"loss": per_row.detach(), **metrics}, weight)
        if num_items_in_batch is None:
            loss = (weight * per_row).sum() / weight.sum().clamp_min(1)
        else:
            # Gradients are averaged over the processes, so that each one's sum counts num_processes times.
            loss = (weight * per_row).sum() * (self.accelerator.num_processes / num_items_in_batch)
        if training:
            self._sums.tokens += data.tokens([row for row, w in zip(rows, weight.tolist()) if w > 0])
        rewards = torch.stack([metrics["rewards/chosen"], metrics["rewards/rejected"]], -1)
        return (loss.float(), rewards) if return_outputs else loss.float()

    def _batch(self, model: nn.Module, data: PreferenceData, rows: list[int]) -> Batch:
        responses = data.responses
        sequences = responses.rows(rows)
        logprobs = responses.grid(self._layout.logprobs(model, sequences), rows).double()
        known, in_step = self._stages[data], {}
        if self._compared.in_step and REFERENCE not in known.known:
            with (
                torch.no_grad(),
                self.accelerator.autocast(),
                self._compared.lent[REFERENCE]() as reference,
                self._comparable(reference),
            ):
                in_step[REFERENCE] = responses.grid(self._layout.logprobs(reference, sequences), rows).double()
        return known.batch(data, rows, logprobs, in_step, self.args.length_normalize)

    # ------------------------------------------------------------------------------------------- evaluation, metrics

    def _data_of(self, training: bool) -> PreferenceData:
        return self.train_dataset if training else self._evaluated

    def _encoded(self, rows: Any) -> Any:
        if not isinstance(rows, PreferenceData) or rows not in self._stages:
            rows = setup.encoded(rows, self._encoder, self.model, self.objective, self.job, self.args)
            self._precompute(None if isinstance(rows, str) else rows)
        return rows

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """As in transformers' Trainer, on data of any form that `nashpo.llm.data` reads."""
        return super().evaluate(self._encoded(eval_dataset), ignore_keys, metric_key_prefix)

    def predict(self, test_dataset: Any, ignore_keys: Any = None, metric_key_prefix: str = "test") -> Any:
        """As in transformers' Trainer, on data of any form that `nashpo.llm.data` reads."""
        return super().predict(self._encoded(test_dataset), ignore_keys, metric_key_prefix)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """transformers' loop; the metrics of the rows are added to its own."""
        self._evaluated = dataloader.dataset
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        means = self._sums.evaluation.collect(self._sum)
        output.metrics.update({f"{prefix}_{name}": value for name, value in means.items()})
        return output

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss and rewards of one batch, without gradient."""
        inputs = self._prepare_inputs(inputs)
        drop_repeated(inputs, self.accelerator)
        with torch.no_grad(), self._comparable(model), self.compute_loss_context_manager():
            loss, rewards = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only or self.compute_metrics is None:
            return loss, None, None
        return loss, rewards, torch.zeros(len(rewards), dtype=torch.long, device=rewards.device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """transformers' logs and the means since the last of them; ``loss`` is the one that was minimized."""
        if "loss" in logs:
            means = self._sums.train.collect(self._sum)
            means.pop("loss", None)
            logs |= {**means, "num_tokens": self._sums.num_tokens(self.state.log_history, self._sum)}
        super().log(logs, start_time)

    def _sum(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values.to(self.args.device), "sum")

    def floating_point_ops(self, inputs: Any) -> int:
        """From the tokens of the batch's rows."""
        data = self._data_of(self.model.training)
        tokens = torch.empty(1, data.tokens(inputs["row"].tolist()), device="meta")
        return int(super().floating_point_ops({self.model.main_input_name: tokens}))
