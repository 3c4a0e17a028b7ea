"""The switchboard: names, suggestions, exit statuses, one line for bad input, and nothing imported for ``--help``."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

from nashpo.core import cli
from nashpo.core.cli import COMMANDS, Command, Parser, main, suggestion

RUN = "import sys; from nashpo.core.cli import main; sys.exit(main())"


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )


def fake(monkeypatch: pytest.MonkeyPatch, action: Callable[[Sequence[str]], int]) -> None:
    """A command ``fake`` that does what the test says."""
    module = type(sys)("fake_command")
    module.main = action  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_command", module)
    monkeypatch.setitem(cli.COMMANDS, "fake", Command("fake_command:main", "does as told"))


def raising(error: BaseException) -> Callable[[Sequence[str]], int]:
    def action(_: Sequence[str]) -> int:
        raise error

    return action


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name}" in printed
        assert command.help in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_help_imports_only_the_standard_library() -> None:
    code = (
        "import sys; from nashpo.core.cli import main; main(['--help']); "
        "print(*sorted({'numpy', 'scipy', 'numba', 'matplotlib', 'torch', 'array_api_compat'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: nashpo {name}")
    assert "example" in printed
    assert f"\n  nashpo {name}" in printed
    assert main(["help", name]) == 0
    assert capsys.readouterr().out == printed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("nashpo ")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("slove", "unknown command 'slove'; did you mean 'solve'?"),
        ("Verfy", "unknown command 'Verfy'; did you mean 'verify'?"),
        ("xyzzy", "unknown command 'xyzzy'; known: verify, solve"),
        ("--verbose", "unknown option '--verbose'"),
        ("", "unknown command ''"),
    ],
)
def test_an_unknown_command_suggests_the_nearest(word: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"nashpo: error: {message}")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("eta is 0"), "eta is 0"),
        (ValueError("two\n  lines"), "two lines"),
        (ValueError(), "ValueError"),
        (TypeError("text is no number"), "text is no number"),
        (FileNotFoundError(2, "No such file or directory", "game.npy"), "game.npy: No such file or directory"),
        (OSError("the disk is full"), "the disk is full"),
        (OverflowError("too large"), "too large"),
        (MemoryError(), "not enough memory"),
        (ModuleNotFoundError("No module named 'dask'", name="dask"), "the module dask is needed here"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    error: BaseException, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(cli.TRACEBACK, raising=False)
    fake(monkeypatch, raising(error))
    assert main(["fake"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"nashpo: error: {message}")
    assert printed.err.count("\n") == 1
    monkeypatch.setenv(cli.TRACEBACK, "1")
    with pytest.raises(type(error)):
        main(["fake"])


def test_a_defect_is_not_taken_for_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, raising(KeyError("a bug")))
    with pytest.raises(KeyError):
        main(["fake"])


@pytest.mark.parametrize(("raised", "status"), [(KeyboardInterrupt(), 130), (SystemExit(3), 3), (SystemExit(None), 0)])
def test_interrupts_and_exits(
    raised: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, raising(raised))
    assert main(["fake"]) == status
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 1, 2])
def test_the_status_of_a_command_is_passed_on(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sequence[str]] = []
    fake(monkeypatch, lambda argv: seen.append(argv) or status)  # type: ignore[func-returns-value]
    assert main(["fake", "a", "--b"]) == status
    assert seen == [["a", "--b"]]


def test_a_closed_pipe_ends_quietly() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "from nashpo.core import cli\n"
         "class Chatter:\n"
         "    def load(self): return lambda argv: [print('x' * 100) for _ in range(100_000)] and 0\n"
         "cli.COMMANDS['chatter'] = Chatter()\n"
         "raise SystemExit(cli.main(['chatter']))"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == "x" * 100 + "\n"
        running.stdout.close()
        errors = running.stderr.read()
    assert errors == ""
    assert running.returncode == cli.BROKEN_PIPE


def test_a_real_process_refuses_in_one_line() -> None:
    done = process("slove")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "nashpo: error: unknown command 'slove'; did you mean 'solve'? (see nashpo --help)\n"


def test_letters_that_the_terminal_lacks_do_not_end_a_command() -> None:
    done = process("rules", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "?" in done.stdout


def parser() -> Parser:
    made = Parser("play", "Plays.", "nashpo play x")
    made.add_argument("game")
    made.add_argument("--steps", type=int)
    made.add_argument("--start")
    return made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["g", "--stps", "3"], "unknown option --stps; did you mean '--steps'? (see nashpo play --help)"),
        (["--stps=3"], "unknown option --stps; did you mean '--steps'?"),
        (["g", "--qqqq"], "unknown option --qqqq; the options are: --help, --steps, --start"),
        (["g", "--ste", "3"], "unknown option --ste; did you mean '--steps'?"),
        ([], "the following arguments are required: game (see nashpo play --help)"),
        (["g", "--steps", "x"], "argument --steps: invalid int value: 'x'"),
        (["g", "h"], "unrecognized arguments: h"),
    ],
)
def test_a_mistake_in_the_arguments_is_a_value_error(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parser().parse_args(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arguments_that_look_like_options() -> None:
    assert parser().parse_args(["g", "--steps=-3"]).steps == -3
    assert parser().parse_args(["--steps", "-3", "--", "--odd"]).game == "--odd"


def test_suggestions() -> None:
    assert suggestion("spo", ["sppo", "onpo"]) == "did you mean 'sppo'?"
    assert suggestion("zzz", ["sppo", "onpo"], "the rules are") == "the rules are: sppo, onpo"


def test_a_missing_module_names_the_part_of_the_installation_that_brings_it():
    from nashpo.core.cli import one_line

    told = one_line(ModuleNotFoundError("no", name="transformers.utils"))
    assert told == "the module transformers.utils is needed here and not installed: pip install 'nashpo[llm]'"
    assert one_line(ModuleNotFoundError("no", name="nowhere")) == "the module nowhere is needed here and not installed"
