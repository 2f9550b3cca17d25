"""Images whose class is known: example images for queries, and what says which concepts have a probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.descriptors import FloatArray
from engine.errors import InputError
from engine.index import Index
from engine.probes import hash_file
from query.evaluate.inputfiles import named, read_csv
from query.evaluate.zoo import Zoo

_CLASS_COLUMNS = ("class", "class_index")


@dataclass(frozen=True)
class ImageLabels:
    """The classes of m images: enough to say which classes have a probe.

    Attributes:
        classes: m classes.
        probe: Position of each in ``Zoo.probes``, or -1; int64 ``[m]``.
    """

    classes: tuple[str, ...]
    probe: npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelledImages(ImageLabels):
    """m images whose class is known.

    Attributes:
        vectors: Normalised embeddings, float32 ``[m, d]``.
    """

    vectors: FloatArray


def read_labels(path: Path, index: Index) -> ImageLabels:
    """Reads which image is of which class; nothing is embedded.

    Args:
        path: CSV with the columns ``file`` (relative to the CSV itself) and ``class`` or ``class_index``.
        index: An image with the very content of one of its probes is that probe.

    Raises:
        InputError: The file cannot be read, is empty or has a row without image or class; the message says where.
    """
    return _read(path, index)[1]


def read_images(path: Path, index: Index, encode: Callable[[Sequence[Path]], FloatArray]) -> LabelledImages:
    """Reads labelled images.

    Args:
        path: See ``read_labels``.
        index: A probe takes its embedding from here.
        encode: Embeds the images that are no probes, float32 ``[m, d]`` of length 1; not called without any.

    Raises:
        InputError: See ``read_labels``.
        ProbeError: An image cannot be decoded.
    """
    files, labels = _read(path, index)
    vectors = np.asarray(index.probe_embeddings)[labels.probe]
    others = np.nonzero(labels.probe < 0)[0]
    if len(others):
        vectors[others] = encode([files[i] for i in others])
    return LabelledImages(labels.classes, labels.probe, vectors)


def check_classes(images: ImageLabels, zoo: Zoo, path: Path) -> None:
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


def seen_classes(images: ImageLabels, chosen: npt.NDArray[np.integer] | None = None) -> frozenset[str]:
    """Classes with a labelled probe.

    Args:
        images: The images.
        chosen: Positions of the probes that count; None for all.
    """
    there = images.probe >= 0 if chosen is None else np.isin(images.probe, chosen)
    return frozenset(images.classes[i] for i in np.nonzero(there)[0])


def _read(path: Path, index: Index) -> tuple[list[Path], ImageLabels]:
    """The files of labelled images, and their labels."""
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
    return files, ImageLabels(tuple(classes), np.asarray(probe, dtype=np.int64))
