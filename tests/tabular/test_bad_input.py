"""Every kind of bad input, through the command: exit status 2, one line on stderr, nothing begun.

What looks odd and is good input, as people save their tables, is tried here too.
"""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.core.cli import main
from nashpo.tabular.commands import play as play_command

P = np.array([[0.5, 0.1, 0.8], [0.9, 0.5, 0.1], [0.2, 0.9, 0.5]])
"""COMAL's game, whose equilibrium is (4, 3, 4)/11."""
PLAY = ["--rule", "onpo", "--eta", "0.5", "--steps", "100"]

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NASHPO_TRACEBACK", raising=False)


def put(name: str, content: Any) -> str:
    """A file of bytes, text, a .npy of an array, or JSON."""
    path = Path(name)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return name


def told(capsys: Capture, *argv: str) -> dict[str, Any]:
    assert main([*argv, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def refused(capsys: Capture, argv: Sequence[str], message: str) -> None:
    """Status 2, nothing on stdout, one line on stderr that says what is wrong."""
    status = main(argv)
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("nashpo: error: ")
    assert err.count("\n") == 1
    assert message in err


LOPSIDED = [[0.5, 0.7, 0.2], [0.3, 0.5, 0.9], [0.8, 0.4, 0.5]]


def npz(**arrays: Any) -> bytes:
    np.savez("made.npz", **arrays)
    return Path("made.npz").read_bytes()


BAD_GAMES: dict[str, tuple[str, Any, str]] = {
    "not square": ("g.npy", P[:2], "g.npy: P is not square: shape (2, 3)"),
    "P + P^T": ("g.json", LOPSIDED, "P[1, 2] = 0.9 and P[2, 1] = 0.4 sum to 1.3"),
    "P + P^T offers": ("g.json", LOPSIDED, "--symmetrize"),
    "diagonal": ("g.json", [[0.5, 0.7], [0.3, 0.6]], "P[1, 1] = 0.6 must be 1/2"),
    "nan": ("g.json", "[[0.5, NaN], [0.1, 0.5]]", "P[0, 1] is nan"),
    "above 1": ("g.json", [[0.5, 1.2], [-0.2, 0.5]], "lies outside [0, 1]"),
    "empty": ("g.csv", "", "g.csv: the file is empty"),
    "empty array": ("g.npy", np.zeros((0, 0)), "P is empty"),
    "ragged": ("g.csv", ".5,.9\n.1,.5,.5\n", "row 2 has 3 columns"),
    "labels twice": ("g.csv", "a,a\n.5,.9\n.1,.5\n", "the name 'a' occurs twice"),
    "weights negative": ("g.json", {"P": [P.tolist()] * 2, "weights": [1, -1]}, "weight[1] is -1"),
    "weights of zero sum": ("g.json", {"P": [P.tolist()] * 2, "weights": [0, 0]}, "weights sum to zero"),
    "weights too many": ("g.json", {"P": [P.tolist()] * 2, "weights": [1, 1, 1]}, "weights have shape (3,)"),
    "not there": ("", None, "g.npy: no such file"),
    "truncated": ("g.npy", b"\x93NUMPY\x01\x00v\x00{'descr'", "is truncated or damaged"),
    "pickle": ("g.npy", pickle.dumps([[0.5]]), "is a pickle, which is never loaded"),
    "judged, damaged": ("g.jsonl", '{"prompt": "x"', "line 1 is not JSON"),
    "unknown kind": ("g.xlsx", b"PK", "unknown kind of file '.xlsx'"),
}


@pytest.mark.parametrize(
    "command", [["solve"], ["play", *PLAY], ["sweep", "--rule", "sppo", "--eta", "1", "--out", "o"]]
)
@pytest.mark.parametrize(("name", "content", "message"), BAD_GAMES.values(), ids=BAD_GAMES)
def test_a_bad_game(command: list[str], name: str, content: Any, message: str, capsys: Capture) -> None:
    game = put(name, content) if name else "g.npy"
    before = sorted(os.listdir())
    refused(capsys, [*command, game], message)
    assert sorted(os.listdir()) == before  # nothing was begun


def test_several_arrays_in_an_npz(capsys: Capture) -> None:
    put("g.npz", npz(first=P, second=P.T))
    refused(capsys, ["solve", "g.npz"], "holds several arrays and none is named P: first (3, 3), second (3, 3); choose")
    assert_allclose(told(capsys, "solve", "g.npz:second")["policy"], [4 / 11, 3 / 11, 4 / 11], rtol=1e-13)


GOOD_GAMES: dict[str, tuple[str, Any]] = {
    "header and labels": ("g.csv", ",a,b\na,.5,.9\nb,.1,.5\n"),
    "byte order mark": ("g.csv", "\ufeffa,b\n.5,.9\n.1,.5\n"),
    "semicolons": ("g.csv", "a;b\n0,5;0,9\n0,1;0,5\n"),
    "integers": ("g.npy", np.array([[0, 1], [0, 0]])),
    "float32": ("g.npy", np.array([[0.5, 0.9], [0.1, 0.5]], dtype=np.float32)),
}


@pytest.mark.parametrize(("name", "content"), GOOD_GAMES.values(), ids=GOOD_GAMES)
def test_a_game_as_people_save_it(name: str, content: Any, capsys: Capture) -> None:
    report = told(capsys, "solve", put(name, content))
    assert_array_equal(report["policy"], [1, 0])
    assert told(capsys, "play", name, *PLAY)["steps"] == 100


def test_symmetrize(capsys: Capture) -> None:
    put("g.json", LOPSIDED)
    report = told(capsys, "solve", "g.json", "--symmetrize")
    # P(1, 2) becomes (0.9 + 1 - 0.4)/2 = 0.75: margins .2, .25, .3 of a 3-cycle, each played as the other two's margin.
    assert_allclose(report["policy"], np.array([0.25, 0.3, 0.2]) / 0.75, rtol=1e-12)
    assert told(capsys, "play", "g.json", *PLAY, "--symmetrize")["steps"] == 100


BAD_POLICIES: dict[str, tuple[Any, str]] = {
    "nan": ("0.5,nan,0.5\n", "probability nan of response"),
    "short": ("0.5,0.5\n", "the policy has 2 entries, but the game has 3 responses"),
    "negative": ("0.5,-0.5,1\n", "must be finite and >= 0"),
    "sum": ("0.5,0.5,0.5\n", "sums to 1.5"),
    "text": ("a,b,c\n", "a header but no rows"),
}


@pytest.mark.parametrize("option", ["--start", "--reference"])
@pytest.mark.parametrize(("content", "message"), BAD_POLICIES.values(), ids=BAD_POLICIES)
def test_a_bad_policy(option: str, content: str, message: str, capsys: Capture) -> None:
    put("p.csv", content)
    rule = ["--rule", "inpo", "--eta", "0.1", "--tau", "1"]
    refused(capsys, ["play", "comal", *rule, option, "p.csv"], message)
    refused(capsys, ["sweep", "comal", *rule, option, "p.csv", "--out", "o"], message)
    if option == "--reference":
        refused(capsys, ["solve", "comal", "--tau", "1", option, "p.csv"], message)
    refused(capsys, ["play", "comal", *rule, option, "none.csv"], f"{option} none.csv: no such file")


def test_a_reference_with_zeros(capsys: Capture) -> None:
    put("zero.json", [0.5, 0.5, 0])
    rule = ["--rule", "inpo", "--eta", "0.1", "--tau", "1"]
    for argv in (
        ["solve", "comal", "--tau", "1", "--reference", "zero.json"],
        ["play", "comal", *rule, "--reference", "zero.json"],
        ["sweep", "comal", *rule, "--reference", "zero.json", "--out", "o"],
        ["play", "comal", *rule, "--start", "zero.json"],  # the reference of a start is the start
    ):
        refused(capsys, argv, "probability 0")


SPPO = ["play", "comal", "--rule", "sppo", "--eta", "0.1"]
BAD_ARGUMENTS: dict[str, tuple[list[str], str]] = {
    "no steps": ([*SPPO, "--steps", "0"], "--steps 0: at least one update is needed"),
    "negative steps": ([*SPPO, "--steps", "-5"], "--steps -5"),
    "steps no number": ([*SPPO, "--steps", "1e3"], "invalid int value: '1e3'"),
    "steps beyond measure": ([*SPPO, "--steps", "9" * 30], "would take years"),
    "unknown rule": (["play", "comal", "--rule", "spo", "--eta", "1"], "unknown rule 'spo'; did you mean 'sppo'?"),
    "unknown rule, bad game": (["play", "none.csv", "--rule", "spo"], "unknown rule 'spo'"),
    "no rule": (["play", "comal"], "required: --rule"),
    "eta 0": (["play", "comal", "--rule", "sppo", "--eta", "0"], "eta = 0 must be > 0"),
    "eta negative": (["play", "comal", "--rule", "sppo", "--eta", "-1"], "eta = -1 must be > 0"),
    "eta nan": (["play", "comal", "--rule", "sppo", "--eta", "nan"], "--eta is nan"),
    "eta missing": (["play", "comal", "--rule", "sppo"], "rule 'sppo' needs --eta"),
    "tau superfluous": ([*SPPO, "--tau", "1"], "rule 'sppo' has no --tau"),
    "tau negative": (["play", "comal", "--rule", "inpo", "--eta", "1", "--tau", "-1"], "tau = -1 must be > 0"),
    "tau negative, tuned": (["play", "comal", "--rule", "egpo", "--eta", "tuned", "--tau", "-1"], "tau = -1 must be"),
    "tau negative, solve": (["solve", "comal", "--tau", "-1"], "tau = -1 must be a finite number >= 0"),
    "tau nan, solve": (["solve", "comal", "--tau", "nan"], "tau = nan"),
    "eta tau": (["play", "comal", "--rule", "inpo", "--eta", "2", "--tau", "1"], "eta * tau = 2 must be <= 1"),
    "eta tau, grid": (["sweep", "comal", "--rule", "inpo", "--eta", "2,3", "--tau", "1", "--out", "o"],
                      "'inpo' allows no cell of the grid: eta * tau = 3 must be <= 1"),
    "reference without tau": (["solve", "comal", "--reference", "uniform.json"], "a reference needs tau > 0"),
    "reference not used": ([*SPPO, "--reference", "uniform.json"], "rule 'sppo' has no reference policy"),
    "behavior not used": ([*SPPO, "--behavior", "uniform.json"], "rule 'sppo' has no behavior policy"),
    "beyond the horizon": (["play", "comal", "--rule", "ipo", "--tau", "1", "--steps", "2"], "has a horizon of 1"),
    "record": ([*SPPO, "--record", "abc"], "--record abc: record = 'abc' is none of geometric, all, last"),
    "record 0": ([*SPPO, "--record", "0"], "--record 0: record = 0 must be at least 1"),
    "record beyond": ([*SPPO, "--record", "1,2000"], "--record 1,2000: record names step 2000, outside 1"),
    "record list": ([*SPPO, "--record", "1,x"], "--record 1,x: a list holds whole numbers"),
    "engine": ([*SPPO, "--engine", "steam"], "invalid choice: 'steam'"),
    "method": (["solve", "comal", "--method", "guess"], "invalid choice: 'guess'"),
    "method and tau": (["solve", "comal", "--tau", "1", "--method", "highs"], "method='highs' solves linear programs"),
    "exact and tau": (["solve", "comal", "--tau", "1", "--exact"], "exact=True is for the un-regularized game"),
    "decimals alone": (["solve", "comal", "--decimals"], "--decimals is for --exact"),
    "family": (["solve", "cyclik"], "did you mean 'cyclic'?"),
    "family's argument": (["solve", "cyclic:m=3"], "has no argument 'm'"),
    "family's value": (["solve", "cyclic:n=4"], "n is 4"),
    "no game": (["solve"], "required: GAME"),
    "random seed": ([*SPPO, "--start", "random:x"], "the seed 'x' is not a whole number"),
    "rules": (["rules", "opno"], "unknown rule 'opno'; did you mean 'onpo'?"),
    "cite": (["cite", "ipoo"], "nothing to cite for 'ipoo'; did you mean 'ipo'?"),
    "option": ([*SPPO, "--stepz", "3"], "unknown option --stepz; did you mean '--steps'?"),
    "plot's kind": ([*SPPO, "--plot", "gap.gif"], "gap.gif: unknown kind of file '.gif'; give .png, .svg, .pdf"),
    "save's kind": ([*SPPO, "--save", "run.json"], "unknown kind of file '.json'; give .npz"),
    "K 1": ([*SPPO, "--K", "1"], "K = 1 must be a whole number >= 2"),
    "labels without K": ([*SPPO, "--labels", "hard"], "--labels is for sampled feedback: give --K"),
    "seed 0 without K": ([*SPPO, "--seed", "0"], "--seed is for sampled feedback: give --K"),
    "noise": ([*SPPO, "--K", "4", "--noise", "randm:0.1"], "--noise randm:0.1: did you mean 'random'?"),
    "noise rate": ([*SPPO, "--K", "4", "--noise", "random:2"], "rate = 2.0 must lie in [0, 1]"),
    "noise no rate": ([*SPPO, "--K", "4", "--noise", "random"], "write for example random:0.1"),
    "engine and K": ([*SPPO, "--K", "4", "--engine", "compiled"], "--engine compiled is for exact steps"),
    "ridge": ([*SPPO, "--K", "4", "--ridge", "1"], "--ridge is for log-linear policies"),
    "features": ([*SPPO, "--K", "4", "--features", "uniform.json"], "unknown kind of file '.json'"),
    "features short": ([*SPPO, "--K", "4", "--features", "two.csv"], "features have shape (2, 2)"),
    "loss": ([*SPPO, "--K", "4", "--loss", "logistic"], "loss = 'logistic' does not fit"),
}  # fmt: skip


@pytest.mark.parametrize(("argv", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(argv: list[str], message: str, capsys: Capture) -> None:
    put("uniform.json", [1 / 3] * 3)
    put("two.csv", "1,2\n3,4\n")
    refused(capsys, argv, message)
    assert not Path("o").exists()


UNWRITABLE = {
    "no folder": ("none/x{}", "cannot be written: there is no folder none"),
    "a folder": ("folder{}", "is a directory, not a file"),
    "under a file": ("file/x{}", "there is no folder file"),
    "in /proc": ("/proc/x{}", "/proc/x{}: cannot be written"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc, where even root cannot write")
@pytest.mark.parametrize(("target", "message"), UNWRITABLE.values(), ids=UNWRITABLE)
@pytest.mark.parametrize(("option", "suffix"), [("--plot", ".png"), ("--save", ".npz"), ("--csv", ".csv")])
def test_what_cannot_be_written_is_told_before_the_work(
    option: str, suffix: str, target: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    put("file", "")
    Path(f"folder{suffix}").mkdir()

    def too_late(*_: Any, **__: Any) -> None:
        raise AssertionError("played before the outputs were tried")

    monkeypatch.setattr(play_command, "play", too_late)
    refused(capsys, [*SPPO, option, target.format(suffix)], message.format(suffix))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc, where even root cannot write")
@pytest.mark.parametrize(("out", "message"), [("/proc/x", "cannot be written"), ("file", "file: is a file")])
def test_a_sweep_that_cannot_be_written(out: str, message: str, capsys: Capture) -> None:
    put("file", "")
    refused(capsys, ["sweep", "comal", "--rule", "sppo", "--eta", "1", "--out", out], message)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["solve", "none.npy"], "nashpo: error: none.npy: no such file\n"),
        (["play", "comal", "--rule", "sppo", "--eta", "0"], "nashpo: error: eta = 0 must be > 0\n"),
        (["solve", "pickle.npy"], "is a pickle, which is never loaded since it could run code"),
    ],
)
def test_real_processes_refuse_without_a_traceback(argv: list[str], message: str) -> None:
    put("pickle.npy", pickle.dumps([[0.5]]))
    code = "import sys; from nashpo.core.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
