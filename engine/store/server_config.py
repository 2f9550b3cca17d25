"""How the collections of an index on a server are made, and how they are recognised.

``NAME_outputs`` has a point an output, ``NAME_models`` a point a model, ``NAME_profiles`` a point a task, profile or
performance. Metadata of each say whose they are; those of ``NAME_models``, which is created last, hold the layout, so
that a store is complete when it has one.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qdrant_client import models as qm

from engine.errors import IndexMismatchError, StoreError
from engine.store import records
from engine.store.base import StoreLayout
from engine.store.knowledge import KIND, MODEL, NAME, TASK
from engine.store.points import CALIBRATION, HOLDERS, LABELLED, REMOVED, SEQ, STATE, WRITTEN

FORMAT = 2
"""Of the records on a server: 2 has sequence numbers and tombstones of models, holders and labelled of outputs."""

OUR_MARK = "hubhound"
"""Key of a collection's metadata: its part of the index. Nothing without it is ever deleted."""


PARTS = ("models", "outputs", "profiles", "files", "joint")
"""Every collection that an index may have, in the order in which they are deleted: without models there is none."""


@dataclass(frozen=True)
class ServerChoices:
    """What can be chosen when an index is created on a cluster.

    Attributes:
        shards: Parts that each collection is cut into, spread over the nodes.
        replicas: Copies of each part, on different nodes.
        write_consistency: Copies that must have a write before it is acknowledged, 1..replicas.
    """

    shards: int = 1
    replicas: int = 1
    write_consistency: int = 1

    def check(self, where: str) -> None:
        """Refuses what no cluster can do.

        Raises:
            StoreError: A number is below 1, or more copies are to acknowledge than there are.
        """
        for name, value in dataclasses.asdict(self).items():
            if not 1 <= value <= 1000:
                raise StoreError(f"{name.replace('_', ' ')} is {value}: use a number from 1 to 1000", where)
        if self.write_consistency > self.replicas:
            raise StoreError(
                f"{self.write_consistency} copies cannot acknowledge a write where there are {self.replicas}: "
                "use a write consistency of at most the replicas",
                where,
            )


@dataclass(frozen=True)
class StoreFacts:
    """What the metadata of a store say.

    Attributes:
        identity: Of the store, a UUID drawn when it was created; empty in format 1, which had none.
        format: Of its records.
        layout: What its vectors are made of.
    """

    identity: str
    format: int
    layout: StoreLayout


def new_metadata(layout: StoreLayout) -> dict[str, Any]:
    """Metadata of ``NAME_models`` of a new store, with an identity of its own."""
    return {OUR_MARK: "models", "format": FORMAT, "identity": str(uuid.uuid4()), **dataclasses.asdict(layout)}


def read_metadata(metadata: Mapping[str, Any] | None, name: str, where: str) -> StoreFacts:
    """What the metadata of ``NAME_models`` say.

    Args:
        metadata: As stored.
        name: Of the index.
        where: URL of the server.

    Raises:
        StoreError: They are not ours.
        IndexMismatchError: A newer version made them.
    """
    fields = {field.name: (metadata or {}).get(field.name) for field in dataclasses.fields(StoreLayout)}
    found = (metadata or {}).get("format")
    if type(found) is not int or not isinstance(fields["method"], str):
        raise StoreError(
            f"the collection {name}_models at {where} is not part of an index, but of another project: "
            "choose another name for the index",
            where,
        )
    if found > FORMAT or found < 1:
        message = (
            f"the index {name} at {where} has format {found}, this version reads up to {FORMAT}: update hubhound here"
        )
        raise IndexMismatchError(message, "store format", FORMAT, found)
    numbers = {key: value for key, value in fields.items() if key != "method"}
    if not all(type(value) is int and value > 0 for value in numbers.values()):
        raise StoreError(f"the metadata of {name}_models at {where} are damaged: restore a backup of the index", where)
    identity = str((metadata or {}).get("identity") or "")
    return StoreFacts(identity, found, StoreLayout(**numbers, method=fields["method"]))  # type: ignore[arg-type]


def outputs_options(layout: StoreLayout) -> dict[str, Any]:
    """Vectors of ``NAME_outputs``; the reasons stand in docs/index-format.md."""
    # No graph, it would silently miss most of the best inner products of vectors of such different lengths; float32,
    # because halving the weights loses one per cent of the true top hits; no quantisation, scores are to be exact.
    dense = qm.VectorParams(
        size=layout.dimension + 1,
        distance=qm.Distance.DOT,
        on_disk=True,
        datatype=qm.Datatype.FLOAT32,
        hnsw_config=qm.HnswConfigDiff(m=0),
    )
    sparse = qm.SparseVectorParams(index=qm.SparseIndexParams(on_disk=True, datatype=qm.Datatype.FLOAT32))
    return {"vectors_config": {records.GLOBAL: dense}, "sparse_vectors_config": {records.LOCAL: sparse}}


def plain_options() -> dict[str, Any]:
    """Vectors of collections that are not searched by vectors: one that stays empty, as in the embedded store."""
    return {"vectors_config": {}, "sparse_vectors_config": {"none": qm.SparseVectorParams()}}


def _keyword(tenant: bool = False) -> qm.KeywordIndexParams:
    return qm.KeywordIndexParams(type=qm.KeywordIndexType.KEYWORD, is_tenant=True if tenant else None)


def _number(lookup: bool = False) -> qm.IntegerIndexParams:
    return qm.IntegerIndexParams(type=qm.IntegerIndexType.INTEGER, range=True, lookup=lookup)


PAYLOAD_INDEXES: dict[str, dict[str, Any]] = {
    "outputs": {
        # A tenant's points are laid side by side, so that those of one model are read together.
        records.REPO: _keyword(tenant=True),
        records.REVISION: _keyword(),
        LABELLED: qm.BoolIndexParams(type=qm.BoolIndexType.BOOL),
        records.BACKGROUND: _keyword(),
        WRITTEN: _number(),
        **{f"{HOLDERS}[].{field}": _keyword() for field in ("model", "library", "licence", "architecture")},
        **{f"{HOLDERS}[].{field}": _number() for field in ("parameters", "downloads")},
    },
    "models": {
        SEQ: _number(),
        records.REPO: _keyword(),
        records.COPY_OF: _keyword(),
        STATE: _keyword(),
        CALIBRATION: _keyword(),
        REMOVED: qm.BoolIndexParams(type=qm.BoolIndexType.BOOL),
    },
    "joint": {records.REPO: _keyword(), records.REVISION: _keyword()},
    "profiles": {MODEL: _keyword(tenant=True), TASK: _keyword(), NAME: _keyword(), KIND: _keyword()},
}
"""Indexes of payload fields by part: every field that a request selects or orders by has one."""
