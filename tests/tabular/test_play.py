"""`play`, `bounds`, `tune` and the `Run`: what is recorded when, what is kept, saved and loaded, what is refused."""

import csv
import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.core import theorems as bound
from nashpo.core.rules import COMAL, DPO, EGPO, INPO, IPO, ONPO, SPPO, IterativeDPO, NashMD, Rule
from nashpo.core.schedules import Power
from nashpo.tabular import Game, Run, bounds, duality_gap, families, nash, play, tune
from nashpo.tabular.play import geometric, record_steps
from nashpo.tabular.testing import games, policies, rules

ENGINES = ["compiled", "reference"]
START = [0.5, 0.3, 0.2]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_run_by_hand(engine: str) -> None:
    """SPPO, η = 2 log 2, from (½, ½) on P = ((½, 1), (0, ½)): Aπ = (b, −a)/2 for π = (a, b).

    π_2 ∝ ½ (√2, 1/√2) = (⅔, ⅓); the odds a : b grow by exp(η(a + b)/2) = 2 in every step, so π_3 = (4/5, 1/5).
    Gap of (a, b): 2 · b/2 = b. Averages after 1, 2, 3 steps: b = ½, (½ + ⅓)/2, (½ + ⅓ + 1/5)/3.
    """
    run = play(SPPO(2 * math.log(2)), Game([[0.5, 1.0], [0.0, 0.5]]), 3, record="all", keep=("current",), engine=engine)
    assert_array_equal(run.recorded, [1, 2, 3])
    assert_allclose(run.gap_last, [1 / 3, 1 / 5, 1 / 9], rtol=1e-14)
    assert_allclose(run.gap_average, [1 / 2, 5 / 12, 31 / 90], rtol=1e-14)
    assert_allclose(run.last, [8 / 9, 1 / 9], rtol=1e-14)
    assert_allclose(run.average, [59 / 90, 31 / 90], rtol=1e-14)
    assert_allclose(np.exp(run.kept["current"]), [[2 / 3, 1 / 3], [4 / 5, 1 / 5], [8 / 9, 1 / 9]], rtol=1e-14)
    assert run.rule == repr(SPPO(2 * math.log(2)))
    assert run.steps == 3
    assert (run.notes["engine"], run.notes["feedback"]) == (engine, "exact")


def test_the_defaults() -> None:
    """1,000 steps from the uniform policy, recorded geometrically, on the compiled engine; a horizon shortens them."""
    run = play(ONPO(0.5), families.comal())
    assert (run.steps, run.recorded[0], run.recorded[-1]) == (1000, 1, 1000)
    assert run.notes["engine"] == "compiled"
    first = play(ONPO(0.5), families.comal(), start=[1 / 3] * 3)
    assert_array_equal(run.gap_last, first.gap_last)
    assert play(IPO(0.5), families.comal()).steps == 1


def test_origins_default_to_one_another(engine: str) -> None:
    """The reference is the start unless given, the behavior policy the reference."""
    game = families.comal()

    def last(rule: Rule, steps: int, **given: Any) -> np.ndarray:
        return play(rule, game, steps, engine=engine, **given).last

    given = {"start": START, "reference": START}
    assert_array_equal(last(INPO(0.4, 0.5), 3, start=START), last(INPO(0.4, 0.5), 3, **given))
    reference = [0.2, 0.2, 0.6]
    expected = np.array(reference) * np.exp(game.P @ reference / 0.5)
    assert_allclose(last(IPO(0.5), 1, start=START, reference=reference), expected / expected.sum(), rtol=1e-14)
    expected = np.array(reference) * np.exp(game.P @ START / 0.5)
    behaved = last(IPO(0.5), 1, start=[1 / 3] * 3, reference=reference, behavior=START)
    assert_allclose(behaved, expected / expected.sum(), rtol=1e-14)


RECORDS = [
    ("all", 5, [1, 2, 3, 4, 5]),
    ("last", 5, [5]),
    (2, 5, [2, 4, 5]),
    (2, 6, [2, 4, 6]),
    (9, 5, [5]),
    (1, 3, [1, 2, 3]),
    ([4, 2, 2], 5, [2, 4]),
    (np.array([1, 5]), 5, [1, 5]),
    (range(1, 4), 5, [1, 2, 3]),
    ("geometric", 1, [1]),
    # Four per octave from 1 to 8: 2^(0, ¼, …, 3) rounded, each once.
    ("geometric", 8, [1, 2, 3, 4, 5, 6, 7, 8]),
]


