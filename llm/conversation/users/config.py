"""Settings of the other side as they stand in a recipe under ``conversation.user``, one frozen dataclass per kind.

Loading this imports no torch: ``build`` imports the user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nashpo.llm.callables import check_module
from nashpo.llm.conversation.settings import check_places, require, texts
from nashpo.llm.conversation.user import User
from nashpo.llm.engines.config import SamplingConfig, TransformersConfig
from nashpo.llm.recipe.parsing import Tagged
from nashpo.llm.recipe.places import weights_place
from nashpo.llm.settings import setting

if TYPE_CHECKING:
    from nashpo.llm.conversation.users.model import ModelUser
    from nashpo.llm.conversation.users.script import Script
    from nashpo.llm.conversation.users.table import TableUser

ROLES_TAKEN = ("assistant", "system")
"""Roles that no answer of the other side can have."""


@dataclass(frozen=True, kw_only=True)
class UserConfig:
    """Settings of the other side; one subclass per kind."""

    def build(self, device: str) -> User:
        """The other side, its module imported now and its weights not yet read.

        Parameters
        ----------
        device : str
            Where a model computes, as torch names it.

        Raises
        ------
        ValueError
            If a file or a function is not there or holds something else.
        """
        raise NotImplementedError

    def look(self, prompts: Sequence[Any], turns: int, stop: Sequence[str] = ()) -> str:
        """What can be seen before a run, without reading weights or importing code.

        Parameters
        ----------
        prompts : sequence of texts
            That conversations begin with.
        turns : int
            The assistant's at most.
        stop : sequence of str
            Texts that end a conversation.

        Returns
        -------
        str
            What is no mistake and should be known; empty where there is nothing.

        Raises
        ------
        ValueError
            If something is not there, has nothing for a prompt, or could never be asked.
        """
        return ""


def _too_few(has: int, turns: int) -> str:
    """A note where the other side has fewer answers than there could be."""
    if has >= turns - 1:
        return ""
    return (
        f"conversation.turns = {turns}, but the other side has {has} answer{'s' * (has != 1)}: conversations end after"
        f" the assistant's answer {has + 1} at the latest"
    )


def _check_readable(prompts: Sequence[Any]) -> None:
    """That the other side is not shown token ids."""
    from nashpo.llm.encoding import is_tokenized

    place = next((place for place, prompt in enumerate(prompts) if is_tokenized(prompt)), None)
    if place is not None:
        raise ValueError(
            f"conversation.user reads text, but prompt {place} of {len(prompts)} is token ids: give prompts as text or"
            " messages, or take a script"
        )


def _check_role(role: Any) -> None:
    fits = isinstance(role, str) and bool(role) and role not in ROLES_TAKEN
    require("user.role", role, fits, "the other side's role in the chat template, as user or tool")


@dataclass(frozen=True, kw_only=True)
class ScriptConfig(UserConfig):
    """The same texts always; see `nashpo.llm.conversation.users.script`.

    Raises
    ------
    ValueError
        Unless exactly one of ``says`` and ``path`` is given.
    """

    says: tuple[str, ...] | None = setting(
        "texts: the n-th answers the assistant's n-th turn, and the conversation ends when there is none left", None
    )
    path: str | None = setting("a .jsonl file with prompt and says (a list of texts) in each row", None)
    role: str = setting("of its messages, as the chat template knows them", "user")

    def __post_init__(self) -> None:
        if (self.says is None) == (self.path is None):
            given = "both are" if self.says is not None else "none is"
            raise ValueError(f"conversation.user: a script needs exactly one of says and path, and {given} given")
        if self.says is not None:
            fits = not isinstance(self.says, str) and len(self.says) > 0 and texts(self.says)
            require("user.says", self.says, fits, "a list of texts, none of them empty")
        _check_role(self.role)

    def build(self, device: str = "cpu") -> Script:
        """The other side, its module imported now."""
        from nashpo.llm.conversation.users.script import Script

        return Script(self.says, self.role) if self.path is None else Script.read(self.path, self.role)

    def look(self, prompts: Sequence[Any], turns: int, stop: Sequence[str] = ()) -> str:
        """Whether there are texts for every prompt and turn."""
        script = self.build()
        script.check_prompts(prompts)
        few = _too_few(min((len(script.says(prompt)) for prompt in prompts), default=turns), turns)
        return "; ".join(filter(None, [few, script.stopped(prompts, turns, stop)]))


@dataclass(frozen=True, kw_only=True)
class TableUserConfig(UserConfig):
    """Known probabilities of known answers; see `nashpo.llm.conversation.users.table`."""

    path: str = setting("a .json file with prompts, answers, replies and the probabilities of the replies")
    role: str = setting("of its messages, as the chat template knows them", "user")

    def __post_init__(self) -> None:
        _check_role(self.role)

    def build(self, device: str = "cpu") -> TableUser:
        """The other side, its module imported now."""
        from nashpo.llm.conversation.users.table import TableUser

        return TableUser.read(self.path, self.role)

    def look(self, prompts: Sequence[Any], turns: int, stop: Sequence[str] = ()) -> str:
        """Whether the table has every prompt and turn."""
        table = self.build()
        table.check_prompts(prompts)
        return _too_few(len(table.probabilities), turns)


@dataclass(frozen=True, kw_only=True)
class FunctionUserConfig(UserConfig):
    """A Python callable, as a simulator, an environment or a tool; see `nashpo.llm.conversation.users.function`."""

    function: str = setting("module:name of what answers")
    role: str = setting("of answers that are text", "user")

    def __post_init__(self) -> None:
        module, _, name = self.function.partition(":")
        require("user.function", self.function, bool(module and name), "module:name, as my_users:curious")
        _check_role(self.role)

    def build(self, device: str) -> User:
        """The other side, its module imported now."""
        from nashpo.llm.conversation.users.function import FunctionUser

        return FunctionUser(self.function, self.role)

    def look(self, prompts: Sequence[Any], turns: int, stop: Sequence[str] = ()) -> str:
        """Whether there is such a module, and prompts that it can read."""
        check_module(self.function, "conversation.user.function")
        _check_readable(prompts)
        return ""


class _Single(Tagged):
    """An engine that draws one response per prompt unless it is told otherwise, which is refused later."""

    def read(self, value: Any, place: str) -> Any:
        """The engine's settings."""
        given = {self.tag: value} if isinstance(value, str) else value
        return super().read({"K": 1, **given} if isinstance(given, Mapping) else given, place)


