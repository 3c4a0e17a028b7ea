"""The trainer: what it minimizes, what it reports, and what it refuses."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trained import logs, naive_logprobs

from nashpo.core.losses import labelled_square, logistic, spac_practical
from nashpo.core.rules import DPO, EGPO, INPO, IPO, ONPO, SPAC, SPPO, Form, NashMD, Rule, Stage, win
from nashpo.core.rules.form import Payoff
from nashpo.llm.config import SelfPlayConfig
from nashpo.llm.fit import NonFiniteLoss
from nashpo.llm.objectives import All, Pairwise, Pointwise
from nashpo.llm.trainer import SelfPlayTrainer

Make = Callable[..., Any]


# ------------------------------------------------------------------------------------------ the loss that is minimized

LOSSES: list[tuple[Rule, Callable[[Any, Any], Any]]] = [
    (DPO(tau=0.3), lambda w, lost: logistic(w, lost, 0.3)),
    (IPO(tau=0.5), lambda w, lost: labelled_square(w, lost, 1.0)),
    (INPO(eta=2.0, tau=0.1), lambda w, lost: labelled_square(w, lost, 1.0)),
    (SPPO(eta=3.0), lambda w, lost: ((w - 1.5) ** 2 + (lost + 1.5) ** 2) / 2),
    (
        SPAC(eta=2.0, lam=1.0, R=1.0),
        lambda w, lost: (spac_practical(w, lost, w, 0.5) + spac_practical(w, lost, lost, 0.5)) / 2,
    ),
]


@pytest.mark.parametrize(("rule", "formula"), LOSSES, ids=lambda x: getattr(x, "name", ""))
@pytest.mark.parametrize("padding_free", [True, False], ids=["packed", "padded"])
def test_loss_is_the_formula_of_the_paper(
    rule: Rule, formula: Callable[[Any, Any], Any], padding_free: bool, trainer: Make, tiny_llama: Make
) -> None:
    """On a model that is not the reference, against log-probabilities by a full softmax. fp32 sums: rtol 1e-5."""
    start, reference = tiny_llama(1), tiny_llama(2)
    made = trainer(rule, model=start, ref_model=reference, padding_free=padding_free, eval_dataset=None)
    data = made.train_dataset
    ratios = naive_logprobs(start, data) - naive_logprobs(reference, data)
    names = {name for _, name in made.job.base}
    if names == {"start"}:
        ratios = 0 * ratios
    elif names == {"start", "reference"}:
        ratios = 0.2 * ratios  # INPO's base holds 1 − ητ = 0.8 of the start
    expected = np.mean([float(formula(torch.tensor(w), torch.tensor(lost))) for w, lost in ratios])
    found = made.evaluate(data)
    np.testing.assert_allclose(found["eval_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["eval_rewards/chosen"], made.beta * ratios[:, 0].mean(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        found["eval_rewards/accuracies"], np.mean(ratios[:, 0] > ratios[:, 1]) if np.any(ratios) else 0.0
    )


def test_uclas_soft_sppo_loss_by_hand(trainer: Make, tiny_llama: Make) -> None:
    """UCLA's soft SPPO loss on one pair, worked by hand.

    β = 0.1, so η = 10; mean win rates over the K samples P_w = 0.7 and P_l = 0.2; before any update both log-ratios
    are 0. Its code: loss_w = (0 − (1/β)(0.7 − ½))² = (−2)² = 4, loss_l = (0 − (1/β)(0.2 − ½))² = 3² = 9, and
    (4 + 9)/2 = 6.5. TRL's ``sppo_hard`` on the same pair: (0 − 0.5/β)² + (0 + 0.5/β)² = 25 + 25 = 50, which is twice
    ours with hard labels, 25.
    """
    row = {"prompt": "p", "chosen": "yes", "rejected": "no", "chosen_probs": 0.9}
    soft = [{**row, "chosen_probs_win": 0.7, "chosen_probs_lose": 0.2}]
    made = trainer(SPPO.from_code(beta=0.1), train_dataset=soft)
    assert made.evaluate(made.train_dataset)["eval_loss"] == pytest.approx(6.5, abs=1e-6)
    hard = trainer(None, loss_type="sppo_hard", beta=0.1)
    assert 2 * hard.evaluate(hard.train_dataset)["eval_loss"] == pytest.approx(50, abs=1e-5)


def test_win_matrix_rows_and_effective_step(trainer: Make) -> None:
    """K = 3 with self-comparison: targets η (P̂ − ½), loss of best and worst, effective step η (K − 1)/K."""
    matrix = [[0.5, 0.8, 0.7], [0.2, 0.5, 0.4], [0.3, 0.6, 0.5]]
    rows = [{"prompt": "p", "completions": ["a", "bb", "ccc"], "win_matrix": matrix}]
    found = trainer(SPPO(eta=6.0), train_dataset=rows)
    metrics = found.evaluate(found.train_dataset)
    best, worst = 6 * (2 / 3 - 0.5), 6 * (1.1 / 3 - 0.5)
    assert metrics["eval_loss"] == pytest.approx((best**2 + worst**2) / 2)
    assert metrics["eval_theory/effective_step"] == pytest.approx(4.0)
    assert metrics["eval_theory/win_rate_chosen"] == pytest.approx(2 / 3)
    third = 6 * (1.4 / 3 - 0.5)
    assert metrics["eval_theory/regression_residual"] == pytest.approx((best**2 + worst**2 + third**2) / 3)


def test_beta_beside_a_rule_scales_the_rewards_only(trainer: Make, tiny_llama: Make) -> None:
    options = {"model": tiny_llama(1), "ref_model": tiny_llama(2)}
    plain, scaled = trainer(IPO(tau=0.5), **options), trainer(IPO(tau=0.5), beta=1.0, **options)
    a, b = (made.evaluate(made.train_dataset) for made in (plain, scaled))
    assert b["eval_rewards/margins"] == pytest.approx(2 * a["eval_rewards/margins"])
    for name in (
        "eval_loss",
        "eval_theory/effective_step",
        "eval_theory/win_rate_chosen",
        "eval_theory/loss_in_payoffs",
    ):
        assert b[name] == pytest.approx(a[name]), name
    assert a["eval_theory/effective_step"] == 2.0


def test_generated_responses_enter_spacs_critic_term(trainer: Make, tiny_llama: Make) -> None:
    """With completions the critic term is on them; its weight lam_critic multiplies −log σ(−0) = log 2 at the start."""
    rows = [{"prompt": "p", "chosen": "yes", "rejected": "no", "completions": ["maybe", "so"]}]
    made = trainer(SPAC(eta=1.0, lam=1.0, R=1.0), train_dataset=rows)
    np.testing.assert_array_equal(made._stages[made.train_dataset].stage.generated, [[0, 0, 0.5, 0.5]])
    assert made.evaluate(made.train_dataset)["eval_loss"] == pytest.approx(2 * math.log(2))


@dataclass(frozen=True)
class Damped(Rule):
    """A rule that the package has never heard of: half a step."""

    eta: float

    def form(self) -> Form:
        return Form({"current": "start"}, [Stage("current", {"current": 1.0}, {win("current"): self.eta / 2})])


def test_a_rule_of_ones_own_trains(trainer: Make) -> None:
    """No line of the package knows it. Its default loss is the labelled square with margin η/4."""
    made = trainer(Damped(eta=4.0), max_steps=4)
    made.train()
    first, *_, last = logs(made)
    assert first["loss"] == pytest.approx(1.0, abs=1e-6)
    assert last["loss"] < first["loss"]
    assert last["rewards/margins"] > 0


# ------------------------------------------------------------------------------------------------ surface and metrics


def test_metrics_have_trls_names_and_choose_the_best_checkpoint(trainer: Make, small_pairs: list[Any]) -> None:
    made = trainer(
        DPO(tau=0.1),
        eval_dataset=small_pairs[:6],
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_rewards/accuracies",
        max_steps=3,
        learning_rate=1e-2,
    )
    made.train()
    shared = {f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins")}
    shared |= {"logps/chosen", "logps/rejected", "theory/kl_reference", "theory/kl_last_iterate"}
    assert shared <= set(logs(made)[0])
    evaluations = [entry for entry in made.state.log_history if "eval_loss" in entry]
    assert {f"eval_{name}" for name in shared} <= set(evaluations[0])
    assert made.state.best_metric == max(entry["eval_rewards/accuracies"] for entry in evaluations)
    assert Path(made.state.best_model_checkpoint).exists()


def test_several_evaluation_sets_and_compute_metrics(trainer: Make, small_pairs: list[Any]) -> None:
    seen = []

    def compute(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions.shape)
        chosen, rejected = prediction.predictions.T
        return {"margin": float(np.mean(chosen - rejected))}

    made = trainer(DPO(tau=0.1), eval_dataset={"a": small_pairs[:5], "b": small_pairs[5:]}, compute_metrics=compute)
    made.train()
    metrics = made.evaluate()
    assert seen == [(5, 2), (8, 2)]
    for name in ("a", "b"):
        assert metrics[f"eval_{name}_margin"] == pytest.approx(metrics[f"eval_{name}_rewards/margins"], rel=1e-5)


def test_reference_in_every_step_is_the_precomputed_one(trainer: Make, tiny_llama: Make) -> None:
    runs = [
        trainer(DPO(tau=0.1), precompute_ref_log_probs=precompute, ref_model=ref)
        for precompute, ref in ((True, None), (False, None), (True, tiny_llama()), (False, tiny_llama()))
    ]
    for run in runs:
        run.train()
    for other in runs[1:]:
        np.testing.assert_allclose(
            [entry["loss"] for entry in logs(runs[0])], [entry["loss"] for entry in logs(other)], rtol=1e-5
        )


def test_adapters_train_against_the_model_without_them(trainer: Make, tiny_llama: Make) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=0.2)
    model = tiny_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    runs = [
        trainer(DPO(tau=0.1), model=m, peft_config=config, precompute_ref_log_probs=precompute, learning_rate=0.5)
        for m, precompute in ((model, True), (tiny_llama(), False))
    ]
    for run in runs:
        run.train()
    first, *_, last = logs(runs[0])
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert last["loss"] < first["loss"]
    np.testing.assert_allclose([x["loss"] for x in logs(runs[0])], [x["loss"] for x in logs(runs[1])], rtol=1e-4)
    for name, value in runs[0].model.get_base_model().state_dict().items():
        if "lora" not in name:
            np.testing.assert_array_equal(value, before[name.replace(".base_layer", "")])


def test_length_normalization_divides_by_the_scored_tokens(trainer: Make, tiny_llama: Make) -> None:
    start, reference = tiny_llama(1), tiny_llama(2)
    made = trainer(IPO(tau=0.5), model=start, ref_model=reference, length_normalize=True)
    data = made.train_dataset
    lengths = np.array([[sum(s.mask) for s in row] for row in data.responses.sequences])
    ratios = (naive_logprobs(start, data) - naive_logprobs(reference, data)) / lengths
    expected = np.mean((ratios[:, 0] - ratios[:, 1] - 1.0) ** 2)
    np.testing.assert_allclose(made.evaluate(data)["eval_loss"], expected, rtol=1e-5)


# -------------------------------------------------------------------------------------------------- stages of a rule


def test_second_stage_needs_the_policy_of_the_first(trainer: Make, tiny_llama: Make) -> None:
    with pytest.raises(ValueError, match="trains the stages auxiliary, current: set stage"):
        trainer(ONPO(eta=1.0))
    first = trainer(ONPO(eta=1.0), stage="auxiliary")
    assert first.job.base == ((1.0, "start"),)
    with pytest.raises(ValueError, match="against the policy 'auxiliary', which was not given"):
        trainer(ONPO(eta=1.0), stage="current")
    auxiliary = tiny_llama(3)
    second = trainer(ONPO(eta=1.0), stage="current", policies={"auxiliary": auxiliary})
    assert second.job.base == ((1.0, "auxiliary"),)
    data = second.train_dataset
    ratios = naive_logprobs(second.model, data) - naive_logprobs(auxiliary, data)
    expected = np.mean((ratios[:, 0] - ratios[:, 1] - 0.5) ** 2)
    np.testing.assert_allclose(second.evaluate(data)["eval_loss"], expected, rtol=1e-5, atol=1e-5)


def test_expressions_are_written_out_in_the_base(trainer: Make, tiny_llama: Make) -> None:
    """Nash-MD's mixture of current and reference."""
    made = trainer(NashMD(eta=1.0, tau=0.25), ref_model=tiny_llama(4))
    assert made.job.base == ((0.75, "start"), (0.25, "reference"))
    assert trainer(EGPO(eta=1.0, tau=0.25), stage="half").job.base == ((0.75, "start"), (0.25, "reference"))


