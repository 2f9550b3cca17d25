"""A store over gRPC: all of it goes that way, and what fails there is repeated, cut or told as over REST."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from engine.errors import StoreError
from engine.schema import Model
from engine.store import address as addresses
from engine.store import records
from engine.store.address import ServerAddress, connect
from engine.store.base import StoreLayout
from engine.store.edge import EdgeStore
from engine.store.patience import Patience, patience_with
from engine.store.server import ServerStore
from tests.support.output_tables import assert_same, fast_folder, make_table
from tests.support.qdrant_grpc_faults import CallProxy, Failing, bytes_proxy, call_proxy
from tests.support.qdrant_server import standin, tls_files
from tests.support.stores import quick_patience, shared_standin, work

LAYOUT = StoreLayout(probes=40, top_r=6, dimension=4)
ROOT = Path(__file__).resolve().parents[2]
_RUN = "from query.cli.main import main; main()"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "API_KEY_FILE", "CA", "DEADLINE"):
        monkeypatch.delenv(f"HUBHOUND_QDRANT_{name}", raising=False)


@contextmanager
def nowhere() -> Iterator[int]:
    """A port on which nobody listens, and nobody will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def opened(port: int, name: str, deadline_s: float = 20.0, timeout_s: int = 30, new: bool = True) -> ServerStore:
    """A store over gRPC at a port; of REST there is none."""
    client = connect("http://127.0.0.1:9", timeout_s=timeout_s, grpc_port=port)
    make = ServerStore.create if new else ServerStore.open
    extra = {"layout": LAYOUT} if new else {}
    return make(client, name, patience=quick_patience(f"http://127.0.0.1:9 ({port})", name, deadline_s), **extra)


@contextmanager
def proxied(
    name: str, *rules: Failing, deadline_s: float = 20.0, timeout_s: int = 30
) -> Iterator[tuple[ServerStore, CallProxy]]:
    """A new store that is reached through a proxy of calls, whose faults begin once it is made."""
    with call_proxy(shared_standin(grpc=True).grpc_port or 0) as proxy:
        store = opened(proxy.port, name, deadline_s, timeout_s)
        proxy.seen.clear()
        proxy.sizes.clear()
        proxy.rules = list(rules)
        yield store, proxy
        proxy.rules = []
        store.destroy()
        store.close()


def refused(store_or_port: ServerStore | int, words: str, name: str = "x") -> str:
    """The message of a store that cannot be opened, or counted."""
    with pytest.raises(StoreError, match=words) as caught:
        if isinstance(store_or_port, int):
            client = connect("http://127.0.0.1:9", grpc_port=store_or_port)
            try:
                ServerStore.open(client, name)
            finally:
                client.close()
        else:
            store_or_port.count_outputs()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "fault",
    [
        Failing("UNAVAILABLE", "Socket closed", executed=True),
        Failing("INTERNAL", "Received RST_STREAM with error code 2", executed=True),
        Failing("RESOURCE_EXHAUSTED", "Rate limiting exceeded"),
    ],
    ids=["answer lost", "stream reset", "rate limit"],
)
def test_the_same_content_comes_out_of_a_failing_server(tmp_path: Path, fault: Failing) -> None:
    fault = Failing(fault.code, fault.details, executed=fault.executed, probability=0.3, seed=1)
    with (
        fast_folder(tmp_path) as folder,
        EdgeStore.create(folder / "store", LAYOUT) as perfect,
        proxied("faults", fault) as (store, _),
    ):
        work(perfect)
        work(store)
        assert fault.used > 5
        for part in ("outputs", "models", "profiles"):
            assert list(store.stored(part)) == list(perfect.stored(part)), part
        changes = list(store.changes(0))
        assert len({change.seq for change in changes}) == len(changes) == 5
        assert store.knowledge() == perfect.knowledge()
        query = records.local_query(np.random.default_rng(1).standard_normal(40), 0.1)
        expected = [(h.repo, h.revision, h.output) for h in perfect.query_local(*query, 9)]
        assert [(h.repo, h.revision, h.output) for h in store.query_local(*query, 9)] == expected


