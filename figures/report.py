"""The report of `nashpo verify`: one HTML file with its figures inside, which needs nothing else to be read.

Read from the folder: ``verify.json`` (claims and what describes the run) and ``results.npz`` (measurements).
"""

import base64
import json
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from nashpo.core.store import replace_file
from nashpo.figures import FIGURES, load, page, style
from nashpo.figures import results as on_disk

REPORT, MANIFEST = "report.html", "verify.json"
DPI = 150
"""1,200 pixels across: sharp on most screens, and some 100 kB a figure."""

Json = Mapping[str, Any]


def write_report(directory: Path) -> Path:
    """Write ``report.html`` beside the results.

    Parameters
    ----------
    directory : path
        Holds ``verify.json`` and ``results.npz``. Figures whose measurements are not among them (not every claim was
        checked) are left out, and the report says so.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    ValueError
        If one of the files is missing or damaged.
    OSError
        If the folder cannot be written.
    """
    directory = Path(directory)
    measured = on_disk.load(directory, (on_disk.RESULTS,))
    manifest = read_manifest(directory / MANIFEST)
    data = on_disk.complete(measured, [key for name in FIGURES for key in load(name).NEEDS], directory)
    body = "\n".join(
        [
            summary(manifest),
            claims_table(manifest["claims"]),
            refutation(measured),
            figures(data),
            about(manifest),
        ]
    )
    target = directory / REPORT
    replace_file(target, page.document("NashPO: the theory, checked", body).encode())
    return target


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run of `nashpo verify`.

    Raises
    ------
    ValueError
        If it is not there, is not JSON, or lists no claims.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no {path}: run `nashpo verify --out {path.parent}` first") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); run `nashpo verify` again") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("claims"), list):
        raise ValueError(f"{path} lists no claims; run `nashpo verify` again")
    return manifest


def summary(manifest: Json) -> str:
    """The verdict in one sentence, and the run in numbers."""
    claims = manifest["claims"]
    kinds = [verdict(claim) for claim in claims]
    failed, refuted = kinds.count("fails"), kinds.count("refuted")
    whom = f"All {len(claims)} claims" if len(claims) != 1 else "The one claim"
    if failed:
        names = ", ".join(str(c.get("id", "?")) for c, kind in zip(claims, kinds, strict=True) if kind == "fails")
        sentence = f"{failed} of {len(claims)} claims {'fails' if failed == 1 else 'fail'}: {names}."
    else:
        sentence = f"{whom} came out as expected: {kinds.count('holds')} hold, {refuted} refuted as printed."
    cards = [("claims", f"{len(claims)}")]
    for key, what in (("game_steps", "game-steps played"), ("checks", "checks"), ("seconds", "seconds")):
        if (value := number(manifest, key)) is not None:
            cards.append((what, f"{value:,.0f}"))
    run = [f"`{manifest['command']}`"] if "command" in manifest else []
    run += [
        f"{key.replace('_', ' ')} {flat(manifest[key])}" for key in ("versions", "git_revision") if manifest.get(key)
    ]
    return page.banner(sentence, "bad" if failed else "good", cards, " · ".join(run))


def verdict(claim: Json) -> str:
    """``fails``, ``refuted`` (as printed, and its counterexample stands) or ``holds``."""
    if not claim.get("holds"):
        return "fails"
    return "refuted" if "refuted" in str(claim.get("status", "")) else "holds"


WORDS = {"holds": "✓ holds", "refuted": "⚠ refuted as printed", "fails": "✗ FAILS"}


def claims_table(claims: list[Json]) -> str:
    """The table of claims; the colour of a verdict says no more than its text."""
    head = ("claim", "verdict", "games", "game-steps", "worst slack", "tightness", "slope [95 %]")
    rows = []
    for claim in claims:
        name = f"<code>{escape(str(claim.get('id', '?')))}</code>"
        statement = escape(str(claim.get("statement", "")))
        source = escape(str(claim.get("source", "")))
        remarks = claim.get("remarks") or []
        remarks = [remarks] if isinstance(remarks, str) else remarks
        said = "".join(f'<div class="remark">{escape(str(line))}</div>' for line in remarks)
        kind = verdict(claim)
        rows.append(
            [
                f'{name}<div>{statement}</div><div class="source">{source}</div>{said}',
                f'<span class="verdict {kind}">{WORDS[kind]}</span>{status(claim, kind)}',
                whole(number(claim, "games")),
                whole(number(claim, "steps")),
                slack(claim),
                ratio(number(claim, "tightness")),
                slope(claim.get("slope")),
            ]
        )
    note = (
        "Worst slack is the smallest right side minus left side of an inequality (a small negative number is"
        " rounding), or the largest relative error of an identity; tightness is the smallest right side over left side,"
        " 1.00 where a bound is attained. Of a claim refuted as printed, both belong to the bound that holds instead."
        " The verdict comes from the inequality or identity at every step, and for rates from the interval of the slope"
        " as well."
    )
    return page.section("claims", "The claims", page.table(head, rows, "claims") + f"<p>{escape(note)}</p>")


