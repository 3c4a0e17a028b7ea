"""Preference files: small ones by hand, the same rows in every format, random rows against counting, and refusals.

Counts of hard labels are integers and compared exactly; sums of soft labels are rounded, and agree to 1e-12.
"""

import gzip
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.tabular import pair_counts, preference_arrays, preference_jsonl, preference_parquet
from nashpo.tabular.preference_files import ReadReport, from_arrays, read_preferences

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:
    pa = pq = None

needs_arrow = pytest.mark.skipif(pa is None, reason="pyarrow, the extra nashpo[parquet], is not installed")

ROWS = [
    {"prompt": "p", "chosen": "a", "rejected": "b"},
    {"prompt": "q", "chosen": "b", "rejected": "a"},
    {"prompt": "p", "chosen": "c", "rejected": "a"},
    {"prompt": "p", "chosen": "a", "rejected": "b"},
    {"prompt": "p", "chosen": "b", "rejected": "b"},
    {"prompt": "one", "chosen": "x", "rejected": "x"},
]


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def jsonl(tmp_path: Path, rows: list[Any], name: str = "pairs.jsonl") -> Path:
    path = tmp_path / name
    path.write_text(lines(rows))
    return path


def parquet(tmp_path: Path, rows: list[Any], **options: Any) -> Path:
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_a_small_file_by_hand(tmp_path: Path) -> None:
    data, report = read_preferences(jsonl(tmp_path, ROWS))
    assert data.prompts == ("p", "q", "one")
    assert data.responses == (("a", "b", "c"), ("b", "a"), ("x",))
    assert_array_equal(data.mask, [[True] * 3, [True, True, False], [True, False, False]])
    assert_array_equal(data.wins[0], [[0, 2, 0], [0, 0, 0], [1, 0, 0]])
    assert_array_equal(data.wins[1], [[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    assert_array_equal(data.wins[2], np.zeros((3, 3)))
    assert_array_equal(data.ties, [1, 0, 1])
    assert_allclose(data.weights, np.array([4, 1, 1]) / 6, rtol=1e-15)
    assert data.N == 6
    assert report == ReadReport(
        pairs=6, ties=2, prompts=3, single_response_prompts=1, responses=6, largest=3, soft_labels=0, skipped=0
    )
    assert str(report) == (
        "6 pairs over 3 prompts (1 with one response); 6 distinct responses, at most 3 for a prompt; 2 ties"
    )


def test_labels_and_weights(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "label": 0.75, "weight": 2},
        {"prompt": "p", "chosen": "b", "rejected": "a", "label": True, "weight": 0.5},
        {"prompt": "p", "chosen": "a", "rejected": "b", "label": 0, "weight": 4},
        {"prompt": "p", "chosen": "a", "rejected": "gone", "label": 1, "weight": 0.0},
        {"prompt": "p", "chosen": "b", "rejected": "b", "label": 0.5, "weight": 3},
    ]
    data, report = read_preferences(jsonl(tmp_path, rows))
    assert data.responses == (("a", "b"),)  # what has weight 0 leaves no response behind
    assert_array_equal(data.wins, [[[0, 1.5], [5, 0]]])
    assert_array_equal(data.ties, [3])
    assert (report.pairs, report.ties, report.soft_labels, report.skipped) == (4, 1, 2, 1)
    assert "2 soft labels; 1 rows of weight 0 skipped" in str(report)


def test_conversations_with_and_without_a_prompt(tmp_path: Path) -> None:
    """UCLA's files have no prompt; TRL's may have it as text or as messages. All give the same game."""
    question = message("user", "why?")
    swapped = {"content": "a", "role": "assistant"}
    implicit = [
        {"chosen": [question, message("assistant", "a")], "rejected": [question, message("assistant", "b")]},
        {"chosen": [question, message("assistant", "b")], "rejected": [question, swapped]},
        {"chosen": [question, swapped], "rejected": [question, message("assistant", "a")]},
    ]
    probabilities = [{"chosen_probs": p, "chosen_probs_win": 0.9, "chosen_probs_lose": 0.0} for p in (0.75, 1.0, 0.5)]
    data, report = read_preferences(jsonl(tmp_path, [a | b for a, b in zip(implicit, probabilities)]))
    assert data.wins.shape == (1, 2, 2)
    assert_array_equal(data.wins, [[[0, 0.75], [1.25, 0]]])
    assert_array_equal(data.ties, [1])
    assert (report.soft_labels, report.ties) == (2, 1)
    assert data.prompts is not None
    assert json.loads(data.prompts[0]) == [question]
    assert data.responses is not None
    assert [json.loads(text) for text in data.responses[0]] == [
        [message("assistant", "a")],
        [message("assistant", "b")],
    ]

    explicit = [{"prompt": [question], "chosen": r["chosen"][1:], "rejected": r["rejected"][1:]} for r in implicit]
    mixed = [{"prompt": "why?", "chosen": r["chosen"], "rejected": r["rejected"]} for r in implicit]
    for rows in (explicit, mixed):
        found, _ = read_preferences(jsonl(tmp_path, rows))
        assert_array_equal(found.wins, [[[0, 1], [1, 0]]])
        assert_array_equal(found.ties, [1])
    assert read_preferences(jsonl(tmp_path, explicit))[0].responses == data.responses


def test_turns_that_are_shared_belong_to_the_prompt(tmp_path: Path) -> None:
    start = [message("user", "why?"), message("assistant", "because"), message("user", "and?")]
    rows = [{"chosen": [*start, message("assistant", "a")], "rejected": [*start, message("assistant", "b")]}]
    data, _ = read_preferences(jsonl(tmp_path, rows))
    assert data.prompts is not None
    assert json.loads(data.prompts[0]) == start


def random_rows(seed: int, m: int, soft: bool) -> list[dict[str, Any]]:
    """Prompts with different numbers of responses; the same texts occur under several prompts."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(m):
        x = int(rng.integers(0, 9))
        a, b = rng.integers(0, 2 + x, 2)
        row: dict[str, Any] = {"prompt": f"prompt {x}", "chosen": f"text {a} é", "rejected": f"text {b} é"}
        if soft:
            row |= {"label": float(rng.choice([0.0, 1.0, rng.random()])), "weight": float(rng.choice([0.0, 1.0, 2.5]))}
        rows.append(row)
    return rows


def counted(rows: list[dict[str, Any]]) -> tuple[dict[tuple[str, str, str], float], dict[str, float]]:
    """Wins by (prompt, winner, loser), and ties by prompt, one row after another."""
    wins: dict[tuple[str, str, str], float] = {}
    ties: dict[str, float] = {}
    for row in rows:
        x, a, b = row["prompt"], row["chosen"], row["rejected"]
        label, weight = row.get("label", 1.0), row.get("weight", 1.0)
        if a == b:
            ties[x] = ties.get(x, 0.0) + weight
            continue
        wins[x, a, b] = wins.get((x, a, b), 0.0) + weight * label
        wins[x, b, a] = wins.get((x, b, a), 0.0) + weight * (1 - label)
    return wins, ties


def agrees(data: Any, rows: list[dict[str, Any]]) -> None:
    wins, ties = counted(rows)
    for x, prompt in enumerate(data.prompts):
        names = data.responses[x]
        expected = np.array([[wins.get((prompt, a, b), 0.0) for b in names] for a in names])
        assert_allclose(data.wins[x, : len(names), : len(names)], expected, rtol=1e-12, atol=0)
        assert_allclose(data.ties[x], ties.get(prompt, 0.0), rtol=1e-12)
    assert_allclose(data.N, sum(row.get("weight", 1.0) for row in rows), rtol=1e-12)


@pytest.mark.parametrize("soft", [False, True])
def test_random_rows_against_counting_whatever_the_chunks(
    soft: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = random_rows(7, 600, soft)
    path = jsonl(tmp_path, rows)
    whole, report = read_preferences(path)
    agrees(whole, rows)
    monkeypatch.setattr(preference_jsonl, "_CHUNK", 7)
    monkeypatch.setattr(pair_counts, "_CHUNK", 20)
    pieces, same = read_preferences(path)
    assert_allclose(pieces.wins, whole.wins, rtol=1e-12, atol=0)
    assert_array_equal(pieces.mask, whole.mask)
    assert (pieces.prompts, pieces.responses, same) == (whole.prompts, whole.responses, report)


def test_gzip_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    plain, _ = read_preferences(jsonl(tmp_path, ROWS))
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + lines(ROWS).replace("\n", "\n\n").encode()))
    packed, report = read_preferences(path)
    assert_array_equal(packed.wins, plain.wins)
    assert report.pairs == len(ROWS)


@needs_arrow
@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_parquet_gives_what_json_lines_give(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(8, 500, soft=True)
    expected, report = read_preferences(jsonl(tmp_path, rows))
    table = pa.Table.from_pylist(rows)
    text = pa.dictionary(pa.int32(), pa.string()) if kind == "dictionary" else getattr(pa, kind)()
    for at, name in enumerate(("prompt", "chosen", "rejected")):
        column = table.column(name).combine_chunks()
        column = column.dictionary_encode() if kind == "dictionary" else column.cast(text)
        table = table.set_column(at, pa.field(name, text), column)
    path = tmp_path / "pairs.parquet"
    pq.write_table(table, path, row_group_size=90)
    monkeypatch.setattr(preference_parquet, "_MOST_ROWS", 40)
    monkeypatch.setattr(preference_parquet, "_LEAST_ROWS", 1)
    data, same = read_preferences(path)
    assert_allclose(data.wins, expected.wins, rtol=1e-12, atol=0)
    assert_array_equal(data.mask, expected.mask)
    assert (data.prompts, data.responses, same) == (expected.prompts, expected.responses, report)


@needs_arrow
def test_conversations_in_parquet(tmp_path: Path) -> None:
    question = message("user", "why?")
    rows = [
        {"chosen": [question, message("assistant", a)], "rejected": [question, message("assistant", b)]}
        for a, b in ("ab", "ab", "ba", "cc")
    ]
    expected, _ = read_preferences(jsonl(tmp_path, rows))
    data, _ = read_preferences(parquet(tmp_path, rows))
    assert_array_equal(data.wins, expected.wins)
    assert data.responses == expected.responses
    with_prompt = [{"prompt": "why?"} | row for row in rows]
    found, _ = read_preferences(parquet(tmp_path, with_prompt))
    assert_array_equal(found.wins, expected.wins)
    rows[2]["rejected"] = [message("user", "another"), message("assistant", "a")]
    with pytest.raises(ValueError, match=r"row 3: .* do not begin with the same message"):
        read_preferences(parquet(tmp_path, rows))


@needs_arrow
def test_labels_in_parquet_may_be_any_numbers(tmp_path: Path) -> None:
    for labels in ([True, False], [1, 0], [1.0, 0.0]):
        rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "label": label} for label in labels]
        assert_array_equal(read_preferences(parquet(tmp_path, rows))[0].wins, [[[0, 1], [1, 0]]])


def test_arrays_against_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    prompt, a, b = rng.integers(0, 5, 900), rng.integers(0, 7, 900), rng.integers(0, 7, 900)
    label, weight = rng.random(900), rng.choice([0.5, 1.0, 3.0], 900)
    expected = np.zeros((5, 7, 7))
    np.add.at(expected, (prompt, a, b), weight * label)
    np.add.at(expected, (prompt, b, a), weight * (1 - label))
    ties = np.trace(expected, axis1=1, axis2=2)
    expected[:, range(7), range(7)] = 0

    monkeypatch.setattr(preference_arrays, "_CHUNK", 100)
    data = from_arrays(prompt, a, b, label, weight, n=7)
    assert data.mask is None
    assert data.prompts is not None
    order = [int(name) for name in data.prompts]
    assert_allclose(data.wins, expected[order], rtol=1e-12, atol=1e-300)
    assert_allclose(data.ties, ties[order], rtol=1e-12)

    shifted = from_arrays(prompt - 2**40, a + 2**40, b + 2**40, label, weight)  # ids may be any integers
    spelled = from_arrays(prompt.astype(str), a.astype(str), b.astype(str), label, weight)
    assert shifted.prompts == tuple(str(int(name) - 2**40) for name in data.prompts)
    for found, base in ((shifted, 2**40), (spelled, 0)):
        assert found.responses is not None
        for x, names in enumerate(found.responses):
            at = np.array([int(name) - base for name in names])
            assert_allclose(found.wins[x], expected[order[x]][np.ix_(at, at)], rtol=1e-12, atol=1e-300)


def test_hard_labels_are_the_default() -> None:
    data = from_arrays([3, 3, 3], [10, 11, 10], [11, 10, 12])
    assert_array_equal(data.wins, [[[0, 1, 1], [1, 0, 0], [0, 0, 0]]])
    assert data.responses == (("10", "11", "12"),)


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        (([], [], []), {}, "the arrays are empty"),
        (([0, 0], [0, 1], [1]), {}, r"second_ids has shape \(1,\), prompt_ids has \(2,\)"),
        (([0], [0], [1], [1.5]), {}, r"labels\[0\] = 1\.5 lies outside \[0, 1\]"),
        (([0], [0], [1], [np.nan]), {}, r"labels\[0\] = nan"),
        (([0], [0], [1], ["yes"]), {}, "labels hold <U3; numbers are needed"),
        (([0, 0], [0, 0], [1, 1], None, [1, -2]), {}, r"weights\[1\] = -2 lies outside \[0, infinity\)"),
        (([0], [0], [1], None, [0]), {}, r"no pair at all \(1 rows of weight 0\)"),
        (([0.5], [0], [1]), {}, "prompt_ids hold float64; integers or strings are needed"),
        (([0], [0], [4]), {"n": 4}, "n = 4 is given, so response ids must be integers from 0 to 3"),
        (([0], [1], [1]), {}, "no informative pair at all"),
        (([0, 0], [0, 1], [1, 1], [0.5, 1.0]), {}, "every label is 1/2"),
    ],
)
def test_bad_arrays(arguments: Any, options: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        from_arrays(*arguments, **options)
    assert "\n" not in str(caught.value)


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([PAIR, {"prompt": "p", "chosen": "a"}], "line 2: lacks rejected, unlike the first line"),
        ([PAIR, PAIR | {"label": 1}], "line 2: has label, unlike the first line"),
        ([{"question": "p", "good": "a", "bad": "b"}], "line 1: no column chosen and rejected among 'question'"),
        (
            [PAIR | {"lable": 0.3}],
            r"unknown columns 'lable' \(did you mean 'label'\?\); expected prompt, chosen, reject",
        ),
        ([PAIR | {"score": 0.3}], "chosen_probs, chosen_probs_win, chosen_probs_lose"),
        ([PAIR | {"label": 1, "chosen_probs": 1}], "contradictory columns: label and chosen_probs"),
        ([PAIR | {"chosen": [message("assistant", "a")]}], "contradictory: chosen is a list, rejected is a str"),
        ([PAIR, PAIR | {"prompt": [message("user", "p")]}], "line 2: prompt is .* unlike the first line's in kind"),
        ([PAIR | {"chosen": 1, "rejected": 2}], "line 1: chosen is 1, neither text nor a list of messages"),
        ([PAIR | {"chosen": [1], "rejected": [2]}], "line 1: chosen is .1., neither text nor a list of messages"),
        ([{"chosen": "a", "rejected": "b"}], "there is no prompt, and chosen is no conversation"),
        ([PAIR | {"label": 1.2}], "line 1: the label is 1.2; it is the probability"),
        ([PAIR | {"label": 0.5}, PAIR | {"label": float("nan")}], "line 2: the label is nan"),
        ([PAIR | {"label": "1"}], 'line 1: label is "1", not a number'),
        ([PAIR | {"label": None}], "line 1: label is null, not a number"),
        ([PAIR | {"chosen_probs": -0.1}], "line 1: the label is -0.1"),
        ([PAIR | {"weight": -1}], "line 1: the weight is -1"),
        ([PAIR | {"weight": 1e999}], "line 1: the weight is inf"),
        ([PAIR | {"weight": 0}], "no pair at all"),
        ([PAIR | {"label": 0.5}] * 3, "every label is 1/2"),
        ([PAIR | {"rejected": "a"}] * 3, "no informative pair at all"),
        ([{"prompt": "p", "responses": {}}], "these are judged responses"),
        ([[1, 2]], "line 1 must be an object"),
    ],
)
def test_bad_rows(rows: list[Any], says: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path, rows)
    with pytest.raises(ValueError, match=says) as caught:
        read_preferences(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "the file holds no preference pairs"),
        (lines([PAIR]).encode() + b"{oops\n", "line 2 is not JSON"),
        (b'{"prompt": "p", "chosen": "a", "chosen": "c", "rejected": "b"}\n', "line 1: the key 'chosen' occurs twice"),
        (lines([PAIR]).encode() + b"\xff\xfe\n", "line 2 is not UTF-8"),
        (b"\x80\x04pickle", "is a pickle"),
        (b"[" * 100_000, "line 1"),
    ],
)
def test_bad_bytes(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        read_preferences(path)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_preferences(tmp_path / "nothing.jsonl")
    with pytest.raises(ValueError, match="is a directory"):
        read_preferences(tmp_path)


def test_a_truncated_gzip_names_the_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"prompt": "p", "chosen": rng.bytes(40).hex(), "rejected": "b"} for _ in range(3000)]
    packed = gzip.compress(lines(rows).encode())
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=r"the gzip file is truncated after line 1[3-6]\d\d; copy it again"):
        read_preferences(path)
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 0xFF
    path.write_bytes(bytes(damaged))
    with pytest.raises(ValueError, match=r"line \d+|damaged after line \d+"):
        read_preferences(path)


@needs_arrow
def test_a_truncated_or_damaged_parquet_names_the_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"prompt": "p", "chosen": rng.bytes(40).hex(), "rejected": "b"} for _ in range(3000)]
    path = parquet(tmp_path, rows, row_group_size=1000, write_page_checksum=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated or damaged before row 1"):
        read_preferences(path)
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    path.write_bytes(bytes(damaged))
    with pytest.raises(ValueError, match=r"truncated or damaged after row \d+; copy it again"):
        read_preferences(path)


@needs_arrow
@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"prompt": ["p"], "chosen": [1], "rejected": [2]}, "column chosen holds int64; text or lists of messages"),
        (
            {"prompt": ["p"], "chosen": ["a"], "rejected": [[{"role": "x"}]]},
            "contradictory: one of chosen and rejected",
        ),
        ({"prompt": ["p", "p"], "chosen": ["a", None], "rejected": ["b", "b"]}, "row 2: chosen is missing"),
        (
            {"prompt": ["p"], "chosen": ["a"], "rejected": ["b"], "label": ["1"]},
            "column label holds .*string.*; numbers",
        ),
        ({"prompt": ["p"], "chosen": ["a"], "rejected": ["b"], "label": [7.0]}, "row 1: the label is 7"),
        ({"prompt": ["p"], "completion": ["a"], "label": [True]}, "no column chosen and rejected among 'prompt'"),
        ({"prompt": ["p"], "chosen": ["a"], "rejected": ["b"], "score": [7.0]}, "unknown columns 'score'"),
    ],
)
def test_bad_parquet(columns: dict[str, list[Any]], says: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match=says) as caught:
        read_preferences(path)
    assert "\n" not in str(caught.value)


@needs_arrow
def test_rows_are_numbered_through_all_row_groups(tmp_path: Path) -> None:
    rows = [PAIR | {"label": 1.0}] * 25 + [PAIR | {"label": 2.0}] * 3
    with pytest.raises(ValueError, match="row 26: the label is 2"):
        read_preferences(parquet(tmp_path, rows, row_group_size=10))


@needs_arrow
def test_a_parquet_file_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.schema([(name, pa.string()) for name in PAIR]).empty_table(), path)
    with pytest.raises(ValueError, match="no preference pairs"):
        read_preferences(path)


def test_other_columns_are_ignored_by_name(tmp_path: Path) -> None:
    rows = [PAIR | {"score": 1, "source": {"x": []}}, PAIR | {"score": None, "source": "y"}]
    data, _ = read_preferences(jsonl(tmp_path, rows), ignore=["score", "source"])
    assert data.N == 2


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "pairs.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"reading Parquet needs pyarrow: install nashpo\[parquet\]"):
        read_preferences(path)


def test_pyarrow_is_imported_only_for_parquet(tmp_path: Path) -> None:
    path = jsonl(tmp_path, ROWS)
    code = (
        "import sys; from nashpo.tabular.preference_files import read_preferences;"
        f"read_preferences({str(path)!r}); print({{'pyarrow', 'torch', 'numba', 'cvxpy'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_table_that_is_too_large_is_refused_before_it_is_made(tmp_path: Path) -> None:
    rows = [{"prompt": "p" * 100, "chosen": f"a{k}", "rejected": "b"} for k in range(2000)]
    path = jsonl(tmp_path, rows)
    tracemalloc.start()
    try:
        with pytest.raises(
            ValueError, match=r"1 prompts x 2001 x 2001 responses needs 0.0298 GiB, more than the limit of 0.02 GiB"
        ):
            read_preferences(path, max_table_gib=0.02)
        assert tracemalloc.get_traced_memory()[1] < 2001**2 * 8 / 4
    finally:
        tracemalloc.stop()
    assert read_preferences(path, max_table_gib=0.03)[0].n == 2001
