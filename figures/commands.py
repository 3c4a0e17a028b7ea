"""The command ``nashpo figures``: every picture as PNG, SVG and PDF."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nashpo.core.cli import Parser
from nashpo.figures import FIGURES, TRAINING, load

DEFAULT_RESULTS = "nashpo-results"
Draw = Callable[[str, Path, dict[str, str], bool], list[str]]
"""From name, folder for pictures, reasons for what is left out and whether that is an error, to the files written."""


def parser() -> Parser:
    """The arguments of the command."""
    arguments = Parser(
        "figures",
        "Draw the figures from saved results, each as PNG, SVG and PDF. What a figure needs besides the results is"
        " computed (seconds) and kept in the results folder. A run of `nashpo train` has figures of its own.",
        "nashpo figures --results nashpo-results --only rates",
    )
    arguments.add_argument(
        "--results",
        metavar="DIR",
        help="folder that `nashpo verify`, `nashpo sweep` or `nashpo train` wrote"
        f" (default: {DEFAULT_RESULTS}, where it is there)",
    )
    arguments.add_argument("--out", metavar="DIR", help="folder for the pictures (default: 'figures' in the results)")
    known = ", ".join((*FIGURES, *TRAINING))
    arguments.add_argument("--only", metavar="NAME", action="append", help=f"one figure; may be repeated: {known}")
    arguments.add_argument("--json", action="store_true", help="print names, files and what was left out as JSON")
    return arguments


def main(argv: list[str]) -> int:
    """Draw figures.

    Parameters
    ----------
    argv : list of str
        Arguments after ``nashpo figures``.

    Returns
    -------
    int
        0.

    Raises
    ------
    ValueError
        On an unknown figure, results that are not there or damaged, a figure asked for by name whose keys they lack.
    OSError
        If the pictures cannot be written.
    """
    options = parser().parse_args(argv)
    for name in options.only or []:
        if name not in FIGURES and name not in TRAINING:
            load(name)  # raises with the list of names, before anything heavy is imported
    directory = _results_folder(options.results)
    draw_one, known = _source(directory)
    names = list(dict.fromkeys(options.only or known))
    for name in names:
        if name not in known:
            raise ValueError(f"{name} is no figure of {directory or 'the theory'}; there are {', '.join(known)}")
    out = Path(options.out) if options.out else (Path("nashpo-figures") if directory is None else directory / "figures")
    out.mkdir(parents=True, exist_ok=True)
    written: dict[str, list[str]] = {}
    left_out: dict[str, str] = {}
    for name in names:
        files = draw_one(name, out, left_out, options.only is not None)
        if files:
            written[name] = files
            if not options.json:
                print(f"{name}: {', '.join(files)}")
    if options.json:
        print(json.dumps({"figures": written, "left_out": left_out}, indent=1))
    for reason in left_out.values():
        print(f"nashpo figures: left out: {reason}", file=sys.stderr)
    return 0


def _results_folder(given: str | None) -> Path | None:
    """The folder of the results; None where none was named and the default is not there."""
    if given is not None:
        return Path(given)
    default = Path(DEFAULT_RESULTS)
    return default if default.is_dir() else None


def _source(directory: Path | None) -> tuple[Draw, dict[str, str]]:
    """How a figure of the folder is drawn, and which there are: those of a run of `nashpo train`, or of the theory."""
    if directory is not None and directory.is_dir():
        from nashpo.figures import training_run

        if training_run.is_run(directory):
            return partial(_draw_of_run, training_run.load_run(directory)), TRAINING

    from nashpo.figures import results as on_disk

    measured = {} if directory is None else on_disk.load(directory)
    return partial(_draw, measured, directory), FIGURES


def _draw_of_run(run: Any, name: str, out: Path, left_out: dict[str, str], strict: bool) -> list[str]:
    """As `_draw`, of a run of `nashpo train`."""
    from nashpo.figures import style

    module = load(name)
    if reason := module.missing(run):
        told = f"the figure '{name}' cannot be drawn: {reason}"
        if strict:
            raise ValueError(told)
        left_out[name] = told
        return []
    return [str(path) for path in style.save(module.draw(run), out / name)]


def _draw(
    measured: dict[str, Any], directory: Path | None, name: str, out: Path, left_out: dict[str, str], strict: bool
) -> list[str]:
    """The files of one figure; empty, with the reason in ``left_out``, where the results do not hold what it needs."""
    from nashpo.figures import results as on_disk
    from nashpo.figures import style

    module = load(name)
    data = on_disk.complete(measured, module.NEEDS, directory)
    try:
        style.need(data, module.NEEDS, name)
    except ValueError as error:
        if strict:
            raise
        left_out[name] = str(error)
        return []
    return [str(path) for path in style.save(module.draw(data), out / name)]
