"""Embedding the texts of an evaluation: thousands of them, each once, with any prompt templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from engine.concepts import DEFAULT_TEMPLATES
from engine.descriptors import FloatArray
from engine.encoder import ConceptEncoder
from engine.errors import InputError
from engine.index import Index
from engine.probes import open_image

ONE_TEMPLATE = (DEFAULT_TEMPLATES[0],)
"""What ``one`` stands for."""

_CHUNK = 256  # texts between two signs of life

_DIGITS = 9  # Python reads no number of thousands of digits

Advance = Callable[[int, int], None]


class LazyEncoder:
    """An index's encoder, loaded when it is first needed, once.

    Args:
        index: The index.
        device: Where it runs.
    """

    def __init__(self, index: Index, device: str = "auto") -> None:
        self._index = index
        self._device = device

    @cached_property
    def loaded(self) -> ConceptEncoder:
        """The encoder.

        Raises:
            EncoderError: It cannot be loaded.
            IndexMismatchError: It is not the one that the index was made with.
        """
        return self._index.load_encoder(self._device)

    def images(self, files: Sequence[Path], progress: Advance | None = None) -> FloatArray:
        """Embeddings of image files, float32 ``[m, d]``.

        Raises:
            ProbeError: An image cannot be read.
        """
        total = len(files)
        advance = (lambda done: progress(done, total)) if progress else None
        return self.loaded.encode_images((open_image(file) for file in files), total, advance)


class TextEmbedder:
    """Embeds texts with an index's encoder and some prompt templates; what was embedded once is remembered.

    With the index's own templates the memory is that of the index, so another run needs no encoder; with others it ends
    with this object.

    Args:
        index: The index.
        encoder: Its encoder.
        templates: None for the index's own.
        progress: Called with (texts done, texts in all) where texts are not remembered.
    """

    def __init__(
        self,
        index: Index,
        encoder: LazyEncoder,
        templates: tuple[str, ...] | None = None,
        progress: Advance | None = None,
    ) -> None:
        own = index.manifest.encoder.templates
        self.templates = own if templates is None else templates
        self._own = self.templates == own
        self._index = index
        self._encoder = encoder
        self._progress = progress
        self._known: dict[str, FloatArray] = {}

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """Embeddings of texts.

        Args:
            texts: c texts, cleaned, at least one.

        Returns:
            float32 ``[c, d]``, rows of length 1.

        Raises:
            ConceptError: The encoder knows no part of a text.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for start in range(0, len(new), _CHUNK):
            chunk = new[start : start + _CHUNK]
            vectors = self._index.embed(chunk, self._encode) if self._own else self._encode(chunk)
            self._known |= dict(zip(chunk, vectors, strict=True))
            if self._progress:
                self._progress(start + len(chunk), len(new))
        return np.stack([self._known[text] for text in texts])

    def _encode(self, texts: Sequence[str]) -> FloatArray:
        return self._encoder.loaded.encode_texts(texts, self.templates)


def parse_templates(given: Sequence[str], index: Index) -> tuple[str, ...]:
    """Prompt templates as a command line gives them.

    Args:
        given: ``one``, ``index`` (the index's own), or templates with ``{}`` for the concept.
        index: The index.

    Raises:
        InputError: A template has no ``{}``.
    """
    made: list[str] = []
    for entry in given:
        if entry == "one":
            made += ONE_TEMPLATE
        elif entry == "index":
            made += index.manifest.encoder.templates
        elif "{}" in entry:
            made.append(entry)
        else:
            raise InputError(f"templates {entry!r}: use one, index or a template with {{}} for the concept")
    return tuple(dict.fromkeys(made))


def template_cases(values: Sequence[str], index: Index) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The cases of a sweep over templates.

    Args:
        values: Numbers, for so many of the default templates, or what ``parse_templates`` takes.
        index: The index.

    Returns:
        Name and templates of each case.

    Raises:
        InputError: A value is neither, or a number is larger than there are templates.
    """
    cases = []
    for value in values:
        if not value.isdecimal():
            cases.append((value, parse_templates([value], index)))
            continue
        if len(value) > _DIGITS:
            raise InputError(f"a number of {len(value)} digits: there are {len(DEFAULT_TEMPLATES)} templates")
        if not 1 <= int(value) <= len(DEFAULT_TEMPLATES):
            raise InputError(f"{value} templates: there are {len(DEFAULT_TEMPLATES)}, take 1 to that many")
        cases.append((value, DEFAULT_TEMPLATES[: int(value)]))
    return tuple(cases)
