"""``nashpo sweep``: rules over a grid of step sizes on a game of one's own, resumable, on one machine or on a cluster.

Shapes: R rows (rules), E step sizes, gaps (R, E).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nashpo.core.cli import FAILED, GOOD, Parser, version
from nashpo.core.store import replace_file
from nashpo.tabular.commands.inputs import Given, add_game_arguments, checked_steps, load_game, load_policy, load_start
from nashpo.tabular.commands.output import (
    FIGURE_KINDS,
    bar,
    cores,
    json_text,
    note,
    number,
    save_arrays,
    save_figure,
    say,
    table,
    writable,
    writable_folder,
)
from nashpo.tabular.play import DEFAULT_STEPS
from nashpo.tabular.sweep import Grid, Sweep, make_rows, parse_grid, sweep, whole
from nashpo.tabular.sweep_cells import CellStore, Ground
from nashpo.tabular.workers import BACKENDS, WorkersDied

RESULTS = "sweep.npz"
MANIFEST = "sweep.json"
PORTRAIT_STEPS = 2000
"""A longer path only covers itself."""


def parser() -> Parser:
    """Arguments of the command."""
    made = Parser(
        "sweep",
        "Play rules over a grid of step sizes (and KL weights, and inner iterations). Every finished cell is kept in"
        " DIR:\nrun the command again and only what is missing is run.",
        "nashpo sweep interior:n=5 --rule sppo,onpo --eta 0.01:10:13 --out maps --plot maps/map.png",
        "nashpo sweep comal --rule comal --eta 0.01:1:9 --tau 1 --inner 1,10,100 --out maps",
        "nashpo sweep win_rates.csv --rule onpo --eta 0.1,1 --out maps --backend dask --scheduler tcp://10.0.0.1:8786",
    )
    add_game_arguments(made)
    grid = made.add_argument_group("grid", "an axis is a list 0.01,0.1,1 or a logarithmic range LOW:HIGH:COUNT")
    grid.add_argument("--rule", required=True, metavar="NAMES", help="rules, separated by commas")
    grid.add_argument("--eta", required=True, metavar="GRID", help="step sizes")
    grid.add_argument("--tau", metavar="GRID", help="KL weights, for the rules that have one")
    grid.add_argument("--inner", metavar="GRID", help="inner iterations of comal")
    grid.add_argument("--variant", metavar="NAMES", help="forms of onpo")
    grid.add_argument("--steps", type=int, default=DEFAULT_STEPS, metavar="T", help="updates (default: %(default)s)")
    grid.add_argument("--start", metavar="FILE", help="first policy: a file, or random[:SEED] (default: uniform)")
    grid.add_argument("--reference", metavar="FILE", help="reference policy of full support (default: the start)")
    how = made.add_argument_group("workers")
    how.add_argument("--jobs", type=int, default=cores(), metavar="N", help="processes or threads (default: all cores)")
    how.add_argument("--backend", choices=BACKENDS, default="loky", help="joblib's backend (default: %(default)s)")
    how.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster, or 'local' (with --backend dask)")
    out = made.add_argument_group("output")
    out.add_argument("--out", required=True, metavar="DIR", help=f"folder for the cells, {RESULTS} and {MANIFEST}")
    out.add_argument("--plot", metavar="FILE", help="draw the map (.png, .svg, .pdf)")
    out.add_argument(
        "--portrait",
        metavar="FILE",
        help="draw where the last policy goes, each rule at its best step (.png, .svg, .pdf)",
    )
    out.add_argument("--json", action="store_true", help="print JSON")
    return made


def main(argv: list[str]) -> int:
    """Run the cells that are missing and write the map; 1 where workers died for good or no cell could be run."""
    options = parser().parse_args(argv)
    grid = grid_from(options)
    given = load_game(options)
    ground = Ground(
        given.game,
        load_start(options.start, given.game),
        load_policy(options.reference, given.game, "reference", full_support=True),
    )
    allowed, _ = grid.cells()
    if options.jobs < 1:
        raise ValueError(f"--jobs {options.jobs}: at least one worker is needed")
    if options.scheduler is not None and options.backend != "dask":
        raise ValueError(f"--scheduler {options.scheduler} is for --backend dask")
    folder = writable_folder(options.out)
    plot = None if options.plot is None else writable(options.plot, FIGURE_KINDS)
    portrait = None if options.portrait is None else writable(options.portrait, FIGURE_KINDS)
    if portrait is not None and ground.game.batch_shape:
        raise ValueError("--portrait draws one game, and this one has several contexts: choose one of them")
    with bar(len(allowed), "sweep", " cells") as shown:
        try:
            made = sweep(
                grid,
                ground,
                CellStore(folder),
                jobs=options.jobs,
                backend=options.backend,
                scheduler=options.scheduler,
                progress=shown.update,
            )
        except WorkersDied as death:
            note(f"error: {death}; finished cells are kept in {folder}: run the command again, with fewer --jobs")
            return FAILED
    save_arrays(made.arrays(), folder / RESULTS)
    replace_file(folder / MANIFEST, json.dumps(facts(given, made, folder), indent=2, allow_nan=False).encode())
    if plot is not None:
        from nashpo.figures import sweep as figure

        save_figure(figure.draw(made.arrays()), plot)
    if portrait is not None:
        draw_portrait(made, ground, portrait)
    say(json_text(facts(given, made, folder)) if options.json else text(given, made, folder))
    for path in filter(None, (plot, portrait)):
        note(f"wrote {path}")
    return GOOD if len(made.refused) < made.gap_last.size else FAILED


def draw_portrait(made: Sweep, ground: Ground, path: Path) -> None:
    """Phase plot of the last policy: every rule at the step size that gave it the smallest last gap."""
    from nashpo.figures import phase_portrait
    from nashpo.tabular.experiments import portrait

    pairs = zip(made.grid.rows, made.best(), strict=True)
    rules = [row.at(best["eta_last"]) for row, best in pairs if best["eta_last"] == best["eta_last"]]
    steps = min(made.grid.steps, PORTRAIT_STEPS)
    results = portrait(ground.game.as_numpy(), rules, steps, ground.start, ground.reference)
    save_figure(phase_portrait.draw(results), path)


def grid_from(options: Any) -> Grid:
    """The grid that the options name.

    Raises
    ------
    ValueError
    """
    checked_steps(options.steps)
    axes: dict[str, Any] = {}
    if options.tau is not None:
        axes["tau"] = parse_grid("tau", options.tau)
    if options.inner is not None:
        axes["inner"] = whole("inner", parse_grid("inner", options.inner), ":" in options.inner)
    if options.variant is not None:
        axes["variant"] = [name.strip().replace("-", "_") for name in options.variant.split(",")]
    names = [name for name in options.rule.split(",") if name.strip()]
    if not names:
        raise ValueError("--rule names no rule")
    return Grid(make_rows(names, axes), tuple(parse_grid("eta", options.eta)), options.steps)


def facts(given: Given, made: Sweep, folder: Path) -> dict[str, Any]:
    """The map for JSON."""
    best = [{k: None if v != v else v for k, v in entry.items()} for entry in made.best()]
    return {
        "command": "sweep",
        "version": version(),
        "game": given.facts,
        "steps": made.grid.steps,
        "eta": list(made.grid.eta),
        "rules": [row.label for row in made.grid.rows],
        "results": str(folder / RESULTS),
        "cells_computed": made.computed,
        "cells_reused": made.reused,
        "cells_left_out": [
            {"rule": made.grid.rows[r].label, "eta": made.grid.eta[e], "reason": reason}
            for (r, e), reason in sorted(made.refused.items())
        ],
        "best": best,
    }


def text(given: Given, made: Sweep, folder: Path) -> str:
    """The map for a reader: where each rule does best, and what was left out."""
    cells = f"{made.computed} cells run, {made.reused} found finished"
    lines = [
        given.title,
        f"{len(made.grid.rows)} rows x {len(made.grid.eta)} step sizes, T = {made.grid.steps}; {cells}",
    ]
    rows = [
        [
            b["rule"],
            number(b["gap_average"]),
            number(b["eta_average"], 3),
            number(b["gap_last"]),
            number(b["eta_last"], 3),
        ]
        for b in made.best()
    ]
    lines += ["", "Smallest gaps, and the step sizes that reach them"]
    lines.append(table(["rule", "gap of average", "at eta", "gap of last", "at eta"], rows))
    left_out: dict[str, list[str]] = {}
    for (r, e), reason in sorted(made.refused.items()):
        left_out.setdefault(made.grid.rows[r].label, []).append(f"eta = {made.grid.eta[e]:.3g}: {reason}")
    lines += [""] if left_out else []
    lines += [f"  {len(reasons)} cells of {rule} left out, {reasons[0]}" for rule, reasons in left_out.items()]
    lines += ["", f"  {folder / RESULTS}"]
    return "\n".join(lines)
