"""The collection ``NAME_joint`` of an index on a server: one dense vector an output, in a graph (HNSW).

What the vectors are stands in :mod:`engine.joint`. A point has the id of the output's point in ``NAME_outputs`` and
says whose it is; everything else is read from there. Choices and their reasons:

* inner product, as the vectors have equal norms it is the nearest neighbour, and its scores stay right for longer ones;
* graph with 32 links and 256 candidates while it is built: with Qdrant's usual 16 and 100 a search of breadth 1000
  missed 4.0% of the best ten of 85,306 outputs, with these 2.6 to 3.8% of those of 101,287, at 2048 0.4%;
* ``float16`` unless told: of 101,287 outputs it finds all that the code itself ranks high enough, and so does ``int8``,
  which keeps 8-bit numbers in memory and compares the best of them again by their 16 bits on the disk.

The metadata name the code; a collection of another code than the index's is not used. It says ``complete`` once it has
been filled and measured.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qdrant_client import models as qm

from engine.descriptors import ConceptDescriptors
from engine.errors import InputError, StoreError
from engine.joint import JointCode
from engine.joint_recall import CODE_FILE, FOLDER, JointRecall, Storage, candidates_wanted
from engine.outputs import FloatArray, OutputTable
from engine.prefetch import Candidates, Prefetch
from engine.schema import output_point_id
from engine.store import records
from engine.store.base import StoreFilter, StoreHit
from engine.store.patience import Pace, Patience, patience_with
from engine.store.server import ServerChoices, ServerStore
from engine.store.server_client import Collections, equals
from engine.store.server_config import OUR_MARK

PART = "joint"
VECTOR = "joint"

LINKS = 32
"""Of an output in the graph (``m``)."""

BUILD_BREADTH = 256
"""Outputs kept in hand while one is put into the graph (``ef_construct``)."""

QUANTILE = 0.999
"""Share of the numbers that 8 bits span; the largest are cut off."""

_BATCH = 500  # points in a request: 7 MB of JSON at 641 dimensions
_POLL_S = 0.5
_FORMAT = 1


class JointCollection:
    """Candidates for concepts from a graph; see :func:`open_joint` and :func:`need_joint`.

    Args:
        store: The index's.
        code: Encodes outputs and concepts.
        recall: What was measured, None while it is being filled.
        patience: With the server, None for what the environment says.
    """

    def __init__(
        self, store: ServerStore, code: JointCode, recall: JointRecall | None, patience: Patience | None = None
    ) -> None:
        self.store = store
        self.code = code
        self.recall = recall
        self.overlong = 0
        self._on = _collections(store, patience)
        self._pace = Pace(_BATCH)

    @classmethod
    def create(
        cls, store: ServerStore, code: JointCode, storage: Storage = "float16", patience: Patience | None = None
    ) -> JointCollection:
        """Makes an empty collection in place of any other, spread as the outputs are.

        Args:
            store: The index's.
            code: Encodes outputs and concepts.
            storage: Numbers that are compared.
            patience: With the server, None for what the environment says.

        Raises:
            StoreError: The collection is another project's, or the server refused or did not answer.
        """
        on = _collections(store, patience)
        on.delete(PART)
        if on.exists(PART, "create"):  # it was not deleted, since it is not ours
            raise StoreError(
                f"the collection {on.of(PART)} at {on.patience.where} is not part of an index, but of another project: "
                "rename one of them",
                on.patience.where,
            )
        outputs = on.of("outputs")
        config = on.patience.call("read", lambda: on.client.get_collection(outputs)).config.params
        choices = ServerChoices(
            config.shard_number or 1, config.replication_factor or 1, config.write_consistency_factor or 1
        )
        metadata = {OUR_MARK: PART, "format": _FORMAT, "code": code.fingerprint, "complete": False}
        on.create(PART, _options(code, storage), choices, metadata)
        return cls(store, code, None, patience)

    def put(self, table: OutputTable) -> None:
        """Writes the vectors of one model's outputs; acknowledged when it returns. Repeating it changes nothing.

        Raises:
            StoreError: The server refused or did not answer.
        """
        self.put_encoded([(table, self.code.encode_outputs(table))])

    def put_encoded(self, encoded: Sequence[tuple[OutputTable, FloatArray]]) -> None:
        """As ``put``, of several models whose vectors are known."""
        points = []
        for table, vectors in encoded:
            self.overlong += self.code.overlong(vectors)
            for output, vector in zip(table.output.tolist(), vectors.tolist(), strict=True):
                payload = {records.REPO: table.repo, records.REVISION: table.revision, records.OUTPUT: output}
                point_id = output_point_id(table.repo, table.revision, output)
                points.append(qm.PointStruct(id=point_id, vector={VECTOR: vector}, payload=payload))
        self._on.put(PART, points, self._pace)

    def remove(self, repo: str, keep_revision: str | None = None) -> None:
        """Removes a repository's outputs, except those of one revision.

        Raises:
            StoreError: The server refused or did not answer.
        """
        kept: list[qm.Condition] = [] if keep_revision is None else [equals(records.REVISION, keep_revision)]
        self._on.remove(PART, qm.Filter(must=[equals(records.REPO, repo)], must_not=kept))

    def count(self) -> int:
        """Number of outputs in it."""
        return self._on.count(PART)

    def holdings(self, progress: Callable[[int, int], None] | None = None) -> Counter[tuple[str, str]]:
        """How many outputs of which models it holds, by repository and revision.

        Args:
            progress: Called with (outputs read, outputs in all).
        """
        total, found = self.count(), Counter[tuple[str, str]]()
        fields = [records.REPO, records.REVISION]
        for done, point in enumerate(self._on.scroll(PART, None, fields, False, Pace(10 * _BATCH)), 1):
            payload = point.payload or {}
            found[payload[records.REPO], payload[records.REVISION]] += 1
            if progress and done % _BATCH == 0:
                progress(done, total)
        return found

    def candidates(self, vector: FloatArray, limit: int, breadth: int, exact: bool = False) -> list[StoreHit]:
        """The outputs whose products with a concept's vector are largest, as far as the graph finds them.

        Their scores are these products up to a factor that is one and the same for all.

        Args:
            vector: Of a concept, ``JointCode.encode_concepts(...)[c]``.
            limit: How many.
            breadth: Outputs kept in hand during the search; more finds more.
            exact: Compare with all instead.

        Raises:
            StoreError: The server refused or did not answer.
        """
        name = self._on.of(PART)
        params = qm.SearchParams(hnsw_ef=max(breadth, limit), exact=exact)
        query = self.code.as_long(vector).tolist()
        answer = self._on.patience.call(
            "search",
            lambda: self._on.client.query_points(
                name, query=query, using=VECTOR, limit=limit, search_params=params, with_payload=records.HIT_FIELDS
            ),
        )
        return records.hits((point.payload or {}, point.score) for point in answer.points)

    def find(
        self, prefetch: Prefetch, concepts: ConceptDescriptors, c: int, k: int, where: StoreFilter | None = None
    ) -> Candidates:
        """Candidates for a search, of which ``prefetch`` keeps those that can be among the k best of them.

        Raises:
            InputError: There are conditions: the graph does not know what they ask for.
            StoreError: The server refused or did not answer.
        """
        if where is not None:
            raise InputError("--engine candidates cannot take --where: use --engine qdrant or scan")
        if self.recall is None:
            raise InputError("the candidates are being made: use --engine qdrant or scan")
        limit = candidates_wanted(k, self.recall.oversampling)
        vector = self.code.encode_concepts(concepts.take(c))[0]
        hits = self.candidates(vector, limit, self.recall.breadth)
        return Candidates(prefetch.near(hits, concepts, c, k), False, len(hits), 1)

    def wait(self, timeout_s: float, progress: Callable[[int, int], None] | None = None) -> int:
        """Waits until the server has put everything into the graph that it wants to.

        Args:
            timeout_s: How long at most.
            progress: Called with (outputs in the graph, outputs in all).

        Returns:
            Outputs in the graph; in a small collection there is none, everything is compared.

        Raises:
            StoreError: It has not after that time, or the server refused or did not answer.
        """
        name = self._on.of(PART)
        until = time.monotonic() + timeout_s
        while True:
            info = self._on.patience.call("read", lambda: self._on.client.get_collection(name))
            done = info.indexed_vectors_count or 0
            if progress:
                progress(done, info.points_count or 0)
            if info.status == qm.CollectionStatus.GREEN:
                return done
            if time.monotonic() > until:
                raise StoreError(
                    f"the graph of {name} is not complete after {timeout_s:.0f} s: run the command again with more "
                    "time (--build-timeout)",
                    self._on.patience.where,
                )
            if info.status == qm.CollectionStatus.GREY:  # after a restart a server waits for a write to go on
                self._on.patience.call("write to", self._wake)
            time.sleep(_POLL_S)

    def _wake(self) -> None:
        self._on.client.update_collection(self._on.of(PART), optimizers_config=qm.OptimizersConfigDiff())

    def complete(self, recall: JointRecall) -> None:
        """Says that the collection is filled and measured: from now on it may be used."""
        self._on.set_metadata(PART, {"complete": True})
        self.recall = recall


def open_joint(
    folder: Path, store: object, background: str, patience: Patience | None = None
) -> JointCollection | None:
    """The candidates of an index, for searching and for whoever adds a model; None if there are none that fit.

    Args:
        folder: Of the index.
        store: Its store; only one on a server has candidates.
        background: Fingerprint of the index's background now.
        patience: With the server, None for what the environment says.

    Raises:
        IndexDamagedError: The code cannot be read.
        StoreError: The server refused or did not answer.
    """
    try:
        return need_joint(folder, store, background, patience)
    except InputError:
        return None


def need_joint(folder: Path, store: object, background: str, patience: Patience | None = None) -> JointCollection:
    """The candidates of an index; see :func:`open_joint`.

    Raises:
        InputError: There are none, or they were made with another background or code.
        IndexDamagedError: The code cannot be read.
        StoreError: The server refused or did not answer.
    """
    if not isinstance(store, ServerStore):
        raise InputError("only an index on a Qdrant server has candidates: leave --engine candidates out")
    again = "make them with 'hubhound index candidates --index ADDRESS'"
    recall = JointRecall.read(folder)
    if recall is None or not (folder / CODE_FILE).exists():
        raise InputError(f"the index {store.name} has no candidates: {again}")
    code = JointCode.load(folder / CODE_FILE)
    if code.fingerprint != recall.code:
        raise InputError(f"the files in {folder / FOLDER} do not belong together: {again}")
    if code.background != background:
        raise InputError(f"the candidates of {store.name} were made with another background: {again}")
    on = _collections(store, patience)
    metadata = on.metadata(PART) if on.exists(PART) else {}
    if metadata.get("code") != code.fingerprint or not metadata.get("complete"):
        raise InputError(f"the candidates of {store.name} on the server are not those of the index: {again}")
    return JointCollection(store, code, recall, patience)


def drop_joint(store: ServerStore, patience: Patience | None = None) -> bool:
    """Deletes the collection; whether there was one.

    Raises:
        StoreError: The server refused or did not answer.
    """
    on = _collections(store, patience)
    there = on.exists(PART, "write to") and on.is_ours(PART, on.metadata(PART, "write to"))
    on.delete(PART)
    return there


def _collections(store: ServerStore, patience: Patience | None) -> Collections:
    return Collections(store.client, store.name, patience or patience_with(store.client, store.name))


def _options(code: JointCode, storage: Storage) -> dict[str, Any]:
    graph = qm.HnswConfigDiff(m=LINKS, ef_construct=BUILD_BREADTH)
    eight_bits = qm.ScalarQuantization(
        scalar=qm.ScalarQuantizationConfig(type=qm.ScalarType.INT8, quantile=QUANTILE, always_ram=True)
    )
    vector = qm.VectorParams(
        size=code.size,
        distance=qm.Distance.DOT,
        datatype=qm.Datatype.FLOAT32 if storage == "float32" else qm.Datatype.FLOAT16,
        on_disk=storage == "int8",
        hnsw_config=graph,
        quantization_config=eight_bits if storage == "int8" else None,
    )
    return {"vectors_config": {VECTOR: vector}}
