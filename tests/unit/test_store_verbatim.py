"""Copying a store verbatim, reading a few of its outputs, and scores above a threshold: the same in every store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.errors import StoreError
from engine.schema import Model, ModelState, Performance, output_point_id
from engine.store import records
from engine.store.base import DescriptorStore, StoredPoint, StoreHit, StoreLayout
from engine.store.edge import EdgeStore
from tests.support.output_tables import assert_same, fast_folder, make_table
from tests.support.stores import GRPC_KINDS, KINDS, store_place

N, R, D = 40, 6, 4
LAYOUT = StoreLayout(probes=N, top_r=R, dimension=D)
REPOS = ("org/a", "org/b", "org/c")
TABLES = {repo: make_table(LAYOUT, repo, seed=i, m=9) for i, repo in enumerate(REPOS)}
MODELS = [
    Model(repo=repo, revision="r1", outputs=9, library="Timm", licence="MIT", parameters=2**40, tags=("é", "b"))
    for repo in REPOS
]
COPY = Model(repo="z/copy", revision="x", state=ModelState.COPY, copy_of="org/b", copied_revision="r1")
KNOWN = Performance(model="org/a", task="pets", value=1 / 3)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with fast_folder(tmp_path) as made:
        yield made


@pytest.fixture(params=[*KINDS, *GRPC_KINDS])
def store(request: pytest.FixtureRequest, folder: Path) -> Iterator[DescriptorStore]:
    with store_place(request.param, folder) as place, place.create(LAYOUT) as made:
        yield made


@pytest.fixture
def edge(folder: Path) -> Iterator[EdgeStore]:
    with EdgeStore.create(folder / "edge", LAYOUT) as made:
        yield made


def fill(store: DescriptorStore) -> None:
    for repo, model in zip(REPOS, MODELS, strict=True):
        store.upsert_outputs(TABLES[repo])
        store.upsert_model(model)
    store.upsert_model(COPY)
    store.upsert_knowledge([KNOWN])


def test_two_stores_of_the_same_content_hand_over_the_same(store: DescriptorStore, edge: EdgeStore) -> None:
    fill(store)
    fill(edge)
    for part, count in (("outputs", 27), ("models", 4), ("profiles", 1)):
        found = list(store.stored(part))  # type: ignore[arg-type]
        assert found == list(edge.stored(part)), part  # type: ignore[arg-type]
        assert len(found) == store.count(part) == edge.count(part) == count  # type: ignore[arg-type]
        assert [point.id for point in found] == sorted(point.id for point in found)


def test_what_is_handed_over_is_what_was_written(store: DescriptorStore) -> None:
    fill(store)
    found = {point.id: point for point in store.stored("outputs")}
    for written in records.output_points(TABLES["org/b"], LAYOUT):
        point = found[written.id]
        assert point.payload == written.payload
        assert point.indices == written.indices
        assert np.array_equal(np.float32(point.values), np.float32(written.values))
        assert np.array_equal(np.float32(point.dense), np.float32(written.dense))
    assert [p.payload for p in store.stored("models", repos=["z/copy"])] == [records.model_payload(COPY)]


def test_handing_over_goes_on_after_any_id_and_by_repository(store: DescriptorStore) -> None:
    fill(store)
    whole = list(store.stored("outputs"))
    for place in (0, 13, 26):
        assert list(store.stored("outputs", after=whole[place].id)) == whole[place + 1 :]
    between = "80000000-0000-0000-0000-000000000000"
    assert list(store.stored("outputs", after=between)) == [point for point in whole if point.id > between]
    for repos in ([], ["org/b"], ["org/a", "org/c", "org/none"]):
        expected = [point for point in whole if point.payload["repo"] in repos]
        assert list(store.stored("outputs", repos=repos)) == expected
    of_b = [point for point in whole if point.payload["repo"] == "org/b"]
    assert list(store.stored("outputs", after=of_b[3].id, repos=["org/b"])) == of_b[4:]


@pytest.mark.parametrize("backwards", [False, True])
def test_a_copy_is_the_same_in_both_directions(store: DescriptorStore, edge: EdgeStore, backwards: bool) -> None:
    source, target = (edge, store) if backwards else (store, edge)
    fill(source)
    for _ in range(2):  # again changes nothing
        for part in ("outputs", "models", "profiles"):
            points = list(source.stored(part))  # type: ignore[arg-type]
            target.restore(part, points[:2])  # type: ignore[arg-type]
            target.restore(part, points)  # type: ignore[arg-type]
    for part in ("outputs", "models", "profiles"):
        assert list(target.stored(part)) == list(source.stored(part)), part  # type: ignore[arg-type]
    assert target.models() == source.models() == [*MODELS, COPY]
    assert target.copies("org/b") == [COPY] and target.knowledge() == [KNOWN]
    assert_same(target.outputs("org/b", "r1"), TABLES["org/b"])


def test_nothing_is_restored_of_nothing(store: DescriptorStore) -> None:
    for part in ("outputs", "models", "profiles"):
        store.restore(part, [])  # type: ignore[arg-type]
        assert store.count(part) == 0 and list(store.stored(part)) == []  # type: ignore[arg-type]


def test_what_is_not_of_that_part_is_refused_before_anything_is_written(store: DescriptorStore) -> None:
    with_outputs = list(records.output_points(TABLES["org/a"], LAYOUT))
    good = StoredPoint(*(with_outputs[0].id, with_outputs[0].payload, *with_outputs[0][1:4]))
    moved = good._replace(id=output_point_id("org/a", "r1", 99))
    for part, bad in (
        ("models", good),
        ("profiles", good),
        ("outputs", moved),
        ("outputs", good._replace(payload={"repo": "org/a"})),
        ("outputs", good._replace(dense=[])),
        ("models", StoredPoint(COPY.point_id, {**records.model_payload(COPY), "unknown": 1}, [], [], [])),
        ("profiles", StoredPoint(good.id, {"kind": "task"}, [], [], [])),
    ):
        with pytest.raises(StoreError, match=f"none of the {part}") as caught:
            store.restore(part, [bad] if part != "outputs" else [good, bad])  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    assert store.count("outputs") == 0


def test_known_outputs_are_read_by_their_hits(store: DescriptorStore) -> None:
    fill(store)
    hits = [StoreHit("org/c", "r1", 4, 0.0), StoreHit("org/a", "r1", 16, 0.0), StoreHit("org/a", "r1", 0, 0.0)]
    gone = [StoreHit("org/a", "r1", 1, 0.0), StoreHit("org/a", "r0", 0, 0.0)]
    found = store.rows([*hits, *gone, hits[0]])
    assert [(table.repo, table.output.tolist()) for table in found] == [("org/a", [0, 16]), ("org/c", [4])]
    whole = store.outputs("org/a", "r1")
    assert whole is not None
    assert found[0].z.tobytes() == whole.z[[0, 8]].tobytes()
    assert found[0].anchor.tobytes() == whole.anchor[[0, 8]].tobytes()
    bare = store.rows(hits, anchors=False)
    assert [table.anchor.shape for table in bare] == [(2, 0), (1, 0)]
    assert bare[0].z.tobytes() == found[0].z.tobytes() and bare[0].labels == found[0].labels
    assert store.rows([]) == [] and store.rows(gone) == []


def test_known_outputs_are_scored_as_when_they_are_searched(store: DescriptorStore) -> None:
    fill(store)
    query = np.random.default_rng(3).standard_normal(D + 1).astype(np.float32)
    hits = store.query_global(query, 100)
    assert len(hits) == 27
    shuffled = [hits[i] for i in np.random.default_rng(4).permutation(27)]
    gone = StoreHit("org/none", "r1", 0, 0.0)
    scores = store.global_scores([*shuffled, gone], query)
    assert scores.dtype == np.float32 and scores[-1] == -np.inf
    np.testing.assert_allclose(scores[:-1], [hit.score for hit in shuffled], rtol=1e-6, atol=1e-6)
    vectors = {point.id: np.float64(point.dense) for point in store.stored("outputs")}
    expected = [vectors[output_point_id(h.repo, h.revision, h.output)] @ query.astype(np.float64) for h in shuffled]
    np.testing.assert_allclose(scores[:-1], expected, rtol=1e-5, atol=1e-5)
    assert store.global_scores([], query).shape == (0,)


@pytest.mark.parametrize("t", [-0.7, 0.0, 0.9])
def test_a_threshold_lets_through_exactly_the_scores_above_it(store: DescriptorStore, t: float) -> None:
    fill(store)
    query = records.local_query(np.random.default_rng(5).standard_normal(N), t)
    every = store.query_local(*query, 100)
    assert len(every) == 27 and every[0].score > every[-1].score
    for threshold in (t, every[9].score, every[-1].score, float(np.nextafter(np.float32(every[9].score), -np.inf))):
        expected = [hit for hit in every if np.float32(hit.score) > np.float32(threshold)]
        assert store.query_local(*query, 100, threshold=threshold) == expected
        assert store.query_local(*query, 3, threshold=threshold) == expected[:3]
    assert store.query_local(*query, 100, threshold=every[0].score) == []
    assert store.query_local(*query, 100, threshold=every[-1].score - 1) == every


def test_a_threshold_is_the_margin_above_which_an_output_is_found(store: DescriptorStore) -> None:
    fill(store)
    z_c = np.random.default_rng(6).standard_normal(N)
    margins = {}
    for table in TABLES.values():
        w = (np.maximum(table.z, 0) / table.z[:, :1]).astype(np.float64) ** 3
        d = np.sqrt((w * (table.z - z_c[table.idx]) ** 2).sum(axis=1))
        h, s = table.calibration.h.astype(np.float64), table.calibration.s.astype(np.float64)
        margins.update({(table.repo, int(o)): m for o, m in zip(table.output, (h - d) / s, strict=True)})
    ordered = sorted(margins.values(), reverse=True)
    for k in (0, 4, 12):
        t = (ordered[k] + ordered[k + 1]) / 2
        assert ordered[k] - ordered[k + 1] > 1e-3, "far enough apart for float32"
        ceilings = {
            (table.repo, int(o)): c
            for table in TABLES.values()
            for o, c in zip(table.output, table.calibration.h / table.calibration.s, strict=True)
        }
        found = {(hit.repo, hit.output) for hit in store.query_local(*records.local_query(z_c, t), 100, threshold=t)}
        above = {key for key, margin in margins.items() if margin > t}
        assert above <= found
        assert all(ceilings[key] < t for key in found - above)


def test_an_empty_store_has_nothing_to_hand_over(store: DescriptorStore) -> None:
    query = np.ones(D + 1, np.float32)
    assert store.rows([StoreHit("org/a", "r1", 0, 0.0)]) == []
    assert store.global_scores([StoreHit("org/a", "r1", 0, 0.0)], query).tolist() == [-np.inf]
    assert store.query_local(*records.local_query(np.ones(N), 0.5), 5, threshold=0.5) == []


def test_other_revisions_are_handed_over_too(store: DescriptorStore) -> None:
    fill(store)
    store.upsert_outputs(replace(TABLES["org/a"], revision="r2"))
    assert store.count("outputs") == 36 and len(list(store.stored("outputs", repos=["org/a"]))) == 18
