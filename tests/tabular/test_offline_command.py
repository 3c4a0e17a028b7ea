"""The command offline: what it says of data, of judged responses and of instances, and every kind of bad input."""

import gzip
import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.core.cli import main
from nashpo.core.rules import RULES, SPAC
from nashpo.tabular import instances
from nashpo.tabular.baselines import ipo
from nashpo.tabular.certificate import certificate
from nashpo.tabular.commands import output
from nashpo.tabular.commands.offline_judged import PAIRS
from nashpo.tabular.commands.offline_judged_study import STEPS
from nashpo.tabular.judged import read_judged
from nashpo.tabular.judged_pairs import geometric_behavior, split_judged, split_judged_prompts
from nashpo.tabular.offline import play_offline
from nashpo.tabular.preference_files import read_preferences
from nashpo.tabular.reward_model import maximum_likelihood_reward

ALPACA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "alpacaeval" / "judged_responses.jsonl.gz"

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NASHPO_TRACEBACK", raising=False)


def lines(records: Sequence[Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def put(name: str, content: Any) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def pair(prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


ONE = [pair("p", "a", "b")] * 30 + [pair("p", "b", "a")] * 10 + [pair("p", "c", "b")] + [pair("p", "a", "a")] * 9
"""One prompt: a beat b in 30 of 40 pairs, c won its only pair, and there are 9 ties: 50 pairs."""
TWO = [*ONE, *[pair("q", "x", "y")] * 3, pair("q", "y", "x"), pair("r", "alone", "alone")]


@pytest.fixture
def one() -> str:
    return put("one.jsonl", lines(ONE))


@pytest.fixture
def two() -> str:
    return put("two.jsonl", lines(TWO))


JUDGED = [
    {
        "prompt": f"prompt {x}",
        "responses": {f"model {m}": {"p_beats_baseline": (0.1 + 0.2 * m + 0.03 * x) % 1} for m in range(4)},
    }
    for x in range(12)
]


@pytest.fixture
def judged() -> str:
    return put("judged.jsonl", lines(JUDGED))


def printed(capsys: Capture, *argv: str) -> str:
    """What is printed on success; no line is wider than a table may be, and stderr only names files."""
    assert main(["offline", *argv]) == 0
    out, err = capsys.readouterr()
    assert all(line.startswith("nashpo: wrote ") for line in err.splitlines())
    assert "--json" in argv or max(map(output.columns, out.splitlines())) <= output.WIDTH
    return out


def told(capsys: Capture, *argv: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    report: dict[str, Any] = json.loads(printed(capsys, *argv, "--json"), parse_constant=refuse)
    return report


def refused(capsys: Capture, argv: Sequence[str], *messages: str) -> None:
    """Status 2, nothing on stdout, one line on stderr that says what is wrong."""
    status = main(["offline", *argv])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("nashpo: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for message in messages:
        assert message in err


# What it says of preference pairs.


def test_an_instance_in_full(capsys: Capture) -> None:
    """Against the library: SPAC with λ = 2√N and η = √(8D/T)/R, and a certificate against the true best response."""
    report = told(capsys, "rare-arms:N=400,seed=3", "--steps", "300")
    instance = instances.rare_arms(400)
    data = instance.sample(400, 3)
    eta = np.sqrt(8 * np.log(400) / 300) / 3
    assert report["rule"] == {"name": "spac", "eta": pytest.approx(eta), "lam": 40.0, "R": 3.0}
    run = play_offline(SPAC(eta=eta, lam=40.0, R=3.0), data, 300, reference=instance.reference)
    assert report["returned"] == "spac average"
    for key, policy in {"spac average": run.average, "spac last": run.last}.items():
        found = report["methods"][key]
        assert_allclose(found["policy"], policy, atol=1e-12)
        assert_allclose(found["suboptimality"], instance.suboptimality(policy), atol=1e-12)
        for name, u in (("best", instance.comparator), ("reference", instance.reference)):
            assert_allclose(found["certificates"][name], certificate(data, u, policy, 3.0).bound, atol=1e-9)
    assert report["critic_gap"] <= 1e-9
    assert report["data"]["N"] == 400
    assert report["data"]["ties"] == float(data.ties)
    assert set(report["methods"]) >= {"mle", "mle+kl", "ipo", "chi-po", "nash", "nash+pessimism", "reference"}
    for found in report["methods"].values():
        assert found["suboptimality"] <= found["certificates"]["best"] + 1e-9  # δ = 5 %; this seed is a good one
        assert_allclose(np.sum(found["policy"]), 1, atol=1e-9)
        assert_allclose(found["on_rare"], np.sum(found["policy"][2:]), atol=1e-12)
    # 6 responses are in about 2 pairs each; log2(8/.05) = 7.32.
    assert report["rare"]["responses"] == 6
    assert_allclose(report["rare"]["threshold"], np.log2(8 / 0.05), rtol=1e-12)


def test_a_file_by_hand(capsys: Capture, one: str) -> None:
    report = told(capsys, one)
    assert report["responses"] == ["a", "b", "c"]
    assert_array_equal(report["seen"], [[40, 41, 1]])
    assert report["data"] | {"source": one} == {
        "source": one, "N": 50.0, "ties": 9.0, "prompts": 1, "responses": 3, "n": 3,
        "pairs": 50, "soft_labels": 0, "skipped": 0, "single_response_prompts": 0,
    }  # fmt: skip
    # c won its only pair: its reward is at the edge of the box, and greedy maximum likelihood plays it.
    assert_allclose(report["methods"]["mle"]["policy"], [[0, 0, 1]], rtol=0)
    assert report["methods"]["mle"]["on_rare"] == 1
    # c takes 1 of 100 places, a 40.
    assert report["coverage"]["mle"]["single_policy"] == pytest.approx(100)
    assert report["coverage"]["reference"]["second_moment"] == pytest.approx((100 / 40 + 100 / 41 + 100) / 9)
    assert report["methods"]["spac average"]["policy"][0][0] > 0.5
    assert report["methods"]["mle"]["certificates"]["reference"] > 1, "it says how little is known of c"
    assert report["methods"]["reference"]["certificates"]["reference"] == pytest.approx(0, abs=1e-9)


def test_what_a_reader_sees(capsys: Capture, one: str, two: str) -> None:
    shown = printed(capsys, one)
    flowing = " ".join(shown.split())
    for words in ("50 pairs", "3 distinct responses", "9 ties", "coverage of MLE best", "C = 100", "SPAC, average *",
                  "too rare to trust", "c (in 1)", "lam = √(C N) with C = 4"):  # fmt: skip
        assert words in flowing
    row = next(line for line in shown.splitlines() if line.startswith("  a "))
    assert row.split()[1:4] == ["40", "75", "%"]
    assert "C = 33.3 at worst, 11.7 on average" in flowing, "1/3 over 1/100; (100/40 + 100/41 + 100)/9"
    shown = printed(capsys, two)
    for words in ("over 3 prompts", "1 with one response", "most probable response", "MLE + KL = DPO, tau = 0.1"):
        assert words in shown
    assert "no certificate holds" in printed(capsys, "misspecified:N=200", "--baselines", "none")
    assert "no certificate holds" not in shown


def test_dpo_is_the_closed_form_and_ipo_its_loss(capsys: Capture, two: str) -> None:
    data, _ = read_preferences(two)
    report = told(capsys, two, "--rule", "dpo", "--tau", "0.5", "--R", "2")
    scaled = np.where(data.exists, np.exp(maximum_likelihood_reward(data, 2.0) / 0.5), 0.0)
    expected = scaled / scaled.sum(axis=-1, keepdims=True)
    assert_allclose(report["methods"]["dpo"]["policy"], expected, atol=1e-9)
    assert_allclose(report["methods"]["mle+kl"]["policy"], expected, atol=1e-9)
    report = told(capsys, two, "--rule", "ipo", "--tau", "0.5")
    assert_allclose(report["methods"]["ipo"]["policy"], ipo(data, 0.5), atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_answered_by_data(capsys: Capture, two: str, rule: str) -> None:
    more = ["--inner", "5", "--eta", "0.5"] if rule == "comal" else []
    report = told(capsys, two, "--rule", rule, "--baselines", "none", *more)
    assert report["rule"]["name"] == rule
    assert set(report["methods"]) - {"reference"}
    for found in report["methods"].values():
        assert_allclose(np.sum(found["policy"], axis=-1), 1, atol=1e-9)


def test_a_saved_policy_is_read_back(capsys: Capture, two: str) -> None:
    """Against itself a policy is certified to be no worse; as a reference it is where the rule starts."""
    returned = told(capsys, two, "--save", "policy.jsonl", "--baselines", "none")["methods"]["spac average"]["policy"]
    saved = [json.loads(line) for line in Path("policy.jsonl").read_text().splitlines()]
    assert [record["prompt"] for record in saved] == ["p", "q", "r"]
    assert saved[2]["policy"] == {"alone": 1.0}
    against = told(capsys, two, "--against", "policy.jsonl", "--baselines", "mle")
    assert set(against["comparators"]) == {"against", "reference"}
    assert_allclose(against["comparators"]["against"], returned, atol=1e-12)
    assert against["methods"]["spac average"]["certificates"]["against"] == pytest.approx(0, abs=1e-9)
    assert against["methods"]["mle"]["certificates"]["against"] > 0
    as_reference = told(capsys, two, "--reference", "policy.jsonl", "--baselines", "none")
    assert_allclose(as_reference["methods"]["reference"]["policy"], returned, atol=1e-12)
    told(capsys, two, "--save", "policy.npz")
    with np.load("policy.npz") as arrays:
        assert_allclose(arrays["policy"], returned, atol=1e-12)
        assert arrays["policies/mle"].shape == (3, 3)
    assert (
        told(capsys, two, "--against", "policy.npz:policy")["comparators"]["against"]
        == against["comparators"]["against"]
    )


def test_responses_of_a_single_prompt_by_their_text(capsys: Capture, one: str) -> None:
    put("u.json", json.dumps({"b": 0.25, "a": 0.75}))
    put("ref.csv", "a,0.5\nb,0.25\nc,0.25\n")
    report = told(capsys, one, "--against", "u.json", "--reference", "ref.csv", "--baselines", "none")
    assert report["comparators"]["against"] == [[0.75, 0.25, 0.0]]
    assert report["methods"]["reference"]["policy"] == [[0.5, 0.25, 0.25]]
    assert report["D"] == pytest.approx(np.log(4))


def test_gzip_and_parquet_say_the_same_as_lines(capsys: Capture, two: str) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    Path("two.jsonl.gz").write_bytes(gzip.compress(lines(TWO).encode()))
    parquet.write_table(arrow.Table.from_pylist(TWO), "two.parquet")
    reports = [told(capsys, name) for name in (two, "two.jsonl.gz", "two.parquet")]
    for report in reports:
        report["data"].pop("source")
    assert reports[0] == reports[1] == reports[2]


def test_soft_labels_and_columns_to_read_past(capsys: Capture) -> None:
    rows = [pair("p", "a", "b", chosen_probs=0.75, chosen_probs_win=1, chosen_probs_lose=0, id=3)] * 4
    report = told(capsys, put("soft.jsonl", lines(rows)), "--ignore", "id, other")
    assert report["data"]["soft_labels"] == 4
    # 3 of 4 pairs: a log-odds of log 3, centred in [0, 3].
    ratio = np.divide(*report["methods"]["mle+kl"]["policy"][0])
    assert ratio == pytest.approx(3.0 ** (1 / 0.1), rel=1e-6)


@pytest.mark.parametrize("kind", [".png", ".svg"])
def test_a_picture_of_one_prompt_and_of_many(capsys: Capture, one: str, two: str, kind: str) -> None:
    for data, name in ((one, "one"), (two, "two"), ("misspecified:N=100", "three")):
        printed(capsys, data, "--plot", name + kind, "--steps", "20")
        assert Path(name + kind).stat().st_size > 5000


# Judged responses.


def test_judged_responses_by_the_library(capsys: Capture, judged: str) -> None:
    """The regret of the behavior, DPO's policies and SPAC's last one in the first replicate, computed here anew."""
    report = told(capsys, judged, "--replicates", "2", "--seed", "5", "--save", "regret.npz")
    read = read_judged(judged)
    order, draw = np.random.SeedSequence([5, 0]).generate_state(2).tolist()
    b = geometric_behavior(5, order)
    with np.load("regret.npz") as arrays:
        saved = {key: arrays[key] for key in arrays.files}
    for group, split in (("hidden_prompts", split_judged_prompts), ("hidden_answers", split_judged)):
        data, held_out = split(read, b, PAIRS, 0.5, draw)
        u, reference = (held_out.best_model, b) if data.wins.ndim == 2 else (held_out.best_covered, held_out.behavior)
        D = -np.log(reference[reference > 0].min())
        names = saved[f"{group}/methods"].tolist()
        rule = SPAC.for_data(float(data.N), STEPS, D, 6.0)
        expected = {"SPAC, last": play_offline(rule, data, STEPS, reference=reference).last, "behavior": reference}
        with np.errstate(divide="ignore"):
            tilted = reference * np.exp(maximum_likelihood_reward(data, 6.0) / 0.3)
        expected["DPO, tau = 0.3"] = tilted / tilted.sum(axis=-1, keepdims=True)
        for name, policy in expected.items():
            regret = saved[f"{group}/regret"][names.index(name), 0]
            assert_allclose(regret, held_out.regret(policy, u), atol=1e-9)
        assert saved[f"{group}/N"][0] == float(data.N)
        methods = report["settings"][group.replace("_", " ")]["methods"]
        assert_allclose([methods[name]["regret"][0] for name in names], saved[f"{group}/regret"].mean(axis=1))
        difference = saved[f"{group}/regret"] - saved[f"{group}/regret"][0]
        assert_allclose([methods[name]["minus_rule"][0] for name in names], difference.mean(axis=1), atol=1e-12)
        # Student's t(.975) with 9 and with 1 degrees of freedom.
        B, t = {"hidden_prompts": (10, 2.262157), "hidden_answers": (2, 12.706205)}[group]
        assert saved[f"{group}/regret"].shape == (len(names), B)
        half = t * saved[f"{group}/regret"].std(axis=1, ddof=1) / np.sqrt(B)
        assert_allclose([methods[name]["regret"][1] for name in names], half, rtol=1e-6, atol=1e-12)
    assert report["data"]["temperature"] == pytest.approx(np.abs(np.asarray(read.game.reward)).max() / 3)


def test_judged_responses_for_a_reader(capsys: Capture, judged: str) -> None:
    shown = printed(capsys, judged, "--replicates", "3", "--plot", "regret.png", "--hidden", "0.3", "--pairs", "2")
    expected = (
        "12 prompts, answers of 5 models", "Bradley-Terry by construction", "30 % of the judge",
        "15 replicates with hidden prompts, 3 with hidden answers", "SPAC, average", "DPO, tau = 0.1",
        "IPO, tau = 0.03", "MLE, greedy", "behavior", "Hidden prompts: the regret of SPAC",
        "Hidden answers: the regret of SPAC",
    )  # fmt: skip
    for words in expected:
        assert words in " ".join(shown.split())
    assert Path("regret.png").stat().st_size > 5000
    again = printed(capsys, judged, "--replicates", "3", "--hidden", "0.3", "--pairs", "2")
    assert again == shown
    assert "ONPO, average" in printed(capsys, judged, "--replicates", "2", "--rule", "onpo")


def test_a_model_without_an_answer_falls_back_to_the_behavior(capsys: Capture) -> None:
    """Greedy maximum likelihood may play a model that did not answer some prompt."""
    records = [
        {"prompt": str(x), "responses": {"a": {"p_beats_baseline": 0.9}, "b": {"p_beats_baseline": 0.2}}}
        for x in range(20)
    ]
    for record in records[::2]:
        del record["responses"]["a"]  # type: ignore[attr-defined]
    report = told(capsys, put("ragged.jsonl", lines(records)), "--replicates", "8")
    for setting in report["settings"].values():
        for method in setting["methods"].values():
            assert np.isfinite(method["regret"]).all()


@pytest.mark.skipif(not ALPACA.exists(), reason="the AlpacaEval file is not beside the repository")
def test_alpacaeval(capsys: Capture) -> None:
    """SPAC's advantage over the behavior is 1.2 with a standard deviation of 0.5 (prompts), and 0.34 with 0.12."""
    report = told(capsys, str(ALPACA), "--replicates", "4", "--steps", "100")
    assert report["data"]["prompts"] == 805
    assert len(report["data"]["models"]) == 13
    methods = report["settings"]["hidden prompts"]["methods"]
    assert methods["behavior"]["minus_rule"][0] > 0
    assert report["settings"]["hidden answers"]["methods"]["behavior"]["minus_rule"][0] > 0
    assert all(0 <= method["win_rate_over_baseline"][0] <= 1 for method in methods.values())


# Bad input.

TIES = [pair("p", "a", "a")] * 3


def _numpy(save: Callable[[BytesIO, np.ndarray], None]) -> bytes:
    file = BytesIO()
    save(file, np.eye(2))
    return file.getvalue()


BAD_FILES: dict[str, tuple[Any, str]] = {
    "ties.jsonl": (lines(TIES), "no informative pair"),
    "half.jsonl": (lines([pair("p", "a", "b", label=0.5)] * 3), "every label is 1/2"),
    "above.jsonl": (lines([pair("p", "a", "b", label=1.5)]), "line 1: the label is 1.5"),
    "below.jsonl": (lines([pair("p", "a", "b", chosen_probs=-0.1)]), "line 1: the label is -0.1"),
    "both.jsonl": (lines([pair("p", "a", "b", label=1, chosen_probs=1)]), "contradictory"),
    "mixed.jsonl": (lines([pair("p", "a", [{"role": "user"}])]), "contradictory"),  # type: ignore[arg-type]
    "later.jsonl": (lines([pair("p", "a", "b"), {"prompt": "p", "chosen": "a"}]), "line 2: lacks rejected"),
    "unknown.jsonl": (lines([pair("p", "a", "b", lable=1)]), "'lable'"),
    "columns.jsonl": (lines([{"question": "p", "answer": "a"}]), "expected prompt, chosen, rejected"),
    "text.jsonl": ("this is no JSON\n", "line 1 is not JSON"),
    "table.csv": ("prompt,chosen,rejected\np,a,b\n", "is a table of comma- or tab-separated values, and preference"),
    "table.tsv": ("prompt\tchosen\trejected\np\ta\tb\n", "save them so"),
    "arrays.npz": (_numpy(np.savez), "is a NumPy or zip archive, and preference pairs are read from JSON lines"),
    "array.npy": (_numpy(np.save), "is a NumPy array, and preference pairs are read from JSON lines"),
    "empty.jsonl": ("", "empty"),
    "cut.jsonl.gz": (gzip.compress(lines(ONE * 200).encode())[:-30], "truncated after line"),
    "nowhere.jsonl": (None, "nowhere.jsonl: no such file"),
    "half_judged.jsonl": (lines([{"prompt": "p", "responses": {"m": {"p_beats_baseline": 2}}}]), "outside [0, 1]"),
    "cut_judged.jsonl.gz": (gzip.compress(lines(JUDGED * 300).encode())[:-50], "truncated after line"),
}


def test_content_tells_the_kind_of_a_file_and_not_its_name(capsys: Capture) -> None:
    put("pairs.csv", lines(ONE))
    printed(capsys, "pairs.csv", "--steps", "2", "--baselines", "none")


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused(capsys: Capture, name: str) -> None:
    content, message = BAD_FILES[name]
    if content is not None:
        put(name, content)
    refused(capsys, [name], f"error: {name}", message)


def test_a_truncated_parquet_is_refused(capsys: Capture) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(TWO), "two.parquet")
    put("cut.parquet", Path("two.parquet").read_bytes()[:-200])
    refused(capsys, ["cut.parquet"], "cut.parquet: the Parquet file is truncated or damaged before row 1")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rare-arms:N=100", "--delta", "0"], "--delta 0 must lie strictly between 0 and 1"),
        (["rare-arms:N=100", "--delta", "1.5"], "--delta 1.5"),
        (["rare-arms:N=100", "--delta", "nan"], "--delta nan"),
        (["rare-arms:N=100", "--R", "1"], "R = 1 is below the largest reward 1.5"),
        (["one.jsonl", "--R", "0"], "--R 0 must be > 0"),
        (["one.jsonl", "--R", "-2"], "--R -2 must be > 0"),
        (["one.jsonl", "--R", "big"], "--R is 'big', not a number"),
        (["judged.jsonl", "--R", "2", "--temperature", "1"], "R = 2 is below the largest reward"),
        (["judged.jsonl", "--R", "0"], "--R 0 must be > 0"),
        (["judged.jsonl", "--temperature", "0"], "--temperature 0 must be"),
        (["one.jsonl", "--lam", "-1"], "lam = -1 must be >= 0"),
        (["one.jsonl", "--lam", "much"], "--lam is 'much'; give a number, 'auto', or power:SCALE,EXPONENT,SHIFT"),
        (["one.jsonl", "--eta", "tuned"], "--eta is 'tuned'; give a number, 'auto', or power:SCALE,EXPONENT,SHIFT"),
        (["judged.jsonl", "--eta", "tuned"], "--eta is 'tuned'; give a number, 'auto', or power:"),
        (["one.jsonl", "--eta", "0"], "eta = 0 must be > 0"),
        (["one.jsonl", "--tau", "0"], "--tau 0 must be > 0"),
        (["one.jsonl", "--rule", "spca"], "unknown rule 'spca'; did you mean 'spac'?"),
        (["one.jsonl", "--rule", "dpo", "--lam", "3"], "rule 'dpo' has no --lam"),
        (["one.jsonl", "--rule", "comal"], "rule 'comal' needs --inner"),
        (["one.jsonl", "--rule", "comal", "--inner", "3"], "--eta auto: COMAL declares no bound"),
        (["one.jsonl", "--rule", "onpo", "--variant", "auto"], "--variant cannot be 'auto'"),
        (["one.jsonl", "--rule", "ipo", "--steps", "3"], "horizon of 1"),
        (["one.jsonl", "--rule", "dpo", "--steps", "3"], "horizon of 1"),
        (["one.jsonl", "--steps", "0"], "--steps 0"),
        (["one.jsonl", "--baselines", "mle,dpoo"], "did you mean 'dpo'?"),
        (["one.jsonl", "--save", "policy.txt"], "give .npz, .jsonl"),
        (["one.jsonl", "--plot", "plot.gif"], "give .png, .svg, .pdf"),
        (["one.jsonl", "--plot", "no/where.png"], "make it first"),
        (["one.jsonl", "--hidden", "0.5"], "--hidden is for judged responses"),
        (["rare-arms", "--seed", "1"], "--seed is for judged responses"),
        (["one.jsonl", "--lamb", "3"], "unknown option --lamb; did you mean '--lam'?"),
        (["judged.jsonl", "--reference", "u.json"], "--reference is not for judged responses"),
        (["judged.jsonl", "--against", "u.json"], "--against is not for judged responses"),
        (["judged.jsonl", "--hidden", "1"], "--hidden 1 must lie strictly between 0 and 1"),
        (["judged.jsonl", "--replicates", "1"], "--replicates 1 must be at least 2"),
        (["judged.jsonl", "--pairs", "0"], "--pairs 0 must be at least 1"),
        (["judged.jsonl", "--seed", "-1"], "--seed -1 must be at least 0"),
        (["judged.jsonl", "--save", "regret.jsonl"], "give .npz"),
        (["rare-arm"], "did you mean 'rare-arms'?"),
        (["qqq"], "no file and no instance; the instances are: rare-arms"),
        (["rare-arms:N=many"], "N is 'many', but must be a whole number"),
        (["rare-arms:M=3"], "no argument 'M'"),
        (["rare-arms:N"], "'N' is not KEY=VALUE"),
        (["rare-arms:N=100,,"], "'rare-arms:N=100,,' has no KEY=VALUE at comma 1; write for example rare-arms:N=1600"),
        (["rare-arms:"], "'rare-arms:' has no KEY=VALUE behind the colon"),
        (["rare-arms:N=5"], "rare-arms: N = 5 must be larger than rare = 6"),
        (["misspecified:N=0"], "N = 0"),
        (["rare-arms:seed=-1"], "seed is -1"),
        (["one.jsonl", "--reference", "zero.json"], "--reference zero.json: response 'b' is in pairs"),
        (["one.jsonl", "--reference", "sum.json"], "--reference sum.json: the policy sums to"),
        (["one.jsonl", "--against", "name.json"], "no response 'd'"),
        (["one.jsonl", "--against", "gone.npy"], "--against gone.npy: no such file"),
        (["one.jsonl", "--against", "twice.jsonl"], "line 2: the prompt 'p' occurs twice"),
        (["one.jsonl", "--against", "other.jsonl"], "line 1: the data have no prompt 'z'"),
        (["one.jsonl", "--against", "short.jsonl"], "sum to 0.5, not to 1"),
        (["one.jsonl", "--against", "response.jsonl"], "no response 'd' to this prompt"),
        (["one.jsonl", "--against", "negative.jsonl"], "must be a number >= 0"),
        (["one.jsonl", "--against", "form.jsonl"], "line 1 must be"),
        (["two.jsonl", "--against", "form2.jsonl"], "no line for 2 of 3 prompts, the first of them 'q'"),
        (["rare-arms", "--against", "form2.jsonl"], "lines of prompts fit data that have texts"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(capsys: Capture, one: str, two: str, judged: str, argv: list[str], message: str) -> None:
    put("zero.json", json.dumps({"a": 0.5, "c": 0.5}))
    put("sum.json", json.dumps({"a": 0.5, "b": 0.2, "c": 0.2}))
    put("name.json", json.dumps({"a": 0.5, "d": 0.5}))
    put("u.json", json.dumps({"a": 1.0}))
    put("twice.jsonl", lines([{"prompt": "p", "policy": {"a": 1}}] * 2))
    put("other.jsonl", lines([{"prompt": "z", "policy": {"a": 1}}]))
    put("short.jsonl", lines([{"prompt": "p", "policy": {"a": 0.5}}]))
    put("response.jsonl", lines([{"prompt": "p", "policy": {"d": 1}}]))
    put("negative.jsonl", lines([{"prompt": "p", "policy": {"a": -1}}]))
    put("form.jsonl", lines([["p", 1]]))
    put("form2.jsonl", lines([{"prompt": "p", "policy": {"a": 1}}]))
    refused(capsys, argv, message)


def test_nothing_is_written_where_the_data_are_refused(capsys: Capture) -> None:
    refused(capsys, [put("ties.jsonl", lines(TIES)), "--save", "p.jsonl", "--plot", "p.png"], "no informative pair")
    assert not Path("p.jsonl").exists()
    assert not Path("p.png").exists()


def test_help_has_examples(capsys: Capture) -> None:
    shown = printed(capsys, "--help")
    assert "nashpo offline judged_responses.jsonl.gz" in shown
    assert "√(C N)" in shown
    words = " ".join(shown.split())
    assert "--eta VALUE step size: a number, auto (the default: √(8D/T)/R for spac, else the rule's own), or" in words
    assert "power:SCALE,EXPONENT,SHIFT, which is SCALE/(t + SHIFT)^EXPONENT at t = 0, 1, ..." in words
