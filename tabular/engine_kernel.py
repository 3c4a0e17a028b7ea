"""The compiled loop of `nashpo.tabular.engine`: four operations (mean, gain, step, copy) driven by tables of numbers.

Shapes: B games of n responses, V versions of policies; arrays are C-contiguous. The loop releases the GIL, so that the
games can be split over threads.

A slot holds the number of a version, and gains are remembered by the version that they are about: a copy moves numbers
only, and what is known about a policy moves along. A version that no slot holds is free to be written.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nashpo.tabular.compiled import compiled as cached

ABSENT = -1
"""The version of a slot that holds no policy."""
WIN, REWARD = 0, 1
"""Kinds of payoff."""
SOURCE, TARGET, OLD, EVERY = 0, 1, 2, 3
"""Columns of a copy."""
FINE, NO_CURRENT, NO_BASE, NO_ON, NO_KEPT = 0, 1, 2, 3, 4
"""How a run ended: an absent policy may not be played, read as a base, regressed on, or kept."""
TRIANGLE_FROM = 128
"""From this n on a matrix leaves the first cache, and reading half of it pays."""


class Games(NamedTuple):
    """What is played: ``A`` (B, n, n), skew, with zeros at responses that do not exist; ``reward`` (B, n)."""

    A: np.ndarray
    reward: np.ndarray


class Program(NamedTuple):
    """A form in numbers, see `nashpo.core.tables.Tables`; with M policies, S stages, G payoffs, C copies.

    ``base`` (rows, S, M) and ``weights`` (rows, S, G) have one row, or one per iteration of the call. ``writes`` and
    ``on`` (S), ``kinds`` and ``about`` (G), ``copies`` (C, 4): source, target, old, every. ``keep`` (K) policies are
    recorded at the steps ``record_at`` (R). Policies are numbers in 0 … M − 1, of which the last is the average.
    """

    base: np.ndarray
    weights: np.ndarray
    writes: np.ndarray
    on: np.ndarray
    kinds: np.ndarray
    about: np.ndarray
    copies: np.ndarray
    current: int
    record_at: np.ndarray
    keep: np.ndarray


class Memory(NamedTuple):
    """Where the games stand: log-policies, probabilities and win gains (B, V, n) of each version, whether its gain is
    ``known`` (B, V), which version each policy has, ``held`` (B, M), and the ``total`` (B, n) of the played policies.
    The last version is the average; its log-policy is not used."""

    log: np.ndarray
    prob: np.ndarray
    gain: np.ndarray
    known: np.ndarray
    held: np.ndarray
    total: np.ndarray


class Records(NamedTuple):
    """Duality gaps (R, B) and kept policies (K, R, B, n)."""

    gap_average: np.ndarray
    gap_last: np.ndarray
    kept: np.ndarray


def compiled(*flags: str, inline: bool = True) -> Any:
    """A kernel that may use these floating-point liberties.

    −inf is a legal number here, hence never ``fastmath=True``, which may assume that there is none. Inlined by default:
    with ten responses a call costs as much as the work.
    """
    return cached(fastmath=set(flags), forceinline=inline)


REORDER = ("contract", "reassoc", "arcp")
"""Sums may be taken in any order: on vectors."""


@intrinsic
def _bits(typing: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(types.float64), generate


@intrinsic
def _from_bits(typing: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


LOG2_E = 1 / math.log(2)
LN2_HIGH = float.fromhex("0x1.62e42fefa3800p-1")
LN2_LOW = float.fromhex("0x1.ef35793c76730p-45")
"""ln 2 in two parts: an integer below 2^11 times the first is exact."""
ROUNDER = 1.5 * 2.0**52
"""x + ROUNDER − ROUNDER is x rounded to an integer, which also stands in the low bits of x + ROUNDER."""
SMALLEST = -708.0
"""Below this exponent a probability is smaller than 3.4e-308 and counts as 0."""
_2, _3, _4, _5, _6, _7, _8, _9, _10, _11, _12, _13 = (1 / math.factorial(k) for k in range(2, 14))


@compiled("contract")
def exponential(x: float) -> float:
    """exp(x) for x <= 0 to about one rounding (2.2e-16), and 0 below −708.

    exp(x) = 2^k exp(r) with |r| <= ln 2 / 2 and the Taylor series of order 13. Unlike the C library's function it has
    no branch and no call, so that a loop over responses runs on vectors.
    """
    y = max(x, SMALLEST)
    shifted = y * LOG2_E + ROUNDER
    k = shifted - ROUNDER
    r = (y - k * LN2_HIGH) - k * LN2_LOW
    s = _8 + r * (_9 + r * (_10 + r * (_11 + r * (_12 + r * _13))))
    s = 1.0 + r * (1.0 + r * (_2 + r * (_3 + r * (_4 + r * (_5 + r * (_6 + r * (_7 + r * s)))))))
    s *= _from_bits((_bits(shifted) + 1023) << 52)
    return s if x >= SMALLEST else 0.0


@compiled("contract")
def _weigh(log: np.ndarray, prob: np.ndarray, v: int, top: float) -> None:
    for j in range(log.shape[1]):
        prob[v, j] = exponential(log[v, j] - top)


@compiled(*REORDER)
def add(target: np.ndarray, v: int, factor: float, source: np.ndarray, w: int) -> None:
    """target[v] += factor · source[w]."""
    for j in range(target.shape[1]):
        target[v, j] += factor * source[w, j]


@compiled(*REORDER)
def largest(values: np.ndarray, v: int) -> float:
    """max_y values[v, y]; four maxima side by side, since one would wait for itself."""
    n = values.shape[1]
    a = b = c = d = -np.inf
    row = values[v]
    for j in range(0, n - 3, 4):
        a, b, c, d = max(a, row[j]), max(b, row[j + 1]), max(c, row[j + 2]), max(d, row[j + 3])
    for j in range(n - n % 4, n):
        a = max(a, row[j])
    return max(max(a, b), max(c, d))


@compiled(*REORDER)
def normalize(log: np.ndarray, prob: np.ndarray, v: int) -> None:
    """Turn the logits log[v] into a log-policy, and write its probabilities."""
    n = log.shape[1]
    top = largest(log, v)
    _weigh(log, prob, v, top)
    total = 0.0
    for j in range(n):
        total += prob[v, j]
    scale = 1.0 / total
    shift = top + np.log(total)
    for j in range(n):
        prob[v, j] *= scale
        log[v, j] -= shift


@compiled(*REORDER, inline=False)
def _gain_by_rows(A: np.ndarray, prob: np.ndarray, gain: np.ndarray, v: int) -> None:
    n = A.shape[0]
    for i in range(n):
        total = 0.0
        for j in range(n):
            total += A[i, j] * prob[v, j]
        gain[v, i] = total


@compiled(*REORDER, inline=False)
def _gain_by_triangle(A: np.ndarray, prob: np.ndarray, gain: np.ndarray, v: int) -> None:
    """A_ij with i < j serves row i as A_ij π_j and row j as −A_ij π_i, so that half of A is read; four rows at once."""
    n = A.shape[0]
    for j in range(n):
        gain[v, j] = 0.0
    for i in range(0, n - 3, 4):
        for k in range(i, i + 4):
            total = 0.0
            for j in range(i, i + 4):
                total += A[k, j] * prob[v, j]
            gain[v, k] += total
        p0, p1, p2, p3 = prob[v, i], prob[v, i + 1], prob[v, i + 2], prob[v, i + 3]
        row0, row1, row2, row3 = A[i, i + 4 :], A[i + 1, i + 4 :], A[i + 2, i + 4 :], A[i + 3, i + 4 :]
        right, below = prob[v, i + 4 :], gain[v, i + 4 :]
        s0 = s1 = s2 = s3 = 0.0
        for j in range(right.shape[0]):
            p, a0, a1, a2, a3 = right[j], row0[j], row1[j], row2[j], row3[j]
            s0 += a0 * p
            s1 += a1 * p
            s2 += a2 * p
            s3 += a3 * p
            below[j] -= a0 * p0 + a1 * p1 + a2 * p2 + a3 * p3
        gain[v, i] += s0
        gain[v, i + 1] += s1
        gain[v, i + 2] += s2
        gain[v, i + 3] += s3
    for k in range(n - n % 4, n):
        for j in range(n - n % 4, n):
            gain[v, k] += A[k, j] * prob[v, j]


@compiled(*REORDER)
def ask(A: np.ndarray, prob: np.ndarray, gain: np.ndarray, known: np.ndarray, v: int) -> None:
    """The win gain A π of version v, if it is not known."""
    if known[v]:
        return
    if A.shape[0] < TRIANGLE_FROM:
        _gain_by_rows(A, prob, gain, v)
    else:
        _gain_by_triangle(A, prob, gain, v)
    known[v] = True


@compiled(*REORDER)
def average_policy(total: np.ndarray, b: int, prob: np.ndarray, known: np.ndarray, count: int) -> None:
    """Write the mean of the policies that game b played so far into the last version."""
    average = prob.shape[0] - 1
    scale = 1.0 / count
    for j in range(total.shape[1]):
        prob[average, j] = total[b, j] * scale
    known[average] = False


@compiled(*REORDER)
def duality_gap(gain: np.ndarray, v: int) -> float:
    """2 max_y (A π)(y) >= 2 πᵀAπ = 0, so that a response that does not exist, whose gain is 0, adds nothing."""
    return 2.0 * largest(gain, v)


@compiled(*REORDER, inline=False)
def play_games(
    first: int,
    stop: int,
    begin: int,
    end: int,
    record: int,
    games: Games,
    program: Program,
    memory: Memory,
    records: Records,
) -> tuple[int, int, int, int]:
    """Iterations begin … end − 1 of games first … stop − 1, with ``record`` steps recorded before.

    Returns
    -------
    status, t, stage, policy
        Where an absent policy was needed; status 0 where none was. It is the same for every game.
    """
    base, weights, writes, on = program.base, program.weights, program.writes, program.on
    kinds, about, copies, current = program.kinds, program.about, program.copies, program.current
    names, average = memory.held.shape[1], memory.log.shape[1] - 1
    found = np.empty(copies.shape[0], np.int64)
    uses = np.empty(average + 2, np.int64)  # the last entry is that of ABSENT
    for b in range(first, stop):
        A, held, known = games.A[b], memory.held[b], memory.known[b]
        log, prob, gain = memory.log[b], memory.prob[b], memory.gain[b]
        for v in range(uses.shape[0]):
            uses[v] = 0
        for i in range(names):
            uses[held[i]] += 1
        recorded = record

        for t in range(begin, end):
            row = t - begin if base.shape[0] > 1 else 0
            if held[current] == ABSENT:
                return NO_CURRENT, t, 0, current
            add(memory.total, b, 1.0, prob, held[current])
            averaged = False
            for c in range(copies.shape[0]):  # what the iteration found must not be overwritten by its stages
                if copies[c, OLD] == 1 and (t + 1) % copies[c, EVERY] == 0:
                    found[c] = held[copies[c, SOURCE]]
                    uses[found[c]] += 1

            for s in range(writes.shape[0]):
                if on[s] != ABSENT and held[on[s]] == ABSENT:
                    return NO_ON, t, s, on[s]
                new = 0
                while uses[new] > 0:
                    new += 1
                for j in range(log.shape[1]):
                    log[new, j] = 0.0
                for i in range(names):
                    a = base[row, s, i]
                    if a != 0.0:
                        if held[i] == ABSENT:
                            return NO_BASE, t, s, i
                        add(log, new, a, log, held[i])
                for g in range(kinds.shape[0]):
                    weight, v = weights[row, s, g], held[about[g]]
                    if weight == 0.0 or v == ABSENT:
                        continue
                    if kinds[g] == REWARD:
                        add(log, new, weight, games.reward, b)
                        continue
                    if v == average and not averaged:
                        average_policy(memory.total, b, prob, known, t + 1)
                        averaged = True
                    ask(A, prob, gain, known, v)
                    add(log, new, weight, gain, v)
                normalize(log, prob, new)
                known[new] = False
                uses[held[writes[s]]] -= 1
                held[writes[s]] = new
                uses[new] += 1

            for c in range(copies.shape[0]):
                if copies[c, OLD] == 0 and (t + 1) % copies[c, EVERY] == 0:
                    found[c] = held[copies[c, SOURCE]]
                    uses[found[c]] += 1
            for c in range(copies.shape[0]):
                if (t + 1) % copies[c, EVERY] == 0:
                    uses[held[copies[c, TARGET]]] -= 1
                    held[copies[c, TARGET]] = found[c]

            if recorded == program.record_at.shape[0] or program.record_at[recorded] != t + 1:
                continue
            if not averaged:
                average_policy(memory.total, b, prob, known, t + 1)
            last = held[current]
            if last == ABSENT:
                return NO_KEPT, t, 0, current
            ask(A, prob, gain, known, average)
            ask(A, prob, gain, known, last)
            records.gap_average[recorded, b] = duality_gap(gain, average)
            records.gap_last[recorded, b] = duality_gap(gain, last)
            for k in range(program.keep.shape[0]):
                v = held[program.keep[k]]
                if v == ABSENT:
                    return NO_KEPT, t, 0, program.keep[k]
                for j in range(log.shape[1]):
                    records.kept[k, recorded, b, j] = prob[v, j] if v == average else log[v, j]
            recorded += 1
    return FINE, end, 0, 0
