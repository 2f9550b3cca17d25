"""``hubhound index add`` on real, tiny models: what is stored, what is repeated, what survives a kill."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import IndexUnusableError
from engine.index import Index
from engine.throughput import Runner, Way, pick_device
from engine.verify import verify
from indexers.loaders import load
from indexers.pixels import PixelCache
from indexers.prober import Prober
from indexers.sources import ModelSource, expand, fetch, revision_of
from query.cli.main import run
from query.request import SearchRequest
from query.search import Searcher
from tests.support.hub_server import HubServer
from tests.support.small_index import encode, make_index
from tests.support.tiny_models import change_json, timm_model, vit_model

ARCHITECTURES = ("test_resnet", "test_efficientnet", "test_vit", "test_convnext", "test_byobnet")
CONCEPTS = tuple(f"thing {i}" for i in range(12))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub") / "models"
    for i, name in enumerate(ARCHITECTURES):
        timm_model(root / "tiny" / name, name, classes=5 - i % 3)
    vit_model(root / "tiny" / "hf-vit")
    return root


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def add(index: Path, cache: Path, *models: Path | str, options: tuple[str, ...] = ()) -> int:
    arguments = ["index", "add", "--index", str(index), "--cache", str(cache), "--format", "json", *options]
    return run([*arguments, *map(str, models)])


def hits(index: Path) -> list[list[tuple[str, int, float]]]:
    answer = Searcher(Index(index), encode).search(SearchRequest(CONCEPTS, 8))
    return [[(hit.model, hit.output, hit.margin) for hit in result.hits] for result in answer.results]


def assert_same_hits(one: Path, other: Path) -> None:
    """Equal models and outputs; margins up to the rounding of another batch size."""
    for left, right in zip(hits(one), hits(other), strict=True):
        np.testing.assert_allclose([h[2] for h in left], [h[2] for h in right], atol=2e-3)
        spread = np.diff([h[2] for h in left])
        for place, (a, b) in enumerate(zip(left, right, strict=True)):
            near = [abs(d) < 4e-3 for d in spread[max(place - 1, 0) : place + 1]]
            assert a[:2] == b[:2] or any(near)


def test_adding_reports_stages_and_repeating_loads_nothing(
    tmp_path: Path, models: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make_index(tmp_path / "zoo").folder
    assert add(index, cache, models) == 0
    report = json.loads(capsys.readouterr().out)
    assert [m["model"] for m in report["models"]] == sorted(f"tiny/{name}" for name in (*ARCHITECTURES, "hf-vit"))
    assert all(m["state"] == "indexed" and m["seconds"]["probe"] > 0 for m in report["models"])
    assert verify(index) == []

    before = Index(index).snapshot().number

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("indexers.loaders.load", loaded)
    assert add(index, cache, models) == 0
    again = json.loads(capsys.readouterr().out)
    assert all(m["already"] for m in again["models"])
    assert Index(index).snapshot().number == before  # nothing changed, nothing written


def test_bad_models_are_named_and_the_run_goes_on(
    tmp_path: Path, models: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = make_index(tmp_path / "zoo").folder
    bad = tmp_path / "bad"
    timm_model(bad / "x" / "no-weights").joinpath("model.safetensors").unlink()
    pickled = timm_model(bad / "x" / "pickle")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    cut = timm_model(bad / "x" / "cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    change_json(timm_model(bad / "x" / "unknown") / "config.json", architecture="no_such_net")
    nan = timm_model(bad / "x" / "nan")
    from safetensors.torch import load_file, save_file

    weights = load_file(nan / "model.safetensors")
    save_file({k: torch.full_like(v, float("nan")) if v.is_floating_point() else v for k, v in weights.items()},
              nan / "model.safetensors")  # fmt: skip
    constant = timm_model(bad / "x" / "constant")
    weights = load_file(constant / "model.safetensors")
    save_file({k: torch.zeros_like(v) for k, v in weights.items()}, constant / "model.safetensors")
    assert add(index, cache, bad, models / "tiny" / "test_vit") == 0
    report = json.loads(capsys.readouterr().out)
    reasons = {m["model"]: m["reason"] for m in report["models"]}
    assert reasons == {
        "x/no-weights": "has no weights",
        "x/pickle": "has only pickled weights",
        "x/cut": "broken weights",
        "x/unknown": "unknown architecture",
        "x/nan": "broken weights",
        "x/constant": "no usable output",
        "tiny/test_vit": None,
    }
    assert all("\n" not in (m["detail"] or "") for m in report["models"])
    assert report["failures"]["broken weights"] == 2
    assert run(["index", "models", "--index", str(index), "--format", "json"]) == 0
    records = {m["repo"]: m for m in json.loads(capsys.readouterr().out)}
    assert records["x/pickle"]["state"] == "refused"
    assert records["x/cut"]["state"] == "failed"


def test_a_changed_model_replaces_itself(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = timm_model(tmp_path / "m" / "org" / "net")
    index = make_index(tmp_path / "zoo").folder
    assert add(index, cache, folder) == 0
    change_json(folder / "config.json", label_names=["one", "two", "three", "four", "five"])
    assert add(index, cache, folder) == 0
    snapshot = Index(index).snapshot()
    assert [snapshot.label_of(row) for row in range(len(snapshot))] == ["one", "two", "three", "four", "five"]
    assert verify(index) == []
    capsys.readouterr()


def test_models_come_from_a_hub_by_their_ids(tmp_path: Path, models: Path, cache: Path) -> None:
    """The command itself, in a process that knows the Hub by HF_ENDPOINT alone; again, nothing is fetched."""
    index = make_index(tmp_path / "zoo").folder
    shutil.copytree(models / "tiny" / "hf-vit", tmp_path / "hub" / "models" / "org" / "vit")
    with HubServer(tmp_path / "hub") as server:
        environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
        environment.pop("HF_HUB_OFFLINE", None)
        command = [sys.executable, "-c", "from query.cli.main import main; main()", "index", "add"]
        command += ["--index", str(index), "--cache", str(cache), "--format", "json", "org/vit@main", "org/absent"]
        reports = []
        for _ in range(2):
            done = subprocess.run(
                command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            reports.append(json.loads(done.stdout)["models"])
    first, again = reports
    assert [m["state"] for m in first] == ["indexed", "failed"]
    assert first[0]["revision"] == Index(index).snapshot().models[0].revision
    assert first[1]["reason"] == "not found"
    assert again[0]["already"]
    assert again[0]["seconds"]["fetch"] == 0
    assert verify(index) == []


def source(folder: Path) -> ModelSource:
    (only,) = expand([str(folder)])
    return only


def test_pixels_are_decoded_once_for_models_that_want_the_same(tmp_path: Path, models: Path, cache: Path) -> None:
    probes = make_index(tmp_path / "zoo").probes()
    pixels = PixelCache(cache)
    prober = Prober(probes, pixels, pick_device("cpu"))
    seconds = []
    for name in ("test_resnet", "test_efficientnet"):
        where = source(models / "tiny" / name)
        revision, _ = revision_of(where)
        loaded = load(fetch(where, revision, max_size_bytes=10**9, allow_pickle=False))
        seconds.append(prober.probe(loaded).decode_s)
    assert pixels.decoded == len(probes)
    assert len(list(cache.rglob("*.npy"))) == 1
    again = PixelCache(cache)
    again.get(probes, loaded.preprocessing)
    assert again.decoded == 0


def test_pixels_used_longest_ago_make_room(tmp_path: Path, models: Path, cache: Path) -> None:
    probes = make_index(tmp_path / "zoo").probes()
    where = source(models / "tiny" / "test_resnet")
    loaded = load(fetch(where, revision_of(where)[0], max_size_bytes=10**9, allow_pickle=False))
    one = len(probes) * 3 * 64 * 64
    small = PixelCache(cache, limit_bytes=int(1.5 * one))
    small.get(probes, loaded.preprocessing)
    from dataclasses import replace

    small.get(probes, replace(loaded.preprocessing, key="another"))
    assert [path.stem for path in cache.rglob("*.npy")] == ["another"]


def test_responses_are_those_of_the_model_itself(tmp_path: Path, models: Path, cache: Path) -> None:
    """The prober against the library's own transform, one image at a time."""
    import timm

    probes = make_index(tmp_path / "zoo").probes()
    folder = models / "tiny" / "test_resnet"
    where = source(folder)
    loaded = load(fetch(where, revision_of(where)[0], max_size_bytes=10**9, allow_pickle=False))
    got = Prober(probes, PixelCache(cache), pick_device("cpu")).probe(loaded).values
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        for i in (0, 7, len(probes) - 1):
            expected = model(transform(probes.image(i))[None])[0].numpy()
            np.testing.assert_allclose(got[i], expected, rtol=1e-4, atol=1e-5)


