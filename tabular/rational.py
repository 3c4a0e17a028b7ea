r"""An equilibrium in rational numbers whose certificate has no rounding in it.

Shapes: one game of n responses; policies are lists of n `fractions.Fraction`.

A rational x with x >= 0, 1'x = 1 and A x <= 0, all checked exactly, is an equilibrium of the skew game A: the gap
2 max_y (A x)_y is 0 and not merely small. Where floats are given, they are taken as the rationals they are. The steps:

1. The interior point guesses a support S. The system A_SS z = 0, 1'z = 1 is solved in rationals; where it has several
   solutions (ties, duplicates), the free components are set to simple fractions near the guess.
2. If no guess passes the exact check, an exact simplex method with Bland's rule solves the linear program

       maximize 1'y   subject to   (A + c) y <= 1,   y >= 0,   c = max |A|,

   on integers. It starts feasible at y = 0, ends on every game, and x = c y.

Either way the answer is checked by the same function, which shares nothing with the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from numbers import Rational
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUPPORT_THRESHOLDS = (0.0, 1e-12, 1e-9, 1e-6)
DENOMINATORS = (60, 10**4, 10**8, 10**16)
"""Free components are rounded to the smallest of these denominators that passes the check."""
SKEW_TOLERANCE = 1e-9

Row = list[Fraction]


@dataclass(frozen=True)
class ExactEquilibrium:
    """An equilibrium and the outcome of its exact check.

    Attributes
    ----------
    policy : list of Fraction
        Probabilities, with sum exactly 1.
    value : Fraction
        Its win rate against its own best responder, max over y of P(y beats policy): exactly 1/2 at an equilibrium.
    gap : Fraction
        The duality gap 2 (value - 1/2), exactly 0 at an equilibrium.
    support : tuple of int
        The responses with positive probability.
    verified : bool
        Whether every inequality held exactly. `certify` returns no equilibrium for which it is False.
    """

    policy: list[Fraction]
    value: Fraction
    gap: Fraction
    support: tuple[int, ...]
    verified: bool


def certify(game: Any, policy_guess: Sequence[float] | NDArray[np.float64] | None = None) -> ExactEquilibrium:
    """Find an equilibrium in rationals and verify every inequality exactly.

    Parameters
    ----------
    game : (n, n) nested sequence or array
        Win rates P (diagonal 1/2) or the skew matrix A = P - 1/2 (diagonal 0), in Fraction, int, str ("1/3", "0.3") or
        float entries. Floats P_ij and P_ji rarely sum to 1 exactly, so for a game with floats the upper triangle
        defines the game, A_ij = P_ij - 1/2 and A_ji = -A_ij for i < j; the lower one only has to agree to 1e-9. In a
        game without floats both triangles have to agree exactly.
    policy_guess : (n,) sequence of float, optional
        An approximate equilibrium; by default that of the interior point.

    Returns
    -------
    ExactEquilibrium
        With `verified` True and `gap` 0.

    Raises
    ------
    ValueError
        If the game is not square, an entry is not a finite number, or the matrix is not a game.

    Notes
    -----
    The exact simplex keeps integers by dividing every 2 x 2 minor by the previous pivot (Edmonds, J. Res. Nat. Bur.
    Standards 71B (1967) 241). Its numbers grow with n: seconds at n = 50 with floats, where step 1 takes milliseconds.
    """
    A = _skew(game)
    n = len(A)
    if policy_guess is None:
        from nashpo.tabular.interior_point import solve_skew

        guess = solve_skew(np.array([[float(a) for a in row] for row in A]).reshape(n, n)).policy
    else:
        guess = np.asarray(policy_guess, dtype=np.float64)
        if guess.shape != (n,) or not np.isfinite(guess).all():
            raise ValueError(f"policy_guess must hold {n} finite probabilities, one for each response")
    tried: set[tuple[int, ...]] = set()
    for threshold in SUPPORT_THRESHOLDS:
        support = tuple(int(i) for i in np.flatnonzero(guess > threshold))
        if not support or support in tried:
            continue
        tried.add(support)
        found = _on_support(A, support, guess)
        if found is not None:
            return found
    return verify(A, _exact_simplex(A))


def verify(A: Sequence[Sequence[Fraction]], policy: Sequence[Fraction]) -> ExactEquilibrium:
    """Check x >= 0, 1'x = 1 and A x <= 0 in exact arithmetic.

    Parameters
    ----------
    A : (n, n) nested sequence of Fraction
        P - 1/2, skew.
    policy : sequence of n Fraction
        The point x to check.

    Returns
    -------
    ExactEquilibrium
        `verified` tells whether all inequalities hold; `gap` is exact in either case.
    """
    from flint import fmpz_mat

    n = len(A)
    scale = lcm(*(a.denominator for row in A for a in row))
    unit = lcm(*(x.denominator for x in policy))
    matrix = fmpz_mat([[int(a * scale) for a in row] for row in A])
    product = matrix * fmpz_mat([[int(x * unit)] for x in policy])
    worst = max(Fraction(int(product[i, 0]), scale * unit) for i in range(n))
    holds = worst <= 0 and all(x >= 0 for x in policy) and sum(policy) == 1
    support = tuple(i for i, x in enumerate(policy) if x != 0)
    return ExactEquilibrium(list(policy), Fraction(1, 2) + worst, 2 * worst, support, holds)


def _skew(game: Any) -> list[Row]:
    """The exact skew matrix of a game given as win rates or as A itself."""
    rows = [list(row) for row in game]
    n = len(rows)
    if n == 0 or any(len(row) != n for row in rows):
        raise ValueError(f"the game must be square with at least one response; it has {n} rows of {_lengths(rows)}")
    exact = not any(isinstance(entry, (float, np.floating)) for row in rows for entry in row)
    M = [[_fraction(entry, i, j) for j, entry in enumerate(row)] for i, row in enumerate(rows)]
    centre = M[0][0]
    if centre not in (0, Fraction(1, 2)):
        raise ValueError(f"entry (0, 0) is {rows[0][0]}: the diagonal must be 1/2 (win rates) or 0 (win rates - 1/2)")
    tolerance = Fraction(0) if exact else Fraction(SKEW_TOLERANCE)
    for i in range(n):
        for j in range(i, n):
            if abs(M[i][j] + M[j][i] - 2 * centre) > tolerance:
                total = f"must sum to {2 * centre}" + ("" if exact else f" within {SKEW_TOLERANCE}")
                raise ValueError(f"entries ({i}, {j}) = {rows[i][j]} and ({j}, {i}) = {rows[j][i]} {total}")
    A = [[Fraction(0)] * n for _ in range(n)]
    for i in range(n):
        for j in range(i + 1, n):
            A[i][j] = M[i][j] - centre
            A[j][i] = -A[i][j]
    return A


def _lengths(rows: list[list[Any]]) -> str:
    return "length " + ", ".join(str(length) for length in sorted({len(row) for row in rows}))


def _fraction(entry: Any, i: int, j: int) -> Fraction:
    try:
        if isinstance(entry, (np.integer, np.floating)):
            entry = entry.item()
        if isinstance(entry, (Rational, float, str)):
            return Fraction(entry)
    except (ValueError, OverflowError, ZeroDivisionError):
        pass
    raise ValueError(f"entry ({i}, {j}) is {entry!r}: give a Fraction, an integer, a finite float or a text like '1/3'")


def _on_support(A: list[Row], support: tuple[int, ...], guess: NDArray[np.float64]) -> ExactEquilibrium | None:
    """An equilibrium on the guessed support, or None where there is none near the guess."""
    for values in _null_points(A, support, guess):
        total = sum(values)
        if total == 0:
            continue
        policy = [Fraction(0)] * len(A)
        for i, value in zip(support, values, strict=True):
            policy[i] = value / total
        candidate = verify(A, policy)
        if candidate.verified:
            return candidate
    return None


def _null_points(A: list[Row], support: tuple[int, ...], guess: NDArray[np.float64]) -> Any:
    """Points of the null space of A_SS: the only one with sum 1 where there is one, else some near the guess."""
    from flint import fmpq, fmpq_mat

    k = len(support)
    block = [[fmpq(A[i][j].numerator, A[i][j].denominator) for j in support] for i in support]
    if k % 2 == 1:
        bordered = fmpq_mat([[*row, fmpq(1)] for row in block] + [[fmpq(1)] * k + [fmpq(0)]])
        try:
            solution = bordered.solve(fmpq_mat([[fmpq(0)]] * k + [[fmpq(1)]]))
        except ZeroDivisionError:
            pass
        else:
            yield [_to_fraction(solution[i, 0]) for i in range(k)]
            return
    reduced, rank = fmpq_mat(block).rref()
    pivots = [next(j for j in range(k) if reduced[i, j] != 0) for i in range(rank)]
    free = [j for j in range(k) if j not in set(pivots)]
    for denominator in DENOMINATORS:
        values = [Fraction(0)] * k
        for j in free:
            values[j] = Fraction(float(guess[support[j]])).limit_denominator(denominator)
        for i, pivot in enumerate(pivots):
            values[pivot] = -sum((_to_fraction(reduced[i, j]) * values[j] for j in free), Fraction(0))
        yield values


def _to_fraction(q: Any) -> Fraction:
    return Fraction(int(q.p), int(q.q))


def _exact_simplex(A: list[Row]) -> Row:
    """Simplex on max 1'y, (A + c) y <= 1, y >= 0, from y = 0; the policy c y.

    The dictionary is basic_i = (T[i, n] - sum_j T[i, j] nonbasic_j) / pivot, its last row the objective.
    """
    n = len(A)
    c = max(abs(a) for row in A for a in row) or Fraction(1)
    scale = lcm(c.denominator, *(a.denominator for row in A for a in row))
    T = np.empty((n + 1, n + 1), dtype=object)
    for i in range(n):
        for j in range(n):
            T[i, j] = int((A[i][j] + c) * scale)
        T[i, n] = 1
        T[n, i] = -1
    T[n, n] = 0
    pivot = 1
    basic, nonbasic = list(range(n, 2 * n)), list(range(n))
    bland = False
    while True:
        negative = [j for j in range(n) if T[n, j] < 0]
        if not negative:
            break
        # The steepest column goes fast but may cycle where nothing improves: there Bland's rule takes over.
        entering = min(negative, key=lambda j: nonbasic[j]) if bland else min(negative, key=lambda j: T[n, j])
        rows = [i for i in range(n) if T[i, entering] > 0]
        leaving = min(rows, key=lambda i: (Fraction(T[i, n], T[i, entering]), basic[i]))
        bland = T[leaving, n] == 0
        row, column, p = T[leaving].copy(), T[:, entering].copy(), T[leaving, entering]
        T = (T * p - np.outer(column, row)) // pivot
        T[leaving], T[:, entering], T[leaving, entering] = row, -column, pivot
        pivot = p
        basic[leaving], nonbasic[entering] = nonbasic[entering], basic[leaving]
    y = [Fraction(0)] * n
    for i, name in enumerate(basic):
        if name < n:
            y[name] = Fraction(T[i, n], pivot)
    total = sum(y, Fraction(0))
    return [value / total for value in y]
