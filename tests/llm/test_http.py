"""`nashpo.llm.http` against servers that fail, stall, lie, die and come back. Seconds are counted, not waited for."""

import json
import logging
import threading
import time
import traceback
from email.utils import formatdate
from typing import Any

import pytest
from servers import Asked, Clock, Loopback, Reply, quick

from nashpo.llm.http import Client, Waits, _retry_after
from nashpo.llm.http_address import check_address, key_from
from nashpo.llm.http_errors import Refused, ServerDown, Unanswered, WrongAnswer, member


def number(answer: Any) -> int:
    return member(answer, "n", kind=int)


def echo(asked: Asked) -> Any:
    return {"n": asked.body["n"]}


def test_an_answer_comes_back_in_one_request() -> None:
    with Loopback(echo) as server:
        client = Client(server.url)
        assert client.post("ask", {"n": 7}, number) == 7
        assert [(a.path, a.body) for a in server.asked] == [("/v1/ask", {"n": 7})]
        assert client.get("models", lambda answer: member(answer, "data", 0, "id", kind=str)) == "m"


def test_half_a_surrogate_pair_and_other_letters_arrive() -> None:
    with Loopback(lambda asked: asked.body) as server:
        text = "ä\ud800�\x00"
        assert Client(server.url).post("ask", {"t": text}, lambda answer: member(answer, "t", kind=str)) == text


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(b"<html>"), "no JSON: '<html>'"),
        (Reply(b""), "no JSON"),
        (Reply(b"\xff{"), "no JSON"),
        (Reply(b'{"n": NaN}'), "no JSON"),
        (Reply(b"[" * 100_000), "no JSON"),
        (Reply({}), "has no n"),
        (Reply([1]), "has no n"),
        (Reply({"n": "7"}), "n is '7', not of type int"),
        (Reply({"n": True}), "n is True, not of type int"),
    ],
)
def test_wrong_answers_are_asked_for_again_and_then_reported(reply: Reply, reason: str) -> None:
    with Loopback(lambda asked: reply) as server:
        clock = Clock()
        client = Client(server.url, retries=2, waits=clock.waits())
        with pytest.raises(WrongAnswer, match=r"/v1/ask gave a wrong answer 3 times; at last") as caught:
            client.post("ask", {"n": 7}, number)
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(server.asked) == 3


def test_a_right_answer_after_wrong_ones_counts() -> None:
    with Loopback(lambda asked: Reply(b"?") if asked.number < 3 else {"n": 1}) as server:
        assert Client(server.url, retries=3, waits=Clock().waits()).post("ask", {"n": 1}, number) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 301])
def test_refusals_are_not_asked_again_and_the_server_is_quoted(status: int) -> None:
    with Loopback(lambda asked: Reply({"error": {"message": "no\nsuch model"}}, status)) as server:
        with pytest.raises(Refused, match=f"refused the request with status {status}: no such model$") as caught:
            Client(server.url, waits=Clock().waits()).post("ask", {}, number)
        assert caught.value.status == status
        assert len(server.asked) == 1


def test_backoff_doubles_up_to_its_limit_and_ends_with_patience() -> None:
    with Loopback(lambda asked: Reply(b"starting", 503)) as server:
        clock = Clock()
        with pytest.raises(ServerDown) as caught:
            Client(server.url, retries=2, patience=100.0, waits=clock.waits()).post("ask", {}, number)
    assert clock.slept == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 8.5]
    assert clock.now == 100.0
    told = "is down: asked 10 times in 100 s, at last: status 503: starting; start the server again and run the same"
    assert str(caught.value) == f"{server.url}/ask {told} command: nothing is lost"


def test_jitter_takes_up_to_half_of_a_wait() -> None:
    whole = Waits(jitter=lambda: 0.0)
    half = Waits(jitter=lambda: 1.0)
    assert [half.after(n) / whole.after(n) for n in (1, 2, 10, 10_000)] == [0.5] * 4
    assert 0.25 <= Waits().after(1) <= 0.5


def test_without_patience_only_the_retries_are_made() -> None:
    clock = Clock()
    with Loopback(echo) as server:
        pass  # the port is closed again
    with pytest.raises(ServerDown, match=r"asked 4 times.*refused"):
        Client(server.url, retries=3, patience=0.0, waits=clock.waits()).post("ask", {}, number)


def test_a_server_that_dies_and_comes_back_within_patience_is_waited_for() -> None:
    server = Loopback(echo).start()
    clock = Clock(at={40.0: server.start})
    client = Client(server.url, retries=2, patience=60.0, waits=clock.waits())
    assert client.post("ask", {"n": 1}, number) == 1
    server.stop()
    try:
        assert client.post("ask", {"n": 2}, number) == 2
        assert 40.0 <= clock.now <= 60.0
    finally:
        server.over.set()
        server.stop()


