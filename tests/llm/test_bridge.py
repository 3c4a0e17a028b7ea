"""The bridge: rules fitted on a language model by gradient descent follow the exact games of `nashpo.tabular`.

On an enumerable LM everything is known: each fitted stage is held against the exact step from its own base, and each
run against the exact trajectory. The fits end early where they meet the exact step to 1e-4, to save time; one test lets
its fits run out. The mutations at the end are errors that this test must see.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from enumerable import SETTINGS, Played, World, distance, play_both, stop_at
from torch import Tensor, nn

from nashpo.core.policies import log_normalize
from nashpo.core.rules import EGPO, INPO, ONPO, SPAC, SPPO, NashMD, Payoff, Rule
from nashpo.llm.backend import Feedback, FittedBackend, Policy, win_rates
from nashpo.llm.fit import Padding, Progress, fit, policy_logprobs
from nashpo.llm.mixture import Parts
from nashpo.llm.objectives import Half, Labelled, LogZ, Losses, Objective, Pairwise, Pointwise, StageTensors
from nashpo.llm.policies import WholeModels
from nashpo.llm.responses import Answer, Responses, Scored, StageData
from nashpo.llm.sampling import Enumerate
from nashpo.tabular.critic import Box
from nashpo.tabular.minimizers import minimize_pairwise, minimize_pointwise
from nashpo.tabular.offline import OfflineBackend
from nashpo.tabular.preferences import PreferenceData
from nashpo.tabular.residuals import optimistic_residual_certificate, residual_certificate

WORLD = World()

# --------------------------------------------------------------------------------- (a) exact expectations, five rules


@pytest.mark.parametrize(
    ("rule", "objective"),
    [
        (SPPO(1.0), Pointwise(LogZ())),
        (ONPO(1.0), Labelled()),
        (INPO(1.0, 0.3), Pairwise()),
        (EGPO(1.0, 0.3), Pairwise()),
        (NashMD(1.0, 0.3), Pointwise(LogZ())),
    ],
    ids=["sppo", "onpo", "inpo", "egpo", "nash-md"],
)
def test_fitted_rules_follow_the_exact_game(rule: Rule, objective: Objective) -> None:
    """Five iterations: every stage within 3e-4 of its exact step, every iteration within 1e-3 of the trajectory."""
    played = play_both(WORLD, rule, 5, objective)
    played.check()
    stages = sum(bool(stage.payoffs) for stage in rule.form().stages)
    assert len(played.stage_distances()) == 5 * stages
    assert distance(played.log_policy(played.states[-1].slots["current"].handle), played.log_policy("start")) > 0.1


def test_fits_that_are_not_ended_early_follow_too() -> None:
    played = play_both(WORLD, SPPO(1.0), 2, Pairwise(), replace(SETTINGS, watch=None))
    played.check()
    assert [report.steps for report in played.backend.reports.values()] == [250, 250]


def half_minimizer(data: StageData, log_base: Tensor) -> np.ndarray:
    return minimize_pointwise(log_base.numpy(), data.target.numpy(), data.responses.weights.numpy())


def stop_at_half_minimizer(data: StageData, log_base: Tensor) -> Any:
    """End a fit once it meets the minimizer of the constant-½ loss to 1e-4."""
    minimizer = torch.from_numpy(half_minimizer(data, log_base)).exp()

    def reached(progress: Progress) -> bool:
        return 0.5 * ((progress.log_ratio + log_base).exp() - minimizer).abs().sum(-1).max().item() < 1e-4

    return reached


def fit_with_half(feedback: Mapping[str, Feedback] | None = None) -> tuple[float, float]:
    """One SPPO step at η = 3 with the constant ½: its distances from that loss's minimizer and from the exact step."""
    settings = replace(SETTINGS, watch=stop_at_half_minimizer, steps=400)
    played = play_both(WORLD, SPPO(3.0), 1, Pointwise(Half()), settings, feedback)
    ((trace, exact),) = played.exact_steps()
    fitted, start = played.log_policy(trace.result.handle), played.log_policy("start")
    gain = 3.0 * (WORLD.game.A @ np.exp(start)[..., None])[..., 0]
    return distance(fitted, minimize_pointwise(start, gain, np.exp(start))), distance(fitted, exact)


