"""`sequence_logprobs` against the full-logits form, in every wrapping a causal language model comes in."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from families import (
    FAMILIES,
    VOCABULARY,
    Shapes,
    assert_same,
    assert_same_gradients,
    build,
    gradients,
    naive,
    padded_batch,
    twin,
)
from torch import Tensor, nn

from nashpo.llm import head as head_module
from nashpo.llm.logprobs import output_head, scored_token_logprobs, sequence_logprobs


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_full_logits_form(family: str) -> None:
    model, batch = build(family), padded_batch()
    expected, found = naive(model, *batch), sequence_logprobs(model, *batch, chunk=5)
    assert found.dtype == torch.float32
    assert found.shape == (6,)
    assert_same(found, expected)
    assert_same_gradients(gradients(model, found), gradients(model, expected))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_padding_changes_nothing(family: str) -> None:
    """Each row alone, cut to its existing tokens, gives the same number: this does not lean on the naive form."""
    model, (ids, exists, scored) = build(family), padded_batch()
    with torch.no_grad():
        found = sequence_logprobs(model, ids, exists, scored)
        for b in range(len(ids)):
            cut = [x[b : b + 1, exists[b].bool()] for x in (ids, exists, scored)]
            assert_same(found[b : b + 1], sequence_logprobs(model, *cut), 2e-5)


def test_the_gradient_of_a_tied_head_goes_to_the_tied_weight() -> None:
    model, batch = build("qwen3"), padded_batch()
    weight = model.get_input_embeddings().weight
    assert model.lm_head.weight is weight
    (found,) = torch.autograd.grad(sequence_logprobs(model, *batch).sum(), weight)
    unseen = [token for token in range(VOCABULARY) if token not in batch[0]]
    assert unseen, "some token must be absent from the batch"
    assert (found[unseen].abs().amax(1) > 0).all(), "absent tokens get a gradient through the head alone"


def test_an_empty_row_is_exactly_zero_and_so_is_its_gradient() -> None:
    model, (ids, exists, scored) = build("llama"), padded_batch()
    found = sequence_logprobs(model, ids, exists, scored)
    assert found[3].item() == 0.0
    assert all(bool((g == 0).all()) for g in torch.autograd.grad(found[3], list(model.parameters())))


def test_a_batch_without_scored_tokens() -> None:
    model, (ids, exists, scored) = build("llama"), padded_batch()
    found = sequence_logprobs(model, ids, exists, torch.zeros_like(scored))
    assert bool((found == 0).all())
    assert all(bool((g == 0).all()) for g in torch.autograd.grad(found.sum(), list(model.parameters())))


def test_a_row_of_padding_alone_leaves_the_gradients_of_others_finite() -> None:
    model, (ids, exists, scored) = build("llama"), padded_batch()
    expected = gradients(model, naive(model, ids, exists, scored))
    exists[3] = 0
    found = sequence_logprobs(model, ids, exists, scored)
    assert found[3].item() == 0.0
    assert_same_gradients(gradients(model, found), expected)


@pytest.mark.parametrize("spoiled", ["column 0", "padding", "after padding", "two", "half", "shape", "one row"])
def test_bad_masks_are_refused(spoiled: str) -> None:
    model, (ids, exists, scored) = build("llama"), padded_batch()
    says = spoiled
    if spoiled == "column 0":
        scored[4, 0] = 1
    elif spoiled == "padding":
        scored[1, 15] = 1
    elif spoiled == "after padding":
        scored[0, 7] = 1
    elif spoiled == "two":
        scored[4, 3], says = 2, "loss_mask holds other values than 0 and 1"
    elif spoiled == "half":
        exists, says = exists * 0.5, "attention_mask holds other values"
    elif spoiled == "shape":
        scored, says = scored[:, 1:], r"loss_mask \(6, 23\) must have one shape"
    else:
        ids, exists, scored, says = ids[0], exists[0], scored[0], "must have one shape"
    with pytest.raises(ValueError, match=says):
        sequence_logprobs(model, ids, exists, scored)


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_the_head_are_left_as_found(training: bool) -> None:
    model = build("llama", attention_dropout=0.5)
    model.train(training)
    model.model.layers[1].train(not training)
    modes = [module.training for module in model.modules()]
    cache = model.config.use_cache
    with torch.no_grad():
        first, second = (sequence_logprobs(model, *padded_batch()) for _ in range(2))
    assert [module.training for module in model.modules()] == modes
    assert model.config.use_cache == cache
    assert "forward" not in model.lm_head.__dict__
    assert not torch.equal(first, second), "dropout was on in one layer, and stays on"


def test_the_head_is_put_back_after_an_error_and_beside_a_hook_of_another_package() -> None:
    model, batch = build("llama"), padded_batch()
    model.lm_head.forward = hook = model.lm_head.forward  # as offloading hooks do
    with torch.no_grad():
        expected = naive(model, *batch)
        assert_same(sequence_logprobs(model, *batch), expected)
    assert model.lm_head.__dict__["forward"] is hook
    del model.lm_head.forward
    with pytest.raises(IndexError):
        scored_token_logprobs(model, batch[0] + VOCABULARY, torch.tensor([0]), torch.tensor([9]))
    assert "forward" not in model.lm_head.__dict__


def test_a_frozen_head_has_no_gradient_and_no_backward_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build("phi"), padded_batch()
    model.lm_head.requires_grad_(False)
    expected = gradients(model, naive(model, *batch))
    found = sequence_logprobs(model, *batch, chunk=7)
    monkeypatch.setattr(head_module, "_Tiles", None)  # any further work on logits would fail
    monkeypatch.setattr(head_module, "_add_product_", None)
    assert not any(name.startswith("lm_head") for name in expected)
    assert_same_gradients(gradients(model, found), expected)


def test_no_tensor_of_tokens_by_vocabulary_is_made() -> None:
    """Forward and backward: beside the weight's own shape, nothing has more than ``chunk`` rows of the vocabulary."""
    model, (ids, exists, _) = build("llama", vocab_size=1009, num_hidden_layers=1), padded_batch()
    scored = exists.clone()
    scored[:, 1:] *= exists[:, :-1]
    scored[:, 0] = 0
    weight = tuple(model.lm_head.weight.shape)

    def largest(form: Any) -> int:
        with Shapes() as shapes:
            form(model, ids, exists, scored).sum().backward()
        return max(torch.Size(s).numel() // 1009 for s in shapes.seen if 1009 in s and s not in (weight, weight[::-1]))

    assert largest(lambda *x: sequence_logprobs(*x, chunk=8)) == 8
    assert largest(naive) >= 23 * 6, "the counter must see the full logits"


class Shaped(nn.Module):
    """Puts something behind the output head of a Llama."""

    @staticmethod
    def on(model: Any, change: Any) -> Any:
        base = type(model)

        def forward(self: Any, *args: Any, **named: Any) -> Any:
            output = base.forward(self, *args, **named)
            output.logits = change(output.logits)
            return output

        model.__class__ = type("Shaped", (base,), {"forward": forward})
        return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("scale", lambda z: 1.1 * z),
        ("cap", lambda z: 30 * torch.tanh(z / 30)),
        ("one token", lambda z: z + 2 * nn.functional.one_hot(torch.tensor(41), VOCABULARY)),
        ("slice", lambda z: z[..., :-1]),
    ],
)
def test_an_unknown_shape_of_logits_is_refused(what: str, change: Any, dtype: torch.dtype) -> None:
    model = Shaped.on(build("llama").to(dtype), change)
    with pytest.raises(ValueError, match="shapes its logits after the head in a way that is not known"):
        sequence_logprobs(model, *padded_batch())


