"""A recipe's prompts and responses held against its model: positions, vocabulary, and the longest trained sequence.

Shapes: lists of token ids, one per prompt. Lengths are in tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nashpo.llm.recipe.footprint import read_config

if TYPE_CHECKING:
    from nashpo.llm.recipe.schema import Recipe

Ids = Sequence[int]


@dataclass(frozen=True)
class Limits:
    """What a model can read.

    Attributes
    ----------
    positions : int, optional
        Tokens of a sequence; None where the configuration does not say.
    vocabulary : int
        Rows of its embedding: ids from here on have none.
    """

    positions: int | None
    vocabulary: int

    @classmethod
    def of(cls, config: Any, vocabulary: int | None = None) -> "Limits":
        """Of a transformers configuration; ``vocabulary`` where the model itself is there to be asked."""
        text = config.get_text_config()
        return cls(getattr(text, "max_position_embeddings", None), vocabulary or text.vocab_size)


def check_tokens(limits: Limits, prompts: Sequence[Ids], pad: int | None, ends: Sequence[int]) -> None:
    """That every token that the model will read has an embedding.

    Parameters
    ----------
    limits : Limits
    prompts : sequence of ids
    pad : int, optional
        What is written beside shorter sequences.
    ends : sequence of int
        What responses end with.

    Raises
    ------
    ValueError
        Usually the tokenizer is another model's, or has tokens that were added to it and not to the model.
    """
    found = [*(() if pad is None else [("pad token", pad)]), *(("end token", token) for token in ends)]
    found += [("largest token of the prompts", max((max(ids, default=0) for ids in prompts), default=0))]
    for name, token in found:
        if token >= limits.vocabulary:
            raise ValueError(
                f"the {name} has id {token}, but the model has {limits.vocabulary} embeddings: take the model's own"
                " tokenizer, or add the tokenizer's tokens to the model (resize_token_embeddings) and save it"
            )


def check_reference(recipe: "Recipe", limits: Limits) -> None:
    """That the reference is there and reads the model's tokens; its weights are not read.

    Raises
    ------
    ValueError
    """
    if recipe.reference is None:
        return
    theirs = Limits.of(read_config(recipe.reference, "reference.path")).vocabulary
    if theirs != limits.vocabulary:
        raise ValueError(
            f"reference.path = {recipe.reference.path!r} has {theirs} embeddings and the model {limits.vocabulary}:"
            " both must read the same tokens"
        )


def check_lengths(
    recipe: "Recipe",
    limits: Limits,
    parts: Sequence[Sequence[Ids]],
    held_out: Sequence[Ids],
    ends: Sequence[int] | None = None,
) -> str:
    """That prompts and responses fit the model, and some of each iteration's the training.

    Parameters
    ----------
    recipe : Recipe
    limits : Limits
    parts : sequence of sequences of ids
        The prompts of each iteration.
    held_out : sequence of ids
    ends : sequence of int, optional
        What responses end with, where it is known: without any a response has ``max_new_tokens``, and with one there
        are no two different responses of one token that was not cut.

    Returns
    -------
    str
        What is no mistake and should be known; empty where there is nothing.

    Raises
    ------
    ValueError
        If a response of ``max_new_tokens`` (of a conversation, its first answer) to the longest prompt would go beyond
        the model's positions, or no prompt of an iteration leaves room for responses within ``training.max_length``
        that could be trained on.
    """
    if recipe.sampling is None:
        return ""
    new, lengths = recipe.sampling.max_new_tokens, [[len(ids) for ids in part] for part in parts]
    longest = max([n for part in lengths for n in part] + [len(ids) for ids in held_out], default=0)
    if limits.positions is not None and longest + new > limits.positions:
        room = limits.positions - longest
        lower = f"lower it to {room} or less, or " if room > 0 else ""
        raise ValueError(
            f"sampling.max_new_tokens = {new} behind the longest prompt of {longest} tokens does not fit the model's"
            f" {limits.positions} positions: {lower}leave out long prompts by training.max_prompt_length"
        )
    most = recipe.training.get("max_length", 1024)
    known = _shortened(recipe, limits.positions, most, [n for part in lengths for n in part])
    if most is None:
        return known
    least = _least(recipe, ends, new)
    for number, part in enumerate(lengths, 1):
        if part and min(part) + least > most:
            what = "a response" if min(part) >= most else f"responses of {least} tokens, the fewest to learn from,"
            raise ValueError(
                f"training.max_length = {most} leaves no room for {what} to any prompt of iteration {number}, the"
                f" shortest of which has {min(part)} tokens: raise it to {longest + new} to keep all responses"
            )
    cut = sum(n + new > most for part in lengths for n in part)
    if not cut:
        return known
    left_out = (
        f"training.max_length = {most}: {cut} of {sum(map(len, lengths))} prompts are left out of training where a"
        f" response of theirs is longer than what is left; {longest + new} keeps all"
    )
    return f"{left_out}; {known}" if known else left_out


def _least(recipe: "Recipe", ends: Sequence[int] | None, new: int) -> int:
    """Tokens that the longest of a prompt's responses has at least, where these are not all the same one."""
    if ends is None or recipe.pairs is not None:
        return 1
    if not ends:
        return new
    return 2 if len(set(ends)) == 1 and new > 1 else 1


def _shortened(recipe: "Recipe", positions: int | None, most: int | None, prompts: Sequence[int]) -> str:
    """A note where conversations may end before their last turn because of the model or of the trainer.

    An answer is begun only where ``max_new_tokens`` have room, so that no conversation is too long for either.
    """
    named = {"the model's positions": positions, "training.max_length": most}
    limits = [(limit, name) for name, limit in named.items() if limit is not None]
    if recipe.conversation is None or recipe.sampling is None or not limits:
        return ""
    limit, name = min(limits)
    turns, new = recipe.conversation.turns, recipe.sampling.max_new_tokens
    short = sum(n + turns * new > limit for n in prompts)
    if not short:
        return ""
    return (
        f"{name}, {limit}: conversations end before an answer that might not fit. {short} of {len(prompts)} prompts"
        f" leave no room for {turns} answers of sampling.max_new_tokens = {new}; {max(prompts) + turns * new} and the"
        " tokens of the other side keep all turns"
    )
