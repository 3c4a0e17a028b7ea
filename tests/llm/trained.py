"""What the tests of the trainer read off it."""

from typing import Any

import numpy as np
import torch

from nashpo.llm.preferences import PreferenceData


def logs(trainer: Any) -> list[dict[str, float]]:
    """The training logs."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def weights(model: Any) -> np.ndarray:
    """All weights in one row."""
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


def naive_logprobs(model: Any, data: PreferenceData) -> np.ndarray:
    """log π of each sequence by a full softmax, one sequence at a time: (N, K)."""
    model.eval()
    result = np.zeros((len(data), 2))
    for b, row in enumerate(data.responses.sequences):
        for k, scored in enumerate(row):
            ids = torch.tensor([scored.ids])
            with torch.no_grad():
                table = model(ids).logits.double().log_softmax(-1)
            tokens = table[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
            result[b, k] = float((tokens * torch.tensor(scored.mask[1:])).sum())
    return result