@pytest.mark.parametrize(("record", "steps", "expected"), RECORDS)
def test_which_steps_are_recorded(record: Any, steps: int, expected: list[int]) -> None:
    assert record_steps(record, steps) == expected
    run = play(SPPO(0.5), families.comal(), steps, record=record, keep=("current", "average"))
    assert_array_equal(run.recorded, expected)
    assert run.gap_last.shape == run.gap_average.shape == (len(expected),)
    assert run.kept["average"].shape == (len(expected), 3)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 10**7))
def test_geometric_steps(steps: int) -> None:
    """Both ends; neighbours at most 2^¼ apart, up to both their roundings; at most four per octave and three."""
    recorded = geometric(steps)
    assert (recorded[0], recorded[-1]) == (1, steps)
    assert recorded == sorted(set(recorded))
    assert all(b <= (a + 0.5) * 2**0.25 + 0.5 for a, b in zip(recorded, recorded[1:], strict=False))
    assert len(recorded) <= 4 * math.log2(steps) + 3


def test_recording_less_does_not_change_the_run(engine: str) -> None:
    game = families.uniform_random(4, seed=1, batch=2)
    every = play(EGPO(0.4, 0.5), game, 40, record="all", keep=("current",), engine=engine)
    some = play(EGPO(0.4, 0.5), game, 40, record=[3, 17, 40], keep=("current",), engine=engine)
    for name in ("gap_average", "gap_last"):
        assert_array_equal(getattr(every, name)[[2, 16, 39]], getattr(some, name))
    assert_array_equal(every.kept["current"][[2, 16, 39]], some.kept["current"])
    assert_array_equal(every.last, some.last)
    assert_array_equal(np.exp(every.kept["current"][-1]).round(14), every.last.round(14))


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        (ONPO(0.3), ("current", "auxiliary")),
        (ONPO(0.3, "one_step"), ("current", "previous")),
        (EGPO(0.4, 0.5), ("half", "reference")),
        (COMAL(0.4, 0.5, 2), ("reference",)),
        (NashMD(0.4, 0.5), ("mixture",)),
    ],
    ids=repr,
)
def test_any_policy_of_the_form_can_be_kept(rule: Rule, names: tuple[str, ...]) -> None:
    """Those that live for one iteration too; log-policies, and probabilities for the average. Both engines alike."""
    runs = [
        play(rule, families.comal(), 5, start=START, record="all", keep=(*names, "average"), engine=engine)
        for engine in ENGINES
    ]
    for name in (*names, "average"):
        assert_allclose(runs[0].kept[name], runs[1].kept[name], rtol=0, atol=1e-13)
        policy = runs[0].kept[name] if name == "average" else np.exp(runs[0].kept[name])
        assert_allclose(policy.sum(axis=-1), 1, rtol=1e-14)


def test_contexts_are_games_of_their_own(engine: str) -> None:
    """A ragged batch against its games one by one; means are weighted."""
    mask = np.array([[True, True, True, True], [True, False, True, True], [False, False, True, False]])
    game = Game(families.uniform_random(4, seed=3, batch=3).P, weights=[1, 2, 5], mask=mask)
    run = play(ONPO(0.4), game, 7, record="all", engine=engine)
    assert run.gap_last.shape == (7, 3)
    for context in range(3):
        exists = mask[context]
        alone = Game(game.P[context][np.ix_(exists, exists)])
        one = play(ONPO(0.4), alone, 7, record="all", engine=engine)
        assert_allclose(run.gap_last[:, context], one.gap_last, rtol=0, atol=1e-14)
        assert_allclose(run.gap_average[:, context], one.gap_average, rtol=0, atol=1e-14)
        assert_allclose(run.last[context][exists], one.last, rtol=0, atol=1e-14)
        assert (run.last[context][~exists] == 0).all()
    expected = run.gap_average @ np.array([1, 2, 5]) / 8
    assert_allclose(run.mean_gap_average, expected, rtol=1e-14)
    assert [row["gap_average"] for row in run.table()] == pytest.approx(expected.tolist(), rel=1e-14)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data(), rules(), games(certain=False), st.integers(1, 6))
