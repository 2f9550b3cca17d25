"""``GET /v1/index``."""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import Task
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.responses import Response

from engine.errors import HubhoundError
from engine.index import Index
from engine.manifest import Manifest
from engine.probes import is_folder_spec
from query.api.catalogue import answer
from query.api.errors import ApiError, responses
from query.api.generations import Generation
from query.api.names import NamesState
from query.api.service import Service, service_of
from query.api.standing import StoreStanding
from query.hubness import Hubness, hubness
from query.index_facts import CrawlFacts, IndexFacts, crawl_facts, index_facts

log = logging.getLogger("hubhound.serve")

router = APIRouter(prefix="/v1", tags=["index"])

FRESH_S = 5.0
"""So long facts are told again: sizes on disk and the crawl's journal take some reading."""

_GRACE_S = 0.3  # so long an answer waits for the hubness of a small index

_EXAMPLE = {
    "manifest": {
        "format": 2,
        "descriptor_version": 2,
        "created_at": "2026-01-31T12:00:00Z",
        "probes": {"source": "dead-leaves:2000@seed=0", "folder": None, "count": 2000, "fingerprint": "66fc5cf8"},
        "encoder": {
            "spec": "open_clip:ViT-B-32/laion2b_s34b_b79k",
            "fingerprint": "86240d1c",
            "dimension": 512,
            "templates": ["a photo of a {}", "{}"],
        },
        "top_r": 50,
        "method": "whitened",
        "normalisation": "divisive",
        "responses": "keep",
        "background": {"source": "imagenet21k:500@seed=0", "count": 500, "k": 10, "fingerprint": "9d1f5d2e"},
    },
    "generation": 7,
    "models": 6,
    "copies": 1,
    "outputs": 5968,
    "left_out": 3,
    "libraries": {"timm": 4, "transformers": 2},
    "licences": {"apache-2.0": 5, "unknown": 1},
    "tasks": 2,
    "profiles": 12,
    "profiled_models": 6,
    "performance": 0,
    "bytes": {"store": 19300000, "snapshots": 16600000},
    "bytes_per_output": {"head_idx": 16, "head_z": 32},
    "crawl": {
        "running": True,
        "phase": "crawling",
        "began": "2026-01-31T12:00:00Z",
        "models": {"listed": 120, "stored": 7, "failed": 1, "refused": 30},
        "stored": 7,
        "failures": [{"state": "refused", "reason": "not an image classifier", "count": 30}],
        "sources": [
            {
                "source": "hub:https://huggingface.co?task=image-classification",
                "watermark": "2026-01-31T11:58:00Z",
                "last_full": "2026-01-31T12:10:00Z",
                "unfinished": {"kind": "follow", "entries": 40, "started": "2026-01-31T13:10:00Z"},
            }
        ],
    },
    "hubness": {
        "k": 10,
        "concepts": 500,
        "outputs": 5968,
        "half": 479,
        "curve": [[0.0, 0.0], [0.08, 0.5], [0.31, 1.0], [1.0, 1.0]],
    },
    "names": {"state": "preparing", "done": 5120, "total": 20101, "why": None},
    "store": {"up": True, "last_contact_s": 0.412, "replaced": False, "left_out_models": 0},
}


class IndexAnswer(IndexFacts):
    """As `hubhound index info --format json`, with the service's own state."""

    hubness: Hubness | None = Field(default=None, description="null while it is being computed.")
    names: NamesState
    store: StoreStanding | None = Field(description="The server that the index is on; null for a folder.")


