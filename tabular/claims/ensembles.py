"""Seeded games of all families with starts, references and equilibria, and the trajectories of rules on them.

Shapes: a cohort is G games of n responses; ``start, reference, equilibrium: (G, n)`` are probabilities, a trajectory
of T updates has log-policies (T + 1, G, n), the entry t being π_{t+1}.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from nashpo.core.policies import kl, log_from_probabilities
from nashpo.core.rules.rule import Rule
from nashpo.tabular.claims.claim import Floats, Numbers
from nashpo.tabular.equilibrium import nash
from nashpo.tabular.families import FAMILIES
from nashpo.tabular.game import Game
from nashpo.tabular.play import play, starting_points

SEED = 20_250_131
SIZES = (3, 5, 2, 8, 3, 4, 16, 7, 3, 6, 40, 5, 3, 12, 9, 24)
LONGEST = 1000

Draw = Callable[[int, np.random.Generator], dict[str, Any] | None]


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _seeded(n: int, rng: np.random.Generator, **more: Any) -> dict[str, Any]:
    return {"n": n, "seed": int(rng.integers(2**31)), **more}


ARGUMENTS: dict[str, Draw] = {
    "uniform_random": _seeded,
    "tournament": _seeded,
    "cyclic": lambda n, rng: (
        {"n": n - 1 + n % 2, "margin": float(rng.uniform(0.1, 1)), "dummies": 1 - n % 2} if n >= 3 else None
    ),
    "interior": lambda n, rng: _seeded(n, rng) if n >= 3 else None,
    "dominance": lambda n, rng: {"n": n},
    "bradley_terry": lambda n, rng: _seeded(n, rng, scale=log_uniform(rng, 0.3, 5)),
    "annotators": lambda n, rng: _seeded(n, rng, annotators=int(rng.integers(2, 6))),
    "low_rank_cyclic": lambda n, rng: _seeded(n, rng, rank=int(rng.integers(1, 3)), scale=log_uniform(rng, 0.5, 8)),
    "slow": lambda n, rng: {"n": n, "ratio": float(rng.uniform(0.2, 0.9))} if n in (3, 5, 7, 9) else None,
    "comal": lambda n, rng: {} if n == 3 else None,
}
"""How each family's arguments are drawn for games of n responses; None where it has no game of that size."""


@dataclass(frozen=True)
class Cohort:
    """G games of one size and what a rule starts from in each.

    Attributes
    ----------
    game : Game
        Of batch shape (G,).
    families : tuple of str
    start, reference : (G, n)
        Probabilities of full support.
    closed_form : (G, n)
        An equilibrium where a formula gives it, NaN elsewhere.
    interior : (G,)
        Whether that equilibrium is the only one and has full support.
    """

    game: Game
    families: tuple[str, ...]
    start: Floats
    reference: Floats
    closed_form: Floats
    interior: np.ndarray

    @cached_property
    def equilibrium(self) -> Floats:
        """An equilibrium (G, n): the closed form where there is one, else solved to a gap of about 1e-15."""
        known = ~np.isnan(self.closed_form[:, :1])
        return np.where(known, self.closed_form, nash(self.game).policy)

    @property
    def log_start(self) -> Floats:
        """log π_1, (G, n)."""
        return log_from_probabilities(self.start)

    @property
    def D(self) -> Numbers:
        """max_y log 1/π_1(y) in nats, (G,)."""
        return np.max(-self.log_start, axis=-1)

    def starting_at(self, start: Floats) -> "Cohort":
        """The same games with another start."""
        return Cohort(self.game, self.families, start, self.reference, self.closed_form, self.interior)

    def where(self, chosen: np.ndarray) -> "Cohort":
        """The games that a bool array (G,) chooses."""
        families = tuple(f for f, c in zip(self.families, chosen, strict=True) if c)
        parts = (self.start, self.reference, self.closed_form, self.interior)
        return Cohort(Game(self.game.P[chosen]), families, *(part[chosen] for part in parts))


def random_policies(rng: np.random.Generator, games: int, n: int) -> Floats:
    """Half of them uniform, half softmax of normal logits of random spread, (games, n)."""
    spread = np.array([log_uniform(rng, 0.2, 3) for _ in range(games)]) * (rng.random(games) < 0.5)
    logits = spread[:, None] * rng.standard_normal((games, n))
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def draw_cohort(n: int, rng: np.random.Generator, repeats: int = 2) -> Cohort:
    """``repeats`` games of every family that has games of n responses."""
    tables, families, equilibria, interior = [], [], [], []
    for name, draw in [item for item in ARGUMENTS.items() for _ in range(repeats)]:
        arguments = draw(n, rng)
        if arguments is None:
            continue
        family = FAMILIES[name]
        tables.append(family.make(**arguments).P)
        families.append(name)
        policy = np.full(n, np.nan) if family.equilibrium is None else family.equilibrium(**arguments)
        equilibria.append(policy)
        only = family.unique is not None and family.unique(**arguments)
        interior.append(only and bool(np.all(policy > 0)))
    games = len(tables)
    return Cohort(
        game=Game(np.stack(tables)),
        families=tuple(families),
        start=random_policies(rng, games, n),
        reference=random_policies(rng, games, n),
        closed_form=np.stack(equilibria),
        interior=np.array(interior),
    )


