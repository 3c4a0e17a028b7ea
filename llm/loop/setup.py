"""Everything that a run needs before its first iteration, made from its recipe, and what can be refused refused."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nashpo.llm.engines.config import SamplingConfig
from nashpo.llm.engines.engine import Engine, EngineContext
from nashpo.llm.judges.cache import Cache
from nashpo.llm.judges.config import TableConfig
from nashpo.llm.judges.judge import Judge
from nashpo.llm.loop.backend import RunBackend
from nashpo.llm.loop.evaluating import Evaluator
from nashpo.llm.loop.loading import ADAPTER, device, encoder_of, end_ids, load_model, load_tokenizer
from nashpo.llm.loop.policies import AdapterFolders, RunPolicies, WholeFolders
from nashpo.llm.loop.progress import Bars
from nashpo.llm.loop.start import TINY, base, build, start
from nashpo.llm.loop.training import Fitting
from nashpo.llm.loop.work import Plan, read_work
from nashpo.llm.recipe.requirements import Needs
from nashpo.llm.recipe.schema import DataSpec, Recipe

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


def prepare(run: Path, recipe: Recipe, bars: Bars, say: Callable[[str], None]) -> Prepared:
    """Load, read and check everything.

    Raises
    ------
    ValueError
        Whatever cannot work, before any long work is done.
    """
    form, needs = recipe.rule.form(), Needs.of(recipe.rule.form())
    bars.phase("model")
    build(run, recipe)
    origin = base(run, recipe)
    tokenizer = load_tokenizer(recipe.model, origin)
    model: Any = load_model(recipe.model, origin)
    ends, vocabulary = end_ids(tokenizer, model), model.get_input_embeddings().weight.shape[0]
    encoder = encoder_of(recipe.model, tokenizer, ends)
    fitting = Fitting(
        recipe.training, lambda job: recipe.objective.build(recipe.rule, job), tokenizer, recipe.seed, bars.quiet
    )
    bars.phase("data")
    plan = read_work(recipe, tiny_prompts(run, recipe), encoder, vocabulary)
    say(plan.report)
    bars.phase("judge")
    judge = judge_of(run, recipe)
    if judge is not None:
        judge.check()
    context = EngineContext(
        tokenizer,
        ends,
        tokenizer.pad_token_id,
        len(tokenizer) if vocabulary > len(tokenizer) else None,
        device(),
        lambda count: None,
    )
    engine = _engine(recipe.sampling if needs.samples else None, context)
    bars.phase("warmup")
    begin = start(run, recipe, origin, model, fitting, encoder)
    del model
    bars.phase("")
    policies = policies_of(run, recipe, begin, tokenizer)
    cache = None if judge is None else Cache(run / CACHE)
    shard = recipe.sampling.shard if recipe.sampling is not None else 64
    backend = RunBackend(
        run,
        form,
        policies,
        lambda t: plan.iterations[t],
        fitting,
        engine,
        judge,
        cache,
        shard,
        recipe.seed,
        recipe.max_abstained,
        bars,
    )
    evaluator = _evaluator(run, recipe, plan, policies, judge, cache, fitting, context, shard, bars)
    return Prepared(backend, evaluator)


def _engine(sampling: SamplingConfig | None, context: EngineContext) -> Engine | None:
    if sampling is None:
        return None
    engine = sampling.build(context)
    engine.check()
    return engine


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
    reference = begin if recipe.reference is None else str(recipe.reference.path)
    if recipe.model.adapter is None:
        origins = {"start": Path(begin), "reference": Path(reference), "behavior": Path(begin)}
        return WholeFolders(run, origins, lambda path: load_model(recipe.model, path), tokenizer)
    if reference != begin:
        raise ValueError("reference is given beside model.adapter: the reference is the model with its adapters off")
    if (Path(begin) / ADAPTER).exists():
        raise ValueError(f"{begin} holds an adapter: merge it into its base before another one is trained on it")
    from peft import LoraConfig

    try:
        config = LoraConfig(**{"task_type": "CAUSAL_LM", **recipe.model.adapter})
    except TypeError as error:
        raise ValueError(f"model.adapter: {error} (its keys are fields of peft's LoraConfig)") from None
    return AdapterFolders(run, load_model(recipe.model, begin), config, Path(begin))


def _evaluator(
    run: Path,
    recipe: Recipe,
    plan: Plan,
    policies: RunPolicies,
    judge: Judge | None,
    cache: Cache | None,
    fitting: Fitting,
    context: EngineContext,
    shard: int,
    bars: Bars,
) -> Evaluator | None:
    if recipe.evaluation is None:
        return None
    from dataclasses import replace

    sampling = None if recipe.sampling is None else replace(recipe.sampling, K=recipe.evaluation.K)
    prompts = plan.heldout
    if recipe.model.build is not None and not prompts:
        prompts = plan.iterations[0].prompts  # a tiny model's prompts are all there are
    exact = None
    if recipe.evaluation.exact:
        from nashpo.llm.loop.exactly import exact_evaluation

        exact = exact_evaluation(run, recipe, policies, [work.prompts for work in plan.iterations], judge)
    return Evaluator(
        prompts, policies, _engine(sampling, context), judge, cache, fitting, shard, recipe.seed, exact, bars
    )