def test_every_call_has_a_limit_for_all_of_it() -> None:
    with proxied("limits", timeout_s=7) as (store, proxy):
        limits = []
        for ask in (store.models, store.count_outputs, lambda: store.distinct("library"), lambda: work(store)):
            ask()
            limits.append(proxy.remaining_s)
        assert all(limit is not None and 0 < limit < 7.5 for limit in limits), limits


def test_the_wait_that_the_server_asks_for_is_kept() -> None:
    limited = ("RESOURCE_EXHAUSTED", "Rate limiting exceeded: come back later")
    rule = Failing(*limited, call="Count", times=1, trailers=(("retry-after", "1"),))
    with proxied("asked", rule) as (store, _):
        started = time.monotonic()
        assert store.count_outputs() == 0
        assert 1.0 <= time.monotonic() - started < 5
    rule = Failing(*limited, call="Count", trailers=(("retry-after", "300"),))
    with proxied("asked", rule, deadline_s=2) as (store, proxy):
        started = time.monotonic()
        refused(store, "asks to wait 300 s")
        assert time.monotonic() - started < 1.5 and proxy.count("Count") == 1
    soon = Failing(*limited, call="Count", times=2, trailers=(("retry-after", "soon"),))
    with proxied("asked", soon) as (store, proxy):
        assert store.count_outputs() == 0 and proxy.count("Count") == 3


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            Failing("UNAVAILABLE", "Shard is not active", call="Count"),
            "cannot read the index gives_up now .*not active",
        ),
        (Failing("UNAVAILABLE", "Socket closed", call="Count"), "does not answer .*Socket closed"),
        (Failing("INTERNAL", call="Count", after_s=30), "does not answer .*DEADLINE_EXCEEDED"),
    ],
    ids=["busy", "lost", "too slow"],
)
def test_it_gives_up_after_the_deadline_in_one_line(fault: Failing, words: str) -> None:
    with proxied("gives_up", fault, deadline_s=1.2, timeout_s=1) as (store, proxy):
        started = time.monotonic()
        message = refused(store, words)
        assert 0.2 < time.monotonic() - started < 4
        assert proxy.count("Count") > 1 and "tried" in message and "http://127.0.0.1:9" in message


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL"])
def test_what_cannot_pass_is_not_repeated(code: str) -> None:
    with proxied("refuses", Failing(code, "Wrong input: no", call="Count")) as (store, proxy):
        refused(store, r"cannot read the index refuses .*Wrong input: no")
        assert proxy.count("Count") == 1


def test_batches_and_pages_shrink_for_a_slow_server() -> None:
    table = make_table(LAYOUT, m=400)
    with proxied("slow", timeout_s=1) as (store, proxy):
        proxy.rules = [Failing("INTERNAL", call="Upsert", numbers={1, 2}, after_s=30)]
        store.upsert_outputs(table)
        sizes = [size for call, size in zip(proxy.seen, proxy.sizes, strict=True) if call == "Upsert"]
        assert sizes[1] < 0.6 * sizes[0] and sizes[2] < 0.6 * sizes[1], "halved twice"
        proxy.rules = [Failing("INTERNAL", call="Scroll", numbers={1, 3}, after_s=30)]
        assert_same(store.outputs("org/a", "r1"), table)
        assert proxy.count("Scroll") > 3


def test_requests_that_are_too_large_are_cut(tmp_path: Path) -> None:
    rules = [
        Failing("OUT_OF_RANGE", "Error, decoded message length too large: found 90000 bytes", "Upsert", numbers={2, 3}),
        Failing("UNKNOWN", "Received http2 header with status: 413", "Upsert", numbers={5}),
    ]
    table = make_table(LAYOUT, m=230)
    with (
        fast_folder(tmp_path) as folder,
        standin(folder, grpc_port=0, max_message_bytes=40_000) as server,
        call_proxy(server.grpc_port or 0, *rules) as proxy,
    ):
        store = opened(proxy.port, "x")
        store.upsert_outputs(table)
        assert_same(store.outputs("org/a", "r1"), table)
        assert max(proxy.sizes) > 40_000, "the server's own limit was met as well"
        assert [rule.used for rule in rules] == [2, 1]
        with pytest.raises(StoreError, match=r"RESOURCE_EXHAUSTED: .*larger than max"):
            store.upsert_model(Model(repo="org/b", revision="r1", detail="x" * 50_000))
        assert store.models() == []
        store.close()


