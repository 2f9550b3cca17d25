"""Labels as a second witness: every number against a slow loop, every ranking against all outputs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from engine.descriptors import FloatArray, concept_descriptors
from engine.distance import METHODS, Method, margins
from engine.errors import ConceptError, IndexUnusableError, InputError
from engine.index import Index
from engine.scan import decode_anchors
from engine.writer import IndexWriter
from query.answers import Hit
from query.labels import CEILING, WEIGHT, LabelMargins, LabelWitness
from query.request import SearchRequest
from query.search import Searcher
from tests.support.small_index import (
    ANIMALS,
    THINGS,
    encode,
    make_filled_index,
    make_index,
    probe_embeddings,
    put_model,
    vector,
)

QUERIES = ("cat", "owl", "chair", "zebra", "polar bear")
NONSENSE = "zzz"  # of which the encoder knows no word


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Right labels, wrong ones, none, placeholders, several meanings, and one the encoder does not know."""
    index = make_index(tmp_path_factory.mktemp("x") / "zoo")
    with IndexWriter(index.folder) as writer:
        put_model(writer, "a/lies", ANIMALS, labels=("dog", "cat", "owl", "horse"), seed=2)
        put_model(writer, "a/right", ANIMALS, seed=1)
        put_model(writer, "c/none", THINGS, labels=(None, None, None), seed=3)
        put_model(writer, "d/placeholders", THINGS, labels=("LABEL_0", "LABEL_1", "LABEL_2"), seed=4)
        meanings = ("polar_bear, ice bear (Ursus)", NONSENSE, "Chair")
        put_model(writer, "e/odd", ("polar bear", "cat", "chair"), labels=meanings, seed=5)
        guesses = [f"guess{letter}" for letter in "abcdefghijklmnop"]
        put_model(writer, "f/guesses", [f"concept {i}" for i in range(16)], labels=guesses, seed=6)
        writer.finish()
    return Index(index.folder)


def choosy(texts: Sequence[str]) -> FloatArray:
    if NONSENSE in texts:
        raise ConceptError(f"the encoder knows no part of {NONSENSE!r}", NONSENSE)
    return encode(texts)


def witness(index: Index, method: Method = "whitened") -> LabelWitness:
    snapshot = index.snapshot()
    return LabelWitness(index, snapshot, index.background(snapshot.background), method, choosy)


def label_vector(label: str | None) -> np.ndarray | None:
    """What a label means, written down for the labels used here."""
    phrases = {
        None: [],
        "LABEL_0": [],
        "LABEL_1": [],
        "LABEL_2": [],
        NONSENSE: [],
        "polar_bear, ice bear (Ursus)": ["polar bear, ice bear (Ursus)", "polar bear", "polar bear, ice bear", "Ursus"],
    }.get(label, [label or ""])
    if not phrases:
        return None
    mean = np.mean([vector(phrase).astype(np.float64) for phrase in phrases], axis=0)
    return np.asarray(mean / np.linalg.norm(mean))


def slow_margin(index: Index, label: str | None, t: np.ndarray) -> float:
    own = label_vector(label)
    if own is None:
        return float("nan")
    similarity = sorted(float(own @ vector(f"background {i}")) for i in range(60))
    return (float(own @ t) - float(np.mean(similarity[-10:]))) / float(np.std(similarity))


def probe_margins(index: Index, t: np.ndarray, method: Method) -> np.ndarray:
    """The margin of every output for one embedding, by the readable form."""
    snapshot, background = index.snapshot(), index.background()
    everything = np.arange(len(snapshot))
    idx, z = snapshot.arrays.kept(everything)
    anchors = decode_anchors(snapshot.arrays, everything).astype(np.float32)
    concept = concept_descriptors(t[None], probe_embeddings(), background.whitening)
    return margins(idx, z, anchors, snapshot.arrays.constants(slice(None)), concept, method)[0]


