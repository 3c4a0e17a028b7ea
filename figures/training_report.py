"""The report of a run of `nashpo train`: one HTML file with its figures inside, which needs nothing else to be read.

Read from the run folder only; a run that is not finished, or was not evaluated, is told as far as it goes. The keys of
the files are documented with the run folder. No arrays; loads no torch.
"""

import base64
from html import escape
from pathlib import Path
from typing import Any

from nashpo.core.store import replace_file
from nashpo.figures import TRAINING, load, page, style, training_tables, training_time
from nashpo.figures.training_run import TrainingRun, load_run
from nashpo.figures.training_samples import side_by_side
from nashpo.figures.training_shards import MOST
from nashpo.llm.described import departure, recipe_text, rule_words, what_was_run

REPORT = "report.html"
DPI = 150
HEADLINES = ("training_gap", "training_win_rates", "training_games", "training_curves")
"""The first of these that can be drawn stands at the top."""
LINKS = (
    ("iterations", "iterations"),
    ("figures", "figures"),
    ("samples", "samples"),
    ("phases", "phases"),
    ("recipe", "recipe"),
    ("cite", "how to cite"),
)


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run folder, aside and renamed.

    Parameters
    ----------
    run : path
        The ``output_dir`` of `nashpo train`.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    ValueError
        If the folder is no run, or one of its files is damaged.
    OSError
        If the folder cannot be written.
    """
    found = load_run(run)
    rule = rule_words(found.recipe)
    title = f"NashPO: self-play with {rule.name}"
    drawable = {name: load(name) for name in TRAINING if not load(name).missing(found)}
    headline = next((name for name in HEADLINES if name in drawable), "")
    body = "\n".join(
        [
            summary(found),
            warning(found),
            first(found, _picture(found, headline, drawable[headline]) if headline else ""),
            page.section("iterations", "Per iteration", iterations(found)),
            page.section("figures", "Figures", figures(found, drawable, headline)),
            page.section("samples", "Responses side by side", samples(found)),
            page.section("phases", "Phases, counts and time", phases(found)),
            page.section("recipe", "The recipe", f"<pre>{escape(recipe_text(found.recipe))}</pre>"),
            page.section("cite", "How to cite", cite(rule.bibtex)),
        ]
    )
    target = found.folder / REPORT
    replace_file(target, page.to_bytes(page.document(title, body, LINKS)))
    return target


def summary(run: TrainingRun) -> str:
    """How far the run is, and its size in numbers."""
    planned = "?" if run.planned is None else f"{run.planned}"
    if run.finished:
        sentence, tone = f"Finished: {run.done} of {planned} iterations.", "good"
    else:
        sentence, tone = f"Not finished: {run.done} of {planned} iterations are done.", "open"
        current = [i for i in run.iterations if i.number == run.done + 1]
        done = ", ".join(phase.name for i in current for phase in i.phases)
        sentence += f" Iteration {run.done + 1} has {done}." if done else ""
    phases = [phase for i in run.iterations for phase in i.phases]
    cards = []
    for what, name, key in (
        ("prompts sampled", "samples", "prompts"),
        ("responses", "samples", "responses"),
        ("optimizer steps", "train", "steps"),
    ):
        # A second set of samples, as EGPO's, is of the same prompts.
        total = sum(
            _count(phase.counts.get(key))
            for phase in phases
            if phase.name.partition("/")[0] == name and (key != "prompts" or phase.name == name)
        )
        if total:
            cards.append((what, f"{total:,.0f}"))
    if seconds := training_time.total(run):
        cards.append(training_time.words(seconds))
    return page.banner(sentence, tone, cards, f"`nashpo train`, in the folder `{run.folder.resolve().name}`")


def warning(run: TrainingRun) -> str:
    """A box where the sampled distribution is not the policy that the theory is about."""
    told = departure(run.recipe)
    return (
        f'<p class="warning" role="note"><strong>Not the theory\'s policy.</strong> {escape(told)}</p>' if told else ""
    )


def first(run: TrainingRun, headline: str) -> str:
    """What was run, the rule with its formula over model, judge and engine; beside it the headline figure (HTML)."""
    rule = rule_words(run.recipe)
    told = f"<strong>{escape(rule.name)}</strong>" + escape(f" ({rule.settings})" if rule.settings else "")
    formula = f'<div class="formula">{page.formula(rule.formula)}</div>' if rule.formula else ""
    aim = f"The rule aims for {escape(rule.aim)}." if rule.aim else ""
    rows = [[escape(what), escape(text)] for what, text in what_was_run(run.recipe)]
    setting = page.table(("", ""), rows, "plain lead")
    return f'<div class="rule">{told}{formula}{aim}</div><div class="first"><div>{setting}</div>{headline}</div>'


def iterations(run: TrainingRun) -> str:
    """The table, and what its columns mean."""
    if not run.iterations:
        return "<p>No iteration has begun.</p>"
    words = (
        "Iteration t samples from the policy before it and writes the next. Win rates, KL and tokens are of the new"
        " policy on the evaluation prompts; rows that begin with 'samples' or 'judge' are of the training samples,"
        " hence of the policy before. Brackets are 95 % intervals over prompts (of a single prompt there is none), of"
        " predictions the band over repeated plays. A dash: not measured (yet)."
    )
    return training_tables.iterations(run) + f"<p>{escape(words)}</p>"


def figures(run: TrainingRun, drawable: dict[str, Any], headline: str) -> str:
    """The other figures, and what could not be drawn and why."""
    parts = [_picture(run, name, module) for name, module in drawable.items() if name != headline]
    left_out = [
        f"<li>{page.prose(load(name).TITLE)}: {page.prose(load(name).missing(run))}</li>"
        for name in TRAINING
        if name not in drawable
    ]
    if left_out:
        parts.append(f"<p>Not drawn:</p><ul>{''.join(left_out)}</ul>")
    if any(not i.shards.all_read for i in run.iterations):
        parts.append(f"<p>Boxes, lengths and shares of samples are of the first {MOST:,} prompts per iteration.</p>")
    return "\n".join(parts)


def samples(run: TrainingRun) -> str:
    """Pairs of responses."""
    words = "The new policy beside the reference on evaluation prompts; without an evaluation, training samples."
    return f"<p>{words}</p>{boxes}" if (boxes := side_by_side(run)) else "<p>There are no samples yet.</p>"


def phases(run: TrainingRun) -> str:
    """Dropped prompts, then every manifest, then versions."""
    parts = [training_tables.dropped(run), training_tables.phases(run), training_tables.versions(run)]
    return "\n".join(part for part in parts if part) or "<p>No phase is done.</p>"


def cite(bibtex: str) -> str:
    """The papers behind the rule."""
    if not bibtex:
        return "<p>The package knows no paper of this rule.</p>"
    return f"<p>The papers behind the rule (<code>nashpo cite</code>):</p><pre>{escape(bibtex)}</pre>"


def _picture(run: TrainingRun, name: str, module: Any) -> str:
    image = base64.b64encode(style.png(module.draw(run), DPI)).decode()
    caption = module.caption(run) if hasattr(module, "caption") else module.CAPTION
    return page.figure(name, module.TITLE, caption, image)


def _count(value: Any) -> float:
    return float(value) if isinstance(value, int) else 0.0
