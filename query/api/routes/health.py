"""Whether the service lives, whether it is ready, and its figures."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from query.api.errors import retry_after
from query.api.service import Service, service_of
from query.api.standing import StoreStanding

router = APIRouter(tags=["service"])

_NO_KEY: dict[str, Any] = {"security": []}
_OK = {"status": "ok"}
_STORE = {"up": True, "last_contact_s": 0.412, "replaced": False, "left_out_models": 0}
_READY = {"ready": True, "why": None, "generation": 7, "store": _STORE}
_NOT_READY = {"ready": False, "why": "the encoder is being loaded", "generation": 7, "store": _STORE}


class Health(BaseModel):
    """The process answers."""

    status: str = Field(description="Always ok.")


class Readiness(BaseModel):
    """Whether requests should be sent here."""

    ready: bool
    why: str | None = Field(description="Why not; null if ready.")
    generation: int | None = Field(description="Of the index, null while it is empty.")
    store: StoreStanding | None = Field(
        description="The server that the index is on; null for a folder. The service is ready while it is away."
    )


def _example(value: object) -> dict[str, Any]:
    return {"application/json": {"example": value}}


@router.head("/healthz", include_in_schema=False)
@router.get(
    "/healthz",
    openapi_extra=_NO_KEY,
    summary="Whether the process answers",
    responses={200: {"model": Health, "description": "It does.", "content": _example(_OK)}},
)
async def healthz() -> Response:
    """Says ok as long as the process lives; no key is needed."""
    return JSONResponse(_OK)


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    openapi_extra=_NO_KEY,
    summary="Whether the service is ready",
    responses={
        200: {"model": Readiness, "description": "It is.", "content": _example(_READY)},
        503: {"model": Readiness, "description": "It is not, or no more.", "content": _example(_NOT_READY)},
    },
)
async def readyz(service: Annotated[Service, Depends(service_of)]) -> Response:
    """Says whether requests are answered at full speed: the index is open, the encoder loaded; no key is needed."""
    why = service.why_not
    told = Readiness(ready=why is None, why=why, generation=service.generation_number, store=service.standing)
    headers = retry_after(1) if why else None
    return JSONResponse(told.model_dump(), 503 if why else 200, headers)


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    responses={200: {"description": "The text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
    response_class=Response,
)
async def metrics(service: Annotated[Service, Depends(service_of)]) -> Response:
    """Counts, times and sizes in Prometheus's text format."""
    text, media_type = service.metrics.render()
    return Response(text, media_type=media_type)
