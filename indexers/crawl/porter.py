"""Bringing the files of models to this disk: first the small ones, then, if it is wanted, the weights."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine.errors import ModelRefusedError, Reason
from indexers import folders, hub
from indexers.crawl.downloads import Downloads
from indexers.crawl.journal import Claim
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


@dataclass(frozen=True)
class Looked:
    """A model of which everything is known but its weights.

    Attributes:
        repository: Where its files are or will be, and what the Hub states.
        identity: Of its weights and configs; None where nothing vouches for them.
        plan: What is to be downloaded, None for a local folder.
        cache: Where it goes, likewise.
        watch: Told of the progress of a download; raises to end it.
    """

    repository: Repository
    identity: str | None
    plan: hub.Plan | None = None
    cache: Path | None = None
    watch: Callable[[int, int], None] | None = None


class Porter:
    """Brings models to this disk; called by several threads.

    Args:
        downloads: Where files go.
        options: Limits.
        stop: Set when the crawl ends.
        files: Which files are needed.
    """

    def __init__(self, downloads: Downloads, options: FetchOptions, stop: threading.Event, files: Files) -> None:
        self._downloads = downloads
        self._options = options
        self._stop = stop
        self._files = files

    def look(self, claim: Claim) -> Looked:
        """Brings the small files of a model, once there is room for all of them.

        Args:
            claim: As the journal handed it out.

        Raises:
            FetchStopped: The crawl ends.
            ModelError: It is refused or could not be fetched.
            StoreError: Downloads cannot be written.
        """
        return self._in_folder(claim, claim.folder) if claim.folder is not None else self._on_hub(claim)

    def bring(self, looked: Looked) -> tuple[Repository, int]:
        """Brings the weights of a model.

        Args:
            looked: At which.

        Returns:
            The model, and the bytes that were fetched: 0 for a local folder.

        Raises:
            FetchStopped: The crawl ends.
            ModelError: It could not be fetched.
            StoreError: Downloads cannot be written.
        """
        if looked.plan is None:
            return looked.repository, 0
        repository = hub.download(looked.plan, cache=looked.cache, progress=looked.watch, waits_s=())
        return repository, looked.plan.size_bytes

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

    def _in_folder(self, claim: Claim, folder: Path) -> Looked:
        options = self._options
        repository, identity = self._files.in_folder(
            claim.repo,
            claim.revision,
            folder,
            max_size_bytes=options.max_size_bytes,
            allow_pickle=options.allow_pickle,
        )
        return Looked(repository, identity)

    def _on_hub(self, claim: Claim) -> Looked:
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
        return Looked(place, plan.identity, plan, cache, watch)
