"""Answers that may need models to run: at once from memory, soon, or as a job."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from starlette.requests import Request
from starlette.responses import Response

from engine.index import Index
from indexers.profiler import ProfileSettings
from query.api.errors import ApiError, ProblemKind, problem_response, retry_after
from query.api.jobs import Job, KeptImages, Kind, Watch
from query.api.service import Service
from query.api.uploads import Parsed
from query.api.watched import ModelNeededError, WatchedProfiler, model_folders

Make = Callable[[Index, WatchedProfiler, Sequence[Path], dict[str, str]], dict[str, Any]]
"""Makes an answer as plain values of the index, a profiler, the images, and their names by path."""


@dataclass(frozen=True)
class Asker:
    """Who asks.

    Attributes:
        owner: Name of the API key, None without keys.
        request_id: Of the request.
    """

    owner: str | None = None
    request_id: str | None = None

    @classmethod
    def of(cls, request: Request) -> Self:
        """Who made a request, as the guards found out."""
        state = request.scope.get("state", {})
        return cls(state.get("key"), state.get("request_id"))


async def answer(
    service: Service, kind: Kind, make: Make, settings: ProfileSettings, sent: Parsed[Any], asker: Asker
) -> Response:
    """Answers with 200, or with 202 and a job if that takes longer than ``job_grace_s``.

    What is remembered is answered without a job, so that it waits for none; mistakes in a request are found by the
    same pass, before any model is loaded.

    Args:
        service: The service.
        kind: Of the job.
        make: Makes the answer.
        settings: How models are run.
        sent: With the images, which are moved where a job needs them.
        asker: Who asks.

    Raises:
        ApiError: ``models-not-run``, or ``busy``.
        HubhoundError: The request cannot be used.
    """

    def made(watch: Watch | None, paths: Sequence[Path], names: dict[str, str]) -> dict[str, Any]:
        folders = model_folders(service.settings.models)
        index = Index(service.settings.index)
        profiler = WatchedProfiler(index, service.settings.device, settings, folders, watch)
        return make(index, profiler, paths, names)

    try:
        return _answered(await service.aside(made, None, sent.images, sent.shown))
    except ModelNeededError as needed:
        if not service.settings.run_models:
            raise ApiError(
                ProblemKind.MODELS_NOT_RUN,
                f"{needed.model} was never shown these images, and this service runs no models: ask for images that "
                "are known, or a service that was started with --run-models yes",
                model=needed.model,
            ) from None
    kept = KeptImages(sent.images, sent.names)  # in one go with the next: whoever gives up finds them with the job
    job = service.jobs.submit(
        kind, lambda watch: made(watch, kept.paths, kept.names), kept, asker.owner, asker.request_id
    )
    try:
        job = await service.jobs.wait(job.id, service.settings.job_grace_s)
    except BaseException:  # nobody is told its id
        service.jobs.abandon(job.id)
        raise
    if job.finished is None:
        return job_response(job, 202, f"/v1/jobs/{job.id}")
    service.jobs.abandon(job.id)
    if job.problem is not None:
        return problem_response(job.problem)
    if job.result is None:
        raise ApiError(ProblemKind.BUSY, "the service is stopping: ask again later", headers=retry_after(1))
    return _answered(job.result)


def job_response(job: Job, status: int = 200, location: str | None = None) -> Response:
    """The answer that tells a job.

    Args:
        job: As it is.
        status: HTTP status.
        location: Where it is asked for.
    """
    return _answered(job.to_json(), status, {} if location is None else {"Location": location})


def _answered(found: dict[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    content = json.dumps(found, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace")
    return Response(content, status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")
