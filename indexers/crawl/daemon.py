"""The crawl: one thread lists, a crew fetches and probes, and the main thread stores; queues between them are short.

::

    source --pages--> journal --claims--> [fetch] --> ready --> [probe] --> desk --> main thread: index, then journal

Whatever a model does happens in a child of its crew's nursery; whatever a hub does, in the fetching threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from engine.errors import ModelError
from engine.writer import IndexWriter
from indexers.crawl import log
from indexers.crawl.adoption import Adopter
from indexers.crawl.crew import Crew
from indexers.crawl.desk import Desk, Gone, Item, Returned, Troubled
from indexers.crawl.fetching import FetchOptions, KnownWeights
from indexers.crawl.filters import Filters
from indexers.crawl.journal import Claim, Journal
from indexers.crawl.kinds import Kind
from indexers.crawl.last_call import last_call
from indexers.crawl.limits import Limits, Setup
from indexers.crawl.lister import Lister
from indexers.crawl.listing import Source
from indexers.crawl.local_crew import LocalCrew, Size
from indexers.crawl.signals import two_signals
from indexers.crawl.unforeseen import STRANGE, unforeseen
from indexers.crawl.upkeep import Upkeep
from indexers.crawl.watch import Watch

GRACE_S = 20.0
"""Seconds that the models in hand have to finish after the first signal."""

_TICK_S = 0.1
_JOIN_S = 5.0


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
        hire: Who fetches and probes for a desk, None for this machine alone.
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
        hire: Callable[[Desk], Crew] | None = None,
    ) -> None:
        self._writer = writer
        self._journal = journal
        self._options = options
        self._signal: int | None = None
        self._keeper = kind.keeper
        self._desk = desk = Desk(journal, options.limit)
        self._stop = desk.stop
        self._crew: Crew
        if hire is None:
            size = Size(options.fetchers, options.workers, options.prefetch, options.downloads_bytes)
            self._crew = LocalCrew(desk, journal, kind, size, fetching, setup, limits, watch, preload)
        else:
            self._crew = hire(desk)
        self._lister = Lister(journal, source, filters, options.follow, options.interval_s, options.full_every_s, watch)
        crew = self._crew
        self._upkeep = Upkeep(journal, watch, lambda: crew.ready, lambda: crew.used_bytes)
        self._adopter = Adopter(desk, journal, kind.holdings, watch) if kind.holdings is not None else None
        self._passes_checked = 0

    @property
    def phase(self) -> str:
        """What it is at: listing, crawling, waiting or stopping."""
        if self._stop.is_set():
            return "stopping"
        if self._desk.claims:
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
            listing = self._desk.thread("list", self._list)
            listing.start()
            self._crew.start()
            while not self._stop.is_set() and not self._finished():
                self._step(_TICK_S)
                tick(self.phase)
            self._wind_up(listing, tick)
        if self._desk.trouble is not None:
            raise self._desk.trouble
        return 0 if self._signal is None else 128 + self._signal

    def stop(self) -> None:
        """Ends the crawl as a first signal does; callable from any thread."""
        self._stop.set()

    def _step(self, wait_s: float) -> None:
        item = self._desk.take(0 if self._look() else wait_s)
        if item is not None:
            self._keep(item)
        self._keeper.publish(force=False)
        self._upkeep.run()

    def _look(self) -> bool:
        """Takes over what the index holds of what is listed; whether there may be more at once."""
        if self._adopter is None or self._stop.is_set():
            return False
        passes = self._lister.full_passes
        if passes != self._passes_checked:
            self._adopter.check_copies()
            self._passes_checked = passes
        more = self._adopter.run()
        if not more:
            self._adopter.sketch()
        return more

    def _keep(self, item: Item) -> None:
        if isinstance(item, Gone):
            self._keeper.gone(item.repo, item.detail)
            return
        claim = item[0].claim if isinstance(item, tuple) else item.claim
        # Files and claim are laid down before the journal puts a model back: from then on it may be in other hands.
        if isinstance(item, Troubled | Returned):
            self._crew.leave(claim)
        else:
            self._crew.forget(claim)
        self._desk.settle(claim, counted=not isinstance(item, Returned))
        try:
            if isinstance(item, KnownWeights):
                self._keeper.copied(item)
            elif isinstance(item, Troubled):
                self._fail(claim, item.error)
            elif isinstance(item, Returned):
                self._journal.release(claim.repo, claim.revision)
            else:
                self._keeper.done(*item)
        except ModelError as error:
            self._fail(claim, error)
        except STRANGE as error:
            self._fail(claim, unforeseen(claim, error))
        self._desk.in_hand.give_back(claim)  # last: those that wait look for what was stored

    def _fail(self, claim: Claim, error: ModelError) -> None:
        try:
            again = self._keeper.troubled(claim, error)
        except ValueError as wrong:  # it was stored, and something went wrong after that
            unforeseen(claim, wrong)
            return
        if again is None:
            self._crew.drop(claim)

    def _finished(self) -> bool:
        if not self._desk.exhausted and (self._options.follow or not self._lister.ended):
            return False
        if self._adopter is not None and not self._desk.exhausted and self._lister.full_passes != self._passes_checked:
            return False
        return self._desk.finished

    def _wind_up(self, listing: threading.Thread, tick: Callable[[str], None]) -> None:
        """Stores what is finished within the grace, and puts back what is not."""
        desk = self._desk
        desk.stop.set()
        if self._adopter is not None:
            self._adopter.tell()
        deadline = time.monotonic() + GRACE_S
        while self._crew.probing and desk.trouble is None and time.monotonic() < deadline:
            self._step(_TICK_S)
            tick("stopping")
        until = time.monotonic() + _JOIN_S
        self._crew.cut(until)
        listing.join(max(0.0, until - time.monotonic()))
        while desk.trouble is None and (item := desk.take(0)) is not None:
            self._keep(item)
        for claim in desk.claims:
            self._journal.release(claim.repo, claim.revision)
            self._crew.leave(claim)
        if self._signal is None and desk.trouble is None:
            with last_call(
                "everything is stored, and the store is being put in order; a second signal ends it at once"
            ):
                self._writer.finish()
        elif desk.trouble is None:
            self._keeper.publish(force=True)
        if desk.trouble is None:
            self._upkeep.run(at_once=True)

    def _close(self) -> None:
        self._stop.set()
        self._crew.close()

    def _told(self, number: int) -> None:
        self._signal = number
        self._stop.set()

    def _list(self) -> None:
        self._lister.run(self._stop, lambda repo, detail: self._desk.put(Gone(repo, detail)))
