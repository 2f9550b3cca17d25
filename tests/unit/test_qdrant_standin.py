"""The stand-in server answers as qdrant-client's own local mode does: the same operations on both, answers compared."""

from __future__ import annotations

import functools
import random
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from tests.support.qdrant_congruence import COUNT, Ask, asking, assert_same, plain, points
from tests.support.stores import GRPC_KINDS, server_client

HOLDER_FIELDS = ("library", "licence")


KINDS = ["standin", pytest.param("server", marks=pytest.mark.server), *GRPC_KINDS]


@pytest.fixture(scope="module", params=KINDS)
def connected(request: pytest.FixtureRequest) -> Callable[[], QdrantClient]:
    """Where there is a real server, it must agree as well: these are tests of what the stand-in pretends to be."""
    return functools.partial(server_client, request.param)


@pytest.fixture(scope="module")
def both(connected: Callable[[], QdrantClient]) -> Iterator[Ask]:
    """A filled collection that nobody may change."""
    with asking(connected()) as ask:
        yield ask


@pytest.fixture
def writable(connected: Callable[[], QdrantClient]) -> Iterator[Ask]:
    """A filled collection of one's own."""
    with asking(connected(), indexed=False) as ask:
        yield ask


def _match(field: str, value: Any) -> qm.FieldCondition:
    return qm.FieldCondition(key=field, match=qm.MatchValue(value=value))


def test_all_is_there(both: Ask) -> None:
    records, offset = both(lambda client, name: client.scroll(name, limit=100, with_vectors=True))
    assert len(records) == COUNT
    assert offset is None
    assert set(records[0]["vector"]) == {"dense", "sparse"}
    assert both(lambda client, name: client.count(name))["count"] == COUNT
    assert both(lambda client, name: client.collection_exists(name)) is True
    assert both(lambda client, name: client.collection_exists(name + "-")) is False


def test_vectors_and_payload_come_back_as_they_were_written(both: Ask) -> None:
    written = {str(point.id): point for point in points()}
    records, _ = both(lambda client, name: client.scroll(name, limit=100, with_vectors=True))
    for record in records:
        point: Any = written[str(record["id"])]
        assert record["payload"] == plain(point.payload)
        assert record["vector"]["dense"] == point.vector["dense"]
        assert record["vector"]["sparse"]["indices"] == point.vector["sparse"].indices
        assert record["vector"]["sparse"]["values"] == np.float32(point.vector["sparse"].values).tolist()


def test_pages_by_id(both: Ask) -> None:
    def pages(client: QdrantClient, name: str) -> list[Any]:
        found, offset = [], None
        while True:
            page, offset = client.scroll(name, limit=7, offset=offset, with_payload=["number"])
            found.append((page, offset))
            if offset is None:
                return found

    found = both(pages)
    assert len(found) == 9
    ids = [record["id"] for page, _ in found for record in page]
    assert ids == [*range(1, COUNT, 2), *(str(uuid.UUID(int=row + 1)) for row in range(0, COUNT, 2))]


def test_retrieve(both: Ask) -> None:
    ids = [3, str(uuid.UUID(int=5)), 999, 1]
    found = both(lambda client, name: client.retrieve(name, ids, with_payload=True, with_vectors=["sparse"]))
    assert [record["id"] for record in found] == [3, str(uuid.UUID(int=5)), 1]
    both(lambda client, name: client.retrieve(name, ids, with_payload=["group", "holders[].library"]))
    both(lambda client, name: client.retrieve(name, ids, with_payload=qm.PayloadSelectorExclude(exclude=["exact"])))
    bare = both(lambda client, name: client.retrieve(name, ids, with_payload=False))
    assert bare == [{"id": one} for one in (3, str(uuid.UUID(int=5)), 1)]


def test_order_by_a_number_and_go_on_from_there(both: Ask) -> None:
    def ordered(direction: qm.Direction, start: float | None) -> Any:
        order = qm.OrderBy(key="half", direction=direction, start_from=start)
        return both(lambda client, name: client.scroll(name, limit=9, order_by=order, with_payload=["half"]))

    found, offset = ordered(qm.Direction.ASC, None)
    assert offset is None
    assert [record["payload"]["half"] for record in found] == [row / 2 for row in range(9)]
    found, _ = ordered(qm.Direction.DESC, 10.0)
    assert [record["payload"]["half"] for record in found] == [10 - row / 2 for row in range(9)]


