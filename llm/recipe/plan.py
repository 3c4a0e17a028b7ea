"""The dry run: what a recipe would do, counted on its real files. Nothing is written and no weights are read.

Counts are of prompts, responses, judge questions and optimizer steps; lengths in tokens, sizes in bytes.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nashpo.llm.callables import check_module
from nashpo.llm.judges.config import ModelConfig
from nashpo.llm.prompts import PromptSet, load_pairs, load_prompts, split
from nashpo.llm.quantized import check_optimizer
from nashpo.llm.recipe import conversations, footprint, objectives, outlook, timing
from nashpo.llm.recipe.counting import updates, work
from nashpo.llm.recipe.model_limits import Limits, check_lengths, check_reference, check_tokens
from nashpo.llm.recipe.places import weights_place
from nashpo.llm.recipe.planned import Draft, Phase, Plan, ids_of, length, size_text
from nashpo.llm.recipe.schema import DataSpec, Recipe
from nashpo.llm.recipe.state_objectives import at_level
from nashpo.llm.recipe.training import arguments, shared

CHARACTERS = 4
"""Characters per token where there is no tokenizer to measure with."""
_LOCAL = (".json", ".jsonl", ".npz", ".safetensors")


class CharacterCount:
    """Stands for an encoder where there is no tokenizer: prompts have the right number of ids, about."""

    def prompt(self, prompt: Any, options: Mapping[str, Any] | None = None) -> list[int]:
        """Zeros, one for every four characters of the text; token ids as they are."""
        if isinstance(prompt, list) and all(isinstance(x, int) for x in prompt):
            return list(prompt)
        characters = len(prompt) if isinstance(prompt, str) else sum(len(str(m.get("content"))) for m in prompt)
        return [0] * max(1, math.ceil(characters / CHARACTERS))


def plan(recipe: Recipe, hardware: str | None = None) -> Plan:
    """Check a recipe against its files and count what it would do.

    Parameters
    ----------
    recipe : Recipe
    hardware : str, optional
        What times are predicted for, a name of `nashpo.llm.hardware.HARDWARE`; by default the GPU that is here.

    Raises
    ------
    ValueError
        On unknown hardware, and whatever would stop the run: a model without configuration, files that are missing or
        hold something else, too few prompts, a loss that is wrong for a stage of the rule, a package that is not
        installed.
    """
    cluster = timing.cluster_of(hardware)
    if recipe.output_dir.is_file():
        raise ValueError(f"output_dir = {recipe.output_dir} is a file: give another folder")
    _check_judge(recipe)
    size = footprint.measure(recipe.model)
    _check_training(recipe)
    objectives.check(at_level(recipe.objective, recipe.conversation), recipe.rule, recipe.iterations.count)
    encoder, how = _encoder(recipe)
    found = _prompts(recipe, encoder)
    evaluation = _evaluation_prompts(recipe, encoder, found)
    draft = Draft(
        recipe,
        size,
        split(found.training, recipe.iterations),
        evaluation,
        work(recipe.rule, recipe.iterations.count),
    )
    _check_model(draft, encoder)
    if known := conversations.look(recipe.conversation, [*found.training, *evaluation], encoder):
        draft.warnings.append(known)
    if recipe.warmup is not None and recipe.start_from is None:
        _warm_up(draft, encoder)
    for t in range(recipe.iterations.count):
        _iteration(draft, t)
    draft.warnings.extend(outlook.warnings(recipe, size, draft.parts))
    totals = _totals(draft.phases)
    disk = outlook.disk(draft, totals)
    free = footprint.free_disk(recipe.output_dir)
    if sum(disk.values()) > free:
        draft.warnings.append(f"the run needs {size_text(sum(disk.values()))} of disk and {size_text(free)} are free")
    mean, todo = draft.mean_length, draft.work
    time = timing.predict(recipe, size, todo, [len(part) for part in draft.parts], mean, *cluster)
    counted = f"{size.parameters:,} parameters"
    counted += "" if size.trained == size.parameters else f", {size.trained:,} of them trained"
    return Plan(
        f"{recipe.rule!r} on {recipe.model.path or 'a tiny model'} ({counted}), seed {recipe.seed}",
        str(found.report),
        how,
        tuple(draft.phases),
        totals,
        disk,
        outlook.memory(draft),
        outlook.hardware(recipe, size, mean),
        time,
        tuple(recipe.notes()),
        tuple(draft.warnings),
    )


def _check_model(draft: Draft, encoder: Any) -> None:
    """Hold prompts, responses and the reference against the model's configuration, where they can be measured."""
    recipe = draft.recipe
    if recipe.model.build is not None:
        return
    limits = Limits.of(footprint.read_config(recipe.model))
    check_reference(recipe, limits)
    if isinstance(encoder, CharacterCount):
        return
    parts, held_out = ([[ids_of(item) for item in part] for part in found] for found in (draft.parts, [draft.held_out]))
    every = [ids for part in [*parts, *held_out] for ids in part]
    check_tokens(limits, every, encoder.tokenizer.pad_token_id, encoder.end_ids)
    if known := check_lengths(recipe, limits, parts, held_out[0]):
        draft.warnings.append(known)


