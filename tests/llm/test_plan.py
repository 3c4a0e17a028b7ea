"""The dry run: counts against the rule's form, sizes against published ones, and what it refuses."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import Gemma2Config, LlamaConfig, MistralConfig

from nashpo.core.rules import COMAL, DPO, EGPO, INPO, ONPO, SPAC, SPPO, NashMD, Rule
from nashpo.llm.recipe import footprint, library
from nashpo.llm.recipe.counting import updates, work
from nashpo.llm.recipe.plan import plan
from nashpo.llm.recipe.planned import Plan
from nashpo.llm.recipe.schema import ModelSpec, load_recipe, parse_recipe

SEVEN_B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
PUBLISHED: dict[str, tuple[Any, int]] = {
    "mistral": (MistralConfig(vocab_size=32000, num_key_value_heads=8, **SEVEN_B), 7_241_732_096),
    "llama": (
        LlamaConfig(vocab_size=128256, num_key_value_heads=8, tie_word_embeddings=False, **SEVEN_B),
        8_030_261_248,
    ),
    "gemma": (
        Gemma2Config(
            vocab_size=256000,
            hidden_size=3584,
            intermediate_size=14336,
            num_hidden_layers=42,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=256,
        ),
        9_241_705_984,
    ),
}
"""Configurations of the papers' models, and the numbers of their parameters as the checkpoints have them."""

SMALL = """
model: {path: MODEL}
rule: {name: onpo, eta: 1}
prompts: {path: PROMPTS, heldout: 10}
sampling: {K: 4, max_new_tokens: 20, batch_size: 8}
judge: {kind: pairrm}
training: {per_device_train_batch_size: 4, num_train_epochs: 2}
iterations: 3
evaluation: {}
output_dir: OUT/run
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with config.json alone for every published model, and a file of prompts and pairs."""
    made = {}
    for name, (config, _) in PUBLISHED.items():
        made[name] = tmp_path_factory.mktemp(name)
        config.save_pretrained(made[name])
    made["data"] = tmp_path_factory.mktemp("data") / "data.jsonl"
    rows = []
    for i in range(700):
        turn = {"role": "user", "content": f"What is {i} times {i}?"}
        answers = [[turn, {"role": "assistant", "content": text}] for text in ("yes", "no")]
        rows.append(
            {"prompt": turn["content"], "context_messages": [turn], "chosen": answers[0], "rejected": answers[1]}
        )
    made["data"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


@pytest.fixture
def small(tmp_path: Path) -> dict[str, str]:
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    config.save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"prompt {i:03d}!"} for i in range(70)]  # 11 characters
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"MODEL": str(tmp_path / "model"), "PROMPTS": str(tmp_path / "prompts.jsonl"), "OUT": str(tmp_path)}


def planned(small: dict[str, str], *overrides: str) -> Plan:
    text = SMALL
    for name, value in small.items():
        text = text.replace(name, value)
    return plan(parse_recipe(text, "the test", overrides))


# ---------------------------------------------------------------------------------------------------- the rules' work


@pytest.mark.parametrize(
    ("rule", "asked", "sampled", "trained"),
    [
        (SPPO(1.0), 5, [1] * 5, 1),
        (ONPO(1.0), 5, [1] * 5, 2),
        (ONPO(1.0, "one_step"), 9, [1, 2, 2, 2, 2], 1),
        (ONPO(1.0, "leader"), 10, [1, 2, 3, 4, 5], 1),
        (EGPO(0.5, 0.5), 10, [2] * 5, 2),
        (INPO(0.5, 0.5), 5, [1] * 5, 1),
        (NashMD(0.5, 0.5), 5, [1] * 5, 1),
        (COMAL(0.5, 0.5, 2), 5, [1] * 5, 1),
        (SPAC(1.0, 1.0, 1.0), 5, [1] * 5, 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Rule) else None,
)
def test_what_five_iterations_ask_sample_and_train(rule: Rule, asked: int, sampled: list[int], trained: int) -> None:
    done = work(rule, 5)
    assert sum(len(one.asks) for one in done) == asked
    assert [len(one.samples()) for one in done] == sampled
    assert {len(one.fits) for one in done} == {trained}


def test_comparisons_are_counted_once() -> None:
    own, cross = 5 * 4 // 2, 5 * 5
    assert [one.comparisons(5) for one in work(ONPO(1.0), 2)] == [own, own]
    assert [one.comparisons(5) for one in work(ONPO(1.0, "one_step"), 2)] == [own, own + cross]
    assert [one.comparisons(5) for one in work(ONPO(1.0, "leader"), 3)] == [own, own + cross, own + 2 * cross]
    assert [one.comparisons(5) for one in work(EGPO(0.5, 0.5), 1)] == [2 * own]
    assert work(SPAC(1.0, 1.0, 1.0), 1)[0].comparisons(5) == 0
    offline = work(DPO(0.1), 1)[0]
    assert (offline.samples(), offline.comparisons(5), len(offline.fits)) == (set(), 0, 1)


def test_steps_are_the_trainers() -> None:
    training = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "num_train_epochs": 1}
    assert updates(64, training) == 2
    assert updates(65, training) == 3
    assert updates(65, {**training, "num_train_epochs": 2.5}) == 8
    assert updates(1, training) == 1
    assert updates(65, {**training, "max_steps": 7}) == 7
    assert updates(80, {}) == 30  # transformers' defaults: 8 rows, 3 epochs


