"""The index's memory of conductance: an image shown to a model before is not shown to it again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

FILE = "conductance.sqlite"
"""Name of the file in an index's folder."""

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS sets (id INTEGER PRIMARY KEY, model TEXT, revision TEXT, n_steps INTEGER, "
    "precision TEXT, blocks TEXT, parameters INTEGER, UNIQUE (model, revision, n_steps, precision, blocks))",
    "CREATE TABLE IF NOT EXISTS rows (owner INTEGER, image TEXT, conductance BLOB, gap REAL, "
    "PRIMARY KEY (owner, image)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS places (model TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID",
)
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_PATIENCE_S = 5


@dataclass(frozen=True)
class ProfileKey:
    """What a conductance depends on beside the image.

    Attributes:
        model: As it was named.
        revision: Of its weights.
        blocks: d names.
        n_steps: Steps of the path.
        precision: Of the passes.
    """

    model: str
    revision: str
    blocks: tuple[str, ...]
    n_steps: int
    precision: str = "float32"


@dataclass(frozen=True)
class KnownRows:
    """What is known of a model under a key.

    Attributes:
        parameters: Of the whole model.
        rows: Per image (SHA-256 of its file): mean |conductance| of each block, float64 ``[d]``; completeness gap.
    """

    parameters: int
    rows: Mapping[str, tuple[Float64Array, float]]


class ConductanceCache:
    """Conductance per model and image in a small SQLite file.

    Losing it costs nothing but time: what cannot be read is computed again, a file that is damaged is begun anew, and a
    folder that cannot be written is passed over. Rows are written as they are computed, so that an interrupted run goes
    on where it was.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: ProfileKey, images: Sequence[str]) -> KnownRows | None:
        """What is known of some images under a key; None if nothing was ever computed under it."""
        if not self._path.is_file():
            return None
        try:
            with closing(self._connect()) as database:
                owner = database.execute(
                    "SELECT id, parameters FROM sets WHERE model = ? AND revision = ? AND n_steps = ? "
                    "AND precision = ? AND blocks = ?",
                    _columns(key),
                ).fetchone()
                if owner is None:
                    return None
                rows = {}
                for image in dict.fromkeys(images):
                    row = database.execute(
                        "SELECT conductance, gap FROM rows WHERE owner = ? AND image = ?", (owner[0], image)
                    ).fetchone()
                    usable = _row(row, len(key.blocks)) if row else None
                    if usable is not None:
                        rows[image] = usable
                return KnownRows(int(owner[1]), rows)
        except sqlite3.Error:
            return None

    def only_key(self, model: str, revision: str, n_steps: int) -> ProfileKey | None:
        """The one key under which a model was profiled with so many steps; None if there is none, or several."""
        if not self._path.is_file():
            return None
        try:
            with closing(self._connect()) as database:
                found = database.execute(
                    "SELECT blocks, precision FROM sets WHERE model = ? AND revision = ? AND n_steps = ?",
                    (model, revision, n_steps),
                ).fetchall()
            if len(found) != 1:
                return None
            return ProfileKey(model, revision, tuple(json.loads(found[0][0])), n_steps, found[0][1])
        except (sqlite3.Error, ValueError):
            return None

    def put(self, key: ProfileKey, parameters: int, rows: Mapping[str, tuple[Float64Array, float]]) -> None:
        """Remembers the rows of some images."""

        def write(database: sqlite3.Connection) -> None:
            database.execute(
                "INSERT OR IGNORE INTO sets (model, revision, n_steps, precision, blocks, parameters) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (*_columns(key), parameters),
            )
            database.executemany(
                "INSERT OR REPLACE INTO rows SELECT id, ?, ?, ? FROM sets "
                "WHERE model = ? AND revision = ? AND n_steps = ? AND precision = ? AND blocks = ?",
                [(image, vector.astype("<f8").tobytes(), gap, *_columns(key)) for image, (vector, gap) in rows.items()],
            )

        self._write(write)

    def remember_place(self, model: str, place: str) -> None:
        """Remembers where on this machine a model was found."""
        self._write(lambda database: database.execute("INSERT OR REPLACE INTO places VALUES (?, ?)", (model, place)))

    def place(self, model: str) -> str | None:
        """Where on this machine a model was found, None if nobody remembers."""
        if not self._path.is_file():
            return None
        try:
            with closing(self._connect()) as database:
                row = database.execute("SELECT place FROM places WHERE model = ?", (model,)).fetchone()
        except sqlite3.Error:
            return None
        return str(row[0]) if row else None

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=ro", uri=True, timeout=_PATIENCE_S)

    def _write(self, change: Callable[[sqlite3.Connection], object]) -> None:
        for _ in range(2):
            try:
                with closing(sqlite3.connect(self._path, timeout=_PATIENCE_S, isolation_level=None)) as database:
                    # Writing from the start: a transaction that reads first gives up at once if another one writes.
                    database.execute("BEGIN IMMEDIATE")
                    for statement in _SCHEMA:
                        database.execute(statement)
                    change(database)
                    database.execute("COMMIT")
                return
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorcode", None) not in _DAMAGED:
                    return
                try:  # nothing can be read from it any more, and nothing be written to it: begin anew
                    self._path.with_name(f"{self._path.name}-journal").unlink(missing_ok=True)  # of the damaged one
                    self._path.unlink()
                except OSError:
                    return


def _columns(key: ProfileKey) -> tuple[str, str, int, str, str]:
    return key.model, key.revision, key.n_steps, key.precision, json.dumps(list(key.blocks))


def _row(stored: tuple[Any, Any], blocks: int) -> tuple[Float64Array, float] | None:
    """A row as it was put, None if it is damaged."""
    try:
        vector, gap = np.frombuffer(stored[0], "<f8").astype(np.float64), float(stored[1])
    except (TypeError, ValueError):
        return None
    return (vector, gap) if vector.shape == (blocks,) else None
