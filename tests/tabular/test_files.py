"""Files a user brings: every accepted way to write a table, and every bad file refused in one line that names it."""

import io
import json
import os
import pickle
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.tabular import families
from nashpo.tabular.csv_table import parse_csv
from nashpo.tabular.files import open_game, read_game, read_policy
from nashpo.tabular.game import Game

P = np.array([[0.5, 0.9, 0.25], [0.1, 0.5, 0.75], [0.75, 0.25, 0.5]])
WRONG = [[0.5, 0.9, 0.2], [0.1, 0.5, 0.9], [0.8, 0.4, 0.5]]


def put(path: Path, content: Any) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(content))
    elif path.suffix == ".npz":
        np.savez(path, **content)
    else:
        np.save(path, content)
    return path


def npy(array: Any, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def refusal(call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(ValueError) as error:
        call(*arguments, **named)
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


CSV = {
    "plain": ".5,.9,.25\n.1,.5,.75\n.75,.25,.5\n",
    "no last newline": ".5,.9,.25\n.1,.5,.75\n.75,.25,.5",
    "windows": ".5,.9,.25\r\n.1,.5,.75\r\n\r\n.75,.25,.5\r\n",
    "byte order mark": "\ufeff.5,.9,.25\n.1,.5,.75\n.75,.25,.5\n",
    "semicolons": "0.5;0.9;0.25\n0.1;0.5;0.75\n0.75;0.25;0.5\n",
    "decimal commas": "0,5;0,9;0,25\n0,1;0,5;0,75\n0,75;0,25;0,5\n",
    "tabs": ".5\t.9\t.25\n.1\t.5\t.75\n.75\t.25\t.5\n",
    "tabs, decimal commas": "0,5\t0,9\t0,25\n0,1\t0,5\t0,75\n0,75\t0,25\t0,5\n",
    "blanks": "5.0e-01 9.0e-01 2.5e-01\n1.0e-01 5.0e-01 7.5e-01\n7.5e-01 2.5e-01 5.0e-01\n",
    "spaces after commas": ".5, .9, .25\n.1, .5, .75\n.75, .25, .5\n",
    "fractions": "1/2,9/10,1/4\n1/10,1/2,3/4\n3/4,1/4,1/2\n",
}
LABELLED = {
    "header": "a,b,c\n.5,.9,.25\n.1,.5,.75\n.75,.25,.5\n",
    "header and labels": ",a,b,c\na,.5,.9,.25\nb,.1,.5,.75\nc,.75,.25,.5\n",
    "header, labels, corner": "model,a,b,c\na,.5,.9,.25\nb,.1,.5,.75\nc,.75,.25,.5\n",
    "header, labels, no corner": "a,b,c\na,.5,.9,.25\nb,.1,.5,.75\nc,.75,.25,.5\n",
    "labels": "a,.5,.9,.25\nb,.1,.5,.75\nc,.75,.25,.5\n",
    "quoted, semicolons": '\ufeff"a";"b";"c"\n0,5;0,9;0,25\n0,1;0,5;0,75\n0,75;0,25;0,5\n',
}


@pytest.mark.parametrize("text", CSV.values(), ids=CSV)
def test_csv_tables_are_read(tmp_path: Path, text: str) -> None:
    game = read_game(put(tmp_path / "g.csv", text.encode()))
    assert_array_equal(game.P, P)
    assert game.names is None


@pytest.mark.parametrize("text", LABELLED.values(), ids=LABELLED)
def test_csv_labels_become_names(tmp_path: Path, text: str) -> None:
    game = read_game(put(tmp_path / "g.CSV", text.encode()))
    assert_array_equal(game.P, P)
    assert game.names == ("a", "b", "c")


def test_csv_details() -> None:
    # Numbers as names: only where they count the columns, above as many rows as columns.
    counted = parse_csv("0,1\n.5,.9\n.1,.5\n")
    assert counted.columns == ("0", "1")
    framed = parse_csv(",0,1\n0,.5,.9\n1,.1,.5\n")
    assert framed.columns == framed.rows == ("0", "1")
    assert_array_equal(framed.values, [[0.5, 0.9], [0.1, 0.5]])
    assert parse_csv("0,1\n0,0\n").values.dtype.kind == "i"
    assert parse_csv('"x, y",z\n.5,.9\n.1,.5\n').columns == ("x, y", "z")
    assert parse_csv("a;b,c\n.5,.9\n.1,.5\n").columns == ("a;b", "c")
    assert parse_csv("1/3,2\n").values[0, 0] == Fraction(1, 3)
    assert np.isnan(parse_csv("nan,.5\n.5,.5\n").values[0, 0])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet='0123456789.,;\t\n\r" -/eEabn\ufeff\x00', max_size=60))
