"""Intervals of a mean over few prompts: by hand, held against other ways to compute them, and how often they cover."""

import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import beta, ttest_1samp

from nashpo.llm.intervals import DRAWS, mean_interval, rate_interval, unseen_weights

ROUNDING = 1e-12


def ends(found: dict | None) -> list[float]:
    assert found is not None
    return [found["low"], found["high"]]


@pytest.mark.parametrize(("n", "won"), [(2, 1), (6, 6), (6, 0), (6, 2), (30, 27)])
def test_of_zeros_and_ones_it_is_clopper_and_pearsons(n: int, won: int) -> None:
    """Sums of uniform weights are Beta distributed.

    The standard error of a quantile of DRAWS numbers is sqrt(q (1 − q)/DRAWS)/f with the density f there; 5 of them are
    allowed: the test fails for less than 1e-5 of the seeds.
    """
    exact = [beta(won, n - won + 1) if won else None, beta(won + 1, n - won) if won < n else None]
    found = ends(rate_interval([1.0] * won + [0.0] * (n - won), seed=0))
    for law, q, end, bound in zip(exact, (0.025, 0.975), found, (0.0, 1.0), strict=True):
        if law is None:
            assert end == bound
            continue
        error = np.sqrt(q * (1 - q) / DRAWS) / law.pdf(law.ppf(q))
        assert_allclose(end, law.ppf(q), rtol=0, atol=5 * error)


def test_rates_of_two_prompts_by_hand() -> None:
    """¼ and ¾: the lower end has weights of (0, ¼, ¾), whose sum s = (w₁ + 3 w₂)/4 has P(s <= c) = 16 c²/3 for c <= ¼.

    It is the part of the simplex below the line 4 c = w₁ + 3 w₂, a triangle of legs 4 c and 4 c/3, twice its area. At
    2.5 % c = sqrt(0.075)/4 = 0.0685 with density 32 c/3 = 0.73: a standard error of 0.0021, and 0.011 is 5 of them.
    """
    low, high = ends(rate_interval([0.25, 0.75], seed=1))
    assert_allclose(low, np.sqrt(0.075) / 4, rtol=0, atol=0.011)
    assert_allclose(high, 1 - np.sqrt(0.075) / 4, rtol=0, atol=0.011)


def test_rates_of_many_prompts_have_the_normal_width() -> None:
    """4000 values with standard deviation ½: 2 · 1.96 · ½/√4000 = 0.0310, and 1/4001 more for the unseen prompt.

    An end's standard error is 0.027 of that of the mean, 0.0079: 0.0015 is 5 of the difference of two.
    """
    values = [float(k % 2) for k in range(4000)]
    found = rate_interval(values, seed=3)
    low, high = ends(found)
    assert found is not None
    assert (found["mean"], found["prompts"]) == (0.5, 4000)
    assert_allclose(high - low, 0.0312, rtol=0, atol=0.0015)
    assert rate_interval(values, seed=3) == found
    assert rate_interval(values, seed=4) != found


def test_rates_turn_around() -> None:
    values = np.random.default_rng(0).random(7)
    one, two = ends(rate_interval(values, seed=2)), ends(rate_interval(1 - values, seed=2))
    assert_allclose(one, [1 - two[1], 1 - two[0]], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("values", [[1.0] * 6, [0.0] * 3, [0.3] * 5, [0.1, 0.7, 0.15]])
def test_rates_stay_within_bounds_and_around_their_mean(values: list[float]) -> None:
    found = rate_interval(values, seed=5)
    assert found is not None
    assert 0 <= found["low"] <= found["mean"] <= found["high"] <= 1
    assert found["low"] < found["high"]


def test_a_rate_outside_its_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1.25 is outside \[0, 1\]; use mean_interval"):
        rate_interval([0.5, 1.25], seed=0)


def test_mean_is_students() -> None:
    """3, 4, 8: mean 5, s² = 7, t with 2 degrees of freedom 4.302653: 5 ± 4.302653 √(7/3)."""
    found = mean_interval([3.0, None, 4.0, 8.0])
    half = 4.302653 * np.sqrt(7 / 3)
    assert found is not None
    assert (found["mean"], found["prompts"]) == (5, 3)
    assert_allclose(ends(found), [5 - half, 5 + half], rtol=0, atol=1e-5)  # t to six decimals
    assert ends(mean_interval([3.0, 4.0, 8.0], least=0)) == [0, ends(found)[1]]
    drawn = np.random.default_rng(0).normal(size=9)
    scipy = ttest_1samp(drawn, 0).confidence_interval(0.95)
    assert_allclose(ends(mean_interval(drawn)), [scipy.low, scipy.high], rtol=0, atol=ROUNDING)
    assert ends(mean_interval([2.0, 2.0])) == [2, 2]


def test_without_and_with_one_number() -> None:
    assert rate_interval([None, None], seed=0) is rate_interval([], seed=0) is None
    assert mean_interval([np.nan]) is mean_interval([]) is None
    one = {"mean": 0.25, "low": 0.25, "high": 0.25, "prompts": 1}
    assert rate_interval([0.25, None], seed=0) == mean_interval([0.25]) == one


def test_weights_are_uniform_on_the_simplex(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean 1/4 and variance 3/80 each; 5 standard errors of 20,000 draws are 0.007 and 0.0025. No draw is lost."""
    monkeypatch.setattr("nashpo.llm.intervals._AT_ONCE", 4 * 3000)
    parts = list(unseen_weights(0, 3, 20_000))
    assert [len(part) for part in parts] == [3000] * 6 + [2000]
    weights = np.concatenate(parts)
    assert_allclose(weights.sum(axis=1), 1, rtol=0, atol=ROUNDING)
    assert_allclose(weights.mean(axis=0), 1 / 4, rtol=0, atol=0.007)
    assert_allclose(weights.var(axis=0), 3 / 80, rtol=0, atol=0.0025)


RATES = {
    "uniform": (lambda rng, size: rng.random(size), 0.5),
    "coin": (lambda rng, size: (rng.random(size) < 0.9).astype(float), 0.9),
    "skewed": (lambda rng, size: rng.beta(0.3, 1.7, size), 0.15),
}


@pytest.mark.parametrize("n", [3, 6, 30])
@pytest.mark.parametrize("law", RATES)
def test_rates_are_covered(law: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With probability 0.95 or more.

    Of 200 samples that are covered with probability 0.95 each, fewer than 178 are with probability 2e-4, hence one of
    the nine cases fails for less than 0.2 % of the seeds. The percentile bootstrap covers 0.74 and 0.87 of the uniform
    law's with 3 and 6 prompts, 0.27 and 0.47 of the coin's.
    """
    monkeypatch.setattr("nashpo.llm.intervals.DRAWS", 1000)
    draw, mean = RATES[law]
    found = [ends(rate_interval(values, seed=0)) for values in draw(np.random.default_rng([7, n]), (200, n))]
    assert sum(low <= mean <= high for low, high in found) >= 178


@pytest.mark.parametrize("n", [3, 6, 30])
def test_means_are_covered(n: int) -> None:
    """Of 4000 normal samples 3800 ± 69 (5 standard errors, 6e-7): exact for this law, at any n."""
    found = [ends(mean_interval(values)) for values in np.random.default_rng([8, n]).normal(size=(4000, n))]
    assert abs(sum(low <= 0 <= high for low, high in found) - 3800) <= 69


def test_neither_module_needs_torch() -> None:
    """Those that a report of a run shares with its evaluation."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import nashpo.llm.intervals, nashpo.llm.response_games, nashpo.figures.training_report"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
