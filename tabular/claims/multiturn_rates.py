"""Claims about rates in multi-turn games, and the game that single-turn play loses; what their figures draw.

Shapes: G games (contexts), K values of T; gaps, bounds and divergences (K, G), kept for figures as (G, K).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from nashpo.core.rules import ONPO, SPPO
from nashpo.core.theorems import Status
from nashpo.tabular import play as bandit_play
from nashpo.tabular.claims.claim import Ensemble, Floats, Interval, Tally
from nashpo.tabular.claims.ensembles import SEED
from nashpo.tabular.claims.multiturn import MTPO_SOURCE, multiturn_claim
from nashpo.tabular.game import Game
from nashpo.tabular.trees import bounds, families
from nashpo.tabular.trees.equilibrium import nash
from nashpo.tabular.trees.game import TreeGame
from nashpo.tabular.trees.gap import duality_gap, win_rate
from nashpo.tabular.trees.greedy import greedy
from nashpo.tabular.trees.mtpo import MTPO
from nashpo.tabular.trees.play import play
from nashpo.tabular.trees.policies import kl, largest_divergence, log_policy
from nashpo.tabular.trees.regularized import regularized_nash

RATE_TAU = 0.05
RATE_ETA = 0.5
SHORTEST = 32
GAMES_PER_FAMILY = 16
SPPO_SLOPES, ONPO_SLOPES = (-0.65, -0.3), (-1.3, -0.75)
"""Of the mean over the games, which are random: transients, and games without a cycle, are in it."""


@dataclass(frozen=True)
class MultiRates:
    """Gaps after T updates by method, (K, C), and the bounds on them where there are any.

    Attributes
    ----------
    T : (K,)
    gap, bound : dict name -> (K, C)
        ``sppo_state`` (η tuned for each T), ``onpo_state``, ``onpo_trajectory``, and ``mtpo`` (last iterate).
    kl : (K, C)
        KL_p(π*_τ ‖ π_{T+1}) of MTPO; ``bound["mtpo_kl"]`` bounds it.
    floor : (C,)
        Un-regularized gap of π*_τ.
    """

    T: np.ndarray
    gap: dict[str, Floats]
    bound: dict[str, Floats]
    kl: Floats
    floor: Floats
    contexts: int = field(default=0)


def _rates(quick: bool, draw: Callable[[int, int], TreeGame], index: int) -> MultiRates:
    game = draw(index, GAMES_PER_FAMILY)
    H, T = game.horizon, SHORTEST * 2 ** np.arange(5 if quick else 8)
    D = largest_divergence(game, log_policy(game, None))
    surprise = float(np.log(game.shape[1]))
    tuned = [SPPO(eta=float(bounds.state_mwu_eta(D.max(), H, t))) for t in T]
    sppo = np.stack([play(rule, game, int(t), record="last").gap_average[-1] for rule, t in zip(tuned, T)])
    onpo = ONPO(eta=RATE_ETA)
    steps, at = int(T[-1]), [int(t) for t in T]
    state = play(onpo, game, steps, record=at)
    trajectory = play(onpo, game, steps, record=at, level="trajectory")
    mtpo = play(MTPO.scheduled(RATE_TAU), game, steps, record=at, keep=["current"])
    goal = regularized_nash(game, RATE_TAU)
    column = T[:, None].astype(np.float64)
    eta = np.array([rule.eta for rule in tuned], dtype=np.float64)[:, None]
    return MultiRates(
        T,
        {
            "sppo_state": sppo,
            "onpo_state": state.gap_average,
            "onpo_trajectory": trajectory.gap_average,
            "mtpo": mtpo.gap_last,
        },
        {
            "sppo_state": bounds.state_mwu_gap(D, eta, H, column),
            "onpo_trajectory": bounds.trajectory_onpo_gap(D, RATE_ETA, column),
            "mtpo_kl": np.broadcast_to(bounds.mtpo_kl(H, RATE_TAU, surprise, column), sppo.shape),
        },
        np.stack([kl(game, goal, log_pi) for log_pi in mtpo.kept["current"]]),
        duality_gap(game, np.exp(goal)),
        game.contexts,
    )


RATES = Ensemble(
    "multi-turn rates",
    lambda quick: [
        partial(_rates, quick, lambda i, C: families.random_tree(3, 2, 7100 + i, C), 0),
        partial(_rates, quick, lambda i, C: families.stochastic_users(2, 2, 2, 7100 + i, C), 1),
    ],
)


def _slopes(T: np.ndarray, gap: Floats) -> Floats:
    """Least-squares slopes of log gap against log T, (C,)."""
    return np.asarray(np.polyfit(np.log(T), np.log(np.maximum(gap, 1e-16)), 1)[0])


def rate(name: str, sample: MultiRates, tally: Tally) -> None:
    """The bound at every T, where there is one; slopes and curves for the conclusion."""
    tally.seen(sample.contexts, len(sample.T))
    if name in sample.bound:
        tally.inequality(sample.gap[name], sample.bound[name])
        tally.keep(f"multiturn/{name}_bound", sample.bound[name].T)
    tally.keep(f"multiturn/{name}_gap", sample.gap[name].T)
    tally.keep("multiturn/T", sample.T)
    tally.keep("slopes", _slopes(sample.T, sample.gap[name]))


def conclude(name: str, low: float, high: float, tally: Tally) -> None:
    """The interval of the mean slope over the games lies in [low, high]; the games are stacked."""
    joined = {key: np.concatenate(rows) for key, rows in tally.arrays.items() if key != "multiturn/T"}
    tally.slope = Interval.of_mean(joined.pop("slopes"))
    tally.demand(tally.slope.inside(low, high))
    joined[f"multiturn/{name}_slope"] = np.array([tally.slope.low, tally.slope.mid, tally.slope.high])
    joined["multiturn/T"] = np.asarray(tally.arrays["multiturn/T"][0])
    tally.arrays = {key: [values] for key, values in joined.items()}


def mtpo_curves(sample: MultiRates, tally: Tally) -> None:
    """The bound on KL_p at every T; the un-regularized gap and its floor for the figure."""
    tally.seen(sample.contexts, len(sample.T))
    tally.inequality(sample.kl, sample.bound["mtpo_kl"], noise=1e-11)
    tally.keep("multiturn/mtpo_gap", sample.gap["mtpo"].T)
    tally.keep("multiturn/mtpo_floor", sample.floor)
    tally.keep("multiturn/mtpo_kl", sample.kl.T)
    tally.keep("multiturn/mtpo_kl_bound", sample.bound["mtpo_kl"].T)


def stack_curves(tally: Tally) -> None:
    """The games of all samples, one after the other."""
    tally.arrays = {key: [np.concatenate(rows)] for key, rows in tally.arrays.items()}


LARGE_ETA = 4.0
STALLED, FAST = -0.5, -0.8
"""Some games have a trajectory that nothing beats; there even a stalling rule goes on at 1/T."""


@dataclass(frozen=True)
class Stall:
    """Gaps (K, C) of ONPO at a large step, at states and on trajectories."""

    T: np.ndarray
    state: Floats
    trajectory: Floats


def _stall(quick: bool, i: int) -> Stall:
    game = families.tournament_tree(3, 2 + i, 7300 + i, 2 * GAMES_PER_FAMILY)
    T = 256 * 2 ** np.arange(3 if quick else 5)
    at = [int(t) for t in T]
    gaps = [
        play(ONPO(eta=LARGE_ETA), game, at[-1], record=at, level=level).gap_average for level in ("state", "trajectory")
    ]
    return Stall(T, *gaps)


STALLS = Ensemble("tournament trees", lambda quick: [partial(_stall, quick, i) for i in range(2)])


def stalls(sample: Stall, tally: Tally) -> None:
    tally.seen(sample.state.shape[1], len(sample.T))
    tally.keep("state", _slopes(sample.T, sample.state))
    tally.keep("trajectory", _slopes(sample.T, sample.trajectory))
    tally.keep("gap", sample.state[-1])


def conclude_stall(tally: Tally) -> None:
    """Both intervals of the mean slope over the games."""
    state, trajectory, gap = (np.concatenate(tally.arrays.pop(key)) for key in ("state", "trajectory", "gap"))
    tally.slope, fast = Interval.of_mean(state), Interval.of_mean(trajectory)
    tally.demand(tally.slope.inside(STALLED, np.inf))
    tally.demand(fast.inside(-np.inf, FAST))
    tally.remarks.append(
        f"on trajectories the slope is {fast.mid:.2f}; at states the gap stays at {np.median(gap):.2g}"
    )


@dataclass(frozen=True)
class TwoTurns:
    """A two-turn game; the first of the ensemble, with the family's own arguments, is the one that is drawn."""

    edge: float
    after_one: float
    game: TreeGame
    drawn: bool


