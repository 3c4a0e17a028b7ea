"""``nashpo solve``: the equilibrium of a game, of its KL-regularized form, or with a certificate in fractions.

Shapes: policies (..., n), gaps and residuals (...) per context.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from nashpo.core.cli import FAILED, GOOD, Parser
from nashpo.core.policies import kl
from nashpo.tabular.commands.inputs import Given, add_game_arguments, load_game, load_policy
from nashpo.tabular.commands.judged_report import equilibria, judged_facts, judged_text
from nashpo.tabular.commands.output import json_text, number, pairs, probability, say, working
from nashpo.tabular.commands.policy_table import policy_table
from nashpo.tabular.equilibrium import METHODS, Equilibrium, nash
from nashpo.tabular.game import Game
from nashpo.tabular.gap import duality_gap
from nashpo.tabular.policy_input import log_policy

LARGEST_GAP = 1e-6
"""A solver whose gap or residual is above this has failed: exit status 1. The interior point reaches 1e-12."""
LONGEST_FRACTION = 40
HOW = {
    "interior": "skew interior point",
    "highs": "HiGHS linear program",
    "cvxpy": "cvxpy",
}


def parser() -> Parser:
    """Arguments of the command."""
    made = Parser(
        "solve",
        "Nash equilibrium of a preference game, with its duality gap, support and uniqueness.",
        "nashpo solve cyclic:n=5",
        "nashpo solve comal --exact --decimals",
        "nashpo solve win_rates.csv --tau 0.1 --reference reference.csv --json",
    )
    add_game_arguments(made)
    made.add_argument("--tau", type=float, metavar="T", help="KL weight: solve the regularized game")
    made.add_argument("--reference", metavar="FILE", help="reference policy of full support (default: uniform)")
    made.add_argument("--exact", action="store_true", help="certify in rational arithmetic and print fractions")
    made.add_argument(
        "--decimals", action="store_true", help="with --exact: read 0.9 as 9/10, not as the binary number next to it"
    )
    made.add_argument("--method", choices=list(METHODS), default="interior", help="solver (default: %(default)s)")
    made.add_argument("--json", action="store_true", help="print JSON")
    return made


def main(argv: list[str]) -> int:
    """Solve a game and print its equilibrium; 1 where the solver did not reach it."""
    options = parser().parse_args(argv)
    given = load_game(options)
    if options.decimals:
        if not options.exact:
            raise ValueError("--decimals is for --exact: other solvers compute in binary numbers")
        given = replace(given, game=decimal_game(given.game))
    reference = load_policy(options.reference, given.game, "reference", full_support=True)
    with working("solving"):
        solved = nash(given.game, options.tau, reference, method=options.method, exact=options.exact)
    shares = None
    if given.judged is not None:
        shares = judged_facts(given.judged, equilibria(given.judged, options.tau, reference), reference)
    if options.json:
        say(json_text(facts(given, solved, reference, options.method, shares)))
    else:
        say(text(given, solved, reference, options.method, shares))
    return FAILED if worst(solved) > LARGEST_GAP or not verified(solved) else GOOD


def decimal_game(game: Game) -> Game:
    """The game of the shortest decimals that stand for its win rates, as fractions; itself where it has fractions."""
    if game.rational is not None:
        return game
    exact = np.vectorize(lambda x: Fraction(repr(float(x))), otypes=[object])(game.P)
    return Game(exact, game.weights, game.mask, names=game.names)


def worst(solved: Equilibrium) -> float:
    """The largest gap over contexts, or the largest log-residual of a regularized game."""
    return float(np.max(solved.gap if solved.residual is None else solved.residual))


def verified(solved: Equilibrium) -> bool:
    """Whether every certificate that was asked for holds."""
    return solved.exact is None or all(certificate.verified for certificate in solved.exact)


def facts(given: Given, solved: Equilibrium, reference: Any, method: str, shares: Any) -> dict[str, Any]:
    """The equilibrium for JSON."""
    report: dict[str, Any] = {
        "command": "solve",
        "game": given.facts,
        "tau": solved.tau,
        "method": method,
        "gap": solved.gap,
        "policy": solved.policy,
    }
    if solved.residual is None:
        report |= {"unique": solved.unique, "support": solved.support}
    else:
        report |= {
            "residual": solved.residual,
            "log_policy": solved.log_policy,
            "gap_unregularized": duality_gap(given.game, solved.policy),
            "kl_to_reference": kl(solved.log_policy, log_policy(given.game, reference, "reference")),
        }
    if solved.exact is not None:
        report["exact"] = [
            {"policy": [fraction(x) for x in c.policy], "gap": fraction(c.gap), "verified": c.verified}
            for c in solved.exact
        ]
    if shares is not None:
        report["judged"] = shares
    return report


def text(given: Given, solved: Equilibrium, reference: Any, method: str, shares: Any) -> str:
    """The equilibrium for a reader."""
    parts = [given.title, "", heading(solved, reference, method)]
    if given.game.batch_shape:
        parts.append(pairs(batch_facts(given, solved, reference)))
        parts += ["", judged_text(shares) if shares is not None else mean_policy(given, solved)]
    else:
        parts.append(pairs(single_facts(given, solved, reference)))
        more = {"exact": exact_column(solved)} if solved.exact is not None else {}
        payoff = given.game.payoff(solved.policy)
        columns = {"probability": [probability(x) for x in solved.policy]}
        columns["win rate against it"] = [f"{x:.6f}" for x in payoff]
        parts += ["", policy_table(given.game, np.asarray(solved.policy), columns | more)]
        if more and given.game.rational is None:
            parts += ["", "  Win rates were taken as the binary numbers they are; --decimals reads 0.9 as 9/10."]
    return "\n".join(parts)


def heading(solved: Equilibrium, reference: Any, method: str) -> str:
    """What was solved and how."""
    if solved.residual is not None:
        by = "Newton in log space" if method == "interior" else HOW[method]
        return (
            f"Equilibrium of the KL-regularized game, tau = {solved.tau:g},"
            f" reference {'uniform' if reference is None else 'given'} ({by})"
        )
    by = "rational arithmetic" if solved.exact is not None else HOW[method]
    return f"Nash equilibrium ({by})"


def gap_text(gap: Any) -> str:
    """A gap; what rounding left below 0 is 0."""
    return number(max(float(gap), 0.0))


def single_facts(given: Given, solved: Equilibrium, reference: Any) -> list[tuple[str, str]]:
    """Gap, uniqueness and support, or residual and divergence, of one game."""
    if solved.residual is not None:
        without = gap_text(duality_gap(given.game, solved.policy))
        return [
            ("log residual", f"{number(solved.residual)} nats"),
            ("duality gap", f"{gap_text(solved.gap)} in the regularized game, {without} without tau"),
            (
                "KL to reference",
                f"{number(kl(solved.log_policy, log_policy(given.game, reference, 'reference')))} nats",
            ),
            ("unique", "yes, as every regularized equilibrium"),
        ]
    size = int(np.sum(solved.support))
    rows = [("duality gap", gap_text(solved.gap))]
    if solved.exact is not None:
        rows = [("duality gap", "0, verified: every inequality holds in exact arithmetic")]
        if not verified(solved):
            rows = [("duality gap", f"{gap_text(solved.gap)}, NOT verified")]
    rows.append(("unique", "yes" if solved.unique else "not shown to be (ties, or a game next to one with ties)"))
    rows.append(("support", f"{size} of {given.game.n} responses"))
    return rows


def batch_facts(given: Given, solved: Equilibrium, reference: Any) -> list[tuple[str, str]]:
    """The same over contexts."""
    count = int(np.prod(given.game.batch_shape, dtype=int))
    if solved.residual is not None:
        divergence = given.game.mean(kl(solved.log_policy, log_policy(given.game, reference, "reference")))
        return [
            ("largest log residual", f"{number(np.max(solved.residual))} nats"),
            ("largest duality gap", f"{gap_text(np.max(solved.gap))} in the regularized game"),
            ("mean gap without tau", gap_text(given.game.mean(duality_gap(given.game, solved.policy)))),
            ("mean KL to reference", f"{number(divergence)} nats"),
        ]
    sizes = Counter(np.sum(solved.support, axis=-1).reshape(-1).tolist())
    rows = [("largest duality gap", gap_text(np.max(solved.gap)))]
    if solved.exact is not None:
        good = sum(certificate.verified for certificate in solved.exact)
        rows = [("largest duality gap", f"0, verified in exact arithmetic in {good} of {count} contexts")]
    rows.append(("unique", f"in {int(np.sum(solved.unique))} of {count} contexts"))
    rows.append(("support", ", ".join(f"{n}: {sizes[n]}" for n in sorted(sizes)) + " (responses: contexts)"))
    return rows


def mean_policy(given: Given, solved: Equilibrium) -> str:
    """How often each response is played, over contexts."""
    flat = (-1, given.game.n)
    mean = np.asarray(given.game.weights).reshape(-1) @ np.asarray(solved.policy).reshape(flat)
    played = np.sum(np.asarray(solved.policy).reshape(flat) > 1e-9, axis=0)
    columns = {"mean probability": [probability(x) for x in mean], "contexts that play it": [str(k) for k in played]}
    return policy_table(given.game, mean, columns)


def exact_column(solved: Equilibrium) -> list[str]:
    """The fractions of a single game; a long one is told by the number of its digits."""
    shown = []
    for x in solved.exact[0].policy if solved.exact else ():
        digits = int(x.denominator.bit_length() * 0.30103) + 1
        shown.append(fraction(x) if 2 * digits <= LONGEST_FRACTION else f"(denominator of {digits} digits)")
    return shown


def fraction(x: Fraction) -> str:
    """A fraction in full; Python refuses to print more than 4300 digits unless told."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return str(x)
    finally:
        sys.set_int_max_str_digits(limit)
