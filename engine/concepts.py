"""The index's memory of texts: a concept asked before needs no encoder."""

from __future__ import annotations

import sqlite3
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from engine.descriptors import FloatArray
from engine.errors import ConceptError

DEFAULT_TEMPLATES = ("a photo of a {}", "{}", "a {} in the scene", "an image of {}", "a close-up photo of a {}")
"""Prompt templates whose embeddings are averaged."""


class ConceptCache:
    """Embeddings of texts in a small SQLite file, one encoder and one list of templates a file.

    Losing it costs nothing but time, so every failure to read or write it (a read-only folder, a full disk, a damaged
    file) is passed over: the text is encoded again.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, texts: Sequence[str]) -> dict[str, FloatArray]:
        """Embeddings of those texts that are known, float32 ``[d]`` each."""
        found: dict[str, FloatArray] = {}
        if not self._path.is_file():
            return found
        try:
            connection = sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=ro", uri=True, timeout=2)
            with closing(connection) as database:
                for text in texts:
                    row = database.execute("SELECT vector FROM concepts WHERE text = ?", (text,)).fetchone()
                    if row:
                        found[text] = np.frombuffer(row[0], dtype="<f4")
        except sqlite3.Error:
            return found
        return found

    def put(self, vectors: Mapping[str, FloatArray]) -> None:
        """Remembers embeddings."""
        try:
            with closing(sqlite3.connect(self._path, timeout=2)) as database, database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS concepts (text TEXT PRIMARY KEY, vector BLOB) WITHOUT ROWID"
                )
                database.executemany(
                    "INSERT OR REPLACE INTO concepts VALUES (?, ?)",
                    [(text, vector.astype("<f4").tobytes()) for text, vector in vectors.items()],
                )
        except sqlite3.Error:
            return


def clean_concept(text: str, longest: int = 1_000) -> str:
    """A concept as it is searched for: Unicode composed, white space folded.

    Args:
        text: As given.
        longest: Characters allowed.

    Raises:
        ConceptError: Nothing is left, or too much.
    """
    cleaned = " ".join(unicodedata.normalize("NFC", text).split())
    if not cleaned:
        raise ConceptError("a concept is empty: write a word or a phrase", text)
    if len(cleaned) > longest:
        raise ConceptError(
            f"a concept has {len(cleaned)} characters (it begins {cleaned[:30]!r}): at most {longest} are possible",
            text,
        )
    return cleaned
