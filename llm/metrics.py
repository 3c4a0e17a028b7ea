"""Means of training metrics: over rows, over micro-batches, over processes; and what a stage's batch reports.

Names are TRL's (``rewards/*``, ``logps/*``), and ``theory/*`` for what the theorems speak of. Shapes: B rows with K
responses each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nashpo.llm.objectives import StageTensors
from nashpo.llm.stages import REFERENCE, Job


class Means:
    """Weighted means that are summed up batch by batch. Every process must add the same names."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor], weight: Tensor) -> None:
        """Add (B,) values of each name under weights (B,)."""
        for name, value in values.items():
            value = torch.where(weight > 0, value, torch.zeros_like(value))
            sums = torch.stack([(weight * value).sum(), weight.sum()]).double().detach()
            self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    def collect(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means over everything added, on all processes; then start again.

        Parameters
        ----------
        reduce : callable
            Sums a tensor over the processes.
        """
        if not self._sums:
            return {}
        names = list(self._sums)
        sums = reduce(torch.stack([self._sums[name] for name in names]))
        self._sums.clear()
        return {name: (total / weight).item() for name, (total, weight) in zip(names, sums) if weight > 0}


@dataclass(frozen=True)
class Batch:
    """What the metrics of some rows are made of.

    Attributes
    ----------
    stage : StageTensors
    logprobs : (B, K)
        Of the policy that is trained.
    known : mapping name -> (B, K)
        Log-probabilities of other policies: ``reference``, the job's ``start`` and those of its base.
    best, worst : (B,) int
        Places of the chosen and the rejected response.
    """

    stage: StageTensors
    logprobs: Tensor
    known: Mapping[str, Tensor]
    best: Tensor
    worst: Tensor


_LABELS = ("reward", "critic")
"""Kinds of payoffs whose stages are fitted to labels and have no targets."""


def describe(batch: Batch, loss: Tensor, beta: float, job: Job, samples: Tensor) -> dict[str, Tensor]:
    """Metrics of each row, (B,).

    ``rewards/*`` are β times the log-ratio to the stage's base. ``theory/kl_reference`` and ``theory/kl_last_iterate``
    are Σ_y w_y log π_i(y)/π_θ(y) over the stage's responses: an unbiased estimate of KL(π_i ‖ π_θ) where the responses
    were drawn from π_i, and a log-ratio on the data otherwise. Where the loss reads the best and the worst alone, the
    stage's responses are these two (`nashpo.llm.preferences.PreparedData.extremes`): data, and no draws. Where payoffs
    have values and are no mere labels, ``theory/regression_residual`` is Σ_y w_y (log-ratio − target)² and
    ``theory/regression_residual_centred`` its part that no log Z can explain. Of a stage with one payoff of weight η,
    ``theory/effective_step`` is η, or η (K − 1)/K under self-comparison; if it is a win rate,
    ``theory/loss_in_payoffs`` is the loss over η² and ``theory/win_rate_*`` are those of chosen and rejected.

    Parameters
    ----------
    batch : Batch
    loss : (B,)
    beta : float
        The factor of the rewards.
    job : Job
        What is trained.
    samples : (B,) int
        K where win rates include the self-comparison, otherwise 0.
    """
    stage = batch.stage

    def pick(values: Tensor, places: Tensor) -> Tensor:
        return values.gather(-1, places[:, None])[:, 0]

    chosen, rejected = beta * pick(stage.log_ratio, batch.best), beta * pick(stage.log_ratio, batch.worst)
    result = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": (chosen > rejected).double(),
        "rewards/margins": chosen - rejected,
        "logps/chosen": pick(batch.logprobs, batch.best),
        "logps/rejected": pick(batch.logprobs, batch.worst),
    }
    for name, policy in (("theory/kl_reference", REFERENCE), ("theory/kl_last_iterate", job.start)):
        if policy in batch.known:
            result[name] = (stage.weights * (batch.known[policy] - batch.logprobs)).sum(-1)
    step = job.step
    if step is not None:
        result["theory/effective_step"] = torch.where(
            samples > 0, step * (samples - 1) / samples.clamp_min(1), torch.full_like(chosen, step)
        )
    if all(payoff.kind not in _LABELS for _, payoff in job.payoffs):
        residual = stage.log_ratio - stage.target
        mean = (stage.weights * residual).sum(-1, keepdim=True)
        result |= {
            "theory/regression_residual": (stage.weights * residual**2).sum(-1),
            "theory/regression_residual_centred": (stage.weights * (residual - mean) ** 2).sum(-1),
        }
    if job.kind == "win" and step is not None:
        result |= {
            "theory/loss_in_payoffs": loss / step**2,
            "theory/win_rate_chosen": pick(stage.target, batch.best) / step + 0.5,
            "theory/win_rate_rejected": pick(stage.target, batch.worst) / step + 0.5,
        }
    return {name: value.detach() for name, value in result.items()}
