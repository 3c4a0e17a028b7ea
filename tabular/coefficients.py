"""The coefficients of a form at many iterations at once, as arrays.

Shapes: with M policies (the last is the average), G payoffs and S stages, base is (rows, S, M) and weights (rows, S, G)
as in `nashpo.core.tables`; one row where no coefficient depends on t, else one per iteration.
"""

from __future__ import annotations

from functools import singledispatch

import numpy as np
from numpy.typing import NDArray

from nashpo.core.rules.form import Form
from nashpo.core.schedules import Affine, Coef, Power, Ramp, Table, value
from nashpo.core.tables import Tables

_SUM_TOLERANCE = 1e-12
Values = NDArray[np.float64]
Iterations = NDArray[np.int64]


@singledispatch
def values(coef: Coef, t: Iterations) -> Values:
    """A coefficient at each of the iterations t; any callable is asked one t at a time."""
    return np.array([value(coef, int(s)) for s in t])


@values.register(int)
@values.register(float)
def _(coef: float, t: Iterations) -> Values:
    return np.full(len(t), float(coef))


@values.register
def _(coef: Power, t: Iterations) -> Values:
    with np.errstate(all="ignore"):  # `coefficients` refuses what is not finite
        return np.asarray(coef.scale / (t + coef.shift) ** coef.exponent, dtype=np.float64)


@values.register
def _(coef: Affine, t: Iterations) -> Values:
    return coef.offset + coef.factor * values(coef.coef, t)


@values.register
def _(coef: Ramp, t: Iterations) -> Values:
    return (t + 1) * values(coef.coef, t)


@values.register
def _(coef: Table, t: Iterations) -> Values:
    return np.array(coef.values, dtype=np.float64)[np.minimum(t, len(coef.values) - 1)]


def is_constant(form: Form) -> bool:
    """Whether no coefficient depends on t."""
    return not any(callable(c) for stage in form.stages for _, c in (*stage.base, *stage.payoffs))


def coefficients(form: Form, table: Tables, begin: int, end: int) -> tuple[Values, Values]:
    """Base and weights at iterations begin … end − 1.

    Parameters
    ----------
    form : Form
    table : Tables
        Of the form; numbers its policies and payoffs.
    begin, end : int

    Raises
    ------
    ValueError
        If a coefficient is not finite, or a base leaves the simplex.
    """
    t = np.arange(begin, begin + 1 if is_constant(form) else end)
    policies = {name: i for i, name in enumerate(table.policies)}
    payoffs = {payoff: i for i, payoff in enumerate(table.payoffs)}
    base = np.zeros((len(t), len(form.stages), len(policies)))
    weights = np.zeros((len(t), len(form.stages), len(payoffs)))
    for s, stage in enumerate(form.stages):
        legal = np.ones(len(t), dtype=np.bool_)
        for name, coef in stage.base:
            a = values(coef, t)
            legal &= np.isfinite(a) & (a >= 0)
            base[:, s, policies[name]] += a
        legal &= np.abs(base[:, s].sum(axis=-1) - 1) <= _SUM_TOLERANCE
        for payoff, coef in stage.payoffs:
            b = values(coef, t)
            legal &= np.isfinite(b)
            weights[:, s, payoffs[payoff]] += b
        for bad in t[~legal]:
            stage.base_at(int(bad))  # these two say what is wrong
            stage.payoffs_at(int(bad))
    return base, weights
