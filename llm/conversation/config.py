"""Settings of conversations as they stand in a recipe under ``conversation``.

K is ``sampling.K``, H ``turns``, b ``branches``. Lengths are in tokens. Loading this imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Literal

from nashpo.llm.conversation.settings import check_places, require, texts
from nashpo.llm.conversation.users.config import UserConfig
from nashpo.llm.recipe.parsing import Tagged
from nashpo.llm.settings import setting, whole


@dataclass(frozen=True, kw_only=True)
class ConversationConfig:
    """A response is a conversation: several of the assistant's turns with the other side's between them.

    With ``level: trajectory`` the response is the whole conversation: K of them per prompt are drawn, compared and
    learned from like any other responses. With ``level: state`` every turn takes the step by itself: at each state (the
    prompt, or a conversation up to an answer of the other side) there are several continuations, whose payoff is
    estimated from the whole conversations that go on from them.

    Raises
    ------
    ValueError
        On a value out of range, in one line that begins with ``conversation.``.
    """

    turns: int = setting("the assistant's turns at most, at least 2")
    user: UserConfig | None = setting(
        "the other side; may be left out where a tiny model with several turns is built, which brings its own",
        None,
        tagged=Tagged("kind", "nashpo.llm.conversation.users.config:USERS"),
    )
    level: Literal["trajectory", "state"] = setting(
        "what takes the step: the whole conversation, or every turn by itself", "trajectory"
    )
    branches: int | None = setting("level state: continuations at each later state; default sampling.K", None)
    max_tokens: int | None = setting(
        "of both sides behind the prompt: a turn is begun only if the other side's answer and max_new_tokens still fit",
        None,
    )
    stop: tuple[str, ...] = setting("texts: an answer of the other side with one of them ends the conversation", ())
    text_template: str | None = setting(
        "how the other side's turn is written behind a prompt that is plain text, with {text} in it; default prompts"
        " must be conversations",
        None,
    )

    def __post_init__(self) -> None:
        require("turns", self.turns, whole(self.turns, 2), "a whole number of the assistant's turns, at least 2")
        if self.level not in ("trajectory", "state"):
            raise ValueError(f"conversation.level is {self.level!r}; it must be trajectory or state")
        if self.branches is not None:
            fits = whole(self.branches, 2)
            require("branches", self.branches, fits, "a whole number of continuations, at least 2, or null for K")
            if self.level != "state":
                raise ValueError(
                    f"conversation.branches = {self.branches} is for conversation.level=state, and it is {self.level}:"
                    " leave branches out; sampling.K says how many conversations there are"
                )
        if self.max_tokens is not None:
            require("max_tokens", self.max_tokens, whole(self.max_tokens, 1), "a whole number of tokens, at least 1")
        fits = not isinstance(self.stop, str) and texts(self.stop)
        require("stop", self.stop, fits, "a list of texts, none of them empty")
        if self.text_template is not None:
            check_places("text_template", self.text_template, "text")

    def alone(self, K: int) -> tuple[int, ...]:
        """(K, 1, …, 1): answers drawn at each state of a depth for K independent conversations."""
        return (K, *(1,) * (self.turns - 1))

    def draws(self, K: int) -> tuple[int, ...]:
        """Answers drawn at each state of a depth for training: `alone`, or (K, b, …, b) with ``level: state``."""
        return self.alone(K) if self.level == "trajectory" else (K, *(self.branches or K,) * (self.turns - 1))

    def widths(self, K: int) -> tuple[int, ...]:
        """K b^(h−1) for h = 1 to H: conversations per prompt after each of the assistant's turns."""
        return tuple(accumulate(self.draws(K), mul))

    def leaves(self, K: int) -> int:
        """Conversations per prompt: K, or K b^(H−1) with ``level: state``."""
        return self.widths(K)[-1]

    def drawn(self, K: int) -> int:
        """The assistant's turns that are drawn per prompt at most: K H, or K + K b + … + K b^(H−1)."""
        return sum(self.widths(K))

    def rows(self, K: int) -> int:
        """Rows that a stage is trained on per prompt: 1, or one per state, 1 + K + K b + … + K b^(H−2)."""
        return 1 if self.level == "trajectory" else 1 + sum(self.widths(K)[:-1])

    def tokens(self, max_new_tokens: int) -> int | None:
        """Tokens behind the prompt at most, both sides': ``max_tokens``, but the first answer is always drawn.

        None where it is not set: how long the other side's answers are is not known.
        """
        return None if self.max_tokens is None else max(self.max_tokens, max_new_tokens)
