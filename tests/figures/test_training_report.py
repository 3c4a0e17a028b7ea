"""The report of a run: self-contained, escaped, right in its numbers, and honest about what is missing."""

import base64
import json
import subprocess
import sys

import numpy as np
import pytest
from html_page import Page
from run_folder import RECIPE, manifest, write_lines, write_run

from nashpo.figures import style, training_report
from nashpo.figures.training_run import load_run

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x onerror=y> $\\frac{ & \ud800 \x00"


@pytest.fixture(autouse=True)
def no_pixels(monkeypatch):
    """Figures are made and not painted: `test_training_figures` paints them."""
    monkeypatch.setattr(style, "png", lambda fig, dpi: b"\x89PNG")


def write(run) -> tuple[str, Page]:
    path = training_report.write_report(run)
    assert path == run / "report.html"
    source = path.read_text(encoding="utf-8")
    return source, Page(source)


def test_a_whole_run(tmp_path):
    source, page = write(write_run(tmp_path / "run"))
    assert all(ref.startswith(("#", "data:image/png;base64,")) for ref in page.references)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(f'id="{ref[1:]}"' in source for ref in page.references if ref.startswith("#"))
    for word in ("@import", "url(", "src=http"):
        assert word not in source
    assert len(page.images) == 8
    assert all(base64.b64decode(image.partition(",")[2])[1:4] == b"PNG" for image in page.images)
    for told in (
        "Finished: 3 of 3 iterations.",
        "72 prompts sampled 360 responses 240 optimizer steps",
        "ONPO (eta = 0.5)",
        "The rule aims for a Nash equilibrium of the game.",
        "judge table (game cyclic:n=5)",
        "exact duality gap, last iterate 0.248 0.136 0.075",
        "… predicted 0.231 [0.171, 0.291]",
        "… certificate 2.500 1.250 0.833",
        "win rate against reference 0.560 [0.510, 0.610] 0.620 [0.570, 0.670] 0.680 [0.630, 0.730]",
        "samples: win rate of the longer one 0.510 0.520 0.530",
        "judge: asymmetry 0.020 0.040 0.060",
        "iteration 1: 1 of 24 judged prompts were not trained on",
        "new policy, win rate 0.75",
        "torch 2.13.0",
        "title = {{Improving LLM General Preference Alignment",
        "lower bound on the duality gap of the policy that draws one of these K",
    ):
        assert told in page.text, told
    assert "π<sub>t+1</sub> ∝ π&#x27;<sub>t+1</sub> exp(η r<sub>t</sub>)" in source
    assert "Not the policy of the theory" not in page.text
    assert "Not drawn" not in page.text
    assert page.text.index("Finished") < page.text.index("ONPO (eta") < page.text.index("Per iteration")


def test_an_unfinished_run_without_evaluation_at_another_temperature(tmp_path):
    sampling = {"sampling": RECIPE["sampling"] | {"temperature": 0.7, "top_p": 0.95}}
    _, page = write(write_run(tmp_path / "run", done=1, begun=1, evaluation=False, recipe=sampling))
    for told in (
        "Not finished: 1 of 3 iterations are done. Iteration 2 has samples.",
        "Samples were drawn with temperature = 0.7, top_p = 0.95. The rule's theory is about the policy at",
        "iteration 2 (not finished)",
        "Win rates of the new iterate: no evaluation",
        "The duality gap of the policies, beside the prediction: no exact evaluation",
        "training sample that the judge liked least",
    ):
        assert told in page.text, told
    assert len(page.images) == 6
    assert "win rate against reference" not in page.text.partition("Figures")[0].rpartition("Per iteration")[2]


def test_a_run_that_has_only_a_recipe(tmp_path):
    run = write_run(tmp_path / "run", done=0)
    (run / "start" / "manifest.json").unlink()
    (run / "metrics.jsonl").unlink()
    _, page = write(run)
    for told in ("Not finished: 0 of 3", "No iteration has begun.", "no samples yet", "No phase is done."):
        assert told in page.text, told
    assert page.images == []


def test_what_others_wrote_is_escaped(tmp_path):
    recipe = {"model": {"path": HOSTILE}, "judge": {"kind": "api", "template": HOSTILE}, "rule": {"name": "<b>x"}}
    run = write_run(tmp_path / "run", recipe=json.loads(json.dumps(recipe).replace("\\ud800", "")), response=HOSTILE)
    results = run / "iterations" / "001" / "evaluation" / "results.json"
    found = json.loads(results.read_text())
    found["win_rates"][HOSTILE] = {"mean": 0.5, "low": 0.4, "high": 0.6}
    found["side_by_side"][0]["prompt"] = [{"role": HOSTILE, "content": HOSTILE}]
    results.write_text(json.dumps(found))
    row = {"iteration": 1, "phase": "train", "stage": HOSTILE, "step": 2, "loss": 0.5}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"stage": "other"}) + "\n")
    manifest(run / "start", HOSTILE, {HOSTILE: HOSTILE}, 1.0, versions={HOSTILE: HOSTILE})
    source, page = write(run)
    for word in ("<script", "<img src=http", "<b>x", "\x00"):
        assert word not in source
    assert page.text.count("<script>alert('x')</script>") >= 3 * 4
    assert "knows no paper of this rule" in page.text


