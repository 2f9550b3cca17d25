"""``hubhound search`` on an index on a server: what every engine answers, and what it refuses with which reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import prefetch
from engine.index import Index
from engine.joint_making import drop_candidates, make_candidates
from engine.remote import Remote
from engine.writer import IndexWriter
from indexers.sources import ModelSource, revision_of
from query.cli.main import run
from tests.support.joint_index import SETTINGS, new_index, store_of
from tests.support.servers import server_addresses
from tests.support.small_index import (
    PretendEncoder,
    encode,
    put_model,
    write_example,
)
from tests.support.tiny_models import timm_model, vit_model

CONCEPTS = {
    "org/one": ("cat", "dog", "horse", "owl", "ant"),
    "org/two": ("chair", "table", "lamp", "owl", "cat"),
    "org/three": ("owl", "car", "tree", "dog", "bee"),
}
ENGINES = ("qdrant", "candidates")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny classifiers that run; what their outputs recognise is drawn, their weights know nothing of it."""
    root = tmp_path_factory.mktemp("models")
    timm_model(root / "org/one", "test_resnet")
    vit_model(root / "org/two")
    timm_model(root / "org/three", "test_efficientnet")
    return root


@pytest.fixture(scope="module")
def folder(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Working folder of an index with candidates."""
    root = tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patch, server_addresses(root / "server") as addresses:
        patch.setenv("HUBHOUND_DATA", str(root / "data"))
        patch.setenv("HUBHOUND_DEVICE", "cpu")
        patch.setattr(Index, "load_encoder", lambda *_: PretendEncoder())
        folder = new_index(addresses, root)
        with IndexWriter(folder) as writer:
            for seed, (repo, concepts) in enumerate(CONCEPTS.items()):
                revision, _ = revision_of(ModelSource(repo, folder=models / repo))
                put_model(writer, repo, concepts, revision=revision, seed=seed, library="timm" if seed else "onnx")
        make_candidates(folder, SETTINGS, encode=encode)
        yield folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return write_example(tmp_path / "owl.png", "owl")


def address(folder: Path) -> str:
    return str(Remote.of(folder).address)  # type: ignore[union-attr]


def search(folder: Path, *arguments: object, status: int = 0) -> None:
    assert run(["search", "--index", address(folder), *map(str, arguments)]) == status


def answers(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> dict[str, dict[str, Any]]:
    """The JSON of a search by every engine."""
    found = {}
    for engine in ("scan", *ENGINES):
        capsys.readouterr()
        search(folder, *arguments, "--engine", engine, "--format", "json")
        found[engine] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> str:
    """The one line of an error."""
    capsys.readouterr()
    search(folder, *arguments, status=1)
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    return line


def test_images_are_searched_by(folder: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for question in (["--images", photo], ["horse", "--images", photo, "-k", 3], ["--images", photo, "--explain"]):
        found = answers(capsys, folder, *question)
        for engine in ENGINES:
            assert found[engine]["results"] == found["scan"]["results"]
            assert found[engine]["engine"] == engine
        assert found["qdrant"]["exact"] is True
        assert found["scan"]["results"][0]["hits"]
        assert "why" not in found["qdrant"]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_evidence_is_drawn(folder: Path, photo: Path, tmp_path: Path, engine: str) -> None:
    sheets = [tmp_path / "scan.png", tmp_path / "served.png"]
    for sheet, by in zip(sheets, ("scan", engine), strict=True):
        search(folder, "owl", "cat", "-k", 3, "--evidence-image", sheet, "--engine", by)
    assert sheets[0].read_bytes() == sheets[1].read_bytes()
    search(folder, "--images", photo, "--evidence-image", sheets[1], "--engine", engine)
    assert sheets[0].read_bytes() != sheets[1].read_bytes()


def test_hits_are_reranked_by_conductance(
    folder: Path, photo: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By running the models: their home profiles come from probes that the small snapshot of an engine knows of."""
    how = ["--rerank", "dcd", "--rerank-weight", 1, "--rerank-top", 8, "-k", 3, "--models", models / "org"]
    found = answers(capsys, folder, "--images", photo, *how)
    told = found["scan"]["rerank"]
    assert len(told["hits"]) == 8
    assert all("divergence" in hit and "reason" not in hit for hit in told["hits"])
    assert any(hit["was"] != hit["rank"] for hit in told["hits"])
    for engine in ENGINES:
        assert found[engine]["rerank"] == told
        assert found[engine]["results"] == found["scan"]["results"]
        assert len(found[engine]["results"][0]["hits"]) == 3


CONDITIONS = (["library=timm"], ["model=org/t*", "label=yes"], ["library=jax"])


@pytest.mark.parametrize("conditions", CONDITIONS, ids=[" ".join(some) for some in CONDITIONS])
def test_conditions_are_the_servers_to_apply_and_unknown_to_the_graph(
    folder: Path, conditions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    where = [part for condition in conditions for part in ("--where", condition)]
    found = []
    for engine in ("scan", "qdrant"):
        capsys.readouterr()
        search(folder, "owl", "lamp", *where, "--engine", engine, "--format", "json")
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["results"] == found[1]["results"]
    assert found[0]["searched"] == found[1]["searched"]
    assert found[1]["exact"] is True
    line = refused(capsys, folder, "owl", *where, "--engine", "candidates")
    assert "--engine candidates cannot take --where: use --engine qdrant or scan" in line


ONLY_SCANNED = {
    "--level model compares all outputs": ["cat", "dog", "--level", "model"],
    "--like compares outputs with an output": ["--like", "org/one#1"],
    "--evidence labels compares the labels": ["cat", "--evidence", "labels"],
    "--evidence both compares the labels": ["cat", "--evidence", "both"],
    "serve --method whitened only": ["cat", "--method", "probelog"],
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("reason", "question"), ONLY_SCANNED.items(), ids=ONLY_SCANNED)
def test_what_only_a_scan_can_answer_is_refused_with_the_reason(
    folder: Path, engine: str, reason: str, question: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, folder, *question, "--engine", engine)
    assert f"--engine {engine} cannot answer this" in line
    assert reason in line
    assert line.endswith("use --engine scan")


def test_reranking_with_labels_is_refused_by_every_engine(
    folder: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for engine in ("scan", *ENGINES):
        line = refused(capsys, folder, "--images", photo, "--rerank", "dcd", "--evidence", "both", "--engine", engine)
        assert "use one of them" in line


def told(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> tuple[dict[str, Any], str, str]:
    """The JSON of a search, and the notes of the same one as a table and as names only."""
    said = []
    for form in ("json", "table", "quiet"):
        capsys.readouterr()
        search(folder, *arguments, "--format", form)
        captured = capsys.readouterr()
        said.append(captured.out if form == "json" else " ".join(captured.err.split()))
    return json.loads(said[0]), said[1], said[2]


def test_an_uncertified_answer_says_that_the_index_is_being_calibrated(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_of(folder)
    model = store.model("org/three")
    assert model is not None
    table = store.outputs("org/three", model.revision)
    assert table is not None
    other = "0" * 64
    store.upsert_outputs(table.with_calibration(table.calibration, other))
    store.upsert_model(model.model_copy(update={"calibration": other}))
    try:
        found, line, quiet = told(capsys, folder, "cat", "-k", 1, "--engine", "qdrant")
        assert found["exact"] is False
        assert "the index is being calibrated ('hubhound index calibrate" in found["why"]
        for text in (line, quiet):
            assert "not certified, the index is being calibrated" in text
            assert text.endswith("--engine scan is exact")
            assert "fewer hits" not in text
            assert "come close" not in text
    finally:
        store.upsert_outputs(table)
        store.upsert_model(model)
    found, line, quiet = told(capsys, folder, "cat", "-k", 1, "--engine", "qdrant")
    assert found["exact"] is True
    assert "why" not in found
    assert "certified exact" in line
    assert quiet == ""


def test_an_uncertified_answer_says_that_too_many_outputs_are_alike(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "MOST", 2)
    found, line, _ = told(capsys, folder, "never seen", "-k", 6, "--engine", "qdrant")
    assert found["why"] == "more than 2 outputs come close to the best 6"
    assert "not certified, more than 2 outputs come close to the best 6: --engine scan is exact" in line


def test_an_uncertified_answer_says_that_models_are_being_written(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(folder)
    numbers = iter(range(1, 1000))
    monkeypatch.setattr(type(store), "newest", lambda self: next(numbers))
    found, line, _ = told(capsys, folder, "cat", "--engine", "qdrant")
    assert found["why"] == "models were being written during each of 3 attempts"
    assert "not certified, models were being written" in line


def test_candidates_say_how_far_they_can_be_trusted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, line, _ = told(capsys, folder, "cat", "--engine", "candidates")
    assert found["exact"] is False
    assert found["why"] == ("candidates are approximate: measured recall 1.0000 of the best 10, 1.0000 of the best 100")
    assert "of the best 100; --engine qdrant and scan are exact" in line
    store_of(folder).client.set_payload(f"{store_of(folder).name}_models", {"joined": ""}, points=_ids(folder))
    try:
        found, line, quiet = told(capsys, folder, "cat", "--engine", "candidates")
        again = f"3 models are not among them yet, run 'hubhound index candidates --index {address(folder)}'"
        assert again in found["why"]
        assert again in line
        assert again in quiet
    finally:
        assert run(["index", "candidates", "--index", address(folder), "--format", "quiet"]) == 0
    assert "not among them" not in told(capsys, folder, "cat", "--engine", "candidates")[1]


def _ids(folder: Path) -> list[str]:
    return [model.point_id for model in store_of(folder).models()]


def test_candidates_that_are_not_there_are_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drop_candidates(folder)
    try:
        line = refused(capsys, folder, "cat", "--engine", "candidates")
        assert "has no candidates: make them with 'hubhound index candidates" in line
    finally:
        make_candidates(folder, SETTINGS, encode=encode)