def test_engines_agree(data: Any, rule: Rule, game: Game, steps: int) -> None:
    """Six steps at η <= 2 magnify rounding by far less than 1e4; DPO runs on the array path both times."""
    steps = min(steps, rule.form().horizon or steps)
    start, reference = data.draw(policies(game, full_support=False)), data.draw(policies(game))
    runs = [
        play(rule, game, steps, start=start, reference=reference, record="all", engine=name)
        for name in ("auto", "reference")
    ]
    for name in ("gap_average", "gap_last", "average", "last"):
        assert_allclose(getattr(runs[0], name), getattr(runs[1], name), rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data(), rules(), games(certain=False))
def test_recorded_gaps_are_gaps_of_the_recorded_policies(data: Any, rule: Rule, game: Game) -> None:
    """Also: the average is the mean of the policies played, and gaps of policies lie in [0, 1]. Rounding 1e-12."""
    steps = min(6, rule.form().horizon or 6)
    start = data.draw(policies(game))
    run = play(rule, game, steps, start=start, record="all", keep=("current", "average"))
    last, average = np.exp(run.kept["current"]), run.kept["average"]
    for row in range(steps):
        assert_allclose(run.gap_last[row], duality_gap(game, last[row]), rtol=0, atol=1e-12)
        assert_allclose(run.gap_average[row], duality_gap(game, average[row]), rtol=0, atol=1e-12)
    played = np.concatenate([[start], last[:-1]])
    assert_allclose(average[-1], played.mean(axis=0), rtol=0, atol=1e-12)
    assert_allclose(run.average, average[-1], rtol=0, atol=1e-12)
    assert ((run.gap_last > -1e-12) & (run.gap_last < 1 + 1e-12)).all()


@pytest.mark.parametrize("xp", [torch, array_api_strict], ids=lambda xp: xp.__name__)
def test_other_libraries_take_the_array_path(xp: Any) -> None:
    game = families.comal()
    ours, theirs = (play(ONPO(0.3), g, 5, start=START, record="all") for g in (game, game.to(xp)))
    assert theirs.notes["engine"] == "reference"
    assert isinstance(theirs.last, np.ndarray)
    assert_allclose(theirs.gap_last, ours.gap_last, rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="the game's arrays are not numpy's; use engine='reference'"):
        play(ONPO(0.3), game.to(xp), 5, engine="compiled")


def test_dpo_plays_games_with_and_without_a_reward() -> None:
    """A declared reward and its projection are the same reward, up to a constant that no policy sees."""
    game = families.bradley_terry(4, seed=1)
    declared = play(IterativeDPO(2.0), game, 3).last
    projected = play(IterativeDPO(2.0), Game(game.P), 3)
    assert projected.notes["engine"] == "reference"
    assert_allclose(projected.last, declared, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="reward of this game diverges"):
        play(DPO(0.5), families.dominance(3))


def test_the_last_iterate_of_sppo_leaves_and_that_of_onpo_comes_in() -> None:
    """Rock-paper-scissors, η = ½: SPPO's last gap grows towards 1 while its average is fine; ONPO's goes to 0."""
    game = families.cyclic(3)
    sppo, onpo = (play(rule, game, 5000, start=START) for rule in (SPPO(0.5), ONPO(0.5)))
    assert sppo.gap_last[-1] > 0.99
    assert sppo.gap_average[-1] < 0.2
    assert onpo.gap_last[-1] < 1e-6


# --- Bounds and tuning ---------------------------------------------------------------------------------------------


def test_bounds_depend_on_start_and_reference() -> None:
    """D is log 5 from a start whose smallest probability is 1/5; KL is that from the regularized equilibrium."""
    game = families.comal()
    found = {theorem.id: value for theorem, value in bounds(SPPO(0.5), game, 16, start=START)}
    assert_allclose(found["sppo.average-gap"], bound.mwu_gap(math.log(5), 0.5, 16), rtol=1e-14)
    reference = [0.2, 0.2, 0.6]
    target = nash(game, tau=0.75, reference=reference).policy
    divergence = float(np.sum(target * np.log(target / np.array(START))))
    ((theorem, value),) = bounds(EGPO(0.5, 0.75), game, 4, start=START, reference=reference)
    assert theorem.id == "egpo.last-iterate"
    assert_allclose(value, (1 - 0.375) ** 4 * divergence, rtol=1e-10)
    ((_, at_start),) = bounds(EGPO(0.5, 0.75), game, 4, start=START)
    assert at_start != value


