"""What each iteration works on: prompts, and the labelled pairs of rules that learn from data.

Shapes: B prompts per iteration; a pair belongs to each of them where there are pairs.
"""

from dataclasses import dataclass
from typing import Any

from nashpo.llm.data import Limits, prepare
from nashpo.llm.encoding import Encoder
from nashpo.llm.loop.backend import Pairs, Work
from nashpo.llm.prompts import PairRow, Prompt, PromptSet, load_pairs, load_prompts, split
from nashpo.llm.recipe.schema import DataSpec, Recipe


@dataclass(frozen=True)
class Plan:
    """The work of all iterations, and what is held out for evaluation."""

    iterations: tuple[Work, ...]
    heldout: tuple[Prompt, ...]
    report: str


def read_work(recipe: Recipe, prompts: DataSpec | None, encoder: Encoder, vocabulary: int) -> Plan:
    """Read, encode and split a recipe's data.

    Parameters
    ----------
    recipe : Recipe
    prompts : DataSpec, optional
        In place of the recipe's own, for a model that brings its prompts.
    encoder : Encoder
    vocabulary : int
        Of the model.

    Raises
    ------
    ValueError
        Data that cannot be read or are too few.
    """
    longest = recipe.training.get("max_prompt_length")
    if recipe.pairs is not None:
        found = load_pairs(recipe.pairs, encoder, seed=recipe.seed, max_prompt_length=longest)
        works = [_paired(part, recipe, encoder, vocabulary) for part in split(found.training, recipe.iterations)]
        heldout = [row.prompt for row in found.heldout]
    else:
        spec = prompts if prompts is not None else recipe.prompts
        assert spec is not None
        found = load_prompts(spec, encoder, seed=recipe.seed, max_prompt_length=longest)
        works = [Work(tuple(part)) for part in split(found.training, recipe.iterations)]
        heldout = found.heldout
    if recipe.evaluation is not None and recipe.evaluation.prompts is not None:
        own = load_prompts(recipe.evaluation.prompts, encoder, seed=recipe.seed, max_prompt_length=longest)
        heldout = [*own.training, *own.heldout]
    return Plan(tuple(works), tuple(heldout), _told(found))


def _told(found: PromptSet) -> str:
    return str(found.report)


def _paired(rows: list[PairRow], recipe: Recipe, encoder: Encoder, vocabulary: int) -> Work:
    training = recipe.training
    limits = Limits(
        training.get("max_length", 1024),
        training.get("max_prompt_length"),
        training.get("truncation", "drop"),
        training.get("missing_eos", "keep"),
        training.get("ties", "skip"),
        training.get("label_smoothing", 0.0),
    )
    spec: Any = recipe.pairs
    data = prepare([row.row for row in rows], encoder, limits, [*spec.ignored_columns, *_META], vocabulary)
    kept = [int(name) for name in data.responses.names]
    sequences = data.responses.sequences
    prompts = []
    for place, row in zip(kept, sequences, strict=True):
        first = row[0]
        # A prompt that was cut is the one that both responses are scored after.
        prompts.append(Prompt.of(rows[place].prompt.text, first.ids[: first.mask.index(1)]))
    pairs = Pairs(tuple(row[0] for row in sequences), tuple(row[1] for row in sequences), data)
    return Work(tuple(prompts), pairs)


_META = ("prompt_id", "messages", "score_chosen", "score_rejected", "source")
"""Columns of well-known preference sets that mean nothing here."""
