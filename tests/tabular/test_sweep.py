"""Sweeps: what the map holds, cells that are stored once and found again, workers that die, and a cluster of two."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nashpo.core.cli import main
from nashpo.core.rules import COMAL, ONPO, SPPO
from nashpo.core.schedules import Power
from nashpo.tabular import Game, play
from nashpo.tabular.families import comal, interior, uniform_random
from nashpo.tabular.sweep import Grid, make_rows, parse_grid, sweep, whole
from nashpo.tabular.sweep_cells import CellStore, Ground, Outcome, cell_key, run_cell
from nashpo.tabular.workers import WorkersDied

Capture = pytest.CaptureFixture[str]
SWEEP = ["sweep", "interior:n=5", "--rule", "sppo,onpo", "--eta", "0.1:1:3", "--steps", "50"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(capsys: Capture, *argv: str, status: int = 0) -> dict[str, Any]:
    assert main([*argv, "--out", "maps", "--json"]) == status
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def loaded(folder: str = "maps") -> dict[str, np.ndarray]:
    with np.load(Path(folder) / "sweep.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def cells(folder: str = "maps") -> list[Path]:
    return sorted((Path(folder) / "cells").glob("*.json"))


@pytest.fixture
def local_cluster() -> Iterator[Any]:
    """Two worker processes under Dask's nannies, as `--scheduler local` starts them."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as cluster:
        yield cluster


