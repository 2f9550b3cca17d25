"""The grid over sharpnesses and the sampling of images, against one evaluation for each of their points."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.errors import InputError
from engine.performance import PerformanceTable
from engine.profiles import ImageProfiles
from query.evaluate.recommendation import Settings, leave_one_out
from query.evaluate.results import Figure
from query.evaluate.transfer_analysis import IMAGES, grid, sampling

TASKS = ("a", "b", "c", "d", "e", "f")
SETTINGS = Settings(ks=(3, 5), seeds=(0, 1, 2), source_images=4, target_images=2, eta=1.5, gamma=3.0)


def world(images: int = 12) -> tuple[PerformanceTable, dict[str, ImageProfiles]]:
    """Seven models with 3 or 5 blocks; a task is what it looks like, so that profiles do tell something."""
    rng = np.random.default_rng(11)
    looks = rng.normal(size=(len(TASKS), 3))
    profiles = {}
    for i in range(7):
        d = (3, 5)[i % 2]
        base = np.exp(looks @ rng.normal(size=(3, d)))
        profiles[f"m{i}"] = ImageProfiles(
            f"m{i}",
            tuple(f"b{j}" for j in range(d)),
            {task: base[t] * rng.gamma(4.0, 0.25, (images, d)) for t, task in enumerate(TASKS)},
        )
    values = 1 / (1 + np.exp(-(looks @ rng.normal(size=(3, 7))).T))
    return PerformanceTable(tuple(profiles), TASKS, values), profiles


def same(ours: Figure, theirs: Figure) -> bool:
    return ours.mean == pytest.approx(theirs.mean) and (ours.sd or 0.0) == pytest.approx(theirs.sd or 0.0, abs=1e-12)


def holed() -> tuple[PerformanceTable, dict[str, ImageProfiles]]:
    """The same with figures and profiles missing, and a model of which nothing is known."""
    table, profiles = world()
    values = table.values.copy()
    values[0, 2] = values[3, 0] = values[3, 5] = np.nan
    kept = {task: rows for task, rows in profiles["m2"].images.items() if task not in {"a", "e"}}
    profiles["m2"] = ImageProfiles("m2", profiles["m2"].blocks, kept)
    del profiles["m5"]
    profiles["stranger"] = profiles["m1"]
    return PerformanceTable(table.models, TASKS, values), profiles


@pytest.mark.parametrize("ties", ["average", "ordinal"])
@pytest.mark.parametrize("make", [world, holed])
def test_every_cell_of_the_grid_is_an_evaluation(make: Any, ties: str) -> None:
    table, profiles = make()
    settings = replace(SETTINGS, ties=ties)
    told: list[tuple[int, int]] = []
    report = grid(
        table, profiles, settings, (0.0, 2.0), (0.0, 4.0, 30.0), lambda done, total: told.append((done, total))
    )
    assert told == [(1, 2), (2, 2)]
    for i, eta in enumerate(report.etas):
        for j, gamma in enumerate(report.gammas):
            alone = leave_one_out(table, replace(settings, methods=("dcd",), eta=eta, gamma=gamma), profiles)
            assert set(report.figures) == set(alone.measures)
            for measure in alone.measures:
                assert same(report.figures[measure][i][j], alone.result("dcd").figure(measure)), (eta, gamma, measure)
    assert (report.eta, report.gamma) == (1.5, 3.0)
    assert (report.models, report.tasks) == (len(alone.models), len(alone.tasks))
    assert report.notes == alone.notes
    means = [[cell.mean for cell in row] for row in report.figures["sum@3"]]
    assert means[0] != means[1]  # eta counts
    assert len(set(means[1])) == 3  # gamma counts
    json.dumps(report.model_dump(mode="json"), allow_nan=False)


def test_without_sharpness_the_grid_is_the_uniform_method() -> None:
    table, profiles = world()
    report = grid(table, profiles, SETTINGS, (3.0,), (0.0,))
    uniform = leave_one_out(table, replace(SETTINGS, methods=("uniform",)), profiles).result("uniform")
    for measure, rows in report.figures.items():
        assert rows[0][0].mean == pytest.approx(uniform.figure(measure).mean)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"etas": (1.0, -1.0)}, "eta that are numbers from 0, not \\[-1.0\\]"),
        ({"gammas": (math.inf,)}, "gamma"),
        ({"gammas": (math.nan,)}, "gamma"),
        ({"etas": ()}, "not none"),
        ({"profiles": {}}, "needs conductance profiles"),
    ],
)
def test_a_grid_that_cannot_be_measured_is_refused(change: dict[str, Any], message: str) -> None:
    table, profiles = world()
    with pytest.raises(InputError, match=message):
        grid(**{"table": table, "profiles": profiles, "settings": SETTINGS, **change})


def test_every_point_of_the_sampling_is_an_evaluation() -> None:
    table, profiles = world()
    told: list[tuple[int, int]] = []
    report = sampling(
        table, profiles, SETTINGS, ("dcd", "cosine"), (10, 1, 3), lambda done, total: told.append((done, total))
    )
    assert told == [(i, 6) for i in range(1, 7)]
    for curves, which in ((report.source, "source_images"), (report.target, "target_images")):
        assert [curve.method for curve in curves] == ["dcd", "cosine"]
        for curve in curves:
            assert [point.images for point in curve.points] == [1, 3, 10]
            for point in curve.points:
                own: Any = {which: point.images, "methods": (curve.method,)}
                alone = leave_one_out(table, replace(SETTINGS, **own), profiles).result(curve.method)
                assert all(same(figure, alone.figure(measure)) for measure, figure in point.figures.items())
                assert point.short == 0
    assert (report.source_images, report.target_images) == (4, 2)
    assert report.notes == ()
    source = [point.figures["sum@3"].mean for point in report.source[0].points]
    target = [point.figures["sum@3"].mean for point in report.target[0].points]
    assert len(set(source)) > 1
    assert source != target
    json.dumps(report.model_dump(mode="json"), allow_nan=False)


def test_numbers_beyond_what_there_is_are_capped_and_said() -> None:
    table, profiles = world()
    few = {task: rows[: 2 if task == "b" else 12] for task, rows in profiles["m0"].images.items()}
    profiles["m0"] = ImageProfiles("m0", profiles["m0"].blocks, few)
    report = sampling(table, profiles, SETTINGS)
    assert IMAGES == (1, 2, 5, 10, 25, 50, 100)
    assert [point.images for point in report.source[0].points] == [1, 2, 5, 10, 12]
    assert [point.short for point in report.source[0].points] == [0, 0, 1, 1, 1]
    assert report.notes[-1] == "25, 50, 100 images: no task has more than 12, 12 was measured instead"
    # All images, whatever the seed: nothing is left to vary.
    everything = sampling(table, world()[1], replace(SETTINGS, target_images=12), images=(12,))
    assert everything.source[0].points[0].figures["sum@3"].sd == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("uniform",)}, "dcd, cosine, jsd, not uniform"),
        ({"methods": ()}, "not nothing"),
        ({"images": (0, 1)}, "from 1"),
        ({"images": ()}, "from 1"),
        ({"profiles": {}}, "needs conductance profiles"),
    ],
)
def test_a_sampling_that_cannot_be_measured_is_refused(change: dict[str, Any], message: str) -> None:
    table, profiles = world()
    with pytest.raises(InputError, match=message):
        sampling(**{"table": table, "profiles": profiles, "settings": SETTINGS, **change})
