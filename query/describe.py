"""Names for outputs: which phrases of a vocabulary each output of a model responds to, beside its declared label."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from engine.calibration import Background, calibrate
from engine.concepts import clean_concept
from engine.descriptors import ConceptDescriptors, FloatArray, output_descriptors
from engine.distance import LAMBDA, Method, check_method, correlations, margins, weights
from engine.errors import ConceptError, InputError
from engine.index import Index, Texts
from engine.outputs import Calibration, OutputTable
from engine.scan import decode_anchors
from engine.snapshot import Snapshot
from query.description import DescribeAnswer, DescribeRequest, FoundName, OutputNames
from query.lookup import find_model, find_outputs, find_record, near_models
from query.vocabulary import (
    Progress,
    clean_vocabulary,
    default_vocabulary,
    embed_vocabulary,
    encoder_once,
    label_phrases,
)
from query.word_scores import (
    AGREEMENT,
    FEWEST_REFERENCE_OUTPUTS,
    Spread,
    disagrees,
    spread_of,
    word_scores,
)

__all__ = [
    "DescribeAnswer",
    "DescribeRequest",
    "Describer",
    "FoundName",
    "OutputNames",
    "disagrees",
    "word_scores",
]

REFERENCE_OUTPUTS = 1_000
"""How many outputs of the index say at most how near a phrase comes to outputs in general."""

_SEED = 0
_OUTPUTS = 512  # at once: 40 MB of margins for 19,000 names
_ELEMENTS = 1_000_000  # of one block of standardised similarities: 8 MB in float64


@dataclass(frozen=True)
class _Rows:
    """What margins need of m outputs."""

    idx: npt.NDArray[np.uint16]
    z: FloatArray
    anchor: FloatArray
    calibration: Calibration

    def __len__(self) -> int:
        return len(self.idx)

    def take(self, rows: npt.NDArray[np.intp] | slice) -> _Rows:
        return _Rows(self.idx[rows], self.z[rows], self.anchor[rows], self.calibration.take(rows))


class Describer:
    """Names the outputs of models, of those in an index and of others.

    Args:
        index: The index whose probes, encoder and background everything is measured with.
        vocabulary: Phrases to choose from, at least 2; None for the class names of ImageNet-21k.
        encode: Embeds texts that the index does not remember; by default its encoder is loaded when one comes.
        progress: Told how many phrases of the vocabulary are embedded.
        snapshot: The generation that is described; None for the current one.
        vectors: Embeddings of the vocabulary, cleaned, where they are known, float32 ``[V, d]``.
        keep_bytes: The vocabulary's descriptors are kept if they take no more, instead of made again every time.

    Raises:
        ConceptError: A phrase is empty or too long.
        InputError: The vocabulary has fewer than 2 phrases.
    """

    def __init__(
        self,
        index: Index,
        vocabulary: Sequence[str] | None,
        encode: Texts | None = None,
        progress: Progress | None = None,
        *,
        snapshot: Snapshot | None = None,
        vectors: FloatArray | None = None,
        keep_bytes: int = 0,
    ) -> None:
        self._index = index
        self._given = None if vocabulary is None else clean_vocabulary(vocabulary)
        self._encode = encode or encoder_once(index)
        self._progress = progress
        self._snapshot = snapshot or index.current_snapshot()
        self._known = vectors
        self._references: dict[Method, Spread | None] = {}
        self._keep = keep_bytes

    def renewed(self, index: Index, snapshot: Snapshot) -> Describer:
        """The same over another generation of the index; what does not depend on it is not made again.

        Args:
            index: The index, with the same probes and encoder.
            snapshot: The generation.
        """
        new = Describer(
            index, self.vocabulary, self._encode, snapshot=snapshot, vectors=self._vectors, keep_bytes=self._keep
        )
        if self._snapshot is not None and self._snapshot.background == snapshot.background:
            new._kept = self._kept
        return new

    def knows(self, model: str) -> bool:
        """Whether a model, ``org/name`` or ``org/name@revision``, is in the index."""
        if self._snapshot is None:
            return False
        try:
            find_model(self._snapshot, model)
        except InputError:
            return False
        return True

    def near(self, model: str) -> list[str]:
        """Ids in the index that are written nearly like an unknown one."""
        return near_models(self._snapshot, model.partition("@")[0]) if self._snapshot else []

    def describe(self, model: str, request: DescribeRequest) -> DescribeAnswer:
        """Names for the outputs of a model in the index; of a copy, for those of its original.

        Args:
            model: Its id, ``org/name`` or ``org/name@revision``.
            request: What to describe.

        Raises:
            InputError: It is not in the index, or has no such output; k or the method is out of range.
        """
        snapshot = self._snapshot or self._index.snapshot()  # which says what to do about an empty index
        place, named = find_record(snapshot, model)
        record = snapshot.models[place]
        rows = np.arange(snapshot.starts[place], snapshot.starts[place + 1])
        output = snapshot.output[rows].astype(np.int64)
        chosen = find_outputs(request.outputs, record.repo, output, record.left_out)
        labels = [snapshot.label_of(int(row)) for row in rows[chosen]]
        part = self._rows(snapshot, rows[chosen])
        answer = self._answer(named.repo, named.revision, output[chosen], labels, part, request)
        return answer.model_copy(update={"copy_of": record.repo}) if named is not record else answer

    def describe_outputs(self, table: OutputTable, request: DescribeRequest) -> DescribeAnswer:
        """Names for outputs that need not be in the index.

        Args:
            table: Descriptors over the index's probes; see ``outputs_of``.
            request: What to describe.

        Raises:
            InputError: There is no such output; k or the method is out of range.
        """
        chosen = find_outputs(request.outputs, table.repo, table.output)
        labels = [table.labels[i] for i in chosen]
        part = _Rows(table.idx, table.z, table.anchor, table.calibration).take(chosen)
        return self._answer(table.repo, table.revision, table.output[chosen], labels, part, request)

    def name_rows(
        self, rows: npt.NDArray[np.integer], k: int = 3, method: str | None = None, *, judge: bool = True
    ) -> list[OutputNames]:
        """Names for outputs of any models of the index, in the order given.

        Args:
            rows: Of the snapshot.
            k: As in ``DescribeRequest``, and so is the method.
            method: None for the index's default.
            judge: Whether to say if labels agree, for which they are embedded.

        Raises:
            InputError: k or the method is out of range.
            IndexUnusableError: The index is empty.
        """
        snapshot = self._snapshot or self._index.snapshot()
        labels = [snapshot.label_of(int(row)) for row in rows]
        output = snapshot.output[rows].astype(np.int64)
        return self._named(output, labels, self._rows(snapshot, rows), DescribeRequest(k, method), judge)

    def outputs_of(
        self, repo: str, revision: str, labels: Sequence[str | None], responses: npt.NDArray[np.floating]
    ) -> OutputTable:
        """The outputs of a model that is not in the index, described and calibrated; nothing is stored.

        Args:
            repo: Its id.
            revision: Its revision.
            labels: One per output.
            responses: Logits, or what stands for them, over the index's probes, ``[n, outputs]``.
        """
        manifest = self._index.manifest
        d = output_descriptors(responses, self._index.probe_embeddings, manifest.top_r, manifest.normalisation)
        constants = calibrate(d.idx, d.z, d.anchor, self._background)
        kept = tuple(labels[i] for i in d.output)
        return OutputTable(repo, revision, d.output, kept, d.mean, d.std, d.idx, d.z, d.anchor, constants)

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The phrases that outputs are named with."""
        return self._given or default_vocabulary()

    @cached_property
    def _background(self) -> Background:
        return self._index.background(self._snapshot.background if self._snapshot else None)

    @cached_property
    def _vectors(self) -> FloatArray:
        if self._known is not None:
            return self._known
        return embed_vocabulary(self._index, self.vocabulary, self._encode, self._progress)

    def _rows(self, snapshot: Snapshot, rows: npt.NDArray[np.integer]) -> _Rows:
        arrays = snapshot.arrays
        idx, z = arrays.kept(rows)
        return _Rows(idx, z, decode_anchors(arrays, rows).astype(np.float32), arrays.constants(rows))

    def _reference(self, method: Method) -> Spread | None:
        """The vocabulary's margins on a sample of the index's outputs."""
        if method not in self._references:
            snapshot = self._snapshot
            if snapshot is None or len(snapshot) < FEWEST_REFERENCE_OUTPUTS:
                self._references[method] = None
            else:
                size = min(REFERENCE_OUTPUTS, len(snapshot))
                rows = np.sort(np.random.default_rng(_SEED).choice(len(snapshot), size=size, replace=False))
                self._references[method] = spread_of(self._margins(self._rows(snapshot, rows), method))
        return self._references[method]

    @cached_property
    def _kept(self) -> ConceptDescriptors | None:
        """Descriptors of the whole vocabulary, None where they would take too much memory."""
        n = len(self._index.probe_embeddings)
        if self._vectors.itemsize * n * len(self._vectors) > self._keep:
            return None
        step = max(1, _ELEMENTS // n)
        parts = [self._vectors[start : start + step] for start in range(0, len(self._vectors), step)]
        return ConceptDescriptors.join([self._index.describe(part, self._background) for part in parts])

    def _described(self, some: slice) -> ConceptDescriptors:
        """Descriptors of a part of the vocabulary."""
        kept = self._kept
        if kept is None:
            return self._index.describe(self._vectors[some], self._background)
        white = None if kept.white is None else kept.white[some]
        return ConceptDescriptors(kept.t[some], kept.z[some], kept.sigma[some], white)

    def _margins(self, rows: _Rows, method: Method) -> FloatArray:
        """Margins of every phrase on m outputs, float32 ``[V, m]``, precise to about 1e-4.

        ``sum over A_l of w (z_l - z_c)^2`` is ``const - 2 (w z) . z_c + w . z_c^2`` with weights of 0 outside A_l: two
        matrix products instead of a gathered copy of every phrase for every output.
        """
        used, inverse = np.unique(rows.idx, return_inverse=True)
        places = inverse.reshape(rows.idx.shape)
        w = weights(rows.z, method)
        squares = np.zeros((len(rows), len(used)), np.float32)
        np.put_along_axis(squares, places, w, axis=1)
        products = np.zeros_like(squares)
        np.put_along_axis(products, places, -2 * w * rows.z, axis=1)
        constant = (w.astype(np.float64) * rows.z * rows.z).sum(axis=1).astype(np.float32)
        c = rows.calibration
        vectors, out = self._vectors, np.empty((len(self.vocabulary), len(rows)), np.float32)
        step = max(1, _ELEMENTS // max(len(self._index.probe_embeddings), len(rows)))
        for start in range(0, len(vectors), step):
            concepts = self._described(slice(start, start + step))
            z = np.ascontiguousarray(concepts.z[:, used])
            square = z @ products.T
            square += (z * z) @ squares.T
            square += constant
            distance = np.sqrt(np.maximum(square, 0))
            hubness = c.h_uniform if method == "probelog" else c.h
            block = hubness - distance
            if method in {"dual", "whitened"}:
                block /= c.s
                correlation = correlations(rows.anchor, concepts, method == "whitened")
                if method == "dual":
                    block += np.float32(LAMBDA) * (correlation - c.g) / c.q
                else:
                    block += np.float32(LAMBDA) * (correlation - c.g_white) / c.q_white + c.prior
            out[start : start + step] = block
        return out

    def _answer(
        self,
        repo: str,
        revision: str,
        output: npt.NDArray[np.int64],
        labels: Sequence[str | None],
        rows: _Rows,
        request: DescribeRequest,
    ) -> DescribeAnswer:
        started = time.perf_counter()
        found = self._named(output, labels, rows, request)
        return DescribeAnswer(
            model=repo,
            revision=revision,
            outputs=tuple(found),
            vocabulary=len(self.vocabulary),
            seconds=round(time.perf_counter() - started, 6),
        )

    def _named(
        self,
        output: npt.NDArray[np.int64],
        labels: Sequence[str | None],
        rows: _Rows,
        request: DescribeRequest,
        judge: bool = True,
    ) -> list[OutputNames]:
        if request.k < 1:
            raise InputError(f"-k {request.k}: ask for at least one name")
        method = check_method(request.method or self._index.manifest.method)
        k = min(request.k, len(self.vocabulary))
        phrases = self._embedded_phrases(labels if judge else [None] * len(labels))
        found: list[OutputNames] = []
        for start in range(0, len(rows), _OUTPUTS):
            part = rows.take(slice(start, start + _OUTPUTS))
            scores = word_scores(self._margins(part, method), self._reference(method))
            # A few columns at a time: the places of all would take twice the memory of the scores.
            columns = [scores[:, at : at + 64] for at in range(0, len(part), 64)]
            best = np.concatenate([np.argpartition(-some, k - 1, axis=0)[:k].T for some in columns])  # [outputs, k]
            del scores
            # Finished in small groups: the descriptors of all their names are held at once.
            group = max(1, _ELEMENTS // (k * len(self._index.probe_embeddings)))
            for at in range(0, len(part), group):
                here = slice(at, at + group)
                places = slice(start + at, start + at + len(best[here]))
                found += self._finish(
                    part.take(here), best[here], output[places], labels[places], phrases[places], method
                )
        return found

    def _finish(
        self,
        rows: _Rows,
        best: npt.NDArray[np.intp],
        output: npt.NDArray[np.int64],
        labels: Sequence[str | None],
        phrases: Sequence[FloatArray],
        method: Method,
    ) -> list[OutputNames]:
        """Answers for some outputs, with the margins of their best names and labels from ``distance.margins``."""
        names = np.unique(best)
        own = np.concatenate([self._vectors[names], *phrases])
        concepts = self._index.describe(own, self._background)
        reference = self._reference(method)
        found = []
        at = len(names)
        for i, label in enumerate(labels):
            spans = np.concatenate([np.searchsorted(names, best[i]), np.arange(at, at + len(phrases[i]))])
            at += len(phrases[i])
            white = None if concepts.white is None else concepts.white[spans]
            some = ConceptDescriptors(concepts.t[spans], concepts.z[spans], concepts.sigma[spans], white)
            one = rows.take(slice(i, i + 1))
            margin = margins(one.idx, one.z, one.anchor, one.calibration, some, method)
            k = len(best[i])
            scores = word_scores(margin[:k], reference and reference.take(best[i]))[:, 0]
            order = np.lexsort((best[i], -scores))
            agrees = None
            if len(phrases[i]):
                judged = margins(one.idx, one.z, one.anchor, one.calibration, some, AGREEMENT)
                agrees = not bool(disagrees(judged[k:].max(), judged[order[0], 0]))
            concepts_found = tuple(
                FoundName(
                    name=self.vocabulary[best[i][j]],
                    margin=round(float(margin[j, 0]), 6),
                    score=round(float(scores[j]), 6),
                )
                for j in order
            )
            found.append(OutputNames(output=int(output[i]), label=label, agrees=agrees, concepts=concepts_found))
        return found

    def _embedded_phrases(self, labels: Sequence[str | None]) -> list[FloatArray]:
        """Embeddings of what each label may mean, ``[p, d]`` each; p is 0 where the encoder knows no word of it."""
        wanted = [tuple(map(clean_concept, label_phrases(label))) for label in labels]
        texts = list(dict.fromkeys(phrase for phrases in wanted for phrase in phrases))
        known: dict[str, FloatArray] = {}
        while texts:
            try:
                known = dict(zip(texts, embed_vocabulary(self._index, texts, self._encode), strict=True))
                break
            except ConceptError as error:
                if error.concept not in texts:
                    raise
                texts.remove(error.concept)
        none = np.zeros((0, self._index.manifest.encoder.dimension), np.float32)
        return [np.stack(vectors) if (vectors := [known[p] for p in ps if p in known]) else none for ps in wanted]
