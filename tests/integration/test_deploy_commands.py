"""What images, Compose, Kubernetes and systemd start, run for real; `tests.support.deployed` says what is replaced."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.contained import landlock_version
from tests.support.deployed import Contained, Running, place
from tests.support.deployed_hub import PROBES, deployed_hub
from tests.support.deployment import (
    DEPLOY,
    KUBERNETES,
    MONITORING,
    REPOSITORY,
    Container,
    built,
    compose_containers,
    pod_containers,
    unit,
    unit_containers,
)
from tests.support.hub_crowd import Crowd
from tests.support.qdrant_server import standin
from tests.unit.test_deploy_monitoring import expressions, selectors

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(landlock_version() == 0, reason="a read-only root is imitated by Landlock, which is not here"),
]

MIRRORED = tuple((KUBERNETES / "overlays" / "mirror" / "models.txt").read_text().split())
KEY = "a-key-of-a-client-of-the-tests"
CRAWL_ENDS = {128 + signal.SIGTERM}
DOCUMENT = (REPOSITORY / "docs" / "deployment.md").read_text()
NOT_KNOWN_YET = {"hubhound_crawl_left_seconds", "hubhound_crawl_done_ratio"}
"""Absent until a crawl has a rate, as their help says."""


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets") / "secrets"
    subprocess.run(["sh", str(DEPLOY / "make_secrets.sh"), str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], Crowd]]:
    """Variables that name the Hub, and what is on it."""
    with deployed_hub(tmp_path_factory.mktemp("hub") / "hub", MIRRORED) as (server, crowd):
        yield {"HF_ENDPOINT": server.url}, crowd


def keys(secrets: Path) -> dict[str, Any]:
    """Qdrant's own configuration, as it would read it."""
    service = yaml.safe_load((secrets / "qdrant.yaml").read_text())["service"]
    assert isinstance(service, dict)
    return service