NESTED = qm.NestedCondition(
    nested=qm.Nested(
        key="holders",
        filter=qm.Filter(
            must=[_match("library", "timm"), qm.FieldCondition(key="parameters", range=qm.Range(lte=3e7))],
            must_not=[_match("licence", "mit")],
        ),
    )
)
FILTERS: dict[str, qm.Filter] = {
    "value": qm.Filter(must=[_match("group", "g1")]),
    "bool": qm.Filter(must=[_match("flag", True)]),
    "one condition, no list": qm.Filter(must=_match("group", "g1")),
    "any": qm.Filter(must=[qm.FieldCondition(key="word", match=qm.MatchAny(any=["red", "blue"]))]),
    "any of nothing": qm.Filter(must=[qm.FieldCondition(key="word", match=qm.MatchAny(any=[]))]),
    "except": qm.Filter(must=[qm.FieldCondition(key="word", match=qm.MatchExcept(**{"except": ["red"]}))]),
    "text": qm.Filter(must=[qm.FieldCondition(key="word", match=qm.MatchText(text="green"))]),
    "range": qm.Filter(must=[qm.FieldCondition(key="number", range=qm.Range(gt=3, lte=20))]),
    "range of a float": qm.Filter(must=[qm.FieldCondition(key="half", range=qm.Range(gte=4.5, lt=20))]),
    "should": qm.Filter(should=[_match("group", "g1"), _match("word", "red")]),
    "must not": qm.Filter(must=[_match("group", "g1")], must_not=[_match("word", "red")]),
    "min should": qm.Filter(
        min_should=qm.MinShould(
            conditions=[_match("group", "g1"), _match("word", "red"), _match("flag", True)], min_count=2
        )
    ),
    "has id": qm.Filter(must=[qm.HasIdCondition(has_id=[1, 2, 3, str(uuid.UUID(int=5))])]),
    "not these ids": qm.Filter(must_not=[qm.HasIdCondition(has_id=[1, 2, 3])]),
    "has vector": qm.Filter(must=[qm.HasVectorCondition(has_vector="sparse")]),
    "is empty": qm.Filter(must=[qm.IsEmptyCondition(is_empty=qm.PayloadField(key="many"))]),
    "is null": qm.Filter(must=[qm.IsNullCondition(is_null=qm.PayloadField(key="nothing"))]),
    "values count": qm.Filter(must=[qm.FieldCondition(key="holders", values_count=qm.ValuesCount(gte=2))]),
    "nested": qm.Filter(must=[NESTED]),
    "not nested": qm.Filter(must_not=[NESTED]),
    "inside an array": qm.Filter(must=[_match("holders[].library", "onnx")]),
    "filters in filters": qm.Filter(
        should=[qm.Filter(must=[_match("group", "g1"), NESTED]), qm.Filter(must_not=[_match("flag", False)])]
    ),
    "empty": qm.Filter(),
}


@pytest.mark.parametrize("case", list(FILTERS))
def test_filters(case: str, both: Ask) -> None:
    where = FILTERS[case]
    records, _ = both(lambda client, name: client.scroll(name, where, limit=100, with_payload=False))
    assert both(lambda client, name: client.count(name, where))["count"] == len(records)
    expected = {"any of nothing": 0, "has vector": COUNT, "empty": COUNT}
    assert len(records) == expected[case] if case in expected else 0 < len(records) < COUNT


