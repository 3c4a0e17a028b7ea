"""Recipes: read, refused with the nearest name, overridden, written back, compared."""

import json
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from nashpo.core.rules import EGPO, INPO, ONPO, RULES, SPAC, SPPO, NashMD
from nashpo.core.schedules import Power
from nashpo.llm.engines.config import ENGINES, TransformersConfig
from nashpo.llm.judges.config import JUDGES
from nashpo.llm.recipe import library, objectives
from nashpo.llm.recipe.overrides import override
from nashpo.llm.recipe.parsing import difference, dump, read
from nashpo.llm.recipe.rules import read_spec
from nashpo.llm.recipe.schema import Recipe, load_recipe, parse_recipe
from nashpo.llm.recipe.training import arguments
from nashpo.llm.recipe.yaml_text import parse_mapping, to_yaml

ONPO_RECIPE = """
model: {path: some/model}
rule: {name: onpo, eta: 1e2}
prompts: {path: prompts.jsonl, heldout: 5}
sampling: {K: 4}
judge: {kind: reward_model, path: judge}
training: {learning_rate: 1e-6, warmup_steps: 0.1}
iterations: 3
output_dir: runs/test
"""


def recipe(*overrides: str) -> Recipe:
    return parse_recipe(ONPO_RECIPE, "the test", overrides)


