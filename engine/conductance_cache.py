"""The index's memory of conductance: an image shown to a model before is not shown to it again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sets (
    id INTEGER PRIMARY KEY, model TEXT, revision TEXT, n_steps INTEGER, precision TEXT, blocks TEXT,
    parameters INTEGER, UNIQUE (model, revision, n_steps, precision, blocks));
CREATE TABLE IF NOT EXISTS rows (
    owner INTEGER, image TEXT, conductance BLOB, gap REAL, PRIMARY KEY (owner, image)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS places (model TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID;
"""


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

    Losing it costs nothing but time: what cannot be read is computed again, and a folder that cannot be written is
    passed over. Rows are written as they are computed, so that an interrupted run goes on where it was.

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
            with closing(self._connect(read_only=True)) as database:
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
                    if row:
                        rows[image] = (np.frombuffer(row[0], "<f8").astype(np.float64), float(row[1]))
                return KnownRows(int(owner[1]), rows)
        except (sqlite3.Error, ValueError):
            return None

    def put(self, key: ProfileKey, parameters: int, rows: Mapping[str, tuple[Float64Array, float]]) -> None:
        """Remembers the rows of some images."""
        try:
            with closing(self._connect()) as database, database:
                database.execute(
                    "INSERT OR IGNORE INTO sets (model, revision, n_steps, precision, blocks, parameters) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (*_columns(key), parameters),
                )
                database.executemany(
                    "INSERT OR REPLACE INTO rows SELECT id, ?, ?, ? FROM sets "
                    "WHERE model = ? AND revision = ? AND n_steps = ? AND precision = ? AND blocks = ?",
                    [
                        (image, vector.astype("<f8").tobytes(), gap, *_columns(key))
                        for image, (vector, gap) in rows.items()
                    ],
                )
        except sqlite3.Error:
            return

    def forget(self, model: str) -> None:
        """Drops everything about a model."""
        try:
            with closing(self._connect()) as database, database:
                database.execute("DELETE FROM rows WHERE owner IN (SELECT id FROM sets WHERE model = ?)", (model,))
                database.execute("DELETE FROM sets WHERE model = ?", (model,))
        except sqlite3.Error:
            return

    def remember_place(self, model: str, place: str) -> None:
        """Remembers where on this machine a model was found."""
        try:
            with closing(self._connect()) as database, database:
                database.execute("INSERT OR REPLACE INTO places VALUES (?, ?)", (model, place))
        except sqlite3.Error:
            return

    def place(self, model: str) -> str | None:
        """Where on this machine a model was found, None if nobody remembers."""
        if not self._path.is_file():
            return None
        try:
            with closing(self._connect(read_only=True)) as database:
                row = database.execute("SELECT place FROM places WHERE model = ?", (model,)).fetchone()
        except sqlite3.Error:
            return None
        return str(row[0]) if row else None

    def _connect(self, read_only: bool = False) -> sqlite3.Connection:
        if read_only:
            return sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=ro", uri=True, timeout=5)
        database = sqlite3.connect(self._path, timeout=5)
        try:
            database.executescript(_SCHEMA)
        except sqlite3.Error:
            database.close()
            raise
        return database


def _columns(key: ProfileKey) -> tuple[str, str, int, str, str]:
    return key.model, key.revision, key.n_steps, key.precision, json.dumps(list(key.blocks))
