"""Models for a list of concepts, hits like a known output, and filters: held to trying everything."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from engine.descriptors import ConceptDescriptors, FloatArray, concept_descriptors, normalise
from engine.distance import METHODS, Method, margins
from engine.index import Index
from engine.scan import decode_anchors
from engine.snapshot import Snapshot
from engine.writer import IndexWriter
from query.answers import Hit, ModelHit
from query.filters import Condition, parse_conditions
from query.request import SearchRequest
from query.search import Searcher
from tests.support.small_index import (
    ANIMALS,
    THINGS,
    encode_images,
    make_filled_index,
    make_index,
    probe_embeddings,
    put_model,
    vector,
    write_example,
)

MODELS: dict[str, tuple[str, ...]] = {
    "a/pets": ("cat", "dog"),
    "a/cats": ("cat", "tiger", "table"),
    "b/animals": ("horse", "dog", "owl", "cat"),
    "b/mixed": ("dog", "lamp", "tiger", "chair", "cat"),
    "c/things": ("chair", "table", "lamp"),
    "c/one": ("cat",),
}
NEAR = {"tiger": "cat", "kitten": "cat", "puppy": "dog", "stool": "chair"}
"""Concepts whose embeddings lie near another's: two of a list want the same output."""


def encode(texts: Sequence[str]) -> FloatArray:
    return normalise([vector(text) + 2.0 * vector(NEAR[text]) if text in NEAR else vector(text) for text in texts])


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    index = make_index(tmp_path_factory.mktemp("x") / "zoo")
    with IndexWriter(index.folder) as writer:
        for seed, (repo, concepts) in enumerate(MODELS.items()):
            labels = [None if concept == "dog" else concept for concept in concepts]
            put_model(writer, repo, concepts, labels=labels, seed=seed, library="timm" if repo[0] == "b" else "x")
        writer.finish()
    return Index(index.folder)


@pytest.fixture(scope="module")
def searcher(index: Index) -> Searcher:
    return Searcher(index, encode, encode_images=encode_images)


def plain_margins(searcher: Searcher, concepts: ConceptDescriptors, method: Method) -> np.ndarray:
    """Margins of every output ``[c, L]`` by the readable form."""
    arrays = searcher.snapshot.arrays
    everything = np.arange(len(arrays))
    idx, z = arrays.kept(everything)
    anchors = decode_anchors(arrays, everything).astype(np.float32)
    return margins(idx, z, anchors, arrays.constants(slice(None)), concepts, method)


def described(searcher: Searcher, texts: Sequence[str]) -> ConceptDescriptors:
    return concept_descriptors(encode(texts), probe_embeddings(), searcher.background.whitening)


def brute_force(snapshot: Snapshot, table: np.ndarray, require: str, allowed: np.ndarray) -> list[tuple[str, float]]:
    """Every model's value by trying every assignment, best first; ``table`` is ``[c, L]``."""
    c, values = len(table), []
    for place, model in enumerate(snapshot.models):
        rows = [row for row in range(snapshot.starts[place], snapshot.starts[place + 1]) if allowed[row]]
        own = table[:, rows]
        if require == "any":  # c outputs more that mean "unmatched"
            own = np.maximum(np.hstack([own, np.zeros((c, c))]), 0)
        sums = [sum(own[i, j] for i, j in enumerate(chosen)) for chosen in permutations(range(own.shape[1]), c)]
        if sums and (require == "all" or max(sums) > 0):
            values.append((model.repo, float(max(sums)) / c))
    return sorted(values, key=lambda value: -value[1])


def values_of(hits: Sequence[ModelHit]) -> list[tuple[str, float]]:
    return [(hit.model, hit.margin) for hit in hits]


def same(found: list[tuple[str, float]], expected: list[tuple[str, float]], atol: float = 2e-4) -> None:
    assert [name for name, _ in found] == [name for name, _ in expected]
    np.testing.assert_allclose([v for _, v in found], [v for _, v in expected], atol=atol)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("require", ["all", "any"])