def test_a_small_unknown_scale_is_refused_in_full_precision() -> None:
    with pytest.raises(ValueError, match="not known here"):
        sequence_logprobs(Shaped.on(build("llama"), lambda z: z * 1.0001), *padded_batch())


def test_one_entry_of_the_configuration_may_divide_multiply_or_do_nothing() -> None:
    """``logits_scaling`` divides in Granite; a model that multiplies by it, or has it for something else, is seen
    through at its first forward."""
    batch = padded_batch()
    for change in (lambda z: z * 4.0, lambda z: z):
        model = Shaped.on(build("llama"), change)
        model.config.logits_scaling = 4.0
        expected = naive(model, *batch)
        for _ in range(2):
            found = sequence_logprobs(model, *batch)
            assert_same(found, expected)
            assert_same_gradients(gradients(model, found), gradients(model, naive(model, *batch)))


def test_models_that_cannot_be_scored_are_refused() -> None:
    batch = padded_batch()
    with pytest.raises(ValueError, match="LlamaModel has no linear output head"):
        sequence_logprobs(build("llama").model, *batch)
    twice = build("llama")
    forward = type(twice).forward

    def two_heads(self: Any, *args: Any, **named: Any) -> Any:
        self.lm_head(torch.zeros(6, 24, 32))
        return forward(self, *args, **named)

    twice.__class__ = type("TwoHeads", (type(twice),), {"forward": two_heads})
    with pytest.raises(ValueError, match="TwoHeads called its output head 2 times"):
        sequence_logprobs(twice, *batch)
    model = build("llama")
    model.lm_head.to("meta")
    with pytest.raises(ValueError, match="meta|in memory"):
        sequence_logprobs(model, *batch)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "phi"])
