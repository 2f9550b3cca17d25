"""A pass: the listing of a source taken from one end to the other into the journal, whatever the network does.

A full pass sees everything that does not change meanwhile. What is added or changed behind its back is newer than the
newest of its first page, and that is the watermark down to which the next follow pass goes; so a full pass and a follow
pass that meets a quiet hub know together what the hub has. What was deleted is found by the next full pass: it did not
see it, and asks for it by name.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from engine.errors import HubhoundError, ModelError, Reason
from indexers.crawl.backoff import Backoff
from indexers.crawl.filters import Filters
from indexers.crawl.journal import Journal, PageResult, Pass
from indexers.crawl.listing import UNKNOWN, CursorExpiredError, Page, PassingError, PassResult, Source
from indexers.crawl.records import Listed, State

LISTING_BACKOFF = Backoff(base_s=2.0, longest_s=300.0)
"""Waits between two requests for the same page; there is no last attempt."""

NONSENSE = 5
"""How often in a row an answer may be no listing, before the hub is taken for none."""

RESTARTS = 10
"""How often in one run a cursor may have expired."""

CHECKS = 5
"""How often a model that was not seen is asked for; without an answer it stays until the next full pass."""

_POLL_S = 0.2

Result = TypeVar("Result")


class _StoppedError(Exception):
    pass


def run_pass(
    journal: Journal,
    source: Source,
    filters: Filters,
    full: bool,
    stop: threading.Event,
    *,
    backoff: Backoff = LISTING_BACKOFF,
    rng: random.Random | None = None,
    on_page: Callable[[PageResult, Pass], None] | None = None,
    on_gone: Callable[[str, str], None] | None = None,
    on_wait: Callable[[str, float], None] | None = None,
) -> PassResult:
    """Begin or go on with a pass and take it to its end.

    Args:
        journal: Takes in every page together with the place of the next one.
        source: What to list.
        filters: What of it is wanted.
        full: To the end, and asking for what was not seen; else the newest first, as far as the last pass began. Of a
            source that does not follow every pass is full.
        stop: Ends it within a second, in the middle of a request or a wait too; the next one goes on there.
        backoff: Between attempts at the same page; the number of attempts counts for nothing.
        rng: Where its jitter comes from.
        on_page: Told what became of each page, and of how many entries of the pass so far.
        on_gone: Called with a repository that is no longer there, and a line on it; without this the journal marks it.
        on_wait: Called with what went wrong and the seconds until the next attempt.

    Raises:
        HubhoundError: The source refuses, or is none; one line. What was listed before is in the journal.
    """
    run = _Run(journal, source, filters, full or not source.follows, stop, backoff, rng or random.Random())  # noqa: S311
    run.on_page = on_page
    run.on_gone = on_gone or (lambda repo, detail: _mark_gone(journal, repo, detail))
    run.on_wait = on_wait
    started = time.monotonic()
    try:
        run.list()
        if run.full:
            run.check_unseen()
        journal.finish_pass(run.current)
    except _StoppedError:
        return replace(run.result, seconds=time.monotonic() - started)
    return replace(run.result, ended=True, seconds=time.monotonic() - started)


class _Run:
    def __init__(
        self,
        journal: Journal,
        source: Source,
        filters: Filters,
        full: bool,
        stop: threading.Event,
        backoff: Backoff,
        rng: random.Random,
    ) -> None:
        self.full = full
        self.result = PassResult(full, ended=False)
        self.on_page: Callable[[PageResult, Pass], None] | None = None
        self.on_gone: Callable[[str, str], None]
        self.on_wait: Callable[[str, float], None] | None = None
        self._journal = journal
        self._source = source
        self._filters = filters
        self._stop = stop
        self._backoff = backoff
        self._rng = rng
        self._attempt = 0
        self.current = journal.begin_pass(source.name, full)
        self._watermark = None if full else journal.watermark(source.name)

    def list(self) -> None:
        """Take all pages in."""
        nonsense = restarts = 0
        pages: Iterator[Page] | None = None
        while not self.current.ended:
            if pages is None:
                pages = self._source.pages(self.current.cursor, not self.full)
            try:
                page = self._call(pages.__next__)
            except StopIteration as error:  # a source whose last page promised another one
                raise HubhoundError(f"the listing of {self._source.name} breaks off: try again") from error
            except CursorExpiredError as error:
                restarts += 1
                if restarts > RESTARTS:
                    raise HubhoundError(
                        f"the listing of {self._source.name} has no end, its cursors expire at once: {error}"
                    ) from error
                self.current, pages = self._journal.restart_pass(self.current), None
                continue
            except PassingError as error:
                nonsense = nonsense + 1 if error.limited else 0
                if nonsense >= NONSENSE:
                    raise HubhoundError(f"{error.detail}: check HF_ENDPOINT") from error
                self._wait(error.detail, error.retry_after_s)
                pages = None
                continue
            nonsense = 0
            if page.entries:
                self._attempt = 0
            self._take(page)

    def check_unseen(self) -> None:
        """Ask for every model that the pass should have met, one by one."""
        for repo, _ in self._journal.unseen(self.current):
            try:
                listed = self._check(repo)
            except ModelError:
                self._count(unsure=1)
                continue
            if listed is None:
                self._gone(repo, self._source.absence)
                continue
            if listed.repo != repo:
                self._gone(repo, f"it is called {listed.repo} now")
                if self._filters.skip(listed) is None:
                    self._add([listed], None)
            elif (reason := self._filters.skip(listed, known=True)) is not None:
                self._gone(repo, reason)
            else:
                self._add([listed], None)

    def _take(self, page: Page) -> None:
        entries = list(page.entries)
        reached = False
        modified = [entry.modified for entry in entries if entry.modified is not None]
        self._note_beginning(max(modified, default=""))
        if self._watermark is not None:
            for number, entry in enumerate(entries):
                if entry.modified is not None and entry.modified < self._watermark:
                    entries, reached = entries[:number], True
                    break
        inside = [entry for entry in entries if self._filters.skip(entry) is None]
        self._count(pages=1, outside=len(entries) - len(inside), broken=page.broken, unsure=page.late)
        inside = [entry for entry in inside if entry.revision != UNKNOWN or not self._is_live(entry.repo)]
        self._add(inside, None if reached else page.cursor, page)

    def _note_beginning(self, newest: str) -> None:
        """Let the first page decide the watermark, by all that it names: what the crawl is not about has a date too.

        Noted before the page, because a watermark that is too old costs requests, and one that is too new loses models.
        """
        if self.current.newest is None:
            self._journal.note_newest(self.current, newest)
            self.current = replace(self.current, newest=newest)

    def _is_live(self, repo: str) -> bool:
        """Whether a revision of it is known; then the end of the pass finds that it is gone, and marks it."""
        rows = self._journal.rows(repo)
        return any(row.revision != UNKNOWN and row.state is not State.GONE for row in rows)

    def _add(self, entries: Sequence[Listed], cursor: str | None, page: Page | None = None) -> None:
        refusals = page.refusals if page is not None else {}
        rows = [(entry, refusals.get(entry.repo) or self._filters.refusal(entry)) for entry in entries]
        done = self._journal.add_page(self.current, rows, cursor)
        self.current = replace(
            self.current, cursor=cursor, entries=self.current.entries + len(rows), ended=cursor is None
        )
        self._count(entries=len(rows), new=done.new, changed=done.changed, known=done.known, refused=done.refused)
        if self.on_page is not None:
            self.on_page(done, self.current)

    def _check(self, repo: str) -> Listed | None:
        self._attempt = 0
        while True:
            try:
                return self._call(lambda: self._source.check(repo))
            except ModelError as error:
                if error.reason is not Reason.NETWORK or self._attempt + 1 >= CHECKS:
                    raise
                self._wait(str(error), error.retry_after_s)

    def _gone(self, repo: str, detail: str) -> None:
        self._count(gone=1)
        self.on_gone(repo, detail)

    def _wait(self, detail: str, retry_after_s: float | None) -> None:
        self._attempt += 1
        wait_s = self._backoff.wait_s(self._attempt, retry_after_s, self._rng)
        self._count(waits=1)
        if self.on_wait is not None:
            self.on_wait(detail, wait_s)
        if self._stop.wait(wait_s):
            raise _StoppedError

    def _call(self, call: Callable[[], Result]) -> Result:
        """Call in a thread that may be left behind: a request can hang longer than a stop may take."""
        if self._stop.is_set():
            raise _StoppedError
        answers: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

        def work() -> None:
            try:
                answers.put((call(), None))
            except BaseException as error:
                answers.put((None, error))

        threading.Thread(target=work, name="listing", daemon=True).start()
        while True:
            try:
                result, error = answers.get(timeout=_POLL_S)
            except queue.Empty:
                if self._stop.is_set():
                    raise _StoppedError from None
                continue
            if error is not None:
                raise error
            return result  # type: ignore[return-value]

    def _count(self, **more: int) -> None:
        self.result = replace(self.result, **{name: getattr(self.result, name) + n for name, n in more.items()})


def _mark_gone(journal: Journal, repo: str, detail: str) -> None:
    journal.gone(repo, Reason.MISSING.value, detail)
