"""The policies that ``nashpo offline`` sets side by side: the rule that was asked for, and the baselines.

Shapes: policies (*batch_shape, n), prompts first; ``N`` and certificates are one number.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nashpo.core.cli import suggestion
from nashpo.core.rules import IPO, RULES, SPAC, Rule
from nashpo.core.schedules import Coef
from nashpo.core.theorems import Iterate, Setting, mwu_tuned_eta
from nashpo.tabular.baselines import BASELINES, Choices, ipo
from nashpo.tabular.data_policies import reference_on
from nashpo.tabular.offline import play_offline
from nashpo.tabular.preferences import PreferenceData
from nashpo.tabular.rule_arguments import READERS, coefficient, given_hyperparameters, hyperparameters, option, required

RULES_ON_DATA: dict[str, type[Rule]] = {SPAC.name: SPAC} | RULES
"""Every rule can be played on data: critics, rewards and win rates are all answered by them."""

AUTO = "auto"
_READERS = READERS | {Coef: partial(coefficient, word=AUTO)}
COVERAGE = 4.0
"""C of ``--lam auto``, √(C·N): twice the coverage 2 of a response that half of all places in pairs show."""
DEFAULT_R = 3.0
DEFAULT_TAU = 0.1

LABELS: dict[str, str] = {
    "mle": "MLE, greedy",
    "mle+kl": "MLE + KL = DPO",
    "ipo": "IPO",
    "chi-po": "χPO",
    "nash": "Nash of the win rates",
    "nash+pessimism": "Nash, pessimistic",
}
"""Baselines that are shown. DPO is MLE + KL in a table of policies, and stands for both."""
WITH_TAU = ("mle+kl", "ipo", "chi-po")


@dataclass(frozen=True)
class Method:
    """A policy and what it is called in tables and in JSON."""

    key: str
    label: str
    policy: np.ndarray


@dataclass(frozen=True)
class Learned:
    """What a rule made of the data.

    Attributes
    ----------
    rule : Rule
    steps : int
    D : float
        max log 1/reference over the responses that it plays, in nats.
    methods : tuple of Method
        The policy that is returned, and the other iterate where there are two.
    critic_gap : float, optional
        The largest relative gap of a critic.
    """

    rule: Rule
    steps: int
    D: float
    methods: tuple[Method, ...]
    critic_gap: float | None

    @property
    def policy(self) -> np.ndarray:
        """What is returned."""
        return self.methods[0].policy


@dataclass(frozen=True)
class Settings:
    """Numbers that the rule and the baselines share.

    Attributes
    ----------
    R : float
        Largest reward.
    tau : float
        KL weight of the baselines, and of the rule where it has one.
    delta : float
    steps : int, optional
    reference : (..., n), optional
        Uniform by default.
    """

    R: float = DEFAULT_R
    tau: float = DEFAULT_TAU
    delta: float = 0.05
    steps: int | None = None
    reference: np.ndarray | None = None


def rule_kind(name: str) -> type[Rule]:
    """The rule of a name (case does not matter, ``_`` stands for ``-``).

    Raises
    ------
    ValueError
        On an unknown name; suggests the nearest.
    """
    key = name.strip().lower().replace("_", "-")
    if key not in RULES_ON_DATA:
        raise ValueError(f"unknown rule {name!r}; {suggestion(key, RULES_ON_DATA, 'the rules are')}")
    return RULES_ON_DATA[key]


def settings_given(options: Any, R: float = DEFAULT_R) -> Settings:
    """The numbers of the command line, read and checked before any file is.

    Parameters
    ----------
    options
        ``R``, ``tau``, ``delta``, ``steps`` of the command.
    R : float
        Where none was given.

    Raises
    ------
    ValueError
        R <= 0, tau <= 0, or delta outside (0, 1).
    """
    found = Settings(
        R if options.R is None else READERS[float]("R", options.R),
        DEFAULT_TAU if options.tau is None else READERS[float]("tau", options.tau),
        options.delta,
        options.steps,
    )
    if not found.R > 0:
        raise ValueError(f"--R {found.R:g} must be > 0: it bounds the reward")
    if not found.tau > 0:
        raise ValueError(f"--tau {found.tau:g} must be > 0: it is the KL weight")
    if not 0 < found.delta < 1:
        raise ValueError(f"--delta {found.delta:g} must lie strictly between 0 and 1: confidence is 1 - delta")
    return found


def rule_texts(options: Any, kind: type[Rule]) -> dict[str, str]:
    """Hyperparameters as text: those that were given, ``auto`` for the step size and the weight of the data.

    Raises
    ------
    ValueError
        One that the rule does not have, or that it needs and nothing chooses. R and tau serve the baselines as well.
    """
    given = given_hyperparameters(options) | {k: v for k in ("lam", "R") if (v := getattr(options, k)) is not None}
    known = hyperparameters(kind)
    foreign = [option(k) for k in given if k not in known and k not in ("R", "tau")]
    if foreign:
        have = ", ".join(map(option, known)) or "none"
        raise ValueError(f"rule '{kind.name}' has no {' and no '.join(foreign)}; its hyperparameters: {have}")
    texts = {k: v for k, v in given.items() if k in known}
    texts |= {k: AUTO for k in ("eta", "lam") if k in known and k not in texts}
    missing = [option(k) for k in required(kind) if k not in texts and k not in ("R", "tau")]
    if missing:
        raise ValueError(f"rule '{kind.name}' needs {', '.join(missing)}")
    return texts


def rule_for(
    kind: type[Rule], texts: Mapping[str, str], settings: Settings, data: PreferenceData, steps: int, D: float
) -> Rule:
    """The rule with every hyperparameter chosen.

    Notes
    -----
    ``--lam auto`` is √(C·N) with C = 4, that is 2√N; ``--eta auto`` is √(8D/T)/R for SPAC and for other rules the step
    that minimizes their bound.

    Raises
    ------
    ValueError
        Text that is no value, a value that the rule refuses, or no bound that chooses a step size.
    """
    known = hyperparameters(kind)
    values: dict[str, Any] = {"R": settings.R, "tau": settings.tau}
    values = {k: v for k, v in values.items() if k in known}
    values |= {k: _READERS[known[k]](k, text) for k, text in texts.items() if text != AUTO and k not in values}
    wrong = [k for k, text in texts.items() if text == AUTO and k not in ("eta", "lam")]
    if wrong:
        raise ValueError(f"{option(wrong[0])} cannot be '{AUTO}': give a value")
    if texts.get("lam") == AUTO:
        values["lam"] = math.sqrt(COVERAGE * float(data.N))
    make: Any = kind
    if texts.get("eta") != AUTO:
        return make(**values)
    if issubclass(kind, SPAC):
        return make(eta=mwu_tuned_eta(D, steps) / settings.R, **values)
    # Any legal step makes the rule whose `tuned` replaces it; 1/(1 + tau) satisfies eta * tau <= 1.
    untuned = make(eta=1 / (1 + settings.tau), **values)
    try:
        return untuned.tuned(Setting(D, steps))
    except ValueError as error:
        raise ValueError(f"--eta {AUTO}: {error}") from None


def diameter(data: PreferenceData, reference: np.ndarray | None) -> float:
    """D, the largest log 1/reference over responses that the reference plays, in nats."""
    log_reference = reference_on(data, reference)
    return float(-np.min(np.where(np.isneginf(log_reference), 0.0, log_reference)))


def learn(
    kind: type[Rule], texts: Mapping[str, str], data: PreferenceData, settings: Settings, default_steps: int
) -> Learned:
    """Play a rule on data.

    A rule of one step gives its last policy, one whose theorems are about averages (SPAC, SPPO, ONPO) the average, any
    other its last. IPO is the minimizer of its loss on the pairs, as the baseline of that name.

    Raises
    ------
    ValueError
        As `rule_for` and `play_offline`.
    """
    D = diameter(data, settings.reference)
    rule = rule_for(kind, texts, settings, data, settings.steps or default_steps, D)
    form = rule.form()
    steps = settings.steps or min(default_steps, form.horizon or default_steps)
    form.check_horizon(steps)
    if isinstance(rule, IPO):
        policy = ipo(data, rule.tau, settings.reference)
        return Learned(rule, 1, D, (Method(rule.name, "IPO", policy),), None)
    run = play_offline(rule, data, steps, reference=settings.reference, R=settings.R)
    gap = None if run.critic_gap is None else float(run.critic_gap)
    name = type(rule).__name__
    if form.horizon == 1:
        return Learned(rule, steps, D, (Method(rule.name, name, run.last),), gap)
    last = Method(f"{rule.name} last", f"{name}, last", run.last)
    average = Method(f"{rule.name} average", f"{name}, average", run.average)
    averages = any(theorem.iterate is Iterate.AVERAGE for theorem in rule.theorems)
    return Learned(rule, steps, D, (average, last) if averages else (last, average), gap)


def baseline_names(text: str | None) -> tuple[str, ...]:
    """``--baselines``: names between commas, ``all`` (the default) or ``none``.

    Raises
    ------
    ValueError
        On an unknown name.
    """
    if text in (None, "all"):
        return tuple(LABELS)
    if text == "none":
        return ()
    assert text is not None  # told above
    names = tuple(dict.fromkeys("mle+kl" if name.strip() == "dpo" else name.strip() for name in text.split(",")))
    for name in names:
        if name not in LABELS:
            raise ValueError(f"--baselines: unknown {name!r}; {suggestion(name, [*LABELS, 'dpo', 'all', 'none'])}")
    return names


def baselines(names: tuple[str, ...], data: PreferenceData, settings: Settings) -> list[Method]:
    """The named baselines with the settings' KL weight."""
    choices = Choices(settings.R, settings.tau, settings.reference, settings.delta)
    told = {name: f", tau = {settings.tau:g}" if name in WITH_TAU else "" for name in names}
    return [Method(name, LABELS[name] + told[name], BASELINES[name](data, choices)) for name in names]
