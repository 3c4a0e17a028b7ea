"""Hypothesis strategies: random games, policies and rules, for property tests of one's own rules and measures.

Shapes: a drawn game has ``P: (..., n, n)``, a drawn policy is (..., n) probabilities. All of it is public as
`nashpo.tabular.testing`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from nashpo.core.rules import RULES, Rule
from nashpo.core.rules.onpo import VARIANTS
from nashpo.core.schedules import Power, Table
from nashpo.tabular.game import Game

try:
    from hypothesis import strategies as st
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "the strategies of nashpo.tabular.testing need hypothesis; the test extra brings it: pip install 'nashpo[test]'"
    ) from missing


@st.composite
def games(
    draw: Callable[..., Any],
    *,
    n: st.SearchStrategy[int] | None = None,
    batch_shape: st.SearchStrategy[tuple[int, ...]] | None = None,
    ragged: bool = True,
    certain: bool = True,
) -> Game:
    """Games of every kind: ties, certainties, near ties, contexts, missing responses.

    Parameters
    ----------
    n : strategy of int
        Number of responses; default 1 … 6.
    batch_shape : strategy of tuple
        Shape of the contexts; by default none, or one axis of 1 … 3.
    ragged : bool
        Whether responses may be missing in some contexts. One is always left.
    certain : bool
        Whether win rates may be exactly 0 and 1. Without them a game has a Bradley–Terry projection, which DPO needs.
    """
    responses = draw(n if n is not None else st.integers(1, 6))
    shape = draw(batch_shape if batch_shape is not None else st.sampled_from([(), (), (1,), (2,), (3,)]))
    special = [0.5, 0.5 + 2.0**-40, 0.1, 0.9] + [0.0, 1.0] * certain
    entry = st.one_of(st.sampled_from(special), st.floats(0.02, 0.98))
    P = np.full((*shape, responses, responses), 0.5)
    for context in np.ndindex(*shape):
        for i, j in zip(*np.triu_indices(responses, 1), strict=True):
            P[(*context, i, j)] = draw(entry)
            P[(*context, j, i)] = 1 - P[(*context, i, j)]
    mask = None
    if ragged and shape and draw(st.booleans()):
        mask = np.ones((*shape, responses), dtype=bool)
        for context in np.ndindex(*shape):
            mask[context] = draw(st.lists(st.booleans(), min_size=responses, max_size=responses))
            mask[(*context, draw(st.integers(0, responses - 1)))] = True
    return Game(P, mask=mask)


@st.composite
def policies(draw: Callable[..., Any], game: Game, *, full_support: bool = True) -> np.ndarray:
    """Policies (..., n) on a game's contexts; missing responses get 0.

    Parameters
    ----------
    game : Game
    full_support : bool
        Without it, existing responses may have probability 0 too, but never all of them.
    """
    exists = np.ones((*game.batch_shape, game.n), dtype=bool)
    if game.mask is not None:
        exists = np.asarray(game.as_numpy().mask)
    # Exponents rather than weights, so that probabilities down to e^-12 are as likely as even ones.
    surprise = st.floats(0.0, 12.0)
    weights = np.zeros(exists.shape)
    for context in np.ndindex(*exists.shape[:-1]):
        for y in np.flatnonzero(exists[context]):
            weights[(*context, y)] = np.exp(-draw(surprise))
        if not full_support:
            kept = draw(st.sampled_from(np.flatnonzero(exists[context]).tolist()))
            for y in np.flatnonzero(exists[context]):
                if y != kept and draw(st.booleans()):
                    weights[(*context, y)] = 0.0
    return weights / weights.sum(axis=-1, keepdims=True)


def _step_sizes(largest: float) -> st.SearchStrategy[Any]:
    """Constants in (0, largest] and schedules that stay there."""
    constants = st.floats(0.01, 1.0).map(lambda share: share * largest)
    return st.one_of(
        constants,
        st.builds(lambda e, p: Power(scale=e, exponent=p, shift=1.0), constants, st.sampled_from([0.5, 1.0])),
        st.lists(constants, min_size=1, max_size=4).map(lambda values: Table(tuple(values))),
    )


_WEIGHTS = st.floats(0.05, 2.0)
LARGEST_STEP = 2.0
HYPERPARAMETERS: dict[str, Callable[[dict[str, Any]], st.SearchStrategy[Any]]] = {
    "tau": lambda drawn: _WEIGHTS,
    "eta": lambda drawn: _step_sizes(min(LARGEST_STEP, 1 / drawn["tau"]) if "tau" in drawn else LARGEST_STEP),
    "inner": lambda drawn: st.integers(1, 4),
    "variant": lambda drawn: st.sampled_from(sorted(VARIANTS)),
}
"""How each hyperparameter is drawn, given those above it: ητ <= 1 everywhere."""


def _names(kind: type[Rule]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]


@st.composite
def _rule(draw: Callable[..., Any], kind: type[Rule]) -> Rule:
    wanted = _names(kind)
    unknown = wanted - set(HYPERPARAMETERS)
    if unknown:
        raise ValueError(
            f"no strategy for {', '.join(sorted(unknown))} of {kind.__name__}: add it to"
            " nashpo.tabular.strategies.HYPERPARAMETERS"
        )
    drawn: dict[str, Any] = {}
    for name, strategy in HYPERPARAMETERS.items():
        if name in wanted:
            drawn[name] = draw(strategy(drawn))
    return kind(**drawn)


def drawable() -> tuple[type[Rule], ...]:
    """The package's rules whose hyperparameters are all in `HYPERPARAMETERS`: those that a game alone can answer."""
    return tuple(kind for kind in RULES.values() if _names(kind) <= set(HYPERPARAMETERS))


@st.composite
def rules(draw: Callable[..., Any], kinds: Iterable[type[Rule]] | None = None) -> Rule:
    """Rules with random valid hyperparameters, schedules of the step size included.

    Parameters
    ----------
    kinds : rule classes, optional
        Default: `drawable`. A class of one's own needs its hyperparameters in `HYPERPARAMETERS`.
    """
    return draw(_rule(draw(st.sampled_from(drawable() if kinds is None else tuple(kinds)))))
