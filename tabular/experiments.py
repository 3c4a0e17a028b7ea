"""The computations behind those figures that show a claim rather than check one.

Shapes: R rules, S recorded steps, E step sizes, G games, n responses; a policy is (n,) probabilities. Gaps are duality
gaps in [0, 1]. Every experiment returns arrays under keys ``<experiment>/<name>`` and takes a few seconds at most.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from nashpo.core.rules import COMAL, EGPO, INPO, ONPO, SPPO, NashMD
from nashpo.core.rules.rule import Aim, Rule
from nashpo.core.theorems import egpo_largest_eta, inpo_largest_eta, mwu_tuned_eta
from nashpo.tabular import families, offline_experiments
from nashpo.tabular.equilibrium import nash
from nashpo.tabular.game import Game
from nashpo.tabular.gap import duality_gap
from nashpo.tabular.play import play

Results = dict[str, np.ndarray]

PORTRAIT_START = (0.80, 0.14, 0.06)
PORTRAIT_RULES: tuple[Rule, ...] = (
    SPPO(eta=0.5),
    ONPO(eta=0.5),
    INPO(eta=0.5, tau=0.1),
    NashMD(eta=0.5, tau=0.1),
    EGPO(eta=0.5, tau=0.1),
    COMAL(eta=0.5, tau=0.1, inner=25),
)
COMAL_INNER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
FINE = 200
"""Values of ητ for the line where COMAL's outer map stops to contract."""


def portrait(
    game: Game | None = None,
    rules: Sequence[Rule] = PORTRAIT_RULES,
    steps: int = 800,
    start: ArrayLike | None = None,
    reference: ArrayLike | None = None,
) -> Results:
    """Trajectories of the last iterate from one start; by default on rock-paper-scissors.

    Parameters
    ----------
    game : Game, optional
        One context of n responses.
    rules : sequence of Rule
    steps : int
        Updates.
    start : (n,), optional
        π_1; uniform by default, where a game is given.
    reference : (n,), optional
        Of the rules that have one; the start by default.

    Returns
    -------
    dict
        ``portrait/rules`` (R,), ``names`` (n,), ``trajectory`` (R, steps + 1, n) of π_1, π_2, …, their ``gap``
        (R, steps + 1), ``start`` (n,), ``equilibrium`` (n,), ``target`` (R, n) the policy that a rule aims for (NaN
        where it aims for none), ``eta``, ``tau``, ``inner`` (R,), NaN where a rule has none or it is a schedule.

    Raises
    ------
    ValueError
        If the game has more than one context.
    """
    if game is None:
        names = ("rock", "paper", "scissors")
        game = Game(np.asarray(families.cyclic(3).P).T, names=names)  # transposed: paper beats rock
        equilibrium = families.closed_form("cyclic", n=3)
        start = PORTRAIT_START if start is None else start
    else:
        if len(game.P.shape) != 2:
            raise ValueError(f"a phase portrait needs one context, but the game has shape {tuple(game.P.shape)}")
        equilibrium = np.asarray(nash(game).policy)
    n = game.P.shape[-1]
    begin = np.full(n, 1 / n) if start is None else np.asarray(start, dtype=np.float64)
    anchor = begin if reference is None else np.asarray(reference, dtype=np.float64)
    trajectories, gaps, targets = [], [], []
    for rule in rules:
        run = play(rule, game, steps, start=begin, reference=anchor, record="all", keep=("current",))
        trajectories.append(np.vstack([begin, np.exp(run.kept["current"])]))
        gaps.append(np.append(np.asarray(duality_gap(game, begin)), run.gap_last))
        targets.append(_target(rule, game, equilibrium, anchor))
    return {
        "portrait/rules": np.array([rule.name for rule in rules]),
        "portrait/names": np.array([game.label(i) for i in range(n)]),
        "portrait/trajectory": np.array(trajectories),
        "portrait/gap": np.array(gaps),
        "portrait/start": begin,
        "portrait/equilibrium": equilibrium,
        "portrait/target": np.array(targets),
        "portrait/eta": _numbers(rules, "eta"),
        "portrait/tau": _numbers(rules, "tau"),
        "portrait/inner": _numbers(rules, "inner"),
    }


