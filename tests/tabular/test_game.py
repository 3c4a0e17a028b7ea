"""`Game`: what it accepts, stores and refuses, and how it says so. Tolerances are a few float64 roundings."""

import pickle
import re
from fractions import Fraction
from typing import Any

import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.tabular.game import Game
from nashpo.tabular.win_rates import bradley_terry_win_rates, to_numpy

LIBRARIES = [np, torch, array_api_strict]
CYCLE = [[0.5, 0.9, 0.2], [0.1, 0.5, 0.9], [0.8, 0.1, 0.5]]
NAN = float("nan")


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("xp", LIBRARIES, ids=lambda xp: xp.__name__)
def test_a_game_stays_in_its_library_and_in_float64(xp: Any) -> None:
    game = Game(xp.asarray([CYCLE, CYCLE], dtype=xp.float32), weights=[1, 3], mask=[[True] * 3, [True, True, False]])
    assert game.P.dtype == xp.float64
    assert type(game.P) is type(xp.asarray([0.0]))
    assert (game.n, game.batch_shape) == (3, (2,))
    assert_allclose(to_numpy(game.weights), [0.25, 0.75], rtol=0)
    policy = xp.asarray([0.5, 0.5, 0.0], dtype=xp.float64)
    # By hand, first context: (.5 + .9)/2, (.1 + .5)/2, (.8 + .1)/2; in the second the last response is missing.
    expected = [[0.7, 0.3, 0.45], [0.7, 0.3, 0.5]]
    assert_allclose(to_numpy(game.payoff(policy)), expected, atol=1e-7)  # float32 input
    assert_allclose(to_numpy(game.win_rate(policy, policy)), [0.5, 0.5], atol=1e-15)
    assert_allclose(float(game.mean(xp.asarray([1.0, 2.0], dtype=xp.float64))), 1.75, rtol=1e-15)
    assert_array_equal(to_numpy(game.select(1).P), to_numpy(game.P)[1])


@pytest.mark.parametrize("xp", LIBRARIES, ids=lambda xp: xp.__name__)
def test_numbers_survive_the_change_of_library(xp: Any) -> None:
    reward = np.array([[0.0, 1.0, -2.0], [0.3, 0.0, 5.0]])
    game = Game(
        bradley_terry_win_rates(np, reward), [1, 2], [[1 == 1] * 3, [True, False, True]], names="abc", reward=reward
    )
    moved = game.to(xp)
    assert moved.names == game.names
    back = moved.as_numpy()
    for field in ("P", "A", "weights", "mask", "reward"):
        assert type(getattr(moved, field)) is type(xp.asarray([0.0]))
        assert_array_equal(getattr(back, field), getattr(game, field))
    assert game.as_numpy() is game


def test_lists_integers_and_booleans_are_accepted() -> None:
    assert_array_equal(Game(CYCLE).P, np.array(CYCLE))
    for wins in ([[0, 1], [0, 0]], [[False, True], [False, False]], np.array([[1, 1], [0, 1]], dtype=np.int8)):
        # An integer matrix has no way to write the diagonal 1/2.
        assert_array_equal(Game(wins).P, [[0.5, 1.0], [0.0, 0.5]])
    assert Game([[0.5]]).n == 1


def test_one_table_and_batches_of_any_depth() -> None:
    single = Game(CYCLE)
    assert single.batch_shape == ()
    assert float(single.weights) == 1.0
    assert float(single.mean(np.float64(3.0))) == 3.0
    deep = Game(np.broadcast_to(CYCLE, (2, 5, 3, 3)), weights=[[1.0], [3.0]])
    assert deep.batch_shape == (2, 5)
    assert_allclose(deep.weights, np.repeat([[0.05], [0.15]], 5, axis=1), rtol=1e-15)
    per_step = deep.mean(np.ones((7, 2, 5)))
    assert_allclose(per_step, np.ones(7), rtol=1e-15)
    assert deep.select((1, 2)).batch_shape == ()
    assert deep.select(slice(1, 2)).batch_shape == (1, 5)
    with pytest.raises(ValueError, match="last axes must be the contexts"):
        deep.mean(np.ones(5))
    with pytest.raises(IndexError):
        deep.select((0, 0, 0))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    hnp.arrays(np.float64, (4, 4), elements=st.floats(0, 1, allow_subnormal=True)),
    st.floats(-4.9e-10, 4.9e-10),
)
def test_the_stored_table_is_antisymmetric_to_the_last_bit(upper: np.ndarray, noise: float) -> None:
    """A is odd exactly, P sums to 1 to one rounding (2^-53), and a stored table is stored again unchanged.

    A and P - 1/2 differ by half of what a pair's sum misses, 3/4 * 2^-53, and by their own roundings, 2 * 2^-55.
    """
    P = np.triu(upper, 1)
    P = P + np.tril(1 - P.T, -1) + 0.5 * np.eye(4)
    game = Game(np.clip(P + noise * np.triu(np.ones((4, 4)), 1), 0, 1))
    assert_array_equal(game.A, -game.A.T)
    assert_allclose(game.P + game.P.T, 1.0, rtol=0, atol=2.0**-53)
    assert_allclose(game.A, game.P - 0.5, rtol=0, atol=1.25 * 2.0**-53)
    assert_allclose(game.P, P, rtol=0, atol=5e-10)
    assert_array_equal(Game(game.P).P, game.P)


