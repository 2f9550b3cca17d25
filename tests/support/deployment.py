"""What stands in deploy/, read by its own rules: Compose's interpolation, kustomize, units of systemd, a Dockerfile."""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
MONITORING = DEPLOY / "monitoring"
KUBERNETES = DEPLOY / "kubernetes"
BUILDS = ("overlays/small", "overlays/cluster", "overlays/mirror", "overlays/fleet", "jobs/create-index")
UNITS = ("hubhound-crawl", "hubhound-serve", "hubhound-backup")

_INTERPOLATED = re.compile(r"\$(?:(\$)|\{([A-Z_]+)(?::?-([^}]*))?\})")
_SHELL_COMMAND = re.compile(r"^\s*(?:day=.*; |exec )?((?:hubhound|hf|ray) .+?)(?: \\)?$")
_FIELDS = {"status.podIP": "127.0.0.1"}


@dataclass(frozen=True)
class Check:
    """How it is found out whether a container is well.

    Attributes:
        name: Of the probe.
        command: Run within the container; empty where it is asked over HTTP.
        path: Asked for over HTTP.
    """

    name: str
    command: tuple[str, ...] = ()
    path: str = ""


@dataclass(frozen=True)
class Container:
    """One container, or one unit, in the same terms wherever it is described.

    Attributes:
        where: Its file and name.
        image: Name and tag.
        arguments: Of the image's program.
        command: Instead of the image's program.
        environment: Beside the image's own.
        mounts: Paths where something is mounted.
        ports: It listens on.
        probes: Text of all its checks.
        checks: The same, to be run.
        secrets: Files of ``deploy/secrets`` by the path where they are seen.
        writable: Those mounts that it may write to.
        grace_s: From SIGTERM to SIGKILL.
    """

    where: str
    image: str
    arguments: tuple[str, ...]
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: frozenset[str] = frozenset()
    ports: frozenset[int] = frozenset()
    probes: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    secrets: Mapping[str, str] = field(default_factory=dict)
    writable: frozenset[str] = frozenset()
    grace_s: float = 10.0

    @property
    def ours(self) -> bool:
        return self.image.split(":")[0].startswith("hubhound")

    def lines(self) -> list[list[str]]:
        """The command lines that it runs, their first word included."""
        if not self.command:
            return [["hubhound", *self.arguments]] if self.arguments else []
        if self.command[0] == "ray":
            return [list(self.command)]
        script = "\n".join(self.command).replace("\\\n", " ").replace('"$@"', shlex.join(self.arguments))
        found = [_SHELL_COMMAND.match(line) for line in script.splitlines()]
        return [shlex.split(match[1].split("||")[0].removesuffix(">&2")) for match in found if match]


def tool(name: str) -> str:
    """The path of a program that not every machine has; the test is skipped without."""
    path = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def interpolated(text: str) -> str:
    """A value of a Compose file without variables in the environment."""
    return _INTERPOLATED.sub(lambda match: "$" if match[1] else match[3] or "", text)


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return {key: _each(one, change) for key, one in value.items()}
    if isinstance(value, list):
        return [_each(one, change) for one in value]
    return change(value) if isinstance(value, str) else value


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    """A Compose file, its variables filled in."""
    loaded = yaml.safe_load((DEPLOY / name).read_text())
    assert isinstance(loaded, dict)
    filled = _each(loaded, interpolated)
    assert isinstance(filled, dict)
    return filled


def compose_containers() -> list[Container]:
    found = []
    for name, service in compose()["services"].items():
        mounts = {volume.split(":")[1] for volume in service.get("volumes", ())}
        mounts |= {mount.split(":")[0] for mount in service.get("tmpfs", ())}
        writable = mounts - {volume.split(":")[1] for volume in service.get("volumes", ()) if volume.endswith(":ro")}
        secrets = {}
        for secret in service.get("secrets", ()):
            short = isinstance(secret, str)
            target = f"/run/secrets/{secret}" if short else secret["target"]
            file = compose()["secrets"][secret if short else secret["source"]]["file"]
            secrets[target] = file.rpartition("/")[2]
        mounts |= set(secrets)
        health = service.get("healthcheck", {})
        test = health.get("test", [])
        checked = test[1:] if test else [] if health.get("disable") or "build" not in service else image_check()
        found.append(
            Container(
                where=f"compose.yaml: {name}",
                image=service["image"],
                arguments=tuple(service.get("command", ())),
                environment=service.get("environment", {}),
                mounts=frozenset(mounts),
                probes=(" ".join(test),) if test else (),
                checks=(Check("healthcheck", tuple(checked)),) if checked else (),
                secrets=secrets,
                writable=frozenset(writable),
                grace_s=seconds(service.get("stop_grace_period", "10s")),
            )
        )
    return found


@functools.cache
def built(path: str) -> list[dict[str, Any]]:
    """What ``kubectl apply -k`` would send, not to be changed; the test is skipped where there is no kubectl."""
    program = [tool("kubectl"), "kustomize", str(KUBERNETES / path)]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The loader in C is ten times as quick; the dashboard alone has 1,800 lines.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [document for document in yaml.load_all(done.stdout, loader) if document]