def test_answers_of_many_megabytes_come_whole() -> None:
    layout = StoreLayout(probes=40, top_r=6, dimension=1600)  # gRPC's own limit of what is received is 4 MB
    table = make_table(layout, m=700)
    port = shared_standin(grpc=True).grpc_port
    with bytes_proxy(port or 0) as proxy:
        client = connect("http://127.0.0.1:9", grpc_port=proxy.port)
        store = ServerStore.create(client, "wide", layout, patience=quick_patience("here", "wide"))
        store.upsert_outputs(table)
        proxy.to_client_bytes = 0
        calls = proxy.connections
        assert_same(store.outputs("org/a", "r1"), table)
        assert proxy.to_client_bytes > 4_400_000 and proxy.connections == calls
        store.destroy()
        store.close()


def test_an_answer_that_breaks_off_is_asked_for_again() -> None:
    table = make_table(LAYOUT, m=300)
    with bytes_proxy(shared_standin(grpc=True).grpc_port or 0) as proxy:
        store = opened(proxy.port, "broken")
        store.upsert_outputs(table)
        before = proxy.connections
        for _ in range(3):
            proxy.cut_after_bytes = 30_000
            while proxy.cut_after_bytes is not None:
                assert_same(store.outputs("org/a", "r1"), table)
        assert proxy.connections >= before + 3
        assert store.count_outputs() == 300
        store.destroy()
        store.close()


def test_a_server_that_vanishes_without_a_word_is_reached_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {"grpc.keepalive_time_ms": 400, "grpc.http2.ping_timeout_ms": 300}
    monkeypatch.setattr(addresses, "_CHANNEL", addresses._CHANNEL | quick)
    with bytes_proxy(shared_standin(grpc=True).grpc_port or 0) as proxy:
        store = opened(proxy.port, "vanished", timeout_s=30)
        before = proxy.connections
        proxy.silence()
        started = time.monotonic()
        assert store.count_outputs() == 0
        assert time.monotonic() - started < 10 and proxy.connections > before
        store.destroy()
        store.close()


def test_a_server_that_starts_again_is_waited_for(tmp_path: Path) -> None:
    with fast_folder(tmp_path) as folder, standin(folder, grpc_port=0) as server:
        store = opened(server.grpc_port or 0, "x")
        store.upsert_outputs(make_table(LAYOUT))
        store.upsert_model(Model(repo="org/a", revision="r1", outputs=7))
        server.kill()
        with pytest.raises(StoreError, match=r"does not answer .*UNAVAILABLE"):
            opened(server.grpc_port or 0, "x", new=False)
        server.restart()
        store.upsert_model(Model(repo="org/b", revision="r1"))
        assert_same(store.outputs("org/a", "r1"), make_table(LAYOUT))
        assert [model.repo for model in store.models()] == ["org/a", "org/b"]
        store.close()


def test_what_does_not_speak_grpc_is_told_apart_at_once(tmp_path: Path) -> None:
    with fast_folder(tmp_path) as folder, standin(folder, grpc_port=0) as server, nowhere() as port:
        started = time.monotonic()
        words = (
            r"at http://127.0.0.1:9 \(gRPC port \d+\) is no Qdrant server .*does not speak gRPC.*check host and port"
        )
        refused(server.port, words)
        client = ServerAddress.parse(f"qdrant+https://127.0.0.1:9/x?grpc={server.grpc_port}").connect()
        with pytest.raises(StoreError, match="does not speak TLS"):
            ServerStore.open(client, "x")
        client.close()
        client = ServerAddress.parse("qdrant://no-such-host.invalid/x?grpc=6334").connect()
        with pytest.raises(StoreError, match=r"does not answer .*no-such-host.invalid"):
            ServerStore.open(client, "x")
        client.close()
        assert time.monotonic() - started < 5
        with pytest.raises(StoreError, match=r"does not answer .*Connection refused.* is it running"):
            opened(port, "x", new=False)


