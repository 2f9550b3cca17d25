"""The service: everything that routes share, for as long as the process answers requests."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from asyncio import Task
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from fastapi import Request

from engine.concepts import clean_concept
from engine.distance import Method
from engine.errors import one_line
from engine.index import Index
from engine.knowledge import Knowledge
from engine.remote import shown
from query.api.admission import hold_while
from query.api.batches import RETRY_S, Encoder, TextBatches
from query.api.errors import LOGGER, ApiError, ProblemKind, retry_after, without_paths
from query.api.generations import Generation, Generations
from query.api.imports import IMPORTING
from query.api.jobs import Jobs
from query.api.known import KnowledgeFile
from query.api.memory import ConceptMemory, Place, image_key
from query.api.metrics import Metrics
from query.api.names import Names
from query.api.settings import Settings
from query.api.standing import StoreStanding
from query.api.thumbnails import Thumbnails
from query.search import Searcher

log = logging.getLogger(LOGGER)

P = ParamSpec("P")
T = TypeVar("T")

ASIDE_THREADS = 4
"""Threads for what must not hold up searches."""

LOOKUP_THREADS = 2
"""Threads that look for embeddings in the index's file: searches for new texts wait for nothing else."""

MOST_PATIENCE_S = 3.0
"""So long the end of the service waits for the job that runs."""

LoadEncoder = Callable[[], Encoder]
"""Loads the encoder of the index."""


