"""Vocabularies: the phrases that a model's outputs may be named with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.concepts import clean_concept
from engine.descriptors import FloatArray
from engine.errors import InputError

if TYPE_CHECKING:
    from engine.encoder import ConceptEncoder
    from engine.index import Index, Texts

CHUNK = 512
"""Phrases embedded before they are remembered: what a run that is killed loses at most."""

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


def default_vocabulary() -> tuple[str, ...]:
    """The class names of ImageNet-21k, first synonym each: about 19,000."""
    from engine.calibration import imagenet21k_names

    return clean_vocabulary(imagenet21k_names())


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """A vocabulary from a UTF-8 file with one phrase a line.

    Args:
        path: The file; blank lines and repeated phrases are dropped.

    Raises:
        InputError: The file cannot be read, a phrase is too long, or fewer than 2 are left.
    """
    from engine.textfiles import read_lines

    try:
        return clean_vocabulary(read_lines(path, "vocabulary"))
    except InputError as error:
        raise InputError(f"the vocabulary file {path} cannot be used: {error}") from error


def clean_vocabulary(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct phrases as they are searched for, in the order given.

    Raises:
        ConceptError: A phrase is empty or too long.
        InputError: There are fewer than 2.
    """
    distinct = tuple(dict.fromkeys(clean_concept(name) for name in names))
    if len(distinct) < 2:
        raise InputError(f"a vocabulary needs at least 2 different phrases: this one has {len(distinct)}")
    return distinct


def label_phrases(label: str | None) -> tuple[str, ...]:
    """What a declared label may mean: all of it, its first synonym, what stands before and in parentheses.

    Returns:
        Distinct phrases; none where the label is missing, a placeholder such as ``LABEL_3``, or has no word.
    """
    from indexers.loaders.labels import tidy

    (text,) = tidy({0: label}, 1)
    if text is None:
        return ()
    text = text.replace("_", " ")
    parts = [text, text.split(",")[0], *re.split(r"[()]", text)]
    phrases = dict.fromkeys(" ".join(part.split()) for part in parts)
    return tuple(phrase for phrase in phrases if re.search(r"[^\W\d_]{2}", phrase) and len(phrase) <= 1_000)


def encoder_once(index: Index) -> Texts:
    """Embeds texts with the index's encoder, which is loaded when the first text comes and kept."""
    loaded: list[ConceptEncoder] = []

    def encode(texts: Sequence[str]) -> FloatArray:
        if not loaded:
            loaded.append(index.load_encoder())
        return loaded[0].encode_texts(texts, index.manifest.encoder.templates)

    return encode


def embed_vocabulary(
    index: Index, names: Sequence[str], encode: Texts | None = None, progress: Progress | None = None
) -> FloatArray:
    """Embeddings of a vocabulary; what was embedded before is not embedded again, also after a run that was killed.

    Args:
        index: Its memory is read and extended.
        names: V phrases, cleaned.
        encode: Embeds what is new; by default the index's encoder, loaded once and only if something is new.
        progress: Called with the phrases done and V.

    Returns:
        float32 ``[V, d]``.

    Raises:
        ConceptError: The encoder's vocabulary knows no part of a phrase.
        EncoderError: The encoder is needed and cannot be loaded.
    """
    encode = encode or encoder_once(index)
    vectors = np.empty((len(names), index.manifest.encoder.dimension), np.float32)
    for start in range(0, len(names), CHUNK):
        part = names[start : start + CHUNK]
        vectors[start : start + len(part)] = index.embed(part, encode)
        if progress:
            progress(start + len(part), len(names))
    return vectors
