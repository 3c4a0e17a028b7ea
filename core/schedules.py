"""Coefficients of a rule: constants, or functions of the iteration t = 0, 1, … that print, compare and hash.

A coefficient is a float or any callable ``t -> float``. The classes here are callables that can be compared and
printed, which a lambda cannot. Step sizes (eta) multiply payoffs; tau is the KL weight of the regularized game.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

Coef = float | Callable[[int], float]
"""A constant or a function of t."""

_PROBES = (0, 1, 2, 3, 5, 9, 17, 99, 999, 99_999)


def value(coef: Coef, t: int) -> float:
    """The coefficient at iteration t, as a finite float.

    Raises
    ------
    ValueError
        If the value is not a finite number.
    """
    number = float(coef(t) if callable(coef) else coef)
    if not math.isfinite(number):
        raise ValueError(f"coefficient {coef!r} is {number} at t = {t}; it must be a finite number")
    return number


@dataclass(frozen=True)
class Power:
    """scale / (t + shift) ** exponent, for instance 2/(τ(t+2)) of Nash-MD with exponent 1 and shift 2."""

    scale: float
    exponent: float = 1.0
    shift: float = 1.0

    def __call__(self, t: int) -> float:
        return self.scale / (t + self.shift) ** self.exponent


@dataclass(frozen=True)
class Table:
    """A list of values, one per iteration; the last one stays."""

    values: tuple[float, ...]

    def __call__(self, t: int) -> float:
        return self.values[min(t, len(self.values) - 1)]


@dataclass(frozen=True)
class Affine:
    """offset + factor · coef(t): how the stages of a rule are made from its step size."""

    coef: Coef
    factor: float
    offset: float = 0.0

    def __call__(self, t: int) -> float:
        return self.offset + self.factor * value(self.coef, t)


@dataclass(frozen=True)
class Ramp:
    """(t + 1) · coef(t): the weight of an average over t + 1 iterates that stands for their sum."""

    coef: Coef

    def __call__(self, t: int) -> float:
        return (t + 1) * value(self.coef, t)


def scaled(coef: Coef, factor: float, offset: float = 0.0) -> Coef:
    """offset + factor · coef, a float where coef is one."""
    return Affine(coef, factor, offset) if callable(coef) else offset + factor * coef


def ramped(coef: Coef) -> Coef:
    """(t + 1) · coef."""
    return Ramp(coef)


def check_coefficient(
    name: str,
    coef: Coef,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    mend: str = "",
) -> None:
    """Refuse a hyperparameter whose value leaves its range; a schedule is probed at t = 0 … 99,999.

    Raises
    ------
    ValueError
        Names the hyperparameter, its value and the range. (Every coefficient is checked again when it is used.)
    """
    if not callable(coef) and (isinstance(coef, bool | str) or not isinstance(coef, Real)):
        raise TypeError(f"{name} = {coef!r} must be a number or a function of t")
    for t in _PROBES if callable(coef) else (0,):
        number = value(coef, t)
        if number > above and at_least <= number <= at_most:
            continue
        bounds = [f"> {above:g}" if above > -math.inf else "", f">= {at_least:g}" if at_least > -math.inf else ""]
        bounds.append(f"<= {at_most:g}" if at_most < math.inf else "")
        place = f" at t = {t}" if callable(coef) else ""
        needed = " and ".join(b for b in bounds if b)
        raise ValueError(f"{name} = {number:g}{place} must be {needed}" + (f": {mend}" if mend else ""))
