"""Times of a dry run: by hand, by hardware, and as the packaged recipes state them."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, LlamaConfig, MistralConfig

from nashpo.core.cli import main
from nashpo.llm.flops import SHAPES, packed, shared
from nashpo.llm.hardware import HARDWARE, Cluster
from nashpo.llm.lengths import Lengths, capped
from nashpo.llm.recipe import footprint, library, outlook, timing
from nashpo.llm.recipe.counting import work
from nashpo.llm.recipe.footprint import Size
from nashpo.llm.recipe.needs import needs
from nashpo.llm.recipe.schema import ModelSpec, Recipe, load_recipe
from nashpo.llm.scale import scoring, training
from nashpo.llm.scale_memory import training_memory
from nashpo.llm.scale_runs import ASSUMED
from nashpo.llm.scale_sampling import Sampler, sampling

SEVEN_B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
CONFIGS = {
    "mistral": MistralConfig(vocab_size=32000, sliding_window=None, **SEVEN_B),
    "llama": LlamaConfig(vocab_size=128256, tie_word_embeddings=False, **SEVEN_B),
    "gemma": Gemma2Config(
        vocab_size=256000,
        hidden_size=3584,
        intermediate_size=14336,
        num_hidden_layers=42,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=256,
    ),
}
LARGE = [name for name in library.names() if re.search(r"[789]b", name)]
H200 = Cluster(HARDWARE["h200"])


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, Size]]:
    """The folder with the config.json of a recipe's model, and its size."""

    @cache
    def measured(family: str) -> tuple[str, Size]:
        folder = tmp_path_factory.mktemp(family)
        CONFIGS[family].save_pretrained(folder)
        return str(folder), footprint.measure(ModelSpec(path=str(folder)))

    return lambda name: measured(next((family for family in CONFIGS if family in name), "mistral"))


def predicted(recipe: Recipe, size: Size, cluster: Cluster = H200) -> timing.Timing:
    todo = work(recipe.rule, recipe.iterations.count)
    return timing.predict(recipe, size, todo, [20_000] * len(todo), 160, cluster, "as asked")


@pytest.mark.parametrize("name", LARGE)
def test_a_large_recipe_states_its_needs(name: str, sized: Callable[[str], tuple[str, Size]]) -> None:
    folder, size = sized(name)
    stated = re.sub(r"\s*\n# ", " ", library.text(name)[0].partition("\nmodel:")[0])
    assert needs(load_recipe(name, [f"model.path={folder}"]), size) in stated


def test_sizes_have_the_shapes_of_the_table(sized: Callable[[str], tuple[str, Size]]) -> None:
    for family, name in (("mistral", "mistral-7b"), ("llama", "llama-3-8b"), ("gemma", "gemma-2-9b")):
        size = sized(family)[1]
        assert size.shape == SHAPES[name]
        assert size.parameters == SHAPES[name].parameters
        assert 2 * size.cached == size.width * SHAPES[name].cached()


def test_times_are_the_models(sized: Callable[[str], tuple[str, Size]]) -> None:
    folder, size = sized("mistral")
    shape = SHAPES["mistral-7b"]
    recipe = load_recipe("sppo-mistral-7b", [f"model.path={folder}"])
    found = predicted(recipe, size)
    # Of the longest responses: the recipe's shards of 64 prompts, the best and the worst in every training batch.
    lengths = Lengths(ASSUMED.prompts, (2048.0,))
    drawn = sampling(shape, lengths, 20_000, 5, H200, Sampler(call=64))
    assert found.seconds["sampling"][1] == pytest.approx(3 * drawn.seconds)
    batch = shared(shape, lengths.rows(200, 2)).times(100)
    fit = timing.fit_of(recipe, size, 313)
    assert (fit.weight, fit.gradient, fit.states, fit.autocast) == (4, 4, 4, True)
    assert found.seconds["training"][1] == pytest.approx(3 * training(shape, batch, fit, H200).seconds)
    # The first iteration's start is the reference, the second and the third score two policies.
    assert found.seconds["log-probabilities"][1] == pytest.approx(5 * scoring(shape, batch, H200).seconds)
    assert found.seconds["in all"][0] == pytest.approx(sum(a for k, (a, _) in found.seconds.items() if k != "in all"))
    assert "responses of 480 tokens in the mean (all of 2,048); without evaluation" in found.told
    apart = load_recipe("sppo-mistral-7b", [f"model.path={folder}", "training.share_prefix=false"])
    ratio = predicted(apart, size).seconds["training"][0] / found.seconds["training"][0]
    rows = Lengths(ASSUMED.prompts, capped(ASSUMED.responses, 2048)).rows(200, 2)
    assert ratio == pytest.approx(packed(shape, rows).tokens / shared(shape, rows).tokens, rel=0.02)


