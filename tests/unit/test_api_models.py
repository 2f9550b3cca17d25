"""Models and outputs over HTTP: every record in pages, one model with its names, facts beside hits, code to copy."""

from __future__ import annotations

import ast
import difflib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from engine.index import Index
from engine.knowledge import Knowledge
from engine.schema import Model, ModelState, Performance
from engine.snapshot import Snapshot
from engine.writer import IndexWriter
from query.api.catalogue import Listing, unknown_model
from query.api.routes import index as index_route
from query.cli.main import run
from query.describe import Describer, DescribeRequest
from query.filters import Filter, parse_conditions
from query.lookup import near_models
from tests.support.knowledge import make_profile, make_task
from tests.support.service import Asked, asking, small_app
from tests.support.small_index import ANIMALS, THINGS, encode, make_filled_index, put_model, write_example

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HOSTILE = "<script>alert('x')</script> \"\\ \u2028 {x}"
VLM = "open_clip:hf-hub:org/name.with.dots/x"
WORDS = (*ANIMALS, *THINGS, *(f"word {i}" for i in range(40)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    folder = place / "zoo"
    make_filled_index(folder)
    with IndexWriter(folder) as writer:
        labels = [HOSTILE, "LABEL_1", None]
        facts: dict[str, Any] = {"library": "transformers", "licence": "mit", "tags": ("a", "b"), "likes": 3}
        put_model(writer, "a.b/c--d.e", THINGS, revision=COMMIT, labels=labels, input_size=(32, 48), seed=5, **facts)
        put_model(writer, "org/usage", THINGS, library="tensorflow", seed=6)
        for repo, more in {"copies/one": {"library": "timm", "downloads": 7}, "zz/two": {"licence": "mit"}}.items():
            record = {"repo": repo, "revision": COMMIT, "state": ModelState.COPY, "copy_of": "org/animals", **more}
            writer.put_copy(Model.model_validate(record))
        writer.finish()
        task = make_task("pets")
        writer.put_task(task)
        writer.put_profiles([make_profile(model, "pets") for model in (VLM, "org/animals")])
        writer.put_performance([Performance(model=VLM, task="pets", value=0.5, source="table 1")])
        writer.export_knowledge()
    (place / "words.txt").write_text("\n".join(WORDS))
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Asked]:
    settings: dict[str, Any] = {"names": True, "vocabulary": folder.parent / "words.txt"}
    with asking(small_app(folder, hub_url="https://hub.example/", **settings)) as asked:
        until = time.monotonic() + 20
        while asked.get("/v1/models/org/animals").json()["names"]["state"] != "ready":
            assert time.monotonic() < until
            time.sleep(0.01)
        yield asked


def problem(service: Asked, path: str, status: int, slug: str) -> str:
    answer = service.get(path)
    assert answer.status_code == status, answer.text
    told = answer.json()
    assert told["type"] == f"urn:hubhound:problem:{slug}"
    return str(told["detail"])


def listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    """What the command line lists."""
    capsys.readouterr()
    assert run(["index", "models", "--index", str(folder), "--format", "json"]) == 0
    return {record["repo"]: record for record in json.loads(capsys.readouterr().out)}


def test_the_list_is_the_command_lines(service: Asked, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = service.get("/v1/models")
    assert answer.headers["cache-control"] == "no-store"
    told = answer.json()
    expected = listed(folder, capsys)
    assert [model["repo"] for model in told["models"]] == sorted(expected)
    assert (told["total"], told["next"]) == (7, None)
    for model in told["models"]:
        copies = model.pop("copies")
        assert copies == (["copies/one", "zz/two"] if model["repo"] == "org/animals" else [])
        assert model == expected[model["repo"]]


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_pages_hold_every_model_once(service: Asked, limit: int) -> None:
    found: list[str] = []
    after = ""
    while after is not None:
        told = service.get("/v1/models", params={"limit": limit, "after": after}).json()
        assert told["total"] == 7
        assert 1 <= len(told["models"]) <= limit
        found += [model["repo"] for model in told["models"]]
        after = told["next"]
    assert found == sorted(found)
    assert len(set(found)) == 7


def test_a_page_may_begin_behind_a_model_that_is_gone(service: Asked) -> None:
    told = service.get("/v1/models", params={"after": "org/b", "limit": 2}).json()
    assert [model["repo"] for model in told["models"]] == ["org/things", "org/usage"]
    assert service.get("/v1/models", params={"after": "zzz"}).json() == {"models": [], "next": None, "total": 7}


@pytest.mark.parametrize(
    ("where", "text", "expected"),
    [
        (["library=timm"], "", ["copies/one", "org/animals", "zoo/both"]),
        (["licence=mit"], "", ["a.b/c--d.e", "org/animals", "zz/two"]),
        (["library=timm", "licence=mit"], "", ["org/animals"]),
        (["library=timm", "library=transformers"], "ORG/", ["org/animals", "org/things"]),
        (["label=no"], "", ["a.b/c--d.e", "zoo/both"]),
        (["label=yes", "library=timm"], "", ["copies/one", "org/animals"]),
        (["min-downloads=10"], "", ["org/animals"]),
        ([], "AnImAl", ["org/animals"]),
        ([], "é", []),
        (["library=none"], "", []),
    ],
)
def test_filters_are_those_of_a_search(service: Asked, where: list[str], text: str, expected: list[str]) -> None:
    for _ in range(2):  # the second time it is remembered
        told = service.get("/v1/models", params={"where": where, "text": text}).json()
        assert [model["repo"] for model in told["models"]] == expected
        assert told["total"] == len(expected)


def test_filters_that_make_no_sense(service: Asked) -> None:
    assert "KEY=VALUE" in problem(service, "/v1/models?where=nonsense", 400, "invalid-request")
    for query in ("limit=0", "limit=501", "limit=x", "after=" + "x" * 501, "&".join(["where=library=a"] * 101)):
        problem(service, f"/v1/models?{query}", 422, "invalid-body")


def large_snapshot(count: int) -> Snapshot:
    """Models without outputs, org00/m000000, org01/m000001 and so on."""
    made = {"revision": COMMIT, "outputs": 1, "library": "timm"}
    fields = Model.model_validate({"repo": "x/y", **made}).__dict__
    repos = sorted(f"org{i % 97:02}/m{i:06}" for i in range(count))
    models = tuple(Model.model_construct(**{**fields, "repo": repo}) for repo in repos)
    snapshot = object.__new__(Snapshot)
    columns = {"models": models, "copies": {}, "starts": np.arange(count + 1), "label": np.zeros(count, np.int32)}
    for name, value in columns.items():
        object.__setattr__(snapshot, name, value)
    return snapshot


def test_a_list_of_20_000_models_is_quick() -> None:
    """Pages by bisection: only the first of a filter looks at every model."""
    count = 20_000
    snapshot = large_snapshot(count)
    models = snapshot.models
    listing = Listing(snapshot)
    names = [model.repo for model in models]
    listing.page(50, None, (), "")  # sorts once
    begun = time.perf_counter()
    for at in range(0, count, 2_000):
        page = listing.page(50, names[at], (), "")
        assert [model.repo for model in page.models] == names[at + 1 : at + 51]
    assert (time.perf_counter() - begun) / 10 < 0.05
    where = parse_conditions(["model=org1*"])
    first = listing.page(50, None, where, "")
    assert first.total == sum(Filter(snapshot).allowed(where).rows)  # type: ignore[arg-type]
    begun = time.perf_counter()
    for _ in range(10):
        assert listing.page(50, first.next, where, "").total == first.total
    assert (time.perf_counter() - begun) / 10 < 0.05


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("other/M000005", "org05/m000005"),
        ("org05/x000005", "org05/m000005"),
        ("org05/m00000", "org05/m000005"),
        ("nobody/nothing", None),
        ("org05/" + "x" * 5_000, None),
    ],
)
def test_an_unknown_name_is_compared_with_few_of_20_000(
    asked: str, near: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[str, list[str]]] = []
    original = difflib.get_close_matches

    def counting(word: str, names: Iterable[str], **options: Any) -> list[str]:
        compared.append((word, list(names)))
        return original(word, compared[-1][1], **options)

    monkeypatch.setattr(difflib, "get_close_matches", counting)
    snapshot = large_snapshot(20_000)
    found = near_models(snapshot, asked)
    assert (found[0] if found else None) == near
    assert sum(len(names) for _, names in compared) <= 2_000
    assert max(len(word) for word, _ in compared) <= 200
    monkeypatch.undo()
    error = unknown_model(snapshot, Knowledge(), asked)
    assert ("did you mean" in str(error)) is (near is not None)


