"""The computations behind figures that are not claims, against theory and against an independent derivative."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from nashpo.core.rules import COMAL, DPO, INPO, ONPO, SPPO
from nashpo.figures import FIGURES, load
from nashpo.tabular import Game, families, nash, play
from nashpo.tabular.experiments import COMAL_INNER, EXPERIMENTS, comal_map, outer_multiplier, portrait, step_sizes


@pytest.fixture(scope="module")
def everything():
    return {key: values for make in EXPERIMENTS.values() for key, values in make().items()}


@pytest.mark.parametrize("name", ["phase_portrait", "step_sizes", "comal_map"])
def test_experiments_make_what_their_figures_need(name, everything):
    module = load(name)
    assert set(module.NEEDS) <= set(everything)
    module.draw(everything)
    assert name in FIGURES


def test_keys_tell_their_experiment():
    for name, make in EXPERIMENTS.items():
        assert {key.partition("/")[0] for key in make()} == {name}


def test_the_portrait_shows_what_its_caption_says(everything):
    """SPPO's KL from the equilibrium grows at every step, COMAL reaches it, INPO and EGPO reach the penalized one."""
    rules = everything["portrait/rules"].tolist()
    path = dict(zip(rules, everything["portrait/trajectory"], strict=True))
    nash_policy = everything["portrait/equilibrium"]
    target = dict(zip(rules, everything["portrait/target"], strict=True))
    assert_allclose(nash_policy, 1 / 3, rtol=1e-15)
    with np.errstate(divide="ignore"):
        divergence = -np.log(path["sppo"]).mean(axis=-1)  # KL(uniform ‖ π) up to a constant
    early = divergence[:100]  # later on a probability may reach 0 in float64
    assert np.all(np.diff(early) > 0)
    assert_allclose(path["comal"][-1], nash_policy, atol=1e-9)
    for name in ("inpo", "egpo"):  # (1 − ητ)^800 = 0.95^800 = 1.5e-18: only rounding is left
        assert_allclose(path[name][-1], target[name], atol=1e-9)
        assert np.abs(target[name] - nash_policy).max() > 0.05, "the diamond and the star are apart"
    off = np.abs(path["nash-md"][-1] - target["nash-md"]).max()
    assert 1e-3 < off < 0.2, "Nash-MD with a constant step stays O(η) away"
    gap = dict(zip(rules, everything["portrait/gap"], strict=True))
    assert gap["onpo"][-1] < 0.01 < 0.3 < gap["sppo"][-1]
    assert path["sppo"].shape == (801, 3)
    assert_allclose(path["sppo"][0], everything["portrait/start"], rtol=0)


def test_paper_beats_rock(everything):
    """From a start that plays mostly rock, every rule first moves towards paper."""
    start = everything["portrait/start"]
    assert everything["portrait/names"].tolist() == ["rock", "paper", "scissors"]
    assert np.argmax(start) == 0
    for path in everything["portrait/trajectory"]:
        assert path[1, 1] > start[1]


def test_a_portrait_of_ones_own_game():
    game = families.interior(5, seed=3)
    made = portrait(game, [SPPO(0.1), INPO(0.1, 0.2), DPO(0.1)][:2], steps=20)
    assert made["portrait/trajectory"].shape == (2, 21, 5)
    assert_allclose(made["portrait/equilibrium"], families.closed_form("interior", n=5, seed=3), atol=1e-9)
    assert_allclose(made["portrait/target"][1], nash(game, tau=0.2).policy, atol=1e-12)
    assert_allclose(made["portrait/tau"], [np.nan, 0.2])
    with pytest.raises(ValueError, match="needs one context"):
        portrait(families.interior(3, batch=2), [SPPO(0.1)], steps=2)


