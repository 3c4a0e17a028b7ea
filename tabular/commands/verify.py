"""``nashpo verify``: check every claim of the theory, print a table, write results and a report."""

from __future__ import annotations

import fnmatch
import shlex
import sys
import time
from typing import Any

from nashpo.core.cli import FAILED, GOOD, Parser, suggestion
from nashpo.tabular.commands.output import bar, json_text, paragraph, writable, writable_folder

DEFAULT_OUT = "nashpo-results"


def parser() -> Parser:
    """Arguments of the command."""
    made = Parser(
        "verify",
        "Check every claim: identities and bounds at every step of seeded games, and the rates by their slopes.",
        "nashpo verify --quick",
        "nashpo verify --claim sppo.average-gap --claim onpo.average-gap --out results",
        "nashpo verify --json - --no-report",
    )
    made.add_argument("--quick", action="store_true", help="fewer and shorter games")
    made.add_argument(
        "--claim",
        metavar="ID",
        action="append",
        help="check only this claim, or all that a pattern such as 'multiturn.*' names (may be repeated)",
    )
    made.add_argument(
        "--out", metavar="DIR", default=DEFAULT_OUT, help="folder for results and report (default: ./%(default)s)"
    )
    made.add_argument(
        "--json", metavar="FILE", help="write the claims as JSON too; - is stdout, the table on stderr then"
    )
    made.add_argument("--no-report", action="store_true", help="write no HTML report")
    return made


def main(argv: list[str]) -> int:
    """Check the claims; 1 where one that should hold does not.

    Raises
    ------
    ValueError
        On an unknown claim or a place that cannot be written, before any work.
    """
    started = time.perf_counter()
    options = parser().parse_args(argv)
    from nashpo.tabular.claims import CLAIMS, run_claims
    from nashpo.tabular.commands import verify_records as records

    named = (name for pattern in options.claim or CLAIMS for name in known(pattern, CLAIMS))
    wanted = [CLAIMS[name] for name in dict.fromkeys(named)]
    target = None if options.json in (None, "-") else writable(options.json)
    directory = writable_folder(options.out)

    with bar(1, "verify", "sample") as progress:

        def advance(done: int, of: int) -> None:
            progress.total = of
            progress.update(done - progress.n)

        verification = run_claims(wanted, options.quick, advance)
    command = " ".join(["nashpo verify", *(shlex.quote(word) for word in argv)])
    about = records.manifest(verification, command, options.quick, time.perf_counter() - started)
    records.write(directory, verification, about)

    stream = sys.stderr if options.json == "-" else sys.stdout
    print(text(verification, about), file=stream)
    if options.json is not None:
        claims = json_text({"claims": about["claims"]})
        if target is None:
            print(claims)
        else:
            from nashpo.core.store import replace_file

            replace_file(target, f"{claims}\n".encode())
    if not options.no_report:
        from nashpo.figures.report import write_report

        print(f"report: {write_report(directory)}", file=stream)
    return GOOD if all(result.holds for result in verification.results) else FAILED


def known(pattern: str, claims: dict[str, Any]) -> list[str]:
    """The ids that a pattern names (``*`` and ``?`` as in a shell), in the order of the claims.

    Raises
    ------
    ValueError
        Where there is none; names the nearest claim.
    """
    found = fnmatch.filter(claims, pattern)
    if not found:
        raise ValueError(f"unknown claim {pattern!r}; {suggestion(pattern, claims, 'the claims are')}")
    return found


def text(verification: Any, about: dict[str, Any]) -> str:
    """The table, what the columns mean, what was refuted and how, and what failed."""
    from nashpo.core.theorems import Status
    from nashpo.tabular.commands.verify_records import claims_table

    results = verification.results
    lines = [
        claims_table(results),
        "",
        paragraph(
            "steps: game-steps checked; slack: smallest rhs - lhs; tight: smallest rhs/lhs (1 = attained), or ± largest"
            " relative error of an identity"
        ),
    ]
    for result in results:
        if result.claim.status is Status.REFUTED and result.holds:
            lines += ["", paragraph(f"{result.claim.id}: {result.claim.statement}. Refuted as printed. {REFUTED}")]
            lines += [f"  {remark}" for remark in result.tally.remarks]
    failed = [result for result in results if not result.holds]
    for result in failed:
        lines.append("")
        lines.append(f"FAILS {result.claim.id} ({result.tally.violations} violations): {result.claim.statement}")
    words = f"{len(failed)} fail" if failed else "all as expected"
    counted = f"{len(results)} claim{'s' if len(results) > 1 else ''}"
    lines += [
        "",
        f"{counted}, {words}; {verification.game_steps:,} game-steps played and checked,"
        f" {about['checks']:,} checks, {about['seconds']:.1f} s",
    ]
    return "\n".join(lines)


REFUTED = (
    "Read in the main text of the NeurIPS 2025 version of ONPO (2502.16852), with eta = min{1/2, sqrt D}; dominance"
    " games, uniform start. What holds instead is onpo.average-gap, to which this row's slack and tightness belong."
)
