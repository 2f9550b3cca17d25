"""What containers and units start, held against the program: commands, variables, files, ports."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import pairwise

import click
import pytest
import yaml
from huggingface_hub import constants

from query.api.settings import Settings, variable
from query.cli.main import cli
from tests.support.deployment import (
    BUILDS,
    KUBERNETES,
    MONITORING,
    REPOSITORY,
    Container,
    built,
    compose,
    compose_containers,
    dockerfile,
    image_container,
    image_environment,
    pod_containers,
    pod_templates,
    unit_containers,
)
from tests.unit.test_house import parse

SOURCES: dict[str, Callable[[], list[Container]]] = {
    "Dockerfile": lambda: [image_container()],
    "compose": compose_containers,
    "systemd": unit_containers,
    **{path: lambda path=path: pod_containers(path) for path in BUILDS},  # type: ignore[misc]
}
HUB = {"HF_TOKEN_PATH", "HF_HUB_DISABLE_TELEMETRY", "HF_ENDPOINT"}
LIBRARIES = {
    "PATH": "the shell",
    "HOME": "every library",
    "XDG_CACHE_HOME": "numba, huggingface_hub, matplotlib",
    "PYTHONDONTWRITEBYTECODE": "python",
    "PYTHONUNBUFFERED": "python",
    "NVIDIA_VISIBLE_DEVICES": "the NVIDIA container toolkit",
    "NVIDIA_DRIVER_CAPABILITIES": "the NVIDIA container toolkit",
}


def containers_of(source: str) -> list[Container]:
    return [container for container in SOURCES[source]() if container.ours]


def options(command: click.Command) -> Iterator[click.Parameter]:
    yield from command.params
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from options(child)


def variables_of_ours() -> set[str]:
    """Names of variables that the program reads: of options, of the service's settings, and in the code."""
    named = {option.envvar for option in options(cli) if isinstance(option.envvar, str)}
    named |= {variable(name) for name in Settings.model_fields}
    for floor in ("engine", "indexers", "query"):
        for path in (REPOSITORY / floor).rglob("*.py"):
            named |= set(re.findall(r"\"(HUBHOUND_[A-Z_]+[A-Z])\"", path.read_text()))
    return named


