"""Rows in which the responses to one prompt share its tokens give the numbers of padded batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES, SHAPE, VOCABULARY, Shapes, assert_same, assert_same_gradients, build, gradients, naive
from torch import Tensor
from trained import logs

from nashpo.core.rules import IPO
from nashpo.llm import prefix_attention
from nashpo.llm.fit import Packing, Padding, SharedPrefix
from nashpo.llm.known import stage_logprobs
from nashpo.llm.packing import Packed, packed_logprobs
from nashpo.llm.prefix import can_share, share_prefixes
from nashpo.llm.prefix_attention import seen_by
from nashpo.llm.responses import Padded, Scored
from nashpo.llm.row import Prefix, Row
from nashpo.llm.trainer_setup import layout_of

Make = Callable[..., Any]
ALWAYS = SharedPrefix(least=0.0)
SIZES = ((13, (9, 4, 1)), (1, (8, 2)), (5, (7,)), (20, (3, 3, 12, 6, 2)))
"""Tokens of prompts and of their responses: one prompt of one token, one with one response; windows are of 6."""


def drawn(seed: int = 0, sizes: Any = SIZES) -> list[Scored]:
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        found: list[int] = torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()
        return found

    return [Scored.completion(p, ids(r)) for prompt, lengths in sizes for p in [ids(prompt)] for r in lengths]


def row_of(sequences: list[Scored], least: float = 0.0) -> Packed:
    return share_prefixes([(s.ids, s.mask) for s in sequences], least)


def changed(scored: Scored, place: int) -> Scored:
    """Another token at one place."""
    ids = list(scored.ids)
    ids[place] = (ids[place] + 1) % VOCABULARY
    return Scored(tuple(ids), scored.mask)


def expected_of(model: Any, sequences: list[Scored]) -> Tensor:
    batch = Padded.from_sequences(sequences)
    return naive(model, batch.input_ids, batch.attention_mask, batch.loss_mask)


# ------------------------------------------------------------------------------------------------------------- the row


def test_a_prompt_stands_in_the_row_once() -> None:
    made = [((7, 8), (1, 2)), ((7, 8), (3,)), ((7, 8), (4, 5)), ((9,), (1,)), ((9,), (2, 3))]
    row = row_of([Scored.completion(prompt, response) for prompt, response in made])
    assert row.input_ids.tolist() == [[7, 8, 1, 2, 3, 4, 5, 9, 1, 2, 3]]
    assert row.loss_mask.tolist() == [[0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 2, 2, 3, 0, 1, 1, 2]]
    assert row.boundaries.tolist() == [0, 4, 5, 7, 9, 11]
    assert row.prefixes == (None, Prefix(0, 2), Prefix(0, 2), None, Prefix(3, 1))
    assert row.to("cpu").prefixes == row.prefixes
    assert Row(tuple(row.boundaries.tolist()), row.prefixes).ends() == [-1, 1, 1, -1, 7]


def test_a_prompt_ends_at_the_first_scored_token() -> None:
    """Later unscored spans, the other side's turns in a conversation, belong to the response."""
    one, other = Scored((5, 6, 7, 8, 9), (0, 0, 1, 0, 1)), Scored((5, 6, 7, 8, 4), (0, 0, 1, 0, 1))
    row = row_of([one, other])
    assert row.input_ids.tolist() == [[5, 6, 7, 8, 9, 7, 8, 4]]
    assert row.loss_mask.tolist() == [[0, 0, 1, 0, 1, 1, 0, 1]]
    model = build("llama")
    assert_same(packed_logprobs(model, row), expected_of(model, [one, other]))