def refusal(*overrides: str, text: str = ONPO_RECIPE) -> str:
    with pytest.raises(ValueError) as caught:
        parse_recipe(text, "the test", overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------------------------------------------------- reading


def test_a_recipe_is_read_into_types() -> None:
    found = recipe()
    assert found.rule == ONPO(eta=100.0)
    assert isinstance(found.sampling, TransformersConfig)
    assert found.sampling.K == 4
    assert found.iterations.count == 3
    assert found.output_dir == Path("runs/test")
    assert found.training["learning_rate"] == 1e-6  # which YAML 1.1 alone would read as text
    assert found.data is found.prompts


def test_every_key_of_every_part_has_a_help() -> None:
    def parts(kind: Any) -> list[Any]:
        own = [f for f in fields(kind) if is_dataclass(f.default)]
        return [kind, *(type(f.default) for f in own)]

    from nashpo.llm.recipe.schema import DataSpec, Evaluation, Iterations, ModelSpec, Warmup

    for kind in (*parts(Recipe), DataSpec, Evaluation, Iterations, ModelSpec, Warmup, *ENGINES.values()):
        for f in fields(kind):
            assert f.metadata.get("help") or issubclass(kind, objectives.ObjectiveSpec), f"{kind.__name__}.{f.name}"
    assert {"table", "function", "pairrm", "pair_lm", "reward_model", "gpm"} <= set(JUDGES)


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["trainng.max_steps=1"], "unknown key trainng; did you mean 'training'?"),
        (["rule.etta=1"], "unknown key rule.etta; did you mean 'eta'?"),
        (["rule={name: onppo}"], "rule.name = 'onppo' is no rule; did you mean 'onpo'?"),
        (["sampling.temprature=1"], "unknown key sampling.temprature; did you mean 'temperature'?"),
        (["sampling.engine=vlm"], "sampling.engine = 'vlm' is unknown; did you mean 'vllm'?"),
        (["judge={kind: reward}"], "judge.kind = 'reward' is unknown; did you mean 'reward_model'?"),
        (["judge.pth=x"], "unknown key judge.pth; did you mean 'path'?"),
        (["prompts.heldot=1"], "unknown key prompts.heldot; did you mean 'heldout'?"),
        (["prompts.format=jsonlines"], "prompts.format = 'jsonlines' is unknown; did you mean 'jsonl'?"),
        (["model.dtype=float"], "model.dtype = 'float' is unknown; did you mean 'float32'?"),
        (["training.learning_rat=1"], "unknown key training.learning_rat; did you mean 'learning_rate'?"),
        (["training.optim=rmspropp"], "training.optim = 'rmspropp' is unknown; did you mean 'rmsprop'?"),
        (["training.lr_scheduler_type=cosin"], "lr_scheduler_type = 'cosin' is unknown; did you mean 'cosine'?"),
        (["objective={name: pairwize}"], "objective.name = 'pairwize' is unknown; did you mean 'pairwise'?"),
        (["objective={name: pointwise, normalizer: logz}"], "objective.normalizer = 'logz' is unknown; did you mean"),
        (["evaluation={against: [refrence]}"], "evaluation.against[0] = 'refrence' is unknown; did you mean 'ref"),
        (["model={build: {symbol: 3}}"], "unknown key model.build.symbol; did you mean 'symbols'?"),
        (["rule={name: inpo, eta: 1}"], "rule: tau is missing for inpo"),
        (["output_dir=null"], "output_dir = None must be a path"),
        (["prompts={heldout: 1}"], "prompts.path is missing: a file, a folder or a name on the hub"),
    ],
)
def test_unknown_and_missing_keys_name_their_place(overrides: list[str], wanted: str) -> None:
    assert wanted in refusal(*overrides)


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("training.learning_rate=fast", "training.learning_rate = 'fast' must be a number"),
        ("training.max_steps=1.5", "training.max_steps = 1.5 must be a whole number"),
        ("training.max_steps=1e3", "training.max_steps = 1000.0 must be a whole number: write 1000"),
        ("training.bf16=1", "training.bf16 = 1 must be true or false"),
        ("sampling.K=true", "sampling.K = True must be a whole number"),
        ("model.path=7", "model.path = 7 must be text"),
        ("model.adapter=lora", "model.adapter = 'lora' must be a mapping"),
        ("prompts.ignored_columns=a", "prompts.ignored_columns = 'a' must be a list"),
        ("prompts.path={a: 1}", "prompts.path = {'a': 1} must be text or a list"),
        ("rule.eta=much", "rule.eta = 'much' must be a number"),
        ("model=null", "model = None must be a mapping of path, revision"),
    ],
)
def test_wrong_types_name_place_and_value(override: str, wanted: str) -> None:
    assert wanted in refusal(override)


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["rule.eta=-1"], "rule: eta = -1 must be > 0"),
        (["rule={name: inpo, eta: 2, tau: 1}"], "rule: eta * tau = 2 must be <= 1"),
        (["sampling.top_p=0"], "sampling.top_p is 0.0; it must be in (0, 1]"),
        (["model.path=null"], "model: needs exactly one of path and build, and none is given"),
        (["model.build={}"], "model: needs exactly one of path and build, and both are given"),
        (["prompts.heldout=1.0"], "prompts: heldout = 1.0 must be a number of prompts, or a share below 1"),
        (["iterations=0"], "iterations: count = 0 must be at least 1"),
        (["training.output_dir=x"], "training.output_dir is not set here: it is the recipe's own output_dir"),
        (["training.pairs=all"], "training.pairs is not set here: say it as objective.pairs"),
        (["training.warmup_ratio=0.1"], "transformers 5 has warmup_steps for both"),
        (["keep_last=0"], "keep_last = 0 must be at least 1"),
        (["max_abstained=1.5"], "max_abstained = 1.5 must be a share in [0, 1]"),
        (["warmup={}"], "warmup: source = 'data': give data"),
    ],
)
def test_values_are_refused_with_the_mend(overrides: list[str], wanted: str) -> None:
    assert wanted in refusal(*overrides)


def test_yaml_is_safe_and_its_mistakes_have_lines() -> None:
    assert "line 3: the key 'rule' stands twice" in refusal(text="model: a\nrule: {name: sppo}\nrule: {name: onpo}\n")
    assert "line 1: the key 'eta' stands twice" in refusal(text="rule: {eta: 1, eta: 2}")
    assert "python/object" in refusal(text="model: !!python/object/apply:os.system ['true']")
    assert "the test, line 3" in refusal(text="model: a\nrule: [\n")
    assert "must be a mapping of keys to values" in refusal(text="- a\n")
    assert "must be a mapping of keys to values" in refusal(text="")


