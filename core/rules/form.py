"""The normal form of an update rule: which policies are mixed, which payoffs are added, what is copied.

Almost every rule of the field is a sequence of KL mirror steps, each an affine map in log space::

    log π_new(y) = Σ_i a_i log π_i(y) + Σ_j b_j g_j(y) − log Z,        Σ_i a_i = 1, a_i >= 0

A `Form` writes such a rule down as data: named policies (slots), stages, copies. There are no arrays in it; a backend
evaluates it exactly (`nashpo.tabular`) or fits it (a language model). Conventions: t = 0, 1, … counts iterations; the
policy that is averaged and returned is the slot ``current``; ``average`` is the mean of π_1 … π_{t+1} (it includes
``current`` as the iteration found it) and is legal as an opponent only. A name that a stage writes and that is no slot
lives for one iteration.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from numbers import Integral
from typing import Any

from nashpo.core.schedules import Coef, value

AVERAGE = "average"
CURRENT = "current"
ORIGINS = ("start", "reference", "behavior", None)
_SUM_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Payoff:
    """What a response earns: a win rate against a policy, a reward, or a critic's value.

    Attributes
    ----------
    kind : str
        ``win``, ``reward`` or ``critic`` (a backend may know more).
    policy : str
        Name of the policy that the payoff is about: the opponent of ``win``, the data's policy of ``reward``.
    params : tuple of (name, Coef)
        Parameters of the payoff, evaluated at t when it is asked.
    """

    kind: str
    policy: str
    params: tuple[tuple[str, Any], ...] = ()

    def at(self, t: int) -> "Payoff":
        """The payoff with its parameters evaluated at iteration t."""
        return Payoff(self.kind, self.policy, tuple((k, value(v, t) if callable(v) else v) for k, v in self.params))


def win(policy: str) -> Payoff:
    """P(y ≻ policy), the win rate of a response against a policy, in [0, 1]."""
    return Payoff("win", policy)


def reward(policy: str) -> Payoff:
    """The game's reward; where it has none, the Bradley–Terry projection of its preferences under the policy."""
    return Payoff("reward", policy)


def critic(policy: str, **params: Any) -> Payoff:
    """The value of a critic that was fitted against the policy (SPAC)."""
    return Payoff("critic", policy, tuple(sorted(params.items())))


@dataclass(frozen=True)
class Stage:
    """One mirror step: log of the written policy = Σ a log base + Σ b payoff − log Z.

    Attributes
    ----------
    writes : str
        The policy that the stage makes.
    base : mapping name -> Coef
        The coefficients a, which are non-negative and add up to 1 at every t.
    payoffs : mapping Payoff -> Coef
        The weights b. A stage without payoffs is an expression, not a training job.
    on : str, optional
        Whose responses a sampling backend regresses on; default the policy of the first payoff.
    """

    writes: str
    base: tuple[tuple[str, Coef], ...]
    payoffs: tuple[tuple[Payoff, Coef], ...] = ()
    on: str | None = None

    def __init__(
        self,
        writes: str,
        base: Mapping[str, Coef] | Iterable[tuple[str, Coef]],
        payoffs: Mapping[Payoff, Coef] | Iterable[tuple[Payoff, Coef]] = (),
        on: str | None = None,
    ) -> None:
        # Tuples and not the caller's mappings: a mapping inside a frozen dataclass can change and cannot be hashed.
        object.__setattr__(self, "writes", writes)
        object.__setattr__(self, "base", tuple(base.items() if isinstance(base, Mapping) else base))
        object.__setattr__(self, "payoffs", tuple(payoffs.items() if isinstance(payoffs, Mapping) else payoffs))
        for payoff, _ in self.payoffs:
            if not isinstance(payoff, Payoff):
                raise TypeError(
                    f"stage '{writes}' has the payoff {payoff!r}: write win({payoff!r}), reward(…) or critic(…)"
                )
        first = self.payoffs[0][0].policy if self.payoffs else None
        object.__setattr__(self, "on", on if on is not None else first)

    def base_at(self, t: int) -> list[tuple[str, float]]:
        """The base with its coefficients at t, those that are 0 left out.

        Raises
        ------
        ValueError
            If a coefficient is negative or they do not add up to 1.
        """
        base = [(name, value(coef, t)) for name, coef in self.base]
        total = sum(a for _, a in base)
        if any(a < 0 for _, a in base) or abs(total - 1) > _SUM_TOLERANCE:
            shown = ", ".join(f"{name}: {a:g}" for name, a in base)
            raise ValueError(
                f"stage '{self.writes}' has base {{{shown}}} at t = {t}: coefficients must be >= 0 and add up to 1"
                f" (they add up to {total:.15g}); is eta * tau above 1?"
            )
        return [(name, a) for name, a in base if a != 0]

    def payoffs_at(self, t: int) -> list[tuple[Payoff, float]]:
        """The payoffs and their weights at t, those of weight 0 left out."""
        weighted = ((payoff.at(t), value(coef, t)) for payoff, coef in self.payoffs)
        return [(payoff, b) for payoff, b in weighted if b != 0]


class When(Enum):
    """Which version of the source a copy takes: as the iteration left it, or as it found it."""

    NEW = "new"
    OLD = "old"


