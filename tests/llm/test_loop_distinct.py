"""Equal responses as one with their weight: the loss has the same minimizer, and the same value where none is equal."""

import pytest
import torch

from nashpo.llm.loop.distinct import distinct, merges
from nashpo.llm.objectives import All, BestWorst, Iid, Labelled, LogZ, Objective, Pairwise, Pointwise, StageTensors
from nashpo.llm.responses import Responses, Scored, StageData

A, B, C = (Scored.completion((0,), (i,)) for i in (1, 2, 3))


def stage() -> StageData:
    """Draws A B A C of one prompt and B B A of another; P(A beats B) = .9, B C .8, C A .7."""
    P = {(A, B): 0.9, (B, C): 0.8, (C, A): 0.7}
    rows = [(A, B, A, C), (B, B, A)]
    responses = Responses.drawn(rows)
    preferred = torch.full((2, 4, 4), 0.5, dtype=torch.float64)
    for b, row in enumerate(rows):
        for i, x in enumerate(row):
            for j, y in enumerate(row):
                preferred[b, i, j] = 0.5 if x == y else P[x, y] if (x, y) in P else 1 - P[y, x]
    target = (preferred * responses.weights[:, None, :]).sum(-1) - 0.5
    target[1, 3] = 0.0
    return StageData(responses, 2.0 * target, preferred, step=2.0)


def test_weights_add_up_and_numbers_stay_with_their_response() -> None:
    """First prompt: A twice of four, B and C once. P̂(A) = (.5 + .9 + .5 + .3)/4 − ½ = .05, times 2."""
    found = distinct(stage())
    assert found.responses.sequences == ((A, B, C), (B, A))
    torch.testing.assert_close(found.responses.weights, torch.tensor([[0.5, 0.25, 0.25], [2 / 3, 1 / 3, 0.0]]).double())
    assert found.target[0, 0].item() == pytest.approx(0.1)
    assert found.preferred is not None
    assert found.preferred[0].tolist() == [
        [0.5, 0.9, pytest.approx(0.3)],
        [pytest.approx(0.1), 0.5, 0.8],
        [0.7, pytest.approx(0.2), 0.5],
    ]
    assert found.preferred[1, 0, 1].item() == pytest.approx(0.1)
    assert found.step == 2.0


@pytest.mark.parametrize("objective", [Pairwise(), Labelled(), Pointwise(), Pointwise(LogZ())])
def test_the_gradient_points_the_same_way(objective: Objective) -> None:
    """Per prompt the loss is the same up to a factor, which is 1 for a loss on single responses."""
    assert merges(objective)
    whole, merged = stage(), distinct(stage())
    theta = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    for b in range(2):
        gradients = []
        for data in (whole, merged):
            free = theta.clone().requires_grad_(True)
            row = data.responses.sequences[b]
            ratio = torch.stack([free[s.ids[1] - 1] for s in row])[None]
            n = len(row)
            assert data.preferred is not None
            tensors = StageTensors(
                ratio,
                data.target[b : b + 1, :n],
                data.responses.weights[b : b + 1, :n],
                data.preferred[b : b + 1, :n, :n],
                data.step,
            )
            values, weights = objective.losses(tensors)
            (values * weights).sum().backward()
            assert free.grad is not None
            gradients.append(free.grad)
        scale = gradients[0].norm() / gradients[1].norm()
        torch.testing.assert_close(gradients[0], scale * gradients[1])
        if isinstance(objective, Pointwise):
            assert scale.item() == pytest.approx(1.0)


def test_only_losses_on_all_pairs_are_merged() -> None:
    assert not merges(Pairwise(Iid()))
    assert not merges(Pointwise(pairs=BestWorst()))
    assert merges(Labelled(All()))


def test_different_responses_are_left_alone() -> None:
    responses = Responses.drawn([(A, B, C)])
    data = StageData(responses, torch.zeros(1, 3, dtype=torch.float64))
    assert distinct(data) is data
