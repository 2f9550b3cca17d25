"""The encoder and the one thread that uses it: texts that wait at the same time are encoded together.

Texts of requests go first, then images, then what is embedded in the background (vocabularies, labels). Images and the
background come in pieces, so that texts never wait for more than one of them.
"""

from __future__ import annotations

import time
from asyncio import gather, wrap_future
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition, Thread
from typing import Protocol

import numpy as np
from PIL import Image

from engine.descriptors import FloatArray
from engine.errors import EncoderError, HubhoundError, InputError, ProbeError, one_line
from engine.probes import open_image
from query.api.admission import hold_while
from query.api.memory import ConceptMemory

RETRY_S = 10.0
"""So long an encoder that could not be loaded is not tried again."""

IMAGES = 4
"""Images encoded at once: some tenths of a second on two cores."""

_FIRST = "photograph"  # what a new encoder is tried with

_NOTHING: FloatArray = np.zeros((0, 0), np.float32)


class Encoder(Protocol):
    """What is asked of ``engine.encoder.ConceptEncoder``."""

    def encode_texts(self, texts: Sequence[str], templates: Sequence[str]) -> FloatArray:
        """Embeddings of texts, float32 ``[c, d]``."""

    def encode_images(self, images: Iterator[Image.Image], count: int) -> FloatArray:
        """Embeddings of images, float32 ``[m, d]``."""


@dataclass
class _Ask:
    """What waits for the encoder: texts, images, or neither where it shall only be loaded."""

    texts: tuple[str, ...] = ()
    images: tuple[Path, ...] = ()
    remember: bool = False
    answer: Future[FloatArray] = field(default_factory=Future)


