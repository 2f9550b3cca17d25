"""Bringing a snapshot of an index on a server up to date: only what has changed is asked for.

Every record of a model on a server has a number that grows with every write (``seq``, microseconds), and a removal
leaves a record of itself. A snapshot remembers the largest number it has seen; the next one asks for records above it,
reads the outputs of the models among them that are new or were replaced, and takes all other rows from the snapshot
before.

Two writers may take numbers in one order and be acknowledged in another. So a little more is asked for than is new:
everything since ``OVERLAP_S`` before the largest number seen; what was seen already is known by its number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from engine.calibration import Background, calibrate
from engine.errors import IndexDamagedError
from engine.outputs import OutputTable
from engine.schema import Model, ModelState
from engine.snapshot import Snapshot, split_copies, write_snapshot
from engine.store.base import StoreLayout
from engine.store.server import ServerStore

OVERLAP_S = 900
"""Longest time, in seconds, between taking a number and the write's being visible, retries and slow clocks included."""

_ATTEMPTS = 3
"""More, if models are replaced while they are read."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Seen:
    """How far a snapshot has followed a store; part of its ``meta.json``.

    Attributes:
        identity: Of the store.
        seq: The largest number seen.
        recent: Numbers of the records that will be asked for once more, by repository id, None for one removed.
        lost: Models that nobody sees: copies whose original is not there at the revision that they equal, and models
            whose outputs are not all there.
    """

    identity: str
    seq: int
    recent: Mapping[str, int]
    lost: tuple[Model, ...]

    @classmethod
    def of(cls, snapshot: Snapshot | None, identity: str) -> Seen:
        """How far a snapshot has followed a store; nothing seen if it is of another one."""
        try:
            value = snapshot.source if snapshot is not None else None
            if value is None or value["identity"] != identity:
                return cls(identity, -1, {}, ())
            lost = tuple(Model.model_validate(model) for model in value["lost"])
            return cls(identity, int(value["seq"]), {str(k): int(v) for k, v in value["recent"].items()}, lost)
        except (KeyError, TypeError, ValueError, AttributeError):
            return cls(identity, -1, {}, ())  # written by hand or by a stranger: begin again

    def to_json(self) -> dict[str, object]:
        """For ``meta.json``."""
        lost = [model.model_dump(mode="json", exclude_none=True) for model in self.lost]
        return {"identity": self.identity, "seq": self.seq, "recent": dict(self.recent), "lost": lost}


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
    if seen.seq < 0:
        previous = None
    records = {} if previous is None else {model.repo: model for model in _shown(previous, seen)}
    recent, changed, newest = dict(seen.recent), set[str](), seen.seq
    for change in store.changes(max(-1, seen.seq - OVERLAP_S * 1_000_000)):
        if recent.get(change.repo) == change.seq:
            continue
        recent[change.repo], newest = change.seq, max(newest, change.seq)
        if change.model is not None and change.model.state in {ModelState.INDEXED, ModelState.COPY}:
            changed.add(change.repo)
            records[change.repo] = change.model
        elif records.pop(change.repo, None) is not None:
            changed.add(change.repo)
    if previous is not None and not changed and previous.background == fingerprint:
        return previous, 0
    if not records and previous is None:
        return None, 0
    copies, lost = split_copies(records.values())
    indexed = [model for model in records.values() if model.state is ModelState.INDEXED]
    limit = newest - OVERLAP_S * 1_000_000
    seqs = {repo: seq for repo, seq in recent.items() if seq > limit}
    unread: list[Model] = []

    def source(incomplete: Sequence[Model]) -> Mapping[str, object]:
        unread.extend(incomplete)
        theirs = [copy for model in incomplete for copy in copies.get(model.repo, ())]
        return Seen(store.identity, newest, seqs, (*lost, *incomplete, *theirs)).to_json()

    reader = _Calibrated(store, background, fingerprint, progress)
    snapshot = write_snapshot(
        root, reader, indexed, fingerprint, previous, copies, changed=frozenset(changed), source=source
    )
    now = store.records_of([model.repo for model in unread])
    return snapshot, sum(now.get(model.repo) != model for model in unread)


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
