"""A form as tables of numbers: what a compiled engine executes, and the fingerprint of a run.

Shapes: with M policies, G payoffs and S stages, ``base`` is (rows, S, M) and ``weights`` (rows, S, G); there is one row
when no coefficient depends on t and one per iteration otherwise. Everything is nested tuples of Python numbers.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from nashpo.core.rules.form import AVERAGE, Form, Payoff, When
from nashpo.core.schedules import value


@dataclass(frozen=True)
class Tables:
    """The four operations of an engine (mean, gain, step, copy) in numbers.

    Attributes
    ----------
    policies : tuple of str
        The M names: slots, names of one iteration, and last ``average``.
    origins : tuple of str or None
        Origin of each policy; None where it is absent at the start.
    payoffs : tuple of Payoff
        The G payoffs (parameters that depend on t stay callable).
    payoff_policy : tuple of int
        Which policy each payoff is about.
    writes : tuple of int
        Which policy each of the S stages writes.
    base, weights
        Coefficients a and b, rows × S × M and rows × S × G.
    copies : tuple of (source, target, old, every)
        ``old`` is 1 where the version that the iteration found is taken.
    """

    policies: tuple[str, ...]
    origins: tuple[str | None, ...]
    payoffs: tuple[Payoff, ...]
    payoff_policy: tuple[int, ...]
    writes: tuple[int, ...]
    base: tuple[tuple[tuple[float, ...], ...], ...]
    weights: tuple[tuple[tuple[float, ...], ...], ...]
    copies: tuple[tuple[int, int, int, int], ...]


def _is_constant(form: Form) -> bool:
    coefs = [c for s in form.stages for _, c in (*s.base, *s.payoffs)]
    coefs += [v for payoff in form.payoffs for _, v in payoff.params]
    return not any(callable(c) for c in coefs)


def tables(form: Form, steps: int) -> Tables:
    """The form's coefficients at t = 0 … steps − 1 (one row where they are constant), checked at every t.

    Raises
    ------
    ValueError
        If some base leaves the simplex at some t.
    """
    policies = (*form.policies, AVERAGE)
    index = {name: i for i, name in enumerate(policies)}
    payoffs = form.payoffs
    base_rows, weight_rows = [], []
    for t in range(1 if _is_constant(form) else steps):
        base_row, weight_row = [], []
        for stage in form.stages:
            a = dict.fromkeys(policies, 0.0)
            for name, coefficient in stage.base_at(t):
                a[name] += coefficient
            b = dict.fromkeys(payoffs, 0.0)
            for payoff, coef in stage.payoffs:
                b[payoff] += value(coef, t)
            base_row.append(tuple(a.values()))
            weight_row.append(tuple(b.values()))
        base_rows.append(tuple(base_row))
        weight_rows.append(tuple(weight_row))
    origins = dict(form.slots)
    return Tables(
        policies=policies,
        origins=tuple(origins.get(name) for name in policies),
        payoffs=payoffs,
        payoff_policy=tuple(index[p.policy] for p in payoffs),
        writes=tuple(index[s.writes] for s in form.stages),
        base=tuple(base_rows),
        weights=tuple(weight_rows),
        copies=tuple((index[c.source], index[c.target], int(c.value is When.OLD), c.every) for c in form.copies),
    )


def fingerprint(form: Form, steps: int) -> str:
    """A digest of the rule and of its coefficients at t = 0 … steps − 1.

    Two forms have the same fingerprint when a run of ``steps`` iterations is the same under both; a run may therefore
    be continued with more steps, and is refused after a coefficient of a finished iteration changed.
    """
    rows: list[Any] = []
    for t in range(1 if _is_constant(form) else steps):
        rows.append(
            [
                [s.writes, s.on, s.base_at(t), [(p.kind, p.policy, p.params, b) for p, b in s.payoffs_at(t)]]
                for s in form.stages
            ]
        )
    copies = [(c.source, c.target, When(c.value).value, c.every) for c in form.copies]
    text = json.dumps([form.slots, rows, copies], default=repr)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
