"""Alert rules and dashboard: they are PromQL, ask for metrics and labels that there are, and fire when they should."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from indexers.crawl import metrics as crawl_metrics
from indexers.crawl.standing import STAGES
from indexers.crawl.watch import Watch
from query.api import metrics as api_metrics
from query.api.metrics import Metrics
from tests.support.deployment import DEPLOY, KUBERNETES, MONITORING, REPOSITORY, built, compose, tool

ALERTS = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
RULES = [rule for group in ALERTS for rule in group["rules"]]
DASHBOARD = json.loads((MONITORING / "grafana" / "dashboards" / "hubhound.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EVERYWHERE = {"job", "instance"}
QDRANT: dict[str, set[str]] = {
    "app_status_recovery_mode": set(),
    "collection_points": {"id"},
    "collection_dead_replicas": set(),
    "collection_running_optimizations": {"id"},
    "collection_update_queue_length": {"id"},
    "cluster_peers_total": set(),
    "cluster_pending_operations_total": set(),
    "cluster_working_state": {"state"},
    "memory_resident_bytes": set(),
    "rest_responses_total": {"method", "endpoint", "status"},
    "rest_responses_duration_seconds_bucket": {"method", "endpoint", "status", "le"},
}
"""Those of Qdrant's that are used, with their labels, from its documentation and the code of 1.17 to 1.20."""


def exported() -> dict[str, set[str]]:
    """Series that crawl and service export, with their labels, from what they answer when something has happened."""
    watch = Watch()
    for stage in STAGES:
        if stage != "list":
            watch.started(stage, "org/name")
            watch.ended(stage, "org/name", 1.0)
    watch.started("probe", "org/other")
    watch.stored(10, copy=False)
    for name in ("queue", "disk_bytes", "memory_bytes", "fds"):
        watch.gauge(name, 1.0)
    crawl = CollectorRegistry()
    crawl.register(crawl_metrics.CrawlCollector(watch))
    service = Metrics()
    service.request("/v1/search", "POST", 200, 0.1)
    service.search("scan", 0.1)
    service.batch(3)
    found: dict[str, set[str]] = {}
    for text in (_text(crawl), service.render()[0].decode()):
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    for name in crawl_metrics.METRICS:  # absent while they are not known
        found.setdefault(name, set())
    return found


def _text(registry: CollectorRegistry) -> str:
    from prometheus_client import generate_latest

    return generate_latest(registry).decode()


