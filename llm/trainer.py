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

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, set_seed
from transformers.trainer_utils import EvalLoopOutput

from nashpo.core.rules import Rule
from nashpo.llm.config import SelfPlayConfig
from nashpo.llm.data import Limits, PreferenceData, prepare
from nashpo.llm.encoding import Encoder
from nashpo.llm.fit import Layout, NonFiniteLoss, Packing, Padding, policy_logprobs, without_dropout
from nashpo.llm.metrics import Batch, Means, describe
from nashpo.llm.objectives import All, Objective, Pointwise, StageTensors
from nashpo.llm.responses import Responses, StageData
from nashpo.llm.stages import REFERENCE, START, job, objective

log = logging.getLogger(__name__)
FIRST_RATIO = 1e-4
"""Largest first log-ratio in nats, beside the rounding of the log-probabilities themselves."""


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
        See `nashpo.llm.data`. ``eval_dataset`` may be a dictionary of several.
    processing_class
        The tokenizer; default that of the model's name.
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
    ) -> None:
        args = SelfPlayConfig(output_dir="self-play") if args is None else args
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs are visible to one process: start with `accelerate launch` or `torchrun`, or show"
                " one by CUDA_VISIBLE_DEVICES"
            )
        if data_collator is not None:
            raise ValueError("data_collator has no effect here: batches are made from token ids by the trainer")
        given = dict(policies or {})
        for name, policy in {"ref_model": ref_model, **given}.items():
            if policy is model:
                raise ValueError(f"{name} is the model itself, which will change: give a copy, or leave it out")
        self.rule = _rule(rule, args)
        self.job = job(self.rule, args.iteration, args.stage, given)
        self.objective = _objective(self.rule, self.job, objective, args)
        self.beta = args.beta if args.beta is not None else 1 / self.job.step
        processing_class = _tokenizer(processing_class, model)
        model = _model(model, args, peft_config)
        self._layout: Layout = Packing() if args.padding_free else Padding(processing_class.padding_side == "left")
        self._encoder = _encoder(processing_class, model, args)
        train, evaluation = self._prepared(train_dataset, model, args), self._prepared(eval_dataset, model, args)
        super().__init__(
            model=model,
            args=args,
            data_collator=_collate,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # The loss is divided by the rows of the whole update here; transformers before 5.23 asks the first of these.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._means = {"train": Means(), "eval": Means()}
        self._tokens = 0
        self._lent = self._lenders(ref_model, given)
        # Without a reference of its own the reference is the start: one term of the base and not two.
        self._base = _merged((a, START if name not in self._lent else name) for a, name in self.job.base)
        self._known: dict[int, dict[str, Tensor]] = {}
        self._stages: dict[int, StageData] = {}
        for data in _each(train, evaluation):
            self._precompute(data)

    # ------------------------------------------------------------------------------------------------- data, policies

    def _prepared(self, rows: Any, model: nn.Module, args: SelfPlayConfig) -> Any:
        if rows is None or isinstance(rows, (PreferenceData, str)):
            return rows
        if isinstance(rows, Mapping):
            return {name: self._prepared(part, model, args) for name, part in rows.items()}
        # A loss on single responses learns from a tie too; a pair without a winner teaches a pair loss nothing.
        single = isinstance(self.objective, Pointwise) and isinstance(self.objective.pairs, All)
        limits = Limits(
            args.max_length,
            args.max_prompt_length,
            args.truncation,
            args.missing_eos,
            "keep" if single else args.ties,
            args.label_smoothing,
        )
        vocabulary = model.get_input_embeddings().weight.shape[0]
        data = prepare(rows, self._encoder, limits, args.ignored_columns, vocabulary)
        (log.warning if data.report.dropped else log.info)("%s", data.report)
        return data

    def _lenders(
        self, ref_model: nn.Module | None, given: Mapping[str, nn.Module]
    ) -> dict[str, Callable[[], AbstractContextManager[nn.Module]]]:
        """How to get at each policy but the start, which is gone once training has begun."""
        lent: dict[str, Callable[[], AbstractContextManager[nn.Module]]] = {}
        models = {**({} if ref_model is None else {REFERENCE: ref_model}), **given}
        for name, policy in models.items():
            policy.requires_grad_(False)
            policy.eval()
            if self.place_model_on_device:
                policy.to(self.args.device)
            lent[name] = lambda policy=policy: nullcontext(policy)  # type: ignore[misc]
        if REFERENCE in lent:
            return lent
        if hasattr(self.model, "disable_adapter"):
            lent[REFERENCE] = self._without_adapters
        elif not self.args.precompute_ref_log_probs:
            copy = deepcopy(self.model).requires_grad_(False).eval()
            lent[REFERENCE] = lambda: nullcontext(copy)
        return lent

    @contextmanager
    def _without_adapters(self) -> Iterator[nn.Module]:
        with self.accelerator.unwrap_model(self.model).disable_adapter():
            yield self.model

    def _precompute(self, data: PreferenceData) -> None:
        """Log-probabilities of the policies that are compared with, by the kernel that training uses."""
        names = dict.fromkeys([*(name for _, name in self._base), REFERENCE if REFERENCE in self._lent else START])
        if not self.args.precompute_ref_log_probs:
            names.pop(REFERENCE, None)
        known: dict[str, Tensor] = {}
        for name in names:
            if name == START and self.state.global_step > 0:
                raise ValueError(
                    "the policy that training started from has changed: give this data set when the trainer is made"
                )
            with self._lent[name]() if name != START else nullcontext(self.model) as model:
                known[name] = self._all_logprobs(model, data.responses)
        if REFERENCE not in self._lent:
            known[REFERENCE] = known[START]
        self._known[id(data)] = known
        self._stages[id(data)] = _with_generated(data.stage(self.job.step), self.job.kind)

    def _all_logprobs(self, model: nn.Module, responses: Responses) -> Tensor:
        """(N, K) float64: each process scores its share."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        mine = list(range(rank, len(responses), world))
        micro = self.args.precompute_ref_batch_size or self.args.per_device_eval_batch_size
        result = torch.zeros_like(responses.weights)
        if mine:
            part = Responses.drawn([responses.sequences[b] for b in mine])
            # accelerate puts autocast into the forward of the model that it prepares, and of no other.
            with self.accelerator.autocast():
                found = policy_logprobs(model, part, self._layout, micro).cpu()
            result[mine, : found.shape[1]] = found
        return result if world == 1 else self.accelerator.reduce(result.to(self.args.device), "sum").cpu()

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
            self._drop_repeated(batches[-1])
        total = sum((batch["weight"].sum() for batch in batches), torch.zeros((), dtype=torch.float64))
        return batches, self.accelerator.reduce(total.to(device), "sum")

    def _drop_repeated(self, batch: dict[str, Tensor]) -> None:
        """Weight 0 for the rows that accelerate repeats so that an epoch's last batch is whole on all processes."""
        state, world = self.accelerator.gradient_state, self.accelerator.num_processes
        if world == 1 or not state.end_of_dataloader or state.remainder <= 0 or not self.accelerator.even_batches:
            return
        count = len(batch["weight"])
        places = torch.arange(count) + self.accelerator.process_index * count
        batch["weight"][(places >= state.remainder).to(batch["weight"].device)] = 0.0

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
        values, weights = self.objective.losses(batch.stage)
        # A skipped pair may hold anything, and 0 · inf is no number.
        per_row = torch.where(weights > 0, weights * values.masked_fill(weights <= 0, 0.0), 0.0).sum(-1)
        if not bool(per_row.isfinite().all()):
            self._stop(data, rows, per_row, batch)
        if training and self.state.global_step == 0 and not self._tokens and START in batch.known:
            self._check_start(model, batch, data, rows)
        samples = data.samples[rows].to(per_row.device)
        metrics = describe(batch, per_row.detach(), self.beta, self.job.step, self.job.kind == "win", samples)
        mode = "train" if training else "eval"
        self._means[mode].add({"loss": per_row.detach(), **metrics}, weight)
        if num_items_in_batch is None:
            loss = (weight * per_row).sum() / weight.sum().clamp_min(1)
        else:
            # Gradients are averaged over the processes, so that each one's sum counts num_processes times.
            loss = (weight * per_row).sum() * (self.accelerator.num_processes / num_items_in_batch)
        if training:
            self._tokens += data.tokens([row for row, w in zip(rows, weight.tolist()) if w > 0])
        loss = loss.float()
        return (
            (loss, torch.stack([metrics["rewards/chosen"], metrics["rewards/rejected"]], -1))
            if return_outputs
            else loss
        )

    def _batch(self, model: nn.Module, data: PreferenceData, rows: list[int]) -> Batch:
        sequences, stage = data.responses.rows(rows), self._stages[id(data)]
        logprobs = data.responses.grid(self._layout.logprobs(model, sequences), rows).double()
        device = logprobs.device

        def take(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows].to(device)

        known = {name: values[rows].to(device) for name, values in self._known[id(data)].items()}
        if REFERENCE not in known:
            with (
                torch.no_grad(),
                self.accelerator.autocast(),
                self._lent[REFERENCE]() as reference,
                self._comparable(reference),
            ):
                known[REFERENCE] = data.responses.grid(self._layout.logprobs(reference, sequences), rows).double()
        ratio = logprobs - sum(a * known[name] for a, name in self._base)
        if self.args.length_normalize:
            lengths = torch.tensor(data.lengths(rows), dtype=torch.float64, device=device)
            ratio = ratio / data.responses.grid(lengths, rows).clamp_min(1)
        target, weights = stage.target[rows].to(device), data.responses.weights[rows].to(device)
        tensors = StageTensors(
            ratio, target, weights, take(stage.preferred), stage.step, generated=take(stage.generated)
        )
        return Batch(tensors, logprobs.detach(), known, data.best[rows].to(device), data.worst[rows].to(device))

    def _check_start(self, model: nn.Module, batch: Batch, data: PreferenceData, rows: list[int]) -> None:
        """Before any update the model is the policy that training starts from: its log-ratio to it must be 0."""
        found = (batch.logprobs - batch.known[START]).abs().max().item()
        # A sum of log-probabilities of that size is rounded to 2^-23 of it.
        allowed = FIRST_RATIO + 4 * torch.finfo(torch.float32).eps * batch.logprobs.abs().max().item()
        if found > allowed and (self.args.bf16 or self.args.fp16 or next(model.parameters()).dtype != torch.float32):
            sequences = data.responses.rows(rows)
            with torch.no_grad():
                apart = [self._layout.logprobs(model, [sequence]) for sequence in sequences]
            again = data.responses.grid(torch.cat(apart), rows).double()
            spread = (again - batch.logprobs).abs().max().item()
            log.info("spread of log-probabilities between packings of one batch: %.3g nats", spread)
            allowed = max(allowed, 4 * spread)
        log.info("first log-ratio: %.3g nats, %.3g allowed", found, allowed)
        if self.args.disable_dropout and not found <= allowed:
            raise ValueError(
                f"before any update the log-ratio to the starting policy is {found:.3g} nats where {allowed:.3g} is"
                " allowed; what usually breaks it: dropout that is on, or weights that changed after the trainer was"
                " made"
            )

    def _stop(self, data: PreferenceData, rows: list[int], per_row: Tensor, batch: Batch) -> None:
        names = [data.responses.names[row] for row in rows]
        folder = Path(self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "nonfinite-batch.json"
        saved = {
            "step": self.state.global_step,
            "rows": names,
            "losses": [str(x) for x in per_row.tolist()],
            "log_ratios": [[str(x) for x in line] for line in batch.stage.log_ratio.tolist()],
        }
        path.write_text(json.dumps(saved, indent=1))
        raise NonFiniteLoss(
            f"the loss is not finite at step {self.state.global_step}: the batch's {len(names)} rows are in {path}"
        )

    # ------------------------------------------------------------------------------------------- evaluation, metrics

    def _data_of(self, training: bool) -> PreferenceData:
        return self.train_dataset if training else self._evaluated

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """As in transformers' Trainer, on data of any form that `nashpo.llm.data` reads."""
        eval_dataset = self._prepared(eval_dataset, self.model, self.args)
        for data in _each(eval_dataset if not isinstance(eval_dataset, str) else None):
            if id(data) not in self._known:
                self._precompute(data)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(self, test_dataset: Any, ignore_keys: Any = None, metric_key_prefix: str = "test") -> Any:
        """As in transformers' Trainer, on data of any form that `nashpo.llm.data` reads."""
        test_dataset = self._prepared(test_dataset, self.model, self.args)
        if id(test_dataset) not in self._known:
            self._precompute(test_dataset)
        return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """transformers' loop; the metrics of the rows are added to its own."""
        self._evaluated = dataloader.dataset
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        means = self._means["eval"].collect(self._sum)
        output.metrics.update({f"{prefix}_{name}": value for name, value in means.items()})
        return output

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss and rewards of one batch, without gradient."""
        inputs = self._prepare_inputs(inputs)
        self._drop_repeated(inputs)
        with torch.no_grad(), self._comparable(model), self.compute_loss_context_manager():
            loss, rewards = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only or self.compute_metrics is None:
            return loss, None, None
        return loss, rewards, torch.zeros(len(rewards), dtype=torch.long, device=rewards.device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """transformers' logs and the means since the last of them; ``loss`` is the one that was minimized."""
        if "loss" in logs:
            means = self._means["train"].collect(self._sum)
            means.pop("loss", None)
            tokens = torch.tensor(float(self._tokens), dtype=torch.float64)
            logs |= {**means, "num_tokens": self._sum(tokens).item()}
        super().log(logs, start_time)

    def _sum(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values.to(self.args.device), "sum")

    def floating_point_ops(self, inputs: Any) -> int:
        """From the tokens of the batch's rows."""
        data = self._data_of(self.model.training)
        tokens = torch.empty(1, data.tokens(inputs["row"].tolist()), device="meta")
        return int(super().floating_point_ops({self.model.main_input_name: tokens}))


def _collate(places: list[int]) -> dict[str, Tensor]:
    return {"weight": torch.ones(len(places), dtype=torch.float64), "row": torch.tensor(places)}


def _merged(base: Iterable[tuple[float, str]]) -> list[tuple[float, str]]:
    """One term per policy."""
    sums: dict[str, float] = {}
    for a, name in base:
        sums[name] = sums.get(name, 0.0) + a
    return [(a, name) for name, a in sums.items()]


def _each(*datasets: Any) -> Iterator[PreferenceData]:
    for data in datasets:
        if isinstance(data, Mapping):
            yield from _each(*data.values())
        elif data is not None:
            yield data


def _rule(rule: Rule | None, args: SelfPlayConfig) -> Rule:
    named = args.rule()
    if rule is not None and named is not None:
        raise ValueError(f"the trainer has rule={rule} and args.loss_type={args.loss_type!r}: leave one out")
    if rule is None and named is None:
        raise ValueError("no rule: pass rule=DPO(tau=0.1), for instance, or set args.loss_type and args.beta")
    if isinstance(rule, type):
        raise ValueError(f"rule is the class {rule.__name__}: pass an instance, with its step size")
    found = rule or named
    assert found is not None
    return found


def _objective(rule: Rule, found: Any, chosen: Objective | None, args: SelfPlayConfig) -> Objective:
    if chosen is None:
        return objective(rule, found, args.pairs)
    if args.pairs is not None:
        raise ValueError(f"pairs = {args.pairs!r} has no effect beside an objective: give the pairs to the objective")
    chosen.check(found.form, found.stage)
    return chosen


def _tokenizer(processing_class: Any, model: str | nn.Module) -> Any:
    name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", "")
    if processing_class is None:
        if not name:
            raise ValueError("processing_class is missing: give the tokenizer (the model has no name to find it by)")
        processing_class = AutoTokenizer.from_pretrained(name)
    if processing_class.pad_token_id is None:
        if processing_class.eos_token is None:
            raise ValueError("the tokenizer has neither a pad nor an end token: set processing_class.pad_token")
        processing_class.pad_token = processing_class.eos_token
        log.warning("the tokenizer has no pad token: set to its end token %r", processing_class.eos_token)
    return processing_class


def _model(model: str | nn.Module, args: SelfPlayConfig, peft_config: Any) -> nn.Module:
    if isinstance(model, str):
        options: Any = args.model_init_kwargs or {}
        # fp32: in bf16, updates of the usual size leave most weights where they are.
        model = AutoModelForCausalLM.from_pretrained(model, **{"dtype": torch.float32, **options})
    if peft_config is not None:
        from peft import get_peft_model

        set_seed(args.seed)  # adapters begin at random
        model = get_peft_model(model, peft_config)
    return model


def _encoder(tokenizer: Any, model: nn.Module, args: SelfPlayConfig) -> Encoder:
    size, known = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if size > known:
        log.warning(
            "the model's vocabulary of %d is larger than the tokenizer's %d: the ids above must not be sampled",
            size,
            known,
        )
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = [] if end is None else [end] if isinstance(end, int) else list(end)
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    options: Any = args.chat_template_kwargs
    return Encoder(tokenizer, [*own, *ends], options)


def _with_generated(stage: StageData, kind: str) -> StageData:
    """SPAC on pairs alone takes the pairs themselves for its critic term, as its practice allows."""
    if kind != "critic" or stage.generated is not None:
        return stage
    log.warning("no self-generated responses (column completions): the critic term is taken on the pairs themselves")
    return StageData(stage.responses, stage.target, stage.preferred, stage.responses.weights, stage.step)
