"""Stages of several payoffs, data that were answered before, and log-probabilities that are known from before."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trained import logs, naive_logprobs, weights

from nashpo.core.rules import IPO, ONPO, SPAC, SPPO
from nashpo.core.rules.form import Payoff, win
from nashpo.core.selfplay import Term
from nashpo.llm.fit import Packing, Settings, fit, policy_logprobs
from nashpo.llm.known import stage_logprobs
from nashpo.llm.objectives import Labelled, LogZ, Pairwise, Pointwise
from nashpo.llm.preferences import PreferenceData, PreparedData
from nashpo.llm.responses import Answer, Responses, Scored, StageData
from nashpo.llm.stages import Job, objective
from nashpo.llm.trainer import SelfPlayTrainer
from nashpo.llm.trainer_setup import layout_of

Make = Callable[..., Any]
SIZES = (3, 2, 4, 3, 2)
ONE_STEP = ONPO(eta=1.5, variant="one_step").form()


@pytest.fixture
def responses() -> Responses:
    """Token ids of 5 prompts with 2 to 4 responses each."""
    ids = np.random.default_rng(0)

    def draw(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(i) for i in ids.integers(3, 259, ids.integers(low, high)))

    rows = [[Scored.completion(prompt, draw(1, 9)) for _ in range(size)] for size in SIZES for prompt in [draw(2, 7)]]
    return Responses.drawn(rows, [f"prompt-{b}" for b in range(len(rows))])


def answer(responses: Responses, seed: int) -> Answer:
    """Win rates between −½ and ½, made up."""
    values = torch.rand(responses.weights.shape, generator=torch.Generator().manual_seed(seed)).double() - 0.5
    return Answer(responses, torch.where(responses.weights > 0, values, 0.0))


def one_step(responses: Responses) -> tuple[list[Term], StageData]:
    """ONPO's step from two payoffs, 2η r_t − η r_{t−1}."""
    answers = {"current": answer(responses, 1), "previous": answer(responses, 2)}
    terms = [Term(b, payoff, payoff.policy) for payoff, b in ONE_STEP.stages[0].payoffs_at(1)]
    return terms, StageData.from_answers([(term.weight, answers[term.answer]) for term in terms])


def single(responses: Responses) -> tuple[list[Term], PreparedData]:
    """One win rate of weight 2 with labels among the responses."""
    width = responses.weights.shape[1]
    noise = torch.rand(len(responses), width, width, generator=torch.Generator().manual_seed(3)).double()
    preferred = (1 + noise - noise.mT) / 2
    one = replace(answer(responses, 1), preferred=preferred)
    return [Term(2.0, win("current"), "a")], PreferenceData.from_stage(StageData.from_answers([(2.0, one)]))


# ----------------------------------------------------------------------------------------------------- several payoffs


def test_onpos_single_step_of_two_payoffs_is_the_plain_loops(
    trainer: Make, tiny_llama: Make, responses: Responses
) -> None:
    """One full-batch step of SGD from prepared data, against `nashpo.llm.fit`. fp32 sums in another order: 1e-6."""
    terms, stage = one_step(responses)
    by_hand = 2 * 1.5 * answer(responses, 1).values - 1.5 * answer(responses, 2).values
    np.testing.assert_allclose(stage.target, by_hand, rtol=0, atol=1e-15)
    base = [(0.75, "pi-3"), (0.25, "anchor")]
    job = Job.of(ONE_STEP, 0, base, terms)
    anchor = tiny_llama(5)
    made = trainer(
        None,
        job=job,
        train_dataset=PreferenceData.from_stage(stage),
        policies={"anchor": anchor},
        max_steps=1,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
    )
    assert made.objective == Pairwise()
    made.train()
    plain, start = tiny_llama(), tiny_llama()
    before = weights(plain)
    scored = [(a, policy_logprobs(model, responses, Packing())) for (a, _), model in zip(base, (start, anchor))]
    settings = Settings(steps=1, optimizer=partial(torch.optim.SGD, lr=0.05), schedule=lambda progress: 1.0)
    report = fit(plain, stage, scored, Pairwise(), settings, 0)
    assert np.abs(weights(plain) - before).max() > 1e-3
    np.testing.assert_allclose(weights(made.model), weights(plain), rtol=0, atol=1e-6)
    assert logs(made)[0]["loss"] == pytest.approx(report.first_loss, rel=1e-5)


