"""What goes wrong over HTTP: one kind of problem each, told as RFC 9457 problem+json, and the map from exceptions."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

from engine.errors import (
    EncoderError,
    HubhoundError,
    IndexUnusableError,
    InputError,
    ModelError,
    StoreError,
    one_line,
)

MEDIA_TYPE = "application/problem+json"
"""Media type of every answer that is an error."""

LOGGER = "hubhound.serve"
"""Name of the logger of the service."""

_DETAIL_CHARACTERS = 1000
_WHERE_CHARACTERS = 100
_MOST_FAULTS = 20
_SCHEMAS = "#/components/schemas/{model}"
_RESERVED = frozenset({"type", "title", "status", "detail", "instance"})

log = logging.getLogger(LOGGER)


class ProblemKind(Enum):
    """The closed list of problems; a client tells them apart by ``type``, which never changes.

    Attributes:
        slug: Last part of the type.
        status: HTTP status.
        title: One line, the same for every problem of the kind.
    """

    INVALID_REQUEST = ("invalid-request", 400, "The request cannot be used")
    INVALID_BODY = ("invalid-body", 422, "The request does not fit the schema")
    UNAUTHORISED = ("unauthorised", 401, "An API key is needed")
    FORBIDDEN_ORIGIN = ("forbidden-origin", 403, "Pages of this origin may not do this")
    UNKNOWN_HOST = ("unknown-host", 421, "The service does not answer under this host name")
    NOT_FOUND = ("not-found", 404, "There is nothing at this path")
    MODEL_NOT_FOUND = ("model-not-found", 404, "The model is not in the index")
    OUTPUT_NOT_FOUND = ("output-not-found", 404, "The output is not in the index")
    PROBE_NOT_FOUND = ("probe-not-found", 404, "There is no such probe")
    JOB_NOT_FOUND = ("job-not-found", 404, "There is no such job")
    METHOD_NOT_ALLOWED = ("method-not-allowed", 405, "The path does not take this method")
    JOB_FINISHED = ("job-finished", 409, "The job has ended")
    MODELS_NOT_RUN = ("models-not-run", 409, "This service does not run models")
    MODEL_UNUSABLE = ("model-unusable", 409, "A model that the request needs cannot be run")
    TOO_LARGE = ("too-large", 413, "The request is too large")
    UNSUPPORTED_MEDIA_TYPE = ("unsupported-media-type", 415, "The media type of the body is not supported")
    RATE_LIMITED = ("rate-limited", 429, "Too many requests")
    INTERNAL = ("internal", 500, "Something went wrong inside the service")
    BUSY = ("busy", 503, "The service is busy")
    NOT_READY = ("not-ready", 503, "The service is not ready yet")
    INDEX_UNUSABLE = ("index-unusable", 503, "The index cannot be used")
    ENCODER_UNUSABLE = ("encoder-unusable", 503, "The encoder cannot be used")
    TIMEOUT = ("timeout", 504, "The answer took too long")

    def __init__(self, slug: str, status: int, title: str) -> None:
        self.slug = slug
        self.status = status
        self.title = title

    @property
    def type(self) -> str:
        """The URI that names the kind."""
        return f"urn:hubhound:problem:{self.slug}"


class Fault(BaseModel):
    """One place of a request that does not fit the schema."""

    where: str = Field(description="Path in the body, as in concepts.0, or query.NAME, path.NAME, header.NAME.")
    message: str


class Problem(BaseModel):
    """An error as clients see it (RFC 9457); further facts may stand beside these."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:hubhound:problem:invalid-body",
                    "title": "The request does not fit the schema",
                    "status": 422,
                    "detail": "k: Input should be greater than or equal to 1",
                    "instance": "8f14e45fceea167a5a36dedd4bea2543",
                    "errors": [{"where": "k", "message": "Input should be greater than or equal to 1"}],
                }
            ]
        },
    )

    type: str = Field(description="Names the kind of problem; stable.")
    title: str
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="One line for a person: what, where and what to do next.")
    instance: str | None = Field(default=None, description="Id of the request, as in X-Request-ID and in the log.")
    errors: list[Fault] | None = Field(default=None, description="Of invalid-body: what does not fit, at most 20.")

    _headers: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        """Header fields that the answer carries, ``Retry-After`` for one."""
        return self._headers

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not known is left out."""
        return self.model_dump(mode="json", exclude_none=True)


class ApiError(Exception):
    """An error that a route or a guard raises on purpose.

    Args:
        kind: Of problem.
        detail: One line for a person, without any path of this machine.
        headers: Header fields for the answer.
        facts: What stands beside the detail in the JSON; plain values.
    """

    def __init__(
        self, kind: ProblemKind, detail: str, *, headers: Mapping[str, str] | None = None, **facts: object
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.headers = dict(headers or {})
        self.facts = facts

    @property
    def problem(self) -> Problem:
        """As clients see it."""
        return _problem(self.kind, self.detail, self.headers, **self.facts)


def retry_after(seconds: float) -> dict[str, str]:
    """The header field that says when to come back.

    Args:
        seconds: From now; rounded up to whole seconds, at least 1.
    """
    return {"Retry-After": str(max(1, int(-(-seconds // 1))))}


def to_problem(
    error: BaseException, *, request_id: str | None = None, names: Mapping[str, str] | None = None
) -> Problem:
    """What clients are told of an exception; what nobody foresaw is logged and only counts as ``internal``.

    Args:
        error: Anything that was raised.
        request_id: For the log and for ``instance``.
        names: What stands for paths of this machine in messages: names of uploads by the path of their file.
    """
    problem = _told(error, dict(names or {}))
    if problem is None:
        log.error("request %s failed: %s", request_id, type(error).__name__, exc_info=error)
        problem = _problem(
            ProblemKind.INTERNAL, "an error that nobody foresaw; the log of the service has it under the request id"
        )
    problem.instance = request_id
    return problem


def named_error(error: HubhoundError, names: Mapping[str, str]) -> ApiError:
    """The same error with what stands for the paths in it.

    Args:
        error: One of ours.
        names: As `to_problem` takes them.
    """
    return ApiError(_kind_of(error), without_paths(str(error), _named(error, dict(names))))


def problem_response(problem: Problem, request_id: str | None = None) -> Response:
    """The answer that tells a problem.

    Args:
        problem: As `to_problem` or `ApiError.problem` made it.
        request_id: For ``instance``, where the problem has none yet.
    """
    told = problem.to_json()
    if request_id is not None:
        told.setdefault("instance", request_id)
    # Escaped to ASCII: a lone surrogate in a fact cannot be written as UTF-8.
    content = json.dumps(told, allow_nan=False).encode("ascii")
    return Response(content, problem.status, headers=problem.headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Lets an app answer every exception with problem+json.

    Args:
        app: Before it has answered its first request.
    """

    async def answer(request: Request, error: Exception) -> Response:
        state = request.scope.setdefault("state", {})
        problem = to_problem(error, request_id=state.get("request_id"))
        if problem.status == ProblemKind.METHOD_NOT_ALLOWED.status:
            problem.headers["Allow"] = _methods(request)
        state["problem"] = problem.type  # for whoever counts, and so that nobody logs the error again
        return problem_response(problem)

    for kind in (ApiError, HubhoundError, RequestValidationError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, answer)
    _describe(app)


