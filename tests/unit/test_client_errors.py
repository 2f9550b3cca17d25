"""What the client makes of services that are busy, silent, absent or something else."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.errors import InputError
from query.client import RETRIES, Client, ServiceError
from query.request import SearchRequest
from tests.support.scripted_server import Scripted, ScriptedServer
from tests.support.service import free_port
from tests.support.small_index import write_example

KEY = "a-key-of-sixteen-characters"


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://x", "", "http://", "/v1", "http://a:b"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(InputError, match="no URL of a service"):
        Client(url)


ANSWER = (200, {}, b'{"results": [], "searched": 7, "exact": true, "seconds": 0.5}')


def busy(after: str | None, status: int = 503) -> Scripted:
    told = {"type": "urn:hubhound:problem:busy", "title": "The service is busy", "status": status, "detail": "later"}
    return status, {} if after is None else {"Retry-After": after}, json.dumps(told).encode()


@pytest.mark.parametrize("key", ["with a line\n", " spaces", "schlüssel"])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(InputError, match="API key"):
        Client("http://localhost", key)


@pytest.mark.parametrize("status", [503, 429])
def test_a_busy_service_is_asked_again(status: int) -> None:
    with ScriptedServer(busy("0", status), busy("1", status), ANSWER) as server, Client(server.url) as asked:
        started = time.monotonic()
        assert asked.search(SearchRequest(("owl",))).searched == 7
        assert time.monotonic() - started >= 1
        assert len({content for *_, content in server.asked}) == 1 and len(server.asked) == 3


@pytest.mark.parametrize(
    ("answers", "timeout_s", "times"),
    [
        ([busy("0")] * (RETRIES + 1), 30, RETRIES + 1),
        ([busy("60")], 30, 1),  # later than it is waited for
        ([busy(None)], 30, 1),
        ([busy("soon")], 30, 1),
        ([busy("0", 500)], 30, 1),
    ],
)
def test_a_service_that_stays_busy(answers: Sequence[Scripted], timeout_s: float, times: int) -> None:
    with ScriptedServer(*answers) as server, Client(server.url, timeout_s=timeout_s) as asked:
        started = time.monotonic()
        with pytest.raises(ServiceError, match="later") as caught:
            asked.index()
        assert time.monotonic() - started < 5 and len(server.asked) == times
        assert caught.value.type == "urn:hubhound:problem:busy"


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        ((200, {}, b"<html>hello</html>"), "something else than a SearchAnswer"),
        ((200, {}, b'{"results": 7}'), "something else than a SearchAnswer"),
        ((404, {}, b"<html>nothing here</html>"), "answers 404 Not Found"),
        ((500, {}, b"[1]"), "is it a hubhound service?"),
        ((302, {"Location": "http://127.0.0.1:9/"}, b""), "answers 302"),
    ],
)
def test_what_is_no_hubhound_service(answer: Scripted, part: str) -> None:
    with ScriptedServer(answer) as server, Client(server.url, KEY) as asked:
        with pytest.raises(ServiceError) as caught:
            asked.search(SearchRequest(("owl",)))
        assert part in str(caught.value) and KEY not in str(caught.value)


def test_a_service_that_is_not_there_or_silent() -> None:
    with (
        Client(f"http://127.0.0.1:{free_port()}") as asked,
        pytest.raises(ServiceError, match="cannot be reached") as e,
    ):
        asked.index()
    assert (e.value.status, e.value.type) == (None, "")
    silent = pytest.raises(ServiceError, match=r"did not answer within 0\.2 s")
    with ScriptedServer((0, {}, b"")) as server, Client(server.url, timeout_s=0.2) as hasty, silent:
        hasty.index()


def test_what_the_service_is_told(tmp_path: Path) -> None:
    secret = tmp_path / "my secret folder"
    secret.mkdir()
    image = write_example(secret / "owl.png", "owl")
    with ScriptedServer(ANSWER) as server, Client(server.url, KEY) as asked:
        asked.search(SearchRequest(images=(image,), k=3))
        (method, path, headers, content) = server.asked[0]
    assert (method, path, headers["Authorization"]) == ("POST", "/v1/search", f"Bearer {KEY}")
    assert b'filename="owl.png"' in content and image.read_bytes() in content and b"secret" not in content
    assert b'"k": 3' in content and b"null" not in content


def test_a_password_in_the_url_is_not_repeated() -> None:
    with ScriptedServer((404, {}, b"")) as server:
        for url in (server.url, f"http://127.0.0.1:{free_port()}"):
            with Client(url.replace("//", "//me:secret@")) as asked, pytest.raises(ServiceError) as caught:
                asked.index()
            assert "secret" not in str(caught.value) and "127.0.0.1" in str(caught.value)
