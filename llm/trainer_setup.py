"""What a trainer is made of, before it trains: rule and stage, loss, tokenizer, model, encoded data.

Shapes: as in `nashpo.llm.preferences`, N rows with at most K responses each.
"""

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from nashpo.core.rules import Rule
from nashpo.llm.config import SelfPlayConfig
from nashpo.llm.data import Limits, prepare
from nashpo.llm.encoding import Encoder
from nashpo.llm.fit import Layout, Packing, Padding, SharedPrefix
from nashpo.llm.objectives import All, Objective, Pointwise, StageTensors
from nashpo.llm.preferences import PreferenceData
from nashpo.llm.quantized import check_optimizer
from nashpo.llm.responses import StageData
from nashpo.llm.rounding import StochasticRounding
from nashpo.llm.stages import Job, job, objective

log = logging.getLogger(__name__)
LOST = "load the model in float32 and set bf16=true, or keep bfloat16 and set bf16_rounding='stochastic'"
"""How 16-bit weights are trained without losing small updates."""


def check_arguments(model: Any, args: SelfPlayConfig, data_collator: Any, policies: Mapping[str, Any]) -> None:
    """Refuse a collator, an optimizer that is not installed, several GPUs without a launcher, and a policy that is the
    model itself (ValueError)."""
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process: start with `accelerate launch` or `torchrun`, or show"
            " one by CUDA_VISIBLE_DEVICES"
        )
    check_optimizer(str(getattr(args.optim, "value", args.optim)))
    if data_collator is not None:
        raise ValueError("data_collator has no effect here: batches are made from token ids by the trainer")
    for name, policy in policies.items():
        if policy is model:
            raise ValueError(f"{name} is the model itself, which will change: give a copy, or leave it out")


def what_to_train(
    rule: Rule | None, given: Job | None, args: SelfPlayConfig, policies: Collection[str]
) -> tuple[Rule | None, Job]:
    """The rule, if there is one, and its stage.

    Raises
    ------
    ValueError
        If there is not exactly one of a rule, ``args.loss_type`` and a job, or `nashpo.llm.stages.job` refuses it.
    """
    named = args.rule()
    ways = [f"rule={rule}"] if rule is not None else []
    ways += [f"args.loss_type={args.loss_type!r}"] if named is not None else []
    ways += ["a job"] if given is not None else []
    if len(ways) > 1:
        raise ValueError(f"the trainer has {' and '.join(ways)}: leave one out")
    if not ways:
        raise ValueError("no rule: pass rule=DPO(tau=0.1), for instance, or set args.loss_type and args.beta")
    if given is not None:
        for name, value, default in (("stage", args.stage, None), ("iteration", args.iteration, 0)):
            if value != default:
                raise ValueError(f"{name} = {value!r} has no effect beside a job: leave it out")
        return None, given
    if isinstance(rule, type):
        raise ValueError(f"rule is the class {rule.__name__}: pass an instance, with its step size")
    found = rule or named
    assert found is not None
    return found, job(found, args.iteration, args.stage, policies)


def loss_of(rule: Rule | None, found: Job, chosen: Objective | None, args: SelfPlayConfig) -> Objective:
    """The loss that was chosen, or the one of the rule's paper.

    Raises
    ------
    ValueError
        If the loss is not right for the stage, or is chosen twice.
    """
    if chosen is None:
        return objective(rule, found, args.pairs)
    if args.pairs is not None:
        raise ValueError(f"pairs = {args.pairs!r} has no effect beside an objective: give the pairs to the objective")
    chosen.check(found.form, found.stage)
    if chosen.reads_log_importance and [name for name, _ in found.stage.base] != [found.stage.on]:
        raise ValueError(
            f"the estimate of log Z on responses of '{found.stage.on}' needs their weights under the base of stage"
            f" '{found.stage.writes}', which the trainer does not compute: use Pairwise(), or nashpo.llm.fit"
        )
    return chosen


def tokenizer_of(processing_class: Any, model: str | nn.Module, *datasets: Any) -> Any:
    """The tokenizer, with a pad token; None where none was given and all data are encoded."""
    if processing_class is None:
        found = list(each(*datasets))
        if found and all(isinstance(data, PreferenceData) for data in found):
            return None
        name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", "")
        if not name:
            raise ValueError("processing_class is missing: give the tokenizer (the model has no name to find it by)")
        processing_class = AutoTokenizer.from_pretrained(name)
    if processing_class.pad_token_id is None:
        if processing_class.eos_token is None:
            raise ValueError("the tokenizer has neither a pad nor an end token: set processing_class.pad_token")
        processing_class.pad_token = processing_class.eos_token
        log.warning("the tokenizer has no pad token: set to its end token %r", processing_class.eos_token)
    return processing_class


def layout_of(args: SelfPlayConfig, tokenizer: Any) -> Layout:
    """How the trainer lays its batches out; log-probabilities that it is to know must come from the same layout."""
    if not args.padding_free:
        return Padding(getattr(tokenizer, "padding_side", "right") == "left")
    return SharedPrefix() if args.share_prefix else Packing()


