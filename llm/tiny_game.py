"""The games that the tiny model's judge plays, one per prompt: intransitive, and with a known equilibrium.

Three of a prompt's n responses lead: each beats all that do not, and they beat each other in a circle, so that no
response is best and no reward explains the judge. The equilibrium mixes the three, each in proportion to the margin of
the other two. Shapes: B prompts, win rates (B, n, n) in [0, 1], policies (B, n).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nashpo.core.store import replace_file
from nashpo.llm.tiny_config import TinyModel
from nashpo.tabular.game import Game

Floats = NDArray[np.float64]
LEADERS = 3
_AHEAD = (0.80, 0.98)
_CIRCLE = (0.60, 0.80)
_REST = (0.35, 0.65)
"""Win rates are uniform between these: a leader's over a response that does not lead, over the next leader, and those
of responses that do not lead over each other."""
_DIGITS = 4
"""Decimals of a win rate, so that the table can be read."""


def _prompt_game(rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """Win rates (n, n) and their equilibrium (n,)."""
    win = np.round(rng.uniform(*_REST, (n, n)), _DIGITS)
    win[:LEADERS, LEADERS:] = np.round(rng.uniform(*_AHEAD, (LEADERS, n - LEADERS)), _DIGITS)
    over_next = np.round(rng.uniform(*_CIRCLE, LEADERS), _DIGITS)
    # 0 beats 1, 1 beats 2, 2 beats 0; only what stands above the diagonal is read.
    win[0, 1], win[1, 2], win[0, 2] = over_next[0], over_next[1], 1 - over_next[2]
    upper = np.triu(win, 1)
    P = upper + np.tril(1 - upper.T, -1) + 0.5 * np.eye(n)
    margin = over_next - 0.5
    equilibrium = np.zeros(n)
    equilibrium[:LEADERS] = margin[[1, 2, 0]] / margin.sum()
    order = rng.permutation(n)
    return P[order][:, order], equilibrium[order]


def tiny_games(tiny: TinyModel) -> tuple[Game, Floats]:
    """The prompts' games and their equilibria.

    Returns
    -------
    Game
        Contexts are prompts, responses those of ``tiny.completions``.
    (B, n)
        The equilibrium of each, the only one.
    """
    rng = tiny.random("games")
    games, equilibria = zip(*(_prompt_game(rng, tiny.n) for _ in range(tiny.prompts)), strict=True)
    return Game(np.stack(games)), np.stack(equilibria)


def tiny_target(tiny: TinyModel) -> Floats:
    """The policy that the model is warmed up to, probabilities (B, n); see `TinyWarmup`."""
    size = (tiny.prompts, tiny.n)
    drawn = tiny.random("target").dirichlet(np.full(tiny.n, tiny.warmup.concentration), size=tiny.prompts)
    return (1 - tiny.warmup.uniform) * drawn + tiny.warmup.uniform * np.ones(size) / tiny.n


def game_table(tiny: TinyModel) -> dict[str, Any]:
    """The games as `nashpo.llm.judges.table` reads them: ``prompts``, the ``responses`` to all of them, and ``P``."""
    P = np.round(np.asarray(tiny_games(tiny)[0].P), _DIGITS)
    return {"prompts": list(tiny.prompt_texts), "responses": list(tiny.responses), "P": P.tolist()}


def write_tables(tiny: TinyModel, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write ``prompts.jsonl`` (``{"prompt": text}`` a line) and ``game.json`` (`game_table`) into a folder.

    Returns
    -------
    path, path
        Of the two files.
    """
    prompts, game = Path(folder) / "prompts.jsonl", Path(folder) / "game.json"
    lines = [json.dumps({"prompt": text}) + "\n" for text in tiny.prompt_texts]
    replace_file(prompts, "".join(lines).encode())
    replace_file(game, (json.dumps(game_table(tiny)) + "\n").encode())
    return prompts, game
