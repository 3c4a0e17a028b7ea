"""``nashpo play``: a rule on a game, its gaps as it goes, and its declared bounds beside what was measured.

Shapes: R recorded steps; policies (..., n), gaps (R, ...).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nashpo.core.cli import FAILED, GOOD, Parser
from nashpo.core.theorems import Measure
from nashpo.tabular.commands.feedback_arguments import add_feedback_arguments, feedback_from
from nashpo.tabular.commands.inputs import add_game_arguments, checked_steps, load_game, load_policy, load_start
from nashpo.tabular.commands.judged_report import equilibria, judged_facts
from nashpo.tabular.commands.measures import bound_curves, checks, divergence, target
from nashpo.tabular.commands.output import FIGURE_KINDS, json_text, note, save_figure, say, working, writable
from nashpo.tabular.commands.play_report import Played, fact, facts, mean_over_replicates, text
from nashpo.tabular.gap import duality_gap
from nashpo.tabular.play import DEFAULT_STEPS, ENGINES, Record, play, record_steps, setting, tune
from nashpo.tabular.policy_input import log_policy
from nashpo.tabular.rule_arguments import (
    add_rule_arguments,
    described,
    given_hyperparameters,
    in_words,
    playable_class,
    rule_from,
)

LARGEST_KEPT = 20_000_000
"""Numbers of kept policies above which they are not kept, and no divergence is told: 160 MB."""


def parser() -> Parser:
    """Arguments of the command."""
    made = Parser(
        "play",
        "Play a rule against itself on a game; duality gaps, and the rule's bounds beside them.",
        "nashpo play interior:n=5 --rule onpo --eta 0.5 --steps 1000",
        "nashpo play win_rates.csv --rule sppo --eta tuned --steps 10000 --plot gap.png",
        "nashpo play comal --rule inpo --eta 0.1 --tau 0.1 --start random:1 --json",
    )
    add_game_arguments(made)
    add_rule_arguments(made)
    run = made.add_argument_group("run")
    run.add_argument("--steps", type=int, metavar="T", help=f"number of updates (default: {DEFAULT_STEPS})")
    run.add_argument("--start", metavar="FILE", help="first policy: a file, or random[:SEED] (default: uniform)")
    run.add_argument("--reference", metavar="FILE", help="reference policy of full support (default: the start)")
    run.add_argument("--behavior", metavar="FILE", help="where the pairs of IPO and DPO come from (default: reference)")
    run.add_argument(
        "--record",
        default="geometric",
        metavar="WHICH",
        help="steps whose gaps are recorded: geometric, all, last, every K-th (a number), or a list such as 1,10,100",
    )
    run.add_argument(
        "--engine", choices=["auto", *ENGINES], default="auto", help="what computes the steps (default: %(default)s)"
    )
    add_feedback_arguments(made)
    out = made.add_argument_group("output")
    out.add_argument("--json", action="store_true", help="print JSON")
    out.add_argument("--plot", metavar="FILE", help="draw the gaps and bounds (.png, .svg, .pdf)")
    out.add_argument("--save", metavar="FILE.npz", help="save the run, for nashpo.tabular.Run.load")
    out.add_argument("--csv", metavar="FILE", help="save the recorded gaps as a table")
    return made


def main(argv: list[str]) -> int:
    """Play a rule and print its gaps; 1 where a bound that should hold was violated."""
    options = parser().parse_args(argv)
    playable_class(options.rule)
    plot = None if options.plot is None else writable(options.plot, FIGURE_KINDS)
    save = None if options.save is None else writable(options.save, (".npz",))
    csv = None if options.csv is None else writable(options.csv)
    played = played_from(options)
    if save is not None:
        played.run.save(save)
    if csv is not None:
        played.run.to_csv(csv)
    if plot is not None:
        draw(played, plot)
    say(json_text(facts(played)) if options.json else text(played))
    for path in filter(None, (plot, save, csv)):
        note(f"wrote {path}")
    return FAILED if any(check.failed for check in played.checks) else GOOD


def played_from(options: Any) -> Played:
    """Read what the options name, play, and measure."""
    checked_steps(options.steps)
    given = load_game(options)
    game = given.game
    start = load_start(options.start, game)
    steps = options.steps or DEFAULT_STEPS
    policies: dict[str, Any] = {"start": start, "reference": load_policy(options.reference, game, "reference")}
    rule = rule_from(
        options.rule, given_hyperparameters(options), tuner=lambda rule: tune(rule, game, steps, **policies)
    )
    form = rule.form()
    if options.steps is None:
        steps = min(steps, form.horizon or steps)
    form.check_horizon(steps)
    behavior = load_policy(options.behavior, game, "behavior")
    origins = {origin for _, origin in form.slots}
    for name in ("reference", "behavior"):
        if getattr(options, name) is not None and name not in origins:
            raise ValueError(f"rule '{rule.name}' has no {name} policy; leave --{name} out")
    record = record_from(options.record, steps)
    feedback, projection = feedback_from(options)
    if feedback is not None and options.engine != "auto":
        raise ValueError(f"--engine {options.engine} is for exact steps; leave it out with --K")
    size = len(record_steps(record, steps)) * int(np.prod(game.P.shape[:-1], dtype=int))
    size *= 1 if feedback is None else feedback.replicates
    keep = ("current",) if size <= LARGEST_KEPT else ()
    where = setting(rule, game, steps, **policies)
    aimed = target(rule, game, **policies)
    with working(f"playing {steps} updates"):
        run = play(
            rule,
            game,
            steps,
            **policies,
            behavior=behavior,
            record=record,
            keep=keep,
            engine=options.engine,
            feedback=feedback,
            projection=projection,
        )
    distance = divergence(aimed, run)
    found = checks(rule, where, run, distance, run.notes["feedback"] == "exact")
    run.notes |= {"game": given.facts, "rule": described(rule), "bounds": [fact(check) for check in found]}
    first = np.exp(np.asarray(log_policy(game, start, "start")))
    shares = None
    if given.judged is not None:
        columns = equilibria(given.judged, getattr(rule, "tau", None), policies["reference"])
        columns |= {"average": mean_over_replicates(run, run.average), "last": mean_over_replicates(run, run.last)}
        shares = judged_facts(given.judged, columns, policies["reference"])
    start_gap = float(np.max(duality_gap(game, first)))
    return Played(given, rule, run, aimed, distance, where, found, start_gap, shares)


def record_from(text: str, steps: int) -> Record:
    """``--record``: a name, every k-th step, or a list of steps.

    Raises
    ------
    ValueError
    """
    record: Record = text
    if text.lstrip("+-").isdecimal():
        record = int(text)
    elif "," in text:
        try:
            record = [int(part) for part in text.split(",")]
        except ValueError:
            raise ValueError(f"--record {text}: a list holds whole numbers, such as 1,10,100") from None
    try:
        record_steps(record, steps)
    except ValueError as error:
        raise ValueError(f"--record {text}: {error}") from None
    return record


def draw(played: Played, path: Path) -> None:
    """Write the figure of the run."""
    from nashpo.figures import gap_curve

    run = played.run
    curves = [bound_curves(played.rule, played.where, run, m) for m in (Measure.DUALITY_GAP, Measure.KL_TO_EQUILIBRIUM)]
    if run.notes["feedback"] != "exact":
        curves = [{f"{label}, exact feedback": values for label, values in bounds.items()} for bounds in curves]
    distance = None if played.divergence is None else run.mean(played.divergence)
    title = f"{played.given.source}: {in_words(played.rule)}"
    save_figure(gap_curve.draw(run, curves[0], distance, curves[1], title), path)