INSTRUCTION = (
    "Below is a conversation between a user and an assistant. Write the user's next message: a follow-up question or"
    " request in the user's own voice. Write the message alone. If the user would have nothing more to say, write"
    " [END].\n\n{conversation}\n\nThe user's next message:"
)
"""What a model is asked by default."""


@dataclass(frozen=True, kw_only=True)
class ModelUserConfig(UserConfig):
    """A language model, by any engine; see `nashpo.llm.conversation.users.model`."""

    path: str = setting("a folder, or a name on the hub")
    revision: str | None = setting("branch, tag or commit on the hub", None)
    dtype: Literal["float32", "bfloat16", "float16"] = setting("of the weights", "float32")
    attention: str | None = setting("attn_implementation of transformers; default its own choice", None)
    trust_remote_code: bool = setting("run code that comes with the model", False)
    tokenizer: str | None = setting("a folder, or a name on the hub; default the model's", None)
    chat_template_kwargs: dict[str, Any] | None = setting("for the tokenizer's chat template", None)
    sampling: SamplingConfig = setting(
        "engine and distribution of its answers; K is 1",
        TransformersConfig(K=1),
        tagged=_Single("engine", "nashpo.llm.engines.config:ENGINES", "transformers"),
    )
    instruction: str = setting("what it is asked, with {conversation} where the transcript stands", INSTRUCTION)
    end: str = setting("an answer with this text in it, or an empty one, ends the conversation", "[END]")
    role: str = setting("of its messages, as the assistant's chat template knows them", "user")

    def __post_init__(self) -> None:
        require("user.path", self.path, isinstance(self.path, str) and bool(self.path), "a folder or a name on the hub")
        if self.sampling.K != 1:
            raise ValueError(
                f"conversation.user.sampling.K = {self.sampling.K}: the other side gives one answer; leave K out"
            )
        check_places("user.instruction", self.instruction, "conversation")
        require("user.end", self.end, isinstance(self.end, str) and bool(self.end), "a text")
        _check_role(self.role)

    def build(self, device: str = "cpu") -> ModelUser:
        """The other side, its module imported now and its weights not yet read."""
        from nashpo.llm.conversation.users.model import ModelUser

        return ModelUser(self, device)

    def look(self, prompts: Sequence[Any], turns: int, stop: Sequence[str] = ()) -> str:
        """Whether a folder that is named is there, prompts that it can read, and room for its answers.

        What is on the hub is looked at when the run begins.
        """
        place = Path(weights_place("conversation.user.path", self.path))
        _check_readable(prompts)
        if place.is_dir():
            self.build().check_room(prompts)
        return ""


USERS: dict[str, type[UserConfig]] = {
    "script": ScriptConfig,
    "table": TableUserConfig,
    "function": FunctionUserConfig,
    "model": ModelUserConfig,
}
"""Kinds of the other side by their name in ``conversation: {user: {kind: NAME, ...}}``."""
