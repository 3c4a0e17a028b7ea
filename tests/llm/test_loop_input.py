"""What a user may get wrong before a run begins: one clear line and exit status 2, before anything is sampled."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nashpo.core.cli import main

PACKAGED = "self-play-small"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Callable[..., Any], byte_tokenizer: Any) -> Path:
    """A folder with what a user of the packaged recipe brings, under the names that stand in it, and with mistakes."""
    folder = tmp_path_factory.mktemp("home")
    tokenizer = byte_tokenizer()
    model = tiny_llama(max_position_embeddings=128)
    for name, one in (("model", model), ("other", tiny_llama(vocab_size=300)), ("tied", _tied(tiny_llama))):
        one.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    _save_classifier(model, tokenizer, folder / "reward-model", 1)
    _save_classifier(model, tokenizer, folder / "three-labels", 3)
    byte_tokenizer(extra=("<more>",)).save_pretrained(folder / "more-tokens")
    padded = byte_tokenizer(pad=False)
    padded.add_special_tokens({"pad_token": "<new>"})
    padded.save_pretrained(folder / "new-pad")
    byte_tokenizer(template=TEMPLATE).save_pretrained(folder / "chat")
    shutil.copytree(folder / "model", folder / "cut")
    weights = (folder / "model/model.safetensors").read_bytes()
    (folder / "cut/model.safetensors").write_bytes(weights[:999])
    shutil.copytree(folder / "reward-model", folder / "no-type")
    (folder / "no-type/config.json").write_text("{}")
    (folder / "nothing-in-it").mkdir()
    rows = [{"prompt": f"question {i}?"} for i in range(12)]
    for name, lines in {
        "prompts": rows,
        "no-prompts": [{"text": "x"}],
        "twice": rows[:1] * 3,
        "more": [{"prompt": "<more>"}, *rows],
        "number": [{"prompt": 3}],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "empty.jsonl").write_text("")
    return folder


def _tied(tiny_llama: Callable[..., Any]) -> Any:
    return tiny_llama(tie_word_embeddings=True, max_position_embeddings=128)


def _save_classifier(model: Any, tokenizer: Any, folder: Path, labels: int) -> None:
    from transformers import LlamaForSequenceClassification

    config = model.config.__class__(**{**model.config.to_dict(), "num_labels": labels})
    config.reward_template = "{prompt} {response}"
    torch.manual_seed(1)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def train(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``nashpo train self-play-small`` in the user's folder."""
    monkeypatch.chdir(home)
    small = ["sampling.max_new_tokens=4", "sampling.K=2", "training.max_steps=1", "prompts.heldout=2"]

    def run(*changes: str) -> int:
        return main(["train", PACKAGED, *small, f"output_dir={tmp_path / 'run'}", "--quiet", *changes])

    return run


