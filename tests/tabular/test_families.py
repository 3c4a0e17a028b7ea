"""Families of games: the declared law, the seed, the closed-form equilibria. Tolerances: a few float64 roundings."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.tabular import families
from nashpo.tabular.families import FAMILIES, Family, closed_form
from nashpo.tabular.specs import game_from_spec, is_spec

CLOSED_FORMS = [
    ("cyclic", {}),
    ("cyclic", {"n": 7, "margin": 0.3}),
    ("cyclic", {"n": 5, "dummies": 3}),
    ("interior", {"n": 1}),
    *(("interior", {"n": n, "seed": seed, "batch": (2, 3)}) for n in (3, 4, 11) for seed in (0, 1)),
    ("dominance", {"n": 1}),
    ("dominance", {"n": 9}),
    ("bradley_terry", {"n": 6, "seed": 3, "batch": 4}),
    ("bradley_terry", {"n": 6, "seed": 3, "scale": 200.0}),
    ("slow", {}),
    ("slow", {"n": 7, "ratio": 0.4}),
    ("slow", {"n": 3, "ratio": 1e-4}),
    ("comal", {}),
]


def gap(game: families.Game, policy: np.ndarray) -> np.ndarray:
    """2 max_y (A q)_y, through A, whose products are exact where margins are tiny."""
    return 2 * (game.A @ policy[..., None])[..., 0].max(axis=-1)


@pytest.mark.parametrize(("name", "arguments"), CLOSED_FORMS)
def test_a_closed_form_has_gap_zero(name: str, arguments: dict) -> None:
    """Rounding: |P - its formula| <= 2^-54 per entry, so |gap| <= 2 n 2^-53 or so."""
    game = FAMILIES[name].make(**arguments)
    policy = closed_form(name, **arguments)
    assert policy.shape == (*game.batch_shape, game.n)
    assert_allclose(policy.sum(axis=-1), 1.0, rtol=1e-15)
    assert (policy >= 0).all()
    assert_allclose(gap(game, policy), 0.0, atol=2e-15)


@pytest.mark.parametrize(("name", "arguments"), CLOSED_FORMS)
def test_uniqueness_is_declared_rightly(name: str, arguments: dict) -> None:
    """q is the only equilibrium where every tied response is played (strict complementarity) and the null space of A on
    those is a line."""
    game = FAMILIES[name].make(**arguments)
    policy = closed_form(name, **arguments)
    declared = FAMILIES[name].unique
    assert declared is not None
    flat = zip(game.A.reshape(-1, game.n, game.n), policy.reshape(-1, game.n), strict=True)
    for A, q in flat:
        support = q > 0
        complementary = bool(((A @ q < -1e-12) | support).all())
        values = np.linalg.svd(A[np.ix_(support, support)] / max(np.abs(A).max(), 1e-300), compute_uv=False)
        # The slow game's margins span ratio^(2n - 4), so the rank is judged far below them.
        nullity = int((values < 1e-14).sum())
        assert (complementary and nullity == 1) == declared(**arguments)


def test_cyclic_by_hand() -> None:
    P = families.cyclic(5, margin=0.8, dummies=1).P
    assert_allclose(P[0], [0.5, 0.9, 0.9, 0.1, 0.1, 0.5], rtol=1e-15)
    assert_array_equal(P[5], np.full(6, 0.5))
    # Any mixture of the uniform policy and the dummy is an equilibrium too.
    game = families.cyclic(5, dummies=1)
    assert_allclose(gap(game, np.array([0.1] * 5 + [0.5])), 0.0, atol=1e-15)


def test_interior_games_fill_the_range_and_have_full_support() -> None:
    game = families.interior(5, seed=2, batch=50)
    assert_allclose(np.abs(game.A).max(axis=(-2, -1)), 0.5, rtol=1e-15)
    assert (closed_form("interior", n=5, seed=2, batch=50) > 0).all()


def test_dominance_by_hand() -> None:
    assert_array_equal(families.dominance(3).P, [[0.5, 1.0, 1.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]])


def test_bradley_terry_keeps_its_reward() -> None:
    game = families.bradley_terry(5, seed=1, scale=3.0, batch=2)
    assert game.reward is not None
    r = np.asarray(game.reward)
    assert_allclose(game.P, 1 / (1 + np.exp(r[..., None, :] - r[..., :, None])), rtol=1e-13)


def test_random_families_follow_their_law() -> None:
    """Means over 30 000 pairs: a standard error is below .5/sqrt(30000) = .0029, and 5 of them miss with p < 6e-7."""
    pairs = np.triu_indices(4, 1)
    uniform = families.uniform_random(4, seed=0, batch=5000).P[:, *pairs]
    assert abs(uniform.mean() - 0.5) < 5 * 0.0029
    assert abs(uniform.var() - 1 / 12) < 5 * 0.0029
    coins = families.tournament(4, seed=0, batch=5000).P[:, *pairs]
    assert set(np.unique(coins)) == {0.0, 1.0}
    assert abs(coins.mean() - 0.5) < 5 * 0.0029


def test_annotators_make_condorcet_cycles_that_one_annotator_never_makes() -> None:
    def cycles(game: families.Game) -> int:
        beats = game.P > 0.5
        return int((beats[..., 0, 1] & beats[..., 1, 2] & beats[..., 2, 0]).sum())

    assert cycles(families.annotators(3, annotators=1, seed=0, batch=2000)) == 0
    assert cycles(families.annotators(3, annotators=3, seed=0, batch=2000)) > 20


def test_low_rank_cyclic_has_skew_logits_of_its_rank() -> None:
    P = families.low_rank_cyclic(9, rank=2, seed=4, scale=1.0).P
    logits = np.log(P / (1 - P))
    values = np.linalg.svd(logits, compute_uv=False)
    assert values[3] > 1e-3
    assert_allclose(values[4:], 0.0, atol=1e-13)


def test_slow_games_are_slow_for_the_last_iterate() -> None:
    """ONPO (two sequences, eta = 1/2) after 5000 steps from uniform: slow against the same cycle with equal margins,
    which starts at its equilibrium, and against COMAL's game, which does not. Thresholds are far from what happens."""

    def last_and_average(game: families.Game, steps: int = 5000) -> tuple[float, float]:
        auxiliary = np.zeros(game.n)
        policy = np.full(game.n, 1 / game.n)
        total = np.zeros(game.n)
        for _ in range(steps):
            total += policy
            payoff = 0.5 * (game.A @ policy)
            auxiliary = auxiliary + payoff
            policy = np.exp(auxiliary + payoff - (auxiliary + payoff).max())
            policy /= policy.sum()
        return float(gap(game, policy)), float(gap(game, total / steps))

    last, average = last_and_average(families.slow())
    assert last > 3e-3
    assert average < 3e-3
    assert last_and_average(families.comal())[0] < 1e-8
    assert_allclose(families.slow(3, 0.1).A[0], [0, 0.005, -0.05], rtol=1e-13)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_defaults_a_summary_and_is_seeded(name: str) -> None:
    family = FAMILIES[name]
    assert isinstance(family, Family)
    assert family.make is getattr(families, name)
    assert family.summary.endswith((".", "."))
    game = family.make()
    assert_array_equal(game.P, family.make().P)
    if "seed" in family.parameters:
        assert (game.P != family.make(seed=1).P).any()
    if "batch" in family.parameters:
        batched = family.make(batch=(2, 3))
        assert batched.batch_shape == (2, 3)
        assert (batched.P[0, 0] != batched.P[1, 2]).any()
    if family.has_closed_form:
        assert closed_form(name).shape == (game.n,)
    else:
        with pytest.raises(ValueError, match="no closed-form equilibrium"):
            closed_form(name)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cyclic", {"n": 4}, "odd n"),
        ("cyclic", {"margin": 0.0}, r"margin is 0.0, but must be in \(0, 1\]"),
        ("cyclic", {"margin": 1.5}, "margin is 1.5"),
        ("cyclic", {"dummies": -1}, "dummies"),
        ("interior", {"n": 2}, "tie"),
        ("slow", {"n": 2}, "odd n"),
        ("slow", {"ratio": 1e-9}, "margin of"),
        ("slow", {"n": 9, "ratio": 0.0}, "ratio"),
        ("dominance", {"n": 0}, "n is 0"),
        ("uniform_random", {"batch": (2, 0)}, "batch"),
        ("uniform_random", {"seed": -1}, "seed"),
        ("annotators", {"annotators": 0}, "annotators"),
        ("bradley_terry", {"scale": float("nan")}, "scale"),
        ("low_rank_cyclic", {"rank": 0}, "rank"),
    ],
)
def test_impossible_arguments_are_refused(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FAMILIES[name].make(**arguments)


def test_specs_name_a_family_and_its_arguments() -> None:
    assert_array_equal(game_from_spec("cyclic:n=5,margin=0.8").P, families.cyclic(5, 0.8).P)
    assert_array_equal(
        game_from_spec("bradley-terry: scale=2, batch=4x2").P, families.bradley_terry(10, 0, 2.0, (4, 2)).P
    )
    assert_array_equal(game_from_spec("comal").P, families.comal().P)
    assert game_from_spec("uniform_random:n=3,batch=7").batch_shape == (7,)
    assert is_spec("cyclic:n=5")
    assert is_spec("cyclik")
    assert not is_spec("game.csv")
    assert not is_spec("folder/game")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cyclik:n=5", "did you mean 'cyclic'"),
        ("chess", "known: uniform_random, tournament"),
        ("cyclic:margn=0.8", "did you mean 'margin'"),
        ("cyclic:n=five", "n is 'five', but must be an integer"),
        ("cyclic:margin=big", "must be a number"),
        ("cyclic:n", "'n' is not KEY=VALUE; write for example cyclic:n=3,margin=1.0,dummies=0"),
        ("cyclic:n=3,n=5", "given twice"),
        ("cyclic:n=5,,", "'cyclic:n=5,,' has no KEY=VALUE at comma 1; write for example cyclic:n=3,margin"),
        ("cyclic:n=5,margin=0.8,", "has no KEY=VALUE at comma 2"),
        ("cyclic:,n=5", "has no KEY=VALUE at comma 1"),
        ("cyclic: ", "'cyclic: ' has no KEY=VALUE behind the colon"),
        ("cyclic:n=4", "cyclic: n is 4"),
        ("comal:n=3", "no argument 'n'"),
        ("interior:batch=a", "sizes such as 64 or 8x8"),
    ],
)
def test_slips_in_a_spec_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        game_from_spec(text)
    assert "\n" not in str(error.value)
