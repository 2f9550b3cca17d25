"""Taking over what the index holds already, before it would be fetched: the main thread's part.

::

    journal --never tried--> look (the store, many at once) --> held: journal, at once
                                                            --> not held: may be claimed

A journal is new when a working folder was lost, or when the models are parted otherwise. What it lists is then mostly
in the index. Whoever claims gets only what was looked at and not found.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from engine.schema import Model
from indexers.crawl import log
from indexers.crawl.desk import Desk
from indexers.crawl.holdings import Holdings, NotWholeError
from indexers.crawl.journal import Journal
from indexers.crawl.journal_adoption import Waiting
from indexers.crawl.records import Found
from indexers.crawl.watch import Watch

BATCH = 1000
"""Models that the store is asked for at once."""

MOST = 20_000
"""Models that were looked at and may be claimed; beyond that others are looked at only when they are wanted."""

SKETCH_SHARE = 0.05
"""Of the main thread's time that goes into reading outputs of models that were taken over."""

_CONFIRMED = 10
"""Models at once that are looked at one by one: a signal waits for them."""

LATELY = timedelta(hours=1)
"""What was written in this time may be what its writer was killed at."""

_LOOK_EVERY_S = 1.0
_TELL_EVERY_S = 10.0


class _Lately(NamedTuple):
    found: Found
    model: Model
    row: int | None


class Adopter:
    """Called by the main loop whenever it comes by.

    Args:
        desk: Told what may be claimed.
        journal: Of the crawl.
        holdings: Of the index.
        watch: Counts.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        desk: Desk,
        journal: Journal,
        holdings: Holdings,
        watch: Watch,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._desk = desk
        self._journal = journal
        self._holdings = holdings
        self._watch = watch
        self._clock = clock
        self._lately: deque[_Lately] = deque()
        self._due = 0.0
        self._untold: Counter[str] = Counter()
        self._told = clock()
        self._sketched = 0
        self._sketch_due = 0.0
        desk.looked = frozenset()

    def run(self) -> bool:
        """Looks at some models, if there are any to be looked at.

        Returns:
            Whether there may be more at once.

        Raises:
            StoreError: The store cannot be read, or the journal not be written.
        """
        if self._lately:
            self._confirm()
            return True
        now = self._clock()
        looked = self._desk.looked or frozenset()
        if not self._desk.starving and (now < self._due or len(looked) >= MOST):
            return False
        self._desk.starving = False
        window = self._journal.untried(BATCH + len(looked))
        unlooked = [one for one in window if one.row not in looked][:BATCH]
        self._desk.looked = looked & {one.row for one in window}
        held = self._take(unlooked) if unlooked else 0
        self._due = now if held else now + _LOOK_EVERY_S
        if not held or now - self._told >= _TELL_EVERY_S:
            self.tell()
        return bool(held)

    def sketch(self) -> None:
        """Reads the outputs of one model that was taken over, if it is time to: copies of it are found by them."""
        started = self._clock()
        if started < self._sketch_due:
            return
        next_one = self._journal.unsketched(self._sketched)
        if next_one is not None:
            self._sketched = next_one.row
            self._sketch_one(next_one)
        ended = self._clock()
        self._sketch_due = ended + max((ended - started) / SKETCH_SHARE, 0 if next_one else _LOOK_EVERY_S)

    def _sketch_one(self, one: Waiting) -> None:
        try:
            drawn = self._holdings.sketch(one.repo, one.revision)
        except NotWholeError:
            if self._journal.list_found_again(one.row):
                log.warning("found without outputs", model=one.repo, revision=one.revision)
            return
        if drawn is not None:
            self._journal.note_sketch(one.row, drawn)

    def tell(self) -> None:
        """Logs what was found since the last time."""
        self._told = self._clock()
        if self._untold:
            of = self._untold
            log.event(
                "found in the index",
                stored=of["stored"],
                copies=of["copies"],
                refused=of["refused"],
                failed=of["failed"],
            )
            of.clear()

    def check_copies(self) -> None:
        """Lists copies again that nobody sees: their original, which this journal does not have, is gone or another."""
        for batch in self._journal.foreign_copies(BATCH):
            again = [copy for copy in self._holdings.lost(batch) if self._journal.list_copy_again(*copy)]
            if again:
                log.event("copies without original", models=len(again))

    def _take(self, unlooked: Sequence[Waiting]) -> int:
        """What is held is taken over, the rest may be claimed; returns how many were held."""
        rows = {(one.repo, one.revision): one.row for one in unlooked}
        held = self._holdings.of(rows)
        at_once, later, since = [], set[str](), datetime.now(UTC) - LATELY
        for found, model in held:
            row = rows.get((found.repo, found.revision))
            if found.copy_of in later or model.indexed_at >= since:
                self._lately.append(_Lately(found, model, row))
                later.add(found.repo)
            else:
                at_once.append(found)
        taken = {rows.get((found.repo, found.revision)) for found in self._adopt(at_once)}
        taken |= {one.row for one in self._lately}
        self._let(row for row in rows.values() if row not in taken)
        return len(held)

    def _confirm(self) -> None:
        some = [self._lately.popleft() for _ in range(min(_CONFIRMED, len(self._lately)))]
        taken = self._adopt([one.found for one in some if self._holdings.confirm(one.found, one.model)])
        self._let(one.row for one in some if one.row is not None and one.found not in taken)

    def _let(self, rows: Iterable[int]) -> None:
        """These may be claimed."""
        self._desk.looked = (self._desk.looked or frozenset()).union(rows)

    def _adopt(self, found: Sequence[Found]) -> list[Found]:
        taken = self._journal.adopt(found) if found else []
        counts = Counter(_name(one) for one in taken)
        self._watch.found(counts)
        self._untold += counts
        return taken


def _name(found: Found) -> str:
    """As the counts of a crawl call it."""
    return "copies" if found.copy_of is not None else found.state.value
