"""Rules from the command line: every rule, every hyperparameter, and one clear line for what is wrong."""

import argparse
from typing import Any

import pytest

from nashpo.core.rules import COMAL, DPO, EGPO, INPO, IPO, ONPO, SPPO, IterativeDPO, IterativeIPO, NashMD, Rule
from nashpo.core.schedules import Power
from nashpo.tabular.families import comal
from nashpo.tabular.play import tune
from nashpo.tabular.rule_arguments import (
    HELP,
    PLAYABLE,
    READERS,
    add_rule_arguments,
    all_hyperparameters,
    described,
    given_hyperparameters,
    hyperparameters,
    in_words,
    rule_from,
)

GOOD: list[tuple[str, dict[str, str], Rule]] = [
    ("sppo", {"eta": "0.1"}, SPPO(0.1)),
    ("SPPO", {"eta": " 1e-1 "}, SPPO(0.1)),
    ("onpo", {"eta": "1"}, ONPO(1.0)),
    ("onpo", {"eta": "0.1", "variant": "one_step"}, ONPO(0.1, "one_step")),
    ("onpo", {"eta": "0.1", "variant": "one-step"}, ONPO(0.1, "one_step")),
    ("inpo", {"eta": "0.5", "tau": "2"}, INPO(0.5, 2.0)),
    ("nash-md", {"eta": "power:20,1,2", "tau": "0.1"}, NashMD.scheduled(0.1)),
    ("nash_md", {"eta": "power:3", "tau": "0.1"}, NashMD(Power(3.0), 0.1)),
    ("egpo", {"eta": "0.1", "tau": "0.1"}, EGPO(0.1, 0.1)),
    ("comal", {"eta": "0.1", "tau": "0.1", "inner": "20"}, COMAL(0.1, 0.1, 20)),
    ("ipo", {"tau": "0.1"}, IPO(0.1)),
    ("iterative-ipo", {"tau": "0.1"}, IterativeIPO(0.1)),
    ("dpo", {"tau": "0.1"}, DPO(0.1)),
    ("iterative-dpo", {"tau": "0.1"}, IterativeDPO(0.1)),
]


@pytest.mark.parametrize(("name", "given", "rule"), GOOD)
def test_a_rule_from_its_words(name: str, given: dict[str, str], rule: Rule) -> None:
    assert rule_from(name, given) == rule


def test_every_rule_is_in_the_table_above() -> None:
    assert {rule.name for _, _, rule in GOOD} == set(PLAYABLE)


def test_a_rule_that_needs_data_is_sent_to_its_command() -> None:
    with pytest.raises(ValueError, match="spac learns from preference data, not from a game: nashpo offline"):
        rule_from("spac", {"eta": "1"})


