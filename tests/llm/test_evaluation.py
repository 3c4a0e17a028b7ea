"""What samples and judgements say about a policy: every number worked out by hand."""

import json
from typing import Any

import numpy as np
from numpy.testing import assert_allclose

from nashpo.llm.evaluation import (
    PolicySamples,
    cycles,
    describe_samples,
    interval,
    longer_wins,
    mean_win,
    sample_gap,
    summary,
    unanswered,
)
from nashpo.llm.judges.matrix import Judged

ROUNDING = 1e-12
ABC = ("a", "b", "c")
ROCK = [[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]]
RANKED: list[list[float | None]] = [[0.5, 0.9, 0.8], [0.1, 0.5, 0.6], [0.2, 0.4, 0.5]]


def samples(texts: list[list[str]], lengths: list[list[int]] | None = None) -> PolicySamples:
    counted = lengths or [[len(text) for text in row] for row in texts]
    return PolicySamples(texts, counted, [[n < 9 for n in row] for row in counted])


def test_interval_of_two_values() -> None:
    """0 and 1, one each: a resample's mean is 0, ½ or 1 with probabilities ¼, ½, ¼, so that the interval is [0, 1]."""
    assert interval([0.0, None, 1.0], seed=0) == {"mean": 0.5, "low": 0.0, "high": 1.0, "prompts": 2}


def test_interval_is_the_bootstrap_of_a_mean() -> None:
    """400 values with standard deviation ½: the interval is 2 · 1.96 · ½/20 = 0.098 wide, up to a few per cent.

    Its ends are quantiles of 2000 draws, each with a standard error of 0.025 · sqrt(0.025 · 0.975/2000)/0.00146 = 0.06
    of a standard deviation 0.025; the width errs by less than 5 · 0.085 · 0.025 = 0.011 but for 1e-6.
    """
    values = [float(k % 2) for k in range(400)]
    found = interval(values, seed=3)
    assert found is not None
    assert found["mean"] == 0.5
    assert_allclose(found["high"] - found["low"], 0.098, rtol=0, atol=0.011)
    assert interval(values, seed=3) == found
    assert interval(values, seed=4) != found


def test_interval_without_and_with_one_number() -> None:
    assert interval([None, None], seed=0) is None
    assert interval([], seed=0) is None
    assert interval([0.25], seed=0) == {"mean": 0.25, "low": 0.25, "high": 0.25, "prompts": 1}


def test_mean_win_leaves_abstentions_out() -> None:
    assert mean_win([[0.25, None], [0.75, 0.5]]) == 0.5
    assert mean_win([[None]]) is None


def test_sample_gap() -> None:
    """Ranked: the first response wins (0.5 + 0.9 + 0.8)/3 = 11/15 on average; 2 (11/15 − 1/2) = 7/15.

    Rock, paper, scissors, once each: the uniform policy is the equilibrium. With rock twice, paper wins
    (1 + 1 + ½ + 0)/4 = 5/8 and the gap is ¼.
    """
    assert_allclose(sample_gap(RANKED), 7 / 15, rtol=0, atol=ROUNDING)
    assert sample_gap(ROCK) == 0
    rock, paper, scissors = [0.5, 0.5, 0, 1], [1, 1, 0.5, 0], [0, 0, 1, 0.5]
    assert sample_gap([rock, rock, paper, scissors]) == 0.25
    assert sample_gap([[0.5, None], [None, 0.5]]) is None
    assert sample_gap([]) is None


def test_the_sample_gap_of_an_equilibrium_is_not_zero() -> None:
    """The figures of the docstring: the policy is rock, paper, scissors at equal odds, K = 5.

    Standard deviation of one gap is below 0.25: the mean of 4000 errs by less than 0.02 but for 5 standard errors.
    """
    drawn = np.random.default_rng(0).integers(0, 3, (4000, 5))
    gaps = [sample_gap(np.array(ROCK)[np.ix_(row, row)].tolist()) for row in drawn]
    assert_allclose(np.mean(np.array(gaps, dtype=float)), 0.35, rtol=0, atol=0.02)


