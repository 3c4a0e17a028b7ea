"""The loop hosts feedback that is the solution of an optimization problem: a critic, as in SPAC, and not a win rate."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from nashpo.core import theorems as bound
from nashpo.core.losses import bradley_terry
from nashpo.core.rules import Form, Payoff, Stage, critic
from nashpo.core.schedules import Power
from nashpo.core.selfplay import StageTrace, State, self_play
from nashpo.tabular import Game
from nashpo.tabular.exact import ExactBackend, probabilities

START = np.array([0.5, 0.3, 0.2])
REFERENCE = np.array([0.2, 0.3, 0.5])
WINS = np.array([[0.0, 9.0, 4.0], [1.0, 0.0, 6.0], [4.0, 2.0, 0.0]])  # WINS[i, j]: how often i was preferred to j


def critic_loss(values: np.ndarray) -> float:
    """Mean of −log σ(f(winner) − f(loser)) over the preference data."""
    return float(np.sum(WINS * bradley_terry(values[:, None], values[None, :])) / WINS.sum())


def critic_objective(values: np.ndarray, policy: np.ndarray, lam: float) -> float:
    """E_π f − E_ref f + λ L(f)."""
    return float((policy - REFERENCE) @ values + lam * critic_loss(values))


def fitted_critic(policy: np.ndarray, lam: float, R: float) -> np.ndarray:
    """argmin over f ∈ [0, R]^n of E_π f − E_ref f + λ L(f), by projected gradient descent; smoothness λ/2."""
    values = np.full(len(policy), R / 2)
    for _ in range(3000):
        lost = 1 / (1 + np.exp(values[:, None] - values[None, :]))
        slope = policy - REFERENCE - lam * (WINS * lost - (WINS * lost).T).sum(axis=1) / WINS.sum()
        values = np.clip(values - slope / (0.5 * lam + 0.1), 0, R)
    return values


class Critic(ExactBackend):
    """Exact policies on a game's responses; the payoff is a critic that is fitted against the policy."""

    def __init__(self) -> None:
        super().__init__(Game(np.full((3, 3), 0.5)), {"start": np.log(START)})
        self.asked: list[Payoff] = []

    def check(self, form: Form) -> None:
        kinds = {payoff.kind for payoff in form.payoffs}
        if kinds != {"critic"}:
            raise ValueError(f"this backend fits critics and has no payoff of kind {sorted(kinds - {'critic'})}")

    def ask(self, key: str, payoff: Payoff, policy: Any, on: Any) -> np.ndarray:
        self.asked.append(payoff)
        return fitted_critic(probabilities(policy), **dict(payoff.params))


def spac(eta: Any, lam: Any, R: float) -> Form:
    return Form({"current": "start"}, [Stage("current", {"current": 1.0}, {critic("current", lam=lam, R=R): eta})])


def test_the_critic_is_a_minimizer() -> None:
    """No random function in the box does better, from a policy that leans on each response in turn."""
    rng = np.random.default_rng(0)
    for policy in (START, np.array([0.9, 0.05, 0.05]), np.array([0.05, 0.05, 0.9])):
        found = critic_objective(fitted_critic(policy, 2.0, 3.0), policy, 2.0)
        assert min(critic_objective(f, policy, 2.0) for f in rng.uniform(0, 3, (3000, 3))) >= found - 1e-9


def test_the_loop_hosts_a_critic() -> None:
    """Against the same dynamics written out: π_{t+1} ∝ π_t exp(η f_t), λ_t = 4/(t + 1), average of π_1 … π_T.

    The parameters of each question are numbers, evaluated at its t.
    """
    eta, R, steps = 0.4, 3.0, 4
    backend = Critic()
    state = self_play(spac(eta, Power(scale=4.0), R), backend, steps)
    assert backend.asked == [critic("current", lam=lam, R=R) for lam in (4.0, 2.0, 4 / 3, 1.0)]
    policy, played = START, []
    for t in range(steps):
        played.append(policy)
        weights = policy * np.exp(eta * fitted_critic(policy, 4 / (t + 1), R))
        policy = weights / weights.sum()
    assert_allclose(np.exp(state.slots["current"].handle), policy, rtol=0, atol=1e-12)
    assert_allclose(state.average.handle.policy, np.mean(played, axis=0), rtol=0, atol=1e-15)


def test_the_actor_of_the_critic_keeps_its_bound() -> None:
    """S3 at every step: mean ⟨u − π_t, f_t⟩ <= D/(ηT) + ηR²/8 for every u; the trace carries π_t and f_t."""
    eta, R = 0.4, 3.0
    earned: list[np.ndarray] = []

    def observe(before: State, after: State, trace: tuple[StageTrace, ...]) -> None:
        values = trace[0].terms[0].answer
        earned.append(values - np.exp(before.slots["current"].handle) @ values)
        T = len(earned)
        regret = np.mean(earned, axis=0).max()
        assert regret <= bound.spac_actor(-math.log(START.min()), eta, R, T)

    self_play(spac(eta, 2.0, R), Critic(), 12, observe=observe)
    assert len(earned) == 12


def test_a_critics_parameters_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    """Handles of arrays are no JSON, so the state is kept in memory here."""

    class Memory:
        state: State | None = None

        def load(self) -> State | None:
            return self.state

        def commit(self, state: State) -> None:
            self.state = state

    store = Memory()
    self_play(spac(0.4, 2.0, 3.0), Critic(), 2, store=store)
    assert self_play(spac(0.4, 2.0, 3.0), Critic(), 3, store=store).t == 3
    with pytest.raises(ValueError, match="another rule"):
        self_play(spac(0.4, 2.5, 3.0), Critic(), 4, store=store)
