"""Claims about multi-turn games: rules at every state and on whole trajectories, and what an average is there.

Shapes: C contexts (games) of H turns, T updates; gaps and divergences (T, C), policies (T, N, W) as in
`nashpo.tabular.trees.game`. KL_p is the divergence of two laws of trajectories; D = max_u KL_p(u ‖ π_1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from nashpo.core.rules import ONPO, SPPO, Rule
from nashpo.core.theorems import Status
from nashpo.tabular import play as bandit_play
from nashpo.tabular.claims.claim import Claim, Ensemble, Floats, Numbers, Tally
from nashpo.tabular.claims.ensembles import SEED, cohort, log_uniform
from nashpo.tabular.trees import bounds, families
from nashpo.tabular.trees.game import TreeGame
from nashpo.tabular.trees.gap import best_response, duality_gap, law_of, win_rate
from nashpo.tabular.trees.leaf_game import leaf_game, leaf_policy
from nashpo.tabular.trees.mixture import Mixture
from nashpo.tabular.trees.play import TreeRun, play
from nashpo.tabular.trees.policies import largest_divergence, log_policy, occupancy, over_contexts
from nashpo.tabular.trees.values import expected_ends

CONTEXTS = 8
Draw = Callable[[np.random.Generator, int], TreeGame]


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


TREES: tuple[Draw, ...] = (
    lambda rng, C: families.random_tree(int(rng.integers(2, 5)), int(rng.integers(2, 4)), _seed(rng), C),
    lambda rng, C: families.token_tree(int(rng.integers(2, 4)), int(rng.integers(2, 4)), _seed(rng), C),
)
"""Deterministic trees: they have a leaf game."""
GAMES: tuple[Draw, ...] = (
    *TREES,
    lambda rng, C: families.stochastic_users(int(rng.integers(2, 4)), 2, 2, _seed(rng), C),
    lambda rng, C: families.random_process(int(rng.integers(2, 6)), 2, int(rng.integers(2, 5)), 2, _seed(rng), C),
)


@dataclass(frozen=True)
class Conversations:
    """A rule's run on a multi-turn game, every step recorded.

    Attributes
    ----------
    game : TreeGame
    rule : Rule
    start : (N, W)
    run : TreeRun
    """

    game: TreeGame
    rule: Any
    start: Floats
    run: TreeRun

    @cached_property
    def log(self) -> Floats:
        """log π_1 … log π_{T+1}, (T + 1, N, W)."""
        return np.concatenate([log_policy(self.game, self.start)[None], self.run.kept["current"]])

    @property
    def T(self) -> Numbers:
        """1 … T as (T, 1)."""
        return self.run.recorded[:, None].astype(np.float64)

    @cached_property
    def D(self) -> Floats:
        """max_u KL_p(u ‖ π_1) in nats, (C,)."""
        return largest_divergence(self.game, self.log[0])

    def seen(self, tally: Tally) -> None:
        """Count the games and steps."""
        tally.seen(self.game.contexts, self.run.steps)


def random_policy(rng: np.random.Generator, game: TreeGame, spread: float) -> Floats:
    """Softmax of normal logits at every state, (N, W)."""
    weights = np.where(game.mask, np.exp(spread * rng.standard_normal(game.shape)), 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _played(game: TreeGame, rule: Rule, start: Floats, steps: int, level: str) -> Conversations:
    run = play(rule, game, steps, level=level, start=start, reference=start, record="all", keep=["current"])
    return Conversations(game, rule, start, run)


def _conversations(
    number: int, level: str, rule: Callable[[np.random.Generator], Rule], draws: tuple[Draw, ...], quick: bool, i: int
) -> Conversations:
    rng = np.random.default_rng([SEED, 41, number, i])
    game = draws[i % len(draws)](rng, CONTEXTS)
    spread = 0.0 if i % 3 == 0 else float(rng.uniform(0.3, 2))
    steps = int(rng.integers(20, 60 if quick else 250))
    return _played(game, rule(rng), random_policy(rng, game, spread), steps, level)


def conversations(
    name: str, number: int, level: str, rule: Callable[[np.random.Generator], Rule], draws: tuple[Draw, ...] = GAMES
) -> Ensemble:
    """An ensemble of runs of a rule that is drawn for each, at one level, on games that are drawn from a list."""

    def samples(quick: bool) -> list[Callable[[], Conversations]]:
        return [partial(_conversations, number, level, rule, draws, quick, i) for i in range(8 if quick else 32)]

    return Ensemble(name, samples)


STATES = conversations("multi-turn, SPPO at states", 1, "state", lambda rng: SPPO(eta=log_uniform(rng, 0.03, 4)))
PATHS = conversations(
    "multi-turn, ONPO on trajectories", 2, "trajectory", lambda rng: ONPO(eta=log_uniform(rng, 0.05, 1))
)
LEAVES = conversations("token trees", 3, "trajectory", lambda rng: ONPO(eta=log_uniform(rng, 0.05, 2)), TREES)


def value_lemma(run: Conversations, tally: Tally) -> None:
    """For the best response to the average, and for the start, in the place of u. Tolerance: win rates of order 1."""
    run.seen(tally)
    game = run.game
    for u in (best_response(game, run.run.average), run.start):
        flow, arrived = occupancy(game, u)
        law, reach = game.law(arrived), flow.sum(axis=1)
        for log_pi in run.log[:-1]:
            pi = np.exp(log_pi)
            ends = game.payoff(law_of(game, pi))
            gained = ((u - pi) * expected_ends(game, pi, ends)).sum(axis=1)
            tally.identity((law * ends).sum(axis=1), over_contexts(game, reach * gained), scale=1.0, rtol=1e-12)


def state_gap(run: Conversations, tally: Tally) -> None:
    run.seen(tally)
    bound = bounds.state_mwu_gap(run.D, run.rule.eta, run.game.horizon, run.T)
    tally.inequality(run.run.gap_average, bound)


def trajectory_gap(run: Conversations, tally: Tally) -> None:
    run.seen(tally)
    tally.inequality(run.run.gap_average, bounds.trajectory_onpo_gap(run.D, run.rule.eta, run.T))


def mixture(run: Conversations, tally: Tally) -> None:
    """At T: the mixture's gap by its law of outcomes, by its single policy, and as the regret of the best response."""
    run.seen(tally)
    game, T = run.game, run.run.steps
    policies = np.exp(run.log[:-1])
    whole = Mixture.of(game, policies)
    gap = duality_gap(game, whole)
    tally.identity(run.run.gap_average[-1], gap, scale=1.0, rtol=1e-12)
    tally.identity(duality_gap(game, whole.policy), gap, scale=1.0, rtol=1e-12)
    u = best_response(game, whole)
    regret = np.sum([win_rate(game, u, pi) - 0.5 for pi in policies], axis=0)
    tally.identity(2 * regret / T, gap, scale=1.0, rtol=1e-12)
    tally.keep("wrong", np.abs(duality_gap(game, policies.mean(axis=0)) - gap).max())


