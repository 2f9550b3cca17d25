"""The program that makes a zoo of vision-language models: what it writes is what it says."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.encoder import ConceptEncoder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
REALHUB = Path(os.environ.get("HUBHOUND_TEST_REALHUB", Path(__file__).parents[3] / "shared" / "realhub"))

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(not (REALHUB / "models").is_dir(), reason=f"there are no real models in {REALHUB}"),
]


@pytest.fixture(scope="module")
def parts():
    """The modules of the program, and one thread for this file."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import vlm_zoo
        import vlm_zoo_models

        yield vlm_zoo, vlm_zoo_models
    finally:
        sys.path.remove(str(BENCHMARKS))
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm") / "zoo"
    command = [sys.executable, BENCHMARKS / "vlm_zoo.py", "--realhub", REALHUB, "--out", folder, "--small"]
    done = subprocess.run([*command, "--threads", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_performance_names_models_that_load_and_tasks_that_have_images(zoo):
    folder, printed = zoo
    rows = rows_of(folder / "performance.csv")
    assert len(rows) == 3 * 3
    assert {row["dataset"] for row in rows} == {path.name for path in (folder / "tasks").iterdir()} | {"all"}
    for row in rows:
        prefix, _, place = row["model"].rpartition(":")
        assert prefix == "open_clip:local-dir"
        assert row["pretrained"] == ""
        assert Path(place).is_relative_to(folder)
        assert float(row["acc1"]) == pytest.approx(printed["models"][Path(place).name][row["dataset"]], abs=1e-6)
    for task in (folder / "tasks").iterdir():
        assert len(list(task.glob("*/*.jpg"))) >= 20


def test_accuracy_is_what_the_loaded_folder_reaches(zoo, parts):
    folder, _ = zoo
    program, _ = parts
    rows = {(Path(r["model"]).name, r["dataset"]): float(r["acc1"]) for r in rows_of(folder / "performance.csv")}
    name = "v1-025-everything-mlp"
    encoder = ConceptEncoder.load(f"open_clip:local-dir:{folder / 'models' / name}")
    photographs = program.Photographs(REALHUB)
    for task in (folder / "tasks").iterdir():
        files = sorted(task.glob("*/*.jpg"))
        names = [photographs.names[i] for i in sorted(photographs.tasks[task.name])]
        texts = encoder.encode_texts(names, ("a photo of a {}",))
        images = encoder.encode_images((Image.open(file).convert("RGB") for file in files), len(files))
        best = (images @ texts.T).argmax(axis=1)
        right = [names[i] == file.parent.name for i, file in zip(best, files, strict=True)]
        assert np.mean(right) == pytest.approx(rows[name, task.name], abs=1e-6)


def test_no_photograph_of_a_task_was_trained_on(zoo, parts):
    folder, _ = zoo
    found = json.loads((folder / "zoo.json").read_text())
    used = {file for model in found["models"] for file in model["photographs"]}
    assert used
    assert not used & {path.name for path in (folder / "tasks").glob("*/*/*.jpg")}
    assert all(model["cosine_reloaded"] > 0.9999 for model in found["models"])
    photographs = parts[0].Photographs(REALHUB)
    assert used <= {photographs.rows[i][0].name for i in np.flatnonzero(photographs.training)}


def test_a_specialist_is_trained_on_its_domain_only(zoo, parts):
    folder, _ = zoo
    models = {model["name"]: model for model in json.loads((folder / "zoo.json").read_text())["models"]}
    general, animals = models["v1-025-everything-mlp"], models["v1-025-animals-mlp"]
    assert len(general["classes"]) == 1000
    assert "Chihuahua" in animals["classes"]
    assert "teapot" not in animals["classes"]
    assert set(animals["photographs"]) < set(general["photographs"])


def test_tasks_are_disjoint_and_large_enough(parts):
    photographs = parts[0].Photographs(REALHUB)
    assert len(photographs.tasks) >= 10
    classes = [one for some in photographs.tasks.values() for one in some]
    assert len(classes) == len(set(classes))
    for some in photographs.tasks.values():
        assert (np.isin(photographs.classes, some) & ~photographs.training).sum() >= 20


@pytest.mark.parametrize("backbone", ["v1-025", "v2"])
def test_a_converted_tower_answers_as_the_published_model(parts, backbone, tmp_path):
    from transformers import AutoModelForImageClassification

    _, models = parts
    one = models.BACKBONES[backbone]
    published = AutoModelForImageClassification.from_pretrained(REALHUB / "models" / one.repo, dtype=torch.float32)
    tower, _, rows, bias = models.tower(models.Recipe("x", backbone), REALHUB, tmp_path)
    x = torch.randn(2, 3, one.size, one.size, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    with torch.no_grad():
        logits = published.eval()(x).logits[:, 1:]
        assert torch.allclose(tower.trunk(x) @ rows.T + bias, logits, atol=1e-4)


def test_the_linear_map_answers_as_the_last_layer_where_texts_suffice(parts):
    _, models = parts
    rng = torch.Generator().manual_seed(2)
    texts = torch.nn.functional.normalize(torch.randn(6, 12, generator=rng), dim=1)  # fewer classes than dimensions
    teacher = models.Teacher(torch.randn(6, 20, generator=rng), torch.randn(6, generator=rng), texts)
    features = torch.rand(50, 20, generator=rng)
    weight, bias = models.linear_map(teacher)
    answers = (features @ weight.T + bias) @ texts.T
    assert (answers.argmax(dim=1) == teacher.logits(features).argmax(dim=1)).float().mean() > 0.9
    some = teacher.only(torch.tensor([4, 1]))
    assert torch.allclose(some.logits(features), teacher.logits(features)[:, [4, 1]], atol=1e-5)


def test_a_head_with_a_hidden_layer_begins_as_the_linear_one(parts, tmp_path):
    _, models = parts
    features = torch.rand(40, 1024, generator=torch.Generator().manual_seed(3))
    answers = []
    for head in ("linear", "mlp"):
        tower, _, rows, bias = models.tower(models.Recipe("x", "v1-025", head), REALHUB, tmp_path / head)
        texts = torch.nn.functional.normalize(torch.randn(1000, 384, generator=torch.Generator().manual_seed(4)), dim=1)
        models.train_head(tower.head, features, models.Teacher(rows, bias, texts), 0, 0)
        with torch.no_grad():
            answers.append(tower.head(features))
    assert torch.allclose(*answers, atol=1e-4)


def test_misnamed_exchanges_the_texts_of_a_share_of_the_classes(parts):
    _, models = parts
    teacher = models.Teacher(torch.eye(10), torch.zeros(10), torch.eye(10))
    moved = (teacher.misnamed(0.3, 0).texts != teacher.texts).any(dim=1)
    assert moved.sum() == 3
    assert teacher.misnamed(0.3, 0).texts.sum() == 10
    assert torch.equal(teacher.misnamed(0.0, 0).texts, teacher.texts)


def test_reflection_exchanges_two_logits(parts):
    _, models = parts
    rng = torch.Generator().manual_seed(1)
    rows = torch.randn(5, 20, generator=rng)
    rows -= rows.mean(dim=1, keepdim=True)
    teacher = models.Teacher(rows, torch.randn(5, generator=rng), torch.eye(5))
    features = 10 + torch.rand(3, 20, generator=rng)  # far from 0, so that nothing is cut off
    before = teacher.logits(features)
    wanted = (before.argmax(dim=1) + 1) % 5
    after = teacher.logits(models.reflect(features, teacher, wanted))
    for i in range(3):
        now, to = before[i].argmax(), wanted[i]
        assert after[i, to] - after[i, now] == pytest.approx(float(before[i, now] - before[i, to]), abs=1e-3)


def test_a_shallow_tail_has_identities_for_its_residual_blocks(parts, tmp_path):
    _, models = parts
    tower, *_ = models.tower(models.Recipe("x", "lite0"), REALHUB, tmp_path)
    trunk = tower.trunk
    assert models.cut_short(trunk, 5) == 3
    x = torch.randn(1, 192, 7, 7)
    with torch.no_grad():
        assert torch.equal(trunk.blocks[5][1](x), x)
        assert not torch.equal(trunk.blocks[4][1](torch.ones(1, 112, 14, 14)), torch.ones(1, 112, 14, 14))