# The grid.


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0.1", [0.1]),
        ("0.1,1, 10", [0.1, 1.0, 10.0]),
        ("1,1,2", [1.0, 2.0]),
        ("0.01:100:5", [0.01, 0.1, 1.0, 10.0, 100.0]),
        ("2:3:1", [2.0]),
        ("1e-2:1e-2:2", [0.01, 0.01]),
    ],
)
def test_axes(text: str, numbers: list[float]) -> None:
    assert_allclose(parse_grid("eta", text), numbers, rtol=1e-14)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--eta : give numbers"),
        ("x", "--eta x: give numbers, such as 0.01,0.1,1, or LOW:HIGH:COUNT"),
        ("0.1,,1", "give numbers"),
        ("0,1", "0 must be a finite number > 0"),
        ("-1:1:3", "-1 must be a finite number > 0"),
        ("1,nan", "nan must be a finite number > 0"),
        ("1:inf:3", "inf must be a finite number > 0"),
        ("1:2", "a range is LOW:HIGH:COUNT"),
        ("1:2:2.5", "a range is LOW:HIGH:COUNT"),
        ("1:2:100000", "a whole COUNT from 1 to 10000"),
    ],
)
def test_bad_axes(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_grid("eta", text)
    assert message in str(caught.value)


def test_axes_of_whole_numbers() -> None:
    assert whole("inner", parse_grid("inner", "1:100:5"), True) == [1, 3, 10, 32, 100]
    assert whole("inner", [20.0, 1.0], False) == [1, 20]
    with pytest.raises(ValueError, match="--inner: whole numbers are needed"):
        whole("inner", [1.5], False)


def test_rows_are_rules_with_all_but_the_step_size() -> None:
    rows = make_rows(["sppo", "comal", "onpo"], {"tau": [1.0], "inner": [1, 5], "variant": ["leader", "one_step"]})
    assert [row.label for row in rows] == ["sppo", "comal k=1", "comal k=5", "onpo leader", "onpo one_step"]
    assert [row.at(0.5) for row in rows[1:4]] == [COMAL(0.5, 1.0, 1), COMAL(0.5, 1.0, 5), ONPO(0.5, "leader")]


@pytest.mark.parametrize(
    ("names", "axes", "message"),
    [
        (["spo"], {}, "unknown rule 'spo'; did you mean 'sppo'?"),
        (["sppo"], {"tau": [1.0]}, "--tau is given, but sppo has no such hyperparameter"),
        (["sppo", "inpo"], {}, "rule 'inpo' needs --tau"),
        (["comal"], {"inner": [1]}, "rule 'comal' needs --tau"),
        (["ipo"], {"tau": [1.0]}, "rule 'ipo' has no step size --eta to sweep"),
    ],
)
def test_bad_rows(names: list[str], axes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make_rows(names, axes)
    assert message in str(caught.value)


# Cells.


def test_a_cell_is_named_by_all_that_it_depends_on() -> None:
    game = comal()
    start = np.array([0.2, 0.3, 0.5])
    base = cell_key(Ground(game).fingerprint, SPPO(0.1), 10)
    assert base == cell_key(Ground(Game(game.P, names=["x", "y", "z"])).fingerprint, SPPO(0.1), 10)
    others = [
        cell_key(Ground(game).fingerprint, SPPO(0.1), 11),
        cell_key(Ground(game).fingerprint, SPPO(np.nextafter(0.1, 1)), 10),
        cell_key(Ground(game).fingerprint, SPPO(Power(0.1)), 10),
        cell_key(Ground(game).fingerprint, ONPO(0.1), 10),
        cell_key(Ground(game).fingerprint, ONPO(0.1, "leader"), 10),
        cell_key(Ground(Game(game.P.T)).fingerprint, SPPO(0.1), 10),
        cell_key(Ground(Game(game.P[None])).fingerprint, SPPO(0.1), 10),
        cell_key(Ground(game, start=start).fingerprint, SPPO(0.1), 10),
        cell_key(Ground(game, reference=start).fingerprint, SPPO(0.1), 10),
    ]
    assert len({base, *others}) == len(others) + 1


def test_a_cell_is_a_run() -> None:
    ground = Ground(interior(5, seed=1))
    outcome = run_cell(ground.packed(), ONPO(0.5), 100)
    direct = play(ONPO(0.5), ground.game, 100)
    assert_array_equal(outcome.recorded, direct.recorded)
    assert_array_equal(outcome.gap_last, direct.gap_last)
    assert outcome.final == (direct.gap_average[-1], direct.gap_last[-1])


def test_a_cell_that_cannot_be_run_is_an_outcome() -> None:
    zeros = Ground(comal(), start=np.array([0.0, 0.5, 0.5]))
    outcome = run_cell(zeros.packed(), COMAL(0.1, 1.0, 2), 10)
    assert outcome.error is not None
    assert "full support" in outcome.error
    assert np.isnan(outcome.final).all()


def test_a_store_gives_back_what_it_took_to_the_bit(tmp_path: Path) -> None:
    store = CellStore(tmp_path)
    outcome = run_cell(Ground(interior(5)).packed(), SPPO(0.3), 77)
    store.store("key", outcome)
    assert CellStore(tmp_path).load("key") == outcome
    assert store.load("other") is None
    assert os.listdir(tmp_path / "cells") == ["key.json"]
    failed = Outcome("SPPO", 5, [], [], [], "why")
    store.store("failed", failed)
    assert store.load("failed") == failed


DAMAGES = [b"", b"{", b"[]", b"{}", b'{"rule": "x"}', b"\xff",
           b'{"rule": "r", "steps": 1, "recorded": [], "gap_average": [], "gap_last": []}']  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cell_is_run_again(damage: bytes, tmp_path: Path) -> None:
    store = CellStore(tmp_path)
    store.path("key").write_bytes(damage)
    assert store.load("key") is None


# Sweeps.


def test_the_map(capsys: Capture) -> None:
    report = run(capsys, *SWEEP, "--jobs", "1")
    arrays = loaded()
    assert_array_equal(arrays["sweep/rules"], ["sppo", "onpo"])
    assert_allclose(arrays["sweep/eta"], [0.1, 10**-0.5, 1.0], rtol=1e-14)
    assert int(arrays["sweep/steps"]) == 50
    for r, rule in enumerate((SPPO, ONPO)):
        for e, eta in enumerate(arrays["sweep/eta"]):
            direct = play(rule(float(eta)), interior(5), 50)
            assert arrays["sweep/gap_average"][r, e] == direct.gap_average[-1]
            assert arrays["sweep/gap_last"][r, e] == direct.gap_last[-1]
    assert (report["cells_computed"], report["cells_reused"], report["cells_left_out"]) == (6, 0, [])
    for entry, gaps in zip(report["best"], arrays["sweep/gap_last"], strict=True):
        assert entry["gap_last"] == gaps.min()
        assert entry["eta_last"] == arrays["sweep/eta"][gaps.argmin()]
    assert len(cells()) == 6
    assert json.loads(Path("maps/sweep.json").read_text())["game"]["source"] == "interior:n=5"


def test_a_second_run_finds_its_cells(capsys: Capture) -> None:
    run(capsys, *SWEEP, "--jobs", "1")
    first, stamps = loaded(), [path.stat().st_mtime_ns for path in cells()]
    report = run(capsys, *SWEEP, "--jobs", "1")
    assert (report["cells_computed"], report["cells_reused"]) == (0, 6)
    assert [path.stat().st_mtime_ns for path in cells()] == stamps
    for name, array in loaded().items():
        assert_array_equal(array, first[name])
    cells()[0].write_bytes(cells()[0].read_bytes()[:20])
    cells()[1].unlink()
    more = run(capsys, *SWEEP[:-4], "--eta", "0.1:1:5", "--steps", "50", "--jobs", "1")
    assert (more["cells_computed"], more["cells_reused"]) == (2 + 4, 4)


def test_cells_that_a_rule_forbids_are_left_out(capsys: Capture) -> None:
    argv = ["sweep", "comal", "--rule", "inpo,sppo", "--eta", "0.5,1,4", "--tau", "1", "--steps", "9", "--jobs", "1"]
    report = run(capsys, *argv)
    (left_out,) = report["cells_left_out"]
    assert (left_out["rule"], left_out["eta"]) == ("inpo", 4.0)
    assert "eta * tau = 4 must be <= 1" in left_out["reason"]
    assert_array_equal(np.isnan(loaded()["sweep/gap_last"]), [[False, False, True], [False] * 3])
    assert main([*argv, "--out", "maps"]) == 0
    assert "1 cells of inpo left out, eta = 4" in capsys.readouterr().out


def test_a_map_without_a_single_cell_is_status_1(capsys: Capture) -> None:
    Path("zero.json").write_text("[0, 0.5, 0.5]")
    report = run(capsys, "sweep", "comal", "--rule", "comal", "--eta", "0.1", "--tau", "1", "--inner", "2",
                 "--start", "zero.json", "--jobs", "1", status=1)  # fmt: skip
    assert "full support" in report["cells_left_out"][0]["reason"]
    assert report["best"][0]["gap_last"] is None


def test_the_map_of_comal(capsys: Capture) -> None:
    run(capsys, "sweep", "comal", "--rule", "comal,sppo", "--eta", "0.1,0.5,2", "--tau", "1", "--inner", "10,1",
        "--steps", "60", "--jobs", "1")  # fmt: skip
    arrays = loaded()
    assert_array_equal(arrays["comal/inner"], [1, 10])
    assert_allclose(arrays["comal/eta_tau"], [0.1, 0.5], rtol=1e-15)  # eta * tau = 2 is not allowed
    for i, inner in enumerate((1, 10)):
        for j, eta in enumerate((0.1, 0.5)):
            direct = play(COMAL(eta, 1.0, inner), comal(), 60)
            assert arrays["comal/gap_last"][i, j] == direct.gap_last[-1]
    # At one step size the products come from tau; over both, the gap depends on more than their product.
    run(capsys, "sweep", "comal", "--rule", "comal", "--eta", "0.5", "--tau", "1,0.1", "--inner", "1,10",
        "--steps", "60", "--jobs", "1")  # fmt: skip
    assert_allclose(loaded()["comal/eta_tau"], [0.05, 0.5], rtol=1e-15)
    assert loaded()["comal/gap_last"][1, 1] == arrays["comal/gap_last"][1, 1]
    run(capsys, "sweep", "comal", "--rule", "comal", "--eta", "0.1,0.5", "--tau", "1,0.1", "--inner", "1,10",
        "--steps", "60", "--jobs", "1")  # fmt: skip
    assert not any(name.startswith("comal/") for name in loaded())


def test_the_map_is_drawn(capsys: Capture) -> None:
    run(capsys, *SWEEP, "--jobs", "1", "--plot", "map.svg")
    assert Path("map.svg").read_text(encoding="utf-8").startswith("<?xml")
    run(capsys, "sweep", "comal", "--rule", "comal", "--eta", "0.1,1", "--tau", "1", "--inner", "1,10",
        "--steps", "9", "--jobs", "1", "--plot", "comal.png")  # fmt: skip
    assert Path("comal.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--jobs", "0"], "--jobs 0: at least one worker"),
        (["--scheduler", "local"], "--scheduler local is for --backend dask"),
        (["--backend", "slurm"], "invalid choice: 'slurm'"),
        (["--steps", "0"], "--steps 0: at least one update"),
        (["--eta", "0,1"], "--eta 0,1: 0 must be a finite number > 0"),
        (["--eta", "1:2"], "a range is LOW:HIGH:COUNT"),
        (["--rule", ","], "--rule names no rule"),
        (["--inner", "3"], "--inner is given, but sppo, onpo has no such hyperparameter"),
        (["--plot", "map.gif"], "unknown kind of file '.gif'"),
        (["--plot", "none/map.png"], "there is no folder none"),
    ],
)
def test_bad_arguments(more: list[str], message: str, capsys: Capture) -> None:
    assert main([*SWEEP, "--out", "maps", *more]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
    assert not cells()


# Clusters, and what is killed.


def test_a_cluster_of_two_makes_the_same_map(local_cluster: Any, capsys: Capture) -> None:
    address = local_cluster.scheduler_address
    report = run(capsys, *SWEEP, "--backend", "dask", "--scheduler", address)
    assert report["cells_computed"] == 6
    on_the_cluster = loaded()
    assert main([*SWEEP, "--jobs", "1", "--out", "here"]) == 0
    capsys.readouterr()
    for name, array in loaded("here").items():
        assert_array_equal(on_the_cluster[name], array)
    assert run(capsys, *SWEEP, "--backend", "dask", "--scheduler", address)["cells_reused"] == 6


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_worker_of_the_cluster_dies_in_the_middle_of_a_sweep(local_cluster: Any) -> None:
    """One of two worker processes is killed after the first cell; every cell is there, and right."""
    distributed = pytest.importorskip("distributed")
    with distributed.Client(local_cluster) as client:
        victim = next(iter(client.run(os.getpid).values()))
    grid = Grid(make_rows(["sppo", "onpo"], {}), tuple(np.geomspace(0.1, 1, 6)), 2000)
    ground = Ground(uniform_random(60, seed=3))
    done: list[int] = []

    def kill_once(count: int) -> None:
        done.append(count)
        if sum(done) == 1:
            os.kill(victim, signal.SIGKILL)

    made = sweep(grid, ground, CellStore("maps"), backend="dask", scheduler=local_cluster.scheduler_address,
                 progress=kill_once)  # fmt: skip
    assert sum(done) == made.computed == len(cells()) == 12
    for r, row in enumerate(grid.rows):
        direct = play(row.at(grid.eta[2]), ground.game, 2000)
        assert_allclose(made.gap_last[r, 2], direct.gap_last[-1], rtol=1e-12)
    with pytest.raises(ProcessLookupError):
        os.kill(victim, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_command_is_taken_up_where_it_was(capsys: Capture) -> None:
    argv = ["sweep", "uniform_random:n=100", "--rule", "sppo,onpo", "--eta", "0.01:1:10", "--steps", "50000",
            "--jobs", "1"]  # fmt: skip
    code = "import sys; from nashpo.core.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", code, *argv, "--out", "maps"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        while len(cells()) < 3 and running.poll() is None:
            time.sleep(0.005)
        running.kill()
    kept = {path: path.read_bytes() for path in cells()}
    assert 3 <= len(kept) < 20
    report = run(capsys, *argv)
    assert (report["cells_computed"], report["cells_reused"]) == (20 - len(kept), len(kept))
    assert len(cells()) == 20
    assert all(path.read_bytes() == content for path, content in kept.items())
    taken_up = loaded()
    assert main([*argv, "--out", "anew"]) == 0
    for name, array in loaded("anew").items():
        assert_array_equal(taken_up[name], array)


def test_workers_that_died_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def dying(*_: Any, **__: Any) -> None:
        raise WorkersDied("workers died 3 times in a row without finishing one of 6 cells")

    monkeypatch.setattr("nashpo.tabular.sweep.run_all", dying)
    assert main([*SWEEP, "--out", "maps"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("nashpo: error: workers died 3 times")
    assert "finished cells are kept in maps" in err
    assert err.count("\n") == 1


def test_the_ground_travels_whole() -> None:
    ground = Ground(comal(), start=np.array([0.2, 0.3, 0.5]))
    assert pickle.loads(ground.packed()).fingerprint == ground.fingerprint