def refutation(measured: Mapping[str, np.ndarray]) -> str:
    """What 'refuted as printed' means, with the counterexample's numbers; empty where they were not measured."""
    needs = load("refuted_bound").NEEDS
    if any(key not in measured for key in needs):
        return ""
    n, T, gap, printed, corrected = (np.asarray(measured[key]) for key in needs)
    largest = (T * gap).max(axis=-1)
    head = ("n", "largest T × gap", "printed 4√D", "corrected 4D + ¼", "printed bound")
    rows = [
        [f"{int(k):,}", f"{x:.2f}", f"{p:.2f}", f"{c:.2f}", "violated" if x > p else "holds here"]
        for k, x, p, c in zip(n, largest, printed, corrected, strict=True)
    ]
    words = (
        "One bound is false as it stands in print. ONPO's Theorem 2, in the main text of the NeurIPS 2025 version,"
        " gives a duality gap of at most 4√D/T for η = min{½, √D}. Its proof balances two terms at η = √D, but the cap"
        " η ≤ ½ is active whenever D > ¼. On a dominance game (one response beats all others, which tie) with uniform"
        " start and η = ½ the gap is larger. What holds, for every 0 < η ≤ 1 and every T, is 2D/(ηT) + η/(2T), which is"
        " (4D + ¼)/T at η = ½; the order 1/T is right. The claim passes when the counterexample stands."
    )
    return page.section("refuted", "Refuted as printed", f"<p>{escape(words)}</p>" + page.table(head, rows))


def figures(data: Mapping[str, np.ndarray]) -> str:
    """Every figure that the data allow, inline, with title and caption; the sweep is not part of a verification."""
    parts, left_out = [], []
    for name in FIGURES:
        module = load(name)
        if any(key not in data for key in module.NEEDS):
            if name != "sweep":
                left_out.append(name)
            continue
        image = base64.b64encode(style.png(module.draw(data), DPI)).decode()
        parts.append(page.figure(name, module.TITLE, module.CAPTION, image))
    if left_out:
        words = f"Not drawn, since the claims that they need were not checked in this run: {', '.join(left_out)}."
        parts.append(f"<p>{escape(words)}</p>")
    return page.section("figures", "The figures", "\n".join(parts))


def about(manifest: Json) -> str:
    """Everything else in the manifest, and how to repeat the run."""
    rows = [[escape(key.replace("_", " ")), escape(flat(value))] for key, value in manifest.items() if key != "claims"]
    commands = [
        str(manifest.get("command") or "nashpo verify"),
        "nashpo verify --claim ID",
        "nashpo figures --results DIR",
    ]
    words = (
        "The run is seeded: the first command repeats it. The second checks one claim, the third draws the figures of"
        " a results folder as PNG, SVG and PDF."
    )
    listing = "\n".join(escape(command) for command in dict.fromkeys(commands))
    body = f"<p>{words}</p><pre>{listing}</pre>" + page.table(("", ""), rows, "plain")
    return page.section("reproduce", "How to repeat it", body)


def number(entries: Json, name: str) -> float | None:
    """An entry, if it is a finite number."""
    value = entries.get(name)
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def whole(value: float | None) -> str:
    """A count with separators, or a dash."""
    return "–" if value is None else f"{int(value):,}"


def slack(claim: Json) -> str:
    """The worst slack of an inequality, else the largest error of an identity, or a dash."""
    value, error = number(claim, "worst_slack"), number(claim, "error")
    if value is None:
        return "–" if error is None else f"error {error:.0e}".replace("-", "−")
    return f"{value:.1e}".replace("-", "−")


def status(claim: Json, kind: str) -> str:
    """Under a verdict, whether the claim is published or derived; the verdict itself tells a refuted one."""
    told = "" if kind == "refuted" else str(claim.get("status", ""))
    return f'<div class="status">{escape(told)}</div>'


def ratio(value: float | None) -> str:
    """A ratio of two sides, or a dash; beyond 1,000 it says nothing."""
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 1000 else "> 1,000"


def slope(value: Any) -> str:
    """mid [low, high] of an interval [low, mid, high], or a dash."""
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(isinstance(x, int | float) for x in value):
        return "–"
    low, mid, high = (f"{x:.2f}".replace("-", "−") for x in value)
    return f"{mid} [{low}, {high}]"


def flat(value: Any) -> str:
    """A value of the manifest in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {flat(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return " ".join(flat(inner) for inner in value)
    if value is None or isinstance(value, bool):
        return {None: "unknown", True: "yes", False: "no"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)