def test_cycles() -> None:
    assert cycles(ROCK, ABC) == (1, 1)
    assert cycles(np.array(ROCK).T.tolist(), ABC) == (1, 1)  # the other way round
    assert cycles(RANKED, ABC) == (0, 1)
    assert cycles(ROCK, ("a", "b", "a")) == (0, 0)  # equal texts are one response
    tied: list[list[float | None]] = [[0.5, 0.5, 0.0], [0.5, 0.5, 1.0], [1.0, 0.0, 0.5]]
    assert cycles(tied, ABC) == (0, 0)
    unknown: list[list[float | None]] = [[0.5, None, 0.0], [None, 0.5, 1.0], [1.0, 0.0, 0.5]]
    assert cycles(unknown, ABC) == (0, 0)


def test_cycles_of_coin_flips_are_a_quarter() -> None:
    """2 of the 8 ways in which three matches end are a cycle. 12 responses have 220 triples; 40 such games 8800.

    Triples that share one match or none are independent, so that the variance is 8800 · 3/16: standard error 0.0046,
    and 0.023 is 5 of them (1e-6).
    """
    rng = np.random.default_rng(1)
    names = [str(k) for k in range(12)]
    cyclic = strict = 0
    for _ in range(40):
        upper = np.triu(rng.integers(0, 2, (12, 12)), 1).astype(float)
        wins = upper + np.tril(1 - upper.T, -1)
        c, s = cycles(np.where(np.eye(12), 0.5, wins).tolist(), names)
        cyclic, strict = cyclic + c, strict + s
    assert strict == 8800
    assert_allclose(cyclic / strict, 0.25, rtol=0, atol=0.023)


def test_longer_wins() -> None:
    """Lengths 3, 1, 2: the longer one wins 0.9, 0.8 and, of (1, 2), 0.4: 0.7 on average."""
    assert_allclose(longer_wins(RANKED, [3, 1, 2], ABC), 0.7, rtol=0, atol=ROUNDING)
    assert longer_wins(RANKED, [2, 2, 2], ABC) is None
    assert_allclose(longer_wins(RANKED, [3, 3, 2], ABC), (0.8 + 0.6) / 2, rtol=0, atol=ROUNDING)


def test_equal_texts_with_and_without_an_end_token_have_no_longer_one() -> None:
    wins: list[list[float | None]] = [[0.5, 0.5, 0.9], [0.5, 0.5, 0.9], [0.1, 0.1, 0.5]]
    assert longer_wins(wins, [2, 3, 1], ("red", "red", "blue")) == 0.9


def test_unanswered_counts_pairs_that_were_asked() -> None:
    """Four responses, two of them equal: 6 pairs, 5 of different texts, 2 of these without an answer: 2/5.

    Of all 12 entries off the diagonal 4 are missing, 1/3, which is not the share of questions.
    """
    wins: list[list[float | None]] = [
        [0.5, 0.5, None, 0.7],
        [0.5, 0.5, None, 0.7],
        [None, None, 0.5, 0.6],
        [0.3, 0.3, 0.4, 0.5],
    ]
    assert unanswered(wins, ("a", "a", "b", "c")) == (2, 5)
    assert unanswered([[0.5]], ("a",)) == (0, 0)


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
    assert_allclose([rate["mean"], rate["low"], rate["high"]], [0.45, 0.2, 0.7], rtol=0, atol=ROUNDING)
    assert rate["prompts"] == 2
    assert found["win_rates"]["previous"] == rate
    assert_allclose(found["kl"]["reference"]["mean"], 0.05, rtol=0, atol=ROUNDING)
    assert found["kl"]["last"]["mean"] == 0.5
    assert set(found["kl"]) == {"reference", "last"}
    assert found["lengths"]["current"]["mean"] == (3 + 1.5) / 2
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
