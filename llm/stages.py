"""Which stage of a rule a trainer fits, against which policies, and with which loss.

A stage's base names slots of the rule's form. `job` traces each of them to a policy that a trainer has: ``start``,
what training begins as; ``reference``; or one that was given by its slot's name. A backend of `nashpo.core.selfplay`
knows the policies themselves and makes the same thing by `Job.of`.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nashpo.core.rules import SPPO, Rule
from nashpo.core.rules.form import CURRENT, Form, Payoff, Stage
from nashpo.core.selfplay import Term
from nashpo.llm.objectives import (
    All,
    BestWorst,
    Iid,
    Labelled,
    Logistic,
    Objective,
    Pairs,
    Pairwise,
    Pointwise,
    SPACPractical,
)

START, REFERENCE = "start", "reference"
PAIRS: Mapping[str, Pairs] = {"all": All(), "iid": Iid(), "best_worst": BestWorst()}
_BY_PAYOFF: Mapping[str, Any] = {"win": Labelled, "reward": Logistic, "critic": SPACPractical}
"""The loss of a rule's paper by the kind of its payoff; SPPO alone has a loss on single responses."""
_SUM_TOLERANCE = 1e-9
"""Written-out mixtures are products of coefficients."""


@dataclass(frozen=True)
class Job:
    """One stage at one iteration, ready to be fitted: log π = Σ a log base + Σ b payoff − log Z.

    Attributes
    ----------
    form : Form
    stage : Stage
        One of the form's.
    base : tuple of (a, policy)
        With a > 0 and Σ a = 1. Policies are names: those of `job`, or whatever a backend calls them.
    payoffs : tuple of (b, Payoff)
        At least one. An absent policy's payoff is 0 and left out, so that these may be fewer than the stage's.
    start : str
        The name of the policy that the model begins as; need not be in the base.
    """

    form: Form
    stage: Stage
    base: tuple[tuple[float, str], ...]
    payoffs: tuple[tuple[float, Payoff], ...]
    start: str = START

    @classmethod
    def of(
        cls, form: Form, stage: int, base: Sequence[tuple[float, str]], terms: Sequence[Term], start: str | None = None
    ) -> "Job":
        """What a backend is asked to project, as a job.

        Parameters
        ----------
        form : Form
        stage : int
            The place of the stage in ``form.stages``.
        base : sequence of (a, policy's name)
            Mixtures written out; terms of one policy are added up.
        terms : sequence of Term
            Their answers are not read.
        start : str, optional
            The policy that the model begins as; default the one of the largest a, as in `nashpo.llm.backend`.

        Raises
        ------
        ValueError
            A place outside the form, no payoff or one that the stage does not have, a policy that is no name, or
            coefficients that are not positive or do not add up to 1.
        """
        if not 0 <= stage < len(form.stages):
            raise ValueError(f"stage = {stage} is outside the form's {len(form.stages)} stages, counted from 0")
        found = form.stages[stage]
        if not terms:
            raise ValueError(f"stage '{found.writes}' has no payoffs here: a mixture is written down, not trained")
        known = {(payoff.kind, payoff.policy) for payoff, _ in found.payoffs}
        for term in terms:
            if (term.payoff.kind, term.payoff.policy) not in known:
                shown = ", ".join(f"{kind}({policy})" for kind, policy in sorted(known)) or "none"
                raise ValueError(f"stage '{found.writes}' has no payoff {_shown(term.payoff)}: it has {shown}")
        for a, name in base:
            if not isinstance(name, str):
                raise ValueError(f"base policy {name!r} of stage '{found.writes}' is no name: write mixtures out")
            if not a > 0:
                raise ValueError(f"base policy '{name}' of stage '{found.writes}' has coefficient {a:g}, not > 0")
        merged = _merged(base)
        if not math.isclose(total := sum(a for a, _ in merged), 1, abs_tol=_SUM_TOLERANCE):
            raise ValueError(f"the base coefficients of stage '{found.writes}' add up to {total:.15g}, not to 1")
        first = max(merged, key=lambda term: term[0])[1] if start is None else start
        return cls(form, found, merged, tuple((term.weight, term.payoff) for term in terms), first)

    @property
    def kind(self) -> str | None:
        """Of the only payoff: ``win``, ``reward``, ``critic`` or a kind of the rule's own; None of several."""
        return self.payoffs[0][1].kind if len(self.payoffs) == 1 else None

    @property
    def step(self) -> float | None:
        """The weight b of the only payoff; None of several."""
        return self.payoffs[0][0] if len(self.payoffs) == 1 else None

    @property
    def scale(self) -> float:
        """Σ b, by which log-ratios are divided to be reported as rewards; 1 where it is not positive."""
        total = sum(b for b, _ in self.payoffs)
        return total if total > 0 else 1.0

    @property
    def shown(self) -> str:
        """The payoffs and their weights, for messages."""
        return ", ".join(f"{b:g} {_shown(payoff)}" for b, payoff in self.payoffs)

    def column_step(self) -> float:
        """The weight of the payoff that columns of a data set hold.

        Raises
        ------
        ValueError
            If the stage has several payoffs, or one of negative weight.
        """
        if self.step is None or self.step <= 0:
            raise ValueError(
                f"stage '{self.stage.writes}' has the payoffs {self.shown}: the data's columns hold one payoff of"
                " positive weight; answer each payoff and give PreferenceData.from_stage(StageData.from_answers(…))"
            )
        return self.step


