"""Win rates at equal length, held against logistic regressions that can be solved by hand."""

import math
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose

from nashpo.llm.length_control import length_controlled, separated

FIT = 1e-6
"""GLM stops when the deviance changes by less than 1e-8: the parameters are that near to the maximum."""


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def one_pair_each(differences: list[int], rates: list[float | None]) -> dict | None:
    """Prompts with one pair of responses each, the first longer by the difference."""
    lengths = [[100 + d] for d in differences]
    return length_controlled(lengths, [[100]] * len(lengths), [[[p]] for p in rates], seed=0)


def test_two_lengths_by_hand() -> None:
    """Differences ±7, half of the prompts each: s = 7, tanh = ±t with t = tanh 1.

    Two values of the covariate saturate the model: θ + φ t = logit 0.9 and θ − φ t = logit 0.4. So
    θ = (logit 0.9 + logit 0.4)/2 = (ln 9 + ln 2/3)/2 = ln(6)/2 and σ(θ) = √6/(1 + √6) = 0.7101, where the plain win
    rate is 0.65.
    """
    found = one_pair_each([7] * 6 + [-7] * 6, [0.9] * 6 + [0.4] * 6)
    assert found is not None
    assert_allclose(found["mean"], math.sqrt(6) / (1 + math.sqrt(6)), rtol=0, atol=FIT)
    assert found["prompts"] == 12
    assert found["low"] <= found["mean"] <= found["high"]


def test_uneven_prompts_by_hand() -> None:
    """Every prompt weighs the same, however many of its pairs were answered.

    Three prompts hold two pairs, +3 each and won at 0.8; three hold one, +3 and won at 0.5: 0.65 in all, where the nine
    pairs alike would make 0.7. Six hold one, −3 and won at 0.5, and one that the judge abstained from. Then
    θ = (logit 0.65 + logit 0.5)/2; the standard deviation s of the lengths moves φ only.
    """
    lengths = [[13, 13]] * 3 + [[13]] * 3 + [[7, 99]] * 6
    wins: list[list[list[float | None]]] = [[[0.8], [0.8]]] * 3 + [[[0.5]]] * 3 + [[[0.5], [None]]] * 6
    found = length_controlled(lengths, [[10]] * 12, wins, seed=0)
    assert found is not None
    assert_allclose(found["mean"], sigmoid(logit(0.65) / 2), rtol=0, atol=FIT)


def planted(B: int, theta: float, phi: float, seed: int) -> tuple[list[list[int]], list[list[int]], np.ndarray]:
    """Lengths of two policies, the first longer by 40 tokens on average, and P of the model."""
    rng = np.random.default_rng(seed)
    mine, theirs = rng.integers(60, 260, (B, 1)), rng.integers(20, 220, (B, 1))
    difference = (mine - theirs)[:, 0].astype(float)
    logits = theta + phi * np.tanh(difference / difference.std())
    return mine.tolist(), theirs.tolist(), 1 / (1 + np.exp(-logits))


def test_planted_bias_is_taken_out_exactly() -> None:
    """Where the win rates are the model's own, the maximum is at the planted θ whatever φ is."""
    for phi in (0.0, 1.5, -2.0):
        mine, theirs, p = planted(60, theta=-0.4, phi=phi, seed=1)
        found = length_controlled(mine, theirs, [[[x]] for x in p.tolist()], seed=0)
        assert found is not None
        assert_allclose(found["mean"], sigmoid(-0.4), rtol=0, atol=FIT)


def test_planted_bias_is_taken_out_of_coin_flips() -> None:
    """A judge that only likes length, φ = 2, θ = 0: the longer policy wins too often, and not at equal length.

    1000 verdicts of 0 or 1. The plain rate's standard error is below 0.016, and it is 0.6 in expectation: above 0.53
    but for 4 standard errors. σ(θ)'s is about 0.02 (the fit's own): |σ(θ) − ½| < 0.1 but for 5 of them. Both fail by
    chance with a probability below 1e-4, the interval misses ½ with one of 0.05; the seeds are fixed.
    """
    mine, theirs, p = planted(1000, theta=0.0, phi=2.0, seed=2)
    won = (np.random.default_rng(3).random(1000) < p).astype(float)
    found = length_controlled(mine, theirs, [[[x]] for x in won.tolist()], seed=0)
    assert found is not None
    assert won.mean() > 0.53
    assert abs(found["mean"] - 0.5) < 0.1
    assert found["low"] < 0.5 < found["high"]
    assert found["high"] - found["low"] < 0.2


def test_turned_around_it_is_one_minus() -> None:
    mine, theirs, p = planted(40, theta=0.7, phi=1.0, seed=4)
    rates = np.clip(p + np.random.default_rng(5).normal(0, 0.1, 40), 0, 1).tolist()
    one = length_controlled(mine, theirs, [[[x]] for x in rates], seed=0)
    two = length_controlled(theirs, mine, [[[1 - x]] for x in rates], seed=0)
    assert one is not None
    assert two is not None
    assert_allclose([two["mean"], two["low"], two["high"]], [1 - one[k] for k in ("mean", "high", "low")], atol=FIT)


def test_all_ties_are_one_half() -> None:
    found = one_pair_each(list(range(-6, 6)), [0.5] * 12)
    assert found is not None
    assert_allclose([found["mean"], found["low"], found["high"]], 0.5, rtol=0, atol=FIT)


@pytest.mark.parametrize(
    ("differences", "rates"),
    [
        (list(range(12)), [1.0] * 12),  # one side wins everything
        (list(range(12)), [0.0] * 12),
        ([5] * 12, [0.3, 0.7] * 6),  # lengths that say nothing
        (list(range(12)), [0.0] * 6 + [1.0] * 6),  # the longer one always wins: φ is infinite
        (list(range(12)), [1.0] * 6 + [0.0] * 6),
        (list(range(12)), [0.0] * 6 + [0.5] + [1.0] * 5),  # all but one pair are separated by its length
        (list(range(9)), [0.3, 0.7, 0.4] * 3),  # too few prompts
        (list(range(12)), [None] * 5 + [0.3, 0.7] * 3 + [0.1]),  # too few that were judged
    ],
)
def test_what_has_no_fit_is_none(differences: list[int], rates: list[float | None]) -> None:
    assert one_pair_each(differences, rates) is None


def test_separation() -> None:
    """A threshold separates {0: loss, 1: win}; a loss above the threshold mends it."""
    x = np.array([0.0, 1.0, 2.0])
    assert separated(x, np.array([0.0, 1.0, 1.0]))
    assert separated(x, np.array([0.0, 0.2, 1.0]))
    assert not separated(x, np.array([0.0, 1.0, 0.0]))
    assert not separated(x, np.array([0.1, 1.0, 1.0]) - np.array([0, 0, 0.1]))


def test_without_statsmodels_nothing_is_invented() -> None:
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "statsmodels":
            raise ModuleNotFoundError(name)
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "statsmodels" else real(name, *rest)
sys.meta_path.insert(0, Blocked())
from nashpo.llm.length_control import length_controlled
print(length_controlled([[k] for k in range(12)], [[5]] * 12, [[[0.3 + k / 30]] for k in range(12)], 0))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "None"