def test_what_the_columns_do_not_hold_is_refused(trainer: Make) -> None:
    with pytest.raises(ValueError, match="the data's columns hold one payoff"):
        trainer(ONPO(eta=1.0, variant="one_step"), iteration=1)
    with pytest.raises(ValueError, match="needs a stage with one payoff of kind 'win' about the policy"):
        trainer(DPO(tau=1.0), objective=Pointwise())

    @dataclass(frozen=True)
    class Odd(Rule):
        def form(self) -> Form:
            return Form({"current": "start"}, [Stage("current", {"current": 1.0}, {Payoff("odd", "current"): 1.0})])

    with pytest.raises(ValueError, match="kind 'odd' has no loss of its own: pass an objective"):
        trainer(Odd())
    assert trainer(Odd(), objective=Pairwise()).objective == Pairwise()


# --------------------------------------------------------------------------------------------------------- bad input


def test_bad_arguments_are_refused_before_training(trainer: Make, tiny_llama: Make, byte_tokenizer: Make) -> None:
    model = tiny_llama()
    with pytest.raises(ValueError, match="ref_model is the model itself"):
        trainer(DPO(tau=0.1), model=model, ref_model=model)
    with pytest.raises(ValueError, match="auxiliary is the model itself"):
        trainer(ONPO(eta=1.0), model=model, stage="current", policies={"auxiliary": model})
    with pytest.raises(ValueError, match="no rule: pass rule="):
        trainer(None)
    with pytest.raises(ValueError, match="leave one out"):
        trainer(DPO(tau=0.1), loss_type="ipo", beta=0.1)
    with pytest.raises(ValueError, match="pass an instance"):
        trainer(DPO)
    with pytest.raises(ValueError, match="pairs = 'all' has no effect beside an objective"):
        trainer(IPO(tau=0.1), objective=Pairwise(All()), pairs="all")
    with pytest.raises(ValueError, match="processing_class is missing"):
        SelfPlayTrainer(model, args=SelfPlayConfig(output_dir="unused", use_cpu=True), rule=DPO(tau=0.1))


