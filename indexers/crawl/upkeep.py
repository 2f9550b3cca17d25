"""What a crawl does beside its work: measure levels now and then, and forget old events."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

from indexers.crawl.journal import Journal
from indexers.crawl.watch import Watch

EVERY_S = 2.0

SHARE = 0.02
"""Of the main thread's time that counting what waits may take: with a million rows it takes a tenth of a second."""

REMEMBER_S = 90 * 86_400.0
"""Events of the journal are forgotten after so many seconds."""

_PRUNE_EVERY_S = 86_400.0


class Upkeep:
    """Called by the main loop whenever it comes by.

    Args:
        journal: Of the crawl.
        watch: Told the levels.
        waiting: Models that are fetched and wait to be probed.
        disk_bytes: Space that downloads take.
    """

    def __init__(
        self, journal: Journal, watch: Watch, waiting: Callable[[], int], disk_bytes: Callable[[], int]
    ) -> None:
        self._journal = journal
        self._watch = watch
        self._waiting = waiting
        self._disk_bytes = disk_bytes
        self._due = self._prune_due = 0.0

    def run(self, *, at_once: bool = False) -> None:
        """Measures and prunes, if it is time to.

        Args:
            at_once: Measure in any case: the crawl ends.
        """
        now = time.monotonic()
        if now < self._due and not at_once:
            return
        process = psutil.Process()
        waiting = self._journal.queue()
        self._watch.gauge("queue", waiting.due + waiting.waiting + self._waiting())
        self._watch.gauge("disk_bytes", self._disk_bytes())
        self._watch.gauge("memory_bytes", process.memory_info().rss)
        if hasattr(process, "num_fds"):
            self._watch.gauge("fds", process.num_fds())
        if now >= self._prune_due:
            self._prune_due = now + _PRUNE_EVERY_S
            self._journal.prune(REMEMBER_S)
        self._due = now + max(EVERY_S, (time.monotonic() - now) / SHARE)