def test_a_port_that_accepts_and_says_nothing_is_left_after_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_CHANNEL", addresses._CHANNEL | {"grpc.min_reconnect_backoff_ms": 700})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = connect("http://127.0.0.1:9", grpc_port=silent.getsockname()[1])
        started = time.monotonic()
        with pytest.raises(StoreError, match=r"does not answer .*UNAVAILABLE"):
            ServerStore.open(client, "x", quick_patience("here", "x"))
        assert time.monotonic() - started < 6, "the limit of the call is 60 s"
        client.close()


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fast_folder(tmp_path) as folder, standin(folder, grpc_port=0, api_key="w", read_only_api_key="r") as server:
        address = ServerAddress.parse(f"qdrant://127.0.0.1:9/x?grpc={server.grpc_port}")

        def use(key: str, make: bool = False) -> str:
            monkeypatch.setenv("HUBHOUND_QDRANT_API_KEY", key)
            client = address.connect()
            try:
                store = ServerStore.create(client, "x", LAYOUT) if make else ServerStore.open(client, "x")
                store.upsert_model(Model(repo="org/a", revision="r1"))
            except StoreError as error:
                return str(error)
            finally:
                client.close()
            return "written"

        assert use("w", make=True) == "written"
        assert "wants an API key (UNAUTHENTICATED: Must provide an API key" in use("")
        assert "refuses the API key (UNAUTHENTICATED: Invalid API key or JWT)" in use("wrong")
        assert use("r").startswith("the API key may not write to the index x at http://127.0.0.1:9 (gRPC port")
        assert "wrong" not in use("wrong")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_the_authority_of_the_environment_reaches_grpc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = tls_files(tmp_path)
    with standin(tmp_path / "data", grpc_port=0, tls_certificate=certificate, tls_key=key) as server:
        address = ServerAddress.parse(f"qdrant+https://127.0.0.1:{server.port}/x?grpc={server.grpc_port}")
        client = address.connect()
        with pytest.raises(StoreError, match=r"is not trusted .*set HUBHOUND_QDRANT_CA") as caught:
            ServerStore.create(client, "x", LAYOUT)
        assert "\n" not in str(caught.value)
        client.close()
        monkeypatch.setenv("HUBHOUND_QDRANT_CA", str(certificate))
        client = address.connect()
        assert ServerStore.create(client, "x", LAYOUT).models() == []
        client.close()


def test_a_full_disk_is_reported_at_once(tmp_path: Path) -> None:
    with (
        fast_folder(tmp_path) as folder,
        standin(folder, grpc_port=0, disk_full_after=20, disk_full_status=507) as server,
    ):
        store = opened(server.grpc_port or 0, "x")
        with pytest.raises(StoreError, match=r"the disk of the Qdrant server .* is full"):
            for i in range(30):
                store.upsert_outputs(make_table(LAYOUT, f"org/{i}"))
        store.close()


def test_patience_names_the_port_and_waits_for_the_server_by_its_url() -> None:
    client = ServerAddress.parse("qdrant://127.0.0.1:9/x?grpc=10").connect()
    rest = ServerAddress.parse("qdrant://127.0.0.1:9/x").connect()
    over_grpc: Patience = patience_with(client, "x")
    assert over_grpc.where == "http://127.0.0.1:9 (gRPC port 10)"
    assert over_grpc.contact is patience_with(rest, "x").contact
    client.close()
    rest.close()


def test_nothing_but_our_line_is_written_to_the_terminal(tmp_path: Path) -> None:
    with fast_folder(tmp_path) as folder, standin(folder, grpc_port=0) as server:
        index = f"qdrant+https://127.0.0.1:{server.port}/x?grpc={server.grpc_port}"
        environment = {**os.environ, "HUBHOUND_DATA": str(tmp_path / "data")}
        environment.pop("GRPC_VERBOSITY", None)
        command = [sys.executable, "-c", _RUN, "index", "info", "--index", index]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "does not speak TLS" in done.stderr
