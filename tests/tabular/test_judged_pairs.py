"""Judged responses as preference data: a small set by hand, and AlpacaEval where it lies beside the repository.

Statistical comparisons are at 5 standard deviations, with fixed seeds.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.core.rules.spac import SPAC
from nashpo.tabular.judged import BASELINE, Judged, read_judged
from nashpo.tabular.judged_pairs import (
    REWARD_BOX,
    from_judged,
    geometric_behavior,
    recentred_reward,
    split_judged,
    split_judged_prompts,
)
from nashpo.tabular.offline import play_offline

ALPACA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "alpacaeval" / "judged_responses.jsonl.gz"
SIGMAS = 5.0


@pytest.fixture
def judged(tmp_path: Path) -> Judged:
    records = [
        {"prompt": "one", "responses": {"x": {"p_beats_baseline": 0.8}, "y": {"p_beats_baseline": 0.2}}},
        {"prompt": "two", "responses": {"x": {"p_beats_baseline": 0.1}}},
    ]
    path = tmp_path / "judged.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_judged(path)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """400 prompts, 4 models and the baseline; all answers exist."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("judged") / "judged.jsonl"
    with path.open("w") as file:
        for k in range(400):
            p = 1 / (1 + np.exp(rng.normal([2.0, 1.0, 0.0, -1.0], 1.0)))
            found = {f"m{m}": {"p_beats_baseline": float(p[m])} for m in range(4)}
            file.write(json.dumps({"prompt": f"prompt {k}", "responses": found}) + "\n")
    return read_judged(path)


def test_rewards_are_recentred_into_the_box(judged: Judged) -> None:
    log4, log9 = np.log(4), np.log(9)
    scaled = recentred_reward(judged, R=6)  # the largest logit is log 9: it takes half the box
    assert_allclose(scaled[0], 3 + 3 * np.array([log4, -log4, 0]) / log9, rtol=1e-12)
    assert_allclose(scaled[1], [0.0, 0.0, 3.0], atol=1e-12)
    clipped = recentred_reward(judged, R=3, temperature=1)
    assert_allclose(clipped, 1.5 + np.array([[log4, -log4, 0], [-1.5, -1.5, 0]]), atol=1e-12)
    assert_allclose(recentred_reward(judged, R=3, temperature=2)[0, 0], 1.5 + log4 / 2, rtol=1e-12)


def test_every_pair_once_with_soft_labels(judged: Judged) -> None:
    data = from_judged(judged, R=6, temperature=1)
    # Against the baseline the label is p itself; of two models it is σ(logit .8 − logit .2) = 16/17.
    assert_allclose(data.wins[0], [[0, 16 / 17, 0.8], [1 / 17, 0, 0.2], [0.2, 0.8, 0]], rtol=1e-12)
    assert_allclose(data.wins[1], [[0, 0, 0.1], [0, 0, 0], [0.9, 0, 0]], rtol=1e-12)
    assert_array_equal(data.mask, [[True] * 3, [True, False, True]])
    assert_array_equal(data.weights, [0.5, 0.5])
    assert data.names == ("x", "y", BASELINE)
    assert data.prompts == ("one", "two")
    assert data.N == 4
    only = from_judged(judged, models=["x", BASELINE], R=6, temperature=1)
    assert_allclose(only.wins[0], [[0, 0, 0.8], [0, 0, 0], [0.2, 0, 0]], rtol=1e-12)


def test_hard_labels_have_the_soft_ones_as_means(judged: Judged) -> None:
    soft = from_judged(judged, R=6, temperature=1)
    hard = from_judged(judged, pairs=10_000, seed=1, R=6, temperature=1)
    assert_array_equal(hard.wins, np.round(hard.wins))
    assert_array_equal(
        hard.wins + np.swapaxes(hard.wins, -1, -2), 10_000 * (soft.wins + np.swapaxes(soft.wins, -1, -2))
    )
    deviation = np.sqrt(10_000 * soft.wins * (1 - soft.wins))
    assert np.all(np.abs(hard.wins - 10_000 * soft.wins) <= SIGMAS * deviation)