def test_the_constant_half_is_fitted_to_its_own_minimizer() -> None:
    from_minimizer, from_exact = fit_with_half()
    assert from_minimizer < 3e-4
    assert from_exact > 3e-3


# ------------------------------------------------------------------------------------------------ (b) K i.i.d. samples


@dataclass(frozen=True)
class Draw:
    """K i.i.d. draws from the enumerated policy, as counts: weights c/K on the responses there are."""

    world: World
    K: int

    def __call__(self, parts: Parts, prompts: Sequence[Sequence[int]], seed: int) -> Responses:
        every = Enumerate(self.world.completions, Padding())(parts, prompts, seed)
        rng = np.random.default_rng(seed)
        counts = np.stack([rng.multinomial(self.K, row / row.sum()) for row in every.weights.numpy()])
        return Responses(every.sequences, torch.from_numpy(counts / self.K), False, every.names)


SAMPLES, SEEDS, ETA = (8, 32, 128, 512), 8, 1.0


def sampled_step(K: int, seed: int) -> tuple[StageData, np.ndarray]:
    """The data of one SPPO step from K draws per prompt, with η/(1 − 1/K), and the base's log-policy."""
    policies = WholeModels(WORLD.model(0))
    backend = FittedBackend(
        policies, WORLD.prompts, Draw(WORLD, K), {"win": win_rates(WORLD.compare)}, seed=seed, settings=SETTINGS
    )
    key = backend.ask("answer", Payoff("win", "current"), "start", "start")
    data = StageData.from_answers([(ETA / (1 - 1 / K), backend.answers[key])])
    with policies.use("start") as model:
        return data, WORLD.log_policy(model)


def mean_distance(log_policy: np.ndarray, log_base: np.ndarray) -> float:
    exact = np.exp(log_normalize(log_base + ETA * (WORLD.game.A @ np.exp(log_base)[..., None])[..., 0]))
    return float(np.mean(np.abs(np.exp(log_policy) - exact).sum(-1)) / 2)


def table_fit(data: StageData, log_base: np.ndarray) -> np.ndarray:
    """The exact minimizer of the sampled pairwise loss among softmax tables."""
    target, weights = data.target.numpy(), data.responses.weights.numpy()
    pairs = weights[..., :, None] * weights[..., None, :]
    return minimize_pairwise(log_base, target[..., :, None] - target[..., None, :], pairs)


def test_error_falls_like_one_over_root_k() -> None:
    """Slope of log distance on log K in [−.65, −.35]: tables that minimize the sampled loss stand in for LM fits here
    (8 seeds × 3 prompts), and two LM fits on the same samples are held against them."""
    distances = np.array(
        [
            [mean_distance(table_fit(*sampled_step(K, seed)), sampled_step(K, seed)[1]) for K in SAMPLES]
            for seed in range(SEEDS)
        ]
    )
    slope = np.polyfit(np.log(SAMPLES), np.log(distances.mean(0)), 1)[0]
    assert -0.65 < slope < -0.35, (slope, distances.mean(0))


@pytest.mark.parametrize("K", [32, 512])
def test_an_lm_fitted_to_samples_meets_the_minimizer_of_their_loss(K: int) -> None:
    """On responses that were drawn; the rest is left to the LM."""
    data, log_base = sampled_step(K, 0)
    model = WORLD.model(0)
    layout = Padding()
    seen = data.responses.weights.numpy() > 0
    table = table_fit(data, log_base)
    fit(
        model,
        data,
        [(1.0, policy_logprobs(model, data.responses, layout))],
        Pairwise(),
        replace(SETTINGS, watch=None),
        0,
    )

    def among_seen(log_policy: np.ndarray) -> np.ndarray:
        return log_normalize(np.where(seen, log_policy, -np.inf))

    assert distance(among_seen(WORLD.log_policy(model)), among_seen(table)) < 3e-4


