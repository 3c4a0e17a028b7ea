"""What the commands solve, play, rules and cite print and write."""

import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from nashpo.core import theorems
from nashpo.core.cli import main
from nashpo.core.rules import RULES
from nashpo.core.theorems import mwu_tuned_eta, onpo_gap
from nashpo.tabular import Run
from nashpo.tabular.commands import output
from nashpo.tabular.commands import solve as solve_command
from nashpo.tabular.files import open_game
from nashpo.tabular.rule_arguments import option, required, rule_from

ALPACA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "alpacaeval" / "judged_responses.jsonl.gz"
P = np.array([[0.5, 0.1, 0.8], [0.9, 0.5, 0.1], [0.2, 0.9, 0.5]])
"""COMAL's game, whose equilibrium is (4, 3, 4)/11."""
PLAY = ["--rule", "onpo", "--eta", "0.5", "--steps", "100"]

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NASHPO_TRACEBACK", raising=False)


def put(name: str, content: Any) -> str:
    """A file of bytes, text, a .npy of an array, or JSON."""
    path = Path(name)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return name


def printed(capsys: Capture, *argv: str, status: int = 0) -> str:
    assert main(argv) == status
    out, err = capsys.readouterr()
    assert all(line.startswith("nashpo: wrote ") for line in err.splitlines())
    return out


def told(capsys: Capture, *argv: str, status: int = 0) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    report: dict[str, Any] = json.loads(printed(capsys, *argv, "--json", status=status), parse_constant=refuse)
    return report


def fits(text: str) -> bool:
    return max(output.columns(line) for line in text.splitlines()) <= output.WIDTH


def test_solve_a_file(capsys: Capture) -> None:
    put("g.csv", ",a,b,c\na,.5,.1,.8\nb,.9,.5,.1\nc,.2,.9,.5\n")
    report = told(capsys, "solve", "g.csv")
    assert_allclose(report["policy"], [4 / 11, 3 / 11, 4 / 11], rtol=1e-13)
    assert report["gap"] <= 1e-15
    assert (report["unique"], report["support"]) == (True, [True] * 3)
    assert report["game"]["names"] == ["a", "b", "c"]
    text = printed(capsys, "solve", "g.csv")
    assert "g.csv: 3 responses" in text
    assert "  a            0.363636             0.500000" in text
    assert fits(text)


def test_solve_in_fractions(capsys: Capture) -> None:
    put(
        "g.json",
        {"P": [["1/2", "1/10", "4/5"], ["9/10", "1/2", "1/10"], ["1/5", "9/10", "1/2"]], "names": ["a", "b", "c"]},
    )
    for game, more in (("g.json", []), ("comal", ["--decimals"])):
        report = told(capsys, "solve", game, "--exact", *more)
        (certificate,) = report["exact"]
        assert certificate == {"policy": ["4/11", "3/11", "4/11"], "gap": "0", "verified": True}
        text = printed(capsys, "solve", game, "--exact", *more)
        assert "verified: every inequality holds in exact arithmetic" in text
        assert "4/11" in text
    # The binary numbers next to 0.1, 0.8, 0.9 make another game, whose equilibrium is near.
    (certificate,) = told(capsys, "solve", "comal", "--exact")["exact"]
    fractions = [Fraction(x) for x in certificate["policy"]]
    assert sum(fractions) == 1
    assert_allclose([float(x) for x in fractions], [4 / 11, 3 / 11, 4 / 11], rtol=1e-14)


def test_fractions_of_many_digits(capsys: Capture) -> None:
    """Python refuses to print integers of more than 4300 digits, and a table has no room for 40."""
    x = Fraction(1, 7**6000)
    assert Fraction(int(solve_command.fraction(x).partition("/")[2][-3:]), 1) == 7**6000 % 1000
    text = printed(capsys, "solve", "uniform_random:n=30", "--exact")
    assert "(denominator of" in text
    assert fits(text)