def test_metrics_of_several_payoffs(trainer: Make, responses: Responses) -> None:
    """Rewards are log-ratios over Σ b = η; win rates and the effective step belong to single payoffs."""
    terms, stage = one_step(responses)
    job = Job.of(ONE_STEP, 0, [(1.0, "pi-3")], terms)
    assert (job.kind, job.step, job.scale, job.start) == (None, None, pytest.approx(1.5), "pi-3")
    made = trainer(None, job=job, train_dataset=PreferenceData.from_stage(stage))
    assert made.beta == pytest.approx(1 / 1.5)
    found = made.evaluate(made.train_dataset)
    exact = float((responses.weights * stage.target**2).sum(-1).mean())
    assert found["eval_theory/regression_residual"] == pytest.approx(exact)
    assert found["eval_theory/kl_last_iterate"] == pytest.approx(0, abs=1e-5)
    assert not {"eval_theory/effective_step", "eval_theory/win_rate_chosen", "eval_theory/kl_reference"} & set(found)
    first, data = job.payoffs[:1], made.train_dataset
    alone = replace(job, payoffs=first)
    assert (alone.kind, alone.step) == ("win", pytest.approx(3.0))
    with pytest.raises(ValueError, match="prepared for several payoffs, but the stage that is trained has one payoff"):
        trainer(None, job=alone, train_dataset=data)


def test_a_rule_of_several_payoffs_trains_on_prepared_data_only(trainer: Make, responses: Responses) -> None:
    rule = ONPO(eta=1.5, variant="one_step")
    made = trainer(rule, iteration=1, train_dataset=PreferenceData.from_stage(one_step(responses)[1]), max_steps=1)
    made.train()
    assert logs(made)[0]["loss"] > 0
    with pytest.raises(ValueError, match="the payoffs 3 win.current., -1.5 win.previous.: the data's columns hold one"):
        trainer(rule, iteration=1)


# ------------------------------------------------------------------------------------------------------ prepared data


def test_prepared_data_train_like_the_columns_that_they_came_from(trainer: Make, tiny_llama: Make) -> None:
    """Bit for bit, and without a tokenizer."""
    columns = trainer(SPPO(eta=2.0))
    columns.train()
    data = columns.train_dataset
    again = PreferenceData.from_stage(data.stage(2.0), report=data.report)
    made = SelfPlayTrainer(
        tiny_llama(), args=columns.args, train_dataset=again, job=columns.job, objective=columns.objective
    )
    assert made.processing_class is None
    assert (again.responses.names, str(again.report)) == (data.responses.names, str(data.report))
    made.train()
    np.testing.assert_array_equal(weights(made.model), weights(columns.model))
    names = ("loss", "rewards/margins", "theory/win_rate_chosen", "num_tokens")
    assert [[row[name] for name in names] for row in logs(made)] == [
        [row[name] for name in names] for row in logs(columns)
    ]


def test_best_and_worst_are_by_target_and_then_by_labels(responses: Responses) -> None:
    terms, data = single(responses)
    for b, size in enumerate(SIZES):
        target = data.values[b, :size]
        assert (int(data.best[b]), int(data.worst[b])) == (int(target.argmax()), int(target.argmin()))
    np.testing.assert_array_equal(data.samples, [0] * len(SIZES))
    two = Responses(responses.sequences[:1], torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64))
    wins = torch.full((1, 3, 3), 0.5, dtype=torch.float64)
    wins[0, 0, 1], wins[0, 1, 0] = 0.0, 1.0
    critic = PreferenceData.from_stage(StageData(two, torch.zeros(1, 3, dtype=torch.float64), wins, step=1.0))
    assert (critic.best.item(), critic.worst.item()) == (1, 0)


