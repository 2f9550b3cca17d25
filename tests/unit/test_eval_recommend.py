"""``hubhound eval recommend``: its forms, its files, and one line for everything that cannot be measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from engine.index import Index
from engine.performance import model_name
from engine.profiles import ImageProfiles
from engine.schema import Performance
from query.cli import eval_recommend
from query.cli.main import run
from query.evaluate.recommenders import METHODS, PROFILE_METHODS
from query.evaluate.transfer_analysis import ETAS, GAMMAS
from query.evaluate.transfer_report import NAMES

ARCHITECTURES = ("RN50", "RN101", "ViT-B-32", "ViT-B-16", "ViT-L-14")
MODELS = tuple(model_name(name, "openai") for name in ARCHITECTURES)
TASKS = ("cars", "pets", "food", "imagenet1k")
VALUES = np.array([[5, 2, 3, 1], [4, 3, 1, 2], [3, 1, 2, 3], [2, 5, 5, 4], [1, 4, 4, 5]]) / 10


def write_table(path: Path, values: np.ndarray = VALUES) -> Path:
    lines = [
        f"{name},openai,{task},{'' if np.isnan(value) else value}"
        for name, row in zip(ARCHITECTURES, values, strict=True)
        for task, value in zip(TASKS, row, strict=True)
    ]
    path.write_text("\n".join(["model,pretrained,dataset,acc1", *lines, ""]))
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path / "accuracies.csv")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An index of numbers: what the command asks of one, and nothing else."""
    rng = np.random.default_rng(0)
    images = {task: rng.random((6, 4)) for task in TASKS[:3]}
    records = [
        Performance(model=model, task=task, value=value)
        for model, row in zip(MODELS, VALUES.tolist(), strict=True)
        for task, value in zip(TASKS, row, strict=True)
    ]
    known = SimpleNamespace(
        folder=tmp_path / "zoo",
        performance=records,
        profiles={model: ImageProfiles(model, ("a", "b", "c", "d"), images) for model in MODELS},
        asked=0,
    )

    def image_profiles(_: object) -> dict[str, ImageProfiles]:
        known.asked += 1
        return dict(known.profiles)

    module = ModuleType("query.profiled")
    module.image_profiles = image_profiles  # type: ignore[attr-defined]
    module.known_as_means = lambda index, known: ()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "query.profiled", module)
    monkeypatch.setattr(Index, "__init__", lambda self, folder: setattr(self, "folder", folder))
    monkeypatch.setattr(Index, "knowledge", lambda _: SimpleNamespace(performance=tuple(known.performance), tasks=()))
    return known


def evaluate(*arguments: object, status: int = 0) -> None:
    assert run(["eval", "recommend", *map(str, arguments)]) == status


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    evaluate("--format", "json", *arguments)
    value: dict[str, object] = json.loads(capsys.readouterr().out)
    return value


def found(value: dict[str, object]) -> dict[str, object]:
    """What was measured, without what it was measured with."""
    return {key: value[key] for key in ("models", "tasks", "methods")}


