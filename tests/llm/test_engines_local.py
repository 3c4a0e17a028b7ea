"""The transformers engines: exact draws, whatever their order and batch; ends, masks, mixtures; settings."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from engine_world import Counted, Policy, context, lent, prompt, prompts
from enumerable import World
from families import VOCABULARY, build
from scipy.stats import chisquare

from nashpo.llm.engines.config import ENGINES, ContinuousConfig, ServerConfig, TransformersConfig, VLLMConfig
from nashpo.llm.engines.continuous import ContinuousEngine, available
from nashpo.llm.engines.engine import Completion, Sampling
from nashpo.llm.engines.local import Row, TransformersEngine, batches
from nashpo.llm.engines.noise import row_key
from nashpo.llm.engines.sampler import EngineSampler
from nashpo.llm.policies import AdapterPolicies, WholeModels

RATE = 1e-6  # probability over seeds with which a correct sampler would fail one comparison; seeds are fixed


def engine(K: int = 3, max_new_tokens: int = 12, **options: Any) -> TransformersEngine:
    told = {name: options.pop(name) for name in ("tokenizer", "end_ids", "vocabulary", "progress") if name in options}
    return TransformersEngine(TransformersConfig(K=K, max_new_tokens=max_new_tokens, **options), context(**told))


def ids(answer: Sequence[Sequence[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.ids for completion in row] for row in answer]


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2"])
def test_responses_depend_on_no_order_and_no_batch_size_in_float32(family: str) -> None:
    """Rounding could change a token with a chance near 1e-6 each; among these few hundred none changes."""
    policy, asked = Policy.of(build(family)), prompts(8, VOCABULARY)
    whole = ids(engine(batch_size=16).sample(policy, asked, 7))
    for size in (1, 3):
        assert ids(engine(batch_size=size).sample(policy, asked, 7)) == whole
    assert ids(engine(batch_tokens=70).sample(policy, asked, 7)) == whole
    assert ids(engine(batch_size=5).sample(policy, asked[::-1], 7)) == whole[::-1]
    assert ids(engine(batch_size=16).sample(policy, asked[2:3], 7)) == whole[2:3]
    assert ids(engine(K=2).sample(policy, asked, 7)) == [row[:2] for row in whole]
    assert ids(engine().sample(policy, asked, 8)) != whole
    assert len({row for answer in whole for row in answer}) == 24


def test_a_shard_drawn_again_is_the_same_bit_for_bit() -> None:
    """Also after other draws, from another engine, and whatever state torch's generator is in."""
    policy, asked = Policy.of(build("llama")), prompts(9, VOCABULARY)
    first = engine().sample(policy, asked[:5], 3)
    used = engine()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    used.sample(policy, asked[5:], 3)
    assert used.sample(policy, asked[:5], 3) == first
    assert torch.equal(torch.get_rng_state(), state)


WORLD = World(V=3, L=3, prompts=((0, 1), (2, 0, 1), (1,)))


def counts(answer: Sequence[Sequence[Completion]]) -> np.ndarray:
    place = {completion: i for i, completion in enumerate(WORLD.completions)}
    return np.array([np.bincount([place[c.ids] for c in row], minlength=WORLD.n) for row in answer])


def token_wise(models: Sequence[tuple[float, Any]]) -> np.ndarray:
    """The token-wise mixture by fresh forwards, (prompts, n)."""
    result = np.zeros((len(WORLD.prompts), WORLD.n))
    for b, start in enumerate(WORLD.prompts):
        for i, completion in enumerate(WORLD.completions):
            for t, token in enumerate(completion):
                row = torch.tensor([[*start, *completion[:t]]])
                with torch.no_grad():
                    mixed = sum(a * model(row).logits[0, -1].double().log_softmax(-1) for a, model in models)
                result[b, i] += float(mixed.log_softmax(-1)[token])
    return np.exp(result)


