"""One shard of the embedded engine in a folder: its settings, and its errors as ours.

qdrant-edge is the Qdrant engine in the process: a write-ahead log (WAL) and memory-mapped segments. Every update is in
the log when the call returns, and the log is replayed when the shard is opened, so that killing the process loses
nothing. A power cut may lose what was not flushed.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qdrant_edge as qe

from engine.errors import HubhoundError, IndexLockedError, StoreError

_CONFIG_FILE = "edge_config.json"

# The bindings do not expose the log's options, but the engine reads them from the configuration file beside it. The
# default segments of 32 MiB would leave up to 40 MB of log behind every flush, more than an index of ten models holds.
_WAL_OPTIONS = {"segment_capacity": 1 << 20, "segment_queue_len": 0, "retain_closed": 1}

_PAGE = 4096
"""Records read at once."""

_FLUSH_BYTES = 64 << 20
"""Written since the last flush, above which the shard flushes: the log only shrinks by a flush, and after a kill it is
replayed, which takes about a second for this much."""

_RESERVE_BYTES = 16 << 20
"""Free space below which nothing is written: the log, the pages of one batch and of its indexes take a tenth of it."""


def folder_bytes(path: Path) -> int:
    """Disk blocks that a folder occupies, in bytes; the engine's files are sparse and look much larger."""
    return sum(file.lstat().st_blocks * 512 for file in path.rglob("*") if file.is_file())


def require_space(path: Path, size_bytes: int) -> None:
    """Refuses to write when the disk is nearly full.

    The engine writes through memory maps: on a full disk the kernel ends the process with a bus error that no code can
    catch. Looking first is the only way to an error message.

    Args:
        path: A folder on the disk in question.
        size_bytes: What is about to be written.

    Raises:
        StoreError: There is less free space than that and a reserve.
    """
    free = shutil.disk_usage(path).free
    if free < size_bytes + _RESERVE_BYTES:
        need_mb = (size_bytes + _RESERVE_BYTES) >> 20
        message = (
            f"the disk is full: {path} needs {need_mb} MB of free space and has {free >> 20} MB: free some, run again"
        )
        raise StoreError(message, path)


@contextmanager
def engine_errors(doing: str, path: Path) -> Iterator[None]:
    """Turns whatever the engine or the file system raises into a :class:`StoreError` of one line.

    Args:
        doing: What is being done, to read as "cannot DOING the store in PATH".
        path: Folder of the shard or the store.
    """
    try:
        yield
    except HubhoundError:
        raise
    except Exception as error:  # the engine raises nothing more specific
        raise _store_error(doing, path, error) from error
    except BaseException as error:
        # A panic in the engine is pyo3_runtime.PanicException, which cannot be imported and is not an Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise _store_error(doing, path, error) from error


def _store_error(doing: str, path: Path, error: BaseException) -> HubhoundError:
    if "WouldBlock" in str(error):  # the engine's own lock, which a forked child may hold longer than its parent
        return IndexLockedError(path)
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    text = text.removeprefix("Service runtime error: ")
    found = re.search(r"os error (\d+)", str(error))
    number = error.errno if isinstance(error, OSError) else int(found.group(1)) if found else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"the disk is full: cannot {doing} the store in {path}: free some space and run again", path)
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StoreError(f"cannot {doing} the store in {path}: it is read-only or belongs to someone else", path)
    if doing in ("open", "read"):
        return StoreError(f"the store in {path} is damaged: {text}: restore a copy or index its models again", path)
    return StoreError(f"cannot {doing} the store in {path}: {text}", path)


