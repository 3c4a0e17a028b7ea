"""Exact evaluation: gaps and certificates are those of `nashpo.tabular`, and the predicted intervals hold as stated."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nashpo.core.games import duality_gap
from nashpo.core.rules import COMAL, EGPO, INPO, ONPO, SPAC, SPPO, IterativeDPO, NashMD, Rule
from nashpo.core.schedules import Power
from nashpo.llm.exact import ExactEvaluation, ExactRun, Floats, enumerated_log_policy, second_slot
from nashpo.llm.objectives import BestWorst, Labelled, Logistic, LogZ, Objective, Pairwise, Pointwise, SPACPractical
from nashpo.llm.prediction import Prediction, predict, refusal, simultaneous_band
from nashpo.llm.tiny import tiny_llama
from nashpo.llm.tiny_config import TinyModel
from nashpo.llm.tiny_game import tiny_games, tiny_target
from nashpo.tabular.counted import Counted
from nashpo.tabular.play import play
from nashpo.tabular.projection import Softmax
from nashpo.tabular.residuals import optimistic_residual_certificate, residual_certificate
from nashpo.tabular.run import Run

TINY = TinyModel()
GAME, EQUILIBRIA = tiny_games(TINY)
START = np.log(tiny_target(TINY))
K, STEPS = 96, 3


def trajectories(run: Run) -> list[np.ndarray]:
    """log π_1 … π_{T+1} of every replicate, (T + 1, B, n) each."""
    kept = run.kept["current"]
    first = np.broadcast_to(START, kept.shape[1:])[None]
    return list(np.moveaxis(np.concatenate([first, kept]), 1, 0))


def counted(rule: Rule, seed: int, replicates: int, loss: str = "labelled") -> Run:
    """Replicates of a run from K draws, in the place of a language model's."""
    feedback = Counted(K, seed, replicates)
    return play(
        rule,
        GAME,
        STEPS,
        start=np.exp(START),
        record="all",
        keep=("current",),
        feedback=feedback,
        projection=Softmax(loss),
    )


def evaluation(rule: Rule, objective: Objective, **options: Any) -> ExactEvaluation:
    """With the prediction."""

    def predicted(start: Floats, reference: Floats) -> Prediction:
        return predict(rule, GAME, start, reference, objective, K, STEPS, 0, **options)

    return ExactEvaluation(GAME, rule.form(), predicted)


# ----------------------------------------------------------------------------------------------- gaps and certificates


@pytest.mark.parametrize("rule", [SPPO(1.5), ONPO(1.5), INPO(1.5, 0.1), EGPO(1.5, 0.1), NashMD(1.5, 0.1)])
def test_gaps_and_certificates_are_those_of_the_tables(rule: Rule) -> None:
    """Up to the rounding of float64 sums."""
    slots = ("current",) if second_slot(rule.form()) in (None, (1.5, "current")) else ("current", "auxiliary")
    run = play(rule, GAME, STEPS, start=np.exp(START), record="all", keep=slots)
    policies = {slot: np.concatenate([START[None], run.kept[slot]]) for slot in slots}
    exact = ExactEvaluation(GAME, rule.form(), None, "not asked")
    for t in range(1, STEPS + 1):
        found = exact.evaluate(*(policies[slot][: t + 1] for slot in slots))
        np.testing.assert_allclose(found["gap_last"], run.mean_gap_last[t - 1], rtol=0, atol=1e-12)
        np.testing.assert_allclose(found["gap_average"], run.mean_gap_average[t - 1], rtol=0, atol=1e-12)
        assert (found["prediction"], found["inside"], found["not_predicted"]) == (None, None, "not asked")
        if isinstance(rule, SPPO | ONPO):
            bound = {
                SPPO: lambda p: residual_certificate(1.5, p["current"], GAME.A).bound,
                ONPO: lambda p: optimistic_residual_certificate(1.5, p["current"], p["auxiliary"], GAME.A).bound,
            }[type(rule)]({slot: p[: t + 1] for slot, p in policies.items()})
            np.testing.assert_allclose(found["certificate"], np.mean(bound), rtol=1e-12)
            assert found["gap_average"] <= found["certificate"]
        else:
            assert found["certificate"] is None


