"""The plain loop: what it checks before it trains, what changes nothing, and how it stops."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from enumerable import ADAM, World, tiny_llama
from numpy.testing import assert_allclose
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from nashpo.llm.fit import NonFiniteLoss, Packing, Padding, Progress, Settings, fit, policy_logprobs, without_dropout
from nashpo.llm.objectives import Labelled, Losses, Pairwise, Pointwise, StageTensors
from nashpo.llm.responses import Padded, Responses, Scored, StageData

WORLD = World()
SETTINGS = Settings(steps=3, optimizer=ADAM)


def ragged_pairs(count: int = 6, vocabulary: int = 11) -> StageData:
    """Pairs of different lengths, one of them a conversation with two scored spans."""
    generator = torch.Generator().manual_seed(0)

    def sequence(b: int, extra: int) -> Scored:
        ids = tuple(torch.randint(vocabulary, (4 + b % 3 + extra,), generator=generator).tolist())
        mask = tuple(int(t >= 2 and not (b == 1 and t == 3)) for t in range(len(ids)))
        return Scored(ids, mask)

    chosen, rejected = [sequence(b, 0) for b in range(count)], [sequence(b, 2) for b in range(count)]
    return StageData.from_pairs(chosen, rejected, step=1.0, names=[f"pair-{b}" for b in range(count)])


def fitted(data: StageData, settings: Settings, seed: int = 0) -> dict[str, Tensor]:
    model = tiny_llama(11, 3)
    base = policy_logprobs(model, data.responses, settings.layout, settings.micro)
    fit(model, data, [(1.0, base)], Labelled(), settings, seed)
    return model.state_dict()


@pytest.mark.parametrize(
    "other",
    [
        replace(SETTINGS, micro=1),
        replace(SETTINGS, micro=4),
        replace(SETTINGS, layout=Padding()),
        replace(SETTINGS, layout=Padding(left=True)),
        replace(SETTINGS, batch=100),
    ],
    ids=["micro 1", "micro 4", "padded right", "padded left", "a batch larger than the data"],
)
def test_layout_and_accumulation_change_nothing(other: Settings) -> None:
    """Three steps of gradient descent give the same weights, to what fp32 rounding of the gradients leaves."""
    data = ragged_pairs()
    sgd = partial(torch.optim.SGD, lr=2e-3)
    expected = fitted(data, replace(SETTINGS, optimizer=sgd))
    found = fitted(data, replace(other, optimizer=sgd))
    for name, value in expected.items():
        assert_allclose(found[name].numpy(), value.numpy(), rtol=0, atol=1e-6)
    start = tiny_llama(11, 3).state_dict()
    assert max((expected[name] - start[name]).abs().max() for name in start) > 1e-3


def test_batches_are_drawn_from_the_seed() -> None:
    data, settings = ragged_pairs(), replace(SETTINGS, batch=2, steps=4)
    first, again, other = (fitted(data, settings, seed)["lm_head.weight"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_prompt_is_seen_once_per_pass() -> None:
    data, seen = ragged_pairs(), []

    def watch(data: StageData, log_base: Tensor) -> object:
        return lambda progress: seen.append(progress.prompts)

    fitted(data, replace(SETTINGS, batch=2, steps=6, watch=watch))  # type: ignore[arg-type]
    passes = [sorted(b for batch in seen[i : i + 3] for b in batch) for i in (0, 3)]
    assert passes == [[0, 1, 2, 3, 4, 5]] * 2


def test_an_observer_ends_a_fit_before_the_update() -> None:
    data = ragged_pairs()

    def watch(data: StageData, log_base: Tensor) -> object:
        def reached(progress: Progress) -> bool:
            assert progress.log_ratio.abs().max() < 1e-5
            return True

        return reached

    found = fitted(data, replace(SETTINGS, watch=watch))  # type: ignore[arg-type]
    for name, value in tiny_llama(11, 3).state_dict().items():
        assert torch.equal(found[name], value)


# ------------------------------------------------------------------------------------------------ the first log-ratio


def test_first_ratio_is_zero_and_reported() -> None:
    data, model = ragged_pairs(), tiny_llama(11, 3)
    base = policy_logprobs(model, data.responses, Packing())
    report = fit(model, data, [(1.0, base)], Labelled(), replace(SETTINGS, steps=60), 0)
    assert report.first_ratio <= 1e-5
    assert report.allowed_ratio == 1e-4
    assert report.steps == 60
    assert_allclose(report.first_loss, 0.25, rtol=0, atol=1e-5)
    assert report.last_loss < report.first_loss


@pytest.mark.parametrize("break_it", ["stale", "padding", "dtype"])
def test_a_first_ratio_that_is_not_zero_is_refused(break_it: str) -> None:
    data, model = ragged_pairs(), tiny_llama(11, 3)
    base = {
        "stale": lambda: policy_logprobs(tiny_llama(11, 4), data.responses, Packing()),
        "padding": lambda: padded_tokens_counted(model, data.responses),
        "dtype": lambda: policy_logprobs(tiny_llama(11, 3).bfloat16(), data.responses, Packing()),
    }[break_it]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="dropout that is on") as error:
        fit(model, data, [(1.0, base)], Labelled(), SETTINGS, 0)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    fit(model, data, [(1.0, base)], Labelled(), SETTINGS, 0, started=None)


def padded_tokens_counted(model: nn.Module, responses: Responses) -> Tensor:
    prompts = list(range(len(responses)))
    batch = Padded.from_sequences(responses.rows(prompts))
    with torch.no_grad():
        logits = model(batch.input_ids).logits[:, :-1].log_softmax(-1)
    tokens = logits.gather(-1, batch.input_ids[:, 1:, None])[..., 0]
    counted = batch.loss_mask[:, 1:].bool() | ~batch.attention_mask[:, 1:].bool()
    return responses.grid((tokens * counted).sum(-1), prompts).double()


def test_bf16_is_held_to_the_spread_between_packings() -> None:
    data, model = ragged_pairs(), tiny_llama(11, 3).bfloat16()
    base = policy_logprobs(model, data.responses, Padding())
    report = fit(model, data, [(1.0, base)], Labelled(), replace(SETTINGS, layout=Padding()), 0)
    assert report.first_ratio <= report.allowed_ratio
    with pytest.raises(ValueError, match="before any update"):
        fit(model, data, [(1.0, base + 2.0)], Labelled(), replace(SETTINGS, layout=Padding()), 0)


def dropout_llama() -> LlamaForCausalLM:
    model = tiny_llama(11, 3)
    config = LlamaConfig(**{**model.config.to_dict(), "attention_dropout": 0.5})
    other = LlamaForCausalLM(config)
    other.load_state_dict(model.state_dict())
    return other


def test_dropout_is_off_in_training_too_and_put_back() -> None:
    data, model = ragged_pairs(), dropout_llama()
    for layout in (Packing(), Padding()):
        base = policy_logprobs(model, data.responses, layout)
        report = fit(model, data, [(1.0, base)], Labelled(), replace(SETTINGS, steps=1, layout=layout), 0)
        assert report.first_ratio <= 1e-4
    assert model.model.layers[0].self_attn.attention_dropout == 0.5
    with without_dropout(model):
        assert model.model.layers[0].self_attn.attention_dropout == 0.0
    model.train()
    noisy = [Padding().logprobs(model, data.responses.rows([0, 1])) for _ in range(2)]
    assert not torch.equal(*noisy)


def test_the_mode_is_left_as_found() -> None:
    data, model = ragged_pairs(), tiny_llama(11, 3)
    for training in (True, False):
        model.train(training)
        base = policy_logprobs(model, data.responses, Packing())
        fit(model, data, [(1.0, base)], Labelled(), SETTINGS, 0)
        assert model.training is training


# -------------------------------------------------------------------------------------------------------- bad input


class Overflowing(Pairwise):
    """A loss that is infinite on one prompt."""

    def losses(self, stage: StageTensors) -> Losses:
        values, weights = super().losses(stage)
        return values * math.inf, weights


def test_a_non_finite_loss_stops_and_saves_the_batch(tmp_path: Path) -> None:
    data, model = ragged_pairs(), tiny_llama(11, 3)
    base = policy_logprobs(model, data.responses, Packing())
    with pytest.raises(NonFiniteLoss, match=r"2 prompts are named in .*nonfinite-batch.json"):
        fit(model, data, [(1.0, base)], Overflowing(), replace(SETTINGS, batch=2, folder=tmp_path), 0)
    saved = json.loads((tmp_path / "nonfinite-batch.json").read_text())
    assert saved["step"] == 0
    assert len(saved["prompts"]) == 2
    assert set(saved["prompts"]) <= set(data.responses.names)
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())


def test_settings_and_sequences_are_checked() -> None:
    with pytest.raises(ValueError, match="steps = 0"):
        Settings(steps=0)
    with pytest.raises(ValueError, match="first token"):
        Scored((1, 2), (1, 1))
    with pytest.raises(ValueError, match="2 tokens and a loss mask of 1"):
        Scored((1, 2), (1,))


def test_united_responses_weigh_every_policy_the_same() -> None:
    one, two = Scored((0, 1), (0, 1)), Scored((0, 2), (0, 1))
    first = Responses.drawn([[one, two]])
    second = Responses.drawn([[one, one, one]])
    both = Responses.united([first, second])
    assert both.sequences == ((one, two, one, one, one),)
    assert_allclose(both.weights.numpy(), [[1 / 4, 1 / 4, 1 / 6, 1 / 6, 1 / 6]], rtol=1e-15)
    assert Responses.from_json(json.loads(json.dumps(both.to_json()))).sequences == both.sequences


def test_pointwise_needs_no_pairs() -> None:
    """One response per prompt is enough for SPPO's loss."""
    responses = Responses.drawn([[Scored((0, 1, 2), (0, 1, 1))], [Scored((2, 1), (0, 1))]])
    data = StageData(responses, torch.tensor([[0.3], [-0.2]], dtype=torch.float64), step=1.0)
    model = tiny_llama(3, 0)
    base = policy_logprobs(model, responses, Packing())
    report = fit(model, data, [(1.0, base)], Pointwise(), replace(SETTINGS, steps=60), 0)
    assert report.last_loss < 1e-2 * report.first_loss
