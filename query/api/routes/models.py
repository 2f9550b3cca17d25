"""``GET /v1/models``, ``/v1/models/ORG/NAME`` and ``/v1/models/ORG/NAME/usage``."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from engine.errors import InputError
from engine.knowledge import Knowledge
from query.api.catalogue import (
    Catalogue,
    Found,
    ModelList,
    ModelPage,
    answer,
    catalogue_of,
    facts_of,
)
from query.api.errors import ApiError, ProblemKind, responses
from query.api.generations import Generation
from query.api.names import MOST_K
from query.api.service import Service, service_of
from query.description import DescribeAnswer
from query.filters import parse_conditions
from query.usage import Usage, usage

router = APIRouter(prefix="/v1/models", tags=["models"])

MOST_MODELS = 500
"""Models on one page of a list."""

_MODEL = {
    "repo": "timm/resnet50.a1_in1k",
    "revision": "767268603ca0cb0bfe326fa87277f19c419566ef",
    "library": "timm",
    "architecture": "resnet50",
    "parameters": 25557032,
    "input_size": [224, 224],
    "licence": "apache-2.0",
    "tags": ["image-classification"],
    "downloads": 29846451,
    "likes": 41,
    "outputs": 1000,
    "left_out": [],
    "probabilities": False,
    "state": "indexed",
    "reason": None,
    "detail": None,
    "calibration": "9d1f5d2e",
    "copy_of": None,
    "copied_revision": None,
    "indexed_at": "2026-01-31T12:00:00Z",
}
_FACTS = {name: _MODEL[name] for name in ("library", "licence", "parameters", "architecture", "input_size")} | {
    "downloads": 29846451,
    "likes": 41,
    "tags": ["image-classification"],
    "url": "https://huggingface.co/someone/resnet50",
}
_NAMED = {
    "output": 207,
    "label": "golden retriever",
    "agrees": True,
    "concepts": [{"name": "golden retriever", "margin": 2.81, "score": 4.2}],
}
_READY = {"state": "ready", "done": 20101, "total": 20101, "why": None}
_COPY = {"repo": "someone/resnet50", "outputs": 0, "state": "copy", "copy_of": _MODEL["repo"]}
_PAGE = {
    "model": {**_MODEL, **_COPY, "copied_revision": _MODEL["revision"]},
    "copies": ["another/resnet50"],
    "copy_of": _MODEL["repo"],
    "facts": _FACTS,
    "describe": {
        "model": "someone/resnet50",
        "revision": _MODEL["revision"],
        "outputs": [_NAMED],
        "vocabulary": 20101,
        "seconds": 0.07,
        "copy_of": _MODEL["repo"],
    },
    "names": _READY,
    "profiles": [],
    "performance": [],
}
_USAGE = {
    "model": _MODEL["repo"],
    "output": 207,
    "library": "timm",
    "code": "import timm\n...",
    "requirements": ["timm", "torch", "pillow"],
    "note": "The softmax is right for models that give an image one class.",
}


def _shown(model: type, description: str, example: object) -> dict[int | str, dict[str, Any]]:
    return {
        200: {
            "model": model,
            "description": description,
            "content": {"application/json": {"example": example}},
        }
    }


@router.get(
    "",
    summary="The models of the index",
    response_class=Response,
    responses={
        **responses(ProblemKind.NOT_READY),
        **_shown(
            ModelList,
            "One page, by id.",
            {"models": [{**_MODEL, "copies": ["someone/resnet50"]}], "next": "timm/resnet50.a1_in1k", "total": 1200},
        ),
    },
)
async def list_models(
    service: Annotated[Service, Depends(service_of)],
    catalogue: Annotated[Catalogue, Depends(catalogue_of)],
    limit: Annotated[int, Query(ge=1, le=MOST_MODELS, description="Most models on the page.")] = 50,
    after: Annotated[
        str | None, Query(max_length=500, description="The last id of the page before: `next` of its answer.")
    ] = None,
    where: Annotated[
        list[str] | None,
        Query(max_length=100, description="Conditions KEY=VALUE as those of a search; repeatable."),
    ] = None,
    text: Annotated[str, Query(max_length=500, description="What ids must contain; case does not matter.")] = "",
) -> Response:
    """Lists models and their copies by id; what failed or was refused is in the crawl's journal."""
    generation = service.generation
    conditions = parse_conditions(where or [])

    def page() -> Response:
        return answer(catalogue.listing(generation).page(limit, after, conditions, text))

    return await service.aside(page)


