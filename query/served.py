"""Search on a Qdrant server: it finds candidates, the exact answer is made of those; no snapshot is needed.

The server's own search over all outputs yields a few hundred candidates and the certificate that no other output can
be among the best (:mod:`engine.prefetch`). Those near the top become a small snapshot in memory, on which the same
code answers that scans whole indexes: margins, evidence, percentiles and the order of equals are the scan's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from engine import prefetch
from engine.calibration import Background, calibrate
from engine.descriptors import ConceptDescriptors
from engine.errors import InputError
from engine.index import Index, Texts
from engine.outputs import Calibration, OutputTable, empty_table
from engine.prefetch import Candidates, CandidateStore, Key, Prefetch
from engine.scan import pack
from engine.schema import Model
from engine.snapshot import Snapshot, split_copies
from engine.store.base import StoreFilter, StoreLayout
from query.answers import ServedAnswer
from query.questions import Images, Question
from query.request import SearchRequest
from query.search import Searcher
from query.store_conditions import UnresolvedError, satisfies, store_filter

if TYPE_CHECKING:
    from query.answers import Result

Engine = Literal["scan", "qdrant"]

SCAN_UP_TO = 2_000_000
"""Outputs up to which ``auto`` fetches them all once and scans them."""

GRAPH_FROM = 20_000_000
"""Outputs above which ``auto`` takes candidates: an exact answer of the server would take many seconds."""

COMPLETE = 0.999
"""Share of the models, and of the outputs, that candidates must have for ``auto`` to take them: what a tenth of a per
cent can hide of the best is a tenth of what recall may miss."""

_ATTEMPTS = 3
"""How often a search is begun again because models were written meanwhile."""


class ServedStore(CandidateStore, Protocol):
    """What is asked of a store on a server; see :class:`engine.store.server.ServerStore`."""

    def newest(self) -> int:
        """Changes whenever a model is written or removed."""

    def copies_of(self, repos: Sequence[str]) -> Mapping[str, Sequence[Model]]:
        """The copies of those models that have some."""

    def distinct(self, field: str, limit: int = 10_000) -> list[str] | None:
        """The distinct values of a field, in lower case; None if there are more."""

    def count_outputs(self, where: StoreFilter | None = None) -> int:
        """How many outputs there are."""

    def calibrated_otherwise(self, fingerprint: str) -> bool:
        """Whether some model's constants were made with another background."""


Finder = Callable[[Prefetch, ConceptDescriptors, int, int, StoreFilter | None], Candidates]
"""Finds candidates for concept c: ``(prefetch, concepts, c, k, where)``."""


def needs_scan(request: SearchRequest, method: str) -> str | None:
    """Why a server cannot answer a request by its own search; None if it can.

    Args:
        request: What is asked.
        method: That the vectors on the server serve.
    """
    if request.level == "model":
        return "--level model compares all outputs of all models"
    if request.like:
        return "--like compares outputs with an output"
    if request.evidence != "probes":
        return f"--evidence {request.evidence} compares the labels of all outputs"
    if request.method not in {None, method}:
        return f"the vectors on the server serve --method {method} only"
    return None