def test_metrics_of_one_prepared_payoff(trainer: Make, responses: Responses) -> None:
    terms, data = single(responses)
    job = Job.of(SPPO(eta=2.0).form(), 0, [(1.0, "pi-1")], terms)
    counted = PreferenceData.from_stage(data.stage(2.0), samples=torch.tensor(SIZES))
    made = trainer(None, job=job, train_dataset=counted)
    assert made.objective == Labelled()
    found = made.evaluate(made.train_dataset)
    assert found["eval_theory/effective_step"] == pytest.approx(np.mean([2 * (k - 1) / k for k in SIZES]))
    best = data.values.gather(1, data.best[:, None]).mean().item() / 2 + 0.5
    assert found["eval_theory/win_rate_chosen"] == pytest.approx(best)


BAD: list[tuple[str, Callable[[StageData], Any]]] = [
    (r"samples is \(2,\) for 5 rows", lambda s: PreferenceData.from_stage(s, samples=torch.tensor([1, 2]))),
    (r"target is \(5, 2\) for responses", lambda s: PreferenceData.from_stage(replace(s, target=s.target[:, :2]))),
    ("row prompt-2 has a target that is not finite", lambda s: PreferenceData.from_stage(poisoned(s, 2))),
    ("row prompt-1 has no response of positive weight", lambda s: PreferenceData.from_stage(emptied(s, 1))),
]


def poisoned(stage: StageData, row: int) -> StageData:
    target = stage.target.clone()
    target[row, 0] = float("nan")
    return replace(stage, target=target)


def emptied(stage: StageData, row: int) -> StageData:
    kept = stage.responses.weights.clone()
    kept[row] = 0
    return replace(stage, responses=replace(stage.responses, weights=kept))


@pytest.mark.parametrize(("message", "make"), BAD, ids=lambda x: x[:12] if isinstance(x, str) else "")
def test_bad_stages_are_refused(message: str, make: Callable[[StageData], Any], responses: Responses) -> None:
    with pytest.raises(ValueError, match=message):
        make(one_step(responses)[1])


