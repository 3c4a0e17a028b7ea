"""The compiled engine: one kernel that executes the coefficient tables of any rule on numpy games.

Shapes: B games of n responses (the game's leading axes flattened); results as in `nashpo.tabular.simulation`. It
computes what `simulate` with an `ExactBackend` computes, up to the rounding of each step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numba
import numpy as np

from nashpo.core.policies import Array
from nashpo.core.rules.form import CURRENT, Form
from nashpo.core.tables import Tables, tables
from nashpo.tabular import engine_kernel as kernel
from nashpo.tabular.coefficients import coefficients
from nashpo.tabular.game import Game
from nashpo.tabular.simulation import Recording

KINDS = {"win": kernel.WIN, "reward": kernel.REWARD}
"""The payoffs that the kernel knows."""
_CALL = 2e8
"""Nanoseconds, very roughly, between two returns to Python, where an interrupt is noticed."""
_LONGEST = 1 << 16
_SHORTEST = 64
"""Iterations per call: at most what keeps tables of schedules small, at least what a matrix's way to cache costs."""
_THREADS_FROM = 2e6
"""Nanoseconds of work, very roughly, that starting threads is worth."""


def refusal(form: Form, game: Game) -> str | None:
    """Why the engine cannot run the form on the game, or None where it can."""
    if 0 in game.batch_shape:
        return "the game has no contexts"
    for payoff in form.payoffs:
        if payoff.kind not in KINDS:
            return f"it has no payoff of kind '{payoff.kind}' (it has {', '.join(KINDS)})"
        if payoff.kind == "reward" and game.reward is None:
            return "the game declares no reward, and the Bradley–Terry projection is not compiled"
    return None


def simulate_compiled(
    form: Form,
    game: Game,
    origins: Mapping[str, Array],
    steps: int,
    record_at: Sequence[int],
    keep: Sequence[str] = (),
    *,
    threads: int | None = None,
) -> Recording:
    """Run a form on numpy games; the compiled `nashpo.tabular.simulation.simulate` of an `ExactBackend`.

    Parameters
    ----------
    form : Form
        One that `refusal` does not refuse.
    game : Game
        Numpy arrays.
    origins : mapping origin -> log-policy (..., n)
        For ``start``, ``reference`` and ``behavior``.
    steps : int
        Number of updates.
    record_at : increasing sequence of int
        Steps to record, between 1 and ``steps``.
    keep : sequence of str
        Policies kept at the recorded steps: slots, names that live for one iteration, or ``average``.
    threads : int, optional
        Threads that share the games; by default those that numba may use (NUMBA_NUM_THREADS) if the work is worth it.

    Returns
    -------
    Recording

    Raises
    ------
    ValueError
        If the horizon is shorter, a base leaves the simplex, or an absent policy is read, played or kept.
    """
    form.check_horizon(steps)
    reason = refusal(form, game)
    if reason is not None:
        raise ValueError(f"the compiled engine cannot run this: {reason}; use engine='reference'")
    table = tables(form, 1)
    numbers = {name: i for i, name in enumerate(table.policies)}
    for name in keep:
        if name not in numbers:
            raise ValueError(f"policy '{name}' cannot be kept: it is absent")

    games = _games(game)
    count, n = games.reward.shape
    memory = _memory(table, origins, count, n)
    at = np.asarray(record_at, dtype=np.int64)
    records = kernel.Records(
        np.empty((len(at), count)), np.empty((len(at), count)), np.empty((len(keep), len(at), count, n))
    )
    _run(form, table, steps, games, memory, records, at, [numbers[name] for name in keep], threads)
    last = memory.held[0, numbers[CURRENT]]
    if last == kernel.ABSENT:
        _check(form, table, kernel.NO_KEPT, steps, 0, numbers[CURRENT])
    shape, batch = (len(at), *game.batch_shape), game.batch_shape
    return Recording(
        steps=at,
        gap_average=records.gap_average.reshape(shape),
        gap_last=records.gap_last.reshape(shape),
        average=(memory.total / steps).reshape(*batch, n),
        last=memory.prob[:, last].reshape(*batch, n),
        kept={name: policies.reshape(*shape, n) for name, policies in zip(keep, records.kept)},
    )