def averaging_is_wrong(tally: Tally) -> None:
    """The mean of the probabilities at every state has another gap somewhere: else the claim says nothing."""
    wrong = float(np.max(tally.arrays.pop("wrong")))
    tally.demand(wrong > 1e-3)
    tally.remarks.append(f"the mean of the probabilities at every state has a gap that is off by up to {wrong:.2g}")


def same_as_leaves(run: Conversations, tally: Tally) -> None:
    """Tolerance: 250 steps of rounding in logarithms of order 10."""
    run.seen(tally)
    leaves = bandit_play(run.rule, leaf_game(run.game), run.run.steps, start=leaf_policy(run.game, run.start))
    at = leaves.recorded - 1
    tally.identity(run.run.gap_average[at], leaves.gap_average, scale=1.0, rtol=1e-12)
    tally.identity(run.run.gap_last[at], leaves.gap_last, scale=1.0, rtol=1e-12)
    tally.identity(leaf_policy(run.game, run.run.last), leaves.last, scale=1.0, rtol=1e-12)


@dataclass(frozen=True)
class Bandits:
    """The games of a cohort, and a rule."""

    index: int
    rule: Rule
    steps: int


def _bandits(quick: bool, i: int) -> Bandits:
    rng = np.random.default_rng([SEED, 42, i])
    eta = log_uniform(rng, 0.03, 2)
    return Bandits(i, (SPPO(eta=eta), ONPO(eta=eta))[i % 2], 30 if quick else 200)