def test_step_sizes_against_single_runs():
    made = step_sizes(steps=64, games=2, per_decade=1)
    rules = made["step_sizes/rules"].tolist()
    assert_allclose(made["step_sizes/eta"], [0.01, 0.1, 1, 10, 100])
    run = play(ONPO(0.1), families.interior(5, seed=0, batch=2), 64, record="last")
    assert_allclose(made["step_sizes/gap_average"][rules.index("onpo"), 1], run.gap_average[-1], rtol=1e-9)
    assert_allclose(made["step_sizes/gap_last"][rules.index("onpo"), 1], run.gap_last[-1], rtol=1e-9)
    allowed = np.isfinite(made["step_sizes/gap_last"][..., 0])
    for name, row in zip(rules, allowed, strict=True):
        assert row.tolist() == [True] * 4 + [name in ("sppo", "onpo")], "ητ <= 1 where there is a τ = 0.1"
    # √(8 log 5 / 64); η <= 1; 4τ/(1 + 4τ²) = 0.4/1.04; 2(√1.01 − 0.1); no theorem for the others.
    limit = dict(zip(rules, made["step_sizes/limit"], strict=True))
    assert_allclose(limit["sppo"], np.sqrt(np.log(5) / 8), rtol=1e-12)
    assert_allclose(
        [limit["onpo"], limit["inpo"], limit["egpo"]], [1, 0.4 / 1.04, 2 * (np.sqrt(1.01) - 0.1)], rtol=1e-12
    )
    assert np.isnan(limit["nash-md"])
    assert np.isnan(limit["comal"])


def test_the_map_finds_the_divergence_of_inexact_proximal_steps(everything):
    """THEORY: on COMAL's game with τ = 0.1, η = 0.5 the run stays away from the equilibrium at k = 6, not at k = 20."""
    made = comal_map(inner=(6, 20), eta_tau=[0.05])
    assert made["comal/gap_last"][0, 0] > 0.1
    assert made["comal/gap_last"][1, 0] < 1e-12
    inner, products = everything["comal/inner"], everything["comal/eta_tau"]
    assert inner.tolist() == list(COMAL_INNER)
    multiplier = outer_multiplier(families.comal(), 0.1, inner, products)
    gap = everything["comal/gap_last"]
    moves = 2400 // inner[:, None]
    assert multiplier is not None
    # Where the linear map shrinks by 1e-12 over the run the gap is small, where it grows the equilibrium repels.
    assert gap[(moves * np.log(multiplier) < np.log(1e-12))].max() < 1e-3
    assert gap[multiplier > 1.001].min() > 1e-2


@pytest.mark.parametrize(("k", "product"), [(1, 0.05), (7, 0.05), (20, 0.2), (12, 0.6)])
def test_the_multiplier_is_the_derivative_of_the_outer_map(k, product):
    """Spectral radius of COMAL's outer map by central differences; their error is about h² = 1e-10."""
    game = families.comal()
    equilibrium = families.closed_form("comal")
    rule = COMAL(product / 0.1, 0.1, k)

    def outer(u):
        policy = np.exp(u) / np.exp(u).sum()
        moved = np.log(play(rule, game, k, start=policy, record="last").last)
        return moved - moved.mean()

    h = 1e-5
    u = np.log(equilibrium)
    columns = [(outer(u + h * e) - outer(u - h * e)) / (2 * h) for e in np.eye(3)]
    measured = np.abs(np.linalg.eigvals(np.array(columns).T)).max()
    found = outer_multiplier(game, 0.1, [k], np.array([product]))
    assert found is not None
    assert_allclose(found[0, 0], measured, rtol=1e-6)


DOMINATED = Game(
    np.block([[np.asarray(families.cyclic(3).P), np.ones((3, 1))], [np.zeros((1, 3)), np.full((1, 1), 0.5)]])
)
"""Rock-paper-scissors and a fourth response that loses to all three: a cycle, but on the boundary."""


@pytest.mark.parametrize(
    "game", [families.dominance(4), families.cyclic(3, dummies=1), families.interior(3, batch=2), DOMINATED]
)
def test_no_line_is_drawn_where_the_linear_map_says_nothing(game):
    assert outer_multiplier(game, 0.1, [3], np.array([0.1])) is None
