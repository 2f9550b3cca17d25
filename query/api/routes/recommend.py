"""``POST /v1/recommend``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from engine.errors import InputError
from engine.transfer import ETA, GAMMA
from query.api import deferred
from query.api.catalogue import unknown_model
from query.api.errors import ApiError, ProblemKind, responses
from query.api.jobs import Job
from query.api.orders import RecommendOrder
from query.api.service import Service, service_of
from query.api.uploads import read_body
from query.recommend import RecommendRequest
from query.recommendation import Recommendation

router = APIRouter(tags=["recommend"])

_MOST_CANDIDATES = 10_000


class RecommendBody(BaseModel):
    """What models are recommended for; the images come as files beside it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"k": 5}, {"candidates": ["open_clip:ViT-B-32/openai"], "explain": True}]},
    )

    candidates: list[str] = Field(
        default=[], max_length=_MOST_CANDIDATES, description="Names of models; by default all that are known."
    )
    k: int = Field(default=10, ge=1, strict=True, description="Models shown.")
    max_parameters: int | None = Field(default=None, ge=1, strict=True, description="Larger models are left out.")
    eta: float = Field(
        default=ETA,
        ge=0,
        allow_inf_nan=False,
        strict=True,
        description="Sharpness of the importance of blocks; 0 makes all equally important.",
    )
    gamma: float = Field(
        default=GAMMA,
        ge=0,
        allow_inf_nan=False,
        strict=True,
        description="Sharpness of the weights of source tasks; 0 makes them uniform.",
    )
    explain: bool = Field(default=False, strict=True, description="Say what each block contributed.")


_REQUEST_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "request": RecommendBody.model_json_schema(),
                    "images": {
                        "type": "array",
                        "items": {"type": "string", "contentMediaType": "application/octet-stream"},
                        "minItems": 1,
                        "description": "Images of the task.",
                    },
                },
                "required": ["images"],
                "additionalProperties": False,
            },
            "encoding": {"request": {"contentType": "application/json"}, "images": {"contentType": "image/*"}},
        }
    },
}


@router.post(
    "/v1/recommend",
    summary="Rank models by how well they are predicted to do on a few images without labels",
    description="The images come as files of a multipart body, beside the request as JSON. Where models have to be "
    "shown the images first and that takes longer than a moment, the answer is a job.",
    response_class=Response,
    responses={
        200: {"description": "The ranking.", "model": Recommendation},
        202: {"description": "A job; Location says where it is.", "model": Job},
        **responses(
            ProblemKind.MODEL_NOT_FOUND,
            ProblemKind.MODELS_NOT_RUN,
            ProblemKind.MODEL_UNUSABLE,
            ProblemKind.UNSUPPORTED_MEDIA_TYPE,
            ProblemKind.INDEX_UNUSABLE,
        ),
    },
    openapi_extra={"requestBody": _REQUEST_BODY},
)
async def recommend_models(request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """Answers a recommendation."""
    async with read_body(request, RecommendBody, service.settings) as parsed:
        body = parsed.body
        asked = RecommendRequest(
            parsed.images,
            tuple(body.candidates),
            body.k,
            body.max_parameters,
            body.eta,
            body.gamma,
            explain=body.explain,
        )
        asked.check()
        if asked.k > service.settings.max_hits:
            raise InputError(f"k is {asked.k}: this service shows at most {service.settings.max_hits} models")
        await service.aside(_check_candidates, service, asked.candidates)

        order = RecommendOrder.of(asked, parsed.names, service.settings)
        return await deferred.answer(service, order, parsed, deferred.Asker.of(request))


def _check_candidates(service: Service, candidates: Sequence[str]) -> None:
    """Names are names: what looks like a path or an address is one that nobody knows."""
    if not candidates:
        return
    knowledge = service.knowledge()
    known = {*knowledge.models(), *(figure.model for figure in knowledge.performance)}
    snapshot = None
    with suppress(ApiError):  # an index without outputs may know models, too
        snapshot = service.generation.searcher.snapshot
        known.update(snapshot.places)
    for name in candidates:
        if name not in known:
            raise unknown_model(snapshot, knowledge, name)
