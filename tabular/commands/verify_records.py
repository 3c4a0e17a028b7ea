"""What `nashpo verify` prints and writes about checked claims: the table, the manifest, the result files.

Shapes: the arrays of ``results.npz`` are those that claims keep for figures; the manifest is plain JSON.
"""

import math
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nashpo.core.store import replace_file
from nashpo.core.theorems import Status
from nashpo.tabular.claims.claim import Result
from nashpo.tabular.claims.ensembles import SEED
from nashpo.tabular.claims.runner import Verification
from nashpo.tabular.commands.output import json_text, save_arrays, table

MANIFEST, ARRAYS = "verify.json", "results.npz"
PACKAGES = ("nashpo", "numpy", "scipy", "numba")
HEADER = ("claim", "source", "status", "games", "steps", "slack", "tight", "slope ±95%", "verdict")
SHORT_STATUS = {status: status.value.split()[0] for status in Status}


def claims_table(results: list[Result]) -> str:
    """One line per claim, within 100 columns.

    ``slack`` is the smallest rhs − lhs of an inequality; ``tight`` its smallest rhs/lhs, or, after ±, the largest
    relative error of an identity.
    """
    return table(HEADER, [_row(result) for result in results], left=3, indent="")


def _row(result: Result) -> list[str]:
    claim, tally = result.claim, result.tally
    slope = tally.slope
    return [
        claim.id,
        claim.brief,
        SHORT_STATUS[claim.status],
        _count(tally.games),
        _count(tally.steps),
        f"{tally.slack:.0e}" if math.isfinite(tally.slack) else "",
        _tightness(result),
        "" if slope is None else f"{slope.mid:.2f}±{slope.high - slope.mid:.2f}",
        result.verdict,
    ]


def _count(number: int) -> str:
    """At most five characters: 999, 12.3k, 1.2M."""
    if number < 1000:
        return str(number)
    return f"{number / 1e3:.1f}k" if number < 99_950 else f"{number / 1e6:.2f}M"


def _tightness(result: Result) -> str:
    ratio, error = result.tally.ratio, result.tally.error
    if math.isfinite(ratio):
        return f"{ratio:.3f}" if ratio < 100 else f"{ratio:.0f}"
    return "" if math.isnan(error) else f"±{error:.0e}"


def record(result: Result) -> dict[str, Any]:
    """A checked claim for JSON; numbers that do not apply are null.

    ``tightness`` is the smallest rhs/lhs of the inequalities, ``error`` the largest relative error of the identities,
    ``slope`` [low, mid, high] of a 95 % interval.
    """
    claim, tally = result.claim, result.tally
    slope = tally.slope
    return {
        "id": claim.id,
        "source": claim.source,
        "status": claim.status.value,
        "holds": result.holds,
        "verdict": result.verdict,
        "games": tally.games,
        "steps": tally.steps,
        "violations": tally.violations,
        "worst_slack": _finite(tally.slack),
        "tightness": _finite(tally.ratio),
        "error": _finite(tally.error),
        "slope": None if slope is None else [slope.low, slope.mid, slope.high],
        "statement": claim.statement,
        "remarks": tally.remarks,
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def manifest(verification: Verification, command: str, quick: bool, seconds: float) -> dict[str, Any]:
    """What describes a run: versions, seed, git revision, command, counts, and the claims."""
    results = verification.results
    return {
        "command": command,
        "quick": quick,
        "seconds": round(seconds, 2),
        "seed": SEED,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git_revision": git_revision(),
        "game_steps": verification.game_steps,
        "checks": sum(result.tally.steps for result in results),
        "claims": [record(result) for result in results],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """The commit of the working copy that this file is tracked in; None for an installed package or without git."""
    here = Path(__file__).resolve()
    try:
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", here.name],
            cwd=here.parent,
            capture_output=True,
            check=True,
            timeout=5,
        )
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here.parent, capture_output=True, check=True, timeout=5, text=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() or None


def write(directory: Path, verification: Verification, about: dict[str, Any]) -> None:
    """Write ``verify.json`` and ``results.npz``, each to a temporary name and renamed.

    Parameters
    ----------
    directory : path
        Exists.
    verification : Verification
    about : dict
        The `manifest`.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    save_arrays(verification.arrays, directory / ARRAYS)
    replace_file(directory / MANIFEST, json_text(about).encode())
