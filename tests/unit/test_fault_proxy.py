"""The proxy of faults does what its script says, and tells what it did."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tests.support.fault_proxy import DROP, Answer, FaultProxy, Hang, Refuse, Reset, Rule, Slow, fault_proxy

BODY = b"x" * 20_000


class _Counting(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.got.append((self.path, content))  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.send_header("X-Own", "kept")
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), _Counting)
    running.got = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join(5)


def _url(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def _got(server: ThreadingHTTPServer) -> int:
    return len(server.got)  # type: ignore[attr-defined]


def _post(proxy: FaultProxy, path: str = "/a", timeout_s: float = 10) -> httpx.Response:
    return httpx.post(proxy.url + path, content=b"hello", timeout=timeout_s)


def test_what_no_rule_wants_goes_through_unchanged(server: ThreadingHTTPServer) -> None:
    with fault_proxy(_url(server), Rule(Answer(), path="/other")) as proxy:
        answer = _post(proxy, "/a?wait=true")
    assert (answer.status_code, answer.content, answer.headers["X-Own"]) == (200, BODY, "kept")
    assert server.got == [("/a?wait=true", b"hello")]  # type: ignore[attr-defined]
    (seen,) = proxy.seen
    assert (seen.method, seen.path, seen.executed, seen.status, seen.size_bytes) == (
        "POST",
        "/a?wait=true",
        True,
        200,
        5,
    )


def test_an_answer_is_given_in_place_of_the_server(server: ThreadingHTTPServer) -> None:
    with fault_proxy(_url(server), Rule(Answer(503, "busy", retry_after_s=2), numbers={2})) as proxy:
        answers = [_post(proxy) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 503, 200]
    assert answers[1].headers["Retry-After"] == "2"
    assert answers[1].json()["status"] == {"error": "busy"}
    assert _got(server) == 2
    assert proxy.count() == 3
    assert proxy.count(executed=False) == 1


def test_a_dropped_answer_was_executed(server: ThreadingHTTPServer) -> None:
    with fault_proxy(_url(server), Rule(DROP, numbers={1})) as proxy:
        with pytest.raises(httpx.TransportError):
            _post(proxy)
        assert _got(server) == 1
        assert proxy.seen[0].executed
        assert proxy.seen[0].status is None
        assert _post(proxy).content == BODY


def test_a_reset_before_was_not_executed(server: ThreadingHTTPServer) -> None:
    with fault_proxy(_url(server), Rule(Reset(), numbers={1})) as proxy, pytest.raises(httpx.TransportError):
        _post(proxy)
    assert _got(server) == 0
    assert not proxy.seen[0].executed


def test_a_reset_in_the_middle_lets_so_much_through(server: ThreadingHTTPServer) -> None:
    got = b""
    with (
        fault_proxy(_url(server), Rule(Reset(executed=True, after_bytes=5000))) as proxy,
        pytest.raises(httpx.TransportError),
        httpx.stream("POST", proxy.url + "/a", content=b"", timeout=10) as answer,
    ):
        for part in answer.iter_raw():
            got += part
    assert 0 < len(got) < 5000  # the head is part of it
    assert _got(server) == 1


def test_silence_ends_with_the_clients_patience(server: ThreadingHTTPServer) -> None:
    with fault_proxy(_url(server), Rule(Hang(), numbers={1}), Rule(Hang(executed=True), numbers={1})) as proxy:
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                _post(proxy, timeout_s=0.3)
        started = time.monotonic()
    assert time.monotonic() - started < 5  # the end of the proxy ends the silence
    assert [seen.executed for seen in proxy.seen] == [False, True]
    assert _got(server) == 1


def test_slow_is_slow_and_whole(server: ThreadingHTTPServer) -> None:
    with fault_proxy(_url(server), Rule(Slow(bytes_per_s=50_000, latency_s=0.1))) as proxy:
        started = time.monotonic()
        answer = _post(proxy)
        seconds = time.monotonic() - started
    assert answer.content == BODY
    assert seconds > 0.4  # 0.1 s, then 20 kB at 50 kB/s


def test_refused_connections(server: ThreadingHTTPServer) -> None:
    with fault_proxy(_url(server), Rule(Refuse(), numbers={2})) as proxy, httpx.Client() as client:
        assert client.post(proxy.url).status_code == 200
        with pytest.raises(httpx.TransportError):
            client.post(proxy.url)
        for _ in range(3):
            with pytest.raises(httpx.ConnectError, match="refused"):
                client.post(proxy.url)
        proxy.listen()
        assert client.post(proxy.url).status_code == 200
        proxy.refuse(0.3)
        with pytest.raises(httpx.ConnectError, match="refused"):
            client.post(proxy.url)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                assert client.post(proxy.url).status_code == 200
                break
            except httpx.ConnectError:
                time.sleep(0.02)
        else:
            pytest.fail("the proxy did not listen again")
    assert _got(server) == 3


def test_a_server_that_is_gone_is_a_reset(server: ThreadingHTTPServer) -> None:
    with fault_proxy(_url(server)) as proxy:
        server.shutdown()
        server.server_close()
        with pytest.raises(httpx.TransportError):
            _post(proxy)


def test_rules_by_path_method_number_times_and_chance() -> None:
    by_path = Rule(Answer(), method="PUT", path="/points$", numbers={2, 3})
    asked = [("PUT", "/points"), ("GET", "/points"), ("PUT", "/points/x"), ("PUT", "/points"), ("PUT", "/a/points")]
    assert [by_path.wants(*one) for one in asked] == [False, False, False, True, True]
    twice = Rule(Answer(), times=2)
    assert [twice.wants("GET", "/") for _ in range(4)] == [True, True, False, False]
    chances = [Rule(Answer(), probability=0.3, seed=seed) for seed in (1, 1, 2)]
    drawn = [[rule.wants("GET", "/") for _ in range(1000)] for rule in chances]
    assert drawn[0] == drawn[1] != drawn[2]
    assert 250 < sum(drawn[0]) < 350


def test_the_first_rule_that_wants_a_request_has_it(server: ThreadingHTTPServer) -> None:
    with fault_proxy(_url(server), Rule(Answer(500), times=1), Rule(Answer(429), times=1)) as proxy:
        assert [_post(proxy).status_code for _ in range(3)] == [500, 429, 200]
        proxy.rules = [Rule(Answer(408))]
        assert _post(proxy).status_code == 408