def test_a_small_win_rate_keeps_its_digits() -> None:
    game = Game([[0.5, 1e-20], [1.0, 0.5]])
    assert game.P[0, 1] == 1e-20
    assert game.P[1, 0] == 1.0


def test_what_the_tolerance_lets_pass_is_brought_into_the_interval() -> None:
    assert_array_equal(Game([[0.5, 1 + 5e-10], [-5e-10, 0.5]]).P, [[0.5, 1.0], [0.0, 0.5]])


def test_fractions_are_kept() -> None:
    third = Fraction(1, 3)
    game = Game([[Fraction(1, 2), third, 1], [1 - third, 0.5, third], [0, 1 - third, 0.5]])
    assert game.rational is not None
    assert game.rational[0, 1] == third
    assert game.rational[2, 0] == 0
    assert_allclose(game.P[0], [0.5, 1 / 3, 1.0], rtol=1e-15)
    assert Game(CYCLE).rational is None
    skewed = Game.symmetrized([[Fraction(1, 2), third], [third, Fraction(1, 2)]])
    assert skewed.rational is not None
    assert_array_equal(skewed.rational, np.full((2, 2), Fraction(1, 2)))


def test_a_mask_hides_what_is_missing() -> None:
    P = np.array(CYCLE)
    P[2, :] = P[:, 2] = NAN
    game = Game(P, mask=[True, True, False])
    assert_array_equal(game.P, [[0.5, 0.9, 0.5], [0.1, 0.5, 0.5], [0.5, 0.5, 0.5]])
    assert_array_equal(game.A[2], np.zeros(3))
    assert Game(CYCLE, mask=[True] * 3).mask is None
    assert "ragged" in repr(game)


def test_symmetrized_takes_the_mean_and_sets_the_diagonal() -> None:
    # A judge with position bias: .8 when first, .4 when second; .5*(.8 + 1 - .4) = .7.
    game = Game.symmetrized([[0.7, 0.8], [0.4, 0.1]], names=["a", "b"])
    assert_allclose(game.P, [[0.5, 0.7], [0.3, 0.5]], rtol=1e-15)
    assert game.names == ("a", "b")
    with pytest.raises(ValueError, match="outside"):
        Game.symmetrized([[0.5, 1.2], [0.2, 0.5]])
    masked = Game.symmetrized([[0.5, NAN], [0.4, 0.5]], mask=[True, False])
    assert_array_equal(masked.P, np.full((2, 2), 0.5))


def test_a_declared_reward_is_checked_and_kept() -> None:
    reward = np.array([0.0, 2.0, -1.0])
    P = bradley_terry_win_rates(np, reward)
    # sigmoid(2) by hand: 1 / (1 + e^-2)
    assert_allclose(P[1, 0], 1 / (1 + np.exp(-2.0)), rtol=1e-15)
    game = Game(P, reward=reward)
    assert_array_equal(game.reward, reward)
    assert "Bradley-Terry" in repr(game)
    with pytest.raises(ValueError, match=r"reward does not give P: P\('a' over 'c'\) = 0\.7310585786") as error:
        Game(P, reward=[0.0, 2.0, -2.0], names="abc")
    one_line(error)
    with pytest.raises(ValueError, match="finite"):
        Game(P, reward=[0.0, np.inf, 0.0])
    ragged = Game(P, mask=[True, True, False], reward=[0.0, 2.0, NAN])
    assert ragged.reward is not None
    assert ragged.reward[2] == 0.0


def test_small_win_rates_of_a_reward_have_full_relative_precision() -> None:
    P = bradley_terry_win_rates(np, np.array([0.0, 600.0, -800.0]))
    assert_allclose(P[0, 1], np.exp(-600.0), rtol=1e-14)
    assert P[2, 1] == 0.0
    assert P[1, 2] == 1.0
    assert_allclose(P + P.T, 1.0, rtol=0, atol=1.2e-16)