def test_bounds_take_the_worst_context() -> None:
    """The start of the second context has a probability of 1/10; a response that is missing does not count."""
    game = Game(np.stack([families.comal().P] * 2), mask=[[True] * 3, [True, True, False]])
    start = [[1 / 3, 1 / 3, 1 / 3], [0.9, 0.1, 0.0]]
    found = {theorem.id: value for theorem, value in bounds(ONPO(0.5), game, 10, start=start)}
    assert_allclose(found["onpo.average-gap"], bound.onpo_gap(math.log(10), 0.5, 10), rtol=1e-14)


def test_tuned_step_sizes() -> None:
    """Uniform on three responses, D = log 3."""
    game, D = families.comal(), math.log(3)
    assert tune(SPPO(9.0), game, 50) == SPPO(math.sqrt(8 * D / 50))
    assert tune(ONPO(0.1, "leader"), game, 50) == ONPO(1.0, "leader")
    assert tune(INPO(0.1, 0.5), game, 50) == INPO(1.0, 0.5)
    assert tune(EGPO(0.1, 0.75), game, 50) == EGPO(1.0, 0.75)
    assert tune(NashMD(0.1, 0.5), game, 50) == NashMD(Power(4.0, 1.0, 2.0), 0.5)
    with pytest.raises(ValueError, match="COMAL declares no bound that depends on a step size: choose eta yourself"):
        tune(COMAL(0.1, 0.5, 2), game, 50)


def test_a_start_with_zeros_has_no_finite_bound() -> None:
    """D = ∞: the best response may be one that is never played."""
    assert all(math.isinf(value) for _, value in bounds(SPPO(0.5), families.comal(), 9, start=[0.5, 0.5, 0.0]))


# --- Saving and loading --------------------------------------------------------------------------------------------


def a_run() -> Run:
    game = Game(families.uniform_random(3, seed=1, batch=2).P, weights=[1, 3], names=("a", "b", "ç"))
    return play(ONPO(0.5), game, 20, keep=("current", "average"))


def test_a_saved_run_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    run = a_run()
    run.save(tmp_path / "run.npz")
    again = Run.load(tmp_path / "run.npz")
    assert (again.rule, again.steps, again.names, again.notes) == (run.rule, run.steps, run.names, run.notes)
    for name in ("recorded", "gap_average", "gap_last", "average", "last", "weights"):
        assert_array_equal(getattr(again, name), getattr(run, name), strict=True)
    assert again.kept.keys() == run.kept.keys()
    for name, rows in run.kept.items():
        assert_array_equal(again.kept[name], rows, strict=True)
    assert_array_equal(again.mean_gap_last, run.mean_gap_last)
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]


def test_a_run_of_one_game_without_names_comes_back(tmp_path: Path) -> None:
    run = play(SPPO(0.5), families.comal().select(()), 3)
    unnamed = play(SPPO(0.5), Game(families.comal().P), 3)
    for one in (run, unnamed):
        one.save(tmp_path / "run")
        assert Run.load(tmp_path / "run").names == one.names
    assert unnamed.names is None