def slow_trusted(index: Index, method: Method) -> list[bool]:
    snapshot = index.snapshot()
    trusted = []
    for row in range(len(snapshot)):
        own = label_vector(snapshot.label_of(row))
        trusted.append(own is not None and bool(probe_margins(index, own, method)[row] > 0))
    return trusted


def places(hits: Sequence[Hit]) -> list[tuple[str, int]]:
    return [(hit.model, hit.output) for hit in hits]


def test_margins_of_labels_are_those_of_a_loop(index: Index) -> None:
    snapshot, asked = index.snapshot(), witness(index)
    for text in QUERIES:
        expected = [slow_margin(index, snapshot.label_of(row), vector(text)) for row in range(len(snapshot))]
        found = asked.margins(vector(text)).margin
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert np.isnan(found).sum() == 7  # three without a label, three placeholders, one that nobody knows


@pytest.mark.parametrize("method", METHODS)
def test_the_probes_vouch_for_labels(index: Index, method: Method) -> None:
    trusted = witness(index, method).margins(vector("cat")).trusted
    assert trusted.tolist() == slow_trusted(index, method)
    assert trusted[4:8].all()
    assert not trusted[:4].any()  # every label of a/lies is another output's


def test_a_label_can_only_speak_for_an_output() -> None:
    said = LabelMargins(
        np.array([2.5, -1.0, np.nan, 9.0, 3.0, np.nan]), np.array([True, True, True, True, False, False])
    )
    assert said.bonus.tolist() == [2.5 * WEIGHT, 0, 0, CEILING * WEIGHT, 0, 0]


@pytest.mark.parametrize("method", ["whitened", "dual"])
@pytest.mark.parametrize("k", [1, 3, 100])
def test_both_is_the_sum_over_all_outputs(index: Index, method: Method, k: int) -> None:
    snapshot, trusted = index.snapshot(), slow_trusted(index, method)
    searcher = Searcher(index, choosy)
    answer = searcher.search(SearchRequest(QUERIES, k, method, evidence="both"))
    for text, result in zip(QUERIES, answer.results, strict=True):
        probes = probe_margins(index, vector(text), method)
        labels = [slow_margin(index, snapshot.label_of(row), vector(text)) for row in range(len(snapshot))]
        bonus = [WEIGHT * min(m, CEILING) if ok and m > 0 else 0.0 for m, ok in zip(labels, trusted, strict=True)]
        order = sorted(range(len(snapshot)), key=lambda row: -(probes[row] + bonus[row]))[:k]
        assert places(result.outputs) == [(snapshot.model_of(r).repo, int(snapshot.output[r])) for r in order]
        for hit, row in zip(result.outputs, order, strict=True):
            assert hit.margin == pytest.approx(probes[row], abs=2e-4)  # what the probes say, without the bonus
            assert hit.label_margin == (None if np.isnan(labels[row]) else pytest.approx(labels[row], abs=1e-4))
            spoken = (["probes"] if probes[row] > 0 else []) + (["labels"] if bonus[row] > 0 else [])
            assert list(hit.witnesses or ()) == spoken
    assert [result.outputs[0].model for result in answer.results[:2]] == ["a/right"] * 2


def test_labels_alone_rank_by_the_label_and_then_by_the_probes(index: Index) -> None:
    snapshot, searcher = index.snapshot(), Searcher(index, choosy)
    for text in ("cat", "chair", "zebra"):
        labels = [slow_margin(index, snapshot.label_of(row), vector(text)) for row in range(len(snapshot))]
        probes = probe_margins(index, vector(text), "whitened")
        rows = [row for row in range(len(snapshot)) if not np.isnan(labels[row])]
        order = sorted(rows, key=lambda row: (-round(labels[row], 4), -probes[row]))
        for k in (1, 2, 100):
            hits = searcher.search(SearchRequest((text,), k, evidence="labels")).results[0].outputs
            assert places(hits) == [(snapshot.model_of(r).repo, int(snapshot.output[r])) for r in order][:k]
            for hit, row in zip(hits, order, strict=False):
                assert hit.margin == pytest.approx(probes[row], abs=2e-4)
                assert ("labels" in (hit.witnesses or ())) == (labels[row] > 0)
    hits = searcher.search(SearchRequest(("cat",), 2, evidence="labels")).results[0].outputs
    assert places(hits) == [("a/right", 0), ("a/lies", 1)]  # one label: the probes decide, and the liar is believed
    assert [hit.witnesses for hit in hits] == [("probes", "labels"), ("labels",)]
    both = searcher.search(SearchRequest(("cat",), 3, evidence="both")).results[0].outputs
    assert ("a/lies", 1) not in places(both)


