"""Declared labels as a second witness: what an output is called, compared with the concept in the encoder's space.

A label is calibrated like an output: its margin is ``(cos - g) / q`` with g the mean of the k largest and q the
standard deviation of its similarities to the background's words. Nobody vouches for a label, so beside the probes it
only counts where they do not contradict it: where the output's own label has a margin above 0 among the probes, too.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.calibration import Background
from engine.concepts import clean_concept
from engine.descriptors import FloatArray, normalise
from engine.distance import Method
from engine.errors import ConceptError, IndexDamagedError
from engine.files import new_folder, read_array, write_array
from engine.index import Index, Texts
from engine.scan import exact_margins
from engine.snapshot import Snapshot
from query.vocabulary import Progress, embed_vocabulary, encoder_once, label_phrases

WEIGHT = 2.0
"""How much a margin of the label counts beside one of the probes, with ``both``."""

CEILING = 4.0
"""A label's margin counts at most so much beside the probes."""

_BLOCK = 256  # labels described at once
_KEEP = 3  # generations of labels that are remembered beside the new one


@dataclass(frozen=True)
class LabelMargins:
    """What labels say about one concept.

    Attributes:
        margin: Margin of each row's label, float64 ``[L]``; nan where there is no label of use.
        trusted: Whether the probes agree that the output is what its label says, bool ``[L]``.
    """

    margin: npt.NDArray[np.float64]
    trusted: npt.NDArray[np.bool_]

    @property
    def bonus(self) -> npt.NDArray[np.float64]:
        """What is added to the probes' margin, float64 ``[L]``, >= 0: a label can only speak for an output."""
        usable = self.trusted & ~np.isnan(self.margin)
        return np.where(usable, WEIGHT * np.clip(np.nan_to_num(self.margin), 0, CEILING), 0.0)


class LabelWitness:
    """The labels of a snapshot in the encoder's space.

    Args:
        index: The index; remembers embeddings of labels where its folder can be written.
        snapshot: The generation that is searched.
        background: The one that its constants were made with.
        method: By which the probes vouch for labels.
        encode: Embeds labels that are new; by default the index's encoder is loaded for it.
        progress: Called with the labels done and all.
    """

    def __init__(
        self,
        index: Index,
        snapshot: Snapshot,
        background: Background,
        method: Method,
        encode: Texts | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._index, self._snapshot, self._background = index, snapshot, background
        self._method: Method = method
        place = _cache_place(index.folder, snapshot, method)
        remembered = _remembered(place, snapshot)
        if remembered:
            self._vectors, self._trusted = remembered
        else:
            self._vectors = _embed(index, snapshot.labels, encode, progress)
            self._trusted = self._vouched(self._vectors)
            _remember(place, {"vectors": self._vectors, "trusted": self._trusted})
        self._known = np.linalg.norm(self._vectors, axis=1) > 0
        similarity = self._vectors @ background.concepts.t.T  # [labels, b]
        self._g = np.sort(similarity, axis=1)[:, -background.k :].mean(axis=1)
        self._q = np.maximum(similarity.std(axis=1), 1e-6)

    def margins(self, t: FloatArray) -> LabelMargins:
        """What the labels say about a concept.

        Args:
            t: Its normalised embedding, float32 ``[d]``.
        """
        if not len(self._vectors):
            none = np.full(len(self._snapshot), np.nan)
            return LabelMargins(none, np.zeros(len(none), np.bool_))
        own = np.where(self._known, (self._vectors @ t - self._g) / self._q, np.nan)
        row = self._snapshot.label
        return LabelMargins(np.where(row >= 0, own[row], np.nan).astype(np.float64), self._trusted)

    def _vouched(self, vectors: FloatArray) -> npt.NDArray[np.bool_]:
        """Whether each row's label has a margin above 0 among the probes, bool ``[L]``."""
        vouched = np.zeros(len(self._snapshot), np.bool_)
        order = np.argsort(self._snapshot.label, kind="stable")
        begins = np.searchsorted(self._snapshot.label[order], np.arange(len(vectors) + 1))
        known = np.nonzero(np.linalg.norm(vectors, axis=1) > 0)[0]
        for start in range(0, len(known), _BLOCK):
            some = known[start : start + _BLOCK]
            concepts = self._index.describe(vectors[some], self._background)
            for c, label in enumerate(some.tolist()):
                rows = order[begins[label] : begins[label + 1]].astype(np.int64)
                vouched[rows] = exact_margins(self._snapshot.arrays, rows, concepts, c, self._method) > 0
        return vouched


def _embed(index: Index, labels: Sequence[str], encode: Texts | None, progress: Progress | None) -> FloatArray:
    """Mean embedding of what each label may mean, normalised, ``[labels, d]``; zero where it has no words."""
    phrases = [_phrases(label) for label in labels]
    distinct = list(dict.fromkeys(phrase for some in phrases for phrase in some))
    encode = encode or encoder_once(index)
    rows: dict[str, FloatArray] = {}
    if distinct:
        try:
            rows = dict(zip(distinct, embed_vocabulary(index, distinct, encode, progress), strict=True))
        except ConceptError:  # one of them has no word that the encoder knows: find out which
            for phrase in distinct:
                try:
                    rows[phrase] = index.embed([phrase], encode)[0]
                except ConceptError:
                    continue
    vectors = np.zeros((len(labels), index.manifest.encoder.dimension), np.float32)
    for i, some in enumerate(phrases):
        known = [rows[phrase] for phrase in some if phrase in rows]
        if known:
            vectors[i] = normalise(np.mean(known, axis=0, keepdims=True))[0]
    return vectors


def _phrases(label: str) -> tuple[str, ...]:
    return tuple(clean_concept(phrase) for phrase in label_phrases(label))


def _cache_place(folder: Path, snapshot: Snapshot, method: Method) -> Path:
    models = [(model.repo, model.revision, model.outputs) for model in snapshot.models]
    content = json.dumps([snapshot.number, snapshot.background, method, snapshot.labels, models])
    digest = hashlib.sha256(content.encode() + np.ascontiguousarray(snapshot.label).tobytes())
    return folder / "labels" / digest.hexdigest()[:16]


def _remembered(place: Path, snapshot: Snapshot) -> tuple[FloatArray, npt.NDArray[np.bool_]] | None:
    """What another process computed; None where none did or its files are damaged."""
    if not place.is_dir():
        return None
    try:
        vectors, trusted = read_array(place / "vectors.npy"), read_array(place / "trusted.npy")
    except IndexDamagedError:
        return None
    if len(vectors) != len(snapshot.labels) or len(trusted) != len(snapshot):
        return None
    return np.asarray(vectors, dtype=np.float32), np.asarray(trusted, dtype=np.bool_)


def _remember(place: Path, columns: dict[str, npt.NDArray[np.generic]]) -> None:
    """Keeps what was computed for the next process; an index that is gone or cannot be written goes without."""
    if not place.parent.parent.is_dir():
        return
    try:
        shutil.rmtree(place, ignore_errors=True)  # damaged, if it is there
        for old in sorted(place.parent.glob("*"), key=lambda path: path.stat().st_mtime)[:-_KEEP]:
            shutil.rmtree(old, ignore_errors=True)
        with new_folder(place) as folder:
            for name, column in columns.items():
                write_array(folder / f"{name}.npy", column)
    except OSError:
        return
