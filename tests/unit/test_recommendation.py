"""Leaving one task out: every method against a slow form, what decides the numbers, and what is left out."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import distance as scipy_distance

from engine.errors import InputError
from engine.performance import PerformanceTable, ranks
from engine.profiles import ImageProfiles
from query.evaluate.ranking import ndcg, regret
from query.evaluate.recommendation import Settings, leave_one_out
from query.evaluate.recommenders import METHODS, PROFILE_METHODS, TABLE_METHODS, draw, mean_ranks

TASKS = ("cars", "pets", "food", "signs", "digits", "imagenet1k")
MODELS = tuple(f"org/m{i}" for i in range(9))
NAN = float("nan")
ALL_IMAGES = Settings(source_images=99, target_images=99, seeds=(0,), ks=(3, 5))


@pytest.fixture
def table() -> PerformanceTable:
    values = np.random.default_rng(0).integers(0, 20, (len(MODELS), len(TASKS))) / 20  # with ties
    return PerformanceTable(MODELS, TASKS, values)


@pytest.fixture
def profiles() -> dict[str, ImageProfiles]:
    """Models with another number of blocks each, tasks with another number of images each."""
    rng = np.random.default_rng(1)
    found = {}
    for i, model in enumerate(MODELS):
        blocks = tuple(f"block {j}" for j in range(3 + i % 4))
        images = {task: rng.gamma(2, 1, (20 + 3 * t, len(blocks))) for t, task in enumerate(TASKS)}
        found[model] = ImageProfiles(model, blocks, images)
    return found


def slow_distance(method: str, target: list[float], source: list[float], eta: float) -> float:
    """The definitions, number by number."""
    if method == "dcd":
        largest = max(target)
        powers = [math.exp(eta * v / largest) for v in target]
        terms = zip(powers, target, source, strict=True)
        return sum(p / sum(powers) * abs(v - s) / (v + 1e-8) for p, v, s in terms)
    if method == "cosine":
        return float(scipy_distance.cosine(target, source))
    if method == "jsd":
        return float(scipy_distance.jensenshannon(target, source))
    return 0.0


def slow_prediction(
    method: str,
    table: PerformanceTable,
    profiles: dict[str, ImageProfiles],
    target: str,
    model: str,
    settings: Settings,
) -> float:
    """Predicted rank of one model on one target from all images."""
    known = ranks(table.values, settings.ties)
    i = table.models.index(model)
    own = profiles[model].images
    total = weighted = 0.0
    for t, task in enumerate(table.tasks):
        if task in {target, "imagenet1k"} or math.isnan(known[i, t]) or task not in own:
            continue
        apart = slow_distance(method, own[target].mean(axis=0).tolist(), own[task].mean(axis=0).tolist(), settings.eta)
        weight = math.exp(-settings.gamma * apart)
        total += weight
        weighted += weight * known[i, t]
    return weighted / total


@pytest.mark.parametrize("method", PROFILE_METHODS)
@pytest.mark.parametrize("ties", ["average", "ordinal"])
def test_methods_that_weigh_sources(
    table: PerformanceTable, profiles: dict[str, ImageProfiles], method: str, ties: str
) -> None:
    settings = replace(ALL_IMAGES, methods=(method,), ties=ties, eta=1.3, gamma=0.7)
    report = leave_one_out(table, settings, profiles)
    assert report.tasks == TASKS[:-1]
    result = report.result(method)
    for place, target in enumerate(report.tasks):
        expected = [slow_prediction(method, table, profiles, target, model, settings) for model in MODELS]
        np.testing.assert_allclose(result.predicted[0, place], expected, rtol=1e-9)
        truth = ranks(table.values, ties)[:, place]
        assert result.figures["ndcg@3"][0, place] == pytest.approx(ndcg(expected, truth, 3, ties))
        assert result.figures["regret"][0, place] == pytest.approx(regret(expected, table.values[:, place], ties))


def test_methods_of_the_table(table: PerformanceTable) -> None:
    report = leave_one_out(table, Settings(seeds=(0, 1, 2)))
    assert tuple(result.method for result in report.results) == TABLE_METHODS
    known = ranks(table.values)[:, :-1]
    for place in range(5):
        others = [t for t in range(5) if t != place]
        np.testing.assert_allclose(report.result("avgrank").predicted[1, place], known[:, others].mean(axis=1))
        np.testing.assert_allclose(report.result("avgrank-target").predicted[1, place], known.mean(axis=1))
        order = np.argsort(report.result("inb").predicted[2, place], kind="stable")
        np.testing.assert_array_equal(order, np.argsort(-table.values[:, -1], kind="stable"))
        for seed in range(3):
            assert sorted(report.result("random").predicted[seed, place]) == list(range(9))
    assert np.unique(report.result("random").predicted.reshape(15, 9), axis=0).shape == (15, 9)
    for method in ("inb", "avgrank", "avgrank-target"):
        assert report.result(method).figure("tau@3").sd is None
    assert "dcd, cosine, jsd, uniform are left out" in report.notes[0]


def test_equal_weights_are_the_mean_rank(table: PerformanceTable, profiles: dict[str, ImageProfiles]) -> None:
    report = leave_one_out(table, Settings(), profiles)
    assert tuple(result.method for result in report.results) == METHODS
    np.testing.assert_array_equal(report.result("uniform").predicted, report.result("avgrank").predicted)
    flat = leave_one_out(table, Settings(methods=("dcd", "jsd"), gamma=0), profiles)
    for result in flat.results:
        np.testing.assert_allclose(result.predicted, report.result("uniform").predicted, rtol=1e-12)


@pytest.mark.parametrize(
    "change",
    [{"eta": 0.0}, {"gamma": 50.0}, {"seeds": (7,)}, {"source_images": 2}, {"target_images": 8}, {"ties": "ordinal"}],
)
def test_every_setting_changes_the_prediction(
    table: PerformanceTable, profiles: dict[str, ImageProfiles], change: dict[str, object]
) -> None:
    base = Settings(methods=("dcd",), seeds=(0,))
    first = leave_one_out(table, base, profiles).result("dcd").predicted
    again = leave_one_out(table, base, profiles).result("dcd").predicted
    other = leave_one_out(table, replace(base, **change), profiles).result("dcd").predicted  # type: ignore[arg-type]
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_draws_depend_on_nothing_else(profiles: dict[str, ImageProfiles]) -> None:
    own = profiles["org/m1"]
    (one,) = draw([own], ("cars", "digits"), (3, 4), 5, 2)
    (two,) = draw([own], ("digits",), (4,), 5, 2)
    assert one is not None
    assert two is not None
    np.testing.assert_array_equal(one.sources[1, 1], two.sources[0, 0])
    np.testing.assert_array_equal(one.targets[1, 1], two.targets[0, 0])
    assert not np.allclose(one.sources[0], one.sources[1])
    # Every draw is a mean over that many images of the task, the same for every model.
    numbered = ImageProfiles("n", ("a",), {"cars": 2.0 ** np.arange(20)[:, None]})
    (few, same) = draw([numbered, replace(numbered, model="o")], ("cars", "pets"), range(6), 5, 1)
    (many,) = draw([numbered], ("cars",), range(6), 9, 1)
    assert few is not None
    assert same is not None
    assert many is not None
    np.testing.assert_array_equal(few.sources, same.sources)
    assert few.there.tolist() == [True, False]
    for seed in range(6):
        drawn, larger = round(5 * few.sources[seed, 0, 0]), round(9 * many.sources[seed, 0, 0])
        assert drawn.bit_count() == 5
        assert larger.bit_count() == 9
        assert drawn & larger == drawn
        assert round(few.targets[seed, 0, 0]).bit_count() == 1


def test_the_divergence_finds_the_tasks_that_are_alike() -> None:
    """Two kinds of tasks whose rankings are each other's reverse: the mean rank says nothing, the profiles all."""
    rng = np.random.default_rng(0)
    tasks = ("a1", "a2", "a3", "b1", "b2", "b3")
    values = np.stack([np.arange(8) / 8 if task[0] == "a" else np.arange(8)[::-1] / 8 for task in tasks], axis=1)
    models = tuple(f"org/m{i}" for i in range(8))
    kinds = {"a": np.array([1.0, 5.0, 2.0]), "b": np.array([4.0, 1.0, 6.0])}
    own = {t: kinds[t[0]] * rng.uniform(0.9, 1.1, (12, 3)) for t in tasks}
    profiles = {model: ImageProfiles(model, ("x", "y", "z"), own) for model in models}
    report = leave_one_out(PerformanceTable(models, tasks, values), Settings(), profiles)
    assert report.result("dcd").figure("ndcg_strict@5").mean == pytest.approx(1)
    assert report.result("dcd").figure("regret").mean == 0
    assert report.result("uniform").figure("regret").mean > 50
    assert report.ranking()[0] == "dcd"
    assert any("inb is left out" in note for note in report.notes)