def test_training_samples_are_escaped_too(tmp_path):
    source, page = write(write_run(tmp_path / "run", done=1, evaluation=False, response=HOSTILE))
    assert "<script" not in source
    assert "<script>alert('x')</script>" in page.text


def test_passwords_and_keys_are_hidden(tmp_path):
    judge = {"kind": "api", "api_key": "sk-1", "headers": {"Authorization": "Bearer 2"}, "key_env": "MY_KEY"}
    source, page = write(write_run(tmp_path / "run", done=1, recipe={"judge": judge}))
    for secret in ("hf_secret", "sk-1", "Bearer 2"):
        assert secret not in source
    assert "hub_token: (hidden)" in page.text
    assert "MY_KEY" in page.text


def test_statistics_of_samples_by_hand(tmp_path):
    """Rock, paper, scissors (gap 0, a cycle), two rankings of three (gap 2 (5/6 − ½) = 2/3), and an abstention.

    Of the second ranking the texts are the same: one response, and no triple.
    """
    iteration = tmp_path / "iterations" / "001"
    cycle = [[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]]
    ranking = [[0.5, 1, 1], [0, 0.5, 1], [0, 0, 0.5]]
    unknown = [[0.5, None], [None, 0.5]]
    rows = [
        {
            "prompt_key": key,
            "prompt": key,
            "completions": [{"ids": [0] * n, "text": text, "finished": n < 3} for n, text in zip(lengths, texts)],
        }
        for key, lengths, texts in (
            ("a", (1, 2, 2), "xyz"),
            ("b", (3, 2, 1), "321"),
            ("b", (1, 1, 1), "111"),
            ("c", (1, 1), "vw"),
        )
    ]
    write_lines(iteration / "samples" / "00000.jsonl", rows)
    judged = [
        {"prompt_key": k, "wins": w, "asymmetry": a}
        for k, w, a in (("a", cycle, 0.1), ("b", ranking, 0.3), ("b", ranking, 0.2), ("c", unknown, None))
    ]
    write_lines(iteration / "judgements" / "00000.jsonl", judged)
    (tmp_path / "recipe.yaml").write_text("rule: sppo\niterations: 2\n")
    shards = load_run(tmp_path).iterations[0].shards
    np.testing.assert_allclose(shards.gaps, [0, 2 / 3, 2 / 3], atol=1e-15)  # a few roundings of numbers below 1
    assert (shards.cyclic, shards.triples) == (1, 2)
    assert (shards.judged, shards.abstained, shards.prompts) == (4, 1, 4)
    # Longer ones: of a, 2 over 1 and 3 over 1 win 0 and 1; of b, all three pairs are won.
    assert shards.longer_wins == pytest.approx((0.5 + 1) / 2, abs=1e-15)
    assert shards.asymmetry == pytest.approx(0.2, abs=1e-15)
    assert shards.tokens.tolist() == [1, 2, 2, 3, 2, 1, 1, 1, 1, 1, 1]
    np.testing.assert_allclose(shards.prompt_tokens, [5 / 3, 2, 1, 1], atol=1e-15)
    assert shards.finished == 10 / 11
    assert (shards.examples[1].prompt, shards.examples[1].best, shards.examples[1].worst) == ("b", "3", "1")


