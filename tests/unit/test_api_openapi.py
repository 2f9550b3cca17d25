"""The OpenAPI document: what generated clients need to know, and requests that it does not list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from query.api.jobs import Job
from tests.support.service import Asked, asking, listening, small_app

KEY = "a-key-that-is-long-enough"
OPERATIONS = {
    "cancel_job",
    "get_index",
    "get_job",
    "get_model",
    "get_outputs",
    "healthz",
    "list_models",
    "metrics",
    "model_usage",
    "probe_image",
    "readyz",
    "recommend_models",
    "search",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("openapi") / "zoo"


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Asked]:
    with asking(small_app(folder)) as running:
        yield running


@pytest.fixture(scope="module")
def document(service: Asked) -> dict[str, Any]:
    found: dict[str, Any] = service.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every operation by its id, each once."""
    listed = [operation for path in document["paths"].values() for operation in path.values()]
    found = {operation["operationId"]: operation for operation in listed}
    assert len(found) == len(listed)
    return found


def test_operations_are_called_as_a_client_would_call_them(document: dict[str, Any]) -> None:
    assert set(operations(document)) == OPERATIONS


def test_a_key_may_be_needed(document: dict[str, Any]) -> None:
    scheme = document["components"]["securitySchemes"]["bearer"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert document["security"] == [{}, {"bearer": []}]
    keyless = {name for name, operation in operations(document).items() if operation.get("security") == []}
    assert keyless == {"healthz", "readyz"}
    assert not any(operation.get("security") for operation in operations(document).values())


def test_the_document_is_the_same_with_keys_and_needs_one(folder: Path, tmp_path: Path, document: object) -> None:
    (tmp_path / "keys").write_text(f"someone {KEY}\n")
    with asking(small_app(folder, api_key_file=tmp_path / "keys")) as running:
        assert running.get("/openapi.json").status_code == 401
        assert running.get("/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).json() == document
        assert running.get("/healthz").status_code == running.get("/readyz").status_code == 200


def test_jobs_have_examples_that_fit(document: dict[str, Any]) -> None:
    for name, status, state in (("get_job", "200", "running"), ("cancel_job", "202", "cancelled")):
        shown = operations(document)[name]["responses"][status]["content"]["application/json"]
        job = Job.model_validate(shown["example"])
        assert job.state == state and job.progress is not None
        told = {name: value for name, value in job.to_json().items() if value is not None}
        assert told == shown["example"]  # the framework leaves out what is null


def test_a_monitor_may_ask_for_heads(folder: Path, service: Asked) -> None:
    with listening(small_app(folder)) as url, httpx.Client(base_url=url) as client:
        for path in ("/v1/probes/3/image?size=48", "/healthz", "/readyz"):
            head, whole = client.head(path), client.get(path)
            assert head.status_code == whole.status_code == 200
            assert head.content == b"" and whole.content
            for name in ("content-length", "content-type", "etag", "cache-control"):
                assert head.headers.get(name) == whole.headers.get(name), name
        etag = client.head("/v1/probes/3/image").headers["etag"]
        assert client.head("/v1/probes/3/image", headers={"If-None-Match": etag}).status_code == 304
        assert client.head("/v1/probes/999999/image").status_code == 404