@pytest.mark.parametrize("number", ["1e-6", "1E-6", "1.0e-6", ".1e-5", "-1e6", "+2e3"])
def test_numbers_with_an_exponent_are_numbers(number: str) -> None:
    assert parse_mapping(f"a: {number}", "x") == {"a": float(number)}


@pytest.mark.parametrize("text", ["1e-6x", "e5", "1e", "a1e5", "1-6"])
def test_other_text_stays_text(text: str) -> None:
    assert parse_mapping(f"a: {text}", "x") == {"a": text}


# ------------------------------------------------------------------------------------------------- what fits together


@pytest.mark.parametrize("missing", ["judge", "sampling", "prompts"])
def test_a_rule_on_its_own_samples_needs_prompts_sampling_and_judge(missing: str) -> None:
    assert refusal(f"{missing}=null").startswith(f"{missing} is missing: onpo ")


def test_rules_that_learn_from_data_need_pairs() -> None:
    dpo, spac = "rule={name: dpo, tau: 0.1}", "rule={name: spac, eta: 1, lam: 1, R: 1}"
    assert refusal(dpo, "iterations=1").startswith("pairs is missing: dpo learns from labelled pairs")
    assert refusal(spac).startswith("pairs is missing: spac")
    assert "prompts is given, but spac takes its prompts from pairs" in refusal(spac, "pairs=p.jsonl")
    assert refusal(spac, "pairs=p.jsonl", "prompts=null", "sampling=null").startswith("sampling is missing: spac")
    assert recipe(spac, "pairs=p.jsonl", "prompts=null", "judge=null").rule == SPAC(eta=1.0, lam=1.0, R=1.0)
    offline = ("iterations=1", "pairs=p.jsonl", "prompts=null", "judge=null", "sampling=null")
    assert recipe(dpo, *offline).data is not None
    assert "pairs is given, but onpo samples its own responses" in refusal("pairs=p.jsonl")


def test_a_horizon_is_kept() -> None:
    data = ("pairs=p.jsonl", "prompts=null")
    assert "iterations.count = 3, but dpo is printed for 1" in refusal("rule={name: dpo, tau: 0.1}", *data)


def test_comparisons_need_two_responses_and_evaluations_prompts() -> None:
    assert "sampling.K = 1: onpo compares" in refusal("sampling.K=1")
    assert "evaluation has no prompts" in refusal("prompts.heldout=0", "evaluation={}")
    assert recipe("prompts.heldout=0", "evaluation={against: []}").evaluation is not None
    assert recipe("prompts.heldout=0", "evaluation={prompts: e.jsonl}").evaluation is not None


def test_a_tiny_model_brings_prompts_and_a_judge() -> None:
    found = recipe("model={build: {}}", "prompts=null", "judge=null", "evaluation={exact: true}")
    assert found.data is None
    assert found.model.build is not None


def test_one_line_changes_the_rule() -> None:
    for name, more in {
        "sppo": "eta: 100",
        "onpo": "eta: 100",
        "inpo": "eta: 1, tau: 0.1",
        "egpo": "eta: 1, tau: 0.1",
        "nash-md": "eta: 1, tau: 0.1",
        "iterative-dpo": "tau: 0.1",
    }.items():
        assert type(recipe(f"rule={{name: {name}, {more}}}").rule) is RULES[name]


def test_sampling_that_the_theory_does_not_cover_is_noted() -> None:
    assert recipe().notes() == []
    (note,) = recipe("sampling.temperature=0.7", "sampling.top_p=0.9").notes()
    assert "temperature 0.7, top_p 0.9" in note


# ------------------------------------------------------------------------------------------- overrides, there and back


