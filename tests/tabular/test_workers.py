"""Independent calls through joblib: all are run, workers that die cost nothing, and one that always dies ends it."""

import os
import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from joblib.externals.loky import get_reusable_executor

from nashpo.tabular import workers
from nashpo.tabular.workers import WorkersDied, run_all


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def local_cluster() -> Iterator[Any]:
    """Two worker processes under Dask's nannies, as `--scheduler local` starts them."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as cluster:
        yield cluster


CALLS = """
import os, signal, time
from pathlib import Path

def square(k):
    return k * k

def mortal(marker, k):
    time.sleep(0.02)
    if k == 3 and not Path(marker).exists():  # the fourth call kills its worker, once
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return k * k

def suicidal():
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`CALLS` as a module that a new process finds; joblib's processes of earlier tests would not."""
    get_reusable_executor().shutdown(wait=True)
    Path("calls_of_workers.py").write_text(CALLS)
    monkeypatch.syspath_prepend(os.getcwd())
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    yield import_module("calls_of_workers")
    del sys.modules["calls_of_workers"]


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_calls_are_all_run(backend: str, calls: Any) -> None:
    found: dict[str, int] = {}
    run_all({str(k): partial(calls.square, k) for k in range(20)}, found.__setitem__, jobs=2, backend=backend)
    assert found == {str(k): k * k for k in range(20)}
    run_all({}, found.__setitem__, jobs=2, backend=backend)


def test_an_error_of_a_call_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        run_all({"a": partial(divmod, 1, 0)}, lambda key, result: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "mpi"}, "backend = 'mpi' is none of loky, threading, dask"),
        ({"jobs": 0}, "jobs = 0 must be at least 1"),
        ({"scheduler": "local"}, "is for the backend 'dask'"),
    ],
)
def test_bad_workers(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_all({"a": partial(pow, 2, 2)}, lambda key, result: None, **arguments)


def test_a_scheduler_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "CONNECT_SECONDS", 0.2)
    with pytest.raises(OSError, match="no Dask scheduler answers at tcp://127.0.0.1:9"):
        run_all({"a": partial(pow, 2, 2)}, lambda k, r: None, backend="dask", scheduler="tcp://127.0.0.1:9")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("backend", ["loky", "dask"])
def test_a_killed_worker_costs_nothing(backend: str, calls: Any, tmp_path: Path) -> None:
    if backend == "dask":
        pytest.importorskip("distributed")
    found: dict[str, int] = {}
    mortals = {str(k): partial(calls.mortal, str(tmp_path / "killed"), k) for k in range(10)}
    run_all(mortals, found.__setitem__, jobs=2, backend=backend)
    assert (tmp_path / "killed").exists()
    assert found == {str(k): k * k for k in range(10)}


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_workers_that_die_again_and_again_end_a_sweep(calls: Any) -> None:
    with pytest.raises(WorkersDied, match="died 3 times in a row without finishing one of 1 cells"):
        run_all({"a": calls.suicidal}, lambda key, result: None, jobs=2)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_call_that_dask_gives_up_does_not_wait_for_ever(
    calls: Any, local_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask gives a call up that cost a worker more often than it allows; joblib alone would wait for its answer."""
    local_cluster.scheduler.allowed_failures = 0
    monkeypatch.setattr(workers, "PATIENCE", 1)
    with pytest.raises(WorkersDied):
        run_all(
            {"a": calls.suicidal},
            lambda key, result: None,
            backend="dask",
            scheduler=local_cluster.scheduler_address,
        )
