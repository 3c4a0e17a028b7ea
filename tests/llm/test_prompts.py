"""Prompts and pairs: formats, columns, duplicates, limits, held-out parts and splits."""

import gzip
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nashpo.llm.data import prepare
from nashpo.llm.encoding import Encoder
from nashpo.llm.prompts import Prompt, load_pairs, load_prompts, prompt_text, read_prompts, read_rows, split
from nashpo.llm.recipe.schema import DataSpec, Iterations

JUDGED = Path(__file__).resolve().parents[3] / "shared" / "data" / "alpacaeval" / "judged_responses.jsonl.gz"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}


@pytest.fixture(scope="module")
def encoder(byte_tokenizer: Callable[..., Any]) -> Encoder:
    return Encoder(byte_tokenizer(template=TEMPLATE))


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"question {i}"} for i in range(count)]


# ---------------------------------------------------------------------------------------------------------- the rows


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    rows = numbered(3)
    written(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.txt").write_text((tmp_path / "a.jsonl").read_text() + "\n")
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.jsonl.gz", "a.json", "a.parquet"):
        assert read_rows(DataSpec(path=str(tmp_path / name))) == rows, name
    assert read_rows(DataSpec(path=str(tmp_path / "a.txt"), format="jsonl")) == rows
    both = DataSpec(path=(str(tmp_path / "a.jsonl"), str(tmp_path / "a.json")))
    assert read_rows(both) == rows + rows
    (tmp_path / "a.txt").unlink()
    assert len(read_rows(DataSpec(path=str(tmp_path)))) == 12


def test_datasets_and_hub_are_read_where_the_package_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "dataset_dict.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    for path in (str(folder), "someone/prompts"):
        with pytest.raises(ValueError, match="needs the package datasets, which is not installed: pip install"):
            read_rows(DataSpec(path=path))
    fake = types.ModuleType("datasets")
    fake.load_from_disk = lambda path: {"train": numbered(2), "test": numbered(1)}  # type: ignore[attr-defined]
    fake.load_dataset = lambda path, split: numbered(len(split))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert read_rows(DataSpec(path=str(folder))) == numbered(2)
    assert read_rows(DataSpec(path="someone/prompts", split="tests")) == numbered(5)
    with pytest.raises(ValueError, match="has no split 'tset'; did you mean 'test'"):
        read_rows(DataSpec(path=str(folder), split="tset"))


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": \n', "a.jsonl, line 2: no JSON"),
        ("a.jsonl", '["x"]\n', "a.jsonl, line 1 holds list, but a row must be an object"),
        ("a.json", '{"prompt": "x"}', "must hold a list of objects, not dict; is it JSON lines"),
        ("a.json", "[3]", "a.json, item 0 holds int"),
        ("a.jsonl", "\n", "there are no rows"),
        ("a.csv", "x", "the format is not known by the name; set format to one of"),
    ],
)
def test_broken_files_are_told_with_their_place(tmp_path: Path, name: str, text: str, wanted: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as caught:
        read_rows(DataSpec(path=str(tmp_path / name)))
    assert wanted in str(caught.value)


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    written(tmp_path / "prompts.jsonl", numbered(1))
    with pytest.raises(ValueError, match=r"there is no such file; did you mean 'prompts.jsonl'"):
        read_rows(DataSpec(path=str(tmp_path / "prompt.jsonl")))
    with pytest.raises(ValueError, match="there is no such file or folder"):
        read_rows(DataSpec(path=str(tmp_path / "no" / "prompt.jsonl")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no .jsonl, .json or .parquet file"):
        read_rows(DataSpec(path=str(tmp_path / "empty")))


# ------------------------------------------------------------------------------------------------------- the prompts


@pytest.mark.parametrize(
    ("row", "spec", "text"),
    [
        ({"prompt": "hi"}, {}, "hi"),
        ({"prompt": [3, 4]}, {}, [3, 4]),
        ({"prompt": [USER]}, {}, [USER]),
        ({"instruction": "hi", "output": "x"}, {}, "hi"),
        ({"prompt": "no", "text": "hi"}, {"prompt": "text"}, "hi"),
        ({"messages": [USER, ANSWER]}, {}, [USER]),
        ({"context": [USER, ANSWER]}, {"prompt": "context"}, [USER]),
        ({"prompt": "hi"}, {"chat": True}, [USER]),
        ({"prompt": "hi"}, {"system": "s"}, [{"role": "system", "content": "s"}, USER]),
        (
            {"prompt": [{"role": "system", "content": "old"}, USER]},
            {"system": "s"},
            [{"role": "system", "content": "s"}, USER],
        ),
        ({"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "no"}]}, {}, [USER]),
        ({"prompt": "hi", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER], "chosen_probs": 0.7}, {}, [USER]),
    ],
)
def test_where_the_prompt_is_found(
    tmp_path: Path, encoder: Encoder, row: dict[str, Any], spec: dict[str, Any], text: Any
) -> None:
    (found,) = read_prompts(DataSpec(path=written(tmp_path / "a.jsonl", [row]), **spec), encoder)
    assert found.text == text
    assert list(found.ids) == encoder.prompt(text)
    assert found == Prompt.of(text, found.ids)


@pytest.mark.parametrize(
    ("row", "spec", "wanted"),
    [
        ({"question": "hi"}, {}, "row 0: there is no prompt: name its column by prompt; the columns are question"),
        ({"question": "hi"}, {"prompt": "qestion"}, "there is no column 'qestion'; did you mean 'question'?"),
        ({"prompt": 3}, {}, "the prompt must be text, messages or token ids, not int"),
        ({"prompt": []}, {}, "the prompt must be text, messages or token ids, not list"),
        ({"prompt": [3]}, {"system": "s"}, "a system message cannot be put before a prompt of token ids"),
        (
            {"chosen": [USER, ANSWER], "rejected": [{**USER, "content": "ho"}, ANSWER]},
            {},
            "begin differently: give the prompt as a column",
        ),
    ],
)
def test_rows_without_a_prompt_are_refused(
    tmp_path: Path, encoder: Encoder, row: dict[str, Any], spec: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(ValueError) as caught:
        read_prompts(DataSpec(path=written(tmp_path / "a.jsonl", [row]), **spec), encoder)
    assert wanted in str(caught.value)


def test_keys_follow_text_and_ids() -> None:
    one = Prompt.of("hi", [1, 2])
    assert len(one.key) == 32
    assert one.key == Prompt.of("hi", (1, 2)).key
    assert len({one.key, Prompt.of("hi", [1]).key, Prompt.of("ho", [1, 2]).key}) == 3
    assert (
        Prompt.of([{"role": "user", "content": "ä"}], [1]).key == Prompt.of([{"content": "ä", "role": "user"}], [1]).key
    )


def test_what_a_judge_reads() -> None:
    system = {"role": "system", "content": "s"}
    assert prompt_text("hi") == "hi"
    assert prompt_text([USER]) == prompt_text([system, USER]) == "hi"
    assert prompt_text([system, USER, ANSWER, USER]) == "system: s\n\nuser: hi\n\nassistant: yes\n\nuser: hi"
    assert prompt_text([{"role": "user", "content": [{"type": "text", "text": "hi"}]}]) == "hi"
    with pytest.raises(ValueError, match="token ids"):
        prompt_text([1, 2])
    with pytest.raises(ValueError, match="has no text"):
        prompt_text([{"role": "user", "content": None}])


def test_duplicates_limits_and_the_held_out_part(tmp_path: Path, encoder: Encoder) -> None:
    rows = [*numbered(10), *numbered(4), {"prompt": "long " * 50}]
    path = written(tmp_path / "a.jsonl", rows)
    found = load_prompts(DataSpec(path=path, heldout=3), encoder, max_prompt_length=50)
    texts = [p.text for p in found.training]
    assert texts == [f"question {i}" for i in range(7)]
    assert [p.text for p in found.heldout] == ["question 7", "question 8", "question 9"]
    assert (found.report.rows, found.report.kept, found.report.heldout) == (15, 7, 3)
    assert found.report.left_out == {"duplicates": 4, "too long": 1}
    assert str(found.report) == "7 of 15 for training, 3 held out, 4 duplicates, 1 too long"
    limited = load_prompts(DataSpec(path=path, limit=6, heldout=0.5), encoder)
    assert [p.text for p in limited.training] == [f"question {i}" for i in range(3)]
    assert limited.report.left_out == {"duplicates": 4, "beyond the limit": 5}
    with pytest.raises(ValueError, match="heldout = 11 takes 11: none remains for training"):
        load_prompts(DataSpec(path=path, heldout=11), encoder)


def test_a_shuffle_follows_the_seed_alone(tmp_path: Path, encoder: Encoder) -> None:
    path = written(tmp_path / "a.jsonl", numbered(30))
    spec = DataSpec(path=path, shuffle=True)
    first, again, other = (read_prompts(spec, encoder, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert sorted(p.key for p in first) == sorted(p.key for p in other)
    fewer = DataSpec(path=written(tmp_path / "b.jsonl", numbered(20)), shuffle=True)
    kept = {p.key for p in read_prompts(fewer, encoder)}
    assert read_prompts(fewer, encoder) == [p for p in first if p.key in kept]


def test_pairs_are_rows_of_the_trainer(tmp_path: Path, encoder: Encoder) -> None:
    no = {**ANSWER, "content": "no"}
    rows = [
        {"prompt": "hi", "chosen": [USER, ANSWER], "rejected": [USER, no], "chosen_probs": 0.9, "prompt_id": "7"},
        {"prompt": "text", "chosen": "a", "rejected": "b", "prompt_id": "8"},
    ]
    spec = DataSpec(path=written(tmp_path / "a.jsonl", rows), ignored_columns=("prompt_id",), system="s")
    found = load_pairs(spec, encoder).training
    data = prepare([pair.row for pair in found], encoder)
    assert len(data) == 2
    for pair, sequences in zip(found, data.responses.sequences, strict=True):
        assert all(scored.ids[: len(pair.prompt.ids)] == pair.prompt.ids for scored in sequences)
        assert pair.prompt.text[0] == {"role": "system", "content": "s"}
    with pytest.raises(ValueError, match="pairs need the columns chosen and rejected; rejected is missing"):
        load_pairs(DataSpec(path=written(tmp_path / "b.jsonl", [{"prompt": "x", "chosen": "y"}])), encoder)


@pytest.mark.skipif(not JUDGED.exists(), reason="the shared data are not here")
def test_judged_instructions_are_prompts(encoder: Encoder) -> None:
    found = load_prompts(DataSpec(path=str(JUDGED), heldout=0.1, limit=100), encoder)
    assert (len(found.training), len(found.heldout)) == (90, 10)
    assert all(isinstance(prompt.text, str) for prompt in found.training)


# ------------------------------------------------------------------------------------------------------------ splits


def test_parts_are_equal_and_in_order() -> None:
    assert split(range(9), Iterations(count=3)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert split(range(8), Iterations(count=3)) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert split(range(9), Iterations(count=3, per_iteration=2)) == [[0, 1], [3, 4], [6, 7]]
    assert split(range(4), Iterations(count=2, prompts="all")) == [[0, 1, 2, 3]] * 2
    assert split(range(4), Iterations(count=2, prompts="all", per_iteration=3)) == [[0, 1, 2]] * 2


@pytest.mark.parametrize(
    ("count", "iterations"),
    [
        (2, Iterations(count=3)),
        (5, Iterations(count=3, per_iteration=2)),
        (2, Iterations(count=3, prompts="all", per_iteration=3)),
        (0, Iterations(count=1, prompts="all")),
    ],
)
def test_too_few_prompts_are_an_error(count: int, iterations: Iterations) -> None:
    with pytest.raises(ValueError, match=f"{count} prompts are too few for {iterations.count} iterations"):
        split(range(count), iterations)
