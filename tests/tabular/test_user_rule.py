"""A rule of one's own, in ten lines: it plays on both engines, it is checked, and the package does not know it."""

import inspect
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.testing import assert_allclose

from nashpo.core.rules import RULES, Aim, Form, Rule, Stage, win
from nashpo.core.tables import tables
from nashpo.tabular import families, play
from nashpo.tabular.testing import check_rule


@dataclass(frozen=True)
class Lookahead(Rule):
    eta: float = 0.5
    name = "lookahead"
    aim = Aim.NASH

    def form(self) -> Form:
        ahead = Stage("ahead", {"current": 1.0}, {win("current"): self.eta})
        return Form({"current": "start"}, [ahead, Stage("current", {"current": 1.0}, {win("ahead"): self.eta})])


def test_it_is_ten_lines_long() -> None:
    lines = [line for line in inspect.getsource(Lookahead).splitlines() if line.strip()]
    assert len(lines) <= 10
    assert Lookahead not in RULES.values()


@pytest.mark.parametrize("engine", ["compiled", "reference"])
def test_it_plays(engine: str) -> None:
    """Against the extragradient written out on probabilities; 20 steps of rounding, 1e-13."""
    game = families.interior(3, seed=1)
    policy = np.array([0.6, 0.3, 0.1])
    run = play(Lookahead(eta=0.4), game, 20, start=policy, record="all", keep=("current",), engine=engine)
    assert run.notes["engine"] == engine
    for row in range(20):
        ahead = policy * np.exp(0.4 * game.P @ policy)
        policy = policy * np.exp(0.4 * game.P @ (ahead / ahead.sum()))
        policy = policy / policy.sum()
        assert_allclose(np.exp(run.kept["current"][row]), policy, rtol=0, atol=1e-13)


def test_it_is_compiled_by_default_and_converges_to_the_equilibrium() -> None:
    """The last iterate of the extragradient comes in, where mirror descent spirals out: gap below 1e-3 in 2,000."""
    run = play(Lookahead(), families.cyclic(3), 2000, start=[0.6, 0.3, 0.1])
    assert run.notes["engine"] == "compiled"
    assert run.gap_last[-1] < 1e-3


def test_it_is_checked() -> None:
    results = check_rule(Lookahead())
    passed = {result.check for result in results if result.passed}
    assert passed == {
        "form", "simplex", "relabelling", "shift", "fixed point", "direction", "losses", "libraries", "engine"
    }  # fmt: skip


def test_it_has_tables_for_the_engine() -> None:
    table = tables(Lookahead(0.5).form(), 3)
    assert table.policies == ("current", "ahead", "average")
    assert table.writes == (1, 0)
    assert table.weights == (((0.5, 0.0), (0.0, 0.5)),)


def test_a_slip_in_it_is_found() -> None:
    """A pull towards the behavior policy moves the fixed point away from the equilibrium that the rule aims for."""

    @dataclass(frozen=True)
    class Pulled(Lookahead):
        def form(self) -> Form:
            step = Stage("current", {"current": 0.9, "behavior": 0.1}, {win("current"): self.eta})
            return Form({"current": "start", "behavior": "behavior"}, [step])

    with pytest.raises(AssertionError, match=r"^check 'fixed point' fails for .*Pulled\(eta=0.5\).* it moved by"):
        check_rule(Pulled())
