"""Best and worst alone where the loss reads no others, and each policy scored once: nothing else may change.

Shapes: B prompts with at most K responses each.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_loop_rules import recipe, rows

from nashpo.core.rules import DPO, SPPO
from nashpo.llm.loop import backend, machine, training
from nashpo.llm.metrics import describe
from nashpo.llm.objectives import (
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
    per_prompt,
    reads_extremes,
)
from nashpo.llm.preferences import PreferenceData, PreparedData
from nashpo.llm.responses import Responses, Scored, StageData
from nashpo.llm.stage_rows import StageRows
from nashpo.llm.stages import job

FEW = [Pairwise(BestWorst()), Labelled(BestWorst()), Logistic(BestWorst()), Pointwise(Half(), BestWorst())]


class _Own(Labelled):
    """Somebody's loss, which may read anything."""


@pytest.mark.parametrize(
    "objective",
    [
        Pairwise(),
        Labelled(Iid()),
        Pointwise(Half()),
        Pointwise(LogZ(), BestWorst()),
        SPACPractical(pairs=BestWorst()),
        _Own(BestWorst()),
    ],
)
def test_other_losses_read_all(objective: Objective) -> None:
    assert not reads_extremes(objective)


# -------------------------------------------------------------------------------------------------------- on one stage

TABLE = [
    [0.1, 0.9, 0.4, 0.9, 0.2],  # two are best: the first of them is chosen
    [0.7, 0.3, 0.3, 0.5],  # two are worst, and one response is missing
    [0.5, 0.5, 0.5],  # all tie, told apart by who wins; the one that wins most loses to the one that wins least
    [0.5, 0.5],  # all tie, and nothing tells
]
"""Win rates of each prompt's responses."""


