r"""Seeded families of games, with their equilibria in closed form where there is one.

Shapes: every generator returns a `Game` with ``P: (*batch, n, n)``; ``closed_form`` returns policies ``(*batch, n)``.
Everything is numpy, drawn from ``numpy.random.default_rng(seed)``: the same arguments give the same game.

Which family separates what: on `bradley_terry` and `dominance` multiplicative weights at fixed step size also shows
a gap of order 1/T, so only `cyclic` and `interior` games (step size tuned per T) tell SPPO's rate from ONPO's; `slow`
games show that a last iterate may need arbitrarily long even where the average is fast.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nashpo.tabular.game import Game
from nashpo.tabular.win_rates import bradley_terry_win_rates

Floats = NDArray[np.float64]
Batch = int | tuple[int, ...]


def uniform_random(n: int = 10, seed: int = 0, batch: Batch = ()) -> Game:
    r"""Independent uniform win rates, :math:`P_{ij} \sim U[0, 1]` for i < j.

    No closed form. The equilibrium is unique with probability 1 and its support is odd [1]_.

    References
    ----------
    .. [1] I. Kaplansky, "A contribution to von Neumann's theory of games", Annals of Mathematics 46 (1945).
    """
    return Game(_from_upper(_generator(seed).random(_shape(n, batch, n))))


def tournament(n: int = 10, seed: int = 0, batch: Batch = ()) -> Game:
    r"""Fair coin per pair: :math:`P_{ij} \in \{0, 1\}` for i < j, diagonal 1/2.

    No closed form. The equilibrium is unique and its support is odd [1]_.

    References
    ----------
    .. [1] D. C. Fisher and J. Ryan, "Optimal strategies for a generalized 'scissors, paper, and stone' game",
       American Mathematical Monthly 99 (1992).
    """
    return Game(_from_upper(_generator(seed).integers(0, 2, _shape(n, batch, n)).astype(np.float64)))


def cyclic(n: int = 3, margin: float = 1.0, dummies: int = 0) -> Game:
    r"""Generalized rock-paper-scissors: each of n responses beats the (n - 1)/2 that follow it in a circle.

    :math:`P_{ij} = (1 + m)/2` for :math:`(j - i) \bmod n \in \{1, \dots, (n-1)/2\}`. The uniform policy on the circle
    is an equilibrium, the only one unless there are dummies: these tie with every response, so that any mixture of
    the uniform policy and of dummies is an equilibrium too (the game that breaks last-iterate convergence proofs).

    Parameters
    ----------
    n : odd int >= 3
        Responses on the circle.
    margin : float in (0, 1]
        m, the winner's win rate minus the loser's.
    dummies : int >= 0
        Responses added at the end; the game has n + dummies of them.
    """
    if n < 3 or n % 2 == 0:
        raise ValueError(f"n is {n}, but a cyclic game needs an odd n >= 3")
    _check_between("margin", margin, 0.0, 1.0)
    if dummies < 0:
        raise ValueError(f"dummies is {dummies}, but must be >= 0")
    P = np.full((n + dummies, n + dummies), 0.5)
    P[:n, :n] += 0.5 * margin * _circulant_signs(n)
    return Game(P)


def interior(n: int = 3, seed: int = 0, batch: Batch = ()) -> Game:
    r"""Random game with a full-support equilibrium.

    A random skew matrix B is projected, :math:`A = (I - 1 q^\top) B (I - q 1^\top)`, so that :math:`A q = 0` for a
    q drawn from the Dirichlet(2, ..., 2) law; A is scaled to a largest entry of 1/2. For odd n the equilibrium q is
    unique with probability 1; for even n it is not (a skew matrix has even rank: its null space is a plane at least).
    """
    return _interior(n, seed, batch)[0]


def dominance(n: int = 10) -> Game:
    """Response 0 beats every other with probability 1, the others tie: the equilibrium is response 0, uniquely.

    The counterexample to the bound printed with ONPO's Theorem 2 (arXiv:2502.16852).
    """
    _shape(n, ())
    P = np.full((n, n), 0.5)
    P[0, 1:], P[1:, 0] = 1.0, 0.0
    return Game(P)


def bradley_terry(n: int = 10, seed: int = 0, scale: float = 1.0, batch: Batch = ()) -> Game:
    r"""Transitive preferences of a normal reward: :math:`P_{ij} = \sigma(r_i - r_j)`, :math:`r_i \sim N(0, s^2)` nats.

    The equilibrium is the best response, uniquely. The reward is kept in `Game.reward`.

    References
    ----------
    .. [1] R. A. Bradley and M. E. Terry, "Rank analysis of incomplete block designs I", Biometrika 39 (1952).
    """
    _check_between("scale", scale, 0.0, np.inf)
    reward = scale * _generator(seed).standard_normal(_shape(n, batch))
    return Game(bradley_terry_win_rates(np, reward), reward=reward)


def annotators(n: int = 10, annotators: int = 3, seed: int = 0, scale: float = 4.0, batch: Batch = ()) -> Game:
    r"""Mean of several Bradley-Terry annotators: :math:`P_{ij} = \frac1K \sum_k \sigma(r^k_i - r^k_j)`.

    Each annotator is transitive, the population is not (Condorcet cycles), and no reward explains it. No closed form.
    ``scale`` is the standard deviation of the rewards in nats.
    """
    if annotators < 1:
        raise ValueError(f"annotators is {annotators}, but must be >= 1")
    _check_between("scale", scale, 0.0, np.inf)
    rewards = scale * _generator(seed).standard_normal((annotators, *_shape(n, batch)))
    return Game(bradley_terry_win_rates(np, rewards).mean(axis=0))


def low_rank_cyclic(n: int = 10, rank: int = 1, seed: int = 0, scale: float = 4.0, batch: Batch = ()) -> Game:
    r"""Preference embedding: :math:`P = \sigma\big(s\,(a b^\top - b a^\top)/\sqrt r\big)`, a, b normal of shape (n, r).

    The logits are skew of rank 2r, the general preference embedding of [1]_. No closed form.

    References
    ----------
    .. [1] Y. Zhang et al., "Beyond Bradley-Terry models: a general preference model for language model alignment",
       arXiv:2410.02197.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}, but must be >= 1")
    _check_between("scale", scale, 0.0, np.inf)
    a, b = _generator(seed).standard_normal((2, *_shape(n, batch, rank)))
    logits = scale / np.sqrt(rank) * (a @ np.swapaxes(b, -1, -2))
    logits = logits - np.swapaxes(logits, -1, -2)
    small = np.exp(-np.abs(logits))
    small = small / (1 + small)
    return Game(np.where(logits < 0, small, 1 - small))


