"""The records of a store against the formulas, written out independently and slowly."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pytest

from engine.distance import METHODS
from engine.errors import IndexMismatchError
from engine.outputs import OutputTable
from engine.schema import LeftOut, Model, ModelState, output_point_id
from engine.store import records
from engine.store.base import StoreLayout
from tests.support.output_tables import assert_same, make_table

N, D = 60, 5


def layout(method: str = "dual", top_r: int = 8) -> StoreLayout:
    return StoreLayout(probes=N, top_r=top_r, dimension=D, method=method)


def margin(table: OutputTable, row: int, z_c: np.ndarray, method: str) -> tuple[float, float, float]:
    """The margin of one output, its hubness and its scale: a plain loop over the kept probes."""
    top = max(float(table.z[row].max()), 0.0)
    square = 0.0
    for probe, z in zip(table.idx[row].tolist(), table.z[row].tolist(), strict=True):
        weight = 1.0 if method == "probelog" else (max(z, 0.0) / top) ** 3
        square += weight * (z - float(z_c[probe])) ** 2
    hubness = float((table.calibration.h_uniform if method == "probelog" else table.calibration.h)[row])
    scale = float(table.calibration.s[row]) if method in {"dual", "whitened"} else 1.0
    return (hubness - square**0.5) / scale, hubness, scale


def inner(indices: list[int], values: list[float], dense_query: np.ndarray) -> float:
    return float(sum(v * dense_query[i] for i, v in zip(indices, values, strict=True)))


def dense(query: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    whole = np.zeros(2 * N + 2)
    whole[query[0]] = query[1]
    return whole


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("top_r", [8, 50])
def test_the_score_is_the_linear_form(method: str, top_r: int) -> None:
    where = layout(method, top_r)
    table = make_table(where, m=9)
    z_c = np.random.default_rng(1).standard_normal(N)
    query = dense(records.local_query(z_c, 0.0))
    for row, point in enumerate(records.output_points(table, where)):
        value, h, s = margin(table, row, z_c, method)
        distance = h - value * s
        assert inner(point.indices, point.values, query) == pytest.approx((h**2 - distance**2) / (2 * h * s), abs=2e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("top_r", [8, 50])
def test_score_above_t_is_margin_above_t(method: str, top_r: int) -> None:
    where = layout(method, top_r)
    table = make_table(where, m=40, seed=3)
    points = list(records.output_points(table, where))
    g = np.random.default_rng(2)
    seen = set()
    for _ in range(40):
        z_c = g.standard_normal(N)
        facts = [margin(table, row, z_c, method) for row in range(len(table))]
        t = float(g.choice([value for value, _, _ in facts]) + g.normal(0, 0.2))
        query = dense(records.local_query(z_c, t))
        for point, (value, h, s) in zip(points, facts, strict=True):
            if t > h / s or abs(value - t) < 1e-4:  # no output has such a margin; float32 cannot tell
                continue
            above = inner(point.indices, point.values, query) > t
            assert above == (value > t)
            seen.add(above)
    assert seen == {True, False}


def test_the_threshold_changes_the_query_and_zeros_are_left_out() -> None:
    z_c = np.zeros(N)
    z_c[7] = 0.5
    indices, values = records.local_query(z_c, 0.0)
    assert indices.tolist() == [7, N + 7, 2 * N] and values.tolist() == [1.0, -0.25, 1.0]
    indices, values = records.local_query(z_c, -1.5)
    assert indices.tolist() == [7, N + 7, 2 * N, 2 * N + 1] and values.tolist() == [1.0, -0.25, 1.0, 2.25]
    assert indices.dtype == np.uint32 and values.dtype == np.float32


def test_dimensions_ascend_and_probes_without_weight_are_left_out() -> None:
    table = make_table(layout(top_r=50))
    assert (table.z <= 0).any()
    for row, point in enumerate(records.output_points(table, layout(top_r=50))):
        assert point.indices == sorted(set(point.indices))
        weighted = sorted(int(i) for i, z in zip(table.idx[row], table.z[row], strict=True) if z > 0)
        assert point.indices == [*weighted, *(N + i for i in weighted), 2 * N, 2 * N + 1]


@pytest.mark.parametrize("method", ["dual", "whitened"])
def test_the_global_score_is_the_global_margin(method: str) -> None:
    table = make_table(layout())
    t_c, sigma = np.random.default_rng(4).standard_normal(D), 0.7
    scores = records.global_documents(table, method).astype(np.float64) @ records.global_query(t_c / sigma)
    for row, score in enumerate(scores):
        rho = sum(float(table.anchor[row, j]) * float(t_c[j]) for j in range(D)) / sigma
        c = table.calibration
        g, q, prior = (c.g_white, c.q_white, c.prior) if method == "whitened" else (c.g, c.q, np.zeros(len(c.g)))
        expected = (rho - float(g[row])) / float(q[row]) + float(prior[row])
        assert score == pytest.approx(expected, rel=1e-5, abs=1e-5)


def back(table: OutputTable, where: StoreLayout) -> OutputTable | None:
    """Through JSON, and in another order."""
    points = list(records.output_points(table, where))
    stored = [
        records.StoredOutput(json.loads(json.dumps(p.payload)), np.float32(p.dense).tolist()) for p in points[::-1]
    ]
    return records.output_table(table.repo, table.revision, stored, where)


@pytest.mark.parametrize("top_r", [8, 50])
def test_a_table_comes_back_bit_for_bit(top_r: int) -> None:
    table = make_table(layout(top_r=top_r), m=9)
    again = back(table, layout(top_r=top_r))
    assert_same(again, table)
    assert again is not None
    np.testing.assert_allclose(again.anchor, table.anchor, rtol=1.2e-7)


def test_rows_select_outputs() -> None:
    table = make_table(layout())
    points = list(records.output_points(table, layout()))
    assert list(records.output_points(table, layout(), slice(2, 4))) == points[2:4]
    assert [p.id for p in points] == [output_point_id(table.repo, table.revision, int(i)) for i in table.output]


def test_a_label_that_is_not_text_loses_only_the_bad_part() -> None:
    table = make_table(layout(), m=1)
    object.__setattr__(table, "labels", ("a\ud800b",))
    again = back(table, layout())
    assert again is not None and again.labels == ("a?b",)


def test_no_points_are_no_table() -> None:
    assert records.output_table("org/a", "r", [], layout()) is None


def test_a_record_of_another_r_is_refused() -> None:
    points = list(records.output_points(make_table(layout()), layout(top_r=8)))
    with pytest.raises(ValueError, match="top_r 9"):
        records.output_table("org/a", "r", [records.StoredOutput(p.payload, p.dense) for p in points], layout(top_r=9))


@pytest.mark.parametrize(
    ("other", "part"),
    [
        (StoreLayout(probes=N, top_r=9, dimension=D), "top_r"),
        (StoreLayout(probes=N, top_r=8, dimension=D + 1), "dimension"),
        (StoreLayout(probes=10, top_r=8, dimension=D), "probes"),
    ],
)
def test_outputs_of_another_index_are_refused(other: StoreLayout, part: str) -> None:
    with pytest.raises(IndexMismatchError) as caught:
        records.check_table(make_table(layout()), other)
    assert caught.value.part == part


@pytest.mark.parametrize("name", ["h", "s", "q", "h_uniform", "q_white"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_numbers_that_would_spoil_every_answer_are_refused(name: str, bad: float) -> None:
    table = make_table(layout())
    getattr(table.calibration, name)[2] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        records.check_table(table, layout())


def test_a_model_record_comes_back_with_every_field() -> None:
    model = Model(
        repo="org/mödel",
        revision="f" * 40,
        library="timm",
        architecture="vit",
        parameters=2**40,
        input_size=(224, 256),
        licence="apache-2.0",
        tags=("a", "b"),
        downloads=0,
        likes=3,
        outputs=999,
        left_out=(LeftOut(output=1, reason="constant"),),
        probabilities=True,
        state=ModelState.FAILED,
        reason="network",
        detail="it was « away »",
        calibration="c" * 64,
        indexed_at=datetime(2024, 2, 29, 1, 2, 3, 456789, tzinfo=UTC),
    )
    assert set(model.model_fields_set) == set(Model.model_fields) - {"copy_of", "copied_revision"}
    copy = Model(repo="org/b", revision="r", state=ModelState.COPY, copy_of="org/a", copied_revision="q")
    assert records.model_record(json.loads(json.dumps(records.model_payload(copy)))) == copy
    assert records.model_record(json.loads(json.dumps(records.model_payload(model)))) == model
    bare = Model(repo="org/a", revision="r")
    assert records.model_record(records.model_payload(bare)) == bare
    assert records.model_point_id("org/a") == bare.point_id