# ------------------------------------------------------------------------------------------------------- whole plans


def test_counts_of_a_small_plan(small: dict[str, str]) -> None:
    found = planned(small)
    by = {(p.iteration, p.phase, p.what): p.counts for p in found.phases}
    assert by[1, "sample", "start"] == {
        "prompts": 20,
        "responses": 80,
        "prompt_tokens": 20 * 3,  # 11 characters are about 3 tokens
        "response_tokens": 80 * 20,
    }
    assert by[2, "judge", "current@1"] == {"prompts": 20, "questions": 2 * 20 * 6}
    assert by[3, "train", "auxiliary"] == by[3, "train", "current"] == {"prompts": 20, "steps": 10}
    # The start is sampled beside the first iterate; later the iterate alone.
    assert [by[t, "evaluate", f"current@{t}"]["responses"] for t in (1, 2, 3)] == [20, 10, 10]
    assert [by[t, "evaluate", f"current@{t}"]["questions"] for t in (1, 2, 3)] == [20, 40, 40]
    assert found.totals["steps"] == 60
    assert found.totals["responses"] == 280
    assert "60 of 70 for training, 10 held out" in found.data
    assert "estimated at 4 characters a token" in found.tokens
    parameters = 2 * 300 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    assert f"{parameters:,} parameters" in found.title
    assert found.memory["training: weights"] == 4 * parameters
    assert found.memory["training: optimizer states (adamw_torch_fused)"] == 8 * parameters
    assert found.disk["iterates (6 policies)"] == 6 * 4 * parameters
    assert planned(small, "keep_last=1").disk["iterates (2 policies)"] == 2 * 4 * parameters
    assert json.loads(json.dumps(found.to_json()))["totals"] == found.totals


def test_prompts_are_measured_where_there_is_a_tokenizer(small: dict[str, str], byte_tokenizer: Any) -> None:
    byte_tokenizer().save_pretrained(small["MODEL"])
    found = planned(small)
    assert found.phases[0].counts["prompt_tokens"] == 20 * (11 + 1)  # bytes and the begin token
    assert "measured with the tokenizer" in found.tokens
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        planned(small, "prompts.chat=true")


def test_a_tiny_model_is_planned_from_its_settings(tmp_path: Path) -> None:
    text = f"""
model: {{build: {{prompts: 6}}}}
rule: {{name: onpo, eta: 1}}
sampling: {{K: 4, max_new_tokens: 2}}
warmup: {{source: tiny}}
iterations: {{count: 2, prompts: all}}
evaluation: {{exact: true}}
output_dir: {tmp_path}/run
"""
    found = plan(parse_recipe(text, "the test"))
    assert [p.counts["responses"] for p in found.phases if p.phase == "sample"] == [24, 24]
    assert found.phases[0].phase == "warmup"
    assert [p.counts["prompts"] for p in found.phases if p.phase == "evaluate"] == [6, 6]
    assert plan(parse_recipe(text, "the test", ["start_from=elsewhere"])).phases[0].phase == "sample"


def test_a_plan_writes_nothing_and_fits_its_columns(small: dict[str, str]) -> None:
    before = sorted(os.walk(small["OUT"]))
    text = str(planned(small, "iterations=4", "rule.variant=leader", "sampling.temperature=0.5"))
    assert sorted(os.walk(small["OUT"])) == before
    assert max(map(len, text.splitlines())) <= 100
    assert "note: responses are sampled with temperature 0.5" in text


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["model.path=nobody/nothing"], "no configuration could be read"),
        (["model.path=OUT"], "the folder has no config.json"),
        (["model.tokenizer=nobody/nothing"], "model.tokenizer: no tokenizer at nobody/nothing"),
        (["judge={kind: table, path: no/game.json}"], "judge.path = 'no/game.json': there is no such file"),
        (["judge={kind: reward_model, path: /no/such}"], "judge.path = '/no/such': there is no such file or folder"),
        (["judge={kind: function, function: 'no_module:f'}"], "there is no module no_module"),
        (["training.label_smoothing=0.7"], "training: label_smoothing = 0.7 must be in [0, 0.5)"),
        (["objective=pointwise"], "objective: the constant 1/2 needs"),
        (["prompts.heldout=69"], "1 prompts are too few for 3 iterations"),
        (["evaluation.prompts=OUT/none.jsonl"], "there is no such file"),
        (["model.adapter={r: 4, rr: 1}"], "model.adapter: "),
    ],
)
def test_what_would_stop_the_run_stops_the_plan(small: dict[str, str], overrides: list[str], wanted: str) -> None:
    with pytest.raises(ValueError) as caught:
        planned(small, *(text.replace("OUT", small["OUT"]) for text in overrides))
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gated_model_says_how_to_plan_without_network(small: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"give a folder with its config\.json by model\.path=FOLDER"):
        planned(small, "model.path=meta-llama/Meta-Llama-3-8B-Instruct")