def slow(n: int = 3, ratio: float = 0.1) -> Game:
    r"""Adversarially slow: a cycle with geometric margins, near ties exactly where the equilibrium plays.

    :math:`A_{ij} \propto S_{ij} / (q_i q_j)` with :math:`q_i \propto \rho^i` and S the signs of the cyclic game; the
    largest margin, between the two responses played least, is 1/2, and the margin of responses 0 and 1 is
    :math:`\tfrac12 \rho^{2n-4}`. As S 1 = 0, q is the equilibrium, unique and of full support. At constant step size
    the last iterate of ONPO crawls along an edge for a number of steps of order 1/margin and then overshoots: with
    n = 3, :math:`\rho = 0.1`, :math:`\eta = 1/2` its gap is 0.1 after 30,000 steps from the uniform policy, while the
    average's is 1e-4. For 2 x 2 bimatrix games the effect is proved in [1]_, for every learner that does not forget.

    Parameters
    ----------
    n : odd int >= 3
    ratio : float in (0, 1]
        :math:`\rho`; 1 is the cyclic game. Margins below 1e-10 are refused, since P near 1/2 would not resolve them.

    References
    ----------
    .. [1] Y. Cai et al., "Fast last-iterate convergence of learning in games requires forgetful algorithms",
       NeurIPS 2024, arXiv:2406.10631.
    """
    if n < 3 or n % 2 == 0:
        raise ValueError(f"n is {n}, but a slow game needs an odd n >= 3")
    _check_between("ratio", ratio, 0.0, 1.0)
    smallest = 0.5 * ratio ** (2 * n - 4)
    if smallest < 1e-10:
        raise ValueError(f"ratio {ratio} with n {n} gives a margin of {smallest:.1e}; keep ratio^(2n - 4) above 2e-10")
    # Scaled by the largest pair n-1, n-2, so that every power is at most 1.
    powers = ratio ** (np.arange(n)[::-1].astype(np.float64))
    return Game(0.5 + 0.5 * _circulant_signs(n) * np.outer(powers, powers) / ratio)