def test_the_other_side_of_a_conversation_has_no_length(tmp_path):
    """6 and 4 tokens of which 2 and 3 are the policy's: the second one is the longer, and it wins 0.9."""
    iteration = tmp_path / "iterations" / "001"
    talk = [
        {"ids": [0] * 6, "mask": [1, 0, 0, 0, 0, 1], "text": "a\n\nuser: b\n\nassistant: c", "finished": True},
        {"ids": [0] * 4, "mask": [1, 1, 0, 1], "text": "d\n\nuser: e\n\nassistant: f", "finished": True},
    ]
    write_lines(iteration / "samples" / "00000.jsonl", [{"prompt_key": "k", "prompt": "p", "completions": talk}])
    write_lines(iteration / "judgements" / "00000.jsonl", [{"prompt_key": "k", "wins": [[0.5, 0.1], [0.9, 0.5]]}])
    (tmp_path / "recipe.yaml").write_text("rule: sppo\niterations: 2\n")
    shards = load_run(tmp_path).iterations[0].shards
    assert shards.tokens.tolist() == [2, 3]
    assert shards.longer_wins == 0.9
    assert shards.examples[0].best == "d\n\nuser: e\n\nassistant: f"


@pytest.mark.parametrize("level", ["trajectory", "state"])
def test_conversations_are_counted_and_named_for_what_they_are(tmp_path, level):
    """At the level of states the samples are leaves of a tree, and what is trained on are no prompts."""
    run = write_run(tmp_path / "run", done=1, recipe={"conversation": {"turns": 2, "level": level}})
    manifest(run / "iterations/001/samples", "samples", {"prompts": 24, "states": [24, 30], "answers": [120, 60]}, 12.0)
    _, page = write(run)
    at_states = level == "state"
    assert "samples: first answers with a second one behind 30 of 120" in page.text
    assert "states (24, 30), answers (120, 60)" in page.text
    assert ("samples: K × K gap" in page.text) is not at_states
    assert ("samples: gap among all conversations, dependent where they share answers" in page.text) is at_states
    assert ("1 of 24 judged prompts were not trained on" in page.text) is not at_states
    assert ("steps 40, states 23" in page.text) is at_states
    assert ("for P(y ≻ π) in the rule stands the win rate against π of the whole conv" in page.text) is at_states


def test_a_band_is_explained_where_there_is_one(tmp_path):
    run = write_run(tmp_path / "run", done=1)
    band = "the band is what that sampling alone does"
    assert band in write(run)[1].text
    path = run / "iterations/001/evaluation/results.json"
    found = json.loads(path.read_text())
    found["exact"]["prediction"] = {"gap_last": 0.3, "gap_average": 0.2}
    path.write_text(json.dumps(found))
    assert band not in write(run)[1].text


def test_what_the_caption_says_of_five_samples_at_an_equilibrium():
    """All 3⁵ draws from the uniform policy on rock, paper, scissors, which has gap 0."""
    from itertools import product

    from nashpo.llm.response_games import sample_gap

    P = np.array([[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]])
    mean = np.mean([sample_gap(P[np.ix_(drawn, drawn)]) for drawn in product(range(3), repeat=5)])
    assert mean == pytest.approx(29 / 81, abs=1e-12)  # rounding of 243 terms


def test_of_one_prompt_there_is_no_interval():
    from nashpo.figures.training_run import interval
    from nashpo.llm.intervals import rate_interval

    one, two = interval(rate_interval([0.7], seed=0)), interval(rate_interval([0.7, 0.7], seed=0))
    assert one.mean == two.mean == 0.7
    assert np.isnan([one.low, one.high]).all()
    assert two.low < 0.7 < two.high


def test_without_an_evaluation_the_samples_have_the_same_intervals(tmp_path):
    """Gap and tokens of a run without evaluation, from its shards: per prompt, as the evaluation counts them."""
    from nashpo.figures.training_facts import sample_gap, sample_tokens
    from nashpo.llm.intervals import mean_interval, rate_interval

    iteration = load_run(write_run(tmp_path / "run", done=1, evaluation=False)).iterations[0]
    gap, tokens = rate_interval(iteration.shards.gaps, 0), mean_interval(iteration.shards.prompt_tokens, least=0)
    assert (sample_gap(iteration).low, sample_gap(iteration).high) == (gap["low"], gap["high"])
    assert (sample_tokens(iteration).low, sample_tokens(iteration).high) == (tokens["low"], tokens["high"])
    assert tokens["prompts"] == iteration.shards.prompts > 1


def test_more_prompts_than_are_read_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("nashpo.figures.training_run.read_shards", lambda folder: read(folder, 10))
    from nashpo.figures.training_shards import read_shards as read

    run = write_run(tmp_path / "run", done=1)
    assert load_run(run).iterations[0].shards.tokens.size == 50
    assert "are of the first 2,000 prompts per iteration" in write(run)[1].text


