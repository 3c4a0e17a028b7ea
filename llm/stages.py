"""Which stage of a rule a trainer fits, against which policies, and with which loss.

A stage's base names slots of the rule's form. Here each of them is traced to a policy that a trainer has: ``start``,
what training begins as; ``reference``; or one that was given by its slot's name.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from nashpo.core.rules import SPPO, Rule
from nashpo.core.rules.form import CURRENT, Form, Stage
from nashpo.llm.objectives import All, BestWorst, Iid, Labelled, Logistic, Objective, Pairs, Pointwise, SPACPractical

START, REFERENCE = "start", "reference"
PAIRS: Mapping[str, Pairs] = {"all": All(), "iid": Iid(), "best_worst": BestWorst()}
_BY_PAYOFF: Mapping[str, Any] = {"win": Labelled, "reward": Logistic, "critic": SPACPractical}
"""The loss of a rule's paper by the kind of its payoff; SPPO alone has a loss on single responses."""


@dataclass(frozen=True)
class Job:
    """One stage at one iteration, ready to be fitted.

    Attributes
    ----------
    form : Form
    stage : Stage
    base : tuple of (a, policy)
        With Σ a = 1; policies are ``start``, ``reference`` or names that were given.
    kind : str
        Of the payoff: ``win``, ``reward``, ``critic`` or a kind of the rule's own.
    step : float
        The payoff's weight b > 0.
    """

    form: Form
    stage: Stage
    base: tuple[tuple[float, str], ...]
    kind: str
    step: float


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
        If the stage is not named clearly, has other than one payoff, or needs a policy that was not given.
    """
    form = rule.form()
    trained = [s for s in form.stages if s.payoffs_at(iteration)]
    names = ", ".join(s.writes for s in trained)
    fitting = [s for s in trained if stage is None or s.writes == stage]
    if len(fitting) != 1:
        raise ValueError(f"{type(rule).__name__} trains the stages {names}: set stage to one of them (it is {stage!r})")
    payoffs = fitting[0].payoffs_at(iteration)
    if len(payoffs) != 1 or payoffs[0][1] <= 0:
        shown = ", ".join(f"{b:g} {p.kind}({p.policy})" for p, b in payoffs)
        raise ValueError(
            f"stage '{fitting[0].writes}' of {type(rule).__name__} has the payoffs {shown}: the data's columns hold one"
            " payoff of positive weight; fit such a stage with nashpo.llm.fit"
        )
    place = form.stages.index(fitting[0])
    base: dict[str, float] = {}
    for name, a in _slots(form, place, iteration):
        policy = _policy(form, place, name, iteration, given, type(rule).__name__)
        base[policy] = base.get(policy, 0.0) + a
    return Job(form, fitting[0], tuple((a, name) for name, a in base.items()), payoffs[0][0].kind, payoffs[0][1])


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


def objective(rule: Rule, found: Job, pairs: str | None) -> Objective:
    """The loss of the rule's paper, on the pairs that are asked for.

    Raises
    ------
    ValueError
        If the payoff's kind has no loss here, or the stage is none that the loss is right for.
    """
    if isinstance(rule, SPPO):
        result: Objective = Pointwise(pairs=PAIRS[pairs or "best_worst"])
    elif found.kind in _BY_PAYOFF:
        result = _BY_PAYOFF[found.kind](pairs=PAIRS[pairs or "all"])
    else:
        raise ValueError(f"a payoff of kind '{found.kind}' has no loss of its own: pass an objective")
    result.check(found.form, found.stage)
    return result