def test_probabilities_become_logits_again(tmp_path: Path, models: Path, cache: Path) -> None:
    from dataclasses import replace

    probes = make_index(tmp_path / "zoo").probes()
    where = source(models / "tiny" / "hf-vit")
    loaded = load(fetch(where, revision_of(where)[0], max_size_bytes=10**9, allow_pickle=False))
    prober = Prober(probes, PixelCache(cache), pick_device("cpu"))
    logits = prober.probe(loaded)
    soft = replace(loaded, forward=lambda module, x: loaded.forward(module, x).softmax(dim=1))
    again = prober.probe(soft)
    assert (logits.probabilities, again.probabilities) == (False, True)
    centred = logits.values - logits.values.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(again.values, centred, atol=1e-4)


@pytest.mark.parametrize("way", [Way(1, True, 1), Way(7, False, 2), None])
def test_every_way_gives_the_same_answers(way: Way | None) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5))
    images = torch.randn(33, 3, 8, 8)
    with torch.inference_mode():
        expected = net(images)
    threads = torch.get_num_threads()
    done: list[int] = []
    runner = Runner(net, net, torch.device("cpu"), way)
    got = torch.cat(list(runner.run(lambda a, b: images[a:b], 33, done.append)))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert done[-1] == 33
    assert torch.get_num_threads() == threads


