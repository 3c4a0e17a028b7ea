"""The ``training`` of a recipe: fields of `nashpo.llm.config.SelfPlayConfig`, checked before any model is loaded.

Loading this imports nothing heavy; `check` imports transformers for the names and types of the fields.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from nashpo.core.cli import suggestion
from nashpo.llm.recipe.parsing import joined, read

ELSEWHERE: Mapping[str, str] = {
    "output_dir": "it is the recipe's own output_dir",
    "seed": "it is the recipe's own seed",
    "data_seed": "it follows from the recipe's seed",
    "iteration": "the loop sets it",
    "stage": "the loop sets it",
    "resume_from_checkpoint": "a run resumes by itself",
    "loss_type": "say it as rule",
    "pairs": "say it as objective.pairs",
    "chat_template_kwargs": "say it as model.chat_template_kwargs",
    "model_init_kwargs": "say it under model",
}
"""Fields that a recipe says in another place."""

GONE: Mapping[str, str] = {
    "warmup_ratio": "transformers 5 has warmup_steps for both: below 1 it is a share of all steps",
    "evaluation_strategy": "it is eval_strategy in transformers 5",
    "no_cuda": "it is use_cpu in transformers 5",
}
"""Names of older transformers that are still written."""

_CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")


def check(training: Mapping[str, Any], place: str = "training") -> dict[str, Any]:
    """The mapping with its values in the types of the fields.

    Parameters
    ----------
    training : mapping
    place : str
        For messages.

    Raises
    ------
    ValueError
        An unknown field (with the nearest name), one that is said elsewhere, or a value of another type.
    """
    from nashpo.llm.config import SelfPlayConfig

    hints = get_type_hints(SelfPlayConfig)
    known = {f.name for f in fields(SelfPlayConfig)} | set(_CHECKPOINTING)
    known |= {f"{name}_kwargs" for name in _CHECKPOINTING}
    found = {}
    for key, value in training.items():
        at = joined(place, key)
        if key in ELSEWHERE:
            raise ValueError(f"{at} is not set here: {ELSEWHERE[key]}")
        if key in GONE and key not in known:
            raise ValueError(f"unknown key {at}: {GONE[key]}")
        if key not in known:
            raise ValueError(f"unknown key {at}; {suggestion(key, sorted(known - set(ELSEWHERE)), 'known')}")
        found[key] = read(hints.get(_spelled(key, hints), Any), value, at)
    json.dumps(found)  # what is not JSON could not be stored
    return found


def _spelled(key: str, known: Collection[str]) -> str:
    """Activation checkpointing under the name that the installed transformers prefers; other keys as they are."""
    old, new = _CHECKPOINTING
    return key.replace(old, new) if new in known else key.replace(new, old)


def arguments(training: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    """Keyword arguments for `nashpo.llm.config.SelfPlayConfig`, in the installed transformers' spelling.

    Parameters
    ----------
    training : mapping
        Of a recipe.
    own
        What the loop sets: ``output_dir``, ``seed``, ``iteration``, ``stage``, …
    """
    from nashpo.llm.config import SelfPlayConfig

    known = {f.name for f in fields(SelfPlayConfig)}
    return {**{_spelled(key, known): value for key, value in training.items()}, **own}


def shared(training: Mapping[str, Any], processes: int, place: str = "training") -> dict[str, int]:
    """What each of several processes does of an update, which has the same prompts on any number of them.

    A recipe's update has ``per_device_train_batch_size`` · ``gradient_accumulation_steps`` prompts in all. They are
    shared out equally; a process works on at most ``per_device_train_batch_size`` of its share at one time.

    Parameters
    ----------
    training : mapping
        Of a recipe; missing keys are transformers' defaults.
    processes : int
    place : str
        For messages.

    Returns
    -------
    dict
        ``per_device_train_batch_size`` and ``gradient_accumulation_steps`` of one process.

    Raises
    ------
    ValueError
        If the prompts cannot be shared equally.
    """
    most = training.get("per_device_train_batch_size", 8)
    update = most * training.get("gradient_accumulation_steps", 1)
    if update % processes:
        raise ValueError(
            f"{place}: an update of {update} prompts (per_device_train_batch_size times gradient_accumulation_steps)"
            f" cannot be shared out equally to {processes} processes: make it a multiple of {processes}"
        )
    share = update // processes
    micro = max(size for size in range(1, min(most, share) + 1) if share % size == 0)
    return {"per_device_train_batch_size": micro, "gradient_accumulation_steps": share // micro}
