"""Playing a rule on a game: exact steps on the compiled engine or on the array path, or steps from samples.

Shapes: policies are probabilities (..., n) that broadcast over the game's contexts; see `nashpo.tabular.run.Run`.
"""

from collections.abc import Sequence
from operator import index
from typing import Any, Protocol

import numpy as np
from array_api_compat import is_numpy_array

from nashpo.core.policies import Array, kl, largest_log_weight
from nashpo.core.rules.form import Form
from nashpo.core.rules.rule import Aim, Rule
from nashpo.core.theorems import Setting, Theorem
from nashpo.tabular.exact import ExactBackend
from nashpo.tabular.game import Game
from nashpo.tabular.policy_input import log_policy
from nashpo.tabular.run import Run
from nashpo.tabular.simulation import Recording, simulate

Record = str | int | Sequence[int]
DEFAULT_STEPS = 1000


class Feedback(Protocol):
    """Where payoffs come from when they are not exact; `nashpo.tabular.sampled.Sampled` is one."""

    def simulate(
        self,
        form: Form,
        game: Game,
        origins: dict[str, Array],
        steps: int,
        record_at: Sequence[int],
        keep: Sequence[str],
        projection: Any,
    ) -> Recording:
        """Run the form with this feedback; replicates come first among the leading axes."""
        ...


def geometric(steps: int, per_octave: int = 4) -> list[int]:
    """1 … steps, spaced by the factor 2^(1/per_octave), both ends included."""
    count = int(np.ceil(np.log2(steps) * per_octave)) + 1
    return sorted({int(round(x)) for x in np.geomspace(1, steps, max(count, 1))} | {steps})


def record_steps(record: Record, steps: int) -> list[int]:
    """The steps that ``record`` names: "geometric", "all", "last", every k-th, or a list.

    Raises
    ------
    ValueError
    """
    if isinstance(record, str):
        named = {"geometric": geometric, "all": lambda s: list(range(1, s + 1)), "last": lambda s: [s]}
        if record not in named:
            raise ValueError(
                f"record = {record!r} is none of {', '.join(named)}; or give a number k, or a list of steps"
            )
        return named[record](steps)
    if isinstance(record, int | np.integer):
        record = int(record)
        if record < 1:
            raise ValueError(f"record = {record} must be at least 1: every k-th step is recorded")
        return sorted({*range(record, steps + 1, record), steps})
    wanted = sorted({index(s) for s in record})
    if not wanted:
        raise ValueError("record is empty: name at least one step")
    if wanted[0] < 1 or wanted[-1] > steps:
        wrong = wanted[0] if wanted[0] < 1 else wanted[-1]
        raise ValueError(f"record names step {wrong}, outside 1 … {steps}")
    return wanted