def test_a_model_is_described_as_by_the_command_line(service: Asked, folder: Path) -> None:
    for name in ("zoo/both", "a.b/c--d.e"):
        told = service.get(f"/v1/models/{name}?names=2").json()
        expected = Describer(Index(folder), WORDS, encode).describe(name, DescribeRequest(2)).to_json()
        for key in ("model", "revision", "vocabulary"):
            assert told["describe"][key] == expected[key]
        assert "copy_of" not in told["describe"]
        assert len(told["describe"]["outputs"]) == len(expected["outputs"])  # type: ignore[arg-type]
        for a, b in zip(told["describe"]["outputs"], expected["outputs"], strict=True):  # type: ignore[call-overload]
            assert (a["output"], a["label"], a["agrees"]) == (b["output"], b["label"], b["agrees"])
            assert [c["name"] for c in a["concepts"]] == [c["name"] for c in b["concepts"]]
            assert [c["score"] for c in a["concepts"]] == pytest.approx([c["score"] for c in b["concepts"]], abs=1e-4)


def test_facts_of_a_model(service: Asked) -> None:
    told = service.get("/v1/models/a.b/c--d.e").json()
    assert told["facts"] == {
        "library": "transformers",
        "licence": "mit",
        "parameters": None,
        "architecture": None,
        "input_size": [32, 48],
        "downloads": None,
        "likes": 3,
        "tags": ["a", "b"],
        "url": "https://hub.example/a.b/c--d.e",
    }
    assert told["model"]["revision"] == COMMIT
    assert (told["copies"], told["copy_of"], told["profiles"], told["performance"]) == ([], None, [], [])
    assert told["describe"]["outputs"][0]["label"] == HOSTILE
    assert told["names"] == {"state": "ready", "done": len(WORDS), "total": len(WORDS), "why": None}


