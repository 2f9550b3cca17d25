"""Phrases that are embedded while nobody waits: the vocabulary that outputs are named with, then labels."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread

import numpy as np

from engine.descriptors import FloatArray
from engine.errors import ConceptError, HubhoundError, InputError, one_line
from engine.index import Texts
from query.api.errors import without_paths
from query.api.imports import import_models
from query.api.memory import Place, PlacedCache
from query.vocabulary import default_vocabulary

log = logging.getLogger("hubhound.serve")

PIECE = 8
"""Phrases given to the encoder at once: a search with a new text waits for no more than so many."""

PAUSE = 0.25
"""Share of a piece's time for which the encoder and the cores are left to others afterwards."""

MOST_WANTED = 100_000
"""Phrases of labels that wait; further ones are forgotten, and asked for again when their outputs are."""

_CHUNK = 512  # phrases looked up at once


@dataclass(frozen=True)
class Prepared:
    """A vocabulary and its embeddings.

    Attributes:
        phrases: Those that the encoder knows a part of, at least 2.
        vectors: float32 ``[V, d]``.
    """

    phrases: tuple[str, ...]
    vectors: FloatArray


class Phrases:
    """Embeds in a thread of its own, in small pieces; what was embedded is in the index's file from then on.

    Past the service's memory, which is for what people ask.

    Args:
        path: The index's file of embeddings.
        vocabulary: Phrases, cleaned; None for the class names of ImageNet-21k.
        encode: Embeds texts that no request waits for; blocks.
        place: The index's folder; by default as it is now.

    Attributes:
        done: Phrases of the vocabulary that are embedded.
        total: All of them, 0 before they are known.
        prepared: The vocabulary, once it is embedded.
        failure: When it last failed, as ``time.monotonic`` says, and why.
        unknown: Phrases of which the encoder knows no part.
    """

    def __init__(self, path: Path, vocabulary: Sequence[str] | None, encode: Texts, place: Place | None = None) -> None:
        self._cache = PlacedCache(path, place)
        self._vocabulary = vocabulary
        self._encode = encode
        self._wake = Condition()
        self._wanted: dict[str, None] = {}
        self._thread: Thread | None = None
        self._ended = False
        self.done, self.total = 0, len(vocabulary or ())
        self.prepared: Prepared | None = None
        self.failure: tuple[float, str] | None = None
        self.unknown: set[str] = set()

    def start(self) -> None:
        """Starts the thread, unless it runs."""
        with self._wake:
            if self._ended or (self._thread is not None and self._thread.is_alive()):
                return
            self.failure = None
            self._thread = Thread(target=self._run, name="hubhound-names", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the piece it is at."""
        with self._wake:
            self._ended = True
            self._wake.notify_all()

    def want(self, phrases: Iterable[str]) -> None:
        """Asks for phrases to be embedded some time later."""
        with self._wake:
            for phrase in phrases:
                if len(self._wanted) >= MOST_WANTED:
                    break
                self._wanted.setdefault(phrase)
            self._wake.notify_all()

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Embeddings of texts; those that turned out to be unknown are not tried again.

        Raises:
            ConceptError: The encoder knows no part of one of them.
            EncoderError: It cannot be loaded.
        """
        for text in texts:
            if text in self.unknown:
                raise ConceptError(f"the encoder knows no part of {text!r}", text)
        try:
            return self._encode(texts)
        except ConceptError as error:
            if error.concept in texts:
                self.unknown.add(error.concept)
            raise

    def _run(self) -> None:
        try:
            if self.prepared is None:
                self._prepare()
            while self._await_wanted():
                self._embed_wanted()
        except (CancelledError, asyncio.CancelledError):  # the service is ending
            return
        except Exception as error:  # libraries below raise anything, and names are not worth a service
            if self._ended:
                return
            told = str(error) if isinstance(error, HubhoundError) else f"{type(error).__name__}: {error}"
            self.failure = time.monotonic(), without_paths(one_line(told), {})
            log.error("names of outputs cannot be prepared: %s", told)

    def _prepare(self) -> None:
        if self._vocabulary is None:
            import_models()  # the list of names comes with one of them
        phrases = self._vocabulary or default_vocabulary()
        self.total = len(phrases)
        names: list[str] = []
        vectors: list[FloatArray] = []
        for start in range(0, len(phrases), _CHUNK):
            part = phrases[start : start + _CHUNK]
            found = self._cache.get(part)
            new = [phrase for phrase in part if phrase not in found]
            self.done = start + len(part) - len(new)
            for at in range(0, len(new), PIECE):
                piece = new[at : at + PIECE]
                found |= self._embed(piece)
                self.done += len(piece)
            known = [phrase for phrase in part if phrase in found]
            names += known
            vectors += [found[phrase] for phrase in known]
        if len(names) < 2:
            raise InputError("the encoder knows fewer than 2 phrases of the vocabulary: give another --vocabulary")
        self.prepared = Prepared(tuple(names), np.stack(vectors))
        log.info("names are ready: %d of %d phrases of the vocabulary", len(names), len(phrases))

    def _await_wanted(self) -> bool:
        """Waits until phrases are wanted; False when it is time to end."""
        with self._wake:
            self._wake.wait_for(lambda: self._ended or self._wanted)
            return not self._ended

    def _embed_wanted(self) -> None:
        with self._wake:
            some = list(self._wanted)[:_CHUNK]
        found = self._cache.get(some)
        new = [phrase for phrase in some if phrase not in found and phrase not in self.unknown]
        for at in range(0, len(new), PIECE):
            self._embed(new[at : at + PIECE])
        with self._wake:
            for phrase in some:
                self._wanted.pop(phrase, None)

    def _embed(self, phrases: Sequence[str]) -> dict[str, FloatArray]:
        """Embeds a piece and remembers it; pauses.

        Raises:
            CancelledError: It is time to end.
        """
        begun = time.monotonic()
        found = self._encoded(phrases)
        self._cache.put(found)
        with self._wake:
            if self._wake.wait_for(lambda: self._ended, PAUSE * (time.monotonic() - begun)):
                raise CancelledError
        return found

    def _encoded(self, phrases: Sequence[str]) -> dict[str, FloatArray]:
        """Embeddings of those phrases of which the encoder knows a part."""
        try:
            return dict(zip(phrases, self.encode(phrases), strict=True))
        except ConceptError:
            if len(phrases) == 1:
                return {}
        return {phrase: vector for one in phrases for phrase, vector in self._encoded([one]).items()}