def play(
    rule: Rule,
    game: Game,
    steps: int | None = None,
    *,
    start: Any = None,
    reference: Any = None,
    behavior: Any = None,
    record: Record = "geometric",
    keep: Sequence[str] = (),
    engine: str = "auto",
    feedback: Feedback | None = None,
    projection: Any = None,
) -> Run:
    """Play a rule against itself for a number of updates.

    Parameters
    ----------
    rule : Rule
    game : Game
    steps : int, optional
        Number of updates T; default 1000, or the rule's horizon where that is shorter.
    start : (..., n), optional
        π_1, probabilities; uniform by default. Zeros stay zeros.
    reference : (..., n), optional
        Reference policy, full support; by default the start.
    behavior : (..., n), optional
        Policy that the data of IPO and DPO come from; by default the reference.
    record : str, int or list of int
        Steps at which gaps are recorded: "geometric" (4 per octave), "all", "last", every k-th, or a list.
    keep : sequence of str
        Slots (``current``, ``auxiliary``, …, or ``average``) whose policies are kept at the recorded steps.
    engine : str
        "compiled" (numba, numpy games), "reference" (any array library), or "auto".
    feedback : Feedback, optional
        Sampled payoffs instead of exact ones.
    projection : optional
        How a stage is fitted to sampled feedback.

    Returns
    -------
    Run

    Raises
    ------
    ValueError
        On bad policies, steps below 1 or beyond the rule's horizon, an unknown engine, or a step off the simplex.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule = {rule!r} is no rule: give an instance, such as SPPO(eta=0.1)")
    if not isinstance(game, Game):
        raise TypeError("game is no Game: give Game(P)")
    if isinstance(keep, str):
        raise ValueError(f"keep = {keep!r} is one name: give a list of names, keep=[{keep!r}]")
    form = rule.form()
    if steps is None:
        steps = min(DEFAULT_STEPS, form.horizon or DEFAULT_STEPS)
    form.check_horizon(steps)
    record_at = record_steps(record, steps)
    origins = starting_points(game, start, reference, behavior, form)
    if feedback is not None:
        recording = feedback.simulate(form, game, origins, steps, record_at, keep, projection)
        ran = "sampled"
    elif projection is not None:
        raise ValueError("projection is for sampled feedback: give feedback=Sampled(...) too")
    else:
        ran = choose_engine(engine, form, game)
        recording = ENGINES[ran](form, game, origins, steps, record_at, keep)
    return Run(
        rule=repr(rule),
        steps=steps,
        recorded=recording.steps,
        gap_average=recording.gap_average,
        gap_last=recording.gap_last,
        average=recording.average,
        last=recording.last,
        kept=recording.kept,
        weights=np.asarray(game.as_numpy().weights),
        names=game.names,
        notes={
            "engine": ran,
            "feedback": "exact" if feedback is None else repr(feedback),
            "projection": "exact" if feedback is None else repr(projection),
        },
    )


def starting_points(game: Game, start: Any, reference: Any, behavior: Any, form: Form) -> dict[str, Array]:
    """Log-policies of the three origins; the reference defaults to the start, the behavior to the reference."""
    log_start = log_policy(game, start, "start")
    if reference is None:
        reference = game.xp.exp(log_start)
    log_reference = log_policy(game, reference, "reference", full_support=form.uses_reference)
    log_behavior = log_reference if behavior is None else log_policy(game, behavior, "behavior")
    return {"start": log_start, "reference": log_reference, "behavior": log_behavior}


def _reference(
    form: Form, game: Game, origins: dict[str, Array], steps: int, record_at: Sequence[int], keep: Sequence[str]
) -> Recording:
    return simulate(form, ExactBackend(game, origins), game, steps, record_at, keep)


def _compiled(
    form: Form, game: Game, origins: dict[str, Array], steps: int, record_at: Sequence[int], keep: Sequence[str]
) -> Recording:
    from nashpo.tabular.engine import simulate_compiled  # numba is slow to import

    return simulate_compiled(form, game, origins, steps, record_at, keep)


ENGINES = {"compiled": _compiled, "reference": _reference}


def choose_engine(engine: str, form: Form, game: Game) -> str:
    """The engine that runs a form: compiled for numpy games and the payoffs it knows, else the array path.

    Raises
    ------
    ValueError
        On an unknown name, or where "compiled" was asked for and cannot run the form.
    """
    if engine not in ("auto", *ENGINES):
        raise ValueError(f"engine = {engine!r} is none of auto, {', '.join(ENGINES)}")
    if engine == "reference":
        return engine
    from nashpo.tabular.engine import refusal

    reason = refusal(form, game) if is_numpy_array(game.P) else "the game's arrays are not numpy's"
    if reason and engine == "compiled":
        raise ValueError(f"the compiled engine cannot run this: {reason}; use engine='reference'")
    return "reference" if reason else "compiled"


def setting(rule: Rule, game: Game, T: int, *, start: Any = None, reference: Any = None) -> Setting:
    """What the rule's bounds depend on: D and, for a regularized rule, KL(π*_τ ‖ π_1), the largest over contexts."""
    if T < 1:
        raise ValueError(f"T = {T} must be at least 1")
    xp = game.xp
    log_start = log_policy(game, start, "start")
    divergence = None
    tau = getattr(rule, "tau", None)
    if rule.aim in (Aim.REGULARIZED_NASH, Aim.NEAR_REGULARIZED_NASH) and tau is not None:
        from nashpo.tabular.equilibrium import nash

        anchor = xp.exp(log_start) if reference is None else reference
        divergence = float(xp.max(kl(nash(game, tau=tau, reference=anchor).log_policy, log_start)))
    return Setting(D=float(xp.max(largest_log_weight(log_start, game.mask))), T=T, kl_start=divergence)


def bounds(rule: Rule, game: Game, T: int, *, start: Any = None, reference: Any = None) -> list[tuple[Theorem, float]]:
    """Every theorem that the rule declares and whose assumptions hold here, with its bound after T updates.

    Parameters are those of `play`. A bound holds in every context, hence for the mean over contexts.
    """
    return rule.bounds(setting(rule, game, T, start=start, reference=reference))


def tune(rule: Rule, game: Game, T: int, *, start: Any = None, reference: Any = None) -> Rule:
    """The rule with the step size that minimizes its bound after T updates; parameters are those of `play`."""
    where = setting(rule, game, T, start=start, reference=reference)
    if where.D == 0:
        raise ValueError("D = 0: the start has one response, there is nothing to tune; choose eta yourself")
    if not np.isfinite(where.D):
        raise ValueError("D is infinite: the start gives some response probability 0; choose eta yourself")
    return rule.tuned(where)