class ServedSearcher:
    """Answers searches with candidates from a server.

    Args:
        index: The index, opened in its working folder.
        store: Its store.
        encode: Embeds texts that the index does not remember; by default its encoder is loaded when one comes.
        encode_images: Embeds image files; likewise.
        most: Outputs fetched by each part at most, before an answer is given without certificate; see ``Prefetch``.
        finder: What finds candidates instead of the certified prefetch.
        engine: Its name, for the answer.
        why: With a finder: why its answers are never certain.

    Attributes:
        snapshot: The candidates near the top of the last answer.
        background: What margins are measured against.
    """

    def __init__(
        self,
        index: Index,
        store: ServedStore,
        encode: Texts | None = None,
        encode_images: Images | None = None,
        most: int | None = None,
        finder: Finder | None = None,
        engine: str = "qdrant",
        why: str = "candidates are approximate",
    ) -> None:
        self._index = index
        self._store = store
        self._encode = encode
        self._encode_images = encode_images
        self._most = most
        self._find: Finder = finder or _certified
        self._engine = engine
        self._approximate = None if finder is None else why
        self.background: Background = index.background()
        self.snapshot: Snapshot = self._small([], {}, {})

    def ask(self, request: SearchRequest) -> list[Question]:
        """What a request asks; see ``Searcher.ask``.

        Raises:
            ConceptError: See ``Searcher.ask``.
            InputError: See ``Searcher.ask``; or the request needs a scan.
        """
        request.check()
        reason = needs_scan(request, self._store.layout.method)
        if reason is not None:
            raise _scan_instead(self._engine, reason)
        return self._searcher().ask(request)

    def search(self, request: SearchRequest) -> ServedAnswer:
        """The outputs that recognise each concept, best first.

        Raises:
            ConceptError: See ``ask``.
            InputError: See ``ask``.
            StoreError: The server refused or did not answer.
        """
        return self.answer(request, self.ask(request))

    def answer(self, request: SearchRequest, questions: Sequence[Question]) -> ServedAnswer:
        """The answer to questions that ``ask`` made of the same request.

        Raises:
            InputError: A wildcard of ``--where`` could stand for too many values.
            StoreError: The server refused or did not answer.
        """
        started = time.perf_counter()
        fingerprint = self.background.fingerprint
        # Before and after: one whose constants are mended in between may have been missed.
        mixed = self._approximate is None and self._store.calibrated_otherwise(fingerprint)
        dropped: set[Key] = set()
        for _ in range(_ATTEMPTS):
            before, known = self._store.newest(), dropped
            answer, dropped = self._once(request, questions)
            # A model that is replaced between two requests is found in neither revision: its old outputs do not count
            # any more, its new ones were not there. What is dropped twice has been left by a kill.
            steady = self._store.newest() == before and dropped <= known
            if steady:
                break
        if not mixed and self._approximate is None:  # constants of two backgrounds are of two scales
            mixed = self._store.calibrated_otherwise(fingerprint)
        reasons = self._doubts(answer.exact, steady, mixed, request.k)
        update: dict[str, object] = {"exact": not reasons, "seconds": round(time.perf_counter() - started, 6)}
        return answer.model_copy(update=update | ({"why": "; ".join(reasons)} if reasons else {}))

    def _doubts(self, enough: bool, steady: bool, mixed: bool, k: int) -> list[str]:
        """Why an answer is not certain to be exact; nothing if it is."""
        if self._approximate is not None:
            return [self._approximate]
        reasons = []
        if mixed:
            reasons.append(
                f"the index is being calibrated ('hubhound index calibrate --index {self._index.name}' ends it, if "
                "nobody is at it)"
            )
        if not steady:
            reasons.append(f"models were being written during each of {_ATTEMPTS} attempts")
        if not enough:
            most = self._most or prefetch.MOST
            reasons.append(f"more than {most:,} outputs come close to the best {k}")
        return reasons

    def _once(self, request: SearchRequest, questions: Sequence[Question]) -> tuple[ServedAnswer, set[Key]]:
        """An answer, and the outputs that were found and do not count."""
        where = None
        if request.where:
            try:
                where = store_filter(request.where, self._store.distinct)
            except UnresolvedError as error:
                raise _scan_instead(self._engine, f"--where {error} could stand for too many values") from None
            if where is None:
                self.snapshot = self._small([], {}, {})
                return self._answered(request, questions, (), 0), set()
        copies: dict[str, Sequence[Model]] = {}

        def allowed(records: Mapping[str, Model]) -> set[str]:
            if where is None or not records:
                return set(records)
            copies.update(self._store.copies_of(sorted(records)))
            shown, _ = split_copies([*records.values(), *(copy for repo in records for copy in copies.get(repo, ()))])
            return {repo for repo, model in records.items() if satisfies(where, (model, *shown.get(repo, ())))}

        prefetch = Prefetch(self._store, where, allowed, self._most)
        found = [self._find(prefetch, question.concepts, 0, request.k, where) for question in questions]
        near = {(hit.repo, hit.revision, hit.output): hit for one in found for hit in one.near}
        tables = self._store.rows(list(near.values())) if near else []
        repos = sorted({table.repo for table in tables})
        if where is None:
            copies.update(self._store.copies_of(repos) if repos else {})
        records = prefetch.records()
        tables = [self._calibrated(table, records[table.repo]) for table in tables]
        self.snapshot = self._small(tables, {repo: records[repo] for repo in repos}, copies)
        return self._answered(request, questions, found, self._store.count_outputs(where)), prefetch.dropped

    def _answered(
        self, request: SearchRequest, questions: Sequence[Question], found: Sequence[Candidates], searched: int
    ) -> ServedAnswer:
        """What the scan makes of the candidates."""
        results: tuple[Result, ...] = self._searcher().answer(request, questions).results
        return ServedAnswer(
            results=results,
            searched=searched,
            exact=all(one.certified for one in found),
            seconds=0.0,
            engine=self._engine,
            candidates=max((one.looked_at for one in found), default=0),
            rounds=max((one.rounds for one in found), default=0),
            note=self._index.note,
        )

    def _calibrated(self, table: OutputTable, model: Model) -> OutputTable:
        """The outputs of a model with the constants of the index's background, which the store may not have yet."""
        if table.calibrated_with(self.background.fingerprint, model.calibration or self.background.fingerprint):
            return table
        return table.with_calibration(calibrate(table.idx, table.z, table.anchor, self.background))

    def _searcher(self) -> Searcher:
        index = _CandidateIndex(self._index, self.snapshot, self.background)
        return Searcher(index, self._encode, "numpy", self._encode_images)

    def _small(
        self,
        tables: Sequence[OutputTable],
        records: Mapping[str, Model],
        copies: Mapping[str, Sequence[Model]],
    ) -> Snapshot:
        fingerprint = self._index.manifest.background.fingerprint
        return small_snapshot(self._index, self._store.layout, fingerprint, tables, records, copies)


