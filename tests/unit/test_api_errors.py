"""What clients are told of exceptions, and what they are not."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from engine.errors import (
    ConceptError,
    EncoderError,
    HubhoundError,
    IndexDamagedError,
    IndexLockedError,
    IndexMismatchError,
    IndexMissingError,
    InputError,
    ModelFailedError,
    ModelRefusedError,
    ProbeError,
    Reason,
    StoreError,
)
from query.api.errors import (
    LOGGER,
    MEDIA_TYPE,
    RESPONSES,
    ApiError,
    ProblemKind,
    install,
    named_error,
    problem_response,
    responses,
    retry_after,
    to_problem,
)

STATUSES = {
    "invalid-request": 400,
    "invalid-body": 422,
    "unauthorised": 401,
    "forbidden-origin": 403,
    "unknown-host": 421,
    "not-found": 404,
    "model-not-found": 404,
    "output-not-found": 404,
    "probe-not-found": 404,
    "job-not-found": 404,
    "method-not-allowed": 405,
    "job-finished": 409,
    "models-not-run": 409,
    "model-unusable": 409,
    "too-large": 413,
    "unsupported-media-type": 415,
    "rate-limited": 429,
    "internal": 500,
    "busy": 503,
    "not-ready": 503,
    "index-unusable": 503,
    "encoder-unusable": 503,
    "timeout": 504,
}

PLACE = "/srv/very secret/place"


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    k: Annotated[int, Field(ge=1, le=100)] = 1
    texts: list[str] = []


def app_with(error: BaseException | None = None) -> FastAPI:
    app = FastAPI(responses=RESPONSES)
    install(app)

    @app.post("/fail")
    async def fail() -> None:
        if error is not None:
            raise error

    @app.post("/body")
    async def body(body: Body) -> dict[str, int]:
        return {"k": body.k}

    return app


def client(app: FastAPI) -> TestClient:
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, logger=LOGGER):
        yield


def test_the_table_of_problems_is_the_published_one() -> None:
    assert {kind.slug: kind.status for kind in ProblemKind} == STATUSES
    assert len({kind.type for kind in ProblemKind}) == len(STATUSES)  # an Enum takes equal rows for one member
    assert {kind.type for kind in ProblemKind} == {f"urn:hubhound:problem:{slug}" for slug in STATUSES}


@pytest.mark.parametrize("kind", ProblemKind, ids=lambda kind: kind.slug)
def test_every_kind_reaches_the_client_whole(kind: ProblemKind) -> None:
    answer = client(app_with(ApiError(kind, "what is wrong", headers={"Retry-After": "7"}, near="k"))).post("/fail")
    assert answer.status_code == kind.status
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.headers["retry-after"] == "7"
    assert answer.json() == {
        "type": kind.type,
        "title": kind.title,
        "status": kind.status,
        "detail": "what is wrong",
        "near": "k",
    }
    if kind is ProblemKind.UNAUTHORISED:
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("error", "slug"),
    [
        (InputError("the k is odd"), "invalid-request"),
        (ConceptError("the concept is empty", ""), "invalid-request"),
        (ProbeError("no image", "x.jpg"), "invalid-request"),
        (EncoderError("the encoder does not load", "open_clip:x"), "encoder-unusable"),
        (IndexMissingError("zoo"), "index-unusable"),
        (IndexLockedError("zoo"), "index-unusable"),
        (IndexDamagedError("a file is broken", "zoo/x"), "index-unusable"),
        (IndexMismatchError("made with another encoder", "encoder", "a", "b"), "index-unusable"),
        (StoreError("it cannot be written", "zoo"), "index-unusable"),
        (ModelFailedError(Reason.CRASHED, "it ended", "org/a"), "model-unusable"),
        (ModelRefusedError(Reason.GATED, "ask for access", "org/a"), "model-unusable"),
        (HTTPException(404), "not-found"),
        (HTTPException(405, headers={"Allow": "GET"}), "method-not-allowed"),
        (HTTPException(413), "too-large"),
        (HTTPException(415), "unsupported-media-type"),
        (HTTPException(400, "There was an error parsing the body"), "invalid-request"),
        (HTTPException(418), "invalid-request"),
        (HTTPException(500, "secret"), "internal"),
        (ExceptionGroup("tasks", [InputError("the k is odd")]), "invalid-request"),
        (ExceptionGroup("tasks", [InputError("a"), InputError("b")]), "internal"),
        (KeyError("secret"), "internal"),
        (MemoryError(), "internal"),
        (RecursionError(), "internal"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), "internal"),
        (HubhoundError("nobody raises this one"), "internal"),
    ],
    ids=repr,
)
def test_every_exception_is_a_problem(error: Exception, slug: str) -> None:
    answer = client(app_with(error)).post("/fail")
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.json()["type"] == f"urn:hubhound:problem:{slug}"
    assert answer.status_code == answer.json()["status"] == STATUSES[slug]
    assert "secret" not in answer.text


def test_what_nobody_foresaw_is_logged_whole_and_told_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    problem = to_problem(ZeroDivisionError(f"password in {PLACE}"), request_id="id-1")
    told = json.dumps(problem.to_json())
    assert problem.instance == "id-1"
    assert "password" not in told
    assert "ZeroDivision" not in told
    (record,) = caplog.records
    assert "id-1" in record.getMessage()
    assert record.exc_info is not None
    assert f"password in {PLACE}" in str(record.exc_info[1])


def test_foreseen_errors_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    to_problem(InputError("the k is odd"))
    to_problem(RequestValidationError([]))
    assert not caplog.records


HERE = tempfile.gettempdir()


@pytest.mark.parametrize(
    "error",
    [
        ProbeError(f"the image {HERE}/hubhound-upload-abc/000.jpg is damaged", f"{HERE}/hubhound-upload-abc/000.jpg"),
        InputError(f"the image {HERE}/hubhound-upload-abc/000.jpg is damaged: [Errno 2] No such file: '{HERE}/x'"),
        InputError(f"cannot read '{HERE}/very/hidden/x.json': Permission denied"),
        InputError(f"cannot read file://{HERE}/very/hidden/x.json"),
        InputError(f"--models={HERE}/very/hidden"),
        InputError(f"({HERE}/very/hidden)"),
        InputError(f"twice: {HERE}/very/hidden,{HERE}/very/hidden"),
        IndexMissingError(f"{HERE}/very hidden/zoo"),
        IndexLockedError(Path(f"{HERE}/very hidden/zoo")),
        IndexDamagedError(f"{HERE}/very hidden/zoo/x is no array", Path(f"{HERE}/very hidden/zoo/x")),
        StoreError(f"the store {PLACE} is full", Path(PLACE)),
        ModelFailedError(Reason.BROKEN_WEIGHTS, f"[Errno 5] {HERE}/very/hidden/model.safetensors", "org/a"),
        EncoderError(f"the encoder open_clip:local-dir:{HERE}/very/hidden cannot be loaded", "open_clip:x"),
        HTTPException(400, f"no {HERE}/very/hidden"),
    ],
    ids=repr,
)
def test_paths_of_this_machine_are_told_to_nobody(error: Exception) -> None:
    detail = to_problem(error).detail
    assert "hidden" not in detail
    assert "secret" not in detail
    assert HERE not in detail
    assert "hubhound-upload" not in detail


def test_uploads_are_called_as_the_client_calls_them() -> None:
    path = f"{HERE}/hubhound-upload-abc/000.jpg"
    names = {path: "my cat.jpg", f"{HERE}/hubhound-upload-abc": "the upload"}
    error = ProbeError(f"the image {path} is damaged: truncated", Path(path))
    assert to_problem(error, names=names).detail == "the image my cat.jpg is damaged: truncated"
    assert named_error(error, names).detail == "the image my cat.jpg is damaged: truncated"
    assert named_error(error, names).kind is ProblemKind.INVALID_REQUEST
    assert to_problem(InputError(f"{path}1 stays hidden"), names=names).detail.endswith("stays hidden")
    assert HERE not in to_problem(InputError(f"{path}1 stays hidden"), names=names).detail


@pytest.mark.parametrize(
    "detail",
    [
        "--where library=timm: no such key",
        "the model org/name#17 is not in the index",
        "and/or, 1/2, https://huggingface.co/org/name",
        r"a name with \1 and \g<0>",
    ],
)
def test_what_is_no_path_stays(detail: str) -> None:
    assert to_problem(InputError(detail)).detail == detail


def test_a_detail_is_one_line_of_bounded_length() -> None:
    detail = to_problem(InputError("a\nb\x1b[31m\u202e" + "x" * 100_000)).detail
    assert "\n" not in detail
    assert "\x1b" not in detail
    assert len(detail) <= 1000


def test_lone_surrogates_do_not_break_the_answer() -> None:
    answer = client(app_with(ApiError(ProblemKind.INVALID_REQUEST, "half \ud800 of it", text="\udfff"))).post("/fail")
    assert answer.status_code == 400
    assert answer.json()["detail"] == "half \N{REPLACEMENT CHARACTER} of it"


def test_facts_cannot_replace_what_identifies_a_problem() -> None:
    error = ApiError(ProblemKind.BUSY, "full", type="x", status=200, title="y", instance="z")
    assert error.problem.to_json() == {
        "type": ProblemKind.BUSY.type,
        "title": ProblemKind.BUSY.title,
        "status": 503,
        "detail": "full",
    }


def faults(answer: Any) -> dict[str, str]:
    return {fault["where"]: fault["message"] for fault in answer.json()["errors"]}


def test_what_does_not_fit_is_named_and_not_repeated() -> None:
    answer = client(app_with()).post("/body", json={"k": 0, "texts": ["hunter2" * 10, 5], "passwort": "hunter2"})
    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:hubhound:problem:invalid-body"
    assert faults(answer) == {
        "k": "Input should be greater than or equal to 1",
        "texts.1": "Input should be a valid string",
        "passwort": "Extra inputs are not permitted",
    }
    assert "hunter2" not in answer.text


def test_thousands_of_faults_are_told_in_short() -> None:
    answer = client(app_with()).post("/body", json={"texts": [0] * 5000, "z" * 50_000: 1})
    assert len(answer.json()["errors"]) == 20
    assert "and 4,998 more" in answer.json()["detail"]
    assert len(answer.content) < 5000


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"k":\xff}', b'{"k": 1' + b"0" * 5000 + b"}"])
def test_bodies_that_are_no_json_are_the_clients_fault(content: bytes) -> None:
    answer = client(app_with()).post("/body", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 422}
    assert answer.headers["content-type"] == MEDIA_TYPE


def test_unknown_paths_and_methods() -> None:
    app = client(app_with())
    assert app.post("/nowhere").json()["type"] == "urn:hubhound:problem:not-found"
    refused = app.put("/body")
    assert refused.status_code == 405
    assert refused.headers["allow"] == "POST"


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (59.5, "60")])
def test_retry_after_is_in_whole_seconds_and_never_too_early(seconds: float, shown: str) -> None:
    assert retry_after(seconds) == {"Retry-After": shown}


def test_the_instance_of_a_response_is_the_request() -> None:
    answer = problem_response(ApiError(ProblemKind.BUSY, "full").problem, "id-7")
    assert json.loads(bytes(answer.body))["instance"] == "id-7"
    kept = problem_response(to_problem(InputError("x"), request_id="id-1"), "id-7")
    assert json.loads(bytes(kept.body))["instance"] == "id-1"


def test_the_openapi_document_declares_problems_only_as_problem_json() -> None:
    document = app_with().openapi()
    for status, declared in document["paths"]["/body"]["post"]["responses"].items():
        if status != "200":
            assert list(declared["content"]) == [MEDIA_TYPE]
    assert {"Problem", "Fault"} <= document["components"]["schemas"].keys()
    references = json.dumps(document).count('"$ref": "#/components/schemas/Problem"')
    assert references == 2 * len(RESPONSES)
    assert "HTTPValidationError" not in json.dumps(document)
    assert set(responses(ProblemKind.MODEL_NOT_FOUND)) == set(RESPONSES) | {404}
