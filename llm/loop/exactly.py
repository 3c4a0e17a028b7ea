"""Exact evaluation of a run of a built model: all responses enumerated, a known game, what tables predict for it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nashpo.core.rules.form import Form
from nashpo.core.selfplay import Term
from nashpo.llm.conversation.config import ConversationConfig
from nashpo.llm.counted_conversations import conversation_refusal, predict_conversations
from nashpo.llm.exact import ExactEvaluation, ExactRun, Floats
from nashpo.llm.exact_conversations import ExactConversations
from nashpo.llm.judges.judge import Judge, Pair
from nashpo.llm.judges.table import TableJudge
from nashpo.llm.loop.evaluating import RESULTS
from nashpo.llm.loop.policies import RunPolicies
from nashpo.llm.objectives import Objective
from nashpo.llm.prediction import Prediction, predict, refusal
from nashpo.llm.prompts import Prompt
from nashpo.llm.recipe.schema import Recipe
from nashpo.llm.stages import Job
from nashpo.llm.tiny_config import TinyModel
from nashpo.llm.tiny_game import tiny_tree
from nashpo.tabular.game import Game
from nashpo.tabular.trees.game import TreeGame


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
    if recipe.conversation is not None:
        return _conversations(run, recipe, recipe.conversation, tiny, policies, work, P)
    evaluation = ExactEvaluation(Game(P), recipe.rule.form(), *_predictor(recipe, Game(P), work))
    ids = [p.ids for p in prompts]
    return ExactRun(evaluation, ids, tiny.completions, policies.use, _earlier(run))


def _conversations(
    run: Path,
    recipe: Recipe,
    talk: ConversationConfig,
    tiny: TinyModel,
    policies: RunPolicies,
    work: Sequence[Sequence[Prompt]],
    P: Floats,
) -> ExactRun:
    """Of responses that are conversations with the other side that the model was built with."""
    if [p.ids for p in work[0]] != list(tiny.prompt_ids):
        raise ValueError("evaluation.exact of conversations needs the model's own prompts: leave prompts out")
    longest = tiny.turns * tiny.length + tiny.turns - 1
    if talk.stop or (talk.max_tokens is not None and talk.max_tokens < longest):
        raise ValueError(
            f"evaluation.exact needs conversations that go on for all {tiny.turns} turns: leave conversation.stop out,"
            f" and conversation.max_tokens too or give at least {longest}"
        )
    game = tiny_tree(tiny, P)
    evaluation = ExactConversations(game, recipe.rule, talk.level, *_talk_predictor(recipe, talk, game, work))
    return ExactRun(evaluation, tiny.states, tiny.turn_completions, policies.use, _earlier(run))


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
    sampling, objectives = recipe.sampling, _objectives(recipe)
    assert sampling is not None
    why = refusal(recipe.rule, objectives, sampling.sampling().exact) or _changing(work)
    if why:
        return None, why

    def predicted(start: Floats, reference: Floats) -> Prediction:
        steps = recipe.iterations.count
        return predict(recipe.rule, game, start, reference, objectives[0], sampling.K, steps, recipe.seed)

    return predicted, ""


def _talk_predictor(
    recipe: Recipe, talk: ConversationConfig, game: TreeGame, work: Sequence[Sequence[Prompt]]
) -> tuple[Callable[[Floats, Floats], Prediction] | None, str]:
    """The same of a run on conversations."""
    sampling, objectives = recipe.sampling, _objectives(recipe)
    assert sampling is not None
    why = conversation_refusal(recipe.rule, objectives, sampling.sampling().exact, talk.level) or _changing(work)
    if why:
        return None, why

    def predicted(start: Floats, reference: Floats) -> Prediction:
        return predict_conversations(
            recipe.rule, game, start, reference, sampling.K, recipe.iterations.count, recipe.seed
        )

    return predicted, ""


def _changing(work: Sequence[Sequence[Prompt]]) -> str:
    """Why iterations cannot be predicted together; empty where they can."""
    same = all([p.key for p in part] == [p.key for p in work[0]] for part in work)
    return "" if same else "the iterations have different prompts"


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
