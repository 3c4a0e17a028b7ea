"""The fitted backend: idempotent, JSON-able, resumable; policies that load back bit for bit, whole or as adapters."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from enumerable import ADAM, World, tiny_llama
from numpy.testing import assert_allclose
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from nashpo.core.rules import DPO, EGPO, INPO, ONPO, SPAC, SPPO, NashMD, Rule, win
from nashpo.core.selfplay import State, self_play
from nashpo.core.store import FileStore
from nashpo.llm.backend import AnswerFolder, FittedBackend, offline_pairs, win_rates
from nashpo.llm.fit import Packing, Padding, Settings, policy_logprobs
from nashpo.llm.objectives import All, Half, Labelled, LogZ, Objective, Pairwise, Pointwise, SPACPractical
from nashpo.llm.policies import AdapterPolicies, WholeModels
from nashpo.llm.responses import Responses, Scored
from nashpo.llm.sampling import Generate

WORLD = World()
QUICK = Settings(steps=5, optimizer=ADAM)


class Killed(BaseException):
    """Stands for a process that dies."""


def backend(folder: Path, **changes: Any) -> FittedBackend:
    """On disk, with generated responses."""
    given: dict[str, Any] = {
        "policies": WholeModels(WORLD.model(0), folder / "policies", {"reference": WORLD.model(1)}),
        "prompts": WORLD.prompts,
        "sampler": Generate(K=6, max_new_tokens=WORLD.L),
        "feedback": {"win": win_rates(WORLD.compare)},
        "objective": Pairwise(),
        "settings": QUICK,
        "seed": 7,
        "answers": AnswerFolder(folder / "answers"),
    }
    return FittedBackend(**{**given, **changes})


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(folder: Path, rule: Rule, steps: int = 2, **changes: Any) -> State:
    folder.mkdir(parents=True, exist_ok=True)
    return self_play(rule.form(), backend(folder, **changes), steps, store=FileStore(folder / "state.json"))


@pytest.mark.parametrize(
    "rule", [ONPO(0.5), ONPO(0.5, "leader"), NashMD(0.5, 0.2), EGPO(0.5, 0.2)], ids=lambda r: r.name
)
def test_runs_that_are_killed_and_resumed_end_bit_for_bit_the_same(rule: Rule, tmp_path: Path) -> None:
    """Killed at each fit in turn; whatever was finished is found by its key."""
    expected = run(tmp_path / "whole", rule)
    left = files(tmp_path / "whole")
    assert json.loads(json.dumps(expected.slots["current"].handle)) == expected.slots["current"].handle
    assert len([name for name in left if name.startswith("policies")]) >= 2

    class Mortal(Generate):
        calls = 0

        def __call__(self, parts: Any, prompts: Sequence[Sequence[int]], seed: int) -> Responses:
            Mortal.calls += 1
            if Mortal.calls == Mortal.dies_at:
                raise Killed
            return super().__call__(parts, prompts, seed)

        dies_at = 0

    for dies_at in (1, 2):
        Mortal.calls, Mortal.dies_at = 0, dies_at
        folder = tmp_path / str(dies_at)
        with pytest.raises(Killed):
            run(folder, rule, sampler=Mortal(K=6, max_new_tokens=WORLD.L))
        assert run(folder, rule) == expected
        assert files(folder) == left


def test_operations_are_idempotent_in_their_key(tmp_path: Path) -> None:
    one = backend(tmp_path)
    answer = one.ask("a", win("current"), "start", "start")
    from nashpo.core.selfplay import Term

    terms = [Term(0.5, win("current"), answer)]
    policy = one.project("p", [(1.0, "start")], terms, "start")
    found = files(tmp_path)
    other = backend(tmp_path, feedback={}, sampler=None)
    assert other.ask("a", win("current"), "start", "start") == answer
    assert other.project("p", [(1.0, "start")], terms, "start") == policy
    assert files(tmp_path) == found
    assert other.reports == {}


def test_what_the_state_does_not_hold_is_forgotten(tmp_path: Path) -> None:
    """Of ONPO's auxiliary policies only the last one is left; the main ones are all in the average."""
    state = run(tmp_path, ONPO(0.5), 3)
    left = {Path(name).stem for name in files(tmp_path) if name.startswith("policies")}
    handles = {*(version.handle for version in state.slots.values()), *state.average.handle} - {"start"}
    assert left == handles
    assert len(left) == 4
    assert not [name for name in files(tmp_path) if name.startswith("answers")]