class Overview:
    """What was found out about the generation that answers."""

    def __init__(self) -> None:
        self._facts: tuple[float, Generation | None, IndexFacts] | None = None
        self._reading: tuple[Generation | None, Task[IndexFacts]] | None = None
        self._hubness: tuple[Generation, Task[Hubness]] | None = None

    async def facts(self, service: Service, generation: Generation | None) -> IndexFacts:
        """Facts, at most some seconds old; however many ask at once, they are read once."""
        now = time.monotonic()
        if self._facts and self._facts[1] is generation and now - self._facts[0] <= FRESH_S:
            return self._facts[2]
        if self._reading is None or self._reading[0] is not generation or self._reading[1].done():
            self._reading = generation, asyncio.create_task(self._read(service, generation))
        # It goes on when a request is given up: the thread does, too.
        return await asyncio.shield(self._reading[1])

    async def _read(self, service: Service, generation: Generation | None) -> IndexFacts:
        begun = time.monotonic()
        facts = await service.aside(_read, service, generation)
        self._facts = begun, generation, facts
        return facts

    async def hubness(self, service: Service, generation: Generation) -> Hubness | None:
        """The hubness of a generation, None while it is computed; in the background, once."""
        if self._hubness is None or self._hubness[0] is not generation:
            searcher, method = generation.searcher, generation.index.manifest.method
            made = service.aside(hubness, searcher.snapshot, searcher.background, method)
            self._hubness = generation, asyncio.ensure_future(made)
        task = self._hubness[1]
        await asyncio.wait({task}, timeout=_GRACE_S)
        if not task.done() or task.cancelled():
            return None
        if error := task.exception():  # the rest of what is told is none the worse for it
            log.error("the hubness of generation %d cannot be computed: %s", generation.number, error)
            self._hubness = None
            return None
        return task.result()


def _overview_of(request: Request) -> Overview:
    state = request.app.state
    if not hasattr(state, "overview"):
        state.overview = Overview()
    overview: Overview = state.overview
    return overview


@router.get(
    "/index",
    summary="What is in the index",
    response_class=Response,
    responses={
        **responses(),
        200: {
            "model": IndexAnswer,
            "description": "What it was made with, what is in it, and how it was filled.",
            "content": {"application/json": {"example": _EXAMPLE}},
        },
    },
)
async def get_index(
    service: Annotated[Service, Depends(service_of)], overview: Annotated[Overview, Depends(_overview_of)]
) -> Response:
    """Tells what the index was made with, what is in it, how evenly it answers, and how the last crawl went.

    Paths of the service's machine are left out or shortened to their last part.
    """
    try:
        generation: Generation | None = service.generation
    except ApiError:  # it is empty
        generation = None
    facts = await overview.facts(service, generation)
    found = await overview.hubness(service, generation) if generation else None
    told = facts.model_dump(mode="json") | {
        "hubness": found and found.model_dump(mode="json"),
        "names": service.names.state.model_dump(mode="json"),
        "store": service.standing and service.standing.model_dump(mode="json"),
    }
    return answer(told)


def _read(service: Service, generation: Generation | None) -> IndexFacts:
    index = generation.index if generation else Index(service.settings.index)
    snapshot = generation.searcher.snapshot if generation else None
    try:
        crawl = crawl_facts(index)
    except HubhoundError as error:
        log.warning("%s", error)
        crawl = None
    facts = index_facts(index, snapshot, service.knowledge_or_nothing(), crawl and _without_folders(crawl))
    return facts.model_copy(update={"manifest": _public(facts.manifest)})


def _public(manifest: Manifest) -> Manifest:
    """Without the folders of this machine."""
    probes, encoder, background = manifest.probes, manifest.encoder, manifest.background
    source = Path(probes.source).name if is_folder_spec(probes.source) else probes.source
    before, local, folder = encoder.spec.partition("local-dir:")
    told: dict[str, Any] = {
        "probes": probes.model_copy(update={"folder": None, "source": source}),
        "encoder": encoder.model_copy(update={"spec": before + local + Path(folder).name if local else before}),
        "background": background.model_copy(update={"source": background.source.rpartition("/")[2]}),
    }
    return manifest.model_copy(update=told)


def _without_folders(crawl: CrawlFacts) -> CrawlFacts:
    """Sources that are files or folders of this machine by their names only."""
    sources = (source.model_copy(update={"source": _without_folder(source.source)}) for source in crawl.sources)
    return crawl.model_copy(update={"sources": tuple(sources)})


def _without_folder(source: str) -> str:
    kind, _, rest = source.partition(":")
    if kind not in {"file", "folder"}:
        return source
    path, mark, query = rest.rpartition("?") if "?" in rest else (rest, "", "")
    return f"{kind}:{Path(path).name}{mark}{query}"
