"""Profiling and recommending as a whole: interrupted, copied, replaced, and against the equations."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qdrant_client import QdrantClient

from engine.blocks import find_blocks
from engine.conductance import layer_conductance
from engine.conductance_cache import FILE
from engine.encoder import open_dual_encoder
from engine.index import Index
from engine.knowledge import Knowledge
from engine.store.edge import EdgeStore
from engine.store.server import ServerStore
from engine.tasks import task_images
from engine.writer import IndexWriter
from query.cli.main import run
from tests.support.knowledge import bits
from tests.support.slow_transfer import slow_rank
from tests.support.small_index import make_index
from tests.support.tiny_models import timm_model
from tests.support.tiny_vlm import (
    COCA_CONFIG,
    N_STEPS,
    PASSES,
    TASKS,
    inputs_of,
    make_task_index,
    put_accuracies,
    save_vlm,
    write_photos,
)
from tests.unit.test_cli_task import answer, refusal

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three vision-language models, a classifier, an index with their profiles on three tasks, and one without."""
    root = tmp_path_factory.mktemp("made")
    names = [save_vlm(root / "vlm/one", 0), save_vlm(root / "vlm/two", 1), save_vlm(root / "vlm/coca", 2, COCA_CONFIG)]
    timm_model(root / "org/classifier")
    make_task_index(root / "bare", [*names, "org/classifier"])
    shutil.copytree(root / "bare", root / "zoo")
    command = ["profile", *names, str(root / "org/classifier"), "--index", str(root / "zoo"), *PASSES]
    assert run(command) == 0
    return root


@pytest.fixture
def zoo(made: Path, tmp_path: Path) -> Path:
    """A copy of all of it but the models, which stay where they were profiled."""
    shutil.copytree(made / "zoo", tmp_path / "zoo")
    return tmp_path / "zoo"


@pytest.fixture
def target(tmp_path: Path) -> list[Path]:
    return write_photos(tmp_path / "target", 3, 77)


def ranking(capsys: pytest.CaptureFixture[str], zoo: Path, *arguments: object) -> Any:
    return json.loads(answer(capsys, "recommend", "--index", zoo, "--format", "json", *arguments)[0])


def conductance_of(name: str, paths: list[Path]) -> Any:
    """Mean |conductance| of the blocks of a model over some images."""
    model, _, _ = open_dual_encoder(name)
    model.eval()
    inputs = torch.stack([inputs_of(path) for path in paths])
    found = layer_conductance(
        lambda x: model.encode_image(x, normalize=False), model, find_blocks(model), inputs, n_steps=N_STEPS
    )
    return found.mean_abs.mean(axis=0)


def slow_ranks(known: Knowledge, task: str) -> dict[str, float]:
    values = {figure.model: figure.value for figure in known.performance if figure.task == task}
    return {
        model: 1
        + sum(other > value for other in values.values())
        + (sum(other == value for other in values.values()) - 1) / 2
        for model, value in values.items()
    }