def _two_turns(quick: bool, i: int) -> TwoTurns:
    rng = np.random.default_rng([SEED, 43, i])
    edge, margin, good, bad = 0.3, 1.0, 3, 3
    if i:
        edge, margin, good, bad = float(rng.uniform(0.05, 0.5)), float(rng.uniform(0.2, 1)), 3 + 2 * (i % 3), 9
    game = families.two_turn(edge, margin, good, bad)
    return TwoTurns(edge, (0.5 + edge) * good / (good + bad), game, i == 0)


TWO_TURNS = Ensemble("two turns", lambda quick: [partial(_two_turns, quick, i) for i in range(8)])


def greedy_loses(sample: TwoTurns, tally: Tally) -> None:
    """Each turn is won against the reference, the episode is lost; rules of whole episodes do not lose it."""
    tally.seen(1, 1)
    game, equilibrium = sample.game, nash(sample.game).policy
    player = greedy(game)
    tally.demand(win_rate(game, player, None) > 0.5)
    tally.identity(win_rate(game, player, equilibrium), 0.5 - sample.edge, scale=1.0, rtol=1e-12)
    if sample.drawn:
        _learning_curves(sample, equilibrium, tally)


def _learning_curves(sample: TwoTurns, equilibrium: Floats, tally: Tally) -> None:
    """Win rates against the equilibrium of what ONPO learns, for the figure.

    Of the rule that sees whole episodes, and of one whose first turn is trained on its own, judged with follow-ups
    drawn at random; its second turn is granted to be perfect.
    """
    rule, steps = ONPO(eta=RATE_ETA), 256
    run = play(rule, sample.game, steps, record="all", keep=["current"])
    whole = [win_rate(sample.game, np.exp(log_pi), equilibrium)[0] for log_pi in run.kept["current"]]
    first = Game([[0.5, 1 - sample.after_one], [sample.after_one, 0.5]])
    asks = np.exp(bandit_play(rule, first, steps, record="all", keep=["current"]).kept["current"])[:, families.ASK]
    tally.keep("two_turns/T", run.recorded)
    tally.keep("two_turns/whole", whole)
    tally.keep("two_turns/single", 0.5 - sample.edge * (1 - asks))
    tally.keep("two_turns/edge", sample.edge)
    tally.keep("two_turns/after_one", sample.after_one)


