"""What samples and judgements say about a policy: every number worked out by hand."""

import json
from typing import Any

import pytest
from numpy.testing import assert_allclose

from nashpo.llm.evaluation import PolicySamples, describe_samples, summary
from nashpo.llm.intervals import mean_interval, rate_interval
from nashpo.llm.judges.matrix import Judged

ROUNDING = 1e-12
ROCK = [[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]]
RANKED: list[list[float | None]] = [[0.5, 0.9, 0.8], [0.1, 0.5, 0.6], [0.2, 0.4, 0.5]]


def samples(texts: list[list[str]], lengths: list[list[int]] | None = None) -> PolicySamples:
    counted = lengths or [[len(text) for text in row] for row in texts]
    return PolicySamples(texts, counted, [[n < 9 for n in row] for row in counted])


def test_describe_samples() -> None:
    """Two prompts of three responses: one ranked, one rock, paper, scissors with the last pair unanswered.

    Gap: of the first only, 7/15. Triples: one that is strict, not cyclic. Pairs: 6, one of them unanswered. Longer
    wins: of the first 0.7 (lengths 3, 1, 2); of the second, lengths 9, 2, 2, only 1 against the two others with
    wins 1 and 0: ½. Mean 0.6, bias 0.1. Tokens: 2 and 13/3.
    """
    holed: list[list[float | None]] = [[0.5, 1.0, 0.0], [0.0, 0.5, None], [1.0, None, 0.5]]
    judged = [Judged(RANKED, [], 0.2), Judged(holed, [], None)]
    drawn = samples([["aaa", "b", "cc"], ["d" * 9, "ee", "ff"]])
    found = describe_samples("iteration 0", drawn, judged, seed=0)
    assert found["policy"] == "iteration 0"
    assert (found["prompts"], found["K"], found["triples"], found["cyclic_share"]) == (2, 3, 1, 0.0)
    assert found["gap"]["prompts"] == 1
    assert_allclose(found["gap"]["mean"], 7 / 15, rtol=0, atol=ROUNDING)
    assert_allclose(found["abstained"], 1 / 6, rtol=0, atol=ROUNDING)
    assert_allclose(found["length_bias"], 0.1, rtol=0, atol=ROUNDING)
    assert_allclose(found["tokens"]["mean"], (2 + 13 / 3) / 2, rtol=0, atol=ROUNDING)
    assert found["asymmetry"] == 0.2
    assert_allclose(found["finished_share"], 5 / 6, rtol=0, atol=ROUNDING)


def test_describe_nothing() -> None:
    found = describe_samples("start", samples([]), [], seed=0)
    assert found["abstained"] == 0
    assert [found[k] for k in ("gap", "cyclic_share", "asymmetry", "length_bias", "tokens", "finished_share")] == [
        None
    ] * 6


def page(**changes: Any) -> dict[str, Any]:
    """A summary of two prompts with two responses each, against the reference and the iterate before."""
    current, reference = samples([["aaaa", "aa"], ["b", "bb"]]), samples([["x", "x"], ["yyy", "y"]])
    judged = [Judged([[0.9, 0.7], [0.6, 0.6]]), Judged([[0.5, None], [0.1, 0.0]])]
    given: dict[str, Any] = {
        "iteration": 2,
        "prompts": ["p", [{"role": "user", "content": "q"}]],
        "current": current,
        "others": {"reference": reference, "previous": reference},
        "judged": {"reference": judged, "previous": judged},
        "training": None,
        "kl": {"reference": [[0.1, 0.3], [0.0, -0.2]], "previous": [[0.5, 0.5], [0.5, 0.5]]},
        "exact": None,
        "seed": 0,
    }
    return summary(**(given | changes))


def test_summary_by_hand() -> None:
    """Win rates: 0.7 on the first prompt, (0.5 + 0.1 + 0)/3 = 0.2 on the second. KL: (0.2 − 0.1)/2 nats."""
    found = page()
    rate = found["win_rates"]["reference"]
    assert rate == pytest.approx(rate_interval([0.7, 0.2], seed=0), abs=ROUNDING)
    assert rate["mean"] == pytest.approx(0.45, abs=ROUNDING)
    assert rate["prompts"] == 2
    assert found["win_rates"]["previous"] == rate
    assert_allclose(found["kl"]["reference"]["mean"], 0.05, rtol=0, atol=ROUNDING)
    assert found["kl"]["last"]["mean"] == 0.5
    assert set(found["kl"]) == {"reference", "last"}
    assert found["kl"]["reference"] == pytest.approx(mean_interval([0.2, -0.1]), abs=ROUNDING)
    assert found["kl"]["reference"]["low"] < 0
    assert found["lengths"]["current"] == mean_interval([3, 1.5], least=0)
    assert found["lengths"]["current"]["low"] == 0
    assert found["lengths"]["reference"]["mean"] == 1.5
    assert found["length_controlled"] == {"reference": None, "previous": None}  # two prompts are too few
    assert found["side_by_side"][1] == {
        "prompt": [{"role": "user", "content": "q"}],
        "current": "b",
        "reference": "yyy",
        "win": 0.5,
    }
    assert found["iteration"] == 2
    assert found["samples"] is found["exact"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_only_the_reference_is_shown_as_the_reference() -> None:
    other = samples([["x", "x"], ["yyy", "y"]])
    assert page(others={"previous": other}, judged={})["side_by_side"] == []


def test_without_a_judge_responses_are_still_shown() -> None:
    found = page(judged={})
    assert found["win_rates"] == {}
    assert found["length_controlled"] is None
    assert [pair["win"] for pair in found["side_by_side"]] == [None, None]


def test_a_judge_that_answers_nothing_has_no_win_rate() -> None:
    silent = [Judged([[None, None], [None, None]])] * 2
    assert page(judged={"reference": silent})["win_rates"] == {"reference": None}


def test_without_held_out_prompts_only_the_training_samples_are_told() -> None:
    drawn = samples([["a", "bb", "ccc"]])
    found = page(
        prompts=[], current=samples([]), others={}, judged={}, kl={}, training=("start", drawn, [Judged(ROCK)])
    )
    assert found["samples"]["cyclic_share"] == 1
    assert found["lengths"] == {"current": None}
    assert found["kl"] is found["length_controlled"] is None