@pytest.mark.parametrize("labels", ["LABEL_{}", "{}", None])
def test_without_labels_of_use_both_is_probes(tmp_path: Path, labels: str | None) -> None:
    index = make_index(tmp_path / "zoo")
    with IndexWriter(index.folder) as writer:
        for seed in (1, 2):
            own = [labels.format(i) if labels else None for i in range(len(ANIMALS))]
            put_model(writer, f"org/m{seed}", ANIMALS, labels=own, seed=seed)
        writer.finish()
    searcher = Searcher(Index(index.folder), encode)
    for k in (1, 5, 100):
        plain, both, alone = (
            searcher.search(SearchRequest(("cat", "zebra"), k, evidence=e)).results  # type: ignore[arg-type]
            for e in ("probes", "both", "labels")
        )
        for one, other in zip(plain, both, strict=True):
            bare = [hit.model_dump(exclude={"witnesses", "label_margin"}) for hit in other.outputs]
            assert bare == [hit.model_dump(exclude={"witnesses", "label_margin"}) for hit in one.outputs]
            assert all("labels" not in (hit.witnesses or ()) for hit in other.outputs)
            assert all(hit.label_margin is None for hit in other.outputs)
        assert [result.hits for result in alone] == [(), ()]


def test_the_json_names_the_witnesses_only_when_they_were_asked(index: Index) -> None:
    searcher = Searcher(index, choosy)
    plain = searcher.search(SearchRequest(("cat",), 1)).to_json()["results"][0]["hits"][0]  # type: ignore[index]
    assert "witnesses" not in plain
    assert "label_margin" not in plain
    both = searcher.search(SearchRequest(("lamp",), 2, evidence="both")).to_json()["results"][0]["hits"]  # type: ignore[index]
    assert [hit["witnesses"] for hit in both] == [["probes"], ["probes"]]
    assert [hit["label_margin"] for hit in both] == [None, None]


def refuse(texts: Sequence[str]) -> FloatArray:
    raise AssertionError(f"{texts} were embedded again")


def ask(index: Index, embed: object, text: str = "cat") -> list[tuple[str, int]]:
    searcher = Searcher(index, embed)  # type: ignore[arg-type]
    return places(searcher.search(SearchRequest((text,), 5, evidence="both")).results[0].outputs)


def forget(index: Index) -> None:
    (index.folder / "concepts.sqlite").unlink(missing_ok=True)


def test_labels_are_remembered_for_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make_filled_index(tmp_path / "zoo")
    first = ask(index, encode)
    forget(index)  # what is remembered must be the labels' own memory, not that of texts
    index.embed(["cat"], encode)
    with monkeypatch.context() as patched:
        patched.setattr("query.labels.exact_margins", lambda *_: pytest.fail("the labels were judged again"))
        assert ask(Index(index.folder), refuse) == first