class Service:
    """What the routes use.

    Args:
        settings: How it runs.
        load_encoder: Another way to come by the encoder; by default the index's is loaded.

    Attributes:
        settings: How it runs.
        metrics: What is counted.
        memory: Embeddings that are known.
        batches: The encoder.
        names: What outputs recognise, in words.
        jobs: What takes longer than a request.
        thumbnails: Of the probes.

    Raises:
        IndexUnusableError: There is no index, or it cannot be opened. An empty one can.
        InputError: The vocabulary cannot be used.
    """

    def __init__(self, settings: Settings, load_encoder: LoadEncoder | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self._place = Place(settings.index)
        self.memory = ConceptMemory(settings.index / "concepts.sqlite", settings.concept_cache, self._place)
        self._load_encoder = load_encoder
        self._generations = Generations(settings.index, self._opened)
        encoder = self._generations.manifest.encoder
        self.batches = TextBatches(
            self._load, encoder.spec, encoder.templates, self.memory, settings.batch_texts, self.metrics.batch
        )
        self._generations.refresh()
        cores = len(os.sched_getaffinity(0))
        self._scans = ThreadPoolExecutor(settings.threads or cores, thread_name_prefix="hubhound-scan")
        self._others = ThreadPoolExecutor(ASIDE_THREADS, thread_name_prefix="hubhound-aside")
        self._lookups = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="hubhound-lookup")
        self._upkeep = ThreadPoolExecutor(1, thread_name_prefix="hubhound-upkeep")
        self._tasks: list[Task[None]] = []
        self._labelling = asyncio.Lock()
        self._preparing: dict[tuple[int, Method], Task[None]] = {}  # by serial
        self._knowledge = KnowledgeFile(settings.index)
        self._compiled: Task[None] | None = None
        self._warm = not settings.preload
        self._why_cold = "the encoder is being loaded"
        self._ending = False
        self._changed = asyncio.Event()
        self._drained: Task[None] | None = None
        self._count()
        self.metrics.store(lambda: self.standing)
        self.jobs = Jobs(settings, self.metrics)
        self.names = Names(settings, self.batches.encode, self.aside, self._place)
        self.thumbnails = Thumbnails()

    @property
    def generation(self) -> Generation:
        """The snapshot that answers now; a request asks once and keeps it.

        Raises:
            ApiError: The index is still empty.
        """
        current = self._generations.current
        if current is None:
            raise ApiError(ProblemKind.NOT_READY, _EMPTY, headers=retry_after(self.settings.refresh_s))
        return current

    @property
    def generation_number(self) -> int | None:
        """Of the snapshot that answers now, None while the index is empty."""
        current = self._generations.current
        return None if current is None else current.number

    @property
    def standing(self) -> StoreStanding | None:
        """How it stands to the server of its index; None for an index that is a folder."""
        return self._generations.standing

    @property
    def why_not(self) -> str | None:
        """Why requests should go elsewhere, None if they need not."""
        if self._ending:
            return "the service is ending"
        if self._generations.current is None:
            return _EMPTY
        return None if self._warm else self._why_cold

    @property
    def ready(self) -> bool:
        """Whether requests are answered as fast as they ever will."""
        return self.why_not is None

    async def until_ready(self) -> None:
        """Waits until it is ready."""
        while not self.ready:
            self._changed.clear()
            await self._changed.wait()

    def knowledge(self) -> Knowledge:
        """Tasks, profiles and performance; read again when the index has newer. Blocks.

        Raises:
            IndexDamagedError: The file cannot be read.
        """
        return self._knowledge.read()

    def knowledge_or_nothing(self) -> Knowledge:
        """As ``knowledge``; nothing where the file cannot be read, for answers that are worth something without."""
        return self._knowledge.read_or_nothing()

    async def scan(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a search in one of the threads that scan."""
        asked = time.perf_counter()

        def run() -> T:
            self.metrics.search("queue", time.perf_counter() - asked)
            return function(*args, **kwargs)

        return await _done(self._scans.submit(run))

    async def aside(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs something slower in one of a few other threads."""
        return await _done(self._others.submit(function, *args, **kwargs))

    async def embed_texts(self, texts: Sequence[str]) -> None:
        """Sees to it that texts are in memory, so that a search for them needs no encoder.

        Raises:
            ConceptError: A text is empty, too long or unknown to the encoder.
            EncoderError: The encoder is needed and cannot be loaded.
        """
        begun = time.perf_counter()
        cleaned = list(dict.fromkeys(map(clean_concept, texts)))
        new = self.memory.missing(cleaned)
        if new:
            await _done(self._lookups.submit(self.memory.get, new))
            unknown = self.memory.missing(new)
            self._told(len(cleaned) - len(new), len(new) - len(unknown), len(unknown))
            if unknown:
                await self.batches.embed(unknown)
        else:
            self._told(len(cleaned), 0, 0)
        self.metrics.search("encode", time.perf_counter() - begun)

    async def embed_images(self, paths: Sequence[Path]) -> None:
        """Sees to it that images are in memory, so that a search for them needs no encoder.

        Raises:
            InputError: A file is no image.
            EncoderError: The encoder is needed and cannot be loaded.
        """
        begun = time.perf_counter()
        new = await self.aside(self._unseen, paths)
        if new:
            vectors = await self.batches.see(list(new.values()))
            await self.aside(self.memory.put, dict(zip(new, vectors, strict=True)))
        self.metrics.search("encode", time.perf_counter() - begun)

    async def prepare_labels(self, generation: Generation, method: Method) -> None:
        """Sees to it that declared labels are at hand; goes on in the background when the request is given up."""
        if method in generation.labels:
            return
        key = generation.serial, method
        task = self._preparing.get(key)
        if task is None:
            task = asyncio.create_task(self._prepare_labels(generation, method))
            self._preparing[key] = task
            task.add_done_callback(lambda done: self._prepared(key, done))
        await asyncio.shield(task)

    async def start(self) -> None:
        """Starts what runs beside requests: the encoder's thread, the look-out for generations, the preloading."""
        self.batches.start()
        self._compiled = asyncio.create_task(self._compile())
        self._tasks = [asyncio.create_task(self._watch()), self._compiled]
        if self.settings.preload:
            self._tasks.append(asyncio.create_task(self._preload()))

    def end(self) -> None:
        """Says that the service is ending: it is not ready any more."""
        self._ending = True

    async def drain(self) -> None:
        """Ends what requests wait for longest: jobs are cancelled, and none is taken any more."""
        self.end()
        if self._drained is None:
            patience_s = min(MOST_PATIENCE_S, 0.8 * self.settings.drain_s)
            self._drained = asyncio.create_task(self.jobs.stop(patience_s))
        await asyncio.shield(self._drained)

    async def stop(self) -> None:
        """Ends what ``start`` began; work in threads is not waited for."""
        await self.drain()
        for task in (*self._tasks, *self._preparing.values()):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self.names.stop()
        self.batches.stop()
        for pool in (self._scans, self._others, self._lookups, self._upkeep):
            pool.shutdown(wait=False, cancel_futures=True)

    def told(self) -> str:
        """What is served, for people, in a few words."""
        current = self._generations.current
        if current is None:
            return f"answers for the index {shown(self.settings.index)}, which is empty"
        snapshot = current.searcher.snapshot
        held = f"{len(snapshot):,} outputs of {len(snapshot.models):,} models"
        return f"answers for the index {shown(self.settings.index)}: {held}"

    def _load(self) -> Encoder:
        if self._load_encoder:
            return self._load_encoder()
        with IMPORTING:
            return Index(self.settings.index).load_encoder(self.settings.device)

    def _opened(self, index: Index) -> Searcher:
        self._place.renew()  # it has the encoder that the service has
        index.concepts = self.memory
        searcher = Searcher(index, encode=self.batches.encode, encode_images=self.batches.encode_images)
        searcher.note = None  # it looks for what is newer every second, and its answers outlive the wait
        return searcher

    def _unseen(self, paths: Sequence[Path]) -> dict[str, Path]:
        """The images that are not known, by their keys."""
        keys = {image_key(path.read_bytes()): path for path in paths}
        known = self.memory.get(list(keys))
        return {key: path for key, path in keys.items() if key not in known}

    def _told(self, memory: int, disk: int, encoded: int) -> None:
        if memory:
            self.metrics.concepts("memory", memory)
        if disk:
            self.metrics.concepts("disk", disk)
        if encoded:
            self.metrics.concepts("encoded", encoded)

    def _count(self) -> None:
        current = self._generations.current
        if current:
            snapshot = current.searcher.snapshot
            left_out = current.left_out_models
            self.metrics.generation(current.number, len(snapshot), len(snapshot.models), left_out)

    async def _prepare_labels(self, generation: Generation, method: Method) -> None:
        async with self._labelling:  # so that it never takes more than one of the threads
            await self.aside(generation.prepare_labels, method)

    def _prepared(self, key: tuple[int, Method], task: Task[None]) -> None:
        self._preparing.pop(key, None)
        if not task.cancelled() and task.exception():  # those who waited have been told, if there still were any
            log.warning("declared labels could not be embedded: %s", task.exception())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.settings.refresh_s)
            switched = await asyncio.wrap_future(self._upkeep.submit(self._generations.look))
            if switched is None:
                self.metrics.generation_failed()
            elif switched:
                self.metrics.generation_switched()
                self._count()
                self._settled()

    async def _preload(self) -> None:
        """Loads the encoder; one that cannot be loaded is tried again, and meanwhile the service is not ready."""
        while not self._warm:
            try:
                await self.batches.preload()
            except Exception as error:
                why = without_paths(one_line(str(error)), {})
                if why != self._why_cold:
                    log.error("%s", error)
                self._why_cold = why
                await asyncio.sleep(RETRY_S)
            else:
                if self._compiled:
                    await asyncio.shield(self._compiled)
                self._warm = True
        self._settled()

    async def _compile(self) -> None:
        """Loads the compiled kernels; an index that is empty has nothing to try them on."""
        current = self._generations.current
        if current is not None:
            try:
                await self.aside(current.compile)
            except Exception as error:  # searches can do without
                log.warning("the compiled kernels cannot be used: %s", one_line(str(error)))

    def _settled(self) -> None:
        """Something is ready that was not."""
        self._changed.set()
        if self.settings.preload and self.ready:
            self.names.start(self.generation.index)


async def _done(work: Future[T]) -> T:
    """What a thread makes; the request keeps its place among those in flight until it has."""
    hold_while(work)
    return await asyncio.wrap_future(work)


_EMPTY = "the index is empty: the service is ready as soon as it has a model"


def service_of(request: Request) -> Service:
    """The service of the app that a request was made to; a FastAPI dependency."""
    service: Service = request.app.state.service
    return service
