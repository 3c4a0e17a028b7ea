"""The other side of the tiny model's conversations: known probabilities of its replies, and laws of conversations.

Shapes: B prompts, m answers, R replies, H turns. What the other side says after the h-th answer has probabilities
(B, m, R, m, …, R), with h answers: they depend on the prompt and on all that was said. A policy is (N, m), in the order
of ``TinyModel.states``; a law of conversations is (B, n), in that of ``TinyModel.conversations``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nashpo.llm.tiny_config import TinyModel

Floats = NDArray[np.float64]
_DIGITS = 4
"""Decimals of a probability, so that the table can be read."""
_LEAST = 0.3
"""Of the largest share that every reply may have, 1/R, which each of them has at least."""


def reply_probabilities(tiny: TinyModel) -> tuple[Floats, ...]:
    """What the other side says after each answer but the last, H − 1 arrays.

    Every probability is at least 0.3/R and has four decimals; those of one row add up to 1 in decimals.
    """
    rng, m, R = tiny.random("user"), tiny.answers, tiny.replies
    found = []
    for h in range(tiny.turns - 1):
        shape = (tiny.prompts, *(m, R) * h, m)
        drawn = (1 - _LEAST) * rng.dirichlet(np.ones(R), size=shape) + _LEAST / R
        # Counts of the smallest decimal, so that rows add up; the last reply has the rest.
        counts = np.floor(drawn * 10**_DIGITS)
        counts[..., -1] = 10**_DIGITS - counts[..., :-1].sum(-1)
        found.append(counts / 10**_DIGITS)
    return tuple(found)


def user_table(tiny: TinyModel) -> dict[str, Any]:
    """The other side as `nashpo.llm.conversation.users.table` reads it.

    Returns
    -------
    dict
        ``prompts``, ``answers`` and ``replies``: texts; ``probabilities``: `reply_probabilities` as nested lists.
    """
    return {
        "prompts": list(tiny.prompt_texts),
        "answers": [tiny.text(ids) for ids in tiny.turn_completions],
        "replies": [tiny.words[word] for word in tiny.reply_ids],
        "probabilities": [p.tolist() for p in reply_probabilities(tiny)],
    }


def conversation_law(tiny: TinyModel, policy: Floats) -> Floats:
    """Probability of every conversation, (B, n), if the assistant plays a policy (N, m): the other side's included."""
    m, R = tiny.answers, tiny.replies
    arrived, row = np.ones(tiny.prompts), 0
    for replies in reply_probabilities(tiny):
        flow = arrived[:, None] * policy[row : row + len(arrived)]
        row += len(arrived)
        arrived = (flow[..., None] * replies.reshape(-1, m, R)).ravel()
    return (arrived[:, None] * policy[row:]).reshape(tiny.prompts, -1)
