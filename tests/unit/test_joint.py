"""The joint code: its products are margins, nearly; and a graph over its vectors finds the best of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import qdrant_edge as qe

from engine.calibration import Background, calibrate
from engine.descriptors import ConceptDescriptors, FloatArray, concept_descriptors, normalise, output_descriptors
from engine.distance import Method, margins
from engine.errors import IndexDamagedError, InputError
from engine.joint import JointCode, fit, take
from engine.joint_recall import (
    BREADTHS,
    ExactTop,
    JointRecall,
    candidates_wanted,
    measure,
    measured,
)
from engine.outputs import OutputTable
from engine.store.base import StoreLayout
from engine.store.records import local_constants, local_documents, local_query

D, N, R, MEANINGS = 32, 200, 20, 1000
STYLE = 4
"""Dimensions in which images differ more than in all others, and words hardly."""
METHODS = get_args(Method)


@dataclasses.dataclass(frozen=True)
class Hub:
    """Outputs of drawn models, and concepts."""

    tables: list[OutputTable]
    background: Background
    fitted: ConceptDescriptors
    asked: ConceptDescriptors

    def margins(self, method: Method) -> FloatArray:
        """Exact, ``[c, m]``."""
        return np.concatenate(
            [margins(t.idx, t.z, t.anchor, t.calibration, self.asked, method) for t in self.tables], axis=1
        )


def draw(models: int, concepts: int = 400, seed: int = 0) -> Hub:
    """Models of 100 outputs that respond to directions of meaning, a tenth of them to the style of an image."""
    rng = np.random.default_rng(seed)
    said, shown = np.ones(D), np.ones(D)
    said[:STYLE], shown[:STYLE] = 0.05, 2.0
    meanings = normalise(rng.standard_normal((MEANINGS, D)) * said)
    meanings[: MEANINGS // 10] = normalise(rng.standard_normal((MEANINGS // 10, D)) * (said < 1))
    probes = normalise((rng.standard_normal((N, D)) + 1) * shown)  # images have much in common
    names = tuple(f"name {i}" for i in range(60))
    background = Background.describe(names, rng.standard_normal((60, D)) * said, probes)
    tables = []
    for number in range(models):
        similarity = probes @ meanings[rng.integers(0, MEANINGS, 100)].T
        z = (similarity - similarity.mean(axis=0)) / similarity.std(axis=0)
        responses = z + np.exp(rng.uniform(-1, 1, 100)) * rng.standard_normal(z.shape)
        made = output_descriptors(responses, probes, R)
        constants = calibrate(made.idx, made.z, made.anchor, background)
        columns = (made.output, (None,) * 100, made.mean, made.std, made.idx, made.z, made.anchor, constants)
        tables.append(OutputTable(f"org/m{number}", "r1", *columns))
    some = meanings[rng.integers(MEANINGS // 10, MEANINGS, concepts)]
    vectors = some + 0.8 * normalise(rng.standard_normal((concepts, D)) * said)
    fitted = concept_descriptors(vectors[40:], probes, background.whitening)
    return Hub(tables, background, fitted, concept_descriptors(vectors[:40], probes, background.whitening))


@pytest.fixture(scope="module")
def hub() -> Hub:
    return draw(30)


def fitted(hub: Hub, method: Method = "whitened", rank: int = 64) -> JointCode:
    return fit(hub.tables, hub.fitted, StoreLayout(N, R, D, method), "b" * 64, rank)


@pytest.fixture(scope="module")
def code(hub: Hub) -> JointCode:
    return fitted(hub)


def encoded(hub: Hub, code: JointCode) -> FloatArray:
    return np.concatenate([code.encode_outputs(table) for table in hub.tables])


def best(hub: Hub, method: Method = "whitened", k: int = 10) -> list[list[int]]:
    return [np.argsort(-row, kind="stable")[:k].tolist() for row in hub.margins(method)]


def recall(found: Sequence[Sequence[int]], true: Sequence[Sequence[int]]) -> float:
    return float(np.mean([np.isin(t, f).mean() for f, t in zip(found, true, strict=True)]))


@pytest.mark.parametrize("method", METHODS)
def test_products_have_the_order_of_margins_for_every_method(hub: Hub, method: Method) -> None:
    code = fitted(hub, method)
    products = code.encode_concepts(hub.asked) @ encoded(hub, code).T
    exact = hub.margins(method)
    nearest = [np.argsort(-row)[:50].tolist() for row in products]
    assert recall(nearest, best(hub, method)) >= 0.99
    # Products are margins, up to what all outputs share, among the best tenth; far from it the linear form is not.
    places = np.argsort(-exact, axis=1)[:, : exact.shape[1] // 10]
    off = np.take_along_axis(products - exact, places, axis=1)
    assert (off - off.mean(axis=1, keepdims=True)).std() < 0.25 * exact.std(axis=1).mean()


def test_at_full_rank_only_the_linear_form_is_left_of_the_error(hub: Hub) -> None:
    """Worked out without the code's own arrays: scaled linear form at the threshold, and the anchor's product."""
    code = fitted(hub, rank=400)
    layout, t = code.layout, code.threshold
    expected = []
    for c in range(len(hub.asked)):
        dimensions, values = local_query(hub.asked.z[c], t)
        query = np.zeros(2 * N + 2)
        query[dimensions] = values
        direction = hub.asked.white[c].astype(float)  # type: ignore[index]
        row = []
        for table in hub.tables:
            places, numbers = local_documents(table, layout)
            local = (numbers * query[places]).sum(axis=1)
            k = table.calibration
            row.append(local + (table.anchor @ direction - k.g_white) / k.q_white + k.prior)
        expected.append(np.concatenate(row))
    products = code.encode_concepts(hub.asked) @ encoded(hub, code).T
    off = products - np.array(expected)
    off -= off.mean(axis=1, keepdims=True)
    assert np.abs(off).max() < 2e-3 * np.std(expected)


def test_a_higher_rank_is_closer_and_the_regression_does_most(hub: Hub) -> None:
    exact = hub.margins("whitened")

    def error(rank: int) -> float:
        code = fitted(hub, rank=rank)
        off = code.encode_concepts(hub.asked) @ encoded(hub, code).T - exact
        return float((off - off.mean(axis=1, keepdims=True)).std())

    errors = [error(rank) for rank in (1, 16, 64)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.5 * exact.std()


def test_the_threshold_is_the_local_margin_of_the_best(hub: Hub, code: JointCode) -> None:
    local = []
    for table in hub.tables:
        h, s = local_constants(table.calibration, "whitened")
        gap = table.z[:, None] - hub.asked.z[:, table.idx].transpose(1, 0, 2)
        w = (np.maximum(table.z, 0) / table.z[:, :1]) ** 3
        local.append((h - np.sqrt((w[:, None] * gap**2).sum(axis=2)).T) / s)
    top = np.argsort(-hub.margins("whitened"), axis=1)[:, :20]
    median = float(np.median(np.take_along_axis(np.concatenate(local, axis=1), top, axis=1)))
    assert code.threshold == pytest.approx(max(0.0, median), abs=0.15)  # other concepts of the same kind


def test_all_vectors_have_one_length(hub: Hub, code: JointCode) -> None:
    vectors = encoded(hub, code)
    assert vectors.shape == (3000, code.size)
    assert code.size == D + code.rank + 2
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), code.radius, rtol=1e-5)
    assert code.overlong(vectors) == 0
    assert np.abs(code.rotation @ code.rotation.T - np.eye(code.size)).max() < 1e-5
    assert np.abs((code.encode_concepts(hub.asked) @ code.rotation.T)[:, -1]).max() < 1e-4
    queries = code.encode_concepts(hub.asked)
    np.testing.assert_allclose(np.linalg.norm(code.as_long(queries), axis=1), code.radius, rtol=1e-5)
    np.testing.assert_allclose(code.as_long(queries[3]), code.as_long(queries)[3], rtol=1e-6)
    np.testing.assert_allclose(
        np.sum(code.as_long(queries) * queries, axis=1), code.radius * np.linalg.norm(queries, axis=1), rtol=1e-4
    )
    spread = vectors.std(axis=0)  # no number of a vector needs more bits than another
    assert spread.max() < 3 * np.median(spread)


def test_an_output_longer_than_any_before_keeps_its_product(hub: Hub, code: JointCode) -> None:
    table = hub.tables[0]
    longer = dataclasses.replace(table, anchor=40 * table.anchor)
    vectors = code.encode_outputs(longer)
    assert code.overlong(vectors) == 100
    assert (np.linalg.norm(vectors, axis=1) > code.radius).all()
    query = code.encode_concepts(hub.asked)
    exact = margins(longer.idx, longer.z, longer.anchor, longer.calibration, hub.asked, "whitened")
    usual = margins(table.idx, table.z, table.anchor, table.calibration, hub.asked, "whitened")
    gained = query @ vectors.T - query @ code.encode_outputs(table).T
    np.testing.assert_allclose(gained, exact - usual, atol=1e-3 * np.abs(exact).max())


def test_the_metric_is_how_differently_concepts_see_two_outputs(hub: Hub, code: JointCode) -> None:
    vectors = (encoded(hub, code) @ code.rotation.T)[:, :-1].astype(float)
    queries = (code.encode_concepts(hub.fitted) @ code.rotation.T)[:, :-1].astype(float)
    pairs = np.random.default_rng(0).integers(0, len(vectors), (200, 2))
    gaps = vectors[pairs[:, 0]] - vectors[pairs[:, 1]]
    seen = ((queries @ gaps.T) ** 2).mean(axis=0)
    np.testing.assert_allclose((gaps**2).sum(axis=1), seen, rtol=0.02)


def graph(folder: Path, vectors: FloatArray, queries: FloatArray, breadth: int) -> list[list[int]]:
    """100 candidates for each query from the real engine's graph."""
    folder.mkdir()
    params = qe.EdgeVectorParams(
        size=vectors.shape[1],
        distance=qe.Distance.Dot,
        hnsw_config=qe.HnswIndexConfig(8, 64, full_scan_threshold=10),
    )
    optimizers = qe.EdgeOptimizersConfig(indexing_threshold=100, default_segment_number=1)
    shard = qe.EdgeShard.load(str(folder), qe.EdgeConfig(vectors={"v": params}, optimizers=optimizers))
    points = [qe.Point(id=i, vector={"v": row}, payload={}) for i, row in enumerate(vectors.tolist())]
    shard.update(qe.UpdateOperation.upsert_points(points))
    shard.optimize()
    assert shard.info().indexed_vectors_count == len(vectors)
    found = []
    for query in queries.tolist():
        params = qe.SearchParams(hnsw_ef=breadth)
        nearest = qe.Query.Nearest(query, using="v")
        found.append([hit.id for hit in shard.query(qe.QueryRequest(limit=100, query=nearest, params=params))])
    shard.close()
    return found