def test_missing_values(table: PerformanceTable, profiles: dict[str, ImageProfiles]) -> None:
    values = table.values.copy()
    values[0, 1] = values[2, 1] = values[3, 4] = values[5, 5] = NAN
    holed = replace(table, values=values)
    settings = replace(ALL_IMAGES, methods=("dcd", "avgrank", "inb"))
    report = leave_one_out(holed, settings, profiles)
    assert report.missing == {"pets": 2, "digits": 1}
    for place, target in enumerate(report.tasks):
        for m, model in enumerate(MODELS):
            got = report.result("dcd").predicted[0, place, m]
            if math.isnan(values[m, place]):
                assert math.isnan(got)
            else:
                assert got == pytest.approx(slow_prediction("dcd", holed, profiles, target, model, settings))
    # Without a value on the reference a model cannot be ranked by it.
    assert report.result("inb").not_ranked == dict.fromkeys(report.tasks, ("org/m5",))
    assert report.result("dcd").not_ranked == {}
    assert any("inb could not rank 1 model(s)" in note for note in report.notes)
    assert any("3 values of 45 are missing, on pets, digits" in note for note in report.notes)
    complete = leave_one_out(holed, replace(settings, complete=True), profiles)
    assert complete.tasks == ("cars", "food", "signs")
    assert complete.left_out_tasks == {"pets": "2 of 9 values are missing", "digits": "1 of 9 values are missing"}
    assert complete.missing == {}
    np.testing.assert_array_equal(values, holed.values)


