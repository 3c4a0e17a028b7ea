"""Models whose parameters are shared out over processes: that one gets what was asked for, and their whole weights.

accelerate makes FSDP and DeepSpeed of a model; on the CPU, and for a single process, it makes data parallelism of it
without a word.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

KINDS = {"FSDP": ("fsdp", "ACCELERATE_USE_FSDP"), "DEEPSPEED": ("deepspeed", "ACCELERATE_USE_DEEPSPEED")}
"""accelerate's kinds of sharding: the training argument and the launcher's variable that ask for each."""


def check_sharding(args: Any, accelerator: Any) -> None:
    """Refuse to train otherwise than was asked for.

    Parameters
    ----------
    args : TrainingArguments
    accelerator : accelerate.Accelerator

    Raises
    ------
    ValueError
        If sharding was asked for, by an argument or by the launcher's configuration, and is not what accelerate does;
        if it is FSDP's first version, or FSDP beside a rounding that it undoes.
    """
    got = _kind(accelerator)
    for kind, (name, variable) in KINDS.items():
        by_launcher = os.environ.get(variable, "").lower() == "true"
        asked = f"training.{name}" if getattr(args, name, None) else variable if by_launcher else None
        if asked is not None and got != kind:
            where = f"{accelerator.num_processes} process(es) on {accelerator.device.type}"
            raise ValueError(
                f"{asked} asks for {kind}, and accelerate gives {_READABLE.get(got, got)} on {where}: start several"
                " processes on GPUs by `accelerate launch`, or leave it out"
            )
    if got != "FSDP":
        return
    if accelerator.state.fsdp_plugin.fsdp_version == 1:
        raise ValueError("FSDP's first version is not known here: set fsdp_version: 2 in the launcher's configuration")
    if getattr(args, "bf16_rounding", "nearest") == "stochastic" and accelerator.mixed_precision != "no":
        raise ValueError(
            "training.bf16_rounding has no effect beside FSDP with training.bf16, for which accelerate makes weights"
            " float32: leave one of them out"
        )


def keep_numbers(accelerator: Any) -> None:
    """Let FSDP gather parameters as they are, so that autocast computes as it does on one process.

    By default accelerate has them gathered in 16 bits, norms and embeddings too: log-probabilities would differ from
    those that were computed for the same policy by whole models, with which a stage compares.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and _kind(accelerator) == "FSDP":
        from torch.distributed.fsdp import MixedPrecisionPolicy

        plugin.mixed_precision_policy = MixedPrecisionPolicy()


def asked_for(training: Mapping[str, Any]) -> str | None:
    """What asks for sharding, by name: a field of a recipe's training, or the launcher's variable; None if nothing
    does."""
    for name, variable in KINDS.values():
        if training.get(name):
            return f"training.{name}"
        if os.environ.get(variable, "").lower() == "true":
            return variable
    return None


def check_asked(training: Mapping[str, Any], processes: int, device: str) -> None:
    """Refuse before any work what `check_sharding` would refuse when the training begins.

    Parameters
    ----------
    training : mapping
        Of a recipe.
    processes : int
    device : str
        The kind, as ``cpu`` or ``cuda``.

    Raises
    ------
    ValueError
    """
    asked = asked_for(training)
    if asked is not None and "deepspeed" in asked.lower() and (training.get("bf16") or training.get("fp16")):
        raise ValueError(
            f"{asked} with training.bf16 rounds the weights to 16 bits, and a stage compares with log-probabilities of"
            " float32 ones: share them out by FSDP (the configuration fsdp2), or take training.tf32=true for bf16"
        )
    if asked is not None and (processes == 1 or device == "cpu"):
        raise ValueError(
            f"{asked} asks for models that are shared out over GPUs, and there are {processes} process(es) on {device}:"
            " start several on GPUs by `accelerate launch`, or leave it out"
        )


def _kind(accelerator: Any) -> str:
    """accelerate's word for what it does."""
    return str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))


_READABLE = {"NO": "no distribution", "MULTI_CPU": "data parallelism", "MULTI_GPU": "data parallelism"}


@contextmanager
def whole_weights() -> Iterator[None]:
    """A model that is loaded here has all of its weights: where a DeepSpeed configuration is in force, transformers
    would share them out at once, and only a trainer's engine can compute with such a model."""
    from transformers.integrations import deepspeed

    kept = getattr(deepspeed, "_hf_deepspeed_config_weak_ref", None)
    found = None if kept is None else kept()
    if found is None:
        yield
        return
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(found)


def whole_state(trainer: Any, keep: bool) -> dict[str, Tensor] | None:
    """The weights of a trainer's model, gathered from the processes; all of them must call this.

    Parameters
    ----------
    trainer : transformers.Trainer
    keep : bool
        Whether this process wants them; the others keep nothing.

    Returns
    -------
    dict or None
        For ``save_pretrained(folder, state_dict=...)``, on the CPU; None where each process has the whole model.
    """
    if _kind(trainer.accelerator) == "DEEPSPEED":
        found: dict[str, Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        return found if keep else {}
    return gathered(trainer.model, keep)


def gathered(model: nn.Module, keep: bool) -> dict[str, Tensor] | None:
    """`whole_state` of a model under ``torch.distributed.fsdp.fully_shard``; one parameter at a time."""
    if not any(is_sharded(p) for p in model.parameters()):
        return None
    found = {}
    for name, value in model.state_dict().items():
        whole = value.full_tensor() if is_sharded(value) else value
        if keep:
            found[name] = whole.detach().cpu()
    return found


def is_sharded(values: Any) -> bool:
    """Whether a tensor is a DTensor, of which this process holds a part."""
    return hasattr(values, "full_tensor")