def test_overrides_go_through_shorthands_and_make_mappings() -> None:
    found = recipe("iterations.per_iteration=7", "model=other", "model.revision=abc", "evaluation.K=2", "judge=pairrm")
    assert (found.iterations.count, found.iterations.per_iteration) == (3, 7)
    assert (found.model.path, found.model.revision) == ("other", "abc")
    assert found.evaluation is not None
    assert found.evaluation.K == 2
    assert type(found.judge) is JUDGES["pairrm"]
    assert recipe("rule=sppo", "rule.eta=2").rule == SPPO(eta=2.0)
    assert recipe("prompts.path=[a.jsonl, b.jsonl]").prompts.paths == ("a.jsonl", "b.jsonl")  # type: ignore[union-attr]


@pytest.mark.parametrize("assignment", ["rule.eta", "=3", "rule..eta=3"])
def test_an_override_is_key_and_value(assignment: str) -> None:
    assert "must be key=value" in refusal(assignment)


def test_an_override_below_a_value_is_refused() -> None:
    assert "seed is 3, which has no keys of its own" in refusal("seed=3", "seed.x=1")
    raw: dict[str, Any] = {"rule": {"name": "onpo"}}
    override(raw, Recipe, "rule.eta=[1, 2]")
    assert raw == {"rule": {"name": "onpo", "eta": [1, 2]}}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["rule={name: nash-md, tau: 0.1, eta: {schedule: power, scale: 20, shift: 2}}"],
        ["rule={name: egpo, tau: 0.1, eta: {schedule: table, values: [1, 0.5]}}", "objective=pairwise"],
        ["evaluation={prompts: e.jsonl}", "reference=r", "keep_last=1", "model.adapter={r: 8}"],
        ["warmup={data: w.jsonl, training: {max_steps: 3}}", "sampling={engine: vllm}", "judge=pairrm"],
        ["model={build: {symbols: 4}}", "warmup={source: tiny}"],
        ["prompts.system='1e-6'"],
    ],
)
def test_there_and_back(overrides: list[str]) -> None:
    found = recipe(*overrides)
    data = found.to_dict()
    assert json.loads(json.dumps(data)) == data
    again = parse_recipe(found.to_yaml(), "again")
    assert again == found
    assert again.to_dict() == data
    assert yaml.safe_load(found.to_yaml()).keys() == data.keys()