def _run(
    form: Form,
    table: Tables,
    steps: int,
    games: kernel.Games,
    memory: kernel.Memory,
    records: kernel.Records,
    record_at: np.ndarray,
    keep: Sequence[int],
    threads: int | None,
) -> None:
    """All iterations, in calls that split the games over threads."""
    count, n = games.reward.shape
    cost = count * len(form.stages) * (100.0 + n * n / 4)
    if threads is None:
        threads = numba.config.NUMBA_NUM_THREADS if steps * cost > _THREADS_FROM else 1
    edges = [count * k // min(threads, count) for k in range(min(threads, count) + 1)]
    parts = list(pairwise(edges))
    call = int(min(max(_CALL / cost * len(parts), _SHORTEST), _LONGEST))
    with ThreadPoolExecutor(len(parts)) as pool:
        for begin in range(0, steps, call):
            end = min(begin + call, steps)
            program = _program(form, table, begin, end, record_at, keep)
            place = (begin, end, int(np.searchsorted(record_at, begin + 1)), games, program, memory, records)
            if len(parts) == 1:
                ended = [kernel.play_games(0, count, *place)]
            else:
                ended = [f.result() for f in [pool.submit(kernel.play_games, *part, *place) for part in parts]]
            _check(form, table, *ended[0])


def _games(game: Game) -> kernel.Games:
    n = game.n
    shape = (int(np.prod(game.batch_shape, dtype=int)), n)
    reward = np.zeros(shape) if game.reward is None else game.reward
    return kernel.Games(
        np.ascontiguousarray(game.A, dtype=np.float64).reshape(*shape, n),
        np.ascontiguousarray(reward, dtype=np.float64).reshape(shape),
    )


def _memory(table: Tables, origins: Mapping[str, Array], count: int, n: int) -> kernel.Memory:
    """Every policy at its origin; there are as many versions as can be held at once, and the average's."""
    olds = sum(old for _, _, old, _ in table.copies)
    versions = len(table.policies) + olds + 1
    log = np.full((count, versions, n), -np.inf)
    held = np.full((count, len(table.policies)), kernel.ABSENT, dtype=np.int64)
    held[:, -1] = versions - 1
    started: dict[str, int] = {}
    for number, origin in enumerate(table.origins):
        if origin is not None:
            version = started.setdefault(origin, len(started))
            log[:, version] = np.asarray(origins[origin]).reshape(count, n)
            held[:, number] = version
    known = np.zeros((count, versions), dtype=np.bool_)
    return kernel.Memory(log, np.exp(log), np.zeros_like(log), known, held, np.zeros((count, n)))


def _program(
    form: Form, table: Tables, begin: int, end: int, record_at: np.ndarray, keep: Sequence[int]
) -> kernel.Program:
    numbers = {name: i for i, name in enumerate(table.policies)}
    base, weights = coefficients(form, table, begin, end)

    def integers(values: Sequence[int]) -> np.ndarray:
        return np.array(values, dtype=np.int64)

    return kernel.Program(
        base=base,
        weights=weights,
        writes=integers(table.writes),
        on=integers([kernel.ABSENT if s.on is None else numbers[s.on] for s in form.stages]),
        kinds=integers([KINDS[payoff.kind] for payoff in table.payoffs]),
        about=integers(table.payoff_policy),
        copies=np.array(table.copies, dtype=np.int64).reshape(-1, 4),
        current=numbers[CURRENT],
        record_at=record_at,
        keep=integers(keep),
    )


def _check(form: Form, table: Tables, status: int, t: int, stage: int, policy: int) -> None:
    """Raise what the loop of `nashpo.core.selfplay` raises where an absent policy is needed."""
    if status == kernel.FINE:
        return
    name = table.policies[policy]
    if status == kernel.NO_KEPT:
        raise ValueError(f"policy '{name}' cannot be kept: it is absent")
    if status == kernel.NO_CURRENT:
        raise ValueError(f"policy '{name}' cannot be played: it is absent at t = {t}")
    raise ValueError(f"stage '{form.stages[stage].writes}' reads '{name}', which is absent at t = {t}")