def _check_judge(recipe: Recipe) -> None:
    """What can be seen without loading a judge: that its files are there, or its module."""
    judge = recipe.judge
    path = getattr(judge, "path", None)
    if path is not None and not Path(path).expanduser().exists():
        local = path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path).suffix in _LOCAL
        if local:
            raise ValueError(f"judge.path = {path!r}: there is no such file or folder")
    if isinstance(judge, ModelConfig) and Path(judge.path).expanduser().exists():
        weights_place("judge.path", judge.path)
    function = getattr(judge, "function", None)
    if function is not None:
        check_module(function, "judge.function")


def _check_training(recipe: Recipe) -> None:
    """Make the arguments once, without the precision, which the machine that trains must have."""
    from nashpo.llm.config import SelfPlayConfig

    own = {name: value for name, value in recipe.training.items() if name not in ("bf16", "fp16", "tf32")}
    try:
        SelfPlayConfig(**arguments(own, output_dir=str(recipe.output_dir)))
    except (ValueError, TypeError) as error:
        raise ValueError(f"training: {' '.join(str(error).split())}") from None
    shared(recipe.training, footprint.processes())
    check_optimizer(str(recipe.training.get("optim", "")))


# ------------------------------------------------------------------------------------------------------------ prompts


def _encoder(recipe: Recipe) -> tuple[Any, str]:
    from nashpo.llm.encoding import Encoder
    from nashpo.llm.loop.loading import load_tokenizer

    model = recipe.model
    if model.build is not None:
        from nashpo.llm.tiny import tiny_tokenizer

        return Encoder(tiny_tokenizer(model.build)), "measured with the tiny model's tokenizer"
    if not footprint.has_tokenizer(model):
        return CharacterCount(), f"estimated at {CHARACTERS} characters a token: the model's folder has no tokenizer"
    tokenizer = load_tokenizer(model, str(model.path))
    found = Encoder(tokenizer, (), model.chat_template_kwargs)
    return found, "prompts measured with the tokenizer, responses at most max_new_tokens"


def _prompts(recipe: Recipe, encoder: Any) -> PromptSet:
    longest = recipe.training.get("max_prompt_length")
    if recipe.pairs is not None:
        return load_pairs(recipe.pairs, encoder, seed=recipe.seed, max_prompt_length=longest)
    if recipe.prompts is not None:
        return load_prompts(recipe.prompts, encoder, seed=recipe.seed, max_prompt_length=longest)
    from nashpo.llm.prompts import Prompt, ReadReport

    assert recipe.model.build is not None  # the requirements see to it
    own = [Prompt.of(text, encoder.prompt(text)) for text in recipe.model.build.prompt_texts]
    return PromptSet(own, [], ReadReport(len(own), len(own), 0))