@lru_cache(maxsize=256)
def cohort(index: int) -> Cohort:
    """The cohort of a number; its size follows `SIZES`."""
    return draw_cohort(SIZES[index % len(SIZES)], np.random.default_rng([SEED, index]))


class Played:
    """A rule's trajectory on a cohort.

    Parameters
    ----------
    rule : Rule
    cohort : Cohort
    steps : int
        T.
    keep : sequence of str
        Policies to keep besides ``current``.
    """

    def __init__(self, rule: Rule, cohort: Cohort, steps: int, keep: tuple[str, ...] = ()) -> None:
        self.rule: Any = rule
        self.cohort = cohort
        self.T = steps
        self.A = cohort.game.A
        form = rule.form()
        origins = starting_points(cohort.game, cohort.start, cohort.reference, None, form)
        run = play(
            rule,
            cohort.game,
            steps,
            start=cohort.start,
            reference=cohort.reference,
            record="all",
            keep=("current", *keep),
        )
        self.gap_average: Floats = run.gap_average
        self.gap_last: Floats = run.gap_last
        slots = dict(form.slots)
        self.log: dict[str, Floats] = {}
        for name, rows in run.kept.items():
            origin = slots.get(name)
            # A policy that lives for one iteration has no value before the first.
            self.log[name] = rows if origin is None else np.concatenate([origins[origin][None], rows])

    @property
    def games(self) -> int:
        """G."""
        return self.A.shape[0]

    @property
    def T_column(self) -> Numbers:
        """1 … T as (T, 1): the numbers of updates."""
        return np.arange(1, self.T + 1, dtype=np.float64)[:, None]

    @cached_property
    def policy(self) -> Floats:
        """π_1 … π_{T+1}, (T + 1, G, n)."""
        return np.exp(self.log["current"])

    @cached_property
    def gain(self) -> Floats:
        """Aπ_1 … Aπ_{T+1}, the win rates minus ½, (T + 1, G, n)."""
        return gains(self.A, self.policy)

    @cached_property
    def excess(self) -> Floats:
        """⟨e_y − π_t, g_t⟩ for every response y and t = 1 … T, (T, G, n); the instantaneous regrets."""
        gain = self.gain[:-1]
        return gain - np.sum(gain * self.policy[:-1], axis=-1, keepdims=True)

    @cached_property
    def regret(self) -> Floats:
        """Σ_{s <= t} ⟨e_y − π_s, g_s⟩ for every response y, (T, G, n)."""
        return np.cumsum(self.excess, axis=0)

    @cached_property
    def surprise(self) -> Floats:
        """KL(e_y ‖ π_1) = log 1/π_1(y), (G, n)."""
        return -self.log["current"][0]

    @cached_property
    def step_kl(self) -> Floats:
        """KL(π_t ‖ π_{t+1}), (T, G)."""
        return kl(self.log["current"][:-1], self.log["current"][1:])

    @cached_property
    def move(self) -> Floats:
        """‖π_{t+1} − π_t‖_1, (T, G)."""
        return np.abs(np.diff(self.policy, axis=0)).sum(axis=-1)


def gains(A: Floats, policy: Floats) -> Floats:
    """Aπ for A (G, n, n) and policies (T, G, n), as one matrix product per game."""
    return np.swapaxes(np.matmul(np.swapaxes(policy, 0, 1), np.swapaxes(A, -1, -2)), 0, 1)


def spread(values: Floats) -> Numbers:
    """range = max − min over responses."""
    return np.max(values, axis=-1) - np.min(values, axis=-1)


def best(values: Floats) -> Numbers:
    """max over responses."""
    return np.max(values, axis=-1)


def cohort_numbers(quick: bool, full: int, few: int) -> range:
    """Numbers of the cohorts of an ensemble."""
    return range(few if quick else full)


def horizon(rng: np.random.Generator, quick: bool) -> int:
    """T, log-uniform up to `LONGEST` (a fifth of it in quick mode)."""
    longest = LONGEST // 5 if quick else LONGEST
    return int(round(log_uniform(rng, longest / 4, longest)))
