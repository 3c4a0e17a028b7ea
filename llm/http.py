"""JSON over HTTP to a server that may be slow, busy, wrong or gone for a while.

Times are in seconds. What happens to a request:

- an answer that cannot be used (no JSON, keys missing, a wrong count) is asked for again, ``retries`` times;
- an answer that does not come within ``timeout`` likewise; whoever sends bytes too slowly is late too;
- a server that is not there, or answers 5xx, 429 or 408, is asked again after 0.5, 1, 2, ... up to 30 seconds (less by
  up to a half at random) or after its own Retry-After, until it has answered nothing for ``patience`` seconds;
- any other status ends the request at once.

Keys are read from the environment, go into one header, and are cut out of every message.
"""

from __future__ import annotations

import functools
import json
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn, TypeVar

from nashpo.llm.http_address import check_address, key_from, loopback
from nashpo.llm.http_errors import Refused, ServerDown, ServerError, Unanswered, WrongAnswer

S = TypeVar("S")
T = TypeVar("T")

GO_ON = "start the server again and run the same command: nothing is lost"
LARGEST = 2**26
"""Bytes of an answer that are read, 64 MiB."""
_BUSY = (408, 425, 429)
_SHOWN = 300
"""Letters of a server's own words in a message."""


class _Down(Exception):
    """Refused connections and statuses that may pass; ``busy`` where the server asks for fewer requests."""

    def __init__(self, reason: str, wait: float | None = None, busy: bool = False, status: int | None = None) -> None:
        super().__init__(reason)
        self.wait = wait
        self.busy = busy
        self.status = status


class _Late(Exception):
    """No answer in time."""


@dataclass(frozen=True)
class Waits:
    """How long and by what means is waited between attempts.

    Attributes
    ----------
    first, longest : float
        Back-off after the first failure, and its limit.
    sleep, clock, jitter : callable
        As in `time` and `random`; jitter is uniform on [0, 1).
    """

    first: float = 0.5
    longest: float = 30.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    # A generator of its own: the global one's state belongs to the run.
    jitter: Callable[[], float] = field(default_factory=lambda: random.Random().random)

    def after(self, attempts: int) -> float:
        """Seconds before the next attempt."""
        return min(self.longest, self.first * 2.0 ** min(attempts - 1, 32)) * (1 - self.jitter() / 2)