def test_several_visible_gpus_without_launcher_are_refused(trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SelfPlayConfig, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match="2 GPUs are visible to one process"):
        trainer(DPO(tau=0.1))


def test_missing_pad_token_and_larger_vocabulary_are_said(
    trainer: Make, tiny_llama: Make, byte_tokenizer: Make, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = byte_tokenizer(pad=False)
    trainer(DPO(tau=0.1), processing_class=tokenizer, model=tiny_llama(vocab_size=300))
    assert tokenizer.pad_token == "</s>"
    assert "no pad token: set to its end token" in caplog.text
    assert "vocabulary of 300 is larger than the tokenizer's 259" in caplog.text


def test_non_finite_loss_stops_and_saves_the_rows(trainer: Make) -> None:
    made = trainer(DPO(tau=0.1))
    with torch.no_grad():
        made._stages[made.train_dataset].known["start"][4] = float("nan")
    with pytest.raises(NonFiniteLoss, match="not finite at step") as stopped:
        made.train()
    path = Path(made.args.output_dir) / "nonfinite-batch.json"
    assert str(path) in str(stopped.value)
    saved = json.loads(path.read_text())
    assert "4" in saved["rows"]
    assert saved["losses"][saved["rows"].index("4")] == "nan"


def test_weights_that_changed_after_the_start_was_scored_are_noticed(trainer: Make) -> None:
    made = trainer(DPO(tau=0.1))
    with torch.no_grad():
        made.model.lm_head.weight.mul_(1.1)
    with pytest.raises(ValueError, match="log-ratio to the starting policy"):
        made.train()


@pytest.mark.parametrize("options", [{"padding_free": True}, {"padding_free": False}], ids=["packed", "padded"])
def test_the_start_is_scored_in_the_precision_of_training(options: dict[str, Any], trainer: Make) -> None:
    """bf16 autocast, which accelerate puts into the forward of the prepared model only: the first loss is at 0."""
    made = trainer(IPO(tau=0.1), bf16=True, max_steps=2, **options)
    made.train()
    assert logs(made)[0]["loss"] == pytest.approx(25, abs=0.05)
    in_step = trainer(IPO(tau=0.1), bf16=True, max_steps=2, precompute_ref_log_probs=False, **options)
    in_step.train()
    assert in_step.state.log_history[0]["loss"] == pytest.approx(25, abs=0.05)


def test_data_for_which_the_start_is_gone_are_refused(trainer: Make, small_pairs: list[Any], tiny_llama: Make) -> None:
    made = trainer(DPO(tau=0.1), max_steps=1)
    made.train()
    with pytest.raises(ValueError, match="has changed: give this data set when the trainer is made"):
        made.evaluate(small_pairs[:3])
    held = trainer(DPO(tau=0.1), max_steps=1, ref_model=tiny_llama())
    held.train()
    assert "eval_loss" in held.evaluate(small_pairs[:3])