def test_torn_and_repeated_lines_of_metrics(tmp_path):
    run = write_run(tmp_path / "run", done=0, begun=1)
    rows = [
        {"iteration": 1, "phase": "train", "step": 2, "loss": 1.0},
        {"iteration": 1, "phase": "train", "step": 4, "loss": 9.0},
        {"iteration": 1, "phase": "train", "step": 4, "loss": 0.5},
        {"iteration": 1, "phase": "train", "step": 4, "train_loss": 0.75},
        {"iteration": 1, "phase": "samples", "prompts": 3},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "metrics.jsonl").write_text(text + '{"iteration": 1, "pha')
    steps = load_run(run).iterations[0].steps["current"]
    assert [(row["step"], row["loss"]) for row in steps] == [(2, 1.0), (4, 0.5)]
    _, page = write(run)
    assert "last training loss 0.5" in page.text


def test_logs_of_the_stages_serve_where_metrics_are_not_written_yet(tmp_path):
    run = write_run(tmp_path / "run", done=0, begun=1)
    write_lines(run / "iterations" / "001" / "train" / "auxiliary" / "log.jsonl", [{"step": 1, "loss": 0.25}])
    assert load_run(run).iterations[0].steps == {"auxiliary": [{"step": 1, "loss": 0.25, "stage": "auxiliary"}]}


def test_a_phase_that_was_only_begun_is_not_done(tmp_path):
    run = write_run(tmp_path / "run", done=1)
    manifest(run / "iterations" / "001" / "model", "model", {}, 1.0, complete=False)
    found = load_run(run)
    assert found.done == 0
    assert "model" not in [phase.name for phase in found.iterations[0].phases]


def test_phases_stand_in_their_order(tmp_path):
    found = load_run(write_run(tmp_path / "run", done=1))
    names = [phase.name for phase in found.iterations[0].phases]
    assert names == [
        "samples", "judgements", "logprobs", "train/auxiliary", "train/current", "auxiliary", "model", "evaluation",
        "evaluation/samples/current",
    ]  # fmt: skip
    assert [phase.name for phase in found.before] == ["start"]


def test_a_tiny_model_brings_prompts_and_judge(tmp_path):
    run = write_run(tmp_path / "run", done=0, recipe={"prompts": None, "judge": None, "objective": {"name": "default"}})
    _, page = write(run)
    for told in ("prompts those of the small model", "judge table: the game of the small model"):
        assert told in page.text
    assert "objective default" not in page.text


def test_time_inside_another_phase_counts_once(tmp_path):
    from nashpo.figures.training_time import total

    # 1.5 s of the start; then samples, judgements, logprobs, two stages, evaluation.
    assert total(load_run(write_run(tmp_path / "run", done=1))) == 1.5 + 12 + 8 + 4 + 2 * 21 + 15


def test_numbers_that_are_none_leave_the_rest(tmp_path):
    run = write_run(tmp_path / "run", done=1, recipe={"rule": {"name": "sppo", "eta": 1.0}})  # without Nan Jiang
    results = run / "iterations" / "001" / "evaluation" / "results.json"
    results.write_text(
        '{"win_rates": {"reference": null, "previous": {"mean": NaN}}, "samples": 3, "exact": [], "kl": null}'
    )
    _, page = write(run)
    assert "nan" not in page.text.lower().split()
    assert "Win rates of the new iterate: no evaluation" in page.text


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("recipe.yaml", None, "no run: there is no recipe.yaml"),
        ("recipe.yaml", "rule: [", "recipe.yaml"),
        ("recipe.yaml", "- 1", "recipe.yaml"),
        ("metrics.jsonl", "{\n{}\n", "line 1 of"),
        ("iterations/001/evaluation/results.json", "{", "is not JSON"),
        ("iterations/001/evaluation/results.json", "[]", "no JSON object"),
        ("iterations/001/samples/00000.jsonl", "3\n{}\n", "no JSON object"),
    ],
)
def test_a_bad_folder_is_one_line(name, content, told, tmp_path):
    run = write_run(tmp_path / "run", done=1)
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    with pytest.raises(ValueError, match=told) as caught:
        training_report.write_report(run)
    assert "\n" not in str(caught.value)
    assert str(run) in str(caught.value)
    assert not (run / "report.html").exists()


def test_the_report_loads_no_torch(tmp_path):
    run = write_run(tmp_path / "run", done=1)
    code = (
        "import sys\nfrom pathlib import Path\nfrom nashpo.figures import training_report\n"
        "training_report.DPI = 20\ntraining_report.write_report(Path(sys.argv[1]))\n"
        "heavy = [name for name in ('torch', 'transformers', 'nashpo.tabular') if name in sys.modules]\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(run)], check=True)
    assert (run / "report.html").is_file()