class _CandidateIndex(Index):
    """An index of which only the candidates are there."""

    def __init__(self, index: Index, snapshot: Snapshot, background: Background) -> None:
        self.__dict__.update(index.__dict__)
        self._small = snapshot
        self._loaded = background

    def snapshot(self, progress: Callable[[int, int], None] | None = None, *, insist: bool = False) -> Snapshot:
        return self._small

    def background(self, fingerprint: str | None = None) -> Background:
        return self._loaded


def small_snapshot(
    index: Index,
    layout: StoreLayout,
    background: str,
    tables: Sequence[OutputTable],
    records: Mapping[str, Model],
    copies: Mapping[str, Sequence[Model]],
) -> Snapshot:
    """Some outputs as a snapshot in memory, in the order that they have in that of the whole index.

    Args:
        index: Theirs.
        layout: Of its store.
        background: Fingerprint of the background behind their constants.
        tables: The outputs, one table a model, by repository.
        records: Of these models, by repository.
        copies: Records that name one of these models as their original, whether they equal its revision or not.
    """
    models = tuple(records[table.repo] for table in tables)
    shown, _ = split_copies([*models, *(copy for model in models for copy in copies.get(model.repo, ()))])
    every = [*tables, empty_table("", "", layout.top_r, layout.dimension)]
    constants = {
        field.name: np.concatenate([getattr(table.calibration, field.name) for table in every])
        for field in fields(Calibration)
    }
    idx, z, anchor, output = (
        np.concatenate([getattr(table, name) for table in every]) for name in ("idx", "z", "anchor", "output")
    )
    labels: dict[str, int] = {}
    places = [
        -1 if label is None else labels.setdefault(label, len(labels)) for table in tables for label in table.labels
    ]
    return Snapshot(
        folder=index.folder,
        number=0,
        background=background,
        models=models,
        starts=np.cumsum([0, *map(len, tables)], dtype=np.int64),
        arrays=pack(idx, z, anchor, Calibration(**constants)),
        output=output.astype(np.int32),
        label=np.asarray(places, np.int32),
        labels=tuple(labels),
        copies=shown,
    )


def choose_engine(engine: str, index: Index, request: SearchRequest) -> str:
    """What answers a request: ``scan`` or another engine.

    ``auto`` scans what is not on a server, what is not larger than ``SCAN_UP_TO``, what has been fetched already, and
    what only a scan can answer. Above ``GRAPH_FROM`` it takes candidates, if their recall was measured to suffice.

    Args:
        engine: ``auto``, or what was asked for.
        index: The index.
        request: What is asked.

    Raises:
        InputError: The engine that was asked for cannot answer the request.
        StoreError: The server refused or did not answer.
    """
    remote = index.remote
    if engine == "scan" or (engine == "auto" and remote is None):
        return "scan"
    if remote is None:
        raise InputError(
            f"--engine {engine} is for an index on a Qdrant server, {index.name} is a folder: leave it out"
        )
    reason = needs_scan(request, remote.store.layout.method)
    if engine == "candidates" and request.where:
        raise InputError("--engine candidates cannot take --where: use --engine qdrant or scan")
    if engine != "auto":
        if reason is not None:
            raise _scan_instead(engine, reason)
        return engine
    here = (index.folder / "snapshots" / "CURRENT").exists()
    outputs = remote.store.count_outputs()
    if reason is not None or here or outputs <= SCAN_UP_TO or not _resolvable(request, remote.store):
        return "scan"
    return "candidates" if outputs > GRAPH_FROM and not request.where and _reliable(index, outputs) else "qdrant"


def _reliable(index: Index, outputs: int) -> bool:
    """Whether an index has candidates that can be relied on: of measured recall, and of nearly all its outputs."""
    from engine.store.joint import open_joint

    remote = index.remote
    joint = open_joint(index.folder, remote.store, index.manifest.background.fingerprint) if remote else None
    if joint is None or joint.recall is None or not joint.recall.sufficient:
        return False
    return joint.joined.share() >= COMPLETE and joint.count() >= COMPLETE * outputs


def _resolvable(request: SearchRequest, store: ServedStore) -> bool:
    """Whether a server can be told what the wildcards of a request stand for."""
    try:
        store_filter(request.where, store.distinct)
    except UnresolvedError:
        return False
    return True


def _certified(
    prefetch: Prefetch, concepts: ConceptDescriptors, c: int, k: int, where: StoreFilter | None
) -> Candidates:
    return prefetch.candidates(concepts, c, k)


def _scan_instead(engine: str, reason: str) -> InputError:
    return InputError(f"--engine {engine} cannot answer this ({reason}): use --engine scan")
