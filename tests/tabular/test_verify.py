"""`nashpo verify`: exit status, table, JSON, result files, refusals before any work."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nashpo.core.cli import main
from nashpo.core.rules import SPPO
from nashpo.core.rules.form import Form, Stage, win
from nashpo.tabular import claims
from nashpo.tabular.claims import CLAIMS, Result, run_claims
from nashpo.tabular.claims.claim import Interval, Tally
from nashpo.tabular.commands import verify_records
from nashpo.tabular.commands.verify import known

FEW = ("--claim", "sppo.tuned-gap", "--claim", "losses.labelled-pairs")
KEYS = {
    "id",
    "source",
    "status",
    "holds",
    "verdict",
    "games",
    "steps",
    "violations",
    "worst_slack",
    "tightness",
    "error",
    "slope",
    "statement",
    "remarks",
}


def verify(folder: Path, *more: str) -> int:
    return main(["verify", "--quick", "--no-report", "--out", str(folder), *more])


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test in which claims are checked."""

    def refuse(*_: Any) -> None:
        raise AssertionError("work was started")

    monkeypatch.setattr(claims, "run_claims", refuse)


def double_step(rule: SPPO) -> Form:
    return Form({"current": "start"}, [Stage("current", {"current": 1.0}, {win("current"): 2 * float(rule.eta)})])  # type: ignore[arg-type]


def test_files_table_and_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "results"
    assert verify(out, *FEW, "--json", str(tmp_path / "claims.json")) == 0
    printed = capsys.readouterr().out
    assert "sppo.tuned-gap" in printed
    assert "2 claims, all as expected" in printed
    about = json.loads((out / "verify.json").read_text())
    assert [claim["id"] for claim in about["claims"]] == ["sppo.tuned-gap", "losses.labelled-pairs"]
    assert set(about["claims"][0]) == KEYS
    assert about["versions"]["numpy"] == np.__version__
    assert set(about["versions"]) == {"python", "nashpo", "numpy", "scipy", "numba"}
    assert about["command"].startswith("nashpo verify --quick")
    assert about["seconds"] > 0
    assert about["game_steps"] == sum(claim["steps"] for claim in about["claims"])
    assert {"seed", "git_revision", "quick"} <= set(about)
    assert json.loads((tmp_path / "claims.json").read_text()) == {"claims": about["claims"]}
    with np.load(out / "results.npz", allow_pickle=False) as arrays:
        assert arrays.files == []
    assert sorted(path.name for path in out.iterdir()) == ["results.npz", "verify.json"]


def test_arrays_of_the_rates(tmp_path: Path) -> None:
    assert verify(tmp_path, "--claim", "sppo.rate", "--claim", "onpo.rate", "--claim", "onpo.faster-than-sppo") == 0
    with np.load(tmp_path / "results.npz", allow_pickle=False) as arrays:
        assert {name for name in arrays.files if name.startswith("rates/")} == {
            "rates/T",
            "rates/families",
            "rates/sppo_gap",
            "rates/onpo_gap",
            "rates/sppo_bound",
            "rates/onpo_bound",
            "rates/sppo_slope",
            "rates/onpo_slope",
            "rates/difference",
        }
        assert arrays["rates/families"].dtype.kind == "U"
    slope = json.loads((tmp_path / "verify.json").read_text())["claims"][0]["slope"]
    assert slope == sorted(slope)
    assert len(slope) == 3


def test_json_on_stdout_is_alone_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path, *FEW, "--json", "-") == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["claims"]) == 2
    assert "2 claims, all as expected" in captured.err


def test_a_claim_that_fails_makes_the_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SPPO, "form", double_step)
    assert verify(tmp_path, "--claim", "sppo.log-partition", "--claim", "sppo.regret-identity") == 1
    printed = capsys.readouterr().out
    assert "FAILS sppo.log-partition" in printed
    assert "2 claims, 2 fail" in printed
    assert not json.loads((tmp_path / "verify.json").read_text())["claims"][0]["holds"]


