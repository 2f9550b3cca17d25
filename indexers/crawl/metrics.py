"""The figures of a crawl for Prometheus, on a small HTTP server of their own."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from engine.errors import InputError, Reason
from indexers.crawl.standing import BUCKETS_S, STAGES, Snapshot
from indexers.crawl.watch import Watch

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

METRICS = {
    "hubhound_crawl_listed_total": "Entries that listings brought, by what: new, known, filtered.",
    "hubhound_crawl_models_total": (
        "Models that came to an end, by state (stored, copy, refused, failed, gone) and, where there is one, reason."
    ),
    "hubhound_crawl_found_total": (
        "Models found in the index, so that nothing of them was fetched, by what it says (stored, copies, refused, "
        "failed)."
    ),
    "hubhound_crawl_outputs_total": "Outputs written to the index; copies of a model add none.",
    "hubhound_crawl_retries_total": "Tries of a model that failed and will be made again, by reason.",
    "hubhound_crawl_retry_wait_seconds_total": "Seconds that tries were put off by, in all.",
    "hubhound_crawl_listing_troubles_total": "Requests of a listing that failed and were made again.",
    "hubhound_crawl_bytes_total": "Bytes downloaded.",
    "hubhound_crawl_children_total": "Child processes started to load and probe models.",
    "hubhound_crawl_stage_seconds": "Seconds a model (in list: a pass) spent in a stage, by stage.",
    "hubhound_crawl_in_hand": "Models that a stage is at work on, by stage.",
    "hubhound_crawl_in_hand_oldest_seconds": "Seconds that a stage has been at work on its oldest model, by stage.",
    "hubhound_crawl_queue": "Models that wait: listed, waiting for another try, or fetched and not yet probed.",
    "hubhound_crawl_disk_bytes": "Bytes of the downloads on disk.",
    "hubhound_crawl_memory_bytes": "Resident memory of the daemon, without its children.",
    "hubhound_crawl_open_fds": "Open file descriptors of the daemon.",
    "hubhound_crawl_done_ratio": "Share of this run's models that came to an end, 0 to 1; absent while not known.",
    "hubhound_crawl_left_seconds": "Seconds left at the rate of the last ten minutes; absent while not known.",
    "hubhound_crawl_start_time_seconds": "When the run began, seconds since 1970.",
    "hubhound_crawl_last_stored_timestamp_seconds": (
        "When a model last came into the index, seconds since 1970; absent before the first."
    ),
}
"""Every metric by the name under which it is served, with its help."""

_GAUGES = {
    "queue": "hubhound_crawl_queue",
    "disk_bytes": "hubhound_crawl_disk_bytes",
    "memory_bytes": "hubhound_crawl_memory_bytes",
    "fds": "hubhound_crawl_open_fds",
}
_LAST_PORT = 65535
_REASONS = tuple(reason.value for reason in Reason)


class CrawlCollector:
    """Reads a watch whenever Prometheus asks.

    Args:
        watch: What the crawl counts in.
        clock: Seconds since 1970.
    """

    def __init__(self, watch: Watch, clock: Callable[[], float] = time.time) -> None:
        self._watch = watch
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """All metrics at one moment."""
        now = self._watch.now()
        yield from _counters(now)
        yield _stage_seconds(now)
        yield from _gauges(now, self._clock())


class MetricsServer:
    """Serves the metrics of a crawl at ``url`` from a thread of its own until it is closed.

    Attributes:
        port: It listens on.
        url: Of the metrics.
    """

    def __init__(self, server: WSGIServer, thread: threading.Thread, host: str) -> None:
        self._server = server
        self._thread = thread
        self.port = server.server_port
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/metrics"

    def close(self) -> None:
        """Stops the server; harmless when it is stopped already."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(watch: Watch, port: int, host: str = "127.0.0.1") -> MetricsServer:
    """Serves the metrics of a crawl over HTTP.

    Args:
        watch: What the crawl counts in.
        port: To listen on, 0 for any that is free.
        host: Address to listen on; only this machine by default.

    Raises:
        InputError: It cannot listen there: the port is in use, not allowed, not a port ...
    """
    if not 0 <= port <= _LAST_PORT:
        raise InputError(f"metrics cannot be served on port {port}: a port is a number from 0 to {_LAST_PORT}")
    registry = CollectorRegistry()
    registry.register(CrawlCollector(watch))
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise InputError(f"metrics cannot be served on {host} port {port}: {_why(error)}") from error
    return MetricsServer(server, thread, host)


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program listens there; choose another port"
    if error.errno == errno.EACCES:
        return "not allowed; choose a port above 1023"
    return f"{error.strerror or error}; choose another host or port"


