"""Objectives: hand-worked losses, the choice of pairs, the reduction, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from nashpo.core.losses import identity_term
from nashpo.core.rules import DPO, EGPO, INPO, IPO, ONPO, SPAC, SPPO, Form, NashMD, Rule, Stage, critic, reward, win
from nashpo.llm.objectives import (
    All,
    BestWorst,
    Half,
    Iid,
    Labelled,
    Logistic,
    LogZ,
    Objective,
    Pairwise,
    Pointwise,
    SPACPractical,
    StageTensors,
    reduce,
)
from nashpo.tabular.minimizers import minimize_logistic, minimize_pairwise, minimize_pointwise


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def uniform(K: int, B: int = 1) -> torch.Tensor:
    return torch.full((B, K), 1 / K, dtype=torch.float64)


def test_sppo_of_best_and_worst_by_hand() -> None:
    """η = 2, win rates .7, .5, .2, log-ratios .1, 9, −.3: ((.1 − 2·.2)² + (−.3 + 2·.3)²)/2 = (.09 + .09)/2."""
    stage = StageTensors(tensor([[0.1, 9.0, -0.3]]), 2 * tensor([[0.2, 0.0, -0.3]]), uniform(3))
    assert_allclose(float(reduce(Pointwise(Half(), BestWorst()).losses(stage))), 0.09, rtol=0, atol=1e-15)


def test_sppo_of_all_responses_by_hand() -> None:
    """The third response adds 9²: (.09 + 81 + .09)/3."""
    stage = StageTensors(tensor([[0.1, 9.0, -0.3]]), 2 * tensor([[0.2, 0.0, -0.3]]), uniform(3))
    assert_allclose(float(reduce(Pointwise(Half(), All()).losses(stage))), (0.18 + 81) / 3, rtol=1e-15)


def test_log_z_is_subtracted() -> None:
    """Weights ½, ½ and targets ±1 have log Z = log cosh 1: the exact step has loss 0."""
    target = tensor([[1.0, -1.0]])
    log_z = np.log(np.cosh(1.0))
    stage = StageTensors(target - log_z, target, uniform(2))
    assert_allclose(float(reduce(Pointwise(LogZ()).losses(stage))), 0, rtol=0, atol=1e-30)
    assert float(reduce(Pointwise(Half()).losses(stage))) > 0.1


def test_log_z_off_policy() -> None:
    """Responses of another policy than the base: log Z = log Σ base · exp(target), through importance weights."""
    base, on, target = tensor([[0.2, 0.3, 0.5]]), tensor([[0.6, 0.3, 0.1]]), tensor([[0.4, -0.2, 0.1]])
    stage = StageTensors(target, target, on, log_importance=(base / on).log())
    expected = float((base * target.exp()).sum().log())
    assert_allclose(float(LogZ().subtract(stage)), expected, rtol=1e-14)


def test_labelled_by_hand() -> None:
    """A hard label: ((lr_w − lr_l) − η/2)² with η = 3 and the second response the winner: ((.5 − .2) − 1.5)²."""
    stage = StageTensors(
        tensor([[0.2, 0.5]]), tensor([[0.0, 0.0]]), uniform(2), tensor([[[0.5, 0.0], [1.0, 0.5]]]), step=3.0
    )
    assert_allclose(float(reduce(Labelled().losses(stage))), 1.44, rtol=1e-15)


def test_logistic_by_hand() -> None:
    """−log σ(β (lr_w − lr_l)) with b = 1/β = 10: −log σ(.1 · .5)."""
    stage = StageTensors(
        tensor([[0.7, 0.2]]), tensor([[0.0, 0.0]]), uniform(2), tensor([[[0.5, 1.0], [0.0, 0.5]]]), step=10.0
    )
    assert_allclose(float(reduce(Logistic().losses(stage))), np.log1p(np.exp(-0.05)), rtol=1e-14)


@pytest.mark.parametrize(("on_pairs", "own"), [(False, [2.0]), (True, [2.0, 2.0, 0.4, 0.1])])
def test_spac_practical_by_hand(on_pairs: bool, own: list[float]) -> None:
    """Pair (.4, .1), generated log-ratio 2, β = ½: −log σ(.15) + 3 · mean of the critic term's log-ratios."""
    stage = StageTensors(
        tensor([[0.4, 0.1, 2.0]]),
        tensor([[0.0, 0.0, 0.0]]),
        tensor([[0.5, 0.5, 0.0]]),
        tensor([[[0.5, 1.0, 0.5], [0.0, 0.5, 0.5], [0.5, 0.5, 0.5]]]),
        step=2.0,
        generated=tensor([[0.0, 0.0, 1.0]]),
    )
    objective = SPACPractical(lam_critic=3.0, smoothing=identity_term, on_pairs=on_pairs)
    expected = np.log1p(np.exp(-0.15)) + 3 * np.mean(own)
    assert_allclose(float(reduce(objective.losses(stage))), expected, rtol=1e-14)


