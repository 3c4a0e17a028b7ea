"""Everything that a run needs before its first iteration, made from its recipe, and what can be refused refused."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from nashpo.llm.engines.engine import Engine, EngineContext
from nashpo.llm.judges.cache import Cache
from nashpo.llm.judges.config import TableConfig
from nashpo.llm.judges.judge import Judge
from nashpo.llm.loop.backend import RunBackend
from nashpo.llm.loop.conversing import engines_of, ready_judge
from nashpo.llm.loop.evaluating import Evaluator
from nashpo.llm.loop.loading import device, encoder_of, end_ids, load_model, load_tokenizer
from nashpo.llm.loop.policies import AdapterFolders, RunPolicies, WholeFolders
from nashpo.llm.loop.progress import Bars
from nashpo.llm.loop.ranks import Ranks
from nashpo.llm.loop.start import TINY, base, build, start
from nashpo.llm.loop.training import Fitting
from nashpo.llm.loop.work import Plan, read_work
from nashpo.llm.quantized import check_optimizer
from nashpo.llm.recipe.conversations import look
from nashpo.llm.recipe.footprint import measure
from nashpo.llm.recipe.model_limits import Limits, check_lengths, check_reference, check_tokens
from nashpo.llm.recipe.objectives import check as check_loss
from nashpo.llm.recipe.places import ADAPTER
from nashpo.llm.recipe.requirements import Needs
from nashpo.llm.recipe.schema import DataSpec, Recipe
from nashpo.llm.recipe.state_objectives import at_level
from nashpo.llm.sharding import asked_for, check_asked

CACHE = "judge_cache.jsonl"


@dataclass
class Prepared:
    """A run that can be played.

    Attributes
    ----------
    backend : RunBackend
    evaluator : Evaluator, optional
    """

    backend: RunBackend
    evaluator: Evaluator | None

    def close(self) -> None:
        """Give back what engine and judge hold."""
        engines = [self.backend.engine, None if self.evaluator is None else self.evaluator.engine]
        for held in {id(x): x for x in [*engines, self.backend.judge] if x is not None}.values():
            held.close()


def prepare(run: Path, recipe: Recipe, ranks: Ranks, bars: Bars, say: Callable[[str], None]) -> Prepared:
    """Load, read and check everything, on each process of the job.

    Raises
    ------
    ValueError
        Whatever cannot work, before any long work is done.
    """
    form, needs = recipe.rule.form(), Needs.of(recipe.rule.form())
    check_asked(recipe.training, ranks.world, device().type)
    check_optimizer(str(recipe.training.get("optim", "")))
    loss = at_level(recipe.objective, recipe.conversation)
    check_loss(loss, recipe.rule, recipe.iterations.count)
    bars.phase("model")
    build(run, recipe, ranks)
    origin = base(run, recipe)
    key = "model.path" if recipe.start_from is None else "start_from"
    tokenizer = load_tokenizer(recipe.model, origin, key)
    model: Any = load_model(recipe.model, origin, key)
    ends, vocabulary = end_ids(tokenizer, model), model.get_input_embeddings().weight.shape[0]
    encoder = encoder_of(recipe.model, tokenizer, ends)
    fitting = Fitting(
        recipe.training, lambda job: loss.build(recipe.rule, job), tokenizer, recipe.seed, bars.quiet, ranks
    )
    bars.phase("data")
    plan = read_work(recipe, tiny_prompts(run, recipe), encoder, vocabulary)
    say(plan.report)
    for line in _checked(recipe, origin, plan, tokenizer, ends, Limits.of(model.config, vocabulary)):
        say(line)
    bars.phase("judge")
    judge = judge_of(run, recipe)
    if judge is not None:
        ready_judge(judge, recipe.conversation is not None, ranks)
    context = EngineContext(
        tokenizer,
        ends,
        tokenizer.pad_token_id,
        len(tokenizer) if vocabulary > len(tokenizer) else None,
        device(),
        lambda count: None,
    )
    limits = Limits.of(model.config, vocabulary)
    every = [*(prompt for work in plan.iterations for prompt in work.prompts), *plan.heldout]
    if note := look(recipe.conversation, every, encoder):
        say(note)
    engines = engines_of(run, recipe, context, encoder, limits.positions, needs.samples)
    bars.phase("warmup")
    begin = start(run, recipe, origin, model, fitting, encoder)
    del model
    bars.phase("")
    policies = policies_of(run, recipe, begin, tokenizer)
    cache = None if judge is None else Cache(run / _cache(ranks))
    shard = recipe.sampling.shard if recipe.sampling is not None else 64
    backend = RunBackend(
        run,
        form,
        policies,
        lambda t: plan.iterations[t],
        fitting,
        engines.training,
        judge,
        cache,
        engines.level,
        shard,
        recipe.seed,
        recipe.max_abstained,
        bars,
        say=say,
    )
    evaluator = _evaluator(run, recipe, plan, policies, engines.evaluation, judge, cache, fitting, shard, bars)
    return Prepared(backend, evaluator)


def _checked(recipe: Recipe, origin: str, plan: Plan, tokenizer: Any, ends: Sequence[int], limits: Limits) -> list[str]:
    """Hold data, reference and adapter against the model; what should be known is returned."""
    parts = [[prompt.ids for prompt in work.prompts] for work in plan.iterations]
    held_out = [prompt.ids for prompt in plan.heldout]
    check_tokens(limits, [ids for part in [*parts, held_out] for ids in part], tokenizer.pad_token_id, ends)
    _check_adapter(recipe)
    if recipe.model.adapter is not None:
        measure(replace(recipe.model, path=origin, build=None))  # makes the adapter without any weights
    check_reference(recipe, limits)
    known = check_lengths(recipe, limits, parts, held_out, ends)
    ending = [] if ends else ["no end token is known: every response is cut at sampling.max_new_tokens"]
    return ending + ([known] if known else [])


def _cache(ranks: Ranks) -> str:
    """One file per process, since a file of answers has one writer."""
    return CACHE if ranks.is_first else f"judge_cache.{ranks.rank}.jsonl"


def judge_of(run: Path, recipe: Recipe) -> Judge | None:
    """The recipe's judge; of a model that was built, the game that it brought."""
    config = recipe.judge
    if config is None and recipe.model.build is not None:
        config = TableConfig(path=str(run / TINY / "game.json"))
    return None if config is None else config.build(str(device()))