def test_patience_begins_anew_after_every_answer() -> None:
    """A server that fails three times out of four is down for 3.5 s at a time, never for 10."""
    with Loopback(lambda asked: echo(asked) if asked.number % 4 == 3 else Reply({}, 502)) as server:
        clock = Clock()
        client = Client(server.url, retries=0, patience=10.0, waits=clock.waits())
        assert [client.post("ask", {"n": n}, number) for n in range(8)] == list(range(8))
        assert clock.now == 8 * 3.5


@pytest.mark.parametrize(("header", "slept"), [("7", 7.0), ("0", 0.0), ("soon", 0.5), ("-3", 0.5)])
def test_retry_after_is_honoured(header: str, slept: float) -> None:
    with Loopback(lambda asked: echo(asked) if asked.number else Reply({}, 429, {"Retry-After": header})) as server:
        clock = Clock()
        assert Client(server.url, waits=clock.waits()).post("ask", {"n": 1}, number) == 1
        assert clock.slept == [slept]


def test_retry_after_may_be_a_date_and_longer_than_patience() -> None:
    wait = _retry_after(formatdate(time.time() + 100, usegmt=True))
    assert wait is not None
    assert 50 < wait <= 100  # dates have whole seconds; the rest is room for a slow machine
    with Loopback(lambda asked: Reply({}, 429, {"Retry-After": "3600"})) as server:
        clock = Clock()
        with pytest.raises(ServerDown, match=r"wants 3600 s to pass, more than patience = 300"):
            Client(server.url, waits=clock.waits()).post("ask", {}, number)
        assert clock.slept == []


@pytest.mark.parametrize("reply", [Reply(stall=True), Reply({"n": "x" * 40}, drip=True)])
def test_late_answers_are_asked_for_again_and_then_given_up_while_the_server_lives(reply: Reply) -> None:
    """The drip takes a second, of which each read alone takes 20 ms."""
    with Loopback(lambda asked: reply) as server:
        client = Client(server.url, timeout=0.2, retries=1, waits=quick())
        with pytest.raises(Unanswered, match=r"asked \d+ times.*0\.2 s; the server answers other requests"):
            client.post("ask", {}, number)
        assert len(server.asked) >= 2


def test_a_server_that_stalls_on_everything_is_down() -> None:
    with Loopback(lambda asked: Reply(stall=True), models=Reply(stall=True)) as server:
        client = Client(server.url, timeout=0.05, retries=1, patience=0.1, waits=quick())
        with pytest.raises(ServerDown, match=r"no answer within 0\.05 s"):
            client.post("ask", {}, number)


def with_others(url: str, patience: float) -> tuple[Client, Clock]:
    """A client that is answered another request during each wait."""
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        client.post("ask", {"n": 1}, number)

    client = Client(
        url, retries=1, patience=patience, waits=Waits(sleep=sleep, clock=lambda: clock.now, jitter=lambda: 0.0)
    )
    return client, clock


def test_one_poisonous_request_does_not_take_the_server_for_dead() -> None:
    with Loopback(lambda asked: Reply({}, 500) if asked.body["n"] == 3 else echo(asked)) as server:
        client, clock = with_others(server.url, patience=20.0)
        with pytest.raises(Unanswered, match=r"status 500.*answers other requests"):
            client.post("ask", {"n": 3}, number)
        assert 20.0 <= clock.now < 60.0


def test_a_busy_server_is_never_taken_for_a_poisonous_request() -> None:
    with Loopback(lambda asked: Reply({}, 429) if asked.body["n"] == 3 else echo(asked)) as server:
        client, _ = with_others(server.url, patience=5.0)
        with pytest.raises(ServerDown, match=r"too busy.*lower concurrency"):
            client.post("ask", {"n": 3}, number)


def test_a_connection_that_is_hung_up_is_tried_again() -> None:
    with Loopback(lambda asked: Reply(hang_up=True) if asked.number == 0 else echo(asked)) as server:
        assert Client(server.url, waits=Clock().waits()).post("ask", {"n": 1}, number) == 1


def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nashpo.llm.http.LARGEST", 1000)
    with (
        Loopback(lambda asked: {"n": "x" * 2000}) as server,
        pytest.raises(WrongAnswer, match="more than 1000 bytes"),
    ):
        Client(server.url, retries=0).post("ask", {}, number)