def test_a_split_hides_judgements_and_follows_the_behavior(many: Judged) -> None:
    behavior = np.array([0.5, 0.3, 0.0, 0.0, 0.2])
    data, held = split_judged(many, behavior, pairs_per_prompt=50, hidden_fraction=0.4, seed=3)
    assert data.wins.shape == (400, 5, 5)
    assert data.independent == 0
    covered = held.covered.any(axis=-1)
    pairs = data.wins.sum(axis=(-2, -1)) + data.ties
    assert_array_equal(pairs, np.where(covered, 50, 0))
    assert not data.seen[~held.covered].any()
    assert not held.covered[:, 2:4].any()
    assert_allclose(held.behavior.sum(axis=-1), 1.0, rtol=1e-12)
    # Of the 1,200 judgements that the behavior could show, each is hidden with probability .4.
    hidden = 1200 - held.covered.sum()
    assert abs(hidden - 480) <= SIGMAS * np.sqrt(1200 * 0.4 * 0.6)
    # Where all three are visible, the behavior is as given, and a response's share of places is μ(1 − μ).
    whole = held.covered[:, [0, 1, 4]].all(axis=-1)
    assert_allclose(held.behavior[whole], np.tile(behavior, (whole.sum(), 1)), rtol=1e-12)
    share = data.seen[whole].sum(axis=0) / (2 * 50 * whole.sum())
    deviation = np.sqrt(0.25 / (50 * whole.sum()))
    assert np.all(np.abs(share - behavior * (1 - behavior)) <= SIGMAS * deviation)


def test_labels_of_a_split_are_bradley_terry_in_the_held_out_reward(many: Judged) -> None:
    data, held = split_judged(many, np.full(5, 0.2), 40, 0.0, seed=4, labels="soft", R=3)
    P = 1 / (1 + np.exp(held.reward[:, None, :] - held.reward[:, :, None]))
    pairs = data.wins + np.swapaxes(data.wins, -1, -2)
    assert_allclose(data.wins, np.where(pairs > 0, pairs * P, 0.0), rtol=1e-10, atol=1e-300)
    assert held.reward.min() >= 0
    assert held.reward.max() <= 3
    hard, _ = split_judged(many, np.full(5, 0.2), 40, 0.0, seed=4, R=3)
    assert_array_equal(hard.wins + np.swapaxes(hard.wins, -1, -2), pairs)
    variance = np.sum(np.triu(pairs * P * (1 - P), 1))
    assert abs(np.sum(np.triu(hard.wins - data.wins, 1))) <= SIGMAS * np.sqrt(variance)


def test_regret_is_measured_by_the_whole_judge(many: Judged) -> None:
    _, held = split_judged(many, geometric_behavior(5, seed=0), 20, 0.5, seed=5)
    assert_allclose(held.value(held.best), held.reward.max(axis=-1).mean(), rtol=1e-12)
    assert held.regret(held.best) == 0
    assert held.regret(held.best_covered, held.best_covered) == 0
    assert 0 < held.regret(held.best_covered) < held.regret(held.behavior)
    some = held.covered.any(axis=-1)
    assert np.all(held.covered[some][held.best_covered[some] > 0])
    fixed = [held.value(np.eye(5)[m]) for m in range(5)]
    assert_allclose(fixed, held.reward.mean(axis=0), rtol=1e-12)
    assert_array_equal(held.best_model, np.eye(5)[int(np.argmax(fixed))])
    p = many.game.P[:, :, 4]
    assert_allclose(held.win_rate_over_baseline(np.eye(5)[1]), p[:, 1].mean(), rtol=1e-12)
    assert_allclose(held.win_rate_over_baseline(np.eye(5)[4]), 0.5, rtol=1e-12)


def test_policies_are_renormalized_where_a_model_has_no_answer(judged: Judged) -> None:
    _, held = split_judged(judged, np.full(3, 1 / 3), 5, 0.0, seed=0, R=6, temperature=1)
    policy = np.array([0.5, 0.25, 0.25])
    expected = (np.dot(policy, held.reward[0]) + np.dot([2 / 3, 1 / 3], held.reward[1, [0, 2]])) / 2
    assert_allclose(held.value(policy), expected, rtol=1e-12)
    assert_array_equal(held.best_model, [0.0, 0.0, 1.0])  # x has 3 + log 4 and 3 − log 9, the baseline has 3 twice
    with pytest.raises(ValueError, match="the policy plays no answer to prompt 1"):
        held.value([0.0, 1.0, 0.0])
    with pytest.raises(ValueError, match=r"the policy has shape \(2,\), but prompts x models is \(2, 3\)"):
        held.value([0.5, 0.5])


def test_prompts_where_everything_is_hidden_have_no_pairs(many: Judged) -> None:
    data, held = split_judged(many, np.array([1.0, 0, 0, 0, 0]) * 0.5 + np.eye(5)[1] * 0.5, 10, 0.7, seed=6)
    nothing = ~held.covered.any(axis=-1)
    assert nothing.sum() > 100
    assert data.N != 4000
    assert_array_equal((data.wins.sum(axis=(-2, -1)) + data.ties)[nothing], 0.0)
    assert_allclose(held.behavior[nothing], 0.2, rtol=1e-12)
    assert_array_equal(held.best_covered[nothing], held.behavior[nothing])