# ------------------------------------------------------------------------------------------- (c) the gap of the average


def average_policy(played: Played) -> np.ndarray:
    """The average of the iterates, probabilities (prompts, n)."""
    average = played.states[-1].average
    assert average is not None
    return np.exp(played.log_policy(average.handle))


def slot_trajectory(played: Played, name: str) -> np.ndarray:
    """log π_1 … log π_{T+1} of a slot, (T + 1, prompts, n)."""
    return np.stack([played.log_policy(state.slots[name].handle) for state in played.states])


@pytest.fixture(scope="module")
def cyclic_runs() -> tuple[Played, Played]:
    """SPPO and ONPO with η = 2 for ten iterations from a start that is not uniform; stages met to 3e-4."""
    settings = replace(SETTINGS, watch=stop_at(3e-4))
    return tuple(play_both(WORLD, rule, 10, settings=settings) for rule in (SPPO(2.0), ONPO(2.0)))  # type: ignore[return-value]


def test_gap_of_the_average_is_certified_and_smaller_for_onpo(cyclic_runs: tuple[Played, Played]) -> None:
    sppo, onpo = cyclic_runs
    A = np.asarray(WORLD.game.A)
    plain = residual_certificate(2.0, slot_trajectory(sppo, "current"), A)
    optimistic = optimistic_residual_certificate(
        2.0, slot_trajectory(onpo, "current"), slot_trajectory(onpo, "auxiliary"), A
    )
    for played, certificate in ((sppo, plain), (onpo, optimistic)):
        gap = 2 * np.max((A @ average_policy(played)[..., None])[..., 0], axis=-1)
        np.testing.assert_allclose(gap, certificate.gap, rtol=0, atol=1e-6)
        assert np.all(gap <= certificate.bound + 1e-12)
        assert np.all(certificate.residual_range > 0)
    assert np.all(optimistic.gap < plain.gap)


# ------------------------------------------------------------------------------------------------------------ (d) SPAC


def preference_data(seed: int) -> PreferenceData:
    """400 pairs per prompt drawn uniformly from the responses, labelled by the games."""
    rng = np.random.default_rng(seed)
    B, n = len(WORLD.prompts), WORLD.n
    wins = np.zeros((B, n, n))
    for b in range(B):
        for i, j in rng.integers(n, size=(400, 2)):
            i, j = (i, j) if rng.random() < WORLD.game.P[b, i, j] else (j, i)
            wins[b, i, j] += 1
    return PreferenceData.from_counts(wins)


def test_fitted_spac_follows_the_exact_one() -> None:
    """The critic answers as payoff: solved over the box for the fitted policy's own probabilities."""
    data = preference_data(0)

    def exact(origins: Mapping[str, np.ndarray]) -> OfflineBackend:
        return OfflineBackend(data, dict(origins))

    with WholeModels(WORLD.model(1)).use("start") as model:
        reference = np.exp(WORLD.log_policy(model))

    def critic(payoff: Payoff, on: Responses, about: Responses, own: bool) -> Answer:
        params = dict(payoff.params)
        solved = Box(params["R"]).solve(data, about.weights.numpy() - reference, params["lam"])
        return Answer(on, torch.from_numpy(solved.values))

    rule = SPAC(eta=0.5, lam=40.0, R=3.0)
    played = play_both(WORLD, rule, 5, feedback={"critic": critic}, exact=exact)
    played.check()


# ----------------------------------------------------------------------------------------- (e) errors that must be seen


class FlippedSign(Pairwise):
    """Targets of the wrong sign."""

    def losses(self, stage: StageTensors) -> Losses:
        return super().losses(replace(stage, target=-stage.target))


