"""Packed rows give the numbers of padded batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import (
    FAMILIES,
    VOCABULARY,
    assert_same,
    assert_same_gradients,
    build,
    gradients,
    naive,
    padded_batch,
    twin,
)

from nashpo.llm.logprobs import sequence_logprobs
from nashpo.llm.packing import Packed, packed_logprobs


def sequences(seed: int = 0, lengths: tuple[int, ...] = (9, 1, 17, 2, 12)) -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        ids = torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()
        made.append((ids, [0, *torch.randint(0, 2, (length - 1,), generator=generator).tolist()]))
    return made


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_padded_form(family: str, attention: str) -> None:
    if (family, attention) == ("gemma2", "sdpa"):
        attention = "eager"  # caps its attention scores, which sdpa cannot
    model, batch = build(family, attention=attention), padded_batch()
    expected = naive(model, *batch)
    found = packed_logprobs(model, Packed.from_padded(*batch), chunk=5)
    assert found.dtype == torch.float32
    assert found[3].item() == 0.0
    assert_same(found, expected)
    assert_same_gradients(gradients(model, found), gradients(model, expected))
    assert_same(found, sequence_logprobs(model, *batch))


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gpt2"])
def test_each_sequence_is_as_if_alone(family: str) -> None:
    model, made = build(family), sequences()
    with torch.no_grad():
        found = packed_logprobs(model, Packed.from_sequences(made))
        alone = torch.cat([packed_logprobs(model, Packed.from_sequences([one])) for one in made])
        turned = packed_logprobs(model, Packed.from_sequences(made[::-1])).flip(0)
    assert found[1].item() == 0.0, "a sequence of one token has nothing to score"
    assert_same(found, alone)
    assert_same(found, turned)


def test_sequences_do_not_leak() -> None:
    """Other tokens in one sequence: the rest stays the same to the bit, and depends on nothing there."""
    model, made = build("mistral"), sequences()
    with torch.no_grad():
        before = packed_logprobs(model, Packed.from_sequences(made))
        made[2] = ([(token + 1) % VOCABULARY for token in made[2][0]], made[2][1])
        after = packed_logprobs(model, Packed.from_sequences(made))
    others = [0, 1, 3, 4]
    assert torch.equal(before[others], after[others])
    assert before[2] != after[2]


def test_the_cache_is_off_in_eval_mode_too() -> None:
    """transformers' default cache makes packed rows silently wrong in eval mode."""
    model, batch = build("mistral").eval(), padded_batch()
    assert model.config.use_cache
    seen: list[Any] = []
    hook = model.register_forward_pre_hook(lambda _, args, named: seen.append(named["use_cache"]), with_kwargs=True)
    with torch.no_grad():
        assert_same(packed_logprobs(model, Packed.from_padded(*batch)), naive(model, *batch))
    hook.remove()
    assert seen == [False, False]


def test_bf16() -> None:
    exact, batch = build("llama"), padded_batch()
    model = twin(exact).to(torch.bfloat16)
    exact.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    found = packed_logprobs(model, Packed.from_padded(*batch))
    assert found.dtype == torch.float32
    assert_same(found, naive(exact, *batch), 0.01)
    assert all(bool(g.isfinite().all()) for g in gradients(model, found).values())


def test_adapters() -> None:
    peft = pytest.importorskip("peft")

    batch = padded_batch()
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(build("llama"), config)
    found, expected = packed_logprobs(model, Packed.from_padded(*batch)), naive(model, *batch)
    assert_same(found, expected)
    assert_same_gradients(gradients(model, found), gradients(model, expected))
    prefixed = peft.get_peft_model(build("llama"), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ValueError, match="cannot be packed|packed row"):
        packed_logprobs(prefixed, Packed.from_padded(*batch))


def test_from_sequences_and_from_padded_agree() -> None:
    ids, exists, scored = padded_batch()
    rows = [(ids[b][exists[b].bool()].tolist(), scored[b][exists[b].bool()].tolist()) for b in range(len(ids))]
    one, other = Packed.from_sequences(rows), Packed.from_padded(ids, exists, scored)
    for name in ("input_ids", "loss_mask", "position_ids", "boundaries"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert one.input_ids.shape == one.position_ids.shape == (1, int(exists.sum()))
    assert one.boundaries.tolist() == [0, *exists.sum(1).cumsum(0).tolist()]
    assert one.boundaries.dtype == torch.int32
    assert (one.position_ids[0, one.boundaries[:-1]] == 0).all()
    assert one.position_ids.max() == exists.sum(1).max() - 1


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ([], "no sequences"),
        ([([1, 2], [0, 1]), ([], [])], "sequence 1 has 0 tokens"),
        ([([1, 2], [0])], "sequence 0 has 2 tokens and a loss mask of 1"),
        ([([1, 2], [1, 1])], "sequence 0 scores its first token"),
    ],
)
def test_bad_sequences_are_refused(made: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Packed.from_sequences(made)


def test_a_scored_first_token_is_refused_at_the_model_too() -> None:
    batch = Packed.from_sequences(sequences())
    batch.loss_mask[0, int(batch.boundaries[2])] = 1
    with pytest.raises(ValueError, match="first token of a sequence"):
        packed_logprobs(build("llama"), batch)
