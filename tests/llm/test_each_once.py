"""Sequences that occur several times in a batch are computed once: same log-probabilities, same gradients."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from nashpo.llm.fit import Layout, Packing, Padding, SharedPrefix, each_once
from nashpo.llm.responses import Scored
from nashpo.llm.tiny import tiny_llama
from nashpo.llm.tiny_config import TinyModel

TINY = TinyModel()
DRAWS = [0, 5, 5, 2, 0, 7, 5]


def gradients(layout: Layout, sequences: Sequence[Scored], merged: bool) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N,) and the gradient of Σ_s s log π_s, all in one batch or one sequence at a time."""
    model = tiny_llama(TINY)
    weights = torch.arange(1.0, len(sequences) + 1)
    with layout.context(model):
        batches = [list(sequences)] if merged else [[one] for one in sequences]
        logprobs = torch.cat([layout.logprobs(model, batch) for batch in batches])
        (weights * logprobs).sum().backward()
    return logprobs.detach(), torch.cat([p.grad.ravel() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("layout", [Padding(), Padding(left=True), Packing(), SharedPrefix()], ids=repr)
def test_repeated_sequences_count_as_often_as_they_occur(layout: Layout) -> None:
    """To the rounding of float32 sums."""
    prompts = TINY.prompt_ids[:2]
    sequences = [Scored.completion(prompt, TINY.completions[i]) for prompt in prompts for i in DRAWS]
    logprobs, gradient = gradients(layout, sequences, True)
    expected, expected_gradient = gradients(layout, sequences, False)
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-3)


def test_each_is_scored_once_and_none_twice() -> None:
    seen: list[int] = []

    def score(some: Sequence[Scored]) -> Tensor:
        seen.append(len(some))
        return torch.tensor([float(sum(s.ids)) for s in some])

    sequences = [Scored.completion([1], [i]) for i in DRAWS]
    assert each_once(sequences, score).tolist() == [1.0 + i for i in DRAWS]
    assert each_once(sequences[:2], score).tolist() == [1.0, 6.0]
    assert seen == [4, 2]
