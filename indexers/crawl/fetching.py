"""Fetching: the files of one claimed model, unless the index has its weights already under another name."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from engine.errors import ModelRefusedError, Reason
from indexers import folders, hub
from indexers.crawl.downloads import Downloads
from indexers.crawl.journal import Claim, Journal
from indexers.identity import identity_of
from indexers.loaders.base import Repository
from indexers.loaders.declined import naming, stage
from indexers.loaders.layout import CONFIG, PREPROCESSOR_CONFIGS, read_json, read_small, weights_in

_BOOKKEEPING_BYTES = 2**16
"""What links, locks and references of one model's cache folder take beside its files."""


@dataclass(frozen=True)
class FetchOptions:
    """Limits of fetching.

    Attributes:
        max_size_bytes: Larger repositories are refused before anything is downloaded.
        allow_pickle: Weights may be pickles where there is nothing else.
        timeout_s: Longest time for the files of one model.
        keep_files: Leave downloaded files where they are, until others need the room.
    """

    max_size_bytes: int
    allow_pickle: bool = False
    timeout_s: float = 3600.0
    keep_files: bool = False


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


class Files(Protocol):
    """Which files of a repository a kind of model needs."""

    def most_bytes(self, found: hub.Survey, *, allow_pickle: bool) -> int:
        """What fetching can take at most, on the disk."""
        ...

    def settle(
        self,
        found: hub.Survey,
        *,
        max_size_bytes: int,
        allow_pickle: bool,
        cache: Path | None,
        waits_s: Sequence[float] | None = None,
        progress: hub.Progress | None = None,
    ) -> hub.Plan:
        """Downloads the small files and decides whether the model will be wanted; see ``indexers.hub.settle``."""
        ...

    def in_folder(
        self, repo: str, revision: str, folder: Path, *, max_size_bytes: int, allow_pickle: bool
    ) -> tuple[Repository, str | None]:
        """Checks that a local folder may be used; the model and its identity.

        Raises:
            ModelError: It may not.
        """
        ...


class ClassifierFiles:
    """Those of an image classifier."""

    def most_bytes(self, found: hub.Survey, *, allow_pickle: bool) -> int:
        """See `Files`."""
        return found.most_bytes(allow_pickle=allow_pickle)

    def settle(
        self,
        found: hub.Survey,
        *,
        max_size_bytes: int,
        allow_pickle: bool,
        cache: Path | None,
        waits_s: Sequence[float] | None = None,
        progress: hub.Progress | None = None,
    ) -> hub.Plan:
        """See `Files`."""
        return hub.settle(
            found,
            max_size_bytes=max_size_bytes,
            allow_pickle=allow_pickle,
            cache=cache,
            waits_s=waits_s,
            progress=progress,
        )

    def in_folder(
        self, repo: str, revision: str, folder: Path, *, max_size_bytes: int, allow_pickle: bool
    ) -> tuple[Repository, str | None]:
        """See `Files`."""
        repository = folders.fetch(repo, revision, folder, max_size_bytes=max_size_bytes, allow_pickle=allow_pickle)
        with naming(repo, revision), stage(Reason.MISSING):  # what lies in it can change at any time
            weights = weights_in(folder, allow_pickle=allow_pickle)
            small = {name: read_small(folder / name) for name in PREPROCESSOR_CONFIGS if (folder / name).is_file()}
            digests = [hub.sha256_of(folder / name) for name in weights.files]
            return repository, identity_of(read_json(folder / CONFIG), small, digests)


class FetchStopped(Exception):
    """The crawl ends; the model is for another run."""


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
        self._downloads = downloads
        self._options = options
        self._in_hand = in_hand
        self._stop = stop
        self._fetched_bytes = fetched_bytes
        self._files = files

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
        got = self._from_folder(claim, claim.folder) if claim.folder is not None else self._from_hub(claim)
        if not isinstance(got, tuple):
            return got
        repository, identity, size_bytes = got
        if self._stop.is_set():
            raise FetchStopped
        seconds = time.perf_counter() - started
        self._journal.fetched(claim.repo, claim.revision, size_bytes=size_bytes, weights=identity, seconds=seconds)
        return Fetched(claim, repository, identity, size_bytes, seconds)

    def forget(self, claim: Claim) -> None:
        """Removes what was downloaded for a model, or leaves it to the user."""
        name = Downloads.name(claim.repo, claim.revision)
        if self._options.keep_files:
            self._downloads.keep(name)
        else:
            self._downloads.remove(name)

    def drop(self, claim: Claim) -> None:
        """Removes what was left for another try that there will not be, unless somebody has it in hand again."""
        if not self._options.keep_files:
            self._downloads.drop(Downloads.name(claim.repo, claim.revision))

    def leave(self, claim: Claim) -> None:
        """Leaves what was downloaded for another try, if there is room."""
        self._downloads.keep(Downloads.name(claim.repo, claim.revision))

    def _from_folder(self, claim: Claim, folder: Path) -> tuple[Repository, str | None, int] | KnownWeights | None:
        options = self._options
        repository, identity = self._files.in_folder(
            claim.repo,
            claim.revision,
            folder,
            max_size_bytes=options.max_size_bytes,
            allow_pickle=options.allow_pickle,
        )
        settled = self._settle(claim, identity, repository)
        return (repository, identity, 0) if settled is True else settled or None

    def _from_hub(self, claim: Claim) -> tuple[Repository, str | None, int] | KnownWeights | None:
        options, name = self._options, Downloads.name(claim.repo, claim.revision)
        found = hub.survey(claim.repo, claim.revision, waits_s=())
        most = self._files.most_bytes(found, allow_pickle=options.allow_pickle) + _BOOKKEEPING_BYTES
        if not self._downloads.fits(most):
            raise ModelRefusedError(
                Reason.TOO_LARGE,
                f"{most / 1e9:.3g} GB of files do not fit the space for downloads (--cache-size)",
                claim.repo,
                claim.revision,
            )
        cache = self._downloads.reserve(name, most, self._stop)
        if cache is None:
            raise FetchStopped
        deadline = time.monotonic() + options.timeout_s

        def watch(_here: int, _total: int) -> None:
            if self._stop.is_set():
                raise FetchStopped
            if time.monotonic() > deadline:
                raise TimeoutError(f"its files took longer than {options.timeout_s:g} s (--fetch-timeout)")

        plan = self._files.settle(
            found,
            max_size_bytes=options.max_size_bytes,
            allow_pickle=options.allow_pickle,
            cache=cache,
            waits_s=(),
            progress=watch,
        )
        place = Repository(claim.repo, claim.revision, plan.folder, found.metadata)
        settled = self._settle(claim, plan.identity, place)
        if settled is not True:
            return settled or None
        repository = hub.download(plan, cache=cache, progress=watch, waits_s=())
        size_bytes = plan.size_bytes
        self._fetched_bytes(size_bytes)
        return repository, plan.identity, size_bytes

    def _settle(self, claim: Claim, identity: str | None, found: Repository) -> KnownWeights | bool:
        """Whether the weights are wanted: True, whose copy they are, or False to wait."""
        if identity is None:
            return True
        if not self._in_hand.take(identity, claim):
            return False
        original = self._journal.with_weights(identity)
        if original is None or original[0] == claim.repo:
            return True
        self._in_hand.give_back(claim)
        return KnownWeights(claim, original, found, identity)
