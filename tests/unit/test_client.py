"""The client: its answers are the local ones, and what it makes of services that do not answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from engine.errors import HubhoundError, InputError
from engine.index import Index
from engine.schema import Model, ModelState
from engine.writer import IndexWriter
from indexers.profiler import ProfileSettings
from query.answers import SearchAnswer
from query.api.jobs import JobProgress
from query.api.watched import model_folders
from query.client import Client, ServiceError
from query.describe import Describer
from query.description import DescribeRequest
from query.filters import parse_conditions
from query.index_facts import index_facts
from query.recommend import RecommendRequest, recommend
from query.recommendation import Recommendation
from query.request import SearchRequest
from query.rerank import N_STEPS, Reranker, RerankSettings
from query.search import Searcher
from query.targets import TargetProfiler
from tests.support.job_programs import held as held_program
from tests.support.job_programs import loading
from tests.support.runnable_index import CONCEPTS, PROFILED, make_runnable_index
from tests.support.service import free_port, listening, small_app
from tests.support.small_index import encode, encode_images, write_example

pytestmark = pytest.mark.usefixtures("one_thread")

OWLS = (Path("IMAGES/owl 0.png"), Path("IMAGES/öwl-1.png"))
"""Stand for the files of the fixture."""

KEY = "a-key-of-sixteen-characters"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("client")
    zoo = make_runnable_index(root)
    with IndexWriter(zoo) as writer:
        record = {
            "repo": "zoo/copy",
            "revision": "r2",
            "state": ModelState.COPY,
            "copy_of": "org/one",
            "licence": "mit",
        }
        writer.put_copy(Model.model_validate(record))
        writer.finish()
    (root / "IMAGES").mkdir()
    for i, path in enumerate(OWLS):
        write_example(root / path, "owl", i)
    (root / "words.txt").write_text("\n".join(dict.fromkeys(name for names in CONCEPTS.values() for name in names)))
    return root


@pytest.fixture(scope="module")
def app(made: Path) -> FastAPI:
    folders, words = (made / "org",), made / "words.txt"
    return small_app(made / "zoo", job_grace_s=0, models=folders, names=True, vocabulary=words, rate_limit=0)


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with listening(app) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as asked:
        yield asked


@pytest.fixture(scope="module")
def index(made: Path) -> Index:
    return Index(made / "zoo")


@pytest.fixture(scope="module")
def searcher(index: Index) -> Searcher:
    return Searcher(index, encode, encode_images=encode_images)


def where(*texts: str) -> Any:
    return parse_conditions(texts)


def same(found: SearchAnswer, expected: SearchAnswer) -> None:
    found, expected = (answer.model_copy(update={"seconds": 0.0}) for answer in (found, expected))
    assert found == expected
    assert json.dumps(found.to_json()) == json.dumps(expected.to_json())  # also what is left out, and the order
    assert [hit for result in found.results for hit in result.hits] or not expected.results[0].hits


REQUESTS = {
    "texts": SearchRequest(("owl", " golden   retriever "), k=4),
    "images": SearchRequest(images=OWLS),
    "one image": SearchRequest(images=OWLS[:1], k=2),
    "text and images": SearchRequest(("cat",), images=OWLS),
    "like an output": SearchRequest(like="org/one#3"),
    "like an output of a copy": SearchRequest(like="zoo/copy#3"),
    "like a model": SearchRequest(like="org/one", level="model"),
    "models": SearchRequest(("owl", "cat"), level="model"),
    "models, any": SearchRequest(("owl", "cat", "tree"), level="model", require="any"),
    "models, ceiling": SearchRequest(("owl", "cat"), level="model", ceiling=0.5),
    "models by images": SearchRequest(images=OWLS, level="model", explain=True),
    "where": SearchRequest(("owl",), where=where("model=org/t*", "licence=mit", "licence=x=y")),
    "where nothing": SearchRequest(("owl",), where=where("library=nothing")),
    "explain": SearchRequest(("owl",), explain=True, k=2),
    "method": SearchRequest(("owl",), method="probelog"),
    "labels": SearchRequest(("owl", "bee"), evidence="labels"),
    "labels and probes": SearchRequest(("owl", "bee"), evidence="both"),
    "ünïcode": SearchRequest(("Ωwl \N{OWL}",), k=1),
    "a text like a file's name": SearchRequest(("@/etc/passwd",), k=1),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_search_is_the_local_one(
    name: str, client: Client, searcher: Searcher, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)  # paths are shown as they were given
    same(client.search(REQUESTS[name]), searcher.search(REQUESTS[name]))


@pytest.mark.parametrize(
    "settings", [RerankSettings(), RerankSettings(0.7, 3), RerankSettings(1.0)], ids=["default", "three", "only"]
)
@pytest.mark.parametrize("level", ["output", "model"])
def test_a_reranked_search_is_the_local_one(
    settings: RerankSettings, level: Any, client: Client, searcher: Searcher, index: Index, made: Path
) -> None:
    request = SearchRequest(images=tuple(made / path for path in OWLS), k=4, level=level)
    found = client.search(request, settings)
    profiler = TargetProfiler(index, "cpu", ProfileSettings(n_steps=N_STEPS), model_folders([made / "org"]))
    before = searcher.search(replace(request, k=max(request.k, settings.top)))
    same(found, Reranker(index, searcher.snapshot, profiler, settings).rerank(before, request.images, request.k))
    assert found.rerank is not None and found.rerank.weight == settings.weight


def local(index: Index, request: RecommendRequest, made: Path) -> Recommendation:
    profiler = TargetProfiler(index, "cpu", ProfileSettings(), model_folders([made / "org"]))
    return recommend(index, request, profiler, "INDEX")


def test_a_recommendation_is_the_local_one(client: Client, index: Index, made: Path, tmp_path: Path) -> None:
    again = tmp_path / "owl 0.png"  # the name of another, and its content once more
    shutil.copy(made / OWLS[0], again)
    images = tuple(made / path for path in OWLS)
    told: list[JobProgress] = []
    for request in (
        RecommendRequest(images),
        RecommendRequest((images[0], again, images[1]), ("org/two", "org/three"), 5, explain=True),
        RecommendRequest(images, k=1, eta=0.5, gamma=9, max_parameters=10**9),
    ):
        found, expected = client.recommend(request, told.append), local(index, request, made)
        found, expected = (one.model_copy(update={"seconds": 0.0, "profiled": 0}) for one in (found, expected))
        assert found == expected and found.to_json() == expected.to_json() and found.ranking
    assert {one.model for one in told} <= set(PROFILED)


def test_errors_are_the_local_ones(client: Client, searcher: Searcher, index: Index, made: Path) -> None:
    def told(kind: type[HubhoundError], call: Callable[..., object], *arguments: object) -> str:
        with pytest.raises(kind) as caught:
            call(*arguments)
        return str(caught.value)

    wrong: list[SearchRequest] = [
        SearchRequest(("x" * 5000,)),
        SearchRequest(like="org/on#1"),
        SearchRequest(like="org/one#99"),
        SearchRequest(("owl",), method="probelog", evidence="both"),
    ]
    for request in wrong:
        expected = told(InputError, searcher.search, request)
        assert told(ServiceError, client.search, request) == expected
    here: list[SearchRequest] = [  # found without asking
        SearchRequest(),
        SearchRequest(("owl",), k=0),
        SearchRequest(("owl", "Owl"), level="model"),
        SearchRequest(images=(made / "nowhere.png",)),
    ]
    with Client(f"http://127.0.0.1:{free_port()}") as nobody:
        for request in here:
            expected = told(InputError, searcher.search, request)
            assert told(InputError, nobody.search, request) == expected
        for wanted in (RecommendRequest(()), RecommendRequest((made / "nowhere.png",)), RecommendRequest(OWLS, k=0)):
            expected = told(InputError, local, index, wanted, made)
            assert told(InputError, nobody.recommend, wanted) == expected


def test_the_facts_of_an_error(client: Client, made: Path) -> None:
    with pytest.raises(ServiceError) as caught:
        client.model("org/nobody")
    error = caught.value
    assert (error.status, error.type, error.retry_after_s) == (404, "urn:hubhound:problem:model-not-found", None)
    assert error.title == "The model is not in the index" and error.detail == str(error)
    with pytest.raises(ServiceError) as caught:
        client.recommend(RecommendRequest((made / OWLS[0],), ("org/../etc",)))
    assert caught.value.type == "urn:hubhound:problem:model-not-found"


def test_models_and_their_pages(client: Client, searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("query.api.routes.models.MOST_MODELS", 2)  # so that there are several pages
    names = ["org/one", "org/three", "org/two", "zoo/copy"]
    found = client.models()
    assert [model.repo for model in found] == names
    assert found[0].copies == ("zoo/copy",)
    records = {name: record for name, (_, record) in searcher.snapshot.places.items()}
    assert {m.repo: m.model_dump(exclude={"copies"}) for m in found} == {n: r.model_dump() for n, r in records.items()}
    assert [model.repo for model in client.models(where("model=org/t*"))] == ["org/three", "org/two"]
    assert [model.repo for model in client.models(text="COPY")] == ["zoo/copy"]
    page = client.model("zoo/copy")
    assert page.copy_of == "org/one" and page.describe is not None
    assert [output.label for output in page.describe.outputs] == list(CONCEPTS["org/one"])
    assert len(client.model("org/two").profiles) == 3


@pytest.mark.parametrize("name", ["org/one", "zoo/copy"])
def test_a_description_is_the_local_one(name: str, client: Client, index: Index, made: Path) -> None:
    describer = Describer(index, (made / "words.txt").read_text().splitlines(), encode)
    for k in (1, 3):
        found, expected = client.describe(name, k), describer.describe(name, DescribeRequest(k))
        found, expected = (one.model_copy(update={"seconds": 0.0}) for one in (found, expected))
        assert found == expected and found.to_json() == expected.to_json()
    with pytest.raises(InputError, match="at least one name"):
        client.describe(name, 0)


def test_the_index(client: Client, index: Index) -> None:
    found, expected = client.index(), index_facts(index, index.snapshot(), index.knowledge())
    for name in ("generation", "models", "copies", "outputs", "libraries", "licences", "tasks", "profiles"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.manifest.encoder == expected.manifest.encoder and found.outputs == 15


@pytest.fixture
def held(app: FastAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Models are not loaded before this file is there."""
    gate = tmp_path / "gate"
    monkeypatch.setattr(app.state.service.jobs, "program", held_program(gate))
    yield gate
    gate.touch()


