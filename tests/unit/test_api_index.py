"""``GET /v1/index``: the command line's facts, without this machine's folders, with hubness and the state of names."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path

import pytest

from engine.index import Index
from engine.writer import IndexWriter
from indexers.crawl.journal import FILE, Journal
from query.api.routes import index as module
from query.cli.main import run
from query.hubness import hubness
from tests.support.service import Asked, asking, small_app
from tests.support.small_index import THINGS, make_filled_index, make_index, put_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_filled_index(tmp_path / "zoo").folder


def settled(service: Asked, generation: int | None = None) -> dict[str, object]:
    """The facts once hubness is computed."""
    until = time.monotonic() + 20
    while True:
        told: dict[str, object] = service.get("/v1/index").json()
        if told["hubness"] and generation in {None, told["generation"]}:
            return told
        assert time.monotonic() < until
        time.sleep(0.02)


def test_it_is_the_command_lines_without_folders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with asking(small_app(folder)) as service:
        told = settled(service)
        assert service.get("/v1/index").headers["cache-control"] == "no-store"
    capsys.readouterr()
    assert run(["index", "info", "--index", str(folder), "--format", "json", "--hubness"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert set(told) == {*expected, "names", "store"}
    for key in set(expected) - {"manifest"}:
        assert told[key] == expected[key], key
    index = Index(folder)
    background = index.background(index.snapshot().background)
    assert told["hubness"] == json.loads(hubness(index.snapshot(), background, "whitened").model_dump_json())
    manifest = told["manifest"]
    assert isinstance(manifest, dict)
    assert manifest["probes"] == {**expected["manifest"]["probes"], "folder": None, "source": "images"}
    assert {key: manifest[key] for key in manifest if key != "probes"} == {
        key: value for key, value in expected["manifest"].items() if key != "probes"
    }
    assert str(folder.parent) not in json.dumps(told)
    assert told["names"] == {"state": "off", "done": 0, "total": 0, "why": None}
    assert told["store"] is None


def test_hubness_is_null_while_it_is_computed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, calls = threading.Event(), []
    monkeypatch.setattr(module, "_GRACE_S", 0.01)
    monkeypatch.setattr(module, "hubness", lambda *given: (calls.append(1), go.wait(20), hubness(*given))[2])
    with asking(small_app(folder)) as service:
        assert service.get("/v1/index").json()["hubness"] is None
        assert service.get("/v1/index").json()["hubness"] is None
        go.set()
        assert settled(service)["hubness"]
    assert len(calls) == 1


def test_facts_are_read_once_however_many_wait_or_give_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, calls = threading.Event(), []
    original = module.index_facts
    monkeypatch.setattr(module, "index_facts", lambda *given: (calls.append(1), go.wait(20), original(*given))[2])
    with asking(small_app(folder, request_timeout_s=0.3)) as service:

        async def together() -> list[int]:
            answers = await asyncio.gather(*(service.client.get("/v1/index") for _ in range(4)))
            return [answer.status_code for answer in answers]

        assert service.run(together()) == [504] * 4
        assert service.run(together()) == [504] * 4
        go.set()
        until = time.monotonic() + 20
        while service.get("/v1/index").status_code != 200:
            assert time.monotonic() < until
        assert service.run(together()) == [200] * 4
    assert len(calls) == 1


def test_a_new_generation_is_told_of(folder: Path) -> None:
    with asking(small_app(folder)) as service:
        first = settled(service)
        with IndexWriter(folder) as writer:
            put_model(writer, "a/new", THINGS, licence="mit", seed=9)
            writer.finish()
        second = settled(service, generation=2)
    assert (first["generation"], first["models"], first["licences"]) == (1, 3, {"mit": 1, "unknown": 2})
    assert (second["generation"], second["models"], second["licences"]) == (2, 4, {"mit": 2, "unknown": 2})
    assert second["hubness"]["outputs"] == 17  # type: ignore[index]


def test_an_empty_index_is_told_of(tmp_path: Path) -> None:
    make_index(tmp_path / "zoo")
    with asking(small_app(tmp_path / "zoo")) as service:
        told = service.get("/v1/index").json()
        assert (told["generation"], told["models"], told["outputs"], told["hubness"]) == (0, 0, 0, None)
        for path in ("/v1/models", "/v1/models/org/x", "/v1/models/org/x/usage?output=0", "/v1/probes/0/image"):
            answer = service.get(path)
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:hubhound:problem:not-ready"), path
            assert int(answer.headers["retry-after"]) >= 1


def test_the_crawl_is_told_without_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH_S", 0.0)
    with asking(small_app(folder)) as service:
        assert service.get("/v1/index").json()["crawl"] is None
        with Journal(folder / FILE) as journal:
            for source in (
                "folder:/data/secret/zoo?licence=mit",
                "file:/data/secret/list.txt",
                "hub:https://hub?task=x",
            ):
                journal.finish_pass(journal.begin_pass(source, full=True))
        crawl = service.get("/v1/index").json()["crawl"]
        assert [source["source"] for source in crawl["sources"]] == [
            "file:list.txt",
            "folder:zoo?licence=mit",
            "hub:https://hub?task=x",
        ]
        assert crawl["running"] is False
        (folder / FILE).write_bytes(b"no database" * 1000)
        for beside in folder.glob(f"{FILE}-*"):
            beside.unlink()
        assert service.get("/v1/index").json()["crawl"] is None


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("open_clip:local-dir:/work/secret/encoder", "open_clip:local-dir:encoder"),
        ("open_clip:hf-hub:timm/ViT-B-16-SigLIP", "open_clip:hf-hub:timm/ViT-B-16-SigLIP"),
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "open_clip:ViT-B-32/laion2b_s34b_b79k"),
    ],
)
def test_specs_without_folders(folder: Path, spec: str, told: str) -> None:
    manifest = Index(folder).manifest
    changed = manifest.model_copy(update={"encoder": manifest.encoder.model_copy(update={"spec": spec})})
    assert module._public(changed).encoder.spec == told
    for source, short in (("dead-leaves:9@seed=0", "dead-leaves:9@seed=0"), ("/data/secret/photos", "photos")):
        probes = manifest.probes.model_copy(update={"source": source})
        assert module._public(manifest.model_copy(update={"probes": probes})).probes.source == short


def test_the_document_describes_the_answers(folder: Path) -> None:
    """Every 200 of these routes has a schema and an example that fits the fields of its schema."""
    with asking(small_app(folder)) as service:
        document = service.get("/openapi.json").json()
    for path, method in {
        "/v1/models": "get",
        "/v1/models/{name}": "get",
        "/v1/models/{name}/usage": "get",
        "/v1/outputs": "post",
        "/v1/index": "get",
    }.items():
        content = document["paths"][path][method]["responses"]["200"]["content"]["application/json"]
        schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
        assert set(schema["required"]) <= set(content["example"]) <= set(schema["properties"]), path
        assert document["paths"][path][method]["responses"]["400"]["content"].keys() == {"application/problem+json"}
    image = document["paths"]["/v1/probes/{number}/image"]["get"]["responses"]
    assert "image/webp" in image["200"]["content"]
    assert "304" in image