def test_hand_made_policies() -> None:
    """The equilibrium has gap 0; the mean of a policy and the equilibrium is averaged as probabilities."""
    with np.errstate(divide="ignore"):
        solved = np.log(EQUILIBRIA)
    near = np.log((1 - 1e-9) * EQUILIBRIA + 1e-9 / TINY.n)
    exact = ExactEvaluation(GAME, SPPO(1.0).form(), None)
    found = exact.evaluate(np.stack([START, near, START]))
    A = np.asarray(GAME.A)
    assert found["gap_last"] == found["gap_start"] == pytest.approx(np.mean(duality_gap(A, np.exp(START))), abs=1e-15)
    halves = (np.exp(START) + np.exp(near)) / 2
    assert found["gap_average"] == pytest.approx(np.mean(duality_gap(A, halves)), abs=1e-15)
    ended = exact.evaluate(np.stack([START, solved]))
    assert ended["gap_last"] == pytest.approx(0, abs=1e-12)
    assert ended["certificate"] is None  # responses were given up


def test_which_rules_have_a_certificate() -> None:
    assert second_slot(SPPO(0.5).form()) == (0.5, "current")
    assert second_slot(ONPO(2).form()) == (2.0, "auxiliary")
    without = [ONPO(1.0, "one_step"), ONPO(1.0, "leader"), SPPO(Power(1.0, 0.5)), INPO(1.0, 0.1), EGPO(1.0, 0.1)]
    for rule in (*without, NashMD(1.0, 0.1), IterativeDPO(1.0), COMAL(1.0, 0.1, 2)):
        assert second_slot(rule.form()) is None, rule


# --------------------------------------------------------------------------------------------------------- predictions


def test_intervals_hold_as_often_as_they_say() -> None:
    """400 further replicates: 380 are expected inside in all iterations. The intervals' own 1000 replicates add to the
    spread; 4 standard deviations, 4 √(400 · .05 · .95 · 1.4) = 21: the test fails by chance with probability 1e-4."""
    exact = evaluation(ONPO(1.5), Labelled())
    inside = [
        all(exact.evaluate(policies[: t + 1])["inside"] for t in range(1, STEPS + 1))
        for policies in trajectories(counted(ONPO(1.5), 11, 400))
    ]
    assert abs(sum(inside) - 380) <= 21


@pytest.mark.parametrize(
    "rule", [ONPO(3.0), ONPO(1.3), SPPO(1.5)], ids=["doubled step", "smaller step", "another rule"]
)
def test_another_run_is_seen(rule: Rule) -> None:
    """Twenty replicates of each, all outside the intervals of ONPO with η = 1.5."""
    exact = evaluation(ONPO(1.5), Labelled(), replicates=400)
    for policies in trajectories(counted(rule, 5, 20)):
        assert not all(exact.evaluate(policies[: t + 1])["inside"] for t in range(1, STEPS + 1))


@pytest.mark.parametrize(
    ("rule", "objective", "loss"),
    [
        (SPPO(1.5), Pointwise(), "pointwise"),
        (SPPO(1.5), Pointwise(LogZ()), "pointwise"),
        (INPO(1.5, 0.1), Labelled(), "labelled"),
        (EGPO(1.5, 0.1), Pairwise(), "pairwise"),
        (NashMD(1.5, 0.1), Labelled(), "labelled"),
        (IterativeDPO(1.0), Logistic(), "logistic"),
        (ONPO(1.5, "one_step"), Pairwise(), "pairwise"),
    ],
    ids=lambda x: getattr(x, "name", None) or type(x).__name__,
)
def test_every_rule_is_predicted(rule: Rule, objective: Objective, loss: str) -> None:
    assert refusal(rule, [objective], True) == ""
    exact = evaluation(rule, objective, replicates=100)
    (policies,) = trajectories(counted(rule, 7, 1, loss))
    found = exact.evaluate(policies)
    predicted = found["prediction"]
    for gap in ("gap_last", "gap_average"):
        assert predicted[gap]["low"] < predicted[gap]["median"] < predicted[gap]["high"]
        assert abs(predicted[gap]["median"] - predicted["exact"][gap]) < 0.1
    assert 0 < found["total_variation_from_prediction"] < 3 * predicted["total_variation"]["high"]
    assert (predicted["level"], predicted["replicates"]) == (0.95, 100)


