"""The loop hosts a backend whose projections are long: killed at every point, resumed, it ends bit for bit the same.

`FittedTables` is a small stand-in for a training backend: its policies are files of softmax logits, its projection is
many chunks of gradient descent on `pairwise_square` over sampled pairs, with a checkpoint after each chunk.
"""

import hashlib
import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from nashpo.core.losses import pairwise_square
from nashpo.core.rules import COMAL, EGPO, IPO, ONPO, SPPO, Form, NashMD, Payoff, Stage, critic
from nashpo.core.schedules import Table
from nashpo.core.selfplay import StageTrace, State, Term, self_play
from nashpo.core.store import FileStore
from nashpo.tabular import Game
from nashpo.tabular.exact import ExactBackend

P = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]])
START = np.array([0.5, 0.3, 0.2])
REFERENCE = np.array([0.2, 0.3, 0.5])


def exact_backend() -> ExactBackend:
    origins = {"start": np.log(START), "reference": np.log(REFERENCE), "behavior": np.log(REFERENCE)}
    return ExactBackend(Game(P), origins)


class Killed(BaseException):
    """A crash: no handler of ordinary errors catches it."""


class Clock:
    """Names every point that a run passes, and kills it at one of them."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.kill_at = kill_at
        self.points: list[str] = []

    def tick(self, where: str) -> None:
        self.points.append(where)
        if len(self.points) - 1 == self.kill_at:
            raise Killed(where)


CHUNKS, STEPS_PER_CHUNK, PAIRS = 2, 2, 8


class FittedTables:
    """Policies are softmax tables in files; handles are file names, the average's is the list of its iterates.

    ``finished`` counts what was completed, by kind and file, over all lives of the run: a repeated operation shows.
    """

    def __init__(self, folder: Path, clock: Clock, finished: Counter[str], chunks: int = CHUNKS) -> None:
        self.folder, self.clock, self.finished, self.chunks = folder, clock, finished, chunks

    def _write(self, name: str, array: np.ndarray) -> None:
        data = io.BytesIO()
        np.save(data, array)
        aside = self.folder / f"{name}.part"
        aside.write_bytes(data.getvalue())
        self.clock.tick(f"{name.partition('-')[0]}: file written aside")
        os.replace(aside, self.folder / name)

    def _read(self, name: str) -> np.ndarray:
        return np.load(self.folder / name, allow_pickle=False)

    def _has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def probabilities(self, policy: str | list[str]) -> np.ndarray:
        """π of a table, or the mean over a list of them."""
        if isinstance(policy, list):
            return np.mean([self.probabilities(name) for name in policy], axis=0)
        weights = np.exp(self._read(policy))
        return weights / weights.sum()

    def check(self, form: Form) -> None:
        kinds = {payoff.kind for payoff in form.payoffs}
        if kinds - {"win"}:
            raise ValueError(f"softmax tables have no payoff of kind {sorted(kinds - {'win'})}")

    def start(self, origin: str) -> str:
        name = f"origin-{origin}"
        if not self._has(name):
            self._write(name, np.log({"start": START, "reference": REFERENCE}[origin]))
        return name

    def ask(self, key: str, payoff: Payoff, policy: str | list[str], on: str) -> str:
        name = f"answer-{key}"
        if self._has(name):
            return name
        self.clock.tick("ask: begun")
        win_rates = P @ self.probabilities(policy)
        self.clock.tick("ask: judged")
        self._write(name, win_rates)
        self.finished[name] += 1
        self.clock.tick("ask: kept")
        return name

    def project(self, key: str, base: list[tuple[float, str]], terms: list[Term], on: str | None) -> str:
        name, progress = f"policy-{key}", f"progress-{key}"
        if self._has(name):
            return name
        log_base = sum(a * np.log(self.probabilities(policy)) for a, policy in base)
        if not terms:
            self.clock.tick("project: an expression")
            self._write(name, log_base)
            self.finished[name] += 1
            return name
        assert on is not None
        gains = sum(term.weight * self._read(term.answer) for term in terms)
        responses = self.probabilities(on)
        # The chunks done so far come first in the file, then the logits.
        done, *logits = self._read(progress) if self._has(progress) else np.array([0.0, *log_base])
        for chunk in range(int(done), self.chunks):
            self.clock.tick(f"project: chunk {chunk}")
            logits = self._descend(f"{key}/{chunk}", np.array(logits), log_base, gains, responses)
            self._write(progress, np.array([chunk + 1.0, *logits]))
            self.clock.tick(f"project: checkpoint {chunk}")
        self._write(name, np.array(logits))
        self.finished[name] += 1
        self.clock.tick("project: kept")
        (self.folder / progress).unlink()
        return name

    def _descend(
        self, seed: str, logits: np.ndarray, log_base: np.ndarray, gains: np.ndarray, responses: np.ndarray
    ) -> np.ndarray:
        """Some steps of gradient descent on pairs that are drawn anew in each chunk, from a seed that is the key."""
        rng = np.random.default_rng(int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=8).digest(), "big"))
        first, second = rng.choice(len(P), size=(2, PAIRS), p=responses)
        theta = torch.tensor(logits, requires_grad=True)
        base, target = torch.tensor(log_base), torch.tensor(gains[first] - gains[second])
        for _ in range(STEPS_PER_CHUNK):
            ratio = torch.log_softmax(theta, 0) - base
            loss = pairwise_square(ratio[first], ratio[second], target).mean()
            (slope,) = torch.autograd.grad(loss, theta)
            theta = (theta - 0.5 * slope).detach().requires_grad_()
        return theta.detach().numpy()

    def mix(self, key: str, average: list[str] | None, policy: str, count: int) -> list[str]:
        self.clock.tick("mix")
        assert len(average or []) == count
        return [*(average or []), policy]

    def forget(self, state: State) -> None:
        alive = {version.handle for version in state.slots.values() if version is not None}
        alive |= {*state.average.handle, *state.answers.values()} if state.average is not None else set()
        for path in sorted(self.folder.iterdir()):
            if path.name not in alive and path.name != "state.json":
                self.clock.tick("forget")
                path.unlink()


class KillingStore(FileStore):
    """The file store, with points before and after each commit."""

    def __init__(self, path: Path, clock: Clock) -> None:
        super().__init__(path)
        self.clock = clock

    def commit(self, state: State) -> None:
        self.clock.tick("commit: before")
        super().commit(state)
        self.clock.tick("commit: after")


class Life:
    """A run in one folder, which may end early and go on in a new process: nothing is kept but the folder."""

    def __init__(self, folder: Path, form: Form, steps: int) -> None:
        self.folder, self.form, self.steps = folder, form, steps
        self.finished: Counter[str] = Counter()
        self.observed: Counter[int] = Counter()
        folder.mkdir()

    def live(self, clock: Clock) -> State:
        def observe(before: State, after: State, trace: tuple[StageTrace, ...]) -> None:
            clock.tick("observe: before")
            self.observed[before.t] += 1
            clock.tick("observe: after")

        backend = FittedTables(self.folder, clock, self.finished)
        store = KillingStore(self.folder / "state.json", clock)
        return self_play(self.form, backend, self.steps, store=store, observe=observe)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}


KILLED_RULES = [
    SPPO(0.5),
    ONPO(0.5),
    ONPO(0.5, "one_step"),
    ONPO(0.5, "leader"),
    EGPO(0.4, 0.5),
    NashMD(0.4, 0.5),
    COMAL(0.4, 0.5, 2),
]


@pytest.mark.parametrize("rule", KILLED_RULES, ids=repr)
def test_a_run_that_is_killed_anywhere_ends_bit_for_bit_the_same(
    rule: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every point k: killed at k, resumed with nothing but the folder. Same state, same bytes, nothing repeated."""
    monkeypatch.setattr("nashpo.core.store.os.fsync", lambda descriptor: None)  # a killed process needs no fsync
    steps = 3
    undisturbed = Life(tmp_path / "undisturbed", rule.form(), steps)
    clock = Clock()
    expected = undisturbed.live(clock)
    names, needed = undisturbed.files(), Counter(undisturbed.finished)
    assert set(needed.values()) == {1}
    assert undisturbed.observed == Counter(range(steps))
    stages_with_payoffs = sum(bool(stage.payoffs) for stage in rule.form().stages)
    assert clock.points.count("project: chunk 1") == steps * stages_with_payoffs
    assert {"mix", "ask: begun", "ask: judged", "ask: kept", "project: checkpoint 0", "project: kept"} <= {
        *clock.points
    }
    assert {"observe: before", "observe: after", "commit: before", "commit: after", "forget"} <= {*clock.points}

    for k, where in enumerate(clock.points):
        life = Life(tmp_path / str(k), rule.form(), steps)
        with pytest.raises(Killed):
            life.live(Clock(kill_at=k))
        state = life.live(Clock())
        assert state == expected, where
        left = life.files()
        # A crash after the last commit may leave what was about to be forgotten, or a file that was being written.
        assert {name: left[name] for name in names} == names, where
        assert life.finished == needed, f"killed at '{where}', an operation was repeated or left out"
        assert set(life.observed) == set(range(steps)), where
        assert sum(life.observed.values()) <= steps + 1, where


