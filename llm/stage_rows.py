"""A data set as the stage that is trained sees it, and the batches that losses and metrics are made of.

Shapes: N rows with at most K responses each, of which a batch holds B; log-probabilities (N, K) or (B, K) in nats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nashpo.llm.metrics import Batch
from nashpo.llm.objectives import StageTensors
from nashpo.llm.preferences import PreferenceData
from nashpo.llm.responses import StageData


@dataclass(frozen=True)
class StageRows:
    """All that is known of a data set before training.

    Attributes
    ----------
    stage : StageData
        Of the job that is trained.
    base : sequence of (a, policy)
        Each policy once.
    known : mapping policy -> (N, K)
        Log-probabilities of the policies that are compared with.
    """

    stage: StageData
    base: Sequence[tuple[float, str]]
    known: Mapping[str, Tensor]

    def batch(
        self,
        data: PreferenceData,
        rows: Sequence[int],
        logprobs: Tensor,
        in_step: Mapping[str, Tensor],
        length_normalize: bool,
    ) -> Batch:
        """Some rows, on the device of their log-probabilities.

        Parameters
        ----------
        data : PreferenceData
            That this is known of.
        rows : sequence of B int
        logprobs : (B, K) float64
            Of the policy that is trained, differentiable.
        in_step : mapping policy -> (B, K)
            Log-probabilities of these rows that were not computed before.
        length_normalize : bool
            Divide each log-ratio by its number of scored tokens.
        """
        places, device = list(rows), logprobs.device

        def take(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[places].to(device)

        def taken(values: Tensor) -> Tensor:
            return values[places].to(device)

        known = {**{name: taken(values) for name, values in self.known.items()}, **in_step}
        # A difference in float64: a sequence's log-probability may be hundreds of nats, and what is left of it small.
        ratio = logprobs - sum(a * known[name] for a, name in self.base)
        if length_normalize:
            lengths = torch.tensor(data.lengths(places), dtype=torch.float64, device=device)
            ratio = ratio / data.responses.grid(lengths, places).clamp_min(1)
        stage = self.stage
        tensors = StageTensors(
            ratio,
            taken(stage.target),
            taken(stage.responses.weights),
            take(stage.preferred),
            stage.step,
            generated=take(stage.generated),
        )
        return Batch(tensors, logprobs.detach(), known, taken(data.best), taken(data.worst))


def collate(places: Sequence[int]) -> dict[str, Tensor]:
    """A batch of the data loader: rows' places and weights, (B,) each."""
    return {"weight": torch.ones(len(places), dtype=torch.float64), "row": torch.tensor(places)}


def drop_repeated(batch: Mapping[str, Tensor], accelerator: Any) -> None:
    """Weight 0, in place, for the rows that accelerate repeats so that an epoch's last batch is whole on all
    processes."""
    state, world = accelerator.gradient_state, accelerator.num_processes
    if world == 1 or not state.end_of_dataloader or state.remainder <= 0 or not accelerator.even_batches:
        return
    count = len(batch["weight"])
    places = torch.arange(count) + accelerator.process_index * count
    batch["weight"][(places >= state.remainder).to(batch["weight"].device)] = 0.0