def test_sharing_is_decided_for_each_prompt_by_what_it_saves() -> None:
    """10 · 2 of 42 tokens, then 1 · 1 of 42: what else is in the row does not matter."""
    long, short = drawn(1, [(10, (4, 4, 4))]), drawn(2, [(1, (20, 20))])
    assert row_of(long + short, 20 / 42 - 1e-9).prefixes == (None, Prefix(0, 10), Prefix(0, 10), None, None)
    for sequences in (short, long[:1] + short, long + short):
        row, plain = row_of(sequences, 20 / 42), Packed.from_sequences([(s.ids, s.mask) for s in sequences])
        assert row.prefixes == ()
        for name in ("input_ids", "loss_mask", "position_ids", "boundaries"):
            assert torch.equal(getattr(row, name), getattr(plain, name))
    apart = [long[0], short[0], long[1]]
    assert row_of(apart).prefixes == (), "only neighbours share"


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ([], "no sequences"),
        ([((1, 2), (0, 1)), ((1, 2), (0, 0))], "sequence 1 has 2 tokens and none is scored: an empty response"),
        ([((1, 2), (0,))], "sequence 0 has 2 tokens and a loss mask of 1"),
        ([((1, 2), (1, 1))], "sequence 0 scores its first token"),
    ],
)
def test_bad_sequences_are_refused(made: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        share_prefixes(made)


@pytest.mark.parametrize("least", [-0.1, 1.0, float("nan")])
def test_a_share_outside_its_range_is_refused(least: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        SharedPrefix(least)


# ---------------------------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_padded_form(family: str, attention: str) -> None:
    if (family, attention) == ("gemma2", "sdpa"):
        attention = "eager"  # caps its attention scores, which sdpa cannot
    model, sequences = build(family, attention=attention), drawn()
    expected, found = expected_of(model, sequences), ALWAYS.logprobs(model, sequences)
    assert found.dtype == torch.float32
    assert_same(found, expected)
    wanted = gradients(model, expected)
    assert_same_gradients(gradients(model, found), wanted)
    packed = Packing().logprobs(model, sequences)
    assert_same(found, packed)
    assert_same_gradients(gradients(model, packed), wanted)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_activation_checkpointing(family: str, reentrant: bool) -> None:
    plain, sequences = build(family), drawn()
    expected = gradients(plain, expected_of(plain, sequences))
    model = build(family).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    found = ALWAYS.logprobs(model, sequences)
    (torch.linspace(-1, 1.5, len(found)) * found).sum().backward()
    assert_same_gradients({name: p.grad for name, p in model.named_parameters()}, expected)


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_a_response_sees_its_prompt_and_itself_only(family: str) -> None:
    """Another token in one response leaves the others as they are to the bit."""
    model, sequences = build(family), drawn(sizes=((13, (9, 4, 6)),))
    with torch.no_grad():
        before = ALWAYS.logprobs(model, sequences)
        for number, scored in enumerate(sequences):
            for place in range(13, len(scored.ids)):
                other = [*sequences]
                other[number] = changed(scored, place)
                assert (ALWAYS.logprobs(model, other) == before).tolist() == [i != number for i in range(3)]


def test_a_window_counts_positions() -> None:
    """Of one layer with a window of 6: the second token of a response behind a prompt of 13 is predicted from places 8
    to 13, five of them the prompt's, wherever the response stands in the row."""
    model, sequences = build("mistral", num_hidden_layers=1), drawn(sizes=((13, (9, 3, 3)),))

    def found(sequences: list[Scored]) -> Tensor:
        row = row_of(sequences)
        firsts = (row.position_ids == 13).long()
        return packed_logprobs(model, replace(row, loss_mask=row.loss_mask - firsts))

    with torch.no_grad():
        before = found(sequences)
        for place in range(13):
            after = found([changed(scored, place) for scored in sequences])
            assert (after == before).tolist() == [place < 8] * 3


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_no_mask_or_score_of_the_whole_row(family: str) -> None:
    model, sequences = build(family), drawn(sizes=((31, (20, 29, 31, 17)), (20, (10, 24, 18))))
    with Shapes() as shapes:
        ALWAYS.logprobs(model, sequences).sum().backward()
    assert any(200 in shape for shape in shapes.seen), "51 + 149 tokens"
    assert not [shape for shape in shapes.seen if shape.count(200) > 1 or torch.Size(shape).numel() >= 200 * 200]


def test_adapters() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model, sequences = peft.get_peft_model(build("llama"), config), drawn()
    assert can_share(model)
    found, expected = ALWAYS.logprobs(model, sequences), expected_of(model, sequences)
    assert_same(found, expected)
    assert_same_gradients(gradients(model, found), gradients(model, expected))


def chunked() -> Any:
    torch.manual_seed(0)
    special = {"num_local_experts": 2, "intermediate_size_mlp": 64, "attention_chunk_size": 6, "head_dim": 8}
    ids = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    return transformers.AutoModelForCausalLM.from_config(transformers.Llama4TextConfig(**SHAPE, **special, **ids))


def plugged_in() -> Any:
    """With attention of which it is not known how it aligns queries with more keys."""
    attend, mask = transformers.AttentionInterface()["sdpa"], transformers.AttentionMaskInterface()["sdpa"]
    transformers.AttentionInterface.register("of_a_plugin", attend)
    transformers.AttentionMaskInterface.register("of_a_plugin", mask)
    model = build("llama")
    model.set_attn_implementation("of_a_plugin")
    return model


@pytest.mark.parametrize("make", [chunked, plugged_in])
def test_models_that_do_not_allow_it_are_packed_plainly(make: Make) -> None:
    model, sequences = make(), drawn()
    assert not can_share(model)
    seen: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, args, out: seen.append(args[0].shape[1]))
    with torch.no_grad():
        found = ALWAYS.logprobs(model, sequences)
        assert torch.equal(found, Packing().logprobs(model, sequences))
        assert_same(found, expected_of(model, sequences))
    assert seen[0] == sum(len(s.ids) for s in sequences)


# ------------------------------------------------------------------------------------------- all pieces at once (CUDA)


@pytest.mark.parametrize("window", [None, 6])
def test_the_mask_of_a_whole_row(window: int | None) -> None:
    """Against every pair of tokens of every sequence."""
    sequences = drawn()
    batch = row_of(sequences)
    row = Row(tuple(batch.boundaries.tolist()), batch.prefixes)

    def own(_: Any, __: Any, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) if window is None else (key <= query) & (key > query - window)

    expected = torch.zeros(row.bounds[-1], row.bounds[-1], dtype=torch.bool)
    for number, scored in enumerate(sequences):
        prefix, places = row.prefixes[number], list(range(row.bounds[number], row.bounds[number + 1]))
        if prefix is not None:
            places = [row.bounds[prefix.piece] + i for i in range(prefix.tokens)] + places
        assert len(places) == len(scored.ids)
        for i, query in enumerate(places):
            for j in range(i + 1):
                expected[query, places[j]] |= window is None or j > i - window
    place = torch.arange(row.bounds[-1])
    assert torch.equal(seen_by(row, own, "cpu")(None, None, place[:, None], place[None]), expected)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "qwen3"])
