"""How much is let in: sizes of bodies, requests in flight, time; on the small app of the guards' tests."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from query.api.admission import JSON_BYTES, Slots, hold_while
from query.api.errors import ApiError, ProblemKind
from tests.unit.test_api_guards import ALICE, BOB, Guarded, Make, bearer, keys, make, no_body, problem, scope

__all__ = ["keys", "make"]

FORM = {"Content-Type": "multipart/form-data; boundary=x"}


# --- bodies ---


async def pieces(size: int, piece: int = 65_536) -> AsyncIterator[bytes]:
    for start in range(0, size, piece):
        yield b" " * min(piece, size - start)


@pytest.mark.parametrize("path", ["/v1/read", "/v1/json"])
@pytest.mark.parametrize("declared", [True, False])
def test_a_body_may_be_as_long_as_it_may_and_no_longer(make: Make, path: str, declared: bool) -> None:
    """Declared or in pieces of unknown number; also where the app itself would call a body that breaks off a 400."""
    guarded = make(max_body_mb=0.2)

    def ask(size: int) -> httpx.Response:
        content: Any = b" " * size if declared else pieces(size)
        return guarded.ask("POST", path, content=content, headers={"Content-Type": "application/json"})

    assert ask(200_000).status_code == (200 if path == "/v1/read" else 400)
    refused = ask(200_001)
    assert problem(refused) == "too-large"
    assert refused.json()["max_bytes"] == 200_000
    assert refused.headers["connection"] == "close"
    assert guarded.counted("hubhound_http_rejected_total", reason="size") == 1


def test_only_multipart_may_be_longer_than_a_million_bytes(make: Make) -> None:
    guarded = make(max_body_mb=2)
    assert guarded.ask("POST", "/v1/read", content=b"x" * JSON_BYTES).status_code == 200
    assert guarded.ask("POST", "/v1/read", content=b"x" * (JSON_BYTES + 1)).status_code == 413
    assert guarded.ask("POST", "/v1/read", content=b"x" * 2_000_000, headers=FORM).status_code == 200
    assert guarded.ask("POST", "/v1/read", content=b"x" * 2_000_001, headers=FORM).status_code == 413


def ask_raw(guarded: Guarded, *headers: tuple[bytes, bytes], body: list[bytes], last: bool = True) -> tuple[int, int]:
    """The status, and how many pieces of the body were read.

    Args:
        guarded: What is asked.
        *headers: Besides the host.
        body: Its pieces.
        last: Whether there is an end after the last one, or a wait for ever.
    """
    left, sent = list(body), []

    async def receive() -> dict[str, Any]:
        if not left and not last:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": left.pop(0) if left else b"", "more_body": bool(left) or not last}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guarded.guards(scope("POST", "/v1/read", *headers), receive, send))
    assert sent[-1].get("more_body", False) is False
    return sent[0]["status"], len(body) - len(left)


def test_a_declared_length_is_refused_before_the_body_and_the_rest_is_read_away(make: Make) -> None:
    guarded = make(max_body_mb=0.2)
    assert ask_raw(guarded, (b"content-length", b"999999"), body=[b"x" * 1000] * 9) == (413, 9)


def test_who_waits_to_be_asked_for_the_body_is_not_asked(make: Make) -> None:
    headers = (b"content-length", b"999999"), (b"expect", b"100-continue")
    assert ask_raw(make(max_body_mb=0.2), *headers, body=[b"x" * 1000] * 9) == (413, 0)


@pytest.mark.parametrize(
    ("lengths", "status"),
    [
        ([b"3"], 200),
        ([b"0003"], 200),
        ([b"9" * 5000], 413),
        ([b"-1"], 400),
        ([b"+3"], 400),
        ([b"3.0"], 400),
        ([b"0x3"], 400),
        ([b""], 400),
        ([b"\xb2"], 400),
        ([b"3", b"3"], 400),
        ([b"3", b"999999999"], 400),
    ],
)
def test_lengths_that_are_no_number_are_refused(make: Make, lengths: list[bytes], status: int) -> None:
    headers = [(b"content-length", length) for length in lengths]
    assert ask_raw(make(), *headers, body=[b"xyz"])[0] == status


def test_a_length_that_lies_does_not_help(make: Make) -> None:
    assert ask_raw(make(max_body_mb=0.2), (b"content-length", b"3"), body=[b"x" * 150_000] * 2)[0] == 413


def test_who_never_ends_a_refused_body_is_waited_for_only_a_little(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("query.api.guards.LINGER_S", 0.05)
    begun = time.monotonic()
    headers = (b"transfer-encoding", b"chunked")
    assert ask_raw(make(max_body_mb=0.2), headers, body=[b"x" * 150_000] * 2, last=False)[0] == 413
    assert time.monotonic() - begun < 2


# --- in flight ---


async def until(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


def test_beyond_so_many_requests_are_told_to_come_again(make: Make) -> None:
    guarded = make(max_in_flight=2)

    async def run() -> None:
        async with guarded.client() as client:
            asked = [asyncio.create_task(client.post("/v1/scan")) for _ in range(2)]
            await until(lambda: guarded.counted("hubhound_http_in_flight") == 2)
            refused = await client.get("/v1/models/a")
            assert problem(refused) == "busy"
            assert refused.headers["retry-after"] == "1"
            assert (await client.get("/healthz")).status_code == 200  # outside /v1 there is always room
            guarded.release.set()
            assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200, 200]
            assert (await client.get("/v1/models/a")).status_code == 200

    asyncio.run(run())
    assert guarded.counted("hubhound_http_in_flight") == 0
    assert guarded.counted("hubhound_http_rejected_total", reason="busy") == 1


def test_a_timeout_answers_but_its_slot_stays_taken_until_the_work_has_ended(make: Make) -> None:
    guarded = make(max_in_flight=1, request_timeout_s=0.1)

    async def run() -> None:
        async with guarded.client() as client:
            answer = await client.post("/v1/scan")
            assert problem(answer) == "timeout"
            assert answer.status_code == 504
            for _ in range(5):
                assert problem(await client.get("/v1/models/a")) == "busy"
            guarded.release.set()
            await until(lambda: guarded.counted("hubhound_http_in_flight") == 0)
            assert (await client.get("/v1/models/a")).status_code == 200

    asyncio.run(run())
    assert guarded.counted("hubhound_http_rejected_total", reason="timeout") == 1


def test_work_that_still_waited_when_its_request_timed_out_is_dropped_and_holds_nothing(make: Make) -> None:
    guarded = make(max_in_flight=10, request_timeout_s=0.2)

    async def run() -> None:
        async with guarded.client() as client:
            answers = await asyncio.gather(*(client.post("/v1/scan") for _ in range(10)))  # 4 threads
            assert {answer.status_code for answer in answers} == {504}
            await until(lambda: guarded.counted("hubhound_http_in_flight") == 4)
            guarded.release.set()
            await until(lambda: guarded.counted("hubhound_http_in_flight") == 0)

    asyncio.run(run())


def test_a_client_that_goes_away_leaves_no_slot_taken(make: Make) -> None:
    guarded = make(max_in_flight=3)
    gone = {"type": "http.disconnect"}

    async def goes() -> dict[str, Any]:
        return gone

    async def send(message: Any) -> None:
        raise OSError("the connection is closed")

    async def run() -> None:
        for path in ("/v1/read", "/v1/json", "/v1/models/a"):
            for _ in range(5):
                await guarded.guards(scope("POST", path, (b"content-length", b"9")), goes, send)
        async with guarded.client() as client:
            asked = [asyncio.create_task(client.get("/v1/sleep")) for _ in range(3)]
            await until(lambda: guarded.counted("hubhound_http_in_flight") == 3)
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            assert (await client.get("/v1/models/a")).status_code == 200

    asyncio.run(run())
    assert guarded.counted("hubhound_http_in_flight") == 0


def test_a_slot_is_free_when_the_last_has_let_go() -> None:
    seen: list[int] = []
    slots = Slots(1, seen.append)
    first: Future[None] = Future()
    second: Future[None] = Future()
    with slots.slot():
        hold_while(first)
        hold_while(second)
    hold_while(second)  # outside a request it holds nothing
    assert slots.taken == 1
    first.set_result(None)
    with pytest.raises(ApiError), slots.slot():
        raise AssertionError("there was none")
    assert second.cancel()
    assert slots.taken == 0
    assert seen == [1, 0]


@pytest.mark.parametrize(("most", "share"), [(8, 4), (5, 2), (2, 1), (1, 1)])
def test_one_client_has_half_of_the_slots_and_never_none(most: int, share: int) -> None:
    slots = Slots(most, lambda _: None)
    with ExitStack() as held:
        for _ in range(share):
            held.enter_context(slots.slot("a"))
        with pytest.raises(ApiError) as caught, slots.slot("a"):
            raise AssertionError("it has its share")
        assert caught.value.kind is ProblemKind.BUSY
        assert caught.value.headers["Retry-After"] == "1"
        for _ in range(min(share, most - share)):
            held.enter_context(slots.slot("b"))
        assert slots.taken == min(2 * share, most)
    with ExitStack() as held:
        for _ in range(most):  # where clients are not told apart there are no shares
            held.enter_context(slots.slot())
    with slots.slot("a"):
        assert slots.taken == 1


@pytest.mark.parametrize("keyed", [True, False])
def test_bodies_that_never_end_take_half_of_the_slots_from_others(make: Make, keys: Path, keyed: bool) -> None:
    """Of a key, and without keys of an address."""
    guarded = make(**({"api_key_file": keys} if keyed else {"host": "0.0.0.0", "insecure": True}), max_in_flight=8)  # noqa: S104

    async def ask(who: int) -> int:
        sent: list[Any] = []
        asked = scope("POST", "/v1/read", (b"authorization", b"Bearer " + (ALICE, BOB)[who].encode()))
        asked["client"] = (("203.0.113.5", "203.0.113.6")[who] if not keyed else "203.0.113.5", 5000)
        asked["headers"].append((b"content-length", b"5"))

        async def receive() -> dict[str, Any]:
            if who == 0:
                await asyncio.sleep(3600)
            return {"type": "http.request", "body": b"whole", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await guarded.guards(asked, receive, send)
        return int(sent[0]["status"])

    async def run() -> None:
        stuck = [asyncio.create_task(ask(0)) for _ in range(4)]
        await until(lambda: guarded.counted("hubhound_http_in_flight") == 4)
        assert await asyncio.wait_for(ask_whole(), 10) == 503
        assert [await ask(1) for _ in range(6)] == [200] * 6
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        assert await ask_whole() == 200

    async def ask_whole() -> int:
        async with guarded.client() as client:
            client._transport.client = ("203.0.113.5", 5000)  # type: ignore[attr-defined]
            return (await client.post("/v1/read", content=b"whole", headers=bearer(ALICE))).status_code

    asyncio.run(run())
    assert guarded.counted("hubhound_http_in_flight") == 0


def test_a_task_that_outlives_its_request_holds_nothing_any_more() -> None:
    slots = Slots(1, lambda _: None)

    async def later(gate: asyncio.Event) -> None:
        await gate.wait()
        future: Future[None] = Future()
        hold_while(future)
        assert slots.taken == 0
        future.set_result(None)
        assert slots.taken == 0

    async def run() -> None:
        gate = asyncio.Event()
        with slots.slot():
            task = asyncio.create_task(later(gate))
            await asyncio.sleep(0)
        gate.set()
        await task

    asyncio.run(run())


# --- time ---


def test_an_answer_that_takes_too_long_is_given_up(make: Make) -> None:
    begun = time.monotonic()
    answer = make(request_timeout_s=0.1).ask("GET", "/v1/sleep")
    assert problem(answer) == "timeout"
    assert "0.1 s" in answer.json()["detail"]
    assert time.monotonic() - begun < 5


def test_the_time_covers_a_body_that_drips(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("query.api.guards.LINGER_S", 0.05)
    guarded = make(request_timeout_s=0.1)
    assert ask_raw(guarded, (b"content-length", b"900"), body=[b"x"] * 3, last=False)[0] == 504
    assert guarded.counted("hubhound_http_in_flight") == 0


def test_a_client_that_does_not_read_its_answer_is_given_up(make: Make) -> None:
    guarded = make(request_timeout_s=0.1)
    sent = []

    async def send(message: Any) -> None:
        sent.append(message["type"])
        if message["type"] == "http.response.body":
            await asyncio.sleep(3600)

    asyncio.run(guarded.guards(scope("GET", "/v1/models/a"), no_body(), send))
    assert sent == ["http.response.start", "http.response.body"]
    assert guarded.counted("hubhound_http_in_flight") == 0


# --- memory ---


def test_two_thousand_bad_requests_leave_nothing_behind(make: Make, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice alice-0123456789abcdef\n")
    guarded = make(max_body_mb=0.1, api_key_file=tmp_path / "keys", rate_limit=0)
    right = (b"authorization", b"Bearer alice-0123456789abcdef")
    statuses: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def bad(number: int) -> None:
        name = b"%d" % number
        asked, body = {
            0: (scope("GET", f"/v1/nowhere/{number}", right), b""),
            1: (scope("POST", "/v1/json", right, (b"content-type", b"application/json")), b"[" * 5000),
            2: (scope("POST", "/v1/read", right, (b"transfer-encoding", b"chunked")), b"x" * 100_001),
            3: (scope("GET", "/v1/models/a", (b"authorization", b"Bearer 0123456789" + name)), b""),
            4: (scope("POST", "/v1/read", host=name + b".example"), b""),
            5: (scope("X" + "Y" * (number % 99), "/v1/json", (b"origin", b"http://" + name)), b""),
        }[number % 6]

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        await guarded.guards(asked, receive, send)
        assert 400 <= statuses[-1] < 500

    async def run(first: int, count: int) -> int:
        for number in range(first, first + count):
            await bad(number)
            await asyncio.sleep(0)  # timers that were cancelled are forgotten by the loop, which has to turn for it
        statuses.clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    asyncio.run(run(0, 6))
    tracemalloc.start()
    try:
        before = asyncio.run(run(1000, 300))
        after = asyncio.run(run(2000, 2000))
    finally:
        tracemalloc.stop()
    assert after - before < 20_000  # 10 bytes a request: what is kept of one is more
