"""``nashpo train``: a recipe's self-play from where its run folder stands to its last iteration."""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging as hub_logging

from nashpo.core.rules.form import AVERAGE, Form
from nashpo.core.selfplay import StageTrace, State, self_play
from nashpo.core.store import FileStore, replace_file
from nashpo.figures.training_report import write_report
from nashpo.llm.card import write_card
from nashpo.llm.loop.backend import RunBackend, alive
from nashpo.llm.loop.evaluating import RESULTS
from nashpo.llm.loop.hub import push
from nashpo.llm.loop.lock import locked
from nashpo.llm.loop.messages import explained
from nashpo.llm.loop.metrics import write_metrics
from nashpo.llm.loop.phase import MANIFEST, versions
from nashpo.llm.loop.progress import Bars
from nashpo.llm.loop.ranks import FAILED, Ranks, of_job
from nashpo.llm.loop.setup import Prepared, prepare
from nashpo.llm.loop.start import TINY
from nashpo.llm.recipe.parsing import difference
from nashpo.llm.recipe.schema import Recipe, parse_recipe
from nashpo.llm.recipe.training import shared
from nashpo.llm.recipe.yaml_text import parse_mapping

RECIPE, STATE, REPORT = "recipe.yaml", "state.json", "report.html"


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    run : path
    iterations : int
        That are finished.
    new : int
        That this call finished.
    report : path
    """

    run: Path
    iterations: int
    new: int
    report: Path


def train(recipe: Recipe, quiet: bool = True, say: Callable[[str], None] = lambda text: None) -> Outcome:
    """Run a recipe, or go on with it; of a finished run nothing is done again.

    All processes that a launcher has started call this alike; the first of them tells and writes.

    Parameters
    ----------
    recipe : Recipe
    quiet : bool
        Without progress bars.
    say : callable
        Gets a line for people now and then.

    Raises
    ------
    ValueError
        A recipe that cannot be run, a folder of another recipe or one in use; `RunStopped` where a phase failed.
    """
    run, ranks = Path(recipe.output_dir), of_job()
    if not ranks.is_first:
        quiet, say = True, lambda text: None
    with ExitStack() as held, ranks.last_words(run):
        ranks.first(lambda: _take(run, recipe, ranks.world, held))
        store = FileStore(run / STATE)
        saved, reported = ranks.first(lambda: (store.load(), (run / REPORT).exists()))
        done = 0 if saved is None else saved.t
        count = recipe.iterations.count
        if done < count or not reported:
            _play(run, recipe, store, ranks, quiet, say)
        ranks.first(lambda: push(run, run / f"iterations/{count:03d}/model", recipe.training, say))
        return Outcome(run, count, max(0, count - done), run / REPORT)


def _take(run: Path, recipe: Recipe, processes: int, held: ExitStack) -> None:
    """Lock the run's folder and see that it is this recipe's, and that its updates can be shared out."""
    shared(recipe.training, processes)
    if recipe.warmup is not None:
        shared(recipe.warmup.training, processes, "warmup.training")
    held.enter_context(locked(run))
    _same_recipe(run, recipe)
    shutil.rmtree(run / FAILED, ignore_errors=True)


def _same_recipe(run: Path, recipe: Recipe) -> None:
    """Write the recipe of a new run; refuse another one for an old run."""
    path, new = run / RECIPE, recipe.to_dict()
    if not path.exists():
        replace_file(path, recipe.to_yaml().encode())
        return
    old = _old_recipe(path)
    changed = [line for line in difference(old, new) if not _harmless(line, old, new)]
    if changed and _begun(run, old, new):
        raise ValueError(
            f"{run} was begun with another recipe ({'; '.join(changed)}): give another output_dir, or take the change"
            f" back; --from {run}@N begins a new run from its iterate N"
        )
    if old != new:
        replace_file(path, recipe.to_yaml().encode())


def _old_recipe(path: Path) -> Mapping[str, Any]:
    """With every key written out: one that an earlier version did not know has its default."""
    text = path.read_text(encoding="utf-8")
    try:
        return parse_recipe(text, str(path)).to_dict()
    except ValueError:  # what this version refuses is shown as it stands
        return parse_mapping(text, str(path))


def _begun(run: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether something was made that depends on the recipe: one that was refused at once may be mended."""
    made = any((run / name).exists() for name in ("start", "warmup", "iterations", STATE))
    return made or ((run / TINY).exists() and old.get("model") != new["model"])


