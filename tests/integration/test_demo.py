"""The drawn world on disk is a hub like any other, and the demo's commands find what it knows."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.encoder import ConceptEncoder
from engine.errors import HubhoundError, InputError
from engine.index import Index
from engine.probes import read_folder
from indexers.loaders import load
from indexers.sources import expand, fetch, revision_of
from query.cli.main import run
from query.demo import run as demo
from query.demo.training import World, WorldSpec, build_world
from query.request import SearchRequest
from query.search import Searcher
from tests.support.hub_server import HubServer

pytestmark = pytest.mark.slow


def test_it_is_complete(drawn_world: World) -> None:
    probes = read_folder(drawn_world.probes)
    with drawn_world.probe_concepts.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [probe.file for probe in probes.probes]
    assert len(probes) == WorldSpec.test().probes
    labels = json.loads(drawn_world.labels.read_text())
    assert len(labels) == WorldSpec.test().classifiers
    assert any(all(entry["label"] is None for entry in entries) for entries in labels.values())
    queries = drawn_world.queries.read_text().split("\n")
    assert {entry["concept"] for entries in labels.values() for entry in entries} == set(queries) - {""}


def test_models_and_encoder_are_good_enough_to_show_something(drawn_world: World) -> None:
    assert drawn_world.encoder_accuracy > 0.5
    assert np.mean(list(drawn_world.classifier_accuracy.values())) > 0.7


def test_the_loaders_read_every_model(drawn_world: World) -> None:
    labels = json.loads(drawn_world.labels.read_text())
    libraries = set()
    for source in expand([str(drawn_world.models)]):
        loaded = load(fetch(source, revision_of(source)[0], max_size_bytes=10**9, allow_pickle=False))
        libraries.add(loaded.library)
        assert list(loaded.labels) == [entry["label"] for entry in labels[source.repo]]
    assert libraries == {"timm", "transformers"}


def test_the_encoder_loads_from_its_folder(drawn_world: World) -> None:
    encoder = ConceptEncoder.load(f"open_clip:local-dir:{drawn_world.encoder}")
    vectors = encoder.encode_texts(["star", "house", "star"], ("{}", "a photo of a {}"))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-6)
    assert vectors[0] @ vectors[1] < 0.9
    again = ConceptEncoder.load(f"open_clip:local-dir:{drawn_world.encoder}")
    assert again.fingerprint == encoder.fingerprint


def test_images_are_embedded_in_order_and_none_is_lost(drawn_world: World) -> None:
    encoder = ConceptEncoder.load(f"open_clip:local-dir:{drawn_world.encoder}")
    probes = read_folder(drawn_world.probes)
    images = [probes.image(i) for i in range(53)]
    whole = encoder.encode_images(images, 53)
    assert whole.shape == (53, encoder.dimension)
    for i in (0, 17, 52):
        np.testing.assert_allclose(encoder.encode_images([images[i]], 1)[0], whole[i], atol=1e-5)
    fewer = encoder.encode_images(iter(images[:9]), 53)  # the images end before the count does
    np.testing.assert_allclose(fewer, whole[:9], atol=1e-5)


def test_a_second_build_reuses_the_first(drawn_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr("query.demo.training._Build", never)
    assert build_world(drawn_world.folder, WorldSpec.test()) == drawn_world


def test_an_interrupted_build_leaves_nothing_and_strangers_are_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        def __init__(self, folder: Path, *_: object) -> None:
            folder.mkdir(parents=True)
            (folder / "half").write_text("")

        def run(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr("query.demo.training._Build", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_world(tmp_path / "world", WorldSpec.test())
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        build_world(tmp_path / "mine", WorldSpec.test())


def test_building_leaves_no_trace_in_torch(drawn_world: World, tmp_path: Path) -> None:
    tiny = replace(
        WorldSpec.test(), probes=64, classifiers=1, drawings=2, held_out=1, encoder_steps=2, classifier_steps=2
    )
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    build_world(tmp_path / "world", tiny, progress=False)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_the_commands_find_what_the_models_know(
    drawn_world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo = tmp_path / "zoo"
    encoder = f"open_clip:local-dir:{drawn_world.encoder}"
    create = ["--probes", drawn_world.probes, "--encoder", encoder, "--background", drawn_world.background]
    assert run(["index", "create", "--index", str(zoo), *map(str, create)]) == 0
    assert run(["index", "add", "--index", str(zoo), "--cache", str(tmp_path / "c"), str(drawn_world.models)]) == 0
    truth = {
        (repo, entry["index"]): entry["concept"]
        for repo, entries in json.loads(drawn_world.labels.read_text()).items()
        for entry in entries
    }
    concepts = tuple(sorted(set(truth.values())))
    answer = Searcher(Index(zoo)).search(SearchRequest(concepts, 5))
    right = [[truth[hit.model, hit.output] == r.query.text for hit in r.hits] for r in answer.results]
    assert np.mean([hits[0] for hits in right]) > 0.6
    assert np.mean([any(hits) for hits in right]) > 0.8
    capsys.readouterr()
    # Another encoder cannot be asked about this index.
    manifest = (zoo / "manifest.json").read_text().replace(Index(zoo).manifest.encoder.fingerprint, "0" * 64)
    (zoo / "manifest.json").write_text(manifest)
    assert run(["search", "never asked before", "--index", str(zoo)]) == 1
    assert "encoder" in capsys.readouterr().err


def test_rebuilding_with_another_encoder_runs_no_model(
    drawn_world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, other = tmp_path / "zoo", tmp_path / "encoder"
    background = str(drawn_world.background)
    create = ["index", "create", "--probes", str(drawn_world.probes), "--background", background]
    assert run([*create, "--index", str(zoo), "--encoder", f"open_clip:local-dir:{drawn_world.encoder}"]) == 0
    assert run(["index", "add", "--index", str(zoo), "--cache", str(tmp_path / "c"), str(drawn_world.models)]) == 0
    shutil.copytree(drawn_world.encoder, other)
    weights = load_file(other / "open_clip_model.safetensors")
    rng = torch.Generator().manual_seed(0)
    changed = {
        k: v + 0.02 * v.std() * torch.randn(v.shape, generator=rng) if v.numel() > 1 else v for k, v in weights.items()
    }
    save_file(changed, other / "open_clip_model.safetensors")
    spec = f"open_clip:local-dir:{other}"
    fresh, rebuilt = tmp_path / "fresh", tmp_path / "rebuilt"
    assert run([*create, "--index", str(fresh), "--encoder", spec]) == 0
    assert run(["index", "add", "--index", str(fresh), "--cache", str(tmp_path / "c"), str(drawn_world.models)]) == 0

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("indexers.loaders.load", loaded)
    assert run(["index", "rebuild", "--index", str(zoo), "--to", str(rebuilt), "--encoder", spec]) == 0
    assert Index(rebuilt).manifest.encoder.fingerprint == Index(fresh).manifest.encoder.fingerprint
    assert Index(rebuilt).manifest.encoder.fingerprint != Index(zoo).manifest.encoder.fingerprint
    concepts = tuple(drawn_world.queries.read_text().split("\n")[:5])
    for a, b in zip(
        *(Searcher(Index(f)).search(SearchRequest(concepts, 1)).results for f in (fresh, rebuilt)), strict=True
    ):
        assert (a.hits[0].model, a.hits[0].output) == (b.hits[0].model, b.hits[0].output)
        assert a.hits[0].margin == pytest.approx(b.hits[0].margin, abs=0.05)
    capsys.readouterr()


def test_the_encoder_comes_from_a_hub(drawn_world: World, tmp_path: Path) -> None:
    """``open_clip:hf-hub:ORG/NAME`` over real HTTP, in a process that knows the Hub by HF_ENDPOINT alone."""
    shutil.copytree(drawn_world.encoder, tmp_path / "hub" / "models" / "org" / "tiny-clip")
    (tmp_path / "background.txt").write_text(drawn_world.background.read_text())
    with HubServer(tmp_path / "hub") as server:
        environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
        environment.pop("HF_HUB_OFFLINE", None)
        arguments = ["--probes", drawn_world.probes, "--encoder", "open_clip:hf-hub:org/tiny-clip"]
        command = [sys.executable, "-c", "from query.cli.main import main; main()", "index", "create"]
        done = subprocess.run(
            [*command, "--index", tmp_path / "zoo", *arguments, "--background", tmp_path / "background.txt"],
            env=environment,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    local = ConceptEncoder.load(f"open_clip:local-dir:{drawn_world.encoder}")
    assert Index(tmp_path / "zoo").manifest.encoder.fingerprint == local.fingerprint


def test_bad_images_can_be_left_out(drawn_world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted(drawn_world.probes.iterdir())[:60]:
        shutil.copy(path, photos)
    first = sorted(photos.iterdir())[0]
    first.write_bytes(first.read_bytes()[:200])
    (photos / "text.jpg").write_text("no image")
    create = ["index", "create", "--index", str(tmp_path / "zoo"), "--probes", str(photos)]
    create += ["--encoder", f"open_clip:local-dir:{drawn_world.encoder}", "--background", str(drawn_world.background)]
    assert run(create) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert first.name in error[0]
    assert "--skip-bad" in error[0]
    assert not (tmp_path / "zoo").exists()
    assert run([*create, "--skip-bad"]) == 0
    assert capsys.readouterr().err.count("left out") == 2
    index = Index(tmp_path / "zoo")
    assert index.manifest.probes.count == 59
    assert index.probe_embeddings.shape[0] == 59
    assert len(index.probes()) == 59


def test_the_demo_itself(
    drawn_world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WorldSpec, "demo", classmethod(lambda cls: WorldSpec.test()))
    (tmp_path / "world").symlink_to(drawn_world.folder)
    demo.run_demo(tmp_path)
    captured = capsys.readouterr()
    assert "top-1" in captured.out
    assert "$ hubhound index create" in captured.err
    assert "hubhound search" in captured.out
    with pytest.raises(HubhoundError, match="status 1"):
        demo._command("search", "star", "--index", tmp_path / "none")