def _shown(payoff: Payoff) -> str:
    return f"{payoff.kind}({payoff.policy})"


def _merged(base: Sequence[tuple[float, str]]) -> tuple[tuple[float, str], ...]:
    """One term per policy."""
    sums: dict[str, float] = {}
    for a, name in base:
        sums[name] = sums.get(name, 0.0) + a
    return tuple((a, name) for name, a in sums.items())


def job(rule: Rule, iteration: int, stage: str | None, given: Collection[str]) -> Job:
    """The stage that a trainer fits.

    Parameters
    ----------
    rule : Rule
    iteration : int
        t >= 0.
    stage : str, optional
        What the stage writes; needed where several are trained.
    given : collection of str
        Slots whose policies were given.

    Raises
    ------
    ValueError
        If the stage is not named clearly, or needs a policy that was not given.
    """
    form = rule.form()
    trained = [s for s in form.stages if s.payoffs_at(iteration)]
    names = ", ".join(s.writes for s in trained)
    fitting = [s for s in trained if stage is None or s.writes == stage]
    if len(fitting) != 1:
        raise ValueError(f"{type(rule).__name__} trains the stages {names}: set stage to one of them (it is {stage!r})")
    place = form.stages.index(fitting[0])
    base = [
        (a, _policy(form, place, name, iteration, given, type(rule).__name__))
        for name, a in _slots(form, place, iteration)
    ]
    payoffs = tuple((b, payoff) for payoff, b in fitting[0].payoffs_at(iteration))
    return Job(form, fitting[0], _merged(base), payoffs)


def _slots(form: Form, place: int, t: int) -> list[tuple[str, float]]:
    """The base with the expressions in it written out; their normalizers cancel within a prompt."""
    result: list[tuple[str, float]] = []
    for name, a in form.stages[place].base_at(t):
        written = [i for i, s in enumerate(form.stages[:place]) if s.writes == name]
        if written and not form.stages[written[-1]].payoffs:
            result += [(inner, a * b) for inner, b in _slots(form, written[-1], t)]
        else:
            result.append((name, a))
    return result


def _policy(form: Form, place: int, name: str, t: int, given: Collection[str], rule: str) -> str:
    if name in given:
        return name
    origin = dict(form.slots).get(name)
    fresh = all(s.writes != name for s in form.stages[:place])
    if fresh and origin == REFERENCE:
        return REFERENCE
    if fresh and origin == START and (name == CURRENT or t == 0):
        return START
    raise ValueError(
        f"{rule} fits stage '{form.stages[place].writes}' against the policy '{name}', which was not given:"
        f" pass policies={{'{name}': model}}"
    )


def objective(rule: Rule | None, found: Job, pairs: str | None) -> Objective:
    """The loss of the rule's paper, on the pairs that are asked for.

    Without a rule it is the one of the payoff's kind. Several payoffs have no labels of their own: their stage is
    fitted by `Pairwise` to the weighted sum.

    Raises
    ------
    ValueError
        If the payoff's kind has no loss here, or the stage is none that the loss is right for.
    """
    several = len(found.stage.payoffs) > 1
    if isinstance(rule, SPPO):
        result: Objective = Pointwise(pairs=PAIRS[pairs or "best_worst"])
    elif several and all(payoff.kind != "critic" for payoff, _ in found.stage.payoffs):
        result = Pairwise(pairs=PAIRS[pairs or "all"])
    elif found.kind is not None and found.kind in _BY_PAYOFF:
        result = _BY_PAYOFF[found.kind](pairs=PAIRS[pairs or "all"])
    else:
        raise ValueError(f"a payoff of kind '{found.payoffs[0][1].kind}' has no loss of its own: pass an objective")
    result.check(found.form, found.stage)
    return result