def test_schedules_and_own_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = read_spec({"name": "nash-md", "tau": 0.1, "eta": {"schedule": "power", "scale": 20, "shift": 2}}, "rule")
    assert recipe(f"rule={json.dumps(spec)}").rule == NashMD(eta=Power(20.0, 1.0, 2.0), tau=0.1)
    (tmp_path / "rules_of_mine.py").write_text(
        "from dataclasses import dataclass\nfrom nashpo.core.rules import SPPO\n"
        "@dataclass(frozen=True)\nclass Mine(SPPO):\n    gamma: float = 0.5\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = recipe("rule={name: 'rules_of_mine:Mine', eta: 1}")
    assert found.rule_spec == {"name": "rules_of_mine:Mine", "eta": 1.0, "gamma": 0.5}
    assert "is no dataclass that derives from" in refusal("rule={name: 'os:getcwd'}")
    assert "cannot be imported" in refusal("rule={name: 'rules_of_nobody:Mine'}")


def test_the_difference_names_keys_and_values() -> None:
    old, new = recipe().to_dict(), recipe("rule.eta=2", "training.max_steps=5").to_dict()
    assert difference(old, new) == ["rule.eta: 100.0 -> 2.0", "training.max_steps: (not there) -> 5"]
    assert difference(new, old) == ["rule.eta: 2.0 -> 100.0", "training.max_steps: 5 -> (not there)"]
    assert difference(old, old) == []
    assert difference({"a": {"b": 1}}, {"a": {"b": True}}) == ["a.b: 1 -> true"]
    assert difference({"a": {}}, {"a": {"b": None}}) == ["a: {} -> (not there)", "a.b: (not there) -> null"]


def test_text_that_looks_like_a_number_is_written_in_quotes() -> None:
    data = {"a": "1e-6", "b": 1e-6, "c": "yes", "d": None}
    assert parse_mapping(to_yaml(data), "x") == data
    assert read(str, dump("1e-6"), "x") == "1e-6"


# --------------------------------------------------------------------------------------------------- training, library


def test_checkpointing_has_both_names() -> None:
    for name in ("gradient_checkpointing", "activation_checkpointing"):
        found = recipe(f"training.{name}=true").training
        assert found[name] is True
        made = arguments(found, output_dir="x", seed=3)
        from nashpo.llm.config import SelfPlayConfig

        assert set(made) <= {f.name for f in fields(SelfPlayConfig)}
        (key,) = (key for key in made if key.endswith("checkpointing"))
        assert made[key] is True


def test_objectives_are_checked_against_the_rule() -> None:
    found = recipe("objective=labelled")
    objectives.check(found.objective, found.rule, 3)
    with pytest.raises(ValueError, match=r"objective: the constant 1/2 needs a stage whose base"):
        objectives.check(recipe("objective=pointwise").objective, ONPO(eta=1.0), 1)
    with pytest.raises(ValueError, match="objective: the logistic loss needs"):
        objectives.check(recipe("objective=logistic").objective, SPPO(eta=1.0), 1)
    for rule in (SPPO(1.0), ONPO(1.0), ONPO(1.0, "one_step"), INPO(0.5, 1.0), EGPO(0.5, 1.0), SPAC(1.0, 1.0, 1.0)):
        objectives.check(objectives.Default(), rule, 3)


def test_files_go_before_packaged_recipes_and_unknown_names_are_told(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(ONPO_RECIPE)
    assert load_recipe(str(path), ["seed=3"]).seed == 3
    with pytest.raises(ValueError, match="did you mean 'sppo-llama3-8b'"):
        load_recipe("sppo-llama-8b")
    with pytest.raises(ValueError, match="there is no such file; packaged recipes are"):
        load_recipe(str(tmp_path / "other.yaml"))
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match="is no text in UTF-8"):
        load_recipe(str(path))


def test_packaged_recipes_say_what_they_are_and_mark_every_value() -> None:
    papers = {
        "sppo-mistral-7b",
        "sppo-mistral-7b-code",
        "sppo-llama3-8b",
        "sppo-gemma2-9b",
        "onpo-llama3-8b",
        "onpo-mistral-7b",
        "inpo-llama3-8b",
        "spac-mistral-7b",
        "iterative-dpo-mistral-7b",
    }
    assert papers | {"self-play-small", "self-play-conversation", "tiny", "tiny-multiturn"} <= set(library.names())
    for name in library.names():
        assert library.about(name).endswith(".")  # the one line that `--list` shows is a whole sentence
    marks = (
        "paper",
        "official code",
        "our choice",
        "summary",
        "RLHFlow",
        "not used",
        "the sets' column",
        "own example",
    )
    for name in papers:
        text, _ = library.text(name)
        settings = text[text.index("\ntraining:") :].splitlines()[2:]
        for line in settings:
            if line.startswith("output_dir"):
                continue
            near = line if "#" in line else text[: text.index(line)].splitlines()[-1] + line
            covered = any(mark in near for mark in marks) or line.strip().startswith(("#", "lr_", "num_", "warmup"))
            assert covered or "GPUs" in line, f"{name}: {line}"


def test_reading_a_recipe_imports_no_torch_before_its_training_is_checked() -> None:
    code = (
        "import sys\nfrom nashpo.llm.recipe.schema import parse_recipe\n"
        f"text = {ONPO_RECIPE!r}\n"
        "try:\n    parse_recipe(text, 'x', ['judge=null'])\nexcept ValueError as error:\n    print(error)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("judge is missing")
