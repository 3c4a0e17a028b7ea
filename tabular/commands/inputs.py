"""The game that a command is given, and the policies beside it.

Shapes: policies are (*batch_shape, n) probabilities.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np

from nashpo.tabular.families import FAMILIES
from nashpo.tabular.files import open_game, read_policy
from nashpo.tabular.game import Game
from nashpo.tabular.judged import BASELINE, Judged, is_judged, read_judged

RANDOM = "random"
MOST_STEPS = 10**15


@dataclass(frozen=True)
class Given:
    """A game, what it was called, and its judged responses where it came from such a file."""

    game: Game
    source: str
    judged: Judged | None = None

    @property
    def title(self) -> str:
        """The game in a few words."""
        count = f"{self.game.n} response{'s' if self.game.n != 1 else ''}"
        contexts = int(np.prod(self.game.batch_shape, dtype=int))
        if self.judged is not None:
            ragged = ", ragged" if self.game.mask is not None else ""
            return f"{self.source}: {contexts} prompts, answers of {self.game.n} models{ragged}"
        if self.game.batch_shape:
            return f"{self.source}: {contexts} contexts of {count}{' at most' if self.game.mask is not None else ''}"
        return f"{self.source}: {count}"

    @property
    def facts(self) -> dict[str, Any]:
        """The game for JSON."""
        return {
            "source": self.source,
            "n": self.game.n,
            "contexts": list(self.game.batch_shape),
            "names": self.game.names,
            "bradley_terry": self.game.reward is not None,
        }


def add_game_arguments(parser: argparse.ArgumentParser) -> None:
    """The positional GAME and how it is read."""
    parser.add_argument(
        "game",
        metavar="GAME",
        help="win rates in a file (.npy, .npz, .csv, .json), judged responses (.jsonl, .jsonl.gz), or a family such as"
        f" cyclic:n=5,margin=0.8 ({', '.join(FAMILIES)})",
    )
    parser.add_argument(
        "--symmetrize", action="store_true", help="take (P + 1 - P^T)/2 where a file's P + P^T is not 1"
    )
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        default=BASELINE,
        help="name of the answer that judged responses were held against (default: %(default)s)",
    )


def load_game(options: argparse.Namespace) -> Given:
    """The game of `add_game_arguments`.

    Raises
    ------
    ValueError
        As `open_game` and `read_judged`.
    """
    if is_judged(options.game):
        judged = read_judged(options.game, baseline=options.baseline)
        return Given(judged.game, options.game, judged)
    return Given(open_game(options.game, options.symmetrize), options.game)


def load_policy(path: str | None, game: Game, what: str, full_support: bool = False) -> np.ndarray | None:
    """A policy from a file; None where none was given.

    Raises
    ------
    ValueError
        As `read_policy`; names the option.
    """
    if path is None:
        return None
    try:
        return read_policy(path, game, full_support)
    except ValueError as error:
        raise ValueError(f"--{what} {error}") from None


def checked_steps(steps: int | None) -> None:
    """Refuse a number of updates that is below 1 or absurd.

    Raises
    ------
    ValueError
    """
    if steps is not None and steps < 1:
        raise ValueError(f"--steps {steps}: at least one update is needed")
    if steps is not None and steps > MOST_STEPS:
        raise ValueError(f"--steps {steps}: more than {MOST_STEPS:.0e} updates would take years")


def load_start(text: str | None, game: Game) -> np.ndarray | None:
    """A start from a file, or ``random[:SEED]``: drawn uniformly from the simplex, in every context anew.

    Raises
    ------
    ValueError
    """
    word, _, seed = (text or "").partition(":")
    if word != RANDOM:
        return load_policy(text, game, "start")
    if seed and not seed.isdecimal():
        raise ValueError(f"--start {text}: the seed {seed!r} is not a whole number >= 0")
    drawn = np.random.default_rng(int(seed or 0)).exponential(size=(*game.batch_shape, game.n))
    mask = game.as_numpy().mask
    drawn = drawn if mask is None else np.where(mask, drawn, 0.0)
    return drawn / drawn.sum(axis=-1, keepdims=True)
