"""The one self-play loop, shared by every backend.

A backend supplies policies as opaque *handles* (arrays in `nashpo.tabular`, file names in a training backend) and four
operations on them. Each operation is idempotent in its ``key``, and a key is a function of the rule and the state
alone: a backend whose projection takes hours finds the work of a crashed run by the key and returns at once. So there
is no program counter and no random stream to save; seeds are derived from the run's seed and the key.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from nashpo.core.rules.form import AVERAGE, CURRENT, Form, Payoff, Stage, When
from nashpo.core.tables import fingerprint

Handle = Any
"""Whatever a backend calls a policy or an answer; JSON-able where states are to be committed to a file."""


@dataclass(frozen=True)
class Version:
    """A policy at one moment: the key it was made under, and the backend's handle of it."""

    key: str
    handle: Handle


@dataclass(frozen=True)
class Term:
    """One payoff of a stage with its weight at t and the backend's answer."""

    weight: float
    payoff: Payoff
    answer: Handle


Question = tuple[Payoff, str, str]
"""What an answer is remembered by: the payoff, the version it is about, the version whose responses it is on."""


@dataclass(frozen=True)
class State:
    """Everything that the next iteration depends on.

    Attributes
    ----------
    t : int
        Number of finished iterations.
    slots : mapping name -> Version or None
        None is a slot that is absent so far.
    average : Version or None
        Mean of the ``current`` policies that the finished iterations began with: π_1 … π_t.
    answers : mapping Question -> Handle
        Answers about policies that are still in a slot.
    fingerprint : str
        Of the form's coefficients at the finished iterations; a changed rule is refused.
    """

    t: int
    slots: Mapping[str, Version | None]
    average: Version | None = None
    answers: Mapping[Question, Handle] = field(default_factory=dict)
    fingerprint: str = ""


@dataclass(frozen=True)
class StageTrace:
    """What one stage did: enough to recompute its residual log π_new − Σ a log π − Σ b g."""

    stage: int
    writes: str
    base: tuple[tuple[float, Version], ...]
    terms: tuple[Term, ...]
    on: Version | None
    result: Version


class Backend(Protocol):
    """The operations that a rule needs. All but `check` and `forget` are idempotent in ``key``."""

    def check(self, form: Form) -> None:
        """Refuse, before any work, a form that this backend cannot run (ValueError)."""
        ...

    def start(self, origin: str) -> Handle:
        """The policy that slots of this origin (start, reference, behavior) begin as."""
        ...

    def ask(self, key: str, payoff: Payoff, policy: Handle, on: Handle) -> Handle:
        """Feedback: the payoff, which is about ``policy``, on the responses of ``on``."""
        ...

    def project(self, key: str, base: list[tuple[float, Handle]], terms: list[Term], on: Handle | None) -> Handle:
        """The policy of one stage: log π = Σ a log base + Σ weight · payoff − log Z, exactly or fitted."""
        ...

    def mix(self, key: str, average: Handle | None, policy: Handle, count: int) -> Handle:
        """The average (count · average + policy) / (count + 1), of probabilities and never of logits."""
        ...

    def forget(self, state: State) -> None:
        """Called after a commit: whatever the state does not hold may be deleted."""
        ...


class Store(Protocol):
    """Where states survive a crash; see `nashpo.core.store.FileStore`."""

    def load(self) -> State | None:
        """The last committed state, or None."""
        ...

    def commit(self, state: State) -> None:
        """Make the state durable, entirely or not at all."""
        ...


def _key(*parts: Any) -> str:
    text = json.dumps([p.hex() if isinstance(p, float) else p for p in parts], default=repr)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def begin(form: Form, backend: Backend) -> State:
    """The state before the first iteration: every slot at its origin, no average."""
    handles = {
        origin: backend.start(origin) for origin in dict.fromkeys(o for _, o in form.slots) if origin is not None
    }
    slots = {name: Version(origin, handles[origin]) if origin is not None else None for name, origin in form.slots}
    return State(0, slots, fingerprint=fingerprint(form, 0))