def _methods(request: Request) -> str:
    """What a path takes: all routes that fit it, where the framework tells those of the first."""
    routes = getattr(request.app.state, "routes", request.app.routes)
    fitting = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return ", ".join(sorted({method for route in fitting for method in getattr(route, "methods", None) or ()}))


def _describe(app: FastAPI) -> None:
    """Brings the schema of problems into the OpenAPI document.

    A ``model`` in ``responses`` would do so, but would declare every problem as application/json as well.
    """
    document = app.openapi

    def openapi() -> dict[str, Any]:
        described = document()
        schema = Problem.model_json_schema(ref_template=_SCHEMAS)
        schemas = described.setdefault("components", {}).setdefault("schemas", {})
        schemas.update({**schema.pop("$defs"), Problem.__name__: schema})
        return described

    app.openapi = openapi  # type: ignore[method-assign]


_ANYWHERE = (
    ProblemKind.INVALID_REQUEST,
    ProblemKind.UNAUTHORISED,
    ProblemKind.FORBIDDEN_ORIGIN,
    ProblemKind.TOO_LARGE,
    ProblemKind.UNKNOWN_HOST,
    ProblemKind.INVALID_BODY,
    ProblemKind.RATE_LIMITED,
    ProblemKind.INTERNAL,
    ProblemKind.BUSY,
    ProblemKind.TIMEOUT,
)


def responses(*kinds: ProblemKind) -> dict[int | str, dict[str, Any]]:
    """What FastAPI takes as ``responses=``: the problems that any route can answer, and some more.

    Args:
        kinds: The further ones.
    """
    titles: dict[int, list[str]] = {}
    for kind in dict.fromkeys((*_ANYWHERE, *kinds)):
        titles.setdefault(kind.status, []).append(f"{kind.title} (`{kind.slug}`).")
    content = {MEDIA_TYPE: {"schema": {"$ref": _SCHEMAS.format(model=Problem.__name__)}}}
    return {status: {"description": " ".join(told), "content": content} for status, told in sorted(titles.items())}


RESPONSES = responses()
"""The problems that every route can answer, for FastAPI's ``responses=``."""