class TextBatches:
    """Encodes in one thread of its own.

    Args:
        load: Loads the encoder; called in the thread when the first text or image comes, or with ``preload``.
        spec: Of the encoder, for messages.
        templates: Prompt templates.
        memory: What is looked into before, and remembers.
        most: Texts encoded at once, >= 1; a request with more has a call to itself.
        told: Called with the number of texts of each call.
    """

    def __init__(
        self,
        load: Callable[[], Encoder],
        spec: str,
        templates: Sequence[str],
        memory: ConceptMemory,
        most: int,
        told: Callable[[int], None] | None = None,
    ) -> None:
        self._load = load
        self._spec = spec
        self._templates = tuple(templates)
        self._memory = memory
        self._most = most
        self._told = told
        self._encoder: Encoder | None = None
        self._failure: tuple[float, EncoderError] | None = None
        self._wake = Condition()
        self._urgent: deque[_Ask] = deque()
        self._images: deque[_Ask] = deque()
        self._patient: deque[_Ask] = deque()
        self._thread: Thread | None = None
        self._ended = False

    @property
    def loaded(self) -> bool:
        """Whether the encoder is there."""
        return self._encoder is not None

    async def preload(self) -> None:
        """Loads the encoder and encodes one text.

        Raises:
            EncoderError: It cannot be loaded.
        """
        ask = _Ask()
        self._submit(self._images, ask)
        await wrap_future(ask.answer)

    async def embed(self, texts: Sequence[str]) -> None:
        """Puts embeddings of texts into memory, together with whatever else waits.

        Args:
            texts: Cleaned.

        Raises:
            ConceptError: The encoder's vocabulary knows no part of one of them.
            EncoderError: It cannot be loaded.
        """
        ask = _Ask(texts=tuple(dict.fromkeys(texts)), remember=True)
        self._submit(self._urgent, ask)
        hold_while(ask.answer)
        await wrap_future(ask.answer)

    async def see(self, paths: Sequence[Path]) -> FloatArray:
        """Embeddings of image files, float32 ``[m, d]``; remembers nothing.

        Raises:
            InputError: A file is no image.
            EncoderError: See ``embed``.
        """
        asks = self._pieces(paths)
        for ask in asks:
            hold_while(ask.answer)
        try:
            return np.concatenate(await gather(*(wrap_future(ask.answer) for ask in asks)))
        finally:  # of the others, where one cannot be read
            _give_up(asks)

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Embeddings of texts that nobody waits for, float32 ``[c, d]``; blocks, and remembers nothing.

        Raises:
            ConceptError: See ``embed``.
            EncoderError: See ``embed``.
        """
        asks = [_Ask(texts=tuple(texts[at : at + self._most])) for at in range(0, len(texts), self._most)]
        for ask in asks:
            self._submit(self._patient, ask)
        return np.concatenate([ask.answer.result() for ask in asks])

    def encode_images(self, paths: Sequence[Path]) -> FloatArray:
        """As ``see``; blocks."""
        asks = self._pieces(paths)
        try:
            return np.concatenate([ask.answer.result() for ask in asks])
        finally:
            _give_up(asks)

    def start(self) -> None:
        """Starts the thread."""
        if self._thread is None:
            # A daemon: a forward pass cannot be interrupted, and the end of the process does not wait for it.
            self._thread = Thread(target=self._run, name="hubhound-encoder", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread after what it is doing; what still waits is cancelled."""
        with self._wake:
            self._ended = True
            for queue in (self._urgent, self._images, self._patient):
                while queue:
                    queue.popleft().answer.cancel()
            self._wake.notify_all()

    def _pieces(self, paths: Sequence[Path]) -> list[_Ask]:
        asks = [_Ask(images=tuple(paths[at : at + IMAGES])) for at in range(0, len(paths), IMAGES)]
        self._submit(self._images, *asks)
        return asks

    def _submit(self, queue: deque[_Ask], *asks: _Ask) -> None:
        with self._wake:
            if self._ended:
                raise EncoderError("the service is ending: ask again later", self._spec)
            queue.extend(asks)
            self._wake.notify_all()

    def _run(self) -> None:
        while asks := self._next():
            try:
                encoder = self._ready()
                if asks[0].images:
                    asks[0].answer.set_result(encoder.encode_images(_opened(asks[0].images), len(asks[0].images)))
                elif asks[0].texts:
                    self._texts(encoder, asks)
                else:
                    encoder.encode_texts([_FIRST], self._templates)
                    asks[0].answer.set_result(_NOTHING)
            except Exception as error:  # whatever it is, the thread goes on and those who wait are told
                for ask in asks:
                    if not ask.answer.done():
                        ask.answer.set_exception(error)

    def _next(self) -> list[_Ask]:
        """What is done next, as soon as there is something; nothing when it is time to end."""
        with self._wake:
            while True:
                self._wake.wait_for(lambda: self._ended or self._urgent or self._images or self._patient)
                if self._ended:
                    return []
                if taken := self._waiting():
                    return taken

    def _waiting(self) -> list[_Ask]:
        if not self._urgent:
            queue = self._images or self._patient
            ask = queue.popleft()
            return [ask] if ask.answer.set_running_or_notify_cancel() else []
        taken: list[_Ask] = []
        texts: set[str] = set()
        while self._urgent and (not taken or len(texts.union(self._urgent[0].texts)) <= self._most):
            ask = self._urgent.popleft()
            if ask.answer.set_running_or_notify_cancel():
                taken.append(ask)
                texts.update(ask.texts)
        return taken

    def _ready(self) -> Encoder:
        """The encoder, loaded if it is not there.

        Raises:
            EncoderError: It cannot be loaded, or could not a moment ago.
        """
        if self._encoder is not None:
            return self._encoder
        if self._failure and time.monotonic() - self._failure[0] < RETRY_S:
            raise self._failure[1]
        try:
            self._encoder = self._load()
        except Exception as error:  # the libraries below raise anything
            reason = str(error) if isinstance(error, HubhoundError) else f"{type(error).__name__}: {error}"
            failure = error if isinstance(error, EncoderError) else EncoderError(one_line(reason), self._spec)
            self._failure = time.monotonic(), failure
            raise failure from error
        self._failure = None
        return self._encoder

    def _texts(self, encoder: Encoder, asks: Sequence[_Ask]) -> None:
        """Encodes what several asks have that is not known by now; one that fails is no harm to the others."""
        patient = len(asks) == 1 and asks[0].remember is False
        wanted = list(dict.fromkeys(text for ask in asks for text in ask.texts))
        new = wanted if patient else self._memory.missing(wanted)
        found, failed = self._encoded(encoder, new)
        if not patient:
            self._memory.keep(found)
        for ask in asks:
            error = next((failed[text] for text in ask.texts if text in failed), None)
            if error:
                ask.answer.set_exception(error)
            else:
                ask.answer.set_result(np.stack([found[text] for text in ask.texts]) if patient else _NOTHING)
        if not patient:
            self._memory.write(found)

    def _encoded(self, encoder: Encoder, texts: Sequence[str]) -> tuple[dict[str, FloatArray], dict[str, Exception]]:
        if not texts:
            return {}, {}
        if self._told:
            self._told(len(texts))
        try:
            return dict(zip(texts, encoder.encode_texts(texts, self._templates), strict=True)), {}
        except Exception as error:
            if len(texts) == 1:
                return {}, {texts[0]: error}
        found: dict[str, FloatArray] = {}
        failed: dict[str, Exception] = {}
        for text in texts:  # one of them cannot be encoded: find out which
            one, wrong = self._encoded(encoder, [text])
            found |= one
            failed |= wrong
        return found, failed


def _give_up(asks: Sequence[_Ask]) -> None:
    for ask in asks:
        ask.answer.cancel()


def _opened(paths: Sequence[Path]) -> Iterator[Image.Image]:
    for path in paths:
        try:
            yield open_image(path)
        except ProbeError as error:
            raise InputError(str(error)) from error
