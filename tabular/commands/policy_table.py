"""Responses of a game in rows, with columns of what is known of them.

Shapes: a policy is (n,), a column a list of n texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nashpo.tabular.commands.output import number, table
from nashpo.tabular.game import Game

MOST = 20
"""A table has no more responses than this; those with the largest probability are shown."""


def policy_table(game: Game, order_by: np.ndarray, columns: Mapping[str, Sequence[str]]) -> str:
    """Every response of a small game in its order; of a large one the most probable of those that are played.

    Parameters
    ----------
    game : Game
    order_by : (n,)
        Probabilities that choose and sort the rows.
    columns : mapping header -> n texts
    """
    if game.n <= MOST:
        rows, left_out = list(range(game.n)), ""
    else:
        played = [int(y) for y in np.argsort(-order_by, kind="stable") if order_by[y] > 0]
        rows = played[:MOST]
        rest = float(np.sum(order_by[played[MOST:]]))
        silent = game.n - len(played)
        parts = [f"{len(played) - MOST} more with probability {number(rest)} in all"] if len(played) > MOST else []
        parts += [f"{silent} that are never played"] if silent else []
        left_out = f"  and {', and '.join(parts)}" if parts else ""
    body = [[game.label(y), *(texts[y] for texts in columns.values())] for y in rows]
    return "\n".join(filter(None, [table(["response", *columns], body), left_out]))