def test_mean_ranks_by_hand() -> None:
    known = np.array([[1.0, 2, NAN], [3, NAN, NAN]])
    np.testing.assert_array_equal(mean_ranks(known), [[2, 1, 1.5], [NAN, 3, 3]])
    np.testing.assert_array_equal(mean_ranks(known, with_target=True), [[1.5] * 3, [3] * 3])


def test_models_and_tasks_without_profiles(table: PerformanceTable, profiles: dict[str, ImageProfiles]) -> None:
    some = {model: own for model, own in profiles.items() if model not in {"org/m0", "org/m4"}}
    kept = {name: rows for name, rows in some["org/m1"].images.items() if name in {"cars", "food"}}
    some["org/m1"] = replace(some["org/m1"], images=kept)
    some["org/m2"] = replace(some["org/m2"], images={"cars": some["org/m2"].images["cars"]})
    some["org/new"] = replace(profiles["org/m0"], model="org/new")
    for model in MODELS[3:]:
        if model in some:
            images = {name: rows for name, rows in some[model].images.items() if name != "digits"}
            some[model] = replace(some[model], images=images)
    report = leave_one_out(table, replace(ALL_IMAGES, methods=("dcd", "avgrank")), some)
    assert report.models == tuple(model for model in MODELS if model in some)
    none = {"org/m0": "no profiles", "org/m4": "no profiles", "org/new": "no known performance"}
    assert report.left_out_models == none
    assert report.left_out_tasks == {"digits": "no profiles"}
    # m1 has one source for cars and food, and no profile of the others; m2 has no source at all.
    expected = {"cars": ("org/m2",), "pets": ("org/m1", "org/m2"), "food": ("org/m2",), "signs": ("org/m1", "org/m2")}
    assert report.result("dcd").not_ranked == expected
    assert report.result("avgrank").not_ranked == {}
    among = ranks(table.values[[MODELS.index(model) for model in report.models]])
    place = report.tasks.index("cars"), report.models.index("org/m1")
    assert report.result("dcd").predicted[0][place] == pytest.approx(among[place[1], TASKS.index("food")])
    # Methods of the table alone do not care who has profiles.
    assert leave_one_out(table, Settings(methods=("avgrank",)), some).models == MODELS


