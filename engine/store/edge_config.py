"""How the shards of the embedded store are made, and the file that says what its vectors are made of."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import qdrant_edge as qe

from engine.errors import IndexMismatchError
from engine.store import records
from engine.store.base import StoreLayout
from engine.store.shard import engine_errors

LAYOUT_FILE = "layout.json"
_FORMAT = 1

_INDEX_FROM_KB = 64_000
"""Size of the vectors of a segment from which its sparse index is written to disk: 40,000 outputs at d = 384. Below,
the index is made in memory on opening, within a second; on disk its short lists would take 850 bytes an
output, above they pack into 550 to 600."""


def outputs_config(layout: StoreLayout) -> qe.EdgeConfig:
    """Vectors of the shard of the outputs."""
    # Everything that can be large stays on disk (Cold: memory-mapped, without read-ahead): an indexer that opens an
    # index of a million outputs must not load gigabytes, and searches go to the snapshot.
    # No graph over the dense vectors (m = 0): it takes minutes to build, and a graph over raw inner products of vectors
    # of such different lengths silently misses most of the best.
    dense = qe.EdgeVectorParams(
        size=layout.dimension + 1,
        distance=qe.Distance.Dot,
        memory=qe.Memory.Cold,
        hnsw_config=qe.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=10_000),
    )
    # float32: halving the weights loses one per cent of the true top hits.
    sparse = qe.EdgeSparseVectorParams(memory=qe.Memory.Cold, datatype=qe.VectorStorageDatatype.Float32)
    return qe.EdgeConfig(
        vectors={records.GLOBAL: dense},
        sparse_vectors={records.LOCAL: sparse},
        payload_memory=qe.Memory.Cold,
        id_tracker_memory=qe.Memory.Cold,
        optimizers=qe.EdgeOptimizersConfig(indexing_threshold=_INDEX_FROM_KB),
    )


def plain_config() -> qe.EdgeConfig:
    """Vectors of shards that are not searched by vectors."""
    # The engine insists on a vector; this one stays empty.
    return qe.EdgeConfig(sparse_vectors={"none": qe.EdgeSparseVectorParams()}, payload_memory=qe.Memory.Cold)


def write_layout(file: Path, layout: StoreLayout) -> None:
    """Writes what a store's vectors are made of; it is there whole or not at all."""
    temporary = file.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as handle:
        json.dump({"format": _FORMAT, **dataclasses.asdict(layout)}, handle)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(file)


def read_layout(file: Path) -> StoreLayout:
    """Reads what a store's vectors are made of.

    Raises:
        IndexMismatchError: Another version of the code wrote it.
        StoreError: It is damaged.
    """
    with engine_errors("open", file.parent):
        stored = json.loads(file.read_text(encoding="utf-8"))
        found = stored.pop("format")
        if found != _FORMAT:
            message = (
                f"the store in {file.parent} has format {found}, this version reads {_FORMAT}: index its models again"
            )
            raise IndexMismatchError(message, "store format", _FORMAT, found)
        return StoreLayout(**stored)