def comal() -> Game:
    r"""The 3 x 3 game of COMAL: :math:`P(b \succ a) = P(c \succ b) = 0.9`, :math:`P(a \succ c) = 0.8`.

    Unique equilibrium (4, 3, 4)/11: in a 3-cycle each response is played in proportion to the margin between the
    other two.

    References
    ----------
    .. [1] Y. Liu et al., "COMAL: a convergent meta-algorithm for aligning LLMs with general preferences",
       arXiv:2410.23223.
    """
    return Game([[0.5, 0.1, 0.8], [0.9, 0.5, 0.1], [0.2, 0.9, 0.5]], names=("a", "b", "c"))


@dataclass(frozen=True)
class Family:
    """A family of games: its name, its generator, and its equilibrium where a formula gives it.

    Attributes
    ----------
    name : str
    make : callable
        Keyword arguments to `Game`; all have defaults.
    equilibrium : callable or None
        The same keyword arguments to an equilibrium (*batch, n), in closed form.
    unique : callable or None
        The same keyword arguments to whether that equilibrium is the only one (with probability 1).
    """

    name: str
    make: Callable[..., Game]
    equilibrium: Callable[..., Floats] | None = None
    unique: Callable[..., bool] | None = None

    @property
    def has_closed_form(self) -> bool:
        return self.equilibrium is not None

    @property
    def parameters(self) -> dict[str, Any]:
        """Names of the arguments and their defaults."""
        return {name: p.default for name, p in inspect.signature(self.make).parameters.items()}

    @property
    def summary(self) -> str:
        """First line of the generator's documentation."""
        return (inspect.getdoc(self.make) or "").partition("\n")[0]


def closed_form(name: str, **arguments: Any) -> Floats:
    """Equilibrium of a family's game in closed form.

    Parameters
    ----------
    name : str
        A key of `FAMILIES`.
    **arguments
        Those of its generator.

    Returns
    -------
    array (*batch, n)
        An equilibrium; the only one where ``FAMILIES[name].unique(**arguments)``.

    Raises
    ------
    KeyError
        No such family.
    ValueError
        The family has no closed form.
    """
    family = FAMILIES[name]
    if family.equilibrium is None:
        known = ", ".join(key for key, other in FAMILIES.items() if other.has_closed_form)
        raise ValueError(f"the family {name!r} has no closed-form equilibrium; these have one: {known}")
    return family.equilibrium(**arguments)


def _cyclic_equilibrium(n: int = 3, margin: float = 1.0, dummies: int = 0) -> Floats:
    return np.concatenate([np.full(n, 1.0 / n), np.zeros(dummies)])


def _interior_equilibrium(n: int = 3, seed: int = 0, batch: Batch = ()) -> Floats:
    return _interior(n, seed, batch)[1]


def _dominance_equilibrium(n: int = 10) -> Floats:
    return np.eye(1, n)[0]