CLAIMS = (
    multiturn_claim(
        "sppo-rate",
        f"per-state SPPO, η = √(8D/(HT)): log gap(mixture) falls as log T with mean slope in {[*SPPO_SLOPES]}",
        "derived: √(2HD/T)",
        "derived",
        Status.DERIVED,
        RATES,
        partial(rate, "sppo_state"),
        partial(conclude, "sppo_state", *SPPO_SLOPES),
    ),
    multiturn_claim(
        "onpo-rate",
        f"per-state ONPO, η = ½: log gap(mixture) falls as log T with mean slope in {[*ONPO_SLOPES]}; no proof known",
        "measured; no proof is known: Q_t − Q_{t−1} counts changes where π_t goes, the regret where u goes",
        "no proof",
        Status.MEASURED,
        RATES,
        partial(rate, "onpo_state"),
        partial(conclude, "onpo_state", *ONPO_SLOPES),
    ),
    multiturn_claim(
        "onpo-stalls",
        f"at η = {LARGE_ETA:g} on trees of certain wins, per-state ONPO stalls (mean slope of log gap(mixture) above"
        f" {STALLED}) where ONPO on trajectories does not (below {FAST})",
        "measured: a bound for per-state ONPO must need a smaller step than trajectories do",
        "measured",
        Status.MEASURED,
        STALLS,
        stalls,
        conclude_stall,
    ),
    multiturn_claim(
        "paths-rate",
        f"ONPO on trajectories, η = ½: log gap(mixture) falls as log T with mean slope in {[*ONPO_SLOPES]}",
        "derived: (2D/η + η/2)/T",
        "derived",
        Status.DERIVED,
        RATES,
        partial(rate, "onpo_trajectory"),
        partial(conclude, "onpo_trajectory", *ONPO_SLOPES),
    ),
    multiturn_claim(
        "mtpo-long",
        "MTPO's KL_p(π*_τ ‖ π_{T+1}) stays below 2HQ²/(τ²(T + 1)) up to the largest T of the rates",
        f"derived; sharper than the bound of {MTPO_SOURCE}",
        "derived",
        Status.DERIVED,
        RATES,
        mtpo_curves,
        stack_curves,
    ),
    multiturn_claim(
        "greedy-loses",
        "in the two-turn game the player that is greedy turn by turn beats the reference and wins ½ − edge against the"
        " equilibrium",
        "derived (an example)",
        "example",
        Status.DERIVED,
        TWO_TURNS,
        greedy_loses,
    ),
)
