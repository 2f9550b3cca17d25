"""Search: concepts in, the outputs that recognise them out, with the evidence."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.calibration import Background, percentiles
from engine.concepts import clean_concept
from engine.descriptors import ConceptDescriptors, FloatArray
from engine.distance import Method, check_method, weights
from engine.errors import ConceptError, InputError
from engine.index import Index, Texts
from engine.outputs import Calibration
from engine.scan import Kernel, decode_anchors, evidence, top_k
from engine.snapshot import Snapshot
from query.answers import (
    ConceptResult,
    GlobalEvidence,
    Hit,
    LocalEvidence,
    ProbeEvidence,
    SearchAnswer,
    TextQuery,
)
from query.filters import Condition, allowed_rows

EXPLAINED_PROBES = 10
"""How many probes an explained hit shows."""


@dataclass(frozen=True)
class SearchRequest:
    """A search.

    Attributes:
        concepts: Texts.
        k: Hits per concept, >= 1.
        method: None for the index's default.
        where: Conditions.
        explain: Show the probes behind each hit.
    """

    concepts: tuple[str, ...]
    k: int = 10
    method: str | None = None
    where: tuple[Condition, ...] = ()
    explain: bool = False


class Searcher:
    """Answers searches over one snapshot of an index.

    Args:
        index: The index.
        encode: Embeds texts that the index does not remember; by default its encoder is loaded when one comes.
        kernel: Which kernel scans.
    """

    def __init__(self, index: Index, encode: Texts | None = None, kernel: Kernel = "auto") -> None:
        self._index = index
        self._encode = encode
        self._kernel: Kernel = kernel
        self.snapshot: Snapshot = index.snapshot()
        self._background: Background = index.background(self.snapshot.background)

    def search(self, request: SearchRequest) -> SearchAnswer:
        """The outputs that recognise each concept, best first.

        Raises:
            ConceptError: A concept is empty, too long or unknown to the encoder.
            InputError: k or the method is out of range.
        """
        started = time.perf_counter()
        if request.k < 1:
            raise InputError(f"-k {request.k}: ask for at least one hit")
        if not request.concepts:
            raise ConceptError("there is no concept to search for: write a word or a phrase", "")
        method = check_method(request.method or self._index.manifest.method)
        texts = [clean_concept(text) for text in request.concepts]
        concepts = self._index.describe_texts(texts, self._encode)
        mask = allowed_rows(self.snapshot, request.where)
        found = top_k(self.snapshot.arrays, concepts, request.k, method, mask=mask, kernel=self._kernel)
        results = tuple(
            ConceptResult(query=TextQuery(text=text), hits=self._hits(*found[c], concepts, c, method, request.explain))
            for c, text in enumerate(texts)
        )
        searched = len(self.snapshot) if mask is None else int(mask.sum())
        return SearchAnswer(
            results=results, searched=searched, exact=True, seconds=round(time.perf_counter() - started, 6)
        )

    def _hits(
        self,
        rows: npt.NDArray[np.int64],
        margin: npt.NDArray[np.float64],
        concepts: ConceptDescriptors,
        c: int,
        method: Method,
        explain: bool,
    ) -> tuple[Hit, ...]:
        if not len(rows):
            return ()
        arrays = self.snapshot.arrays
        idx, z = arrays.kept(rows)
        constants = Calibration(arrays.h_uniform[rows], arrays.h[rows], arrays.s[rows], arrays.g[rows], arrays.q[rows])
        anchors = decode_anchors(arrays, rows).astype(np.float32)
        standing = percentiles(idx, z, anchors, constants, margin, self._background, method)
        distance, correlation = evidence(arrays, rows, concepts, c, method)
        hubness = constants.h_uniform if method == "probelog" else constants.h
        hits = []
        for i, row in enumerate(rows.tolist()):
            model = self.snapshot.model_of(row)
            optional: dict[str, object] = {}
            if method == "dual":
                optional["global_"] = GlobalEvidence(
                    correlation=_short(correlation[i]), hubness=_short(constants.g[i]), scale=_short(constants.q[i])
                )
            if explain:
                optional["probes"] = self._probes(idx[i], z[i], concepts.z[c], method)
            hits.append(
                Hit(
                    rank=i + 1,
                    model=model.repo,
                    revision=model.revision,
                    output=int(self.snapshot.output[row]),
                    label=self.snapshot.label_of(row),
                    margin=_short(margin[i]),
                    percentile=round(float(standing[i]), 3),
                    local=LocalEvidence(
                        distance=_short(distance[i]),
                        hubness=_short(hubness[i]),
                        scale=_short(constants.s[i]) if method == "dual" else 1.0,
                    ),
                    **optional,
                )
            )
        return tuple(hits)

    def _probes(
        self, idx: npt.NDArray[np.uint16], z: FloatArray, concept: FloatArray, method: Method
    ) -> tuple[ProbeEvidence, ...]:
        """The probes on which output and concept agree most, by their weighted product."""
        similarity = concept[idx]
        agreement = weights(z[None], method)[0] * z * similarity
        files = self._index.probe_files
        return tuple(
            ProbeEvidence(
                probe=int(idx[j]), file=files[idx[j]][0], response=_short(z[j]), concept=_short(similarity[j])
            )
            for j in np.argsort(-agreement, kind="stable")[:EXPLAINED_PROBES]
        )


def _short(value: np.floating | float) -> float:
    """Six decimals: more than the arithmetic has, few enough to read."""
    return round(float(value), 6)


def read_concepts(arguments: Sequence[str]) -> tuple[str, ...]:
    """Concepts as a command line gives them: texts, or ``@FILE`` with one a line.

    Raises:
        InputError: A file cannot be read or is empty.
    """
    from pathlib import Path

    from engine.textfiles import read_lines

    concepts: list[str] = []
    for argument in arguments:
        if argument.startswith("@") and len(argument) > 1:
            lines = read_lines(Path(argument[1:]), "concept")
            if not lines:
                raise InputError(f"the concept file {argument[1:]} is empty: write one concept a line")
            concepts += lines
        else:
            concepts.append(argument)
    return tuple(concepts)
