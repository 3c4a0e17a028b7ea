"""Uniqueness and support of the equilibrium, on games where both are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nashpo.tabular.interior_point import solve_skew
from nashpo.tabular.linear_program import solve_highs
from nashpo.tabular.uniqueness import support_and_uniqueness


def skew(upper: np.ndarray) -> np.ndarray:
    upper = np.triu(upper, 1)
    return upper - np.swapaxes(upper, -1, -2)


ROCK_PAPER_SCISSORS = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 2
DOUBLED = ROCK_PAPER_SCISSORS[np.ix_([0, 0, 1, 2], [0, 0, 1, 2])]
TIE_BESIDE_A_CYCLE = np.zeros((4, 4))
TIE_BESIDE_A_CYCLE[1:, 1:] = ROCK_PAPER_SCISSORS


def test_unique() -> None:
    support, unique = support_and_uniqueness(ROCK_PAPER_SCISSORS, np.full(3, 1 / 3))
    assert unique.shape == ()
    assert unique
    assert support.all()
    dominance = skew(np.full((5, 5), 0.3))
    support, unique = support_and_uniqueness(dominance, solve_skew(dominance).policy)
    assert unique
    assert support.tolist() == [True, False, False, False, False]
    assert support_and_uniqueness(np.zeros((1, 1)), np.ones(1))[1]


@pytest.mark.parametrize(
    ("A", "equilibria"),
    [
        (np.zeros((3, 3)), [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]]),
        (DOUBLED, [[1 / 3, 0, 1 / 3, 1 / 3], [1 / 6, 1 / 6, 1 / 3, 1 / 3]]),
        (TIE_BESIDE_A_CYCLE, [[1, 0, 0, 0], [0, 1 / 3, 1 / 3, 1 / 3], [1 / 4] * 4]),
        (np.array([[0, 0, 0.5], [0, 0, 0.25], [-0.5, -0.25, 0]]), [[1, 0, 0], [0.5, 0.5, 0]]),
    ],
)
def test_not_unique_from_whichever_equilibrium(A: np.ndarray, equilibria: list[list[float]]) -> None:
    """Vertices, interior points and pure points of one set of equilibria all give the same verdict."""
    for x in [*np.array(equilibria, dtype=float), solve_skew(A).policy]:
        assert (A @ x).max() <= 1e-13
        assert not support_and_uniqueness(A, x)[1]


@pytest.mark.parametrize("n", [2, 3, 6, 15, 40, 100])
def test_random_tournaments_and_uniform_games_are_unique(n: int) -> None:
    """Every {0, 1} tournament (Fisher and Ryan 1992), and almost every game with continuous win rates."""
    rng = np.random.default_rng(n)
    A = np.concatenate([skew(rng.choice([-0.5, 0.5], (5, n, n))), skew(rng.random((5, n, n)) - 0.5)])
    support, unique = support_and_uniqueness(A, solve_skew(A).policy)
    assert unique.all()
    assert (support.sum(axis=-1) % 2 == 1).all()


def test_duplicates_of_supported_responses_are_never_unique() -> None:
    rng = np.random.default_rng(0)
    for n in (3, 7, 30):
        A = skew(rng.random((n, n)) - 0.5)
        supported = int(solve_skew(A).policy.argmax())
        index = [*range(n), supported]
        doubled = A[np.ix_(index, index)]
        assert not support_and_uniqueness(doubled, solve_skew(doubled).policy)[1]


def test_verdict_on_small_games_by_enumeration() -> None:
    """Unique exactly where all linear objectives have the same optimum over the equilibria: 2 n programs tell."""
    from scipy.optimize import linprog

    rng = np.random.default_rng(9)
    verdicts = []
    for _ in range(40):
        n = int(rng.integers(2, 6))
        A = skew(rng.integers(-1, 2, (n, n)) / 2)
        spread = 0.0
        for i in range(n):
            ends = []
            for sign in (1.0, -1.0):
                objective = np.zeros(n)
                objective[i] = sign
                result = linprog(objective, A_ub=A, b_ub=np.zeros(n), A_eq=np.ones((1, n)), b_eq=[1.0])
                ends.append(sign * result.fun)
            spread = max(spread, ends[1] - ends[0])
        verdicts.append(spread < 1e-6)
        assert bool(support_and_uniqueness(A, solve_skew(A).policy)[1]) == verdicts[-1]
    assert 5 < sum(verdicts) < 35


def test_masks_and_batches() -> None:
    A = np.stack([np.zeros((4, 4)), TIE_BESIDE_A_CYCLE]).reshape(1, 2, 4, 4)
    mask = np.array([[[True, False, False, False], [False, True, True, True]]])
    policy = solve_skew(A, mask).policy
    support, unique = support_and_uniqueness(A, policy, mask)
    assert unique.tolist() == [[True, True]]
    assert (support == mask).all()
    assert not support_and_uniqueness(A, policy)[1].any()


@pytest.mark.parametrize("solve", [solve_highs, lambda A: solve_skew(A).policy])
def test_any_solver_will_do(solve: Callable[[np.ndarray], np.ndarray]) -> None:
    assert support_and_uniqueness(ROCK_PAPER_SCISSORS, solve(ROCK_PAPER_SCISSORS))[1]
    assert not support_and_uniqueness(DOUBLED, solve(DOUBLED))[1]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="square"):
        support_and_uniqueness(np.zeros((2, 3)), np.ones(2))
    with pytest.raises(ValueError, match="policy must have the shape"):
        support_and_uniqueness(np.zeros((2, 2)), np.ones(3))
    with pytest.raises(ValueError, match="mask must have the shape"):
        support_and_uniqueness(np.zeros((2, 2)), np.ones(2) / 2, np.ones(3, bool))
