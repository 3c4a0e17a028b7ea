"""The loss where every answer takes the step by itself: its minimizer is the step on Q, at later states too."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_conversation_levels import ACTIONS, GAME, REPLIES, USER, Draws, completion, policy, prompts

from nashpo.core.rules import INPO, ONPO, SPPO, IterativeDPO, Rule
from nashpo.llm.conversation.config import ConversationConfig
from nashpo.llm.conversation.levels import State, Trajectory
from nashpo.llm.loop.backend import RunBackend, Work
from nashpo.llm.objectives import (
    All,
    BestWorst,
    Iid,
    Labelled,
    Logistic,
    LogZ,
    Objective,
    Pairwise,
    Pointwise,
    StageTensors,
    per_prompt,
)
from nashpo.llm.recipe.objectives import Default, LabelledSpec, ObjectiveSpec, PairwiseSpec, PointwiseSpec, check
from nashpo.llm.recipe.state_objectives import AtStates, at_level
from nashpo.llm.stages import Job
from nashpo.tabular.trees import q_values

K, B_LATER, TREES, ETA = 3, 2, 1500, 1.0


def jobs(rule: Rule) -> list[Job]:
    form = rule.form()
    return [Job(form, stage, (), tuple((b, p) for p, b in stage.payoffs_at(1))) for stage in form.stages]


def built(spec: ObjectiveSpec, rule: Rule) -> list[Objective]:
    return [spec.build(rule, job) for job in jobs(rule)]


@pytest.fixture(scope="module")
def drawn() -> tuple[Any, list[list[tuple[int, int]]]]:
    """Trees of one policy with their win rates, and (state, action) of every response."""
    trees = Draws.of(policy(0), TREES, K, B_LATER, 2)
    found = State((K, B_LATER)).answer(prompts(TREES), trees.samples, trees.wins(trees), own=True)
    places = []
    for row in found.responses.sequences:
        said = [one.ids[2:] for one in row]
        root = [0 if len(ids) == 2 else 1 + int(GAME.layers[0].child[0, ids[0] - 1, ids[2] - USER]) for ids in said]
        places.append([(state, ids[-2] - 1) for state, ids in zip(root, said, strict=True)])
    return found, places


def scores(drawn: tuple[Any, list[list[tuple[int, int]]]], objective: Objective) -> dict[tuple[int, int], float]:
    """z-scores over trees of the loss's gradient in the log-ratio of every answer, at the exact step η Q."""
    found, places = drawn
    exact = ETA * q_values(GAME, policy(0), policy(0))
    exact[0] *= 1 - 1 / K  # at the prompt the comparison with oneself is counted
    ratio = torch.zeros(found.values.shape, dtype=torch.float64)
    for s, row in enumerate(places):
        ratio[s, : len(row)] = torch.tensor([exact[place] for place in row])
    ratio.requires_grad_()
    stage = StageTensors(ratio, ETA * found.values, found.responses.weights, found.preferred, ETA)
    (gradient,) = torch.autograd.grad(per_prompt(objective.losses(stage)).sum(), ratio)
    by_tree: dict[tuple[int, int], np.ndarray] = {}
    for name, row, line in zip(found.responses.names, places, gradient.tolist(), strict=True):
        tree = TREE_OF[name.partition("/")[0]]
        for place, value in zip(row, line):
            by_tree.setdefault(place, np.zeros(TREES))[tree] += value
    return {place: float(v.mean() / (v.std() / TREES**0.5)) for place, v in by_tree.items()}


TREE_OF = {prompt.key: number for number, prompt in enumerate(prompts(TREES))}


def test_the_step_on_q_is_where_the_gradient_vanishes(drawn: Any) -> None:
    """Of 21 z-scores the largest is below 4.2, which 21 independent normal ones exceed with probability 6e-4; the
    seeds are fixed. With labels of the answers at one state, as at the level of trajectories, one is above 10."""
    (auxiliary, current) = built(AtStates(Default()), ONPO(ETA))
    assert auxiliary == current == Pairwise(All())
    found = scores(drawn, current)
    assert len(found) == ACTIONS * (1 + ACTIONS * REPLIES)
    assert max(map(abs, found.values())) < 4.2, found
    labelled = scores(drawn, Labelled())
    assert max(abs(z) for (state, _), z in labelled.items() if state == 0) < 4.2  # at the prompt they are one
    assert max(map(abs, labelled.values())) > 10


