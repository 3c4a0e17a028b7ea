"""What a plan costs in disk and memory, and what should be looked at before a long run. Sizes are in bytes."""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nashpo.llm.hardware import needed
from nashpo.llm.recipe import conversations, footprint
from nashpo.llm.recipe.footprint import Size
from nashpo.llm.recipe.planned import Draft
from nashpo.llm.recipe.schema import Recipe
from nashpo.llm.recipe.timing import fit_of, responses_read
from nashpo.llm.recipe.training import shared
from nashpo.llm.scale_memory import training_memory

_ENGINES_PACKAGES = {"VLLMConfig": "vllm"}


def disk(draft: Draft, totals: Mapping[str, int]) -> dict[str, int]:
    """Bytes on disk by what takes them, at their peak."""
    recipe, size = draft.recipe, draft.size
    lasting = [sum(fit.lasting for fit in todo.fits) for todo in draft.work]
    kept = lasting if recipe.keep_last is None else lasting[-recipe.keep_last :]
    most = max((phase.counts["steps"] for phase in draft.phases if "steps" in phase.counts), default=0)
    saves = _saves(recipe.training, most)
    response_bytes = 12  # of one token in JSON: four letters of text, an id and a comma
    return {
        f"iterates ({sum(kept)} policies)": size.saved * sum(kept),
        f"checkpoints of the stage in training ({saves})": saves * (size.saved + _states(recipe, size)),
        "samples and judgements, at most": response_bytes * draft.stored + 200 * totals["questions"],
    }