def test_any_text_is_a_table_or_a_one_line_refusal(text: str) -> None:
    refused = ""
    try:
        assert parse_csv(text).values.ndim == 2
    except ValueError as error:
        refused = str(error)
    assert "\n" not in refused


def test_numpy_files_are_read(tmp_path: Path) -> None:
    assert_array_equal(read_game(put(tmp_path / "a.npy", P)).P, P)
    assert_allclose(read_game(put(tmp_path / "b.npy", np.stack([P, P]).astype(np.float32))).P[1], P, atol=1e-7)
    assert_array_equal(read_game(put(tmp_path / "c.npy", np.array([[0, 1], [0, 0]]))).P, [[0.5, 1], [0, 0.5]])
    assert_array_equal(read_game(put(tmp_path / "d.npz", {"anything": P})).P, P)
    assert_array_equal(read_game(put(tmp_path / "e.npz", {"anything": P, "log": np.zeros(7)})).P, P)
    assert_array_equal(read_game(put(tmp_path / "h.npz", {"first": P.T, "P": P})).P, P)
    both = put(tmp_path / "f.npz", {"x": P, "y": P.T})
    assert_array_equal(read_game(f"{both}:y").P, P.T)
    text = refusal(read_game, both)
    assert text == f"{both}: holds several arrays and none is named P: x (3, 3), y (3, 3); choose one as f.npz:NAME"
    assert "no array 'z'; it has x, y" in refusal(read_game, f"{both}:z")
    game = families.bradley_terry(3, seed=1, batch=2)
    fields = {"P": game.P, "weights": [1, 3], "mask": np.ones((2, 3), bool), "names": ["u", "v", "w"]}
    full = read_game(put(tmp_path / "g.npz", {**fields, "reward": game.reward}))
    assert full.names == ("u", "v", "w")
    assert_array_equal(full.weights, [0.25, 0.75])
    assert_array_equal(full.reward, game.reward)


def test_json_files_are_read(tmp_path: Path) -> None:
    assert_array_equal(read_game(put(tmp_path / "a.json", P.tolist())).P, P)
    assert_array_equal(read_game(put(tmp_path / "b.json", b"\xef\xbb\xbf" + json.dumps(P.tolist()).encode())).P, P)
    content = {
        "P": [P.tolist()] * 2,
        "names": ["a", "b", "c"],
        "weights": [1, 3],
        "mask": [[True] * 3, [True, True, False]],
    }
    game = read_game(put(tmp_path / "c.json", content))
    assert game.names == ("a", "b", "c")
    assert_array_equal(game.mask, content["mask"])
    gap = [[0.5, 0.7, None], [0.3, 0.5, None], [None, None, 0.5]]
    assert_allclose(read_game(put(tmp_path / "d.json", {"P": gap, "mask": [True, True, False]})).P[2], 0.5, rtol=0)
    exact = read_game(put(tmp_path / "e.json", [[0.5, "1/3"], ["2/3", 0.5]]))
    assert exact.rational is not None
    assert exact.rational[0, 1] == Fraction(1, 3)


