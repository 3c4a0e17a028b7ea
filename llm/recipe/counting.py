"""What a rule asks for, iteration by iteration, found by playing its form with a backend that only writes down.

A policy is called ``start``, ``reference`` or ``behavior``, ``WRITES@t`` after the stage that iteration t trained, or
``mixture`` of such names. Counts are numbers of responses, of comparisons and of updates.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nashpo.core.rules import Rule
from nashpo.core.rules.form import Form, Payoff
from nashpo.core.selfplay import State, Term, self_play
from nashpo.llm.recipe.requirements import BEHAVIOR, JUDGED


@dataclass(frozen=True)
class Ask:
    """One question of the loop: a payoff about policies (several of an average), on the responses of another."""

    kind: str
    about: tuple[str, ...]
    on: str


@dataclass(frozen=True)
class Fit:
    """One stage that is trained: the policies that it is compared with, whose responses it is on, what it is told."""

    writes: str
    base: tuple[str, ...]
    lasting: bool
    on: str
    answers: tuple[str, ...]


@dataclass
class Work:
    """What one iteration of a rule does.

    Attributes
    ----------
    asks : list of Ask
        Questions that were not answered before.
    fits : list of Fit
        Stages that are trained.
    """

    asks: list[Ask] = field(default_factory=list)
    fits: list[Fit] = field(default_factory=list)

    def samples(self) -> set[str]:
        """The policies that are sampled from; those behind data are not."""
        found = {name for ask in self.asks for name in (ask.on, *(ask.about if ask.kind in JUDGED else ()))}
        return found - {BEHAVIOR}

    def comparisons(self, K: int) -> int:
        """Pairs of responses per prompt that a judge compares, each counted once whatever its order."""
        pairs = {
            frozenset((name, ask.on))
            for ask in self.asks
            if ask.kind in JUDGED and ask.on != BEHAVIOR
            for name in ask.about
        }
        return sum(K * (K - 1) // 2 if len(pair) == 1 else K * K for pair in pairs)


class _Counting:
    """A backend of `nashpo.core.selfplay` whose policies are names."""

    def __init__(self, form: Form) -> None:
        self.work: list[Work] = []
        self._slots = {name for name, _ in form.slots}
        self._stages: Iterator[str] = iter(())
        self._writes = [stage.writes for stage in form.stages]

    def check(self, form: Form) -> None:
        """Every form can be counted."""

    def start(self, origin: str) -> Any:
        return origin

    def mix(self, key: str, average: Any, policy: Any, count: int) -> Any:
        """Asked first in each iteration."""
        self.work.append(Work())
        self._stages = iter(self._writes)
        return (*(average or ()), policy)

    def ask(self, key: str, payoff: Payoff, policy: Any, on: Any) -> Any:
        about = policy if isinstance(policy, tuple) else (policy,)
        self.work[-1].asks.append(Ask(payoff.kind, about, on))
        return key

    def project(self, key: str, base: list[tuple[float, Any]], terms: list[Term], on: Any) -> Any:
        writes = next(self._stages)
        names = [name for _, name in base]
        if not terms:
            return names[0] if len(names) == 1 else f"mixture({', '.join(names)})"
        answers = tuple(term.answer for term in terms)
        self.work[-1].fits.append(Fit(writes, tuple(names), writes in self._slots, on, answers))
        return f"{writes}@{len(self.work)}"

    def forget(self, state: State) -> None:
        """Nothing is kept."""


def work(rule: Rule, iterations: int) -> list[Work]:
    """What each iteration does.

    Parameters
    ----------
    rule : Rule
    iterations : int

    Raises
    ------
    ValueError
        If the rule's horizon is shorter.
    """
    backend = _Counting(rule.form())
    self_play(rule.form(), backend, iterations)
    return backend.work


def updates(rows: int, training: Mapping[str, Any]) -> int:
    """Optimizer steps of one stage, as transformers' Trainer counts them, on any number of processes.

    Parameters
    ----------
    rows : int
        Prompts, with their responses one row each.
    training : mapping
        Of the recipe; missing keys are transformers' defaults.
    """
    if (limit := training.get("max_steps", -1)) > 0:
        return int(limit)
    micro = -(-rows // training.get("per_device_train_batch_size", 8))
    steps = max(1, -(-micro // training.get("gradient_accumulation_steps", 1)))
    return int(-(-steps * float(training.get("num_train_epochs", 3.0)) // 1))
