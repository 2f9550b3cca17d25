"""The Compose file: its schema, what its containers may do, its secrets and health checks."""

from __future__ import annotations

import http.server
import os
import re
import socket
import subprocess
import threading
import time
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

from query.api.keys import ApiKeys
from tests.support.deployment import DEPLOY, built, compose, compose_containers, pod_templates, tool

SERVICES = compose()["services"]


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deploy") / "secrets"
    done = subprocess.run(["sh", str(DEPLOY / "make_secrets.sh"), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_it_is_a_compose_file(name: str) -> None:
    program = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(DEPLOY / name)]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_gives_up_what_it_does_not_need(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"].split(":")[0] not in {"0", "root"}
    limits = service["deploy"]["resources"]["limits"]
    assert {"cpus", "memory", "pids"} <= set(limits)
    assert not {"privileged", "network_mode", "pid", "ipc", "devices"} & set(service)
    assert all("docker.sock" not in volume for volume in service.get("volumes", ()))


def test_only_this_machine_can_ask_and_only_what_it_should() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"api", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    networks = compose()["networks"]
    inside = {name for name, network in networks.items() if network and network.get("internal")}
    assert set(SERVICES["qdrant"]["networks"]) <= inside
    assert set(SERVICES["prometheus"]["networks"]) <= inside
    for name, service in SERVICES.items():
        assert set(service["networks"]) <= set(networks)
        if "ports" in service:
            assert set(service["networks"]) - inside, name


def test_everything_that_is_named_is_there() -> None:
    whole = compose()
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    named = {volume for volume in used if not volume.startswith(".")}
    assert named == set(whole["volumes"])
    for volume in used - named:
        assert (DEPLOY / volume).exists(), volume
    secrets = {
        secret if isinstance(secret, str) else secret["source"]
        for service in SERVICES.values()
        for secret in service.get("secrets", ())
    }
    assert secrets == set(whole["secrets"])
    assert {name for service in SERVICES.values() for name in service["networks"]} == set(whole["networks"])
    for service in SERVICES.values():
        assert set(service.get("depends_on", ())) <= set(SERVICES)


def test_secrets_are_files_and_the_script_makes_them(secrets: Path) -> None:
    wanted = {Path(secret["file"]).name for secret in compose()["secrets"].values()}
    assert {path.name for path in secrets.iterdir()} == wanted
    assert all(path.stat().st_mode & 0o007 == 0 for path in secrets.iterdir())
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            assert not ("KEY" in name or "TOKEN" in name or "PASSWORD" in name) or value.startswith("/run/secrets/")
    assert "secrets/" in (DEPLOY / ".gitignore").read_text().split()


def test_the_secrets_fit_each_other(secrets: Path) -> None:
    def read(name: str) -> str:
        return (secrets / name).read_text()

    qdrant = yaml.safe_load(read("qdrant.yaml"))
    assert qdrant == {"service": {"api_key": read("qdrant_api_key"), "read_only_api_key": read("qdrant_read_only_key")}}
    keys = ApiKeys(secrets / "api_keys")
    assert keys.name_of(read("metrics_key").encode()) == "prometheus"
    assert sha256(read("metrics_key").encode()).hexdigest() in read("api_keys")
    random = [
        read(name) for name in ("qdrant_api_key", "qdrant_read_only_key", "metrics_key", "grafana_admin_password")
    ]
    assert len(set(random)) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", one) for one in random)  # none begins with "-", as an option does


def test_secrets_that_are_there_are_kept(secrets: Path) -> None:
    before = {path.name: path.read_text() for path in secrets.iterdir()}
    subprocess.run(["sh", str(DEPLOY / "make_secrets.sh"), str(secrets)], check=True, capture_output=True)
    assert {path.name: path.read_text() for path in secrets.iterdir()} == before
    (secrets / "qdrant_api_key").unlink()
    subprocess.run(["sh", str(DEPLOY / "make_secrets.sh"), str(secrets)], check=True, capture_output=True)
    fresh = (secrets / "qdrant_api_key").read_text()
    assert fresh != before["qdrant_api_key"]
    assert yaml.safe_load((secrets / "qdrant.yaml").read_text())["service"]["api_key"] == fresh


def test_the_secret_of_kubernetes_holds_the_same_files(secrets: Path) -> None:
    made = {path.name for path in secrets.iterdir()}
    for path in ("overlays/small", "overlays/cluster", "overlays/mirror", "jobs/create-index"):
        for name, template, _ in pod_templates(built(path)):
            for volume in template["spec"].get("volumes", ()):
                if "secret" in volume:
                    assert volume["secret"]["secretName"] == "hubhound"
                    assert {item["key"] for item in volume["secret"]["items"]} <= made, name


def test_the_health_check_of_qdrant_tells_whether_it_is_ready() -> None:
    (test,) = (one.probes[0] for one in compose_containers() if one.where.endswith("qdrant"))
    script = SERVICES["qdrant"]["healthcheck"]["test"][3]
    assert script in test
    status = 200

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        line = script.replace("/6333", f"/{server.server_port}")
        assert subprocess.run([tool("bash"), "-c", line], timeout=10).returncode == 0
        status = 503
        assert subprocess.run([tool("bash"), "-c", line], timeout=10).returncode != 0
        server.shutdown()
        thread.join()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        line = script.replace("/6333", f"/{free.getsockname()[1]}")
    done = subprocess.run([tool("bash"), "-c", line], timeout=10, stderr=subprocess.DEVNULL)
    assert done.returncode != 0


def heartbeat_checks() -> list[str]:
    """The one of Compose, and those of Kubernetes."""
    found = [SERVICES["crawler"]["healthcheck"]["test"][3]]
    for name, template, _ in pod_templates(built("overlays/small")):
        if name == "StatefulSet/crawler":
            container = template["spec"]["containers"][0]
            found += [container[probe]["exec"]["command"][2] for probe in ("startupProbe", "livenessProbe")]
    return found


def test_the_health_check_of_a_crawler_tells_how_old_its_heartbeat_is(tmp_path: Path) -> None:
    beat = tmp_path / "servers" / "qdrant_6333" / "hub" / "shards" / "0-of-1" / "crawl" / "heartbeat.json"
    for script in heartbeat_checks():
        line = script.replace("find /data ", f"find {tmp_path} ")
        assert line != script
        beat.unlink(missing_ok=True)
        assert subprocess.run(["sh", "-c", line]).returncode != 0
        beat.parent.mkdir(parents=True, exist_ok=True)
        beat.write_text("{}")
        assert subprocess.run(["sh", "-c", line]).returncode == 0
        old = time.time() - 600
        os.utime(beat, (old, old))
        assert subprocess.run(["sh", "-c", line]).returncode != 0


def test_on_a_gpu_only_the_image_and_the_device_differ() -> None:
    for name, service in compose("compose.gpu.yaml")["services"].items():
        assert service["image"].replace("-cuda", "-cpu") == SERVICES[name]["image"]
        assert service["environment"] == {"HUBHOUND_DEVICE": "cuda"}
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]