def test_hidden_prompts_are_judged_and_visible_ones_are_pooled(many: Judged) -> None:
    data, held = split_judged_prompts(many, np.full(5, 0.2), 10, 0.25, seed=7)
    hidden = held.reward.shape[0]
    assert abs(hidden - 100) <= SIGMAS * np.sqrt(400 * 0.25 * 0.75)
    assert data.wins.shape == (5, 5)
    assert 10 * (400 - hidden) == data.N
    assert data.names == many.models
    # Models m3, m2, … are better in this order on all prompts, and pooled win rates show it.
    rates = data.wins.sum(axis=-1) / data.seen
    assert np.argmax(rates) == np.argmax(held.best_model) == 3
    assert 0 < held.regret(held.best_model) < held.regret(np.full(5, 0.2))
    with pytest.raises(ValueError, match="hides 0 of 400 prompts"):
        split_judged_prompts(many, np.full(5, 0.2), 10, 0.0, seed=7)


def test_seeds(many: Judged) -> None:
    first, same, other = (split_judged(many, np.full(5, 0.2), 5, 0.5, seed=seed)[0] for seed in (1, 1, 2))
    assert_array_equal(first.wins, same.wins)
    assert not np.array_equal(first.wins, other.wins)


def test_geometric_behavior() -> None:
    found = geometric_behavior(5, seed=0, ratio=0.5)
    assert_allclose(np.sort(found)[::-1], np.array([16, 8, 4, 2, 1]) / 31, rtol=1e-12)
    assert_allclose(geometric_behavior(4, seed=0, ratio=1.0), 0.25, rtol=1e-12)
    assert not np.array_equal(geometric_behavior(5, seed=0), geometric_behavior(5, seed=1))


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        (([0.5, 0.5], 5, 0.1, 0), {}, r"behavior has shape \(2,\), but prompts x models is \(400, 5\)"),
        (([0.5, 0.5, 0.5, 0, 0], 5, 0.1, 0), {}, "behavior must hold probabilities"),
        (([1.5, -0.5, 0, 0, 0], 5, 0.1, 0), {}, "behavior must hold probabilities"),
        ((np.full(5, 0.2), 0, 0.1, 0), {}, "0 pairs: at least 1 is needed"),
        ((np.full(5, 0.2), 5, 1.0, 0), {}, r"hidden_fraction = 1 must be in \[0, 1\)"),
        ((np.full(5, 0.2), 5, 0.1, 0), {"labels": "firm"}, "labels = 'firm' is none of hard, soft"),
        ((np.full(5, 0.2), 5, 0.1, 0), {"R": 0}, "R = 0 must be > 0"),
        ((np.full(5, 0.2), 5, 0.1, 0), {"temperature": -1}, "temperature = -1 must be > 0"),
        ((np.eye(5)[0], 5, 0.1, 0), {}, "no informative pair at all"),
    ],
)
def test_refusals(many: Judged, arguments: Any, options: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        split_judged(many, *arguments, **options)


def test_refusals_of_all_pairs(many: Judged) -> None:
    with pytest.raises(ValueError, match="'m9' is no model here; there are m0, m1"):
        from_judged(many, models=["m9"])
    with pytest.raises(ValueError, match="name two or more"):
        from_judged(many, models=["m1"])
    with pytest.raises(ValueError, match="0 pairs: at least 1"):
        from_judged(many, pairs=0)
    with pytest.raises(ValueError, match="ratio = 2"):
        geometric_behavior(5, seed=0, ratio=2)


@pytest.mark.skipif(not ALPACA.exists(), reason="the AlpacaEval file is not part of the product")
def test_alpacaeval() -> None:
    judged = read_judged(ALPACA)
    data, held = split_judged(judged, geometric_behavior(13, seed=0), 200, 0.3, seed=0)
    assert data.wins.shape == (805, 13, 13)
    assert held.reward.max() <= REWARD_BOX
    # What is learned from visible judgements is better, by all judgements, than the policy that made the data.
    rule = SPAC.for_data(N=float(data.N), T=60, D=float(np.log(13)), R=held.R)
    reference = 0.9 * held.behavior + 0.1 * held.exists / held.exists.sum(axis=-1, keepdims=True)
    run = play_offline(rule, data, 60, reference=reference)
    assert held.regret(run.last) < held.regret(reference)
    assert np.all(run.last[~held.exists] == 0)
