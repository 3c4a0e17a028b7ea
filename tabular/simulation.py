"""Running a form on a game and recording it: what the reference path and the compiled engine both produce.

Shapes: R recorded steps s (s updates done, s >= 1); a policy is (..., n), a recorded gap (R, ...), a kept trajectory
(R, ..., n). At step s the average is the mean of π_1 … π_s and the last iterate is π_{s+1}.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from nashpo.core.games import duality_gap
from nashpo.core.policies import Array
from nashpo.core.rules.form import CURRENT, Form
from nashpo.core.selfplay import Backend, StageTrace, State, Version, self_play
from nashpo.tabular.exact import Average, probabilities
from nashpo.tabular.game import Game
from nashpo.tabular.win_rates import to_numpy


@dataclass
class Recording:
    """What a run leaves behind, as numpy arrays.

    Attributes
    ----------
    steps : (R,)
        Recorded numbers of updates.
    gap_average, gap_last : (R, ...)
        Duality gap of the average and of the last iterate at the recorded steps.
    average, last : (..., n)
        Probabilities of the final average and the final last iterate.
    kept : dict name -> (R, ..., n)
        Log-policies of the slots that were asked for, after s updates; ``average`` holds probabilities.
    """

    steps: np.ndarray
    gap_average: np.ndarray
    gap_last: np.ndarray
    average: np.ndarray
    last: np.ndarray
    kept: dict[str, np.ndarray] = field(default_factory=dict)


def simulate(
    form: Form,
    backend: Backend,
    game: Game,
    steps: int,
    record_at: Sequence[int],
    keep: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> Recording:
    """Run the loop of `nashpo.core.selfplay` with a backend whose policies are log-policies.

    Parameters
    ----------
    form : Form
    backend : Backend
        Its handles are log-policies (..., n) and an `Average`.
    game : Game
        Measures the gaps.
    steps : int
        Number of updates.
    record_at : increasing sequence of int
        Steps to record, between 1 and ``steps``.
    keep : sequence of str
        Slots, or ``average``, whose policies are kept at the recorded steps.
    progress : callable (updates), optional
        Told after each update.

    Returns
    -------
    Recording
    """
    wanted = set(record_at)
    gaps_average: list[np.ndarray] = []
    gaps_last: list[np.ndarray] = []
    kept: dict[str, list[np.ndarray]] = {name: [] for name in keep}

    def handle(version: Version | None, name: str) -> Array | Average:
        if version is None:
            raise ValueError(f"policy '{name}' cannot be kept: it is absent")
        return version.handle

    def observe(before: State, after: State, trace: tuple[StageTrace, ...]) -> None:
        if progress is not None:
            progress(1)
        if after.t not in wanted:
            return
        made = {step.writes: step.result for step in trace}
        average = probabilities(handle(after.average, "average"))
        last = probabilities(handle(after.slots[CURRENT], CURRENT))
        gaps_average.append(to_numpy(duality_gap(game.A, average, game.mask)))
        gaps_last.append(to_numpy(duality_gap(game.A, last, game.mask)))
        for name in keep:
            if name == "average":
                kept[name].append(to_numpy(average))
            else:
                version = after.slots[name] if name in after.slots else made.get(name)
                kept[name].append(to_numpy(handle(version, name)))

    state = self_play(form, backend, steps, observe=observe)
    return Recording(
        steps=np.asarray(list(record_at), dtype=np.int64),
        gap_average=np.asarray(gaps_average),
        gap_last=np.asarray(gaps_last),
        average=to_numpy(probabilities(handle(state.average, "average"))),
        last=to_numpy(probabilities(handle(state.slots[CURRENT], CURRENT))),
        kept={name: np.asarray(rows) for name, rows in kept.items()},
    )
