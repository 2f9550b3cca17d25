"""Images whose class is known: example images for queries, and what says which concepts have a probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from engine.descriptors import FloatArray
from engine.errors import InputError
from engine.index import Index
from engine.probes import hash_file
from query.evaluate.inputfiles import named, read_csv
from query.evaluate.retrieval import LabelledImages
from query.evaluate.zoo import Zoo

_CLASS_COLUMNS = ("class", "class_index")


def read_images(path: Path, index: Index, encode: Callable[[Sequence[Path]], FloatArray]) -> LabelledImages:
    """Reads labelled images.

    Args:
        path: CSV with the columns ``file`` (relative to the CSV itself) and ``class`` or ``class_index``.
        index: An image with the very content of one of its probes is that probe and takes its embedding.
        encode: Embeds the images that are no probes, float32 ``[m, d]`` of length 1; not called without any.

    Raises:
        InputError: The file cannot be read, is empty or has a row without image or class; the message says where.
        ProbeError: An image cannot be decoded.
    """
    rows = read_csv(path, "images file", ("file",))
    if not rows:
        raise InputError(f"the images file {path} is empty: write one image and its class a line")
    column = next((name for name in _CLASS_COLUMNS if name in rows[0][1]), None)
    if column is None:
        raise InputError(f"the images file {path} has no column class: its first line must name the columns")
    places: dict[str, int] = {}
    for place, (_, sha256) in enumerate(index.probe_files):
        places.setdefault(sha256, place)
    files, classes, probe = [], [], []
    for line, row in rows:
        where = f"the images file {path}, line {line}"
        if not row["file"].strip() or not row[column].strip():
            raise InputError(f"{where}: it needs a file and a class")
        file = path.parent / row["file"].strip()
        try:
            probe.append(places.get(hash_file(file), -1))
        except OSError as error:
            raise InputError(f"{where}: the image {file} cannot be read: {error.strerror or error}") from error
        files.append(file)
        classes.append(row[column].strip())
    positions = np.asarray(probe, dtype=np.int64)
    vectors = np.asarray(index.probe_embeddings)[positions]
    others = np.nonzero(positions < 0)[0]
    if len(others):
        vectors[others] = encode([files[i] for i in others])
    return LabelledImages(vectors, tuple(classes), positions)


def check_classes(images: LabelledImages, zoo: Zoo, path: Path) -> None:
    """Refuses images that have nothing to do with the truth: every concept would be reported as unseen.

    Args:
        images: The images.
        zoo: What is known about the outputs.
        path: The images' file, for the error.

    Raises:
        InputError: No image is of a class that an output stands for.
    """
    if not set(images.classes) & frozenset().union(*zoo.classes):
        raise InputError(
            f"no image of {path} is of a class that the truth knows ({named(list(dict.fromkeys(images.classes)))}): "
            "classes must be written as in the truth file"
        )


def seen_classes(images: LabelledImages) -> frozenset[str]:
    """Classes with a labelled probe."""
    return frozenset(images.classes[i] for i in np.nonzero(images.probe >= 0)[0])