def cancelled(app: FastAPI) -> bool:
    """Whether the last job was cancelled."""
    (*_, last) = app.state.service.jobs._entries.values()
    return bool(last.watch.cancelled)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_who_gives_up_cancels_the_job(
    error: type[BaseException], client: Client, app: FastAPI, held: Path, tmp_path: Path
) -> None:
    def give_up(progress: JobProgress) -> None:
        assert progress.what in {"starting", "reading", "loading"} and progress.models == 2
        raise error

    request = RecommendRequest((write_example(tmp_path / "new.png", f"for {error}"),))
    with pytest.raises(error):
        client.recommend(request, give_up)
    assert cancelled(app)


def test_a_job_that_takes_too_long_is_cancelled(url: str, app: FastAPI, held: Path, tmp_path: Path) -> None:
    request = RecommendRequest((write_example(tmp_path / "new.png", "too long"),))
    with Client(url, job_timeout_s=0.2) as hasty, pytest.raises(ServiceError, match=r"not done within 0\.2 s"):
        hasty.recommend(request)
    assert cancelled(app)
    with Client(url) as patient:  # whatever it had to wait for
        held.touch()
        assert patient.recommend(request).candidates == 2


def test_a_job_that_somebody_else_cancels(client: Client, app: FastAPI, held: Path, tmp_path: Path) -> None:
    def cancel(_: JobProgress) -> None:
        jobs = app.state.service.jobs
        jobs.cancel(next(reversed(jobs._entries)))

    request = RecommendRequest((write_example(tmp_path / "new.png", "cancelled"),))
    with pytest.raises(ServiceError, match="cancelled the job"):
        client.recommend(request, once(cancel))


