"""Nash-MD's mixture: the cached processor draws from the token-wise one, whose distance to the other is known."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from enumerable import World, tiny_llama
from numpy.testing import assert_allclose
from torch import Tensor

from nashpo.core.policies import log_normalize
from nashpo.llm.fit import Padding, policy_logprobs
from nashpo.llm.mixture import MixtureProcessor, log_mass, token_wise_distance
from nashpo.llm.policies import WholeModels
from nashpo.llm.sampling import generate

WORLD = World(V=3, L=3, prompts=((0, 1), (2, 0, 1), (1,)))


@pytest.fixture(scope="module")
def policies() -> WholeModels:
    return WholeModels(WORLD.model(0), origins={"reference": WORLD.model(1)})


def token_wise_by_hand(policies: WholeModels, a: float) -> np.ndarray:
    """Π_t of the normalized geometric mixtures of conditionals, one forward per prefix, (prompts, n)."""
    result = np.zeros((len(WORLD.prompts), WORLD.n))
    with policies.use("start") as first, policies.use("reference") as second, torch.no_grad():
        for b, prompt in enumerate(WORLD.prompts):
            for k, completion in enumerate(WORLD.completions):
                ids = list(prompt)
                for token in completion:
                    logits = [model(torch.tensor([ids])).logits[0, -1].double() for model in (first, second)]
                    mixed = (1 - a) * logits[0].log_softmax(-1) + a * logits[1].log_softmax(-1)
                    result[b, k] += float(mixed.log_softmax(-1)[token])
                    ids.append(token)
    return result


def masses(policies: WholeModels, a: float) -> Tensor:
    parts = [(1 - a, partial(policies.use, "start")), (a, partial(policies.use, "reference"))]
    responses = WORLD.all_responses()
    return responses.grid(log_mass(parts, responses.rows([0, 1, 2])), [0, 1, 2])


@pytest.mark.parametrize("a", [0.1, 0.5])
def test_token_wise_and_sequence_level_mixtures_differ_by_the_reported_distance(
    policies: WholeModels, a: float
) -> None:
    token_wise = token_wise_by_hand(policies, a)
    assert_allclose(np.exp(token_wise).sum(-1), 1, rtol=0, atol=1e-6)
    with policies.use("start") as first, policies.use("reference") as second:
        sequence_level = np.asarray(log_normalize((1 - a) * WORLD.log_policy(first) + a * WORLD.log_policy(second)))
    by_hand = np.abs(np.exp(token_wise) - np.exp(sequence_level)).sum(-1) / 2
    reported = token_wise_distance(masses(policies, a), torch.from_numpy(np.exp(token_wise)))
    assert_allclose(reported.numpy(), by_hand, rtol=0, atol=1e-6)
    assert np.all(by_hand > 1e-3)
    assert np.all(by_hand < 0.15)


def test_one_policy_mixed_with_itself_is_itself(policies: WholeModels) -> None:
    parts = [(0.3, partial(policies.use, "start")), (0.7, partial(policies.use, "start"))]
    found = log_mass(parts, WORLD.all_responses().rows([0, 1]))
    assert_allclose(found.numpy(), 0, rtol=0, atol=1e-6)


def frequencies(draw: Callable[[int], list[list[tuple[int, ...]]]]) -> np.ndarray:
    place = {completion: k for k, completion in enumerate(WORLD.completions)}
    counts = np.zeros((len(WORLD.prompts), WORLD.n))
    for b, row in enumerate(draw(0)):
        for completion in row:
            counts[b, place[completion]] += 1
    return counts


def chi_square(counts: np.ndarray, policy: np.ndarray) -> float:
    expected = policy * counts.sum(-1, keepdims=True)
    return float(((counts - expected) ** 2 / expected).sum())


def test_generation_draws_the_policy_and_the_token_wise_mixture(policies: WholeModels) -> None:
    """χ² of 2,000 draws per prompt, 3 × 26 degrees of freedom: 125 is exceeded by chance with probability 6e-4 (the
    seed is fixed); another policy's draws exceed it by far."""
    K = 2000
    mixture = np.exp(token_wise_by_hand(policies, 0.5))
    with policies.use("start") as first:
        start = np.exp(WORLD.log_policy(first))
        others = [(0.5, partial(policies.use, "reference"))]
        plain = frequencies(lambda seed: generate(first, WORLD.prompts, K, WORLD.L, seed))
        mixed = frequencies(lambda seed: generate(first, WORLD.prompts, K, WORLD.L, seed, others=others))
    assert chi_square(plain, start) < 125
    assert chi_square(mixed, mixture / mixture.sum(-1, keepdims=True)) < 125
    assert chi_square(mixed, start) > 500
    assert chi_square(plain, mixture / mixture.sum(-1, keepdims=True)) > 500


def test_the_processor_keeps_a_cache_and_is_exact_under_left_padding(policies: WholeModels) -> None:
    """Its log-probabilities after prompts of different lengths are those of fresh forwards without padding."""
    with policies.use("start") as first, policies.use("reference") as second, torch.no_grad():
        mask = torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1]])
        ids = torch.tensor([[0, 0, 1], [2, 0, 1], [0, 0, 1]])
        processor = MixtureProcessor(0.4, [(0.6, partial(policies.use, "reference"))], mask)
        for step in range(3):
            rows = [row[keep.bool()] for row, keep in zip(ids, torch.cat([mask, mask.new_ones(3, step)], 1))]
            fresh = [[model(row[None]).logits[0, -1].log_softmax(-1) for row in rows] for model in (first, second)]
            scores = torch.stack(fresh[0])
            expected = (0.4 * scores + 0.6 * torch.stack(fresh[1])).log_softmax(-1)
            assert_allclose(processor(ids, scores).numpy(), expected.numpy(), rtol=0, atol=1e-5)
            ids = torch.cat([ids, torch.tensor([[step % 3], [1], [2]])], 1)
        with pytest.raises(ValueError, match="make a new one"):
            processor(ids[:, :2], scores)
        assert processor.caches[0].get_seq_length() == 5


def test_generation_is_a_function_of_its_seed_and_masks_unknown_ids() -> None:
    model = tiny_llama(7, 0)
    prompts = [(0, 1, 2), (3,)]
    state = torch.random.get_rng_state()
    first, again, other = (generate(model, prompts, 20, 4, seed, vocabulary=5, eos_id=4) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert first == again != other
    tokens = {token for row in first for completion in row for token in completion}
    assert tokens == {0, 1, 2, 3, 4}
    for completion in (c for row in first for c in row):
        assert 4 not in completion[:-1]
        assert len(completion) == 4 or completion[-1] == 4


def test_weights_must_add_up() -> None:
    with pytest.raises(ValueError, match="add up to 0.9"):
        MixtureProcessor(0.4, [(0.5, lambda: None)], torch.ones(1, 1))  # type: ignore[list-item,return-value]


def test_enumerated_log_probabilities_are_a_distribution(policies: WholeModels) -> None:
    with policies.use("start") as model:
        total = policy_logprobs(model, WORLD.all_responses(), Padding()).exp().sum(-1)
    assert_allclose(total.numpy(), 1, rtol=0, atol=1e-6)
