"""Log-probabilities of the policies that a stage is compared with: known from before, or computed once from lent ones.

Shapes: N rows with at most K responses each; log-probabilities (N, K) float64 in nats, 0 where a response is missing.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nashpo.llm.fit import Layout, policy_logprobs
from nashpo.llm.preferences import PreferenceData
from nashpo.llm.responses import Responses
from nashpo.llm.stages import REFERENCE, Job

Lender = Callable[[], AbstractContextManager[nn.Module]]
"""Puts a policy at one's disposal for the time of a ``with``."""


def stage_logprobs(
    model: nn.Module,
    responses: Responses,
    layout: Layout,
    batch_size: int | None = None,
    autocast: AbstractContextManager[object] | None = None,
) -> Tensor:
    """log π of every response, by the very pass of `nashpo.llm.trainer.SelfPlayTrainer`.

    A process of its own gets the trainer's numbers from the same weights, under the same layout, batch size and
    autocast: what is on one batch is rounded together.

    Parameters
    ----------
    model : nn.Module
        Dropout is off here; train or eval mode is left as found.
    responses : Responses
        N rows.
    layout : Layout
        The trainer's is `nashpo.llm.trainer_setup.layout_of` its arguments and tokenizer: ``SharedPrefix()``,
        ``Packing()`` under ``share_prefix=False``, ``Padding(left)`` under ``padding_free=False``.
    batch_size : int, optional
        Rows per batch, all by default. The trainer's is ``precompute_ref_batch_size``, by default
        ``per_device_eval_batch_size``.
    autocast : context manager, optional
        The trainer's is ``torch.autocast(device, torch.bfloat16)`` under ``bf16=True``; none by default.

    Returns
    -------
    (N, K) float64
        On the CPU.
    """
    with nullcontext() if autocast is None else autocast:
        return policy_logprobs(model, responses, layout, batch_size).cpu()


def shared_logprobs(
    accelerator: Any, model: nn.Module, responses: Responses, layout: Layout, batch_size: int
) -> Tensor:
    """`stage_logprobs`, each process of an accelerator scoring its share of the rows."""
    world, rank = accelerator.num_processes, accelerator.process_index
    mine = list(range(rank, len(responses), world))
    result = torch.zeros_like(responses.weights)
    if mine:
        part = Responses.drawn([responses.sequences[b] for b in mine])
        # accelerate puts autocast into the forward of the model that it prepares, and of no other.
        found = stage_logprobs(model, part, layout, batch_size, accelerator.autocast())
        result[mine, : found.shape[1]] = found
    return result if world == 1 else accelerator.reduce(result.to(accelerator.device), "sum").cpu()


def lenders(models: Mapping[str, nn.Module], device: torch.device | None) -> dict[str, Lender]:
    """Models that are there all the time and are not trained, moved to a device if one is named."""
    for policy in models.values():
        policy.requires_grad_(False)
        policy.eval()
        if device is not None:
            policy.to(device)
    return {name: partial(nullcontext, policy) for name, policy in models.items()}


@contextmanager
def without_adapters(model: nn.Module, unwrap: Callable[[nn.Module], Any]) -> Iterator[nn.Module]:
    """A model with its adapters off."""
    with unwrap(model).disable_adapter():
        yield model


@dataclass(frozen=True)
class Compared:
    """The policies of a job, and how each is got at.

    Attributes
    ----------
    job : Job
    lent : mapping policy -> Lender
        Of policies other than the one that training begins from, which is gone once it has begun.
    implied : bool
        Whether a reference that is neither lent nor known is the policy that training begins from.
    in_step : bool
        Whether the reference's log-probabilities are computed in every step.
    """

    job: Job
    lent: Mapping[str, Lender]
    implied: bool
    in_step: bool

    def base(self, data: PreferenceData) -> list[tuple[float, str]]:
        """The job's base, one term per policy, where an implied reference is the start."""
        sums: dict[str, float] = {}
        for a, name in self.job.base:
            start = name == REFERENCE and self.implied and name not in self.lent and name not in data.known
            name = self.job.start if start else name
            sums[name] = sums.get(name, 0.0) + a
        return [(a, name) for name, a in sums.items()]

    def needed(self, data: PreferenceData) -> list[str]:
        """The policies whose log-probabilities are held before training, those for metrics included."""
        names = [name for _, name in self.base(data)]
        if REFERENCE in data.known or (REFERENCE in self.lent and not data.known):
            names.append(REFERENCE)
        if data.known or not self.implied or REFERENCE not in self.lent:
            names.append(self.job.start)
        known = {*data.known, self.job.start}
        return [name for name in dict.fromkeys(names) if name in known or not (self.in_step and name == REFERENCE)]

    def logprobs(
        self, data: PreferenceData, start: nn.Module | None, score: Callable[[nn.Module, Responses], Tensor]
    ) -> dict[str, Tensor]:
        """Log-probabilities of all `needed` policies, (N, K) each.

        Parameters
        ----------
        data : PreferenceData
        start : nn.Module, optional
            The model, while it is the policy that training begins from.
        score : callable
            The pass over a model.

        Raises
        ------
        ValueError
            If a policy is not to be had, or what is known of it is not (N, K) finite numbers.
        """
        names = self.needed(data)
        for name in names:  # before the first pass
            if name not in data.known and name not in self.lent and name != self.job.start:
                raise ValueError(self._missing(name, data))
        found: dict[str, Tensor] = {}
        for name in names:
            if name in data.known:
                found[name] = _checked(name, data)
            elif name == self.job.start and start is not None:
                found[name] = score(start, data.responses)
            elif name in self.lent:
                with self.lent[name]() as policy:
                    found[name] = score(policy, data.responses)
            else:
                raise ValueError(
                    "the policy that training started from has changed: give this data set when the trainer is made"
                )
        if self.implied and REFERENCE not in found and REFERENCE not in self.lent:
            found[REFERENCE] = found[self.job.start]
        return found

    def _missing(self, name: str, data: PreferenceData) -> str:
        there = ", ".join(dict.fromkeys([*data.known, *self.lent, self.job.start]))
        return (
            f"stage '{self.job.stage.writes}' has the base policy '{name}', of which there is neither a model nor known"
            f" log-probabilities (there are: {there}): give known={{'{name}': …}} or policies={{'{name}': model}}"
        )


def _checked(name: str, data: PreferenceData) -> Tensor:
    values = data.known[name]
    shape = tuple(data.responses.weights.shape)
    if tuple(values.shape) != shape:
        raise ValueError(f"known['{name}'] is {tuple(values.shape)} for responses {shape}: give (N, K)")
    values = values.detach().cpu().double()
    if not bool(values.isfinite().all()):
        row = int((~values.isfinite()).any(-1).nonzero()[0])
        raise ValueError(f"known['{name}'] is not finite on row {data.responses.names[row]}: {values[row].tolist()}")
    return values