class Shard:
    """A shard of the embedded engine; one process at a time.

    Args:
        path: Its folder.
        engine: The engine's own shard, open.
    """

    def __init__(self, path: Path, engine: Any) -> None:
        self._path = path
        self._engine = engine
        self._unflushed_bytes = 0

    @classmethod
    def create(cls, path: Path, config: qe.EdgeConfig, indexed: str | None = None) -> Shard:
        """Makes an empty shard; one that an interrupted creation left behind is replaced.

        Args:
            path: A folder that does not exist.
            config: Vectors and settings.
            indexed: A payload field of strings to select records by.

        Raises:
            StoreError: The folder holds something else, or cannot be written.
        """
        with engine_errors("create", path):
            if path.exists():
                if not (path / _CONFIG_FILE).exists():
                    raise StoreError(f"cannot create a store in {path}: the folder holds something else", path)
                shutil.rmtree(path)
            path.mkdir(parents=True)
            require_space(path, 0)
            (path / _CONFIG_FILE).write_text(json.dumps({"wal_options": _WAL_OPTIONS}), encoding="utf-8")
            # Opening with a configuration completes the one on disk; the engine's own create() would overwrite it.
            shard = cls(path, qe.EdgeShard.load(str(path), config))
            if indexed is not None:
                # A tenant's records are laid side by side by optimize(), so that those of one model are read together.
                params = qe.KeywordIndexParams(is_tenant=True, memory=qe.Memory.Cold)
                shard._engine.update(qe.UpdateOperation.create_field_index(indexed, params))
            shard._engine.flush()
        return shard

    @classmethod
    def open(cls, path: Path) -> Shard:
        """Opens a shard and replays its log.

        Raises:
            StoreError: It is missing, damaged or read-only.
        """
        with engine_errors("open", path):
            require_space(path, 0)
            # What an optimisation was building when it was killed; the engine never looks at it again.
            shutil.rmtree(path / "temp_segments", ignore_errors=True)
            return cls(path, qe.EdgeShard.load(str(path)))

    def upsert(self, points: Sequence[qe.Point], size_bytes: int) -> None:
        """Writes points in one log entry: after a kill there are all of them or none.

        Args:
            points: What to write.
            size_bytes: How much that is, roughly.
        """
        with engine_errors("write to", self._path):
            require_space(self._path, 4 * size_bytes)  # the log, the vectors, the payload; and as much again to be sure
            self._engine.update(qe.UpdateOperation.upsert_points(list(points)))
        self._unflushed_bytes += size_bytes
        if self._unflushed_bytes > _FLUSH_BYTES:
            self.flush()

    def delete(self, where: qe.Filter) -> None:
        """Removes the records that a filter selects."""
        with engine_errors("write to", self._path):
            require_space(self._path, 0)
            self._engine.update(qe.UpdateOperation.delete_points_by_filter(where))

    def delete_id(self, point_id: str) -> None:
        """Removes one record; it is no error if there is none."""
        with engine_errors("write to", self._path):
            require_space(self._path, 0)
            self._engine.update(qe.UpdateOperation.delete_points([point_id]))

    def retrieve(self, point_id: str) -> dict[str, Any] | None:
        """The payload of one record, None if there is no such id."""
        with engine_errors("read", self._path):
            found = self._engine.retrieve([point_id], with_payload=True, with_vector=False)
        return found[0].payload if found else None

    def retrieve_all(self, ids: Sequence[str], payload: list[str], vectors: list[str]) -> Iterator[Any]:
        """The records with some ids, with the payload fields and vectors named; without those that are not there."""
        for first in range(0, len(ids), _PAGE):
            with engine_errors("read", self._path):
                found = self._engine.retrieve(list(ids[first : first + _PAGE]), payload, vectors or False)
            yield from found

    def scroll(
        self,
        where: qe.Filter | None,
        payload: list[str] | bool,
        vectors: list[str] | bool,
        start: str | None = None,
    ) -> Iterator[Any]:
        """The records that a filter selects (all for None), with the payload fields and vectors named, by id.

        Args:
            where: The filter.
            payload: Fields to return.
            vectors: Vectors to return.
            start: Only ids from this one on.
        """
        offset = start
        while True:
            request = qe.ScrollRequest(
                offset=offset, limit=_PAGE, filter=where, with_payload=payload, with_vector=vectors
            )
            with engine_errors("read", self._path):
                records, offset = self._engine.scroll(request)
            yield from records
            if offset is None:
                return

    def query(
        self,
        query: Any,
        payload: list[str],
        limit: int,
        exact: bool = False,
        threshold: float | None = None,
        ids: Sequence[str] | None = None,
    ) -> list[Any]:
        """The records that score highest.

        Args:
            query: A nearest-vector query of the engine.
            payload: Fields to return.
            limit: How many.
            exact: Compare with every vector, whatever index there is.
            threshold: Only scores above it; whether an equal one passes is the engine's choice.
            ids: Only these records.
        """
        request = qe.QueryRequest(
            limit=limit,
            query=query,
            with_payload=payload,
            params=qe.SearchParams(exact=exact),
            score_threshold=threshold,
            filter=None if ids is None else qe.Filter(must=[qe.HasIdCondition(set(ids))]),
        )
        with engine_errors("search", self._path):
            found: list[Any] = self._engine.query(request)
        return found

    def count(self) -> int:
        """Number of records."""
        with engine_errors("read", self._path):
            return int(self._engine.count(qe.CountRequest()))

    def optimize(self) -> None:
        """Merges and indexes segments; needs as much free space as the shard occupies."""
        with engine_errors("optimise", self._path):
            require_space(self._path, folder_bytes(self._path))
            self._engine.optimize()
            self._engine.flush()

    def flush(self) -> None:
        """Brings everything to the disk and shortens the log."""
        with engine_errors("write to", self._path):
            self._engine.flush()
        self._unflushed_bytes = 0

    def close(self) -> None:
        """Flushes and lets go of the folder."""
        with engine_errors("close", self._path):
            self._engine.flush()  # close() would only log what went wrong here
            self._engine.close()
