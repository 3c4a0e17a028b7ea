"""Playing a rule on a multi-turn game, at every state or on whole trajectories.

Shapes: R recorded steps; policies (N, W), gaps (R, C). At step s the average is the mixture over trajectories of
π_1 … π_s and the last iterate is π_{s+1}.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nashpo.core.rules.form import CURRENT, Form
from nashpo.core.rules.rule import Rule
from nashpo.core.selfplay import StageTrace, State, self_play
from nashpo.tabular.play import Record, record_steps
from nashpo.tabular.trees.backend import LEVELS, Opponent, TreePolicy
from nashpo.tabular.trees.game import TreeGame
from nashpo.tabular.trees.layers import Floats
from nashpo.tabular.trees.mixture import Mixture
from nashpo.tabular.trees.policies import log_policy
from nashpo.tabular.trees.values import best_value


@dataclass(frozen=True)
class TreeRun:
    """What `play` returns.

    Attributes
    ----------
    rule, level : str
    steps : int
        Number of updates.
    recorded : (R,)
        The recorded numbers of updates.
    gap_average, gap_last : (R, C)
        Duality gap of the mixture over trajectories and of the last policy, in [0, 1].
    average : Mixture
        ``average.policy`` is the single policy with the same win rates.
    last : (N, W)
        Probabilities of π_{T+1}.
    weights : (C,)
    kept : dict name -> (R, N, W)
        Log-policies of the slots that were asked for.
    """

    rule: str
    level: str
    steps: int
    recorded: np.ndarray
    gap_average: Floats
    gap_last: Floats
    average: Mixture
    last: Floats
    weights: Floats
    kept: dict[str, Floats] = field(default_factory=dict)

    @property
    def mean_gap_average(self) -> Floats:
        """`gap_average` averaged over contexts, (R,)."""
        return np.asarray(self.gap_average @ self.weights)

    @property
    def mean_gap_last(self) -> Floats:
        """`gap_last` averaged over contexts, (R,)."""
        return np.asarray(self.gap_last @ self.weights)


def play(
    rule: Rule,
    game: TreeGame,
    steps: int = 1000,
    *,
    level: str = "state",
    start: Any = None,
    reference: Any = None,
    record: Record = "geometric",
    keep: Sequence[str] = (),
) -> TreeRun:
    """Play a rule against itself.

    Parameters
    ----------
    rule : Rule
        Its form is unchanged: what an action earns is Q, or what an outcome earns its win rate.
    game : TreeGame
    steps : int
        Number of updates.
    level : str
        "state": every state takes the step by itself, on Q^{π_t,π_t}. "trajectory": one step on whole trajectories.
    start, reference : (N, W), optional
        π_1, uniform by default, and the reference, by default the start; the reference needs full support.
    record : str, int or list of int
        As in `nashpo.tabular.play.play`.
    keep : sequence of str
        Slots whose log-policies are kept at the recorded steps.

    Returns
    -------
    TreeRun

    Raises
    ------
    ValueError
        On an unknown level, bad policies, payoffs that the level does not know, or steps beyond the rule's horizon.

    Notes
    -----
    At the level of states a regularized rule needs the regularized Q, which `nashpo.tabular.trees.mtpo.MTPO` asks for;
    INPO and its relatives regularize whole trajectories only at the level of trajectories. The forms of ONPO agree
    there, and not at states: ``one_step`` asks for Q^{π_t,π_{t−1}}.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule = {rule!r} is no rule: give an instance, such as SPPO(eta=0.1)")
    if not isinstance(game, TreeGame):
        raise TypeError("game is no TreeGame: give TreeGame(child, P)")
    if level not in LEVELS:
        raise ValueError(f"level = {level!r} is none of {', '.join(LEVELS)}")
    form = rule.form()
    form.check_horizon(steps)
    record_at = record_steps(record, steps)
    log_start = log_policy(game, start, "start")
    given = np.exp(log_start) if reference is None else reference
    log_reference = log_policy(game, given, "reference", full_support=form.uses_reference)
    origins = {"start": log_start, "reference": log_reference, "behavior": log_reference}
    backend = LEVELS[level](game, origins)
    watch = _Recorder(game, form, set(record_at), keep)
    state = self_play(form, backend, steps, observe=watch)
    if state.average is None:
        raise RuntimeError("a run of no steps has no average")
    return TreeRun(
        rule=repr(rule),
        level=level,
        steps=steps,
        recorded=np.asarray(record_at),
        gap_average=np.asarray(watch.gap_average),
        gap_last=np.asarray(watch.gap_last),
        average=state.average.handle.mixture(game),
        last=_current(state).probabilities,
        weights=game.weights,
        kept={name: np.asarray(rows) for name, rows in watch.kept.items()},
    )


def _current(state: State) -> TreePolicy:
    version = state.slots[CURRENT]
    if version is None:
        raise ValueError(f"policy '{CURRENT}' cannot be played: it is absent")
    policy: TreePolicy = version.handle
    return policy


class _Recorder:
    """Gaps and policies at the recorded steps."""

    def __init__(self, game: TreeGame, form: Form, wanted: set[int], keep: Sequence[str]) -> None:
        slots = [name for name, _ in form.slots]
        for name in keep:
            if name not in slots:
                raise ValueError(f"policy '{name}' cannot be kept: the slots are {', '.join(slots)}")
        self.game, self.wanted = game, wanted
        self.gap_average: list[Floats] = []
        self.gap_last: list[Floats] = []
        self.kept: dict[str, list[Floats]] = {name: [] for name in keep}

    def __call__(self, before: State, after: State, trace: tuple[StageTrace, ...]) -> None:
        if after.t not in self.wanted:
            return
        if after.average is not None:
            self.gap_average.append(self._gap(after.average.handle))
        self.gap_last.append(self._gap(_current(after)))
        for name, rows in self.kept.items():
            version = after.slots[name]
            if version is None:
                raise ValueError(f"policy '{name}' cannot be kept: it is absent")
            rows.append(version.handle.log)

    def _gap(self, player: Opponent) -> Floats:
        return 2 * best_value(self.game, self.game.payoff(player.law))
