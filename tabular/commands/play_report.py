"""What ``nashpo play`` says of a run: gaps as it went, bounds beside the measurement, equilibrium and final policies.

Shapes: R recorded steps; policies (..., n), gaps (R, ...), with the replicates of sampled feedback before the contexts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nashpo.core.rules import Rule
from nashpo.core.theorems import Setting
from nashpo.tabular.commands.inputs import Given
from nashpo.tabular.commands.judged_report import judged_text
from nashpo.tabular.commands.measures import Check, Target
from nashpo.tabular.commands.output import number, pairs, paragraph, probability, table
from nashpo.tabular.commands.policy_table import policy_table
from nashpo.tabular.gap import duality_gap
from nashpo.tabular.rule_arguments import described, in_words
from nashpo.tabular.run import Run

ROWS = 10
SMALLEST_START_GAP = 1e-9


@dataclass(frozen=True)
class Played:
    """A run and everything it is held against."""

    given: Given
    rule: Rule
    run: Run
    aimed: Target
    divergence: np.ndarray | None
    where: Setting
    checks: list[Check]
    start_gap: float
    shares: dict[str, Any] | None


def mean_over_replicates(run: Run, policy: np.ndarray) -> np.ndarray:
    """A final policy (..., n), averaged over replicates where feedback was sampled."""
    extra = policy.ndim - 1 - run.weights.ndim
    return policy.mean(axis=tuple(range(extra))) if extra else policy


def fact(check: Check) -> dict[str, Any]:
    """A bound for JSON."""
    return {
        "id": check.theorem.id,
        "statement": check.theorem.statement,
        "source": check.theorem.source,
        "status": check.theorem.status.value,
        "bound": check.bound if np.isfinite(check.bound) else None,
        "measured": check.measured,
        "holds": check.holds,
    }


def facts(played: Played) -> dict[str, Any]:
    """The run for JSON."""
    run, aimed = played.run, played.aimed
    equilibrium: dict[str, Any] = {"gap": aimed.nash.gap, "unique": aimed.nash.unique, "policy": aimed.nash.policy}
    if aimed.regularized is not None:
        equilibrium |= {"regularized": aimed.regularized.policy, "residual": aimed.regularized.residual}
    report = {
        "command": "play",
        "game": played.given.facts,
        "rule": described(played.rule),
        "steps": run.steps,
        "engine": run.notes["engine"],
        "feedback": run.notes["feedback"],
        "D": played.where.D,
        "recorded": run.recorded,
        "gap_average": run.mean_gap_average,
        "gap_last": run.mean_gap_last,
        "kl_last": None if played.divergence is None else run.mean(played.divergence),
        "bounds": [fact(check) for check in played.checks],
        "equilibrium": equilibrium,
        "average": run.average,
        "last": run.last,
    }
    return report if played.shares is None else report | {"judged": played.shares}


def text(played: Played) -> str:
    """The run for a reader."""
    run = played.run
    heading = f"{in_words(played.rule)}; T = {run.steps}, {run.notes['engine']} engine"
    parts = [played.given.title, heading]
    if run.notes["feedback"] != "exact":
        parts.append(paragraph(run.notes["feedback"]))
    parts += ["", gap_table(played)]
    if played.start_gap < SMALLEST_START_GAP:
        parts += ["", "  The start is an equilibrium already, so nothing moves; try --start random:1."]
    parts += ["", *bound_text(played), "", *equilibrium_text(played), ""]
    parts.append(judged_text(played.shares) if played.shares is not None else final_policies(played))
    return "\n".join(parts)


def gap_table(played: Played) -> str:
    """About ten recorded steps, spaced geometrically; means over contexts and replicates."""
    run = played.run
    recorded = run.recorded
    wanted = np.geomspace(recorded[0], recorded[-1], ROWS)
    rows = sorted({int(np.argmin(np.abs(recorded - step))) for step in wanted})
    if len(recorded) <= ROWS:
        rows = list(range(len(recorded)))
    columns = {"gap of average": run.mean_gap_average, "gap of last": run.mean_gap_last}
    if played.divergence is not None:
        columns[f"KL({played.aimed.symbol} ‖ last)"] = run.mean(played.divergence)
    header = ["T", *columns]
    body = [[str(recorded[k]), *(spread(values[k]) for values in columns.values())] for k in rows]
    return table(header, body, left=0)


def spread(values: Any) -> str:
    """A number; of replicates the mean and the standard error."""
    numbers = np.reshape(np.asarray(values), -1)
    mean = number(np.mean(numbers))
    if len(numbers) == 1:
        return mean
    return f"{mean} ± {number(np.std(numbers, ddof=1) / np.sqrt(len(numbers)), 2)}"


def bound_text(played: Played) -> list[str]:
    """Declared bounds beside the measurement."""
    rule, T = played.rule, played.run.steps
    if not played.checks:
        why = "it declares none" if not rule.theorems else "the assumptions of those it declares do not hold here"
        return [f"No bound of '{rule.name}' to compare with: {why}."]
    largest = ", the largest over contexts" if played.given.game.batch_shape else ""
    rows = [[c.theorem.id, c.theorem.status.value, c.verdict, number(c.bound), measured(c)] for c in played.checks]
    D = number(played.where.D)
    lines = [
        f"Bounds after T = {T} updates (D = {D} nats{largest})",
        table(["theorem", "status", "verdict", "bound", "measured"], rows, left=3),
    ]
    if played.aimed.regularized is None or played.divergence is not None:
        return lines
    return [*lines, "  Too many steps were recorded to keep their policies: no divergence was measured."]


def measured(check: Check) -> str:
    """The measured value, or a dash."""
    return "-" if check.measured is None else number(max(check.measured, 0.0))


def equilibrium_text(played: Played) -> list[str]:
    """Gap and uniqueness of the equilibrium, and the residual of the regularized one."""
    aimed = played.aimed
    game = played.given.game
    unique = int(np.sum(aimed.nash.unique))
    contexts = int(np.prod(game.batch_shape, dtype=int))
    one = "unique" if unique == contexts else "not shown to be unique"
    told = one if not game.batch_shape else f"unique in {unique} of {contexts} contexts"
    rows = [("Nash equilibrium π*", f"gap {number(max(float(np.max(aimed.nash.gap)), 0.0))}, {told}")]
    if aimed.regularized is not None:
        gap = game.mean(duality_gap(game, aimed.regularized.policy))
        residual = number(np.max(aimed.regularized.residual))
        said = f"tau = {aimed.regularized.tau:g}: gap {number(gap)} without tau, log residual {residual} nats"
        rows.append(("regularized π*_τ", said))
    rows.append(("the rule aims for", played.rule.aim.value))
    return [pairs(rows)]


def final_policies(played: Played) -> str:
    """Equilibrium, average and last policy; means over contexts."""
    game, run, aimed = played.given.game, played.run, played.aimed
    shown = {"π*": np.asarray(aimed.nash.policy)}
    if aimed.regularized is not None:
        shown["π*_τ"] = np.asarray(aimed.regularized.policy)
    shown |= {"average": mean_over_replicates(run, run.average), "last": mean_over_replicates(run, run.last)}
    weights = np.asarray(game.weights).reshape(-1)
    means = {title: weights @ policy.reshape(-1, game.n) for title, policy in shown.items()}
    columns = {title: [probability(x) for x in mean] for title, mean in means.items()}
    over = "Policies, on average over contexts" if game.batch_shape else "Policies"
    return "\n".join([over, policy_table(game, sum(means.values()) / len(means), columns)])
