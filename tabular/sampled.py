"""Sampled feedback: what is drawn, judged and estimated, as one frozen description.

Shapes: ``replicates`` independent runs come before the contexts, so that a policy is (replicates, ..., n).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nashpo.core.rules.form import Form
from nashpo.tabular import simulation
from nashpo.tabular.game import Game
from nashpo.tabular.judging import ESTIMATES, LABELS, PAIRS
from nashpo.tabular.noise import AdversarialFlips, Noise, RandomFlips
from nashpo.tabular.projection import checked_projection
from nashpo.tabular.sampled_backend import SampledBackend
from nashpo.tabular.simulation import Recording

__all__ = ["ESTIMATES", "LABELS", "PAIRS", "AdversarialFlips", "RandomFlips", "Sampled"]


@dataclass(frozen=True)
class Sampled:
    """Feedback from K responses per context and iteration, for ``play(..., feedback=Sampled(...))``.

    SPPO's estimate P̂(y_i) = (1/K) Σ_k P(y_i ≻ y_k) includes the comparison of y_i with itself, which is ½. Hence
    E[P̂(y_i) − ½ | y_i] = (1 − 1/K)(P(y_i ≻ π) − ½): a step η acts like η (K − 1)/K. A payoff against another policy
    than the one the responses come from is estimated with K responses of that policy, without this bias.

    Parameters
    ----------
    K : int
        Responses per set, at least 2.
    pairs : str
        Which responses enter the loss: ``all`` (every response, every pair), ``iid`` (⌊K/2⌋ disjoint, hence
        independent pairs), ``best_worst`` (the largest and the smallest P̂ of K, as in UCLA's SPPO and in INPO; with
        hard labels the best is declared the winner). The last one is biased: a pair that was chosen by its labels is
        no independent one.
    labels : str
        ``soft``, the judge's win rate, or ``hard``, one Bernoulli coin per comparison, tossed once for both orders.
    noise : Noise, optional
        The judge's errors: `RandomFlips`, `AdversarialFlips` (`nashpo.tabular.noise`).
    seed : int
        Fixes all draws, at least 0.
    replicates : int
        Independent runs, the first axis of the results.
    estimate : str
        Of the pointwise loss: ``self``, SPPO's, or ``unbiased``, which leaves the comparison with itself out. Losses on
        pairs need no correction: E[P̂(y) − P̂(y') | y, y'] = ((K − 2)(g − g') + 2 (P(y ≻ y') − ½))/K, and its regression
        on independent pairs is g − g'. (With a single set per fit all losses shrink, as a fit of K noisy points does.)
    batch : int
        Response sets per context and iteration. More sets make the losses exact, without moving the bias of small K.

    Raises
    ------
    ValueError
        On values out of range or unknown names.

    Notes
    -----
    Source: SPPO (2405.00675) eqs. 4.5–4.7 and 4.12; ONPO (2502.16852) Algorithm 1; the shrinkage is derived.
    """

    K: int = 5
    pairs: str = "all"
    labels: str = "soft"
    noise: Noise | None = None
    seed: int = 0
    replicates: int = 1
    estimate: str = "self"
    batch: int = 1

    def __post_init__(self) -> None:
        for name, least in (("K", 2), ("seed", 0), ("replicates", 1), ("batch", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"{name} = {value!r} must be a whole number >= {least}")
        for name, known in (("pairs", PAIRS), ("labels", LABELS), ("estimate", ESTIMATES)):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} = {value!r} is none of {', '.join(known)}")
        if self.noise is not None and not callable(getattr(self.noise, "corrupt", None)):
            raise ValueError(f"noise = {self.noise!r} is no noise: give RandomFlips(rate) or AdversarialFlips(rate)")

    def simulate(
        self,
        form: Form,
        game: Game,
        origins: Mapping[str, Any],
        steps: int,
        record_at: Sequence[int],
        keep: Sequence[str],
        projection: Any,
    ) -> Recording:
        """Run the form from samples; gaps are measured on the game itself. See `nashpo.tabular.play.Feedback`."""
        fitted = checked_projection(projection, form, game.n, game.batch_shape)
        backend = SampledBackend(self, game.as_numpy(), origins, fitted)
        return simulation.simulate(form, backend, backend.game, steps, record_at, keep)