def test_solve_the_regularized_game(capsys: Capture) -> None:
    put("ref.json", [0.2, 0.3, 0.5])
    put("g.npy", P)
    report = told(capsys, "solve", "g.npy", "--tau", "0.1", "--reference", "ref.json")
    assert report["residual"] <= 1e-12
    policy = np.array(report["policy"])
    expected = np.array([0.2, 0.3, 0.5]) * np.exp(P @ policy / 0.1)
    assert_allclose(policy, expected / expected.sum(), rtol=1e-12)
    assert_allclose(report["kl_to_reference"], np.sum(policy * np.log(policy / [0.2, 0.3, 0.5])), rtol=1e-12)
    text = printed(capsys, "solve", "g.npy", "--tau", "0.1", "--reference", "ref.json")
    assert "KL-regularized game, tau = 0.1, reference given" in text
    assert fits(text)


@pytest.mark.parametrize("method", ["interior", "highs", "cvxpy"])
def test_solve_by_any_method(method: str, capsys: Capture) -> None:
    report = told(capsys, "solve", "comal", "--method", method)
    assert_allclose(report["policy"], [4 / 11, 3 / 11, 4 / 11], atol=1e-7)  # cvxpy stops at about 1e-9


def test_solve_many_contexts(capsys: Capture) -> None:
    report = told(capsys, "solve", "uniform_random:n=5,batch=12")
    assert np.shape(report["policy"]) == (12, 5)
    assert np.max(report["gap"]) <= 1e-12
    text = printed(capsys, "solve", "uniform_random:n=5,batch=12")
    assert "12 contexts of 5 responses" in text
    assert "in 12 of 12 contexts" in text
    exact = printed(capsys, "solve", "uniform_random:n=5,batch=12", "--exact")
    assert "verified in exact arithmetic in 12 of 12 contexts" in exact
    assert "mean KL to reference" in printed(capsys, "solve", "uniform_random:n=5,batch=12", "--tau", "1")


def test_a_long_policy_shows_its_largest_probabilities(capsys: Capture) -> None:
    text = printed(capsys, "solve", "uniform_random:n=200")
    rows = text.splitlines()[text.splitlines().index("") + 1 :]
    shown = [float(line.split()[1]) for line in rows if line.startswith("  ") and line.split()[1][:2] == "0."]
    assert len(shown) == 20
    assert shown == sorted(shown, reverse=True)
    report = told(capsys, "solve", "uniform_random:n=200")
    assert shown[0] == round(max(report["policy"]), 6)
    silent = sum(not played for played in report["support"])
    assert f"and {silent} that are never played" in text


def test_names_that_are_wide_or_dangerous_keep_the_table_straight(capsys: Capture) -> None:
    names = ["漢字の答え", "plain", "two\nlines\x1b[31m", "x" * 200]
    put("g.json", {"P": np.full((4, 4), 0.5).tolist(), "names": names})
    text = printed(capsys, "solve", "g.json")
    assert fits(text)
    assert "\x1b" not in text
    assert "two?lines?[31m" in text
    assert len({output.columns(line) for line in text.splitlines()[-4:]}) == 1