class Bomb:
    """A pickle that would leave a mark if it were loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("loaded"),)


def test_what_is_no_saved_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.npz"
    a_run().save(path)
    whole = path.read_bytes()
    contents: dict[str, Any] = {
        "truncated": whole[: len(whole) // 2],
        "cut at the end": whole[:-30],
        "empty": b"",
        "text": b"no run at all",
        "pickle": pickle.dumps(Bomb()),
    }
    for content in contents.values():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"run\.npz is not a saved run") as error:
            Run.load(path)
        assert "\n" not in str(error.value)
    for foreign in ({"P": np.eye(3)}, {"about": np.array('{"format": "other"}')}, {"about": np.array("no JSON")}):
        np.savez(path, **foreign)
        with pytest.raises(ValueError, match=r"run\.npz is not a saved run"):
            Run.load(path)
    with open(path, "wb") as file:
        np.save(file, np.eye(3))
    with pytest.raises(ValueError, match=r"run\.npz is not a saved run"):
        Run.load(path)
    with open(path, "wb") as file:
        np.savez(file, about=np.array([Bomb()], dtype=object))
    with pytest.raises(ValueError, match=r"run\.npz is not a saved run"):
        Run.load(path)
    assert not Path("loaded").exists()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Run.load(tmp_path / "nothing.npz")


def test_a_run_as_a_table(tmp_path: Path) -> None:
    run = a_run()
    run.to_csv(tmp_path / "run.csv")
    with open(tmp_path / "run.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == run.recorded.tolist()
    assert_array_equal([float(row["gap_last"]) for row in rows], run.gap_last @ [0.25, 0.75])


# --- What is refused -----------------------------------------------------------------------------------------------

NAN = float("nan")
REFUSED = [
    ({"steps": 0}, r"steps = 0 must be at least 1"),
    ({"steps": -3}, r"steps = -3 must be at least 1"),
    ({"steps": 2.5}, r"steps = 2.5 must be at least 1, and whole"),
    ({"steps": "9"}, r"steps = '9' must be at least 1, and whole"),
    ({"keep": "current"}, r"keep = 'current' is one name"),
    ({"rule": IPO(0.5), "steps": 2}, r"steps = 2, but this rule has a horizon of 1: use its iterative form"),
    ({"start": [0.5, 0.5]}, r"start has shape \(2,\), but the game has 3 responses: give one each"),
    ({"start": [0.5, NAN, 0.5]}, r"start has an entry that is NaN or infinite"),
    ({"start": [0.5, 0.6, 0.5]}, r"start does not add up to 1 \(off by 0.6\): divide it by its sum"),
    ({"start": [1.5, -0.5, 0.0]}, r"start has the negative probability -0.5"),
    ({"start": 0.5}, r"start has shape \(\)"),
    ({"start": [[0.2, 0.3, 0.5]] * 2}, r"start has shape \(2, 3\), which does not fit the game's \(3,\)"),
    ({"rule": INPO(0.1, 0.5), "reference": [0.5, 0.5, 0.0]}, r"reference gives probability 0 to response c"),
    ({"rule": INPO(0.1, 0.5), "start": [0.5, 0.5, 0.0]}, r"reference gives probability 0 to response c"),
    ({"rule": IPO(0.1), "steps": 1, "behavior": [1.0, 1.0, 0.0]}, r"behavior does not add up to 1"),
    ({"record": "some"}, r"record = 'some' is none of geometric, all, last"),
    ({"record": 0}, r"record = 0 must be at least 1"),
    ({"record": []}, r"record is empty: name at least one step"),
    ({"record": [0, 3]}, r"record names step 0, outside 1 … 9"),
    ({"record": [4, 10, 3]}, r"record names step 10, outside 1 … 9"),
    ({"engine": "fast"}, r"engine = 'fast' is none of auto, compiled, reference"),
    ({"rule": DPO(0.5), "steps": 1, "engine": "compiled"}, r"the compiled engine cannot run this: .*reward"),
    ({"keep": ("auxiliary",)}, r"policy 'auxiliary' cannot be kept: it is absent"),
    ({"keep": ("auxiliary",), "engine": "reference"}, r"policy 'auxiliary' cannot be kept: it is absent"),
    ({"projection": object()}, r"projection is for sampled feedback: give feedback=Sampled"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED)
def test_bad_input_is_refused_in_one_line(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        play(**({"rule": SPPO(0.5), "game": families.comal(), "steps": 9} | changed))
    assert "\n" not in str(error.value)


def test_a_schedule_that_leaves_its_range_is_refused_when_it_does() -> None:
    """Construction probes some t only; a coefficient that leaves the simplex at t = 7 is found before or in the run."""
    rule = INPO(lambda t: 0.5 if t != 7 else 4.0, 0.5)
    for engine in ENGINES:
        play(rule, families.comal(), 7, engine=engine)
        with pytest.raises(ValueError, match=r"at t = 7: coefficients must be >= 0"):
            play(rule, families.comal(), 8, engine=engine)


def test_playing_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for engine in ENGINES:
            play(ONPO(0.5), families.dominance(3), 50, start=[0.0, 0.5, 0.5], engine=engine)
