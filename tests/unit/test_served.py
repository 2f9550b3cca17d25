"""Search with candidates from a server, against the scan of the same index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from engine import prefetch
from engine.errors import ConceptError, InputError, StoreError
from engine.index import Index
from engine.prefetch import Candidates, Prefetch
from engine.schema import Model, ModelState
from engine.store.edge import EdgeStore
from engine.store.server import ServerStore
from engine.writer import IndexWriter
from query.answers import SearchAnswer, ServedAnswer
from query.filters import parse_conditions
from query.request import SearchRequest
from query.search import Searcher
from query.served import ServedSearcher, choose_engine, needs_scan
from query.store_conditions import UnresolvedError, store_filter
from tests.support.small_index import ANIMALS, THINGS, encode, encode_images, make_index, put_model, write_example
from tests.support.stores import SERVER_KINDS, server_place

CONCEPTS = (*ANIMALS, *THINGS, "ship", "never seen")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Twelve models, some of them equal, two with copies, some without labels or facts."""
    folder = tmp_path_factory.mktemp("x") / "zoo"
    make_index(folder)
    facts = [
        {"library": "timm", "licence": "MIT", "parameters": 1000, "downloads": 50},
        {"library": "transformers", "parameters": 5_000_000, "architecture": "ResNet50"},
        {"library": "timm", "licence": "apache-2.0", "downloads": 7},
        {},
    ]
    with IndexWriter(folder) as writer:
        for i in range(12):
            words = [
                (ANIMALS, THINGS, (*ANIMALS, *THINGS))[i % 3][j % len(ANIMALS[: 3 + i % 3 // 2])] for j in range(6)
            ]
            labels = [None] * 6 if i % 4 == 3 else [f"{word} {i}" for word in words]
            put_model(writer, f"org/m{i:02d}", words, labels=labels, seed=i % 10, **facts[i % 4])
        for i, (original, library) in enumerate((("org/m00", "onnx"), ("org/m00", "timm"), ("org/m05", "onnx"))):
            copy = Model(
                repo=f"copies/c{i}",
                revision="c1",
                state=ModelState.COPY,
                copy_of=original,
                library=library,
                downloads=9,
            )
            writer.put_copy(copy)
        writer.finish()
    return Index(folder)


def fill(store: ServerStore, index: Index) -> None:
    with EdgeStore.open(index.folder / "store") as embedded:
        for table in embedded.iter_outputs([model for model in embedded.models() if model.outputs]):
            store.upsert_outputs(table)
        for model in embedded.models():
            store.upsert_model(model)


class Served(NamedTuple):
    store: ServerStore
    searcher: ServedSearcher


@pytest.fixture(scope="module", params=SERVER_KINDS)
def server(request: pytest.FixtureRequest, zoo: Index, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with server_place(request.param, tmp_path_factory.mktemp("server")) as (client, name):
        layout = EdgeStore.open(zoo.folder / "store")
        with layout:
            made = ServerStore.create(client(), name, layout.layout)
        with made as store:
            fill(store, zoo)
            yield Served(store, ServedSearcher(zoo, store, encode, encode_images))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "FIRST", 4)
    monkeypatch.setattr(prefetch, "PER_HIT", 1)


def where(*texts: str) -> SearchRequest:
    return SearchRequest(("cat",), k=8, where=parse_conditions(texts))


REQUESTS = {
    "one": SearchRequest(("cat",)),
    "several": SearchRequest(CONCEPTS, k=3),
    "explained": SearchRequest(("lamp",), k=2, explain=True),
    "all": SearchRequest(("owl",), k=500),
    "method": SearchRequest(("owl",), method="whitened"),
    "library": where("library=timm"),
    "library of a copy": where("library=onnx"),
    "either library": where("library=onnx", "library=Transformers"),
    "wildcards": where("model=*/M0?", "licence=*"),
    "sets": where("model=org/m0[0-3]"),
    "architecture": where("architecture=resnet*"),
    "one model": where("model=ORG/m07"),
    "a copy": where("model=copies/c1"),
    "size": where("max-parameters=4M", "library=timm"),
    "either size": where("max-parameters=10", "max-parameters=1e7"),
    "downloads": where("min-downloads=8"),
    "labelled": where("label=yes"),
    "nameless": where("label=no"),
    "both": where("label=no", "label=yes"),
    "nothing": where("library=jax"),
    "nothing that fits": where("library=j*"),
    "impossible": where("library=onnx", "min-downloads=50"),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_hits_and_their_evidence_are_the_scans(server: Served, zoo: Index, request_: SearchRequest) -> None:
    scanned = Searcher(zoo, encode).search(request_)
    found = server.searcher.search(request_)
    assert found.results == scanned.results  # margins, percentiles, copies, probes and order
    assert found.exact is True
    assert (found.searched, found.engine) == (scanned.searched, "qdrant")
    assert found.candidates <= len(request_.concepts) * scanned.searched


def test_images(server: Served, zoo: Index, tmp_path: Path) -> None:
    for request in (
        SearchRequest(images=(write_example(tmp_path / "a.png", "horse"),)),
        SearchRequest(("horse",), images=(write_example(tmp_path / "b.png", "horse", 1),)),
    ):
        scanned = Searcher(zoo, encode, encode_images=encode_images).search(request)
        assert server.searcher.search(request).results == scanned.results


def test_few_outputs_are_fetched(server: Served, zoo: Index) -> None:
    found = server.searcher.search(SearchRequest(("cat",), k=2))
    assert found.exact
    assert 2 <= found.candidates < len(zoo.snapshot()) / 2
    assert found.rounds >= 1
    assert len(server.searcher.snapshot) < 20


def test_json_has_what_a_server_adds(server: Served) -> None:
    found = server.searcher.search(SearchRequest(("cat",), k=1)).to_json()
    assert list(found) == ["results", "searched", "exact", "seconds", "engine", "candidates", "rounds"]
    assert found["engine"] == "qdrant"
    assert (
        "copies"
        not in SearchAnswer.model_validate(
            {name: found[name] for name in ("results", "searched", "exact", "seconds")}
        ).to_json()
    )


def test_an_answer_without_certificate_says_so(server: Served, zoo: Index) -> None:
    narrow = ServedSearcher(zoo, server.store, encode, most=2)
    found = narrow.search(SearchRequest(("never seen",), k=6))
    assert found.exact is False
    assert found.candidates <= 6
    assert server.searcher.search(SearchRequest(("never seen",), k=6)).exact is True


def test_an_empty_index(zoo: Index, tmp_path: Path) -> None:
    with server_place("local", tmp_path) as (client, name):
        with EdgeStore.open(zoo.folder / "store") as embedded:
            layout = embedded.layout
        with ServerStore.create(client(), name, layout) as store:
            searcher = ServedSearcher(zoo, store, encode)
            for request in (SearchRequest(("cat",)), where("library=timm"), where("library=t*")):
                found = searcher.search(request)
                assert (found.results[0].hits, found.searched, found.exact) == ((), 0, True)


class Unsteady:
    """A store to which something is written while it is searched.

    Args:
        store: The store.
        times: How many answers are disturbed.
        write: What is written.
    """

    def __init__(self, store: ServerStore, times: int, write: object) -> None:
        self._store = store
        self._left = times
        self._write = write
        self.begun = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def query_global(self, *arguments: object) -> object:
        self.begun += 1
        found = self._store.query_global(*arguments)  # type: ignore[arg-type]
        if self._left:
            self._left -= 1
            self._write(self._store)  # type: ignore[operator]
        return found


@pytest.fixture
def own(zoo: Index, tmp_path: Path) -> Iterator[ServerStore]:
    """A store that a test may change."""
    with server_place("local", tmp_path) as (client, name):
        with EdgeStore.open(zoo.folder / "store") as embedded:
            layout = embedded.layout
        with ServerStore.create(client(), name, layout) as store:
            fill(store, zoo)
            yield store


def test_a_search_during_which_a_model_is_replaced_begins_again(zoo: Index, own: ServerStore) -> None:
    """The first list is of before, the records are of after: together they would miss the model."""
    request = SearchRequest(("cat",), k=5)
    best = Searcher(zoo, encode).search(request).results[0].outputs[0]

    def replace_best(store: ServerStore) -> None:
        model = store.model(best.model)
        assert model is not None
        table = store.outputs(best.model, model.revision)
        assert table is not None
        store.upsert_outputs(replace(table, revision="new"))
        store.upsert_model(model.model_copy(update={"revision": "new"}))
        store.delete_outputs(best.model, "new")

    disturbed = Unsteady(own, 1, replace_best)
    found = ServedSearcher(zoo, disturbed, encode).search(request)  # type: ignore[arg-type]
    assert disturbed.begun >= 2
    assert found.exact is True
    hit = found.results[0].outputs[0]
    assert (hit.model, hit.output, hit.margin, hit.revision) == (best.model, best.output, best.margin, "new")


class Late(Unsteady):
    """Its first answer knows no outputs of the new revision, as if they were written when both lists had been made."""

    def newest(self) -> int:
        return 1

    def query_local(self, *arguments: object) -> object:
        found = self._store.query_local(*arguments)  # type: ignore[arg-type]
        return [hit for hit in found if hit.revision != "new" or self.begun > 1]


def test_a_replacement_that_takes_its_number_late_is_noticed(zoo: Index, own: ServerStore) -> None:
    """A record may appear before its writer has found the number that makes it the newest."""
    request = SearchRequest(("owl",), k=1)
    best = Searcher(zoo, encode).search(request).results[0].outputs[0]

    def replace_best(store: ServerStore) -> None:
        model = store.model(best.model)
        assert model is not None
        table = store.outputs(best.model, model.revision)
        assert table is not None
        store.upsert_outputs(replace(table, revision="new"))
        store.upsert_model(model.model_copy(update={"revision": "new"}))

    disturbed = Late(own, 1, replace_best)
    found = ServedSearcher(zoo, disturbed, encode).search(request)  # type: ignore[arg-type]
    (hit,) = found.results[0].outputs
    assert (hit.model, hit.output, hit.revision) == (best.model, best.output, "new")
    assert found.exact is True
    assert disturbed.begun >= 2


def test_a_search_that_is_disturbed_every_time_is_not_certified(zoo: Index, own: ServerStore) -> None:
    def touch(store: ServerStore) -> None:
        model = store.model("org/m11")
        assert model is not None
        store.upsert_model(model)

    always = Unsteady(own, 1000, touch)
    found = ServedSearcher(zoo, always, encode).search(SearchRequest(("cat",), k=3))  # type: ignore[arg-type]
    assert found.exact is False
    assert len(found.results[0].hits) == 3


def test_outputs_that_no_record_claims_are_not_found(zoo: Index, own: ServerStore) -> None:
    request = SearchRequest(ANIMALS, k=4)
    removed = {hit.model for result in Searcher(zoo, encode).search(request).results for hit in result.outputs[:1]}
    for repo in removed:
        own.delete_model(repo)  # the outputs are left, as by a kill
    found = ServedSearcher(zoo, own, encode).search(request)
    assert found.exact
    shown = [hit.model for result in found.results for hit in result.outputs]
    assert len(shown) == 16
    assert not removed & set(shown)


def test_during_a_calibration_nothing_is_certified(zoo: Index, own: ServerStore) -> None:
    """A model with constants of another background may be missed or overrated."""
    model = own.model("org/m11")
    assert model is not None
    searcher = ServedSearcher(zoo, own, encode)
    assert searcher.search(SearchRequest(("lamp",), k=1)).exact is True
    own.upsert_model(model.model_copy(update={"calibration": "0" * 64}))
    assert searcher.search(SearchRequest(("lamp",), k=1)).exact is False


def test_facts_that_change_take_effect_at_once(zoo: Index, own: ServerStore) -> None:
    model = own.model("org/m03")
    assert model is not None
    searcher = ServedSearcher(zoo, own, encode)
    assert searcher.search(where("library=jax")).results[0].hits == ()
    own.upsert_model(model.model_copy(update={"library": "JAX"}))
    found = searcher.search(where("library=j*"))
    assert {hit.model for hit in found.results[0].outputs} == {"org/m03"}
    assert found.exact


SCANS = {
    "--level model": SearchRequest(("cat",), level="model"),
    "--like": SearchRequest(like="org/m01#2"),
    "--evidence both": SearchRequest(("cat",), evidence="both"),
    "serve --method whitened only": SearchRequest(("cat",), method="dual"),
}


@pytest.mark.parametrize(("reason", "request_"), SCANS.items(), ids=SCANS)
def test_what_only_a_scan_can_answer(server: Served, reason: str, request_: SearchRequest) -> None:
    assert reason in (needs_scan(request_, "whitened") or "")
    with pytest.raises(InputError, match="use --engine scan") as caught:
        server.searcher.search(request_)
    assert reason in str(caught.value)


def test_a_wildcard_for_too_many_values(server: Served, zoo: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.store, "distinct", lambda field: None)
    assert server.searcher.search(where("library=timm")).exact, "without wildcards nothing needs to be listed"
    with pytest.raises(InputError, match=r"library=t\* could stand for too many values.*use --engine scan"):
        server.searcher.search(where("library=t*"))


def test_bad_questions_are_refused_as_by_the_scan(server: Served) -> None:
    with pytest.raises(ConceptError, match="empty"):
        server.searcher.search(SearchRequest((" ",)))
    with pytest.raises(InputError, match="-k 0"):
        server.searcher.search(SearchRequest(("cat",), k=0))


def test_an_error_of_the_server_is_not_an_empty_answer(zoo: Index, own: ServerStore) -> None:
    searcher = ServedSearcher(zoo, own, encode)
    own.client.delete_collection(f"{own.name}_outputs")
    with pytest.raises(StoreError):
        searcher.search(SearchRequest(("cat",)))


def test_conditions_for_a_server_by_hand() -> None:
    def values(field: str) -> list[str] | None:
        return {"library": ["onnx", "timm", "transformers"], "licence": None}[field]

    made = store_filter(
        parse_conditions(["library=T*", "library=JAX", "max-parameters=3", "max_parameters=5M", "min-downloads=9"]),
        values,
    )
    assert made is not None
    assert dict(made.texts) == {"library": ("timm", "transformers", "jax")}
    assert (made.max_parameters, made.min_downloads, made.labelled) == (5e6, 9, None)
    assert store_filter(parse_conditions(["library=z?"]), values) is None
    labels = [store_filter(parse_conditions(texts), values) for texts in (["label=no"], ["label=YES"], [])]
    assert [one and one.labelled for one in labels] == [False, True, None]
    with pytest.raises(UnresolvedError, match=r"licence=\*"):
        store_filter(parse_conditions(["licence=*"]), values)


def test_an_embedded_index_is_scanned(zoo: Index) -> None:
    request = SearchRequest(("cat",))
    assert choose_engine("auto", zoo, request) == choose_engine("scan", zoo, request) == "scan"
    with pytest.raises(InputError, match="is a folder: leave it out"):
        choose_engine("qdrant", zoo, request)


def test_another_finder_is_exact_about_what_it_finds(server: Served, zoo: Index) -> None:
    """Candidates of another origin, here the best 40: the same hits, without certificate."""
    hits = Prefetch(server.store)
    request = SearchRequest(("dog",), k=3)

    def find(found: Prefetch, concepts: object, c: int, k: int, where: object) -> Candidates:
        wide = hits.candidates(concepts, c, 40).near  # type: ignore[arg-type]
        return Candidates(found.near(wide, concepts, c, k), False, len(wide), 1)  # type: ignore[arg-type]

    answer: ServedAnswer = ServedSearcher(zoo, server.store, encode, finder=find, engine="candidates").search(request)
    assert answer.results == Searcher(zoo, encode).search(request).results
    assert (answer.exact, answer.engine, answer.rounds) == (False, "candidates", 1)