def test_many_requests_keep_their_order_and_their_number_at_a_time() -> None:
    running = most = 0
    lock = threading.Lock()

    def answer(asked: Asked) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005 * (asked.body["n"] % 3))
        with lock:
            running -= 1
        return echo(asked)

    with Loopback(answer) as server:
        client = Client(server.url, concurrency=4)
        done: list[int] = []
        found = client.each(lambda n: client.post("ask", {"n": n}, number), list(range(40)), done.append)
        assert found == list(range(40))
        assert sum(done) == 40
        assert 2 <= most <= 4
        assert client.each(lambda n: n, [], done.append) == []


def test_the_first_failure_ends_many_requests() -> None:
    with Loopback(lambda asked: Reply({}, 400) if asked.body["n"] == 2 else echo(asked)) as server:
        client = Client(server.url, concurrency=2, waits=quick())
        with pytest.raises(Refused):
            client.each(lambda n: client.post("ask", {"n": n}, number), list(range(100)))
        assert len(server.asked) < 100


def test_the_key_is_sent_and_appears_nowhere(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    secret = "sk-very-secret-123"
    monkeypatch.setenv("THE_KEY", f" {secret}\n")
    caplog.set_level(logging.DEBUG)
    replies = [Reply({"detail": f"bad key {secret}"}, 401), Reply(f"oops {secret}".encode()), Reply({"n": secret}, 503)]
    with Loopback(lambda asked: replies[int(asked.path[-1])]) as server:
        client = Client(server.url, api_key_env="THE_KEY", retries=0, patience=0.0, waits=quick())
        shown = [repr(client), repr(vars(client)["_http"])]
        for place in range(3):
            try:
                client.post(f"ask{place}", {}, lambda answer: member(answer, "n", kind=int))
            except ValueError:
                shown.append(traceback.format_exc())
        assert server.asked[0].headers["Authorization"] == f"Bearer {secret}"
    assert len(shown) == 5
    assert secret not in "".join(shown) + caplog.text
    assert "***" in shown[2]


def test_without_a_key_no_header_is_sent() -> None:
    with Loopback(echo) as server:
        Client(server.url).post("ask", {"n": 1}, number)
        assert server.asked[0].headers["Authorization"] is None


def test_a_key_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(ValueError, match="NO_KEY, which is not set"):
        key_from("NO_KEY")
    monkeypatch.setenv("NO_KEY", "ä")
    with pytest.raises(ValueError, match="NO_KEY holds letters") as caught:
        key_from("NO_KEY")
    assert "ä" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x/v1", "http://", "http://x:y/v1", None, 7])
def test_addresses_that_are_none(url: Any) -> None:
    with pytest.raises(ValueError, match=r"sampling\.url is .*; it must be the server's address"):
        check_address("sampling.url", url)


@pytest.mark.parametrize("url", ["http://me:secret@x/v1", "https://x/v1?key=secret", "https://x/v1#secret"])
def test_secrets_in_addresses_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match="put the key into") as caught:
        check_address("judge.url", url)
    assert "secret" not in str(caught.value)


def test_proxies_of_the_environment_are_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: nothing listens
    with Loopback(echo) as server:
        assert Client(server.url, retries=0, patience=0.0).post("ask", {"n": 1}, number) == 1


def test_check_tells_a_dead_server_and_a_wrong_key_only() -> None:
    for status in (200, 404, 500):
        with Loopback(echo, models=Reply({}, status)) as server:
            Client(server.url, retries=0, waits=quick()).check()
    for status, error in ((401, Refused), (502, ServerDown)):
        with Loopback(echo, models=Reply({}, status)) as server, pytest.raises(error):
            Client(server.url, retries=0, waits=quick()).check()
    with pytest.raises(ServerDown):
        Client(server.url, retries=1, waits=quick()).check()


def test_a_server_that_hangs_up_after_an_error_of_its_own_is_still_there() -> None:
    """uvicorn closes a connection behind a 500: what is asked next on it finds nobody."""

    class HangingUp(Loopback):
        @property
        def models(self) -> Reply:
            return Reply(hang_up=True) if self.tried == 2 else Reply({}, 500)

        @models.setter
        def models(self, value: object) -> None:
            pass

    with HangingUp(echo) as server:
        Client(server.url, retries=0, waits=quick()).check()
        assert server.tried == 3


def test_members_are_found_by_path() -> None:
    answer = json.loads('{"a": [{"b": 1.5}], "none": null}')
    assert member(answer, "a", 0, "b", kind=float) == 1.5
    for path, reason in ((("a", 1), r"no a\[1\]"), (("a", 0, "c"), r"no a\[0\]\.c"), (("none",), "none is None")):
        with pytest.raises(WrongAnswer, match=reason):
            member(answer, *path, kind=float)
