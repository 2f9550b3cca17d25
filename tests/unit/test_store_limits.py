"""Requests over HTTP that come to nothing in the end: answers that trickle, and those that are long in coming."""

from __future__ import annotations

import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
import httpcore
import httpx
import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from qdrant_client.grpc.collections_pb2 import CollectionExists, CollectionExistsResponse
from qdrant_client.grpc.collections_service_pb2_grpc import CollectionsServicer, add_CollectionsServicer_to_server
from qdrant_client.http.exceptions import ResponseHandlingException

from engine.errors import StoreError
from engine.store import limits
from engine.store.address import connect
from engine.store.contact import Contact, contact_with
from engine.store.patience import Pace, patience_with
from engine.store.server_client import Collections
from tests.support.fault_proxy import FaultProxy, Hang, Rule, Slow, fault_proxy
from tests.support.stores import quick_patience, standin_url


@pytest.fixture(autouse=True)
def short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WINDOW_S", 0.4)


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    with fault_proxy(standin_url()) as made:
        yield made


@contextmanager
def collections(proxy: FaultProxy, name: str, deadline_s: float = 20.0) -> Iterator[Collections]:
    """Of an index that has 64 models, each with a payload of some kilobytes."""
    direct = connect(standin_url())
    direct.create_collection(f"{name}_models", vectors_config={})
    points = [qm.PointStruct(id=i, vector={}, payload={"text": f"{i:04}" * 1000}) for i in range(64)]
    direct.upsert(f"{name}_models", points, wait=True)
    client = connect(proxy.url)
    try:
        yield Collections(client, name, quick_patience(proxy.url, name, deadline_s))
    finally:
        client.close()
        direct.delete_collection(f"{name}_models")
        direct.close()


T = TypeVar("T")