def _told(error: BaseException, names: dict[str, str]) -> Problem | None:
    told: Problem | None = None
    match error:
        case ApiError():
            told = error.problem
        case RequestValidationError():
            told = _invalid(error.errors())
        case HTTPException():
            told = _of_starlette(error)
        case ClientDisconnect():
            told = _problem(ProblemKind.INVALID_REQUEST, "the client went away before its request was whole")
        case BaseExceptionGroup() if len(error.exceptions) == 1:
            told = _told(error.exceptions[0], names)
        case HubhoundError():
            told = _problem(_kind_of(error), without_paths(str(error), _named(error, names)))
    return told


def _kind_of(error: HubhoundError) -> ProblemKind:
    match error:
        case EncoderError():
            return ProblemKind.ENCODER_UNUSABLE
        case InputError():
            return ProblemKind.INVALID_REQUEST
        case IndexUnusableError() | StoreError():
            return ProblemKind.INDEX_UNUSABLE
        case ModelError():
            return ProblemKind.MODEL_UNUSABLE
    return ProblemKind.INTERNAL


def _named(error: HubhoundError, names: dict[str, str]) -> dict[str, str]:
    """The names, and what stands for the path that rides on the error."""
    path = getattr(error, "path", None)
    if path is None or not str(path).strip("./"):
        return names
    return {str(path): "the index" if isinstance(error, IndexUnusableError | StoreError) else "a file", **names}


@cache
def _roots() -> re.Pattern[str]:
    """What begins with a folder that this machine has at its root."""
    folders = "|".join(re.escape(name) for name in sorted(os.listdir("/")) if name)
    return re.compile(rf"(?<![\w/.])(?:file://)?/+(?:{folders})(?:/[^\s'\"`:,;()<>|]*|(?![\w.-]))")


def without_paths(text: str, names: Mapping[str, str]) -> str:
    """A message with what stands for the paths of this machine.

    Args:
        text: Any.
        names: What stands for a path; longer paths are looked for first. Other absolute paths become "a file".
    """
    for path in sorted(names, key=len, reverse=True):
        text = re.sub(rf"(?<![\w/.-]){re.escape(path)}(?![\w-])", lambda _, path=path: names[path], text)  # type: ignore[misc]
    return _roots().sub("a file", text)


def _invalid(errors: Sequence[Any]) -> Problem:
    if any(fault.get("type") == "json_invalid" for fault in errors):
        return _problem(ProblemKind.INVALID_REQUEST, "the body is not valid JSON")
    told = errors[:_MOST_FAULTS]  # cut first: a body can have a hundred thousand
    faults = [Fault(where=_where(fault.get("loc", ())), message=one_line(str(fault["msg"]))) for fault in told]
    detail = "; ".join(f"{fault.where}: {fault.message}" for fault in faults[:3]) or "it does not fit the schema"
    if len(errors) > 3:
        detail += f"; and {len(errors) - 3:,} more"
    return _problem(ProblemKind.INVALID_BODY, detail, errors=[fault.model_dump() for fault in faults])


def _where(place: Sequence[object]) -> str:
    parts = place[1:] if place and place[0] == "body" else place
    return one_line(".".join(str(part)[:_WHERE_CHARACTERS] for part in parts), _WHERE_CHARACTERS) or "body"


_BY_STATUS = {
    kind.status: kind
    for kind in (
        ProblemKind.UNAUTHORISED,
        ProblemKind.FORBIDDEN_ORIGIN,
        ProblemKind.NOT_FOUND,
        ProblemKind.METHOD_NOT_ALLOWED,
        ProblemKind.TOO_LARGE,
        ProblemKind.UNSUPPORTED_MEDIA_TYPE,
        ProblemKind.UNKNOWN_HOST,
        ProblemKind.INVALID_BODY,
        ProblemKind.RATE_LIMITED,
        ProblemKind.BUSY,
        ProblemKind.TIMEOUT,
    )
}


def _of_starlette(error: HTTPException) -> Problem | None:
    kind = _BY_STATUS.get(error.status_code)
    if kind is None and error.status_code >= 500:
        return None
    kind = kind or ProblemKind.INVALID_REQUEST
    details = {
        ProblemKind.NOT_FOUND: "nothing is at this path; /openapi.json lists the paths that there are",
        ProblemKind.METHOD_NOT_ALLOWED: "this path does not take this method; the Allow header lists those it takes",
    }
    return _problem(kind, details.get(kind) or without_paths(str(error.detail), {}), dict(error.headers or {}))


def _problem(kind: ProblemKind, detail: str, headers: Mapping[str, str] | None = None, **facts: object) -> Problem:
    beside = {name: value for name, value in facts.items() if name not in _RESERVED}
    problem = Problem.model_validate(
        {
            "type": kind.type,
            "title": kind.title,
            "status": kind.status,
            "detail": one_line(detail, _DETAIL_CHARACTERS),
            **beside,
        }
    )
    problem.headers.update(headers or {})
    if kind is ProblemKind.UNAUTHORISED:
        problem.headers.setdefault("WWW-Authenticate", "Bearer")
    return problem
