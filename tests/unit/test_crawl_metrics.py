"""The figures of a crawl as Prometheus gets them: over HTTP, read by the client library's own parser."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from engine.errors import InputError, Reason
from indexers.crawl.metrics import METRICS, MetricsServer, serve
from indexers.crawl.standing import STAGES
from indexers.crawl.watch import Watch
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(70.0)


@pytest.fixture
def watch(clock: Clock) -> Watch:
    return Watch(clock)


@pytest.fixture
def server(watch: Watch) -> Iterator[MetricsServer]:
    with serve(watch, 0) as server:
        yield server


def get(url: str, accept: str = "text/plain") -> str:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", parts.path, headers={"Accept": accept})
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read().decode()


def served(metric: Metric) -> str:
    return metric.name + ("_total" if metric.type == "counter" else "")


def samples(url: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Values by name and values of the labels, in the order of the labels' names."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in parse(get(url))
        for sample in family.samples
    }


def test_every_figure(watch: Watch, clock: Clock, server: MetricsServer) -> None:
    watch.listed(20, 7, 5, None)
    watch.listing_trouble("504")
    watch.listing_ended()
    watch.started("probe", "org/a")
    watch.started("probe", "org/b")
    clock.now += 10
    watch.ended("probe", "org/a", 9.5)
    watch.ended("fetch", "org/a", 0.02)
    watch.ended("fetch", "org/a", 0.5)
    watch.stored(100, copy=False)
    watch.stored(100, copy=True)
    watch.refused(Reason.GATED.value)
    watch.failed('a reason "of" a stranger\\\n{}')
    watch.retried(Reason.NETWORK.value, 12.5)
    watch.found({"stored": 5, "refused": 1})
    watch.gone()
    watch.child_born()
    watch.fetched(4096)
    for name, value in (("queue", 11), ("disk_bytes", 3e9), ("memory_bytes", 2.5e8), ("fds", 31)):
        watch.gauge(name, value)
    clock.now += 30
    wall = time.time()
    found = samples(server.url)
    prefix = "hubhound_crawl_"
    expected: dict[tuple[str, tuple[str, ...]], float] = {
        ("listed_total", ("new",)): 20,
        ("listed_total", ("known",)): 7,
        ("listed_total", ("filtered",)): 5,
        ("models_total", ("", "stored")): 1,
        ("models_total", ("", "copy")): 1,
        ("models_total", ("", "gone")): 1,
        ("models_total", ("gated", "refused")): 1,
        ("models_total", ("gated", "failed")): 0,
        ("models_total", ('a reason "of" a stranger\\\n{}', "failed")): 1,
        ("found_total", ("stored",)): 5,
        ("found_total", ("refused",)): 1,
        ("found_total", ("copies",)): 0,
        ("retries_total", ("network",)): 1,
        ("retry_wait_seconds_total", ()): 12.5,
        ("listing_troubles_total", ()): 1,
        ("outputs_total", ()): 100,
        ("bytes_total", ()): 4096,
        ("children_total", ()): 1,
        ("stage_seconds_count", ("fetch",)): 2,
        ("stage_seconds_sum", ("fetch",)): 0.52,
        ("stage_seconds_bucket", ("0.01", "fetch")): 0,
        ("stage_seconds_bucket", ("0.03", "fetch")): 1,
        ("stage_seconds_bucket", ("1.0", "fetch")): 2,
        ("stage_seconds_bucket", ("+Inf", "fetch")): 2,
        ("stage_seconds_count", ("load",)): 0,
        ("in_hand", ("probe",)): 1,
        ("in_hand", ("fetch",)): 0,
        ("in_hand_oldest_seconds", ("probe",)): 40,
        ("queue", ()): 11,
        ("disk_bytes", ()): 3e9,
        ("memory_bytes", ()): 2.5e8,
        ("open_fds", ()): 31,
        ("done_ratio", ()): 10 / 22,  # four came to an end, six were found, eleven wait, one is in hand
        ("left_seconds", ()): 12 * 4,  # ten in 40 s
    }
    for (name, labels), value in expected.items():
        assert found[(prefix + name, labels)] == pytest.approx(value), (name, labels)
    assert found[(prefix + "start_time_seconds", ())] == pytest.approx(wall - 40, abs=5)
    assert found[(prefix + "last_stored_timestamp_seconds", ())] == pytest.approx(wall - 30, abs=5)


def test_every_metric_is_documented_and_every_documented_one_is_served(watch: Watch, server: MetricsServer) -> None:
    for _ in range(2):  # before anything has happened as well as after
        families = list(parse(get(server.url)))
        assert {served(family) for family in families} == set(METRICS)
        assert {served(family): family.documentation for family in families} == METRICS
        watch.failed("crashed")
        watch.stored(1, copy=False)


def test_names_follow_the_conventions(server: MetricsServer) -> None:
    for family in parse(get(server.url)):
        name = served(family)
        assert re.fullmatch(r"hubhound_crawl_[a-z_]+", name)
        assert (family.type == "counter") == name.endswith("_total")
        assert METRICS[name].endswith(".")
        assert family.type in {"counter", "gauge", "histogram"}


def test_openmetrics_is_understood_too(watch: Watch, server: MetricsServer) -> None:
    """The stricter format, which Prometheus asks for first."""
    watch.ended("probe", "org/a", 2.0)
    watch.failed("crashed")
    text = get(server.url, "application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")
    assert {served(family) for family in parse_openmetrics(text)} == set(METRICS)


def test_known_reasons_are_counted_from_zero(server: MetricsServer) -> None:
    found = samples(server.url)
    for reason in Reason:
        assert found[("hubhound_crawl_models_total", (reason.value, "failed"))] == 0
        assert found[("hubhound_crawl_models_total", (reason.value, "refused"))] == 0
        assert found[("hubhound_crawl_retries_total", (reason.value,))] == 0
    for stage in STAGES:
        assert found[("hubhound_crawl_stage_seconds_count", (stage,))] == 0


def test_what_is_not_known_is_absent(server: MetricsServer) -> None:
    found = samples(server.url)
    for name in ("queue", "disk_bytes", "done_ratio", "left_seconds", "last_stored_timestamp_seconds"):
        assert (f"hubhound_crawl_{name}", ()) not in found


def test_counters_never_go_back_while_a_crawl_counts(watch: Watch, server: MetricsServer) -> None:
    stop = threading.Event()

    def crawl() -> None:
        while not stop.is_set():
            watch.stored(3, copy=False)
            watch.ended("probe", "org/a", 0.1)

    worker = threading.Thread(target=crawl)
    worker.start()
    try:
        before = 0.0
        for _ in range(10):
            found = samples(server.url)
            stored = found[("hubhound_crawl_models_total", ("", "stored"))]
            assert stored >= before
            assert found[("hubhound_crawl_outputs_total", ())] == 3 * stored  # one moment
            before = stored
    finally:
        stop.set()
        worker.join()
    assert before > 0


def test_a_port_in_use_is_one_line(watch: Watch, server: MetricsServer) -> None:
    with pytest.raises(InputError, match=rf"port {server.port}: another program listens there; choose another") as told:
        serve(watch, server.port)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("port", "host", "said"),
    [(70000, "127.0.0.1", "0 to 65535"), (-1, "127.0.0.1", "0 to 65535"), (0, "203.0.113.7", "choose another host")],
)
def test_where_it_cannot_listen_is_one_line(watch: Watch, port: int, host: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as told:
        serve(watch, port, host)
    assert "\n" not in str(told.value)


def test_closing_frees_the_port_and_ends_the_thread(watch: Watch) -> None:
    threads = threading.active_count()
    server = serve(watch, 0)
    assert get(server.url)
    server.close()
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", server.port)) != 0
    with serve(watch, server.port) as again:
        assert again.port == server.port
    server.close()  # a second time does no harm
    deadline = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads


def test_only_this_machine_is_served(server: MetricsServer) -> None:
    assert server.url.startswith("http://127.0.0.1:")
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.2", server.port)) != 0  # loopback too, but not the address it listens on
