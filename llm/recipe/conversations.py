"""How many answers and rows conversations make of a prompt, and how long they are: what a plan counts them by.

A recipe without conversations is the case of one turn. Shapes: a tree with w_1 ⋯ w_h conversations per prompt after the
assistant's turn h. Lengths are in tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any

from nashpo.llm.conversation.config import ConversationConfig
from nashpo.llm.lengths import Lengths
from nashpo.llm.recipe.schema import Recipe

if TYPE_CHECKING:
    from nashpo.llm.prompts import Prompt

REPLY = 50
"""Tokens of an answer of the other side with what stands around it, where no script says it: an assumption."""
CHARACTERS = 4
"""Characters per token of a script."""


@dataclass(frozen=True)
class Tree:
    """What is drawn from one prompt, at most.

    Attributes
    ----------
    widths : tuple of int
        Conversations after each of the assistant's turns.
    rows : int
        Rows that a stage is trained on.
    behind : int, optional
        Most tokens behind the prompt.
    """

    widths: tuple[int, ...]
    rows: int
    behind: int | None

    @property
    def responses(self) -> int:
        """Whole conversations, or single answers."""
        return self.widths[-1]

    @property
    def answers(self) -> int:
        """That are drawn: nodes of the tree."""
        return sum(self.widths)

    @property
    def draws(self) -> list[tuple[int, int]]:
        """States, and answers at each of them, by turns."""
        states = (1, *self.widths[:-1])
        return [(count, width // count) for count, width in zip(states, self.widths, strict=True)]

    def drawn(self, longest: int) -> int:
        """The assistant's tokens that are drawn, for answers of ``longest`` tokens."""
        most = self.answers * longest
        return most if self.behind is None else min(most, self.responses * self.behind)

    def stored(self, longest: int) -> int:
        """The assistant's tokens of all conversations, each of which is stored as a whole."""
        most = len(self.widths) * longest
        return self.responses * (most if self.behind is None else min(most, self.behind))


def tree(recipe: Recipe, K: int | None = None) -> Tree:
    """What is drawn from a prompt: for training, or K conversations for an evaluation.

    Parameters
    ----------
    recipe : Recipe
    K : int, optional
        Of an evaluation, whose conversations are drawn one by one.
    """
    talk, sampling = recipe.conversation, recipe.sampling
    count = K if K is not None else 0 if sampling is None else sampling.K
    if talk is None:
        return Tree((count,), 1, None)
    if K is not None:
        talk = replace(talk, level="trajectory", branches=None)
    return Tree(talk.widths(count), talk.rows(count), talk.tokens(0 if sampling is None else sampling.max_new_tokens))


def reply_tokens(recipe: Recipe) -> int:
    """Tokens of the other side's answer: a word of a tiny model's, a script's texts in the mean, otherwise `REPLY`."""
    if recipe.model.build is not None:
        return 1
    user = None if recipe.conversation is None else recipe.conversation.user
    says: Sequence[str] = getattr(user, "says", None) or ()
    return ceil(sum(map(len, says)) / len(says) / CHARACTERS) if says else REPLY


def turn_lengths(recipe: Recipe, lengths: Lengths) -> list[Lengths]:
    """What is read before an answer and the answer, by turns: as many as have room for their longest answer.

    Parameters
    ----------
    recipe : Recipe
    lengths : Lengths
        Of prompts and of single answers.
    """
    talk, sampling = recipe.conversation, recipe.sampling
    if talk is None or sampling is None:
        return [lengths]
    found, new = [lengths], sampling.max_new_tokens
    whole, cap = recipe.training.get("max_length", 1024), talk.tokens(new)
    for turn in range(1, talk.turns):
        behind = turn * (lengths.response + reply_tokens(recipe))
        most = behind + new
        if (cap is not None and most > cap) or (whole is not None and lengths.prompt + most > whole):
            break
        found.append(Lengths(tuple(p + behind for p in lengths.prompts), lengths.responses))
    return found


def whole_lengths(recipe: Recipe, turns: Sequence[Lengths]) -> Lengths:
    """Prompts, and all that stands behind them, of conversations with so many turns."""
    first, count = turns[0], len(turns)
    if recipe.conversation is None or count == 1:
        return first
    between = (count - 1) * reply_tokens(recipe)
    return Lengths(first.prompts, tuple(count * r + between for r in first.responses))


def longest(recipe: Recipe) -> int:
    """Tokens of the longest response behind its prompt, both sides': of a conversation, or of a single answer."""
    talk, sampling = recipe.conversation, recipe.sampling
    new = 0 if sampling is None else sampling.max_new_tokens
    if talk is None:
        return new
    most, cap = talk.turns * new + (talk.turns - 1) * reply_tokens(recipe), talk.tokens(new)
    return most if cap is None else min(most, cap)


def look(talk: ConversationConfig | None, prompts: Sequence["Prompt"], encoder: Any) -> str:
    """Hold prompts against the other side and the chat template, before anything is sampled.

    Parameters
    ----------
    talk : ConversationConfig, optional
        None where there are no conversations.
    prompts : sequence of Prompt
    encoder
        An `Encoder`, or what stands for one where there is no tokenizer.

    Returns
    -------
    str
        What is no mistake and should be known; empty where there is nothing.

    Raises
    ------
    ValueError
        If a prompt is plain text and nothing says how a conversation goes on behind it, the chat template does not
        keep earlier turns, or the other side has nothing for a prompt or could never be asked.
    """
    from nashpo.llm.encoding import Encoder, is_conversation

    if talk is None:
        return ""
    if talk.text_template is None and (plain := [p.key for p in prompts if not is_conversation(p.text)]):
        raise ValueError(
            f"{len(plain)} of {len(prompts)} prompts are plain text (the first has the key {plain[0][:12]}), and"
            " nothing says how a conversation goes on behind them: set prompts.chat=true for the model's chat template,"
            " or conversation.text_template with {text} in it"
        )
    if isinstance(encoder, Encoder):
        from nashpo.llm.conversation.turns import TurnWriter

        TurnWriter(encoder, talk.text_template).check(prompts, getattr(talk.user, "role", "user"))
    return "" if talk.user is None else talk.user.look([prompt.text for prompt in prompts], talk.turns, talk.stop)
