"""A server that is slow, refuses, breaks off or loses answers: nothing acknowledged is lost, nothing written twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import InputError, StoreError
from engine.schema import Model
from engine.store import records
from engine.store.address import connect
from engine.store.base import StoreLayout
from engine.store.edge import EdgeStore
from engine.store.patience import Pace, Patience, deadline_from_environment
from engine.store.server import ServerStore
from tests.support.fault_proxy import DROP, Answer, FaultProxy, Hang, Reset, Rule, Slow, fault_proxy
from tests.support.output_tables import assert_same, fast_folder, make_table
from tests.support.qdrant_server import standin
from tests.support.stores import quick_patience, standin_url, work

LAYOUT = StoreLayout(probes=40, top_r=6, dimension=4)
PARTS: tuple[Any, ...] = ("outputs", "models", "profiles")


@contextmanager
def proxied(
    name: str, *rules: Rule, deadline_s: float = 20.0, timeout_s: int = 30
) -> Iterator[tuple[ServerStore, FaultProxy]]:
    """A new store that is reached through a proxy, whose faults begin once it is made."""
    with fault_proxy(standin_url()) as proxy:
        client = connect(proxy.url, timeout_s=timeout_s)
        patience = quick_patience(proxy.url, name, deadline_s)
        store = ServerStore.create(client, name, LAYOUT, patience=patience)
        proxy.seen.clear()
        proxy.rules = list(rules)
        yield store, proxy
        proxy.rules = []
        store.destroy()
        store.close()


@pytest.mark.parametrize(
    "fault",
    [
        Answer(503),
        Reset(),
        DROP,
        Reset(executed=True, after_bytes=60),
        Slow(bytes_per_s=20_000, latency_s=0.01),
    ],
    ids=["503", "reset", "answer lost", "half an answer", "slow"],
)
def test_the_same_content_comes_out_of_a_failing_server(tmp_path: Path, fault: Any) -> None:
    with (
        fast_folder(tmp_path) as folder,
        EdgeStore.create(folder / "store", LAYOUT) as perfect,
        proxied("faults", Rule(fault, probability=0.3, seed=1)) as (store, proxy),
    ):
        work(perfect)
        work(store)
        rule = proxy.rules[0]
        assert rule.used > 5
        for part in PARTS:
            assert list(store.stored(part)) == list(perfect.stored(part)), part
        changes = list(store.changes(0))
        assert {change.repo: change.model for change in changes if change.model} == {
            m.repo: m for m in perfect.models()
        }
        assert len({change.seq for change in changes}) == len(changes) == 5, "one record a model, the removed one too"
        assert store.knowledge() == perfect.knowledge()
        assert_same(store.outputs("org/1", "r2"), make_table(LAYOUT, "org/1", "r2", m=3, seed=9))
        query = records.local_query(np.random.default_rng(1).standard_normal(40), 0.1)
        expected = [(h.repo, h.revision, h.output) for h in perfect.query_local(*query, 9)]
        assert [(h.repo, h.revision, h.output) for h in store.query_local(*query, 9)] == expected


def test_making_a_store_is_repeated_too() -> None:
    for fault in (DROP, Answer(503)):
        with fault_proxy(standin_url(), Rule(fault, probability=0.4, seed=5)) as proxy:
            client = connect(proxy.url)
            store = ServerStore.create(client, "again", LAYOUT, patience=quick_patience(proxy.url, "again"))
            assert proxy.rules[0].used > 2
            assert store.models() == []
            store.destroy()
            client.close()


def test_a_server_that_starts_again_is_waited_for(tmp_path: Path) -> None:
    with fast_folder(tmp_path) as folder, standin(folder) as server:
        store = ServerStore.create(connect(server.url), "x", LAYOUT, patience=quick_patience(server.url, "x"))
        store.upsert_outputs(make_table(LAYOUT))
        store.upsert_model(Model(repo="org/a", revision="r1", outputs=7))
        server.kill()
        with fault_proxy(server.url) as proxy:  # only to have another thread start the server while the store waits
            proxy._start(server.restart)
            store.upsert_outputs(make_table(LAYOUT, "org/b"))
        store.upsert_model(Model(repo="org/b", revision="r1", outputs=7))
        assert_same(store.outputs("org/a", "r1"), make_table(LAYOUT))
        assert [model.repo for model in store.models()] == ["org/a", "org/b"]
        store.close()


def test_the_wait_that_the_server_asks_for_is_kept() -> None:
    rule = Rule(Answer(503, retry_after_s=1), path="/points", times=1)
    with proxied("asked", rule) as (store, _):
        started = time.monotonic()
        assert store.count_outputs() == 0
        assert 1.0 <= time.monotonic() - started < 5
    with proxied("asked", Rule(Answer(429, retry_after_s=300), path="/points"), deadline_s=2) as (store, proxy):
        started = time.monotonic()
        with pytest.raises(StoreError, match="asks to wait 300 s") as caught:
            store.count_outputs()
        assert time.monotonic() - started < 1.5 and proxy.count(path="/points") == 1
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Answer(503, error="Shard is not active"), "cannot read the index gives_up now .*503.*not active"),
        (Reset(), "does not answer"),
        (Slow(latency_s=30), "does not answer .*timed out"),
    ],
)
def test_it_gives_up_after_the_deadline_in_one_line(fault: Any, words: str) -> None:
    with proxied("gives_up", Rule(fault, path="/count"), deadline_s=1.2, timeout_s=1) as (store, proxy):
        started = time.monotonic()
        with pytest.raises(StoreError, match=words) as caught:
            store.count_outputs()
        assert 0.2 < time.monotonic() - started < 4
        assert proxy.count(path="/count") > 1
        message = str(caught.value)
        assert "\n" not in message and "tried" in message and proxy.url in message and caught.value.path == proxy.url


@pytest.mark.parametrize("status", [400, 404, 500])
def test_what_cannot_pass_is_not_repeated(status: int) -> None:
    with proxied("refuses", Rule(Answer(status, error="Wrong input: no"), path="/count")) as (store, proxy):
        with pytest.raises(StoreError, match=r"cannot read the index refuses .*Wrong input: no"):
            store.count_outputs()
        assert proxy.count(path="/count") == 1


def test_batches_shrink_for_a_slow_server_and_grow_again() -> None:
    table = make_table(LAYOUT, m=400)
    with proxied("slow", timeout_s=1) as (store, proxy):
        proxy.rules = [Rule(Hang(30), method="PUT", path="/slow_outputs/points$", numbers={1, 2})]
        store.upsert_outputs(table)
        sizes = [one.size_bytes for one in proxy.seen if one.method == "PUT" and "slow_outputs/points?" in one.path]
        assert sizes[1] < 0.6 * sizes[0] and sizes[2] < 0.6 * sizes[1], "halved twice"
        assert sizes[-1] > 1.2 * sizes[2] or max(sizes[3:]) > 1.2 * sizes[2], "and grown again"
        proxy.rules = []
        assert store.count_outputs() == 400
        assert_same(store.outputs("org/a", "r1"), table)


def test_pages_shrink_for_a_slow_server() -> None:
    table = make_table(LAYOUT, m=300)
    with proxied("pages", timeout_s=1) as (store, proxy):
        store.upsert_outputs(table)
        proxy.rules = [Rule(Hang(30), path="/scroll$", numbers={1, 3})]
        assert_same(store.outputs("org/a", "r1"), table)
        proxy.rules = [Rule(Hang(30), path="/scroll$", numbers={2})]
        assert len({point.id for point in store.stored("outputs")}) == 300


@pytest.mark.parametrize("status", [413, 400])
def test_requests_that_are_too_large_are_cut(tmp_path: Path, status: int) -> None:
    table = make_table(LAYOUT, m=230)
    with (
        fast_folder(tmp_path) as folder,
        standin(folder, max_request_bytes=40_000) as server,
        fault_proxy(server.url) as proxy,
    ):
        store = ServerStore.create(connect(proxy.url), "x", LAYOUT, patience=quick_patience(proxy.url, "x"))
        if status == 413:  # as a gateway says it
            proxy.rules = [
                Rule(Answer(413, body=b"<html>too large</html>"), method="PUT", path="outputs/points$", times=2)
            ]
        store.upsert_outputs(table)
        assert_same(store.outputs("org/a", "r1"), table)
        huge = Model(repo="org/b", revision="r1", detail="x" * 50_000)
        with pytest.raises(StoreError, match="larger than allowed"):
            store.upsert_model(huge)
        assert store.models() == []
        store.close()


def test_the_pace_halves_and_recovers() -> None:
    pace = Pace(200)
    assert pace.slower(200) and pace.size == 100
    assert pace.slower(100) and pace.size == 50
    pace.faster()
    assert pace.size == 62
    for _ in range(20):
        pace.faster()
    assert pace.size == 200
    assert pace.slower(3) and pace.size == 1
    assert not pace.slower(1) and pace.size == 1


def test_waits_double_and_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr("engine.store.patience.time.sleep", sleep)
    monkeypatch.setattr("engine.store.patience.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("engine.store.patience.random.uniform", lambda low, high: (low + high) / 2)
    patience = Patience("here", "x", deadline_s=60, first_wait_s=1, longest_wait_s=10)
    answers: Iterator[Callable[[], int]] = iter([_timeout] * 6 + [lambda: 7])
    patience._answered = True

    def request() -> int:
        return next(answers)()

    assert patience.call("read", request) == 7
    assert waits == [1, 2, 4, 5, 5, 5]


def _timeout() -> int:
    import httpx
    from qdrant_client.http.exceptions import ResponseHandlingException

    raise ResponseHandlingException(httpx.ReadTimeout("timed out"))


def test_the_deadline_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUBHOUND_QDRANT_DEADLINE", raising=False)
    assert deadline_from_environment() == 120
    monkeypatch.setenv("HUBHOUND_QDRANT_DEADLINE", "7.5")
    assert deadline_from_environment() == 7.5
    for bad in ("0", "soon", "nan", "-1", "1e9"):
        monkeypatch.setenv("HUBHOUND_QDRANT_DEADLINE", bad)
        with pytest.raises(InputError, match="seconds from 1 to 86400"):
            deadline_from_environment()


def test_who_waits_is_told_why_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("engine.store.patience._TOLD_S", 0.2)
    with standin(tmp_path) as server, fault_proxy(server.url) as proxy:
        patience = Patience(proxy.url, "zoo", deadline_s=30, first_wait_s=0.1, longest_wait_s=0.3)
        client = connect(proxy.url)
        patience.call("read", client.get_collections)
        assert caplog.messages == []
        proxy.refuse(1.5)
        patience.call("read", client.get_collections)
        message, again = caplog.messages
        assert again.startswith(f"the Qdrant server at {proxy.url} answers again after ")
        assert message.startswith(f"the Qdrant server at {proxy.url} does not answer")
        assert "trying again for up to 30 s" in message or "trying again for up to 29 s" in message
        client.close()