def test_warnings(small: dict[str, str]) -> None:
    def warned(*overrides: str) -> str:
        return "\n".join(planned(small, *overrides).warnings)

    assert warned() == ""
    slow = ["training.learning_rate=5e-7", "model.dtype=bfloat16"]
    assert "most updates round to nothing in 16 bits" in warned(*slow)
    assert "16 bits" not in warned(*slow, "model.adapter={r: 2, target_modules: [q_proj]}")
    assert "is above training.max_length = 10" in warned("training.max_length=10")
    assert "an update takes 32 prompts and an iteration has 20" in warned("training.per_device_train_batch_size=32")


# ------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_models(folders: dict[str, Path], name: str) -> None:
    size = footprint.measure(ModelSpec(path=str(folders[name])))
    assert size.parameters == size.trained == PUBLISHED[name][1]
    assert size.weights == 4 * size.parameters


def test_an_adapter_trains_little(folders: dict[str, Path]) -> None:
    adapter = {"r": 16, "target_modules": ["q_proj", "v_proj"]}
    size = footprint.measure(ModelSpec(path=str(folders["mistral"]), adapter=adapter, dtype="bfloat16"))
    # q: 4096 -> 4096, v: 4096 -> 1024, in each of 32 layers
    assert size.trained == 32 * 16 * (4096 + 4096 + 4096 + 1024)
    assert (size.weights, size.saved) == (2 * PUBLISHED["mistral"][1], 2 * size.trained)


def test_optimizer_states_by_name() -> None:
    size = footprint.Size(100, 100, 4, 1, 1, 1)
    wanted = {"adamw_torch": 800, "adamw_torch_fused": 800, "rmsprop": 400, "sgd": 0, "paged_adamw_8bit": 200}
    assert {name: size.optimizer(name) for name in wanted} == wanted


# -------------------------------------------------------------------------------------------------- packaged recipes


@pytest.mark.parametrize("name", [n for n in library.names() if not n.startswith("tiny")])
def test_every_packaged_recipe_passes_its_dry_run(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    model = next((key for key in PUBLISHED if key in name), "mistral")
    data = "pairs" if name.startswith("spac") else "prompts"
    overrides = [f"model.path={folders[model]}", f"{data}.path={folders['data']}", f"{data}.format=auto"]
    overrides.append(f"output_dir={tmp_path}/run")
    if name.startswith("self-play"):
        overrides.append(f"judge.path={folders[model]}")
    recipe = load_recipe(name, overrides)
    assert parse_recipe(recipe.to_yaml(), name) == recipe
    found = plan(recipe)
    assert f"{PUBLISHED[model][1]:,} parameters" in found.title
    assert found.totals["steps"] > 0
    assert {phase.iteration for phase in found.phases} == set(range(1, recipe.iterations.count + 1))
    text = str(found)
    assert max(map(len, text.splitlines())) <= 100
    assert "training in all, on one device" in text
    assert "training fits, by these figures: " in text
    assert {"training", "in all"} <= set(found.time.seconds)
    assert all(0 < one <= most for one, most in found.time.seconds.values())
    assert list(tmp_path.iterdir()) == []


def test_packaged_recipes_have_the_published_numbers() -> None:
    def rule(name: str) -> Rule:
        return load_recipe(name).rule

    assert rule("sppo-mistral-7b") == SPPO.from_paper(eta=1e3)
    assert rule("sppo-mistral-7b-code") == SPPO.from_code(beta=0.001)
    assert rule("inpo-llama3-8b") == INPO.from_paper(eta=0.005, tau=0.005 / 3)
    assert rule("onpo-mistral-7b") == ONPO.from_paper(eta=1 / 0.01)
    paper, code = load_recipe("sppo-mistral-7b"), load_recipe("sppo-mistral-7b-code")
    assert paper.sampling is not None
    assert code.sampling is not None
    assert paper.sampling.sampling().exact
    assert (code.sampling.temperature, code.sampling.top_p) == (0.7, 0.9)
    for one in (paper, code):
        micro, steps = (one.training[f"{k}"] for k in ("per_device_train_batch_size", "gradient_accumulation_steps"))
        assert micro * steps == 64
        assert one.training["learning_rate"] == 5e-7
        assert one.training["optim"] == "rmsprop"
    # The paper's schedule, 18 epochs of 20,000/64 steps with warm-up 0.1, stopped after one: inside the warm-up.
    assert paper.training["warmup_steps"] == -(-0.1 * 18 * 20_000 // 64)
    assert paper.training["warmup_steps"] > 20_000 / 64