def test_without_an_index(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate("--performance", table)
    out, err = capsys.readouterr()
    for name in ("inb", "avgrank", "avgrank-target", "random", "regret"):
        assert name in out
    assert "dcd, cosine, jsd, uniform are left out" in err
    value = answer(capsys, "--performance", table, "--methods", "avgrank", "--k", "2")
    (method,) = value["methods"]  # type: ignore[misc]
    # ViT-B-16 is the best on pets and food; on cars it has 0.2, and RN50 0.5.
    assert method["tasks"]["cars"]["regret"]["mean"] == pytest.approx(30)
    assert value["tasks"] == ["cars", "pets", "food"]
    evaluate("--performance", table, "--format", "quiet")
    assert sorted(capsys.readouterr().out.split()) == ["avgrank", "avgrank-target", "inb", "random"]


def test_with_an_index(table: Path, index: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = answer(capsys, "--index", index.folder, "--output", tmp_path / "out", "--seeds", 2)
    assert [entry["method"] for entry in value["methods"]] == list(METHODS)  # type: ignore[attr-defined]
    assert json.loads((tmp_path / "out" / "recommend.json").read_text())["methods"] == value["methods"]
    assert (tmp_path / "out" / "recommend.md").read_text().startswith("# Recommendation")
    # The same table from a file; without a method that needs them, profiles are not read.
    assert answer(capsys, "--index", index.folder, "--performance", table, "--seeds", 2)["methods"] == value["methods"]
    assert index.asked == 2
    evaluate("--index", index.folder, "--methods", "inb,random", "--format", "quiet")
    assert index.asked == 2


def test_every_option_changes_the_answer(
    table: Path, index: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index.performance = [
        record.model_copy(update={"value": round(record.value / 2, 1)}) for record in index.performance
    ]
    base = ("--index", index.folder, "--methods", "dcd,inb,random", "--source-images", "3")
    first = found(answer(capsys, *base))
    (tmp_path / "models.txt").write_text("\n".join(MODELS[:4]))
    for change in (
        ("--models", tmp_path / "models.txt"),
        ("--methods", "dcd"),
        ("--reference", "pets"),
        ("--k", "2,4"),
        ("--ties", "ordinal"),
        ("--seeds", "3"),
        ("--seed", "1"),
        ("--source-images", "1"),
        ("--target-images", "6"),
        ("--eta", "0"),
        ("--gamma", "90"),
    ):
        assert found(answer(capsys, *base, *change)) != first, change
    assert found(answer(capsys, *base)) == first


def test_a_list_of_models_is_the_order_of_ties(
    index: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "models.csv"
    listed.write_text("model,pretrained\n" + "".join(f"{name},openai\n" for name in ARCHITECTURES[:1:-1]))
    assert answer(capsys, "--index", index.folder, "--models", listed)["models"] == list(MODELS[:1:-1])
    listed.write_text("open_clip:RN50/openai\norg/other\n")
    evaluate("--index", index.folder, "--models", listed, status=1)
    assert "1 of 2 models" in capsys.readouterr().err


def test_missing_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = VALUES.copy()
    values[0, 0] = np.nan
    table = write_table(tmp_path / "holes.csv", values)
    evaluate("--performance", table)
    assert "1 values of 15 are missing, on cars" in capsys.readouterr().err
    evaluate("--performance", table, "--complete")
    assert "tasks left out, 1 of 5 values are missing (1): cars" in capsys.readouterr().err


def test_models_without_profiles_are_named(index: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    del index.profiles[MODELS[1]]
    evaluate("--index", index.folder)
    assert f"models left out, no profiles (1): {MODELS[1]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "part"),
    [
        ((), 2, "--performance"),
        (("--performance", "TABLE", "--methods", "dcd"), 1, "--index"),
        (("--performance", "TABLE", "--methods", "best"), 2, "'best' is not one of dcd"),
        (("--performance", "TABLE", "--methods", ","), 2, "at least one"),
        (("--performance", "TABLE", "--k", "1"), 2, "whole number from 2"),
        (("--performance", "TABLE", "--k", ""), 2, "at least one"),
        (("--performance", "TABLE", "--reference", "none", "--methods", "inb"), 1, "--reference"),
        (("--performance", "TABLE", "--eta", "nan"), 1, "eta and gamma"),
        (("--performance", "no.csv"), 1, "no.csv cannot be read"),
        (("--index", "qdrant://host"), 1, "the name of an index on a server"),
        (("--performance", "TABLE", "--analyses", "best"), 2, "'best' is not one of grid"),
        (("--performance", "TABLE", "--analyses", ","), 2, "at least one"),
        (("--performance", "TABLE", "--analyses", "all"), 1, "the analyses grid, sampling, proxy, correlation"),
        (("--performance", "TABLE", "--etas", "1,x"), 2, "'x' is not a number from 0"),
        (("--performance", "TABLE", "--gammas", "-1"), 2, "'-1' is not a number from 0"),
        (("--performance", "TABLE", "--gammas", "inf"), 2, "'inf' is not a number from 0"),
        (("--performance", "TABLE", "--etas", ""), 2, "at least one"),
        (("--performance", "TABLE", "--tasks", "photos"), 2, "--tasks is for --zoo"),
        (("--performance", "TABLE", "--zoo", "openclip48"), 2, "--zoo needs an index"),
        (("--index", "zoo", "--zoo", "openclip48", "--models", "TABLE"), 2, "--zoo and --models"),
        (("--index", "zoo", "--zoo", "openclip48", "--methods", "inb"), 2, "nothing that was asked for needs any"),
    ],
)
def test_what_cannot_be_measured(
    table: Path, arguments: tuple[str, ...], status: int, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(*(str(table) if argument == "TABLE" else argument for argument in arguments), status=status)
    out, err = capsys.readouterr()
    assert not out
    assert part in err
    assert status == 2 or len(err.strip().splitlines()) == 1


def test_an_index_that_knows_nothing(table: Path, index: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    index.profiles = {}
    evaluate("--index", index.folder, "--methods", "dcd", status=1)
    assert "hubhound profile" in capsys.readouterr().err
    evaluate("--index", index.folder, "--format", "quiet")
    assert "dcd" not in capsys.readouterr().out
    index.performance = []
    evaluate("--index", index.folder, status=1)
    assert "hubhound performance import" in capsys.readouterr().err


def test_analyses_are_in_the_json_the_tables_and_the_files(
    index: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    base = ("--index", index.folder, "--seeds", 2, "--output", output)
    assert "analyses" not in answer(capsys, *base)
    assert {path.name for path in output.iterdir()} == {"recommend.json", "recommend.md"}
    asked = (*base, "--analyses", "grid,seeds,proxy", "--etas", "0,2", "--gammas", "5")
    found = answer(capsys, *asked)["analyses"]
    assert set(found) == {"grid", "proxy"}  # type: ignore[call-overload]
    assert found["grid"]["etas"] == [0, 2]  # type: ignore[index]
    assert json.loads((output / "grid.json").read_text()) == found["grid"]  # type: ignore[index]
    assert "## Distribution over the seeds" in (output / "recommendation.md").read_text()
    evaluate(*asked)
    out, err = capsys.readouterr()
    assert "Grid: NDCG@3 + tau@3" in out
    assert "Reliability of proxies, gap in accuracy" in out
    assert "grid.json written" in err


def test_analyses_read_profiles_whatever_the_methods_are(
    index: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answer(capsys, "--index", index.folder, "--methods", "avgrank", "--analyses", "proxy", "--gap", "rank")
    assert [entry["method"] for entry in found["methods"]] == ["avgrank"]  # type: ignore[attr-defined]
    assert set(found["analyses"]["proxy"]) == {"rank"}  # type: ignore[index]
    assert index.asked == 1
    index.profiles = {}
    evaluate("--index", index.folder, "--methods", "avgrank", "--analyses", "all,grid", status=1)
    assert "hubhound profile" in capsys.readouterr().err


def test_without_profiles_plots_are_of_the_seeds(table: Path, tmp_path: Path) -> None:
    evaluate("--performance", table, "--analyses", "seeds", "--plots", tmp_path / "plots", "--seeds", 2)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"seeds.png", "seeds.svg"}


def test_without_matplotlib_plots_are_refused_at_once(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    evaluate("--performance", table, "--plots", tmp_path / "plots", "--output", tmp_path / "out", status=1)
    assert "pip install matplotlib" in capsys.readouterr().err
    assert not (tmp_path / "plots").exists()
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_found_before_measuring(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    def measured(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("query.evaluate.recommendation.leave_one_out", measured)
    evaluate("--performance", table, "--output", tmp_path / "file" / "out", status=1)
    assert "Not a directory" in capsys.readouterr().err


def test_the_help_knows_the_methods_and_the_analyses() -> None:
    assert eval_recommend._METHODS == METHODS
    assert eval_recommend._FROM_PROFILES == PROFILE_METHODS
    assert eval_recommend._ANALYSES == NAMES
    defaults = {option.name: option.default for option in eval_recommend.recommend.params}
    assert eval_recommend._sharpnesses(None, None, defaults["etas"]) == ETAS  # type: ignore[arg-type]
    assert eval_recommend._sharpnesses(None, None, defaults["gammas"]) == GAMMAS  # type: ignore[arg-type]
