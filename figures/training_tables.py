"""Tables of the report of a run: iterations, phases, versions. Cells are HTML; text from files is escaped here."""

import math
from collections.abc import Callable, Iterable, Mapping
from html import escape

from nashpo.figures import page
from nashpo.figures.training_facts import asymmetry, cyclic_share, longer_wins, sample_gap, sample_tokens
from nashpo.figures.training_run import Interval, Iteration, Phase, TrainingRun, at, number

LOSS = "loss"
Cell = Callable[[Iteration], str]


def iterations(run: TrainingRun) -> str:
    """A column per iteration and a row per figure; figures of which nothing is known are left out."""
    heads = AT_STATES if _at_states(run) else {}
    rows = [
        [escape(heads.get(head, head)), *(escape(text) or "–" for text in texts)]
        for head, cell in ROWS
        if any(texts := [cell(iteration) for iteration in run.iterations])
    ]
    return page.table(("", *(_name(run, i) for i in run.iterations)), rows, "numbers")


def phases(run: TrainingRun) -> str:
    """Seconds and counts of every phase that is done; what a stage calls prompts are states at their level."""
    of_states = ("logprobs", "train") if _at_states(run) else ()
    parts: list[tuple[str, Iterable[Phase]]] = [("before", run.before)] if run.before else []
    parts += [(f"iteration {i.number}", i.phases) for i in run.iterations]
    rows = []
    for part, done in parts:
        for phase in done:
            words = {"prompts": "states"} if phase.kind in of_states else {}
            named = [(words.get(key, key.replace("_", " ")), value) for key, value in phase.counts.items()]
            counts = ", ".join(f"{key} {count(value)}" for key, value in named)
            seconds = "–" if phase.seconds is None else f"{phase.seconds:,.1f}"
            rows.append([escape(part), escape(phase.name), seconds, escape(counts)])
    table = page.table(("part", "phase", "seconds", "counts"), rows, "plain")
    return f"<details><summary>Every phase that is done ({len(rows)})</summary>{table}</details>" if rows else ""


def dropped(run: TrainingRun) -> str:
    """How many prompts were judged and not trained on, with the reasons that the manifests tell.

    Nothing at the level of states, where what is trained on are no prompts.
    """
    if _at_states(run):
        return ""
    lines = dict[str, None]()  # a line that holds of several stages stands once
    for i in run.iterations:
        counts = {phase.name: phase.counts for phase in i.phases}
        judged = number(counts.get("judgements", {}).get("prompts"))
        for name, found in counts.items():
            trained = number(found.get("prompts")) if name.startswith("train/") else None
            if judged is not None and trained is not None and judged > trained:
                line = (
                    f"iteration {i.number}: {judged - trained:,.0f} of {judged:,.0f} judged prompts were not trained on"
                )
                lines[f"{line} (an abstention, identical responses, or too long)"] = None
    if not lines:
        return ""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def versions(run: TrainingRun) -> str:
    """Every version that the manifests name; more than one of a package where it changed within the run."""
    found: dict[str, dict[str, None]] = {}
    for phase in (*run.before, *(phase for i in run.iterations for phase in i.phases)):
        for name, text in phase.versions.items():
            found.setdefault(str(name), {})[str(text)] = None
    rows = [
        [escape(name), escape(", then ".join(texts)) + (" (changed within the run)" if len(texts) > 1 else "")]
        for name, texts in found.items()
    ]
    return page.table(("package", "version"), rows, "plain") if rows else ""


def measured(value: Interval | None, digits: int = 3) -> str:
    """0.612 [0.580, 0.644], empty where there is nothing."""
    if value is None:
        return ""
    text = f"{value.mean:.{digits}f}"
    if math.isfinite(value.low) and math.isfinite(value.high):
        text += f" [{value.low:.{digits}f}, {value.high:.{digits}f}]"
    return text.replace("-", "−")


def count(value: object) -> str:
    """A count, a share, or a list or mapping of them, in one line."""
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {count(part)}" for key, part in value.items()) + ")"
    if isinstance(value, list):
        return "(" + ", ".join(map(count, value)) + ")"
    plain = number(value)
    if plain is None:
        return "unknown" if value is None else str(value)
    return f"{plain:,.0f}" if plain.is_integer() else f"{plain:.4g}"


def _name(run: TrainingRun, iteration: Iteration) -> str:
    return f"iteration {iteration.number}" + ("" if iteration.number <= run.done else " (not finished)")


def _last_loss(iteration: Iteration) -> str:
    """The last loss of every stage."""
    last = {
        stage: next((value for row in reversed(rows) if (value := number(row.get(LOSS))) is not None), None)
        for stage, rows in iteration.steps.items()
    }
    known = {stage: value for stage, value in last.items() if value is not None}
    if len(known) == 1:
        return f"{next(iter(known.values())):.4g}"
    return ", ".join(f"{stage} {value:.4g}" for stage, value in known.items())


def _at_states(run: TrainingRun) -> bool:
    """Whether every answer of a conversation takes the step by itself."""
    return at(run.recipe, "conversation", "level") == "state"


def _went_on(iteration: Iteration) -> str:
    """Of the first answers how many were followed by a second one."""
    counts = next((phase.counts for phase in iteration.phases if phase.name == "samples"), {})
    states, answers = (found if isinstance(found := counts.get(key), list) else [] for key in ("states", "answers"))
    return f"{count(states[1])} of {count(answers[0])}" if len(states) > 1 and answers else ""


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


ROWS: tuple[tuple[str, Cell], ...] = (
    ("exact duality gap, last iterate", lambda i: measured(i.interval("exact", "gap_last"))),
    ("… predicted", lambda i: measured(i.interval("exact", "prediction", "gap_last"))),
    ("… of the exact play", lambda i: measured(i.interval("exact", "exact_play", "gap_last"))),
    ("exact duality gap, average", lambda i: measured(i.interval("exact", "gap_average"))),
    ("… predicted", lambda i: measured(i.interval("exact", "prediction", "gap_average"))),
    ("… of the exact play", lambda i: measured(i.interval("exact", "exact_play", "gap_average"))),
    ("… certificate", lambda i: measured(i.interval("exact", "certificate"))),
    ("win rate against reference", lambda i: measured(i.interval("win_rates", "reference"))),
    ("win rate against previous iterate", lambda i: measured(i.interval("win_rates", "previous"))),
    ("win rate against reference, length-controlled", lambda i: measured(i.interval("length_controlled", "reference"))),
    ("KL to reference, nats", lambda i: measured(i.interval("kl", "reference"), 2)),
    ("tokens per response", lambda i: measured(i.interval("lengths", "current"), 1)),
    ("samples: K × K gap", lambda i: measured(sample_gap(i))),
    ("samples: first answers with a second one behind", _went_on),
    ("samples: tokens", lambda i: measured(sample_tokens(i), 1)),
    ("samples: win rate of the longer one", lambda i: _share(longer_wins(i))),
    ("samples: share of cyclic triples", lambda i: _share(cyclic_share(i))),
    ("judge: asymmetry", lambda i: _share(asymmetry(i))),
    ("last training loss", _last_loss),
)
"""Name and cell of every row that there may be."""
AT_STATES = {"samples: K × K gap": "samples: gap among all conversations, dependent where they share answers"}
"""Other names where a prompt's conversations are the leaves of a tree."""