def _target(rule: Rule, game: Game, equilibrium: np.ndarray, reference: np.ndarray) -> np.ndarray:
    if rule.aim is Aim.NASH:
        return equilibrium
    tau = getattr(rule, "tau", None)
    if rule.aim in (Aim.REGULARIZED_NASH, Aim.NEAR_REGULARIZED_NASH) and tau:
        return np.asarray(nash(game, tau=tau, reference=reference).policy)
    return np.full_like(equilibrium, np.nan)


def _numbers(rules: Sequence[Rule], name: str) -> np.ndarray:
    values = [getattr(rule, name, None) for rule in rules]
    return np.array([float(v) if isinstance(v, int | float) else np.nan for v in values])


def step_sizes(steps: int = 1024, games: int = 16, per_decade: int = 4, tau: float = 0.1, inner: int = 25) -> Results:
    """Final gaps of every rule against its step size, on random games with an interior equilibrium (n = 5).

    Parameters
    ----------
    steps : int
        Updates T from the uniform policy, which is the reference too.
    games : int
        Number of games, played as one batch.
    per_decade : int
        Step sizes per factor of ten, from 0.01 to 100. Those with ητ > 1 are left out where a rule forbids them.
    tau : float
        KL weight of the regularized rules.
    inner : int
        COMAL's iterations between two moves of the reference.

    Returns
    -------
    dict
        ``step_sizes/rules`` (R,), ``eta`` (E,), ``gap_average`` and ``gap_last`` (R, E, G), NaN where a step is not
        allowed; ``limit`` (R,) the step that a theorem tunes or allows at most, NaN where none does; ``floor`` (G,) the
        gap of π*_τ; ``T`` and ``tau`` ().
    """
    game = families.interior(5, seed=0, batch=games)
    D = float(np.log(5))
    makers: dict[str, Callable[[float], Rule]] = {
        "sppo": lambda eta: SPPO(eta),
        "onpo": lambda eta: ONPO(eta),
        "inpo": lambda eta: INPO(eta, tau),
        "nash-md": lambda eta: NashMD(eta, tau),
        "egpo": lambda eta: EGPO(eta, tau),
        "comal": lambda eta: COMAL(eta, tau, inner),
    }
    # The step that minimizes SPPO's bound; the largest of ONPO's 2D/(ηT) + η/(2T); the largest of two contractions.
    limits = {
        "sppo": mwu_tuned_eta(D, steps),
        "onpo": 1.0,
        "inpo": inpo_largest_eta(tau),
        "egpo": egpo_largest_eta(tau),
    }
    etas = np.geomspace(0.01, 100, 4 * per_decade + 1)
    average = np.full((len(makers), len(etas), games), np.nan)
    last = np.full_like(average, np.nan)
    for r, (name, make) in enumerate(makers.items()):
        for e, eta in enumerate(etas):
            if name not in ("sppo", "onpo") and eta * tau > 1 + 1e-12:
                continue
            run = play(make(float(eta)), game, steps, record="last")
            average[r, e], last[r, e] = run.gap_average[-1], run.gap_last[-1]
    return {
        "step_sizes/rules": np.array(list(makers)),
        "step_sizes/eta": etas,
        "step_sizes/gap_average": average,
        "step_sizes/gap_last": last,
        "step_sizes/limit": np.array([limits.get(name, np.nan) for name in makers]),
        "step_sizes/floor": np.asarray(duality_gap(game, nash(game, tau=tau).policy)),
        "step_sizes/T": np.array(steps),
        "step_sizes/tau": np.array(tau),
    }