@router.get(
    "/{name:path}/usage",
    summary="Code that loads a model and uses one of its outputs",
    response_class=Response,
    responses={
        **responses(ProblemKind.NOT_READY, ProblemKind.MODEL_NOT_FOUND, ProblemKind.OUTPUT_NOT_FOUND),
        **_shown(Usage, "Python, to be copied.", _USAGE),
    },
)
async def model_usage(
    name: str,
    service: Annotated[Service, Depends(service_of)],
    output: Annotated[
        int | None, Query(ge=0, description="Position in the model's answer; needed.", examples=[207])
    ] = None,
) -> Response:
    """Writes Python that loads the model, at its commit if that is known, and prints the output's probability."""
    if output is None and await service.aside(_is_known, service, f"{name}/usage"):
        return await get_model(f"{name}/usage", service)  # it is called so
    generation = service.generation
    snapshot = generation.searcher.snapshot
    if output is None:
        raise ApiError(ProblemKind.INVALID_REQUEST, "which output? add ?output=NUMBER")

    def write() -> Response:
        found = Found(snapshot, service.knowledge_or_nothing(), name)
        (row,) = found.rows_of(snapshot, [output]).tolist()
        if found.record is None or found.original is None:
            raise ApiError(ProblemKind.OUTPUT_NOT_FOUND, f"the index has none of {name}'s outputs")
        outputs = found.original.outputs + len(found.original.left_out)
        record = found.record.model_copy(update={"probabilities": found.original.probabilities})
        return answer(usage(record, output, snapshot.label_of(row), outputs))

    return await service.aside(write)


@router.get(
    "/{name:path}",
    summary="One model: its facts, its outputs with found names, its profiles",
    response_class=Response,
    responses={
        **responses(ProblemKind.NOT_READY, ProblemKind.MODEL_NOT_FOUND, ProblemKind.OUTPUT_NOT_FOUND),
        **_shown(ModelPage, "Everything that is known of it.", _PAGE),
    },
)
async def get_model(
    name: str,
    service: Annotated[Service, Depends(service_of)],
    names: Annotated[int, Query(ge=0, le=MOST_K, description="Names of each output; 0 for labels only.")] = 3,
    outputs: Annotated[
        str | None,
        Query(max_length=10_000, description="Only these outputs, separated by commas.", examples=["207,208"]),
    ] = None,
) -> Response:
    """Tells everything that is known of a model, of a copy with its original's outputs.

    Vision-language models that were profiled for recommendation have profiles, and no outputs.
    """
    generation = _generation(service)
    snapshot = generation.searcher.snapshot if generation else None
    numbers = None if outputs is None else _numbers(outputs)
    begun = time.perf_counter()

    def find() -> tuple[Found, list[int]]:
        try:
            found = Found(snapshot, service.knowledge_or_nothing(), name)
        except ApiError:
            if generation is None:
                _ = service.generation  # says that the index is still empty
            raise
        return found, found.rows_of(snapshot, numbers).tolist()

    found, rows = await service.aside(find)
    state = service.names.state  # before they are asked for: what is ready by the end need not have been in time
    described = None
    if generation is not None and found.record is not None:
        named = await service.names.of_rows(generation, rows, names)
        described = DescribeAnswer(
            model=found.record.repo,
            revision=found.record.revision,
            outputs=tuple(named),
            vocabulary=service.names.vocabulary,
            seconds=round(time.perf_counter() - begun, 6),
            **({"copy_of": found.copy_of} if found.copy_of else {}),
        )

    def write() -> Response:
        page = ModelPage(
            model=found.record,
            copies=found.copies,
            copy_of=found.copy_of,
            facts=facts_of(found.record, service.settings.hub_url) if found.record else None,
            describe=None,
            names=state,
            profiles=found.profiles,
            performance=found.performance,
        )
        plain = page.model_dump(mode="json")
        return answer({**plain, "describe": described and described.to_json()})

    return await service.aside(write)


def _generation(service: Service) -> Generation | None:
    """The generation that answers; profiles are known without one."""
    try:
        return service.generation
    except ApiError:
        return None


def _is_known(service: Service, name: str) -> bool:
    generation = _generation(service)
    knowledge: Knowledge = service.knowledge_or_nothing()
    there = generation is not None and name in generation.searcher.snapshot.places
    return there or bool(knowledge.profiles_of(name))


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers:
        raise InputError(f"outputs {text[:60]!r}: write numbers with commas, as in 207,208")
    return numbers