class SwappedBase(FittedBackend):
    """The coefficients of two base policies exchanged."""

    def project(self, key: str, base: Any, terms: Any, on: Any) -> Policy:
        if len(base) == 2:
            (a, first), (b, second) = base
            base = [(b, first), (a, second)]
        return super().project(key, base, terms, on)


class OldAuxiliary(FittedBackend):
    """ONPO's second stage from the main policy instead of the new auxiliary one."""

    def project(self, key: str, base: Any, terms: Any, on: Any) -> Policy:
        ((a, name),) = base
        stage_two = name in self.reports
        return super().project(key, [(a, on if stage_two else name)], terms, on)


class ReferenceForCurrent(FittedBackend):
    """Payoffs against the reference policy."""

    def ask(self, key: str, payoff: Payoff, policy: Any, on: Any) -> str:
        return super().ask(key, payoff, "reference", on)


class AveragedLogits(FittedBackend):
    """The average of log-probabilities in the place of that of probabilities."""

    def responses(self, policy: Any) -> Responses:
        if isinstance(policy, list):
            policy = {"mixture": [[1 / len(policy), name] for name in policy]}
        return super().responses(policy)


@dataclass(frozen=True)
class CountedPadding(Padding):
    """One padding token of the shorter rows is scored."""

    def logprobs(self, model: nn.Module, sequences: Sequence[Scored]) -> Tensor:
        length = max(len(s.ids) for s in sequences)
        longer = [Scored((*s.ids, 0), (*s.mask, 1)) if len(s.ids) < length else s for s in sequences]
        return super().logprobs(model, longer)


@dataclass(frozen=True)
class CountedInTraining(Padding):
    """The same, where a gradient flows only."""

    def logprobs(self, model: nn.Module, sequences: Sequence[Scored]) -> Tensor:
        layout = CountedPadding() if torch.is_grad_enabled() or model.training else Padding()
        return layout.logprobs(model, sequences)


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        (SPPO(1.0), {"objective": FlippedSign()}),
        (INPO(1.0, 0.3), {"backend": SwappedBase}),
        (ONPO(1.0), {"backend": OldAuxiliary}),
        (INPO(1.0, 0.3), {"backend": ReferenceForCurrent}),
        (SPPO(1.0), {"settings": replace(SETTINGS, layout=CountedPadding())}),
    ],
    ids=["flipped sign", "swapped coefficients", "swapped base", "reference for current", "padding counted"],
)
def test_errors_are_seen(rule: Rule, changes: dict[str, Any]) -> None:
    """One iteration suffices, and the miss is ten times what honest fits under the same settings are allowed."""
    played = play_both(WORLD, rule, 1, **changes)
    with pytest.raises(AssertionError, match="from their exact steps"):
        played.check(stage=3e-3)


def test_averaged_logits_are_seen() -> None:
    """ONPO's leader form plays against the average: with logits averaged instead, its stages miss their exact steps."""
    honest = play_both(WORLD, ONPO(2.0, "leader"), 3)
    honest.check()
    with pytest.raises(AssertionError, match="from their exact steps"):
        play_both(WORLD, ONPO(2.0, "leader"), 3, backend=AveragedLogits).check(stage=1e-3)


def test_a_dropped_half_is_seen() -> None:
    """Targets η P̂ in the place of η (P̂ − ½) have another minimizer under the constant-½ loss."""
    honest = win_rates(WORLD.compare)

    def without_half(payoff: Payoff, on: Responses, about: Responses, own: bool) -> Answer:
        answer = honest(payoff, on, about, own)
        return replace(answer, values=answer.values + 0.5)

    from_minimizer, _ = fit_with_half({"win": without_half})
    assert from_minimizer > 3e-3


def test_padding_counted_in_training_only_is_refused() -> None:
    """The first log-ratio is not 0 then, which the fit checks at run time."""
    with pytest.raises(ValueError, match="padding tokens that were scored"):
        play_both(WORLD, SPPO(1.0), 1, settings=replace(SETTINGS, layout=CountedInTraining()))