def iterate(form: Form, backend: Backend, state: State) -> tuple[State, tuple[StageTrace, ...]]:
    """One iteration of the rule: fold the average, run the stages in sequence, then all copies together.

    An answer is remembered by the version of the policy it is about: two stages that ask about the same, unwritten
    policy share it (ONPO), a stage that asks about a new policy gets fresh feedback (EGPO).

    Returns
    -------
    State, tuple of StageTrace
        The state after the iteration (its fingerprint is set by `self_play`), and what each stage did.
    """
    t = state.t
    found: dict[str, Version | None] = dict(state.slots)
    current = found[CURRENT]
    if current is None:
        raise ValueError(f"'{CURRENT}' is absent at t = {t}: a copy of an absent slot emptied it")
    mix_key = _key("mix", t, state.average.key if state.average else None, current.key)
    folded = state.average.handle if state.average else None
    average = Version(mix_key, backend.mix(mix_key, folded, current.handle, t))

    policies = {**found, AVERAGE: average}
    answers = dict(state.answers)
    trace = []
    for index, stage in enumerate(form.stages):
        trace.append(_run_stage(index, stage, backend, t, policies, answers))
        policies[stage.writes] = trace[-1].result

    slots = {name: policies[name] for name in found}
    due = [copy for copy in form.copies if copy.due(t)]
    slots |= {copy.target: (policies if copy.value is When.NEW else found)[copy.source] for copy in due}
    alive = {version.key for version in slots.values() if version is not None}
    kept = {question: answer for question, answer in answers.items() if {question[1], question[2]} <= alive}
    return State(t + 1, slots, average, kept, state.fingerprint), tuple(trace)


def _run_stage(
    index: int,
    stage: Stage,
    backend: Backend,
    t: int,
    policies: Mapping[str, Version | None],
    answers: dict[Question, Handle],
) -> StageTrace:
    def present(name: str) -> Version:
        version = policies[name]
        if version is None:
            raise ValueError(f"stage '{stage.writes}' reads '{name}', which is absent at t = {t}")
        return version

    on = present(stage.on) if stage.on is not None else None
    terms: list[Term] = []
    asked: list[str] = []
    for payoff, weight in stage.payoffs_at(t):
        about = policies[payoff.policy]
        if about is None or on is None:
            continue  # an absent slot earns 0
        # Without the policy's name: what counts is the version, which two names may share.
        question = (Payoff(payoff.kind, "", payoff.params), about.key, on.key)
        if question not in answers:
            key = _key("ask", t, payoff.kind, payoff.params, about.key, on.key)
            answers[question] = backend.ask(key, payoff, about.handle, on.handle)
        terms.append(Term(weight, payoff, answers[question]))
        asked.append(_key(payoff.kind, payoff.params, about.key, weight))
    base = tuple((a, present(name)) for name, a in stage.base_at(t))
    key = _key("project", t, index, [(a.hex(), version.key) for a, version in base], asked, on.key if on else None)
    handle = backend.project(key, [(a, version.handle) for a, version in base], terms, on.handle if on else None)
    return StageTrace(index, stage.writes, base, tuple(terms), on, Version(key, handle))


def self_play(
    form: Form,
    backend: Backend,
    steps: int,
    *,
    store: Store | None = None,
    observe: Callable[[State, State, tuple[StageTrace, ...]], None] | None = None,
) -> State:
    """Run the rule up to ``steps`` iterations, or continue from the store's last committed state.

    Parameters
    ----------
    form : Form
    backend : Backend
    steps : int
        Number of iterations in all, those of an earlier run included.
    store : Store, optional
        Commits the state once per iteration; a crash replays at most one, whose finished operations return at once.
    observe : callable (before, after, trace), optional
        Called after each iteration and before its commit, hence at least once: rows should be keyed by ``before.t``.

    Raises
    ------
    ValueError
        If the form's horizon is shorter, the backend refuses the form, or the stored run had another rule.
    """
    form.check_horizon(steps)
    backend.check(form)
    state = store.load() if store is not None else None
    if state is None:
        state = begin(form, backend)
    elif state.fingerprint != fingerprint(form, state.t):
        raise ValueError(
            f"the stored run of {state.t} iterations was made by another rule or other coefficients: start a new run,"
            " or restore the rule"
        )
    while state.t < steps:
        after, trace = iterate(form, backend, state)
        if store is not None:
            after = State(after.t, after.slots, after.average, after.answers, fingerprint(form, after.t))
        if observe is not None:
            observe(state, after, trace)
        if store is not None:
            store.commit(after)
            backend.forget(after)
        state = after
    return state
