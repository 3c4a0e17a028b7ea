"""The model card: front matter that the hub reads, figures that were measured, nothing that was not."""

import subprocess
import sys

import pytest
import yaml

from nashpo.llm.card import model_card, write_card
from nashpo.llm.described import base_model, departure, rule_words

RECIPE = {
    "model": {"path": "org/base-7B", "dtype": "bfloat16"},
    "rule": {"name": "onpo", "eta": 100.0},
    "prompts": {"path": "prompts.jsonl"},
    "sampling": {"engine": "vllm", "K": 5, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0},
    "judge": {"kind": "pairrm", "path": "org/judge"},
    "training": {"learning_rate": 5e-7, "hub_token": "hf_secret"},
    "iterations": {"count": 3},
    "output_dir": "/home/someone/private/run",
}
RESULTS = {
    "win_rates": {"reference": {"mean": 0.6123, "low": 0.58, "high": 0.64, "prompts": 805}, "previous": {"mean": 0.52}},
    "kl": {"reference": {"mean": 7.25, "low": 7.0, "high": 7.5}, "last": None},
    "exact": None,
    "lengths": {"current": {"mean": 310.44, "low": 300.0, "high": 320.0}},
}


def split(card: str) -> tuple[dict, str]:
    start, front, body = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(front), body


def test_front_matter_and_figures():
    front, body = split(model_card(RECIPE, 2, RESULTS, {"torch": "2.13.0"}))
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "org/base-7B",
        "tags": ["nashpo", "self-play", "preference-optimization", "onpo"],
    }
    for told in (
        "# ONPO by self-play, iterate 2",
        "started from `org/base-7B`",
        "| win rate against reference | 0.612 [0.580, 0.640] on 805 prompts |",
        "| win rate against previous | 0.520 |",
        "| KL to reference | 7.250 nats [7.000, 7.500] |",
        "| tokens per response | 310.4 [300.0, 320.0] |",
        "| torch | 2.13.0 |",
        "eprint        = {2502.16852}",
        "eta: 100.0",
    ):
        assert told in body, told
    assert "exact duality gap" not in body
    assert "last iterate" not in body
    assert "Not measured" not in body


@pytest.mark.parametrize("results", [None, {}, {"win_rates": {"reference": None}, "kl": None, "lengths": {}}])
def test_nothing_is_claimed_that_was_not_measured(results):
    _, body = split(model_card(RECIPE, 1, results))
    assert "Nothing: this iterate was not evaluated." in body
    assert "win rate against" not in body
    assert "95 %" not in body


def test_what_is_missing_is_named():
    _, body = split(model_card(RECIPE, 1, {"exact": {"gap_last": 0.0625, "gap_average": float("nan")}}))
    assert "| exact duality gap | 0.062 |" in body
    assert "Not measured: win rate against reference, KL to reference, tokens per response." in body
    assert "average of the iterates" not in body


def test_a_card_tells_neither_keys_nor_where_it_ran():
    card = model_card(RECIPE, 2, RESULTS)
    assert "hf_secret" not in card
    assert "/home/someone" not in card
    assert "learning_rate: 5.0e-07" in card


@pytest.mark.parametrize("path", ["./here/model", "/data/model", "a/b/c", "~/model", None, "has space/x"])
def test_a_base_model_that_is_no_hub_name_is_left_out(path):
    recipe = RECIPE | {"model": {"path": path, "build": None}}
    front, body = split(model_card(recipe, 1))
    assert "base_model" not in front
    assert "a model that is not on the hub" in body


def test_a_folder_that_looks_like_a_hub_name_is_no_base_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "base-7B").mkdir(parents=True)
    assert base_model(RECIPE) == ""


def test_hostile_settings_stay_text():
    evil = "</script> | `x` \n---\n```\n# head"
    recipe = RECIPE | {"judge": {"kind": "api", "template": evil}, "rule": {"name": evil, "eta": 1}}
    front, body = split(model_card(recipe, 1, {"win_rates": {evil: {"mean": 0.5}}}))
    assert front["tags"][-1] == evil
    table = next(line for line in body.splitlines() if line.startswith("| win rate against"))
    assert table == "| win rate against &lt;/script&gt; \\| \\`x\\` --- \\`\\`\\` # head | 0.500 |"
    fence = next(line for line in body.splitlines() if line.startswith("````"))
    assert body.count(f"\n{fence.removesuffix('yaml')}\n") == 1  # the block ends where the recipe does
    assert "## Citation" not in body


def test_other_sampling_is_told():
    changed = RECIPE | {"sampling": RECIPE["sampling"] | {"temperature": 0.7, "top_k": 50}}
    assert departure(RECIPE) == ""
    assert "temperature = 0.7, top_k = 50" in model_card(changed, 1)


def test_words_for_rules():
    assert rule_words({"rule": "sppo"}).name == "SPPO"
    assert rule_words({"rule": {"name": "nash_md", "eta": 0.5, "tau": 0.1}}).settings == "eta = 0.5, tau = 0.1"
    assert rule_words({"rule": {"name": "mine:Rule"}}).bibtex == ""
    assert rule_words({}).name == "no rule"


def test_it_is_written_beside_the_weights(tmp_path):
    path = write_card(tmp_path, RECIPE | {"judge": {"kind": "\ud800"}}, 1)
    assert path == tmp_path / "README.md"
    assert path.read_text(encoding="utf-8").startswith("---\n")
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]


def test_a_card_needs_no_torch():
    code = (
        "import sys; from nashpo.llm.card import model_card; model_card({}, 0)\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_conversation_in_words():
    """What the other side says is told text by text."""
    says = ["Why is that?", "Shorter, please."]
    recipe = RECIPE | {
        "sampling": RECIPE["sampling"] | {"max_new_tokens": 1},
        "conversation": {"turns": 3, "user": {"kind": "script", "says": says, "role": "user"}, "level": "trajectory"},
    }
    _, body = split(model_card(recipe, 1, RESULTS))
    assert "| longest answer | 1 token |" in body
    assert "| conversations | up to 3 answers; a response is a whole one |" in body
    assert "| other side | script (says Why is that?; Shorter, please., role user) |" in body
    recipe["conversation"]["level"] = "state"
    _, body = split(model_card(recipe, 1, RESULTS))
    assert "on estimates of Q: for P(y ≻ π) in the rule stands the win rate against π of the whole" in body