def once(call: Callable[[JobProgress], None]) -> Callable[[JobProgress], None]:
    calls: list[JobProgress] = []

    def first(progress: JobProgress) -> None:
        calls.append(progress)
        if len(calls) == 1:
            call(progress)

    return first


def test_a_job_that_fails(client: Client, app: FastAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from engine.errors import InputError; raise InputError('it has gone')"
    monkeypatch.setattr(app.state.service.jobs, "program", loading(code))
    request = RecommendRequest((write_example(tmp_path / "new.png", "failing"),))
    with pytest.raises(ServiceError, match="it has gone") as caught:
        client.recommend(request)
    assert (caught.value.status, caught.value.type) == (400, "urn:hubhound:problem:invalid-request")


def test_keys(made: Path, tmp_path: Path, searcher: Searcher) -> None:
    (tmp_path / "keys").write_text(f"me {KEY}\n")
    with listening(small_app(made / "zoo", api_key_file=tmp_path / "keys")) as address:
        with Client(address, KEY) as known:
            same(known.search(REQUESTS["texts"]), searcher.search(REQUESTS["texts"]))
        for key in (None, "another-key-of-this-length"):
            with Client(address, key) as unknown, pytest.raises(ServiceError) as caught:
                unknown.index()
            assert (caught.value.status, caught.value.type) == (401, "urn:hubhound:problem:unauthorised")
