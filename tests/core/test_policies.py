"""Log-space policies: normalization, the mirror step, divergences; zeros, huge numbers and every array library."""

import math
from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose

from nashpo.core.policies import (
    kl,
    largest_log_weight,
    log_from_probabilities,
    log_normalize,
    log_partition,
    logsumexp,
    mirror_step,
    total_variation,
)
from nashpo.tabular.win_rates import to_numpy

LIBRARIES = [np, torch, array_api_strict]
INF = float("inf")


@pytest.fixture(params=LIBRARIES, ids=lambda xp: xp.__name__)
def array(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Makes float64 arrays of each library."""
    return lambda values: request.param.asarray(values, dtype=request.param.float64)


def test_log_normalize_by_hand(array: Callable) -> None:
    """Weights 1, 3 add up to 4: probabilities ¼ and ¾; a zero weight stays zero; 1000 nats do not overflow."""
    policy = log_normalize(array([[0.0, math.log(3), -INF], [1000.0, 1000.0, 1000.0]]))
    assert_allclose(np.exp(to_numpy(policy)), [[0.25, 0.75, 0.0], [1 / 3] * 3], rtol=1e-15)
    assert_allclose(to_numpy(logsumexp(array([-1000.0, -1000.0]))), [-1000 + math.log(2)], rtol=1e-15)


def test_mirror_step_by_hand(array: Callable) -> None:
    """π = (½, ½), ref = (¼, ¾) mixed half and half, gains log 3 and 0 with weight 2.

    Weights √(½·¼) · 3² and √(½·¾) · 1 stand in the ratio 9 : √3.
    """
    base = [(0.5, array([math.log(0.5)] * 2)), (0.5, array([math.log(0.25), math.log(0.75)]))]
    policy = np.exp(to_numpy(mirror_step(base, [(2.0, array([math.log(3), 0.0]))])))
    assert_allclose(policy, np.array([9, math.sqrt(3)]) / (9 + math.sqrt(3)), rtol=1e-15)


def test_mirror_step_skips_coefficient_zero(array: Callable) -> None:
    """0 · (−inf) would be NaN: a policy or payoff of weight 0 must not be touched."""
    plain, zeros = array([math.log(0.5)] * 2), array([-INF, 0.0])
    policy = mirror_step([(1.0, plain), (0.0, zeros)], [(0.0, array([INF, INF]))])
    assert_allclose(to_numpy(policy), to_numpy(plain), rtol=1e-15)


def test_mirror_step_keeps_zeros(array: Callable) -> None:
    policy = to_numpy(mirror_step([(0.5, array([-INF, 0.0, -1.0])), (0.5, array([0.0, 0.0, 0.0]))], []))
    assert policy[0] == -INF
    assert_allclose(np.exp(policy).sum(), 1, rtol=1e-15)


def test_mirror_step_needs_a_base() -> None:
    with pytest.raises(ValueError, match="at least one base policy"):
        mirror_step([], [])


def test_mirror_step_solves_its_problem() -> None:
    """argmax ⟨π, g⟩ − Σ a KL(π ‖ π_i): no random policy does better, and the optimum's value is log Z."""
    rng = np.random.default_rng(0)
    bases = [log_normalize(rng.standard_normal(4)) for _ in range(2)]
    gain = rng.standard_normal(4)
    best = mirror_step([(0.3, bases[0]), (0.7, bases[1])], [(1.0, gain)])

    def objective(policy: np.ndarray) -> float:
        divergence = 0.3 * kl(policy, bases[0]) + 0.7 * kl(policy, bases[1])
        return float(np.sum(np.exp(policy) * gain) - divergence)

    value = float(np.log(np.sum(np.exp(0.3 * bases[0] + 0.7 * bases[1] + gain))))
    assert_allclose(objective(best), value, rtol=1e-14)
    others = [objective(log_normalize(best + 0.1 * rng.standard_normal(4))) for _ in range(200)]
    assert max(others) < value


def test_kl_by_hand(array: Callable) -> None:
    """KL((¼, ¾) ‖ (½, ½)) = ¼ log ½ + ¾ log 3/2 = −.173287 + .304099 = .130812."""
    p, q = array([math.log(0.25), math.log(0.75)]), array([math.log(0.5)] * 2)
    assert_allclose(to_numpy(kl(p, q)), 0.25 * math.log(0.5) + 0.75 * math.log(1.5), rtol=1e-14)


def test_kl_at_zeros(array: Callable) -> None:
    """0 log 0 counts 0, on both sides; a response that only the first plays makes it infinite."""
    point, half = array([0.0, -INF]), array([math.log(0.5)] * 2)
    assert_allclose(to_numpy(kl(point, half)), math.log(2), rtol=1e-15)
    assert float(kl(point, point)) == 0
    assert float(kl(half, point)) == INF


def test_log_partition_and_diameter_by_hand(array: Callable) -> None:
    """E exp(2g) with π = (¼, ¾), g = (0, ½ log 2): ¼ + ¾ · 2 = 1.75. D = log 4; masked responses do not count."""
    policy = array([math.log(0.25), math.log(0.75)])
    assert_allclose(to_numpy(log_partition(policy, array([0.0, math.log(2) / 2]), 2.0)), math.log(1.75), rtol=1e-15)
    assert_allclose(to_numpy(largest_log_weight(policy)), math.log(4), rtol=1e-15)
    masked = array([math.log(0.25), math.log(0.75), -INF])
    mask = masked > -INF
    assert_allclose(to_numpy(largest_log_weight(masked, mask)), math.log(4), rtol=1e-15)
    assert float(largest_log_weight(masked)) == INF


def test_total_variation_by_hand(array: Callable) -> None:
    """½ (|.7 − .2| + |.3 − .8|) = ½."""
    assert_allclose(to_numpy(total_variation(array([0.7, 0.3]), array([0.2, 0.8]))), 0.5, rtol=1e-15)


def test_log_from_probabilities_warns_of_nothing(array: Callable) -> None:
    with np.errstate(all="raise"):
        logs = to_numpy(log_from_probabilities(array([0.0, 1.0, 5e-324])))
    assert_allclose(logs, [-INF, 0.0, math.log(5e-324)], rtol=1e-15)


logits = hnp.arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 6)), elements=st.floats(-700, 700))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(logits, st.floats(-500, 500))
def test_normalized_policies_are_policies(values: np.ndarray, shift: float) -> None:
    """Sum 1 within rounding; a shift of 500 nats costs its own rounding, 500 · 2e-16."""
    policy = log_normalize(values)
    assert_allclose(np.exp(policy).sum(axis=-1), 1, rtol=1e-12)
    assert_allclose(log_normalize(values + shift), policy, rtol=0, atol=1e-12)
    assert (kl(policy, policy) == 0).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 6))
def test_kl_is_above_pinskers_bound(data: Any, n: int) -> None:
    """2 KL >= ‖π − ρ‖₁² = 4 TV²; slack for rounding 1e-12."""
    one, other = (log_normalize(data.draw(hnp.arrays(np.float64, n, elements=st.floats(-20, 20)))) for _ in range(2))
    assert 2 * kl(one, other) >= 4 * total_variation(np.exp(one), np.exp(other)) ** 2 - 1e-12
