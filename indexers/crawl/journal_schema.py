"""The file of a crawl's journal: its tables, how it is opened, and what its errors mean. See docs/journal.md."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.errors import IndexDamagedError, InputError, StoreError
from indexers.crawl.records import State

VERSION = 1
"""Of the tables, in the file's ``user_version``."""

APPLICATION_ID = 0x48484352
"""``HHCR``, in the file's ``application_id``: it is a journal and no other SQLite file."""

STAGES = ("fetch", "load", "decode", "probe", "store")
"""Whose seconds are kept, each in a column ``STAGE_s``."""

_STATES = ", ".join(f"'{state}'" for state in State)

_SCHEMA = (
    "CREATE TABLE sources (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, watermark TEXT)",
    "CREATE TABLE passes (number INTEGER PRIMARY KEY AUTOINCREMENT, source INTEGER NOT NULL REFERENCES sources(id), "
    "full INTEGER NOT NULL, cursor TEXT, entries INTEGER NOT NULL DEFAULT 0, newest TEXT, "
    "ended INTEGER NOT NULL DEFAULT 0, started_at REAL NOT NULL, finished_at REAL)",
    "CREATE INDEX passes_of_source ON passes(source, full, finished_at)",
    f"""CREATE TABLE revisions (
        id INTEGER PRIMARY KEY, repo TEXT NOT NULL, revision TEXT NOT NULL,
        source INTEGER NOT NULL REFERENCES sources(id), full_pass INTEGER,
        state TEXT NOT NULL CHECK (state IN ({_STATES})), in_hand INTEGER NOT NULL DEFAULT 0,
        reason TEXT, detail TEXT, attempts INTEGER NOT NULL DEFAULT 0, next_try REAL NOT NULL DEFAULT 0,
        listed_at REAL NOT NULL, changed_at REAL NOT NULL,
        modified TEXT, folder TEXT, listed_bytes INTEGER, parameters INTEGER, gated INTEGER NOT NULL DEFAULT 0,
        licence TEXT, library TEXT, tags TEXT, downloads INTEGER, likes INTEGER,
        size_bytes INTEGER, weights TEXT, outputs INTEGER CHECK (outputs > 0), copy_of TEXT,
        sketch_a REAL, sketch_b REAL, stored_at REAL,
        fetch_s REAL, load_s REAL, decode_s REAL, probe_s REAL, store_s REAL,
        UNIQUE (repo, revision))""",
    # What is due, in the order in which it is taken; changed_at stands there for the age of the queue.
    "CREATE INDEX due ON revisions(next_try, modified DESC, id, changed_at) WHERE state = 'listed'",
    "CREATE INDEX by_state ON revisions(state, reason)",
    "CREATE INDEX in_hand ON revisions(repo) WHERE in_hand = 1",
    "CREATE INDEX originals_by_weights ON revisions(weights) "
    "WHERE state = 'stored' AND copy_of IS NULL AND weights IS NOT NULL",
    "CREATE INDEX originals_by_sketch ON revisions(outputs, sketch_a, sketch_b) "
    "WHERE state = 'stored' AND copy_of IS NULL AND sketch_a IS NOT NULL",
    "CREATE INDEX copies ON revisions(copy_of) WHERE copy_of IS NOT NULL",
    "CREATE INDEX by_stored_at ON revisions(stored_at) WHERE stored_at IS NOT NULL",
    "CREATE TABLE events (id INTEGER PRIMARY KEY, at REAL NOT NULL, row INTEGER NOT NULL, state TEXT NOT NULL, "
    "reason TEXT, detail TEXT, pid INTEGER NOT NULL)",
    "CREATE INDEX events_of_row ON events(row)",
    "CREATE VIEW history AS SELECT datetime(at, 'unixepoch') AS at, repo, revision, events.state AS state, "
    "events.reason AS reason, events.detail AS detail, pid FROM events JOIN revisions ON revisions.id = row",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)

_ADDED = ("CREATE INDEX IF NOT EXISTS found_in_index ON revisions(id) WHERE state = 'stored' AND stored_at IS NULL",)
"""What journals of the same version may lack, and work without."""

_BUSY_S = 30.0
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_UNOPENED = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM})