@pytest.mark.parametrize("source", SOURCES)
def test_every_command_line_is_understood(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started = 0
    for container in containers_of(source):
        for name, value in container.environment.items():
            if name.startswith("HUBHOUND_"):
                monkeypatch.setenv(name, value)
        for line in container.lines():
            program, *arguments = line
            if program == "hubhound":
                parse(cli, arguments, "hubhound")
                started += 1
            elif program == "ray":
                scripts = pytest.importorskip("ray.scripts.scripts")
                parse(scripts.cli, arguments, "ray")
            else:
                assert program == "hf"
    assert started, source


def test_a_command_line_that_is_not_understood_is_noticed() -> None:
    with pytest.raises(click.NoSuchOption):
        parse(cli, ["crawl", "--index", "x", "--no-such-option"], "hubhound")


def test_the_mirror_fetches_with_options_that_there_are() -> None:
    from huggingface_hub.cli.hf import app

    assert isinstance(app, click.Group)

    lines = [line for one in pod_containers("overlays/mirror") for line in one.lines() if line[0] == "hf"]
    assert lines
    for line in lines:
        arguments = [word.replace("$model", "org/name") for word in line[1:]]
        with app.make_context("hf", arguments) as context:
            left = [*context._protected_args, *context.args]
            _, child, rest = app.resolve_command(context, left)
            assert child is not None
            with child.make_context("download", rest) as inner:
                assert inner.params["repo_id"] == "org/name"
                assert list(inner.params["include"]) == ["*.json", "*.safetensors", "*.onnx", "README.md"]


@pytest.mark.parametrize("source", SOURCES)
def test_every_variable_is_one_that_somebody_reads(source: str) -> None:
    known = variables_of_ours() | HUB | set(LIBRARIES)
    for container in containers_of(source):
        manifests = (KUBERNETES / "base" / "crawler.yaml", *(KUBERNETES / "overlays" / "fleet").iterdir())
        lines = "".join(path.read_text() for path in manifests)
        for name in container.environment:
            assert name in known or f"$({name})" in lines, f"{container.where}: {name}"
    assert {name for name in HUB if hasattr(constants, name) or name == "HF_ENDPOINT"} == HUB


@pytest.mark.parametrize("source", SOURCES)
def test_every_file_that_is_named_is_mounted(source: str) -> None:
    """Secrets, in arguments and in variables."""
    for container in containers_of(source):
        if source in {"Dockerfile", "systemd"}:
            continue
        named = [value for value in (*container.arguments, *container.environment.values()) if value.startswith("/")]
        for path in named:
            assert any(path == mount or path.startswith(f"{mount}/") for mount in container.mounts), (
                f"{container.where}: {path}"
            )


@pytest.mark.parametrize("source", ["compose", *BUILDS])
def test_every_mounted_path_is_used(source: str) -> None:
    """By the image's own variables, by the command, its variables or probes, or by the stranger's image."""
    theirs = {
        "qdrant": "/qdrant/",
        "prom": "/prometheus",
        "grafana": "/var/lib/grafana",
    }
    settings = {"/etc/prometheus", "/etc/grafana", "/run/secrets/metrics_key", "/run/secrets/qdrant_read_only_key"}
    settings |= {"/run/secrets/hubhound"}  # of Prometheus: its configuration names the files
    for container in SOURCES[source]():
        told = " ".join((*container.arguments, *container.command, *container.environment.values(), *container.probes))
        told += " ".join(image_environment().values()) if container.ours else ""
        told += "/models /dev/shm" if "ray" in told else ""  # the driver's --source; Ray's object store
        for mount in container.mounts:
            own = next((path for name, path in theirs.items() if container.image.startswith(name)), None)
            used = (
                mount in told
                or (container.ours and mount == "/tmp")  # noqa: S108
                or (own is not None and mount.startswith(own))
                or (not container.ours and (mount == "/tmp" or mount.startswith(tuple(settings))))  # noqa: S108
            )
            assert used, f"{container.where}: {mount}"


def test_writable_paths_of_the_image_are_mounted_where_the_root_is_read_only() -> None:
    writable = {"/data", "/cache", "/tmp"}  # noqa: S108
    environment = image_environment()
    written = {environment[name] for name in ("HOME", "XDG_CACHE_HOME", "HUBHOUND_CACHE", "HUBHOUND_DATA")}
    assert {f"/{path.split('/')[1]}" for path in written} == writable
    made = " ".join(rest for instruction, rest in dockerfile() if instruction == "RUN")
    assert all(path in made for path in writable - {environment["HOME"]})
    for source in ("compose", *BUILDS):
        for container in containers_of(source):
            needed = writable - (set() if opens_index(container) else {"/data"})
            assert needed <= container.mounts, container.where


def opens_index(container: Container) -> bool:
    return any(line[0] == "hubhound" for line in container.lines())


def value_after(arguments: tuple[str, ...], option: str) -> str:
    return arguments[arguments.index(option) + 1]


def test_ports_agree_with_each_other() -> None:
    exposed = {int(port) for instruction, rest in dockerfile() if instruction == "EXPOSE" for port in rest.split()}
    scraped = {
        job["job_name"]: job["static_configs"][0]["targets"][0]
        for job in yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    }
    by_name = {one.where.split()[-1]: one for one in compose_containers()}
    service = value_after(by_name["api"].arguments, "--port")
    metrics = value_after(by_name["crawler"].arguments, "--metrics-port")
    assert {int(service), int(metrics)} == exposed
    assert scraped == {
        "hubhound-crawl": f"crawler:{metrics}",
        "hubhound-api": f"api:{service}",
        "qdrant": "qdrant:6333",
    }
    assert compose()["services"]["api"]["ports"] == [f"127.0.0.1:8080:{service}"]
    (health,) = (rest for instruction, rest in dockerfile() if instruction == "HEALTHCHECK")
    assert f"'127.0.0.1', {service}," in health
    assert value_after(image_container().arguments, "--port") == service
    assert value_after(by_name["crawler"].arguments, "--metrics-host") == "0.0.0.0"  # noqa: S104


RAY_PORTS = ("--port", "--node-manager-port", "--object-manager-port", "--min-worker-port")


def ray_ports(line: list[str]) -> list[str]:
    """Ports on which a node of Ray is asked; of those for its workers the first."""
    return [value for option, value in pairwise(line) if option in RAY_PORTS]


def test_nodes_of_ray_are_asked_on_the_ports_that_policies_let_pass() -> None:
    path = "overlays/fleet"
    by_name = {one.where.rpartition("/")[2]: one for one in pod_containers(path)}
    (policy,) = (
        one["spec"] for one in built(path) if one["kind"] == "NetworkPolicy" and one["metadata"]["name"] == "ray"
    )
    passing = [(port["port"], port.get("endPort")) for port in policy["ingress"][0]["ports"]]
    assert passing == [(port["port"], port.get("endPort")) for port in policy["egress"][0]["ports"]]
    for name in ("crawler", "prober"):
        (line,) = (line for line in by_name[name].lines() if line[0] == "ray")
        asked = set(map(int, ray_ports(line)))
        assert asked == by_name[name].ports - {9400}
        assert asked <= {first for first, _ in passing}
        last = int(value_after(tuple(line), "--max-worker-port"))
        assert (int(value_after(tuple(line), "--min-worker-port")), last) in passing
    assert value_after(tuple(by_name["prober"].lines()[0]), "--address") == "crawler-0.crawler:6379"
    assert value_after(by_name["crawler"].arguments, "--ray") == "127.0.0.1:6379"  # the pod's own address


@pytest.mark.parametrize("path", [path for path in BUILDS if path.startswith("overlays")])
def test_ports_of_pods_agree_with_each_other(path: str) -> None:
    documents = built(path)
    by_name = {one.where.rpartition("/")[2]: one for one in pod_containers(path)}
    of_ray = {int(port) for line in by_name["crawler"].lines() if line[0] == "ray" for port in ray_ports(line)}
    assert by_name["crawler"].ports - of_ray == {int(value_after(by_name["crawler"].arguments, "--metrics-port"))}
    assert of_ray <= by_name["crawler"].ports
    assert by_name["api"].ports == {int(value_after(by_name["api"].arguments, "--port"))}
    named = {
        (template["metadata"]["labels"]["app.kubernetes.io/name"], port["name"]): port["containerPort"]
        for _, template, _ in pod_templates(documents)
        for container in template["spec"]["containers"]
        for port in container.get("ports", ())
    }
    for service in (one for one in documents if one["kind"] == "Service"):
        app = service["spec"]["selector"]["app.kubernetes.io/name"]
        assert all((app, port["targetPort"]) in named for port in service["spec"]["ports"])
    for policy in (one for one in documents if one["kind"] == "NetworkPolicy"):
        selector = policy["spec"]["podSelector"]
        apps = {selector.get("matchLabels", {}).get("app.kubernetes.io/name")}
        apps |= {value for rule in selector.get("matchExpressions", ()) for value in rule["values"]}
        for rule in policy["spec"].get("ingress", ()):
            for port in rule["ports"]:
                assert port["port"] in [number for (name, _), number in named.items() if name in apps]
    for container in by_name.values():
        for probe in container.probes:
            port = json.loads(probe).get("httpGet", {}).get("port")
            assert port is None or (container.where.rpartition("/")[2], port) in named


def test_the_index_and_its_key_are_the_same_everywhere() -> None:
    told = {
        source: {(one.environment["HUBHOUND_INDEX"]) for one in containers_of(source) if opens_index(one)}
        for source in ("compose", *BUILDS)
    }
    assert set(map(frozenset, told.values())) == {frozenset({"qdrant://qdrant:6333/hub"})}
