"""The other side as a table of known probabilities, so that whole conversations can be enumerated and counted exactly.

Shapes: B prompts, n answers of the assistant, R replies; the probabilities after turn h are (B, n, R, n, R, …, n, R)
with h factors (n, R), the last of them summing to 1. N dialogues are answered by N messages.

A file is a JSON object with ``prompts`` (B texts or conversations), ``answers`` (n texts), ``replies`` (R texts) and
``probabilities``, a list with one such array, as nested lists, for each of the assistant's turns but the last.

A prompt that is text and the same text as a user's only message are one, beside a system's message or not.

A reply is drawn by the inverse of the cumulative probabilities, at a uniform number that is a hash of the seed and the
dialogue's key. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nashpo.core.cli import one_line, suggestion
from nashpo.llm.conversation.settings import texts
from nashpo.llm.conversation.user import Dialogue, Text
from nashpo.llm.conversation.users.draws import uniform
from nashpo.llm.conversation.users.messages import prompt_key
from nashpo.llm.judges.judge import canonical, shown
from nashpo.llm.transcript import Message

KEYS = ("prompts", "answers", "replies", "probabilities")
_SUM = 1e-9
"""How far probabilities may be from adding up to 1: they may have been written with ten decimals."""


class TableUser:
    """Replies drawn from known probabilities; the conversation ends after the last turn that the table has.

    Parameters
    ----------
    prompts : sequence of B texts
    answers : sequence of n str
        What the assistant can say in a turn.
    replies : sequence of R str
    probabilities : sequence of arrays (B, n, R), (B, n, R, n, R), …
    role : str
        Of its messages.

    Raises
    ------
    ValueError
        If shapes do not match, a text occurs twice, or probabilities are negative or do not add up to 1.
    """

    name = "table"
    shared = False

    def __init__(
        self,
        prompts: Sequence[Text],
        answers: Sequence[str],
        replies: Sequence[str],
        probabilities: Sequence[Any],
        role: str = "user",
    ) -> None:
        for name, values in (("answers", answers), ("replies", replies)):
            if isinstance(values, str) or not all(isinstance(text, str) for text in values) or not len(values):
                raise ValueError(f"{name} must be a list of texts, and it is {shown(values)}")
        if not texts(replies):
            raise ValueError("a reply is empty: the other side must say something")
        self.prompts, self.answers, self.replies = list(prompts), tuple(answers), tuple(replies)
        self._prompt = _places("prompt", [prompt_key(prompt) for prompt in prompts])
        self._answer, self._reply = _places("answer", self.answers), _places("reply", self.replies)
        self.probabilities = tuple(self._checked(array, turn) for turn, array in enumerate(probabilities, 1))
        if not self.probabilities:
            raise ValueError(
                "probabilities is empty: it must have an array for each of the assistant's turns but the last"
            )
        self._role = role

    def _checked(self, values: Any, turn: int) -> NDArray[np.float64]:
        wanted = (len(self._prompt), *(len(self._answer), len(self._reply)) * turn)
        where = f"probabilities after turn {turn}"
        try:
            array = np.array(values, dtype=np.float64)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where} must be nested lists of numbers of the shape {wanted} ({error})") from None
        if array.shape != wanted:
            raise ValueError(f"{where} have the shape {array.shape}, not {wanted}: prompts, then answers and replies")
        if not (array >= 0).all():  # nan neither
            raise ValueError(f"{where} hold {array[~(array >= 0)][0]}, which is no probability")
        if (wrong := np.abs(array.sum(-1) - 1) > _SUM).any():
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(f"{where} add up to {array[place].sum():.10g} at {list(place)}, not to 1")
        return array

    @classmethod
    def read(cls, path: str | PathLike[str], role: str = "user") -> TableUser:
        """The table of a .json file.

        Raises
        ------
        ValueError
            In one line that begins with the file's name.
        """
        place = Path(path).expanduser()
        try:
            held = json.loads(place.read_bytes())
            if not isinstance(held, dict):
                raise ValueError(f"must be a JSON object with {', '.join(KEYS)}")
            if unknown := sorted(held.keys() - set(KEYS)):
                raise ValueError(f"unknown key {unknown[0]!r}; {suggestion(unknown[0], KEYS)}")
            if missing := [key for key in KEYS if key not in held]:
                raise ValueError(f"{missing[0]} is missing; a table has {', '.join(KEYS)}")
            if not isinstance(held["prompts"], list) or not isinstance(held["probabilities"], list):
                raise ValueError("prompts and probabilities must be lists")
            return cls(held["prompts"], held["answers"], held["replies"], held["probabilities"], role)
        except FileNotFoundError:
            raise ValueError(
                f"{place}: there is no such file; conversation.user.path names the table of the other side"
            ) from None
        except (ValueError, OSError) as error:
            raise ValueError(f"{place}: {one_line(error)}") from error

    def describe(self) -> dict[str, Any]:
        """A hash of the whole table, and its role."""
        arrays = [array.tolist() for array in self.probabilities]
        content = canonical([self.prompts, self.answers, self.replies, arrays])
        table = blake2b(content.encode(), digest_size=16).hexdigest()
        return {"user": self.name, "table": table, "role": self._role, "reproducible": True}

    def check(self) -> None:
        """Nothing is left to check: it was read when it was made."""

    def check_prompts(self, prompts: Sequence[Text]) -> None:
        """That the table has every prompt.

        Raises
        ------
        ValueError
            With the first that is missing.
        """
        for prompt in prompts:
            self._place(self._prompt, "prompt", prompt, prompt_key(prompt))

    def distribution(self, dialogue: Dialogue) -> NDArray[np.float64] | None:
        """Probabilities (R,) of the replies to a dialogue; None after the table's last turn.

        Raises
        ------
        ValueError
            If the table does not know the prompt or one of the turns.
        """
        place = [self._place(self._prompt, "prompt", dialogue.prompt, prompt_key(dialogue.prompt))]
        if dialogue.number > len(self.probabilities):
            return None
        known = ((self._answer, "answer"), (self._reply, "reply"))
        for number, turn in enumerate(dialogue.turns):
            place.append(self._place(*known[number % 2], turn["content"], turn["content"]))
        found: NDArray[np.float64] = self.probabilities[dialogue.number - 1][tuple(place)]
        return found

    def _place(self, places: dict[str, int], what: str, text: Text, key: str) -> int:
        if key not in places:
            raise ValueError(
                f"the table of the other side has no {what} {shown(text)}; it has {len(places)}, as"
                f" {shown(next(iter(places)))}"
            )
        return places[key]

    def reply(self, dialogues: Sequence[Dialogue], seed: int) -> list[Message | None]:
        """A draw for each dialogue, which follows from the seed and the dialogue's key."""
        return [self._drawn(dialogue, seed) for dialogue in dialogues]

    def _drawn(self, dialogue: Dialogue, seed: int) -> Message | None:
        distribution = self.distribution(dialogue)
        if distribution is None:
            return None
        cumulative = distribution.cumsum()
        chosen = int(np.searchsorted(cumulative, uniform(seed, dialogue.key) * cumulative[-1], side="right"))
        # The last number may round up to the sum itself.
        chosen = min(chosen, int(np.flatnonzero(distribution)[-1]))
        return {"role": self._role, "content": self.replies[chosen]}

    def close(self) -> None:
        """Nothing to give back."""


def _places(what: str, keys: Sequence[str]) -> dict[str, int]:
    places = {key: place for place, key in enumerate(keys)}
    if len(places) != len(keys):
        twice = next(key for place, key in enumerate(keys) if places[key] != place)
        raise ValueError(f"the {what} {shown(twice)} occurs twice in the table")
    return places
