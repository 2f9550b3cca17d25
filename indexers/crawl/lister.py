"""The listing thread: a full pass over the source, then again and again what is new."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from engine.errors import HubhoundError
from indexers.crawl import log
from indexers.crawl.filters import Filters
from indexers.crawl.journal import Journal, PageResult, Pass
from indexers.crawl.listing import Source
from indexers.crawl.passes import run_pass
from indexers.crawl.watch import Watch


class Lister:
    """Keeps the journal current with a source.

    Args:
        journal: Where models are written.
        source: Where they are listed.
        filters: What of it is wanted.
        follow: List again for ever; otherwise one full pass.
        interval_s: From the end of one pass to the next.
        full_every_s: From the end of one full pass to the next.
        watch: Counts.
    """

    def __init__(
        self,
        journal: Journal,
        source: Source,
        filters: Filters,
        follow: bool,
        interval_s: float,
        full_every_s: float,
        watch: Watch,
    ) -> None:
        self._journal = journal
        self._source = source
        self._filters = filters
        self._follow = follow
        self._interval_s = interval_s
        self._full_every_s = full_every_s
        self._watch = watch
        self.busy = True
        """Whether it is listing just now."""
        self.ended = False
        """Whether the one pass of a crawl that does not follow has come to its end."""
        self.full_passes = 0
        """Those of everything that have come to their end."""

    def run(self, stop: threading.Event, on_gone: Callable[[str, str], None]) -> None:
        """Lists until there is nothing more to list, or until told to stop.

        Args:
            stop: Set when the crawl ends.
            on_gone: Called with repository and detail for each that is no longer there.

        Raises:
            HubhoundError: The source cannot be listed; a crawl that follows logs it and tries again later.
        """
        while not stop.is_set():
            self.busy = True
            try:
                self._pass(stop, on_gone)
            except HubhoundError as error:
                if not self._follow:
                    raise
                self._watch.listing_trouble(str(error))
                log.warning("listing trouble", detail=str(error), wait_s=self._interval_s)
            self.busy = False
            if not self._follow:
                self.ended = not stop.is_set()
                return
            stop.wait(self._interval_s)

    def _pass(self, stop: threading.Event, on_gone: Callable[[str, str], None]) -> None:
        full = self._full_is_due()
        started = time.perf_counter()
        self._watch.listing_began()
        self._watch.started("list", self._source.name)

        def on_page(result: PageResult, _pass: Pass) -> None:
            self._watch.listed(result.new + result.changed, result.known, result.refused, None)

        def on_wait(detail: str, wait_s: float) -> None:
            self._watch.listing_trouble(detail)
            log.warning("listing trouble", detail=detail, wait_s=round(wait_s, 1))

        result = run_pass(
            self._journal,
            self._source,
            self._filters,
            full,
            stop,
            on_page=on_page,
            on_gone=on_gone,
            on_wait=on_wait,
        )
        seconds = time.perf_counter() - started
        self._watch.ended("list", self._source.name, seconds)
        if result.ended:
            self._watch.listing_ended()
            self.full_passes += full
        log.event(
            "listed" if result.ended else "listing put off",
            source=self._source.name,
            full=full,
            entries=result.entries,
            new=result.new,
            changed=result.changed,
            refused=result.refused,
            gone=result.gone,
            seconds=round(seconds, 2),
        )

    def _full_is_due(self) -> bool:
        if not self._follow or not self._source.follows:
            return True
        last = self._journal.last_full(self._source.name)
        return last is None or time.time() - last >= self._full_every_s