@pytest.fixture(scope="module")
def made(hub: tuple[dict[str, str], Crowd], secrets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is on Qdrant's disk when the job create-index is done."""
    root = tmp_path_factory.mktemp("made")
    with standin(root / "qdrant", **keys(secrets)) as qdrant:
        hosts = {"qdrant:6333": f"127.0.0.1:{qdrant.port}"}
        with place(root / "pods", hosts, hub[0], secrets) as make:
            (create,) = pod_containers("jobs/create-index")
            make(replace(create, arguments=fewer_probes(create.arguments)), "create").run()
    return root / "qdrant"


def named(containers: Sequence[Container], name: str) -> Container:
    (one,) = (one for one in containers if one.where.split()[-1].rpartition("/")[2] == name)
    return one


def option(one: Contained, name: str) -> str:
    words = one.command()
    return words[words.index(name) + 1]


def fewer_probes(words: Sequence[str]) -> tuple[str, ...]:
    """The tests' Hub has fewer images than are asked for."""
    found = tuple(word.replace(":valid:4000", f":valid:{PROBES}") for word in words)
    assert found != tuple(words)
    return found


def samples(text: str) -> list[tuple[str, dict[str, str], float]]:
    found = text_string_to_metric_families(text)
    return [(one.name, dict(one.labels), one.value) for family in found for one in family.samples]


def ended(crawler: Contained) -> dict[str, float]:
    """Models that a crawler is done with, by state."""
    counts: dict[str, float] = {}
    for name, labels, value in samples(crawler.get("/metrics").text):
        if name == "hubhound_crawl_models_total" and value:
            counts[labels["state"]] = counts.get(labels["state"], 0) + value
    return counts


def is_well(one: Contained, check: str) -> bool:
    (found,) = (each for each in one.one.checks if each.name == check)
    return one.well(found)


def search(api: Contained, concept: str, key: str | None, host: str) -> httpx.Response:
    headers = {"Host": host, **({"Authorization": f"Bearer {key}"} if key else {})}
    body = {"concepts": [concept], "k": 3}
    return httpx.post(f"{api.url}/v1/search", json=body, headers=headers, timeout=30)


def check_protection(crawl: Running) -> None:
    """All layers around models are in force, within the walls of the container."""
    (line,) = crawl.events("models run")
    assert "landlock: files" in line["within"]
    assert "seccomp" in line["within"]
    assert "without" not in line, line


def end_all(*running: tuple[Contained, Running]) -> dict[str, int]:
    """Ends them at the same time, each within its own time; exit statuses by the containers' names."""
    with ThreadPoolExecutor(len(running)) as pool:
        statuses = list(pool.map(lambda pair: pair[1].end(), running))
    for one, process in running:
        assert "Traceback" not in process.said(), one.one.where
    return {one.folder.name: status for (one, _), status in zip(running, statuses, strict=True)}


def test_compose(hub: tuple[dict[str, str], Crowd], secrets: Path, tmp_path: Path) -> None:
    variables, crowd = hub
    containers = compose_containers()
    with standin(tmp_path / "qdrant", **keys(secrets)) as qdrant:
        hosts = {"qdrant:6333": f"127.0.0.1:{qdrant.port}"}
        with place(tmp_path / "compose", hosts, variables, secrets) as make:
            (health,) = named(containers, "qdrant").checks
            ready = [word.replace("/6333", f"/{qdrant.port}") for word in health.command]
            assert subprocess.run(ready, timeout=10).returncode == 0
            create = named(containers, "create")
            make(replace(create, arguments=fewer_probes(create.arguments)), "create").run()

            crawler, api = make(named(containers, "crawler"), "crawler"), make(named(containers, "api"), "api")
            assert not is_well(crawler, "healthcheck")
            assert not is_well(api, "healthcheck")
            service, crawl = api.start(), crawler.start()
            service.wait_for(lambda: is_well(api, "healthcheck"), "its health check passes")
            crawl.wait_for(lambda: is_well(crawler, "healthcheck"), "its health check passes")
            crawl.wait_for(lambda: sum(ended(crawler).values()) == len(crowd.expected), "all models are dealt with")
            assert ended(crawler) == {"stored": 4, "copy": 1, "refused": 2}
            check_protection(crawl)
            service.wait_for(lambda: api.get("/readyz").status_code == 200, "it is ready")

            with api.path("/run/secrets/api_keys").open("a") as file:
                file.write(f"tester {KEY}\n")
            concept = crowd.expected[crowd.good[0]].labels[0]
            service.wait_for(lambda: search(api, concept, KEY, "api:8080").is_success, "it takes the new key")
            hits = search(api, concept, KEY, "api:8080").json()
            assert {hit["model"] for answer in hits["results"] for hit in answer["hits"]} <= set(crowd.good)
            assert search(api, concept, None, "api:8080").status_code == 401
            assert search(api, concept, f"{KEY}x", "api:8080").status_code == 401

            check_metrics({"crawler:9400": crawler, "api:8080": api}, secrets)
            check_that_health_checks_notice(crawler, crawl, api, service)
            statuses = end_all((crawler, crawl), (api, service))
            assert statuses["crawler"] in CRAWL_ENDS
            assert statuses["api"] == 0
            assert not is_well(api, "healthcheck")
    assert subprocess.run(ready, timeout=10, stderr=subprocess.DEVNULL).returncode != 0


def check_metrics(targets: dict[str, Contained], secrets: Path) -> None:
    """Everything that alerts and dashboard ask of our processes is served to Prometheus, with the labels."""
    served: dict[str, set[str]] = {}
    jobs = {
        job["job_name"]: job for job in yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    }
    assert jobs.keys() == {"hubhound-crawl", "hubhound-api", "qdrant"}
    for name in ("hubhound-crawl", "hubhound-api"):
        (target,) = (target for one in jobs[name]["static_configs"] for target in one["targets"])
        file = jobs[name].get("authorization", {}).get("credentials_file")
        headers = {"Host": target}
        if file:
            assert targets[target].get("/metrics", headers=headers).status_code == 401
            headers["Authorization"] = f"Bearer {(secrets / Path(file).name).read_text()}"
        answer = targets[target].get("/metrics", headers=headers)
        assert answer.status_code == 200, name
        for series, labels, _ in samples(answer.text):
            served.setdefault(series, set()).update(labels)
    asked = [(title, one) for title, expression in expressions() for one in selectors(expression)]
    assert len(asked) > 60
    for title, (series, labels, _) in asked:
        if series.startswith("hubhound") and series not in NOT_KNOWN_YET:
            assert series in served, f"{title}: {series}"
            assert labels <= served[series] | {"job", "instance"}, f"{title}: {series}: {labels}"


def check_that_health_checks_notice(crawler: Contained, crawl: Running, api: Contained, service: Running) -> None:
    (beat,) = crawler.path("/data").rglob("heartbeat.json")
    old = time.time() - 600
    service.process.send_signal(signal.SIGSTOP)
    try:
        os.utime(beat, (old, old))
        assert not is_well(crawler, "healthcheck")
        assert not is_well(api, "healthcheck")
    finally:
        service.process.send_signal(signal.SIGCONT)
    crawl.wait_for(lambda: is_well(crawler, "healthcheck"), "its heart beats again")
    assert is_well(api, "healthcheck")


@pytest.fixture(scope="module")
def two_crawlers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An overlay of one's own with two crawlers: the replacement of their number is that of the overlay cluster."""
    folder = tmp_path_factory.mktemp("overlay")
    cluster = yaml.safe_load((KUBERNETES / "overlays" / "cluster" / "kustomization.yaml").read_text())
    mine = {
        **{key: cluster[key] for key in ("apiVersion", "kind", "namespace", "replacements")},
        "resources": [os.path.relpath((KUBERNETES / "overlays" / "small").resolve(), folder.resolve())],
        "replicas": [{"name": "crawler", "count": 2}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(mine))
    return str(folder)


def test_pods(hub: tuple[dict[str, str], Crowd], made: Path, two_crawlers: str, secrets: Path, tmp_path: Path) -> None:
    variables, crowd = hub
    pods = pod_containers(two_crawlers)
    with standin(shutil.copytree(made, tmp_path / "qdrant"), **keys(secrets)) as qdrant:
        hosts = {"qdrant:6333": f"127.0.0.1:{qdrant.port}"}
        with place(tmp_path / "pods", hosts, variables, secrets) as make:
            api = make(named(pods, "api"), "api")
            assert not any(map(api.well, api.one.checks))
            service = api.start()
            crawlers = [
                make(named(pod_containers(two_crawlers, ordinal), "crawler"), f"crawler-{ordinal}")
                for ordinal in range(2)
            ]
            assert [option(one, "--shard") for one in crawlers] == ["0/2", "1/2"]
            assert not any(one.well(check) for one in crawlers for check in one.one.checks)
            crawls = [one.start() for one in crawlers]
            mirror = make(named(pod_containers("overlays/mirror"), "mirror"), "mirror")
            mirror.path("/etc/mirror").mkdir(parents=True)
            (models,) = (
                one["data"]["models.txt"] for one in built("overlays/mirror") if "models.txt" in one.get("data", ())
            )
            (mirror.path("/etc/mirror") / "models.txt").write_text(models)
            mirror.run()
            for one, crawl in zip(crawlers, crawls, strict=True):
                crawl.wait_for(lambda one=one: all(map(one.well, one.one.checks)), "its probes pass")
            crawls[0].wait_for(
                lambda: sum(sum(ended(one).values()) for one in crawlers) == len(crowd.expected), "all is dealt with"
            )
            # A copy whose original is another part's is probed like any other.
            parts = [ended(one) for one in crawlers]
            assert sum(part.get("stored", 0) + part.get("copy", 0) for part in parts) == len(crowd.good)
            assert sum(part.get("refused", 0) for part in parts) == len(crowd.bad)
            assert all(sum(part.values()) for part in parts), "one crawler has nothing to do"
            for crawl in crawls:
                check_protection(crawl)
            # Crawlers of the mirror ask no Hub.
            reader = make(
                named(pod_containers("overlays/mirror"), "crawler"), "reader", HF_ENDPOINT="http://127.0.0.1:9"
            )
            mirror.path("/models").rename(reader.path("/models"))
            crawlers.append(reader)
            crawls.append(reader.start())
            crawls[-1].wait_for(lambda: ended(reader) == {"stored": len(MIRRORED)}, "all that was fetched is stored")
            service.wait_for(lambda: all(map(api.well, api.one.checks)), "its probes pass")
            key = (secrets / "metrics_key").read_text()

            def models() -> set[str]:
                """Those that hits of searches for all labels come from."""
                found = api.get("/v1/models", params={"limit": 100}, headers={"Authorization": f"Bearer {key}"}).json()
                return {model["repo"] for model in found["models"]}

            service.wait_for(lambda: models() == {*crowd.good, *MIRRORED}, "it has what all crawlers stored")
            backup = make(named(pods, "backup"), "backup")
            backup.run()
            (file,) = backup.path("/backups").iterdir()
            assert re.fullmatch(r"hub-[A-Z][a-z]{2}\.backup", file.name)
            statuses = end_all(*zip(crawlers, crawls, strict=True), (api, service))
            assert {status for name, status in statuses.items() if name != "api"} <= CRAWL_ENDS
            assert statuses["api"] == 0
            assert not any(map(api.well, api.one.checks))


def lines_of(name: str, key: str, one: Contained) -> list[list[str]]:
    """Command lines of a unit, by systemd's rules."""
    found = (value for setting, value in unit(f"{name}.service") if setting == key)
    return [one.line(shlex.split(line.replace("$$", "$").replace("%%", "%"))) for line in found]


def settings(name: str) -> dict[str, str]:
    return dict(unit(f"{name}.service"))


def test_units(hub: tuple[dict[str, str], Crowd], secrets: Path, tmp_path: Path) -> None:
    variables, crowd = hub
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "hf_token").write_text("")
    units = {one.where.removesuffix(".service"): one for one in unit_containers()}
    assert settings("hubhound-crawl")["LoadCredential"].split(":")[0] == "hf_token"
    with place(tmp_path / "machine", {"%d": str(credentials)}, variables, secrets) as make:
        crawler = make(units["hubhound-crawl"], "crawl")
        # One machine: all units see the same folders.
        api, backup = make(units["hubhound-serve"], "serve"), make(units["hubhound-backup"], "backup")
        for one in (api, backup):
            for path in ("/var/lib/hubhound", "/var/cache/hubhound"):
                one.path(path).rmdir()
                one.path(path).symlink_to(crawler.path(path))
        (line,) = re.findall(r"(hubhound index create --index /var/lib.*)$", DOCUMENT, re.MULTILINE)
        crawler.run(crawler.line(fewer_probes(shlex.split(line))))
        for name in ("hubhound-crawl", "hubhound-serve"):
            assert Path(crawler.told(settings(name)["ConditionPathExists"])).is_file()

        api.path("/etc/hubhound").mkdir(parents=True)
        (api.path("/etc/hubhound") / "api_keys").write_text(f"tester {KEY}\n")
        crawl, service = crawler.start(), api.start()
        crawl.wait_for(lambda: sum(ended(crawler).values()) == len(crowd.expected), "all models are dealt with")
        check_protection(crawl)
        host = option(api, "--allowed-host")
        service.wait_for(lambda: api.get("/readyz").status_code == 200, "it is ready")
        concept = crowd.expected[crowd.good[0]].labels[0]
        assert search(api, concept, KEY, host).is_success
        assert search(api, concept, KEY, "other.example.org").status_code == 421

        # The backup conflicts with the crawl, which systemd ends first.
        assert settings("hubhound-backup")["Conflicts"] == "hubhound-crawl.service"
        good = {0, *map(int, settings("hubhound-crawl")["SuccessExitStatus"].split())}
        assert crawl.end() in good
        for key in ("ExecStartPre", "ExecStart", "ExecStartPost"):
            for words in lines_of("hubhound-backup", key, backup):
                backup.run(words)
        (file,) = backup.path("/var/lib/hubhound-backups").iterdir()
        assert re.fullmatch(r"zoo-[A-Z][a-z]{2}\.backup", file.name)
        assert search(api, concept, KEY, host).is_success
        assert "SuccessExitStatus" not in settings("hubhound-serve")
        assert end_all((api, service)) == {"serve": 0}


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets lie in its folder for temporary files, and their names may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="fleet", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'hubhound[fleet]'")
def test_a_fleet_of_pods(
    hub: tuple[dict[str, str], Crowd], made: Path, secrets: Path, tmp_path: Path, short_folder: Path
) -> None:
    """The crawler has its worker in the prober's pod, where there is no Hub, no index and no key."""
    pods, nowhere = pod_containers("overlays/fleet"), "http://127.0.0.1:9"
    with standin(shutil.copytree(made, tmp_path / "qdrant"), **keys(secrets)) as qdrant:
        hosts = {"qdrant:6333": f"127.0.0.1:{qdrant.port}"}
        with place(short_folder, hosts, hub[0], secrets) as make:
            driver = make(named(pods, "crawler"), "c", HF_ENDPOINT=nowhere)
            prober = make(named(pods, "prober"), "p", HF_ENDPOINT=nowhere)
            for name in MIRRORED:
                shutil.copytree(hub[1].root / "models" / name, driver.path("/models") / name)
            # The driver tells its workers where images and models are: at the same paths in both pods.
            prober.path("/cache").rmdir()
            prober.path("/cache").symlink_to(driver.path("/cache"))
            hosts["crawler-0.crawler:6379"] = hosts["127.0.0.1:6379"] = f"127.0.0.1:{driver.ports['6379']}"
            crawl = driver.start()
            crawl.wait_for(lambda: driver.path("/tmp/ray/session_latest").exists(), "its cluster is there")  # noqa: S108
            node = prober.start()
            crawl.wait_for(lambda: ended(driver) == {"stored": len(MIRRORED)}, "all that was fetched is stored")
            check_protection(crawl)
            assert set(end_all((driver, crawl)).values()) <= CRAWL_ENDS
            end_all((prober, node))  # in time; its status means nothing to a Deployment