class Database:
    """One connection to a journal's file, for all threads of a process.

    Args:
        path: The file; made, with its folder, unless ``read_only``.
        read_only: Nothing is written; works while a daemon writes, after it was killed, and where the folder cannot
            be written.

    Raises:
        InputError: If it is to be read and is not there, or was written by a newer version.
        IndexDamagedError: If it is damaged, or no journal.
        StoreError: If it cannot be opened.
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.path = path
        self._read_only = read_only
        self._lock = threading.RLock()
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        with self._explained():
            self._connection = self._open_to_read() if read_only else self._open_to_write()
            try:
                self._check()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Closes the connection; what is under way in another thread ends first."""
        with self._lock:
            self._connection.close()
            if self._copy is not None:
                self._copy.cleanup()
                self._copy = None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction that writes: all of it is kept when the block ends, and nothing if it raises.

        Raises:
            ValueError: If the journal was opened for reading.
            StoreError: If it cannot be written.
            IndexDamagedError: If it is damaged.
        """
        if self._read_only:
            raise ValueError("this journal was opened for reading")
        with self._lock, self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def read(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query, as one moment shows them."""
        with self._lock, self._explained():
            return self._connection.execute(statement, values).fetchall()

    def _open_to_write(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the crawl's folder {self.path.parent} cannot be made: {error.strerror}", self.path
            ) from error
        connection = self._connect("rwc")
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA journal_size_limit = 67108864")
            connection.execute("PRAGMA cache_size = -16384")
            connection.execute("BEGIN IMMEDIATE")
            if self._is_empty(connection):
                for statement in _SCHEMA:
                    connection.execute(statement)
            marks = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
            if marks == [APPLICATION_ID, VERSION]:  # what is another's stays as it is
                for statement in _ADDED:
                    connection.execute(statement)
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection

    def _open_to_read(self) -> sqlite3.Connection:
        if not self.path.is_file():
            raise InputError(_no_journal(self.path))
        connection = self._connect("ro")
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
            return connection
        except sqlite3.Error as error:
            connection.close()
            if _code(error) not in _UNOPENED:
                raise
        # Readers of a write-ahead log share memory through a file beside it, which cannot be made here.
        log = self.path.with_name(f"{self.path.name}-wal")
        if not log.is_file() or log.stat().st_size == 0:
            return self._connect("ro&immutable=1")
        self._copy = tempfile.TemporaryDirectory(prefix="hubhound-journal-")
        for file in (self.path, log):
            shutil.copyfile(file, Path(self._copy.name) / file.name)
        return self._connect("rw", Path(self._copy.name) / self.path.name)

    def _connect(self, mode: str, path: Path | None = None) -> sqlite3.Connection:
        uri = f"{(path or self.path).resolve().as_uri()}?mode={mode}"
        return sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)

    @staticmethod
    def _is_empty(connection: sqlite3.Connection) -> bool:
        return not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]

    def _check(self) -> None:
        if self._read_only and self._is_empty(self._connection):
            raise InputError(_no_journal(self.path))
        if self._connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise IndexDamagedError(f"{self.path} is not the journal of a crawl: move it away", self.path)
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise InputError(
                f"{self.path} was written by a newer hubhound (journal version {version}, this one knows {VERSION}): "
                "use that one"
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.DatabaseError as error:
            if _code(error) in _DAMAGED or "malformed" in str(error):
                raise IndexDamagedError(
                    f"the crawl's journal {self.path} is damaged ({error}): move it and the files beside it that begin "
                    "with its name away and crawl again, what the index holds stays",
                    self.path,
                ) from error
            if isinstance(error, sqlite3.IntegrityError):
                raise ValueError(f"the journal refuses this: {error}") from error
            raise StoreError(
                f"the crawl's journal {self.path} cannot be read or written ({error}): check the disk's space and the "
                "permissions, nothing finished is lost",
                self.path,
            ) from error


def _code(error: sqlite3.Error) -> int:
    """The primary result code; the extended ones keep it in their low byte."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _no_journal(path: Path) -> str:
    return (
        f"there is no journal of a crawl at {path}: begin one with "
        f"'hubhound crawl --index {path.parent.parent} --source hub'"
    )