@pytest.mark.parametrize("where", [(), ("library=timm",), ("label=yes",)])
def test_models_are_those_of_every_assignment(
    searcher: Searcher, method: Method, require: str, where: tuple[str, ...]
) -> None:
    snapshot = searcher.snapshot
    allowed = np.ones(len(snapshot), bool)
    for row in range(len(snapshot)):
        allowed[row] &= "library=timm" not in where or snapshot.model_of(row).library == "timm"
        allowed[row] &= "label=yes" not in where or snapshot.label_of(row) is not None
    for texts in (("cat", "dog"), ("kitten", "cat", "puppy"), ("owl",), ("chair", "stool", "lamp", "table")):
        expected = brute_force(snapshot, plain_margins(searcher, described(searcher, texts), method), require, allowed)
        answer = searcher.search(
            SearchRequest(
                texts,
                2,
                method,
                parse_conditions(where),
                level="model",
                require=require,  # type: ignore[arg-type]
            )
        )
        same(values_of(answer.results[0].models), expected[:2])
        assert answer.searched == allowed.sum()
        assert answer.exact


def test_two_concepts_never_share_an_output(searcher: Searcher) -> None:
    table = plain_margins(searcher, described(searcher, ("kitten", "cat")), "whitened")
    place = [model.repo for model in searcher.snapshot.models].index("b/animals")
    own = table[:, searcher.snapshot.starts[place] : searcher.snapshot.starts[place + 1]]
    assert own.argmax(axis=1).tolist() == [3, 3]  # both want the output for cats
    hits = searcher.search(SearchRequest(("kitten", "cat"), 10, level="model")).results[0].models
    hit = next(hit for hit in hits if hit.model == "b/animals")
    assert len({matched.output for matched in hit.outputs}) == 2
    for c, matched in enumerate(hit.outputs):
        assert matched.output is not None
        assert matched.margin == pytest.approx(own[c, matched.output], abs=2e-4)
    assert hit.margin == pytest.approx(np.mean([matched.margin for matched in hit.outputs]), abs=1e-5)
    assert hit.covered == sum(own[c, m.output] > 0 for c, m in enumerate(hit.outputs))


def test_a_model_s_hit_says_what_each_concept_was_matched_to(searcher: Searcher) -> None:
    answer = searcher.search(SearchRequest(("lamp", "cat", "zebra"), 10, level="model", require="any"))
    hit = answer.results[0].models[0]
    assert (hit.rank, hit.model, hit.revision, hit.covered) == (1, "b/mixed", "r1", 2)
    assert [(m.concept, m.output, m.label) for m in hit.outputs] == [
        ("lamp", 1, "lamp"),
        ("cat", 4, "cat"),
        ("zebra", None, None),
    ]
    assert hit.margin == pytest.approx(sum(m.margin or 0 for m in hit.outputs) / 3, abs=1e-5)
    json = answer.to_json()["results"][0]  # type: ignore[index]
    assert json["query"] == {"texts": ["lamp", "cat", "zebra"]}
    assert list(json["hits"][0]) == ["rank", "model", "revision", "margin", "covered", "outputs"]
    assert [list(m) for m in json["hits"][0]["outputs"]] == [["concept", "output", "label", "margin"]] * 3


def test_every_concept_must_be_covered_unless_any_will_do(searcher: Searcher) -> None:
    many = ("cat", "dog", "horse", "owl", "chair", "lamp")  # more than any model has outputs
    none = searcher.search(SearchRequest(many, level="model"))
    assert none.results[0].hits == ()
    assert none.searched == 18
    assert searcher.search(SearchRequest(many, level="model", require="all")).results == none.results
    some = searcher.search(SearchRequest(many, level="model", require="any")).results[0].models
    covered = {hit.model: {m.concept for m in hit.outputs if (m.margin or 0) > 1} for hit in some}
    assert {hit.model for hit in some[:2]} == {"b/animals", "b/mixed"}
    assert covered["b/animals"] == {"cat", "dog", "horse", "owl"}
    assert covered["b/mixed"] == {"cat", "dog", "chair", "lamp"}
    four = searcher.search(SearchRequest(many[:4], level="model")).results[0].models
    assert {hit.model for hit in four} == {"b/animals", "b/mixed"}


def test_the_order_of_a_list_does_not_matter(searcher: Searcher) -> None:
    texts = ("kitten", "puppy", "cat")
    one, two = (
        searcher.search(SearchRequest(order, 10, level="model")).results[0].models for order in (texts, texts[::-1])
    )
    same(values_of(one), values_of(two), 1e-6)


