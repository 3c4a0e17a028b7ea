"""Servers on 127.0.0.1 for the tests of what speaks HTTP: they fail, stall, lie, die and come back as they are told."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from nashpo.llm.http import Waits


@dataclass(frozen=True)
class Asked:
    """A request; ``number`` counts from 0."""

    number: int
    path: str
    body: Any
    headers: Any


@dataclass(frozen=True)
class Reply:
    """What is sent: JSON, or bytes as they are; ``stall`` holds it back until the test is over, ``drip`` sends a byte
    every 20 ms, ``hang_up`` closes the connection instead."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    stall: bool = False
    drip: bool = False
    hang_up: bool = False


class Loopback:
    """A server that answers POSTs by a function; ``GET /v1/models`` has an answer of its own.

    ``with Loopback(answer) as server: ...``; `stop` and `start` in between keep the port.
    """

    def __init__(self, answer: Callable[[Asked], Any], models: Any = None) -> None:
        self.answer = answer
        self.models = {"data": [{"id": "m"}]} if models is None else models
        self.asked: list[Asked] = []
        self.tried = 0  # all requests, those for models too
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._port = 0
        self._open: list[socket.socket] = []
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> Loopback:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

            def setup(self) -> None:
                super().setup()
                with owner._lock:
                    owner._open.append(self.connection)

            def do_GET(self) -> None:
                owner.tried += 1
                models = owner.models if isinstance(owner.models, Reply) else Reply(owner.models)
                self._send(models if self.path == "/v1/models" else Reply({}, 404))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner._lock:
                    owner.tried += 1
                    asked = Asked(len(owner.asked), self.path, body, self.headers)
                    owner.asked.append(asked)
                reply = owner.answer(asked)
                self._send(reply if isinstance(reply, Reply) else Reply(reply))

            def _send(self, reply: Reply) -> None:
                if reply.stall:
                    owner.over.wait()
                if reply.hang_up or reply.stall:
                    self.close_connection = True
                    return
                content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                pieces = [content] if not reply.drip else [content[i : i + 1] for i in range(len(content))]
                for piece in pieces:
                    try:
                        self.wfile.write(piece)
                    except OSError:  # the client has gone
                        return
                    if reply.drip and owner.over.wait(0.02):
                        return

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        with self._lock:
            for connection in self._open:  # those that are kept alive too, as when a process dies
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._open.clear()

    def __enter__(self) -> Loopback:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.stop()


class Clock:
    """Time that passes by sleeping only; ``at`` maps seconds to what happens then."""

    def __init__(self, at: dict[float, Callable[[], object]] | None = None) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self._at = dict(sorted((at or {}).items()))
        self._lock = threading.Lock()

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.slept.append(seconds)
            self.now += seconds
            for due in [due for due in self._at if due <= self.now]:
                self._at.pop(due)()

    def waits(self) -> Waits:
        return Waits(sleep=self.sleep, clock=lambda: self.now, jitter=lambda: 0.0)


def quick() -> Waits:
    """Real time, hardly waited for."""
    return Waits(first=0.01, longest=0.05)