def stage() -> tuple[StageData, torch.Tensor]:
    """Five responses at most to four prompts, and fixed base log-probabilities."""
    K = 5
    responses = Responses.drawn([[Scored.completion((9,), (b, k)) for k in range(len(r))] for b, r in enumerate(TABLE)])
    target = torch.zeros(len(TABLE), K, dtype=torch.float64)
    preferred = torch.full((len(TABLE), K, K), 0.5, dtype=torch.float64)
    for b, rates in enumerate(TABLE):
        target[b, : len(rates)] = 2.0 * (torch.tensor(rates).double() - 0.5)
    for winner, loser, p in ((0, 2, 1.0), (2, 1, 1.0), (1, 0, 0.55)):
        preferred[2, winner, loser], preferred[2, loser, winner] = p, 1 - p
    base = torch.randn(len(TABLE), K, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 8
    return StageData(responses, target, preferred, step=2.0), torch.where(responses.weights > 0, base, 0.0)


def fitted(data: PreparedData, objective: Objective, theta: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """Losses and metrics of all rows where log π of response k to prompt b is theta[b, k]."""
    places = range(len(data))
    logprobs = data.responses.grid(
        torch.stack([theta[s.ids[1], s.ids[2]] for s in data.responses.rows(places)]), places
    )
    # DPO's stage is on a reward; of the losses here only Logistic is its own.
    found = job(DPO(tau=0.5) if type(objective) is Logistic else SPPO(2.0), 0, None, ())
    known = {found.start: data.known["base"], "reference": data.known["base"]}
    batch = StageRows(data.stage(2.0), [(1.0, found.start)], known).batch(data, places, logprobs, {}, False)
    losses = per_prompt(objective.losses(batch.stage))
    return losses, describe(batch, losses.detach(), 0.5, found, data.samples)


@pytest.mark.parametrize("objective", FEW, ids=lambda one: type(one).__name__)
def test_loss_gradient_and_metrics_are_those_of_all(objective: Objective) -> None:
    assert reads_extremes(objective)
    found, base = stage()
    samples = torch.tensor([5, 4, 3, 2])
    whole = PreferenceData.from_stage(found, samples, known={"base": base})
    few = whole.extremes()
    assert [len(row) for row in few.responses.sequences] == [2, 2, 2, 1]
    assert few.samples.tolist() == samples.tolist()
    torch.testing.assert_close(few.responses.weights.sum(-1), torch.ones(4, dtype=torch.float64))
    results = []
    for data in (whole, few):
        theta = (base + 0.3 * torch.arange(20).reshape(4, 5).sin()).requires_grad_(True)
        losses, metrics = fitted(data, objective, theta)
        losses.sum().backward()
        chosen = [row[k] for row, k in zip(data.responses.sequences, data.best.tolist(), strict=True)]
        rejected = [row[k] for row, k in zip(data.responses.sequences, data.worst.tolist(), strict=True)]
        results.append((losses.detach(), theta.grad, chosen, rejected, metrics))
    (losses, gradient, chosen, rejected, metrics), two = results
    assert torch.equal(losses, two[0])
    assert torch.equal(gradient, two[1])
    assert (losses > 0).tolist() == [True, True, False, False]
    assert (chosen, rejected) == two[2:4]
    assert [s.ids[2] for s in chosen] == [1, 0, 0, 0]
    assert [s.ids[2] for s in rejected] == [0, 1, 1, 0]
    for name, values in metrics.items():
        if name.startswith("theory/kl_") or "residual" in name:
            continue  # means over the stage's responses
        assert torch.equal(values, two[4][name]), name


# -------------------------------------------------------------------------------------------------------- on whole runs

SGD = ("training.optim=sgd", "training.learning_rate=0.1", "evaluation=null")
Passes = list[tuple[int, int, int]]


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, and no figures in the reports, which take as long as all the rest."""
    torch.set_num_threads(1)
    monkeypatch.setattr(machine, "write_report", lambda run: (run / machine.REPORT).write_text("none"))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    """Iteration, prompts and responses of every scoring pass over a model."""
    found: Passes = []
    real = training._logprobs

    def counted(model: Any, responses: Responses, args: Any, fitting: Any) -> torch.Tensor:
        number = int(re.findall(r"iterations/(\d+)/", args.output_dir)[0])
        found.append((number, len(responses), sum(map(len, responses.sequences))))
        return real(model, responses, args, fitting)

    monkeypatch.setattr(training, "_logprobs", counted)
    return found


def weights(run: Path, number: int) -> dict[str, torch.Tensor]:
    return load_file(run / f"iterations/{number:03d}/model/model.safetensors")


def test_a_run_ends_as_with_all_responses(tmp_path: Path, passes: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs are sums of fp32 numbers in another order."""
    changes = ("rule={name: sppo, eta: 1.0}", "sampling.K=5", *SGD)
    few = machine.train(recipe(tmp_path / "few", *changes)).run
    scored = list(passes)
    passes.clear()
    with monkeypatch.context() as patch:
        patch.setattr(backend, "reads_extremes", lambda objective: False)
        whole = machine.train(recipe(tmp_path / "whole", *changes)).run
    assert scored == [(t, n, 2 * n) for t, n, _ in passes]
    assert all(count == 5 * n for _, n, count in passes)
    for number in (1, 2):
        for name in (f"iterations/{number:03d}/{phase}/00000.jsonl" for phase in ("samples", "judgements")):
            assert (few / name).read_bytes() == (whole / name).read_bytes()
        assert load_file(few / f"iterations/{number:03d}/logprobs/reference.safetensors")["logprobs"].shape[1] == 2
        # Two steps of 1e-3 to 1e-2; a rounding of 6e-8 in each of a few operations.
        torch.testing.assert_close(weights(few, number), weights(whole, number), rtol=0, atol=1e-6)
    assert max((a - weights(few, 2)[name]).abs().max().item() for name, a in weights(few, 1).items()) > 1e-3
    names = {name for row in rows(few) for name in row if name in ("loss", "grad_norm") or "/" in name}
    names = {name for name in names if not name.startswith("theory/kl_") and "residual" not in name}
    assert names >= {"loss", "grad_norm", "rewards/chosen", "logps/rejected", "theory/effective_step"}
    for one, other in zip(rows(few), rows(whole), strict=True):
        for name in names & set(one):
            assert one[name] == pytest.approx(other[name], abs=1e-5), name


def test_stages_on_responses_of_their_own_share_nothing(tmp_path: Path, passes: Passes) -> None:
    """EGPO scores current and reference in both stages; first they are one policy, hence one pass in each stage."""
    machine.train(recipe(tmp_path, "rule={name: egpo, eta: 1.0, tau: 0.1}", *SGD))
    assert [t for t, _, _ in passes] == [1, 1, 2, 2, 2, 2]


def test_a_stage_takes_over_what_an_earlier_one_has_and_does_so_after_a_stop(
    tmp_path: Path, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONPO: start and reference, which are one policy, then auxiliary and reference, twice; five passes, not eight."""
    changes = ("rule={name: onpo, eta: 1.0}", "objective={name: labelled, pairs: best_worst}", *SGD)
    straight = machine.train(recipe(tmp_path / "straight", *changes)).run
    assert [t for t, _, _ in passes] == [1, 1, 2, 2, 2]
    for number in (1, 2):  # every stage's folder holds all its policies
        for path in (straight / f"iterations/{number:03d}/logprobs").rglob("manifest.json"):
            about = json.loads(path.read_text())
            assert len(about["policies"]) == len(about["files"]) == 2
            assert {one.name for one in path.parent.glob("*.safetensors")} == set(about["files"])
    passes.clear()
    real: Callable[..., bool] = training._is_there
    asked: list[Path] = []
    # In the first stage's phase before its second policy, in the second stage's, and in that of the second iteration.
    for stop in (2, 4, 6):

        def stopped(path: Path, *rest: Any, stop: int = stop) -> bool:
            asked.append(path)
            if len(asked) == stop:
                raise KeyboardInterrupt
            return real(path, *rest)

        asked.clear()
        with monkeypatch.context() as patch:
            patch.setattr(training, "_is_there", stopped)
            with pytest.raises(KeyboardInterrupt):
                machine.train(recipe(tmp_path / "killed", *changes))
    killed = machine.train(recipe(tmp_path / "killed", *changes)).run
    assert [t for t, _, _ in passes] == [1, 1, 2, 2, 2]
    files = [path.relative_to(straight) for path in (straight / "iterations").rglob("*.safetensors")]
    assert len([path for path in files if "logprobs" in path.parts]) == 8
    for path in files:
        assert (killed / path).read_bytes() == (straight / path).read_bytes(), path
