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
Which models it has stands in their records (:mod:`engine.store.joined`).
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qdrant_client import models as qm

from engine.descriptors import ConceptDescriptors
from engine.errors import InputError, StoreError
from engine.joint import JointCode
from engine.joint_recall import CODE_FILE, FOLDER, JointRecall, Storage, candidates_wanted
from engine.outputs import FloatArray, OutputTable
from engine.prefetch import Candidates, Prefetch
from engine.remote import shown
from engine.schema import output_point_id
from engine.store import records
from engine.store.base import StoreFilter, StoreHit
from engine.store.joined import JoinedModels
from engine.store.patience import Pace, Patience, patience_with
from engine.store.server import ServerChoices, ServerStore
from engine.store.server_client import Collections, equal_all, equals
from engine.store.server_config import OUR_MARK

PART = "joint"
VECTOR = "joint"
MADE = "made"
"""In the metadata and on every point: which making of the collection it belongs to."""

LINKS = 32
"""Of an output in the graph (``m``)."""

BUILD_BREADTH = 256
"""Outputs kept in hand while one is put into the graph (``ef_construct``)."""

QUANTILE = 0.999
"""Share of the numbers that 8 bits span; the largest are cut off."""

_BATCH = 500  # points in a request: 7 MB of JSON at 641 dimensions
_POLL_S = 0.5
_FORMAT = 2  # 1 did not say which models it has