def test_a_copy_has_its_originals_outputs_and_facts_of_its_own(service: Asked) -> None:
    original, copy = (service.get(f"/v1/models/{name}").json() for name in ("org/animals", "copies/one"))
    assert (original["copies"], original["copy_of"]) == (["copies/one", "zz/two"], None)
    assert (copy["copies"], copy["copy_of"]) == (["zz/two"], "org/animals")
    assert copy["facts"]["downloads"] == 7
    assert original["facts"]["downloads"] == 50
    assert copy["describe"]["model"] == "copies/one"
    assert copy["describe"]["copy_of"] == "org/animals"
    assert copy["describe"]["outputs"] == original["describe"]["outputs"]
    assert [profile["task"] for profile in original["profiles"]] == ["pets"]


def test_a_model_that_was_only_profiled(service: Asked) -> None:
    told = service.get(f"/v1/models/{VLM}").json()
    assert (told["model"], told["facts"], told["describe"]) == (None, None, None)
    assert told["profiles"] == [json.loads(make_profile(VLM, "pets").model_dump_json()) | {
        "profiled_at": told["profiles"][0]["profiled_at"]
    }]  # fmt: skip
    (performance,) = told["performance"]
    assert (performance["task"], performance["value"], performance["source"]) == ("pets", 0.5, "table 1")
    problem(service, f"/v1/models/{VLM}?outputs=1", 404, "output-not-found")
    problem(service, f"/v1/models/{VLM}/usage?output=1", 404, "output-not-found")