def model_of(model: str | nn.Module, args: SelfPlayConfig, peft_config: Any) -> nn.Module:
    """The model, loaded where it is a name, with fresh adapters where they are asked for."""
    if isinstance(model, str):
        options: Any = args.model_init_kwargs or {}
        # fp32: in bf16, updates of the usual size leave most weights where they are.
        model = AutoModelForCausalLM.from_pretrained(model, **{"dtype": torch.float32, **options})
    if peft_config is not None:
        from peft import get_peft_model

        set_seed(args.seed)  # adapters begin at random
        model = get_peft_model(model, peft_config)
    return model


def rounded(optimizer: torch.optim.Optimizer, args: SelfPlayConfig) -> torch.optim.Optimizer:
    """The optimizer, rounding as the arguments say; a warning where small updates of 16-bit weights are lost."""
    if isinstance(optimizer, StochasticRounding):
        return optimizer
    if args.bf16_rounding == "stochastic":
        return StochasticRounding(optimizer, args.seed)
    types = {p.dtype for group in optimizer.param_groups for p in group["params"]}
    for dtype in types & {torch.bfloat16, torch.float16}:
        log.warning(
            "weights are trained in %s at learning rate %g: an update of 5e-7 leaves a weight of 0.02 where it is; %s",
            str(dtype).removeprefix("torch."),
            args.learning_rate,
            LOST,
        )
    return optimizer


def encoder_of(tokenizer: Any, model: nn.Module, args: SelfPlayConfig) -> Encoder:
    """The encoder of rows of text; one without a tokenizer reads token ids only."""
    size = _vocabulary(model)
    if tokenizer is not None and size > len(tokenizer):
        log.warning(
            "the model's vocabulary of %d is larger than the tokenizer's %d: the ids above must not be sampled",
            size,
            len(tokenizer),
        )
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = [] if end is None else [end] if isinstance(end, int) else list(end)
    own = getattr(tokenizer, "eos_token_id", None)
    options: Any = args.chat_template_kwargs
    return Encoder(tokenizer, [*([] if own is None else [own]), *ends], options)


def encoded(rows: Any, encoder: Encoder, model: nn.Module, loss: Objective, found: Job, args: SelfPlayConfig) -> Any:
    """A data set of any form, or a mapping of several, as `PreferenceData`; names of such a mapping are left alone.

    Raises
    ------
    ValueError
        What `nashpo.llm.data.prepare` refuses, columns for a stage of several payoffs, and encoded data of another
        vocabulary or weight, or without what the loss reads.
    """
    if rows is None or isinstance(rows, str):
        return rows
    if isinstance(rows, Mapping):
        return {name: encoded(part, encoder, model, loss, found, args) for name, part in rows.items()}
    vocabulary = _vocabulary(model)
    if isinstance(rows, PreferenceData):
        largest = max(max(scored.ids) for row in rows.responses.sequences for scored in row)
        if largest >= vocabulary:
            raise ValueError(f"token id {largest} of the data is outside the model's vocabulary of {vocabulary}")
        data = rows
    else:
        found.column_step()
        # A loss on single responses learns from a tie too; a pair without a winner teaches a pair loss nothing.
        single = isinstance(loss, Pointwise) and isinstance(loss.pairs, All)
        limits = Limits(
            args.max_length,
            args.max_prompt_length,
            args.truncation,
            args.missing_eos,
            "keep" if single else args.ties,
            args.label_smoothing,
        )
        data = prepare(rows, encoder, limits, args.ignored_columns, vocabulary)
        (log.warning if data.report.dropped else log.info)("%s", data.report)
    _try_loss(loss, stage_of(data, found))
    return data


def with_known(rows: Any, known: Mapping[str, Tensor] | None) -> Any:
    """Encoded data with known log-probabilities; the data as they are without any.

    Raises
    ------
    ValueError
        If rows are not encoded, so that some may yet be left out.
    """
    if known is None:
        return rows
    if not isinstance(rows, PreferenceData):
        raise ValueError("known log-probabilities are of encoded data: give PreferenceData as train_dataset")
    return rows.with_known(known)


def stage_of(data: PreferenceData, found: Job) -> StageData:
    """The data of the job's stage. SPAC on pairs alone takes the pairs themselves for its critic term, as its practice
    allows."""
    stage = data.stage(found.step)
    if found.kind != "critic" or stage.generated is not None:
        return stage
    log.warning("no self-generated responses (column completions): the critic term is taken on the pairs themselves")
    return StageData(stage.responses, stage.target, stage.preferred, stage.responses.weights, stage.step)


def each(*datasets: Any) -> Iterator[Any]:
    """The data sets, those of mappings one by one."""
    for data in datasets:
        if isinstance(data, Mapping):
            yield from each(*data.values())
        elif data is not None:
            yield data


def _vocabulary(model: nn.Module) -> int:
    size: int = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator,union-attr]
    return size


def _try_loss(loss: Objective, stage: StageData) -> None:
    """The loss of the first row, so that what it lacks is told before the first pass over the data."""
    preferred = None if stage.preferred is None else stage.preferred[:1]
    generated = None if stage.generated is None else stage.generated[:1]
    target, weights = stage.target[:1], stage.responses.weights[:1]
    loss.losses(StageTensors(torch.zeros_like(target), target, weights, preferred, stage.step, generated=generated))
