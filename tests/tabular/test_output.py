"""Tables within the page, numbers, strict JSON; progress on a terminal and none in a pipe."""

import json
import os
import select
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nashpo.tabular.commands import output


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_real_process_prints_no_progress_bar_into_a_pipe() -> None:
    code = "import sys; from nashpo.core.cli import main; sys.exit(main())"
    argv = ["sweep", "comal", "--rule", "sppo", "--eta", "0.1,1", "--steps", "20", "--out", "o", "--jobs", "1"]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\r" not in done.stdout
    assert "2 cells run" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (
            ["sweep", "comal", "--rule", "sppo", "--eta", "0.1,1", "--steps", "20", "--out", "o", "--jobs", "1"],
            "sweep: ",
        ),
        (
            ["play", "uniform_random:n=300", "--rule", "sppo", "--eta", "1", "--steps", "2000"],
            "playing 2000 updates ... ",
        ),
    ],
)
def test_a_terminal_is_shown_progress(argv: list[str], shown: str) -> None:
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    code = "import sys; from nashpo.tabular.commands import output; from nashpo.core.cli import main\n"
    code += "output.working.__wrapped__.__defaults__ = (0.0,); sys.exit(main())"
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], stdout=subprocess.PIPE, stderr=theirs, timeout=120, check=True
    )
    readable, _, _ = select.select([ours], [], [], 0)  # before our end of theirs is closed, and what was written lost
    printed = os.read(ours, 100_000).decode() if readable else ""
    os.close(theirs)
    os.close(ours)
    assert shown in printed
    assert "\r" in printed
    assert b"\r" not in done.stdout


def test_a_table_gives_way_to_the_page() -> None:
    text = output.table(["name", "n"], [["x" * 300, "1"], ["漢" * 100, "22"]])
    lines = text.splitlines()
    assert {output.columns(line) for line in lines} == {output.WIDTH}
    assert all("…" in line for line in lines[1:])
    assert output.table(["a", "b"], [["x", "1"]]) == "  a  b\n  x  1"


@pytest.mark.parametrize(
    ("value", "shown", "as_probability"),
    [
        (0.0, "0", "0.000000"),
        (0.123456789, "0.1235", "0.123457"),
        (1.0, "1", "1.000000"),
        (1e-7, "1e-07", "1.00e-07"),
        (9.99e-5, "9.99e-05", "9.99e-05"),
        (float("nan"), "-", "nan"),
    ],
)
def test_numbers(value: float, shown: str, as_probability: str) -> None:
    assert output.number(value) == shown
    assert output.probability(value) == as_probability


def test_json_is_strict() -> None:
    text = output.json_text({"a": np.array([1.0, np.inf]), "b": {"c": (np.nan, np.int64(3), None)}, "d": "é"})
    assert json.loads(text) == {"a": [1.0, None], "b": {"c": [None, 3, None]}, "d": "é"}
