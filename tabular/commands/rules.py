"""``nashpo rules``: every rule, its step, its hyperparameters, what it aims for, and the theorems that it declares."""

from __future__ import annotations

import inspect
from typing import Any

from nashpo.core.cli import GOOD, Parser
from nashpo.core.rules import RULES, Aim, Rule
from nashpo.tabular.commands.output import json_text, pairs, say, table
from nashpo.tabular.rule_arguments import hyperparameters, option, required, rule_class

AIMS = {
    Aim.NASH: "Nash equilibrium",
    Aim.REGULARIZED_NASH: "regularized equilibrium",
    Aim.NEAR_REGULARIZED_NASH: "near the regularized equilibrium",
    Aim.NOTHING: "no equilibrium",
}
"""The aims in a few words; ``--json`` has them in full."""


def parser() -> Parser:
    """Arguments of the command."""
    made = Parser(
        "rules",
        "The update rules: step, hyperparameters, the equilibrium they aim for, and their theorems.",
        "nashpo rules",
        "nashpo rules sppo onpo",
    )
    made.add_argument("rule", metavar="RULE", nargs="*", help="only these rules")
    made.add_argument("--json", action="store_true", help="print JSON")
    return made


def main(argv: list[str]) -> int:
    """Print the rules."""
    options = parser().parse_args(argv)
    wanted = [rule_class(name) for name in options.rule] or list(RULES.values())
    described = [described_rule(kind) for kind in dict.fromkeys(wanted)]
    say(json_text({"rules": described}) if options.json else text(described))
    return GOOD


def described_rule(kind: type[Rule]) -> dict[str, Any]:
    """One rule, for JSON."""
    return {
        "name": kind.name,
        "step": step(kind),
        "hyperparameters": {name: {"required": name in required(kind)} for name in hyperparameters(kind)},
        "aim": kind.aim.value,
        "aim_in_short": AIMS[kind.aim],
        "citations": list(kind.citations),
        "theorems": [
            {
                "id": theorem.id,
                "statement": theorem.statement,
                "iterate": theorem.iterate.value,
                "measure": theorem.measure.value,
                "source": theorem.source,
                "status": theorem.status.value,
                "order": theorem.order,
            }
            for theorem in kind.theorems
        ],
    }


def step(kind: type[Rule]) -> str:
    """What the rule does: the first line of its documentation."""
    return (inspect.getdoc(kind) or "").partition("\n")[0].replace("``", "")


def text(rules: list[dict[str, Any]]) -> str:
    """The rules for a reader: three tables."""
    options = {
        rule["name"]: " ".join(
            option(name) if about["required"] else f"[{option(name)}]"
            for name, about in rule["hyperparameters"].items()
        )
        for rule in rules
    }
    overview = [[r["name"], options[r["name"]], r["aim_in_short"], " ".join(r["citations"])] for r in rules]
    lines = ["Rules", table(["rule", "hyperparameters", "aims for", "papers"], overview, left=4)]
    lines += ["", "One iteration", pairs([(rule["name"], rule["step"]) for rule in rules])]
    theorems = [theorem for rule in rules for theorem in rule["theorems"]]
    if theorems:
        told = [(t["id"], f"{t['statement']} [{standing(t)}]") for t in theorems]
        lines += ["", "Theorems (D = max log 1/start, in nats; T updates)", pairs(told)]
    return "\n".join(lines)


def standing(theorem: dict[str, Any]) -> str:
    """Status and source, the status once where the source begins with it."""
    status, source = theorem["status"], theorem["source"]
    return source if source.startswith(status) else f"{status}; {source}"