def _evaluation_prompts(recipe: Recipe, encoder: Any, found: PromptSet) -> list[Any]:
    if recipe.evaluation is None:
        return []
    if recipe.evaluation.prompts is None:
        return found.heldout or (found.training if recipe.model.build is not None else [])
    longest = recipe.training.get("max_prompt_length")
    own = load_prompts(recipe.evaluation.prompts, encoder, seed=recipe.seed, max_prompt_length=longest)
    return [*own.training, *own.heldout]


# ------------------------------------------------------------------------------------------------------------- phases


def _warm_up(draft: Draft, encoder: Any) -> None:
    warmup = draft.recipe.warmup
    assert warmup is not None
    if warmup.data is None:
        draft.add(0, "warmup", "the tiny model to its target")
        return
    rows = _rows(warmup.data)
    draft.add(0, "warmup", "supervised", prompts=rows, steps=updates(rows, warmup.training))


def _rows(spec: DataSpec) -> int:
    from nashpo.llm.rows import read_rows

    rows = len(read_rows(spec))
    return rows if spec.limit is None else min(rows, spec.limit)


def _iteration(draft: Draft, t: int) -> None:
    recipe, prompts, todo = draft.recipe, draft.parts[t], draft.work[t]
    each = conversations.tree(recipe)
    for name in sorted(todo.samples()):
        draft.add(t + 1, "sample", name, **_sampled(draft, each, prompts))
    if compared := len(prompts) * todo.comparisons(each.responses):
        draft.add(t + 1, "judge", ", ".join(sorted(todo.samples())), prompts=len(prompts), questions=2 * compared)
    for fit in todo.fits:
        rows = len(prompts) * each.rows
        counts = {"prompts": len(prompts)} | ({"rows": rows} if each.rows > 1 else {})
        draft.add(t + 1, "train", fit.writes, **counts, steps=updates(rows, recipe.training))
    evaluation = recipe.evaluation
    if evaluation is not None and (t + 1) % evaluation.every == 0:
        _evaluate(draft, t)


def _sampled(draft: Draft, each: conversations.Tree, prompts: Sequence[Any], policies: int = 1) -> dict[str, int]:
    """Counts of what is drawn from so many prompts and policies: turns where they are not the responses."""
    longest = 0 if draft.recipe.sampling is None else draft.recipe.sampling.max_new_tokens
    count = len(prompts) * policies
    draft.stored += count * each.stored(longest)
    counts = {"prompts": len(prompts), "responses": count * each.responses}
    if draft.recipe.conversation is not None:
        counts["turns"] = count * each.answers
    tokens = {"prompt_tokens": sum(map(length, prompts)), "response_tokens": count * each.drawn(longest)}
    return {**counts, **tokens}


def _evaluate(draft: Draft, t: int) -> None:
    recipe, prompts = draft.recipe, draft.held_out
    evaluation = recipe.evaluation
    assert evaluation is not None
    K = evaluation.K
    first = t + 1 == evaluation.every
    # Opponents that an earlier evaluation has not sampled; the reference is the first iterate's predecessor.
    new = {"reference"} & set(evaluation.against) if first else set()
    begun = t == 0 and (not new or recipe.reference is not None)
    if "previous" in evaluation.against and (evaluation.every > 1 or begun):
        new |= {"previous"}
    same = t == 0 and recipe.reference is None
    opponents = 1 if same and evaluation.against else len(evaluation.against)
    draft.add(
        t + 1,
        "evaluate",
        f"current@{t + 1}",
        **_sampled(draft, conversations.tree(recipe, K), prompts, 1 + len(new)),
        questions=2 * len(prompts) * K * K * opponents,
    )


def _totals(phases: Sequence[Phase]) -> dict[str, int]:
    names = ("responses", "turns", "questions", "steps", "prompt_tokens", "response_tokens")
    found = {name: sum(phase.counts.get(name, 0) for phase in phases) for name in names}
    return {name: count for name, count in found.items() if count or name != "turns"}