def pod_templates(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Kind and name, the pod's template, and the whole document of everything that makes pods."""
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if "template" in spec:
            yield f"{document['kind']}/{document['metadata']['name']}", spec["template"], document


def pod_containers(path: str, ordinal: int = 0) -> list[Container]:
    """The containers of all pods.

    Args:
        path: Of what kustomize builds.
        ordinal: Of the pod in its set.
    """
    documents = built(path)
    configs = {one["metadata"]["name"]: one["data"] for one in documents if one["kind"] == "ConfigMap"}
    found = []
    for name, template, _ in pod_templates(documents):
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", ())}
        for one in template["spec"]["containers"]:
            environment = {
                key: value
                for source in one.get("envFrom", ())
                for key, value in configs[source["configMapRef"]["name"]].items()
            }
            environment |= {variable["name"]: _value(variable, ordinal) for variable in one.get("env", ())}
            mounted = one.get("volumeMounts", ())
            secrets = {
                f"{mount['mountPath']}/{item['path']}": item["key"]
                for mount in mounted
                if "subPath" not in mount
                for item in volumes.get(mount["name"], {}).get("secret", {}).get("items", ())
            }
            found.append(
                Container(
                    where=f"{path}: {name}",
                    image=one["image"],
                    arguments=tuple(_expanded(argument, environment) for argument in one.get("args", ())),
                    command=tuple(_expanded(word, environment) for word in one.get("command", ())),
                    environment=environment,
                    mounts=frozenset(mount["mountPath"] for mount in mounted),
                    ports=frozenset(port["containerPort"] for port in one.get("ports", ())),
                    probes=tuple(json.dumps(value) for key, value in one.items() if key.endswith("Probe")),
                    checks=tuple(_pod_check(key, value) for key, value in one.items() if key.endswith("Probe")),
                    secrets=secrets,
                    writable=frozenset(mount["mountPath"] for mount in mounted if not mount.get("readOnly")),
                    grace_s=template["spec"].get("terminationGracePeriodSeconds", 30),
                )
            )
    return found


def _value(variable: Mapping[str, Any], ordinal: int) -> str:
    if "value" in variable:
        return str(variable["value"])
    return _FIELDS.get(variable["valueFrom"]["fieldRef"]["fieldPath"], str(ordinal))


def _pod_check(name: str, probe: Mapping[str, Any]) -> Check:
    if "exec" in probe:
        return Check(name, tuple(probe["exec"]["command"]))
    return Check(name, path=probe["httpGet"]["path"])


def seconds(text: str) -> float:
    """A time as Compose and systemd write it: ``15s``, ``1m``, ``6h``, or a number of seconds."""
    unit_s = {"s": 1, "m": 60, "h": 3600}
    return float(text[:-1]) * unit_s[text[-1]] if text[-1] in unit_s else float(text)


def _expanded(argument: str, environment: Mapping[str, str]) -> str:
    """An argument with Kubernetes' ``$(NAME)`` filled in; what names no variable is left to the shell."""
    return re.sub(r"\$\(([A-Z_]+)\)", lambda match: environment[match[1]], argument)


def unit(name: str) -> list[tuple[str, str]]:
    """The settings of a unit in their order; a name may come several times."""
    lines = (DEPLOY / "systemd" / name).read_text().splitlines()
    return [(key, value) for line in lines if re.match(r"[A-Za-z]+=", line) for key, _, value in [line.partition("=")]]


def unit_containers() -> list[Container]:
    found = []
    for name in UNITS:
        settings = unit(f"{name}.service")
        (line,) = (value for key, value in settings if key == "ExecStart")
        program, *arguments = shlex.split(line)
        assert program == "/opt/hubhound/bin/hubhound"
        told = " ".join(value for key, value in settings if key == "Environment")
        one = dict(settings)
        found.append(
            Container(
                where=f"{name}.service",
                image="hubhound",
                arguments=tuple(arguments),
                environment=dict(word.split("=", 1) for word in shlex.split(told)),
                writable=frozenset(
                    f"{root}/{folder}"
                    for root, key in (("/var/lib", "StateDirectory"), ("/var/cache", "CacheDirectory"))
                    for folder in one[key].split()
                ),
                grace_s=seconds(one.get("TimeoutStopSec", "90")),
            )
        )
    return found


def dockerfile() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile with their arguments, continued lines joined."""
    text = "\n".join(line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for line in lines if line.strip() for word, _, rest in [line.strip().partition(" ")]]


def image_environment() -> dict[str, str]:
    """Variables that the final images set."""
    found: dict[str, str] = {}
    final = False
    for instruction, rest in dockerfile():
        final = (final or rest.endswith(" AS base")) if instruction == "FROM" else final
        if instruction == "ENV" and final:
            found |= dict(word.split("=", 1) for word in shlex.split(rest))
    return found


def image_check() -> list[str]:
    """The command of the image's HEALTHCHECK."""
    (check,) = (rest for instruction, rest in dockerfile() if instruction == "HEALTHCHECK")
    found = json.loads(check.partition(" CMD ")[2])
    assert isinstance(found, list)
    return found


def image_container() -> Container:
    (command,) = (rest for instruction, rest in dockerfile() if instruction == "CMD")
    return Container("Dockerfile", "hubhound", tuple(json.loads(command)), environment=image_environment())
