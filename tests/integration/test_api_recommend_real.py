"""Recommending and reranking over HTTP with real models, beside what the commands answer."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.writer import IndexWriter
from query.api import create_app
from query.cli.main import run
from tests.integration.conftest import REAL_MODELS, REALHUB
from tests.support.service import Asked, asking, small_settings
from tests.support.tiny_vlm import put_accuracies

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(not REALHUB.is_dir(), reason="the real models are not there"),
]


@pytest.fixture(scope="module")
def zoo(real_zoo: tuple[Path, set[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real index with two tasks, on which both models have profiles and known accuracies."""
    source, _ = real_zoo
    root = tmp_path_factory.mktemp("recommended")
    shutil.copytree(source, root / "zoo")
    photos = sorted((source.parent / "photos").iterdir())
    for name, some in (("first", photos[:4]), ("second", photos[4:8])):
        (root / name).mkdir()
        for photo in some:
            shutil.copy(photo, root / name)
        assert run(["task", "add", name, "--images", str(root / name), "--index", str(root / "zoo")]) == 0
    with IndexWriter(root / "zoo") as writer:
        one, two = REAL_MODELS
        put_accuracies(writer, {one: {"first": 0.9, "second": 0.3}, two: {"first": 0.5, "second": 0.6}})
        writer.export_knowledge()
    models = [str(REALHUB / "models" / name) for name in REAL_MODELS]
    assert run(["profile", *models, "--index", str(root / "zoo"), "--n-steps", "4", "--device", "cpu"]) == 0
    return root / "zoo"


@pytest.fixture
def targets(real_zoo: tuple[Path, set[int]]) -> list[Path]:
    return sorted((real_zoo[0].parent / "photos").iterdir())[-2:]


def ask(asked: Asked, path: str, images: list[Path], **body: object) -> httpx.Response:
    parts: list[Any] = [("images", (image.name, image.read_bytes(), "image/jpeg")) for image in images]
    return asked.post(path, files=[("request", (None, json.dumps(body), "application/json")), *parts])


def finished(asked: Asked, response: httpx.Response) -> Any:
    """The result of a job, which says how far it is meanwhile."""
    assert response.status_code == 202, response.text
    until = time.monotonic() + 300
    while time.monotonic() < until:
        job = asked.get(response.headers["Location"]).json()
        if job["finished"]:
            assert job["state"] == "done", job
            assert job["progress"]["models"] == job["progress"]["model_number"] == len(REAL_MODELS)
            return job["result"]
        time.sleep(0.1)
    raise AssertionError("the job does not end")


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    capsys.readouterr()
    assert run([*map(str, arguments), "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in {"seconds", "profiled", "target"}}


def test_recommending_and_reranking_are_the_commands(
    zoo: Path, targets: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    images = [part for path in targets for part in ("--images", path)]
    app = create_app(small_settings(zoo, models=(REALHUB / "models",), job_grace_s=0, request_timeout_s=120))
    with asking(app) as asked:
        found = finished(asked, ask(asked, "/v1/recommend", targets, explain=True))
        assert found["profiled"] == 4 and found["target"]["images"] == [path.name for path in targets]
        expected = command(capsys, "recommend", "--index", zoo, "--explain", *images)
        assert comparable(found) == comparable(expected)
        assert found["target"]["fingerprint"] == expected["target"]["fingerprint"] and expected["profiled"] == 0
        again = ask(asked, "/v1/recommend", targets, explain=True)
        assert again.status_code == 200 and comparable(again.json()) == comparable(expected)

        how = {"rerank": "dcd", "rerank_weight": 0.5, "rerank_top": 5}
        first = ask(asked, "/v1/search", targets, k=5, **how)
        found = first.json() if first.status_code == 200 else finished(asked, first)
        told = ("--rerank", "dcd", "--rerank-weight", 0.5, "--rerank-top", 5, "--models", REALHUB / "models")
        expected = command(capsys, "search", "--index", zoo, "-k", 5, *images, *told)
        for result in expected["results"]:
            result["query"]["images"] = [Path(path).name for path in result["query"]["images"]]
        assert comparable(found) == comparable(expected)
        assert {hit.get("reason") for hit in found["rerank"]["hits"]} == {None}