def child(index: str, cache: str, models: str) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    run(["index", "add", "--index", index, "--cache", cache, models])


@pytest.fixture(scope="module")
def server() -> Iterator[multiprocessing.context.BaseContext]:
    """Children start from a process that has torch imported already, so that they can be killed where it matters."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "timm", "transformers", "qdrant_edge", "indexers.loaders.timm_loader"])
    return context


@pytest.mark.slow
def test_kill_anywhere_and_go_on(
    tmp_path: Path, models: Path, cache: Path, server: multiprocessing.context.BaseContext
) -> None:
    whole = make_index(tmp_path / "whole" / "zoo").folder
    started = time.monotonic()
    process = server.Process(target=child, args=(str(whole), str(cache), str(models)))
    process.start()
    process.join()
    took = time.monotonic() - started
    assert process.exitcode == 0
    index = make_index(tmp_path / "killed" / "zoo").folder
    draw = random.Random(7)
    kept: set[str] = set()
    killed = 0
    for _ in range(10):
        process = server.Process(target=child, args=(str(index), str(cache / "killed"), str(models)))
        process.start()
        process.join(draw.uniform(0.05, took))
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
            killed += 1
        process.join()
        try:
            now = {model.repo for model in Index(index).snapshot().models}
        except IndexUnusableError:
            now = set()  # killed before the first snapshot
        assert kept <= now  # what was there stays there
        kept = now
        if kept:
            hits(index)  # and can be searched
    assert killed >= 5
    process = server.Process(target=child, args=(str(index), str(cache), str(models)))
    process.start()
    process.join()
    assert verify(index) == []
    assert_same_hits(index, whole)


@pytest.mark.slow
def test_searching_while_another_process_adds(
    tmp_path: Path, models: Path, cache: Path, server: multiprocessing.context.BaseContext
) -> None:
    index = make_index(tmp_path / "zoo").folder
    assert add(index, cache, models / "tiny" / "hf-vit") == 0
    process = server.Process(target=child, args=(str(index), str(cache), str(models)))
    process.start()
    sizes, errors = [], []

    def search() -> None:
        while process.is_alive():
            try:
                answer = Searcher(Index(index), encode).search(SearchRequest(CONCEPTS[:2], 3))
            except Exception as error:
                errors.append(error)
                return
            sizes.append(answer.searched)

    searcher = threading.Thread(target=search)
    searcher.start()
    process.join()
    searcher.join()
    assert errors == []
    assert sizes == sorted(sizes)  # generations only grow here
    assert len(sizes) > 10
    assert len(Index(index).snapshot()) > sizes[0]