def test_explained_models_show_the_probes_of_each_match(searcher: Searcher) -> None:
    request = SearchRequest(("cat", "lamp"), 1, level="model", explain=True)
    (hit,) = searcher.search(request).results[0].models
    concepts = described(searcher, ("cat", "lamp"))
    snapshot = searcher.snapshot
    start = int(snapshot.starts[[m.repo for m in snapshot.models].index(hit.model)])
    for c, matched in enumerate(hit.outputs):
        assert matched.output is not None
        assert matched.probes is not None
        (idx,), (z,) = snapshot.arrays.kept(np.array([start + matched.output]))
        product = {int(p): max(v, 0) ** 4 * concepts.z[c, p] for p, v in zip(idx, z, strict=True)}
        assert [p.probe for p in matched.probes] == sorted(product, key=lambda p: -product[p])[:10]
        assert all(p.concept == pytest.approx(concepts.z[c, p.probe], abs=1e-5) for p in matched.probes)


def test_models_by_example_images(searcher: Searcher, tmp_path: Path) -> None:
    images = tuple(write_example(tmp_path / f"{i}.png", "horse", i) for i in range(4))
    found = searcher.search(SearchRequest(images=images, k=1, level="model")).results[0]
    assert (found.models[0].model, found.models[0].outputs[0].output) == ("b/animals", 0)
    assert found.models[0].outputs[0].concept == "4 images"
    outputs = searcher.search(SearchRequest(images=images, k=18)).results[0].outputs
    expected = plain_margins(searcher, searcher.ask(SearchRequest(images=images))[0].concepts, "whitened")[0]
    np.testing.assert_allclose([hit.margin for hit in outputs], np.sort(expected)[::-1], atol=2e-4)


def outputs_of(hits: Sequence[Hit]) -> list[tuple[str, int]]:
    return [(hit.model, hit.output) for hit in hits]


@pytest.mark.parametrize("method", METHODS)
def test_outputs_like_one_are_ranked_by_its_responses(searcher: Searcher, method: Method) -> None:
    request = SearchRequest(like="b/animals#3", k=100, method=method)
    (question,) = searcher.ask(request)
    table = plain_margins(searcher, question.concepts, method)[0]
    snapshot = searcher.snapshot
    rows = [row for row in range(len(snapshot)) if snapshot.model_of(row).repo != "b/animals"]
    order = sorted(rows, key=lambda row: -table[row])
    answer = searcher.search(request)
    hits = answer.results[0].outputs
    assert outputs_of(hits) == [(snapshot.model_of(row).repo, int(snapshot.output[row])) for row in order]
    np.testing.assert_allclose([hit.margin for hit in hits], table[order], atol=2e-4)
    assert answer.searched == len(rows) == 14
    assert set(outputs_of(hits[:4])) == {("a/pets", 0), ("a/cats", 0), ("b/mixed", 4), ("c/one", 0)}


@pytest.mark.parametrize("responses", ["keep", "drop"])
@pytest.mark.parametrize("method", METHODS)
def test_what_does_the_same_comes_first_with_and_without_responses(
    tmp_path: Path, responses: str, method: Method
) -> None:
    searcher = Searcher(make_filled_index(tmp_path / "zoo", responses=responses))
    for number, concept in enumerate((*ANIMALS, *THINGS)):
        own = ("org/animals", number) if concept in ANIMALS else ("org/things", number - len(ANIMALS))
        hits = searcher.search(SearchRequest(like=f"zoo/both#{number}", k=20, method=method)).results[0].outputs
        assert outputs_of(hits)[0] == own
        assert hits[0].margin > 2 * max(hits[1].margin, 0.1)
        assert all(hit.model != "zoo/both" for hit in hits)
        back = searcher.search(SearchRequest(like=f"{own[0]}#{own[1]}", k=1, method=method)).results[0].outputs
        assert outputs_of(back) == [("zoo/both", number)]