@dataclass(frozen=True)
class Copy:
    """target := source at the end of every ``every``-th iteration; all copies of an iteration act together."""

    source: str
    target: str
    value: When | str = When.NEW
    every: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", When(self.value))
        if self.every < 1 or int(self.every) != self.every:
            raise ValueError(f"copy {self.source} -> {self.target}: every = {self.every} must be a whole number >= 1")

    def due(self, t: int) -> bool:
        """Whether the copy acts at the end of iteration t."""
        return (t + 1) % self.every == 0


@dataclass(frozen=True)
class Form:
    """An update rule as data.

    Attributes
    ----------
    slots : mapping name -> origin
        The policies that live from one iteration to the next and what they start as: ``"start"``, ``"reference"``,
        ``"behavior"``, or None for a slot that is absent until something is copied or written there; the payoff of an
        absent slot is 0, and only such a slot may be absent.
    stages : sequence of Stage
        Names are read in sequence: a stage sees what the stages before it wrote.
    copies : sequence of Copy
    horizon : int, optional
        The largest number of iterations (1 for IPO and DPO as they are printed).

    Raises
    ------
    ValueError
        If a name is read before it exists, a base is ``average``, a copy's name is no slot, or ``current`` is missing.
    """

    slots: tuple[tuple[str, str | None], ...]
    stages: tuple[Stage, ...]
    copies: tuple[Copy, ...] = ()
    horizon: int | None = None

    def __init__(
        self,
        slots: Mapping[str, str | None] | Iterable[tuple[str, str | None]],
        stages: Iterable[Stage],
        copies: Iterable[Copy] = (),
        horizon: int | None = None,
    ) -> None:
        object.__setattr__(self, "slots", tuple(slots.items() if isinstance(slots, Mapping) else slots))
        object.__setattr__(self, "stages", tuple(stages))
        object.__setattr__(self, "copies", tuple(copies))
        object.__setattr__(self, "horizon", horizon)
        self._validate()

    def _validate(self) -> None:
        slots = dict(self.slots)
        if slots.get(CURRENT) is None:
            raise ValueError(f"a form needs a slot '{CURRENT}' with an origin: it is the policy that is played")
        for name, origin in self.slots:
            if name == AVERAGE:
                raise ValueError(f"'{AVERAGE}' is kept by the loop and cannot be a slot")
            if origin not in ORIGINS:
                raise ValueError(
                    f"slot '{name}' has origin {origin!r}; the origins are 'start', 'reference', 'behavior', None"
                )
        if not self.stages:
            raise ValueError("a form needs at least one stage")
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"horizon = {self.horizon} must be at least 1")
        self._validate_stages(slots)
        targets = [c.target for c in self.copies]
        for copy in self.copies:
            for name in (copy.source, copy.target):
                if name not in slots:
                    raise ValueError(f"copy {copy.source} -> {copy.target}: '{name}' is no slot of the form")
        if len(set(targets)) < len(targets):
            raise ValueError("two copies have the same target; copies act together, so the result would be ambiguous")

    def _validate_stages(self, slots: Mapping[str, str | None]) -> None:
        readable = {name for name, origin in slots.items() if origin is not None}
        opponents = set(slots) | {AVERAGE}
        read: set[str] = set()
        for stage in self.stages:
            if stage.writes == AVERAGE:
                raise ValueError(f"'{AVERAGE}' is kept by the loop and cannot be written by a stage")
            for name, _ in stage.base:
                if name == AVERAGE:
                    raise ValueError(
                        f"'{AVERAGE}' is legal as an opponent only: a base needs log-probabilities, which a mixture of"
                        f" policies does not offer (stage '{stage.writes}')"
                    )
                if name not in readable:
                    raise ValueError(f"stage '{stage.writes}' reads '{name}' as a base, which may be absent there")
                read.add(name)
            for payoff, _ in stage.payoffs:
                if payoff.policy not in opponents:
                    raise ValueError(
                        f"stage '{stage.writes}' has a payoff against '{payoff.policy}', which does not exist there"
                    )
                read.add(payoff.policy)
            if stage.on is not None and (stage.on == AVERAGE or stage.on not in readable):
                raise ValueError(
                    f"stage '{stage.writes}' regresses on responses of '{stage.on}', which may be absent there"
                )
            readable.add(stage.writes)
            opponents.add(stage.writes)
        for stage in self.stages:
            if stage.writes not in slots and stage.writes not in read:
                raise ValueError(f"stage writes '{stage.writes}', which is no slot and is never read")

    @property
    def policies(self) -> tuple[str, ...]:
        """Every policy name: the slots in order, then the names that live for one iteration."""
        names = [name for name, _ in self.slots]
        names += [s.writes for s in self.stages if s.writes not in names]
        return tuple(dict.fromkeys(names))

    @property
    def payoffs(self) -> tuple[Payoff, ...]:
        """Every payoff, in the order of its first use."""
        return tuple(dict.fromkeys(p for stage in self.stages for p, _ in stage.payoffs))

    @property
    def uses_reference(self) -> bool:
        """Whether a slot starts as the reference policy."""
        return any(origin == "reference" for _, origin in self.slots)

    def check_horizon(self, steps: int) -> None:
        """Refuse a number of steps below 1 or beyond the horizon.

        Raises
        ------
        ValueError
        """
        if not isinstance(steps, Integral) or steps < 1:
            raise ValueError(f"steps = {steps!r} must be at least 1, and whole")
        if self.horizon is not None and steps > self.horizon:
            raise ValueError(f"steps = {steps}, but this rule has a horizon of {self.horizon}: use its iterative form")
