"""The trainer's configuration: transformers' training arguments, and the fields that preference data and rules need.

Names are TRL's where TRL has the thing. Unlike TRL, precision and activation checkpointing keep transformers' defaults
(off) and the loss is on sums of token log-probabilities, as the theorems are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import TrainingArguments

from nashpo.core.rules import DPO, IPO, SPPO, Rule

RULES_BY_LOSS_TYPE: Mapping[str, Any] = {
    "sigmoid": lambda beta: DPO(tau=beta),
    "ipo": lambda beta: IPO(tau=beta),
    "sppo_hard": lambda beta: SPPO(eta=1 / beta),
}
"""TRL's ``loss_type`` with its ``beta``, as rules. TRL's IPO is the one with ``length_normalize=True``; its SPPO loss
is twice ours, which is the mean over the pair as in SPPO's official code."""

_CHOICES = {
    "truncation": ("drop", "left", "error"),
    "missing_eos": ("keep", "drop"),
    "ties": ("skip", "keep"),
    "pairs": (None, "all", "iid", "best_worst"),
    "loss_type": (None, *RULES_BY_LOSS_TYPE),
    "bf16_rounding": ("nearest", "stochastic"),
}


def checkpointing(enabled: bool = True, **kwargs: Any) -> dict[str, Any]:
    """Activation checkpointing under the name that the installed transformers has for it.

    Parameters
    ----------
    enabled : bool
    kwargs
        For the checkpointing function, for instance ``use_reentrant=False``.

    Examples
    --------
    ``SelfPlayConfig(output_dir="out", **checkpointing())``
    """
    known = {f.name for f in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: enabled, **({f"{name}_kwargs": kwargs} if kwargs else {})}


@dataclass
class SelfPlayConfig(TrainingArguments):  # type: ignore[misc]  # transformers is not typed here
    """Training arguments of `nashpo.llm.trainer.SelfPlayTrainer`.

    Parameters
    ----------
    loss_type : str, optional
        ``sigmoid``, ``ipo`` or ``sppo_hard`` with ``beta``, for configurations written for TRL; otherwise give the
        trainer a ``rule``.
    beta : float, optional
        The rule's inverse step 1/η (DPO and IPO: τ). With a ``rule`` it only scales the reported rewards; default is
        the rule's own.
    iteration : int
        t >= 0, at which a rule's schedules are evaluated.
    stage : str, optional
        Name of the policy that the trained stage writes; needed where a rule trains several (ONPO, EGPO).
    length_normalize : bool
        Divide each log-ratio by its number of scored tokens. Off is the theorems' form.
    label_smoothing : float
        In [0, ½): a pair without ``chosen_probs`` counts as won with probability 1 − label_smoothing.
    pairs : str, optional
        Which of K responses enter the loss: ``all``, ``iid`` or ``best_worst``. Default ``best_worst`` for SPPO, as in
        its paper, otherwise ``all``.
    max_length, max_prompt_length : int, optional
        Limits in tokens of prompt and response together, and of prompts.
    truncation : str
        What happens to what is longer: ``drop`` the row, cut the prompt on the ``left``, or ``error``.
    missing_eos : str
        ``keep`` or ``drop`` rows with a response, given as token ids, that has no end token. Text is taken as finished.
    ties : str
        ``skip`` (counted) or ``keep`` rows on which no response is better than another.
    chat_template_kwargs : dict, optional
        For the tokenizer's chat template.
    ignored_columns : list of str
        Columns of the data that are known to mean nothing here; any other unknown column is an error.
    precompute_ref_log_probs : bool
        The reference's log-probabilities are computed once before training (the default) or in every step. Those of
        the policy that training starts from are always computed before.
    precompute_ref_batch_size : int, optional
        Rows per batch in that pass; default the evaluation batch size.
    disable_dropout : bool
        Set every dropout to 0, so that log-probabilities can be compared.
    padding_free : bool
        Pack a batch into one row, with attention per sequence.
    share_prefix : bool
        In such a row the responses to one prompt share its tokens where this saves some
        (`nashpo.llm.fit.SharedPrefix`); without effect on padded batches. The loss is the same up to rounding.
    model_init_kwargs : dict, optional
        For ``from_pretrained``, where the model is given by name.
    bf16_rounding : str
        How updated weights of a bfloat16 model are rounded: to the ``nearest``, which leaves most of them where they
        are at the papers' learning rates, or ``stochastic`` (`nashpo.llm.rounding`). Weights in float32, with
        ``bf16`` for the arithmetic, need neither and 2 more bytes each, besides 2 of their gradients.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "chat_template_kwargs", "model_init_kwargs"]

    learning_rate: float = 1e-6
    logging_steps: float = 10
    remove_unused_columns: bool | None = False
    loss_type: str | None = None
    beta: float | None = None
    iteration: int = 0
    stage: str | None = None
    length_normalize: bool = False
    label_smoothing: float = 0.0
    pairs: str | None = None
    max_length: int | None = 1024
    max_prompt_length: int | None = None
    truncation: str = "drop"
    missing_eos: str = "keep"
    ties: str = "skip"
    chat_template_kwargs: dict[str, Any] | str | None = None
    ignored_columns: list[str] = field(default_factory=list)
    precompute_ref_log_probs: bool = True
    precompute_ref_batch_size: int | None = None
    disable_dropout: bool = True
    padding_free: bool = True
    share_prefix: bool = True
    model_init_kwargs: dict[str, Any] | str | None = None
    bf16_rounding: str = "nearest"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                shown = ", ".join(repr(choice) for choice in choices)
                raise ValueError(f"{name} = {getattr(self, name)!r} must be one of {shown}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing = {self.label_smoothing} must be in [0, 0.5)")
        if self.beta is not None and not self.beta > 0:
            raise ValueError(f"beta = {self.beta} must be > 0")
        if self.loss_type is not None and self.beta is None:
            raise ValueError(f"loss_type = {self.loss_type!r} needs beta; or leave it out and give the trainer a rule")
        for name, least in (("max_length", 1), ("max_prompt_length", 1), ("iteration", 0)):
            number = getattr(self, name)
            if number is not None and number < least:
                raise ValueError(f"{name} = {number} must be at least {least}")
        super().__post_init__()

    def rule(self) -> Rule | None:
        """The rule that ``loss_type`` and ``beta`` name, None where no ``loss_type`` is given."""
        return None if self.loss_type is None else RULES_BY_LOSS_TYPE[self.loss_type](self.beta)