def tiny_prompts(run: Path, recipe: Recipe) -> DataSpec | None:
    """The prompts that a built model brought, where the recipe has none of its own."""
    if recipe.model.build is None or recipe.prompts is not None:
        return None
    return DataSpec(path=str(run / TINY / "prompts.jsonl"))


def policies_of(run: Path, recipe: Recipe, begin: str, tokenizer: Any) -> RunPolicies:
    """The run's policies; ``begin`` is the folder or name of the one that self-play starts from.

    Raises
    ------
    ValueError
        If the reference or the adapter cannot be had beside it.
    """
    if recipe.model.adapter is None:
        reference = begin if recipe.reference is None else str(recipe.reference.path)
        origins = {"start": Path(begin), "reference": Path(reference), "behavior": Path(begin)}
        return WholeFolders(run, origins, partial(_load, recipe, begin), tokenizer)
    _check_adapter(recipe)
    if (Path(begin) / ADAPTER).exists():
        raise ValueError(f"{begin} holds an adapter: merge it into its base before another one is trained on it")
    from peft import LoraConfig

    try:
        config = LoraConfig(**{"task_type": "CAUSAL_LM", **recipe.model.adapter})
    except TypeError as error:
        raise ValueError(f"model.adapter: {error} (its keys are fields of peft's LoraConfig)") from None
    return AdapterFolders(run, load_model(recipe.model, begin), config, Path(begin))


def _load(recipe: Recipe, begin: str, path: Path) -> nn.Module:
    """One of the run's policies; the reference with its own revision and attention, in the model's dtype."""
    other = recipe.reference
    if other is None or path != Path(str(other.path)) or path == Path(begin):
        return load_model(recipe.model, path)
    return load_model(replace(other, dtype=recipe.model.dtype), path, "reference.path")


def _check_adapter(recipe: Recipe) -> None:
    """What an adapter leaves no room for."""
    if recipe.model.adapter is None:
        return
    if (asked := asked_for(recipe.training)) is not None:
        raise ValueError(f"{asked} shards models, and model.adapter trains a part of one: leave sharding out")
    if recipe.reference is not None and Path(str(recipe.reference.path)) != Path(str(recipe.model.path)):
        raise ValueError("reference is given beside model.adapter: the reference is the model with its adapters off")


def _evaluator(
    run: Path,
    recipe: Recipe,
    plan: Plan,
    policies: RunPolicies,
    engine: Engine | None,
    judge: Judge | None,
    cache: Cache | None,
    fitting: Fitting,
    shard: int,
    bars: Bars,
) -> Evaluator | None:
    if recipe.evaluation is None:
        return None
    prompts = plan.heldout
    if recipe.model.build is not None and not prompts:
        prompts = plan.iterations[0].prompts  # a tiny model's prompts are all there are
    exact = None
    if recipe.evaluation.exact:
        from nashpo.llm.loop.exactly import exact_evaluation

        exact = exact_evaluation(run, recipe, policies, [work.prompts for work in plan.iterations], judge)
    return Evaluator(prompts, policies, engine, judge, cache, fitting, shard, recipe.seed, exact, bars)
