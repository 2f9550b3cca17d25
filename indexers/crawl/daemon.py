"""The crawl: one thread lists, some fetch, some probe, and the main thread stores; queues between them are short.

::

    source --pages--> journal --claims--> [fetch] --> ready --> [probe] --> done --> main thread: index, then journal

Whatever a model does happens in a child of the probing threads' nursery; whatever a hub does, in the fetching threads.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from engine.errors import ModelError
from engine.writer import IndexWriter
from indexers.crawl import log
from indexers.crawl.downloads import Downloads
from indexers.crawl.fetching import Fetched, Fetcher, FetchOptions, FetchStopped, InHand, KnownWeights
from indexers.crawl.filters import Filters
from indexers.crawl.journal import Claim, Journal
from indexers.crawl.kinds import Kind
from indexers.crawl.limits import Limits, Setup
from indexers.crawl.lister import Lister
from indexers.crawl.listing import Source
from indexers.crawl.nursery import CancelledError, Nursery
from indexers.crawl.records import Probed, Profiled
from indexers.crawl.signals import two_signals
from indexers.crawl.stages import InProcess
from indexers.crawl.unforeseen import STRANGE, unforeseen
from indexers.crawl.upkeep import Upkeep
from indexers.crawl.watch import Watch
from indexers.crawl.worker import Worker, WorkerStopped

GRACE_S = 20.0
"""Seconds that the models in hand have to finish after the first signal."""

_TICK_S = 0.1
_IDLE_S = 0.2
_JOIN_S = 5.0
_LONGEST_PAUSE_S = 300.0


Found = Probed | Profiled


@dataclass(frozen=True)
class CrawlOptions:
    """How a crawl goes about it.

    Attributes:
        follow: Go on for ever, listing again every ``interval_s``; otherwise end when everything listed is dealt with.
        interval_s: From one listing of what is new to the next.
        full_every_s: From one listing of everything, which finds what is gone, to the next.
        fetchers: Models fetched at the same time.
        workers: Models probed at the same time.
        prefetch: Fetched models that may wait for a worker.
        downloads_bytes: Space for downloads.
        limit: End after so many models, None for all.
    """

    follow: bool = False
    interval_s: float = 600.0
    full_every_s: float = 86_400.0
    fetchers: int = 4
    workers: int = 1
    prefetch: int = 4
    downloads_bytes: int = 50 * 10**9
    limit: int | None = None


@dataclass(frozen=True)
class _Troubled:
    claim: Claim
    error: ModelError


@dataclass(frozen=True)
class _Gone:
    repo: str
    detail: str


class Daemon:
    """One crawl over one source into one index.

    Args:
        writer: The index.
        journal: Of this index's crawls.
        kind: What kind of models it is about.
        source: What is listed.
        filters: What of it is wanted.
        options: How.
        fetching: Limits of fetching.
        setup: What children need to probe.
        limits: Of children.
        watch: Counts what happens.
        preload: Module that the nursery imports first; for tests.
    """

    def __init__(
        self,
        writer: IndexWriter,
        journal: Journal,
        kind: Kind[Any],
        source: Source,
        filters: Filters,
        options: CrawlOptions,
        fetching: FetchOptions,
        setup: Setup,
        limits: Limits,
        watch: Watch,
        preload: str | None = None,
    ) -> None:
        self._writer = writer
        self._journal = journal
        self._options = options
        self._watch = watch
        self._stop = threading.Event()
        self._signal: int | None = None
        self._in_hand = InHand()
        self._claims: dict[tuple[str, str], Claim] = {}
        self._claiming = threading.Lock()
        self._claimed = 0
        self._pause_until = 0.0
        self._ready: queue.Queue[Fetched] = queue.Queue(max(1, options.prefetch))
        self._done: queue.Queue[tuple[Fetched, Found] | KnownWeights | _Troubled | _Gone] = queue.Queue(4)
        self._trouble: BaseException | None = None
        self._kind = kind
        self._keeper = kind.keeper
        begun = [*((repo, revision) for repo, revision, _ in journal.under_way()), *journal.put_back()]
        wanted = [Downloads.name(repo, revision) for repo, revision in begun]
        kept = None if fetching.keep_files else wanted
        self._downloads = Downloads(kind.folder / "downloads", options.downloads_bytes, kept)
        self._fetcher = Fetcher(
            journal, self._downloads, fetching, self._in_hand, self._stop, watch.fetched, kind.files
        )
        self._lister = Lister(journal, source, filters, options.follow, options.interval_s, options.full_every_s, watch)
        # Of this index alone, so that the next crawl finds and removes what a killed one has left.
        own = hashlib.sha256(str(writer.index.folder.resolve()).encode()).hexdigest()[:16]
        self._nursery = Nursery(setup, limits, setup.cache / f"scratch-{own}", preload=preload)
        self._workers = [Worker(self._nursery) for _ in range(options.workers)]
        self._upkeep = Upkeep(journal, watch, self._ready.qsize, lambda: self._downloads.used_bytes)

    @property
    def phase(self) -> str:
        """What it is at: listing, crawling, waiting or stopping."""
        if self._stop.is_set():
            return "stopping"
        if self._claims:
            return "crawling"
        return "listing" if self._lister.busy else "waiting"

    def run(self, tick: Callable[[str], None] = lambda phase: None) -> int:
        """Crawls until there is nothing left to do, or until told to stop.

        Args:
            tick: Called several times a second with the phase, from this thread.

        Returns:
            0, or 128 and the number of the signal that ended it.

        Raises:
            HubhoundError: The source cannot be listed, or the index cannot be written.
            OSError: Likewise.
        """
        with ExitStack() as stack:
            stack.enter_context(two_signals(self._told))  # around everything, the closing of connections too
            stack.callback(self._close)
            held, released = self._keeper.recover()
            if held or released:
                log.event("went on", in_index=held, begun_again=released)
            threads = [threading.Thread(target=self._guarded, args=(self._list,), name="list", daemon=True)]
            threads += [
                threading.Thread(target=self._guarded, args=(self._fetch,), name=f"fetch-{i}", daemon=True)
                for i in range(self._options.fetchers)
            ]
            probers = [
                threading.Thread(target=self._guarded, args=(self._probe, worker), name=f"probe-{i}", daemon=True)
                for i, worker in enumerate(self._workers)
            ]
            for thread in (*threads, *probers):
                thread.start()
            while not self._stop.is_set() and not self._finished():
                self._step(_TICK_S)
                tick(self.phase)
            self._wind_up(threads, probers, tick)
        if self._trouble is not None:
            raise self._trouble
        return 0 if self._signal is None else 128 + self._signal

    def stop(self) -> None:
        """Ends the crawl as a first signal does; callable from any thread."""
        self._stop.set()

    # --- the main thread

    def _step(self, wait_s: float) -> None:
        try:
            item = self._done.get(timeout=wait_s)
        except queue.Empty:
            pass
        else:
            self._keep(item)
        self._keeper.publish(force=False)
        self._upkeep.run()

    def _keep(self, item: tuple[Fetched, Found] | KnownWeights | _Troubled | _Gone) -> None:
        if isinstance(item, _Gone):
            self._keeper.gone(item.repo, item.detail)
            return
        claim = item[0].claim if isinstance(item, tuple) else item.claim
        # Files and claim are laid down before the journal puts a model back: from then on it may be in other hands.
        if isinstance(item, _Troubled):
            self._fetcher.leave(claim)
        else:
            self._fetcher.forget(claim)
        if self._claims.get((claim.repo, claim.revision)) is claim:
            del self._claims[(claim.repo, claim.revision)]
        try:
            if isinstance(item, KnownWeights):
                self._keeper.copied(item)
            elif isinstance(item, _Troubled):
                self._fail(claim, item.error)
            else:
                self._keeper.done(*item)
        except ModelError as error:
            self._fail(claim, error)
        except STRANGE as error:
            self._fail(claim, unforeseen(claim, error))
        self._in_hand.give_back(claim)  # last: those that wait look for what was stored

    def _fail(self, claim: Claim, error: ModelError) -> None:
        try:
            again = self._keeper.troubled(claim, error)
        except ValueError as wrong:  # it was stored, and something went wrong after that
            unforeseen(claim, wrong)
            return
        if again is None:
            self._fetcher.drop(claim)

    def _finished(self) -> bool:
        if self._options.limit is not None and self._claimed >= self._options.limit:
            return not self._claims and self._done.empty()
        if self._options.follow or not self._lister.ended or self._claims or not self._done.empty():
            return False
        with self._claiming:  # a thread may be between claiming and telling
            waiting = self._journal.queue()
            return not self._claims and not waiting.due and not waiting.waiting

    def _wind_up(
        self, threads: list[threading.Thread], probers: list[threading.Thread], tick: Callable[[str], None]
    ) -> None:
        """Stores what is finished within the grace, and puts back what is not."""
        self._stop.set()
        deadline = time.monotonic() + GRACE_S
        while any(thread.is_alive() for thread in probers) and self._trouble is None and time.monotonic() < deadline:
            self._step(_TICK_S)
            tick("stopping")
        for worker in self._workers:
            worker.stop()
        until = time.monotonic() + _JOIN_S
        for thread in (*probers, *threads):  # a request that hangs may keep one of them; it finds nothing to do then
            thread.join(max(0.0, until - time.monotonic()))
        while self._trouble is None and not self._done.empty():
            self._keep(self._done.get_nowait())
        for claim in list(self._claims.values()):
            self._journal.release(claim.repo, claim.revision)
            self._fetcher.leave(claim)
        if self._signal is None and self._trouble is None:
            self._writer.finish()
        elif self._trouble is None:
            self._keeper.publish(force=True)
        if self._trouble is None:
            self._upkeep.run(at_once=True)

    def _close(self) -> None:
        self._stop.set()
        for worker in self._workers:
            worker.close()
        self._nursery.close()
        self._downloads.close()

    def _told(self, number: int) -> None:
        self._signal = number
        self._stop.set()

    # --- the threads

    def _guarded(self, run: Callable[..., None], *arguments: object) -> None:
        try:
            run(*arguments)
        except BaseException as error:
            if self._trouble is None:
                self._trouble = error
            self._stop.set()

    def _list(self) -> None:
        self._lister.run(self._stop, lambda repo, detail: self._put(_Gone(repo, detail)))

    def _fetch(self) -> None:
        while not self._stop.is_set():
            pause_s = self._pause_until - time.monotonic()
            claim = None if pause_s > 0 else self._claim()
            if claim is None:
                self._stop.wait(min(max(pause_s, 0.0), _IDLE_S) or _IDLE_S)
                continue
            self._watch.started("fetch", claim.repo)
            started = time.perf_counter()
            item: Fetched | KnownWeights | _Troubled | None
            try:
                item = self._fetcher.fetch(claim)
            except FetchStopped:
                return
            except ModelError as error:
                item = _Troubled(claim, error)
                if error.retry_after_s:
                    # The Hub asks everyone to wait who comes from here, not the one request.
                    self._pause_until = time.monotonic() + min(error.retry_after_s, _LONGEST_PAUSE_S)
            except STRANGE as error:
                item = _Troubled(claim, unforeseen(claim, error))
            finally:
                self._watch.ended("fetch", claim.repo, time.perf_counter() - started)
            if item is None:
                self._fetcher.leave(claim)
            elif isinstance(item, Fetched):
                self._hand_on(item)
            else:
                self._put(item)

    def _claim(self) -> Claim | None:
        waited = self._in_hand.next()
        if waited is not None:
            return waited
        with self._claiming:
            if self._options.limit is not None and self._claimed >= self._options.limit:
                return None
            claim = self._journal.claim()
            if claim is not None:
                self._claims[(claim.repo, claim.revision)] = claim
                self._claimed += 1
            return claim

    def _hand_on(self, fetched: Fetched) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(fetched, timeout=_IDLE_S)
            except queue.Full:
                continue
            return

    def _put(self, item: tuple[Fetched, Found] | KnownWeights | _Troubled | _Gone) -> None:
        while self._trouble is None:
            try:
                self._done.put(item, timeout=_IDLE_S)
            except queue.Full:
                continue
            return

    def _probe(self, worker: Worker) -> None:
        # Here, so that models are listed and fetched while it imports its libraries.
        with suppress(CancelledError):
            self._nursery.start(self._stop.is_set)
        told = False
        born = 0
        while not self._stop.is_set():
            try:
                fetched = self._ready.get(timeout=_IDLE_S)
            except queue.Empty:
                continue
            claim = fetched.claim
            self._journal.probing(claim.repo, claim.revision)
            stage = InProcess(self._watch, claim.repo)
            try:
                found: Found = self._kind.work(worker, fetched, stage.enter)
            except WorkerStopped:
                return
            except ModelError as error:
                stage.fail()
                self._put(_Troubled(claim, error))
                continue
            except STRANGE as error:
                stage.fail()
                self._put(_Troubled(claim, unforeseen(claim, error)))
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
            self._put((fetched, found))
