"""`nashpo arena` on a tiny run: what it says equals the tables that its judge plays, and it is never done twice."""

import json
import os
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.core.cli import main
from nashpo.llm import arena as arena_module
from nashpo.llm import length_control
from nashpo.llm.loop.machine import train
from nashpo.llm.recipe.schema import load_recipe
from nashpo.tabular import Game, duality_gap

RECIPE = """
model: {build: {symbols: 3, length: 2, prompts: 12, hidden_size: 16, layers: 1, heads: 2}}
rule: {name: sppo, eta: 1.0}
sampling: {K: 3, max_new_tokens: 2, batch_size: 64}
training: {max_steps: 2, per_device_train_batch_size: 6, learning_rate: 1.0e-2, save_strategy: "no"}
iterations: {count: 2, prompts: all}
output_dir: OUT
seed: 5
"""
SAME_SAMPLING = ["--sampling", "max_new_tokens=2", "batch_size=5"]
ROUNDING = 1e-12


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Few resamples of the slowest bootstrap, whose numbers have a test of their own."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(length_control, "RESAMPLES", 10)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two iterations; tests write into folders of their own."""
    folder = tmp_path_factory.mktemp("arena")
    (folder / "recipe.yaml").write_text(RECIPE)
    return train(load_recipe(str(folder / "recipe.yaml"), [f"output_dir={folder / 'tiny'}"])).run


