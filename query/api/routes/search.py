"""``POST /v1/search``."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from pydantic_core import PydanticSerializationError
from starlette.responses import Response

from engine.distance import check_method
from query.answers import Result, SearchAnswer
from query.api.bodies import EXAMPLES, SearchBody, check_size
from query.api.errors import ProblemKind, responses
from query.api.generations import Generation
from query.api.service import Service, service_of
from query.api.uploads import read_body
from query.request import SearchRequest

router = APIRouter(prefix="/v1", tags=["search"])

_ANSWER = {
    "results": [
        {
            "query": {"text": "golden retriever"},
            "hits": [
                {
                    "rank": 1,
                    "model": "timm/resnet50.a1_in1k",
                    "revision": "767268603ca0cb0bfe326fa87277f19c419566ef",
                    "output": 207,
                    "label": "golden retriever",
                    "margin": 2.81,
                    "percentile": 0.2,
                    "local": {"distance": 5.1, "hubness": 7.9, "scale": 1.4},
                    "global": {"correlation": 0.41, "hubness": 0.28, "scale": 0.06},
                }
            ],
        }
    ],
    "searched": 5968,
    "exact": True,
    "seconds": 0.004,
}

_BODY = SearchBody.model_json_schema()

_REQUEST_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": _BODY, "examples": EXAMPLES},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "request": _BODY,
                    "images": {
                        "type": "array",
                        "items": {"type": "string", "contentMediaType": "application/octet-stream"},
                        "description": "Example images of one concept; with a text the concept is the mean of both.",
                    },
                },
                "additionalProperties": False,
            },
            "encoding": {"request": {"contentType": "application/json"}, "images": {"contentType": "image/*"}},
        },
    },
}


@router.post(
    "/search",
    summary="Find outputs or models that recognise concepts",
    responses={
        200: {
            "model": SearchAnswer,
            "description": "The hits of each question, best first.",
            "content": {"application/json": {"example": _ANSWER}},
        },
        **responses(
            ProblemKind.UNSUPPORTED_MEDIA_TYPE,
            ProblemKind.NOT_READY,
            ProblemKind.INDEX_UNUSABLE,
            ProblemKind.ENCODER_UNUSABLE,
            ProblemKind.MODELS_NOT_RUN,
        ),
    },
    openapi_extra={"requestBody": _REQUEST_BODY},
)
async def search(request: Request) -> Response:
    """Answers what ``hubhound search --format json`` answers.

    Ask by texts, by uploaded example images, by both, or by an output or a model of the index.
    """
    service = service_of(request)
    async with read_body(request, SearchBody, service.settings) as sent:
        generation = service.generation
        asked = sent.body.request(service.settings, sent.images)
        if sent.body.reranks:
            from query.api.reranked import answer_reranked

            return await answer_reranked(service, generation, sent, asked, request)
        await _prepare(service, generation, asked)
        names = {str(path): name for path, name in zip(sent.images, sent.names, strict=True)}
        content = await service.scan(_answered, service, generation, asked, names)
    return Response(content, media_type="application/json")


async def _prepare(service: Service, generation: Generation, asked: SearchRequest) -> None:
    """Sees to it that the search itself needs no encoder: searches would wait for it in their threads.

    Raises:
        ApiError: The model that is asked about has too many outputs for so many hits.
    """
    if asked.like and asked.level == "model":
        snapshot = generation.searcher.snapshot
        found = snapshot.places.get(asked.like.partition("@")[0])
        check_size(snapshot.models[found[0]].outputs if found else 0, asked.k, service.settings)
    if asked.evidence != "probes":
        await service.prepare_labels(generation, check_method(asked.method or generation.index.manifest.method))
    if asked.concepts:
        await service.embed_texts(asked.concepts)
    if asked.images:
        await service.embed_images(asked.images)


def _answered(service: Service, generation: Generation, asked: SearchRequest, names: Mapping[str, str]) -> bytes:
    """The answer as JSON, in a thread that scans: also writing a long answer must not hold up other requests."""
    begun = time.perf_counter()
    answer = generation.searcher.search(asked)
    found = time.perf_counter()
    if names:
        answer = with_names(answer, names)
    content = written(answer)
    service.metrics.search("scan", found - begun)
    service.metrics.search("render", time.perf_counter() - found)
    return content


def with_names(answer: SearchAnswer, names: Mapping[str, str]) -> SearchAnswer:
    """The answer with the names of uploads instead of where they were put.

    Args:
        answer: With paths.
        names: By path.
    """

    def named(result: Result) -> Result:
        if not result.query.images:
            return result
        images = tuple(names.get(path, path) for path in result.query.images)
        return result.model_copy(update={"query": result.query.model_copy(update={"images": images})})

    return answer.model_copy(update={"results": tuple(map(named, answer.results))})


def written(answer: SearchAnswer) -> bytes:
    """The answer as UTF-8 JSON, the command line's."""
    try:
        return answer.model_dump_json(by_alias=True, exclude_unset=True).encode()
    except (PydanticSerializationError, UnicodeError):  # a label with half a character
        value: dict[str, Any] = answer.to_json()
        return json.dumps(value, ensure_ascii=False).encode(errors="replace")
