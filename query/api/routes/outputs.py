"""``POST /v1/outputs``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.responses import Response

from engine.errors import InputError
from engine.schema import Model
from query.api.catalogue import Found, OutputFacts, OutputsAnswer, answer, facts_of
from query.api.errors import ProblemKind, responses
from query.api.names import MOST_K
from query.api.service import service_of
from query.api.uploads import read_json_body

router = APIRouter(prefix="/v1", tags=["models"])

MOST_OUTPUTS = 200
"""Outputs in one request."""

_EXAMPLE: dict[str, JsonValue] = {
    "outputs": ["timm/resnet50.a1_in1k#207", "google/vit-base-patch16-224#207"],
    "names": 3,
}
_FOUND = {
    "model": "timm/resnet50.a1_in1k",
    "output": 207,
    "label": "golden retriever",
    "agrees": True,
    "concepts": [{"name": "golden retriever", "margin": 2.81, "score": 4.2}],
    "facts": {
        "library": "timm",
        "licence": "apache-2.0",
        "parameters": 25557032,
        "architecture": "resnet50",
        "input_size": [224, 224],
        "downloads": 29846451,
        "likes": 41,
        "tags": ["image-classification"],
        "url": "https://huggingface.co/timm/resnet50.a1_in1k",
    },
}


class OutputsBody(BaseModel):
    """Which outputs."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    outputs: list[Annotated[str, Field(max_length=500)]] = Field(
        max_length=MOST_OUTPUTS, description="Outputs as org/name#17."
    )
    names: int = Field(default=3, ge=0, le=MOST_K, description="Found names of each; 0 for none.")


_REQUEST_BODY = {
    "required": True,
    "content": {"application/json": {"schema": OutputsBody.model_json_schema()}},
}


@router.post(
    "/outputs",
    summary="Facts and found names of some outputs",
    response_class=Response,
    responses={
        **responses(
            ProblemKind.UNSUPPORTED_MEDIA_TYPE,
            ProblemKind.NOT_READY,
            ProblemKind.MODEL_NOT_FOUND,
            ProblemKind.OUTPUT_NOT_FOUND,
        ),
        200: {
            "model": OutputsAnswer,
            "description": "The outputs in the order in which they were asked for.",
            "content": {
                "application/json": {
                    "example": {
                        "outputs": [_FOUND],
                        "names": {"state": "ready", "done": 20101, "total": 20101, "why": None},
                    }
                }
            },
        },
    },
    openapi_extra={"requestBody": _REQUEST_BODY},
)
async def get_outputs(request: Request) -> Response:
    """Tells of several outputs at once what a page shows beside the hits of a search."""
    service = service_of(request)
    body = await read_json_body(request, OutputsBody)
    generation = service.generation
    snapshot = generation.searcher.snapshot

    def find() -> tuple[list[tuple[str, Model]], list[int]]:
        knowledge = service.knowledge_or_nothing()
        models: dict[str, Found] = {}
        asked: list[tuple[str, Model]] = []
        rows: list[int] = []
        for text in body.outputs:
            name, number = _parsed(text)
            if name not in models:
                models[name] = Found(snapshot, knowledge, name)
            found = models[name]
            rows += found.rows_of(snapshot, [number]).tolist()
            if found.record is not None:
                asked.append((found.record.repo, found.record))
        return asked, rows

    asked, rows = await service.aside(find)
    state = service.names.state  # before they are asked for: what is ready by the end need not have been in time
    named = await service.names.of_rows(generation, rows, body.names)
    return answer(
        OutputsAnswer(
            outputs=tuple(
                OutputFacts(
                    model=repo,
                    output=names.output,
                    label=names.label,
                    agrees=names.agrees,
                    concepts=names.concepts,
                    facts=facts_of(record, service.settings.hub_url),
                )
                for (repo, record), names in zip(asked, named, strict=True)
            ),
            names=state,
        )
    )


def _parsed(text: str) -> tuple[str, int]:
    name, mark, number = text.rpartition("#")
    if not mark or not name or not number.isascii() or not number.isdecimal():
        raise InputError(f"outputs {text[:100]!r}: write org/name#17")
    return name, int((number.lstrip("0") or "0")[:18])  # no model has as many outputs as 18 digits say
