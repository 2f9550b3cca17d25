"""What connections may do at a real process of ``hubhound serve``: long heads, silence, crowds, offers to upgrade."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from engine.concepts import ConceptCache
from tests.support.service import PROGRAM, Served, serving
from tests.support.small_index import make_filled_index, vector

QUICK = ("--preload", "no", "--names", "no")
HEAD_S, KEPT_S, LINGER_S = 0.7, 5.0, 1.0
IMPATIENT = f"""
from query.api.protocol import Connection
Connection.HEAD_S, Connection.LINGER_S = {HEAD_S}, {LINGER_S}
from query.cli.main import main
main()
"""
BODY = b'{"concepts": ["cat"], "k": 3}'
HEAD = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
TIMES_OUT_S = 8.0


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "zoo"
    make_filled_index(folder)
    ConceptCache(folder / "concepts.sqlite").put({"cat": vector("cat")})
    return folder


@pytest.fixture(scope="module")
def served(zoo: Path) -> Iterator[Served]:
    with serving(zoo, zoo.parent / "errors", *QUICK, program=(sys.executable, "-c", IMPATIENT)) as served:
        yield served
        assert "Traceback" not in served.told()


def connect(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=TIMES_OUT_S)


def rest_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except (ConnectionResetError, BrokenPipeError):
        pass
    return b"".join(parts)


def answers_in(text: bytes, count: int) -> list[tuple[int, bytes]]:
    """Status and body of answers that follow one another, whose lengths are told."""
    found = []
    for _ in range(count):
        head, _, text = text.partition(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        found.append((int(head.split()[1]), text[:length]))
        text = text[length:]
    assert text == b""
    return found


def status_of(connection: socket.socket) -> int:
    """Of one answer whose length is told; all of it is read."""
    text = b""
    while True:
        text += connection.recv(65_536)
        head, end, body = text.partition(b"\r\n\r\n")
        if end and len(body) == int(head.lower().partition(b"content-length: ")[2].split()[0]):
            return int(head.split()[1])


def closed_after(connection: socket.socket) -> float:
    begun = time.monotonic()
    rest_of(connection)
    return time.monotonic() - begun


@pytest.mark.parametrize("value", [b"a" * 70_000, b"a" * 5_000_000, b"a\r\nX-B: b" * 8_000])
def test_a_long_head_is_refused(value: bytes, served: Served) -> None:
    with connect(served) as connection:
        try:
            connection.sendall(GET + b"X-A: " + value)  # its end never comes
        except (ConnectionResetError, BrokenPipeError):
            assert len(value) > 1_000_000
            return
        answer = rest_of(connection)
    if len(value) < 1_000_000:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"\r\nconnection: close" in head.lower()
        assert b"\r\ncontent-type: application/problem+json" in head.lower()
        assert int(head.lower().partition(b"content-length: ")[2].split()[0]) == len(body)
        problem = json.loads(body)
        assert (problem["type"], problem["status"]) == ("urn:hubhound:problem:too-large", 413)
        assert "65,536 bytes" in problem["detail"]
        assert f"\r\nx-request-id: {problem['instance']}\r\n".encode() in head.lower() + b"\r\n"
        assert f"request {problem['instance']}: status 413" in served.told()


def test_the_largest_head_is_answered_and_one_byte_more_is_not(served: Served) -> None:
    for size, status in ((65_536, 200), (65_537, 413)):
        begin = GET + b"Connection: close\r\nX-A: "
        with connect(served) as connection:
            connection.sendall(begin + b"a" * (size - len(begin) - 4) + b"\r\n\r\n")
            assert rest_of(connection).split()[1] == str(status).encode()


def test_heads_on_a_kept_connection_are_counted_one_by_one(served: Served) -> None:
    one = GET + b"X-A: " + b"a" * 40_000 + b"\r\n\r\n"
    with connect(served) as connection:
        for _ in range(3):
            connection.sendall(one)
            assert status_of(connection) == 200
        connection.sendall(one[:-4] + b"a" * 40_000)
        assert rest_of(connection).startswith(b"HTTP/1.1 413")


def test_heads_that_come_together_are_counted_one_by_one(served: Served) -> None:
    one = GET + b"X-A: " + b"a" * 40_000 + b"\r\n"
    with connect(served) as connection:
        connection.sendall((one + b"\r\n") * 3 + one + b"Connection: close\r\n\r\n")
        assert [status for status, _ in answers_in(rest_of(connection), 4)] == [200] * 4


def test_what_follows_a_body_in_chunks_has_the_same_limit(served: Served) -> None:
    """Kept by the parser as well, and never asked for."""
    with connect(served) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-A: ")
        begun = time.monotonic()
        try:
            for _ in range(40):
                connection.sendall(b"a" * 10_000)
                time.sleep(0.02)
        except (ConnectionResetError, BrokenPipeError):
            pass
        else:
            assert rest_of(connection) == b""
        assert time.monotonic() - begun < TIMES_OUT_S / 2


def test_large_bodies_are_no_heads(served: Served) -> None:
    padding = b" " * 900_000
    whole = httpx.post(f"{served.url}/v1/search", content=BODY + padding, headers={"Content-Type": "application/json"})
    assert whole.status_code == 200
    pieces = iter([BODY, *[padding[:7] for _ in range(20_000)]])
    chunks = httpx.post(f"{served.url}/v1/search", content=pieces, headers={"Content-Type": "application/json"})
    assert chunks.status_code == 200
    assert chunks.json()["results"] == whole.json()["results"]


@pytest.mark.parametrize("said", [b"", b"GET /hea", GET])
def test_who_says_too_little_is_cut_off(said: bytes, served: Served) -> None:
    with connect(served) as connection:
        connection.sendall(said)
        assert HEAD_S - 0.2 < closed_after(connection) < HEAD_S + 2


def test_a_drop_at_a_time_does_not_keep_a_connection(served: Served) -> None:
    with connect(served) as connection:
        begun = time.monotonic()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            for byte in GET * 100:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        assert HEAD_S - 0.2 < time.monotonic() - begun < HEAD_S + 2


def test_on_a_kept_connection_the_time_begins_with_the_first_byte(served: Served) -> None:
    with connect(served) as connection:
        for _ in range(2):
            connection.sendall(GET + b"\r\n")
            assert status_of(connection) == 200
            time.sleep(HEAD_S + 0.5)  # idle for longer than a head may take
        connection.sendall(b"GET /hea")
        assert HEAD_S - 0.2 < closed_after(connection) < HEAD_S + 2


def test_an_idle_kept_connection_has_a_time_of_its_own(served: Served) -> None:
    with connect(served) as connection:
        connection.sendall(GET + b"\r\n")
        assert status_of(connection) == 200
        assert KEPT_S - 0.5 < closed_after(connection) < KEPT_S + 2


def test_a_body_that_nobody_reads_does_not_keep_a_connection(served: Served) -> None:
    """Uvicorn's time for idle connections ends with the next byte and does not begin again."""
    with connect(served) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        assert status_of(connection) == 404
        connection.sendall(b"{")
        assert closed_after(connection) < KEPT_S + 2