def test_draws_are_the_policys_and_the_token_wise_mixtures() -> None:
    """χ² over all 27 responses of 3 prompts; the policy's draws are told from the mixture's."""
    first, second = WORLD.model(0), WORLD.model(1)
    asked = [prompt(*ids) for ids in WORLD.prompts]
    drawing = engine(K=1500, max_new_tokens=3, batch_size=1000, end_ids=())
    alone, mixture = token_wise([(1, first)]), token_wise([(0.4, first), (0.6, second)])
    mixed = Policy([(0.4, partial(lent, first)), (0.6, partial(lent, second))])
    plain = counts(drawing.sample(Policy.of(first), asked, 0))
    blend = counts(drawing.sample(mixed, asked, 0))
    for b in range(3):
        assert chisquare(plain[b], 1500 * alone[b] / alone[b].sum()).pvalue > RATE
        assert chisquare(blend[b], 1500 * mixture[b] / mixture[b].sum()).pvalue > RATE
        assert chisquare(blend[b], 1500 * alone[b] / alone[b].sum()).pvalue < RATE


def test_a_mixture_depends_on_no_batch_size_either() -> None:
    parts = [(0.7, partial(lent, build("llama", 0))), (0.3, partial(lent, build("llama", 1)))]
    asked = prompts(6, VOCABULARY)
    whole = ids(engine(batch_size=18).sample(Policy(parts), asked, 0))
    assert ids(engine(batch_size=4).sample(Policy(parts), asked[::-1], 0)) == whole[::-1]
    assert ids(engine().sample(Policy(parts[:1]), asked, 0)) != whole


def test_responses_end_at_any_end_token_and_hold_no_unknown_ids() -> None:
    answer = engine(K=20, max_new_tokens=8, end_ids=(1, 4), vocabulary=9).sample(
        Policy.of(build("llama")), prompts(4, 9), 0
    )
    rows = [completion for row in answer for completion in row]
    assert {token for c in rows for token in c.ids} == set(range(9))
    assert {c.ids[-1] for c in rows if c.finished} == {1, 4}
    for c in rows:
        assert not {1, 4} & set(c.ids[:-1])
        assert c.finished == (c.ids[-1] in (1, 4))
        assert c.finished or len(c.ids) == 8


def test_text_is_decoded_without_special_tokens(byte_tokenizer: Callable[..., Any], tiny_llama: Any) -> None:
    tokenizer, seen = byte_tokenizer(), Counted()
    drawing = engine(K=2, max_new_tokens=200, tokenizer=tokenizer, vocabulary=len(tokenizer), progress=seen)
    drawing = TransformersEngine(TransformersConfig(K=2, max_new_tokens=200, batch_size=4), drawing.context)
    answer = drawing.sample(Policy.of(tiny_llama()), prompts(3, 259), 0)
    rows = [completion for row in answer for completion in row]
    assert any(c.finished for c in rows)
    for c in rows:
        assert c.text == tokenizer.decode([token for token in c.ids if token > 2])
        assert Completion.from_json(c.to_json()) == c
    assert seen.calls == [4, 2]


def test_the_model_is_left_as_it_was_found_and_its_own_settings_are_not_asked() -> None:
    """A chat model's generation_config has a temperature, a repetition penalty, end tokens: the recipe alone decides.
    Dropout is off while it generates."""
    plain, special = build("llama"), build("llama", attention_dropout=0.5)
    asked = prompts(4, VOCABULARY)
    special.train()
    special.lm_head.eval()
    own = special.generation_config
    own.update(repetition_penalty=5.0, temperature=0.1, do_sample=True, eos_token_id=[5, 6], max_length=3)
    before = own.to_dict()
    expected = engine().sample(Policy.of(plain), asked, 0)
    assert engine().sample(Policy.of(special), asked, 0) == expected
    assert special.generation_config is own
    assert own.to_dict() == before
    assert special.training
    assert special.model.training
    assert not special.lm_head.training
    assert special.model.layers[0].self_attn.attention_dropout == 0.5
    with pytest.raises(ValueError, match="positions"):
        engine(max_new_tokens=600).sample(Policy.of(special), asked, 0)
    assert special.generation_config is own
    assert special.training