class JointCollection:
    """Candidates for concepts from a graph; see :func:`open_joint` and :func:`need_joint`.

    Args:
        store: The index's.
        code: Encodes outputs and concepts.
        recall: What was measured, None while it is being filled.
        made: Identity of the collection, drawn when it was made.
        patience: With the server, None for what the environment says.

    Attributes:
        joined: Which of the index's models it has.
    """

    def __init__(
        self,
        store: ServerStore,
        code: JointCode,
        recall: JointRecall | None,
        made: str,
        patience: Patience | None = None,
    ) -> None:
        self.store = store
        self.code = code
        self.recall = recall
        self.overlong = 0
        self._made = made
        self._on = _collections(store, patience)
        self._pace = Pace(_BATCH)
        self.joined = JoinedModels(self._on, made)

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
        made = uuid.uuid4().hex[:8]
        metadata = {OUR_MARK: PART, "format": _FORMAT, "code": code.fingerprint, MADE: made, "complete": False}
        on.create(PART, _options(code, storage), choices, metadata)
        new = cls(store, code, None, made, patience)
        new.joined.index()
        return new

    def put(self, table: OutputTable) -> None:
        """Writes the vectors of one model's outputs; acknowledged when it returns. Repeating it changes nothing.

        If the candidates were removed or made anew meanwhile, nothing need be written: the model is one that they miss.

        Raises:
            StoreError: The server refused or did not answer.
        """
        encoded = [(table, self.code.encode_outputs(table))]
        with self._while_it_stands():
            self.put_encoded(encoded)

    def put_encoded(self, encoded: Sequence[tuple[OutputTable, FloatArray]]) -> None:
        """As ``put``, of several models whose vectors are known."""
        points = []
        for table, vectors in encoded:
            self.overlong += self.code.overlong(vectors)
            for output, vector in zip(table.output.tolist(), vectors.tolist(), strict=True):
                payload = {records.REPO: table.repo, records.REVISION: table.revision, records.OUTPUT: output}
                payload[MADE] = self._made
                point_id = output_point_id(table.repo, table.revision, output)
                points.append(qm.PointStruct(id=point_id, vector={VECTOR: vector}, payload=payload))
        self._on.put(PART, points, self._pace)

    def claim(self, table: OutputTable) -> None:
        """Says that the vectors of a model are there, after its record was written; ``put`` comes before that.

        Whoever removes them meanwhile (``remove_revision``) takes the mark away after the vectors: so the mark is set
        before they are counted, and put again if some are gone.

        Args:
            table: Its outputs.

        Raises:
            StoreError: The server refused or did not answer.
        """
        with self._while_it_stands():
            self.joined.mark([(table.repo, table.revision)])
            if self.holdings(repos=[table.repo])[table.repo, table.revision] < len(table):
                self.put(table)

    def remove_revision(self, repo: str, revision: str) -> None:
        """Removes the outputs of one revision, and leaves alone what others may be putting in.

        Raises:
            StoreError: The server refused or did not answer.
        """
        self._remove(_of(repo, revision))

    def remove(self, repo: str, keep_revision: str | None = None) -> None:
        """Removes a repository's outputs, except those of one revision.

        Raises:
            StoreError: The server refused or did not answer.
        """
        kept: list[qm.Condition] = [] if keep_revision is None else [equals(records.REVISION, keep_revision)]
        self._remove(qm.Filter(must=[equals(records.REPO, repo)], must_not=kept))

    def _remove(self, where: qm.Filter) -> None:
        with self._while_it_stands():
            self._on.remove(PART, where)
            self.joined.unmark(where)  # in this order; see claim

    @contextmanager
    def _while_it_stands(self) -> Iterator[None]:
        """Overlooks what goes wrong because the collection was removed or made anew since it was opened."""
        try:
            yield
        except StoreError:
            if self._on.exists(PART, "write to") and self._on.metadata(PART, "write to").get(MADE) == self._made:
                raise

    def count(self) -> int:
        """Number of outputs in it."""
        return self._on.count(PART)

    def holdings(
        self, progress: Callable[[int, int], None] | None = None, repos: Iterable[str] | None = None
    ) -> Counter[tuple[str, str]]:
        """How many outputs of which models it holds, by repository and revision.

        Vectors that somebody put in who took it for the collection that it replaced count 0.

        Args:
            progress: Called with (outputs read, outputs in all).
            repos: Only of these repositories; None for all.
        """
        total, found = self.count() if progress else 0, Counter[tuple[str, str]]()
        fields = [records.REPO, records.REVISION, MADE]
        where = None
        if repos is not None:
            where = qm.Filter(must=[qm.FieldCondition(key=records.REPO, match=qm.MatchAny(any=sorted(set(repos))))])
        for done, point in enumerate(self._on.scroll(PART, where, fields, False, Pace(10 * _BATCH)), 1):
            payload = point.payload or {}
            found[payload[records.REPO], payload[records.REVISION]] += payload.get(MADE) == self._made
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
        until = time.monotonic() + timeout_s
        while True:
            info = self._info()
            done = info.indexed_vectors_count or 0
            if progress:
                progress(done, info.points_count or 0)
            if info.status == qm.CollectionStatus.GREEN:
                return done
            if time.monotonic() > until:
                raise StoreError(
                    f"the graph of {self._on.of(PART)} is not complete after {timeout_s:.0f} s: run the command again "
                    "with more time (--build-timeout)",
                    self._on.patience.where,
                )
            if info.status == qm.CollectionStatus.GREY:  # after a restart a server waits for a write to go on
                self._on.patience.call("write to", self._wake)
            time.sleep(_POLL_S)

    def in_graph(self) -> int:
        """Outputs in the graph at present; the others are compared one by one."""
        return self._info().indexed_vectors_count or 0

    def _info(self) -> qm.CollectionInfo:
        return self._on.patience.call("read", lambda: self._on.client.get_collection(self._on.of(PART)))

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
    name = shown(folder)
    again = f"make them with 'hubhound index candidates --index {name}'"
    recall = JointRecall.read(folder)
    if recall is None or not (folder / CODE_FILE).exists():
        raise InputError(f"the index {name} has no candidates: {again}")
    code = JointCode.load(folder / CODE_FILE)
    if code.fingerprint != recall.code:
        raise InputError(f"the files in {folder / FOLDER} do not belong together: {again}")
    if code.background != background:
        raise InputError(f"the candidates of {store.name} were made with another background: {again}")
    on = _collections(store, patience)
    metadata = on.metadata(PART) if on.exists(PART) else {}
    if metadata.get("code") != code.fingerprint or not metadata.get("complete"):
        raise InputError(f"the candidates of {store.name} on the server are not those of the index: {again}")
    if metadata.get("format") != _FORMAT:
        raise InputError(f"the candidates of {store.name} were made by another version of hubhound: {again}")
    return JointCollection(store, code, recall, str(metadata.get(MADE)), patience)


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


def _of(repo: str, revision: str) -> qm.Filter:
    return equal_all({records.REPO: repo, records.REVISION: revision})


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