def test_a_solver_that_fails_is_status_1(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(solve_command, "LARGEST_GAP", -1.0)
    assert "duality gap" in printed(capsys, "solve", "comal", status=1)


def test_play_prints_gaps_bounds_and_policies(capsys: Capture) -> None:
    text = printed(capsys, "play", "interior:n=5", *PLAY)
    assert "onpo, eta = 0.5, variant = two_sequences; T = 100" in text
    for column in ("gap of average", "gap of last", "KL(π* ‖ last)", "bound", "measured"):
        assert column in text
    assert "onpo.average-gap" in text
    assert "holds" in text
    assert fits(text)
    report = told(capsys, "play", "interior:n=5", *PLAY)
    (bound,) = [b for b in report["bounds"] if b["id"] == "onpo.average-gap"]
    assert_allclose(bound["bound"], onpo_gap(np.log(5), 0.5, 100), rtol=1e-12)
    assert bound["holds"] is True
    assert bound["measured"] == report["gap_average"][-1]
    assert report["recorded"][-1] == report["steps"] == 100
    assert_allclose(sum(report["last"]), 1, rtol=1e-14)
    advantage = open_game("interior:n=5").A
    assert_allclose(report["gap_last"][-1], 2 * np.max(advantage @ report["last"]), atol=1e-14)


def test_the_refuted_bound_is_told_and_is_no_failure(capsys: Capture) -> None:
    """On the dominance game the printed bound is violated; that is known, and the command succeeds."""
    report = told(capsys, "play", "dominance", "--rule", "onpo", "--eta", "0.5", "--steps", "10")
    held = {bound["id"]: bound["holds"] for bound in report["bounds"]}
    assert held == {"onpo.average-gap": True, "onpo.printed-theorem-2": False}
    assert "violated, as refuted" in printed(
        capsys, "play", "dominance", "--rule", "onpo", "--eta", "0.5", "--steps", "10"
    )


def test_a_violated_bound_is_status_1(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """A bound made 1000 times smaller than it is."""
    monkeypatch.setattr(theorems, "onpo_gap", lambda D, eta, T: onpo_gap(D, eta, T) / 1000)
    assert "VIOLATED" in printed(capsys, "play", "interior:n=5", *PLAY, status=1)


@pytest.mark.parametrize("rule", [name for name, kind in RULES.items() if not kind.needs_data])
def test_every_rule_plays(rule: str, capsys: Capture) -> None:
    given = {"eta": "0.2", "tau": "0.5", "inner": "5"}
    chosen = [word for name in required(RULES[rule]) for word in (option(name), given[name])]
    horizon = rule_from(rule, {name: given[name] for name in required(RULES[rule])}).form().horizon
    steps = [] if horizon else ["--steps", "40"]
    report = told(capsys, "play", "comal", "--rule", rule, *chosen, *steps)
    assert report["steps"] == (horizon or 40)
    assert all(bound["holds"] is not False for bound in report["bounds"])
    assert fits(printed(capsys, "play", "comal", "--rule", rule, *chosen, *steps))


def test_a_regularized_rule_is_held_against_its_own_equilibrium(capsys: Capture) -> None:
    argv = ("play", "comal", "--rule", "inpo", "--eta", "0.1", "--tau", "0.5", "--steps", "200")
    report = told(capsys, *argv)
    aim = told(capsys, "solve", "comal", "--tau", "0.5")["policy"]
    assert_allclose(report["equilibrium"]["regularized"], aim, rtol=1e-14)
    assert_allclose(report["kl_last"][-1], np.sum(aim * np.log(np.array(aim) / report["last"])), atol=1e-14)
    assert report["bounds"][0]["id"] == "inpo.last-iterate"
    assert "KL(π*_τ ‖ last)" in printed(capsys, *argv)


def test_the_step_of_the_bound(capsys: Capture) -> None:
    report = told(capsys, "play", "comal", "--rule", "sppo", "--eta", "tuned", "--steps", "500")
    assert_allclose(report["rule"]["eta"], mwu_tuned_eta(np.log(3), 500), rtol=1e-15)
    assert "sppo.tuned-gap" in {bound["id"] for bound in report["bounds"]}


def test_no_divergence_where_the_equilibrium_is_not_unique(capsys: Capture) -> None:
    argv = ("play", "cyclic:n=3,dummies=1", *PLAY, "--start", "random:1")
    assert told(capsys, *argv)["kl_last"] is None
    text = printed(capsys, *argv)
    assert "KL(" not in text
    assert "not shown to be unique" in text


def test_a_start_that_is_an_equilibrium_is_pointed_out(capsys: Capture) -> None:
    assert "try --start random:1" in printed(capsys, "play", "cyclic:n=5", *PLAY)
    assert "try --start" not in printed(capsys, "play", "cyclic:n=5", *PLAY, "--start", "random:1")


def test_starts_and_references_from_files(capsys: Capture) -> None:
    put("start.json", [0.25, 0.25, 0.5])
    put("zero.csv", "0,0.5,0.5\n")
    base = ("play", "comal", "--rule", "egpo", "--eta", "0.1", "--tau", "0.5", "--steps", "1")
    # The first step by hand from the start, whose reference it is: half ∝ π exp(η Pπ), then π exp(η P half).
    start = np.array([0.25, 0.25, 0.5])
    half = start * np.exp(0.1 * P @ start)
    new = start * np.exp(0.1 * P @ (half / half.sum()))
    assert_allclose(told(capsys, *base, "--start", "start.json")["last"], new / new.sum(), rtol=1e-13)
    report = told(capsys, *base, "--start", "start.json", "--reference", "start.json")
    assert_allclose(report["last"], new / new.sum(), rtol=1e-13)
    zero = told(capsys, "play", "comal", *PLAY, "--start", "zero.csv")
    assert zero["last"][0] == 0
    assert zero["D"] is None  # infinite
    assert zero["bounds"][0]["bound"] is None
    behavior = told(capsys, "play", "comal", "--rule", "ipo", "--tau", "1", "--behavior", "start.json")
    expected = np.exp(P @ start)
    assert_allclose(behavior["last"], expected / expected.sum(), rtol=1e-13)


def test_a_random_start_is_seeded(capsys: Capture) -> None:
    def last(*more: str) -> list[float]:
        found: list[float] = told(capsys, "play", "comal", *PLAY, *more)["last"]
        return found

    assert last("--start", "random:3") == last("--start", "random:3")
    assert last("--start", "random") == last("--start", "random:0") != last("--start", "random:1")


@pytest.mark.parametrize(
    ("record", "steps"),
    [
        ("all", list(range(1, 101))),
        ("last", [100]),
        ("40", [40, 80, 100]),
        ("5,1,100", [1, 5, 100]),
    ],
)
def test_recorded_steps(record: str, steps: list[int], capsys: Capture) -> None:
    assert told(capsys, "play", "comal", *PLAY, "--record", record)["recorded"] == steps


def test_the_engines_agree(capsys: Capture) -> None:
    reports = [told(capsys, "play", "comal", *PLAY, "--engine", engine) for engine in ("compiled", "reference")]
    assert [report["engine"] for report in reports] == ["compiled", "reference"]
    assert_allclose(reports[0]["last"], reports[1]["last"], atol=1e-12)


def test_files_are_written(capsys: Capture) -> None:
    printed(capsys, "play", "comal", *PLAY, "--save", "run.npz", "--csv", "gaps.csv", "--plot", "gap.svg")
    run = Run.load("run.npz")
    assert run.steps == 100
    assert run.notes["rule"] == {"name": "onpo", "eta": 0.5, "variant": "two_sequences"}
    table = np.genfromtxt("gaps.csv", delimiter=",", names=True)
    assert_allclose(table["gap_average"], run.mean_gap_average, rtol=1e-14)
    assert Path("gap.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert sorted(os.listdir()) == ["gap.svg", "gaps.csv", "run.npz"]
    for name in ("gap.png", "gap.pdf"):
        printed(capsys, "play", "comal", "--rule", "inpo", "--eta", "1", "--tau", "1", "--steps", "9", "--plot", name)
        assert Path(name).stat().st_size > 1000


def test_sampled_feedback(capsys: Capture) -> None:
    argv = ("play", "comal", "--rule", "sppo", "--eta", "0.2", "--steps", "20", "--K", "4", "--labels", "hard",
            "--replicates", "6", "--seed", "3", "--noise", "random:0.1")  # fmt: skip
    report = told(capsys, *argv)
    assert np.shape(report["gap_average"]) == (len(report["recorded"]), 6)
    assert np.shape(report["last"]) == (6, 3)
    assert report["engine"] == "sampled"
    assert "K=4" in report["feedback"]
    assert "RandomFlips(rate=0.1)" in report["feedback"]
    assert report == told(capsys, *argv)
    assert {bound["holds"] for bound in report["bounds"]} == {None}  # bounds are stated for exact feedback
    text = printed(capsys, *argv)
    assert " ± " in text
    assert "for exact feedback only" in text
    assert fits(text)
    put("features.csv", "1,0\n0,1\n1,1\n")
    fitted = told(capsys, *argv, "--features", "features.csv", "--loss", "pairwise", "--ridge", "0.001")
    assert fitted["last"] != report["last"]
    assert told(capsys, "play", "comal", "--rule", "dpo", "--tau", "1", "--K", "4")["steps"] == 1


JUDGED = [
    {"prompt": "one", "responses": {"x": {"p_beats_baseline": 0.8}, "y": {"p_beats_baseline": 0.2}}},
    {"prompt": "two", "responses": {"x": {"p_beats_baseline": 0.1}}},
    {"prompt": "three", "responses": {"y": {"p_beats_baseline": 0.9}, "x": {"p_beats_baseline": 0.9}}},
]


def test_judged_responses_are_solved_and_played_in_one_call(capsys: Capture) -> None:
    put("judged.jsonl", "".join(json.dumps(record) + "\n" for record in JUDGED))
    solved = told(capsys, "solve", "judged.jsonl", "--baseline", "old")["judged"]
    assert (solved["prompts"], solved["ties"], solved["baseline"]) == (3, 1, "old")
    # One prompt goes to x, one to the baseline, and the tie is shared by x and y.
    nash = solved["policies"]["Nash"]
    assert_allclose([nash["shares"]["x"] + nash["shares"]["y"], nash["shares"]["old"]], [2 / 3, 1 / 3], rtol=1e-12)
    assert_allclose(nash["win_rate_over_baseline"], (0.8 + 0.5 + 0.9) / 3, rtol=1e-12)
    assert list(solved["policies"]) == ["Nash", "tau=0.01", "tau=0.1", "tau=1"]
    kl = [solved["policies"][title]["kl_to_reference"] for title in solved["policies"]]
    assert kl[1:] == sorted(kl[1:], reverse=True)
    rates = [solved["policies"][title]["win_rate_over_reference"] for title in solved["policies"]]
    assert rates == sorted(rates, reverse=True)
    assert list(told(capsys, "solve", "judged.jsonl", "--tau", "0.3")["judged"]["policies"]) == ["Nash", "tau=0.3"]

    text = printed(capsys, "play", "judged.jsonl", *PLAY)
    for part in ("3 prompts, answers of 3 models, ragged", "Bradley-Terry by construction", "1 of 3 prompts",
                 "onpo.average-gap", "How often each model's answer is played", "win rate over baseline"):  # fmt: skip
        assert part in text
    assert fits(text)
    played = told(capsys, "play", "judged.jsonl", *PLAY)["judged"]["policies"]
    assert list(played) == ["Nash", "tau=0.01", "tau=0.1", "tau=1", "average", "last"]
    assert played["Nash"]["shares"] == told(capsys, "solve", "judged.jsonl")["judged"]["policies"]["Nash"]["shares"]
    for title in played:
        assert_allclose(sum(played[title]["shares"].values()), 1, rtol=1e-12)


@pytest.mark.skipif(not ALPACA.exists(), reason="the AlpacaEval judgements lie beside the repository, not in it")
def test_alpacaeval_is_solved_and_played_by_one_command(capsys: Capture) -> None:
    report = told(capsys, "play", str(ALPACA), "--rule", "onpo", "--eta", "0.5", "--steps", "200")
    assert report["judged"]["prompts"] == 805
    assert report["judged"]["ties"] == 7
    assert report["game"]["n"] == 13
    nash = report["judged"]["policies"]["Nash"]["shares"]
    # The best answer of a prompt is the baseline's in 64 % of them.
    assert max(nash, key=lambda model: nash[model]) == report["judged"]["baseline"] == "gpt4_1106_preview"
    assert_allclose(nash["gpt4_1106_preview"], 0.640, atol=5e-4)
    assert_allclose(nash["FuseChat-Llama-3.2-1B-Instruct"], 0.258, atol=5e-4)
    assert all(bound["holds"] for bound in report["bounds"] if bound["status"] != "refuted as printed")


def test_rules_are_listed(capsys: Capture) -> None:
    text = printed(capsys, "rules")
    for name, rule in RULES.items():
        assert f"  {name} " in text
        assert all(theorem.id in text for theorem in rule.theorems)
    assert fits(text)
    assert "onpo" not in printed(capsys, "rules", "inpo", "egpo")
    report = told(capsys, "rules")
    assert [rule["name"] for rule in report["rules"]] == list(RULES)
    statuses = {t["id"]: t["status"] for rule in report["rules"] for t in rule["theorems"]}
    assert statuses["onpo.printed-theorem-2"] == "refuted as printed"


def test_papers_are_cited(capsys: Capture) -> None:
    text = printed(capsys, "cite", "sppo", "comal")
    assert [line.partition("{")[2] for line in text.splitlines() if line.startswith("@")] == [
        "sppo,", "freund-schapire,", "comal,", "mpo,"]  # fmt: skip
    assert printed(capsys, "cite").count("@") == 11
    assert "{spac," in printed(capsys, "cite", "spac")