def test_a_run_that_is_killed_again_and_again_gets_there(tmp_path: Path) -> None:
    """Killed after every few points, it still ends in the same place: each life makes progress."""
    form = EGPO(0.4, 0.5).form()
    expected = Life(tmp_path / "undisturbed", form, 3).live(Clock())
    life = Life(tmp_path / "killed", form, 3)
    kills = 0
    state = None
    while state is None:
        try:
            state = life.live(Clock(kill_at=4))
        except Killed:
            kills += 1
            assert kills < 200
    assert kills > 10
    assert state == expected
    assert set(life.finished.values()) == {1}


def test_the_fitted_backend_follows_the_exact_one(tmp_path: Path) -> None:
    """With 200 chunks of eight fresh pairs the fit is exact to 1e-6: the loss has its zero at the exact step."""
    form = ONPO(0.5).form()
    backend = FittedTables(tmp_path, Clock(), Counter(), chunks=200)
    fitted = self_play(form, backend, 2)
    exact = self_play(form, exact_backend(), 2)
    for name, version in exact.slots.items():
        policy = backend.probabilities(fitted.slots[name].handle)
        assert_allclose(policy, np.exp(version.handle), rtol=0, atol=1e-6)
    assert_allclose(backend.probabilities(fitted.average.handle), exact.average.handle.policy, rtol=0, atol=1e-6)


