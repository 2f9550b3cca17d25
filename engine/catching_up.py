"""Bringing a snapshot of an index on a server up to date: only what has changed is asked for.

Every record of a model on a server has a number that grows with every write (``seq``, microseconds), and a removal
leaves a record of itself; no record appears under a number that somebody may already have passed
(:mod:`engine.store.server_models`). A snapshot remembers the largest number it has seen; the next one asks for records
above it, reads the outputs of the models among them that are new or were replaced, and takes all other rows from the
snapshot before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from engine.calibration import Background, calibrate
from engine.errors import IndexDamagedError
from engine.files import write_json
from engine.outputs import OutputTable
from engine.schema import Model, ModelState
from engine.snapshot import Snapshot, split_copies, write_snapshot
from engine.store.base import StoreLayout
from engine.store.server import ServerStore

_FOLLOWED = "followed.json"
"""Beside the snapshots: how far the store was followed since the current one, where nothing shown has changed."""

_ASKED_AGAIN = 5
"""Models left out of a snapshot whose outputs are counted again every time."""

_ATTEMPTS = 3
"""More, if models are replaced while they are read."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Seen:
    """How far a snapshot has followed a store; part of its ``meta.json``.

    Attributes:
        identity: Of the store.
        seq: The largest number seen, -1 if nothing was.
        lost: Models that nobody sees: copies whose original is not there at the revision that they equal, and models
            whose outputs are not all there.
    """

    identity: str
    seq: int
    lost: tuple[Model, ...]

    @classmethod
    def of(cls, snapshot: Snapshot | None, identity: str) -> Seen:
        """How far a snapshot has followed a store; nothing seen if it is of another one."""
        try:
            value = snapshot.source if snapshot is not None else None
            if value is None or value["identity"] != identity:
                return cls(identity, -1, ())
            return cls(identity, int(value["seq"]), tuple(Model.model_validate(model) for model in value["lost"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            return cls(identity, -1, ())  # written by hand or by a stranger: begin again

    def to_json(self) -> dict[str, object]:
        """For ``meta.json``."""
        lost = [model.model_dump(mode="json", exclude_none=True) for model in self.lost]
        return {"identity": self.identity, "seq": self.seq, "lost": lost}


def catch_up(
    store: ServerStore, root: Path, background: Callable[[], Background], fingerprint: str, progress: Progress | None
) -> Snapshot | None:
    """The snapshot of a store as it is now; a new generation is written only if something has changed.

    Processes that do so at the same time wait for each other.

    Args:
        store: On the server.
        root: The folder ``snapshots`` of the working folder.
        background: What the index's outputs are calibrated against now; models that the store has with the constants
            of another one are calibrated here, in memory.
        fingerprint: Of that background.
        progress: Called with (models read, models to read).

    Returns:
        The current generation, None while the index has no models. A model whose outputs are not as many as its record
        says is left out: it is being replaced, and will be there the next time, or ``index verify`` names it.

    Raises:
        StoreError: The server refused or did not answer; the snapshot before stays.
        OSError: The snapshot cannot be written.
    """
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root.parent / ".snapshots.lock"):
        snapshot, unread = _follow(store, root, background, fingerprint, progress)
        for attempt in range(_ATTEMPTS):
            if not unread:
                break
            time.sleep(0.1 * 2**attempt)
            snapshot, unread = _follow(store, root, background, fingerprint, progress)
        return snapshot


def _follow(
    store: ServerStore, root: Path, background: Callable[[], Background], fingerprint: str, progress: Progress | None
) -> tuple[Snapshot | None, int]:
    """The snapshot, and how many models were replaced while they were read: the next time they will be whole."""
    try:
        previous = Snapshot.open(root)
    except IndexDamagedError:
        previous = None  # it is a cache
    seen = Seen.of(previous, store.identity)
    upto, newest = max(seen.seq, _followed(root, previous, store.identity)), store.newest()
    if seen.seq < 0 or newest < upto:  # the server has been put back to an earlier state
        previous, upto, seen = None, -1, Seen(store.identity, -1, ())
    elif newest == upto and previous is not None and previous.background == fingerprint and not _mended(store, seen):
        return previous, 0
    records = {} if previous is None else {model.repo: model for model in _shown(previous, seen)}
    changed = set[str]()
    for change in store.changes(upto):
        upto = max(upto, change.seq)
        if change.model is not None and change.model.state in {ModelState.INDEXED, ModelState.COPY}:
            changed.add(change.repo)
            records[change.repo] = change.model
        elif records.pop(change.repo, None) is not None:
            changed.add(change.repo)
    if previous is not None and not changed and previous.background == fingerprint and not _mended(store, seen):
        note = {"identity": store.identity, "generation": previous.number, "seq": upto}
        write_json(root / _FOLLOWED, note)
        return previous, 0
    if not records and previous is None:
        return None, 0
    copies, lost = split_copies(records.values())
    indexed = [model for model in records.values() if model.state is ModelState.INDEXED]
    unread: list[Model] = []

    def source(incomplete: Sequence[Model]) -> Mapping[str, object]:
        unread.extend(incomplete)
        theirs = [copy for model in incomplete for copy in copies.get(model.repo, ())]
        return Seen(store.identity, upto, (*lost, *incomplete, *theirs)).to_json()

    reader = _Calibrated(store, background, fingerprint, progress)
    snapshot = write_snapshot(
        root, reader, indexed, fingerprint, previous, copies, changed=frozenset(changed), source=source
    )
    now = store.records_of([model.repo for model in unread])
    return snapshot, sum(now.get(model.repo) != model for model in unread)


def _followed(root: Path, snapshot: Snapshot | None, identity: str) -> int:
    """The number up to which nothing that a snapshot shows has changed, -1 if nobody has looked since it was made."""
    try:
        note = json.loads((root / _FOLLOWED).read_text(encoding="utf-8"))
        mine = snapshot is not None and (note["identity"], note["generation"]) == (identity, snapshot.number)
        return int(note["seq"]) if mine else -1
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def _mended(store: ServerStore, seen: Seen) -> bool:
    """Whether the outputs of a model that was left out are all there by now: a replica may have been behind."""
    left_out = [model for model in seen.lost if model.state is ModelState.INDEXED]
    return any(store.count_revision(m.repo, m.revision) == m.outputs for m in left_out[:_ASKED_AGAIN])


def _shown(snapshot: Snapshot, seen: Seen) -> Iterator[Model]:
    yield from snapshot.models
    for copies in snapshot.copies.values():
        yield from copies
    yield from seen.lost


class _Calibrated:
    """Outputs of a store, all with the constants of one background.

    While an index is calibrated anew, and for what a crawl with the old background adds meanwhile, a store holds
    constants of both.
    """

    def __init__(
        self, store: ServerStore, background: Callable[[], Background], fingerprint: str, progress: Progress | None
    ) -> None:
        self.layout: StoreLayout = store.layout
        self._store = store
        self._background = background
        self._fingerprint = fingerprint
        self._progress = progress

    def iter_outputs(self, models: Sequence[Model]) -> Iterator[OutputTable]:
        by_repo = {model.repo: model for model in models}
        for done, table in enumerate(self._store.iter_outputs(models)):
            if by_repo[table.repo].calibration == self._fingerprint:
                yield table
            else:
                yield table.with_calibration(calibrate(table.idx, table.z, table.anchor, self._background()))
            if self._progress:
                self._progress(done + 1, len(models))
