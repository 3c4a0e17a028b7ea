"""Exact evaluation of a model whose responses can be enumerated, beside what `nashpo.tabular` predicts for its run.

Shapes: B prompts with n responses each; a trajectory is (T + 1, B, n), the log-policies π_1 … π_{T+1} in nats. Gaps are
means over prompts, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nashpo.core.games import duality_gap
from nashpo.core.policies import log_normalize, total_variation
from nashpo.core.rules.form import CURRENT, Form, win
from nashpo.llm.fit import Padding, policy_logprobs
from nashpo.llm.prediction import Prediction
from nashpo.llm.responses import Responses, Scored
from nashpo.tabular.game import Game
from nashpo.tabular.residuals import optimistic_residual_certificate, residual_certificate

Floats = NDArray[np.float64]
MASS = 1e-5
"""How far the probabilities of all responses may add up to something else than 1: float32 log-probabilities."""
_ROUNDING = 1e-9
"""Of a gap that is compared with an interval of width 0."""


def enumerated_log_policy(
    model: nn.Module, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> Floats:
    """log π of every response to every prompt, (B, n), normalized in float64.

    Parameters
    ----------
    model : nn.Module
    prompts, completions : sequences of token ids
        The completions are all responses of positive probability, the same for each prompt.

    Raises
    ------
    ValueError
        If their probabilities do not add up to 1 within `MASS`.
    """
    rows = [[Scored.completion(prompt, completion) for completion in completions] for prompt in prompts]
    found = policy_logprobs(model, Responses.drawn(rows), Padding()).cpu().numpy()
    mass = np.exp(found).sum(-1)
    worst = int(np.argmax(np.abs(mass - 1)))
    if not abs(mass[worst] - 1) <= MASS:
        raise ValueError(
            f"the {len(completions)} enumerated responses to prompt {worst} have probability {mass[worst]:.7g} in all,"
            " not 1: the model can answer otherwise, or its responses are longer than those"
        )
    return np.asarray(log_normalize(found))


def second_slot(form: Form) -> tuple[float, str] | None:
    """Constant step and slot name of the other sequence of policies that a certificate needs; None without one.

    The slot is ``current`` itself for multiplicative weights, π_{t+1} ∝ π_t exp(η P(y ≻ π_t)) (SPPO), and
    ``auxiliary`` for ONPO in its form of two sequences.
    """
    steps = {dict(stage.payoffs).get(win(CURRENT)) for stage in form.stages}
    (eta,) = steps if len(steps) == 1 else (None,)
    if isinstance(eta, bool) or not isinstance(eta, Real) or any(len(stage.payoffs) != 1 for stage in form.stages):
        return None
    first = form.stages[0].writes
    written = [stage.writes for stage in form.stages]
    if form.copies or any(stage.base != ((first, 1.0),) for stage in form.stages):
        return None
    return (float(eta), first) if written in ([CURRENT], [first, CURRENT]) else None


@dataclass(frozen=True)
class ExactEvaluation:
    """Gaps, certificate and prediction of a run of ``form`` on known games.

    Attributes
    ----------
    game : Game
        Contexts are the prompts.
    form : Form
        The rule's.
    predict : callable, optional
        From the log-policies (B, n) of start and reference to what is predicted.
    not_predicted : str
        Why there is no ``predict``.
    """

    game: Game
    form: Form
    predict: Callable[[Floats, Floats], Prediction] | None
    not_predicted: str = ""
    _known: dict[bytes, Prediction] = field(default_factory=dict)

    @property
    def second(self) -> str | None:
        """The other slot whose policies the certificate needs."""
        needed = second_slot(self.form)
        return None if needed is None else needed[1]

    def evaluate(
        self, log_policies: Floats, log_second: Floats | None = None, log_reference: Floats | None = None
    ) -> dict[str, Any]:
        """What is known after T iterations.

        Parameters
        ----------
        log_policies : (T + 1, B, n)
        log_second : (T + 1, B, n), optional
            Of the slot that `second_slot` names.
        log_reference : (B, n), optional
            Default π_1.

        Returns
        -------
        dict
            JSON-able: ``gap_start`` (of π_1), ``gap_last`` (of π_{T+1}), ``gap_average`` (of the mean of π_1 … π_T),
            ``certificate`` (what `nashpo.tabular.residuals` bounds the latter by, mean over prompts; None where the
            rule or the policies offer none), ``prediction`` (see `Prediction.at`; None, and why in ``not_predicted``),
            ``inside`` (whether both gaps lie in the predicted intervals) and ``total_variation_from_prediction`` (of
            π_{T+1} from the exact game's, mean over prompts).
        """
        A = np.asarray(self.game.A)
        T = len(log_policies) - 1
        average = np.exp(log_policies[:-1]).mean(0)
        result: dict[str, Any] = {
            "gap_start": _mean(duality_gap(A, np.exp(log_policies[0]))),
            "gap_last": _mean(duality_gap(A, np.exp(log_policies[-1]))),
            "gap_average": _mean(duality_gap(A, average)),
            "certificate": self._certificate(log_policies, log_second),
            "prediction": None,
            "not_predicted": self.not_predicted or None,
            "inside": None,
            "total_variation_from_prediction": None,
        }
        if self.predict is not None:
            prediction = self._predicted(log_policies[0], log_policies[0] if log_reference is None else log_reference)
            found = prediction.at(T)
            result["prediction"] = found
            result["inside"] = inside(result)
            expected = np.exp(prediction.log_policies[T - 1])
            result["total_variation_from_prediction"] = _mean(total_variation(np.exp(log_policies[-1]), expected))
        return result

    def _predicted(self, start: Floats, reference: Floats) -> Prediction:
        key = start.tobytes() + reference.tobytes()
        if key not in self._known:
            assert self.predict is not None
            self._known[key] = self.predict(start, reference)
        return self._known[key]

    def _certificate(self, log_policies: Floats, log_second: Floats | None) -> float | None:
        needed = second_slot(self.form)
        if needed is None:
            return None
        eta, slot = needed
        A = np.asarray(self.game.A)
        if slot == CURRENT:
            bound = residual_certificate(eta, log_policies, A).bound
        elif log_second is not None:
            bound = optimistic_residual_certificate(eta, log_policies, log_second, A).bound
        else:
            return None
        return _mean(bound) if np.isfinite(bound).all() else None


def inside(result: Mapping[str, Any]) -> bool:
    """Whether both gaps of an evaluation lie in the intervals of its ``prediction``."""
    found = result["prediction"]
    return all(
        found[name]["low"] - _ROUNDING <= result[name] <= found[name]["high"] + _ROUNDING
        for name in ("gap_last", "gap_average")
    )


def _mean(values: Any) -> float:
    return float(np.mean(values))


class Evaluation(Protocol):
    """From policies by their logarithms to what is known exactly."""

    @property
    def second(self) -> str | None:
        """A slot beside ``current`` whose policies are wanted too."""
        ...

    def evaluate(
        self, log_policies: Floats, log_second: Floats | None = None, log_reference: Floats | None = None
    ) -> dict[str, Any]:
        """As of `ExactEvaluation.evaluate`."""
        ...


Use = Callable[[str], AbstractContextManager[nn.Module]]
"""Lends a policy of a run by its name."""


@dataclass(frozen=True)
class ExactRun:
    """An exact evaluation of the policies of a run, by their names.

    Parameters
    ----------
    evaluation : Evaluation
        `ExactEvaluation`, or `nashpo.llm.exact_conversations.ExactConversations`.
    prompts, completions : sequences of token ids
        As for `enumerated_log_policy`; of conversations all states, and the answers there are.
    use : Use
    earlier : callable
        From i = 1, 2, … to what this returned after iteration i, or None where that is not known: log-policies are
        kept in it, so that a run may delete old weights.
    reference : str
        Name of the reference policy.
    """

    evaluation: Evaluation
    prompts: Sequence[Sequence[int]]
    completions: Sequence[Sequence[int]]
    use: Use
    earlier: Callable[[int], Mapping[str, Any] | None] = lambda iteration: None
    reference: str = "reference"

    def __call__(self, iterates: Sequence[str]) -> dict[str, Any]:
        """Evaluate the last of the iterates.

        Parameters
        ----------
        iterates : sequence of str
            π_1 … π_{T+1}; all but the first lie in a folder of their iteration, ``iterations/001/model``, with the
            policies of other slots beside them under the slots' names.

        Returns
        -------
        dict
            As of ``evaluation.evaluate``, and ``log_policies``: those of π_{T+1} by slot.
        """
        second_name = self.evaluation.second
        slots = list(dict.fromkeys([CURRENT, *([] if second_name is None else [second_name])]))
        last = len(iterates) - 1
        found = {
            slot: [self._log_policy(name, slot, i if i < last else None) for i, name in enumerate(iterates)]
            for slot in slots
        }
        log_policies = np.stack(
            [self._enumerated(iterates[i]) if x is None else x for i, x in enumerate(found[CURRENT])]
        )
        second = found[slots[-1]]
        log_second = None if any(x is None for x in second) else np.stack([x for x in second if x is not None])
        result = self.evaluation.evaluate(log_policies, log_second, self._enumerated(self.reference))
        kept = {slot: rows[-1].tolist() for slot, rows in found.items() if rows[-1] is not None}
        return {**result, "log_policies": kept}

    def _log_policy(self, name: str, slot: str, iteration: int | None) -> Floats | None:
        """Of one slot after an iteration (0: the start), from what was found earlier or from its weights."""
        saved = self.earlier(iteration) if iteration else None
        if saved is not None and slot in saved.get("log_policies", {}):
            return np.asarray(saved["log_policies"][slot], dtype=np.float64)
        folder = name.rpartition("/")[0]
        if slot == CURRENT or not folder:
            return self._enumerated(name)
        try:
            return self._enumerated(f"{folder}/{slot}")
        except (OSError, ValueError, KeyError):  # weights of other slots are deleted once they are not needed
            return None

    def _enumerated(self, name: str) -> Floats:
        with self.use(name) as model:
            return enumerated_log_policy(model, self.prompts, self.completions)