def _bradley_terry_equilibrium(n: int = 10, seed: int = 0, scale: float = 1.0, batch: Batch = ()) -> Floats:
    reward = np.asarray(bradley_terry(n, seed, scale, batch).reward)
    return np.eye(n)[np.argmax(reward, axis=-1)]


def _slow_equilibrium(n: int = 3, ratio: float = 0.1) -> Floats:
    q = ratio ** np.arange(n, dtype=np.float64)
    return q / q.sum()


def _comal_equilibrium() -> Floats:
    return np.array([4.0, 3.0, 4.0]) / 11.0


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("uniform_random", uniform_random),
        Family("tournament", tournament),
        Family("cyclic", cyclic, _cyclic_equilibrium, lambda n=3, margin=1.0, dummies=0: dummies == 0),
        Family("interior", interior, _interior_equilibrium, lambda n=3, seed=0, batch=(): n % 2 == 1),
        Family("dominance", dominance, _dominance_equilibrium, lambda n=10: True),
        Family("bradley_terry", bradley_terry, _bradley_terry_equilibrium, lambda **_: True),
        Family("annotators", annotators),
        Family("low_rank_cyclic", low_rank_cyclic),
        Family("slow", slow, _slow_equilibrium, lambda n=3, ratio=0.1: True),
        Family("comal", comal, _comal_equilibrium, lambda: True),
    )
}
"""All families by name; names of generators and keys are the same."""


def _generator(seed: int) -> np.random.Generator:
    if seed < 0:
        raise ValueError(f"seed is {seed}, but must be >= 0")
    return np.random.default_rng(seed)


def _shape(n: int, batch: Batch, *last: int) -> tuple[int, ...]:
    if n < 1:
        raise ValueError(f"n is {n}, but a game needs at least one response")
    contexts = (batch,) if isinstance(batch, int) else tuple(batch)
    if any(k < 1 for k in contexts):
        raise ValueError(f"batch is {batch}, but every axis must be >= 1")
    return (*contexts, n, *last)


def _check_between(name: str, value: float, low: float, high: float) -> None:
    if not (low < value <= high and np.isfinite(value)):
        limits = f"in ({low:g}, {high:g}]" if np.isfinite(high) else f"> {low:g} and finite"
        raise ValueError(f"{name} is {value}, but must be {limits}")


def _from_upper(P: Floats) -> Floats:
    """Antisymmetric table from the part above the diagonal."""
    upper = np.triu(np.ones(P.shape[-2:], dtype=bool), 1)
    return np.where(upper, P, np.where(upper.T, 1 - np.swapaxes(P, -1, -2), 0.5))


def _circulant_signs(n: int) -> Floats:
    """+1 where the column follows the row by 1 ... (n - 1)/2 places on the circle, -1 where it precedes it."""
    ahead = (np.arange(n)[None, :] - np.arange(n)[:, None]) % n
    return np.where(ahead == 0, 0.0, np.where(ahead <= (n - 1) // 2, 1.0, -1.0))


def _interior(n: int, seed: int, batch: Batch) -> tuple[Game, Floats]:
    shape = _shape(n, batch)
    if n == 2:
        raise ValueError("n is 2, but every 2 x 2 game with a full-support equilibrium is a tie; take n = 1 or n >= 3")
    rng = _generator(seed)
    q = rng.dirichlet(np.full(n, 2.0), size=shape[:-1])
    B = rng.standard_normal((*shape, n))
    D = np.eye(n) - q[..., None, :]
    A = D @ (B - np.swapaxes(B, -1, -2)) @ np.swapaxes(D, -1, -2)
    A = 0.5 * (A - np.swapaxes(A, -1, -2))
    largest = np.abs(A).max(axis=(-2, -1), keepdims=True)
    A = A / np.where(largest == 0, 1.0, 2 * largest)  # n = 1: nothing to scale
    return Game(0.5 + A), q