def test_symmetrize_mends_what_is_refused_without(tmp_path: Path) -> None:
    path = put(tmp_path / "g.json", WRONG)
    text = refusal(read_game, path)
    assert text.startswith(f"{path}: P + P^T is not 1: P[1, 2] = 0.9 and P[2, 1] = 0.4 sum to 1.3; ")
    assert "--symmetrize" in text
    assert_allclose(read_game(path, symmetrize=True).P[1, 2], 0.75, rtol=1e-15)  # (0.9 + 1 - 0.4)/2
    named = put(tmp_path / "g.csv", "x,y\n.5,.7\n.4,.5\n")
    assert "P('x' over 'y') = 0.7 and P('y' over 'x') = 0.4 sum to 1.1" in refusal(read_game, named)
    assert read_game(named, symmetrize=True).names == ("x", "y")
    rewarded = put(tmp_path / "r.json", {"P": P.tolist(), "reward": [0, 0, 0]})
    assert "cannot be symmetrized" in refusal(read_game, rewarded, symmetrize=True)


class Bomb:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("name", ["g.npy", "g.npz", "g.json", "g.csv", "g.jsonl", "g.pkl"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_is_never_loaded(tmp_path: Path, name: str, protocol: int) -> None:
    fired = tmp_path / "fired"
    path = put(tmp_path / name, pickle.dumps(Bomb(fired), protocol=protocol))
    text = refusal(read_game, path)
    assert text.startswith(str(path))
    if protocol and name != "g.pkl":
        assert "is a pickle, which is never loaded" in text
    assert not fired.exists()


def test_a_pickle_inside_numpy_formats_is_never_loaded(tmp_path: Path) -> None:
    fired = tmp_path / "fired"
    inside = np.array([[Bomb(fired)]], dtype=object)
    for name, content in (("g.npy", npy(inside, allow_pickle=True)), ("g.npz", npz(P=inside))):
        text = refusal(read_game, put(tmp_path / name, content))
        assert "a pickle, which is never loaded" in text
    assert not fired.exists()


BAD: dict[str, tuple[str, Any, str]] = {
    "npy truncated": ("g.npy", npy(P)[:-9], "is truncated or damaged"),
    "npy truncated in its header": ("g.npy", npy(P)[:20], "is truncated or damaged"),
    "npy claims too much": ("g.npy", npy(P).replace(b"(3, 3)", b"(3,3" + b"0)"), "is truncated or damaged"),
    "npz truncated": ("g.npz", npz(P=P)[:-30], "is truncated or damaged"),
    "npz with damage": ("g.npz", npz(P=P)[:60] + b"\0\0\0\0" + npz(P=P)[64:], "is truncated or damaged"),
    "npz of nothing": ("g.npz", npz(), "holds no array"),
    "not numpy at all": ("g.npy", b"hello world", "is not in numpy's format"),
    "npy empty": ("g.npy", b"", "the file is empty"),
    "csv empty": ("g.csv", "", "the file is empty"),
    "csv blank": ("g.csv", "\ufeff\n \n", "the file is empty"),
    "csv of delimiters": ("g.csv", ",,\n,,\n", "the file is empty"),
    "json empty": ("g.json", b"", "the file is empty"),
    "npy of no responses": ("g.npy", np.zeros((0, 0)), "P is empty: shape (0, 0)"),
    "npy of text": ("g.npy", np.array([["a", "b"], ["c", "d"]]), "must hold real numbers"),
    "not square": ("g.npy", P[:2], "P is not square: shape (2, 3)"),
    "csv not square": ("g.csv", ".5,.9,.2\n.1,.5,.3\n", "P is not square: shape (2, 3)"),
    "csv ragged": ("g.csv", ".5,.9\n.1,.5,.5\n", "row 2 has 3 columns, the rows before it 2"),
    "csv ragged later": ("g.csv", "a,b,c\n.5,.9,.2\n\n.1,.5,.9\n.8,.1\n", "row 5 has 2 columns, the rows before it 3"),
    "csv ragged, semicolons": ("g.csv", "0,5;0,9\n0,1;0,5\n0,5\n", "row 3 has 1 columns, the rows before it 2"),
    "csv text in the table": ("g.csv", "a,b\n.5,.9\n.1,half\n", "row 3, number 2 is 'half', not a number"),
    "csv gap": ("g.csv", ".5,\n.1,.5\n", "row 1, number 2 is empty"),
    "csv gap at the corner": ("g.csv", ",.9\n.1,.5\n", "row 1, number 1 is empty"),
    "csv names twice": ("g.csv", "a,a\n.5,.9\n.1,.5\n", "header: the name 'a' occurs twice"),
    "csv labels twice": ("g.csv", "a,.5,.9\na,.1,.5\n", "row labels: the name 'a' occurs twice"),
    "csv name empty": ("g.csv", "a,,b\n.5,.9,.5\n.1,.5,.5\n.5,.5,.5\n", "header: name 2 is empty"),
    "csv names disagree": ("g.csv", ",a,b\na,.5,.9\nc,.1,.5\n",
                           "header and row labels differ: column 2 is 'b', row 2 is 'c'"),
    "csv header long": ("g.csv", "a,b,c\n.5,.9\n.1,.5\n", "the header names 3 columns, the rows have 2"),
    "csv header alone": ("g.csv", "a,b\n", "a header but no rows"),
    "csv labelled, not square": ("g.csv", ",a,b\na,.5,.9\n", "1 rows and 2 columns; the table must be square"),
    "csv nan": ("g.csv", "a,b\n.5,nan\n.1,.5\n", "P('a' over 'b') is nan"),
    "csv percent": ("g.csv", "50,90\n10,50\n", "P[0, 1] = 90 lies outside [0, 1]; divide percentages by 100"),
    "csv not UTF-8": ("g.csv", "a,b\n.5,.9\n.1,.5\n".encode("utf-16"), "is not UTF-8 text"),
    "json broken": ("g.json", "[[0.5, 0.9]\n[0.1, 0.5]]", "is not JSON: Expecting ',' delimiter at line 2, column 1"),
    "json ragged": ("g.json", [[0.5, 0.9], [0.1]], "P[1] has 1 entries, P[0] has 2"),
    "json of numbers and lists": ("g.json", [[0.5, 0.9], 0.5], "P[1] has no entries, P[0] has 2"),
    "json nan": ("g.json", "[[0.5, NaN], [0.1, 0.5]]", "P[0, 1] is nan"),
    "json text": ("g.json", [[0.5, "x"], [0.1, 0.5]], 'P[0][1] is "x", not a number'),
    "json true": ("g.json", [[0.5, True], [False, 0.5]], "P[0][1] is true, not a number"),
    "json no P": ("g.json", {"p": [[0.5]]}, 'must hold a matrix or an object such as {"P"'),
    "json number": ("g.json", "3", "must hold a matrix or an object"),
    "json unknown key": ("g.json", {"P": [[0.5]], "weigths": 1}, "unknown key 'weigths'; did you mean 'weights'?"),
    "json key twice": ("g.json", '{"P": [[0.5]], "P": [[0.5]]}', "the key 'P' occurs twice"),
    "json names": ("g.json", {"P": [[0.5]], "names": [1]}, "names must be a list of strings"),
    "json names short": ("g.json", {"P": P.tolist(), "names": ["a"]}, "1 names for 3 responses"),
    "json weights negative": ("g.json", {"P": [P.tolist()] * 2, "weights": [1, -1]}, "weight[1] is -1"),
    "json deep": ("g.json", "[" * 200_000, "nested too deeply"),
    "unknown kind": ("g.xlsx", b"PK", "unknown kind of file '.xlsx'; give .npy"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = put(tmp_path / name, content)
    text = refusal(read_game, path)
    assert text.startswith(f"{path}: ")
    assert message in text


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".json"])
def test_damaged_bytes_give_a_game_or_a_one_line_refusal(tmp_path: Path, suffix: str) -> None:
    """Cut, change and delete bytes at seeded places: nothing but a ValueError may come out."""
    whole = {
        ".npy": npy(P),
        ".npz": npz(P=P, names=["a", "b", "c"]),
        ".csv": LABELLED["header and labels"].encode(),
        ".json": json.dumps({"P": P.tolist(), "names": ["a", "b", "c"]}).encode(),
    }[suffix]
    rng = np.random.default_rng(0)
    path = tmp_path / f"g{suffix}"
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=rng.integers(1, 4)):
            damaged[place : place + rng.integers(3)] = rng.bytes(rng.integers(2))
        if rng.random() < 0.3:
            del damaged[rng.integers(len(damaged)) :]
        path.write_bytes(damaged)
        message = f"{path}: "
        try:
            read_game(path)
        except ValueError as error:
            message = str(error)
            refused += 1
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
    assert refused > 100


@pytest.mark.parametrize(
    "name", ["none.npy", "none.npz", "none.csv", "none.json", "none.jsonl", "none.jsonl.gz", "none"]
)
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    assert refusal(read_game, tmp_path / name) == f"{tmp_path / name}: no such file"


def test_a_directory_and_an_unreadable_file(tmp_path: Path) -> None:
    for name in ("folder.npy", "folder.csv", "folder.jsonl", "folder"):
        (tmp_path / name).mkdir()
        assert "is a directory" in refusal(read_game, tmp_path / name)
    if sys.platform != "win32" and os.geteuid() != 0:
        path = put(tmp_path / "locked.npy", P)
        path.chmod(0)
        assert "cannot be read (Permission denied)" in refusal(read_game, path)


def test_a_game_is_a_file_or_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "g.csv", CSV["plain"])
    assert_array_equal(open_game("g.csv").P, P)
    assert open_game("cyclic:n=5").n == 5
    assert "did you mean 'cyclic'? (and no file has this name)" in refusal(open_game, "cyclik")
    assert "n is 4" in refusal(open_game, "cyclic:n=4")
    assert refusal(open_game, "g.npy") == "g.npy: no such file"
    assert "no game given" in refusal(open_game, " ")


