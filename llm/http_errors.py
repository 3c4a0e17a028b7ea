"""What a request over HTTP can end with, and reading parts of an answer that may be anything."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


class ServerError(ValueError):
    """What a request can end with; the line names the address."""


class ServerDown(ServerError):
    """No request was answered for as long as the server is waited for."""


class Unanswered(ServerError):
    """This request was not answered, although the server answers others."""


class Refused(ServerError):
    """The server will not answer this request, however often it is asked.

    Attributes
    ----------
    status : int
        HTTP status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class WrongAnswer(ServerError):
    """An answer that cannot be used; raised by readers of answers too."""


def member(answer: Any, *path: str | int, kind: type[T]) -> T:
    """The part of an answer under a path of keys and places.

    Raises
    ------
    WrongAnswer
        If it is not there, or not of this kind.
    """
    found, shown = answer, ""
    for step in path:
        shown += f"[{step}]" if isinstance(step, int) else f".{step}" if shown else step
        try:
            found = found[step]
        except (KeyError, IndexError, TypeError):
            raise WrongAnswer(f"it has no {shown}") from None
    if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
        raise WrongAnswer(f"its {shown} is {_shown(found)}, not of type {kind.__name__}")
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
