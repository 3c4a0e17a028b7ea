"""The switchboard of the command ``nashpo``: commands by name, each loaded when it is called and not before.

Exit status of every command: 0 when all held, 1 when a check failed, 2 for bad input (one line on stderr, no traceback;
NASHPO_TRACEBACK=1 shows it), 130 after Ctrl-C, 141 when the reader of a pipe went away. Only the standard library is
imported here, so that ``nashpo --help`` answers at once.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

TRACEBACK = "NASHPO_TRACEBACK"
GOOD, FAILED, BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141


@dataclass(frozen=True)
class Command:
    """Where a command lives, ``module:function`` with ``function(argv) -> int``, and its line of help."""

    target: str
    help: str

    def load(self) -> Any:
        """The function, its module imported now."""
        module, _, function = self.target.partition(":")
        return getattr(import_module(module), function)


COMMANDS: dict[str, Command] = {
    "verify": Command("nashpo.tabular.commands.verify:main", "check every claim of the theory and write a report"),
    "solve": Command("nashpo.tabular.commands.solve:main", "find the Nash equilibrium of a game, exactly if asked"),
    "play": Command("nashpo.tabular.commands.play:main", "play a rule on a game and hold it against its bounds"),
    "sweep": Command("nashpo.tabular.commands.sweep:main", "play rules over a grid of step sizes and draw the map"),
    "offline": Command("nashpo.tabular.commands.offline:main", "learn from preference pairs, and certify the policy"),
    "train": Command("nashpo.llm.commands.train:main", "self-play of a language model, resumable by running it again"),
    "arena": Command("nashpo.llm.commands.arena:main", "all iterates of a run head to head, and their equilibrium"),
    "rules": Command("nashpo.tabular.commands.rules:main", "list the rules: step, hyperparameters, aim, theorems"),
    "cite": Command("nashpo.tabular.commands.cite:main", "print the BibTeX of the papers behind a rule"),
    "figures": Command("nashpo.figures.commands:main", "draw the figures from saved results"),
}

EXTRAS = {
    "llm": ("accelerate", "httpx2", "peft", "safetensors", "tokenizers", "torch", "transformers", "yaml"),
    "eval": ("statsmodels",),
    "parquet": ("pyarrow",),
    "dask": ("dask", "distributed"),
}
"""Optional parts of the installation, and the modules that they bring."""

EXAMPLES = (
    "nashpo verify --quick",
    "nashpo solve comal --exact",
    "nashpo play interior:n=5 --rule onpo --eta 0.5 --steps 1000",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name and return its exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; those of the process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Small matrices: more BLAS threads than one make them slower, up to 40 times. Read when numpy is first imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _print_what_the_terminal_cannot()
    try:
        try:
            return _run(arguments)
        except SystemExit as leaving:  # --help of a command
            return leaving.code if isinstance(leaving.code, int) else GOOD
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        print("nashpo: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, OSError, OverflowError, MemoryError, ModuleNotFoundError) as error:
        if os.environ.get(TRACEBACK):
            raise
        print(f"nashpo: error: {one_line(error)}", file=sys.stderr)
        return BAD_INPUT


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        if arguments[1:2] and arguments[0] == "help":
            return _run([arguments[1], "--help"])
        print(overview())
        return GOOD
    name, *rest = arguments
    if name in ("-V", "--version"):
        print(f"nashpo {version()}")
        return GOOD
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        raise ValueError(f"unknown {kind} {name!r}; {suggestion(name, COMMANDS)} (see nashpo --help)")
    status: int = COMMANDS[name].load()(rest)
    return status


def overview() -> str:
    """What ``nashpo --help`` prints."""
    width = len("--version")
    lines = [
        "usage: nashpo COMMAND ...",
        "",
        "Self-play preference optimization: on games whose equilibrium is known (solve them, play rules on",
        "them, check the theory) and on language models.",
        "",
        "commands:",
        *(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()),
        "",
        "options:",
        "  --help     this text; nashpo COMMAND --help has a command's options and an example",
        "  --version  the version",
        "",
        "examples:",
        *(f"  {example}" for example in EXAMPLES),
    ]
    return "\n".join(lines)


def version() -> str:
    """The installed version, or a word where the package was not installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("nashpo")
    except PackageNotFoundError:
        return "(not installed)"


def suggestion(word: str, known: Iterable[str], also: str = "known") -> str:
    """``did you mean '...'?`` where something is near, else the list of what is known."""
    names = list(known)
    near = difflib.get_close_matches(word.lower(), names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"{also}: {', '.join(names)}"


def one_line(error: BaseException) -> str:
    """An exception's message in one line."""
    if isinstance(error, ModuleNotFoundError):
        extra = next((name for name, modules in EXTRAS.items() if (error.name or "").partition(".")[0] in modules), "")
        mend = f": pip install 'nashpo[{extra}]'" if extra else ""
        return f"the module {error.name} is needed here and not installed{mend}"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError) and not str(error):
        return "not enough memory"
    return " ".join(str(error).split()) or type(error).__name__


class Parser(argparse.ArgumentParser):
    """Arguments of one command; a mistake becomes a ValueError of one line.

    Parameters
    ----------
    command : str
        Its name in `COMMANDS`.
    description : str
    examples : str
        Shown at the end of the help.
    """

    def __init__(self, command: str, description: str, *examples: str) -> None:
        super().__init__(
            prog=f"nashpo {command}",
            description=description,
            epilog="\n".join([f"example{'s' if len(examples) > 1 else ''}:", *(f"  {e}" for e in examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage: the switchboard prints one line.

        Raises
        ------
        ValueError
        """
        raise ValueError(f"{message} (see {self.prog} --help)")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As of argparse; an unknown option is told first, with the nearest known one.

        Raises
        ------
        ValueError
        """
        given = list(args or ())
        options = [option for option in self._option_string_actions if option.startswith("--")]
        for word in given[: given.index("--")] if "--" in given else given:
            name = word.partition("=")[0]
            if name.startswith("--") and name not in options:
                self.error(f"unknown option {name}; {suggestion(name, options, 'the options are')}")
        return super().parse_args(given, namespace)


def _print_what_the_terminal_cannot() -> None:
    """A letter that the terminal's encoding lacks is printed as '?' and ends no command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _forget_output() -> None:
    """Let the interpreter flush into nothing when it ends: the pipe's reader is gone."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
