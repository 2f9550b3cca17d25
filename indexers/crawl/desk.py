"""Where those who fetch and probe get their models from, and where they bring what they have found out."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import ModelError
from indexers.crawl.fetching import Fetched, InHand, KnownWeights
from indexers.crawl.journal import Claim, Journal
from indexers.crawl.records import Probed, Profiled

IDLE_S = 0.2
"""Between two looks whether there is something to do."""

_LONGEST_PAUSE_S = 300.0
_WAITING = 4


@dataclass(frozen=True)
class Troubled:
    """A model that was refused or has failed.

    Attributes:
        claim: As the journal handed it out.
        error: Why.
    """

    claim: Claim
    error: ModelError


@dataclass(frozen=True)
class Returned:
    """A model that nobody got round to; it goes back as if it had not been taken.

    Attributes:
        claim: As the journal handed it out.
    """

    claim: Claim


@dataclass(frozen=True)
class Gone:
    """A model that has left the source.

    Attributes:
        repo: Its id.
        detail: How that is known.
    """

    repo: str
    detail: str


Item = tuple[Fetched, Probed | Profiled] | KnownWeights | Troubled | Returned | Gone
"""What is brought to the main thread."""


class Desk:
    """Between the journal and those who work; safe to use from several threads.

    Args:
        journal: Of the crawl.
        limit: So many models are handed out, None for all.
    """

    def __init__(self, journal: Journal, limit: int | None) -> None:
        self._journal = journal
        self._limit = limit
        self._lock = threading.Lock()
        self._claims: dict[tuple[str, str], Claim] = {}
        self._claimed = 0
        self._pause_until = 0.0
        self._items: queue.Queue[Item] = queue.Queue(_WAITING)
        self.stop = threading.Event()
        """Set when the crawl ends."""
        self.in_hand = InHand()
        """Weights that are being fetched or probed."""
        self.trouble: BaseException | None = None
        """What ends the crawl."""
        self.looked: frozenset[int] | None = None
        """The journal's rows that are not in the index, of those never tried: only they are handed out. None: all."""
        self.starving = False
        """Set when somebody asked for a model and got none; perhaps because none was looked at."""

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What is in hand."""
        return tuple(self._claims.values())

    @property
    def waiting(self) -> int:
        """Items that were brought and not yet taken."""
        return self._items.qsize()

    @property
    def pause_s(self) -> float:
        """Seconds for which nothing is to be asked of the hub."""
        return max(0.0, self._pause_until - time.monotonic())

    @property
    def finished(self) -> bool:
        """Whether nothing is in hand, and nothing that was listed is left to do."""
        if self._limit is not None and self._claimed >= self._limit:
            return not self._claims and self._items.empty()
        if self._claims or not self._items.empty():
            return False
        with self._lock:  # a thread may be between claiming and telling
            left = self._journal.queue()
            return not self._claims and not left.due and not left.waiting

    @property
    def exhausted(self) -> bool:
        """Whether as many models were handed out as may be."""
        return self._limit is not None and self._claimed >= self._limit

    def claim(self) -> Claim | None:
        """The next model, None if there is none now."""
        waited = self.in_hand.next()
        if waited is not None:
            return waited
        with self._lock:
            if self.exhausted:
                return None
            claim = self._journal.claim(self.looked)
            if claim is None:
                self.starving = True
            else:
                self._claims[(claim.repo, claim.revision)] = claim
                self._claimed += 1
            return claim

    def settle(self, claim: Claim, *, counted: bool = True) -> None:
        """A model is no longer in hand.

        Args:
            claim: As it was handed out.
            counted: It counts as one that was tried.
        """
        with self._lock:
            if self._claims.get((claim.repo, claim.revision)) is claim:
                del self._claims[(claim.repo, claim.revision)]
                self._claimed -= not counted

    def pause(self, seconds: float) -> None:
        """The hub asks for a pause: all of us, not the one request."""
        self._pause_until = time.monotonic() + min(seconds, _LONGEST_PAUSE_S)

    def put(self, item: Item) -> None:
        """Brings something to the main thread, once it has time for it."""
        while self.trouble is None:
            try:
                self._items.put(item, timeout=IDLE_S)
            except queue.Full:
                continue
            return

    def take(self, wait_s: float) -> Item | None:
        """What was brought first, None if nothing is for so long."""
        try:
            return self._items.get(timeout=wait_s) if wait_s else self._items.get_nowait()
        except queue.Empty:
            return None

    def guarded(self, run: Callable[..., None], *arguments: object) -> None:
        """Runs something in a thread; what goes wrong there ends the crawl."""
        try:
            run(*arguments)
        except BaseException as error:
            if self.trouble is None:
                self.trouble = error
            self.stop.set()

    def thread(self, name: str, run: Callable[..., None], *arguments: object) -> threading.Thread:
        """A thread, not yet started, that runs something guarded."""
        return threading.Thread(target=self.guarded, args=(run, *arguments), name=name, daemon=True)
