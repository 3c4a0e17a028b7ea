"""Arguments of the wrong kind: one line that names the argument and the mend, never an AttributeError."""

from collections.abc import Callable
from typing import Any

import pytest

from nashpo.core.rules import COMAL, INPO, ONPO, SPPO, Stage
from nashpo.tabular import Game, bounds, nash, play, tune
from nashpo.tabular.families import cyclic, uniform_random

GAME = uniform_random(3, seed=1)
ONE: Any = Game([[0.5]])


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda: Stage("current", {"current": 1.0}, {"current": 0.1}), TypeError, r"write win\('current'\)"),
        (lambda: play("sppo", GAME), TypeError, "rule = 'sppo' is no rule"),
        (lambda: play(SPPO, GAME), TypeError, "give an instance"),
        (lambda: play(SPPO(0.1), [[0.5]]), TypeError, r"give Game\(P\)"),
        (lambda: nash([[0.5]]), TypeError, r"give Game\(P\)"),
        (lambda: nash(GAME, tau="x"), TypeError, "tau = 'x' must be a number"),
        (lambda: SPPO(eta="0.1"), TypeError, "eta = '0.1' must be a number"),
        (lambda: SPPO(eta=True), TypeError, "eta = True must be a number"),
        (lambda: INPO(eta=0.1, tau=None), TypeError, "tau = None must be a number"),
        (lambda: COMAL(eta=0.1, tau=0.1, inner="3"), ValueError, "inner = '3' must be a whole number"),
        (lambda: bounds(SPPO(0.1), GAME, 0), ValueError, "T = 0 must be at least 1"),
        (lambda: tune(ONPO(0.1), GAME, 0), ValueError, "T = 0 must be at least 1"),
        (lambda: tune(ONPO(0.1), ONE, 10), ValueError, "nothing to tune"),
        (lambda: tune(SPPO(0.1), cyclic(3), 10, start=[0.5, 0.5, 0]), ValueError, "D is infinite"),
        (lambda: nash(GAME, tau=1e-20), ValueError, "too small for double precision"),
    ],
)
def test_it_is_told_in_one_line(call: Callable[[], Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_small_weights_in_reach_are_solved() -> None:
    assert float(nash(GAME, tau=1e-6).residual) < 1e-6