# ------------------------------------------------------------------------------------------------- minimizers


def random_stage(seed: int, n: int = 5) -> tuple[StageTensors, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    base = tensor(rng.dirichlet(np.ones(n), 2))
    wins = rng.uniform(0, 1, (2, n, n))
    wins = tensor((wins + 1 - np.swapaxes(wins, -1, -2)) / 2)
    target = 1.5 * ((wins @ base[..., None])[..., 0] - 0.5)
    return StageTensors(torch.zeros_like(base), target, base, wins, step=1.5), base.log(), wins


@pytest.mark.parametrize("name", ["half", "log_z", "pairwise", "labelled", "logistic"])
def test_gradient_vanishes_at_the_minimizer_of_tables(name: str) -> None:
    """The gradient of every objective in the logits is 0 at the minimizer that `tabular` computes another way."""
    stage, log_base, wins = random_stage(0)
    base, target = log_base.exp(), stage.target
    pairs = base[..., :, None] * base[..., None, :]
    difference = target[..., :, None] - target[..., None, :]
    log_z = (log_base + target).logsumexp(-1, keepdim=True)
    arrays = {
        "half": (Pointwise(Half()), minimize_pointwise(log_base.numpy(), target.numpy(), base.numpy())),
        "log_z": (Pointwise(LogZ()), minimize_pointwise(log_base.numpy(), (target - log_z).numpy(), base.numpy())),
        "pairwise": (Pairwise(), minimize_pairwise(log_base.numpy(), difference.numpy(), pairs.numpy())),
        "labelled": (Labelled(), minimize_pairwise(log_base.numpy(), 1.5 * (wins.numpy() - 0.5), pairs.numpy())),
        "logistic": (Logistic(), minimize_logistic(log_base.numpy(), wins.numpy(), pairs.numpy(), 1 / 1.5)),
    }
    objective, minimizer = arrays[name]
    logits = torch.tensor(minimizer, requires_grad=True)
    reduce(objective.losses(replace(stage, log_ratio=logits.log_softmax(-1) - log_base))).backward()
    assert_allclose(logits.grad.numpy(), 0, rtol=0, atol=1e-10)
    logits = log_base.clone().requires_grad_()
    reduce(objective.losses(replace(stage, log_ratio=logits.log_softmax(-1) - log_base))).backward()
    assert logits.grad.abs().max() > 1e-3


# ------------------------------------------------------------------------------------------- pairs and reduction


def test_best_and_worst_skip_ties_and_missing_responses() -> None:
    target = tensor([[0.1, 0.1, 0.0], [0.3, -0.2, 9.0]])
    weights = tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])
    chosen = BestWorst().choose(target, weights)
    assert chosen.weight.tolist() == [[0.0], [1.0]]
    assert chosen.points.tolist() == [[0.0, 0.0, 0.0], [0.5, 0.5, 0.0]]
    assert (chosen.left[1].item(), chosen.right[1].item()) == (0, 1)


def test_iid_pairs_are_disjoint_and_skip_what_is_missing() -> None:
    weights = tensor([[0.2] * 5, [0.5, 0.5, 0.0, 0.0, 0.0]])
    chosen = Iid().choose(torch.zeros_like(weights), weights)
    assert chosen.left[0].tolist() == [0, 2]
    assert chosen.right[0].tolist() == [1, 3]
    assert chosen.weight.tolist() == [[0.5, 0.5], [1.0, 0.0]]