def test_bf16_gives_fp32_close_to_the_fp32_model(family: str) -> None:
    """bf16 keeps 8 bits, so a token's log-probability is off by some 2⁻⁸ · |logit| ~ 0.02 through two layers."""
    exact, batch = build(family), padded_batch()
    model = twin(exact).to(torch.bfloat16)
    exact.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    found, expected = sequence_logprobs(model, *batch, chunk=5), sequence_logprobs(exact, *batch)
    assert found.dtype == torch.float32
    assert_same(found, expected, 0.01)
    slopes, exact_slopes = gradients(model, found), gradients(exact, expected)
    for name, gradient in exact_slopes.items():
        assert slopes[name].dtype == torch.bfloat16
        relative = (slopes[name].float() - gradient).norm() / gradient.norm().clamp_min(1e-3)
        assert relative < 0.1, f"{name}: {relative:.3g}"


def test_autocast_scores_and_differentiates_like_the_full_logits_form() -> None:
    """fp32 weights under bf16 autocast, backward outside of it, as trainers do."""
    model, batch = build("phi"), padded_batch()
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = sequence_logprobs(model, *batch, chunk=5), naive(model, *batch)
    assert found.dtype == torch.float32
    assert_same(found, expected, 2e-3)
    slopes, expected_slopes = gradients(model, found), gradients(model, expected)
    for name, gradient in expected_slopes.items():
        assert slopes[name].dtype == torch.float32
        relative = (slopes[name] - gradient).norm() / gradient.norm().clamp_min(1e-3)
        assert relative < 0.03, f"{name}: {relative:.3g}"


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    model, batch = build("mistral"), padded_batch()
    model.train()
    expected = gradients(model, naive(model, *batch))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    model.zero_grad()
    found = sequence_logprobs(model, *batch)
    (torch.linspace(-1, 1.5, len(found)) * found).sum().backward()
    assert_same_gradients({name: p.grad for name, p in model.named_parameters()}, expected)


def lora(model: Any, **options: Any) -> Any:
    peft = pytest.importorskip("peft")

    torch.manual_seed(1)
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    return peft.get_peft_model(model, peft.LoraConfig(**(settings | options)))


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere"])
def test_adapters(family: str) -> None:
    model, batch = lora(build(family)), padded_batch()
    found, expected = sequence_logprobs(model, *batch, chunk=5), naive(model, *batch)
    assert_same(found, expected)
    slopes = gradients(model, found)
    assert slopes, "adapters are trained"
    assert all("lora_" in name for name in slopes)
    assert_same_gradients(slopes, gradients(model, expected))
    with model.disable_adapter(), torch.no_grad():
        reference = sequence_logprobs(model, *batch)
        assert_same(reference, naive(model, *batch))
    assert (reference - found).abs().max() > 0.1


def test_a_head_that_is_trained_beside_adapters() -> None:
    model, batch = lora(build("llama"), modules_to_save=["lm_head"]), padded_batch()
    found, expected = sequence_logprobs(model, *batch), naive(model, *batch)
    assert_same(found, expected)
    slopes = gradients(model, found)
    assert any("modules_to_save" in name for name in slopes)
    assert_same_gradients(slopes, gradients(model, expected))


