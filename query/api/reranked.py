"""Searches whose hits are reranked by what their models make of the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from engine.index import Index
from indexers.profiler import ProfileSettings
from query.answers import Rerank, SearchAnswer
from query.api import deferred
from query.api.bodies import SearchBody
from query.api.deferred import Asker
from query.api.errors import without_paths
from query.api.generations import Generation
from query.api.routes.search import with_names
from query.api.service import Service
from query.api.uploads import Parsed
from query.api.watched import WatchedProfiler
from query.cli.reranking import Reranking
from query.request import SearchRequest
from query.rerank import N_STEPS, Reranker


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

    def make(_: Index, profiler: WatchedProfiler, paths: Sequence[Path], names: Mapping[str, str]) -> dict[str, Any]:
        if profiler.watch is not None:
            hits = [hit for result in found.results for hit in result.hits[: settings.top]]
            profiler.watch.expect(len({hit.model for hit in hits}))
        reranker = Reranker(generation.index, searcher.snapshot, profiler, settings)
        return _shown(reranker.rerank(found, paths, asked.k), names).to_json()

    profiling = ProfileSettings(n_steps=N_STEPS)
    return await deferred.answer(service, "search", make, profiling, sent, Asker.of(request))


def _shown(answer: SearchAnswer, names: Mapping[str, str]) -> SearchAnswer:
    """The answer without paths of this machine in its reasons."""
    if answer.rerank is None:
        return answer
    hits = tuple(
        hit.model_copy(update={"reason": without_paths(hit.reason, names)}) if hit.reason else hit
        for hit in answer.rerank.hits
    )
    rerank: Rerank = answer.rerank.model_copy(update={"hits": hits})
    return answer.model_copy(update={"rerank": rerank})