SERIES = {**exported(), **QDRANT, "up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}


def plain(expression: str) -> str:
    """An expression of Grafana's with its variables filled in."""
    return expression.replace("$__rate_interval", "5m").replace("$crawler", ".*").replace("$api", ".*")


def expressions() -> list[tuple[str, str]]:
    found = [(rule["alert"], rule["expr"]) for rule in RULES]
    return found + [(panel["title"], plain(target["expr"])) for panel in PANELS for target in panel["targets"]]


def parts(expression: str) -> list[Any]:
    """All parts of an expression, itself included."""
    promql = pytest.importorskip("promql_parser")
    found: list[Any] = []
    promql.walk(promql.parse(expression), found.append)
    return found


def selectors(expression: str) -> Iterator[tuple[str, set[str], dict[str, str]]]:
    """Names of series, the labels that are asked for, and those that must have one value."""
    for part in parts(expression):
        if type(part).__name__ == "VectorSelector":
            matchers = part.matchers.matchers
            equal = {
                one.name: one.value for one in matchers if str(one.op).endswith("Equal") and "Not" not in str(one.op)
            }
            yield part.name, {one.name for one in matchers}, equal


def test_every_expression_asks_for_what_is_exported() -> None:
    assert len(expressions()) > 60
    for name, expression in expressions():
        asked = list(selectors(expression))
        assert asked, name
        for series, labels, _ in asked:
            assert series in SERIES, f"{name}: {series}"
            assert labels <= SERIES[series] | EVERYWHERE, f"{name}: {series}: {labels}"


def test_a_wrong_name_and_a_wrong_label_are_noticed() -> None:
    ((series, labels, _),) = selectors('rate(hubhound_crawl_model_total{stat="failed"}[5m])')
    assert series not in SERIES
    assert not labels <= SERIES["hubhound_crawl_models_total"] | EVERYWHERE


def test_groups_are_made_by_labels_that_there_are() -> None:
    for name, expression in expressions():
        for part in parts(expression):
            if type(part).__name__ == "AggregateExpr" and part.modifier is not None:
                inside = {label for series, _, _ in selectors(str(part)) for label in SERIES[series]}
                assert set(part.modifier.labels) <= inside | EVERYWHERE, name


def test_values_that_are_asked_for_can_come() -> None:
    """Stages, states and reasons are closed lists of the code's."""
    text = _text_of_all()
    for name, expression in expressions():
        for series, _, equal in selectors(expression):
            for label, value in equal.items():
                if label in {"stage", "state", "reason"} and series.startswith("hubhound"):
                    assert f'{label}="{value}"' in text, f"{name}: {label}={value}"
        for pattern in re.findall(r'reason=~"([^"]+)"', expression):
            for value in pattern.split("|"):
                assert f'reason="{value}"' in text, f"{name}: {value}"


def _text_of_all() -> str:
    registry = CollectorRegistry()
    registry.register(crawl_metrics.CrawlCollector(Watch()))
    return _text(registry) + Metrics().render()[0].decode()


def test_every_metric_of_ours_is_shown_or_watched() -> None:
    asked = {series for _, expression in expressions() for series, _, _ in selectors(expression)}
    asked |= {re.sub(r"_(bucket|sum|count)$", "", series) for series in asked}
    left = {*crawl_metrics.METRICS, *api_metrics.METRICS} - asked
    assert left <= {
        "hubhound_crawl_listed_total",
        "hubhound_crawl_children_total",
        "hubhound_crawl_retry_wait_seconds_total",
        "hubhound_crawl_left_seconds",
        "hubhound_crawl_last_stored_timestamp_seconds",
        "hubhound_generation",
    }


def test_jobs_are_called_as_prometheus_calls_them() -> None:
    for path in (MONITORING / "prometheus.yml", KUBERNETES / "components" / "monitoring" / "prometheus.yml"):
        jobs = {job["job_name"] for job in yaml.safe_load(path.read_text())["scrape_configs"]}
        asked = {
            equal["job"] for _, expression in expressions() for _, _, equal in selectors(expression) if "job" in equal
        }
        assert asked == jobs, path


def test_every_alert_says_what_is_wrong_and_the_manual_what_to_do() -> None:
    manual = (REPOSITORY / "docs" / "operations.md").read_text()
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert "for" in rule
    table = re.findall(r"^\| `((?:Hubhound|Qdrant)\w+)` \| (\w+) \|", manual, re.MULTILINE)
    assert table == [(rule["alert"], rule["labels"]["severity"]) for rule in RULES]


def test_every_alert_has_a_case() -> None:
    cases = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
    fired = {
        label
        for case in cases
        for test in case["promql_expr_test"]
        for sample in test["exp_samples"]
        for label in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    assert fired == {rule["alert"] for rule in RULES}
    assert cases[0]["promql_expr_test"][0]["exp_samples"] == []


@pytest.mark.slow
def test_alerts_fire_when_they_should_and_only_then() -> None:
    program = [tool("promtool"), "test", "rules", str(MONITORING / "alerts_test.yml")]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_understands_its_configuration(tmp_path: Path) -> None:
    text = (MONITORING / "prometheus.yml").read_text()
    text = text.replace("/etc/prometheus/alerts.yml", str(MONITORING / "alerts.yml"))
    for secret in ("metrics_key", "qdrant_read_only_key"):
        (tmp_path / secret).write_text("x")
    (tmp_path / "prometheus.yml").write_text(text.replace("/run/secrets", str(tmp_path)))
    program = [tool("promtool"), "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        assert panel["fieldConfig"]["defaults"]["unit"]
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    told = json.dumps(DASHBOARD["panels"])
    assert set(re.findall(r"\$\{?([a-z]+)\}?", told)) == variables
    for variable in DASHBOARD["templating"]["list"]:
        for series in re.findall(r"label_values\((\w+),", str(variable["query"])):
            assert series in SERIES
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        taken = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        cells |= taken


def test_rules_and_dashboard_get_where_they_are_looked_for() -> None:
    services = compose()["services"]
    volumes = dict(volume.split(":")[:2] for name in ("prometheus", "grafana") for volume in services[name]["volumes"])
    loaded = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["rule_files"]
    assert [volumes["./monitoring/alerts.yml"]] == loaded
    provider = MONITORING / "grafana" / "provisioning" / "dashboards" / "hubhound.yml"
    (one,) = yaml.safe_load(provider.read_text())["providers"]
    assert one["options"]["path"] == volumes["./monitoring/grafana/dashboards"]
    source = MONITORING / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    assert yaml.safe_load(source.read_text())["datasources"][0]["url"] == "http://prometheus:9090"
    assert (DEPLOY / "monitoring" / "grafana" / "provisioning").is_dir()


def test_the_cluster_gets_the_same_rules_and_dashboard() -> None:
    configs = [one["data"] for one in built("overlays/small") if one["kind"] == "ConfigMap"]
    (rules,) = (one["alerts.yml"] for one in configs if "alerts.yml" in one)
    assert yaml.safe_load(rules)["groups"] == ALERTS
    (dashboard,) = (one["hubhound.json"] for one in configs if "hubhound.json" in one)
    assert json.loads(dashboard) == DASHBOARD
