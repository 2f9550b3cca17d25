"""``GET`` and ``DELETE /v1/jobs/ID``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from query.api.deferred import Asker, job_response
from query.api.errors import ProblemKind, responses
from query.api.jobs import Job
from query.api.service import Service, service_of

router = APIRouter(tags=["jobs"])


@router.get(
    "/v1/jobs/{job_id}",
    summary="How far a job is, and its answer once it is done",
    response_class=Response,
    responses={
        200: {"description": "The job.", "model": Job},
        **responses(ProblemKind.JOB_NOT_FOUND),
    },
)
async def get_job(job_id: str, request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """Shows a job to the key that made it."""
    return job_response(service.jobs.get(job_id, Asker.of(request).owner))


@router.delete(
    "/v1/jobs/{job_id}",
    summary="Cancel a job: a waiting one at once, a running one at its next sign of progress",
    status_code=202,
    response_class=Response,
    responses={
        202: {"description": "The job, which is cancelled or soon will be.", "model": Job},
        **responses(ProblemKind.JOB_NOT_FOUND, ProblemKind.JOB_FINISHED),
    },
)
async def cancel_job(job_id: str, request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """Cancels a job of the key that made it."""
    return job_response(service.jobs.cancel(job_id, Asker.of(request).owner), 202)