def test_settings_change_the_times(sized: Callable[[str], tuple[str, Size]]) -> None:
    folder, size = sized("mistral")

    def seconds(*changes: str, gpus: int = 1) -> Any:
        recipe = load_recipe("sppo-mistral-7b", [f"model.path={folder}", *changes])
        return {k: a for k, (a, _) in predicted(recipe, size, Cluster(HARDWARE["h200"], gpus)).seconds.items()}

    base = seconds()
    assert seconds("sampling={engine: transformers, K: 5}")["sampling"] > 2 * base["sampling"]
    assert seconds("judge.dtype=bfloat16")["judging"] == pytest.approx(base["judging"] * 67 / 989)
    assert seconds("training.activation_checkpointing=false")["training"] < base["training"]
    assert seconds("training.num_train_epochs=2")["training"] == pytest.approx(2 * base["training"], rel=0.01)
    assert "judging" not in seconds("judge={kind: function, function: 'json:loads'}")
    assert seconds(gpus=8)["in all"] < base["in all"] / 6


def test_policies_are_scored_once(sized: Callable[[str], tuple[str, Size]]) -> None:
    """Passes in units of one: ONPO's second stage takes the reference from the first, EGPO's has other responses."""
    folder, size = sized("mistral")

    def seconds(*changes: str) -> float:
        recipe = load_recipe("sppo-mistral-7b", [f"model.path={folder}", *changes])
        return predicted(recipe, size).seconds["log-probabilities"][0]

    one = seconds("iterations.count=1")
    assert seconds("rule={name: onpo, eta: 1}", "objective=pairwise") == pytest.approx(
        (2 + 3 + 3) / 5 * seconds("objective=pairwise")
    )
    for rule, passes in (
        ("onpo, eta: 1", 2 + 3 + 3),
        ("egpo, eta: 1, tau: 0.1", 2 + 4 + 4),
        ("sppo, eta: 1", 1 + 2 + 2),
    ):
        found = seconds(f"rule={{name: {rule}}}", "objective={name: pairwise, pairs: best_worst}")
        assert found == pytest.approx(passes * one), rule
    other = seconds("reference.path=another", "iterations.count=1")
    assert other == pytest.approx(2 * one)  # the start is not the reference


def test_what_cannot_be_predicted_is_said(sized: Callable[[str], tuple[str, Size]]) -> None:
    folder, size = sized("mistral")
    recipe = load_recipe("sppo-mistral-7b", [f"model.path={folder}"])
    shape = SHAPES["llama-3-70b"]
    large = Size(shape.parameters, shape.parameters, 4, 80, 8192, 1, shape)
    assert "not predicted, 141 GB of weights do not fit 1 × h200" in predicted(recipe, large).told
    unknown = Size(10, 10, 4, 1, 1, 1)
    assert predicted(recipe, unknown).told.endswith("not predicted, the model is no decoder of a known shape")
    assert outlook.hardware(recipe, unknown, 160) == ""
    with pytest.raises(ValueError, match="nothing can be predicted"):
        needs(recipe, unknown)


def test_memory_of_a_plan_is_the_models(sized: Callable[[str], tuple[str, Size]]) -> None:
    folder, size = sized("llama")
    bf16 = ["model.dtype=bfloat16", "training.bf16_rounding=stochastic", "training.optim=rmsprop"]
    for changes, weights in (([], 4 + 4 + 4), (bf16, 2 + 2 + 4)):
        recipe = load_recipe("sppo-llama3-8b", [f"model.path={folder}", *changes])
        own = footprint.measure(recipe.model)
        tokens = outlook.micro_batch(recipe, 160)
        assert tokens == 4 * (160 + 2 * 2048)
        parts = training_memory(SHAPES["llama-3-8b"], timing.fit_of(recipe, own, 1, tokens))
        states = parts["weights"] + parts["gradients"] + parts["optimizer states"]
        assert states == weights * size.parameters
        assert parts["activations"] > 3 * parts["output head"]
    every = load_recipe("sppo-llama3-8b", [f"model.path={folder}", "objective.pairs=all"])
    assert outlook.micro_batch(every, 160) == 4 * (160 + 5 * 2048)


def test_the_gpu_is_found_or_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert timing.cluster_of(None) == (H200, "assumed: there is no GPU here; --hardware names another")
    assert timing.cluster_of("a100-40")[0].hardware.name == "a100-40"
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert timing.cluster_of("h100")[0].gpus == 8
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-40GB")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: type("P", (), {"total_memory": 42e9}))
    cluster, how = timing.cluster_of(None)
    assert (cluster.hardware.name, cluster.gpus, how) == ("a100-40", 8, "found here")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some Card")
    assert timing.cluster_of(None)[1] == "assumed: Some Card is not known; --hardware names another"


def test_the_command_takes_hardware(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """
model: {path: MODEL}
rule: {name: sppo, eta: 1}
prompts: {path: MODEL/prompts.jsonl}
sampling: {K: 2, max_new_tokens: 8}
judge: {kind: pairrm}
iterations: 1
output_dir: MODEL/run
"""
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    config.save_pretrained(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a question?"}\n' * 3)
    (tmp_path / "recipe.yaml").write_text(text.replace("MODEL", str(tmp_path)))
    assert main(["train", str(tmp_path / "recipe.yaml"), "--dry-run", "--hardware", "h100"]) == 0
    assert "time, predicted and not measured, on 1 × h100 (as asked)" in capsys.readouterr().out
    assert main(["train", str(tmp_path / "recipe.yaml"), "--dry-run", "--hardware", "h300"]) == 2
    assert "unknown hardware 'h300'" in capsys.readouterr().err
