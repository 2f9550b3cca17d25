"""Fetching: the files of one claimed model, unless the index has its weights already under another name."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from indexers.crawl.downloads import Downloads
from indexers.crawl.journal import Claim, Journal
from indexers.crawl.porter import ClassifierFiles, FetchOptions, FetchStopped, Files, Porter
from indexers.loaders.base import Repository

__all__ = [
    "ClassifierFiles",
    "FetchOptions",
    "FetchStopped",
    "Fetched",
    "Fetcher",
    "Files",
    "InHand",
    "KnownWeights",
    "known_weights",
]


@dataclass(frozen=True)
class Fetched:
    """A model whose files are here.

    Attributes:
        claim: What the journal handed out.
        repository: Where its files are.
        identity: Of its weights and configs; None where nothing vouches for them.
        size_bytes: That were fetched, 0 for a local folder.
        seconds: That it took.
    """

    claim: Claim
    repository: Repository
    identity: str | None
    size_bytes: int
    seconds: float


@dataclass(frozen=True)
class KnownWeights:
    """A model whose weights the index has under another name.

    Attributes:
        claim: What the journal handed out.
        original: Repository and revision of the other.
        found: What the Hub states about it.
        identity: Of both.
    """

    claim: Claim
    original: tuple[str, str]
    found: Repository
    identity: str


@dataclass
class InHand:
    """Identities that are being fetched or probed, whose they are, and who waits for what becomes of them."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _waiting: dict[str, list[Claim]] = field(default_factory=dict)
    _owned: dict[tuple[str, str], str] = field(default_factory=dict)
    _again: deque[Claim] = field(default_factory=deque)

    def take(self, identity: str, claim: Claim) -> bool:
        """Whether the identity is this claim's to go on with; else the claim waits for the one that has it."""
        with self._lock:
            if identity not in self._waiting:
                self._waiting[identity] = []
                self._owned[claim.repo, claim.revision] = identity
                return True
            self._waiting[identity].append(claim)
            return False

    def give_back(self, claim: Claim) -> None:
        """The claim has come to an end, whatever end: those that waited for its identity, if it had one, go on."""
        with self._lock:
            identity = self._owned.pop((claim.repo, claim.revision), None)
            if identity is not None:
                self._again.extend(self._waiting.pop(identity, []))

    def next(self) -> Claim | None:
        """A claim that need no longer wait."""
        with self._lock:
            return self._again.popleft() if self._again else None


def known_weights(
    journal: Journal, in_hand: InHand, claim: Claim, identity: str | None, found: Repository
) -> KnownWeights | bool:
    """Whether the weights of a model that was looked at are wanted.

    Args:
        journal: Asked for identical weights.
        in_hand: What is being fetched or probed.
        claim: As the journal handed it out.
        identity: Of the model, None where nothing vouches for it.
        found: What is stated about it.

    Returns:
        True to go on; whose copy it is; or False if it has to wait for one with the same weights.
    """
    if identity is None:
        return True
    if not in_hand.take(identity, claim):
        return False
    original = journal.with_weights(identity)
    if original is None or original[0] == claim.repo:
        return True
    in_hand.give_back(claim)
    return KnownWeights(claim, original, found, identity)


class Fetcher:
    """Brings models to this disk; called by several threads.

    Args:
        journal: Told what was fetched, asked for identical weights.
        downloads: Where files go.
        options: Limits.
        in_hand: Shared by all that fetch and store.
        stop: Set when the crawl ends.
        fetched_bytes: Called with the bytes of each download.
        files: Which files are needed.
    """

    def __init__(
        self,
        journal: Journal,
        downloads: Downloads,
        options: FetchOptions,
        in_hand: InHand,
        stop: threading.Event,
        fetched_bytes: Callable[[int], None],
        files: Files,
    ) -> None:
        self._journal = journal
        self._in_hand = in_hand
        self._stop = stop
        self._fetched_bytes = fetched_bytes
        self._porter = Porter(downloads, options, stop, files)
        self.forget = self._porter.forget
        self.drop = self._porter.drop
        self.leave = self._porter.leave

    def fetch(self, claim: Claim) -> Fetched | KnownWeights | None:
        """Fetches one model.

        Args:
            claim: As the journal handed it out.

        Returns:
            The model, or whose copy it is; None if it has to wait for one with the same weights.

        Raises:
            FetchStopped: The crawl ends.
            ModelError: It is refused or could not be fetched.
            StoreError: Downloads cannot be written.
        """
        started = time.perf_counter()
        looked = self._porter.look(claim)
        known = known_weights(self._journal, self._in_hand, claim, looked.identity, looked.repository)
        if known is not True:
            return known or None
        repository, size_bytes = self._porter.bring(looked)
        if claim.folder is None:
            self._fetched_bytes(size_bytes)
        if self._stop.is_set():
            raise FetchStopped
        seconds = time.perf_counter() - started
        self._journal.fetched(
            claim.repo, claim.revision, size_bytes=size_bytes, weights=looked.identity, seconds=seconds
        )
        return Fetched(claim, repository, looked.identity, size_bytes, seconds)
