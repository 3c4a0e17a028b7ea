"""The game of K responses to one prompt: every number worked out by hand, and the counts held against a plain loop."""

from itertools import combinations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from nashpo.llm.response_games import cycles, longer_wins, mean_win, sample_gap, unanswered

ROUNDING = 1e-12
ABC = ("a", "b", "c")
ROCK = [[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]]
RANKED: list[list[float | None]] = [[0.5, 0.9, 0.8], [0.1, 0.5, 0.6], [0.2, 0.4, 0.5]]
Wins = list[list[float | None]]


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
    gaps = [sample_gap(np.array(ROCK)[np.ix_(row, row)]) for row in drawn]
    assert_allclose(np.mean(np.array(gaps, dtype=float)), 0.36, rtol=0, atol=0.02)


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


def by_loop(wins: Wins, texts: list[str]) -> tuple[tuple[int, int], float | None, tuple[int, int]]:
    """`cycles`, `longer_wins` and `unanswered` with lengths 0, 1, 2, 0, …, triple by triple and pair by pair."""
    cyclic = strict = 0
    for i, j, k in combinations(range(len(wins)), 3):
        ij, jk, ki = wins[i][j], wins[j][k], wins[k][i]
        if len({texts[i], texts[j], texts[k]}) < 3 or ij is None or jk is None or ki is None or 0.5 in (ij, jk, ki):
            continue
        strict += 1
        cyclic += (ij > 0.5) == (jk > 0.5) == (ki > 0.5)
    pairs = [(i, j) for i, j in combinations(range(len(wins)), 2) if texts[i] != texts[j]]
    rates = [p if i % 3 > j % 3 else 1 - p for i, j in pairs if (p := wins[i][j]) is not None and i % 3 != j % 3]
    missing = sum(wins[i][j] is None for i, j in pairs)
    return (cyclic, strict), sum(rates) / len(rates) if rates else None, (missing, len(pairs))


@pytest.mark.parametrize("antisymmetric", [True, False])
def test_they_are_what_loops_count(antisymmetric: bool) -> None:
    """400 games of up to 9 responses with ties, abstentions and equal texts; counts are equal, not close."""
    rng = np.random.default_rng(int(antisymmetric))
    seen = set()
    for _ in range(400):
        K = int(rng.integers(0, 10))
        drawn = rng.choice([0.0, 0.2, 0.5, 0.8, 1.0, np.nan], (K, K), p=[0.2, 0.2, 0.1, 0.2, 0.2, 0.1])
        if antisymmetric:
            drawn = np.where(np.triu(np.ones((K, K)), 1) > 0, drawn, 1 - drawn.T)
            np.fill_diagonal(drawn, 0.5)
        wins: Wins = [[None if np.isnan(p) else p for p in row] for row in drawn.tolist()]
        texts = [str(name) for name in rng.integers(0, 3 * K + 1, K)]
        counted, rate, missing = by_loop(wins, texts)
        for given in (wins, drawn):
            assert cycles(given, texts) == counted
            assert unanswered(given, texts) == missing
            assert longer_wins(given, [k % 3 for k in range(K)], texts) == pytest.approx(rate, abs=ROUNDING)
        seen.add((counted[0] > 0, counted[1] > counted[0], missing[0] > 0))
    assert len(seen) >= 6  # of the 8 kinds of games


def test_many_responses() -> None:
    """300 responses that are ranked but for one cycle of three: 300 · 299 · 298/6 triples."""
    wins = np.where(np.triu(np.ones((300, 300)), 1) > 0, 0.75, 0.25)
    np.fill_diagonal(wins, 0.5)
    wins[10, 12], wins[12, 10] = 0.25, 0.75
    assert cycles(wins, range(300)) == (1, 4_455_100)


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
