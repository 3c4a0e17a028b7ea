"""Testing rules of one's own: `check_rule`, and hypothesis strategies for games, policies and rules.

Shapes: games have ``P: (..., n, n)``, policies are (..., n) probabilities. `check_rule` needs no test library; the
strategies `games`, `policies` and `rules` need hypothesis, which the package's test extra brings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nashpo.core.rules import Rule
from nashpo.tabular import families
from nashpo.tabular.exact import ExactBackend
from nashpo.tabular.game import Game
from nashpo.tabular.policy_input import uniform
from nashpo.tabular.rule_checks import (
    Arena,
    NotApplicable,
    check_engine,
    check_form,
    check_libraries,
    check_relabelling,
    check_shift,
    check_simplex,
)
from nashpo.tabular.rule_losses import check_losses
from nashpo.tabular.rule_theory import check_direction, check_fixed_point, check_theorems

if TYPE_CHECKING:
    from nashpo.tabular.strategies import games, policies, rules

__all__ = ["CHECKS", "CheckResult", "check_rule", "games", "policies", "rules"]


def __getattr__(name: str) -> Any:
    """`games`, `policies` and `rules`, imported when they are used: hypothesis is not always installed."""
    if name in ("games", "policies", "rules"):
        from nashpo.tabular import strategies

        return getattr(strategies, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


CHECKS: dict[str, Callable[[Rule, Arena], str]] = {
    "form": check_form,
    "simplex": check_simplex,
    "relabelling": check_relabelling,
    "shift": check_shift,
    "fixed point": check_fixed_point,
    "direction": check_direction,
    "losses": check_losses,
    "theorems": check_theorems,
    "libraries": check_libraries,
    "engine": check_engine,
}
"""Every check by its name: (rule, arena) -> a note; AssertionError where it fails, NotApplicable where it is silent."""


@dataclass(frozen=True)
class CheckResult:
    """One check of a rule on one game that did not fail.

    Attributes
    ----------
    check, game : str
    passed : bool
        False where the check does not apply.
    note : str
        What was checked, or why it does not apply.
    """

    check: str
    game: str
    passed: bool
    note: str


def default_games(seed: int) -> dict[str, Game]:
    """Small games that tell rules apart: intransitive, transitive, interior, with one best response, contextual."""
    rng = np.random.default_rng(seed)
    responses = 4
    best = np.full((responses, responses), 0.5)
    best[0, 1:], best[1:, 0] = 0.9, 0.1
    contexts = families.uniform_random(responses, seed + 1, batch=3)
    mask = np.ones((3, responses), dtype=bool)
    mask[1, rng.integers(responses)] = False
    return {
        "a uniformly random game": families.uniform_random(responses, seed),
        "rock-paper-scissors": families.cyclic(3, margin=0.8),
        "a game with an interior equilibrium": families.interior(5, seed),
        "a Bradley-Terry game": families.bradley_terry(responses, seed),
        "a game with one best response": Game(best),
        "three contexts, one of which lacks a response": Game(contexts.P, mask=mask),
    }


def _arena(name: str, game: Game, rng: np.random.Generator) -> Arena:
    """The game with random policies of full support; half-way to uniform, so that none is tiny."""
    local = game.as_numpy()
    even = uniform(local)

    def policy() -> np.ndarray:
        weights = even * rng.gamma(2.0, size=even.shape)
        return (even + weights / weights.sum(axis=-1, keepdims=True)) / 2

    return Arena(name, local, policy(), policy(), policy())


def check_rule(rule: Rule, *, games: Iterable[Game] | None = None, seed: int = 0) -> tuple[CheckResult, ...]:
    """Check a rule as the package's own rules are checked, like scikit-learn's ``check_estimator``.

    ==============  ==================================================================================================
    form            `rule.form()` is a valid `Form` at every t and the same at every call; the rule is frozen, hashes
    simplex         probabilities add up to 1 within 1e-12, and zeros of the base policies stay zeros
    relabelling     responses in another order give the same policies in that order
    shift           a constant added to all payoffs changes nothing
    fixed point     started at the equilibrium of `rule.aim`, it stays there (`NEAR_REGULARIZED_NASH`: at a distance
                    that shrinks linearly with ``eta``)
    direction       a response that does better than all others against every opponent becomes more probable
    losses          each stage's exact step is the minimizer of the square losses with log Z and on pairs, of the soft
                    labels and the logistic loss where they are legal, and within 2 (exp(η² range²/8) − 1) in l1 of the
                    one with the constant 1/2
    theorems        every declared theorem that is not refuted holds at every step, also at the tuned step size
    libraries       numpy = torch = array-api-strict (those installed) to 1e-12 per step
    engine          compiled engine = array path to 1e-12 per step
    ==============  ==================================================================================================

    A fixed point is no proof of convergence: the check starts every slot at the equilibrium, so a rule that is pulled
    to its start, or answers a fixed opponent, passes it. Declare a theorem, and it is checked from other starts.

    Parameters
    ----------
    rule : Rule
        A frozen dataclass with a `form`; see `nashpo.core.rules.Rule`.
    games : iterable of Game, optional
        Games to check on; default six small ones. A rule that uses a reward needs games that have one, or whose win
        rates are neither 0 nor 1.
    seed : int
        Of the default games and of the policies that runs begin with.

    Returns
    -------
    tuple of CheckResult
        What passed and what did not apply.

    Raises
    ------
    AssertionError
        A check failed; the message names the check, the rule, the game and the numbers.
    ValueError
        The rule needs feedback that no game gives (a critic).
    """
    rng = np.random.default_rng(seed)
    if games is None:
        named = default_games(seed)
    else:
        named = {f"game {index} ({game!r})": game for index, game in enumerate(games)}
    arenas = [_arena(name, game, rng) for name, game in named.items()]
    results = []
    for check, run in CHECKS.items():
        for arena in arenas:
            try:
                results.append(CheckResult(check, arena.name, True, run(rule, arena)))
            except NotApplicable as reason:
                results.append(CheckResult(check, arena.name, False, str(reason)))
            except AssertionError as failure:
                raise AssertionError(f"check '{check}' fails for {rule!r} on {arena.name}: {failure}") from failure
        if check == "form":
            ExactBackend(arenas[0].game, {}).check(rule.form())
    return tuple(results)
