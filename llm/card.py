"""The model card beside an iterate's weights: what was run, what was measured, whom to cite.

Only numbers of ``evaluation/results.json`` are told, and what was not measured is named as such. Units: win rates in
[0, 1], KL in nats per response, lengths in tokens. Text only; no arrays, and no torch.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nashpo.core.store import replace_file
from nashpo.llm.described import Json, base_model, departure, masked, recipe_text, rule_words, what_was_run

CARD = "README.md"
USUAL = ("win rate against reference", "KL to reference", "tokens per response")
"""Figures whose absence is told."""


def write_card(
    folder: Path, recipe: Json, iteration: int, results: Json | None = None, versions: Json | None = None
) -> Path:
    """Write `model_card` as ``README.md`` into a folder of weights, aside and renamed.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    path = Path(folder) / CARD
    replace_file(path, model_card(recipe, iteration, results, versions).encode("utf-8", "replace"))
    return path


def model_card(recipe: Json, iteration: int, results: Json | None = None, versions: Json | None = None) -> str:
    """The card of one iterate.

    Parameters
    ----------
    recipe : mapping
        As in ``recipe.yaml``. Passwords and keys are not shown.
    iteration : int
        The iteration that wrote the weights, 1, 2, …; 0 is the start.
    results : mapping, optional
        The iteration's ``evaluation/results.json``, which may lack any part.
    versions : mapping name -> str, optional
        Of the packages that trained it.

    Returns
    -------
    str
        Markdown with a YAML front matter for the hub.
    """
    rule = rule_words(recipe)
    name = base_model(recipe)
    start = f"`{name}`" if name else "a model that is not on the hub"
    parts = [
        front_matter(recipe),
        f"# {rule.name} by self-play, iterate {iteration}",
        f"A language model after iteration {iteration} of self-play preference optimization with {rule.name}"
        f"{f' ({rule.settings})' if rule.settings else ''}, started from {start}. Trained with NashPO.",
        f"One iteration: {_escaped(rule.formula)} The rule aims for {rule.aim}." if rule.formula else "",
        departure(recipe),
        "## Measured",
        measured(results or {}),
        "## How it was trained",
        _table(("", ""), [(what, text) for what, text in what_was_run(_public(recipe))]),
        "The whole recipe; `nashpo train` runs it.",
        _fenced(recipe_text(_public(recipe)), "yaml"),
        _table(("package", "version"), list((versions or {}).items())) if versions else "",
        "## Citation" if rule.bibtex else "",
        _fenced(rule.bibtex, "bibtex") if rule.bibtex else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(recipe: Json) -> str:
    """The hub's metadata, between two lines of dashes. A base model that is no hub name is left out."""
    from nashpo.llm.recipe.yaml_text import to_yaml

    spec = recipe.get("rule")
    rule = str(spec.get("name") if isinstance(spec, Mapping) else spec)
    entries: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if name := base_model(recipe):
        entries["base_model"] = name
    entries["tags"] = ["nashpo", "self-play", "preference-optimization", rule]
    return f"---\n{to_yaml(entries)}---"


def measured(results: Json) -> str:
    """A table of the figures of an iterate, and a line about those that there are not."""
    rows = list(_figures(results))
    known = {what for what, _ in rows}
    missing = [what for what in USUAL if what not in known]
    if not rows:
        return "Nothing: this iterate was not evaluated."
    lines = [
        _table(("figure", "value"), rows),
        "Brackets are 95 % intervals over the evaluation prompts. Win rates are by the judge that the run was trained"
        " with. No benchmark was run, and nothing is claimed about safety, languages or tasks other than these"
        " prompts.",
        f"Not measured: {', '.join(missing)}." if missing else "",
    ]
    return "\n\n".join(line for line in lines if line)


def _figures(results: Json) -> Iterator[tuple[str, str]]:
    """(what, value) of everything that was measured of the iterate itself."""
    for name, entry in _mapping(results.get("win_rates")).items():
        yield from _row(f"win rate against {name}", entry)
    for name, entry in _mapping(results.get("length_controlled")).items():
        yield from _row(f"length-controlled win rate against {name}", entry)
    for name, entry in _mapping(results.get("kl")).items():
        yield from _row(f"KL to {'the last iterate' if name == 'last' else name}", entry, " nats")
    exact = _mapping(results.get("exact"))
    yield from _row("exact duality gap", exact.get("gap_last"))
    yield from _row("exact duality gap of the average of the iterates", exact.get("gap_average"))
    yield from _row("tokens per response", _mapping(results.get("lengths")).get("current"), digits=1)


def _row(what: str, entry: Any, unit: str = "", digits: int = 3) -> Iterator[tuple[str, str]]:
    entry = entry if isinstance(entry, Mapping) else {"mean": entry}
    mean, low, high = (_number(entry.get(key)) for key in ("mean", "low", "high"))
    if mean is None:
        return
    bounds = (
        "" if low is None or high is None or entry.get("prompts") == 1 else f" [{low:.{digits}f}, {high:.{digits}f}]"
    )
    prompts = _number(entry.get("prompts"))
    yield what, f"{mean:.{digits}f}{unit}{bounds}" + (f" on {prompts:,.0f} prompts" if prompts else "")


def _number(value: Any) -> float | None:
    plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if plain else None


def _mapping(value: Any) -> Json:
    return value if isinstance(value, Mapping) else {}


def _public(recipe: Json) -> dict[str, Any]:
    """The recipe without where it ran: a card is read by others, and may be pushed to a hub."""
    shown: dict[str, Any] = masked(recipe)
    shown.pop("output_dir", None)
    return shown


def _table(head: tuple[str, str], rows: list[tuple[str, Any]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join(lines + [f"| {_escaped(what)} | {_escaped(text)} |" for what, text in rows])


def _escaped(text: Any) -> str:
    """In one line, with nothing that Markdown or HTML takes for itself."""
    line = " ".join(str(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|]|(?<=\])\()", r"\\\1", line)


def _fenced(text: str, language: str) -> str:
    """A block of code whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