POLICIES: dict[str, tuple[str, Any]] = {
    "npy": ("p.npy", np.array([0.5, 0.25, 0.25])),
    "float32": ("p.npy", np.array([0.5, 0.25, 0.25], dtype=np.float32)),
    "npz": ("p.npz", {"anything": np.array([0.5, 0.25, 0.25])}),
    "npz, several": ("p.npz", {"policy": np.array([0.5, 0.25, 0.25]), "gap": np.array(1)}),
    "row": ("p.csv", "0.5,0.25,0.25\n"),
    "column": ("p.csv", "0.5\n0.25\n0.25\n"),
    "named column": ("p.csv", "c,0.25\na,0.5\nb,0.25\n"),
    "named column, header": ("p.csv", "response,probability\nc,0.25\na,0.5\nb,0.25\n"),
    "named row": ("p.csv", "c,a,b\n0.25,0.5,0.25\n"),
    "decimal commas": ("p.csv", "a;0,5\nb;0,25\nc;0,25\n"),
    "json": ("p.json", [0.5, 0.25, 0.25]),
    "json, named": ("p.json", {"c": 0.25, "b": 0.25, "a": 0.5}),
    "json, policy": ("p.json", {"policy": [0.5, 0.25, 0.25]}),
    "fractions": ("p.json", ["1/2", "1/4", "1/4"]),
    "nearly normalized": ("p.json", [0.5 + 2e-7, 0.25, 0.25]),
}


