"""Packed attention: the model's own, on each sequence, in forward and in the backward of checkpointed layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from families import (
    SHAPE,
    Shapes,
    assert_same,
    assert_same_gradients,
    build,
    gradients,
    naive,
    padded_batch,
)
from torch import Tensor

from nashpo.llm import attention
from nashpo.llm.attention import PREFIX, PackedMask, packed_row
from nashpo.llm.logprobs import sequence_logprobs
from nashpo.llm.packing import Packed, packed_logprobs


def checkpointed(family: str, reentrant: bool = False, **options: Any) -> Any:
    model = build(family, **options).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    return model


def backward(model: Any, logprobs: Tensor) -> dict[str, Tensor]:
    """Gradients by ``backward``, which reentrant checkpointing needs."""
    model.zero_grad()
    (torch.linspace(-1, 1.5, len(logprobs)) * logprobs).sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("family", "own"), [("llama", "sdpa"), ("mistral", "eager"), ("gemma2", "eager")])
def test_activation_checkpointing_attends_per_sequence_in_backward(family: str, own: str, reentrant: bool) -> None:
    plain, batch = build(family, attention=own), padded_batch()
    expected = gradients(plain, naive(plain, *batch))
    model = checkpointed(family, reentrant, attention=own)
    found = packed_logprobs(model, Packed.from_padded(*batch))
    assert model.config._attn_implementation == own, "put back before backward"
    assert_same_gradients(backward(model, found), expected)
    assert model.config._attn_implementation == own, "and after it"


def test_checkpointed_layers_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    own = attention._own_attention
    monkeypatch.setattr(attention, "_own_attention", lambda *x: (calls.append(True), own(*x))[1])
    model, batch = checkpointed("llama"), Packed.from_padded(*padded_batch())
    found = packed_logprobs(model, batch)
    assert len(calls) == 2
    found.sum().backward()
    assert len(calls) == 4


def test_padded_and_packed_forwards_in_one_backward() -> None:
    plain, batch, other = build("mistral"), padded_batch(0), padded_batch(1)
    expected = gradients(plain, naive(plain, *batch) - 0.5 * naive(plain, *other) + naive(plain, *other) ** 2 / 500)
    model = checkpointed("mistral")
    first = sequence_logprobs(model, *batch)
    second = packed_logprobs(model, Packed.from_padded(*other))
    third = packed_logprobs(model, Packed.from_padded(*other))
    assert_same_gradients(backward(model, first - 0.5 * second + third**2 / 500), expected)
    assert model.config._attn_implementation == "sdpa"


def test_a_failure_in_backward_leaves_a_model_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = checkpointed("mistral"), padded_batch()
    with torch.no_grad():
        expected = naive(model, *batch)
    found = packed_logprobs(model, Packed.from_padded(*batch))

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(attention, "_own_attention", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            found.sum().backward()
    with torch.no_grad():
        assert_same(naive(model, *batch), expected)
        assert_same(packed_logprobs(model, Packed.from_padded(*batch)), expected)
    found = packed_logprobs(model, Packed.from_padded(*batch))
    assert_same_gradients(backward(model, found), backward(model, naive(model, *batch)))


def test_the_own_attention_is_put_back_after_a_failed_forward() -> None:
    model, batch = build("llama"), Packed.from_padded(*padded_batch())
    batch.input_ids[0, 5] = 10_000
    with pytest.raises(IndexError):
        packed_logprobs(model, batch)
    assert model.config._attn_implementation == "sdpa"
    assert attention._row.get() is None


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_no_mask_or_score_of_the_whole_row(family: str) -> None:
    """200 tokens in sequences of at most 31, forward and backward: no tensor has two sides of more than 31 tokens."""
    model = build(family)
    ids = torch.randint(0, 97, (200,)).tolist()
    cuts = [0, 31, 40, 71, 101, 130, 155, 180, 200]
    parts = [ids[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    batch = Packed.from_sequences([(part, [0] + [1] * (len(part) - 1)) for part in parts])
    with Shapes() as shapes:
        packed_logprobs(model, batch, chunk=8).sum().backward()
    assert any(200 in shape for shape in shapes.seen)
    assert not [shape for shape in shapes.seen if shape.count(200) > 1]
    assert not [shape for shape in shapes.seen if torch.Size(shape).numel() >= 200 * 200]


def test_masks_are_those_of_each_sequence() -> None:
    seen: list[Any] = []
    model, batch = build("mistral"), Packed.from_padded(*padded_batch())
    layer = model.model.layers[0].self_attn
    layer.register_forward_pre_hook(lambda _, args, named: seen.append(named["attention_mask"]), with_kwargs=True)
    packed_logprobs(model, batch)
    (mask,) = seen
    assert isinstance(mask, PackedMask)
    assert mask.bounds == tuple(batch.boundaries.tolist())
    assert [m.shape for m in mask.masks] == [(1, 1, n, n) for n in (17, 15, 17, 22, 24, 24)], "windows of 6"
    assert mask.masks[0] is mask.masks[2], "one mask per length"
    seen.clear()
    model = build("llama")
    model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda _, args, named: seen.append(named["attention_mask"]), with_kwargs=True
    )
    packed_logprobs(model, batch)
    assert seen[0].masks == (None,) * 6, "plain causal attention needs none"


def test_the_model_without_packed_rows_is_untouched() -> None:
    model, batch = build("llama"), padded_batch()
    with torch.no_grad():
        expected = model(input_ids=batch[0], attention_mask=batch[1]).logits
        packed_logprobs(model, Packed.from_padded(*batch))
        assert torch.equal(model(input_ids=batch[0], attention_mask=batch[1]).logits, expected)
        prompt = batch[0][4:5, :6]
        assert model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False).any()
    assert not any(str(value).startswith(PREFIX) for value in model.config.to_dict().values())


def tiny(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **options})
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def test_attention_sinks_are_the_models_own() -> None:
    model = tiny("GptOss", head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    batch = padded_batch()
    found, expected = packed_logprobs(model, Packed.from_padded(*batch)), naive(model, *batch)
    assert_same(found, expected)
    assert_same_gradients(gradients(model, found), gradients(model, expected))


def test_models_whose_sequences_would_mix_are_refused() -> None:
    batch = Packed.from_padded(*padded_batch())
    with pytest.raises(ValueError, match="BloomForCausalLM has attention of its own"):
        packed_logprobs(tiny("Bloom"), batch)
    with pytest.raises(ValueError, match="would mix packed sequences"):
        packed_logprobs(tiny("RecurrentGemma", lru_width=32, attention_window_size=6), batch)
    conv = tiny("Lfm2", layer_types=["conv", "full_attention"])
    with pytest.raises(ValueError, match=r"would mix packed sequences \(conv\)"):
        packed_logprobs(conv, batch)
    with pytest.raises(ValueError, match="not only causal"):  # attends in both directions
        packed_logprobs(
            transformers.RobertaForCausalLM(transformers.RobertaConfig(**SHAPE, hidden_act="gelu", pad_token_id=1)),
            batch,
        )


def test_what_depends_on_positions_is_refused() -> None:
    module = build("llama").model.layers[0].self_attn
    query, mask = torch.zeros(1, 4, 9, 8), PackedMask((0, 4, 9), (None, None))
    key = torch.zeros(1, 2, 9, 8)
    with pytest.raises(ValueError, match="attends by position_bias too"):
        attention._attention("sdpa", module, query, key, key, mask, position_bias=torch.zeros(1, 4, 9, 9))
    longer = torch.zeros(1, 2, 12, 8)
    with pytest.raises(ValueError, match="attends by a prefix too"):
        attention._attention("sdpa", module, query, longer, longer, mask)
    with packed_row(build("llama"), (0, 4, 9)), pytest.raises(ValueError, match="builds a mask of its own"):
        attention._attention("sdpa", module, query, key, key, None)


def test_a_layer_that_makes_its_own_mask_is_refused() -> None:
    """Were the boundaries lost on the way to a layer, it would attend across sequences."""
    model = build("llama")
    layer = model.model.layers[1].self_attn

    def drop(_: Any, args: Any, named: dict[str, Any]) -> Any:
        return args, named | {"attention_mask": None}

    layer.register_forward_pre_hook(drop, with_kwargs=True)
    with pytest.raises(ValueError, match="LlamaAttention builds a mask of its own"):
        packed_logprobs(model, Packed.from_padded(*padded_batch()))
