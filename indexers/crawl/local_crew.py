"""The crew of one machine: some threads fetch, some probe, and the queue between them is short."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ModelError
from indexers.crawl import log
from indexers.crawl.desk import IDLE_S, Desk, Item, Troubled
from indexers.crawl.downloads import Downloads
from indexers.crawl.fetching import Fetched, Fetcher, FetchOptions, FetchStopped
from indexers.crawl.journal import Journal
from indexers.crawl.kinds import Kind
from indexers.crawl.limits import Limits, Setup
from indexers.crawl.nursery import CancelledError, Nursery
from indexers.crawl.stages import InProcess
from indexers.crawl.unforeseen import STRANGE, unforeseen
from indexers.crawl.watch import Watch
from indexers.crawl.worker import Worker, WorkerStopped


def name_of(home: Path) -> str:
    """Names a crawl in folders that several share, so that the next of its kind finds what a killed one has left.

    Args:
        home: Where it keeps its journal.
    """
    return hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Size:
    """Of a crew.

    Attributes:
        fetchers: Models fetched at the same time.
        workers: Models probed at the same time.
        prefetch: Fetched models that may wait for a worker.
        downloads_bytes: Space for downloads.
    """

    fetchers: int
    workers: int
    prefetch: int
    downloads_bytes: int


class LocalCrew:
    """See `indexers.crawl.crew.Crew`.

    Args:
        desk: Where models come from.
        journal: Of the crawl.
        kind: What kind of models it is about.
        size: How many at a time.
        fetching: Limits of fetching.
        setup: What children need to probe.
        limits: Of children.
        watch: Counts what happens.
        preload: Module that the nursery imports first; for tests.
    """

    def __init__(
        self,
        desk: Desk,
        journal: Journal,
        kind: Kind[Any],
        size: Size,
        fetching: FetchOptions,
        setup: Setup,
        limits: Limits,
        watch: Watch,
        preload: str | None = None,
    ) -> None:
        self._desk = desk
        self._journal = journal
        self._kind = kind
        self._watch = watch
        self._fetchers = size.fetchers
        self._ready: queue.Queue[Fetched] = queue.Queue(max(1, size.prefetch))
        begun = [*((repo, revision) for repo, revision, _ in journal.under_way()), *journal.put_back()]
        wanted = [Downloads.name(repo, revision) for repo, revision in begun]
        kept = None if fetching.keep_files else wanted
        self._downloads = Downloads(kind.folder / "downloads", size.downloads_bytes, kept)
        self._fetcher = Fetcher(journal, self._downloads, fetching, desk.in_hand, desk.stop, watch.fetched, kind.files)
        self.forget, self.drop, self.leave = self._fetcher.forget, self._fetcher.drop, self._fetcher.leave
        # Of this crawl alone, so that the next crawl finds and removes what a killed one has left.
        self._nursery = Nursery(setup, limits, setup.cache / f"scratch-{name_of(kind.folder)}", preload=preload)
        self._workers = [Worker(self._nursery) for _ in range(size.workers)]
        self._threads: list[threading.Thread] = []
        self._probers: list[threading.Thread] = []

    def start(self) -> None:
        """See `Crew`."""
        self._threads = [self._desk.thread(f"fetch-{i}", self._fetch) for i in range(self._fetchers)]
        self._probers = [self._desk.thread(f"probe-{i}", self._probe, it) for i, it in enumerate(self._workers)]
        for thread in (*self._threads, *self._probers):
            thread.start()

    @property
    def probing(self) -> bool:
        """See `Crew`."""
        return any(thread.is_alive() for thread in self._probers)

    def cut(self, until: float) -> None:
        """See `Crew`."""
        for worker in self._workers:
            worker.stop()
        for thread in (
            *self._probers,
            *self._threads,
        ):  # a request that hangs may keep one; it finds nothing to do then
            thread.join(max(0.0, until - time.monotonic()))

    @property
    def ready(self) -> int:
        """See `Crew`."""
        return self._ready.qsize()

    @property
    def used_bytes(self) -> int:
        """See `Crew`."""
        return self._downloads.used_bytes

    def close(self) -> None:
        """See `Crew`."""
        for worker in self._workers:
            worker.close()
        self._nursery.close()
        self._downloads.close()

    def _fetch(self) -> None:
        desk = self._desk
        while not desk.stop.is_set():
            pause_s = desk.pause_s
            claim = None if pause_s > 0 else desk.claim()
            if claim is None:
                desk.stop.wait(min(pause_s, IDLE_S) or IDLE_S)
                continue
            self._watch.started("fetch", claim.repo)
            started = time.perf_counter()
            item: Item | Fetched | None
            try:
                item = self._fetcher.fetch(claim)
            except FetchStopped:
                return
            except ModelError as error:
                item = Troubled(claim, error)
                if error.retry_after_s:
                    desk.pause(error.retry_after_s)
            except STRANGE as error:
                item = Troubled(claim, unforeseen(claim, error))
            finally:
                self._watch.ended("fetch", claim.repo, time.perf_counter() - started)
            if item is None:
                self._fetcher.leave(claim)
            elif isinstance(item, Fetched):
                self._hand_on(item)
            else:
                desk.put(item)

    def _hand_on(self, fetched: Fetched) -> None:
        while not self._desk.stop.is_set():
            try:
                self._ready.put(fetched, timeout=IDLE_S)
            except queue.Full:
                continue
            return

    def _probe(self, worker: Worker) -> None:
        desk = self._desk
        # Here, so that models are listed and fetched while it imports its libraries.
        with suppress(CancelledError):
            self._nursery.start(desk.stop.is_set)
        told = False
        born = 0
        while not desk.stop.is_set():
            try:
                fetched = self._ready.get(timeout=IDLE_S)
            except queue.Empty:
                continue
            claim = fetched.claim
            self._journal.probing(claim.repo, claim.revision)
            stage = InProcess(self._watch, claim.repo)
            try:
                found = self._kind.work(worker, fetched, stage.enter)
            except WorkerStopped:
                return
            except ModelError as error:
                stage.fail()
                desk.put(Troubled(claim, error))
                continue
            except STRANGE as error:
                stage.fail()
                desk.put(Troubled(claim, unforeseen(claim, error)))
                continue
            finally:
                for _ in range(worker.children - born):
                    self._watch.child_born()
                born = worker.children
                if not told and worker.protection:
                    told = True
                    log.event(
                        "models run", within=", ".join(worker.protection), without=", ".join(worker.missing) or None
                    )
            stage.end(found.seconds)
            desk.put((fetched, found))
