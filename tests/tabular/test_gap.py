"""Measures of a policy: by hand on COMAL's game, by brute force, per context, and what is refused.

COMAL's game P = ((½, .1, .8), (.9, ½, .1), (.2, .9, ½)); with π = (½, ½, 0) the payoffs Pπ are (.3, .7, .55).
"""

import math
from typing import Any

import array_api_strict
import numpy as np
import pytest
import torch
from array_api_compat import array_namespace
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.tabular import Game, best_response, duality_gap, families, kl_to, nash
from nashpo.tabular.testing import games, policies
from nashpo.tabular.win_rates import to_numpy

LIBRARIES = [np, torch, array_api_strict]


@pytest.mark.parametrize("xp", LIBRARIES, ids=lambda xp: xp.__name__)
def test_by_hand_in_every_library(xp: Any) -> None:
    """Best response b at .7: gap 2 · .2 = .4. At the equilibrium (4, 3, 4)/11 all payoffs are ½ and the gap is 0."""
    game = families.comal().to(xp)
    policy = xp.asarray([0.5, 0.5, 0.0])
    gap = duality_gap(game, policy)
    assert array_namespace(gap) is array_namespace(policy)
    assert_allclose(to_numpy(gap), 0.4, rtol=1e-14)
    assert int(best_response(game, policy)) == 1
    assert_allclose(to_numpy(duality_gap(game, [4 / 11, 3 / 11, 4 / 11])), 0, atol=1e-15)
    assert_allclose(to_numpy(kl_to(game, xp.asarray([1.0, 0.0, 0.0]), policy)), math.log(2), rtol=1e-15)
    assert float(kl_to(game, xp.asarray([0.0, 0.0, 1.0]), policy)) == math.inf


def test_regularized_gap_by_hand() -> None:
    """Two responses, P(a ≻ b) = 1, τ = 1, π = ref = (½, ½): 2 log(½ e^¼ + ½ e^−¼) = 2 log cosh ¼ = .061858.

    (Aπ = (¼, −¼), KL(π ‖ ref) = 0.) With ref = (¾, ¼): 2 [log(¾ e^¼ + ¼ e^−¼) + ½ log 2/3 + ½ log 2].
    """
    game = Game([[0.5, 1.0], [0.0, 0.5]])
    assert_allclose(duality_gap(game, [0.5, 0.5], tau=1.0), 2 * math.log(math.cosh(0.25)), rtol=1e-14)
    soft = math.log(0.75 * math.exp(0.25) + 0.25 * math.exp(-0.25))
    expected = 2 * (soft + 0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    assert_allclose(duality_gap(game, [0.5, 0.5], tau=1.0, reference=[0.75, 0.25]), expected, rtol=1e-14)


def test_tau_zero_is_the_plain_gap() -> None:
    game, policy = families.comal(), [0.2, 0.3, 0.5]
    assert duality_gap(game, policy, tau=0.0) == duality_gap(game, policy)


def test_contexts_and_missing_responses() -> None:
    """A response that does not exist is no best response; one policy serves all contexts."""
    contexts = np.stack([families.comal().P] * 2)
    game = Game(contexts, mask=[[True] * 3, [True, False, True]])
    policy = np.array([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]])
    # Second context, a against c only: payoffs (½ + .8)/2 and (.2 + ½)/2, so a at .65.
    assert_allclose(duality_gap(game, policy), [0.4, 0.3], rtol=1e-14)
    assert_array_equal(best_response(game, policy), [1, 0])
    assert_allclose(game.mean(duality_gap(game, policy)), 0.35, rtol=1e-14)
    both = Game(contexts)
    assert_allclose(duality_gap(both, [0.5, 0.5, 0.0]), [0.4, 0.4], rtol=1e-14)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data(), games())
def test_the_gap_is_what_the_best_deviations_earn(data: Any, game: Game) -> None:
    """max_u J(u, π) − min_v J(π, v) over pure responses that exist, from P and not from A; rounding 1e-13."""
    policy = data.draw(policies(game, full_support=False))
    exists = np.ones(policy.shape, bool) if game.mask is None else game.mask
    row = np.where(exists, (game.P @ policy[..., None])[..., 0], -np.inf).max(axis=-1)
    column = np.where(exists, (policy[..., None, :] @ game.P)[..., 0, :], np.inf).min(axis=-1)
    assert_allclose(duality_gap(game, policy), row - column, rtol=0, atol=1e-13)
    best = best_response(game, policy)
    assert np.take_along_axis(exists, best[..., None], axis=-1).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data(), games())
def test_the_regularized_gap_vanishes_at_its_equilibrium_only(data: Any, game: Game) -> None:
    reference = data.draw(policies(game))
    equilibrium = nash(game, tau=0.5, reference=reference)
    assert_allclose(duality_gap(game, equilibrium.policy, tau=0.5, reference=reference), 0, atol=1e-12)
    other = data.draw(policies(game))
    gap = duality_gap(game, other, tau=0.5, reference=reference)
    # Strong concavity: the gap is at least 2τ KL(π ‖ π*_τ) − rounding … and Pinsker makes that a distance.
    distance = np.abs(other - equilibrium.policy).sum(axis=-1)
    assert (gap >= 0.5 * distance**2 * 0.5 - 1e-12).all()


REFUSED = [
    ({"policy": [0.5, 0.5]}, r"policy has shape \(2,\), but the game has 3 responses: give one each"),
    ({"policy": [0.5, 0.6, 0.1]}, r"policy does not add up to 1 \(off by 0.2\)"),
    ({"policy": [1.5, -0.5, 0.0]}, r"policy has the negative probability -0.5"),
    ({"policy": [0.5, math.nan, 0.5]}, r"policy has an entry that is NaN or infinite"),
    ({"policy": [1.0, 0.0, 0.0], "tau": -0.1}, r"tau = -0.1 must be >= 0"),
    ({"policy": [1.0, 0.0, 0.0], "tau": math.nan}, r"tau = nan"),
    ({"policy": [1.0, 0.0, 0.0], "tau": 0.1, "reference": [0.5, 0.5, 0.0]}, r"reference gives probability 0 .*c"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_bad_input_is_refused_in_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        duality_gap(families.comal(), **arguments)
    assert "\n" not in str(error.value)