REFUSED = {
    "flat": ([0.5, 0.5], {}, r"not square: shape \(2,\)"),
    "wide": ([[0.5, 0.5]], {}, r"not square: shape \(1, 2\)"),
    "empty": ([], {}, "empty"),
    "no contexts": (np.zeros((0, 2, 2)), {}, "empty"),
    "scalar": (0.5, {}, "empty"),
    "ragged list": ([[0.5, 0.5], [0.5]], {}, "ragged|one length"),
    "nan": ([[0.5, NAN], [0.5, 0.5]], {}, r"P\[0, 1\] is nan"),
    "infinite": ([[[0.5, 0.5], [float("inf"), 0.5]]], {"names": "ab"}, r"P\('b' over 'a'\) in context 0 is inf"),
    "percent": ([[50, 70], [30, 50.0]], {}, r"P\[0, 1\] = 70 lies outside \[0, 1\]; divide percentages by 100"),
    "negative": ([[0.5, -0.2], [1.2, 0.5]], {}, r"P\[\d, \d\] = .* outside \[0, 1\]$"),
    "sum": ([CYCLE, [[0.5, 0.9, 0.2], [0.1, 0.5, 0.9], [0.8, 0.4, 0.5]]], {},
            r"P\[1, 1, 2\] = 0\.9 and P\[1, 2, 1\] = 0\.4 sum to 1\.3; .*symmetrize"),
    "sum, named": ([[0.5, 0.7], [0.4, 0.5]], {"names": ["x", "y"]},
                   r"P\('x' over 'y'\) = 0\.7 and P\('y' over 'x'\) = 0\.4 sum to 1\.1.*symmetrize"),
    "diagonal": ([[0.5, 0.7], [0.3, 0.6]], {}, r"diagonal: P\[1, 1\] = 0\.6 must be 1/2.*symmetrize"),
    "just over the tolerance": ([[0.5, 0.7 + 1.1e-9], [0.3, 0.5]], {}, "sum to"),
    "weights short": ([CYCLE] * 2, {"weights": [1, 2, 3]}, r"weights have shape \(3,\), which does not fit \(2,\)"),
    "weights for one game": (CYCLE, {"weights": [1, 2]}, r"weights have shape \(2,\), which does not fit \(\)"),
    "weight negative": ([CYCLE] * 2, {"weights": [1, -2]}, r"weight\[1\] is -2"),
    "weight nan": ([CYCLE] * 2, {"weights": [NAN, 1]}, r"weight\[0\] is nan"),
    "weight infinite": ([CYCLE] * 2, {"weights": [np.inf, 1]}, r"weight\[0\] is inf"),
    "weights zero": ([CYCLE] * 2, {"weights": [0, 0]}, "weights sum to zero"),
    "mask shape": (CYCLE, {"mask": [True, False]}, "mask entries have shape"),
    "mask all false": ([CYCLE] * 2, {"mask": [[True] * 3, [False] * 3]}, "context 1 has no response"),
    "names short": (CYCLE, {"names": ["a", "b"]}, "2 names for 3 responses"),
    "names repeated": (CYCLE, {"names": ["a", "b", "a"]}, "'a' occurs twice"),
    "reward shape": (CYCLE, {"reward": [1.0, 2.0]}, "rewards have shape"),
}  # fmt: skip


@pytest.mark.parametrize(("P", "others", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("xp", LIBRARIES, ids=lambda xp: xp.__name__)
def test_bad_input_is_refused_in_one_line(P: Any, others: dict[str, Any], message: str, xp: Any) -> None:
    if xp is not np:
        try:
            P = xp.asarray(P if isinstance(P, list) else np.asarray(P).tolist(), dtype=xp.float64)
        except (TypeError, ValueError):
            pytest.skip("not an array in this library")
    with pytest.raises((ValueError, TypeError), match=message) as error:
        Game(P, **others)
    one_line(error)


@pytest.mark.parametrize(
    ("P", "others"),
    [
        ([["a", "b"], ["c", "d"]], {}),
        (np.array([[0.5, 0.7], [0.3, 0.5]], dtype=complex), {}),
        ([[0.5, None], [0.3, 0.5]], {}),
        (CYCLE, {"weights": "all"}),
        (CYCLE, {"mask": [1, 0, 1]}),
        (Game(CYCLE), {}),
    ],
)
def test_what_holds_no_real_numbers_is_a_type_error(P: Any, others: dict[str, Any]) -> None:
    with pytest.raises(TypeError) as error:
        Game(P, **others)
    one_line(error)


def test_attributes_are_read_only_and_the_game_pickles() -> None:
    game = Game(CYCLE, names="abc")
    with pytest.raises(AttributeError):
        game.P = np.zeros((3, 3))  # type: ignore[misc]
    with pytest.raises(AttributeError):
        game.extra = 1  # type: ignore[attr-defined]
    copy = pickle.loads(pickle.dumps(game))
    assert_array_equal(copy.A, game.A)
    assert copy.names == game.names
    assert re.fullmatch(r"Game\(n=3, names=\(a, b, c\), numpy\)", repr(game))
    given = np.array(CYCLE)
    kept = Game(given)
    given[0, 1] = 0.0
    assert kept.P[0, 1] == 0.9
