"""A small collection on a server and in qdrant-client's local mode, to be asked the same."""

from __future__ import annotations

import random
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as qm

COUNT = 60
"""Points of the collection; those of even rows have a UUID, the others their row as id."""

Ask = Callable[[Callable[[QdrantClient, str], Any]], Any]
"""Asks both kinds the same, and returns the answer if they agree."""


@contextmanager
def asking(server: QdrantClient, indexed: bool = True) -> Iterator[Ask]:
    """A filled collection of both kinds, until the end of the block, which closes the client.

    Args:
        server: A client of the server.
        indexed: With payload indexes, which facets and orders need.
    """
    clients = [server, QdrantClient(":memory:")]
    name = f"test_{uuid.uuid4().hex}"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Payload indexes have no effect in the local Qdrant")
        for client in clients:
            fill(client, name, indexed)

    def ask(question: Callable[[QdrantClient, str], Any]) -> Any:
        here, there = (plain(question(client, name)) for client in clients)
        assert_same(here, there)
        return here

    try:
        yield ask
    finally:
        clients[0].delete_collection(name)
        for client in clients:
            client.close()


def fill(client: QdrantClient, name: str, indexed: bool) -> None:
    client.create_collection(
        name,
        vectors_config={"dense": qm.VectorParams(size=4, distance=qm.Distance.DOT)},
        sparse_vectors_config={"sparse": qm.SparseVectorParams(index=qm.SparseIndexParams(on_disk=True))},
    )
    fields = {"group": "keyword", "number": "integer", "half": "float", "flag": "bool", "word": "keyword"}
    indexes = {**fields, "holders[].library": "keyword", "holders[].licence": "keyword"} if indexed else {}
    for field, kind in indexes.items():
        client.create_payload_index(name, field, kind)
    client.upsert(name, points(), wait=True)


def points() -> list[qm.PointStruct]:
    draw = random.Random(5)
    numbers = np.random.default_rng(5)
    return [
        qm.PointStruct(
            id=row if row % 2 else str(uuid.UUID(int=row + 1)),
            vector={
                "dense": numbers.normal(size=4).astype(np.float32).tolist(),
                "sparse": qm.SparseVector(
                    indices=sorted(draw.sample(range(20), 5)), values=numbers.uniform(0.1, 2, 5).tolist()
                ),
            },
            payload=_payload(row, draw),
        )
        for row in range(COUNT)
    ]


def _payload(row: int, draw: random.Random) -> dict[str, Any]:
    payload: dict[str, Any] = {
        "group": f"g{row % 4}",
        "number": row // 2,
        "half": row / 2,
        "flag": row % 3 == 0,
        "holders": [
            {
                "model": f"org/m{draw.randrange(5)}",
                "library": draw.choice(["timm", "onnx", "open_clip"]),
                "licence": draw.choice(["mit", "apache-2.0", None]),
                "parameters": draw.choice([None, 1e6, 2.5e7, 8.6e7]),
            }
            for _ in range(draw.randrange(4))
        ],
        "exact": "aGVsbG8=" * 3,
    }
    if row % 5:
        payload["word"] = draw.choice(["red", "green", "blue"])
    if row % 7 == 0:
        payload["nothing"] = None
    if row % 6 == 0:
        payload["many"] = list(range(row % 4))
    return payload


def plain(answer: Any) -> Any:
    """An answer as JSON, without numbers of versions and operations, and without empty payloads.

    Over gRPC an empty payload and none are the same, and the client says now the one, now the other.
    """
    if isinstance(answer, qm.BaseModel):
        return plain(answer.model_dump(mode="json", exclude_none=True))
    if isinstance(answer, dict):
        left_out = {"version", "operation_id"} | ({"payload"} if answer.get("payload") == {} else set())
        return {key: plain(value) for key, value in answer.items() if key not in left_out}
    if isinstance(answer, (list, tuple)):
        return [plain(value) for value in answer]
    return answer


def assert_same(here: Any, there: Any) -> None:
    """Equal, but for the rounding of sums of float32."""
    if isinstance(here, float) and isinstance(there, float):
        assert here == pytest.approx(there, rel=1e-5, abs=1e-6)
    elif isinstance(here, dict) and isinstance(there, dict):
        assert here.keys() == there.keys()
        for key, value in here.items():
            assert_same(value, there[key])
    elif isinstance(here, list) and isinstance(there, list):
        assert len(here) == len(there)
        for one, other in zip(here, there, strict=True):
            assert_same(one, other)
    else:
        assert (type(here), here) == (type(there), there)