def _drawn_filter(draw: random.Random, depth: int, nested: bool = False) -> qm.Filter:
    def leaf() -> Any:
        if nested:
            field = draw.choice(HOLDER_FIELDS)
            text: Any = _match(field, draw.choice(["timm", "onnx", "mit", "none"]))
            limit = qm.FieldCondition(key="parameters", range=qm.Range(gte=draw.choice([1e6, 1e7])))
            return draw.choice([text, limit])
        return draw.choice(
            [
                _match("group", f"g{draw.randrange(5)}"),
                qm.FieldCondition(key="number", range=qm.Range(gte=draw.randrange(30))),
                qm.FieldCondition(key="word", match=qm.MatchAny(any=draw.sample(["red", "green", "blue"], 2))),
                qm.HasIdCondition(has_id=draw.sample(range(COUNT), 20)),
                qm.IsEmptyCondition(is_empty=qm.PayloadField(key="word")),
                qm.NestedCondition(
                    nested=qm.Nested(key="holders", filter=_drawn_filter(draw, 0, nested=True)),
                ),
            ]
        )

    def conditions() -> list[Any] | None:
        count = draw.randrange(3)
        made = [_drawn_filter(draw, depth - 1) if depth and draw.random() < 0.3 else leaf() for _ in range(count)]
        return made or None

    return qm.Filter(must=conditions(), should=conditions(), must_not=conditions())


def test_drawn_filters(both: Ask) -> None:
    draw = random.Random(11)
    counts = set()
    for _ in range(60):
        where = _drawn_filter(draw, 2)
        records, _ = both(lambda client, name, where=where: client.scroll(name, where, limit=100, with_payload=False))
        counts.add(len(records))
    assert len(counts) > 15  # the filters do select


DENSE = [0.3, -1.0, 0.25, 0.9]
SPARSE = qm.SparseVector(indices=[1, 4, 7, 9, 12], values=[1.0, 0.5, 2.0, 0.7, 1.1])


@pytest.mark.parametrize("query", [DENSE, SPARSE, 7], ids=["dense", "sparse", "id"])
def test_nearest(query: Any, both: Ask) -> None:
    using = "sparse" if isinstance(query, qm.SparseVector) else "dense"

    def ask(**options: Any) -> list[Any]:
        found: list[Any] = both(lambda client, name: client.query_points(name, query=query, using=using, **options))[
            "points"
        ]
        return found

    best = ask(limit=20, with_payload=["group"])
    assert len(best) == 20
    assert all(point["id"] != query for point in best)
    assert ask(limit=5, offset=3, with_payload=["group"]) == best[3:8]
    above = ask(limit=20, score_threshold=best[4]["score"] + 1e-3)
    assert [point["id"] for point in above] == [point["id"] for point in best[:4]]
    allowed = ask(limit=20, query_filter=FILTERS["value"], with_payload=True, with_vectors=[using])
    assert {point["payload"]["group"] for point in allowed} == {"g1"}
    known = [1, 3, 5, 9]
    found = ask(limit=20, query_filter=qm.Filter(must=[qm.HasIdCondition(has_id=known)]))
    assert 2 <= len(found) <= 4  # a sparse query does not find what shares no dimension with it
    assert {point["id"] for point in found} <= set(known)


def test_points_without_a_query_and_by_order(both: Ask) -> None:
    found = both(lambda client, name: client.query_points(name, limit=3, query_filter=FILTERS["value"]))["points"]
    assert len(found) == 3
    ordered = qm.OrderByQuery(order_by=qm.OrderBy(key="half", direction=qm.Direction.DESC))
    found = both(lambda client, name: client.query_points(name, query=ordered, limit=3, with_payload=["half"]))
    assert [point["payload"]["half"] for point in found["points"]] == [29.5, 29.0, 28.5]


def test_prefetch_fusion_and_formula(both: Ask) -> None:
    stages = [
        qm.Prefetch(query=DENSE, using="dense", limit=10),
        qm.Prefetch(query=SPARSE, using="sparse", limit=10, filter=FILTERS["range"]),
    ]
    fused = qm.FusionQuery(fusion=qm.Fusion.RRF)

    def by_score(client: QdrantClient, name: str) -> list[Any]:  # equal scores come in any order
        found = client.query_points(name, prefetch=stages, query=fused, limit=30).points
        return sorted((-point.score, str(point.id)) for point in found)

    assert len(both(by_score)) > 10
    formula = qm.FormulaQuery(formula=qm.SumExpression(sum=["$score", qm.MultExpression(mult=[0.1, "half"])]))
    both(lambda client, name: client.query_points(name, prefetch=stages[:1], query=formula, limit=10))
    rescored = both(lambda client, name: client.query_points(name, prefetch=stages, query=DENSE, using="dense"))
    assert len(rescored["points"]) == 10