@pytest.fixture(scope="module")
def played(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The arena of the run."""
    out = tmp_path_factory.mktemp("out")
    assert main(["arena", str(run), "--K", "2", "--out", str(out), "--quiet"]) == 0
    return out


def found(out: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((out / "arena.json").read_text())
    return made


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says when it refuses, in one line."""
    assert main(["arena", *arguments, "--quiet"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


# ------------------------------------------------------------------------------------------------- what the numbers are


def test_policies_and_shapes(run: Path, played: Path) -> None:
    told = found(played)
    assert told["policies"] == ["start = reference", "iteration 1", "iteration 2"]
    assert (told["prompts"], told["K"], told["seed"]) == (12, 2, 5)
    wins = np.array(told["wins"])
    assert_array_equal(wins + wins.T, np.ones((3, 3)))
    assert_array_equal(np.diag(wins), [0.5] * 3)
    assert_array_equal(np.load(played / "wins.npy"), wins)
    assert (np.array(told["low"]) <= wins).all()
    assert (wins <= np.array(told["high"])).all()
    assert told["abstained"] == 0
    assert told["judge"]["judge"] == "table"
    assert told["sampling"]["sampling"]["max_new_tokens"] == told["K"] == 2
    assert told["asymmetry"] is None  # a table is antisymmetric and asked in one order
    assert not (run / "arena").exists()


def test_win_rates_are_those_of_the_table(run: Path, played: Path) -> None:
    """Read from the game's file and the samples alone."""
    game = json.loads((run / "tiny/game.json").read_text())
    place = {json.dumps(prompt): b for b, prompt in enumerate(game["prompts"])}
    texts = {}
    for folder in (played / "samples").iterdir():
        texts[folder.name.rsplit("-", 2)[0]] = lines(folder)
    drawn = [texts[name] for name in ("start-reference", "iteration-1", "iteration-2")]
    expected = np.full((3, 3), 0.5)
    for i in range(3):
        for j in range(3):
            if i == j:
                continue
            means = []
            for one, two in zip(drawn[i], drawn[j], strict=True):
                b = place[json.dumps(one["prompt"])]
                P, names = np.array(game["P"][b]), game["responses"]
                names = names[b] if isinstance(names[0], list) else names
                rows = [names.index(c["text"]) for c in one["completions"]]
                columns = [names.index(c["text"]) for c in two["completions"]]
                means.append(P[np.ix_(rows, columns)].mean())
            expected[i, j] = np.mean(means)
    assert_allclose(found(played)["wins"], expected, rtol=0, atol=ROUNDING)


def test_nash_and_exploitability_are_those_of_solve(played: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", str(played / "wins.npy"), "--json"]) == 0
    solved = json.loads(capsys.readouterr().out)
    told = found(played)
    assert told["nash"] == solved["policy"]
    assert told["nash_gap"] == solved["gap"]
    game = Game(np.load(played / "wins.npy"))
    gaps = [float(duality_gap(game, pure)) for pure in np.eye(3)]
    assert_allclose(told["exploitability"], gaps, rtol=0, atol=ROUNDING)
    for i, by in enumerate(told["exploited_by"]):
        other = i if by is None else told["policies"].index(by)
        assert_allclose(2 * (told["wins"][other][i] - 0.5), gaps[i], rtol=0, atol=ROUNDING)


def test_lengths_are_those_of_the_samples(played: Path) -> None:
    told = found(played)
    (folder,) = (played / "samples").glob("iteration-2-*")
    counts = [len(c["ids"]) for line in lines(folder) for c in line["completions"]]
    ended = [c["finished"] for line in lines(folder) for c in line["completions"]]
    assert_allclose(told["tokens"][2]["mean"], np.mean(counts), rtol=0, atol=ROUNDING)
    assert_allclose(told["finished"][2], np.mean(ended), rtol=0, atol=ROUNDING)


# ------------------------------------------------------------------------------------------------------ going on again


def test_what_is_done_is_not_done_again(
    run: Path, played: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second call asks neither engine nor judge, and prints the same; no line is wider than 100 columns."""
    from nashpo.llm.engines.local import TransformersEngine
    from nashpo.llm.judges.table import TableJudge

    def never(*_: Any) -> None:
        raise AssertionError("asked again")

    before = (played / "arena.json").read_bytes()
    monkeypatch.setattr(TransformersEngine, "sample", never)
    monkeypatch.setattr(TableJudge, "compare", never)
    assert main(["arena", str(run), "--K", "2", "--out", str(played), "--quiet"]) == 0
    assert (played / "arena.json").read_bytes() == before
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    assert "start = reference" in printed
    assert "<html" in (played / "arena.html").read_text(encoding="utf-8")[:200]


def test_stopped_and_begun_again_it_is_the_same(
    run: Path, played: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped at the second pair, then gone on with in the same folder: byte by byte the same results."""
    calls = []
    real = arena_module.judge_samples

    def stopping(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise ValueError("the judge went away")
        return real(*given)

    monkeypatch.setattr(arena_module, "judge_samples", stopping)
    out = tmp_path / "again"
    assert "the judge went away; what was finished is kept" in refused(capsys, str(run), "--K", "2", "--out", str(out))
    assert not (out / "arena.json").exists()
    monkeypatch.setattr(arena_module, "judge_samples", real)
    assert main(["arena", str(run), "--K", "2", "--out", str(out), "--quiet"]) == 0
    for name in ("arena.json", "wins.npy"):
        assert (out / name).read_bytes() == (played / name).read_bytes()


def test_models_in_folders_are_the_iterates(run: Path, played: Path, tmp_path: Path) -> None:
    """Two iterates as models, with the run's prompts and judge told by hand: the same entry of the win matrix."""
    models = [str(run / f"iterations/{k:03d}/model") for k in (1, 2)]
    judge = ["--judge", "kind=table", f"path={run / 'tiny/game.json'}"]
    prompts = ["--prompts", str(run / "tiny/prompts.jsonl")]
    more = ["--K", "2", "--seed", "5", "--out", str(tmp_path), "--quiet"]
    assert main(["arena", *models, *judge, *prompts, *SAME_SAMPLING, *more]) == 0
    told = found(tmp_path)
    assert told["policies"] == ["001/model", "002/model"]
    assert told["wins"][0][1] == found(played)["wins"][1][2]


def test_one_iterate_and_another_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RUN@N names single policies; the copy of the run brings nothing new and is left out."""
    copy = tmp_path / "copy"
    os.symlink(run, copy)
    arguments = [f"{run}@0", f"{run}@2", f"{copy}@2", "--K", "1", "--out", str(tmp_path / "out"), "--json"]
    assert main(["arena", *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == found(tmp_path / "out")
    assert told["policies"] == ["tiny: start", "tiny: iteration 2"]
    both = [str(run), str(copy), "--K", "1", "--out", str(tmp_path / "out"), "--quiet"]
    assert main(["arena", *both]) == 0
    assert found(tmp_path / "out")["policies"] == [
        f"tiny: {x}" for x in ("start = reference", "iteration 1", "iteration 2")
    ]


@pytest.fixture
def half_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A judge that likes the first response better, and answers about prompts that begin with red only."""
    (tmp_path / "my_arena_judge.py").write_text(
        "def judge(prompts, firsts, seconds):\n"
        "    return [0.75 if prompt.startswith('red') else None for prompt in prompts]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_arena_judge:judge"


def silent_share(samples: Path) -> float:
    """Comparisons of different responses to prompts that do not begin with red, among all of them."""
    asked = [
        line["prompt"].startswith("red")
        for one, two in combinations(sorted(samples.iterdir()), 2)
        for line, other in zip(lines(one), lines(two), strict=True)
        for a in line["completions"]
        for b in other["completions"]
        if a["text"] != b["text"]
    ]
    return 1 - sum(asked) / len(asked)


def test_another_judge_reads_the_same_responses(
    run: Path, played: Path, half_silent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It always likes the first response: in both orders 0.75, symmetrized to ½; its asymmetry is 0.75 + 0.75 − 1.

    Results of the first judge are computed again at the end, for the tests that come after.
    """
    drawn = sorted(path.name for path in (played / "samples").iterdir())
    before = (played / "arena.json").read_bytes()
    same = ["arena", str(run), "--K", "2", "--out", str(played), "--quiet"]
    assert main([*same, "--judge", "kind=function", f"function={half_silent}"]) == 0
    told = found(played)
    assert_array_equal(told["wins"], np.full((3, 3), 0.5))
    assert told["asymmetry"] == 0.5
    assert_allclose(told["abstained"], silent_share(played / "samples"), rtol=0, atol=ROUNDING)
    assert 0 < told["abstained"] < 1
    assert told["judged"][0][1] < 12
    assert told["nash_unique"] is False
    assert f"abstained on {told['abstained']:.1%}" in capsys.readouterr().out
    assert sorted(path.name for path in (played / "samples").iterdir()) == drawn
    assert main(same) == 0
    assert (played / "arena.json").read_bytes() == before


def test_iterates_that_are_adapters(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    changes = ["iterations.count=1", "model.adapter={r: 2, target_modules: [q_proj, v_proj]}", "model.build.prompts=4"]
    made = train(load_recipe(str(tmp_path / "recipe.yaml"), [f"output_dir={tmp_path / 'run'}", *changes])).run
    assert main(["arena", str(made), "--K", "1", "--quiet"]) == 0
    assert found(made / "arena")["policies"] == ["start = reference", "iteration 1"]


# ------------------------------------------------------------------------------------------------- scored by others


def test_alpaca_eval(run: Path, played: Path, tmp_path: Path) -> None:
    arguments = ["--K", "2", "--out", str(played), "--quiet", "--alpaca-eval", str(tmp_path / "alpaca")]
    assert main(["arena", str(run), *arguments]) == 0
    files = sorted((tmp_path / "alpaca").iterdir())
    assert [path.name for path in files] == ["00-start-reference.json", "01-iteration-1.json", "02-iteration-2.json"]
    items = json.loads(files[2].read_text(encoding="utf-8"))
    (folder,) = (played / "samples").glob("iteration-2-*")
    expected = [
        {"instruction": line["prompt"], "output": line["completions"][0]["text"], "generator": "iteration 2"}
        for line in lines(folder)
    ]
    assert items == expected


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A module in place of lm-eval, and what it was asked."""
    asked: list[dict[str, Any]] = []
    library, models, tasks = (ModuleType(name) for name in ("lm_eval", "lm_eval.models.huggingface", "lm_eval.tasks"))

    def simple_evaluate(**given: Any) -> dict[str, Any]:
        asked.append(given)
        size = sum(p.numel() for p in given["model"].pretrained.parameters())
        return {"results": {task: {"alias": task, "acc,none": 0.25, "size": size} for task in given["tasks"]}}

    library.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    models.HFLM = lambda **given: SimpleNamespace(**given)  # type: ignore[attr-defined]
    tasks.TaskManager = lambda **given: given  # type: ignore[attr-defined]
    for module in (library, ModuleType("lm_eval.models"), models, tasks):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


def test_lm_eval(run: Path, played: Path, harness: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--lm-eval", "arc,wino", "num_fewshot=3", "batch_size=2", "include_path=mine"]
    arguments = ["arena", f"{run}@1", f"{run}@2", "--K", "2", "--out", str(played / "lm"), "--quiet", *words]
    assert main(arguments) == 0
    assert [given["tasks"] for given in harness] == [["arc", "wino"]] * 2
    assert harness[0]["num_fewshot"] == 3
    assert harness[0]["model"].batch_size == 2
    assert harness[0]["task_manager"] == {"include_path": "mine"}
    assert harness[0]["model"].tokenizer.vocab_size > 2
    scores = found(played / "lm")["lm_eval"]
    assert scores["iteration 1"]["arc"]["acc,none"] == 0.25
    assert set(scores["iteration 2"]["wino"]) == {"acc,none", "size"}
    printed = capsys.readouterr().out.splitlines()
    assert ["iteration", "2", "wino", "acc,none", "0.2500"] in [line.split() for line in printed]
    assert main(arguments) == 0
    assert len(harness) == 2  # read back


def test_without_lm_eval(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    said = refused(capsys, str(run), "--lm-eval", "arc")
    assert "--lm-eval needs the package lm-eval" in said
    assert "pip install 'nashpo[lm-eval]'" in said


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["no/such/run/here"], "no/such/run/here: there is no such run or folder of weights"),
        (["TINY/iterations"], "neither a run (no recipe.yaml) nor a folder of weights"),
        (["TINY@7"], "there are no weights of this iterate; TINY has [1, 2]"),
        (["nowhere@1"], "nowhere@1: there is no run at nowhere"),
        (["TINY@1"], "an arena needs two policies, and there is iteration 1"),
        (["TINY", "--judge", "kind=tabel"], "judge.kind = 'tabel' is unknown; did you mean 'table'?"),
        (["TINY", "--judge", "kind=table", "pth=x"], "unknown key judge.pth; did you mean 'path'?"),
        (["TINY", "--judge", "kind=table", "x"], "--judge x: must be KEY=VALUE (give runs and models before --judge)"),
        (["TINY", "--judge", "path=x"], "judge.kind is missing"),
        (["TINY", "--sampling", "K=3"], "--sampling K=…: give --K"),
        (["TINY", "--sampling", "tempereture=1"], "did you mean 'temperature'?"),
        (["TINY", "--prompts", "none.jsonl"], "none.jsonl: there is no such file"),
        (["TINY", "--K", "0"], "--K 0: at least one response"),
        (["TINY", "--seed", "-1"], "--seed -1 must be a whole number"),
        (["MODEL", "MODEL2"], "give --out DIR"),
        (["MODEL", "MODEL2", "--out", "o"], "no prompts: give --prompts FILE"),
        (["MODEL", "MODEL2", "--out", "o", "--prompts", "PROMPTS"], "no judge: give one as --judge kind="),
        (["TINY", "--lm-eval", "num_fewshot=2"], "--lm-eval names no task"),
        (["TINY", "--lm-eval", "arc", "fewshot=2"], "did you mean 'num_fewshot'?"),
    ],
)
def test_bad_input_is_one_line(
    run: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    names = {
        "TINY": str(run),
        "MODEL2": str(run / "iterations/002/model"),
        "MODEL": str(run / "iterations/001/model"),
        "PROMPTS": str(run / "tiny/prompts.jsonl"),
        "o": str(tmp_path / "o"),
    }
    given = [names.get(word, word.replace("TINY", str(run))) for word in arguments]
    assert told.replace("TINY", str(run)) in refused(capsys, *given)
    assert not (run / "arena").exists()
    assert not (tmp_path / "o").exists()


def test_a_run_without_iterates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert "has no iterates yet: nashpo train has to finish an iteration first" in refused(capsys, str(tmp_path))


def test_a_run_that_holds_nothing_out(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tiny run told as one with a model and prompts of its own, and none held out."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("iterations", "start", "tiny"):
        os.symlink(run / name, copy / name)
    changes = [f"model={run / 'tiny'}", f"prompts={run / 'tiny/prompts.jsonl'}", f"judge.path={run / 'tiny/game.json'}"]
    recipe = load_recipe(str(run / "recipe.yaml"), [*changes, "judge.kind=table"])
    (copy / "recipe.yaml").write_text(recipe.to_yaml())
    assert "the run copy holds no prompts out (heldout = 0): give --prompts FILE" in refused(capsys, str(copy))