def _counters(now: Snapshot) -> Iterator[Metric]:
    entries = _counter("hubhound_crawl_listed_total", "entries")
    for name, count in (("new", now.new), ("known", now.known), ("filtered", now.filtered)):
        entries.add_metric([name], count)
    yield entries

    models = _counter("hubhound_crawl_models_total", "state", "reason")
    for state, count in (("stored", now.stored), ("copy", now.copies), ("gone", now.gone)):
        models.add_metric([state, ""], count)
    # Known reasons are there from the start: a counter that appears at 1 has no increase for Prometheus.
    for state, counts in (("refused", now.refused), ("failed", now.failed)):
        for reason in dict.fromkeys((*_REASONS, *counts)):
            models.add_metric([state, reason], counts.get(reason, 0))
    yield models

    found = _counter("hubhound_crawl_found_total", "what")
    for what, count in now.found.items():
        found.add_metric([what], count)
    yield found

    retries = _counter("hubhound_crawl_retries_total", "reason")
    for reason in dict.fromkeys((*_REASONS, *now.retried)):
        retries.add_metric([reason], now.retried.get(reason, 0))
    yield retries

    for metric, value in (
        ("hubhound_crawl_outputs_total", now.outputs),
        ("hubhound_crawl_retry_wait_seconds_total", now.retry_wait_s),
        ("hubhound_crawl_listing_troubles_total", now.listing_troubles),
        ("hubhound_crawl_bytes_total", now.bytes_fetched),
        ("hubhound_crawl_children_total", now.children),
    ):
        single = _counter(metric)
        single.add_metric([], value)
        yield single


def _stage_seconds(now: Snapshot) -> Metric:
    family = HistogramMetricFamily(
        "hubhound_crawl_stage_seconds", METRICS["hubhound_crawl_stage_seconds"], labels=["stage"]
    )
    edges = (*[str(edge) for edge in BUCKETS_S], "+Inf")
    for stage, taken in now.stages.items():
        family.add_metric([stage], list(zip(edges, map(float, taken.buckets), strict=True)), taken.seconds)
    return family


def _gauges(now: Snapshot, clock_s: float) -> Iterator[Metric]:
    count = _gauge("hubhound_crawl_in_hand", "stage")
    oldest = _gauge("hubhound_crawl_in_hand_oldest_seconds", "stage")
    for stage in STAGES:
        ages = [held.seconds for held in now.in_hand if held.stage == stage]
        count.add_metric([stage], len(ages))
        oldest.add_metric([stage], max(ages, default=0.0))
    yield count
    yield oldest
    since = now.since_stored_s
    values = {
        **{metric: now.gauges.get(name) for name, metric in _GAUGES.items()},
        "hubhound_crawl_done_ratio": now.share_done,
        "hubhound_crawl_left_seconds": now.seconds_left,
        "hubhound_crawl_start_time_seconds": round(clock_s - now.uptime_s, 2),
        "hubhound_crawl_last_stored_timestamp_seconds": None if since is None else round(clock_s - since, 2),
    }
    for metric, value in values.items():
        gauge = _gauge(metric)
        if value is not None:
            gauge.add_metric([], value)
        yield gauge


def _counter(name: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, METRICS[name], labels=labels)


def _gauge(name: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, METRICS[name], labels=labels)
