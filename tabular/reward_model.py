"""The maximum-likelihood reward of preference data, with a gauge for what the data leave open.

Shapes: rewards (..., n), in nats of log-odds, inside [0, R].
"""

import numpy as np

from nashpo.tabular.critic import Box, Critic
from nashpo.tabular.minimizers import connected
from nashpo.tabular.preferences import PreferenceData

_POLISH = 8


def maximum_likelihood_reward(data: PreferenceData, R: float) -> np.ndarray:
    """argmin_{r ∈ [0, R]} L_D(r), (..., n): the Bradley–Terry reward model on a box.

    The minimizer is not unique: responses that were never compared, and groups of responses that were never compared
    with each other, may shift. Of all minimizers this is the one in which every such group has its mean at R/2, or as
    near to it as the box allows; a response that was never seen has R/2. It is where gradient descent from R/2 ends
    (each pair moves its two rewards by opposite amounts) as long as no reward meets an edge.

    Parameters
    ----------
    data : PreferenceData
    R : float
        Largest reward, > 0.

    Returns
    -------
    (..., n)
        Zero at responses that do not exist. L_D is within 2e-9 of its minimum, and within rounding of it where the
        last Newton steps converged; rewards that belong on an edge are on it.

    Raises
    ------
    ValueError
        R <= 0, or too large for float64 to resolve.
    """
    box, still = Box(R), np.zeros(data.wins.shape[:-1])
    first = box.solve(data, still, 1.0)
    return centred(data, box.minimize(data, still, 1.0, first, polish=_POLISH), R)


def centred(data: PreferenceData, found: Critic, R: float) -> np.ndarray:
    """The same loss, with the mean of every group of compared responses moved as near to R/2 as the box allows.

    A group whose likelihood is at an edge of the box touches both edges, so that it has no room to move.
    """
    values = found.values
    together = connected(data.wins + np.swapaxes(data.wins, -1, -2))
    members = values[..., None, :]
    mean = np.sum(np.where(together, members, 0.0), axis=-1) / together.sum(axis=-1)
    lowest = np.min(np.where(together, members, np.inf), axis=-1)
    highest = np.max(np.where(together, members, -np.inf), axis=-1)
    return np.where(data.exists, values + np.clip(R / 2 - mean, -lowest, R - highest), 0.0)


def check_reward(reward: np.ndarray, R: float) -> None:
    """Refuse a stated reward that leaves [0, R], on which every guarantee rests.

    Raises
    ------
    ValueError
    """
    values = np.asarray(reward, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the reward has an entry that is NaN or infinite")
    if values.max() > R:
        raise ValueError(f"R = {R:g} is below the largest reward {values.max():g}: raise R, or shift the rewards down")
    if values.min() < 0:
        raise ValueError(
            f"the smallest reward is {values.min():g}, but rewards lie in [0, {R:g}]: subtract it from all"
        )