def test_a_graph_over_raw_products_misses_the_best_and_ours_finds_them(
    hub: Hub, code: JointCode, tmp_path: Path
) -> None:
    vectors, queries, true = encoded(hub, code), code.encode_concepts(hub.asked), best(hub)
    raw = (((vectors @ code.rotation.T)[:, :-1] + code.centre) @ code.backward).astype(np.float32)
    asked = ((queries @ code.rotation.T)[:, :-1] @ code.forward).astype(np.float32)
    products = asked @ raw.T - queries @ vectors.T
    assert np.ptp(products, axis=1).max() < 1e-2  # the same order: only the shape of the cloud differs
    ours = graph(tmp_path / "ours", vectors, queries, 100)
    plain = graph(tmp_path / "plain", raw, asked, 100)
    assert recall(ours, true) >= 0.97
    assert recall(plain, true) <= 0.88


def test_a_saved_code_encodes_the_same(hub: Hub, code: JointCode, tmp_path: Path) -> None:
    code.save(tmp_path / "code.npz")
    again = JointCode.load(tmp_path / "code.npz")
    assert again.fingerprint == code.fingerprint != fitted(hub, rank=8).fingerprint
    np.testing.assert_array_equal(again.encode_outputs(hub.tables[3]), code.encode_outputs(hub.tables[3]))
    np.testing.assert_array_equal(again.encode_concepts(hub.asked), code.encode_concepts(hub.asked))


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "gone", "shapes"])
def test_a_damaged_code_is_refused(code: JointCode, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "code.npz"
    dataclasses.replace(code, slope=code.slope[:3] if damage == "shapes" else code.slope).save(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other":
        np.savez(path, mean=np.zeros(3))
    elif damage == "gone":
        path.unlink()
    with pytest.raises(IndexDamagedError, match="index candidates") as caught:
        JointCode.load(path)
    assert "\n" not in str(caught.value)


def test_a_code_needs_outputs_and_concepts(hub: Hub) -> None:
    layout = StoreLayout(N, R, D)
    with pytest.raises(InputError, match="0 outputs"):
        fit([], hub.fitted, layout, "b")
    with pytest.raises(InputError, match="40 concepts"):
        fit(hub.tables, hub.asked, layout, "b")


def test_take_keeps_the_rows_asked_for(hub: Hub) -> None:
    table = dataclasses.replace(hub.tables[0], labels=tuple(map(str, range(100))))
    rows = np.array([2, 5, 9])
    some = take(table, rows)
    assert some.labels == ("2", "5", "9")
    np.testing.assert_array_equal(some.z, table.z[rows])
    np.testing.assert_array_equal(some.calibration.h, table.calibration.h[rows])
    assert take(table, slice(2, 4)).labels == ("2", "3")


def test_the_exact_best_come_from_tables_in_any_order(hub: Hub) -> None:
    true = best(hub, k=30)
    for tables in (hub.tables, hub.tables[::-1]):
        top = ExactTop(hub.asked, 30, "whitened")
        for table in tables:
            top.add(table)
            if table is tables[20]:
                top.best()  # asking in between changes nothing
        found = [[100 * int(repo.removeprefix("org/m")) + output for repo, _, output in some] for some in top.best()]
        assert recall(found, true) >= 0.999  # ties in float32 against float64


def test_recall_counts_the_best_among_as_many_candidates_as_a_search_asks_for() -> None:
    true = [[("a", "1", i) for i in range(100)], [("b", "1", i) for i in range(100)]]

    def ask(c: int, limit: int, breadth: int) -> list[tuple[str, str, int]]:
        if c == 0:
            return true[0][:limit]
        return true[1][: limit // 4] if breadth < 2048 else true[1][:limit]

    assert measure(true, ask, 2, 512) == {"10": 1.0, "100": 0.75}  # 100 and 200 candidates; 25 and 50 of the second
    breadth, tried = measured(true, ask, 2)
    assert breadth == 2048
    assert list(tried) == [512, 1024, 2048]
    assert measured(true, lambda c, limit, breadth: [], 2)[0] == max(BREADTHS)
    assert measure([], ask, 2, 512) == {}


def test_recall_below_99_per_cent_is_not_sufficient(tmp_path: Path) -> None:
    facts = {"code": "c", "storage": "float16", "outputs": 5, "in_graph": 5, "overlong": 0, "concepts": 2}
    facts |= {"oversampling": 5.0, "breadth": 512, "by_breadth": {}}

    def sufficient(**recall: float) -> bool:
        return JointRecall.model_validate({**facts, "recall": recall}).sufficient

    assert sufficient(ten=1.0, hundred=0.99)
    assert not sufficient(ten=1.0, hundred=0.9899)
    assert not sufficient()
    assert [candidates_wanted(k, 5) for k in (1, 20, 21, 100)] == [100, 100, 105, 500]
    assert JointRecall.read(tmp_path) is None
    (tmp_path / "joint").mkdir()
    made = JointRecall.model_validate({**facts, "recall": {"10": 1.0}})
    made.write(tmp_path)
    assert JointRecall.read(tmp_path) == made
    (tmp_path / "joint" / "recall.json").write_text('{"format": 2}')
    with pytest.raises(IndexDamagedError, match="index candidates"):
        JointRecall.read(tmp_path)
