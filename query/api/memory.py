"""The service's memory of embeddings: the most recent in memory, all of them in the index's file."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from threading import Lock

from engine.concepts import ConceptCache
from engine.descriptors import FloatArray


class Place:
    """The folder that an index was opened in: another one may come to lie where it was.

    Args:
        folder: Of the index.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.renew()

    def renew(self) -> None:
        """The folder that is there now is the one."""
        self._known = self._now()

    def same(self) -> bool:
        """Whether it is still the one; what is kept beside another index must not be mixed up with ours."""
        return self._known is not None and self._now() == self._known

    def _now(self) -> tuple[int, int] | None:
        try:
            found = self._folder.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


class PlacedCache(ConceptCache):
    """A ``ConceptCache`` that is left alone when its index is no longer the one that was opened.

    Args:
        path: The index's file of embeddings; it need not exist.
        place: The index's folder; by default as it is now.
    """

    def __init__(self, path: Path, place: Place | None = None) -> None:
        super().__init__(path)
        self._place = place or Place(path.parent)

    def get(self, texts: Sequence[str]) -> dict[str, FloatArray]:
        """Embeddings of those texts that are known, float32 ``[d]`` each."""
        return super().get(texts) if self._place.same() else {}

    def put(self, vectors: Mapping[str, FloatArray]) -> None:
        """Remembers embeddings."""
        if self._place.same():
            super().put(vectors)


class ConceptMemory(PlacedCache):
    """A ``ConceptCache`` that answers from memory where it can; several threads may use it.

    Args:
        path: The index's file of embeddings; it need not exist.
        most: Embeddings kept in memory, >= 1; those that were not used for longest go first.
        place: The index's folder; by default as it is now.
    """

    def __init__(self, path: Path, most: int, place: Place | None = None) -> None:
        super().__init__(path, place)
        self._most = most
        self._kept: OrderedDict[str, FloatArray] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def missing(self, texts: Iterable[str]) -> list[str]:
        """The distinct texts that are not in memory, in their order; the file is not looked at."""
        with self._lock:
            new = []
            for text in dict.fromkeys(texts):
                if text in self._kept:
                    self._kept.move_to_end(text)
                else:
                    new.append(text)
            return new

    def get(self, texts: Sequence[str]) -> dict[str, FloatArray]:
        """Embeddings of those texts that are known, float32 ``[d]`` each, not to be written to."""
        found: dict[str, FloatArray] = {}
        with self._lock:
            for text in texts:
                vector = self._kept.get(text)
                if vector is not None:
                    self._kept.move_to_end(text)
                    found[text] = vector
        if len(found) < len(texts):
            read = super().get([text for text in texts if text not in found])
            self.keep(read)
            found |= read
        return found

    def put(self, vectors: Mapping[str, FloatArray]) -> None:
        """Remembers embeddings in memory and in the file."""
        self.keep(vectors)
        self.write(vectors)

    def keep(self, vectors: Mapping[str, FloatArray]) -> None:
        """Remembers embeddings in memory only."""
        with self._lock:
            for text, vector in vectors.items():
                self._kept[text] = vector
                self._kept.move_to_end(text)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def write(self, vectors: Mapping[str, FloatArray]) -> None:
        """Remembers embeddings in the file only; takes milliseconds."""
        if vectors:
            super().put(vectors)


def image_key(content: bytes) -> str:
    """Under which an image's embedding is remembered, as searches do it: no text begins so."""
    return "\0image " + hashlib.sha256(content).hexdigest()
