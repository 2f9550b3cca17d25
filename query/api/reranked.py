"""Searches whose hits are reranked by what their models make of the images."""

from __future__ import annotations

from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from query.api import deferred
from query.api.bodies import SearchBody
from query.api.deferred import Asker
from query.api.generations import Generation
from query.api.orders import RerankOrder
from query.api.routes.search import with_names
from query.api.service import Service
from query.api.uploads import Parsed
from query.cli.reranking import Reranking
from query.request import SearchRequest


async def answer_reranked(
    service: Service, generation: Generation, sent: Parsed[SearchBody], asked: SearchRequest, request: Request
) -> Response:
    """Answers a search by images in its new order: 200, or 202 and a job.

    Args:
        service: The service.
        generation: That is searched.
        sent: The body, which says how to rerank, and the images.
        asked: What it asks.
        request: That is answered.

    Raises:
        ApiError: See ``deferred.answer``.
        InputError: The search cannot be answered.
    """
    body = sent.body
    settings = Reranking.of(body.rerank, body.rerank_weight, body.rerank_top, (), asked).settings
    if asked.concepts:
        await service.embed_texts(asked.concepts)
    await service.embed_images(asked.images)
    searcher = generation.searcher
    widened = replace(asked, k=max(asked.k, settings.top))
    found = with_names(await service.scan(searcher.search, widened), sent.shown)

    order = RerankOrder.of((sent.images, asked.k), sent.names, found, searcher.snapshot, settings, service.settings)
    return await deferred.answer(service, order, sent, Asker.of(request), searcher.snapshot)