def test_what_is_refuted_is_said_and_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path, "--claim", "onpo.printed-theorem-2") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Refuted as printed" in printed
    assert "main text of the NeurIPS 2025 version" in printed
    assert "eta = min{1/2, sqrt D}" in printed
    assert "n = 10: T x gap = 8.79 at T = 500; printed 4 sqrt(D) = 6.07, corrected 2D/eta + eta/2 = 9.46" in printed
    claim = json.loads((tmp_path / "verify.json").read_text())["claims"][0]
    assert claim["status"] == "refuted as printed"
    assert claim["holds"]


def test_report_is_written_last_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nashpo.figures import report

    def write_report(directory: Path) -> Path:
        assert (directory / "verify.json").exists()
        assert (directory / "results.npz").exists()
        return directory / "report.html"

    monkeypatch.setattr(report, "write_report", write_report)
    assert main(["verify", "--quick", "--out", str(tmp_path), *FEW]) == 0
    assert capsys.readouterr().out.rstrip().endswith(f"report: {tmp_path / 'report.html'}")


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--claim", "sppo.avrage-gap"], "unknown claim 'sppo.avrage-gap'; did you mean 'sppo.average-gap'?"),
        (["--claim", "chess"], "unknown claim 'chess'; the claims are: game.gap-is-regret, "),
        (["--claim", "sppo.tuned-gap", "--claim", "spo.rate"], "did you mean 'sppo.rate'?"),
        (["--out", "{file}"], "{file}: is a file, not a directory"),
        (["--out", "{file}/deeper"], "{file}/deeper: cannot be written"),
        (["--json", "{folder}"], "{folder}: is a directory, not a file"),
        (["--json", "{folder}/no/claims.json"], "make it first"),
        (["--steps", "3"], "unknown option --steps"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    names = {"file": str(file), "folder": str(tmp_path)}
    where = [] if "--out" in arguments else ["--out", str(tmp_path / "out")]
    assert main(["verify", "--quick", *where, *(word.format(**names) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert message.format(**names) in error
    assert error.count("\n") == 1


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--help"]) == 0
    assert "nashpo verify --quick" in capsys.readouterr().out


def test_no_progress_bar_in_a_pipe(tmp_path: Path) -> None:
    code = "import sys; from nashpo.core.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "verify", "--quick", "--no-report", "--out", str(tmp_path), *FEW]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_table_fits_100_columns_whatever_the_numbers() -> None:
    tally = Tally(123_456, 12_345_678, 3, -1.234e-16, 12_345.678, 1.2e-13, Interval(-1.2345, -1.2, -1.1655))
    results = [Result(claim, tally) for claim in CLAIMS.values()]
    lines = verify_records.claims_table(results).splitlines()
    assert len(lines) == len(CLAIMS) + 1
    assert max(map(len, lines)) <= 100
    for line, claim in zip(lines[1:], CLAIMS.values(), strict=True):
        assert line.startswith(claim.id + " ")
        assert line.endswith("FAILS")


def test_the_table_of_a_run(tmp_path: Path) -> None:
    found = run_claims([CLAIMS["sppo.tuned-gap"], CLAIMS["losses.labelled-pairs"]], quick=True)
    inequality, identity = verify_records.claims_table(found.results).splitlines()[1:]
    assert "SPPO Thm 4.1" in inequality
    assert inequality.endswith("holds")
    assert "±" in identity
    assert verify_records.record(found.results[1])["worst_slack"] is None
    assert verify_records.record(found.results[0])["error"] is None


def test_a_pattern_names_claims_in_their_order() -> None:
    assert known("multiturn.mtpo-*", CLAIMS) == [name for name in CLAIMS if name.startswith("multiturn.mtpo-")]
    assert known("game.gap-is-regret", CLAIMS) == ["game.gap-is-regret"]
    with pytest.raises(ValueError, match=r"unknown claim 'multitrun\.\*'"):
        known("multitrun.*", CLAIMS)
