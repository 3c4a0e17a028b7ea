"""Small synthetic results, plainly made up, with every key that the figures read."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # helpers of this folder are imported by name

import numpy as np
import pytest


def synthetic() -> dict[str, np.ndarray]:
    """Power laws with a ripple instead of measurements: nothing here was computed by a rule."""
    T = 2 ** np.arange(8, 13)
    games = np.array([0.8, 0.9, 1.2, 1.7])[:, None]
    eta = np.geomspace(0.01, 100, 9)
    angles = np.linspace(0, 6, 40)
    circle = 1 / 3 + 0.1 * np.stack([np.cos(angles), np.cos(angles + 2.0944), np.cos(angles + 4.1888)], axis=-1)
    circle /= circle.sum(axis=-1, keepdims=True)
    gaps = np.stack([0.1 / eta, 0.01 + 0 * eta])
    gaps[1, -2:] = np.nan
    sizes = np.array([3, 10, 100, 1000])
    steps = np.array([1, 10, 100, 1000])
    return {
        "rates/T": T,
        "rates/sppo_gap": games / np.sqrt(T),
        "rates/onpo_gap": games / T,
        "rates/sppo_bound": 2 * games**0 / np.sqrt(T),
        "rates/onpo_bound": 2 * games**0 / T,
        "rates/families": np.array(["cyclic", "cyclic", "interior", "interior"]),
        "rates/sppo_slope": np.array([-0.55, -0.5, -0.45]),
        "rates/onpo_slope": np.array([-1.05, -1.0, -0.95]),
        "rates/difference": np.array([-0.58, -0.5, -0.42]),
        "refuted/n": sizes,
        "refuted/T": steps,
        "refuted/gap": np.outer([4.0, 9.0, 18.0, 27.0], 1 - 0.5**steps) / steps,
        "refuted/printed": 4 * np.sqrt(np.log(sizes)),
        "refuted/corrected": 4 * np.log(sizes) + 0.25,
        "portrait/rules": np.array(["sppo", "inpo"]),
        "portrait/names": np.array(["rock", "paper", "scissors"]),
        "portrait/trajectory": np.stack([circle, 0.5 * circle + 0.5 / 3]),
        "portrait/gap": np.full((2, 40), 0.25),
        "portrait/start": circle[0],
        "portrait/equilibrium": np.full(3, 1 / 3),
        "portrait/target": np.array([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.3, 0.2]]),
        "portrait/eta": np.array([0.5, 0.5]),
        "portrait/tau": np.array([np.nan, 0.1]),
        "portrait/inner": np.array([np.nan, np.nan]),
        "step_sizes/rules": np.array(["sppo", "inpo"]),
        "step_sizes/eta": eta,
        "step_sizes/gap_average": np.repeat(gaps[..., None], 3, axis=-1),
        "step_sizes/gap_last": np.repeat(2 * gaps[..., None], 3, axis=-1),
        "step_sizes/limit": np.array([0.3, np.nan]),
        "step_sizes/floor": np.full(3, 0.01),
        "step_sizes/T": np.array(1024),
        "step_sizes/tau": np.array(0.1),
        "comal/inner": np.array([1, 4, 16]),
        "comal/eta_tau": np.array([0.01, 0.1, 0.5, 1.0]),
        "comal/gap_last": np.array([[0.5, 0.5, 0.5, 0.5], [0.4, 5e-3, 1e-6, 0.6], [0.3, 1e-9, 1e-15, 0.0]]),
        "comal/fine_eta_tau": np.geomspace(0.01, 1, 9),
        "comal/multiplier": np.linspace(1.5, 0.5, 3)[:, None] * np.linspace(0.8, 1.2, 9),
        "comal/tau": np.array(0.1),
        "comal/steps": np.array(2400),
        **offline(),
        **multi_turn(),
        "sweep/rules": np.array(["sppo", "mine"]),
        "sweep/eta": eta,
        "sweep/gap_average": gaps,
        "sweep/gap_last": 2 * gaps,
    }


def offline() -> dict[str, np.ndarray]:
    """What the figures about offline learning read: power laws in N, and three policies on four responses."""
    N = 100 * 2 ** np.arange(4)
    ripple = np.array([0.8, 0.9, 1.1, 1.2])
    rates = np.stack([N**-0.5, N**-0.75, 0.3 + 0 * N, 0.1 + 1 / N])
    lam, coverage = np.array([1.0, 10.0, 100.0]), np.array([2.0, 20.0])
    return {
        "spac/N": N,
        "spac/methods": np.array(["SPAC average", "SPAC last", "MLE", "DPO 0.3"]),
        "spac/suboptimality": rates[..., None] * ripple,
        "certificate/N": N,
        "certificate/methods": np.array(["SPAC average", "MLE", "DPO 0.3"]),
        "certificate/bound": 3 * rates[[0, 2, 3]],
        "certificate/truth": rates[[0, 2, 3]] * np.array([[1], [0], [1]]),
        "pessimism/lam": lam,
        "pessimism/coverage": coverage,
        "pessimism/suboptimality": np.array([[0.2, 0.5], [0.02, 0.3], [0.1, 0.2]]),
        "pessimism/N": np.array(1600),
        "policies/methods": np.array(["SPAC, average", "MLE, greedy", "reference"]),
        "policies/arms": np.array(["good", "next", "rare\n1", "rare\n2"]),
        "policies/probability": np.array([[0.97, 0.0297, 0.0003, 0], [0.5, 0, 0.25, 0.25], [0.4, 0.4, 0.1, 0.1]]),
        "policies/suboptimality": np.array([0.015, 0.75, np.nan]),
        "policies/certificate": np.array([0.03, 1.5, 0.6]),
    }


def multi_turn() -> dict[str, np.ndarray]:
    """What the figures about several turns read: power laws for four games, and two made-up learning curves."""
    T = 2 ** np.arange(5, 10)
    games = np.array([0.8, 0.9, 1.2, 1.7])[:, None]
    slope = np.array([-1.05, -1.0, -0.95])
    steps = np.array([1, 10, 100])
    return {
        "multiturn/T": T,
        "multiturn/sppo_state_gap": games / np.sqrt(T),
        "multiturn/sppo_state_bound": 4 / np.sqrt(T) + 0 * games,
        "multiturn/sppo_state_slope": slope / 2,
        "multiturn/onpo_state_gap": 1.1 * games / T,
        "multiturn/onpo_state_slope": slope,
        "multiturn/onpo_trajectory_gap": games / T,
        "multiturn/onpo_trajectory_bound": 5 / T + 0 * games,
        "multiturn/onpo_trajectory_slope": slope,
        "multiturn/mtpo_gap": 0.05 + games / T**2,
        "multiturn/mtpo_floor": np.full(4, 0.05),
        "multiturn/mtpo_kl": games / T**2,
        "multiturn/mtpo_kl_bound": 100 / (T + 1) + 0 * games,
        "two_turns/T": steps,
        "two_turns/whole": np.array([0.3, 0.45, 0.5]),
        "two_turns/single": np.array([0.35, 0.25, 0.2]),
        "two_turns/edge": np.array(0.3),
        "two_turns/after_one": np.array(0.4),
    }


@pytest.fixture
def results() -> dict[str, np.ndarray]:
    return synthetic()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A results folder as `nashpo verify` leaves it, without the sweep and without what only figures need."""
    kept = {key: values for key, values in synthetic().items() if key.startswith(("rates/", "refuted/"))}
    np.savez(tmp_path / "results.npz", **kept)
    return tmp_path