@pytest.mark.parametrize("images", [1, 3])
def test_predicted_ranks_are_those_of_the_equations(
    images: int, zoo: Path, target: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = target[:images]
    found = ranking(capsys, zoo, *[part for path in shown for part in ("--images", path)])
    known = Index(zoo).knowledge()
    ranks = {task: slow_ranks(known, task) for task in TASKS}
    predicted = {one["model"]: one["predicted_rank"] for one in found["ranking"]}
    assert len(predicted) == 4 and found["profiled"] == 4 * images
    for model, value in predicted.items():
        if model == "org/classifier":
            continue
        tasks = [known.task(name) for name in TASKS if model in ranks[name]]
        sources = [conductance_of(model, list(task_images(zoo, task))) for task in tasks if task]
        places = [ranks[task.name][model] for task in tasks if task]
        slow = slow_rank(conductance_of(model, shown), sources, places, 2.0, 5.0)
        assert value == pytest.approx(slow, rel=1e-4)
    assert [one["model"] for one in found["ranking"]] == sorted(predicted, key=lambda model: predicted[model])
    (classifier,) = [one for one in found["ranking"] if one["model"] == "org/classifier"]
    assert {source["task"] for source in classifier["sources"]} == set(TASKS[1:])  # no value on the first


def test_the_sample_of_a_task_is_nearest_to_itself(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in TASKS[1:]:
        task = Index(zoo).knowledge().task(name)
        assert task is not None
        found = ranking(capsys, zoo, "--images", task_images(zoo, task)[0].parent, "--gamma", 1e6)
        assert found["profiled"] == 0  # they were all shown before
        assert all(one["sources"][0]["task"] == name for one in found["ranking"])
        assert all(one["sources"][0]["divergence"] == pytest.approx(0, abs=1e-12) for one in found["ranking"])


KILLED = """
import os, signal, sys
import engine.conductance as conductance
import engine.path_memory
real, log, limit = conductance.layer_conductance, sys.argv[1], int(sys.argv[2])

def counted(forward, module, blocks, images, **how):
    found = real(forward, module, blocks, images, **how)
    with open(log, "a") as file:
        file.write(f"{len(images)}\\n")
    with open(log) as file:
        if len(file.readlines()) == limit:
            os.kill(os.getpid(), signal.SIGKILL)
    return found

conductance.layer_conductance = counted
from query.cli.main import run
sys.exit(run(sys.argv[3:]))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(made: Path, tmp_path: Path) -> None:
    zoo = Path(shutil.copytree(made / "bare", tmp_path / "zoo"))
    models = [f"open_clip:local-dir:{made}/vlm/one", str(made / "org/classifier")]
    log = tmp_path / "log"

    def profile(limit: int) -> int:
        command = ["profile", *models, "--index", str(zoo), *PASSES]
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(log), str(limit), *command], cwd=ROOT, capture_output=True, check=False
        )
        assert done.returncode in {0, -signal.SIGKILL}, done.stderr.decode()
        return done.returncode

    limits = (2, 5, 10, 14)
    for limit in limits:
        assert profile(limit) == -signal.SIGKILL
    assert profile(10**6) == 0
    images = [int(line) for line in log.read_text().split()]
    assert sum(images) == 2 * 9 + len(limits)  # each once, and once more what was in hand at each kill
    found, expected = Index(zoo).knowledge(), Index(made / "zoo").knowledge()
    names = {models[0], "org/classifier"}
    assert len(found.profiles) == 6
    for profile_, other in zip(found.profiles, [p for p in expected.profiles if p.model in names], strict=True):
        assert (profile_.model, profile_.task) == (other.model, other.task)
        np.testing.assert_allclose(profile_.conductance, other.conductance, rtol=1e-6)


def test_replaced_weights_are_noticed_when_a_new_image_comes(
    made: Path, zoo: Path, target: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changing = save_vlm(tmp_path / "changing", 5)
    with IndexWriter(zoo) as writer:
        put_accuracies(writer, {changing: dict.fromkeys(TASKS, 0.5)})
    answer(capsys, "profile", changing, "--index", zoo, *PASSES)
    first = ranking(capsys, zoo, "--images", target[0])
    assert len(first["ranking"]) == 5
    save_vlm(tmp_path / "changing", 6)
    assert ranking(capsys, zoo, "--images", target[0])["ranking"] == first["ranking"]
    second = ranking(capsys, zoo, "--images", target[1])
    assert changing not in {one["model"] for one in second["ranking"]} and len(second["ranking"]) == 4
    (out,) = [one for one in second["left_out"] if one["model"] == changing]
    assert "weights" in out["reason"] and f"hubhound profile {changing} --again" in out["reason"]
    assert "weights" in refusal(capsys, "recommend", "--images", target[1], "--index", zoo, "--candidates", changing)
    answer(capsys, "profile", changing, "--index", zoo, *PASSES, "--again")
    third = ranking(capsys, zoo, "--images", target[1])
    assert len(third["ranking"]) == 5
    (row,) = [one for one in third["ranking"] if one["model"] == changing]
    sources = [conductance_of(changing, list(task_images(zoo, task))) for task in Index(zoo).knowledge().tasks]
    ranks = [slow_ranks(Index(zoo).knowledge(), task)[changing] for task in TASKS]
    assert row["predicted_rank"] == pytest.approx(
        slow_rank(conductance_of(changing, target[1:2]), sources, ranks, 2.0, 5.0), rel=1e-4
    )


def test_a_classifier_is_found_where_it_was_profiled(
    zoo: Path, target: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    only = ("--candidates", "org/classifier")
    assert ranking(capsys, zoo, "--images", target[0], *only)["profiled"] == 1
    (zoo / FILE).unlink()  # nobody remembers, and here is another model of that name
    timm_model(tmp_path / "org/classifier", classes=3)
    assert "weights of org/classifier are not those" in refusal(
        capsys, "recommend", "--images", target[0], "--index", zoo, *only
    )


def test_without_its_memory_an_index_recommends_the_same(
    zoo: Path, made: Path, target: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    first = ranking(capsys, zoo, "--images", target[0])
    (zoo / FILE).unlink()
    second = ranking(capsys, zoo, "--images", target[0])
    assert second["profiled"] == 4 and second["ranking"] == first["ranking"]


def test_profiles_go_to_a_server_and_back(
    zoo: Path, made: Path, target: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = ranking(capsys, zoo, "--images", target[0])
    with EdgeStore.open(zoo / "store") as store:
        layout, records = store.layout, store.knowledge()
    with closing(QdrantClient(path=str(tmp_path / "server"))) as client:
        ServerStore.create(client, "moved", layout).upsert_knowledge(records)
        moved = ServerStore.open(client, "moved").knowledge()
    assert sorted(map(repr, map(bits, moved))) == sorted(map(repr, map(bits, records)))
    other = make_index(tmp_path / "other").folder
    with IndexWriter(other) as writer:
        writer.store.upsert_knowledge(moved)
        writer.export_knowledge()
    shutil.copy(zoo / FILE, other / FILE)
    second = ranking(capsys, other, "--images", target[0])
    assert second["ranking"] == first["ranking"] and second["profiled"] == 0


def test_profiles_made_differently_are_left_out(
    zoo: Path, made: Path, target: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"open_clip:local-dir:{made}/vlm/two"
    known = Index(zoo).knowledge().profiles_of(name)
    with IndexWriter(zoo) as writer:
        writer.put_profiles([known[0].model_copy(update={"n_steps": 9})])
        writer.export_knowledge()
    found = ranking(capsys, zoo, "--images", target[0])
    assert len(found["ranking"]) == 3
    (out,) = [one for one in found["left_out"] if one["model"] == name]
    assert "numbers of steps" in out["reason"] and out["command"] == f"hubhound profile {name} --again --index {zoo}"
    assert "--again" in refusal(capsys, "profile", name, "--index", zoo, *PASSES)
    answer(capsys, "profile", name, "--index", zoo, *PASSES, "--again")
    assert len(ranking(capsys, zoo, "--images", target[0])["ranking"]) == 4
