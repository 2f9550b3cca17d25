"""Answers that may need models to run: at once from memory, soon, or as a job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from starlette.requests import Request
from starlette.responses import Response

from engine.snapshot import Snapshot
from query.api.errors import ApiError, ProblemKind, problem_response, retry_after
from query.api.job_process import JobProcess
from query.api.jobs import Job, KeptImages
from query.api.orders import Order, carried_out
from query.api.service import Service
from query.api.uploads import Parsed
from query.api.watched import ModelNeededError


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
    service: Service, order: Order, sent: Parsed[Any], asker: Asker, snapshot: Snapshot | None = None
) -> Response:
    """Answers with 200, or with 202 and a job if that takes longer than ``job_grace_s``.

    What is remembered is answered without a job, so that it waits for none; mistakes in a request are found by the
    same pass, before any process is started.

    Args:
        service: The service.
        order: What is to be done.
        sent: With the images, which are moved where a job needs them.
        asker: Who asks.
        snapshot: That was searched, if one was.

    Raises:
        ApiError: ``models-not-run``, or ``busy``.
        HubhoundError: The request cannot be used.
    """
    try:
        return _answered(await service.aside(carried_out, order, None, snapshot))
    except ModelNeededError as needed:
        starting = needed.progress
    if not service.settings.run_models:
        raise ApiError(
            ProblemKind.MODELS_NOT_RUN,
            f"{starting.model} was never shown these images, and this service runs no models: ask for images that are "
            "known, or a service that was started with --run-models yes",
            model=starting.model,
        )
    kept = KeptImages(sent.images, sent.names)  # in one go with the next: whoever gives up finds them with the job
    work = JobProcess(
        order.with_images(kept.paths), kept.folder, starting, service.jobs.program, service.settings.job_timeout_s
    )
    job = service.jobs.submit(order.kind, work, kept, asker.owner, asker.request_id)
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
