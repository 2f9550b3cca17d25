"""Keys, rates and refusals at a real process of ``hubhound serve``, over a real socket."""

from __future__ import annotations

import concurrent.futures
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.service import Served, serving
from tests.support.small_index import make_filled_index

ALICE, BOB, CAROL = "alice-0123456789abcdef", "bob-0123456789abcdefgh", "carol-0123456789abcdef"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"alice {ALICE}\nbob {BOB}\n")
    return path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    make_filled_index(folder / "zoo")
    options = ("--api-key-file", str(keys), "--rate-limit", "600", "--max-body-mb", "1", "--request-timeout-s", "2")
    options += ("--preload", "no", "--names", "no")
    with serving(folder / "zoo", folder / "errors", *options) as served:
        yield served


def ask(served: Served, key: str | None, path: str = "/v1/models") -> httpx.Response:
    return httpx.get(served.url + path, headers=bearer(key) if key else {}, timeout=10)


def wait_for(served: Served, key: str, status: int, within_s: float = 3.0) -> float:
    begun = time.monotonic()
    while ask(served, key, "/metrics").status_code != status:
        assert time.monotonic() - begun < within_s
        time.sleep(0.05)
    return time.monotonic() - begun


def test_wrong_missing_right_revoked_and_added(served: Served, keys: Path) -> None:
    assert ask(served, None).status_code == 401
    assert ask(served, None).headers["www-authenticate"] == "Bearer"
    assert ask(served, "wrong-0123456789abcdef").json()["type"] == "urn:hubhound:problem:unauthorised"
    assert ask(served, ALICE).status_code == 200
    assert ask(served, None, "/healthz").status_code == 200
    before = keys.read_text()
    try:
        keys.write_text(f"bob {BOB}\ncarol {CAROL}\n")
        wait_for(served, ALICE, 401)
        assert ask(served, BOB).status_code == 200
        assert ask(served, CAROL).status_code == 200
        keys.unlink()
        wait_for(served, BOB, 401)
        assert ask(served, None, "/healthz").status_code == 200
    finally:
        keys.write_text(before)
    wait_for(served, ALICE, 200)
    for key in (ALICE, BOB, CAROL):
        assert key not in served.told()


def test_fifty_clients_at_once_never_get_more_than_the_bucket(served: Served) -> None:
    """600 a minute: 100 at once and 10 a second; measured from outside, before the first and after the last."""
    time.sleep(1)  # what other tests took of bob's bucket flows back

    def client(_: int) -> list[int]:
        with httpx.Client(timeout=30, headers=bearer(BOB)) as one:
            return [one.get(served.url + "/metrics").status_code for _ in range(6)]

    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        statuses = [status for found in pool.map(client, range(50)) for status in found]
    seconds = time.monotonic() - begun
    let_in = statuses.count(200)
    assert set(statuses) == {200, 429}
    assert let_in <= 100 + 10 * seconds + 1
    assert let_in >= 90
    refused = ask(served, BOB, "/metrics")
    while refused.status_code == 200:
        refused = ask(served, BOB, "/metrics")
    time.sleep(int(refused.headers["retry-after"]))
    assert ask(served, BOB, "/metrics").status_code == 200
    assert ask(served, ALICE, "/metrics").status_code == 200


def raw(served: Served, head: str, *bodies: bytes, pause_s: float = 0.0) -> bytes:
    """What comes back on a bare connection until the server closes it, 6 s at most."""
    url = httpx.URL(served.url)
    with socket.create_connection((url.host, url.port or 80), timeout=6) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode())
        try:
            for body in bodies:
                connection.sendall(body)
                time.sleep(pause_s)
        except (ConnectionResetError, BrokenPipeError):
            pass
        parts = []
        while part := connection.recv(65_536):
            parts.append(part)
        return b"".join(parts)


HEAD = f"POST /v1/search HTTP/1.1\nHost: localhost\nAuthorization: Bearer {ALICE}\nContent-Type: application/json\n"


@pytest.mark.parametrize("length", ["Content-Length: 30000000", "Transfer-Encoding: chunked"])
def test_who_sends_too_much_reads_why_and_is_cut_off(served: Served, length: str) -> None:
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    bodies = [chunk if "chunked" in length else b" " * 65_536] * 100
    answer = raw(served, f"{HEAD}{length}\n\n", *bodies)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert answer.endswith(b"}")
    assert b"urn:hubhound:problem:too-large" in answer


def test_who_asks_before_sending_is_told_at_once(served: Served) -> None:
    answer = raw(served, f"{HEAD}Content-Length: 30000000\nExpect: 100-continue\n\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_who_sends_a_drop_at_a_time_is_given_up(served: Served) -> None:
    begun = time.monotonic()
    answer = raw(served, f"{HEAD}Content-Length: 1000\n\n", *[b" "] * 30, pause_s=0.1)
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b"urn:hubhound:problem:timeout" in answer
    assert time.monotonic() - begun < 6


def test_a_page_that_calls_this_machine_by_its_own_name_gets_nothing(served: Served) -> None:
    answer = raw(served, f"GET /v1/models HTTP/1.1\nHost: evil.example\nAuthorization: Bearer {ALICE}\n"
                         "Connection: close\n\n")  # fmt: skip
    assert answer.startswith(b"HTTP/1.1 421 ")
    answer = raw(served, f"{HEAD}Origin: http://evil.example\nConnection: close\nContent-Length: 2\n\n", b"{}")
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"access-control" not in answer.lower()


def test_it_is_still_well(served: Served) -> None:
    text = ask(served, ALICE, "/metrics").text
    assert "hubhound_http_in_flight 0.0" in text
    assert 'hubhound_http_rejected_total{reason="unauthorised"}' in text
    assert "Traceback" not in served.told()