def test_what_is_not_predicted_is_told() -> None:
    assert "temperature" in refusal(ONPO(1.0), [Labelled()], False)
    assert "different losses" in refusal(ONPO(1.0), [Labelled(), Pairwise()], True)
    assert "only some of the K responses" in refusal(SPPO(1.0), [Pointwise(pairs=BestWorst())], True)
    assert "kind critic" in refusal(SPAC(1.0, 1.0, 1.0), [SPACPractical()], True)
    assert "SPACPractical is no loss" in refusal(SPPO(1.0), [SPACPractical()], True)


def test_simultaneous_band_by_hand() -> None:
    """Of 20 replicates one may be outside at 95 %, but the same number is cut off at either end; two may at 90 %. A
    curve without spread cuts off none."""
    rng = np.random.default_rng(0)
    curves = np.stack([rng.permutation(20), np.full(20, 3)]).astype(float)
    low, high = simultaneous_band(curves, 0.95)
    assert (low.tolist(), high.tolist()) == ([0.0, 3.0], [19.0, 3.0])
    low, high = simultaneous_band(curves, 0.9)
    assert (low.tolist(), high.tolist()) == ([1.0, 3.0], [18.0, 3.0])


# ------------------------------------------------------------------------------------------------- policies of a run


class Lent:
    """Models by name; what is asked for is remembered."""

    def __init__(self, models: dict[str, nn.Module]) -> None:
        self.models = models
        self.asked: list[str] = []

    @contextmanager
    def use(self, name: str) -> Iterator[nn.Module]:
        self.asked.append(name)
        if name not in self.models:
            raise ValueError(f"there is no policy {name}")
        yield self.models[name]


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    """Two iterations of ONPO, with random weights."""
    names = ("start", "iterations/001/model", "iterations/001/auxiliary", "iterations/002/model")
    found = {name: tiny_llama(replace(TINY, seed=seed)) for seed, name in enumerate(names)}
    return {**found, "reference": found["start"], "iterations/002/auxiliary": found["iterations/001/auxiliary"]}


def exact_run(lent: Lent, earlier: Sequence[Any] = ()) -> ExactRun:
    """Of ONPO, without a prediction."""
    saved = dict(enumerate(earlier, 1))
    exact = ExactEvaluation(GAME, ONPO(1.0).form(), None)
    return ExactRun(exact, TINY.prompt_ids, TINY.completions, lent.use, saved.get)


def test_a_run_is_evaluated_by_the_names_of_its_policies(models: dict[str, nn.Module]) -> None:
    """What was found earlier is not enumerated again, nor are its weights needed any more."""
    iterates = ["start", "iterations/001/model", "iterations/002/model"]
    first = exact_run(Lent(models))(iterates[:2])
    lent = Lent({name: model for name, model in models.items() if not name.startswith("iterations/001")})
    found = exact_run(lent, [first])(iterates)
    assert not any(name.startswith("iterations/001") for name in lent.asked)
    log_policies = {name: enumerated_log_policy(models[name], TINY.prompt_ids, TINY.completions) for name in models}
    A = np.asarray(GAME.A)
    average = (np.exp(log_policies["start"]) + np.exp(log_policies["iterations/001/model"])) / 2
    assert found["gap_average"] == pytest.approx(np.mean(duality_gap(A, average)), abs=1e-12)
    assert found["certificate"] is not None
    np.testing.assert_array_equal(found["log_policies"]["current"], log_policies["iterations/002/model"])
    np.testing.assert_array_equal(found["log_policies"]["auxiliary"], log_policies["iterations/002/auxiliary"])


def test_deleted_weights_of_the_second_sequence_cost_the_certificate_only(models: dict[str, nn.Module]) -> None:
    lent = Lent({name: model for name, model in models.items() if not name.endswith("auxiliary")})
    found = exact_run(lent)(["start", "iterations/001/model"])
    assert found["certificate"] is None
    assert set(found["log_policies"]) == {"current"}
    assert 0 < found["gap_last"] < 1


def test_enumeration_leaves_the_model_as_it_was(models: dict[str, nn.Module]) -> None:
    model = models["start"].train()
    before = [p.detach().clone() for p in model.parameters()]
    enumerated_log_policy(model, TINY.prompt_ids, TINY.completions)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    model.eval()
