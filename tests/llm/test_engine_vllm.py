"""The vLLM engine against an imitation of vLLM's interface that answers with a known function of what it is told."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from engine_world import Counted, Policy, context, prompt

from nashpo.llm.engines.config import VLLMConfig
from nashpo.llm.engines.vllm_engine import NEVER, VLLMEngine

FIELDS = {
    *("n", "seed", "temperature", "top_p", "top_k", "min_p", "max_tokens", "stop_token_ids", "ignore_eos"),
    *("detokenize", "logit_bias"),
}


class SamplingParams:
    """Takes exactly the fields that are used here, as vLLM names them."""

    def __init__(self, **fields: Any) -> None:
        assert set(fields) == FIELDS
        assert fields["n"] >= 1
        assert 0 < fields["top_p"] <= 1
        self.__dict__.update(fields)


class LLM:
    """Response i to a prompt is its first token, then a token made from its seed s + i, then an end token or a cut."""

    made: list["LLM"] = []
    reason: str | None = None

    def __init__(self, model: str, **options: Any) -> None:
        assert all(other.stopped for other in self.made), "two engines hold the GPU at one time"
        self.model, self.options, self.stopped, self.told = model, options, False, []
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self.stop))
        self.made.append(self)

    def stop(self) -> None:
        self.stopped = True

    def generate(self, prompts: list[dict[str, Any]], params: list[SamplingParams], *, use_tqdm: bool) -> list[Any]:
        assert not self.stopped
        self.told += params
        answers = []
        for asked, told in zip(prompts, params, strict=True):
            ids = asked["prompt_token_ids"]
            outputs = []
            for i in range(told.n):
                token = 10 + (told.seed + i) % 80
                row = [ids[0], token, told.stop_token_ids[token % 2]] if token % 3 else [token] * told.max_tokens
                reason = self.reason or ("stop" if token % 3 else "length")
                outputs.append(SimpleNamespace(token_ids=tuple(row), finish_reason=reason, stop_reason=None))
            answers.append(SimpleNamespace(outputs=outputs))
        return answers


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    module = ModuleType("vllm")
    module.__dict__.update(LLM=LLM, SamplingParams=SamplingParams, __version__="0.imitation")
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(LLM, "made", [])
    monkeypatch.setattr(LLM, "reason", None)
    return LLM


@pytest.fixture
def policy(tmp_path: Path) -> Callable[..., Policy]:
    def make(name: str = "one", **config: Any) -> Policy:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"vocab_size": 100, "max_position_embeddings": 64, **config}))
        return Policy(where=folder, name=name)

    return make


ASKED = [prompt(5, 6), prompt(7), prompt(8, 9, 9)]


def test_it_draws_k_seeded_responses_from_the_folders_weights(vllm: type[LLM], policy: Callable[..., Policy]) -> None:
    seen = Counted()
    config = VLLMConfig(K=6, max_new_tokens=5, temperature=0.8, top_p=0.9, top_k=7, min_p=0.1, options={"quirk": 1})
    engine = VLLMEngine(config, context(end_ids=(1, 4), vocabulary=97, progress=seen))
    engine.check()
    assert engine.describe()["versions"]["vllm"] == "0.imitation"
    assert engine.describe()["reproducible"] is False
    answer = engine.sample(policy(), ASKED, 3)
    assert seen.calls == [18]
    rows = [c for row in answer for c in row]
    assert {c.finished for c in rows} == {True, False}
    for c in rows:
        assert c.finished == (c.ids[-1] in (1, 4))
        assert c.finished or len(c.ids) == 5
    (made,) = vllm.made
    assert Path(made.model) == policy().folder()
    assert made.options["generation_config"] == "vllm"
    assert made.options["quirk"] == 1
    assert "max_model_len" not in made.options
    told = made.told[0]
    assert (told.n, told.temperature, told.top_p, told.top_k, told.min_p, told.max_tokens) == (6, 0.8, 0.9, 7, 0.1, 5)
    assert (told.stop_token_ids, told.ignore_eos, told.detokenize) == ([1, 4], True, False)
    assert told.logit_bias == {97: NEVER, 98: NEVER, 99: NEVER}
    assert len({params.seed for params in made.told}) == 3


def test_seeds_belong_to_prompts_and_a_shard_is_the_same_again(vllm: type[LLM], policy: Callable[..., Policy]) -> None:
    def sample(asked: list[Any], seed: int) -> list[Any]:
        engine = VLLMEngine(VLLMConfig(K=4, max_new_tokens=5), context(end_ids=(1, 4)))
        try:
            return engine.sample(policy(), asked, seed)
        finally:
            engine.close()

    first = sample(ASKED, 0)
    assert sample(ASKED, 0) == first
    assert sample(ASKED[::-1], 0) == first[::-1]
    assert sample(ASKED, 1) != first
    assert vllm.made[0].told[0].logit_bias is None


def test_one_engine_runs_at_a_time_and_close_frees_it(vllm: type[LLM], policy: Callable[..., Policy]) -> None:
    engine = VLLMEngine(VLLMConfig(K=1, max_new_tokens=5, max_model_len=32), context(end_ids=(1, 4)))
    for name in ("one", "one", "two"):
        engine.sample(policy(name), ASKED, 0)
    assert [Path(made.model).name for made in vllm.made] == ["one", "two"]
    assert [made.stopped for made in vllm.made] == [True, False]
    engine.close()
    engine.close()
    assert all(made.stopped for made in vllm.made)
    engine.sample(policy("two"), ASKED, 0)
    assert len(vllm.made) == 3
    assert vllm.made[2].options["max_model_len"] == 32


def test_what_it_cannot_do_is_told_in_one_line(
    vllm: type[LLM], policy: Callable[..., Policy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = VLLMEngine(VLLMConfig(K=1, max_new_tokens=5), context(end_ids=(1, 4)))
    with pytest.raises(ValueError, match="mixture"):
        engine.sample(Policy(), ASKED, 0)
    with pytest.raises(ValueError, match=r"no config\.json"):
        engine.sample(Policy(where=tmp_path), ASKED, 0)
    with pytest.raises(ValueError, match="64 positions"):
        engine.sample(policy(), [prompt(*[5] * 60)], 0)
    with pytest.raises(ValueError, match="12 positions"):
        engine.sample(policy(text_config={"max_position_embeddings": 12}), [prompt(*[5] * 8)], 0)
    assert vllm.made == []
    monkeypatch.setattr(LLM, "reason", "abort")
    with pytest.raises(ValueError, match="by 'abort'"):
        engine.sample(policy(), ASKED, 0)
    with pytest.raises(ValueError, match="below 0.01"):
        VLLMEngine(VLLMConfig(temperature=0.001), context()).check()
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match="needs the package vllm"):
        engine.check()
