"""Feedback by counts against feedback draw by draw: the same draws make the same policies."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from nashpo.core.rules import EGPO, INPO, ONPO, SPPO, IterativeDPO, NashMD, Rule
from nashpo.core.selfplay import self_play
from nashpo.tabular.counted import Counted, CountedBackend
from nashpo.tabular.families import low_rank_cyclic
from nashpo.tabular.play import play
from nashpo.tabular.projection import Softmax
from nashpo.tabular.sampled import Sampled
from nashpo.tabular.sampled_backend import SampledBackend

GAME = low_rank_cyclic(n=5, seed=3, scale=2.0, batch=2)


class SameDraws(CountedBackend):
    """Counts of the very responses that `SampledBackend` draws."""

    def shares(self, policy: Any, key: str) -> np.ndarray:
        drawn = self.responses(policy, key)[..., 0, :]
        return np.mean(drawn[..., :, None] == np.arange(self.game.n), axis=-2)


@pytest.mark.parametrize(
    ("rule", "projection"),
    [
        (SPPO(1.0), Softmax("pointwise")),
        (SPPO(1.0), Softmax("pointwise", "log_z")),
        (ONPO(1.0), Softmax("labelled")),
        (ONPO(1.0, "one_step"), Softmax("pairwise")),
        (ONPO(1.0, "leader"), Softmax("pairwise")),
        (INPO(1.0, 0.2), Softmax("labelled")),
        (EGPO(1.0, 0.2), Softmax("labelled")),
        (NashMD(1.0, 0.2), Softmax("pairwise")),
        (IterativeDPO(0.5), Softmax("logistic")),
    ],
    ids=lambda x: getattr(x, "name", None) or f"{x.loss}-{x.normalizer}",
)
@pytest.mark.parametrize("K", [3, 40])
def test_counts_are_all_that_draws_tell(rule: Rule, projection: Softmax, K: int) -> None:
    """Policies after three iterations agree to 1e-9; the logistic minimizer is found to a gradient of 1e-13."""
    feedback = Sampled(K=K, seed=2, replicates=3)
    start = np.log(np.random.default_rng(0).dirichlet(np.full(5, 2.0), size=2))
    origins: Mapping[str, Any] = {"start": start, "reference": start, "behavior": start}
    found = []
    for backend in (SampledBackend, SameDraws):
        state = self_play(rule.form(), backend(feedback, GAME, origins, projection), 3)
        current = state.slots["current"]
        assert current is not None
        found.append(np.asarray(current.handle))
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-9)


def test_shares_have_the_policys_mean_and_spread() -> None:
    """4000 × 2 × 5 shares of K = 10 draws: every mean within 5 standard errors (by chance one time in 40,000 tests)."""
    start = np.log(np.array([0.5, 0.3, 0.1, 0.06, 0.04]))
    feedback = Counted(10, seed=1, replicates=4000).sampled()
    backend = CountedBackend(feedback, GAME, {"start": start}, Softmax("labelled"))
    shares = backend.shares(backend.start("start"), "start")
    assert shares.shape == (4000, 2, 5)
    np.testing.assert_allclose(shares.sum(-1), 1, rtol=0, atol=1e-12)
    error = np.sqrt(np.exp(start) * (1 - np.exp(start)) / 10 / 4000)
    assert (np.abs(shares.mean(0) - np.exp(start)) < 5 * error).all()
    np.testing.assert_allclose(shares.var(0) / (4000 * error**2), 1, atol=0.15)


def test_a_seed_fixes_a_run_and_replicates_differ() -> None:
    runs = [
        play(SPPO(1.0), GAME, 2, record="all", feedback=Counted(8, seed, 4), projection=Softmax()) for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(runs[0].gap_last, runs[1].gap_last)
    assert (runs[0].gap_last != runs[2].gap_last).all()
    assert len(np.unique(runs[0].gap_last[-1, :, 0])) == 4


def test_bad_numbers_are_told() -> None:
    with pytest.raises(ValueError, match="K = 1 must be a whole number >= 2"):
        Counted(1)
