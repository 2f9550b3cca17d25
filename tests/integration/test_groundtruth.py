"""Ranking by ImageNet and by mean rank on the published accuracies, against figures computed elsewhere."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from engine.performance import PerformanceTable, model_name, read_models, read_performance, table_of
from query.cli.main import run
from query.evaluate.recommendation import Settings, leave_one_out
from query.evaluate.transferred import RecommendationReport

GROUNDTRUTH = Path(os.environ.get("HUBHOUND_TEST_GROUNDTRUTH", Path(__file__).parents[3] / "shared" / "groundtruth"))
INCOMPLETE = {"fer2013", "dmlab", "diabetic_retinopathy"}
# The README beside the tables: @3, @5, @7, ordinal ranks, ties in the order of models.csv.
EXPECTED = {
    "inb": {"ndcg": (0.434, 0.750, 0.834), "ndcg_strict": (0.409, 0.566, 0.600), "tau": (0.296, 0.148, 0.230)},
    "avgrank": {"ndcg": (0.056, 0.607, 0.803), "ndcg_strict": (0.053, 0.452, 0.539), "tau": (0.056, 0.315, 0.337)},
}
AVERAGE_TIES = {"ndcg@7": 0.751, "ndcg_strict@7": 0.521, "tau@7": 0.293}
TOLERANCE = 0.002

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not GROUNDTRUTH.is_dir(), reason="the accuracies of ../shared/groundtruth are not here"),
]


@pytest.fixture(scope="module")
def table() -> PerformanceTable:
    models = read_models(GROUNDTRUTH / "models.csv")
    return table_of(read_performance(GROUNDTRUTH / "accuracy_merged.csv").records, models)


def measure(table: PerformanceTable, ties: str) -> RecommendationReport:
    return leave_one_out(table, Settings(methods=("inb", "avgrank"), ties=ties, complete=True, seeds=(0,)))


def check(report: RecommendationReport, changed: dict[str, float] | None = None) -> None:
    for method, measures in EXPECTED.items():
        for name, values in measures.items():
            for k, value in zip((3, 5, 7), values, strict=True):
                measured = report.result(method).figure(f"{name}@{k}").mean
                other = (changed or {}).get(f"{name}@{k}") if method == "avgrank" else None
                assert measured == pytest.approx(value if other is None else other, abs=TOLERANCE), (method, name, k)


def test_the_table_is_what_it_says(table: PerformanceTable) -> None:
    assert table.values.shape == (48, 22)
    missing = np.isnan(table.values).sum(axis=0)
    assert {task for task, count in zip(table.tasks, missing, strict=True) if count} == INCOMPLETE


def test_ordinal_ties(table: PerformanceTable) -> None:
    report = measure(table, "ordinal")
    assert (len(report.models), len(report.tasks)) == (48, 18)
    assert set(report.left_out_tasks) == INCOMPLETE
    check(report)


def test_average_ties_change_only_one(table: PerformanceTable) -> None:
    check(measure(table, "average"), AVERAGE_TIES)


def test_both_sources_of_imagenet_say_the_same(table: PerformanceTable) -> None:
    with (GROUNDTRUTH / "models.csv").open(newline="") as file:
        listed = {model_name(r["model"], r["pretrained"]): float(r["imagenet_acc"]) for r in csv.DictReader(file)}
    column = 100 * table.values[:, table.tasks.index("imagenet1k")]
    np.testing.assert_allclose(column, [listed[model] for model in table.models], atol=1e-9)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    paths = ["--performance", GROUNDTRUTH / "accuracy_merged.csv", "--models", GROUNDTRUTH / "models.csv"]
    options = ["--complete", "--ties", "ordinal", "--methods", "inb,avgrank", "--format", "json"]
    assert run(["eval", "recommend", *map(str, paths), *options]) == 0
    out, err = capsys.readouterr()
    assert "fer2013" in err
    for entry in json.loads(out)["methods"]:
        for name, values in EXPECTED[entry["method"]].items():
            measured = [entry["figures"][f"{name}@{k}"]["mean"] for k in (3, 5, 7)]
            assert measured == pytest.approx(values, abs=TOLERANCE)
    # With what is missing, all 21 tasks are targets.
    assert run(["eval", "recommend", *map(str, paths), "--format", "json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert len(value["tasks"]) == 21
    assert set(value["missing"]) == INCOMPLETE
