"""The service's figures for Prometheus."""

from __future__ import annotations

import threading

from prometheus_client.parser import text_string_to_metric_families

from query.api.metrics import METRICS, UNMATCHED, Metrics


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text, media_type = metrics.render()
    assert media_type.startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[name, frozenset(labels.items())]


def test_everything_that_is_listed_is_served_and_nothing_else() -> None:
    text = Metrics().render()[0].decode()
    families = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP hubhound")}
    assert {name for name in families if not name.endswith("_created")} == set(METRICS)
    for name, shown in METRICS.items():
        assert f"# HELP {name} {shown}" in text
    assert "process_resident_memory_bytes" in text


def test_counts_arrive_under_their_labels() -> None:
    metrics = Metrics()
    metrics.request("/v1/models/{name:path}", "GET", 200, 0.003)
    metrics.request("/v1/models/{name:path}", "GET", 200, 0.3)
    metrics.request(UNMATCHED, "BREW", 404, 0.001)
    metrics.in_flight(3)
    metrics.rejected("rate")
    metrics.search("scan", 0.02)
    metrics.concepts("memory", 4)
    metrics.concepts("encoded")
    metrics.batch(8)
    metrics.generation(7, 5968, 71)
    metrics.generation_switched()
    metrics.generation_failed()
    metrics.jobs(2, 1)
    metrics.job_ended("failed")
    route = {"route": "/v1/models/{name:path}"}
    assert value(metrics, "hubhound_http_requests_total", **route, method="GET", status="200") == 2
    assert value(metrics, "hubhound_http_requests_total", route=UNMATCHED, method="other", status="404") == 1
    assert value(metrics, "hubhound_http_seconds_count", **route) == 2
    assert value(metrics, "hubhound_http_seconds_bucket", **route, le="0.005") == 1
    assert value(metrics, "hubhound_http_seconds_bucket", **route, le="0.5") == 2
    assert abs(value(metrics, "hubhound_http_seconds_sum", **route) - 0.303) < 1e-9
    assert value(metrics, "hubhound_http_in_flight") == 3
    assert value(metrics, "hubhound_http_rejected_total", reason="rate") == 1
    assert value(metrics, "hubhound_http_rejected_total", reason="size") == 0
    assert value(metrics, "hubhound_search_seconds_count", stage="scan") == 1
    assert value(metrics, "hubhound_search_seconds_count", stage="render") == 0
    assert value(metrics, "hubhound_concepts_total", result="memory") == 4
    assert value(metrics, "hubhound_concepts_total", result="disk") == 0
    assert value(metrics, "hubhound_encoded_batch_texts_sum") == 8
    assert value(metrics, "hubhound_generation") == 7
    assert value(metrics, "hubhound_outputs") == 5968
    assert value(metrics, "hubhound_models") == 71
    assert value(metrics, "hubhound_generation_switches_total") == 1
    assert value(metrics, "hubhound_generation_errors_total") == 1
    assert value(metrics, "hubhound_jobs_active", state="queued") == 2
    assert value(metrics, "hubhound_jobs_active", state="running") == 1
    assert value(metrics, "hubhound_jobs_total", state="failed") == 1
    assert value(metrics, "hubhound_jobs_total", state="done") == 0


def test_two_services_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.generation(1, 2, 3)
    assert value(second, "hubhound_outputs") == 0


def test_strange_methods_make_no_new_series() -> None:
    metrics = Metrics()
    for number in range(500):
        metrics.request(UNMATCHED, f"X{number}", 404, 0.0)
    assert value(metrics, "hubhound_http_requests_total", route=UNMATCHED, method="other", status="404") == 500
    assert sum(name == "hubhound_http_requests_total" for name, _ in samples(metrics)) == 1


def test_threads_lose_no_count() -> None:
    metrics = Metrics()
    threads = [threading.Thread(target=lambda: [metrics.concepts("memory") for _ in range(2000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(metrics, "hubhound_concepts_total", result="memory") == 16_000