def test_flex_attention(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call that CUDA gets, here in plain torch, which has no backward on CPU."""
    monkeypatch.setattr(prefix_attention, "DEVICES", {"cpu"})
    monkeypatch.setattr(prefix_attention, "SMALLEST_HEAD", 8)
    calls: list[Any] = []
    attend = prefix_attention.attend
    monkeypatch.setattr("nashpo.llm.attention.attend", lambda *x, **named: (calls.append(x[4]), attend(*x, **named))[1])
    model, sequences = build(family), drawn()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        found = ALWAYS.logprobs(model, sequences)
    assert len(calls) == 2, "one for each layer"
    assert_same(found, expected_of(model, sequences))


# ---------------------------------------------------------------------------------------------------------- the trainer


def test_the_trainer_shares_prompts_and_learns_the_same(trainer: Make, tiny_llama: Make) -> None:
    seen: dict[bool, list[int]] = {}
    made = {}
    for share in (True, False):
        model, fed = tiny_llama(), seen.setdefault(share, [])
        model.get_input_embeddings().register_forward_hook(lambda _, args, out, fed=fed: fed.append(args[0].numel()))
        made[share] = trainer(IPO(tau=0.2), model=model, share_prefix=share, eval_dataset=None, max_steps=3)
        made[share].train()
    for fed in seen.values():
        assert len(fed) >= 4
    assert sum(seen[True]) < 0.8 * sum(seen[False]), "prompts are most of these pairs"
    for one, other in zip(logs(made[True]), logs(made[False]), strict=True):
        # AdamW divides gradients by their size, so that rounding of small ones shows in later steps.
        torch.testing.assert_close(one["loss"], other["loss"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(one["grad_norm"], other["grad_norm"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_pass_of_its_own_has_the_trainers_layout(bf16: bool, trainer: Make, tiny_llama: Make) -> None:
    """Then the first log-ratio is 0 to the bit; other layouts are a rounding away."""
    made = trainer(IPO(tau=0.2), model=tiny_llama(), bf16=bf16, eval_dataset=None)
    data, (known, *_) = made.train_dataset, made._stages[made.train_dataset].known.values()
    assert isinstance(made._layout, SharedPrefix)
    assert layout_of(made.args, made.processing_class) == made._layout
    size = made.args.per_device_eval_batch_size

    def scores(layout: Any) -> Tensor:
        autocast = torch.autocast("cpu", torch.bfloat16) if bf16 else None
        return stage_logprobs(tiny_llama(), data.responses, layout, size, autocast)

    assert torch.equal(scores(made._layout), known)
    for layout in (Packing(), Padding()):
        assert_same(scores(layout), known, 0.02 if bf16 else 1e-5)