def test_adapters_on_one_base_are_sampled_like_models_of_their_own() -> None:
    peft = pytest.importorskip("peft")
    base, asked = build("llama"), prompts(4, VOCABULARY)
    expected = ids(engine().sample(Policy.of(build("llama")), asked, 0))
    policies = AdapterPolicies(base, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with policies.train("start") as module:
        generator = torch.Generator().manual_seed(0)
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator)
        policies.save("first", module)
    start, first = (Policy([(1.0, partial(policies.use, name))]) for name in ("start", "first"))
    assert ids(engine().sample(start, asked, 0)) == expected
    changed = ids(engine().sample(first, asked, 0))
    assert changed != expected
    mixed = Policy([(0.5, partial(policies.use, "first")), (0.5, partial(policies.use, "start"))])
    assert ids(engine().sample(mixed, asked, 0)) not in (changed, expected)
    assert ids(engine().sample(first, asked, 0)) == changed


def test_what_cannot_be_drawn_is_refused_in_one_line() -> None:
    model = build("llama")
    with pytest.raises(ValueError, match="no token"):
        engine().sample(Policy.of(model), [prompt()], 0)
    with pytest.raises(ValueError, match="256 positions: lower max_new_tokens"):
        engine().sample(Policy.of(model), [prompt(*[3] * 250)], 0)
    with pytest.raises(ValueError, match="end token 97 is outside"):
        engine(end_ids=(1, 97), vocabulary=97).check()
    engine(vocabulary=97).check()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"policy 'iterate' gives logits that are not numbers"):
        engine().sample(Policy.of(model), prompts(2, VOCABULARY), 0)


def test_batches_hold_like_lengths_within_both_bounds() -> None:
    rows = [Row((5,) * length, f"{length}", k, place) for place, length in enumerate((3, 9, 1, 30)) for k in range(4)]
    found = list(batches(rows, 5, 60, 10))
    assert sorted((row.place, row.k) for batch in found for row in batch) == [
        (p, k) for p in range(4) for k in range(4)
    ]
    lengths = [len(row.ids) for batch in found for row in batch]
    assert lengths == sorted(lengths, reverse=True)
    for batch in found:
        assert len(batch) == 1 or len(batch) * (len(batch[0].ids) + 10) <= 60
        assert len(batch) <= 5
    assert [len(batch) for batch in batches(rows, 5, 20, 10)][:4] == [1, 1, 1, 1]  # 40 tokens stand alone
    assert [len(batch) for batch in batches(rows, 7, 1000, 10)] == [7, 7, 2]
    alike = [Row((5, 6), key, k, place) for place, key in enumerate("cab") for k in range(2)]
    assert list(batches(alike, 4, None, 10)) == list(batches(alike[::-1], 4, None, 10))


def test_the_sampler_of_a_fit_can_be_an_engine() -> None:
    policies = WholeModels(WORLD.model(0))
    sampler = EngineSampler(engine(K=4, max_new_tokens=3, end_ids=()))
    parts = [(1.0, partial(policies.use, "start"))]
    found = sampler(parts, WORLD.prompts, 5)
    assert found.weights.tolist() == [[0.25] * 4] * 3
    assert all(s.ids[: len(p)] == p for row, p in zip(found.sequences, WORLD.prompts, strict=True) for s in row)
    assert found.sequences == sampler(parts, WORLD.prompts, 5).sequences


def test_descriptions_name_engine_versions_and_sampling() -> None:
    described = engine(K=2, temperature=0.7).describe()
    assert described["engine"] == "transformers"
    assert described["versions"]["transformers"] == transformers.__version__
    assert described["sampling"]["temperature"] == 0.7
    assert described["sampling"]["exact"] is False
    assert described["reproducible"] is True


