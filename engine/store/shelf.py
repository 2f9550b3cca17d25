"""Files of an index on a Qdrant server, so that whoever knows its address has all of it.

The collection ``NAME_files`` has a *head* for every file (path, group, SHA-256, size) and its contents in *parts* of at
most 4 MiB, base64 in the payload. Parts are named after the contents they belong to and are written before the head:
a reader sees the old file or the new one. The parts of the old one go last.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from qdrant_client import models as qm

from engine.errors import IndexDamagedError
from engine.store.points import WRITTEN
from engine.store.server import ServerStore

PART_BYTES = 4 << 20
"""Contents of one point; base64 makes 5.6 MB of it, a server takes requests of 32 MB."""

_HEADS_AT_ONCE = 500
_NAMESPACE = uuid.UUID("5b0f3f0e-7a0c-4a67-9a55-6f6f7c7ad1a2")
_ATTEMPTS = 4

Progress = Callable[[int, int], None]


class ShelfEntry(NamedTuple):
    """A file on the shelf."""

    path: str
    group: str
    sha256: str
    size_bytes: int


class FileShelf:
    """The files of one index on a server.

    Args:
        store: The index's store.
    """

    def __init__(self, store: ServerStore) -> None:
        self._store = store
        self._collection = f"{store.name}_files"
        self._there: bool | None = None

    def entries(self, groups: Sequence[str] | None = None, owner: str | None = None) -> dict[str, ShelfEntry]:
        """The files, by path.

        Args:
            groups: Only of these groups; None for all.
            owner: Only of this one (``owner_of``).

        Raises:
            StoreError: The server refused or did not answer.
        """
        if not self._exists():
            return {}
        must: list[qm.Condition] = [_equals("kind", "head")]
        if groups is not None:
            must.append(qm.FieldCondition(key="group", match=qm.MatchAny(any=list(groups))))
        if owner is not None:
            must.append(_equals("owner", owner))
        found = [_entry(payload) for payload in self._scroll(qm.Filter(must=must))]
        return {entry.path: entry for entry in sorted(found)}

    def entry(self, path: str) -> ShelfEntry | None:
        """One file, None if there is no such path."""
        if not self._exists():
            return None
        found = self._retrieve([_head_id(path)])
        return next((_entry(payload) for payload in found.values()), None)

    def put(
        self, files: Iterable[tuple[str, str, Path]], progress: Progress | None = None, stamped: bool = False
    ) -> int:
        """Puts files on the shelf, each in place of what has its path; those that are there already are left alone.

        Args:
            files: Path on the shelf, group, and the file to read.
            progress: Called with (files done, files in all).
            stamped: Note when they were written, as outputs have it (``base.Shared``), also of those that are there.

        Returns:
            How many were written.

        Raises:
            OSError: A file cannot be read.
            StoreError: The server refused or did not answer; what was written is whole, run again for the rest.
        """
        files = list(files)
        self._create()
        known = self._retrieve_heads([path for path, _, _ in files])
        stamp = {WRITTEN: self._store.stamp()} if stamped else {}
        written = 0
        heads: list[qm.PointStruct] = []
        parts: list[qm.PointStruct] = []
        held = 0
        for done, (path, group, source) in enumerate(files):
            entry = ShelfEntry(path, group, _hash(source), source.stat().st_size)
            if stamped or known.get(path) != entry:
                heads.append(_head(entry, stamp))
                written += 1
                for part, content in enumerate(_contents(source)):
                    parts.append(_part(entry, part, content, stamp))
                    held += len(content)
                    if held >= PART_BYTES:
                        self._upsert(parts)
                        parts, held = [], 0
                if len(heads) >= _HEADS_AT_ONCE:
                    self._finish(heads, parts, known)
                    heads, parts, held = [], [], 0
            if progress:
                progress(done + 1, len(files))
        self._finish(heads, parts, known)
        return written

    def put_bytes(self, path: str, group: str, content: bytes) -> None:
        """Puts a small file on the shelf that is in memory; at most ``PART_BYTES``."""
        self._create()
        entry = ShelfEntry(path, group, hashlib.sha256(content).hexdigest(), len(content))
        known = self._retrieve_heads([path])
        if known.get(path) != entry:
            self._finish([_head(entry)], [_part(entry, 0, content)] if content else [], known)

    def read_bytes(self, path: str) -> bytes | None:
        """What ``put_bytes`` has put there, None if there is nothing whole."""
        entry = self.entry(path)
        if entry is None:
            return None
        part = self._retrieve([_part_id(entry, 0)]) if entry.size_bytes else {}
        return b"".join(base64.b64decode(payload["data"]) for payload in part.values())

    def fetch(
        self, entries: Iterable[ShelfEntry], place: Callable[[str], Path], progress: Progress | None = None
    ) -> None:
        """Brings files here, each whole or not at all, and checked.

        Args:
            entries: Which.
            place: Where a path of the shelf goes.
            progress: Called with (files done, files in all).

        Raises:
            IndexDamagedError: A file on the shelf is not what its head says.
            OSError: It cannot be written.
            StoreError: The server refused or did not answer.
        """
        entries = list(entries)
        done = 0
        for batch in _batches(entries):
            contents = self._retrieve([_part_id(entry, 0) for entry in batch if entry.size_bytes])
            for entry in batch:
                first = contents.get(_part_id(entry, 0)) if entry.size_bytes else None
                self._fetch_one(entry, first, place(entry.path))
                done += 1
                if progress:
                    progress(done, len(entries))

    def remove(self, paths: Sequence[str], before: int | None = None) -> None:
        """Takes files off the shelf; what is not there is no error. Their heads go first.

        Args:
            paths: Theirs.
            before: Only those that were written before the change of a model with this number.
        """
        if not paths or not self._exists():
            return
        must: list[Any] = [qm.FieldCondition(key="path", match=qm.MatchAny(any=list(paths)))]
        if before is not None:
            old = qm.FieldCondition(key=WRITTEN, range=qm.Range(lt=before))
            unknown = qm.IsEmptyCondition(is_empty=qm.PayloadField(key=WRITTEN))
            must.append(qm.Filter(should=[old, unknown]))
        self._delete(qm.Filter(must=[*must, _equals("kind", "head")]))
        self._delete(qm.Filter(must=must))

    def _fetch_one(self, entry: ShelfEntry, first: Mapping[str, Any] | None, target: Path) -> None:
        for _ in range(_ATTEMPTS):
            if self._written(entry, first, target):
                return
            newer = self.entry(entry.path)  # replaced while it was read?
            if newer is None:
                break
            entry, first = newer, None
        raise IndexDamagedError(
            f"the file {entry.path} on the server is damaged or was removed: put it there again with "
            "'hubhound index copy' or from a backup",
            entry.path,
        )

    def _written(self, entry: ShelfEntry, first: Mapping[str, Any] | None, target: Path) -> bool:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        digest = hashlib.sha256()
        try:
            with os.fdopen(handle, "wb") as file:
                for part in range(-(-entry.size_bytes // PART_BYTES)):
                    payload = first if part == 0 and first else None
                    if payload is None:
                        point_id = _part_id(entry, part)
                        payload = self._retrieve([point_id]).get(point_id)
                    if payload is None:
                        return False
                    content = base64.b64decode(payload["data"])
                    digest.update(content)
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if digest.hexdigest() != entry.sha256:
                return False
            Path(name).chmod(0o644)
            Path(name).replace(target)
            return True
        finally:
            Path(name).unlink(missing_ok=True)

    def _finish(
        self, heads: list[qm.PointStruct], parts: list[qm.PointStruct], known: Mapping[str, ShelfEntry]
    ) -> None:
        self._upsert(parts)
        self._upsert(heads)
        for head in heads:
            payload = head.payload or {}
            old = known.get(payload["path"])
            if old is not None and old.sha256 != payload["sha256"]:
                # Only what this file was: another writer may be putting its own parts there at this moment.
                self._delete(
                    qm.Filter(must=[_equals("path", old.path), _equals("kind", "part"), _equals("sha256", old.sha256)])
                )

    def _upsert(self, points: list[qm.PointStruct]) -> None:
        if points:
            self._store.call("write to", lambda: self._store.client.upsert(self._collection, points, wait=True))

    def _delete(self, where: qm.Filter) -> None:
        self._store.call(
            "write to",
            lambda: self._store.client.delete(self._collection, qm.FilterSelector(filter=where), wait=True),
        )

    def _retrieve_heads(self, paths: Sequence[str]) -> dict[str, ShelfEntry]:
        found: dict[str, ShelfEntry] = {}
        for start in range(0, len(paths), _HEADS_AT_ONCE):
            ids = [_head_id(path) for path in paths[start : start + _HEADS_AT_ONCE]]
            found |= {entry.path: entry for entry in map(_entry, self._retrieve(ids).values())}
        return found

    def _retrieve(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        if not ids:
            return {}
        found = self._store.call(
            "read", lambda: self._store.client.retrieve(self._collection, list(ids), with_payload=True)
        )
        return {str(record.id): record.payload or {} for record in found}

    def _scroll(self, where: qm.Filter) -> Iterator[dict[str, Any]]:
        offset: Any = None
        while True:
            page = partial(
                self._store.client.scroll,
                self._collection,
                where,
                limit=_HEADS_AT_ONCE,
                offset=offset,
                with_payload=True,
                with_vectors=False,
            )
            found, offset = self._store.call("read", page)
            yield from (record.payload or {} for record in found)
            if offset is None:
                return

    def _exists(self) -> bool:
        if not self._there:
            self._there = self._store.call("open", lambda: self._store.client.collection_exists(self._collection))
        return bool(self._there)

    def _create(self) -> None:
        if self._exists():
            return
        client = self._store.client

        def create() -> None:
            try:
                client.create_collection(
                    self._collection,
                    vectors_config={},
                    sparse_vectors_config={"none": qm.SparseVectorParams()},
                    on_disk_payload=True,
                    metadata={"hubhound": "files"},  # without it ``ServerStore.destroy`` would leave it alone
                )
            except Exception:
                if not client.collection_exists(self._collection):  # another writer may have been quicker
                    raise

        self._store.call("create", create)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Payload indexes have no effect in the local Qdrant")
            for field in ("kind", "group", "owner", "path"):
                kind = qm.PayloadSchemaType.KEYWORD
                self._store.call("create", partial(client.create_payload_index, self._collection, field, kind))
            number = qm.PayloadSchemaType.INTEGER
            self._store.call("create", partial(client.create_payload_index, self._collection, WRITTEN, number))
        self._there = True


def _equals(field: str, value: str) -> qm.FieldCondition:
    return qm.FieldCondition(key=field, match=qm.MatchValue(value=value))


def _head_id(path: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, path))


def _part_id(entry: ShelfEntry, part: int) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"{entry.path}@{entry.sha256}#{part}"))


def owner_of(path: str) -> str:
    """What a file belongs to: ``responses/org--name`` (of every revision), ``tasks/pets``."""
    first, _, rest = path.partition("/")
    second = rest.partition("/")[0]
    return f"{first}/{second.rpartition('@')[0] or second}"


def _entry(payload: Mapping[str, Any]) -> ShelfEntry:
    return ShelfEntry(payload["path"], payload["group"], payload["sha256"], int(payload["size_bytes"]))


def _head(entry: ShelfEntry, stamp: Mapping[str, int] = MappingProxyType({})) -> qm.PointStruct:
    payload = {"kind": "head", "owner": owner_of(entry.path), **entry._asdict(), **stamp}
    return qm.PointStruct(id=_head_id(entry.path), vector={}, payload=payload)


def _part(
    entry: ShelfEntry, part: int, content: bytes, stamp: Mapping[str, int] = MappingProxyType({})
) -> qm.PointStruct:
    payload = {"kind": "part", "path": entry.path, "sha256": entry.sha256, "part": part, **stamp}
    data = base64.b64encode(content).decode("ascii")
    return qm.PointStruct(id=_part_id(entry, part), vector={}, payload={**payload, "data": data})


def _batches(entries: Sequence[ShelfEntry]) -> Iterator[list[ShelfEntry]]:
    """Files whose first parts come in one answer."""
    batch: list[ShelfEntry] = []
    held = 0
    for entry in entries:
        size = min(entry.size_bytes, PART_BYTES)
        if batch and (held + size > PART_BYTES or len(batch) >= _HEADS_AT_ONCE):
            yield batch
            batch, held = [], 0
        batch.append(entry)
        held += size
    if batch:
        yield batch


def _contents(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while content := file.read(PART_BYTES):
            yield content


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
