"""What a judge raises that had to stop in the middle of its pairs: the line, and what it had answered by then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nashpo.llm.judges.judge import Verdict


class Interrupted(ValueError):
    """A judge stopped, by no fault of the pairs; asked again later, it will answer the rest.

    Attributes
    ----------
    answered : mapping from the place of a pair to its Verdict
        What is paid for already.
    """

    def __init__(self, message: str, answered: Mapping[int, Verdict]) -> None:
        super().__init__(message)
        self.answered = dict(answered)