def test_a_key_holds_its_parts_apart() -> None:
    assert len({row_key(1, "1", 1), row_key(11, "", 1), row_key(1, "11", 1), row_key(1, "1", 11)}) == 4


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: TransformersConfig(K=0), "sampling.K is 0"),
        (lambda: TransformersConfig(K=True), "sampling.K is True"),
        (lambda: TransformersConfig(max_new_tokens=0), "sampling.max_new_tokens"),
        (lambda: TransformersConfig(temperature=0), "sampling.temperature is 0"),
        (lambda: TransformersConfig(temperature=float("nan")), "sampling.temperature is nan"),
        (lambda: TransformersConfig(top_p=0.0), "sampling.top_p is 0.0"),
        (lambda: TransformersConfig(top_p=1.1), "sampling.top_p is 1.1"),
        (lambda: TransformersConfig(top_k=-1), "0 keeps every token"),
        (lambda: TransformersConfig(min_p=2), "sampling.min_p is 2"),
        (lambda: TransformersConfig(shard=0), "sampling.shard"),
        (lambda: TransformersConfig(batch_size=0), "sampling.batch_size"),
        (lambda: TransformersConfig(batch_tokens=0), "sampling.batch_tokens"),
        (lambda: ContinuousConfig(options={"seed": 1}), "sampling.options.seed"),
        (lambda: VLLMConfig(gpu_memory_utilization=1.5), "sampling.gpu_memory_utilization"),
        (lambda: VLLMConfig(options={"model": "x"}), "sampling.options.model"),
        (lambda: VLLMConfig(options={"hf_token": "secret"}), "the environment"),
        (lambda: ServerConfig(), "sampling.url is ''"),
        (lambda: ServerConfig(url="localhost:8000"), "sampling.url"),
        (lambda: ServerConfig(url="http://me:secret@host/v1"), "api_key_env"),
        (lambda: ServerConfig(url="http://host/v1", api_key_env="sk-123"), "name of an environment variable"),
        (lambda: ServerConfig(url="http://host/v1", model="fixed"), "the same weights"),
        (lambda: ServerConfig(url="http://host/v1", weights="command:"), "sampling.weights"),
        (lambda: ServerConfig(url="http://host/v1", timeout=0), "sampling.timeout"),
        (lambda: ServerConfig(url="http://host/v1", concurrency=0), "sampling.concurrency"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(make: Callable[[], Any], line: str) -> None:
    with pytest.raises(ValueError) as told:
        make()
    assert line in str(told.value)
    assert "\n" not in str(told.value)
    assert "secret" not in str(told.value)
    assert "sk-123" not in str(told.value)


def test_settings_are_read_without_torch() -> None:
    code = "import sys, nashpo.llm.engines.config; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_every_setting_has_a_line_of_help_and_builds_its_sampling() -> None:
    for config in ENGINES.values():
        assert all(field.metadata["help"] for field in fields(config))
    assert TransformersConfig(K=2, top_k=3).sampling() == Sampling(K=2, top_k=3)
    assert Sampling().exact


def test_continuous_batching_draws_k_responses_and_leaves_the_model_and_the_generator_alone() -> None:
    """The engine of its own on a small cache: bounds, ends, masks and counts; its draws are its own."""
    if not available():
        pytest.skip("this transformers has no continuous batching")
    known = {field.name for field in fields(transformers.generation.configuration_utils.ContinuousBatchingConfig)}
    small = {"page_size" if "page_size" in known else "block_size": 16, "num_blocks": 64, "max_batch_tokens": 64}
    seen, model, asked = Counted(), build("llama"), prompts(3, 90)
    own, attention, state = model.generation_config, model.config._attn_implementation, torch.get_rng_state()
    config = ContinuousConfig(K=2, max_new_tokens=6, options=small)
    drawing = ContinuousEngine(config, context(end_ids=(1, 4), vocabulary=90, progress=seen))
    drawing.check()
    answer = drawing.sample(Policy.of(model), asked, 0)
    assert [len(row) for row in answer] == [2, 2, 2]
    assert seen.calls == [6]
    rows = [completion for row in answer for completion in row]
    assert len({c.ids for c in rows}) > 3
    for c in rows:
        assert max(c.ids) < 90
        assert c.finished == (c.ids[-1] in (1, 4))
        assert c.finished or len(c.ids) == 6
    assert model.generation_config is own
    assert model.config._attn_implementation == attention
    assert torch.equal(torch.get_rng_state(), state)
    assert drawing.describe()["reproducible"] is False
    with pytest.raises(ValueError, match="mixture of 2"):
        drawing.sample(Policy([(0.5, partial(lent, model)), (0.5, partial(lent, model))]), asked, 0)
    with pytest.raises(ValueError, match=r"sampling\.options"):
        ContinuousEngine(ContinuousConfig(options={"pages": 3}), context()).check()
