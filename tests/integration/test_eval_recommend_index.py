"""``hubhound eval recommend`` on a real index: tiny models with weights of their own, profiled, measured, drawn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from captum.attr import LayerConductance
from PIL import Image

import engine.conductance
from engine.encoder import ConceptEncoder, open_dual_encoder
from engine.index import Index
from engine.performance import ranks
from engine.tasks import task_folder
from query.cli.main import run
from query.profiled import image_profiles
from tests.support.tiny_vlm import CLIP_CONFIG, save_vlm, write_photos

TASKS = ("cars", "food", "pets", "signs")
VALUES = np.array([[0.9, 0.2, 0.5, 0.4], [0.3, 0.8, 0.4, 0.6], [0.1, 0.5, 0.7, 0.2]])
IMAGES, N_STEPS = 6, 3
ANALYSES = ("grid", "sampling", "proxy", "correlation", "coverage")
PLOTS = ("seeds", "grid", "sampling", "proxy-accuracy", "correlation", "coverage")


class World(NamedTuple):
    """An index without tasks, and all that one command needs to fill it."""

    index: Path
    zoo: Path
    tasks: Path
    performance: Path
    models: tuple[str, ...]

    def arguments(self, *more: object) -> list[str]:
        given = ("--index", self.index, "--zoo", self.zoo, "--tasks", self.tasks, "--performance", self.performance)
        fixed = ("--n-steps", N_STEPS, "--max-batch", 2 * N_STEPS + 2, "--images-per-task", IMAGES, "--k", 2)
        return ["eval", "recommend", "--device", "cpu", *map(str, (*given, *fixed, *more))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("recommend")
    deeper = {**CLIP_CONFIG, "vision_cfg": {**CLIP_CONFIG["vision_cfg"], "layers": 3}}
    models = tuple(save_vlm(root / "zoo" / f"m{i}", i, deeper if i == 2 else CLIP_CONFIG) for i in range(3))
    (root / "zoo.txt").write_text("# three of them\n" + "\n".join(models) + "\n")
    for seed, task in enumerate((*TASKS, "unmeasured", "imagenet1k")):
        for kind in ("round_things", "others"):
            write_photos(root / "tasks" / task / f"{kind}_{task}", 4, 10 * seed + len(kind))
    write_photos(root / "probes", 12, 99)
    rows = [
        f"{model},,{task},{value}"
        for model, own in zip(models, VALUES, strict=True)
        for task, value in zip((*TASKS, "imagenet1k"), (*own, own.mean()), strict=True)
    ]
    (root / "accuracies.csv").write_text("\n".join(["model,pretrained,dataset,acc1", *rows]))
    index = root / "index"
    create = ["index", "create", "--index", index, "--probes", root / "probes", "--encoder", models[0], "--top-r", 5]
    assert run([str(argument) for argument in create]) == 0
    return World(index, root / "zoo.txt", root / "tasks", root / "accuracies.csv", models)


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    """A copy of its own."""
    shutil.copytree(made.index, tmp_path / "index")
    return made._replace(index=tmp_path / "index")


@pytest.fixture(scope="module")
def filled(made: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The world after the command."""
    root = tmp_path_factory.mktemp("filled")
    shutil.copytree(made.index, root / "index")
    full = made._replace(index=root / "index")
    assert run(full.arguments("--methods", "dcd", "--seeds", 1)) == 0
    return full


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each pass was made for; counts what is really computed."""
    counts: list[int] = []
    real = engine.conductance.layer_conductance

    def counting(*given: Any, **options: Any) -> Any:
        counts.append(len(given[3]))
        return real(*given, **options)

    monkeypatch.setattr(engine.conductance, "layer_conductance", counting)
    return counts


def test_one_command_from_models_and_folders_to_plots(
    world: World, shown: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, plots = tmp_path / "out", tmp_path / "plots"
    more = ("--analyses", "all", "--output", output, "--plots", plots, "--seeds", 3, "--source-images", 4)
    assert run(world.arguments(*more, "--format", "json")) == 0
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert value["models"] == list(world.models)
    assert value["tasks"] == list(TASKS)
    assert sum(shown) == len(world.models) * len(TASKS) * IMAGES
    assert "tasks left out, the reference or without known performance (2): imagenet1k, unmeasured" in err
    names = {f"{name}.json" for name in (*ANALYSES, "recommend")} | {"recommend.md", "recommendation.md"}
    assert {path.name for path in output.iterdir()} == names
    for name in ANALYSES:
        assert json.loads((output / f"{name}.json").read_text()) == value["analyses"][name]
    drawn = {*PLOTS, *(f"conductance-zoo-m{i}" for i in range(3))}
    assert {path.name for path in plots.iterdir()} == {f"{name}.{kind}" for name in drawn for kind in ("png", "svg")}
    for path in plots.glob("*.png"):
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 5, path
    grid = value["analyses"]["grid"]
    cell = grid["figures"]["sum@2"][grid["etas"].index(2)][grid["gammas"].index(5)]
    assert cell == pytest.approx(value["methods"][0]["figures"]["sum@2"])
    # Again: nothing is computed, and the answer is the same.
    assert run(world.arguments(*more, "--format", "json")) == 0
    again = json.loads(capsys.readouterr().out)
    assert sum(shown) == len(world.models) * len(TASKS) * IMAGES
    assert again["methods"] == value["methods"]
    assert again["analyses"] == value["analyses"]


def test_profiles_are_those_of_captum_on_the_images_kept(filled: World) -> None:
    index = Index(filled.index)
    profiles = image_profiles(index)
    assert set(profiles) == set(filled.models)
    for name, blocks in zip(filled.models, (2, 2, 3), strict=True):
        model, preprocess, _ = open_dual_encoder(name)
        model.eval()
        task = index.knowledge().task("pets")
        assert task is not None
        assert len(task.images) == IMAGES
        with Image.open(task_folder(index.folder, "pets") / task.images[3].file) as image:
            x = preprocess(image.convert("RGB"))[None]
        for place, block in enumerate(model.visual.transformer.resblocks):
            found = LayerConductance(lambda images, model=model: model.encode_image(images).norm(dim=1), block)
            oracle = found.attribute(x, n_steps=N_STEPS).abs().mean().item()
            assert profiles[name].images["pets"][3, place] == pytest.approx(oracle, rel=1e-4)
        assert len(profiles[name].blocks) == blocks


def test_figures_are_those_of_the_equations(filled: World, capsys: pytest.CaptureFixture[str]) -> None:
    """With every image drawn nothing is left to chance, and a loop over the equations gives the regret."""
    every = ("--methods", "dcd", "--seeds", 1, "--source-images", IMAGES, "--target-images", IMAGES)
    capsys.readouterr()
    assert run(filled.arguments(*every, "--eta", 1.5, "--gamma", 0.7, "--format", "json")) == 0
    (dcd,) = json.loads(capsys.readouterr().out)["methods"]
    profiles = image_profiles(Index(filled.index))
    known = ranks(VALUES)
    for t, target in enumerate(TASKS):
        predicted = []
        for m, model in enumerate(filled.models):
            v = {task: profiles[model].images[task].mean(axis=0) for task in TASKS}
            u = v[target] / max(np.linalg.norm(v[target]), 1e-8)
            alpha = np.exp(1.5 * u) / np.exp(1.5 * u).sum()
            others = [task for task in TASKS if task != target]
            apart = np.array([(alpha * np.abs(v[target] - v[s]) / (v[target] + 1e-8)).sum() for s in others])
            p = np.exp(-0.7 * apart) / np.exp(-0.7 * apart).sum()
            predicted.append(float(p @ [known[m, TASKS.index(s)] for s in others]))
        lost = 100 * (VALUES[:, t].max() - VALUES[int(np.argmin(predicted)), t])
        assert dcd["tasks"][target]["regret"]["mean"] == pytest.approx(lost)


def test_the_text_gap_is_that_of_the_class_names(filled: World, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(filled.arguments("--methods", "dcd", "--analyses", "proxy", "--gap", "rank", "--format", "json")) == 0
    report = json.loads(capsys.readouterr().out)["analyses"]["proxy"]["rank"]
    encoder = ConceptEncoder.load(Index(filled.index).manifest.encoder.spec)
    templates = Index(filled.index).manifest.encoder.templates
    e = np.stack(
        [
            encoder.encode_texts([f"round things {task}", f"others {task}"], templates).astype(float).mean(axis=0)
            for task in TASKS
        ]
    )
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    known = ranks(VALUES)
    for m, entry in enumerate(report["models"]):
        text = ranks(np.array([[1 - e[i] @ e[j]] for i, j in pairs]))[:, 0]
        missed = ranks(np.array([[abs(known[m, i] - known[m, j])] for i, j in pairs]))[:, 0]
        assert entry["correlations"]["text"] == pytest.approx(np.corrcoef(text, missed)[0, 1])


def test_without_classes_the_text_gap_is_left_out(
    filled: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = filled._replace(index=tmp_path / "index", tasks=tmp_path / "tasks")
    shutil.copytree(filled.index, world.index)
    assert run(["task", "remove", "pets", "--index", str(world.index)]) == 0
    write_photos(world.tasks / "pets", 7, 5)
    for task in TASKS[:2]:
        shutil.copytree(filled.tasks / task, world.tasks / task)
    assert run(world.arguments("--methods", "dcd", "--analyses", "proxy", "--seeds", 1)) == 0
    out, err = capsys.readouterr()
    assert "the proxy text is left out: no classes are known of pets" in err
    assert "cosine" in out


def test_an_interrupted_run_goes_on_where_it_was(
    world: World, shown: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counting: Callable[..., Any] = engine.conductance.layer_conductance

    def interrupted(*given: Any, **options: Any) -> Any:
        if len(shown) == 40:  # in the middle of a task of the second model
            raise KeyboardInterrupt
        return counting(*given, **options)

    monkeypatch.setattr(engine.conductance, "layer_conductance", interrupted)
    single = ("--max-batch", N_STEPS + 1, "--methods", "dcd", "--seeds", 1)
    assert run(world.arguments(*single)) == 130
    assert capsys.readouterr().out == ""
    assert len(image_profiles(Index(world.index))[world.models[1]].images) == 2
    monkeypatch.setattr(engine.conductance, "layer_conductance", counting)
    assert run(world.arguments(*single, "--format", "json")) == 0
    assert json.loads(capsys.readouterr().out)["models"] == list(world.models)
    assert shown == [1] * (len(world.models) * len(TASKS) * IMAGES)


def test_a_model_that_cannot_be_loaded_is_left_out(
    filled: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = save_vlm(tmp_path / "zoo" / "broken", 7)
    (tmp_path / "zoo" / "broken" / "open_clip_model.safetensors").write_bytes(b"no weights")
    table = tmp_path / "accuracies.csv"
    rows = "".join(f"\n{broken},,{task},0.5" for task in TASKS)
    table.write_text(filled.performance.read_text() + rows)
    (tmp_path / "zoo.txt").write_text("\n".join([broken, *filled.models, "open_clip:ViT-B-32/unmeasured"]))
    world = filled._replace(zoo=tmp_path / "zoo.txt", performance=table)
    capsys.readouterr()
    assert run(world.arguments("--methods", "dcd", "--seeds", 1, "--format", "json")) == 0
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert value["models"] == list(filled.models)
    assert set(value["left_out"]["models"]) == {broken, "open_clip:ViT-B-32/unmeasured"}
    assert f"{broken} is left out: encoder" in err
    (tmp_path / "zoo.txt").write_text("\n".join([broken, filled.models[0]]))
    assert run(world.arguments("--seeds", 1)) == 1
    out, err = capsys.readouterr()
    assert not out
    assert "1 of 2 models of the zoo could be profiled" in err


def test_the_tasks_of_the_index_do_without_a_folder(filled: World, capsys: pytest.CaptureFixture[str]) -> None:
    given = filled.arguments("--methods", "dcd", "--seeds", 1, "--format", "json")
    place = given.index("--tasks")
    capsys.readouterr()
    assert run(given[:place] + given[place + 2 :]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"] == list(TASKS)


def test_another_number_of_steps_is_refused_before_anything_is_done(
    filled: World, shown: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(filled.arguments("--n-steps", 7)) == 1
    out, err = capsys.readouterr()
    assert not out
    assert "--n-steps 3" in err
    assert not shown


def test_plots_alone_draw_what_there_is(filled: World, tmp_path: Path) -> None:
    given = ["eval", "recommend", "--index", str(filled.index), "--performance", str(filled.performance), "--k", "2"]
    assert run([*given, "--seeds", "2", "--plots", str(tmp_path / "plots")]) == 0
    names = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert names == {"seeds", *(f"conductance-zoo-m{i}" for i in range(3))}
