"""``POST /v1/search`` over a small index: the answers of the library, whatever is asked; limits; health."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.concepts import ConceptCache
from engine.descriptors import FloatArray
from engine.errors import ConceptError, EncoderError
from engine.index import Index
from engine.schema import Model
from engine.writer import IndexWriter
from query.api import create_app
from query.filters import parse_conditions
from query.request import SearchRequest
from query.search import Searcher
from tests.support.service import Asked, asking, small_app, small_settings
from tests.support.small_index import (
    PretendEncoder,
    encode,
    encode_images,
    make_filled_index,
    put_model,
    vector,
    write_example,
)


class Counting(PretendEncoder):
    """Counts what it is asked, knows no part of words with zz, and takes its time."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.texts: list[tuple[str, ...]] = []
        self.images = 0

    def encode_texts(self, texts: Sequence[str], templates: Sequence[str]) -> FloatArray:
        self.texts.append(tuple(texts))
        time.sleep(self.seconds)
        for text in texts:
            if "zz" in text:
                raise ConceptError(f"the encoder's vocabulary knows no part of {text!r}: use words instead", text)
        return encode(texts)

    def encode_images(self, images: Any, count: int) -> FloatArray:
        self.images += count
        return super().encode_images(images, count)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "zoo"
    make_filled_index(folder)
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Asked]:
    with asking(small_app(folder, max_concepts=5, max_hits=50, max_total_hits=100)) as asked:
        yield asked


@pytest.fixture(scope="module")
def library(folder: Path) -> Searcher:
    return Searcher(Index(folder), encode=encode, encode_images=encode_images)


def without_time(answer: dict[str, Any]) -> dict[str, Any]:
    assert isinstance(answer.pop("seconds"), float)
    return answer


REQUESTS: list[dict[str, Any]] = [
    {"concepts": ["cat"]},
    {"concepts": ["cat", " sports \n car ", "dog"], "k": 3},
    {"concepts": ["cat"], "k": 50, "explain": True},
    {"concepts": ["Käse", "犬", "<script>alert(1)</script>"], "k": 2},
    {"concepts": ["@secrets.txt"], "k": 1},
    *({"concepts": ["owl"], "method": method, "explain": True} for method in ("dual", "weighted", "probelog")),
    {"concepts": ["chair"], "where": ["library=timm", "max-parameters=10K"]},
    {"concepts": ["chair"], "where": ["label=no"]},
    {"concepts": ["chair"], "where": ["library=nothing"]},
    {"concepts": ["cat", "dog"], "evidence": "labels", "k": 4},
    {"concepts": ["cat"], "evidence": "both", "where": ["label=yes"]},
    {"concepts": ["cat", "dog"], "level": "model"},
    {"concepts": ["cat", "lamp"], "level": "model", "require": "any", "ceiling": 2.5, "explain": True},
    {"concepts": ["cat", "lamp"], "level": "model", "where": ["model=org/*"], "require": "any"},
    {"like": "org/animals#2"},
    {"like": "org/things", "level": "model", "k": 1},
]


def asked_of_library(body: dict[str, Any], images: Sequence[Path] = ()) -> SearchRequest:
    given = {**body, "concepts": tuple(body.get("concepts", ())), "where": parse_conditions(body.get("where", ()))}
    return SearchRequest(**given, images=tuple(images))


