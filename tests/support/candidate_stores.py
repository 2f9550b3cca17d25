"""Stores for the tests of prefetching: plain arrays, and the embedded engine with the face of a server's store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine.calibration import Background, calibrate
from engine.descriptors import ConceptDescriptors, FloatArray, concept_descriptors, normalise, output_descriptors
from engine.distance import Method
from engine.outputs import OutputTable
from engine.scan import ScanArrays, pack, top_k
from engine.schema import Model
from engine.store.base import StoreFilter, StoreHit, StoreLayout
from engine.store.edge import EdgeStore
from engine.store.records import global_documents, global_scale, local_documents

N, D, R = 60, 16, 12


class Hub(NamedTuple):
    """Invented models whose outputs recognise mixtures of a few concepts."""

    layout: StoreLayout
    tables: list[OutputTable]
    concepts: ConceptDescriptors

    def models(self) -> list[Model]:
        """Their records."""
        return [Model(repo=t.repo, revision=t.revision, outputs=len(t)) for t in self.tables]


def make_hub(
    method: Method, models: int = 12, outputs: int = 25, concepts: int = 8, seed: int = 0, apart: bool = False
) -> Hub:
    """A hub of random outputs, calibrated as real ones are; some outputs are nearly a concept.

    Args:
        method: That the store serves.
        models: How many.
        outputs: Of each.
        concepts: To search for.
        seed: Of the draw.
        apart: The two parts of a margin have nothing to do with each other: the hardest case for a threshold.
    """
    g = np.random.default_rng(seed)
    probes = normalise(g.standard_normal((N, D)))
    names = [f"b{i}" for i in range(40)]
    background = Background.describe(names, normalise(g.standard_normal((40, D))), probes)
    t = normalise(g.standard_normal((concepts, D)))
    described = concept_descriptors(t, probes, background.whitening)
    tables = []
    for m in range(models):
        mixed = g.dirichlet(np.full(concepts, 0.2), outputs) @ t + 0.4 * g.standard_normal((outputs, D))
        responses = 3 * (probes @ mixed.T) + g.gamma(2, 0.3, (N, outputs))
        d = output_descriptors(responses, probes, R)
        anchor = d.anchor if not apart else g.permutation(d.anchor)
        constants = calibrate(d.idx, d.z, anchor, background)
        labels = tuple(None if i % 3 == 0 else f"label {i}" for i in range(len(d.output)))
        tables.append(
            OutputTable(f"org/m{m:02d}", "r2", d.output, labels, d.mean, d.std, d.idx, d.z, anchor, constants)
        )
    return Hub(StoreLayout(N, R, D, method), tables, described)


def packed(tables: Sequence[OutputTable]) -> tuple[ScanArrays, list[tuple[str, str, int]]]:
    """What the scan reads, and which output each row is."""
    parts = [pack(t.idx, t.z, t.anchor, t.calibration) for t in tables]
    arrays = ScanArrays(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in vars(parts[0])})
    return arrays, [(t.repo, t.revision, int(output)) for t in tables for output in t.output]


def scanned(
    tables: Sequence[OutputTable], concepts: ConceptDescriptors, c: int, k: int, method: Method
) -> list[StoreHit]:
    """The k best by the scan, which looks at everything."""
    arrays, keys = packed(tables)
    ((rows, margins),) = top_k(arrays, concepts.take(c), k, method, kernel="numpy")
    return [StoreHit(*keys[row], margin) for row, margin in zip(rows.tolist(), margins.tolist(), strict=True)]


class ArrayStore:
    """A store that multiplies every output with every query, in float32, and counts what it is asked.

    Attributes:
        live: Records by repository.
        asked: How often each method was called.
        gone: Outputs that disappear after they were found.
        slips: Repositories that pass every filter, as on a server whose facts are being changed.
    """

    def __init__(self, layout: StoreLayout, tables: Sequence[OutputTable], models: Sequence[Model]) -> None:
        self.layout = layout
        self.live = {model.repo: model for model in models}
        self.asked: Counter[str] = Counter()
        self.gone: set[tuple[str, str, int]] = set()
        self.slips: set[str] = set()
        self._tables = list(tables)
        self._keys = [(t.repo, t.revision, int(output)) for t in tables for output in t.output]
        documents = [np.zeros((0, 2 * layout.probes + 2), np.float32)]
        for table in tables:
            dimensions, values = local_documents(table, layout)
            full = np.zeros((len(table), 2 * layout.probes + 2), np.float32)
            np.put_along_axis(full, dimensions.astype(np.intp), values, axis=1)
            documents.append(full)
        self._local = np.concatenate(documents)
        dense = [global_documents(table, layout.method) for table in tables]
        self._global = np.concatenate([np.zeros((0, layout.dimension + 1), np.float32), *dense])

    def query_local(self, indices, values, limit, threshold=None, where=None) -> list[StoreHit]:
        """See ``CandidateStore``."""
        self.asked["query_local"] += 1
        query = np.zeros(self._local.shape[1], np.float32)
        query[indices] = values
        return self._best(self._local @ query, limit, threshold, where)

    def query_global(self, vector: FloatArray, limit: int, where: StoreFilter | None = None) -> list[StoreHit]:
        """See ``CandidateStore``."""
        self.asked["query_global"] += 1
        return self._best(self._global @ vector, limit, None, where)

    def global_scores(self, hits: Sequence[StoreHit], vector: FloatArray) -> FloatArray:
        """See ``CandidateStore``."""
        self.asked["global_scores"] += 1
        scores = dict(zip(self._keys, self._global @ vector, strict=True))
        keys = [(hit.repo, hit.revision, hit.output) for hit in hits]
        return np.array([-np.inf if key in self.gone else scores[key] for key in keys], np.float32)

    def rows(self, hits: Sequence[StoreHit], anchors: bool = True) -> list[OutputTable]:
        """See ``CandidateStore``."""
        self.asked["rows"] += 1
        self.asked["outputs read", anchors] += len(hits)
        wanted = {(hit.repo, hit.revision, hit.output) for hit in hits} - self.gone
        return pick(self._tables, wanted, anchors)

    def records_of(self, repos: Sequence[str]) -> dict[str, Model]:
        """See ``CandidateStore``."""
        self.asked["records_of"] += 1
        return {repo: self.live[repo] for repo in repos if repo in self.live}

    def _best(
        self, scores: FloatArray, limit: int, threshold: float | None, where: StoreFilter | None
    ) -> list[StoreHit]:
        allowed = [i for i, key in enumerate(self._keys) if self._passes(key[0], where)]
        rows = np.array([i for i in allowed if threshold is None or scores[i] > np.float32(threshold)], np.int64)
        best = rows[np.argsort(-scores[rows], kind="stable")[:limit]]
        return [StoreHit(*self._keys[i], float(scores[i])) for i in best]

    def _passes(self, repo: str, where: StoreFilter | None) -> bool:
        return where is None or repo in where.texts["model"] or repo in self.slips


class EdgeCandidates:
    """The embedded engine with what prefetching asks of a store; without filters."""

    def __init__(
        self, folder: Path, layout: StoreLayout, tables: Sequence[OutputTable], models: Sequence[Model]
    ) -> None:
        self.layout = layout
        self.store = EdgeStore.create(folder, layout)
        for table in tables:
            self.store.upsert_outputs(table)
        for model in models:
            self.store.upsert_model(model)

    def query_local(self, indices, values, limit, threshold=None, where=None) -> list[StoreHit]:
        """See ``CandidateStore``."""
        return self.store.query_local(indices, values, limit, threshold)

    def query_global(self, vector: FloatArray, limit: int, where: StoreFilter | None = None) -> list[StoreHit]:
        """See ``CandidateStore``."""
        return self.store.query_global(vector, limit)

    def global_scores(self, hits: Sequence[StoreHit], vector: FloatArray) -> FloatArray:
        """See ``CandidateStore``."""
        return self.store.global_scores(hits, vector)

    def rows(self, hits: Sequence[StoreHit], anchors: bool = True) -> list[OutputTable]:
        """See ``CandidateStore``."""
        return self.store.rows(hits, anchors)

    def records_of(self, repos: Sequence[str]) -> dict[str, Model]:
        """See ``CandidateStore``."""
        found = {repo: self.store.model(repo) for repo in repos}
        return {repo: model for repo, model in found.items() if model is not None}


def pick(tables: Sequence[OutputTable], wanted: set[tuple[str, str, int]], anchors: bool = True) -> list[OutputTable]:
    """Some outputs of some tables, by repository."""
    found = []
    for t in sorted(tables, key=lambda table: (table.repo, table.revision)):
        rows = np.array([(t.repo, t.revision, output) in wanted for output in t.output.tolist()], np.bool_)
        if rows.any():
            found.append(
                OutputTable(
                    t.repo,
                    t.revision,
                    t.output[rows],
                    tuple(label for label, kept in zip(t.labels, rows, strict=True) if kept),
                    t.mean[rows],
                    t.std[rows],
                    t.idx[rows],
                    t.z[rows],
                    t.anchor[rows] if anchors else t.anchor[rows, :0],
                    t.calibration.take(np.nonzero(rows)[0]),
                )
            )
    return found


def stored_as(tables: Sequence[OutputTable], method: str) -> list[OutputTable]:
    """Tables with anchors as a store gives them back: divided by their scale and multiplied again, in float32."""
    made = []
    for table in tables:
        scale = global_scale(table.calibration, method).astype(np.float64)[:, None]
        dense = (table.anchor / scale).astype(np.float32)
        made.append(replace(table, anchor=(dense.astype(np.float64) * scale).astype(np.float32)))
    return made