def _saves(training: Mapping[str, Any], steps: int) -> int:
    if str(training.get("save_strategy", "steps")) == "no" or not steps:
        return 0
    every = float(training.get("save_steps", 500))
    every = every * steps if every < 1 else every
    epochs = math.ceil(float(training.get("num_train_epochs", 3.0)))
    made = epochs if str(training.get("save_strategy", "steps")) == "epoch" else max(1, int(steps // max(1.0, every)))
    limit = training.get("save_total_limit")
    return made if limit is None else min(made, int(limit))


def _optimizer(recipe: Recipe) -> str:
    return str(recipe.training.get("optim", "adamw_torch_fused"))


def _states(recipe: Recipe, size: Size) -> int:
    """Bytes of the optimizer's states, which stochastic rounding keeps in float32."""
    rounded = recipe.training.get("bf16_rounding") == "stochastic"
    return size.optimizer(_optimizer(recipe), footprint.WIDTH["float32"] if rounded else None)


def micro_batch(recipe: Recipe, mean: float, processes: int = 1) -> int:
    """Tokens of one micro-batch at most: prompts of mean length with every response that goes through the model.

    Parameters
    ----------
    recipe : Recipe
    mean : float
        Tokens of a prompt.
    processes : int
        That share an update.
    """
    training = recipe.training
    longest = training.get("max_length", 1024) or math.inf
    prompts = shared(training, processes)["per_device_train_batch_size"]
    count = responses_read(recipe)
    if recipe.sampling is None:
        return int(prompts * count * min(longest, 2 * mean))
    response = min(longest - mean, conversations.longest(recipe))
    if conversations.tree(recipe).rows > 1:  # the last answer, behind all that was said before
        answer = min(response, recipe.sampling.max_new_tokens)
        mean, response = mean + response - answer, answer
    once = training.get("share_prefix", True) and training.get("padding_free", True)
    return int(prompts * ((1 if once else count) * mean + count * response))


def memory(draft: Draft) -> dict[str, int]:
    """Bytes of memory by what takes them, estimated."""
    recipe, size = draft.recipe, draft.size
    training = recipe.training
    checkpointing = bool(training.get("gradient_checkpointing") or training.get("activation_checkpointing"))
    tokens = micro_batch(recipe, draft.mean_length)
    mixed = bool(training.get("bf16") or training.get("fp16"))
    parts = {
        "weights": size.weights,
        "gradients": size.trained * size.width,
        f"optimizer states ({_optimizer(recipe)})": _states(recipe, size),
    }
    if size.shape is None:
        parts[f"activations of {tokens:,} tokens, roughly"] = size.activations(tokens, checkpointing, mixed)
    else:
        whole = training_memory(size.shape, fit_of(recipe, size, 1, tokens))
        parts["weights in bf16 during a forward"] = int(whole["weights in bf16"])
        wide = 1 if size.width == 2 or mixed else 2
        parts[f"activations of {tokens:,} tokens, at most"] = wide * int(whole["activations"])
        parts["output head"] = int(whole["output head"])
    found = {f"training: {name}": number for name, number in parts.items() if number}
    found["training in all, on one device"] = sum(parts.values())
    if recipe.sampling is not None and (batch := getattr(recipe.sampling, "batch_size", None)) is not None:
        each = draft.mean_length + conversations.longest(recipe)
        mixed_policies = max((name.count(",") + 1 for todo in draft.work for name in todo.samples()), default=1)
        found["sampling: weights"] = size.weights * mixed_policies
        found[f"sampling: keys and values of {batch} sequences"] = int(batch * each * size.cached * mixed_policies)
    return found


def hardware(recipe: Recipe, size: Size, mean: float) -> str:
    """The fewest GPUs of each kind that the training fits by `memory`, everything sharded where there are several.

    Empty for a model whose shape is not known.

    Parameters
    ----------
    recipe : Recipe
    size : Size
    mean : float
        Tokens of a prompt.
    """
    if size.shape is None:
        return ""
    update = recipe.training.get("per_device_train_batch_size", 8) * recipe.training.get(
        "gradient_accumulation_steps", 1
    )
    by = {}
    for gpus in (1, 2, 4, 8):
        if update % gpus == 0:
            fit = fit_of(recipe, size, 1, micro_batch(recipe, mean, gpus))
            by[gpus] = sum(training_memory(size.shape, fit, gpus).values())
    return " or ".join(needed(by)) or "more than 8 of the largest GPUs known here"


def warnings(recipe: Recipe, size: Size, parts: Sequence[Sequence[Any]]) -> list[str]:
    """What should be looked at before a long run."""
    found: list[str] = []
    warn = found.append
    training = recipe.training
    rate = float(training.get("learning_rate", 1e-6))
    rounded = training.get("bf16_rounding") == "stochastic"
    if size.width == 2 and recipe.model.adapter is None and not rounded:
        warn(
            f"model.dtype = {recipe.model.dtype} at learning_rate = {rate:g}: most updates round to nothing in 16 bits;"
            " use model.dtype=float32 with training.bf16=true, or bfloat16 with training.bf16_rounding=stochastic"
        )
    longest = training.get("max_length", 1024)
    if recipe.sampling is not None and longest is not None and recipe.sampling.max_new_tokens > longest:
        warn(
            f"sampling.max_new_tokens = {recipe.sampling.max_new_tokens} is above training.max_length = {longest}:"
            " responses that do not fit are not learned from"
        )
    package = _ENGINES_PACKAGES.get(type(recipe.sampling).__name__)
    if package is not None and importlib.util.find_spec(package) is None:
        warn(f"the package {package} is not installed here; sampling needs it")
    if training.get("bf16") and not _has_bf16(training):
        warn("training.bf16 is not supported by this machine: train on another, or set training.use_cpu=true")
    each = training.get("per_device_train_batch_size", 8) * training.get("gradient_accumulation_steps", 1)
    fewest = min(map(len, parts))
    if each > fewest:
        warn(f"an update takes {each} prompts and an iteration has {fewest}: each epoch is a single update")
    return found


def _has_bf16(training: Mapping[str, Any]) -> bool:
    from transformers.utils import is_torch_bf16_gpu_available

    return bool(training.get("use_cpu")) or bool(is_torch_bf16_gpu_available())
