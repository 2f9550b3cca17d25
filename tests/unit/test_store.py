"""One suite for every store, so that they cannot drift apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.distance import METHODS
from engine.errors import IndexMismatchError, IndexMissingError, StoreError
from engine.schema import LeftOut, Model, ModelState
from engine.store import records
from engine.store.base import DescriptorStore, StoreLayout
from engine.store.edge import EdgeStore
from tests.support.output_tables import assert_same, fast_folder, make_table
from tests.support.stores import GRPC_KINDS, KINDS, Place, store_place

N, R, D = 40, 6, 4
LAYOUT = StoreLayout(probes=N, top_r=R, dimension=D)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with fast_folder(tmp_path) as made:
        yield made


@pytest.fixture(params=[*KINDS, *GRPC_KINDS])
def place(request: pytest.FixtureRequest, folder: Path) -> Iterator[Place]:
    with store_place(request.param, folder) as made:
        yield made


@pytest.fixture
def store(place: Place) -> Iterator[DescriptorStore]:
    with place.create(LAYOUT) as made:
        yield made


def test_outputs_come_back_as_they_were_written(store: DescriptorStore) -> None:
    table = make_table(LAYOUT)
    assert len(np.unique(table.z)) < table.z.size, "ties are part of the test"
    store.upsert_outputs(table)
    assert_same(store.outputs("org/a", "r1"), table)


def test_more_outputs_than_one_batch(store: DescriptorStore) -> None:
    table = make_table(LAYOUT, m=215)
    store.upsert_outputs(table)
    assert store.count_outputs() == 215
    assert_same(store.outputs("org/a", "r1"), table)


def test_labels(store: DescriptorStore) -> None:
    labels = ("", None, "été 東京 🐕", "x" * 100_000, 'quote " \\ \x00 \n', "None", "null")
    table = replace(make_table(LAYOUT), labels=labels)
    store.upsert_outputs(table)
    assert_same(store.outputs("org/a", "r1"), table)


def test_writing_again_changes_nothing(store: DescriptorStore) -> None:
    table, model = make_table(LAYOUT), Model(repo="org/a", revision="r1", outputs=7)
    for _ in range(2):
        store.upsert_outputs(table)
        store.upsert_model(model)
    assert store.count_outputs() == 7
    assert store.models() == [model]
    assert_same(store.outputs("org/a", "r1"), table)


def test_new_constants_replace_the_old_ones(store: DescriptorStore) -> None:
    store.upsert_outputs(make_table(LAYOUT))
    table = make_table(LAYOUT).with_calibration(make_table(LAYOUT, seed=5).calibration)
    store.upsert_outputs(table)
    assert_same(store.outputs("org/a", "r1"), table)


def test_a_new_revision_replaces_the_old_one_whole(store: DescriptorStore) -> None:
    old, new = make_table(LAYOUT), make_table(LAYOUT, revision="r2", m=5, seed=1)
    store.upsert_outputs(old)
    store.upsert_model(Model(repo="org/a", revision="r1"))
    store.upsert_outputs(new)
    assert_same(store.outputs("org/a", "r1"), old)
    store.upsert_model(Model(repo="org/a", revision="r2"))
    store.delete_outputs("org/a", keep_revision="r2")
    assert [model.revision for model in store.models()] == ["r2"]
    assert store.outputs("org/a", "r1") is None
    assert_same(store.outputs("org/a", "r2"), new)
    assert store.count_outputs() == 5


def test_an_interrupted_replacement_leaves_the_old_one_whole(place: Place) -> None:
    old, new = make_table(LAYOUT), make_table(LAYOUT, revision="r2", m=5, seed=1)
    with place.create(LAYOUT) as store:
        store.upsert_outputs(old)
        store.upsert_model(Model(repo="org/a", revision="r1"))
        half = replace(
            make_table(LAYOUT, revision="r2", m=5, seed=1),
            **{name: getattr(new, name)[:2] for name in ("output", "labels", "mean", "std", "idx", "z", "anchor")},
            calibration=new.calibration.take(slice(2)),
        )
        store.upsert_outputs(half)
    with place.open() as store:
        found = store.models()
        assert [model.revision for model in found] == ["r1"]
        (table,) = store.iter_outputs(found)
        assert_same(table, old)
        store.upsert_outputs(new)
        store.upsert_model(Model(repo="org/a", revision="r2"))
        store.delete_outputs("org/a", keep_revision="r2")
        assert_same(store.outputs("org/a", "r2"), new)
        assert store.count_outputs() == 5


def test_copies_are_found_by_their_original(store: DescriptorStore) -> None:
    store.upsert_model(Model(repo="org/a", revision="r1", outputs=7))
    facts = {"revision": "x", "state": ModelState.COPY, "copied_revision": "r1"}
    copies = [Model(repo=repo, copy_of="org/a", **facts) for repo in ("b/one", "a/two")]  # type: ignore[arg-type]
    other = Model(repo="org/c", copy_of="org/ab", **facts)  # type: ignore[arg-type]
    for model in (*copies, other):
        store.upsert_model(model)
    assert store.copies("org/a") == [copies[1], copies[0]]
    assert store.copies("org/ab") == [other]  # the original need not be there
    assert store.copies("org") == []
    assert store.model("b/one") == copies[0]
    store.upsert_model(Model(repo="b/one", revision="y", outputs=3))  # a model of its own again
    assert store.copies("org/a") == [copies[1]]
    store.delete_model("a/two")
    store.delete_model("never/there")
    assert store.copies("org/a") == []
    assert [model.repo for model in store.models()] == ["b/one", "org/a", "org/c"]


def test_several_models(store: DescriptorStore) -> None:
    tables = {
        repo: make_table(LAYOUT, repo, seed=i, m=3 + i) for i, repo in enumerate(["org/b", "org/a", "org/ab", "x/a"])
    }
    for repo, table in tables.items():
        store.upsert_outputs(table)
        store.upsert_model(Model(repo=repo, revision="r1", outputs=len(table)))
    models = store.models()
    assert [model.repo for model in models] == ["org/a", "org/ab", "org/b", "x/a"]
    missing = Model(repo="org/none", revision="r1")
    order = [models[2], missing, models[0]]
    assert [table.repo for table in store.iter_outputs(order)] == ["org/b", "org/a"]
    for table in store.iter_outputs(models):
        assert_same(table, tables[table.repo])
    store.delete_outputs("org/a")
    store.delete_model("org/a")
    assert [model.repo for model in store.models()] == ["org/ab", "org/b", "x/a"]
    assert store.model("org/a") is None and store.outputs("org/a", "r1") is None
    assert store.count_outputs() == sum(len(table) for table in tables.values()) - len(tables["org/a"])


def test_an_empty_store(store: DescriptorStore) -> None:
    assert store.models() == [] and store.count_outputs() == 0
    assert store.model("org/a") is None and store.outputs("org/a", "r1") is None
    assert list(store.iter_outputs([Model(repo="org/a", revision="r1")])) == []
    assert store.query_local(*records.local_query(np.ones(N), 0.0), 5) == []
    assert store.query_global(np.ones(D + 1, np.float32), 5) == []
    store.delete_outputs("org/a")
    store.delete_model("org/a")
    store.upsert_outputs(make_table(LAYOUT, m=0))
    assert store.count_outputs() == 0
    store.optimize()
    store.flush()


def test_a_model_record_with_every_field(store: DescriptorStore) -> None:
    model = Model(
        repo="org/mödel",
        revision="f" * 40,
        library="timm",
        architecture="vit",
        parameters=2**40,
        input_size=(224, 256),
        licence="apache-2.0",
        tags=("a", "é"),
        downloads=0,
        likes=3,
        outputs=999,
        left_out=(LeftOut(output=1, reason="constant"),),
        probabilities=True,
        reason="network",
        detail="line « one »",
        calibration="c" * 64,
    )
    store.upsert_model(model)
    assert store.model("org/mödel") == model
    assert store.models() == [model]


@pytest.mark.parametrize("method", METHODS)
def test_local_search_agrees_with_the_formula(place: Place, method: str) -> None:
    tables = [make_table(LAYOUT, f"org/{i}", seed=i, m=30) for i in range(3)]
    z_c = np.random.default_rng(7).standard_normal(N)
    t = 0.3
    expected = {}
    for table in tables:
        for row in range(len(table)):
            top = table.z[row].max()
            w = np.ones(R) if method == "probelog" else (np.maximum(table.z[row], 0) / top).astype(np.float64) ** 3
            d = np.sqrt((w * (table.z[row] - z_c[table.idx[row]]) ** 2).sum())
            h = float((table.calibration.h_uniform if method == "probelog" else table.calibration.h)[row])
            s = float(table.calibration.s[row]) if method in {"dual", "whitened"} else 1.0
            score = (h * h - d * d) / (2 * h * s) + t * t * s / (2 * h)
            expected[table.repo, int(table.output[row])] = score, (h - d) / s, h / s
    with place.create(replace(LAYOUT, method=method)) as store:
        for table in tables:
            store.upsert_outputs(table)
        hits = store.query_local(*records.local_query(z_c, t), 1000)
        few = store.query_local(*records.local_query(z_c, t), 11)
    assert len(hits) == 90 and few == hits[:11]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        score, margin, ceiling = expected[hit.repo, hit.output]
        assert hit.score == pytest.approx(score, abs=1e-4)
        if abs(margin - t) > 1e-4 and t <= ceiling:
            assert (hit.score > t) == (margin > t)
    assert any(hit.score > t for hit in hits) and hits[0].revision == "r1"


def test_global_search_agrees_with_the_formula(store: DescriptorStore) -> None:
    tables = [make_table(LAYOUT, f"org/{i}", seed=i, m=30) for i in range(3)]
    for table in tables:
        store.upsert_outputs(table)
    t_c, sigma = np.random.default_rng(8).standard_normal(D), 0.6
    expected = {}
    for table in tables:
        c = table.calibration  # the layout serves the default method
        margins = (table.anchor @ t_c / sigma - c.g_white) / c.q_white + c.prior
        expected.update({(table.repo, int(o)): float(v) for o, v in zip(table.output, margins, strict=True)})
    hits = store.query_global(records.global_query(t_c / sigma), 1000)
    assert len(hits) == 90
    for hit in hits:
        assert hit.score == pytest.approx(expected[hit.repo, hit.output], abs=1e-4)
    best = sorted(expected, key=lambda key: -expected[key])[:5]
    assert [(hit.repo, hit.output) for hit in store.query_global(records.global_query(t_c / sigma), 5)] == best


def test_reopening(place: Place) -> None:
    table, model = make_table(LAYOUT), Model(repo="org/a", revision="r1")
    layout = replace(LAYOUT, method="weighted")
    with place.create(layout) as store:
        store.upsert_outputs(table)
        store.upsert_model(model)
    with place.open() as store:
        assert store.layout == layout
        assert store.models() == [model]
        assert_same(store.outputs("org/a", "r1"), table)
        store.upsert_outputs(make_table(LAYOUT, seed=3))
    with place.open() as store:
        assert_same(store.outputs("org/a", "r1"), make_table(LAYOUT, seed=3))


def test_closing_twice_is_harmless_and_a_closed_store_says_so(place: Place) -> None:
    store = place.create(LAYOUT)
    store.close()
    store.close()
    if isinstance(store, EdgeStore):
        with pytest.raises(StoreError, match="closed"):
            store.models()


def test_what_does_not_fit_the_layout_is_refused(store: DescriptorStore) -> None:
    for part, other in {
        "top_r": replace(LAYOUT, top_r=R + 1),
        "dimension": replace(LAYOUT, dimension=D + 1),
        "probes": replace(LAYOUT, probes=4 * N),
    }.items():
        with pytest.raises(IndexMismatchError) as caught:
            store.upsert_outputs(make_table(other, m=60))
        assert caught.value.part == part
    table = make_table(LAYOUT)
    table.calibration.h[3] = np.nan
    with pytest.raises(StoreError, match="NaN"):
        store.upsert_outputs(table)
    assert store.count_outputs() == 0


def test_there_is_one_store_in_a_place(place: Place) -> None:
    with pytest.raises(IndexMissingError):
        place.open()
    place.create(LAYOUT).close()
    with pytest.raises(StoreError, match="already"):
        place.create(LAYOUT)
