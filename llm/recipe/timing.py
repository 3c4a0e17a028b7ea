"""How long a recipe's phases would take, by the model on paper of `nashpo.llm.scale`.

Lengths are in tokens, times in seconds. Each time is given twice: for responses of the length that is assumed, and for
responses that are all as long as the recipe allows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nashpo.llm.flops import SHAPES, Batch, Shape, packed, padded, shape_of, shared
from nashpo.llm.hardware import Cluster, hardware, recognized
from nashpo.llm.lengths import Lengths, capped
from nashpo.llm.recipe import conversations, counting, footprint, objectives
from nashpo.llm.recipe.counting import Work, updates
from nashpo.llm.recipe.footprint import Size
from nashpo.llm.recipe.schema import ModelSpec, Recipe
from nashpo.llm.scale import PAIRRM, Fit, JudgeShape, Phase, exchange, judging, pair_lm, scoring, training
from nashpo.llm.scale_runs import ASSUMED
from nashpo.llm.scale_sampling import EAGER, Sampler, sampling

ASSUMED_GPU = "h200"
JUDGE_SHAPE = "llama-3-8b"
"""Of a judge whose configuration is not in a folder here."""
_SAMPLE = 200


@dataclass(frozen=True)
class Timing:
    """What is predicted.

    Attributes
    ----------
    told : str
        For which hardware and lengths, and what is left out.
    seconds : mapping phase -> (float, float)
        Of all iterations: with the assumed responses, and with the longest ones.
    """

    told: str
    seconds: Mapping[str, tuple[float, float]]


def cluster_of(name: str | None) -> tuple[Cluster, str]:
    """The GPUs that times are predicted for, one per process, and how they were chosen.

    Parameters
    ----------
    name : str, optional
        Of `nashpo.llm.hardware.HARDWARE`; by default the GPU that is here, else `ASSUMED_GPU`.

    Raises
    ------
    ValueError
        On an unknown name.
    """
    gpus = footprint.processes()
    if name is not None:
        return Cluster(hardware(name), gpus), "as asked"
    import torch

    if not torch.cuda.is_available():
        return Cluster(hardware(ASSUMED_GPU), gpus), "assumed: there is no GPU here; --hardware names another"
    seen = torch.cuda.get_device_name()
    found = recognized(seen, torch.cuda.get_device_properties(0).total_memory)
    if found is None:
        return Cluster(hardware(ASSUMED_GPU), gpus), f"assumed: {seen} is not known; --hardware names another"
    return Cluster(found, gpus), "found here"


def predict(
    recipe: Recipe, size: Size, work: Sequence[Work], prompts: Sequence[int], mean: float, cluster: Cluster, how: str
) -> Timing:
    """Times of all iterations, for a model whose shape is known.

    Parameters
    ----------
    recipe : Recipe
    size : Size
    work : sequence of Work
        What each iteration does.
    prompts : sequence of int
        How many prompts each iteration has.
    mean : float
        Tokens of a prompt.
    cluster : Cluster
    how : str
        How it was chosen.
    """
    told = f"{cluster.gpus} × {cluster.hardware.name} ({how})"
    if size.shape is None:
        return Timing(f"{told}: not predicted, the model is no decoder of a known shape", {})
    left = []
    judge = _judge(recipe.judge)
    if recipe.judge is not None and judge is None:
        left.append(f"judging by {type(recipe.judge).__name__.removesuffix('Config')}")
    if recipe.evaluation is not None:
        left.append("evaluation")
    most = longest(recipe)
    both: list[dict[str, float]] = []
    for responses in (capped(ASSUMED.responses, most), (float(most),)):
        lengths = Lengths(tuple(max(1.0, p * mean / ASSUMED.prompt) for p in ASSUMED.prompts), responses)
        found: dict[str, float] = {}
        for todo, count in zip(work, prompts, strict=True):
            try:
                phases = _phases(recipe, size, size.shape, todo, count, lengths, judge, cluster)
            except ValueError as error:  # weights that do not fit
                return Timing(f"{told}: not predicted, {error}", {})
            for phase in phases:
                found[phase.name] = found.get(phase.name, 0.0) + phase.seconds
        both.append({**found, "in all": sum(found.values())})
    typical = sum(capped(ASSUMED.responses, most)) / len(ASSUMED.responses)
    if recipe.conversation is not None:
        left.append("the other side's own work")
        told += f", {conversations.reply_tokens(recipe)} tokens of the other side between two answers"
    said = "responses" if recipe.conversation is None else "answers"
    told += f", {said} of {typical:,.0f} tokens in the mean (all of {most:,})"
    if left:
        told += f"; without {' and '.join(left)}"
    return Timing(told, {name: (both[0][name], both[1][name]) for name in both[0]})


def _phases(
    recipe: Recipe,
    size: Size,
    shape: Shape,
    todo: Work,
    prompts: int,
    lengths: Lengths,
    judge: JudgeShape | None,
    cluster: Cluster,
) -> list[Phase]:
    found = []
    tree, turns = conversations.tree(recipe), conversations.turn_lengths(recipe, lengths)
    whole = conversations.whole_lengths(recipe, turns)
    if recipe.sampling is not None:
        sampler = _sampler(recipe.sampling)
        found = [
            sampling(shape, read, prompts * states, each, cluster, sampler)
            for _ in todo.samples()
            for read, (states, each) in zip(turns, tree.draws)
        ]
    if judge is not None and (asked := 2 * prompts * todo.comparisons(tree.responses)):
        found.append(judging(judge, whole, asked, cluster))
    if tree.rows == 1:
        batch = _batch(recipe, shape, whole, responses_read(recipe)).times(prompts)
    else:
        most, by_turn = responses_read(recipe), zip(turns, tree.draws)
        parts = (_batch(recipe, shape, read, min(each, most)).times(prompts * n) for read, (n, each) in by_turn)
        batch = sum(parts, Batch())
    epochs = float(recipe.training.get("num_train_epochs", 3.0))
    before: set[tuple[str, str]] = set()
    for one in todo.fits:
        scored = _scored(recipe, one)
        found.append(scoring(shape, batch, cluster).times(len(scored - before)))
        before |= scored
        fit = fit_of(recipe, size, updates(prompts * tree.rows, recipe.training))
        found.append(training(shape, batch.times(epochs), fit, cluster))
    return [*found, exchange(shape)]


def _scored(recipe: Recipe, fit: counting.Fit) -> set[tuple[str, str]]:
    """The policies whose log-probabilities a stage needs, and of which responses: what another stage of the iteration
    has of both need not be computed again."""
    read = fit.on
    if objectives.only_extremes(recipe.objective, recipe.rule, recipe.iterations.count):
        read += f", the best and the worst by {fit.answers}"
    names = {"reference", *fit.base}
    if recipe.reference is None:
        names = {name.replace("start", "reference") for name in names}
    return {(name, read) for name in names}


def _batch(recipe: Recipe, shape: Shape, lengths: Lengths, responses: int) -> Batch:
    """One prompt of mean length with its responses, as it goes through the model."""
    rows = lengths.rows(_SAMPLE, responses)
    layout = shared if recipe.training.get("share_prefix", True) else packed
    if not recipe.training.get("padding_free", True):
        found = padded(shape, rows, recipe.training.get("per_device_train_batch_size", 8))
    else:
        found = layout(shape, rows)
    return found.times(1 / _SAMPLE)


def fit_of(recipe: Recipe, size: Size, steps: float, micro: float = 8192) -> Fit:
    """How the recipe trains.

    Parameters
    ----------
    recipe : Recipe
    size : Size
    steps : float
        Updates of a stage.
    micro : float
        Tokens of a micro-batch.
    """
    settings = recipe.training
    rounded = settings.get("bf16_rounding") == "stochastic"
    states = size.optimizer(str(settings.get("optim", "adamw_torch_fused")), 4 if rounded else None)
    adapter = recipe.model.adapter
    return Fit(
        weight=size.width,
        gradient=4 if adapter is not None else size.width,
        states=states / size.trained,
        micro=micro,
        updates=steps,
        checkpointing=bool(settings.get("gradient_checkpointing") or settings.get("activation_checkpointing")),
        rank=None if adapter is None else int(adapter.get("r", 8)),
        autocast=size.width == 4 and bool(settings.get("bf16") or settings.get("fp16")),
    )


def longest(recipe: Recipe) -> int:
    """Tokens of the longest response that is learned from; of conversations, of their longest answer."""
    most = int(recipe.training.get("max_length", 1024) or 1024)
    return most if recipe.sampling is None else min(most, recipe.sampling.max_new_tokens)


def responses_read(recipe: Recipe) -> int:
    """Responses per row that go through the model in scoring and training: two where the loss reads the best and the
    worst alone, otherwise all of them.

    Where every turn takes the step by itself, those of the widest state.
    """
    if recipe.sampling is None:
        return 2
    most = max(each for _, each in conversations.tree(recipe).draws) + (2 if recipe.pairs is not None else 0)
    few = objectives.only_extremes(recipe.objective, recipe.rule, recipe.iterations.count)
    return min(most, 2) if few else most


def _sampler(sampling: Any) -> Sampler:
    """What an engine is like, by its settings; a server is taken as one that is made for sampling on such GPUs."""
    made = {
        "TransformersConfig": Sampler(continuous=False, prefix=False, overhead=EAGER),
        "ContinuousConfig": Sampler(prefix=False, overhead=EAGER),
    }.get(type(sampling).__name__, Sampler(call=sampling.shard))
    if (places := getattr(sampling, "batch_size", None)) is not None:
        made = replace(made, slots=places, call=sampling.shard)
    return replace(made, split=getattr(sampling, "tensor_parallel_size", 1))


def _judge(judge: Any) -> JudgeShape | None:
    """What a judge computes per question, None where that is not modelled."""
    if judge is None:
        return None
    made = {"PairRMConfig": _pairrm, "UCLAPairRMConfig": _pairrm, "PairLMConfig": _pair_lm}.get(type(judge).__name__)
    return None if made is None else replace(made(judge), single=judge.dtype == "float32")


def _pairrm(judge: Any) -> JudgeShape:
    return replace(PAIRRM, prompt=judge.source_tokens, response=judge.candidate_tokens)


def _pair_lm(judge: Any) -> JudgeShape:
    shape = None
    if (Path(judge.path).expanduser() / "config.json").is_file():
        shape = shape_of(footprint.read_config(ModelSpec(path=judge.path)))
    return pair_lm(shape or SHAPES[JUDGE_SHAPE])