def test_queries_in_a_batch(both: Ask) -> None:
    requests = [
        qm.QueryRequest(query=DENSE, using="dense", limit=4, with_payload=["group"]),
        qm.QueryRequest(query=SPARSE, using="sparse", limit=3, score_threshold=0.5, filter=FILTERS["any"]),
    ]
    found = both(lambda client, name: client.query_batch_points(name, requests))
    assert [len(answer["points"]) for answer in found] == [4, 3]


def test_facets(both: Ask) -> None:
    def hits(key: str, **options: Any) -> dict[Any, int]:
        def ask(client: QdrantClient, name: str) -> list[tuple[Any, int]]:
            answer = client.facet(name, key, exact=True, **options)
            return sorted((str(hit.value), hit.count) for hit in answer.hits)

        return dict(both(ask))

    assert hits("group") == {f"g{one}": COUNT // 4 for one in range(4)}
    assert set(hits("holders[].library")) == {"timm", "onnx", "open_clip"}
    assert hits("group", facet_filter=FILTERS["bool"], limit=10) != hits("group")
    assert len(hits("word", limit=2)) == 2


def test_updates(writable: Ask) -> None:
    def everything() -> Any:
        return writable(lambda client, name: client.scroll(name, limit=100, with_vectors=True))[0]

    def change(what: Callable[[QdrantClient, str], Any]) -> None:
        before = everything()
        writable(lambda client, name: what(client, name).status)
        assert everything() != before

    some = qm.Filter(must=[_match("group", "g2")])
    change(lambda client, name: client.set_payload(name, {"new": {"a": [1, None]}}, points=[1, 3], wait=True))
    change(lambda client, name: client.set_payload(name, {"a": 2, "b": 1.5}, points=[1, 3], key="new", wait=True))
    change(lambda client, name: client.set_payload(name, {"labelled": True}, points=some, wait=True))
    change(lambda client, name: client.overwrite_payload(name, {"only": "this"}, points=[5], wait=True))
    change(lambda client, name: client.delete_payload(name, ["group", "flag"], points=some, wait=True))
    change(lambda client, name: client.delete_payload(name, ["half"], points=[7], wait=True))
    change(lambda client, name: client.clear_payload(name, points_selector=[9, 11], wait=True))
    vectors = [qm.PointVectors(id=13, vector={"dense": [1.0, 2.0, 3.0, 4.0]})]
    change(lambda client, name: client.update_vectors(name, vectors, wait=True))
    change(lambda client, name: client.delete_vectors(name, ["sparse"], points=[15], wait=True))
    change(lambda client, name: client.delete(name, [17, 19], wait=True))
    change(
        lambda client, name: client.delete(name, qm.FilterSelector(filter=qm.Filter(must=[_match("number", 4)])), True)
    )
    replaced = qm.PointStruct(id=21, vector={"dense": [9.0, 9.0, 9.0, 9.0]}, payload={"now": 1})
    change(lambda client, name: client.upsert(name, [replaced], wait=True))  # all of the point is replaced


def test_drawn_updates(writable: Ask) -> None:
    draw = random.Random(23)
    stored = points()

    def drawn() -> Callable[[QdrantClient, str], Any]:
        where = qm.FilterSelector(filter=_drawn_filter(draw, 1))
        some = qm.Filter(must=[qm.HasIdCondition(has_id=draw.sample(range(1, COUNT, 2), 3))])
        again, value = draw.sample(stored, 5), draw.randrange(100)
        return draw.choice(
            [
                lambda client, name: client.upsert(name, again, wait=True),
                lambda client, name: client.delete(name, qm.FilterSelector(filter=some), wait=True),
                lambda client, name: client.set_payload(name, {"group": f"g{value % 4}"}, points=where, wait=True),
                lambda client, name: client.set_payload(name, {"deep": {"a": value}}, points=some, wait=True),
                lambda client, name: client.set_payload(name, {"b": [value]}, points=where, key="deep", wait=True),
                lambda client, name: client.delete_payload(name, ["word", "deep.a"], points=some, wait=True),
                lambda client, name: client.overwrite_payload(name, {"number": value}, points=some, wait=True),
            ]
        )

    for _ in range(12):
        for _ in range(5):
            what = drawn()
            writable(lambda client, name, what=what: what(client, name).status)
        writable(lambda client, name: client.scroll(name, limit=100, with_vectors=True))


def test_writes_on_a_condition(writable: Ask) -> None:
    def point(one: int, value: int) -> qm.PointStruct:
        return qm.PointStruct(id=one, vector={"dense": [0.0, 0.0, 0.0, 1.0]}, payload={"number": value})

    older = qm.Filter(must=[qm.FieldCondition(key="number", range=qm.Range(lt=20))])
    new = [point(1, 1000), point(59, 1000), point(500, 1000)]
    writable(lambda client, name: client.upsert(name, new, wait=True, update_filter=older).status)
    found = writable(lambda client, name: client.retrieve(name, [1, 59, 500], with_payload=["number"]))
    # 1 is older, 59 is not, 500 is not there yet
    assert [record["payload"]["number"] for record in found] == [1000, 29, 1000]


def test_updates_in_a_batch(writable: Ask) -> None:
    operations = [
        qm.UpsertOperation(
            upsert=qm.PointsList(points=[qm.PointStruct(id=700, vector={"dense": DENSE}, payload={"number": 1})])
        ),
        qm.SetPayloadOperation(set_payload=qm.SetPayload(payload={"extra": [1, 2]}, points=[700])),
        qm.DeletePayloadOperation(delete_payload=qm.DeletePayload(keys=["number"], points=[700])),
        qm.DeleteOperation(delete=qm.PointIdsList(points=[1])),
    ]
    writable(lambda client, name: [result.status for result in client.batch_update_points(name, operations, wait=True)])
    found = writable(lambda client, name: client.retrieve(name, [1, 700], with_payload=True, with_vectors=True))
    assert [(record["id"], record["payload"]) for record in found] == [(700, {"extra": [1, 2]})]


def test_points_in_columns(writable: Ask) -> None:
    batch = qm.Batch(ids=[801, 802], vectors={"dense": [DENSE, DENSE]}, payloads=[{"a": 1}, {}])
    writable(lambda client, name: client.upsert(name, batch, wait=True).status)
    assert len(writable(lambda client, name: client.retrieve(name, [801, 802], with_vectors=True))) == 2


def test_an_unnamed_vector(connected: Callable[[], QdrantClient]) -> None:
    answers, name = [], f"test_{uuid.uuid4().hex}"
    for client in (connected(), QdrantClient(":memory:")):
        client.create_collection(name, vectors_config=qm.VectorParams(size=3, distance=qm.Distance.COSINE))
        client.upsert(name, [qm.PointStruct(id=one, vector=[one, 1.0, 2.0]) for one in range(5)], wait=True)
        found = client.query_points(name, query=[3.0, 1.0, 2.0], limit=2, with_vectors=True)
        answers.append(plain(found))
        client.delete_collection(name)
        client.close()
    assert_same(*answers)
    assert [point["id"] for point in answers[0]["points"]] == [3, 4]


def test_aliases(both: Ask) -> None:
    def make(client: QdrantClient, name: str) -> Any:
        create = qm.CreateAlias(collection_name=name, alias_name=f"{name}-alias")
        client.update_collection_aliases([qm.CreateAliasOperation(create_alias=create)])
        found = [alias.alias_name == f"{name}-alias" for alias in client.get_collection_aliases(name).aliases]
        return found, client.count(f"{name}-alias"), client.collection_exists(f"{name}-alias")

    assert both(make)[0] == [True]
    delete = qm.DeleteAlias
    both(
        lambda client, name: client.update_collection_aliases(
            [qm.DeleteAliasOperation(delete_alias=delete(alias_name=f"{name}-alias"))]
        )
    )
    assert both(lambda client, name: client.get_collection_aliases(name).aliases) == []
