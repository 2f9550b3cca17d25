"""Under which names the service answers, and which pages may ask it; on the small app of the guards' tests."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from engine.errors import InputError
from tests.unit.test_api_guards import ALICE, Make, bearer, keys, make, no_body, problem, scope

__all__ = ["keys", "make"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"localhost", 200),
        (b"LOCALHOST:8080", 200),
        (b"localhost.", 200),
        (b"127.0.0.1:99", 200),
        (b"[::1]:8080", 200),
        (b"zoo.example:8080", 200),
        (b"with-port.example:81", 200),
        (b"with-port.example:82", 421),
        (b"evil.example", 421),
        (b"localhost.evil.example", 421),
        (b"evil.example:localhost", 421),
        (b"localhost@evil.example", 421),
        (b"localhost, evil.example", 421),
        (b"", 421),
        (b"\xff\xfe", 421),
        (b"[::1", 421),
        (b"192.168.1.5", 421),
    ],
)
def test_on_this_machine_only_known_names_are_answered(make: Make, host: bytes, status: int) -> None:
    """What a page gets that resolves its own name to 127.0.0.1 (DNS rebinding)."""
    guarded = make(allowed_host=("zoo.example", "with-port.example:81"))
    answer = guarded.ask("GET", "/v1/models/a", headers={b"Host": host})
    assert answer.status_code == status


def test_several_host_names_or_none_are_refused(make: Make) -> None:
    guarded = make()
    twice = [(b"host", b"localhost"), (b"host", b"evil.example")]

    async def status(headers: list[tuple[bytes, bytes]]) -> int:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await guarded.guards({**scope("GET", "/v1/models/a"), "headers": headers}, no_body(), send)
        return int(sent[0]["status"])

    assert asyncio.run(status(twice)) == 421
    assert asyncio.run(status([])) == 421
    assert asyncio.run(status(twice[:1])) == 200


@pytest.mark.parametrize(
    ("allowed", "host", "status"),
    [((), "anything.example", 200), (("zoo.example",), "zoo.example", 200), (("zoo.example",), "other.example", 421)],
)
def test_on_other_addresses_any_name_is_answered_unless_some_are_named(
    make: Make, allowed: tuple[str, ...], host: str, status: int
) -> None:
    guarded = make(host="0.0.0.0", insecure=True, allowed_host=allowed)  # noqa: S104
    assert guarded.ask("GET", "/v1/models/a", host=host).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://localhost", 200),
        ("https://localhost", 200),
        ("http://localhost:81", 403),
        ("http://evil.example", 403),
        ("null", 403),
        ("", 403),
        ("http://", 403),
        ("file://", 403),
        ("http://localhost.evil.example", 403),
        ("localhost", 403),
    ],
)
def test_pages_of_other_origins_change_nothing(make: Make, origin: str | None, status: int) -> None:
    guarded = make()
    headers = {} if origin is None else {"Origin": origin}
    answer = guarded.ask("POST", "/v1/read", content=b"x", headers=headers)
    assert answer.status_code == status
    assert not [name for name in answer.headers if name.startswith("access-control")]
    seen = guarded.ask("GET", "/v1/models/a", headers=headers)  # it is answered, and the browser keeps it from the page
    assert seen.status_code == 200
    assert not [name for name in seen.headers if name.startswith("access-control")]


def test_named_origins_may_ask_and_read_even_refusals(make: Make, keys: Path) -> None:
    guarded = make(cors_origin=("https://a.example",), api_key_file=keys)
    ours, theirs = {"Origin": "https://a.example"}, {"Origin": "https://b.example"}
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
    preflight = guarded.ask("OPTIONS", "/v1/read", headers={**ours, **ask})  # browsers send no key with it
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://a.example"
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in preflight.headers
    answer = guarded.ask("POST", "/v1/read", headers={**ours, **bearer(ALICE)})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert "Retry-After" in answer.headers["access-control-expose-headers"]
    refused = guarded.ask("POST", "/v1/read", headers=ours)
    assert problem(refused) == "unauthorised"
    assert refused.headers["access-control-allow-origin"] == "https://a.example"
    for method, headers in (("OPTIONS", {**theirs, **ask}), ("POST", theirs), ("GET", theirs)):
        answer = guarded.ask(method, "/v1/read", headers={**headers, **bearer(ALICE)})
        assert answer.status_code >= 400
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["*", "a.example", "https://a.example/", "https://a.example/x", "ftp://a.example"])
def test_origins_that_are_none_are_refused_at_the_start(make: Make, origin: str) -> None:
    with pytest.raises(InputError, match="--cors-origin"):
        make(cors_origin=(origin,))


@pytest.mark.parametrize("host", ["*", "http://a.example", "a b", "a/b"])
def test_host_names_that_are_none_are_refused_at_the_start(make: Make, host: str) -> None:
    with pytest.raises(InputError, match="--allowed-host"):
        make(allowed_host=(host,))
