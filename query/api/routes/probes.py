"""``GET`` and ``HEAD /v1/probes/N/image``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query
from starlette.responses import Response

from query.api.errors import ProblemKind, responses
from query.api.service import Service, service_of
from query.api.thumbnails import LARGEST_PX, MEDIA_TYPE, SMALLEST_PX

router = APIRouter(prefix="/v1", tags=["index"])

_KEEP = "private, max-age=31536000, immutable"


@router.head("/probes/{number}/image", include_in_schema=False)
@router.get(
    "/probes/{number}/image",
    summary="A probe as a thumbnail",
    response_class=Response,
    responses={
        **responses(ProblemKind.NOT_READY, ProblemKind.PROBE_NOT_FOUND),
        200: {
            "description": "The image, never larger than the original.",
            "content": {MEDIA_TYPE: {"schema": {"type": "string", "contentMediaType": MEDIA_TYPE}}},
            "headers": {
                "ETag": {"schema": {"type": "string"}, "description": "Names the content."},
                "Cache-Control": {"schema": {"type": "string"}},
            },
        },
        304: {"description": "The client has it."},
    },
)
async def probe_image(
    number: int,
    service: Annotated[Service, Depends(service_of)],
    size: Annotated[
        int | None,
        Query(description=f"Longer side in pixels, brought into {SMALLEST_PX}..{LARGEST_PX}.", examples=[192]),
    ] = None,
    if_none_match: Annotated[str | None, Header(description="ETags that the client has.")] = None,
) -> Response:
    """Shows an image that every model of the index was shown, fitted into a square, with its own shape."""
    index = service.generation.index
    wanted = service.settings.thumbnail_px if size is None else size
    etag = service.thumbnails.etag(index, number, wanted)
    headers = {"ETag": etag, "Cache-Control": _KEEP}
    if if_none_match is not None and _matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    found = await service.aside(service.thumbnails.get, index, number, wanted)
    return Response(found.content, media_type=MEDIA_TYPE, headers=headers)


def _matches(if_none_match: str, etag: str) -> bool:
    """Whether a list of ETags, weak ones too, names this one."""
    given = (part.strip().removeprefix("W/") for part in if_none_match.split(","))
    return any(part in {etag, "*"} for part in given)
