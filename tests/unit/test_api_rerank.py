"""Searches that are reranked over HTTP: the command's answers, at once or as a job."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.index import Index
from indexers.profiler import ProfileSettings
from query.api.orders import Order, RerankOrder, carried_out, read_order
from query.api.watched import model_folders
from query.request import SearchRequest
from query.rerank import N_STEPS, Reranker, RerankSettings
from query.search import Searcher
from query.targets import TargetProfiler
from tests.support.job_programs import HANG, program
from tests.support.runnable_index import make_runnable_index
from tests.support.service import Asked, asking, small_app, small_settings
from tests.support.small_index import encode, encode_images, write_example
from tests.support.tiny_models import timm_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runnable")
    make_runnable_index(root)
    return root


@pytest.fixture
def zoo(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "zoo", tmp_path / "zoo", ignore=shutil.ignore_patterns("store")))


@pytest.fixture
def owls(tmp_path: Path) -> list[Path]:
    return [write_example(tmp_path / f"owl-{i}.png", "owl", i) for i in range(2)]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where uploads go; at the end nothing is left of them."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def ask(asked: Asked, images: Sequence[Path], **body: object) -> httpx.Response:
    parts: list[Any] = [("images", (path.name, path.read_bytes(), "image/png")) for path in images]
    body = {"rerank": "dcd", **body}
    return asked.post("/v1/search", files=[("request", (None, json.dumps(body), "application/json")), *parts])


def local(zoo: Path, made: Path, request: SearchRequest, settings: RerankSettings) -> Any:
    """What the command answers, as a client of the service would see it."""
    index = Index(zoo)
    searcher = Searcher(index, encode, encode_images=encode_images)
    answer = searcher.search(replace(request, k=max(request.k, settings.top)))
    profiler = TargetProfiler(index, "cpu", ProfileSettings(n_steps=N_STEPS), model_folders([made / "org"]))
    reranker = Reranker(index, searcher.snapshot, profiler, settings)
    found: Any = reranker.rerank(answer, request.images, request.k).to_json()
    for result in found["results"]:
        result["query"]["images"] = [Path(path).name for path in result["query"]["images"]]
    return comparable(found)


def comparable(found: Any) -> Any:
    return {name: value for name, value in found.items() if name != "seconds"}


def problem(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json", response.text
    return response.status_code, response.json()["type"].rpartition(":")[2]


def finished(asked: Asked, location: str) -> Any:
    until = time.monotonic() + 90
    while time.monotonic() < until:
        job = asked.get(location).json()
        if job["finished"]:
            return job
        time.sleep(0.02)
    raise AssertionError("the job does not end")


def test_a_reranked_search_is_a_job_and_then_remembered(zoo: Path, made: Path, owls: list[Path]) -> None:
    with asking(small_app(zoo, job_grace_s=0, models=(made / "org",))) as asked:
        response = ask(asked, owls, rerank_weight=0.7, k=3)
        assert response.status_code == 202
        job = finished(asked, response.headers["Location"])
        assert (job["kind"], job["state"]) == ("search", "done")
        assert (job["progress"]["model_number"], job["progress"]["models"]) == (3, 3)
        expected = local(zoo, made, SearchRequest(images=tuple(owls), k=3), RerankSettings(0.7))
        assert comparable(job["result"]) == expected
        kinds = [
            (hit.get("divergence") is None, hit.get("predicted_rank") is None) for hit in expected["rerank"]["hits"]
        ]
        assert set(kinds) == {(True, False), (False, True)}  # both kinds of figures decided
        assert job["result"]["results"][0]["query"]["images"] == ["owl-0.png", "owl-1.png"]
        again = ask(asked, owls, rerank_weight=0.7, k=3)
        assert again.status_code == 200 and comparable(again.json()) == expected


@pytest.mark.parametrize(
    ("body", "request_", "settings"),
    [
        ({}, {}, RerankSettings()),
        ({"k": 4, "rerank_top": 2, "rerank_weight": 1}, {"k": 4}, RerankSettings(1, 2)),
        ({"concepts": ["cat"], "rerank_weight": 0.5}, {"concepts": ("cat",)}, RerankSettings(0.5)),
        ({"level": "model", "rerank_weight": 0.9}, {"level": "model"}, RerankSettings(0.9)),
        ({"explain": True, "method": "dual"}, {"explain": True, "method": "dual"}, RerankSettings()),
    ],
)
def test_what_is_asked_is_answered_as_the_command_does(
    body: dict[str, object],
    request_: dict[str, Any],
    settings: RerankSettings,
    zoo: Path,
    made: Path,
    owls: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = local(zoo, made, SearchRequest(images=(owls[0],), **request_), settings)
    with asking(small_app(zoo, run_models=False)) as asked:
        response = ask(asked, owls[:1], **body)
        assert response.status_code == 200, response.text
        assert comparable(response.json()) == expected
    # The process of a job does the same: from memory, too, so that it needs no time.
    orders: list[Order] = []

    def noted(order: Order, *more: Any) -> dict[str, Any]:
        orders.append(order)
        return carried_out(order, *more)

    monkeypatch.setattr("query.api.deferred.carried_out", noted)
    with asking(small_app(zoo, run_models=False)) as asked:
        ask(asked, owls[:1], **body)
        images = [owls[0]]
        (order,) = orders
        again = read_order(json.loads(json.dumps(order.with_images(images).model_dump(mode="json"))))
        assert comparable(again.checked(carried_out(again, lambda _: None))) == expected


@pytest.mark.parametrize(
    ("body", "images", "status", "part"),
    [
        ({"concepts": ["owl"]}, 0, 400, "give some with --images"),
        ({"rerank": None, "rerank_weight": 0.5}, 1, 400, "add --rerank dcd"),
        ({"rerank": None, "rerank_top": 3}, 1, 400, "add --rerank dcd"),
        ({"evidence": "both"}, 1, 400, "orders by labels, too"),
        ({"concepts": ["owl", "cat"]}, 1, 400, "examples of one concept"),
        ({"rerank_weight": 1.5}, 1, 422, "rerank_weight"),
        ({"rerank_top": 0}, 1, 422, "rerank_top"),
        ({"rerank": "cosine"}, 1, 422, "rerank"),
    ],
)
def test_what_makes_no_sense_is_told_at_once(
    body: dict[str, object], images: int, status: int, part: str, zoo: Path, owls: list[Path]
) -> None:
    with asking(small_app(zoo, job_grace_s=0)) as asked:
        response = ask(asked, owls[:images], **body)
    assert problem(response)[0] == status and part in response.json()["detail"]


def test_without_running_models_only_what_is_remembered_is_answered(zoo: Path, made: Path, owls: list[Path]) -> None:
    expected = local(zoo, made, SearchRequest(images=(owls[0],)), RerankSettings())
    with asking(small_app(zoo, run_models=False)) as asked:
        assert comparable(ask(asked, owls[:1]).json()) == expected
        assert problem(ask(asked, owls)) == (409, "models-not-run")


def test_a_model_that_is_another_by_now_is_named_without_its_place(zoo: Path, owls: list[Path], tmp_path: Path) -> None:
    timm_model(tmp_path / "elsewhere" / "org" / "three", "test_resnet", classes=3)
    with asking(small_app(zoo, job_grace_s=25, models=(tmp_path / "elsewhere",))) as asked:
        found = ask(asked, owls[:1])
    reasons = {hit["reason"] for hit in found.json()["rerank"]["hits"] if hit["model"] == "org/three"}
    assert len(reasons) == 1 and "is not what was indexed as org/three" in reasons.pop()
    assert str(tmp_path) not in found.text


def test_cancelling_a_reranking(zoo: Path, made: Path, owls: list[Path], temporary: Path) -> None:
    app = small_app(zoo, job_grace_s=0, models=(made / "org",))
    app.state.service.jobs.program = program(HANG)
    with asking(app) as asked:
        location = ask(asked, owls).headers["Location"]
        assert len(list(temporary.glob("hubhound-job-*/*"))) == 2
        assert asked.request("DELETE", location).status_code == 202
        assert finished(asked, location)["state"] == "cancelled" and list(temporary.iterdir()) == []


def test_a_generation_that_is_gone_before_its_job_begins(zoo: Path, made: Path, owls: list[Path]) -> None:
    expected = local(zoo, made, SearchRequest(images=(owls[0],)), RerankSettings())
    index = Index(zoo)
    found = Searcher(index, encode, encode_images=encode_images).search(SearchRequest(images=(owls[0],)))
    how = RerankSettings()
    order = RerankOrder.of(
        (owls[:1], 10), ("owl-0.png",), found, index.snapshot(), how, small_settings(zoo, run_models=False)
    )
    same = order.model_copy(update={"generation": "gen-999"})
    for one in (order, same):
        again = carried_out(one, lambda _: None)
        assert again["rerank"] == expected["rerank"]
    told = json.loads(json.dumps(order.found).replace("org/three", "org/gone"))
    lost = carried_out(same.model_copy(update={"found": told}), lambda _: None)
    reasons = {hit["model"]: hit.get("reason") for hit in lost["rerank"]["hits"]}
    assert "taken out of the index" in reasons.pop("org/gone") and set(reasons.values()) == {None}
