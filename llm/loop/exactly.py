"""Exact evaluation of a run of a built model: all responses enumerated, a known game, what tables predict for it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nashpo.core.rules.form import Form
from nashpo.core.selfplay import Term
from nashpo.llm.exact import ExactEvaluation, ExactRun, Floats
from nashpo.llm.judges.judge import Judge, Pair
from nashpo.llm.judges.table import TableJudge
from nashpo.llm.loop.evaluating import RESULTS
from nashpo.llm.loop.policies import RunPolicies
from nashpo.llm.objectives import Objective
from nashpo.llm.prediction import Prediction, predict, refusal
from nashpo.llm.prompts import Prompt
from nashpo.llm.recipe.schema import Recipe
from nashpo.llm.stages import Job
from nashpo.tabular.game import Game


def exact_evaluation(
    run: Path, recipe: Recipe, policies: RunPolicies, work: Sequence[Sequence[Prompt]], judge: Judge | None
) -> ExactRun:
    """What evaluates a run's iterates exactly.

    Parameters
    ----------
    run : path
    recipe : Recipe
    policies : RunPolicies
    work : sequence of sequences of Prompt
        The prompts of each iteration.
    judge : Judge
        A table of the very responses that the model can give.

    Raises
    ------
    ValueError
        If the responses cannot be enumerated, or their win rates are not known.
    """
    tiny = recipe.model.build
    if tiny is None:
        raise ValueError("evaluation.exact needs a model whose responses can be enumerated: model.build")
    if not isinstance(judge, TableJudge):
        raise ValueError("evaluation.exact needs a known game: leave judge out, or take judge.kind=table")
    prompts = work[0]
    other = next((p for p in prompts if judge.responses(p.text) != list(tiny.responses)), None)
    if other is not None:
        raise ValueError(f"the table of the judge has other responses to {other.text!r} than the model can give")
    P = np.array([_table(judge, p, tiny.responses) for p in prompts])
    evaluation = ExactEvaluation(Game(P), recipe.rule.form(), *_predictor(recipe, Game(P), work))
    ids = [p.ids for p in prompts]
    return ExactRun(evaluation, ids, tiny.completions, policies.use, _earlier(run))


def _table(judge: TableJudge, prompt: Prompt, responses: Sequence[str]) -> list[list[float]]:
    pairs = [Pair(prompt.text, first, second) for first in responses for second in responses]
    wins = [verdict.probability for verdict in judge.compare(pairs)]
    n = len(responses)
    return [[float(wins[i * n + j] or 0.0) for j in range(n)] for i in range(n)]


def _earlier(run: Path) -> Callable[[int], Mapping[str, Any] | None]:
    """What was found exactly after an earlier iteration."""

    def found(iteration: int) -> Mapping[str, Any] | None:
        path = run / f"iterations/{iteration:03d}/evaluation/{RESULTS}"
        if not path.exists():
            return None
        exact: Mapping[str, Any] | None = json.loads(path.read_bytes())["exact"]
        return exact

    return found


def _predictor(
    recipe: Recipe, game: Game, work: Sequence[Sequence[Prompt]]
) -> tuple[Callable[[Floats, Floats], Prediction] | None, str]:
    """What predicts the run, or why nothing does."""
    sampling = recipe.sampling
    assert sampling is not None
    K, steps = sampling.K, recipe.iterations.count
    objectives = _objectives(recipe)
    why = refusal(recipe.rule, objectives, sampling.sampling().exact)
    if not why and any([p.key for p in part] != [p.key for p in work[0]] for part in work):
        why = "the iterations have different prompts"
    if why:
        return None, why

    def predicted(start: Floats, reference: Floats) -> Prediction:
        return predict(recipe.rule, game, start, reference, objectives[0], K, steps, recipe.seed)

    return predicted, ""


def _objectives(recipe: Recipe) -> list[Objective]:
    """The losses of the stages that are trained."""
    form: Form = recipe.rule.form()
    found = []
    for place, stage in enumerate(form.stages):
        payoffs = stage.payoffs_at(0)
        if payoffs:
            terms = [Term(weight, payoff, None) for payoff, weight in payoffs]
            job = Job.of(form, place, [(a, name) for name, a in stage.base_at(0)], terms)
            found.append(recipe.objective.build(recipe.rule, job))
    return found