class Client:
    """Asks one server. Safe to use from several threads.

    Parameters
    ----------
    url : str
        Base address, as ``http://localhost:8000/v1``.
    api_key_env : str, optional
        Environment variable with the key that is sent as bearer token.
    timeout : float
        For one answer.
    retries : int
        Further attempts after a failure.
    patience : float
        How long a server that answers nothing is waited for.
    concurrency : int
        Requests under way at one time in `each`.
    waits : Waits

    Raises
    ------
    ValueError
        On an address or a key that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key_env: str | None = None,
        timeout: float = 600.0,
        retries: int = 5,
        patience: float = 300.0,
        concurrency: int = 8,
        waits: Waits | None = None,
    ) -> None:
        import httpx2  # here, so that settings can be checked without it

        check_address("url", url)
        self.url = url.rstrip("/")
        self.timeout, self.retries, self.patience, self.concurrency = timeout, retries, patience, concurrency
        self.waits = waits or Waits()
        self._key = key_from(api_key_env)
        self._lock = threading.Lock()
        self._silent_since: float | None = None
        self._http = httpx2.Client(
            headers={} if self._key is None else {"Authorization": f"Bearer {self._key}"},
            timeout=httpx2.Timeout(timeout, connect=min(timeout, 30.0), pool=None),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=concurrency),
            verify=_certificates(),
            trust_env=not loopback(url),  # a proxy of the environment does not know this machine's own servers
        )

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def post(self, path: str, body: Any, read: Callable[[Any], T]) -> T:
        """Send ``body`` as JSON to ``path`` below the address; what ``read`` makes of the answer.

        Parameters
        ----------
        read : callable
            From the JSON of the answer; raises `WrongAnswer` where it cannot be used.

        Raises
        ------
        WrongAnswer, Unanswered, Refused, ServerDown
            See the module; each with one line.
        """
        return self._ask("POST", path, body, lambda content: read(self._parsed(content)), self.patience)

    def tell(self, path: str, body: Any) -> str:
        """As `post`, to a server whose answer is any text."""
        return self._ask("POST", path, body, lambda content: self._clean(_line(content)), self.patience)

    def get(self, path: str, read: Callable[[Any], T], patience: float | None = None) -> T:
        """As `post`, without a body; ``path`` may be a whole address."""
        waited = self.patience if patience is None else patience
        return self._ask("GET", path, None, lambda content: read(self._parsed(content)), waited)

    def check(self) -> None:
        """That something answers under the address; a server that is not there is not waited for.

        Raises
        ------
        ServerDown, Refused
            If nothing answers, or the key is wrong.
        """
        try:
            self.get("models", lambda answer: None, patience=0.0)
        except (WrongAnswer, Unanswered):
            return
        except Refused as error:
            if error.status in (401, 403):
                raise
        except ServerDown:
            if not self._there():
                raise

    def each(
        self, work: Callable[[S], T], items: Sequence[S], done: Callable[[int], None] = lambda count: None
    ) -> list[T]:
        """``work`` on all items, ``concurrency`` at a time; results in the items' order.

        Parameters
        ----------
        done : callable
            Called in this thread with 1 for each finished item.

        Raises
        ------
        BaseException
            The first that ``work`` raised; no further item is begun then.
        """
        places: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in range(len(items)):
            places.put(place)
        answers: queue.SimpleQueue[tuple[int, T | None, BaseException | None]] = queue.SimpleQueue()
        stopped = threading.Event()

        def serve() -> None:
            while not stopped.is_set():
                try:
                    place = places.get_nowait()
                except queue.Empty:
                    return
                try:
                    answers.put((place, work(items[place]), None))
                except BaseException as error:
                    answers.put((place, None, error))

        # Daemons: after Ctrl-C the process need not wait for answers that nobody wants any more.
        for _ in range(min(self.concurrency, len(items))):
            threading.Thread(target=serve, daemon=True, name="nashpo-http").start()
        found: dict[int, Any] = {}
        try:
            while len(found) < len(items):
                place, answer, error = answers.get()
                if error is not None:
                    raise error
                found[place] = answer
                done(1)
        finally:
            stopped.set()
        return [found[place] for place in range(len(items))]

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _ask(self, method: str, path: str, body: Any, read: Callable[[bytes], T], patience: float) -> T:
        tried = 0
        since: float | None = None  # the first failure after the last answer to this very request
        where = path if "://" in path else f"{self.url}/{path}"
        while True:
            tried += 1
            failed: _Down | _Late | None = None
            try:
                answer = read(self._fetch(method, where, body, self.timeout))
            except WrongAnswer as failure:
                self._heard()
                since = None
                if tried > self.retries:
                    reason = self._without_key(str(failure))
                    raise WrongAnswer(f"{where} gave a wrong answer {_times(tried)}; at last {reason}") from None
            except (_Down, _Late) as error:
                failed = error
            else:
                self._heard()
                return answer
            # Outside of the handlers: what ends a request here has no chain of earlier errors.
            wait = self.waits.after(tried)
            if failed is not None:
                since = self.waits.clock() if since is None else since
                wait = self._wait(failed, where, tried, since, patience)
            self.waits.sleep(wait)

    def _wait(self, failure: _Down | _Late, where: str, tried: int, since: float, patience: float) -> float:
        """Seconds until the next attempt; raises where there is none."""
        if isinstance(failure, _Late) and tried > self.retries and self._there():
            raise Unanswered(f"{where}, asked {_times(tried)}: {failure}; the server answers other requests")
        now = self.waits.clock()
        with self._lock:
            if self._silent_since is None:
                self._silent_since = now
            silent = now - self._silent_since
        told = failure.wait if isinstance(failure, _Down) else None
        asked = f"asked {_times(tried)} in {now - since:.0f} s, at last: {failure}"
        if told is not None and told > patience:
            raise ServerDown(f"{where} wants {told:g} s to pass, more than patience = {patience:g}: {asked}; {GO_ON}")
        if tried > self.retries and silent >= patience:
            raise ServerDown(f"{where} is down: {asked}; {GO_ON}")
        # Less silence than this request has failed for: others were answered meanwhile.
        if tried > self.retries and now - since >= patience:
            if isinstance(failure, _Down) and failure.busy:
                raise ServerDown(f"{where} is too busy: {asked}; lower concurrency or raise patience; {GO_ON}")
            raise Unanswered(f"{where} did not answer: {asked}; the server answers other requests")
        wait = self.waits.after(tried) if told is None else told
        left = patience - silent
        # The last attempt is made when patience ends, not up to half a minute later.
        return min(wait, left) if tried >= self.retries and left > 0 and told is None else wait

    def _heard(self) -> None:
        with self._lock:
            self._silent_since = None

    def _there(self) -> bool:
        """Whether something answers when it is asked for its models, be it with an error of its own."""
        for _ in range(2):  # a connection that was kept may be closed by now
            try:
                self._fetch("GET", f"{self.url}/models", None, min(self.timeout, 10.0))
            except _Down as failure:
                if failure.status is None:
                    continue
                return failure.busy or failure.status == 500  # other 5xx come from what stands before a dead server
            except _Late:
                return False
            except ServerError:
                pass
            return True
        return False

    def _fetch(self, method: str, where: str, body: Any, timeout: float) -> bytes:
        import httpx2

        # Escaped, so that half a surrogate pair in a text cannot stop a request.
        sent = None if body is None else json.dumps(body, allow_nan=False).encode("ascii")
        kind = {} if sent is None else {"Content-Type": "application/json"}
        until = self.waits.clock() + timeout
        parts: list[bytes] = []
        size = 0
        try:
            with self._http.stream(method, where, content=sent, headers=kind) as response:
                for part in response.iter_bytes():
                    parts.append(part)
                    size += len(part)
                    if size > LARGEST:
                        raise WrongAnswer(f"more than {LARGEST} bytes")
                    if self.waits.clock() > until:  # the library's timeout is for one read
                        raise _Late(f"not finished after {timeout:g} s")
        except httpx2.ConnectTimeout:
            raise _Down("no connection in time") from None
        except httpx2.TimeoutException:
            raise _Late(f"no answer within {timeout:g} s") from None
        except httpx2.DecodingError:
            raise WrongAnswer("it cannot be decompressed") from None
        except httpx2.HTTPError as error:
            raise _Down(self._clean(str(error) or type(error).__name__)) from None
        return self._checked(where, response, b"".join(parts))

    def _checked(self, where: str, response: Any, content: bytes) -> bytes:
        status = int(response.status_code)
        if status in _BUSY or status >= 500:
            wait = _retry_after(response.headers.get("Retry-After"))
            raise _Down(f"status {status}{self._words(content)}", wait, status in _BUSY, status)
        if not 200 <= status < 300:
            raise Refused(f"{where} refused the request with status {status}{self._words(content)}", status)
        return content

    def _parsed(self, content: bytes) -> Any:
        try:
            return json.loads(content, parse_constant=_no_number)
        except (ValueError, RecursionError):
            raise WrongAnswer(f"it is no JSON: {self._clean(_line(content))!r}") from None

    def _words(self, content: bytes) -> str:
        """What a server says about an error, behind a colon."""
        text = _line(content)
        try:
            found = json.loads(content)
            for name in ("error", "detail", "message"):
                if isinstance(found, dict) and name in found:
                    found = found[name]
            text = " ".join(str(found).split()) or text
        except (ValueError, RecursionError):
            pass
        return f": {self._clean(text)}" if text else ""

    def _without_key(self, text: str) -> str:
        return text if self._key is None else text.replace(self._key, "***")

    def _clean(self, text: str) -> str:
        text = " ".join(self._without_key(text).split())
        return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _times(tried: int) -> str:
    return "once" if tried == 1 else f"{tried} times"


def _line(content: bytes) -> str:
    return " ".join(content[:2048].decode("utf-8", "replace").split())[:_SHOWN]


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, in either of its two forms; None where it says nothing usable."""
    if value is None:
        return None
    try:
        if value.strip().isdecimal():
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


@functools.cache
def _certificates() -> Any:
    """Read once: it takes longer than a request."""
    import httpx2

    return httpx2.create_ssl_context()