def within(seconds: float, call: Callable[[], T]) -> T | BaseException:
    """What a call gives or raises; fails if it takes longer."""
    found: list[T | BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, f"no end after {seconds} s"
    return found[0]


def test_an_answer_that_trickles_is_given_up_and_said_so(proxy: FaultProxy) -> None:
    with collections(proxy, "trickle", deadline_s=1.5) as on:
        assert on.count("models") == 64
        proxy.rules = [Rule(Slow(50), path="count")]
        begun = time.monotonic()
        error = within(15, lambda: on.count("models"))
        assert isinstance(error, StoreError)
        assert "does not answer (its answer comes at " in str(error)
        assert "bytes/s)" in str(error) and "\n" not in str(error)
        assert proxy.count(path="count") >= 3, "it was not tried again"
        assert time.monotonic() - begun < 4
        proxy.rules = []
        assert on.count("models") == 64


def test_a_line_that_has_recovered_is_not_noticed(proxy: FaultProxy) -> None:
    with collections(proxy, "recovered") as on:
        proxy.rules = [Rule(Slow(50), path="count", times=1)]
        assert within(15, lambda: on.count("models")) == 64
        assert proxy.count(path="count") == 2


def test_a_long_answer_may_take_its_time_if_it_comes_at_some_pace(proxy: FaultProxy) -> None:
    """Four times as long as a window: only its pace counts."""
    with collections(proxy, "long") as on:
        proxy.rules = [Rule(Slow(160_000), path="scroll")]
        begun = time.monotonic()
        found = list(on.scroll("models", None, ["text"], False, Pace(64)))
        assert time.monotonic() - begun > 3 * limits.WINDOW_S
        assert [point.payload["text"][:4] for point in found if point.payload] == [f"{i:04}" for i in range(64)]
        assert proxy.count(path="scroll") == 1


def test_over_a_line_below_the_floor_smaller_pages_get_through(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FLOOR_BYTES_PER_S", 200_000)
    with collections(proxy, "narrow") as on:
        assert on.exists("models")
        proxy.rules = [Rule(Slow(100_000), path="scroll")]  # 40 kB in a window, a page of 64 is 260
        pace = Pace(64)
        found = within(30, lambda: list(on.scroll("models", None, ["text"], False, pace)))
        assert not isinstance(found, BaseException)
        assert [point.id for point in found] == list(range(64))
        assert pace.size < 16


def test_who_waits_for_an_answer_is_told_once_and_when_it_is_there(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "SILENT_S", 0.3)
    with collections(proxy, "silent") as on:
        assert on.count("models") == 64
        proxy.rules = [Rule(Slow(latency_s=0.8), path="count", times=2)]
        with caplog.at_level(logging.WARNING, "hubhound.store"):
            assert on.count("models") == 64
            assert on.count("models") == 64
        waiting = f"the Qdrant server at {proxy.url} has not answered for 0 s: waiting for up to 60 s"
        again = f"the Qdrant server at {proxy.url} answers again after "
        assert [re.sub(r"\d+ s$", "", text) for text in caplog.messages] == [waiting[:-4], again, waiting[:-4], again]


def test_a_request_that_nobody_takes_is_given_up() -> None:
    """The other side reads nothing: what is sent fills the buffers and stands."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client = connect(f"http://127.0.0.1:{listener.getsockname()[1]}")
        where = f"http://127.0.0.1:{listener.getsockname()[1]}"
        on = Collections(client, "x", quick_patience(where, "x", 2.0))
        points = [qm.PointStruct(id=i, vector={}, payload={"text": "x" * 100_000}) for i in range(300)]
        error = within(20, lambda: on.put("models", points, Pace(300)))
        client.close()
    assert isinstance(error, StoreError)
    assert "does not answer" in str(error)


def test_every_connection_is_watched() -> None:
    """Neither qdrant-client nor httpx has a documented way to httpcore's network backend."""
    client = connect("http://127.0.0.1:1")
    http = client.http.client._client
    pools = [transport._pool for transport in (http._transport, *http._mounts.values()) if transport is not None]  # type: ignore[attr-defined]
    assert pools
    assert all(isinstance(pool._network_backend, limits._Backend) for pool in pools)
    client.close()


def test_connections_through_a_proxy_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    test_every_connection_is_watched()


def test_the_window_is_no_longer_than_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WINDOW_S", 30.0)

    def window(deadline: str) -> float:
        monkeypatch.setenv("HUBHOUND_QDRANT_DEADLINE", deadline)
        client: QdrantClient = connect("http://127.0.0.1:1")
        backend = client.http.client._client._transport._pool._network_backend  # type: ignore[attr-defined]
        client.close()
        return float(backend._window_s)

    assert [window(text) for text in ("1", "12", "120")] == [5.0, 12.0, 30.0]


class Scripted(httpcore.NetworkStream):
    """A connection whose reads take the seconds they are told to, of a clock of its own."""

    def __init__(self, *reads: tuple[float, int]) -> None:
        self.reads = list(reads)
        self.now = 0.0
        self.limits: list[float | None] = []

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self.limits.append(timeout)
        seconds, size = self.reads[0]
        if timeout is not None and seconds > timeout:
            self.reads[0] = (seconds - timeout, size)
            self.now += timeout
            raise httpcore.ReadTimeout("timed out")
        self.reads.pop(0)
        self.now += seconds
        return b"x" * size

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        pass


def stream(monkeypatch: pytest.MonkeyPatch, *reads: tuple[float, int]) -> tuple[limits._Stream, Scripted]:
    inner = Scripted(*reads)
    monkeypatch.setattr(limits.time, "monotonic", lambda: inner.now)
    made = limits._Stream(inner, Contact("http://x"), 30.0)
    made.write(b"GET", 60)
    return made, inner


def test_the_pace_is_that_of_whole_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """30 s at 10 kB/s are 300,000 bytes: one byte less is too slow, whenever in the window they come."""
    made, _ = stream(monkeypatch, (1, 100), (29, 300_000), (1, 5), (29, 299_995), (1, 5), (29, 299_998), (1, 1))
    read = [len(made.read(10**6, 60)) for _ in range(6)]
    assert read == [100, 300_000, 5, 299_995, 5, 299_998]
    with pytest.raises(httpcore.ReadTimeout, match="at 10,000 bytes/s"):
        made.read(10**6, 60)


def test_a_standstill_in_the_middle_is_a_window_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    made, inner = stream(monkeypatch, (20, 100), (1, 500_000), (3600, 1))
    assert [len(made.read(10**6, 60)) for _ in range(2)] == [100, 500_000]
    with pytest.raises(httpcore.ReadTimeout, match="at 0 bytes/s"):
        made.read(10**6, 60)
    assert inner.now == 20 + 1 + 29 + 30


def test_until_the_answer_begins_the_clients_own_limit_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    made, inner = stream(monkeypatch, (59, 100), (61, 100))
    assert len(made.read(10**6, 60)) == 100
    made.write(b"GET", 60)
    with pytest.raises(httpcore.ReadTimeout, match="timed out"):
        made.read(10**6, 60)
    assert inner.limits == [10.0, 50, 10.0, 50]


def test_a_contact_is_lost_and_found(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    monkeypatch.setattr("engine.store.contact.time.monotonic", lambda: now)
    contact = contact_with("http://lost.example")
    assert contact is contact_with("http://lost.example")
    assert contact.up and contact.age_s is None  # nothing is known against it
    with contact.asking():
        now = 109.0
        assert contact.up
        now = 111.0
        assert not contact.up, "an answer is long in coming"
        contact.answered()
        assert contact.up and contact.age_s == 0
        now = 120.0
        assert contact.up, "another request has been answered meanwhile"
    contact.failed()
    now = 130.0
    contact.failed()
    assert not contact.up and contact.age_s == 19.0
    with caplog.at_level(logging.WARNING, "hubhound.store"):
        contact.tell("it is away")
        contact.tell("it is still away")
        now = 155.0
        contact.answered()
        contact.answered()
    assert caplog.messages == ["it is away", "the Qdrant server at http://lost.example answers again after 35 s"]
    assert contact.up


def test_a_server_that_refuses_answers(proxy: FaultProxy) -> None:
    with collections(proxy, "refusing", deadline_s=1.0) as on:
        with pytest.raises(StoreError, match="cannot read"):
            on.count("profiles")
        assert on.patience.contact.up
        proxy.rules = [Rule(Hang(0.0))]
        with pytest.raises(StoreError, match="does not answer"):
            on.count("models")
        assert not on.patience.contact.up
        proxy.rules = []
        on.count("models")
        assert on.patience.contact.up


class GrpcServer(CollectionsServicer):  # type: ignore[misc]
    """Has every collection; of the one called ``slow`` it says so late."""

    def CollectionExists(self, request: Any, context: Any) -> Any:
        if request.collection_name == "slow":
            time.sleep(0.8)
        return CollectionExistsResponse(result=CollectionExists(exists=True))

    def __enter__(self) -> int:
        self._server = grpc.server(ThreadPoolExecutor(2))
        add_CollectionsServicer_to_server(self, self._server)
        port: int = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        return port

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait(10)


def test_over_grpc_who_waits_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """There a request is one call, whose connection is not ours to watch."""
    monkeypatch.setattr("engine.store.patience.SILENT_S", 0.2)
    with GrpcServer() as port:
        client = connect("http://127.0.0.1:1", grpc_port=port)
        patience = patience_with(client, "zoo")
        with caplog.at_level(logging.WARNING, "hubhound.store"):
            assert patience.call("read", lambda: client.collection_exists("quick")) is True
            assert caplog.messages == []
            assert patience.call("read", lambda: client.collection_exists("slow")) is True
        client.close()
    where = f"http://127.0.0.1:1 (gRPC port {port})"
    assert caplog.messages[0] == f"the Qdrant server at {where} has not answered for 0 s: waiting"
    assert re.fullmatch(r"the Qdrant server at http://127.0.0.1:1 answers again after \d s", caplog.messages[1])


def test_a_certificate_that_is_not_trusted_is_no_contact() -> None:
    patience = quick_patience("http://untrusted.example", "zoo", 1.0)

    def request() -> None:
        source = httpx.ConnectError("certificate verify failed")
        source.__cause__ = ssl.SSLCertVerificationError(1, "certificate verify failed")
        raise ResponseHandlingException(source)

    patience.contact.answered()
    with pytest.raises(StoreError, match="is not trusted"):
        patience.call("read", request)
    assert not patience.contact.up
