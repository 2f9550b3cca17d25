"""A backup's file: a tar archive that knows whether it is whole, down to the last byte.

::

    hubhound-backup.json     format, when and from what it was made
    index/...                the index's files, the manifest last of them
    outputs/000001.parquet   points of the store as they are: id, payload (JSON), indices, values, dense
    models.parquet, profiles.parquet
    contents.json            where everything lies in the file, and the hash of every file
    end.json                 the SHA-256 of every byte before it, and what the index holds

The last member has a fixed size, so that it is found from the end: a file that was cut short does not have it. ``tar``
unpacks a backup, and any reader of parquet the points.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from engine.copy_source import Progress
from engine.errors import IndexDamagedError, IndexMismatchError, InputError
from engine.store.base import StoredPoint
from engine.store.content import canonical

FORMAT = 1
"""Version of the layout."""

HEAD = "hubhound-backup.json"
CONTENTS = "contents.json"
END = "end.json"

_BLOCK = 512
_END_BYTES = 8 * _BLOCK
_TAIL_BYTES = _BLOCK + _END_BYTES + 2 * _BLOCK
_READ = 1 << 20


class Place(NamedTuple):
    """Where something lies in the file."""

    offset: int
    size_bytes: int


class BackupWriter:
    """Writes a backup's file from the beginning to the end.

    Args:
        file: Open for writing.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._offset = 0

    def add(self, name: str, content: bytes) -> Place:
        """Adds a member that is in memory."""
        return self.stream(name, len(content), iter([content]))

    def add_file(self, name: str, path: Path) -> tuple[Place, str]:
        """Adds a file.

        Returns:
            Where it lies now, and the SHA-256 of what was written.

        Raises:
            IndexDamagedError: It has become shorter or longer while it was read.
            OSError: It cannot be read or written.
        """
        digest = hashlib.sha256()

        def blocks(file: IO[bytes]) -> Iterator[bytes]:
            while block := file.read(_READ):
                digest.update(block)
                yield block

        with path.open("rb") as file:
            place = self.stream(name, path.stat().st_size, blocks(file))
        return place, digest.hexdigest()

    def stream(self, name: str, size_bytes: int, blocks: Iterable[bytes]) -> Place:
        """Adds a member of a known size."""
        self._write(_header(name, size_bytes))
        place = Place(self._offset, size_bytes)
        for block in blocks:
            self._write(block)
        if self._offset - place.offset != size_bytes:
            raise IndexDamagedError(f"{name} was changed while it was read: run again", name)
        self._write(b"\0" * (-size_bytes % _BLOCK))
        return place

    def end(self, content: Mapping[str, object], contents: Place) -> None:
        """Completes the file.

        Args:
            content: What the index holds (``IndexContent.to_json``).
            contents: Where the member ``contents.json`` lies.
        """
        self._write(_tail({"sha256": self._digest.hexdigest(), "content": content, "contents": list(contents)}))

    def _write(self, block: bytes) -> None:
        self._file.write(block)
        self._digest.update(block)
        self._offset += len(block)


