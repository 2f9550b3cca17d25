"""What docs/deployment.md and docs/operations.md say about files, images and folders, held against deploy/."""

from __future__ import annotations

import re

import pytest

from tests.support.deployment import DEPLOY, KUBERNETES, REPOSITORY, UNITS, compose, dockerfile

DOCUMENTS = {name: (REPOSITORY / "docs" / name).read_text() for name in ("deployment.md", "operations.md")}
MADE = {"deploy/secrets"}
"""By deploy/make_secrets.sh."""


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_path_exists(name: str) -> None:
    paths = {path.rstrip("/.") for path in re.findall(r"(?<![\w./])deploy/[\w./*-]+", DOCUMENTS[name])}
    assert paths
    for path in paths - MADE:
        assert list(REPOSITORY.glob(path)), path


def test_overlays_and_jobs_can_be_applied() -> None:
    text = DOCUMENTS["deployment.md"]
    applied = set(re.findall(r"kubectl apply -k (\S+)", text.replace("`", " ")))
    assert len(applied) >= 3
    assert all((REPOSITORY / path / "kustomization.yaml").is_file() for path in applied)
    overlays = {path.name for path in (KUBERNETES / "overlays").iterdir()}
    assert set(re.findall(r"^\| `(\w+)` \| (?:one|three|as)", text, re.MULTILINE)) == overlays


def test_images_are_those_that_are_used() -> None:
    text = DOCUMENTS["deployment.md"]
    inspected = set(re.findall(r"imagetools inspect (\S+)", text))
    (python,) = (rest.split("=")[1] for _, rest in dockerfile() if rest.startswith("PYTHON_IMAGE="))
    theirs = {one["image"] for one in compose()["services"].values() if not one["image"].startswith("hubhound")}
    assert inspected == {python, *theirs}
    targets = set(re.findall(r"--target (\w+) +--tag (hubhound:\S+)", text))
    assert targets == {("cpu", "hubhound:0.1.0-cpu"), ("cuda", "hubhound:0.1.0-cuda")}


def test_secrets_are_those_that_there_are() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| .* \| .* \|$", DOCUMENTS["deployment.md"], re.MULTILINE)
    files = {secret["file"].rpartition("/")[2] for secret in compose()["secrets"].values()}
    assert files <= set(rows)


def test_units_are_those_that_are_started() -> None:
    (line,) = re.findall(r"systemctl enable --now (.+)$", DOCUMENTS["deployment.md"], re.MULTILINE)
    started = set(line.split())
    assert started == {"hubhound-crawl.service", "hubhound-serve.service", "hubhound-backup.timer"}
    assert all((DEPLOY / "systemd" / name).is_file() for name in started)
    assert {f"{name}.service" for name in UNITS} == {path.name for path in (DEPLOY / "systemd").glob("*.service")}


def test_variables_of_compose_are_those_that_it_reads() -> None:
    raw = (DEPLOY / "compose.yaml").read_text()
    read = set(re.findall(r"\$\{([A-Z_]+)", raw))
    named = {"HUBHOUND_PROBES", "HUBHOUND_ENCODER", "HUBHOUND_NAME"}
    assert named <= read
    assert all(name in DOCUMENTS["deployment.md"] + DOCUMENTS["operations.md"] for name in named)
