"""Preference pairs drawn from a game or a reward and a behavior policy, as counts and for many replicates at once.

Shapes: ``P`` (prompts, n, n), ``behavior`` (prompts, n), counts of pairs (replicates, prompts). Cost grows with the
number of distinct pairs and not with that of pairs: one multinomial draw says how often each pair occurred, one
binomial draw how often its first response was preferred.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from nashpo.tabular.game import Game
from nashpo.tabular.policy_input import log_policy
from nashpo.tabular.preferences import PreferenceData
from nashpo.tabular.win_rates import bradley_terry_win_rates

Labels = Literal["hard", "soft"]


def _hard(rng: np.random.Generator, pairs: np.ndarray, P: np.ndarray) -> np.ndarray:
    return rng.binomial(pairs, P).astype(np.float64)


def _soft(rng: np.random.Generator, pairs: np.ndarray, P: np.ndarray) -> np.ndarray:
    return pairs * P


_LABELS: dict[str, Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]] = {"hard": _hard, "soft": _soft}


def draw_pairs(
    rng: np.random.Generator, P: np.ndarray, behavior: np.ndarray, counts: np.ndarray, labels: Labels = "hard"
) -> tuple[np.ndarray, np.ndarray]:
    """Independent pairs y, y' ∼ behavior(x) with labels from P, given how many pairs every prompt has.

    Parameters
    ----------
    P : (prompts, n, n)
    behavior : (prompts, n)
    counts : (replicates, prompts)
    labels : "hard" or "soft"
        One draw from P(y ≻ y') per pair, or that probability itself.

    Returns
    -------
    wins : (replicates, prompts, n, n)
    ties : (replicates, prompts)
        Pairs with y = y'.

    Raises
    ------
    ValueError
        On unknown labels.
    """
    if labels not in _LABELS:
        raise ValueError(f"labels = {labels!r} is none of {', '.join(_LABELS)}")
    n = P.shape[-1]
    i, j = np.triu_indices(n, 1)
    # The last cell of a multinomial draw gets what rounding leaves over: ties stand there, which can always occur.
    cells = np.concatenate([2 * behavior[:, i] * behavior[:, j], np.sum(behavior**2, axis=-1, keepdims=True)], axis=-1)
    drawn = rng.multinomial(counts, cells / cells.sum(axis=-1, keepdims=True))
    pairs = drawn[..., :-1]
    wins = np.zeros((*counts.shape, n, n))
    wins[..., i, j] = _LABELS[labels](rng, pairs, P[:, i, j])
    wins[..., j, i] = pairs - wins[..., i, j]
    return wins, drawn[..., -1].astype(np.float64)


def sample_preferences(
    truth: Any, behavior: Any, N: int, seed: int, replicates: int | None = None, labels: Labels = "hard"
) -> PreferenceData:
    """N independent pairs: a prompt x from the game's weights, y and y' from behavior(x), a label from P(y ≻ y').

    Pairs with y = y' are ties: they are kept and counted.

    Parameters
    ----------
    truth : Game, or a reward (..., n)
        A reward r stands for the Bradley–Terry preferences P(y ≻ y') = σ(r(y) − r(y')).
    behavior : (..., n) or None
        Probabilities; zeros are allowed. None is uniform.
    N : int
        Number of pairs, ties included.
    seed : int
    replicates : int, optional
        Number of independent data sets; they are the first axis. Without it there is no such axis.
    labels : "hard" or "soft"
        One draw per pair, or the probability itself.

    Returns
    -------
    PreferenceData
        Its prompts keep the game's weights, which are taken as known.

    Raises
    ------
    ValueError
        N < 1 or replicates < 1, a behavior that is no policy of the game, unknown labels, or a data set without one
        informative pair.
    """
    if N < 1 or (replicates is not None and replicates < 1):
        raise ValueError(f"N = {N} and replicates = {replicates} must be at least 1")
    game = (truth if isinstance(truth, Game) else reward_game(truth)).as_numpy()
    n, batch = game.n, game.batch_shape
    policy = np.exp(log_policy(game, behavior, "behavior")).reshape(-1, n)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(N, np.reshape(game.weights, -1), size=replicates or 1)
    wins, ties = draw_pairs(rng, game.P.reshape(-1, n, n), policy, counts, labels)
    data_sets = () if replicates is None else (replicates,)
    return PreferenceData.from_counts(
        wins.reshape((*data_sets, *batch, n, n)),
        ties=ties.reshape((*data_sets, *batch)),
        mask=game.mask,
        weights=game.weights,
        independent=len(data_sets),
        names=game.names,
    )


def reward_game(reward: Any, **arguments: Any) -> Game:
    """The Bradley–Terry game of a reward (..., n) in nats; further arguments are those of `Game`.

    Raises
    ------
    ValueError
        A reward that is not finite.
    """
    values = np.asarray(reward, np.float64)
    if values.ndim == 0 or not np.all(np.isfinite(values)):
        raise ValueError(
            f"the reward has shape {values.shape} or is not finite; a finite number per response is needed"
        )
    return Game(bradley_terry_win_rates(np, values), reward=values, **arguments)