def test_adapters_on_the_head_and_virtual_tokens_are_refused() -> None:
    peft = pytest.importorskip("peft")

    with pytest.raises(ValueError, match="leave lm_head out"):
        sequence_logprobs(lora(build("llama"), target_modules=["q_proj", "lm_head"]), *padded_batch())
    prompted = peft.get_peft_model(build("llama"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ValueError, match="27.* positions to its output head .* virtual tokens"):
        sequence_logprobs(prompted, *padded_batch())


def test_a_model_that_takes_no_positions() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4))
    forward = type(model).forward

    def strict(self: Any, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    model.__class__ = type("Strict", (BloomForCausalLM,), {"forward": strict})
    ids, exists, scored = padded_batch()
    logits = model(ids, exists, False).logits[:, :-1].log_softmax(-1)
    expected = (logits.gather(-1, ids[:, 1:, None])[..., 0] * scored[:, 1:]).sum(-1)
    assert_same(sequence_logprobs(model, ids, exists, scored), expected)


def test_output_head_of_a_wrapped_model() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    model = build("llama")
    assert output_head(Wrapper(Wrapper(model))) is model.lm_head


SHARDED = """
    import os, sys
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    sys.path.insert(0, {folder!r})
    import torch
    import torch.distributed as dist
    from families import assert_same, assert_same_gradients, build, gradients, naive, padded_batch
    from nashpo.llm.logprobs import sequence_logprobs
    from nashpo.llm.packing import Packed, packed_logprobs

    rank = int(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method={rendezvous!r}, rank=rank, world_size=2)

    def per_rank(model):
        # The mean over ranks of what each rank's own half of the batch gives.
        rows = [slice(0, 3), slice(3, 6)]
        halves = [tuple(x[r] for x in padded_batch()) for r in rows]
        expected = [gradients(model, naive(model, *half)) for half in halves]
        return halves[rank], {{name: (expected[0][name] + expected[1][name]) / 2 for name in expected[0]}}

    def run(model, half, form):
        model.zero_grad()
        found = form(model, half)
        (torch.linspace(-1, 1.5, 3) * found).sum().backward()
        return found

    forms = {{
        "padded": lambda model, half: sequence_logprobs(model, *half, chunk=4),
        "packed": lambda model, half: packed_logprobs(model, Packed.from_padded(*half), chunk=4),
    }}
    for family in ("llama", "qwen3"):
        for name, form in forms.items():
            plain = build(family)
            half, expected = per_rank(plain)
            values = naive(plain, *half)
            model = torch.nn.parallel.DistributedDataParallel(build(family))
            assert_same(run(model, half, form), values)
            assert_same_gradients({{n: p.grad for n, p in model.module.named_parameters()}}, expected)

            from torch.distributed.fsdp import fully_shard
            from torch.distributed.device_mesh import init_device_mesh
            mesh = init_device_mesh("cpu", (2,))
            for checkpointed in (False, True):
                model = build(family).train()
                if checkpointed:
                    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={{"use_reentrant": False}})
                for layer in model.model.layers:
                    fully_shard(layer, mesh=mesh)
                if family == "llama" and checkpointed:
                    fully_shard(model.lm_head, mesh=mesh)
                fully_shard(model, mesh=mesh)
                assert_same(run(model, half, form), values)
                found = {{n: p.grad.full_tensor() for n, p in model.named_parameters()}}
                assert_same_gradients(found, expected)
                before = [p.full_tensor().clone() for p in model.parameters()]
                torch.optim.SGD(model.parameters(), lr=0.1).step()
                assert any(not torch.equal(a, p.full_tensor()) for a, p in zip(before, model.parameters()))
    dist.destroy_process_group()
    print("rank", rank, "done")
"""


def test_data_parallel_and_fully_sharded_models(tmp_path: Path) -> None:
    """Two processes over gloo, padded and packed, with and without activation checkpointing: values and the mean of
    both ranks' gradients equal those of one process."""
    script = textwrap.dedent(SHARDED).format(
        folder=str(Path(__file__).parent), rendezvous=(tmp_path / "rendezvous").as_uri()
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        for rank, process in enumerate(ranks):
            output, _ = process.communicate(timeout=180)
            assert f"rank {rank} done" in output, output[-3000:]
    finally:
        for process in ranks:
            process.kill()
