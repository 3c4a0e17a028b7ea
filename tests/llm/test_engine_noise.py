"""Keyed Gumbel noise: uniform, independent over what it is keyed on, and its draws follow the filtered softmax."""

import math

import numpy as np
import pytest
import torch
from families import build
from numpy.testing import assert_array_equal
from scipy.stats import chi2_contingency, chisquare
from torch import Tensor
from transformers import GenerationConfig

from nashpo.llm.engines import noise
from nashpo.llm.engines.engine import Sampling
from nashpo.llm.engines.noise import KeyedDraw, draw, filtered, gumbel, row_key, uniform

# Seeds are fixed. Over seeds, a correct sampler would fail one of the comparisons below with probability RATE.
RATE = 1e-6
LOGITS = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5, -3.0, 0.2, 1.5])


def keys(count: int, seed: int = 0, prompt: str = "x") -> Tensor:
    return torch.tensor([row_key(seed, prompt, k) for k in range(count)])


def by_hand(key: int, position: int, token: int) -> float:
    """The uniform number in unbounded integers."""

    def mixed(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    gamma = 0x9E3779B97F4A7C15
    row = mixed((key + (position + 1) * gamma) % 2**64)
    return ((mixed(row ^ mixed((token + 1) * gamma % 2**64)) >> 12) + 0.5) / 2**52


def test_noise_is_the_stated_function_on_every_machine() -> None:
    rows = keys(5)
    for position in (0, 1, 700):
        expected = [[by_hand(int(key), position, token) for token in range(9)] for key in rows]
        assert_array_equal(uniform(rows, position, 9).numpy(), np.array(expected))
    # The key itself: a change here would change every saved run's continuation.
    assert row_key(0, "x", 0) == -5868917747613153745


def test_uniform_numbers_fill_the_unit_interval_and_neighbours_are_independent() -> None:
    u = uniform(keys(64), 3, 4096).numpy()
    assert 0 < u.min() < u.max() < 1
    assert chisquare(np.histogram(u, 256, (0, 1))[0]).pvalue > RATE
    cells = (16 * u).astype(int)
    later = (16 * uniform(keys(64), 4, 4096).numpy()).astype(int)
    for first, second in ((cells[:, :-1], cells[:, 1:]), (cells[:-1], cells[1:]), (cells, later)):
        table = np.zeros((16, 16))
        np.add.at(table, (first.ravel(), second.ravel()), 1)
        assert chisquare(table.ravel()).pvalue > RATE


def test_noise_is_finite_at_both_ends_of_the_integers() -> None:
    for bits in (0, 2**52 - 1):
        u = torch.tensor(bits).double().add_(0.5).mul_(2.0**-52)
        assert 0 < u.item() < 1
        assert math.isfinite(-math.log(-math.log(u.item())))
    assert gumbel(keys(8), 0, 10_000).isfinite().all()


def test_draws_follow_the_softmax() -> None:
    tokens = draw(LOGITS.expand(20_000, -1), keys(20_000), 0).numpy()
    expected = LOGITS.double().softmax(-1).numpy() * len(tokens)
    assert chisquare(np.bincount(tokens, minlength=8), expected).pvalue > RATE


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0, "x", 0, 0), (0, "x", 1, 0)),  # the next response
        ((0, "x", 0, 0), (0, "x", 0, 1)),  # the next position
        ((0, "x", 0, 0), (1, "x", 0, 0)),  # the next seed
        ((0, "x", 0, 0), (0, "y", 0, 0)),  # another prompt
        ((0, "x", 0, 1), (0, "x", 1, 0)),
    ],
)
def test_draws_are_independent_over_seed_prompt_response_and_position(
    first: tuple[int, str, int, int], second: tuple[int, str, int, int]
) -> None:
    def drawn(seed: int, prompt: str, k: int, position: int) -> Tensor:
        rows = torch.tensor([row_key(seed, f"{prompt}{i}", k) for i in range(8000)])
        return draw(LOGITS.expand(8000, -1), rows, position)

    table = np.zeros((8, 8))
    np.add.at(table, (drawn(*first).numpy(), drawn(*second).numpy()), 1)
    assert chi2_contingency(table[np.ix_(table.sum(1) > 0, table.sum(0) > 0)]).pvalue > RATE


def test_a_draw_knows_nothing_of_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(40, 500, generator=torch.Generator().manual_seed(0))
    rows, order = keys(40), torch.randperm(40, generator=torch.Generator().manual_seed(1))
    whole = draw(logits, rows, 5)
    assert_array_equal(draw(logits[order], rows[order], 5).numpy(), whole[order].numpy())
    monkeypatch.setitem(noise.ENTRIES, "cpu", 1500)  # pieces of three rows
    assert_array_equal(draw(logits, rows, 5).numpy(), whole.numpy())


FILTERS = {
    "all": Sampling(),
    "temperature": Sampling(temperature=0.7),
    "top_p": Sampling(top_p=0.8),
    "top_k": Sampling(top_k=5),
    "min_p": Sampling(min_p=0.2),
    "together": Sampling(temperature=1.3, top_p=0.9, top_k=6, min_p=0.05),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters_are_transformers_own(name: str) -> None:
    """Bit for bit the scores that ``generate`` samples from with these settings."""
    sampling = FILTERS[name]
    model = build("llama")
    config = GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p or None,
    )
    config, _ = model._prepare_generation_config(config)
    logits = 3 * torch.randn(32, 97, generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(32, 1, dtype=torch.long)
    expected = model._get_logits_processor(config, input_ids_seq_length=1)(ids, logits.clone())
    found = filtered(logits, sampling)
    assert torch.equal(found, expected)
    assert bool(found.isinf().any()) == (name not in ("all", "temperature"))
    assert sampling.exact == (name == "all")


@pytest.mark.parametrize("name", FILTERS)
def test_draws_follow_the_filtered_distribution_and_never_leave_the_vocabulary(name: str) -> None:
    scores = filtered(LOGITS[None], FILTERS[name], vocabulary=7)
    tokens = draw(scores.expand(10_000, -1), keys(10_000, seed=3), 1).numpy()
    expected = scores[0].double().softmax(-1).numpy() * len(tokens)
    found = np.bincount(tokens, minlength=8)
    assert found[expected == 0].sum() == 0
    assert found[7] == 0
    assert chisquare(found[expected > 0], expected[expected > 0]).pvalue > RATE


def test_the_processor_counts_positions_from_the_prompt_and_tells_of_nan() -> None:
    rows = keys(3)
    processor = KeyedDraw(rows, prompt_length=4)
    scores = torch.randn(3, 11, generator=torch.Generator().manual_seed(0))
    choice = processor(torch.zeros(3, 6, dtype=torch.long), scores)
    assert_array_equal(choice.argmax(-1).numpy(), draw(scores, rows, 2).numpy())
    assert not processor.broken.any()
    scores[1, 3] = torch.nan
    processor(torch.zeros(3, 7, dtype=torch.long), scores)
    assert processor.broken.tolist() == [False, True, False]