def comal_map(
    game: Game | None = None,
    tau: float = 0.1,
    inner: Sequence[int] = COMAL_INNER,
    eta_tau: ArrayLike | None = None,
    steps: int = 2400,
    start: ArrayLike | None = None,
) -> Results:
    """Last gap of COMAL against its two knobs: k inner iterations per move of the reference, and ητ.

    Parameters
    ----------
    game : Game, optional
        One context; by default COMAL's 3 x 3 game.
    tau : float
        KL weight of the inner game.
    inner : sequence of int
        Values of k.
    eta_tau : (m,), optional
        Values of ητ in (0, 1]; by default 13 from 0.01 to 1.
    steps : int
        Updates at least; each cell ends with a full inner loop.
    start : (n,), optional
        By default (0.6, 0.3, 0.1) on COMAL's game, and uniform on a game of one's own.

    Returns
    -------
    dict
        ``comal/inner`` (k,), ``eta_tau`` (m,), ``gap_last`` (k, m), ``tau`` and ``steps`` (); ``multiplier`` (k, b) at
        the finer ``fine_eta_tau`` (b,), see `outer_multiplier` (left out where that is None).
    """
    if game is None:
        game = families.comal()
        start = (0.6, 0.3, 0.1) if start is None else start
    products = np.geomspace(0.01, 1.0, 13) if eta_tau is None else np.asarray(eta_tau, dtype=np.float64)
    gaps = np.empty((len(inner), len(products)))
    for i, k in enumerate(inner):
        whole = k * -(-steps // k)
        for j, product in enumerate(products):
            rule = COMAL(eta=float(product) / tau, tau=tau, inner=k)
            gaps[i, j] = play(rule, game, whole, start=start, record="last").mean_gap_last[-1]
    results = {
        "comal/inner": np.asarray(inner, dtype=np.int64),
        "comal/eta_tau": products,
        "comal/gap_last": gaps,
        "comal/tau": np.array(tau),
        "comal/steps": np.array(steps),
    }
    fine = np.geomspace(products.min(), products.max(), FINE)
    multiplier = outer_multiplier(game, tau, inner, fine)
    return results if multiplier is None else results | {"comal/fine_eta_tau": fine, "comal/multiplier": multiplier}


def outer_multiplier(game: Game, tau: float, inner: Sequence[int], eta_tau: np.ndarray) -> np.ndarray | None:
    r"""Largest growth factor per move of COMAL's reference, linearized at the equilibrium; below 1 it converges.

    With u = log π and J = A (diag π* − π* π*ᵀ), one inner iteration is u ← (1 − ητ) u + ητ r + η J u. For an eigenvalue
    λ of J and M = 1 − ητ + ηλ, c = τ/(τ − λ), k iterations from u = r give M^k (1 − c) + c. The eigenvalues of J are
    imaginary (J is similar to a skew matrix), except for the zeros that a shift of u causes.

    Parameters
    ----------
    game : Game
    tau : float
    inner : (k,)
    eta_tau : (b,)

    Returns
    -------
    (k, b) or None
        None where the equilibrium lacks full support or is not unique (the linear map then says nothing), or where
        the game has several contexts.
    """
    if len(game.P.shape) != 2:
        return None
    solution = nash(game)
    policy = np.asarray(solution.policy)
    if policy.min() < 1e-9 or not bool(np.all(np.asarray(solution.unique))):
        return None
    J = np.asarray(game.A) @ (np.diag(policy) - np.outer(policy, policy))
    eigenvalues = np.linalg.eigvals(J)
    eigenvalues = eigenvalues[np.abs(eigenvalues) > 1e-9]
    if not len(eigenvalues):
        return None
    k = np.asarray(inner)[:, None, None]
    product = eta_tau[None, :, None]
    fixed = tau / (tau - eigenvalues)
    with np.errstate(over="ignore"):
        moved = (1 - product + product / tau * eigenvalues) ** k * (1 - fixed) + fixed
        return np.max(np.abs(moved), axis=-1)


EXPERIMENTS: dict[str, Callable[[], Results]] = {
    "portrait": portrait,
    "step_sizes": step_sizes,
    "comal": comal_map,
    **offline_experiments.EXPERIMENTS,
}
"""Experiments by the prefix of the keys that they make."""