BANDITS = Ensemble("one turn", lambda quick: [partial(_bandits, quick, i) for i in range(4 if quick else 16)])


def one_turn(sample: Bandits, tally: Tally) -> None:
    games = cohort(sample.index)
    tally.seen(len(games.families), sample.steps)
    flat = bandit_play(sample.rule, games.game, sample.steps, start=games.start)
    tree = families.bandit(games.game)
    for level in ("state", "trajectory"):
        run = play(sample.rule, tree, sample.steps, level=level, start=games.start)
        tally.identity(run.gap_average, flat.gap_average, scale=1.0, rtol=1e-12)
        tally.identity(run.gap_last, flat.gap_last, scale=1.0, rtol=1e-12)
        tally.identity(run.last, flat.last, scale=1.0, rtol=1e-12)


def multiturn_claim(
    name: str,
    statement: str,
    source: str,
    brief: str,
    status: Status,
    ensemble: Ensemble,
    check: Callable[[Any, Tally], None],
    conclude: Callable[[Tally], None] | None = None,
) -> Claim:
    """A claim with the prefix of the multi-turn ones, on one ensemble."""
    return Claim(f"multiturn.{name}", statement, source, brief, status, (ensemble,), check, conclude)


MTPO_SOURCE = "MTPO (2405.14655)"

CLAIMS = (
    multiturn_claim(
        "bandit",
        "with one turn, SPPO and ONPO at states and on trajectories are the bandit's: gaps and policies agree to 1e-12",
        "derived (one turn)",
        "one turn",
        Status.DERIVED,
        BANDITS,
        one_turn,
    ),
    multiturn_claim(
        "leaf-game",
        "in a deterministic tree ONPO on trajectories is ONPO on the leaf game: gaps and policies agree to 1e-12",
        "derived (the soft maximum of a tree is that of its leaves)",
        "leaf game",
        Status.DERIVED,
        LEAVES,
        same_as_leaves,
    ),
    multiturn_claim(
        "mixture",
        "gap(mixture over trajectories) = gap(policy of its mean occupancy) = 2 max_u Σ_t (J(u, π_t) − ½)/T, and"
        " averaging the probabilities at every state gives another gap",
        "derived (J is linear in the occupancy)",
        "linearity",
        Status.DERIVED,
        STATES,
        mixture,
        averaging_is_wrong,
    ),
    multiturn_claim(
        "value-lemma",
        "J(u, π_t) − ½ = Σ_h E_u ⟨u_h − π_{t,h}, Q_h^{π_t,π_t}⟩ for every u",
        f"{MTPO_SOURCE} lemma 4.1, the value difference",
        "MTPO lem 4.1",
        Status.PUBLISHED,
        STATES,
        value_lemma,
    ),
    multiturn_claim(
        "sppo-states",
        "per-state SPPO: gap(mixture) <= 2D/(ηT) + Hη/4, which is 2H(log W/(ηT) + η/8) from the uniform start",
        "derived (value difference, Hoeffding at every state)",
        "Hoeffding",
        Status.DERIVED,
        STATES,
        state_gap,
    ),
    multiturn_claim(
        "onpo-paths",
        "ONPO on trajectories: gap(mixture) <= 2D/(ηT) + η/(2T) for η <= 1, with stochastic turns too",
        "derived (the proof of onpo.average-gap, its identities telescoped along an episode)",
        "RVU",
        Status.DERIVED,
        PATHS,
        trajectory_gap,
    ),
)