def test_the_correlation_with_an_output_is_that_with_what_predicts_it(searcher: Searcher) -> None:
    request = SearchRequest(like="c/things#0", k=100, method="dual")
    predicted = probe_embeddings().astype(np.float64) @ searcher.ask(request)[0].concepts.t[0]
    found = {(hit.model, hit.output): hit for hit in searcher.search(request).results[0].outputs}
    responses = searcher._index.responses.read("b/mixed", "r1")
    assert responses is not None
    for output, row in enumerate(responses.astype(np.float64)):
        correlation = found["b/mixed", output].global_
        assert correlation is not None  # the archive is from before divisive normalisation: nearly the same
        assert correlation.correlation == pytest.approx(np.corrcoef(row, predicted)[0, 1], abs=0.05)


@pytest.mark.parametrize("require", [None, "any", "all"])
def test_models_like_one_are_those_of_every_assignment(searcher: Searcher, require: str | None) -> None:
    request = SearchRequest(like="a/cats", level="model", k=10, require=require)  # type: ignore[arg-type]
    (question,) = searcher.ask(request)
    snapshot = searcher.snapshot
    allowed = np.array([snapshot.model_of(row).repo != "a/cats" for row in range(len(snapshot))])
    table = plain_margins(searcher, question.concepts, "whitened")
    answer = searcher.search(request)
    hits = answer.results[0].models
    same(values_of(hits), brute_force(snapshot, table, require or "any", allowed))
    assert hits[0].model == "b/mixed"
    assert [m.concept for m in hits[0].outputs] == list(MODELS["a/cats"])
    assert answer.searched == 15
    assert answer.to_json()["results"][0]["query"] == {"like": "a/cats"}  # type: ignore[index]


def test_a_model_alone_in_its_index_has_nothing_like_it(tmp_path: Path) -> None:
    index = make_index(tmp_path / "zoo")
    with IndexWriter(index.folder) as writer:
        put_model(writer, "org/lonely", ANIMALS)
        writer.finish()
    searcher = Searcher(Index(index.folder))
    for like, level in (("org/lonely#0", "output"), ("org/lonely", "model")):
        answer = searcher.search(SearchRequest(like=like, level=level))  # type: ignore[arg-type]
        assert answer.searched == 0
        assert answer.results[0].hits == ()


@pytest.mark.parametrize("where", [("library=timm",), ("model=a/*", "model=c/one"), ("label=no",), ("library=onnx",)])
@pytest.mark.parametrize("kind", ["texts", "images", "like", "like model", "list", "labels", "both"])
def test_filters_give_what_filtering_afterwards_gives(
    searcher: Searcher, tmp_path: Path, kind: str, where: tuple[str, ...]
) -> None:
    conditions = parse_conditions(where)
    if "model" in kind or kind == "list":
        conditions = tuple(c for c in conditions if c.key != "label")  # cuts into models: other assignments
    image = write_example(tmp_path / "a.png", "cat")

    def request(k: int, where: tuple[Condition, ...]) -> SearchRequest:
        return {
            "texts": SearchRequest(("cat", "lamp"), k, where=where),
            "images": SearchRequest(images=(image,), k=k, where=where),
            "like": SearchRequest(like="a/pets#0", k=k, where=where),
            "like model": SearchRequest(like="a/pets", level="model", k=k, where=where),
            "list": SearchRequest(("cat", "dog"), k, where=where, level="model", require="any"),
            "labels": SearchRequest(("cat",), k, where=where, evidence="labels"),
            "both": SearchRequest(("cat",), k, where=where, evidence="both"),
        }[kind]

    def passes(hit: Hit | ModelHit) -> bool:
        keep = {
            ("library=timm",): hit.model.startswith("b/"),
            ("model=a/*", "model=c/one"): hit.model.startswith("a/") or hit.model == "c/one",
            ("label=no",): not isinstance(hit, Hit) or hit.label is None,
            ("library=onnx",): False,
        }
        return keep[where]

    whole = searcher.search(request(1000, ()))
    some = searcher.search(request(3, conditions))
    for all_of_them, found in zip(whole.results, some.results, strict=True):
        expected = [hit for hit in all_of_them.hits if passes(hit)][:3]
        assert [hit.model_copy(update={"rank": 0}) for hit in found.hits] == [
            hit.model_copy(update={"rank": 0}) for hit in expected
        ]
        assert [hit.rank for hit in found.hits] == list(range(1, len(expected) + 1))