def test_some_outputs_and_no_names(service: Asked) -> None:
    told = service.get("/v1/models/zoo/both?outputs=5,%202,5&names=1").json()
    assert [output["output"] for output in told["describe"]["outputs"]] == [5, 2]
    assert [output["concepts"][0]["name"] for output in told["describe"]["outputs"]] == ["table", "horse"]
    plain = service.get("/v1/models/org/animals?names=0").json()["describe"]["outputs"]
    assert plain == [
        {"output": i, "label": label, "agrees": None, "concepts": []} for i, label in enumerate(ANIMALS)
    ]  # fmt: skip


@pytest.mark.parametrize("outputs", ["", ",", "x", "1;2", "1.5", "0x1", "--1"])
def test_outputs_that_are_no_numbers(service: Asked, outputs: str) -> None:
    problem(service, f"/v1/models/org/animals?outputs={quote(outputs)}", 400, "invalid-request")


@pytest.mark.parametrize("outputs", ["4", "-1", "99999999999999999999"])
def test_outputs_that_are_not_there(service: Asked, outputs: str) -> None:
    assert "outputs 0 to 3" in problem(service, f"/v1/models/org/animals?outputs={outputs}", 404, "output-not-found")


@pytest.mark.parametrize(
    "name",
    [
        "org/animal",
        "..%2F..%2Fetc%2Fpasswd",
        "%00",
        "x" * 5000,
        "org",
        "org/animals/",
        "org//animals",
        "ORG/animals",
        "%F0%9F%90%95/%09",
        "%ED%A0%80/x",
        "@",
        "org/animals@r2",
    ],
)
def test_models_that_are_not_there(service: Asked, name: str) -> None:
    problem(service, f"/v1/models/{name}", 404, "model-not-found")
    problem(service, f"/v1/models/{name}/usage?output=0", 404, "model-not-found")


def test_an_unknown_model_is_told_with_its_neighbours(service: Asked) -> None:
    answer = service.get("/v1/models/org/animal").json()
    assert answer["near"][0] == "org/animals"
    assert "did you mean org/animals" in answer["detail"]
    assert service.get("/v1/models/name.with.dots").json()["near"] == [VLM]
    assert service.get("/v1/models/org/animals@r1").status_code == 200


def test_code_that_uses_an_output(service: Asked) -> None:
    told = service.get("/v1/models/a.b/c--d.e/usage?output=0").json()
    assert (told["model"], told["output"], told["library"]) == ("a.b/c--d.e", 0, "transformers")
    values = [node.value for node in ast.walk(ast.parse(told["code"])) if isinstance(node, ast.Constant)]
    assert HOSTILE in values
    assert COMMIT in values
    copy = service.get("/v1/models/copies/one/usage?output=3").json()
    assert "REPOSITORY = 'copies/one'" in copy["code"]
    assert f"REVISION = '{COMMIT}'" in copy["code"]
    assert "LABEL = 'owl'" in copy["code"]
    assert "output=" in problem(service, "/v1/models/a.b/c--d.e/usage", 400, "invalid-request")
    problem(service, "/v1/models/a.b/c--d.e/usage?output=3", 404, "output-not-found")
    problem(service, "/v1/models/a.b/c--d.e/usage?output=x", 422, "invalid-body")
    problem(service, "/v1/models/a.b/c--d.e/usage?output=-1", 422, "invalid-body")
    assert "tensorflow" in problem(service, "/v1/models/org/usage/usage?output=0", 400, "invalid-request")


def test_a_model_may_be_called_usage(service: Asked) -> None:
    told = service.get("/v1/models/org/usage").json()
    assert told["model"]["repo"] == "org/usage"
    assert len(told["describe"]["outputs"]) == 3


