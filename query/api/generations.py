"""Generations: what searches read, replaced by newer ones while they are answered."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from threading import Lock

from engine.catching_up import Seen
from engine.distance import Method
from engine.errors import HubhoundError, IndexDamagedError, IndexMismatchError, IndexReplacedError, StoreError
from engine.index import Index
from engine.manifest import Manifest
from engine.remote import Remote
from engine.store.contact import contact_with
from query.answers import Query
from query.api.errors import LOGGER
from query.api.standing import StoreStanding
from query.questions import Question
from query.request import SearchRequest
from query.search import Searcher

log = logging.getLogger(LOGGER)

_FOLLOW_SHARE = 0.1
"""Of the time may go into following an index on a server."""

Open = Callable[[Index], Searcher]
"""Makes a searcher over the current snapshot of an index."""


@dataclass(frozen=True)
class Generation:
    """One snapshot, opened for searching. A request keeps the one it began with.

    Attributes:
        index: The index, opened for reading.
        searcher: Over the snapshot.
        number: Of the generation, from 1.
        labels: The methods for which declared labels are at hand as witnesses.
        serial: Of all that this process has opened: an index that is made again counts its generations from 1 again.
    """

    index: Index
    searcher: Searcher
    number: int
    labels: set[Method] = field(default_factory=set, compare=False)
    serial: int = field(default_factory=count(1).__next__)

    @cached_property
    def left_out_models(self) -> int:
        """Models that are not in it, because outputs of theirs are missing on the index's server."""
        remote = self.index.remote
        return 0 if remote is None else len(Seen.of(self.searcher.snapshot, remote.identity).incomplete)

    def warm(self) -> None:
        """Reads what requests need and makes a scan: the first finds it in memory, and none finds another index's.

        Raises:
            IndexDamagedError: A file cannot be read.
        """
        files, probes = self.index.probe_files, self.index.manifest.probes
        if len(files) != probes.count or len(self.index.probe_embeddings) != probes.count:
            raise IndexDamagedError(
                f"{self.index.folder / 'probes.json'} names {len(files)} probes, the manifest {probes.count}",
                self.index.folder,
            )
        self._answer(SearchRequest())

    def compile(self) -> None:
        """Loads the compiled kernels, which one command would not: a service scans often enough to make up for it."""
        if find_spec("numba") is not None:
            import_module("engine.scan_numba")  # from then on kernels are chosen by what they take to run
        self._answer(SearchRequest())
        self._answer(SearchRequest(level="model"))

    def prepare_labels(self, method: Method) -> None:
        """Embeds the declared labels, if nobody did before: minutes where there are many. One call at a time."""
        if method not in self.labels:
            self._answer(SearchRequest(method=method, evidence="labels"))
            self.labels.add(method)

    def _answer(self, request: SearchRequest) -> None:
        """Answers for a phrase of the background, whose embedding is at hand."""
        background = self.searcher.background
        phrase, concept = background.names[0], self.index.describe(background.concepts.t[:1], background)
        self.searcher.answer(request, [Question(Query(text=phrase), (phrase,), concept)])


class Generations:
    """The generation that answers, and the look-out for the next; there is none before the first ``refresh``.

    Args:
        folder: Of the index.
        opened: Makes the searcher of a newly opened index.

    Raises:
        IndexUnusableError: There is no index, or its manifest cannot be read.
    """

    def __init__(self, folder: Path, opened: Open) -> None:
        self._folder = folder
        self._open = opened
        self._lock = Lock()
        self._complaint: str | None = None
        self._seen: object = None
        self._due = 0.0
        self.current: Generation | None = None
        self.manifest: Manifest = Index(folder).manifest
        remote = Remote.of(folder)
        self._contact = None if remote is None else contact_with(remote.address.url)
        self._away = False
        self._replaced = False

    @property
    def standing(self) -> StoreStanding | None:
        """How the service stands to the server of its index; None for an index that is a folder."""
        if self._contact is None:
            return None
        age_s, current = self._contact.age_s, self.current
        return StoreStanding(
            up=self._contact.up,
            last_contact_s=None if age_s is None else round(age_s, 3),
            replaced=self._replaced,
            left_out_models=0 if current is None else current.left_out_models,
        )

    def refresh(self) -> bool:
        """Takes over the current snapshot if it is another than the one that answers; blocks while it is opened.

        Returns:
            Whether another generation answers now.

        Raises:
            HubhoundError: The snapshot cannot be opened or does not fit; the one before goes on answering.
        """
        with self._lock:
            self._follow()
            found = self._signature()
            if found is None or found == self._seen:
                return False
            index = Index(self._folder)
            if index.manifest.encoder != self.manifest.encoder:
                raise IndexMismatchError(
                    "the index was made again with another encoder: restart the service to answer from it",
                    "encoder",
                    self.manifest.encoder.spec,
                    index.manifest.encoder.spec,
                )
            searcher = self._open(index)
            new = Generation(index, searcher, searcher.snapshot.number)
            new.warm()
            self._prepare_labels(new)
            now, before = index.manifest.background, self.manifest.background
            if self.current is not None and now.fingerprint != before.fingerprint:
                told = "generation %d is calibrated with another background: %s, %d phrases"
                log.info(told, new.number, now.source, now.count)
            self.manifest = index.manifest
            self.current, self._seen, self._complaint = new, found, None
            return True

    def look(self) -> bool | None:
        """As ``refresh``; what goes wrong is logged once and is None, except that the index's server is away."""
        try:
            found = self.refresh()
            self._away = False
            return found
        except StoreError as error:
            if self._contact is None or self._contact.up:
                return self._complained(error)
            if not self._away:  # that it answers again is told by the one that asks it
                self._away = True
                number = 0 if self.current is None else self.current.number
                log.warning("generation %d goes on answering until there is contact again: %s", number, error)
            return False
        except Exception as error:  # of damaged files numpy makes anything; the look-out goes on
            return self._complained(error)

    def _complained(self, error: Exception) -> bool | None:
        complaint = f"{type(error).__name__}: {error}"
        if complaint == self._complaint:
            return False
        self._complaint = complaint
        log.error("the next generation cannot be taken over, the one before goes on answering: %s", error)
        return None

    def _follow(self) -> None:
        """Brings the working folder of an index on a server up to date; the embedded one is by its writer."""
        remote = Remote.of(self._folder)
        if remote is not None and time.monotonic() >= self._due:
            started = time.monotonic()
            try:
                remote.refresh()
            except IndexReplacedError:
                self._replaced = True
                raise
            self._replaced = False
            remote.fetch_once("probes")  # their thumbnails are part of the evidence
            index = Index(self._folder)
            snapshot = index.current_snapshot()
            if self.current is not None and snapshot is not None:  # it may be no longer as old as it was when opened
                self.current.searcher.note = snapshot.note or index.note
            # While a crawl writes there is something new every second, and a large snapshot takes a while to write.
            self._due = time.monotonic() + (time.monotonic() - started) / _FOLLOW_SHARE

    def _prepare_labels(self, new: Generation) -> None:
        """Has at hand what the generation before had, so that requests that need it do not begin to wait."""
        for method in tuple(self.current.labels) if self.current else ():
            try:
                new.prepare_labels(method)
            except HubhoundError as error:  # the encoder's: who asks for labels will be told, others are not held up
                log.warning("labels of the next generation could not be embedded: %s", error)

    def _signature(self) -> object:
        """Changes with every snapshot that is written; None while there is none."""
        path = self._folder / "snapshots" / "CURRENT"
        try:
            now = path.stat()
        except OSError:
            return None
        return now.st_ino, now.st_mtime_ns, now.st_size