MISTAKES = {
    "model.path=./nothing": "model.path = './nothing': there is no such folder",
    "model.path=a/b/c": "model.path = 'a/b/c': there is no such folder",
    "model.path=nothing-in-it": "model.path = 'nothing-in-it': the folder has no config.json",
    "model.path=prompts.jsonl": "model.path = 'prompts.jsonl' is a file: give the folder that it is in",
    "model.path=reward-model": "reward-model is no whole causal language model: its weights lack lm_head.weight",
    "model.path=cut": "model.path: no causal language model at cut (Error while deserializing header",
    "model.path=no-type": "no-type",
    "model.tokenizer=nothing-in-it": "model.tokenizer: no tokenizer at nothing-in-it",
    "model.tokenizer=new-pad": "the pad token has id 259, but the model has 259 embeddings",
    "model.tokenizer=more-tokens prompts.path=more.jsonl": "largest token of the prompts has id 259, but the model has",
    "model.adapter={r: 2, target_module: [q_proj]}": "model.adapter: 'target_module' is no field of peft's LoraConfig;",
    "model.adapter={r: 2, target_modules: [nothing]}": "model.adapter: Target modules {'nothing'} not found",
    "model.adapter={r: 2, target_modules: [q_proj]} reference.path=other": "reference is given beside model.adapter",
    "prompts.path=nothing.jsonl": "nothing.jsonl: there is no such file; did you mean",
    "prompts.path=empty.jsonl": "empty.jsonl: there are no rows",
    "prompts.path=no-prompts.jsonl": "no-prompts.jsonl, row 0: there is no prompt: name its column by prompt",
    "prompts.path=number.jsonl": "number.jsonl, row 0: the prompt must be text, messages or token ids, not int",
    "prompts.path=twice.jsonl": "1 prompts are left of 3 rows (2 duplicates), and heldout = 2 takes 2",
    "prompts.chat=true": "prompts.jsonl: the data are conversations, but the tokenizer has no chat template",
    "training.max_prompt_length=2": "0 prompts are left of 12 rows (12 too long), and heldout",
    "training.max_length=3": "training.max_length = 3 leaves no room for a response to any prompt of iteration 1",
    "sampling.max_new_tokens=120": "sampling.max_new_tokens = 120 behind the longest prompt of 13 tokens does not fit"
    " the model's 128 positions: lower it to 115 or less",
    "judge.path=./nothing": "judge: there is no folder './nothing'",
    "judge.path=nothing-in-it": "judge: nothing-in-it has no config.json",
    "judge.path=model": "model is no reward model: its checkpoint lacks score.weight",
    "judge.path=three-labels": "three-labels has 3 labels; a Bradley-Terry reward model has one",
    "judge.path=no-type": "judge: no-type cannot be read as reward_model (Unrecognized model in no-type",
    "judge.template='{prompt}{response}'": "was trained with '{prompt} {response}': leave it out",
    "reference.path=other": "reference.path = 'other' has 300 embeddings and the model 259",
    "reference.path=./nothing": "reference.path = './nothing': there is no such folder",
    "reference={path: other, tokenizer: model}": "reference.tokenizer is given, but a reference is read",
    "reference={path: model, revision: old}": "reference and model are",
    "output_dir=prompts.jsonl": "output_dir = prompts.jsonl is a file: give another folder",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_sampled(
    mistake: str, train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "adapter" in mistake:
        pytest.importorskip("peft")
    words = mistake.replace(" reference", "\nreference").replace(" prompts", "\nprompts").split("\n")
    assert train(*words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nashpo: ")]
    assert line.startswith("nashpo: error: ")
    assert MISTAKES[mistake].removeprefix("nashpo: ") in line
    assert "iteration" not in line.partition("of iteration 1")[0]  # no phase had begun
    assert not (tmp_path / "run/iterations").exists()
    assert not (tmp_path / "run/start").exists()


@pytest.mark.parametrize(
    "mistake",
    [
        "model.tokenizer=new-pad",
        "sampling.max_new_tokens=120",
        "training.max_length=3",
        "reference.path=other",
        "judge.path=nothing-in-it",
        "output_dir=prompts.jsonl",
    ],
)
def test_the_dry_run_finds_it_too(
    mistake: str, train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(mistake, "--dry-run") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_mistake_is_mended_in_the_same_folder(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("judge.path=model") == 2
    assert train("prompts.path=empty.jsonl") == 2
    assert train("iterations.count=1", "evaluation=null") == 0
    assert json.loads((tmp_path / "run/state.json").read_text())["t"] == 1
    capsys.readouterr()
    assert (
        train("iterations.count=1", "evaluation=null", "judge.path=three-labels") == 2
    )  # and now the run is that recipe's
    assert 'was begun with another recipe (judge.path: "./reward-model" -> "three-labels")' in capsys.readouterr().err


def test_what_is_left_out_of_training_is_told(train: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    # Prompts of 12 tokens, the last two of 13; and responses of 4.
    assert train("training.max_length=16", "prompts.heldout=0", "evaluation=null") == 0
    out = capsys.readouterr().out
    assert "training.max_length = 16: 2 of 12 prompts are left out of training where a response of theirs" in out
    assert "17 keeps all" in out


def test_a_reference_of_its_own_is_read_from_its_own_folder(
    home: Path, train: Callable[..., int], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    assert train("reference.path=./tied", "iterations.count=1", "evaluation=null") == 0
    found = tmp_path / "run/iterations/001/logprobs"
    start, reference = (load_file(found / f"{name}.safetensors")["logprobs"] for name in ("start", "reference"))
    assert not torch.equal(start, reference)


def test_tied_weights_are_no_missing_weights(train: Callable[..., int], tmp_path: Path) -> None:
    assert train("model.path=tied", "iterations.count=1", "evaluation=null") == 0


def test_chat_prompts_in_parquet_with_the_models_template(
    home: Path, train: Callable[..., int], tmp_path: Path
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = [{"prompt": [{"role": "user", "content": f"question {i}?"}], "source": "here"} for i in range(6)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), home / "chat.parquet")
    chat = ("prompts.path=chat.parquet", "model.tokenizer=chat", "prompts.system=Be kind.", "iterations.count=1")
    assert train(*chat, "evaluation=null", "prompts.heldout=0") == 0
    path = tmp_path / "run/iterations/001/samples/00000.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [message["role"] for message in lines[0]["prompt"]] == ["system", "user"]
    from transformers import AutoTokenizer

    shown = AutoTokenizer.from_pretrained(home / "chat").decode(lines[0]["prompt_ids"])
    assert shown == f"<system>Be kind.</s><user>{lines[0]['prompt'][1]['content']}</s><a>"
    assert (tmp_path / "run/iterations/001/model/tokenizer.json").exists()


def test_an_adapter_without_peft_is_told(
    train: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert train("model.adapter={r: 2, target_modules: [q_proj]}") == 2
    assert "model.adapter needs the package peft, which is not installed: pip install peft" in capsys.readouterr().err


def test_an_adapter_is_trained_over_two_iterations(
    home: Path, train: Callable[..., int], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    pytest.importorskip("peft")
    adapter = "model.adapter={r: 2, target_modules: [q_proj, v_proj]}"
    # The first update moves only half of an adapter, whose other half begins at 0.
    assert train(adapter, "training.learning_rate=0.05", "training.max_steps=2") == 0
    assert not [w for w in recwarn if "was active which is now deleted" in str(w.message)]
    folders = [tmp_path / f"run/iterations/{i:03d}/model" for i in (1, 2)]
    assert all({"adapter_model.safetensors", "README.md"} <= {p.name for p in folder.iterdir()} for folder in folders)
    assert not any((folder / "model.safetensors").exists() for folder in folders)
    results = json.loads((tmp_path / "run/iterations/002/evaluation/results.json").read_text())
    assert results["kl"]["reference"]["mean"] != 0
    recipe, again = tmp_path / "run/recipe.yaml", tmp_path / "again"
    assert main(["train", str(recipe), "--from", f"{tmp_path / 'run'}@2", f"output_dir={again}"]) == 2
