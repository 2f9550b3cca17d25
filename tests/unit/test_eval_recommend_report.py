"""The analyses of ``eval recommend``: each is run as asked, and files come whole or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.errors import ConceptError, InputError
from engine.performance import PerformanceTable
from engine.profiles import ImageProfiles
from query.evaluate import transfer_plots
from query.evaluate.proxy import proxy_reliability
from query.evaluate.recommendation import Settings, leave_one_out
from query.evaluate.transfer_analysis import grid, sampling
from query.evaluate.transfer_report import (
    NAMES,
    Analyses,
    Plan,
    analyse,
    check_profiles,
    class_embeddings,
    to_json,
    write,
)

BLOCKS = ("a", "b", "c")
MODELS, TASKS = tuple(f"m{i}" for i in range(4)), tuple("uvwxy")
SETTINGS = Settings(methods=("jsd", "uniform", "avgrank"), ks=(2, 3), seeds=(4, 5), source_images=3, eta=1.0)


@pytest.fixture
def profiles() -> dict[str, ImageProfiles]:
    rng = np.random.default_rng(0)
    return {m: ImageProfiles(m, BLOCKS, {t: rng.gamma(2.0, 1.0, (6, 3)) for t in TASKS}) for m in MODELS}


@pytest.fixture
def table() -> PerformanceTable:
    return PerformanceTable(MODELS, TASKS, np.random.default_rng(1).random((4, 5)))


def test_each_analysis_is_run_with_the_settings(table: PerformanceTable, profiles: dict[str, ImageProfiles]) -> None:
    report = leave_one_out(table, SETTINGS, profiles)
    told: dict[str, list[tuple[int, int]]] = {}

    def bar(name: str) -> object:
        return lambda done, total: told.setdefault(name, []).append((done, total))

    text = np.random.default_rng(2).random((5, 7))
    plan = Plan(NAMES, etas=(0.0, 1.0), gammas=(3.0,), gap="rank")
    found = analyse(plan, report, table, profiles, SETTINGS, text, bar)  # type: ignore[arg-type]
    assert found.recommendation is report
    assert found.grid == grid(table, profiles, SETTINGS, (0.0, 1.0), (3.0,))
    assert found.sampling == sampling(table, profiles, SETTINGS, ("jsd",))
    assert found.proxies == (proxy_reliability(table, profiles, "rank", 1.0, text),)
    assert [own.proxy for own in found.proxies[0].proxies] == ["dcd", "cosine", "jsd", "text"]
    assert found.correlation is not None
    assert found.correlation.eta == 1.0
    assert found.coverage is not None
    assert found.coverage.tasks == TASKS
    assert {name: values[-1][0] == values[-1][1] for name, values in told.items()} == dict.fromkeys(
        ("grid", "sampling", "correlation", "coverage"), True
    )
    value = json.loads(json.dumps(to_json(found), allow_nan=False))
    assert set(value) == {"grid", "sampling", "proxy", "correlation", "coverage"}
    assert set(value["proxy"]) == {"rank"}


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_asked_for_is_run(name: str, table: PerformanceTable, profiles: dict[str, ImageProfiles]) -> None:
    settings = replace(SETTINGS, methods=("avgrank",))
    report = leave_one_out(table, settings, profiles)
    found = analyse(Plan((name,)), report, table, profiles, settings)
    made = {"seeds": found.recommendation, "proxy": found.proxies or None}
    made |= {key: getattr(found, key) for key in ("grid", "sampling", "correlation", "coverage")}
    assert [key for key, value in made.items() if value is not None] == [name]
    if found.sampling is not None:  # no method that draws was measured
        assert [curve.method for curve in found.sampling.source] == ["dcd"]


def test_the_first_seed_is_that_of_the_coverage(table: PerformanceTable, profiles: dict[str, ImageProfiles]) -> None:
    report = leave_one_out(table, SETTINGS, profiles)
    tails = [
        analyse(Plan(("coverage",)), report, table, profiles, replace(SETTINGS, seeds=(seed,))).coverage
        for seed in (4, 4, 9)
    ]
    assert tails[0] == tails[1]
    assert tails[0] != tails[2]


def test_without_profiles_only_the_seeds_are_left(table: PerformanceTable) -> None:
    settings = Settings(methods=("random",), ks=(2,))
    report = leave_one_out(table, settings)
    assert analyse(Plan(("seeds",)), report, table, None, settings).recommendation is report
    with pytest.raises(InputError, match="the analyses grid, coverage need conductance profiles"):
        check_profiles(Plan(("grid", "seeds", "coverage")), {})
    with pytest.raises(InputError, match="need conductance profiles"):
        analyse(Plan(NAMES), report, table, None, settings)


def test_text_embeddings_are_means_of_unit_vectors() -> None:
    vectors = {"golden retriever": (3.0, 4.0), "cat": (0.0, 2.0), "tram": (1.0, 0.0)}
    asked: list[str] = []

    def embed(texts: object) -> np.ndarray:
        asked.extend(texts)  # type: ignore[call-overload]
        return np.array([vectors[text] for text in asked], np.float32)

    classes = {"pets": ("golden_retriever", "cat"), "cars": ("tram", "cat"), "none": ()}
    found = class_embeddings(("cars", "none", "pets", "unknown"), classes, embed)
    np.testing.assert_allclose(found[[0, 2]], [[0.5, 0.5], [0.3, 0.9]], atol=1e-7)
    assert np.isnan(found[[1, 3]]).all()
    assert sorted(asked) == sorted(vectors)
    with pytest.raises(ConceptError):
        class_embeddings(("a",), {"a": ("_",)}, embed)


def test_a_plot_that_fails_leaves_what_was_there(
    table: PerformanceTable, profiles: dict[str, ImageProfiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = leave_one_out(table, SETTINGS, profiles)
    found = analyse(Plan(("seeds", "grid", "coverage")), report, table, profiles, SETTINGS)
    (tmp_path / "grid.json").write_text("of a former run")

    def broken(_: object) -> None:
        raise ValueError("no such plot")

    monkeypatch.setattr(transfer_plots, "coverage_plot", broken)
    with pytest.raises(ValueError, match="no such plot"):
        write(tmp_path, found)
    assert [path.name for path in tmp_path.iterdir()] == ["grid.json"]
    assert (tmp_path / "grid.json").read_text() == "of a former run"


def test_plots_without_texts(table: PerformanceTable, profiles: dict[str, ImageProfiles], tmp_path: Path) -> None:
    made = write(tmp_path, Analyses(recommendation=leave_one_out(table, SETTINGS, profiles)), texts=False)
    assert [path.name for path in made] == ["seeds.png", "seeds.svg"]


def test_models_of_a_like_name_have_plots_of_their_own(profiles: dict[str, ImageProfiles], tmp_path: Path) -> None:
    names = ("open_clip:local-dir:/far/away/zoo/m", "open_clip:local-dir:/near/zoo/m", "org/" + 200 * "x")
    own = tuple(replace(profiles["m0"], model=name) for name in names)
    made = write(tmp_path, Analyses(conductance=own), texts=False)
    stems = [path.stem for path in made if path.suffix == ".png"]
    assert stems == ["conductance-zoo-m", "conductance-zoo-m-2", f"conductance-org-{96 * 'x'}"]
    title = str(transfer_plots.conductance_heatmap(own[0]).get_suptitle())
    assert title.startswith("zoo/m\n")