def test_few_models_and_tasks(table: PerformanceTable, profiles: dict[str, ImageProfiles]) -> None:
    four = PerformanceTable(MODELS[:4], TASKS[:2], table.values[:4, :2])
    report = leave_one_out(four, Settings(methods=("dcd", "uniform")), profiles)
    assert report.ks == (3,)
    assert any("k = 5, 7 is too much for 4 models: k = 3" in note for note in report.notes)
    assert any("only two tasks" in note for note in report.notes)
    np.testing.assert_allclose(report.result("dcd").predicted, report.result("uniform").predicted)
    two = PerformanceTable(MODELS[:2], TASKS[:3], np.array([[0.1, 0.2, 0.3], [0.2, 0.3, 0.4]]))
    small = leave_one_out(two, Settings())
    assert small.ks == (2,)
    assert small.result("avgrank").figure("ndcg@2").mean == pytest.approx(1)


@pytest.mark.parametrize(
    ("models", "tasks", "settings", "message"),
    [
        (9, ("cars",), Settings(), "at least two tasks.* of 1 too few"),
        (9, ("cars", "imagenet1k"), Settings(), "at least two tasks"),
        (1, TASKS, Settings(), "at least two models"),
        (0, (), Settings(), "at least two models"),
        (9, TASKS[:5], Settings(methods=("inb",)), "inb needs the performance on imagenet1k.*--reference"),
        (9, TASKS, Settings(methods=("avgrank", "jsd")), "jsd needs conductance profiles.*--index.*inb, avgrank"),
    ],
)
def test_too_little_to_measure(
    table: PerformanceTable, models: int, tasks: tuple[str, ...], settings: Settings, message: str
) -> None:
    columns = [TASKS.index(task) for task in tasks]
    part = PerformanceTable(MODELS[:models], tasks, table.values[:models][:, columns])
    with pytest.raises(InputError, match=message) as caught:
        leave_one_out(part, settings)
    assert "\n" not in str(caught.value)


def test_profiles_of_other_models(table: PerformanceTable, profiles: dict[str, ImageProfiles]) -> None:
    strangers = {"x" + model: own for model, own in profiles.items()}
    with pytest.raises(InputError, match=r"two models.*no profiles: org/m0.*no known performance: xorg/m0"):
        leave_one_out(table, Settings(), strangers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("dcd", "best")}, "no method 'best'"),
        ({"ks": (1, 3)}, "k must be at least 2"),
        ({"ks": ()}, "k must be at least 2"),
        ({"seeds": ()}, "at least one seed"),
        ({"source_images": 0}, "at least one image"),
        ({"target_images": 0}, "at least one image"),
        ({"eta": NAN}, "eta and gamma"),
        ({"gamma": -1.0}, "eta and gamma"),
    ],
)
def test_settings_that_make_no_sense(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**change)  # type: ignore[arg-type]


def test_another_reference(table: PerformanceTable) -> None:
    report = leave_one_out(table, Settings(reference="food"))
    assert report.tasks == ("cars", "pets", "signs", "digits", "imagenet1k")
    np.testing.assert_array_equal(report.result("inb").predicted[0, 0], -table.values[:, 2])
    empty = replace(table, values=np.where(np.arange(6) == 5, NAN, table.values))
    assert "inb" not in {result.method for result in leave_one_out(empty).results}
    with pytest.raises(InputError, match="no candidate has a value on the reference task imagenet1k"):
        leave_one_out(empty, Settings(methods=("inb",)))


def test_reports(table: PerformanceTable, profiles: dict[str, ImageProfiles], tmp_path: Path) -> None:
    report = leave_one_out(table, Settings(seeds=(0, 1, 2)), profiles)
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert [entry["method"] for entry in value["methods"]] == list(METHODS)
    dcd = value["methods"][0]
    raw = report.result("dcd").figures["sum@5"]
    assert raw.shape == (3, 5)
    assert dcd["seeds"]["sum@5"] == pytest.approx(raw.mean(axis=1).tolist())
    figure = {"mean": raw.mean(), "sd": np.std(raw.mean(axis=1), ddof=1)}
    assert dcd["figures"]["sum@5"] == pytest.approx(figure)
    assert dcd["tasks"]["pets"]["sum@5"]["mean"] == pytest.approx(raw[:, 1].mean())
    assert value["settings"]["gamma"] == 5.0
    markdown = report.to_markdown()
    assert f"{figure['mean']:.3f} ± {figure['sd']:.3f}" in markdown
    assert "## k = 7" in markdown
    assert "| source_images | 25 |" in markdown
    written = report.write(tmp_path / "new" / "folder")
    assert json.loads(written[0].read_text()) == value
    assert written[1].read_text() == markdown
