"""Exact evaluation of a model whose conversations can be enumerated, beside the exact play of the same rule.

Shapes: B prompts, N states with m answers each, n conversations per prompt, as in `nashpo.llm.tiny_config`; a
trajectory is (T + 1, N, m), the log-policies π_1 … π_{T+1} at all states in nats. Gaps are means over prompts, in
[0, 1]; an average is a mixture over conversations: one policy is drawn per conversation and kept to its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nashpo.core.policies import total_variation
from nashpo.core.rules import Rule
from nashpo.llm.exact import Floats, inside
from nashpo.llm.prediction import Prediction
from nashpo.tabular.trees.game import TreeGame
from nashpo.tabular.trees.gap import duality_gap
from nashpo.tabular.trees.mixture import Mixture, outcome_law
from nashpo.tabular.trees.play import TreeRun, play


@dataclass(frozen=True)
class ExactConversations:
    """Gaps, exact play and prediction of a run on known games of conversations.

    Attributes
    ----------
    game : TreeGame
        Contexts are the prompts, chance is the other side, outcomes are the conversations.
    rule : Rule
    level : str
        "trajectory" or "state": what takes the rule's step.
    predict : callable, optional
        From the log-policies (N, m) of start and reference to what is predicted of a run from samples.
    not_predicted : str
        Why there is no ``predict``.
    """

    game: TreeGame
    rule: Rule
    level: str
    predict: Callable[[Floats, Floats], Prediction] | None = None
    not_predicted: str = ""
    _known: dict[bytes, Prediction | str] = field(default_factory=dict)

    @property
    def second(self) -> None:
        """No other slot is wanted: there is no certificate."""
        return None

    def evaluate(
        self, log_policies: Floats, log_second: Floats | None = None, log_reference: Floats | None = None
    ) -> dict[str, Any]:
        """What is known after T iterations.

        Parameters
        ----------
        log_policies : (T + 1, N, m)
        log_second
            Not read.
        log_reference : (N, m), optional
            Default π_1.

        Returns
        -------
        dict
            JSON-able, as of `nashpo.llm.exact.ExactEvaluation.evaluate`: ``gap_start``, ``gap_last``, ``gap_average``
            (of the mixture of π_1 … π_T), ``certificate`` (None), ``prediction`` (None, and why in ``not_predicted``),
            ``inside``. And ``exact_play``, the rule played on the game itself from the same start: its ``gap_last`` and
            ``gap_average``, or None where the game has no such play. ``total_variation_from_prediction`` is that of the
            conversations of π_{T+1} from those of the exact play's, mean over prompts.
        """
        game, T = self.game, len(log_policies) - 1
        start, last = np.exp(log_policies[0]), np.exp(log_policies[-1])
        result: dict[str, Any] = {
            "gap_start": self._mean(duality_gap(game, start)),
            "gap_last": self._mean(duality_gap(game, last)),
            "gap_average": self._mean(duality_gap(game, Mixture.of(game, np.exp(log_policies[:-1])))),
            "certificate": None,
            "prediction": None,
            "not_predicted": self.not_predicted or None,
            "inside": None,
            "exact_play": None,
            "total_variation_from_prediction": None,
        }
        log_reference = log_policies[0] if log_reference is None else log_reference
        played = self._played(start, np.exp(log_reference), T)
        if isinstance(played, str):
            return {**result, "not_predicted": played}
        result["exact_play"] = {
            "gap_last": float(played.mean_gap_last[-1]),
            "gap_average": float(played.mean_gap_average[-1]),
        }
        away = total_variation(outcome_law(game, last), outcome_law(game, played.last))
        result["total_variation_from_prediction"] = self._mean(away)
        prediction = self._predicted(log_policies[0], log_reference)
        if isinstance(prediction, str):
            return {**result, "not_predicted": prediction or None}
        result["prediction"] = prediction.at(T)
        result["inside"] = inside(result)
        return result

    def _played(self, start: Floats, reference: Floats, steps: int) -> TreeRun | str:
        """The rule on the game, or why it cannot be played there."""
        try:
            return play(self.rule, self.game, steps, level=self.level, start=start, reference=reference, record=[steps])
        except ValueError as error:
            return str(error)

    def _predicted(self, start: Floats, reference: Floats) -> Prediction | str:
        """What is predicted, or why nothing is."""
        if self.predict is None:
            return self.not_predicted
        key = start.tobytes() + reference.tobytes()
        if key not in self._known:
            try:
                self._known[key] = self.predict(start, reference)
            except RuntimeError as error:  # a fit of tables that does not settle
                self._known[key] = str(error)
        return self._known[key]

    def _mean(self, values: Any) -> float:
        return float(self.game.mean(values))
