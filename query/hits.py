"""Hits: rows of a snapshot as answers, with what was measured and the probes behind it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from engine.calibration import Background, percentiles
from engine.coverage import ModelMatch
from engine.coverage_margins import damped
from engine.descriptors import ConceptDescriptors, FloatArray
from engine.distance import Method, weights
from engine.index import Index
from engine.scan import decode_anchors, evidence
from engine.schema import Model
from engine.snapshot import Snapshot
from query.answers import GlobalEvidence, Hit, LocalEvidence, Matched, ModelHit, ProbeEvidence
from query.questions import Question

EXPLAINED_PROBES = 10
"""How many probes an explained hit shows."""


class HitMaker:
    """Makes answers of rows.

    Args:
        index: Whose probes have the files' names.
        snapshot: The generation the rows belong to.
        background: The one that its constants were made with.
        method: Of the margins.
        explain: Show the probes behind each hit.
        holders: The models to show for a place: the one that has the rows and its copies, or those of them that a
            filter lets through; the first is the hit's, the others its copies (``filters.Allowed``).
    """

    def __init__(
        self,
        index: Index,
        snapshot: Snapshot,
        background: Background,
        method: Method,
        explain: bool,
        holders: Callable[[int], tuple[Model, ...]],
    ) -> None:
        self._index = index
        self._snapshot = snapshot
        self._background = background
        self._method: Method = method
        self._explain = explain
        self._holders = holders

    def outputs(
        self, rows: npt.NDArray[np.int64], margin: npt.NDArray[np.float64], concept: ConceptDescriptors
    ) -> list[Hit]:
        """Outputs that answer a question about one concept, in the order given."""
        if not len(rows):
            return []
        arrays, method = self._snapshot.arrays, self._method
        idx, z = arrays.kept(rows)
        anchors = decode_anchors(arrays, rows).astype(np.float32)
        standing = percentiles(idx, z, anchors, arrays.constants(rows), margin, self._background, method)
        distance, correlation = evidence(arrays, rows, concept, 0, method)
        terms = arrays.terms(method)
        hits = []
        for i, row in enumerate(rows.tolist()):
            model, optional = self._shown(self._snapshot.place_of(row))
            if len(terms.q):
                optional["global_"] = GlobalEvidence(
                    correlation=short(correlation[i]), hubness=short(terms.g[row]), scale=short(terms.q[row])
                )
            if len(terms.prior):
                optional["prior"] = short(terms.prior[row])
            if self._explain:
                optional["probes"] = self._probes(idx[i], z[i], concept.z[0])
            hits.append(
                Hit(
                    rank=i + 1,
                    model=model.repo,
                    revision=model.revision,
                    output=int(self._snapshot.output[row]),
                    label=self._snapshot.label_of(row),
                    margin=short(margin[i]),
                    percentile=round(float(standing[i]), 3),
                    local=LocalEvidence(
                        distance=short(distance[i]),
                        hubness=short(terms.h[row]),
                        scale=short(terms.s[row]) if len(terms.s) else 1.0,
                    ),
                    **optional,
                )
            )
        return hits

    def models(self, matches: list[ModelMatch], question: Question, ceiling: float | None = None) -> list[ModelHit]:
        """Models that cover a list of concepts, in the order given."""
        return [self._model(rank, match, question, ceiling) for rank, match in enumerate(matches, 1)]

    def _model(self, rank: int, match: ModelMatch, question: Question, ceiling: float | None) -> ModelHit:
        model, ranked = self._shown(match.model)
        outputs = []
        for c, (row, margin) in enumerate(zip(match.rows.tolist(), match.margins.tolist(), strict=True)):
            if row < 0:
                outputs.append(Matched(concept=question.names[c], output=None, label=None, margin=None))
                continue
            optional: dict[str, object] = {}
            if self._explain:
                (idx,), (z,) = self._snapshot.arrays.kept(np.array([row]))
                optional["probes"] = self._probes(idx, z, question.concepts.z[c])
            outputs.append(
                Matched(
                    concept=question.names[c],
                    output=int(self._snapshot.output[row]),
                    label=self._snapshot.label_of(row),
                    margin=short(margin),
                    **optional,
                )
            )
        if ceiling is not None:
            ranked["score"] = short(np.nansum(damped(match.margins, ceiling)) / len(match.margins))
        return ModelHit(
            rank=rank,
            model=model.repo,
            revision=model.revision,
            margin=short(match.margin),
            covered=int((match.margins > 0).sum()),
            outputs=tuple(outputs),
            **ranked,
        )

    def _shown(self, place: int) -> tuple[Model, dict[str, object]]:
        """The model that a hit is shown under, and its copies where there are any."""
        model, *copies = self._holders(place)
        return model, {"copies": tuple(copy.repo for copy in copies)} if copies else {}

    def _probes(self, idx: npt.NDArray[np.uint16], z: FloatArray, concept: FloatArray) -> tuple[ProbeEvidence, ...]:
        """The probes on which output and concept agree most, by their weighted product."""
        similarity = concept[idx]
        agreement = weights(z[None], self._method)[0] * z * similarity
        files = self._index.probe_files
        return tuple(
            ProbeEvidence(probe=int(idx[j]), file=files[idx[j]][0], response=short(z[j]), concept=short(similarity[j]))
            for j in np.argsort(-agreement, kind="stable")[:EXPLAINED_PROBES]
        )


def short(value: np.floating | float) -> float:
    """Six decimals: more than the arithmetic has, few enough to read."""
    return round(float(value), 6)