def test_mixtures_of_mixtures_are_products_of_stored_policies(tmp_path: Path) -> None:
    one = backend(tmp_path)
    inner = one.project("", [(0.75, "start"), (0.25, "reference")], [], None)
    outer = one.project("", [(0.5, inner), (0.5, "reference")], [], None)
    assert outer == {"mixture": [[0.375, "start"], [0.625, "reference"]]}


@pytest.mark.parametrize(
    ("rule", "changes", "says"),
    [
        (DPO(1.0), {}, "no feedback of kind 'reward'"),
        (INPO(1.0, 0.2), {"objective": Pointwise(Half())}, "constant 1/2"),
        (ONPO(1.0, "leader"), {"objective": Labelled()}, "labelled margin"),
    ],
)
def test_bad_recipes_are_refused_before_any_work(rule: Rule, changes: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says) as error:
        run(tmp_path, rule, 1, **changes)
    assert "\n" not in str(error.value)
    assert not [name for name in files(tmp_path) if "policies" in name]


def test_a_judge_outside_its_range_is_refused(tmp_path: Path) -> None:
    def broken(first: Responses, second: Responses) -> Tensor:
        return WORLD.compare(first, second) + 0.9

    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        run(tmp_path, SPPO(0.5), feedback={"win": win_rates(broken)})


def test_log_z_of_nash_md_from_token_wise_draws(tmp_path: Path) -> None:
    """The unnormalized mixture is the base, its token-wise cousin the sampler: importance weights put log Z right."""
    K = 4000
    one = backend(tmp_path, sampler=Generate(K=K, max_new_tokens=WORLD.L), objective=Pointwise(LogZ(), All()))
    mixture = one.project("", [(0.4, "start"), (0.6, "reference")], [], None)
    factors = [(0.4, "start"), (0.6, "reference")]
    responses = one.responses(mixture)
    scored = [(a, one._logprobs(name, responses)) for a, name in factors]
    importance = one._log_importance(factors, scored, responses, mixture)
    assert importance is not None
    every = WORLD.all_responses()
    mass = sum(a * one._logprobs(name, every) for a, name in factors).exp().sum(-1)
    estimate = importance.exp().mean(-1)
    # Standard errors of the mean of K draws; the estimate is off by more than four with probability 1e-4.
    error = importance.exp().std(-1) / K**0.5
    assert torch.all((estimate - mass).abs() < 4 * error + 1e-6)
    assert torch.all(mass < 0.99)
    (reported,) = one.mixture_distances.values()
    assert torch.all((reported > 0.001) & (reported < 0.2))


def test_spac_practical_trains_on_pairs_and_generated_responses(tmp_path: Path) -> None:
    """The winner gains on the loser, and both terms are there: without the critic term another policy comes out."""
    chosen = [Scored.completion(p, WORLD.completions[2]) for p in WORLD.prompts]
    rejected = [Scored.completion(p, WORLD.completions[5]) for p in WORLD.prompts]

    def trained(lam_critic: float) -> np.ndarray:
        folder = tmp_path / str(lam_critic)
        changes: dict[str, Any] = {
            "feedback": {"critic": offline_pairs(chosen, rejected)},
            "objective": SPACPractical(lam_critic=lam_critic),
            "settings": replace(QUICK, steps=30),
        }
        state = run(folder, SPAC(eta=1.0, lam=1.0, R=1.0), 2, **changes)
        with backend(folder).policies.use(state.slots["current"].handle) as model:
            return WORLD.log_policy(model)

    start, plain, critical = WORLD.log_policy(WORLD.model(0)), trained(0.0), trained(1.0)
    for fitted in (plain, critical):
        assert np.all((fitted - start)[:, 2] - (fitted - start)[:, 5] > 0.3)
    assert np.abs(plain - critical).max() > 0.01


# ------------------------------------------------------------------------------------------------------------ policies


