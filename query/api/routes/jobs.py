"""``GET`` and ``DELETE /v1/jobs/ID``."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from query.api.deferred import Asker, job_response
from query.api.errors import ProblemKind, responses
from query.api.jobs import Job
from query.api.service import Service, service_of

router = APIRouter(tags=["jobs"])

_RUNNING = {
    "id": "kT3dXw6cZVbLmMMH0q3T0g",
    "kind": "recommend",
    "state": "running",
    "created": "2026-01-31T12:00:00.120000Z",
    "started": "2026-01-31T12:00:01.350000Z",
    "finished": None,
    "progress": {
        "model": "open_clip:ViT-B-32/openai",
        "what": "profiling",
        "done": 3.5,
        "total": 8.0,
        "model_number": 2,
        "models": 48,
    },
    "result": None,
    "problem": None,
}
_CANCELLED = {**_RUNNING, "state": "cancelled", "finished": "2026-01-31T12:00:04.210000Z"}


def _shown(description: str, example: object) -> dict[str, Any]:
    return {"model": Job, "description": description, "content": {"application/json": {"example": example}}}


@router.get(
    "/v1/jobs/{job_id}",
    summary="How far a job is, and its answer once it is done",
    response_class=Response,
    responses={
        200: _shown("The job.", _RUNNING),
        **responses(ProblemKind.JOB_NOT_FOUND),
    },
)
async def get_job(job_id: str, request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """Shows a job to the key that made it."""
    return job_response(service.jobs.get(job_id, Asker.of(request).owner))


@router.delete(
    "/v1/jobs/{job_id}",
    summary="Cancel a job: a waiting one at once, a running one in a moment",
    status_code=202,
    response_class=Response,
    responses={
        202: _shown("The job, which is cancelled or soon will be.", _CANCELLED),
        **responses(ProblemKind.JOB_NOT_FOUND, ProblemKind.JOB_FINISHED),
    },
)
async def cancel_job(job_id: str, request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """Cancels a job of the key that made it."""
    return job_response(service.jobs.cancel(job_id, Asker.of(request).owner), 202)