class BackupReader:
    """A backup's file, checked from the first byte to the last.

    Args:
        path: The file.
        progress: Called with (bytes done, bytes in all, what is being done).

    Raises:
        InputError: It is no backup.
        IndexMismatchError: A newer version made it.
        IndexDamagedError: It was cut short or altered.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path, progress: Progress | None = None) -> None:
        self.path = path
        if path.is_dir():
            raise InputError(f"{path} is a folder, a backup is a file")
        self._file = path.open("rb")
        try:
            self.head = self._read_head()
            size_bytes = path.stat().st_size
            self._file.seek(max(0, size_bytes - _TAIL_BYTES))
            tail = self._file.read()
            end = _parsed_tail(tail)
            if end is None or self._sha256(size_bytes - _TAIL_BYTES, progress) != end.get("sha256"):
                raise IndexDamagedError(
                    f"the backup {path} was cut short or altered: nothing was restored from it, use another one", path
                )
            self.end: dict[str, Any] = end
            self.contents: dict[str, Any] = json.loads(self.read(Place(*self.end["contents"])))
        except BaseException:
            self._file.close()
            raise

    def read(self, place: Place) -> bytes:
        """The bytes of a place."""
        self._file.seek(place.offset)
        return self._file.read(place.size_bytes)

    def copy(self, place: Place, write: Callable[[bytes], object]) -> str:
        """Hands the bytes of a place to a function, block by block.

        Returns:
            Their SHA-256.
        """
        digest = hashlib.sha256()
        self._file.seek(place.offset)
        left = place.size_bytes
        while left > 0 and (block := self._file.read(min(left, _READ))):
            digest.update(block)
            write(block)
            left -= len(block)
        return digest.hexdigest()

    def close(self) -> None:
        """Closes the file; closing twice is harmless."""
        self._file.close()

    def _read_head(self) -> dict[str, Any]:
        start = self._file.read(_BLOCK)
        refused = InputError(f"{self.path} is no backup: 'hubhound index backup' makes one")
        try:
            info = tarfile.TarInfo.frombuf(start, "utf-8", "strict")
            if info.name != HEAD or not 0 < info.size < _READ:
                raise refused
            head = json.loads(self._file.read(info.size))
            version = int(head["format"])
        except (tarfile.TarError, ValueError, TypeError, KeyError) as error:
            if HEAD.encode() in start[:100]:
                raise IndexDamagedError(f"the backup {self.path} was cut short or altered", self.path) from error
            raise refused from error
        if version != FORMAT:
            raise IndexMismatchError(
                f"the backup {self.path} has format {version}, this hubhound reads {FORMAT}: "
                f"restore it with {head.get('program', 'the version that made it')} or a newer one",
                "backup format",
                FORMAT,
                version,
            )
        return dict(head)

    def _sha256(self, size_bytes: int, progress: Progress | None) -> str:
        digest = hashlib.sha256()
        self._file.seek(0)
        done = 0
        while done < size_bytes:
            block = self._file.read(min(_READ, size_bytes - done))
            if not block:
                break
            digest.update(block)
            done += len(block)
            if progress:
                progress(done, size_bytes, "reading the backup")
        return digest.hexdigest()


def pack_points(points: list[StoredPoint]) -> bytes:
    """Points of a store as a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "id": pa.array([point.id for point in points], pa.string()),
            "payload": pa.array([json.dumps(point.payload, ensure_ascii=False) for point in points], pa.string()),
            "indices": pa.array([point.indices for point in points], pa.list_(pa.uint32())),
            "values": pa.array([point.values for point in points], pa.list_(pa.float32())),
            "dense": pa.array([point.dense for point in points], pa.list_(pa.float32())),
        }
    )
    made = io.BytesIO()
    pq.write_table(table, made, compression="zstd", use_dictionary=False)
    return made.getvalue()


def unpack_points(content: bytes) -> list[StoredPoint]:
    """Points of a store from what :func:`pack_points` made of them.

    Raises:
        ValueError: The bytes are something else.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_table(pa.BufferReader(content)).to_pydict()
        return [
            StoredPoint(point_id, json.loads(payload), indices, values, dense)
            for point_id, payload, indices, values, dense in zip(
                *(columns[name] for name in ("id", "payload", "indices", "values", "dense")), strict=True
            )
        ]
    except (pa.ArrowException, KeyError) as error:
        raise ValueError(f"no points of a store: {error}") from error


def _header(name: str, size_bytes: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    return info.tobuf(tarfile.PAX_FORMAT)


def _tail(end: Mapping[str, object]) -> bytes:
    # Nothing comes after these bytes that could vouch for them: they have a hash of their own.
    own = hashlib.sha256(canonical(end)).hexdigest()
    content = canonical({**end, "end_sha256": own})
    if len(content) > _END_BYTES:
        raise ValueError(f"the end of a backup takes {len(content)} bytes")
    return _header(END, _END_BYTES) + content.ljust(_END_BYTES) + b"\0" * (2 * _BLOCK)


def _parsed_tail(tail: bytes) -> dict[str, Any] | None:
    """What the last member says; None if it is not, byte for byte, one that was written here."""
    try:
        end: dict[str, Any] = json.loads(tail[_BLOCK : _BLOCK + _END_BYTES])
        end.pop("end_sha256", None)
        return end if _tail(end) == tail else None
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
