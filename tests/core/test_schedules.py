"""Coefficients: constants and functions of t, how they are made from a step size, and what is refused."""

import math

import pytest

from nashpo.core.schedules import Affine, Power, Ramp, Table, check_coefficient, ramped, scaled, value


def test_values_by_hand() -> None:
    """Power 4/(t + 2): 2, 4/3, 1. Table: the last entry stays. Ramp (t + 1)/(t + 1): 1. Affine 1 − ½ · 4/(t + 2)."""
    power = Power(scale=4.0, exponent=1.0, shift=2.0)
    assert [value(power, t) for t in range(3)] == [2.0, 4 / 3, 1.0]
    assert value(Power(scale=3.0, exponent=0.5, shift=1.0), 8) == 1.0
    assert [value(Table((0.5, 0.25)), t) for t in range(4)] == [0.5, 0.25, 0.25, 0.25]
    assert [value(Ramp(Power(1.0)), t) for t in range(3)] == [1.0, 1.0, 1.0]
    assert [value(Affine(power, -0.5, 1.0), t) for t in (0, 2)] == [0.0, 0.5]
    assert value(0.3, 10**6) == 0.3
    assert value(lambda t: t / 4, 2) == 0.5


def test_a_constant_stays_a_number() -> None:
    """scaled(2, 3, 1) = 1 + 3 · 2 = 7 needs no function; ramped always does, since it depends on t."""
    assert scaled(2.0, 3.0, 1.0) == 7.0
    assert scaled(Table((2.0,)), 3.0, 1.0) == Affine(Table((2.0,)), 3.0, 1.0)
    assert [value(ramped(0.5), t) for t in range(3)] == [0.5, 1.0, 1.5]


def test_schedules_are_values() -> None:
    assert Power(1.0, 0.5, 2.0) == Power(1.0, 0.5, 2.0) != Power(1.0, 0.5, 3.0)
    assert len({Table((1.0,)), Table((1.0,)), Ramp(0.5), Ramp(0.5), Affine(0.1, 2.0), Affine(0.1, 2.0)}) == 3
    assert repr(Power(2.0)) == "Power(scale=2.0, exponent=1.0, shift=1.0)"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=rf"is {bad} at t = 3; it must be a finite number"):
        value(lambda t: bad if t == 3 else 1.0, 3)


REFUSED = [
    (0.0, {"above": 0}, r"^x = 0 must be > 0$"),
    (-1.0, {"at_least": 0, "mend": "use 1"}, r"^x = -1 must be >= 0: use 1$"),
    (1.5, {"above": 0, "at_most": 1}, r"^x = 1.5 must be > 0 and <= 1$"),
    (Power(2.0, 1.0, 1.0), {"at_most": 1}, r"^x = 2 at t = 0 must be <= 1$"),
    (lambda t: 99.5 - t, {"above": 0}, r"^x = -899.5 at t = 999 must be > 0$"),
]


@pytest.mark.parametrize(("coef", "limits", "message"), REFUSED)
def test_a_value_outside_its_range_is_refused(coef: object, limits: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_coefficient("x", coef, **limits)  # type: ignore[arg-type]


def test_a_value_inside_its_range_passes() -> None:
    check_coefficient("x", 1.0, above=0, at_most=1)
    check_coefficient("x", Power(2.0, 1.0, 2.0), above=0, at_most=1)