@pytest.mark.parametrize(("name", "content"), POLICIES.values(), ids=POLICIES)
def test_policies_are_read(tmp_path: Path, name: str, content: Any) -> None:
    policy = read_policy(put(tmp_path / name, content), Game(P, names="abc"), full_support=True)
    assert_allclose(policy, [0.5, 0.25, 0.25], atol=2e-7)
    assert_allclose(policy.sum(), 1.0, rtol=3e-16)


def test_policies_of_contexts(tmp_path: Path) -> None:
    ragged = Game([P, P], mask=[[True] * 3, [True, True, False]])
    shared = read_policy(put(tmp_path / "a.json", [0.5, 0.25, 0.25]), ragged)
    assert_allclose(shared, [[0.5, 0.25, 0.25], [2 / 3, 1 / 3, 0.0]], rtol=1e-15)
    own = read_policy(put(tmp_path / "b.csv", ".5,.25,.25\n.5,.5,0\n"), ragged, full_support=True)
    assert_array_equal(own, [[0.5, 0.25, 0.25], [0.5, 0.5, 0.0]])
    text = refusal(read_policy, put(tmp_path / "c.json", [[0.5, 0.25, 0.25]] * 2), ragged)
    assert "probability 0.25 of response 2 in context 1, which is missing there" in text
    assert "no probability on the responses that exist in context 1" in refusal(
        read_policy, put(tmp_path / "d.json", [0, 0, 1]), ragged
    )


