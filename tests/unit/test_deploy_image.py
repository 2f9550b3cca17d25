"""The image: what it is built from, what it holds, and that its health check tells a service that answers."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import sys
import threading
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.deployment import DEPLOY, REPOSITORY, compose, dockerfile, tool

LOCKS = DEPLOY / "requirements"
GPU = re.compile(r"nvidia-.*|cuda-.*|triton|torch|torchvision")


def pins(name: str) -> dict[str, str]:
    """Versions in a list of packages."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", (LOCKS / name).read_text(), re.MULTILINE)
    return {canonicalize_name(package): version for package, version in found}


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of each stage by its name."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for instruction, rest in dockerfile():
        if instruction == "FROM":
            name = rest.split(" AS ")[1]
        found.setdefault(name, []).append((instruction, rest))
    return found


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([tool("hadolint"), str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("lock", ["cpu.txt", "cuda.txt", "build.txt"])
def test_every_package_is_pinned_by_hash(lock: str) -> None:
    text = (LOCKS / lock).read_text()
    entries = re.split(r"\n(?=\S)", text.strip())
    assert entries
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+==\S+ (; .+ )?\\\n( +--hash=sha256:[0-9a-f]{64}( \\\n|$))+", entry), entry[:80]


def test_packages_satisfy_the_project() -> None:
    """Also the versions of the extras that the images have; both images the same, but for what a GPU needs."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["onnx"], *extras.get("fleet", [])]
    cuda = pins("cuda.txt")
    for text in wanted:
        requirement = Requirement(text)
        version = cuda[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{text}: {version}: run deploy/requirements/lock.sh"
    assert {**pins("cpu.txt"), **pins("cpu-torch.txt")} == {
        name: version for name, version in cuda.items() if not GPU.fullmatch(name) or name in {"torch", "torchvision"}
    }
    assert set(pins("cpu-torch.txt")) == {"torch", "torchvision"}


def test_what_is_copied_is_sent_to_the_builder() -> None:
    rules = [
        line for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] not in ("#", "")
    ]
    assert rules[0] == "*"
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    for instruction, rest in dockerfile():
        if instruction == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (REPOSITORY / source).exists(), source
                assert any(fnmatch(source, pattern) for pattern in allowed), source
    for secret in ("deploy/secrets/api_keys", ".git/config", "tests/x.py"):
        assert not any(fnmatch(secret, pattern) or secret.startswith(f"{pattern}/") for pattern in allowed)


def test_both_targets_are_final_images_of_the_same_base() -> None:
    found = stages()
    for target in ("cpu", "cuda"):
        assert found[target][0] == ("FROM", f"base AS {target}")
        assert f"--from=packages-{target} /opt/hubhound /opt/hubhound" in [rest for _, rest in found[target]]
        assert not any(instruction == "USER" for instruction, _ in found[target])
    base = dict(found["base"])
    assert base["USER"] == "10001:10001"
    assert json.loads(base["ENTRYPOINT"]) == ["hubhound"]
    built = {service["build"]["target"] for service in compose()["services"].values() if "build" in service}
    assert built | {compose("compose.gpu.yaml")["services"]["crawler"]["build"]["target"]} == {"cpu", "cuda"}


def test_no_compiler_gets_in() -> None:
    """Nothing is installed from Debian in what runs, and a base image that has a compiler ends the build."""
    run = " ".join(rest for instruction, rest in stages()["base"] if instruction == "RUN")
    assert not re.search(r"apt-get|apk|pip install", run)
    (loop,) = re.findall(r"for tool in .+?; done", run)
    assert {"cc", "gcc", "g++", "clang", "ld", "make"} <= set(re.findall(r"[a-z+]+", loop))
    for name, expected in (("true", 1), ("no-such-tool-anywhere", 0)):
        line = re.sub(r"in .+?;", f"in {name};", loop, count=1)
        assert subprocess.run(["sh", "-c", line], stdout=subprocess.DEVNULL).returncode == expected


def test_images_are_pinned_and_the_same_in_compose() -> None:
    (argument,) = (
        rest for instruction, rest in dockerfile() if instruction == "ARG" and rest.startswith("PYTHON_IMAGE")
    )
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.\d+\.\d+-slim-\w+", argument)
    for _, service in compose()["services"].items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+[\w-]*", service["image"])


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_the_health_check_tells_whether_the_service_answers(status: int | None, healthy: bool) -> None:
    (health,) = (rest for instruction, rest in dockerfile() if instruction == "HEALTHCHECK")
    program = json.loads(health.partition("CMD ")[2])
    assert program[:2] == ["python", "-c"]

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status or 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    port = server.server_port
    thread.start()
    if status is None:
        server.shutdown()
        server.server_close()
    code = program[2].replace(" 8080,", f" {port},")
    assert code != program[2]
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    if status is not None:
        server.shutdown()
        server.server_close()
    thread.join(5)
    assert (done.returncode == 0) is healthy


def test_the_lists_of_packages_say_how_they_were_made() -> None:
    script = LOCKS / "lock.sh"
    assert subprocess.run(["sh", "-n", str(script)]).returncode == 0
    text = script.read_text()
    assert all(name in text for name in ("cuda.txt", "cpu.txt", "cpu-torch.txt", "build.txt"))
    assert {path.name for path in LOCKS.iterdir()} == {"lock.sh", "cuda.txt", "cpu.txt", "cpu-torch.txt", "build.txt"}
    assert Path(script).stat().st_mode & 0o100