def test_what_prepared_data_lack_is_told_before_any_pass(
    trainer: Make, responses: Responses, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms, data = single(responses)
    job = Job.of(SPPO(eta=2.0).form(), 0, [(1.0, "pi-1")], terms)
    monkeypatch.setattr(SelfPlayTrainer, "_score", lambda *args: pytest.fail("a pass over the data"))
    unlabelled = PreferenceData.from_stage(replace(data.stage(2.0), preferred=None))
    with pytest.raises(ValueError, match="needs `preferred`, who beat whom, which this stage's data lacks"):
        trainer(None, job=job, train_dataset=unlabelled)
    with pytest.raises(ValueError, match="prepared for one payoff of weight 1, but the stage that is trained has one"):
        trainer(None, job=job, train_dataset=PreferenceData.from_stage(replace(data.stage(2.0), step=1.0)))
    large = Responses.drawn([[Scored((1, 300), (0, 1)), Scored((1, 4), (0, 1))]])
    outside = StageData(large, torch.tensor([[0.1, -0.1]], dtype=torch.float64), step=2.0)
    with pytest.raises(ValueError, match="token id 300 of the data is outside the model's vocabulary of 259"):
        trainer(None, job=job, objective=Pairwise(), train_dataset=PreferenceData.from_stage(outside))


# --------------------------------------------------------------------------------------------------------------- jobs


def test_bad_jobs_are_refused_in_one_line(trainer: Make, responses: Responses, tiny_llama: Make) -> None:
    terms, stage = one_step(responses)
    data = PreferenceData.from_stage(stage)
    job = Job.of(ONE_STEP, 0, [(0.75, "pi-3"), (0.25, "refrence")], terms)
    with pytest.raises(ValueError, match="has the base policy 'refrence', of which there is neither") as refused:
        trainer(None, job=job, train_dataset=data, policies={"reference": tiny_llama(1)})
    assert "\n" not in str(refused.value)
    assert "(there are: reference, pi-3)" in str(refused.value)
    for bad, message in (
        (lambda: Job.of(ONE_STEP, 1, [(1.0, "a")], terms), "stage = 1 is outside the form's 1 stages"),
        (lambda: Job.of(ONE_STEP, 0, [(1.0, "a")], []), "stage 'current' has no payoffs here"),
        (lambda: Job.of(ONE_STEP, 0, [(0.9, "a")], terms), "add up to 0.9, not to 1"),
        (lambda: Job.of(ONE_STEP, 0, [(1.5, "a"), (-0.5, "b")], terms), "'b' of stage 'current' has coefficient -0.5"),
        (lambda: Job.of(ONE_STEP, 0, [(1.0, {"mixture": []})], terms), "is no name: write mixtures out"),  # type: ignore[list-item]
        (
            lambda: Job.of(ONE_STEP, 0, [(1.0, "a")], [Term(1.0, Payoff("reward", "current"), "a")]),
            r"has no payoff reward\(current\): it has win\(current\), win\(previous\)",
        ),
        (lambda: trainer(IPO(tau=0.1), job=job, train_dataset=data), "and a job: leave one out"),
        (lambda: trainer(None, job=job, train_dataset=data, stage="current"), "no effect beside a job"),
        (lambda: trainer(None, job=job, train_dataset=data, iteration=2), "iteration = 2 has no effect beside a job"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()


def test_equal_policies_are_one_term_and_the_start_may_be_named() -> None:
    terms = [Term(1.0, win("current"), "a")]
    job = Job.of(ONE_STEP, 0, [(0.4, "a"), (0.5, "b"), (0.1, "a")], terms)
    assert {name: a for a, name in job.base} == {"a": pytest.approx(0.5), "b": 0.5}
    assert Job.of(ONE_STEP, 0, [(0.4, "a"), (0.6, "b")], terms, start="a").start == "a"


def test_default_losses_of_jobs(responses: Responses) -> None:
    terms, _ = one_step(responses)
    several = Job.of(ONE_STEP, 0, [(1.0, "a")], terms)
    assert objective(None, several, None) == Pairwise()
    # Before t = 1 there is no previous policy: one payoff, in a stage that may have two.
    assert objective(None, Job.of(ONE_STEP, 0, [(1.0, "a")], terms[:1]), None) == Pairwise()
    assert isinstance(
        objective(SPPO(eta=1.0), Job.of(SPPO(eta=1.0).form(), 0, [(1.0, "a")], terms[:1]), None), Pointwise
    )


def test_log_z_on_other_responses_than_the_bases_is_refused(trainer: Make) -> None:
    with pytest.raises(ValueError, match="which the trainer does not compute: use Pairwise"):
        trainer(
            ONPO(eta=1.0), stage="current", objective=Pointwise(LogZ()), policies={"auxiliary": torch.nn.Linear(1, 1)}
        )


# -------------------------------------------------------------------------------------------- known log-probabilities


def scores(model: Any, data: PreferenceData, made: Any, **options: Any) -> Tensor:
    layout = layout_of(made.args, made.processing_class)
    size = made.args.precompute_ref_batch_size or made.args.per_device_eval_batch_size
    return stage_logprobs(model, data.responses, layout, size, **options)


@pytest.mark.parametrize("padding_free", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_pass_of_its_own_gives_the_trainers_numbers(
    bf16: bool, padding_free: bool, trainer: Make, tiny_llama: Make, responses: Responses
) -> None:
    terms, stage = one_step(responses)
    job = Job.of(ONE_STEP, 0, [(1.0, "pi-3")], terms)
    options = {"bf16": bf16, "padding_free": padding_free, "precompute_ref_batch_size": 2}
    made = trainer(None, job=job, train_dataset=PreferenceData.from_stage(stage), **options)
    context = torch.autocast("cpu", torch.bfloat16) if bf16 else None
    found = scores(tiny_llama(), made.train_dataset, made, autocast=context)
    np.testing.assert_array_equal(found, made._stages[made.train_dataset].known["pi-3"])
    assert found.dtype == torch.float64
    if bf16:
        assert (found - scores(tiny_llama(), made.train_dataset, made)).abs().max() > 1e-3
    else:  # sums of fp32 logarithms
        three = [row[:2] for row in responses.sequences]
        pairs = PreferenceData.from_stage(StageData(Responses.drawn(three), torch.zeros(5, 2, dtype=torch.float64)))
        np.testing.assert_allclose(scores(tiny_llama(), pairs, made), naive_logprobs(tiny_llama(), pairs), rtol=1e-5)


def test_known_log_probabilities_stand_for_the_models(
    trainer: Make, tiny_llama: Make, responses: Responses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights bit for bit as with the policies themselves, and no pass over the data."""
    terms, stage = one_step(responses)
    data, anchor = PreferenceData.from_stage(stage), tiny_llama(5)
    job = Job.of(ONE_STEP, 0, [(0.6, "pi-3"), (0.4, "anchor")], terms)
    options = {"job": job, "train_dataset": data, "max_steps": 3}
    lent = trainer(None, policies={"anchor": anchor}, **options)
    lent.train()
    known = {"pi-3": scores(tiny_llama(), data, lent), "anchor": scores(anchor, data, lent)}
    monkeypatch.setattr(SelfPlayTrainer, "_score", lambda *args: pytest.fail("a pass over the data"))
    made = trainer(None, known={**known, "reference": known["anchor"]}, **options)
    made.train()
    np.testing.assert_array_equal(weights(made.model), weights(lent.model))
    assert "theory/kl_reference" in logs(made)[0]
    held_out = PreferenceData.from_stage(stage, known=known)
    assert made.evaluate(held_out)["eval_loss"] < logs(made)[0]["loss"]
    with pytest.raises(ValueError, match="has the base policy 'anchor', of which there is neither"):
        made.evaluate(data)


def test_known_log_probabilities_of_another_policy_are_noticed(
    trainer: Make, tiny_llama: Make, responses: Responses
) -> None:
    terms, stage = one_step(responses)
    data = PreferenceData.from_stage(stage)
    job = Job.of(ONE_STEP, 0, [(1.0, "pi-3")], terms)
    plain = trainer(None, job=job, train_dataset=data)
    right, wrong = (scores(tiny_llama(seed), data, plain) for seed in (0, 7))
    trainer(None, job=job, train_dataset=data, known={"pi-3": right}, max_steps=1).train()
    with pytest.raises(ValueError, match="known log-probabilities of another policy"):
        trainer(None, job=job, train_dataset=data, known={"pi-3": wrong}, max_steps=1).train()
    with pytest.raises(ValueError, match=r"known\['pi-3'\] is \(4, 4\) for responses \(5, 4\)"):
        trainer(None, job=job, train_dataset=data, known={"pi-3": right[:4]})
    with pytest.raises(ValueError, match=r"known\['pi-3'\] is not finite on row prompt-0"):
        trainer(None, job=job, train_dataset=data, known={"pi-3": right.log()})
    with pytest.raises(ValueError, match="give PreferenceData as train_dataset"):
        trainer(None, job=job, known={"pi-3": right})


def test_known_log_probabilities_beside_a_rule(trainer: Make, tiny_llama: Make) -> None:
    """IPO against a reference that is no model here: the loss of the model itself."""
    with_model = trainer(IPO(tau=0.5), ref_model=tiny_llama(2))
    data = with_model.train_dataset
    known = {"reference": scores(tiny_llama(2), data, with_model)}
    made = trainer(IPO(tau=0.5), train_dataset=data, known=known)
    assert made.evaluate(made.train_dataset)["eval_loss"] == with_model.evaluate(data)["eval_loss"]


def test_spacs_pairs_from_answers(trainer: Make, responses: Responses) -> None:
    """A critic has no values: best and worst are the pair, and the generated responses enter the critic term."""
    rule = SPAC(eta=1.0, lam=1.0, R=1.0)
    made = trainer(rule, train_dataset=[{"prompt": "p", "chosen": "y", "rejected": "n", "completions": ["a", "b"]}])
    data = PreferenceData.from_stage(made.train_dataset.stage(1.0))
    assert (data.best.tolist(), data.worst.tolist()) == ([0], [1])
    job = Job.of(rule.form(), 0, [(1.0, "pi-1")], [Term(1.0, made.job.payoffs[0][1], "a")])
    again = trainer(None, job=job, train_dataset=data)
    assert again.evaluate(data)["eval_loss"] == made.evaluate(made.train_dataset)["eval_loss"]
