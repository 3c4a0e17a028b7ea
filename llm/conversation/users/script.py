"""The other side as a script: after the n-th answer it says its n-th text, whatever was answered.

Shapes: N dialogues are answered by N messages. Nothing here imports torch when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from os import PathLike, fspath
from typing import Any

from nashpo.llm.conversation.settings import texts
from nashpo.llm.conversation.user import Dialogue, Text
from nashpo.llm.conversation.users.messages import prompt_key
from nashpo.llm.judges.judge import canonical, shown
from nashpo.llm.transcript import Message


class Script:
    """Texts in turn; the conversation ends when there is none left.

    Parameters
    ----------
    says : sequence of str, or mapping canonical prompt -> sequence of str
        For every prompt, or for each of them.
    role : str
        Of its messages.
    place : str
        Of the file, for messages.
    """

    name = "script"
    shared = False

    def __init__(self, says: Sequence[str] | Mapping[str, Sequence[str]] | None, role: str, place: str = "") -> None:
        own = isinstance(says, Mapping)
        self._each = {key: tuple(row) for key, row in says.items()} if isinstance(says, Mapping) else None
        self._all = () if own or says is None else tuple(says)
        self._role = role
        self._place = place

    @classmethod
    def read(cls, path: str | PathLike[str], role: str = "user") -> Script:
        """The script of a .jsonl file: the prompt of each row as in data of prompts, and ``says``, a list of texts.

        Raises
        ------
        ValueError
            In one line that begins with the file's name.
        """
        from nashpo.llm.recipe.schema import DataSpec
        from nashpo.llm.rows import normalized, read_rows

        spec = DataSpec(path=fspath(path))
        found: dict[str, Sequence[str]] = {}
        for number, row in enumerate(read_rows(spec)):
            try:
                says = row.get("says")
                if says is None:
                    raise ValueError("says is missing; it must be a list of texts, none of them empty")
                if not isinstance(says, list) or not texts(says):
                    raise ValueError(f"says is {shown(says)}; it must be a list of texts, none of them empty")
                key = prompt_key(normalized(row, spec)["prompt"])
                if found.setdefault(key, says) != says:
                    raise ValueError("the same prompt stands in an earlier row with other texts")
            except ValueError as error:
                raise ValueError(f"{spec.path}, row {number}: {error}") from None
        return cls(found, role, fspath(path))

    def describe(self) -> dict[str, Any]:
        """Its texts, by a hash where there are some for each prompt, and its role."""
        says: Any = list(self._all)
        if self._each is not None:
            content = canonical({key: list(row) for key, row in self._each.items()})
            says = blake2b(content.encode(), digest_size=16).hexdigest()
        return {"user": self.name, "says": says, "role": self._role, "reproducible": True}

    def check(self) -> None:
        """Nothing is left to check: it was read when it was made."""

    def check_prompts(self, prompts: Sequence[Text]) -> None:
        """That there are texts for every prompt.

        Raises
        ------
        ValueError
            With the first that is missing.
        """
        for prompt in prompts:
            self.says(prompt)

    def says(self, prompt: Text) -> tuple[str, ...]:
        """What it says on a prompt.

        Raises
        ------
        ValueError
            If the file has no texts for it.
        """
        if self._each is None:
            return self._all
        found = self._each.get(prompt_key(prompt))
        if found is None:
            raise ValueError(
                f"{self._place}: there is no row for the prompt {shown(prompt)}; conversation.user.path needs texts for"
                " every prompt"
            )
        return found

    def stopped(self, prompts: Sequence[Text], turns: int, stop: Sequence[str]) -> str:
        """A note where a text that ends conversations stands in what it says itself; empty where none does.

        Parameters
        ----------
        prompts : sequence of texts
        turns : int
            The assistant's at most: later texts are never said.
        stop : sequence of str
        """
        found = []
        for prompt in prompts:
            said = enumerate(self.says(prompt)[: turns - 1], 1)
            found += [(n, text, mark) for n, text in said for mark in stop if mark in text][:1]
        if not found:
            return ""
        number, text, mark = min(found)
        return (
            f"conversation.stop has {mark!r}, which stands in the script's own text {shown(text)}: on {len(found)} of"
            f" {len(prompts)} prompts every conversation ends before such a text, at the earliest after the assistant's"
            f" answer {number}; leave it out of stop, or the text out of the script"
        )

    def reply(self, dialogues: Sequence[Dialogue], seed: int) -> list[Message | None]:
        """The next text of each; what was answered is not read."""
        return [self._next(self.says(dialogue.prompt), dialogue.number) for dialogue in dialogues]

    def _next(self, says: Sequence[str], number: int) -> Message | None:
        return {"role": self._role, "content": says[number - 1]} if number <= len(says) else None

    def close(self) -> None:
        """Nothing to give back."""