@pytest.mark.parametrize("body", REQUESTS, ids=lambda body: json.dumps(body)[:60])
def test_answers_what_the_library_answers(body: dict[str, Any], service: Asked, library: Searcher) -> None:
    answer = service.post("/v1/search", body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    expected = json.loads(json.dumps(library.search(asked_of_library(body)).to_json()))
    assert without_time(answer.json()) == without_time(expected)


@pytest.mark.parametrize("body", [{}, {"concepts": ["cat"], "k": 3}, {"level": "model", "explain": True}], ids=str)
def test_images_are_uploaded(body: dict[str, Any], service: Asked, library: Searcher, tmp_path: Path) -> None:
    paths = [write_example(tmp_path / f"{i}.png", "dog", i) for i in range(3)]
    names = ["my dog.png", "../../etc/passwd", "ein schöner Hund.png"]
    files = [("images", (name, path.read_bytes(), "image/png")) for name, path in zip(names, paths, strict=True)]
    answer = service.post("/v1/search", files=[*files, ("request", (None, json.dumps(body), "application/json"))])
    assert answer.status_code == 200, answer.text
    expected = json.loads(json.dumps(library.search(asked_of_library(body, paths)).to_json()))
    found = without_time(answer.json())
    shown = found["results"][0]["query"].pop("images")
    assert expected["results"][0]["query"].pop("images") == [str(path) for path in paths]
    assert found == without_time(expected)
    assert [shown[0], shown[2]] == ["my dog.png", "ein schöner Hund.png"]
    assert str(tmp_path) not in answer.text
    assert "hubhound-" not in answer.text


@pytest.mark.parametrize(
    ("body", "status", "slug", "told"),
    [
        ({}, 400, "invalid-request", "there is no concept to search for"),
        ({"concepts": [" \n "]}, 400, "invalid-request", "a concept is empty"),
        ({"concepts": ["a" * 1001]}, 400, "invalid-request", "a concept has 1001 characters"),
        ({"concepts": ["cat"] * 6}, 400, "invalid-request", "concepts: 6 are asked for, this service gives at most 5"),
        ({"concepts": ["cat"], "k": 51}, 400, "invalid-request", "k: 51 are asked for, this service gives at most 50"),
        ({"concepts": ["a", "b", "c"], "k": 40}, 400, "invalid-request", "3 concepts with 40 hits each: this service"),
        ({"like": "zoo/both", "level": "model", "k": 15}, 400, "invalid-request", "7 concepts with 15 hits each"),
        ({"concepts": ["cat"], "where": ["label=yes"] * 21}, 422, "invalid-body", "where: "),
        ({"concepts": ["cat", "Cat"], "level": "model"}, 400, "invalid-request", "'Cat' is twice in the list"),
        ({"concepts": ["cat"], "like": "org/animals#0"}, 400, "invalid-request", "is a question of its own"),
        ({"concepts": ["cat"], "where": ["size=3"]}, 400, "invalid-request", "use KEY=VALUE with KEY one of"),
        ({"like": "org/animals#9"}, 400, "invalid-request", "the index has no output 9 of org/animals"),
        ({"like": "org/nobody#1"}, 400, "invalid-request", "org/nobody"),
        ({"concepts": ["c"], "evidence": "both", "method": "probelog"}, 400, "invalid-request", "--evidence both"),
        ({"concepts": ["cat"], "rerank": "dcd"}, 400, "invalid-request", "--images"),
        ({"concepts": ["cat"], "k": 0}, 422, "invalid-body", "k: "),
        ({"concepts": ["cat"], "k": "3"}, 422, "invalid-body", "k: "),
        ({"concepts": ["cat"], "size": 3}, 422, "invalid-body", "size: "),
        ({"concepts": "cat"}, 422, "invalid-body", "concepts: "),
        ({"concepts": [1]}, 422, "invalid-body", "concepts.0: "),
        ({"concepts": ["cat"], "method": "best"}, 422, "invalid-body", "method: "),
        ({"concepts": ["cat"], "level": "model", "ceiling": 0}, 422, "invalid-body", "ceiling: "),
        ([], 422, "invalid-body", "body: "),
    ],
)
def test_what_cannot_be_asked(body: Any, status: int, slug: str, told: str, service: Asked) -> None:
    answer = service.post("/v1/search", body)
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (status, f"urn:hubhound:problem:{slug}"), problem
    assert told in problem["detail"]
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("like", ["org/animals", "org/animals@r1", "copies/one", "copies/one@c1"])
def test_models_with_many_outputs_whatever_they_are_called(own: Path, like: str) -> None:
    with IndexWriter(own) as writer:
        record = {"repo": "copies/one", "revision": "c1", "state": "copy", "copy_of": "org/animals"}
        writer.put_copy(Model.model_validate(record))
        writer.finish()
    with asking(small_app(own, max_total_hits=11)) as asked:
        body = {"like": like, "level": "model", "k": 3}
        answer = asked.post("/v1/search", body)
        assert (answer.status_code, answer.json()["type"]) == (400, "urn:hubhound:problem:invalid-request")
        assert "4 concepts with 3 hits each" in answer.json()["detail"]
        assert asked.post("/v1/search", {**body, "k": 2}).status_code == 200


@pytest.fixture
def own(tmp_path: Path) -> Path:
    make_filled_index(tmp_path / "zoo")
    return tmp_path / "zoo"


def test_new_texts_of_many_requests_are_encoded_together(own: Path) -> None:
    encoder = Counting(seconds=0.2)

    async def all_at_once(asked: Asked) -> list[int]:
        answers = await asyncio.gather(
            asked.client.post("/v1/search", json={"concepts": ["first"]}),
            *(asked.client.post("/v1/search", json={"concepts": [f"new {i}"], "k": 1}) for i in range(20)),
        )
        return [answer.status_code for answer in answers]

    with asking(small_app(own, encoder)) as asked:
        assert asked.run(all_at_once(asked)) == [200] * 21
        counts = asked.get("/metrics").text
    assert len(encoder.texts) <= 3  # whoever came first alone, the others with the next
    assert sum(map(len, encoder.texts)) == 21
    assert f"hubhound_encoded_batch_texts_count {len(encoder.texts)}.0" in counts
    assert 'hubhound_concepts_total{result="encoded"} 21.0' in counts
    kept = ConceptCache(own / "concepts.sqlite").get([f"new {i}" for i in range(20)])
    assert len(kept) == 20


def test_one_bad_text_among_many_requests(own: Path) -> None:
    encoder = Counting(seconds=0.1)

    async def all_at_once(asked: Asked) -> list[int]:
        texts = ["first", "zz top", *(f"new {i}" for i in range(5))]
        answers = await asyncio.gather(*(asked.client.post("/v1/search", json={"concepts": [t]}) for t in texts))
        return [answer.status_code for answer in answers]

    with asking(small_app(own, encoder)) as asked:
        assert asked.run(all_at_once(asked)) == [200, 400, 200, 200, 200, 200, 200]


def test_what_was_asked_before_needs_no_encoder(own: Path, tmp_path: Path) -> None:
    encoder = Counting()
    ConceptCache(own / "concepts.sqlite").put({"from the file": vector("from the file")})
    files = [("images", ("a.png", write_example(tmp_path / "a.png", "cat").read_bytes(), "image/png"))]
    with asking(small_app(own, encoder)) as asked:
        for _ in range(2):
            assert asked.post("/v1/search", {"concepts": ["from the file", "new"]}).status_code == 200
            assert asked.post("/v1/search", files=files).status_code == 200
        counts = asked.get("/metrics").text
        assert asked.app.state.service.batches.loaded
    assert encoder.texts == [("new",)]
    assert encoder.images == 1
    for result, count in (("encoded", 1), ("disk", 1), ("memory", 2)):
        assert f'hubhound_concepts_total{{result="{result}"}} {count}.0' in counts


def test_an_encoder_that_cannot_be_loaded(own: Path) -> None:
    def load() -> PretendEncoder:
        raise EncoderError("encoder 'open_clip:local-dir:/home/somebody/encoder': there is none", "open_clip")

    with asking(create_app(small_settings(own), load_encoder=load)) as asked:
        answer = asked.post("/v1/search", {"concepts": ["cat"]})
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:hubhound:problem:encoder-unusable")
        assert "/home" not in answer.text
        assert asked.post("/v1/search", {"like": "org/animals#0"}).status_code == 200
        ConceptCache(own / "concepts.sqlite").put({"cat": vector("cat")})
        assert asked.post("/v1/search", {"concepts": ["cat"]}).status_code == 200


def test_new_texts_do_not_wait_for_what_is_slow(own: Path) -> None:
    free = threading.Event()
    with asking(small_app(own, request_timeout_s=5)) as asked:
        service = asked.app.state.service

        async def busy() -> list[asyncio.Task[bool]]:
            return [asyncio.create_task(service.aside(free.wait, 20)) for _ in range(20)]

        waiting = asked.run(busy())
        try:
            assert asked.post("/v1/search", {"concepts": ["never seen"]}).status_code == 200
            assert not any(task.done() for task in waiting)
        finally:
            free.set()


def test_readiness_while_the_encoder_is_loaded(own: Path) -> None:
    may_load = threading.Event()

    class Late(PretendEncoder):
        def __init__(self) -> None:
            assert may_load.wait(10)

    with asking(create_app(small_settings(own, preload=True), load_encoder=Late)) as asked:
        answer = asked.get("/readyz")
        assert answer.status_code == 503
        assert answer.json() == {"ready": False, "why": "the encoder is being loaded", "generation": 1, "store": None}
        assert int(answer.headers["retry-after"]) >= 1
        assert asked.get("/healthz").json() == {"status": "ok"}
        may_load.set()
        until(lambda: asked.get("/readyz").status_code == 200)
        assert asked.get("/readyz").json() == {"ready": True, "why": None, "generation": 1, "store": None}
        asked.app.state.service.end()
        assert asked.get("/readyz").json()["why"] == "the service is ending"


def until(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_labels_that_take_longer_than_a_request(own: Path) -> None:
    """The request is given up, what it began goes on, and other requests are not held up meanwhile."""
    encoder = Counting(seconds=0.6)
    body = {"concepts": ["cat"], "evidence": "labels"}
    with asking(small_app(own, encoder, request_timeout_s=0.5, threads=1)) as asked:
        ConceptCache(own / "concepts.sqlite").put({"cat": vector("cat")})
        begun = time.monotonic()
        answers = asked.run(_together(asked, [body, body, {"concepts": ["cat"]}]))
        assert [answer.status_code for answer in answers] == [504, 504, 200]
        assert answers[0].json()["type"] == "urn:hubhound:problem:timeout"
        assert time.monotonic() - begun < 3
        until(lambda: asked.post("/v1/search", body).status_code == 200)
        found = asked.post("/v1/search", body).json()
    expected = Searcher(Index(own), encode=encode).search(SearchRequest(("cat",), evidence="labels"))
    assert without_time(found) == without_time(json.loads(json.dumps(expected.to_json())))
    assert len(encoder.texts) == 1  # the labels, once


async def _together(asked: Asked, bodies: Sequence[object]) -> Any:
    return await asyncio.gather(*(asked.client.post("/v1/search", json=body) for body in bodies))


def test_a_label_with_half_a_character(own: Path) -> None:
    meta = own / "snapshots" / "gen-000001" / "meta.json"
    value = json.loads(meta.read_text())
    value["labels"][value["labels"].index("cat")] = "c\ud800t"
    meta.write_text(json.dumps(value))
    with asking(small_app(own)) as asked:
        hits = asked.post("/v1/search", {"concepts": ["cat"], "k": 1}).json()["results"][0]["hits"]
    assert hits[0]["label"] == "c?t"


def test_the_document_describes_the_search(service: Asked) -> None:
    document = service.get("/openapi.json").json()
    search = document["paths"]["/v1/search"]["post"]
    content = search["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}
    assert content["application/json"]["schema"]["additionalProperties"] is False
    examples = [example["value"] for example in content["application/json"]["examples"].values()]
    for example in examples:
        answer = service.post("/v1/search", example)
        assert answer.status_code == 200 or "timm/" in example.get("like", ""), answer.text
    assert "SearchAnswer" in json.dumps(search["responses"]["200"])
    assert "global" in document["components"]["schemas"]["Hit"]["properties"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert operation["tags"], path
    assert service.get("/docs").status_code == 404
    assert service.get("/redoc").status_code == 404


def test_every_reference_in_the_document_is_there(service: Asked) -> None:
    text = service.get("/openapi.json").text
    schemas = json.loads(text)["components"]["schemas"]
    for name in re.findall(r'"#/components/schemas/([^"]+)"', text):
        assert name in schemas, name
    assert not re.findall(r'"\$ref": ?"#/(?!components/)', text)


def add_bird(folder: Path, name: str = "birds/one") -> None:
    with IndexWriter(folder) as writer:
        put_model(writer, name, ["sparrow", "cat"], labels=["house sparrow", "cat"])
        writer.finish()


def test_a_new_generation_has_labels_at_hand(own: Path) -> None:
    body = {"concepts": ["sparrow"], "evidence": "labels", "k": 3}
    with asking(small_app(own, refresh_s=0.02)) as asked:
        service = asked.app.state.service
        assert asked.post("/v1/search", body).status_code == 200
        before = weakref.ref(service.generation.searcher.snapshot)
        add_bird(own)
        until(lambda: service.generation.number == 2)
        assert service.generation.labels == {"whitened"}
        found = asked.post("/v1/search", body).json()
        until(lambda: gc.collect() is not None and before() is None)  # nobody keeps the old one
    expected = Searcher(Index(own), encode=encode).search(SearchRequest(("sparrow",), 3, evidence="labels"))
    assert without_time(found) == without_time(json.loads(json.dumps(expected.to_json())))


def test_a_generation_of_another_encoder_is_not_taken_over(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    with asking(small_app(own, refresh_s=0.02)) as asked:
        manifest = json.loads((own / "manifest.json").read_text())
        manifest["encoder"]["templates"] = ["a drawing of a {}"]
        (own / "manifest.json").write_text(json.dumps(manifest))
        add_bird(own)
        until(lambda: "hubhound_generation_errors_total 1.0" in asked.get("/metrics").text)
        time.sleep(0.1)
        answer = asked.post("/v1/search", {"concepts": ["cat"]})
        assert (answer.status_code, answer.json()["searched"]) == (200, 14)
        assert asked.app.state.service.generation_number == 1
    assert [record.message for record in caplog.records if "another encoder" in record.message] == [
        "the next generation cannot be taken over, the one before goes on answering: the index was made again with "
        "another encoder: restart the service to answer from it"
    ]


def test_labels_that_cannot_be_embedded_hold_up_no_generation(own: Path) -> None:
    encoder = Counting()
    with asking(small_app(own, encoder, refresh_s=0.02)) as asked:
        service = asked.app.state.service
        assert asked.post("/v1/search", {"concepts": ["cat"], "evidence": "both"}).status_code == 200
        service.batches.stop()  # from now on nothing new can be encoded
        add_bird(own)
        until(lambda: service.generation.number == 2)
        assert service.generation.labels == set()
        assert asked.post("/v1/search", {"concepts": ["cat"]}).json()["searched"] == 16
        assert asked.post("/v1/search", {"concepts": ["cat"], "evidence": "both"}).status_code == 503