def test_a_resumed_run_refuses_another_rule(tmp_path: Path) -> None:
    life = Life(tmp_path / "run", SPPO(0.5).form(), 2)
    life.live(Clock())
    for other in (SPPO(0.6), ONPO(0.5), IPO(2.0)):
        life.form, life.steps = other.form(), min(4, other.form().horizon or 4)
        with pytest.raises(ValueError, match=r"stored run of 2 iterations was made by another rule") as error:
            life.live(Clock())
        assert "\n" not in str(error.value)


def test_a_schedule_may_change_only_where_it_was_not_used(tmp_path: Path) -> None:
    life = Life(tmp_path / "run", SPPO(Table((0.5, 0.25, 0.1))).form(), 2)
    life.live(Clock())
    life.form, life.steps = SPPO(Table((0.5, 0.25, 0.7))).form(), 3
    life.live(Clock())
    life.form, life.steps = SPPO(Table((0.5, 0.2, 0.7))).form(), 4
    with pytest.raises(ValueError, match="another rule or other coefficients"):
        life.live(Clock())


@pytest.mark.parametrize("rule", KILLED_RULES, ids=repr)
def test_a_run_may_be_given_more_steps(rule: Any, tmp_path: Path) -> None:
    """2 + 3 steps are 5 steps; asking again for 5 does nothing."""
    whole = Life(tmp_path / "whole", rule.form(), 5)
    expected = whole.live(Clock())
    parts = Life(tmp_path / "parts", rule.form(), 2)
    assert parts.live(Clock()).t == 2
    parts.steps = 5
    assert parts.live(Clock()) == expected
    assert parts.files() == whole.files()
    clock = Clock()
    assert parts.live(clock) == expected
    assert clock.points == []


def test_handles_and_state_are_json(tmp_path: Path) -> None:
    life = Life(tmp_path / "run", ONPO(0.5, "leader").form(), 2)
    state = life.live(Clock())
    assert json.loads((tmp_path / "run" / "state.json").read_text())["t"] == 2
    assert FileStore(tmp_path / "run" / "state.json").load() == state


def test_what_the_state_does_not_hold_is_forgotten(tmp_path: Path) -> None:
    """After 4 steps SPPO holds π_5, the average's π_1 … π_4 and no answer: five tables and the state's file."""
    life = Life(tmp_path / "run", SPPO(0.5).form(), 4)
    state = life.live(Clock())
    assert state.answers == {}
    assert set(life.files()) == {state.slots["current"].handle, *state.average.handle, "state.json"}
    assert len(life.files()) == 6


def test_a_backend_refuses_a_form_before_any_work(tmp_path: Path) -> None:
    form = Form({"current": "start"}, [Stage("current", {"current": 1.0}, {critic("current", lam=1.0): 0.5})])
    life = Life(tmp_path / "run", form, 2)
    with pytest.raises(ValueError, match="no payoff of kind"):
        life.live(Clock())
    assert life.files() == {}
    with pytest.raises(ValueError, match="a game has no payoff of kind 'critic'"):
        self_play(form, exact_backend(), 2)