def test_whole_models_load_back_bit_for_bit(tmp_path: Path) -> None:
    """Tied weights and bf16 included."""
    for tied, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        config = LlamaConfig(**{**tiny_llama(5, 0).config.to_dict(), "tie_word_embeddings": tied})
        folder = tmp_path / str(tied)
        policies = WholeModels(LlamaForCausalLM(config).to(dtype), folder)
        with policies.train("start") as model:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter))
            saved = {name: value.clone() for name, value in model.state_dict().items()}
            policies.save("changed", model)
        fresh = WholeModels(LlamaForCausalLM(config).to(dtype), folder)
        assert "changed" in fresh
        with fresh.use("changed") as model:
            for name, value in model.state_dict().items():
                assert value.dtype == dtype
                assert torch.equal(value, saved[name]), name
            if tied:
                assert model.lm_head.weight is model.model.embed_tokens.weight


def test_nested_uses_are_different_policies() -> None:
    policies = WholeModels(WORLD.model(0), origins={"reference": WORLD.model(1)})
    with policies.use("start") as first, policies.use("reference") as second, policies.use("start") as third:
        assert len({id(first), id(second), id(third)}) == 3
        assert_allclose(WORLD.log_policy(first), WORLD.log_policy(third), rtol=0, atol=0)
        assert np.abs(WORLD.log_policy(first) - WORLD.log_policy(second)).max() > 0.1


def test_training_does_not_touch_what_it_began_from() -> None:
    policies = WholeModels(WORLD.model(0))
    with policies.train("start") as model, torch.no_grad():
        model.lm_head.weight.mul_(2)
    with policies.use("start") as model:
        assert_allclose(WORLD.log_policy(model), WORLD.log_policy(WORLD.model(0)), rtol=0, atol=0)


def test_a_reference_that_is_the_start_itself_is_refused() -> None:
    model = WORLD.model(0)
    with pytest.raises(ValueError, match="same module as the start"):
        WholeModels(model, origins={"reference": model})
    with pytest.raises(ValueError, match="no policy 'nobody'; given are behavior, reference, start"):  # noqa: SIM117
        with WholeModels(model).use("nobody"):
            pass


def adapters(folder: Path | None = None) -> AdapterPolicies:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "v_proj", "down_proj"])
    return AdapterPolicies(WORLD.model(0), config, folder)


@pytest.mark.parametrize("rule", [ONPO(0.5), NashMD(0.5, 0.2)], ids=lambda r: r.name)
def test_rules_train_adapters_and_leave_the_base_alone(rule: Rule, tmp_path: Path) -> None:
    policies = adapters(tmp_path / "adapters")
    settings = replace(QUICK, steps=30, optimizer=partial(torch.optim.Adam, lr=2e-2))
    one = backend(tmp_path, policies=policies, settings=settings)
    state = self_play(rule.form(), one, 2)
    handle = state.slots["current"].handle
    with policies.use("start") as model:
        assert_allclose(WORLD.log_policy(model), WORLD.log_policy(WORLD.model(0)), rtol=0, atol=1e-6)
        outer = WORLD.log_policy(model)
        with policies.use(handle) as model:
            trained = WORLD.log_policy(model)
        assert_allclose(WORLD.log_policy(model), outer, rtol=0, atol=0)
    assert np.abs(trained - outer).max() > 0.02
    fresh = adapters(tmp_path / "adapters")
    with fresh.use(handle) as model:
        assert_allclose(WORLD.log_policy(model), trained, rtol=0, atol=0)
    policies.keep({handle})
    assert policies.names() == {handle}
    assert {file.stem for file in (tmp_path / "adapters").glob("*.safetensors")} == {handle}


def test_packed_and_padded_log_probabilities_agree() -> None:
    model, every = WORLD.model(0), WORLD.all_responses()
    assert_allclose(
        policy_logprobs(model, every, Packing()), policy_logprobs(model, every, Padding()), rtol=0, atol=1e-5
    )


def check_protocol(objective: Objective) -> bool:
    return objective.reads_log_importance


def test_only_log_z_reads_importance_weights() -> None:
    assert check_protocol(Pointwise(LogZ()))
    assert not any(check_protocol(o) for o in (Pointwise(Half()), Pairwise(), Labelled()))