def test_a_slow_body_is_no_slow_head(served: Served) -> None:
    with connect(served) as connection:
        connection.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        for begin in range(0, len(BODY), 10):
            time.sleep(HEAD_S / 2)
            connection.sendall(BODY[begin : begin + 10])
        assert rest_of(connection).startswith(b"HTTP/1.1 200")


def limits_of(served: Served) -> tuple[int, int]:
    lines = Path(f"/proc/{served.process.pid}/limits").read_text().splitlines()
    soft, hard = next(line for line in lines if line.startswith("Max open files")).split()[3:5]
    return int(soft), int(hard)


def test_a_crowd_is_closed_and_the_service_goes_on(zoo: Path, tmp_path: Path) -> None:
    limited = ("/bin/sh", "-c", 'ulimit -Sn 256 && ulimit -Hn 320 && exec "$@"', "sh", *PROGRAM)
    with serving(zoo, tmp_path / "errors", *QUICK, program=limited) as served, httpx.Client() as client:
        assert limits_of(served) == (320, 320)
        assert client.get(f"{served.url}/healthz").status_code == 200  # a connection that is kept
        with ExitStack() as crowd:
            silent = [crowd.enter_context(connect(served)) for _ in range(400)]
            time.sleep(0.5)
            descriptors = len(list(Path(f"/proc/{served.process.pid}/fd").iterdir()))
            search = client.post(f"{served.url}/v1/search", json=json.loads(BODY))
            assert search.status_code == 200
            open_now = 0
            for one in silent:
                one.setblocking(False)
                try:
                    assert one.recv(1) == b""
                except BlockingIOError:
                    open_now += 1
                except ConnectionResetError:
                    pass
        # Half of 320, as 200 cannot be spared; the client's is among them.
        assert open_now == 159
        assert descriptors < 250
        time.sleep(0.2)
        assert httpx.get(f"{served.url}/healthz").status_code == 200
        assert served.end() == 0
        told = served.told()
    assert told.count("connections are open, which is all there may be") == 1
    assert "Traceback" not in told
    assert "Too many open files" not in told


H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
WEBSOCKET = (
    b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.parametrize("piece_bytes", [100_000, 37, 1])
@pytest.mark.parametrize("offer", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
def test_who_offers_an_upgrade_is_answered(offer: bytes, piece_bytes: int, served: Served) -> None:
    length = b"Content-Length: %d\r\n\r\n" % len(BODY)
    chunked = b"Transfer-Encoding: chunked\r\n\r\n5\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (
        BODY[:5],
        len(BODY) - 5,
        BODY[5:],
    )
    several = HEAD + length + BODY  # one that offers nothing
    several += HEAD + offer + length + BODY
    several += HEAD + offer + chunked
    several += GET + offer + b"\r\n"
    several += HEAD + length.replace(b"Content", b"Connection: close\r\nContent", 1) + BODY
    with connect(served) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for begin in range(0, len(several), piece_bytes):
            connection.sendall(several[begin : begin + piece_bytes])
        answers = answers_in(rest_of(connection), 5)
    assert [status for status, _ in answers] == [200] * 5
    searches = [json.loads(body)["results"] for number, (_, body) in enumerate(answers) if number != 3]
    assert searches == [searches[0]] * 4
    assert [hit["output"] for hit in searches[0][0]["hits"]]


def test_a_long_head_that_offers_an_upgrade_is_refused(served: Served) -> None:
    with connect(served) as connection:
        connection.sendall(GET + H2C + b"X-A: " + b"a" * 70_000 + b"\r\n\r\n")
        assert rest_of(connection).startswith(b"HTTP/1.1 413")


def test_what_is_no_http_is_refused(served: Served) -> None:
    for said in (
        b"hello\r\n\r\n",
        GET + b"a b c\r\n\r\n",
        b"CONNECT a.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ):
        with connect(served) as connection:
            connection.sendall(said)
            assert 400 <= int(rest_of(connection).split()[1]) < 500


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_curl_with_and_without_http2(version: str, served: Served) -> None:
    command = ["curl", "-sS", version, f"{served.url}/v1/search", "-H", "Content-Type: application/json"]
    done = subprocess.run([*command, "-d", BODY.decode()], capture_output=True, timeout=20, check=True)
    assert json.loads(done.stdout)["results"][0]["query"]["text"] == "cat"