def test_outputs_of_several_models_at_once(service: Asked) -> None:
    asked = ["org/things#2", "zz/two#1", "zoo/both#0", "org/things#2", "a.b/c--d.e#0"]
    answer = service.post("/v1/outputs", {"outputs": asked, "names": 1})
    assert answer.status_code == 200
    told = answer.json()
    assert [f"{one['model']}#{one['output']}" for one in told["outputs"]] == asked
    assert [one["concepts"][0]["name"] for one in told["outputs"]] == ["lamp", "dog", "cat", "lamp", "chair"]
    assert [one["label"] for one in told["outputs"]] == ["lamp", "dog", None, "lamp", HOSTILE]
    assert told["outputs"][0]["agrees"] is True
    assert [one["facts"]["licence"] for one in told["outputs"]] == [None, "mit", None, None, "mit"]
    assert told["names"]["state"] == "ready"
    page = service.get("/v1/models/org/things?names=1").json()
    assert told["outputs"][0]["facts"] == page["facts"]
    assert told["outputs"][0]["concepts"] == page["describe"]["outputs"][2]["concepts"]
    labels = service.post("/v1/outputs", {"outputs": asked[:1], "names": 0}).json()["outputs"]
    assert (labels[0]["label"], labels[0]["concepts"], labels[0]["agrees"]) == ("lamp", [], None)
    assert service.post("/v1/outputs", {"outputs": []}).json()["outputs"] == []


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        ({"outputs": ["org/none#1"]}, 404, "model-not-found"),
        ({"outputs": ["org/things#7"]}, 404, "output-not-found"),
        ({"outputs": [f"{VLM}#0"]}, 404, "output-not-found"),
        ({"outputs": ["org/things"]}, 400, "invalid-request"),
        ({"outputs": ["#1"]}, 400, "invalid-request"),
        ({"outputs": ["org/things#-1"]}, 400, "invalid-request"),
        ({"outputs": ["org/things#²"]}, 400, "invalid-request"),
        ({"outputs": ["org/things#" + "9" * 400]}, 404, "output-not-found"),
        ({"outputs": ["org/things#0"] * 201}, 422, "invalid-body"),
        ({"outputs": ["x" * 501]}, 422, "invalid-body"),
        ({"outputs": ["org/things#0"], "names": 11}, 422, "invalid-body"),
        ({"outputs": ["org/things#0"], "name": 1}, 422, "invalid-body"),
        ({}, 422, "invalid-body"),
        ({"outputs": "org/things#0"}, 422, "invalid-body"),
    ],
)
def test_outputs_that_cannot_be_told(service: Asked, body: dict[str, Any], status: int, slug: str) -> None:
    answer = service.post("/v1/outputs", body)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:hubhound:problem:{slug}")


def test_without_what_is_known_about_tasks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = shutil.copytree(folder, tmp_path / "zoo")
    whole = (own / "knowledge.json").read_bytes()
    monkeypatch.setattr(index_route, "FRESH_S", 0.0)
    candidates = {"request": (None, json.dumps({"candidates": [VLM]}), "application/json")}
    image = ("a.png", write_example(tmp_path / "a.png", "cat").read_bytes(), "image/png")
    with asking(small_app(own)) as service:
        for damaged in (b"{", b"[]", b'{"format": 9}'):
            (own / "knowledge.json").write_bytes(damaged)
            caplog.clear()
            page = service.get("/v1/models/org/animals")
            assert (page.status_code, page.json()["profiles"]) == (200, [])
            assert page.json()["describe"]["outputs"][0]["label"] == "cat"
            assert service.get("/v1/models/org/animals/usage?output=0").status_code == 200
            assert service.get("/v1/models/org/usage/usage").status_code == 400
            assert service.post("/v1/outputs", {"outputs": ["org/things#2"]}).status_code == 200
            told = service.get("/v1/index").json()
            assert (told["models"], told["tasks"], told["profiles"]) == (5, 0, 0)
            assert service.get(f"/v1/models/{VLM}").status_code == 404
            refused = service.post("/v1/recommend", files=[("images", image), *candidates.items()])
            assert (refused.status_code, refused.json()["type"]) == (503, "urn:hubhound:problem:index-unusable")
            assert len([record for record in caplog.records if "knowledge.json" in record.message]) == 1
        (own / "knowledge.json").write_bytes(whole)
        assert len(service.get("/v1/models/org/animals").json()["profiles"]) == 1
        assert service.get("/v1/index").json()["profiles"] == 2
