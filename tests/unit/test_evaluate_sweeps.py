"""Sweeps: each point is an evaluation of its own, and none is begun that cannot be finished."""

import numpy as np
import pytest

from engine.errors import InputError
from query.evaluate.labelled import ImageLabels
from query.evaluate.results import SweepReport
from query.evaluate.retrieval import evaluate
from query.evaluate.sweeps import Case, sweep, sweep_over
from tests.support.small_index import encode
from tests.support.small_zoo import POOL, N, make_world, make_zoo, usual


@pytest.fixture(scope="module")
def world():
    return make_world()


@pytest.mark.parametrize(
    ("parameter", "values"), [("r", (1, 10)), ("probes", (15, 60)), ("background", (3, 50)), ("k", (1, 15))]
)
def test_each_point_of_a_sweep_is_an_evaluation(world, parameter, values):
    zoo, queries, _ = world
    settings = usual(seeds=(0, 1), k=2, tasks=("output", "model"))
    report = sweep(parameter, values, zoo, queries, encode, settings, pool=POOL)
    assert (report.parameter, [point.value for point in report.points]) == (parameter, [str(v) for v in values])
    for value, point in zip(values, report.points, strict=True):
        alone = evaluate(zoo, queries, encode, usual(**{"seeds": (0, 1), "k": 2, parameter: value}), pool=POOL)
        assert [row.figures for row in point.rows] == [row.figures for row in alone.tables[0].rows]
    assert report.settings[parameter] == list(values)
    assert report.settings["seeds"] == [0, 1]
    assert SweepReport.model_validate_json(report.model_dump_json()) == report


def test_a_background_smaller_than_k_takes_fewer_neighbours(world):
    zoo, queries, _ = world
    report = sweep("background", (2, 5, 50), zoo, queries, encode, usual(k=10), pool=POOL)
    assert report.settings["k"] == [1, 4, 10]


def test_sweep_over_cases(world):
    zoo, queries, _ = world
    steps = []
    cases = [
        Case("photographs", zoo, encode, usual()),
        Case("half", zoo.with_probes(np.arange(30)), encode, usual()),
        Case("nonsense", zoo, lambda texts: encode([text[::-1] for text in texts]), usual()),
    ]
    report = sweep_over(cases, queries, "probes", "", POOL, lambda *step: steps.append(step))
    assert [point.value for point in report.points] == ["photographs", "half", "nonsense"]
    found = [point.rows[0].figures["mrr"].mean for point in report.points]
    assert found[2] < min(found[:2])
    assert report.settings["zoo_probes"] == [60, 30, 60]
    assert [done for done, _, _ in steps] == [0, 1, 1, 2, 2, 3]
    assert {total for _, total, _ in steps} == {3}


def test_a_sweep_over_probes_parts_the_queries_at_every_point(world):
    zoo, queries, labels = world
    images = ImageLabels(labels, np.arange(N))
    settings = usual(r=1, seeds=(0, 1))
    report = sweep("probes", (4, 60), zoo, queries, encode, settings, pool=POOL, images=images)
    few, all_of_them = ({row.group: row.queries for row in point.rows} for point in report.points)
    assert few["seen"] <= 4  # as many probes
    assert few["seen"] + few["unseen"] in (12, 13)
    assert all_of_them == {"all": 12, "seen": 8, "unseen": 4}


def test_every_case_has_probes_of_its_own(world):
    zoo, queries, labels = world
    half = np.arange(4)
    cases = [
        Case("all", zoo, encode, usual(), ImageLabels(labels, np.arange(N))),
        Case("few", zoo.with_probes(half), encode, usual(r=2), ImageLabels(labels[:4], half)),
        Case("none", zoo, encode, usual(), ImageLabels(labels, np.full(N, -1))),
        Case("as marked", zoo, encode, usual()),
    ]
    report = sweep_over(cases, queries, "probes", "", POOL)
    counts = [{row.group: row.queries for row in point.rows} for point in report.points]
    assert counts == [
        {"all": 12, "seen": 8, "unseen": 4},
        {"all": 12, "seen": 4, "unseen": 8},
        {"all": 12, "unseen": 12},
        {"all": 12, "seen": 8, "unseen": 4},
    ]


def test_no_case_is_measured_if_one_cannot_be(world):
    zoo, queries, _ = world

    def refuse(texts):
        pytest.fail("evaluated")

    good = Case("good", zoo, refuse, usual())
    unknown = make_zoo(zoo.responses, zoo.probes, zoo.starts, [set()] * 26)
    for wrong, message in (
        (Case("r", zoo, refuse, usual(r=61)), "top r is 61"),
        (Case("half", zoo.with_probes(np.arange(5)), refuse, usual()), "top r is 10: .* 5"),
        (Case("pool", zoo, refuse, usual(background=201)), "the pool has only 200"),
        (Case("truth", unknown, refuse, usual()), "no query has a right answer"),
    ):
        with pytest.raises(InputError, match=message):
            sweep_over([good, wrong], queries, "r", "", POOL)


def test_what_cannot_be_swept(world):
    zoo, queries, _ = world
    with pytest.raises(InputError, match="'speed' cannot be swept: use one of r, probes, background, k"):
        sweep("speed", (1,), zoo, queries, encode, usual(), pool=POOL)
    with pytest.raises(InputError, match="a sweep of r needs at least one value"):
        sweep("r", (), zoo, queries, encode, usual(), pool=POOL)
    with pytest.raises(InputError, match="top r is 61"):
        sweep("r", (5, 61), zoo, queries, lambda texts: pytest.fail("evaluated"), usual(), pool=POOL)
