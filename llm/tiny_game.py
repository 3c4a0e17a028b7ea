"""The games that the tiny model's judge plays, one per prompt: intransitive, and with a known equilibrium.

Three of a prompt's n responses lead: each beats all that do not, and they beat each other in a circle, so that no
response is best and no reward explains the judge. The equilibrium mixes the three, each in proportion to the margin of
the other two.

In conversations it is three *strategies* that lead: a first answer, and later ones that fit what the other side said.
The conversations that agree with a strategy, one for each thing that the other side may say, win alike and are even
among themselves. So the equilibrium draws one of the three strategies in the same proportions and keeps to it, whatever
is replied: nobody gains by leaving it, since every conversation earns at most ½ against the mixture.

Shapes: B prompts, win rates (B, n, n) in [0, 1], laws of responses (B, n), policies (N, m); see
`nashpo.llm.tiny_config`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nashpo.core.store import replace_file
from nashpo.llm.tiny_config import TinyModel
from nashpo.llm.tiny_user import conversation_law, reply_probabilities, user_table
from nashpo.tabular.game import Game
from nashpo.tabular.trees.game import TreeGame

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
LEADERS = 3
USER = "user.json"
_AHEAD = (0.80, 0.98)
_CIRCLE = (0.60, 0.80)
_REST = (0.35, 0.65)
"""Win rates are uniform between these: a leader's over a response that does not lead, over the next leader, and those
of responses that do not lead over each other."""
_DIGITS = 4
"""Decimals of a win rate, so that the table can be read."""


def _prompt_game(rng: np.random.Generator, tiny: TinyModel) -> tuple[Floats, Floats]:
    """Win rates (n, n), and the equilibrium as a policy of the states behind one prompt, (N / B, m)."""
    n, size = tiny.n, tiny.replies ** (tiny.turns - 1)
    leading = LEADERS * size
    win = np.round(rng.uniform(*_REST, (n, n)), _DIGITS)
    win[:leading, leading:] = np.round(rng.uniform(*_AHEAD, (leading, n - leading)), _DIGITS)
    over_next = np.round(rng.uniform(*_CIRCLE, LEADERS), _DIGITS)
    # 0 beats 1, 1 beats 2, 2 beats 0; only what stands above the diagonal is read.
    circle = np.array([[0.5, over_next[0], 1 - over_next[2]], [0, 0.5, over_next[1]], [0, 0, 0.5]])
    win[:leading, :leading] = np.kron(circle, np.ones((size, size)))
    upper = np.triu(win, 1)
    P = upper + np.tril(1 - upper.T, -1) + 0.5 * np.eye(n)
    margin = over_next - 0.5
    chosen = _strategies(rng, tiny)
    order = np.argsort(_places(tiny, chosen))
    return P[order][:, order], _mixed(tiny, chosen, margin[[1, 2, 0]] / margin.sum())


def _strategies(rng: np.random.Generator, tiny: TinyModel) -> list[Integers]:
    """What a strategy answers, by turns: the first answers in the order of the strategies, (m,); then those of each of
    the three after every sequence of replies, (3, R^h), different ones after different sequences as far as they go."""
    m, R = tiny.answers, tiny.replies
    first = np.argsort(rng.permutation(m))
    later = [np.stack([rng.permutation(m)[np.arange(R**h) % m] for _ in range(LEADERS)]) for h in range(1, tiny.turns)]
    return [first, *later]


def _places(tiny: TinyModel, chosen: list[Integers]) -> Integers:
    """The conversations (n,) by strategies: those that agree with the first one, with the second, the third; the rest,
    by the place of their first answer."""
    first, *later = chosen
    answer, *said = np.indices((tiny.answers, *(tiny.replies, tiny.answers) * (tiny.turns - 1))).reshape(
        2 * tiny.turns - 1, -1
    )
    rank = np.argsort(first)[answer]
    leader, heard = np.minimum(rank, LEADERS - 1), np.zeros_like(answer)
    agrees = rank < LEADERS
    for reply, following, known in zip(said[::2], said[1::2], later, strict=True):
        heard = heard * tiny.replies + reply
        agrees &= known[leader, heard] == following
    return np.lexsort([rank, ~agrees])


def _mixed(tiny: TinyModel, chosen: list[Integers], weights: Floats) -> Floats:
    """The policy that draws one of the strategies and keeps to it: their first answers differ and tell which it is.

    Uniform where it never comes.
    """
    m, R = tiny.answers, tiny.replies
    first, *later = chosen
    root = np.zeros((1, m))
    root[0, first[:LEADERS]] = weights
    policy = [root]
    histories = [(int(first[leader]), leader, 0) for leader in range(LEADERS)]
    for known in later:
        rows = np.full(((m * R) ** len(policy), m), 1 / m)
        heard = [(row * R + r, leader, before * R + r) for row, leader, before in histories for r in range(R)]
        for row, leader, before in heard:
            rows[row] = np.eye(m)[known[leader, before]]
        histories = [(row * m + int(known[leader, before]), leader, before) for row, leader, before in heard]
        policy.append(rows)
    return np.concatenate(policy)


def _by_turns(tiny: TinyModel, policies: Sequence[Floats]) -> Floats:
    """Policies of the states behind each prompt, B of (N / B, m), as one of all states, (N, m)."""
    edges = np.cumsum([0, *((tiny.answers * tiny.replies) ** h for h in range(tiny.turns))])
    return np.concatenate([p[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True) for p in policies])


def _games(tiny: TinyModel) -> tuple[Floats, Floats]:
    """Win rates (B, n, n), and the equilibrium as a policy, (N, m)."""
    rng = tiny.random("games")
    games, policies = zip(*(_prompt_game(rng, tiny) for _ in range(tiny.prompts)), strict=True)
    return np.stack(games), _by_turns(tiny, policies)


def tiny_games(tiny: TinyModel) -> tuple[Game, Floats]:
    """The prompts' games and their equilibria.

    Returns
    -------
    Game
        Contexts are prompts, responses those of ``tiny.completions``. In conversations the players choose answers and
        not responses: the game that they play is `tiny_tree`.
    (B, n)
        The law of the responses of each equilibrium, the only one there is.
    """
    P, policy = _games(tiny)
    return Game(P), conversation_law(tiny, policy)


def tiny_equilibrium(tiny: TinyModel) -> Floats:
    """The equilibrium as a policy, (N, m); uniform at states that it never reaches."""
    return _games(tiny)[1]


def tiny_tree(tiny: TinyModel, P: Any = None) -> TreeGame:
    """The game of conversations: contexts are prompts, chance is the other side, final states are conversations.

    Parameters
    ----------
    tiny : TinyModel
    P : (B, n, n), optional
        Win rates; default those of `tiny_games`.

    Returns
    -------
    TreeGame
        Its decision states are ``tiny.states`` and its outcomes ``tiny.conversations``, in their order.
    """
    m, R = tiny.answers, tiny.replies
    sizes = [tiny.prompts * (m * R) ** h for h in range(tiny.turns)]
    child = [np.arange(size * m * R).reshape(size, m, R) for size in sizes[:-1]]
    chance = [p.reshape(size, m, R) for p, size in zip(reply_probabilities(tiny), sizes, strict=False)]
    last = np.arange(sizes[-1] * m).reshape(sizes[-1], m)
    return TreeGame([*child, last], _games(tiny)[0] if P is None else P, [*chance, None])


def tiny_target(tiny: TinyModel) -> Floats:
    """The policy that the model is warmed up to, probabilities (N, m); see `TinyWarmup`."""
    size = (len(tiny.states), tiny.answers)
    drawn = tiny.random("target").dirichlet(np.full(tiny.answers, tiny.warmup.concentration), size=size[0])
    return (1 - tiny.warmup.uniform) * drawn + tiny.warmup.uniform * np.ones(size) / tiny.answers


def game_table(tiny: TinyModel) -> dict[str, Any]:
    """The games as `nashpo.llm.judges.table` reads them: ``prompts``, the ``responses`` to all of them, and ``P``."""
    P = np.round(np.asarray(tiny_games(tiny)[0].P), _DIGITS)
    return {"prompts": list(tiny.prompt_texts), "responses": list(tiny.responses), "P": P.tolist()}


def write_tables(tiny: TinyModel, folder: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write ``prompts.jsonl`` (``{"prompt": text}`` a line) and ``game.json`` (`game_table`) into a folder.

    A model of several turns brings ``user.json`` too (`nashpo.llm.tiny_user.user_table`).

    Returns
    -------
    tuple of paths
        Of the files, in this order.
    """
    prompts, game, user = (Path(folder) / name for name in ("prompts.jsonl", "game.json", USER))
    lines = [json.dumps({"prompt": text}) + "\n" for text in tiny.prompt_texts]
    replace_file(prompts, "".join(lines).encode())
    replace_file(game, (json.dumps(game_table(tiny)) + "\n").encode())
    if tiny.turns == 1:
        return prompts, game
    replace_file(user, (json.dumps(user_table(tiny)) + "\n").encode())
    return prompts, game, user
