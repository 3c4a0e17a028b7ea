"""Exact equilibria of a multi-turn game: the sequence-form linear program, or the leaf game of a deterministic tree.

Shapes: policies (N, W), gaps and values (C,).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nashpo.tabular import equilibrium
from nashpo.tabular.trees.game import TreeGame
from nashpo.tabular.trees.gap import duality_gap
from nashpo.tabular.trees.layers import Booleans, Floats
from nashpo.tabular.trees.leaf_game import behavior_policy, leaf_game
from nashpo.tabular.trees.mixture import Mixture
from nashpo.tabular.trees.sequence_form import sequence_form


@dataclass(frozen=True)
class TreeEquilibrium:
    """A Nash equilibrium in behavior strategies.

    Attributes
    ----------
    game : TreeGame
    policy : (N, W)
        Uniform at states that it never reaches.
    gap : (C,)
        Its duality gap: about 1e-15 from the leaf game, 1e-9 from the linear program.
    method : str
        "leaf" or "sequence".
    """

    game: TreeGame
    policy: Floats
    gap: Floats
    method: str


def nash(game: TreeGame, method: str = "auto") -> TreeEquilibrium:
    """A Nash equilibrium max_π min_ρ P(π ≻ ρ); its value is ½ by symmetry.

    Parameters
    ----------
    game : TreeGame
    method : str
        "sequence" (linear program, any game), "leaf" (the interior point on trajectories, deterministic trees), or
        "auto": the leaf game where there is one.

    Raises
    ------
    ValueError
        On an unknown method, or "leaf" for a game that has no leaf game.
    RuntimeError
        If HiGHS finds no optimum.
    """
    if not isinstance(game, TreeGame):
        raise TypeError("game is no TreeGame: give TreeGame(child, P)")
    if method not in ("auto", *METHODS):
        raise ValueError(f"method = {method!r} is none of auto, {', '.join(METHODS)}")
    if method == "auto":
        method = "leaf" if game.deterministic and game.is_tree else "sequence"
    policy = METHODS[method](game)
    return TreeEquilibrium(game, policy, duality_gap(game, policy), method)


def confined_value(game: TreeGame, allowed: Any = None, against: Any = None) -> Floats:
    """Value of the game, max_π min_ρ P(π ≻ ρ), where the players may use some of the actions only, (C,).

    Parameters
    ----------
    game : TreeGame
    allowed, against : bool array (N, W), optional
        The actions that the player, and its opponent, may use; all by default. Every state needs one.

    Raises
    ------
    ValueError
        On a wrong shape or a state without action.
    """
    return sequence_form(game, _actions(game, allowed, "allowed"), _actions(game, against, "against"))[1]


def _actions(game: TreeGame, given: Any, what: str) -> Booleans:
    if given is None:
        return game.mask
    chosen = np.asarray(given)
    if chosen.shape != game.shape or chosen.dtype != np.bool_:
        raise ValueError(f"{what} has shape {chosen.shape} and dtype {chosen.dtype}: booleans {game.shape} are needed")
    chosen = chosen & game.mask
    empty = np.flatnonzero(~chosen.any(axis=1))
    if len(empty):
        raise ValueError(f"{what} leaves no action in state {empty[0]}: keep at least one")
    return chosen


def _sequence(game: TreeGame) -> Floats:
    return Mixture(game, sequence_form(game, game.mask, game.mask)[0]).policy


def _leaf(game: TreeGame) -> Floats:
    return behavior_policy(game, equilibrium.nash(leaf_game(game)).policy)


METHODS: dict[str, Callable[[TreeGame], Floats]] = {"sequence": _sequence, "leaf": _leaf}
