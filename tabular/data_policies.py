"""Policies on preference data (start, reference, comparator): checked, normalized and taken to log space.

Shapes: probabilities (..., n) that broadcast against the data's data sets and prompts; log-policies of the full shape.
"""

from typing import Any

import numpy as np

from nashpo.tabular.policy_input import log_policy
from nashpo.tabular.preferences import PreferenceData


class Responses:
    """The responses of preference data, in the form that checks of policies read of a game."""

    xp = np
    names = None

    def __init__(self, data: PreferenceData) -> None:
        self.P = np.broadcast_to(0.5, (*data.wins.shape[:-1], 1))  # read for its leading shape only
        self.mask = data.mask
        self._data = data

    def label(self, response: int) -> str:
        """Name or number of a response."""
        return str(response) if self._data.names is None else self._data.names[response]


def policy_on(data: PreferenceData, policy: Any, what: str) -> np.ndarray:
    """log π (..., n) of the data's full shape, from probabilities; None is uniform over the responses that exist.

    Raises
    ------
    ValueError
        Wrong length, NaN, negative, a sum that is not 1, or probability for a response that does not exist.
    """
    view: Any = Responses(data)
    return np.asarray(log_policy(view, policy, what))


def reference_on(data: PreferenceData, reference: Any) -> np.ndarray:
    """log ref (..., n); None is uniform over the responses that exist.

    Raises
    ------
    ValueError
        As `policy_on`, and a reference that gives a response in an informative pair probability zero.
    """
    log_reference = policy_on(data, reference, "reference")
    lost = (data.seen > 0) & np.isneginf(log_reference)
    if lost.any():
        *context, response = (int(k) for k in np.argwhere(lost)[0])
        place = f" of context {tuple(context)}" if context else ""
        raise ValueError(
            f"reference gives probability 0 to response {Responses(data).label(response)}{place}, which the data"
            " contain: mix in a little of the uniform policy"
        )
    return log_reference