BAD_POLICIES: dict[str, tuple[str, Any, str]] = {
    "short": ("p.json", [0.5, 0.5], "the policy has 2 entries, but the game has 3 responses"),
    "contexts": ("p.npy", np.full((2, 3), 1 / 3), "the policy has shape (2, 3), expected (3,) or (3,)"),
    "nan": ("p.csv", "0.5\nnan\n0.5\n", "probability nan of response 'b' must be finite and >= 0"),
    "negative": ("p.json", [0.75, -0.25, 0.5], "probability -0.25 of response 'b'"),
    "sum": ("p.json", [0.5, 0.5, 0.5], "the policy sums to 1.5, not to 1; divide it by its sum"),
    "sum, barely": ("p.json", [0.5 + 2e-6, 0.25, 0.25], "sums to 1.000002"),
    "zero": ("p.json", [0.5, 0.5, 0], "response 'c' has probability 0, but every response needs a positive one"),
    "left out": ("p.json", {"a": 0.5, "b": 0.5}, "response 'c' has probability 0"),
    "unknown name": ("p.json", {"a": 0.5, "bb": 0.5}, "the game has no response 'bb'; did you mean 'b'?"),
    "named twice": ("p.json", '{"a": 0.5, "a": 0.5}', "the key 'a' occurs twice"),
    "named twice in csv": ("p.csv", "a,.5\na,.5\n", "row labels: the name 'a' occurs twice"),
    "text": ("p.json", ["a", "b", "c"], 'policy[0] is "a", not a number'),
    "number": ("p.json", "1", "must hold a list of probabilities or an object"),
    "empty": ("p.csv", "", "the file is empty"),
    "several arrays": ("p.npz", {"a": [1.0], "b": [1.0]},
                       "holds no array 'policy', only a, b; choose one as p.npz:NAME"),
    "pickle": ("p.npy", pickle.dumps([1]), "is a pickle, which is never loaded"),
    "truncated": ("p.npy", npy(np.full(3, 1 / 3))[:-5], "is truncated or damaged"),
    "strings": ("p.npy", np.array(["a", "b", "c"]), "a list of real numbers"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD_POLICIES.values(), ids=BAD_POLICIES)
def test_a_bad_policy_is_refused_in_one_line(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = put(tmp_path / name, content)
    text = refusal(read_policy, path, Game(P, names="abc"), full_support=True)
    assert text.startswith(f"{path}: ")
    assert message in text


def test_zeros_are_legal_in_a_start(tmp_path: Path) -> None:
    policy = read_policy(put(tmp_path / "p.json", {"b": 1}), Game(P, names="abc"))
    assert_array_equal(policy, [0.0, 1.0, 0.0])
