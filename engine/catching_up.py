"""Bringing a snapshot of an index on a server up to date: only what has changed is asked for.

Every record of a model on a server has a number that grows with every write (``seq``, microseconds), and a removal
leaves a record of itself; no record appears under a number that somebody may already have passed
(:mod:`engine.store.server_models`). A snapshot remembers the largest number it has seen; the next one asks for records
above it, reads the outputs of the models among them that are new or were replaced, and takes all other rows from the
snapshot before.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.calibration import Background, calibrate
from engine.errors import IndexDamagedError
from engine.files import write_json
from engine.missed import missed
from engine.outputs import OutputTable
from engine.schema import Model, ModelState
from engine.snapshot import Snapshot, split_copies, write_snapshot
from engine.store.base import StoreLayout
from engine.store.server import ServerStore
from engine.waiting import OLDER_AFTER_S, turn

_FOLLOWED = "followed.json"
"""Beside the snapshots: how far the store was followed since the current one, where nothing shown has changed."""

_ASKED_AGAIN = 20
"""Models left out of a snapshot whose outputs are counted again at a time; if there are more, others the next time."""

_AGAIN_S = 5.0
"""Between two such counts."""

_NAMED = 3
"""Models left out that a message names."""

_ATTEMPTS = 3
"""More, if models are replaced while they are read."""

log = logging.getLogger("hubhound.store")

_DUE: dict[str, float] = {}
"""When models left out are counted again, by the identity of their store."""

_TOLD_OLDER: set[tuple[str, int]] = set()
"""Generations, by their folder, of which people were told that they are older."""

_TOLD: dict[str, frozenset[str]] = {}
"""Models left out that people were told of, by the identity of their store."""

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

    @property
    def incomplete(self) -> tuple[Model, ...]:
        """The models whose outputs are not all there."""
        return tuple(model for model in self.lost if model.state is ModelState.INDEXED)

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
    store: ServerStore,
    root: Path,
    background: Callable[[], Background],
    fingerprint: str,
    progress: Progress | None,
    *,
    insist: bool = False,
) -> Snapshot | None:
    """The snapshot of a store as it is now; a new generation is written only if something has changed.

    Processes that do so at the same time wait for each other; those that wait are told.

    Args:
        store: On the server.
        root: The folder ``snapshots`` of the working folder.
        background: What the index's outputs are calibrated against now; models that the store has with the constants
            of another one are calibrated here, in memory.
        fingerprint: Of that background.
        progress: Called with (models read, models to read).
        insist: Wait for another process for as long as it takes; else after 20 s the snapshot that is there is taken,
            if there is one, and its ``note`` says so.

    Returns:
        The current generation, None while the index has no models. A model whose outputs are not as many as its record
        says is left out and told of; every few seconds the next call looks whether it is whole.

    Raises:
        StoreError: The server refused or did not answer; the snapshot before stays.
        OSError: The snapshot cannot be written.
    """
    root.mkdir(parents=True, exist_ok=True)
    lock, other = root.parent / ".snapshots.lock", f"is fetching what has changed in the index {store.name}"
    if not insist:
        with turn(lock, other, OLDER_AFTER_S) as held:
            if held:
                return _caught_up(store, root, background, fingerprint, progress)
        older = _older(root, store)
        if older is not None:
            return older
    with turn(lock, other):
        return _caught_up(store, root, background, fingerprint, progress)


def _older(root: Path, store: ServerStore) -> Snapshot | None:
    """The snapshot that is there, with a note; None if there is none of this store."""
    try:
        snapshot = Snapshot.open(root)
        if snapshot is None or Seen.of(snapshot, store.identity).seq < 0:
            return None
        minutes = (time.time() - (root / "CURRENT").stat().st_mtime) / 60
    except (IndexDamagedError, OSError):
        return None
    note = (
        f"another process is still fetching what has changed in the index {store.name}: "
        f"this is the index as it was fetched {minutes:.0f} minutes ago"
    )
    if (str(root), snapshot.number) not in _TOLD_OLDER:
        _TOLD_OLDER.add((str(root), snapshot.number))
        log.warning("%s", note)
    return replace(snapshot, note=note)


def _caught_up(
    store: ServerStore, root: Path, background: Callable[[], Background], fingerprint: str, progress: Progress | None
) -> Snapshot | None:
    snapshot, unread = _follow(store, root, background, fingerprint, progress)
    for attempt in range(_ATTEMPTS):
        if not unread:
            break
        time.sleep(0.1 * 2**attempt)
        snapshot, unread = _follow(store, root, background, fingerprint, progress)
    _tell(store, Seen.of(snapshot, store.identity).incomplete)
    return snapshot


def _tell(store: ServerStore, incomplete: Sequence[Model]) -> None:
    """Tells of models that are left out, once until others are."""
    names = frozenset(model.repo for model in incomplete)
    if names and names != _TOLD.get(store.identity):
        more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
        log.warning(
            "of %s the outputs are not all on the server: left out of the index %s until they are; "
            "if that lasts, 'hubhound index verify' says what is missing",
            ", ".join(sorted(names)[:_NAMED]) + more,
            store.name,
        )
    _TOLD[store.identity] = names


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
    mended = _mended(store, seen)
    if seen.seq < 0 or newest < upto:  # the server has been put back to an earlier state
        previous, upto, seen = None, -1, Seen(store.identity, -1, ())
    elif newest == upto and previous is not None and previous.background == fingerprint and not mended:
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
    for repo, model in missed(store, records, upto).items():
        changed.add(repo)
        records.pop(repo, None)
        if model is not None:
            records[repo] = model
    if previous is not None and not changed and previous.background == fingerprint and not mended:
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
    left_out, now = seen.incomplete, time.monotonic()
    if not left_out or now < _DUE.get(store.identity, 0.0):
        return False
    _DUE[store.identity] = now + _AGAIN_S
    first = int(time.time() / _AGAIN_S) * _ASKED_AGAIN % len(left_out)
    asked = (left_out[first:] + left_out[:first])[:_ASKED_AGAIN]
    return any(store.count_revision(model.repo, model.revision) == model.outputs for model in asked)


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
            if table.calibrated_with(self._fingerprint, by_repo[table.repo].calibration):
                yield table
            else:
                yield table.with_calibration(calibrate(table.idx, table.z, table.anchor, self._background()))
            if self._progress:
                self._progress(done + 1, len(models))
