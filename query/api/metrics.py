"""The figures of the service for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from query.api.standing import StoreStanding

Stage = Literal["encode", "queue", "scan", "render"]
"""Of a search: making embeddings, waiting for a worker, scanning, writing the answer."""

Source = Literal["memory", "disk", "encoded"]
"""Where the embedding of a concept came from."""

Rejection = Literal["host", "origin", "unauthorised", "rate", "size", "busy", "timeout"]
"""Why a guard turned a request away."""

JobEnd = Literal["done", "failed", "cancelled"]
"""How a job ended."""

METRICS = {
    "hubhound_http_requests_total": "Requests answered, by route (its template), method and status.",
    "hubhound_http_seconds": "Seconds from a request's head to the end of its answer, by route.",
    "hubhound_http_in_flight": "Requests that are being answered, work of timed-out ones included.",
    "hubhound_http_rejected_total": "Requests that a guard turned away, by reason.",
    "hubhound_search_seconds": "Seconds a search spent in a stage: encode, queue, scan, render.",
    "hubhound_concepts_total": "Concepts asked for, by where their embedding came from: memory, disk, encoded.",
    "hubhound_encoded_batch_texts": "Texts that the encoder took at once.",
    "hubhound_generation": "Generation of the index that answers; 0 before the first.",
    "hubhound_outputs": "Outputs in the generation that answers.",
    "hubhound_models": "Models in the generation that answers.",
    "hubhound_generation_switches_total": "Generations taken over since the start.",
    "hubhound_generation_errors_total": "Generations that could not be taken over.",
    "hubhound_left_out_models": "Models that are not in the generation that answers: outputs of theirs are missing "
    "on the server of the index.",
    "hubhound_store_up": "1 while the server of the index answers, 0 while it does not; 1 for a folder.",
    "hubhound_store_contact_age_seconds": "Seconds since the server of the index last answered; 0 for a folder.",
    "hubhound_store_replaced": "1 if the index was deleted and made again on its server since the start: a restart "
    "takes the new one.",
    "hubhound_jobs_active": "Jobs now, by state: queued, running.",
    "hubhound_jobs_total": "Jobs that ended, by state: done, failed, cancelled.",
}
"""Every metric of ours by the name under which it is served, with its help; those of the process come on top."""

UNMATCHED = "unmatched"
"""The route of a request that no route took: raw paths are as many as clients care to send."""

REFUSED = "refused"
"""The route of a request that a guard turned away before any route was looked for."""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper edges of the histograms of seconds."""

TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Upper edges of the histogram of batches."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """Counts for one service; every app has a registry of its own. Safe to use from any thread.

    Attributes:
        registry: What Prometheus is shown.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = self._counter("hubhound_http_requests_total", "route", "method", "status")
        self._seconds = self._histogram("hubhound_http_seconds", SECONDS, "route")
        self._in_flight = self._gauge("hubhound_http_in_flight")
        self._rejected = self._counter("hubhound_http_rejected_total", "reason")
        self._search = self._histogram("hubhound_search_seconds", SECONDS, "stage")
        self._concepts = self._counter("hubhound_concepts_total", "result")
        self._batches = self._histogram("hubhound_encoded_batch_texts", TEXTS)
        self._generation = self._gauge("hubhound_generation")
        self._outputs = self._gauge("hubhound_outputs")
        self._models = self._gauge("hubhound_models")
        self._switches = self._counter("hubhound_generation_switches_total")
        self._generation_errors = self._counter("hubhound_generation_errors_total")
        self._left_out = self._gauge("hubhound_left_out_models")
        self._store_up = self._gauge("hubhound_store_up")
        self._store_age = self._gauge("hubhound_store_contact_age_seconds")
        self._store_replaced = self._gauge("hubhound_store_replaced")
        self._jobs = self._gauge("hubhound_jobs_active", "state")
        self._jobs_ended = self._counter("hubhound_jobs_total", "state")
        # Known labels are there from the start: a counter that appears at 1 has no increase for Prometheus.
        for stage in get_args(Stage):
            self._search.labels(stage)
        for metric, labels in (
            (self._rejected, Rejection),
            (self._concepts, Source),
            (self._jobs_ended, JobEnd),
        ):
            for label in get_args(labels):
                metric.labels(label)
        self.jobs(0, 0)
        self._store_up.set(1)

    def store(self, standing: Callable[[], StoreStanding | None]) -> None:
        """Says how the service stands to the server of its index, whenever figures are asked for.

        Args:
            standing: Tells it, None for a folder; it must not block.
        """

        def told(figure: Callable[[StoreStanding], float | None], of_a_folder: float) -> Callable[[], float]:
            def now() -> float:
                found = standing()
                value = of_a_folder if found is None else figure(found)
                return float("nan") if value is None else value

            return now

        self._store_up.set_function(told(lambda found: found.up, 1.0))
        self._store_age.set_function(told(lambda found: found.last_contact_s, 0.0))
        self._store_replaced.set_function(told(lambda found: found.replaced, 0.0))

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Counts an answered request.

        Args:
            route: Template of its path, or `UNMATCHED`.
            method: As the client sent it; unknown ones count as ``other``.
            status: HTTP status; 499 where the client went away first.
            seconds: From its head to the end of the answer.
        """
        self._requests.labels(route, method if method in _METHODS else "other", str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def in_flight(self, number: int) -> None:
        """How many requests are being answered now."""
        self._in_flight.set(number)

    def rejected(self, reason: Rejection) -> None:
        """Counts a request that a guard turned away."""
        self._rejected.labels(reason).inc()

    def search(self, stage: Stage, seconds: float) -> None:
        """Counts the time that one search spent in one stage."""
        self._search.labels(stage).observe(seconds)

    def concepts(self, source: Source, number: int = 1) -> None:
        """Counts concepts by where their embedding came from."""
        self._concepts.labels(source).inc(number)

    def batch(self, texts: int) -> None:
        """Counts a batch that the encoder took.

        Args:
            texts: In the batch, at least 1.
        """
        self._batches.observe(texts)

    def generation(self, number: int, outputs: int, models: int, left_out: int = 0) -> None:
        """Says which generation answers, and how large it is; `generation_switched` counts the change.

        Args:
            number: Of the generation.
            outputs: In it.
            models: In it.
            left_out: Models that are not in it, because outputs of theirs are missing.
        """
        self._generation.set(number)
        self._outputs.set(outputs)
        self._models.set(models)
        self._left_out.set(left_out)

    def generation_switched(self) -> None:
        """Counts a generation that was taken over."""
        self._switches.inc()

    def generation_failed(self) -> None:
        """Counts a generation that could not be taken over."""
        self._generation_errors.inc()

    def jobs(self, queued: int, running: int) -> None:
        """Says how many jobs there are now."""
        self._jobs.labels("queued").set(queued)
        self._jobs.labels("running").set(running)

    def job_ended(self, state: JobEnd) -> None:
        """Counts a job that ended."""
        self._jobs_ended.labels(state).inc()

    def render(self) -> tuple[bytes, str]:
        """What Prometheus reads, in the plain text format, which every version of it takes.

        Returns:
            The text and its media type.
        """
        return generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4

    def _counter(self, name: str, *labels: str) -> Counter:
        return Counter(name, METRICS[name], labels, registry=self.registry)

    def _gauge(self, name: str, *labels: str) -> Gauge:
        return Gauge(name, METRICS[name], labels, registry=self.registry)

    def _histogram(self, name: str, edges: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, METRICS[name], labels, registry=self.registry, buckets=edges)