BAD: list[tuple[str, dict[str, str], str]] = [
    ("spppo", {"eta": "1"}, "unknown rule 'spppo'; did you mean 'sppo'?"),
    ("nashmd", {"eta": "1"}, "unknown rule 'nashmd'; did you mean 'nash-md'?"),
    ("zzz", {}, "unknown rule 'zzz'; the rules are: sppo, onpo"),
    ("sppo", {}, "rule 'sppo' needs --eta (step size, multiplies win rates)"),
    ("inpo", {}, "rule 'inpo' needs --eta (step size, multiplies win rates), --tau (KL weight"),
    ("comal", {"eta": "1", "tau": "1"}, "rule 'comal' needs --inner"),
    ("sppo", {"eta": "1", "tau": "1"}, "rule 'sppo' has no --tau; its hyperparameters: --eta"),
    ("ipo", {"eta": "1", "inner": "2", "tau": "1"}, "rule 'ipo' has no --eta and no --inner; its hyperparameters:"),
    ("sppo", {"eta": "0"}, "eta = 0 must be > 0"),
    ("sppo", {"eta": "-0.1"}, "eta = -0.1 must be > 0"),
    ("sppo", {"eta": "nan"}, "--eta is nan; it must be a finite number"),
    ("sppo", {"eta": "1e999"}, "--eta is 1e999; it must be a finite number"),
    ("sppo", {"eta": "abc"}, "--eta is 'abc'; give a number, 'tuned', or power:SCALE,EXPONENT,SHIFT"),
    ("sppo", {"eta": "2/(t+2)"}, "--eta is '2/(t+2)'; give a number"),
    ("sppo", {"eta": "__import__('os')"}, "give a number"),
    ("sppo", {"eta": "tuned"}, "--eta cannot be 'tuned' here"),
    ("sppo", {"eta": "power:1,2,3,4"}, "a schedule is power:SCALE,EXPONENT,SHIFT"),
    ("sppo", {"eta": "power:1,x"}, "--eta is 'x', not a number"),
    ("sppo", {"eta": "power:-1"}, "eta = -1 at t = 0 must be > 0"),
    ("sppo", {"eta": "power:1,1,0"}, "SHIFT must be > 0"),
    ("sppo", {"eta": "power:1,-1,1"}, "EXPONENT >= 0"),
    ("sppo", {"eta": "cosine:1"}, "a schedule is power:SCALE,EXPONENT,SHIFT"),
    ("inpo", {"eta": "1", "tau": "-1"}, "tau = -1 must be > 0"),
    ("inpo", {"eta": "1", "tau": "0"}, "tau = 0 must be > 0"),
    ("inpo", {"eta": "1", "tau": "x"}, "--tau is 'x', not a number"),
    ("inpo", {"eta": "2", "tau": "0.6"}, "eta * tau = 1.2 must be <= 1: use eta <= 1/tau = 1.66667"),
    ("nash-md", {"eta": "power:30,1,2", "tau": "0.1"}, "eta * tau = 1.5 at t = 0 must be <= 1"),
    ("comal", {"eta": "1", "tau": "1", "inner": "2.5"}, "--inner is '2.5', not a whole number"),
    ("comal", {"eta": "1", "tau": "1", "inner": "0"}, "inner = 0 must be a whole number >= 1"),
    ("onpo", {"eta": "1", "variant": "three"}, "ONPO has no variant 'three'"),
    ("ipo", {"tau": "tuned"}, "--tau cannot be 'tuned' here"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "message"), BAD)
def test_what_is_wrong_is_told_in_one_line(name: str, given: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        rule_from(name, given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("sppo", {}),
        ("onpo", {"variant": "leader"}),
        ("inpo", {"tau": "3"}),
        ("egpo", {"tau": "3"}),
        ("nash-md", {"tau": "3"}),
    ],
)
def test_a_tuned_step_is_that_of_the_bound(name: str, given: dict[str, str]) -> None:
    """Whatever legal step the rule had before: 0.01 here, 1/(1 + tau) inside."""
    game = comal()
    tuned = rule_from(name, given | {"eta": "tuned"}, lambda rule: tune(rule, game, 100))
    assert tuned == tune(rule_from(name, given | {"eta": "0.01"}), game, 100)


def test_a_rule_without_such_a_bound_says_so() -> None:
    with pytest.raises(ValueError, match="COMAL declares no bound that depends on a step size"):
        rule_from("comal", {"eta": "tuned", "tau": "1", "inner": "2"}, lambda rule: tune(rule, comal(), 100))


@pytest.mark.parametrize("name", PLAYABLE)
def test_every_hyperparameter_has_help_and_a_reader(name: str) -> None:
    for hyperparameter, kind in hyperparameters(PLAYABLE[name]).items():
        assert hyperparameter in HELP
        assert kind in READERS


def test_the_options_are_the_fields_of_the_rules() -> None:
    parser = argparse.ArgumentParser()
    add_rule_arguments(parser)
    assert "--variant" in parser.format_help()
    assert all_hyperparameters() == ["eta", "variant", "tau", "inner"]
    options = parser.parse_args(["--rule", "inpo", "--eta", "1", "--tau", "0.5"])
    assert given_hyperparameters(options) == {"eta": "1", "tau": "0.5"}


@pytest.mark.parametrize(
    ("rule", "facts", "words"),
    [
        (ONPO(0.12345), {"name": "onpo", "eta": 0.12345, "variant": "two_sequences"},
         "onpo, eta = 0.1235, variant = two_sequences"),
        (COMAL(0.1, 1.0, 20), {"name": "comal", "eta": 0.1, "tau": 1.0, "inner": 20},
         "comal, eta = 0.1, tau = 1, inner = 20"),
        (SPPO(Power(2.0)), {"name": "sppo", "eta": "Power(scale=2.0, exponent=1.0, shift=1.0)"},
         "sppo, eta = Power(scale=2.0, exponent=1.0, shift=1.0)"),
    ],
)  # fmt: skip
def test_a_rule_described(rule: Rule, facts: dict[str, Any], words: str) -> None:
    assert described(rule) == facts
    assert in_words(rule) == words