def test_at_the_prompt_both_losses_have_one_gradient() -> None:
    """With all pairs and targets that are the mean labels: to rounding."""
    generator = torch.Generator().manual_seed(0)
    upper = torch.rand(4, 5, 5, dtype=torch.float64, generator=generator).triu(1)
    wins = upper + (1 - upper.mT).tril(-1) + 0.5 * torch.eye(5, dtype=torch.float64)
    ratio = torch.randn(4, 5, dtype=torch.float64, generator=generator).requires_grad_()
    weights = torch.full((4, 5), 0.2, dtype=torch.float64)
    stage = StageTensors(ratio, ETA * (wins.mean(-1) - 0.5), weights, wins, ETA)
    one, other = (
        torch.autograd.grad(per_prompt(loss.losses(stage)).sum(), ratio)[0] for loss in (Labelled(), Pairwise())
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("spec", "rule", "wanted"),
    [
        (Default(), SPPO(1.0), Pairwise(BestWorst())),
        (Default(pairs="iid"), INPO(1.0, 0.1), Pairwise(Iid())),
        (Default(), IterativeDPO(1.0), Logistic()),
        (PointwiseSpec(normalizer="log_z"), SPPO(1.0), Pointwise(LogZ())),
        (PairwiseSpec(), ONPO(1.0), Pairwise()),
    ],
)
def test_losses_on_win_rates_become_differences(spec: ObjectiveSpec, rule: Rule, wanted: Objective) -> None:
    assert built(AtStates(spec), rule)[-1] == wanted


def test_what_was_chosen_and_is_wrong_at_later_states_is_refused() -> None:
    for spec, rule, what in (
        (LabelledSpec(), ONPO(1.0), "the labelled margin"),
        (PointwiseSpec(), SPPO(1.0), "SPPO's constant for log Z"),
    ):
        with pytest.raises(ValueError, match=f"{what} is wrong at conversation.level = state.*objective=pairwise"):
            check(AtStates(spec), rule, 1)
    given = LabelledSpec()
    assert at_level(given, None) is at_level(given, ConversationConfig(turns=2)) is given
    assert at_level(Default(), ConversationConfig(turns=2, level="state")) == AtStates(Default())


def backend(level: Any, count: int) -> RunBackend:
    """As much of one as looks at a stage's data."""
    fitting: Any = SimpleNamespace(training={})
    no: Any = None
    work = Work(tuple(prompts(count)))
    return RunBackend(Path(), no, no, lambda t: work, fitting, None, None, None, level, 1, 0, 0.9, no)


def test_a_label_that_is_missing_leaves_its_state_out() -> None:
    """The judge abstained on two answers to one later state, on which no payoff of theirs depends: the prompt's row has
    no payoff and that state no label; a loss on labels would be no number."""
    trees = Draws.of(policy(0), 2, 2, 2, 1)
    samples = [tuple(completion(0, 0, a) for a in (0, 1)) + tuple(completion(1, 1, a) for a in (1, 2))] * 2
    wins = trees.wins(trees).clone()
    wins[0, 0, 1] = wins[0, 1, 0] = float("nan")
    level = State((2, 2))
    answer = level.answer(prompts(2), samples, wins, own=True)
    assert answer.values[1].isfinite().all()
    stage, report, _ = backend(level, 2)._usable([(1.0, answer)], own=True)
    assert (report.rows, report.kept) == (6, 4)
    key, other = (prompt.key for prompt in prompts(2))
    assert stage.responses.names == (f"{key}/1/1", other, f"{other}/1/0", f"{other}/1/1")
    assert stage.preferred is not None
    assert stage.preferred.isfinite().all()


@pytest.mark.parametrize(("level", "rows"), [(State((4, 1)), "15 states"), (Trajectory(), "3 prompts")])
def test_rows_are_told_as_what_they_are(level: Any, rows: str) -> None:
    """One prompt that the judge answered nothing about takes all of its rows along."""
    trees = Draws.of(policy(0), 3, 4, 1, 5)
    wins = trees.wins(trees).clone()
    wins[1] = float("nan")
    answer, made = level.answer(prompts(3), trees.samples, wins, own=True), backend(level, 3)
    made.max_abstained = 0.1
    with pytest.raises(ValueError, match=f"the judge abstained on . of {rows}, more than max_abstained = 0.1"):
        made._usable([(1.0, answer)], own=True)
    made.max_abstained, made.fitting.training["max_length"] = 1.0, 1  # type: ignore[index]
    with pytest.raises(ValueError, match=f"no {rows.split()[1]} of iteration 1 are left to train on"):
        made._usable([(1.0, answer)], own=True)


def test_whole_conversations_are_left_out_as_single_responses() -> None:
    trees = Draws.of(policy(0), 3, 4, 1, 5)
    wins = trees.wins(trees).clone()
    wins[1, 0, 2] = wins[1, 2, 0] = float("nan")
    answer = Trajectory().answer(prompts(3), trees.samples, wins, own=True)
    _, report, compared = backend(Trajectory(), 3)._usable([(1.0, answer)], own=True)
    assert (report.rows, report.kept) == (3, 2)
    assert compared.tolist() == [4, 4]
