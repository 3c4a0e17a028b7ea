"""Equal responses to one prompt as one response with their weight: the same loss with fewer forwards.

A pair of equal responses has log-ratio 0 and target 0, so that it adds nothing to a loss on all pairs; a loss on single
responses is a weighted mean. (What pairs weigh within a prompt is then counted over pairs of different responses.)

Shapes: B prompts with at most K responses each.
"""

import torch

from nashpo.llm.objectives import All, Objective
from nashpo.llm.responses import StageData


def merges(objective: Objective) -> bool:
    """Whether a loss is one on all pairs or all responses."""
    return isinstance(getattr(objective, "pairs", None), All)


def distinct(stage: StageData) -> StageData:
    """The stage with each response once, its weights added up; nothing where some are told apart (SPAC)."""
    old = stage.responses
    if stage.generated is not None or all(len(set(row)) == len(row) for row in old.sequences):
        return stage
    places, weights = [], []
    for b, row in enumerate(old.sequences):
        first = {sequence: i for i, sequence in reversed(list(enumerate(row)))}
        chosen = sorted(first.values())
        where = {row[i]: place for place, i in enumerate(chosen)}
        summed = torch.zeros(len(chosen), dtype=torch.float64)
        for i, sequence in enumerate(row):
            summed[where[sequence]] += old.weights[b, i]
        places.append(chosen)
        weights.append(summed)
    return stage.picked(places, weights)