def test_missing_responses_do_not_matter() -> None:
    """A prompt padded to more responses has the same loss, even with NaN in the padding."""
    short, log_base, wins = random_stage(1, 4)
    short = replace(short, log_ratio=log_base / 3)

    def pad(values: torch.Tensor, fill: float) -> torch.Tensor:
        return torch.nn.functional.pad(values, (0, 2), value=fill)

    long = replace(
        short,
        log_ratio=pad(short.log_ratio, float("nan")),
        target=pad(short.target, float("nan")),
        weights=pad(short.weights, 0.0),
        preferred=torch.nn.functional.pad(wins, (0, 2, 0, 2), value=0.5),
    )
    for objective in (Pointwise(LogZ()), Pairwise(), Labelled(), Logistic(), Pairwise(BestWorst())):
        expected = float(reduce(objective.losses(short)))
        assert_allclose(float(reduce(objective.losses(long))), expected, rtol=1e-13)


def test_reduction_is_the_weighted_mean_over_prompts() -> None:
    losses = (tensor([[1.0, 3.0], [5.0, torch.inf]]), tensor([[0.5, 0.5], [1.0, 0.0]]))
    assert float(reduce(losses)) == 3.5
    assert float(reduce(losses, tensor([3.0, 1.0]))) == 2.75


# ---------------------------------------------------------------------------------------------------- legality

BOTH = Form(
    {"current": "start", "reference": "reference"},
    [Stage("current", {"current": 1.0}, {win("current"): 1.0, win("reference"): 1.0}, on="current")],
)


@pytest.mark.parametrize(
    ("objective", "rule", "says"),
    [
        (Pointwise(Half()), INPO(1.0, 0.3), "base current, reference on responses of 'current'"),
        (Pointwise(Half()), NashMD(1.0, 0.3), "no mixture"),
        (Pointwise(Half()), BOTH, "one payoff of kind 'win'"),
        (Pointwise(Half()), ONPO(1.0), "base auxiliary on responses of 'current'"),
        (Pointwise(Half()), DPO(1.0), "has reward(behavior)"),
        (Labelled(), BOTH, r"has win(current), win(reference)"),
        (Labelled(), ONPO(1.0, "one_step"), "use Pairwise()"),
        (Labelled(), SPAC(1.0, 1.0, 1.0), "has critic(current)"),
        (Logistic(), SPPO(1.0), "the logistic loss needs"),
        (SPACPractical(), SPPO(1.0), "SPAC's practical loss needs"),
    ],
)
def test_illegal_objectives_are_refused(objective: Objective, rule: Rule | Form, says: str) -> None:
    form = rule if isinstance(rule, Form) else rule.form()
    with pytest.raises(ValueError) as error:  # noqa: PT012
        for stage in form.stages:
            if stage.payoffs:
                objective.check(form, stage)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("objective", "rule"),
    [
        (Pointwise(Half()), SPPO(1.0)),
        (Labelled(), SPPO(1.0)),
        (Labelled(), ONPO(1.0)),
        (Labelled(), EGPO(1.0, 0.2)),
        (Labelled(), IPO(1.0)),
        (Labelled(), NashMD(1.0, 0.2)),
        (Logistic(), DPO(1.0)),
        (SPACPractical(), SPAC(1.0, 1.0, 1.0)),
        (Pairwise(), ONPO(1.0, "leader")),
        (Pointwise(LogZ()), INPO(1.0, 0.3)),
    ],
)
def test_legal_objectives_are_accepted(objective: Objective, rule: Rule) -> None:
    form = rule.form()
    for stage in form.stages:
        if stage.payoffs:
            objective.check(form, stage)


def test_missing_ingredients_are_named() -> None:
    stage = StageTensors(tensor([[0.0, 0.0]]), tensor([[0.0, 0.0]]), uniform(2))
    with pytest.raises(ValueError, match="needs `preferred`"):
        Labelled().losses(replace(stage, step=1.0))
    with pytest.raises(ValueError, match="`step`"):
        Labelled().losses(replace(stage, preferred=torch.full((1, 2, 2), 0.5)))
    with pytest.raises(ValueError, match="self-generated responses"):
        SPACPractical().losses(stage)


def test_kinds_are_the_rules_own() -> None:
    assert {p.kind for p in DPO(1.0).form().payoffs} == {reward("behavior").kind}
    assert {p.kind for p in SPAC(1.0, 1.0, 1.0).form().payoffs} == {critic("current").kind}