def _harmless(line: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """What may change: how much is kept, how a server is reached, and more iterations where that does not change the
    earlier ones' prompts."""
    name = line.partition(":")[0]
    if name == "iterations.count":
        before, after = old["iterations"], new["iterations"]
        fixed = after.get("prompts") == "all" or after.get("per_iteration") is not None
        return fixed and after["count"] >= before["count"]
    section, _, field = name.rpartition(".")
    return name in ("keep_last", "output_dir") or (section in _SERVICES and field in _TRANSPORT)


_SERVICES = ("sampling", "judge", "conversation.user.sampling")
_TRANSPORT = ("url", "timeout", "retries", "patience", "concurrency", "max_calls", "batch_size", "device")
"""Settings of engines and judges that do not change what is asked for."""


class _Store:
    """The file store of the first process; the backend is told which iteration is under way."""

    def __init__(self, store: FileStore, ranks: Ranks, backend: RunBackend, bars: Bars) -> None:
        self._store = store
        self._ranks = ranks
        self._backend = backend
        self._bars = bars

    def load(self) -> State | None:
        """The last committed state."""
        state = self._ranks.first(self._store.load)
        t = 0 if state is None else state.t
        self._backend.at(t)
        self._bars.iteration(t + 1)
        return state

    def commit(self, state: State) -> None:
        """Make the state durable."""
        self._ranks.first(lambda: self._store.commit(state))
        self._bars.iteration(state.t + 1)


def _play(run: Path, recipe: Recipe, store: FileStore, ranks: Ranks, quiet: bool, say: Callable[[str], None]) -> None:
    bars = Bars(quiet)
    form = recipe.rule.form()
    hub_logging.disable_progress_bar()  # a bar for every file that is read would hide the run's own
    with bars:
        ready = prepare(run, recipe, ranks, bars, say)
        backend = ready.backend

        def observe(before: State, after: State, trace: tuple[StageTrace, ...]) -> None:
            _evaluate(recipe, ready, before, after)
            ranks.first(lambda: _tell(run, recipe, after, say))

        try:
            with explained(bars.where, run), ranks.naming_losses():
                cleaning: Any = _Cleaning(backend, run, recipe, form, ranks)
                kept = _Store(store, ranks, backend, bars)
                self_play(form, cleaning, recipe.iterations.count, store=kept, observe=observe)
        finally:
            ready.close()
        ranks.first(lambda: _report(run, recipe.iterations.count))


def _tell(run: Path, recipe: Recipe, after: State, say: Callable[[str], None]) -> None:
    """An iteration is done: its model card, the figures so far, a line for people."""
    _write_card(run, recipe, after)
    _report(run, after.t)
    say(_line(run, after.t, recipe.iterations.count))


def _report(run: Path, iterations: int) -> None:
    write_metrics(run, iterations)
    write_report(run)


class _Cleaning:
    """The backend, with old iterates deleted after each commit as ``keep_last`` says."""

    def __init__(self, backend: RunBackend, run: Path, recipe: Recipe, form: Form, ranks: Ranks) -> None:
        self._backend = backend
        self._run = run
        self._ranks = ranks
        self._keep_last = recipe.keep_last
        self._averaged = any(payoff.policy == AVERAGE for payoff in form.payoffs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def forget(self, state: State) -> None:
        """Delete the weights that neither the state nor ``keep_last`` needs; data are never deleted."""
        self._ranks.first(lambda: self._delete(state))
        self._backend.forget(state)

    def _delete(self, state: State) -> None:
        needed = alive(state, self._averaged)
        for folder in sorted((self._run / "iterations").glob("*/*")):
            manifest = folder / MANIFEST
            name = str(folder.relative_to(self._run))
            if name in needed or not manifest.exists() or json.loads(manifest.read_bytes())["phase"] != "model":
                continue
            iteration, iterate = int(folder.parent.name), folder.name == "model"
            old = self._keep_last is not None and iteration <= state.t - self._keep_last
            if old or not iterate:
                shutil.rmtree(folder)


def _evaluate(recipe: Recipe, ready: Prepared, before: State, after: State) -> None:
    if ready.evaluator is None or recipe.evaluation is None:
        return
    if after.t % recipe.evaluation.every and after.t != recipe.iterations.count:
        return
    assert after.average is not None
    current, previous = after.slots["current"], before.slots["current"]
    assert current is not None
    assert previous is not None
    iterates = [*after.average.handle, current.handle]
    named: dict[str, str] = {"reference": "reference", "previous": previous.handle}
    against = {str(name): named[name] for name in recipe.evaluation.against}
    backend = ready.backend
    ready.evaluator(backend.folder / "evaluation", after.t, iterates, against, backend.trained_on())


def _write_card(run: Path, recipe: Recipe, after: State) -> None:
    current = after.slots["current"]
    assert current is not None
    path = run / f"iterations/{after.t:03d}/evaluation/{RESULTS}"
    results = json.loads(path.read_bytes()) if path.exists() else None
    write_card(run / current.handle, recipe.to_dict(), after.t, results, versions())


def _line(run: Path, iteration: int, count: int) -> str:
    """What people read when an iteration is done."""
    path = run / f"iterations/{iteration:03d}/evaluation/{RESULTS}"
    parts = [f"iteration {iteration} of {count} done"]
    if path.exists():
        found = json.loads(path.read_bytes())
        for name, rate in (found.get("win_rates") or {}).items():
            if rate is None:  # the judge answered nothing
                continue
            bounds = f" [{rate['low']:.3f}, {rate['high']:.3f}]" if rate["prompts"] > 1 else " (one prompt)"
            parts.append(f"win rate against {name} {rate['mean']:.3f}{bounds}")
        exact = found.get("exact")
        if exact:
            parts.append(f"duality gap {exact['gap_last']:.4f}, of the average {exact['gap_average']:.4f}")
    return "; ".join(parts)
