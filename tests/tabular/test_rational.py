"""The rational certificate: exact by exact comparison, so no test here has a tolerance."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nashpo.tabular import rational
from nashpo.tabular.rational import certify, verify

F = Fraction


def skew(upper: np.ndarray) -> np.ndarray:
    upper = np.triu(upper, 1)
    return upper - upper.T


def check_by_hand(game: list[list[Fraction]], policy: list[Fraction]) -> None:
    """Win rates of plain fractions, without the module's own check."""
    assert sum(policy) == 1
    assert all(x >= 0 for x in policy)
    for row in game:
        assert sum((p * x for p, x in zip(row, policy, strict=True)), F(0)) <= F(1, 2)


def exact_win_rates(A: np.ndarray) -> list[list[Fraction]]:
    """Win rates of the game that floats stand for: the upper triangle as it is, the lower one by symmetry."""
    n = len(A)
    exact = [[F(1, 2)] * n for _ in range(n)]
    for i in range(n):
        for j in range(i + 1, n):
            exact[i][j] = F(1, 2) + F(float(A[i, j]))
            exact[j][i] = F(1, 2) - F(float(A[i, j]))
    return exact


def test_rock_paper_scissors_in_fractions() -> None:
    """Margins 1/10, 1/5, 2/5 give (4, 1, 2) / 7 exactly, a number that no float holds."""
    h = F(1, 2)
    P = [[h, h - F(1, 5), h + F(1, 10)], [h + F(1, 5), h, h - F(2, 5)], [h - F(1, 10), h + F(2, 5), h]]
    found = certify(P)
    assert found.policy == [F(4, 7), F(1, 7), F(2, 7)]
    assert (found.value, found.gap, found.support, found.verified) == (h, 0, (0, 1, 2), True)
    assert certify([["1/2", "0.3", "0.6"], ["0.7", "1/2", "0.1"], ["0.4", "0.9", "1/2"]]).policy == found.policy


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 20, 50])
def test_random_games_in_floats(n: int) -> None:
    A = skew(np.random.default_rng(n).random((n, n)) - 0.5)
    found = certify(A)
    assert found.verified
    assert found.gap == 0
    check_by_hand(exact_win_rates(A), found.policy)


DEGENERATE = {
    "all equal": np.zeros((6, 6)),
    "dominance": skew(np.full((7, 7), 0.25)),
    "weak dominance": np.array([[0, 0, 0.5], [0, 0, 0.25], [-0.5, -0.25, 0]]),
    "even cycle": np.array([[0, 1, 0, -1], [-1, 0, 1, 0], [0, -1, 0, 1], [1, 0, -1, 0]]) / 2,
    "duplicated rock": np.array([[0, 0, -1, 1], [0, 0, -1, 1], [1, 1, 0, -1], [-1, -1, 1, 0]]) / 2,
    "tie beside a cycle": np.array([[0, 0, 0, 0], [0, 0, -1, 1], [0, 1, 0, -1], [0, -1, 1, 0]]) / 2,
    "huge margins": skew(np.sign(np.subtract.outer(np.arange(5), np.arange(5))) * (0.5 - 2.0**-54)),
    "tiny margins": skew(np.random.default_rng(0).normal(size=(9, 9)) * 1e-300),
    "scales apart": skew(np.random.default_rng(1).choice([-1e-15, 1e-15, -0.5, 0.5, 1e-8], (12, 12))),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_games(name: str) -> None:
    A = DEGENERATE[name]
    found = certify(A)
    assert found.verified
    assert found.gap == 0
    check_by_hand(exact_win_rates(A), found.policy)


@pytest.mark.parametrize("name", DEGENERATE)
def test_the_exact_simplex_alone(name: str) -> None:
    A = rational._skew(DEGENERATE[name])
    assert verify(A, rational._exact_simplex(A)).verified


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_wrong_guesses_are_mended(seed: int, n: int) -> None:
    """A guess of nothing but noise: the simplex answers, and the check is the same."""
    rng = np.random.default_rng(seed)
    A = skew(rng.integers(-2, 3, (n, n)) / 4)
    found = certify(A, policy_guess=rng.dirichlet(np.ones(n)))
    assert found.verified
    check_by_hand(exact_win_rates(A), found.policy)


def test_free_components_become_simple_fractions() -> None:
    """The doubled rock can be split anyhow; the certificate says 1/6 and 1/6, no quotient of two long integers."""
    assert certify(DEGENERATE["duplicated rock"]).policy == [F(1, 6), F(1, 6), F(1, 3), F(1, 3)]


def test_verify_refuses() -> None:
    A = rational._skew([["0", "1/2"], ["-1/2", "0"]])
    assert verify(A, [F(1), F(0)]).verified
    loser = verify(A, [F(0), F(1)])
    assert not loser.verified
    assert (loser.value, loser.gap) == (1, 1)
    assert not verify(A, [F(1, 2), F(0)]).verified
    assert not verify(A, [F(2), F(-1)]).verified
    nearly = verify(A, [1 - F(1, 10**40), F(1, 10**40)])
    assert not nearly.verified
    assert nearly.gap == F(1, 10**40)


@pytest.mark.parametrize("n", [3, 10, 31])
def test_the_upper_triangle_of_floats_is_the_game(n: int) -> None:
    """Win rates below 1/2 in the upper triangle: 1 - P_ij is then rounded, and the two triangles differ in 1e-17."""
    rng = np.random.default_rng(n)
    upper = np.triu(rng.random((n, n)) ** 3, 1)
    P = upper + np.tril(1 - upper.T, -1) + np.eye(n) / 2
    assert any(F(P[i, j]) + F(P[j, i]) != 1 for i in range(n) for j in range(i))
    exact = [[F(1, 2) if i == j else F(P[i, j]) if i < j else 1 - F(P[j, i]) for j in range(n)] for i in range(n)]
    found = certify(P)
    assert found.verified
    check_by_hand(exact, found.policy)


def test_floats_need_only_agree_to_rounding() -> None:
    assert F(0.3) + F(0.7) != 1
    assert certify([[0.5, 0.3], [0.7, 0.5]]).policy == [0, 1]
    with pytest.raises(ValueError, match="must sum to 1"):
        certify([[F(1, 2), F(0.3)], [F(0.7), F(1, 2)]])


@pytest.mark.parametrize(
    ("game", "message"),
    [
        ([], "square"),
        ([[F(1, 2), F(0)]], "square"),
        ([[F(1, 3)]], r"entry \(0, 0\) is 1/3"),
        ([["1/2", "x"], ["0", "1/2"]], r"entry \(0, 1\) is 'x'"),
        ([[0.5, float("nan")], [0.5, 0.5]], r"entry \(0, 1\) is nan"),
        ([["1/2", "1/3"], ["1/3", "1/2"]], r"\(0, 1\) = 1/3 and \(1, 0\) = 1/3 must sum to 1"),
        ([[0.5, 0.3], [0.6, 0.5]], "within 1e-09"),
        ([[0.5, 0.3], [0.7, 0.4]], r"\(1, 1\)"),
    ],
)
def test_bad_input(game: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        certify(game)
    with pytest.raises(ValueError, match="policy_guess"):
        certify([[0.5]], policy_guess=[0.5, 0.5])
