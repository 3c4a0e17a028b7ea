"""A judge that plays a known game: a table of win rates between the responses to each prompt.

Shapes: B prompts with n responses each, P (B, n, n) in [0, 1] with P + Pᵀ = 1; or one game (n, n) for every prompt.

A conversation is looked up by its transcript. A file holds ``P``, ``responses`` (n texts, or a list of them per prompt)
and, unless one game is for all, ``prompts``: as an object in .json, as arrays in .npz.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from nashpo.core.cli import one_line
from nashpo.llm.judges.judge import Pair, Text, Verdict, canonical, shown
from nashpo.llm.transcript import Response, response_text
from nashpo.tabular.game import Game

KEYS = ("prompts", "responses", "P")


class TableJudge:
    """Win rates looked up.

    Parameters
    ----------
    responses : sequence of str, or of such sequences
        Of every prompt, or one per prompt.
    P : (n, n) or B of (n, n)
        Win rates, checked as `nashpo.tabular.game.Game` checks them.
    prompts : sequence of texts, optional
        B prompts; without them the one game is played on every prompt.

    Raises
    ------
    ValueError
        If shapes do not match, a text occurs twice, or P is no game.
    """

    name = "table"
    antisymmetric = True

    def __init__(self, responses: Sequence[Any], P: Any, prompts: Sequence[Text] | None = None) -> None:
        shared = all(isinstance(text, str) for text in responses)
        count = 1 if prompts is None else len(prompts)
        texts = [list(responses)] * count if shared else [list(row) for row in responses]
        tables = [P] if prompts is None else list(P)
        if len(texts) != count or len(tables) != count:
            raise ValueError(
                f"{count} prompts, {len(texts)} lists of responses, {len(tables)} tables P: there must be as many"
            )
        keys = [""] if prompts is None else [canonical(prompt) for prompt in prompts]
        self._shared = prompts is None
        self._games = [_game(table, row, number) for number, (table, row) in enumerate(zip(tables, texts, strict=True))]
        self._P: list[list[list[float]]] = [game.P.tolist() for game in self._games]
        self._texts = texts
        self._places = {key: place for place, key in enumerate(keys)}
        if len(self._places) != len(keys):
            twice = next(key for place, key in enumerate(keys) if self._places[key] != place)
            raise ValueError(f"the prompt {shown(twice)} occurs twice in the table")
        self._index = [{text: i for i, text in enumerate(row)} for row in texts]

    @classmethod
    def read(cls, path: str | PathLike[str]) -> TableJudge:
        """The judge of a .json or .npz file.

        Raises
        ------
        ValueError
            In one line that begins with the file's name.
        """
        place = Path(path)
        try:
            held = READERS[place.suffix](place) if place.suffix in READERS else None
            if not isinstance(held, dict) or not {"responses", "P"} <= held.keys() <= set(KEYS):
                raise ValueError('must be .json or .npz with "responses", "P" and, for several games, "prompts"')
            return cls(held["responses"], held["P"], held.get("prompts"))
        except FileNotFoundError:
            raise ValueError(f"{place}: there is no such file; judge.path names the table of a game") from None
        except (ValueError, TypeError, OSError) as error:
            raise ValueError(f"{place}: {one_line(error)}") from error

    @cached_property
    def game(self) -> Game:
        """The game itself, (B, n, n), or (n, n) where one is for all prompts: for exact evaluation.

        Raises
        ------
        ValueError
            If prompts have different numbers of responses.
        """
        if self._shared:
            return self._games[0]
        sizes = {len(row) for row in self._texts}
        if len(sizes) > 1:
            raise ValueError(f"prompts have {min(sizes)} to {max(sizes)} responses; one game needs as many for each")
        return Game(np.stack([game.P for game in self._games]))

    def responses(self, prompt: Text) -> list[str]:
        """The n texts that can be compared on a prompt."""
        return list(self._texts[self._place(prompt)])

    def index(self, prompt: Text, response: Response) -> int:
        """The place of a response among those of its prompt.

        Raises
        ------
        ValueError
            If the table does not have it.
        """
        known, text = self._index[self._place(prompt)], response_text(response)
        if text not in known:
            raise ValueError(
                f"the table has no response {shown(text)} to the prompt {shown(prompt)}; it has {len(known)}, as"
                f" {shown(next(iter(known)))}"
            )
        return known[text]

    def _place(self, prompt: Text) -> int:
        place = 0 if self._shared else self._places.get(canonical(prompt))
        if place is None:
            raise ValueError(
                f"the table has no game for the prompt {shown(prompt)}; it has {len(self._places)} prompts"
            )
        return place

    def describe(self) -> dict[str, Any]:
        """A hash of the table."""
        content = canonical([list(self._places), self._texts, self._P])
        return {"judge": self.name, "content": blake2b(content.encode(), digest_size=16).hexdigest()}

    def check(self) -> None:
        """Nothing is left to check: the table was read when it was made."""

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """P of each pair; the raw answer is ``[i, j]``, their places."""
        verdicts = []
        for pair in pairs:
            i, j = self.index(pair.prompt, pair.first), self.index(pair.prompt, pair.second)
            verdicts.append(Verdict(self._P[self._place(pair.prompt)][i][j], [i, j]))
        return verdicts

    def close(self) -> None:
        """Nothing to give back."""


def _game(table: Any, responses: list[str], number: int) -> Game:
    try:
        game = Game(table)
    except (ValueError, TypeError) as error:
        raise ValueError(f"P of prompt {number}: {one_line(error)}") from error
    if game.P.shape != (len(responses), len(responses)):
        raise ValueError(f"P of prompt {number} is {game.P.shape}, but the prompt has {len(responses)} responses")
    if len(set(responses)) != len(responses):
        twice = next(text for place, text in enumerate(responses) if text in responses[:place])
        raise ValueError(f"the response {shown(twice)} occurs twice for prompt {number}")
    return game


def _arrays(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as held:
        return {name: held[name] if name == "P" else held[name].tolist() for name in held.files}


READERS = {".json": lambda path: json.loads(path.read_text()), ".npz": _arrays}
