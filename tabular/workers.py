"""Running independent calls through joblib: in this process, on the cores of this machine, or on a Dask cluster.

Every result is handed over as it comes, so that what finished before a crash is not lost. A worker that dies (killed,
out of memory) costs the calls that it was running; these are run again. No arrays, hence no shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import joblib

BACKENDS = ("loky", "threading", "dask")
LOCAL = "local"
PATIENCE = 3
"""Rounds in a row that may end by a dead worker without one finished call."""
CONNECT_SECONDS = 10


class WorkersDied(RuntimeError):
    """Workers died again and again without finishing anything."""


def run_all(
    calls: Mapping[str, Callable[[], Any]],
    finished: Callable[[Any, Any], None],
    *,
    jobs: int = 1,
    backend: str = "loky",
    scheduler: str | None = None,
) -> None:
    """Run every call and hand over its result, in any order.

    Parameters
    ----------
    calls : mapping key -> callable without arguments
        They and their results are pickled where workers are processes.
    finished : callable (key, result)
        Called in this process.
    jobs : int
        Workers; the Dask cluster of an address decides for itself.
    backend : str
        One of `BACKENDS`.
    scheduler : str, optional
        Address of a Dask scheduler, or "local" for a cluster of ``jobs`` processes that lives as long as this call.

    Raises
    ------
    ValueError
        Unknown backend, jobs below 1, a scheduler without Dask.
    OSError
        If the scheduler cannot be reached.
    WorkersDied
        After `PATIENCE` rounds without progress. What was handed over before stays handed over.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend = {backend!r} is none of {', '.join(BACKENDS)}")
    if jobs < 1:
        raise ValueError(f"jobs = {jobs} must be at least 1")
    if scheduler is not None and backend != "dask":
        raise ValueError(f"a scheduler ({scheduler}) is for the backend 'dask', not {backend!r}")
    if not calls:
        return
    with cluster(jobs, scheduler) if backend == "dask" else joblib.parallel_config(backend=backend, n_jobs=jobs):
        _until_done(dict(calls), finished, -1 if backend == "dask" else jobs)


def _until_done(pending: dict[Any, Callable[[], Any]], finished: Callable[[Any, Any], None], jobs: int) -> None:
    idle_rounds = 0
    while pending:
        before = len(pending)
        try:
            results = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(
                joblib.delayed(_keyed)(key, call) for key, call in list(pending.items())
            )
            for key, result in results:
                finished(key, result)
                del pending[key]
        except _deaths() as death:
            idle_rounds = 0 if len(pending) < before else idle_rounds + 1
            if idle_rounds == PATIENCE:
                cause = str(death).partition("\n")[0]
                raise WorkersDied(
                    f"workers died {PATIENCE} times in a row without finishing one of {len(pending)} cells;"
                    f" is there enough memory? ({cause})"
                ) from death


def _keyed(key: Any, call: Callable[[], Any]) -> tuple[Any, Any]:
    return key, call()


def _deaths() -> tuple[type[BaseException], ...]:
    """What joblib raises when a worker died."""
    from joblib.externals.loky.process_executor import BrokenProcessPool

    try:
        from distributed.scheduler import KilledWorker
    except ModuleNotFoundError:
        return (BrokenProcessPool,)
    return (BrokenProcessPool, KilledWorker)


@contextmanager
def cluster(jobs: int, scheduler: str | None) -> Iterator[Any]:
    """A Dask client as joblib's backend: of a running scheduler, or of a cluster of processes of one's own."""
    try:
        from distributed import Client, LocalCluster
    except ModuleNotFoundError:
        raise ValueError("the backend 'dask' needs Dask: pip install 'nashpo[dask]'") from None
    if scheduler in (None, LOCAL):
        local = LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address="127.0.0.1:0")
        with local, Client(local) as client, joblib.parallel_config(backend=_dask_backend(client)):
            yield client
        return
    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise OSError(f"no Dask scheduler answers at {scheduler} ({' '.join(str(error).split())})") from None
    with client, joblib.parallel_config(backend=_dask_backend(client)):
        yield client


def _dask_backend(client: Any) -> Any:
    """joblib's Dask backend with two things mended, both seen in joblib 1.6.

    Where Dask gives a call up, after it cost several workers, joblib waits for it for ever: the error is in the call's
    future, but joblib's callback is not called. And where the cluster has one core, or had one left at that moment,
    joblib runs the calls in this process, which a call that kills its worker would then kill.
    """
    from joblib._dask import DaskDistributedBackend

    class Backend(DaskDistributedBackend):  # type: ignore[misc]
        def submit(self, func: Any, callback: Any = None) -> Any:
            def tell(future: Any) -> None:
                error = future.exception()
                if error is not None and callback is not None:
                    callback(error)

            call = super().submit(func, callback)
            call.add_done_callback(tell)
            return call

        def effective_n_jobs(self, n_jobs: int) -> int:
            return max(2, super().effective_n_jobs(n_jobs))

    return Backend(client=client)