def test_remembered_labels_end_with_their_snapshot(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    ask(index, encode)
    with IndexWriter(index.folder) as writer:  # shifts every row, and no label is new
        put_model(writer, "aaa/first", ("cat", "dog"), labels=("cat", "owl"), seed=9)
        writer.finish()
    index = Index(index.folder)
    assert witness(index).margins(vector("cat")).trusted.tolist() == slow_trusted(index, "whitened")


def test_snapshots_that_begin_anew_are_not_taken_for_the_old_ones(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    ask(index, encode)
    shutil.rmtree(index.folder / "snapshots")  # only a cache: the next one has the number 1 again
    with IndexWriter(index.folder) as writer:  # as many outputs with the same labels, of which two are wrong now
        put_model(writer, "org/animals", ("dog", "cat", "horse", "owl"), labels=ANIMALS, revision="r2", seed=8)
        writer.finish()
    index = Index(index.folder)
    assert index.snapshot().number == 1
    trusted = witness(index).margins(vector("cat")).trusted.tolist()
    assert trusted == slow_trusted(index, "whitened")
    assert trusted[:4] == [False, False, True, True]


@pytest.mark.parametrize("damage", ["cut", "missing", "short"])
def test_a_damaged_memory_of_labels_costs_only_time(tmp_path: Path, damage: str) -> None:
    index = make_filled_index(tmp_path / "zoo")
    first = ask(index, encode)
    (place,) = (index.folder / "labels").iterdir()
    if damage == "cut":
        (place / "vectors.npy").write_bytes((place / "vectors.npy").read_bytes()[:100])
    elif damage == "missing":
        (place / "trusted.npy").unlink()
    else:
        np.save(place / "trusted.npy", np.ones(3, bool))
    assert ask(index, encode) == first
    forget(index)
    index.embed(["cat"], encode)
    assert ask(index, refuse) == first  # repaired


def test_memories_of_old_generations_are_removed(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    for method in METHODS:
        witness(index, method)
    old = {path.name for path in (index.folder / "labels").iterdir()}
    assert len(old) == 4
    with IndexWriter(index.folder) as writer:
        put_model(writer, "more/one", ("cat",))
        writer.finish()
    ask(Index(index.folder), encode)
    now = {path.name for path in (index.folder / "labels").iterdir()}
    assert len(now) == 4
    assert len(now & old) == 3


def test_methods_do_not_share_what_they_trust(index: Index) -> None:
    searcher = Searcher(index, choosy)
    for method in ("probelog", "whitened", "probelog"):
        searcher.search(SearchRequest(("cat",), 3, method, evidence="labels"))
    assert searcher._witnesses.keys() >= {"probelog", "whitened"}
    assert slow_trusted(index, "whitened") != slow_trusted(index, "probelog")
    for method, one in searcher._witnesses.items():
        assert one.margins(vector("cat")).trusted.tolist() == slow_trusted(index, method)


def test_an_index_that_cannot_be_written_goes_without_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make_filled_index(tmp_path / "zoo")
    first = ask(index, encode)
    shutil.rmtree(index.folder / "labels")

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    for path in (index.folder, *index.folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        if os.geteuid() == 0:  # root may write anywhere
            monkeypatch.setattr("query.labels.new_folder", refused)
        assert ask(index, encode) == first
        assert not (index.folder / "labels").exists()
    finally:
        for path in (index.folder, *index.folder.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)


def test_an_index_without_models_has_no_labels(tmp_path: Path) -> None:
    index = make_index(tmp_path / "zoo")
    with pytest.raises(IndexUnusableError, match="is empty"):
        Searcher(index, encode)
    with IndexWriter(index.folder) as writer:
        writer.finish()
    answer = Searcher(Index(index.folder), encode).search(SearchRequest(("cat",), evidence="both"))
    assert answer.searched == 0
    assert answer.results[0].hits == ()


def test_progress_counts_the_labels(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    told: list[tuple[int, int]] = []
    searcher = Searcher(index, encode, progress=lambda done, total: told.append((done, total)))
    searcher.search(SearchRequest(("cat",)))
    assert told == []
    searcher.search(SearchRequest(("cat",), evidence="both"))
    assert told == [(7, 7)]


@pytest.mark.parametrize("method", ["weighted", "probelog"])
def test_margins_of_another_scale_are_not_added_up(index: Index, method: str) -> None:
    with pytest.raises(InputError, match=f"those of {method} have another: use --method whitened or dual"):
        Searcher(index, choosy).search(SearchRequest(("cat",), 3, method, evidence="both"))
