"""Equal responses to one prompt as one response with their weight: the same loss with fewer forwards.

A pair of equal responses has log-ratio 0 and target 0, so that it adds nothing to a loss on all pairs; a loss on single
responses is a weighted mean. (What pairs weigh within a prompt is then counted over pairs of different responses.)

Shapes: B prompts with at most K responses each.
"""

import torch
from torch import Tensor

from nashpo.llm.objectives import All, Objective
from nashpo.llm.responses import Responses, StageData


def merges(objective: Objective) -> bool:
    """Whether a loss is one on all pairs or all responses."""
    return isinstance(getattr(objective, "pairs", None), All)


def distinct(stage: StageData) -> StageData:
    """The stage with each response once, its weights added up; nothing where some are told apart (SPAC)."""
    old = stage.responses
    if stage.generated is not None or all(len(set(row)) == len(row) for row in old.sequences):
        return stage
    rows, places, weights = [], [], []
    for b, row in enumerate(old.sequences):
        first = {sequence: i for i, sequence in reversed(list(enumerate(row)))}
        chosen = sorted(first.values())
        where = {row[i]: place for place, i in enumerate(chosen)}
        summed = torch.zeros(len(chosen), dtype=torch.float64)
        for i, sequence in enumerate(row):
            summed[where[sequence]] += old.weights[b, i]
        rows.append(tuple(row[i] for i in chosen))
        places.append(torch.tensor(chosen))
        weights.append(summed)
    grid = torch.nn.utils.rnn.pad_sequence(places, batch_first=True)
    exists = torch.nn.utils.rnn.pad_sequence([torch.ones(len(p), dtype=torch.bool) for p in places], batch_first=True)
    responses = Responses(
        tuple(rows), torch.nn.utils.rnn.pad_sequence(weights, batch_first=True), old.enumerated, old.names
    )
    target = torch.where(exists, stage.target.gather(1, grid), 0.0)
    return StageData(responses, target, _chosen(stage.preferred, grid, exists), None, stage.step)


def _chosen(preferred: Tensor | None, grid: Tensor, exists: Tensor) -> Tensor | None:
    """(B, K, K) at the places (B, M): (B, M, M), ½ where there is nothing."""
    if preferred is None:
        return None
    K, M = preferred.shape[-1], grid.shape[-1]
    lines = preferred.gather(1, grid[:, :, None].expand(-1, -1, K))
    found = lines.gather(2, grid[:, None, :].expand(-1, M, -1))
    return torch.where(exists[:, :, None] & exists[:, None, :], found, 0.5)
