"""An index as a folder: created whole, written by one, read by many, rebuilt and verified."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from engine.calibration import calibrate
from engine.distance import METHODS
from engine.errors import (
    IndexDamagedError,
    IndexLockedError,
    IndexMismatchError,
    IndexMissingError,
    IndexUnusableError,
    InputError,
    ProbeError,
)
from engine.index import Index, describe_background
from engine.rebuild import rebuild
from engine.schema import Model, ModelState
from engine.snapshot import Snapshot
from engine.verify import verify
from engine.writer import IndexWriter
from query.request import SearchRequest
from query.search import Searcher
from tests.support.small_index import (
    ANIMALS,
    THINGS,
    PretendEncoder,
    answers,
    encode,
    make_filled_index,
    make_index,
    put_model,
)


def hits(index: Index, concept: str, k: int = 3, **options: object) -> list[tuple[str, int, float]]:
    request = SearchRequest((concept,), k, **options)  # type: ignore[arg-type]
    answer = Searcher(Index(index.folder), encode).search(request)
    return [(hit.model, hit.output, hit.margin) for hit in answer.results[0].hits]


def places(index: Index, concept: str, k: int = 2, **options: object) -> list[tuple[str, int]]:
    return [(model, output) for model, output, _ in hits(index, concept, k, **options)]


def test_finds_what_recognises_a_concept(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    for i, name in enumerate(ANIMALS):
        assert sorted(places(index, name)) == [("org/animals", i), ("zoo/both", i)]
    for i, name in enumerate(THINGS):
        assert sorted(places(index, name)) == [("org/things", i), ("zoo/both", len(ANIMALS) + i)]


def test_creating_over_something_is_refused(tmp_path: Path) -> None:
    make_index(tmp_path / "zoo")
    with pytest.raises(InputError, match="already"):
        make_index(tmp_path / "zoo")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        make_index(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    make_index(tmp_path / "empty")


def test_creation_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "manifest.json")

    monkeypatch.setattr("engine.index.write_manifest", full)
    with pytest.raises(OSError, match="No space"):
        make_index(tmp_path / "zoo")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_top_r_beyond_the_probes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--top-r 81"):
        make_index(tmp_path / "zoo", top_r=81)


def test_missing_damaged_and_future_manifests(tmp_path: Path) -> None:
    with pytest.raises(IndexMissingError, match="index create"):
        Index(tmp_path)
    index = make_index(tmp_path / "zoo")
    path = index.folder / "manifest.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(IndexDamagedError, match=r"manifest\.json"):
        Index(index.folder)
    path.write_text(json.dumps(json.loads(text) | {"format": 99}))
    with pytest.raises(IndexMismatchError, match="format 99"):
        Index(index.folder)
    path.write_text(json.dumps(json.loads(text) | {"surprise": 1}))
    with pytest.raises(IndexDamagedError, match="surprise"):
        Index(index.folder)


def test_mixing_is_refused_and_names_the_part(tmp_path: Path) -> None:
    index = make_index(tmp_path / "zoo")
    with pytest.raises(IndexMismatchError, match="encoder") as caught:
        index.manifest.check_encoder("e" * 64, "open_clip:other")
    assert caught.value.part == "encoder"
    with pytest.raises(IndexMismatchError, match="top_r 20 was used, this is 30"):
        index.manifest.check_top_r(30)
    image = tmp_path / "images" / "003.png"
    shutil.copy(tmp_path / "images" / "004.png", image)
    with pytest.raises(IndexMismatchError, match="probes"):
        index.probes()
    image.unlink()
    with pytest.raises(ProbeError, match="--probes"):
        index.probes()


def test_moved_probes_can_be_named(tmp_path: Path) -> None:
    index = make_index(tmp_path / "zoo")
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert len(index.probes(tmp_path / "elsewhere")) == 80


def test_one_writer_many_readers(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    with IndexWriter(index.folder) as writer:
        with pytest.raises(IndexLockedError, match="searching works"):
            IndexWriter(index.folder)
        put_model(writer, "new/model", ("castle",), seed=9)
        assert ("new/model", 0) not in places(index, "castle")  # not before the snapshot
        writer.snapshot()
        assert places(index, "castle", 1) == [("new/model", 0)]
    IndexWriter(index.folder).__exit__()


def test_a_reader_keeps_its_generation(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    searcher = Searcher(index, encode)
    before = searcher.search(SearchRequest(("cat",)))
    with IndexWriter(index.folder) as writer:
        for i in range(4):
            put_model(writer, f"new/m{i}", ("cat",), seed=20 + i)
            writer.snapshot()
    after = searcher.search(SearchRequest(("cat",)))
    assert before.results == after.results
    generations = sorted(path.name for path in (index.folder / "snapshots").glob("gen-*"))
    assert len(generations) == 2


def test_new_revision_replaces_the_old_one(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    with IndexWriter(index.folder) as writer:
        put_model(writer, "org/animals", ("castle", "bridge"), revision="r2", seed=5)
        writer.finish()
        assert writer.store.outputs("org/animals", "r1") is None
        assert writer.store.count_outputs() == 2 + len(THINGS) + len(ANIMALS) + len(THINGS)
    assert places(index, "castle", 1) == [("org/animals", 0)]
    assert "org/animals" not in [model for model, _ in places(index, "dog", 1)]
    assert [p.name for p in (index.folder / "responses").iterdir() if "animals" in p.name] == ["org--animals@r2.npy"]


def test_interrupted_replacement_leaves_the_old_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make_filled_index(tmp_path / "zoo")
    before = hits(index, "cat", 5)
    with IndexWriter(index.folder) as writer:

        def crash(_: Model) -> None:
            raise RuntimeError("killed")

        monkeypatch.setattr(writer.store, "upsert_model", crash)
        with pytest.raises(RuntimeError):
            put_model(writer, "org/animals", ("castle",), revision="r2")
    with IndexWriter(index.folder) as writer:
        writer.snapshot()
    assert hits(index, "cat", 5) == before


def test_failed_models_are_recorded_but_do_not_hide_a_good_revision(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    failed = {"revision": "r9", "state": ModelState.FAILED, "reason": "network", "detail": "no answer"}
    with IndexWriter(index.folder) as writer:
        writer.record(Model(repo="org/animals", **failed))
        writer.record(Model(repo="org/new", **failed))
        states = {model.repo: model.state for model in writer.store.models()}
        writer.finish()
    assert states["org/animals"] is ModelState.INDEXED
    assert states["org/new"] is ModelState.FAILED
    assert {model.repo for model in Index(index.folder).snapshot().models} == {"org/animals", "org/things", "zoo/both"}


def test_snapshot_equals_the_store_and_copies_unchanged_rows(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    with IndexWriter(index.folder) as writer:
        put_model(writer, "aa/first", ("castle",), seed=4)  # sorts before all others: every row moves
        copied = writer.snapshot()
        shutil.rmtree(index.folder / "snapshots")
        fresh = writer.snapshot()
    assert copied is not None
    assert fresh is not None
    for name, column in fresh.arrays.__dict__.items():
        np.testing.assert_array_equal(column, getattr(copied.arrays, name), err_msg=name)
    assert [fresh.label_of(row) for row in range(len(fresh))] == [copied.label_of(row) for row in range(len(copied))]
    assert [fresh.point_id(row) for row in range(len(fresh))] == [copied.point_id(row) for row in range(len(copied))]


def test_damaged_snapshots_say_so(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    folder = index.snapshot().folder
    z = folder / "head_z.npy"
    data = z.read_bytes()
    z.write_bytes(data[:100])
    with pytest.raises(IndexDamagedError, match="head_z"):
        index.snapshot()
    z.write_bytes(data)
    np.save(folder / "h.npy", np.zeros(3, np.float32))
    with pytest.raises(IndexDamagedError, match="3 rows instead of 14"):
        index.snapshot()
    (folder / "meta.json").write_text("{}")
    with pytest.raises(IndexDamagedError, match="index snapshot"):
        index.snapshot()
    (index.folder / "snapshots" / "CURRENT").write_text("../elsewhere")
    with pytest.raises(IndexDamagedError, match="CURRENT"):
        index.snapshot()


def test_empty_index_is_an_error_with_the_next_step(tmp_path: Path) -> None:
    index = make_index(tmp_path / "zoo")
    with pytest.raises(IndexUnusableError, match="index add"):
        index.snapshot()
    with IndexWriter(index.folder) as writer:
        writer.finish()
    assert len(index.snapshot()) == 0
    assert Searcher(index, encode).search(SearchRequest(("cat",))).results[0].hits == ()


def test_recalibration_needs_no_model_and_survives_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make_filled_index(tmp_path / "zoo")
    old = hits(index, "cat", 5)
    made = describe_background([f"other {i}" for i in range(40)], 5, index.probe_embeddings, encode)
    with IndexWriter(index.folder) as writer:
        writer.set_background(made, "test")
        real, calls = writer.store.upsert_model, []

        def crash_at_second(model: Model) -> None:
            calls.append(model.repo)
            if len(calls) == 2:
                raise RuntimeError("killed")
            real(model)

        monkeypatch.setattr(writer.store, "upsert_model", crash_at_second)
        with pytest.raises(RuntimeError):
            writer.recalibrate()
    assert hits(index, "cat", 5) == old  # searches still see the old generation with its own background
    with IndexWriter(index.folder) as writer:
        assert writer.recalibrate() == 2
        writer.finish()
        table = writer.store.outputs("zoo/both", "r1")
        assert table is not None
        np.testing.assert_allclose(table.calibration.h, calibrate(table.idx, table.z, table.anchor, made).h, rtol=1e-6)
    assert hits(index, "cat", 5) != old
    assert {model for model, _ in places(index, "cat")} == {"org/animals", "zoo/both"}
    assert len(list((index.folder / "background").iterdir())) == 1
    assert verify(index.folder) == []


def test_rebuild_equals_fresh_up_to_float16(tmp_path: Path) -> None:
    source = make_filled_index(tmp_path / "zoo")
    target = make_index(tmp_path / "again" / "zoo")
    assert rebuild(source.folder, target.folder) == 3
    for concept in (*ANIMALS, *THINGS):
        old, new = hits(source, concept), hits(target, concept)
        assert [h[:2] for h in old[:2]] == [h[:2] for h in new[:2]]
        np.testing.assert_allclose([h[2] for h in old[:2]], [h[2] for h in new[:2]], atol=0.02)
    assert rebuild(source.folder, target.folder) == 0  # running it again finds everything done
    assert verify(target.folder) == []


def test_rebuild_with_another_r_equals_probing_with_it(tmp_path: Path) -> None:
    source = make_filled_index(tmp_path / "zoo")
    target = make_index(tmp_path / "again" / "zoo", top_r=33)
    rebuild(source.folder, target.folder)
    probed = make_filled_index(tmp_path / "probed" / "zoo", top_r=33)
    assert target.snapshot().arrays.kept(slice(None))[0].shape == (14, 33)
    for concept in ANIMALS:
        assert [h[:2] for h in hits(target, concept, 2)] == [h[:2] for h in hits(probed, concept, 2)]
        np.testing.assert_allclose(
            [h[2] for h in hits(target, concept, 2)], [h[2] for h in hits(probed, concept, 2)], atol=0.02
        )


def test_rebuild_without_responses_says_so(tmp_path: Path) -> None:
    source = make_filled_index(tmp_path / "zoo", responses="drop")
    assert not (source.folder / "responses").exists()
    target = make_index(tmp_path / "again" / "zoo")
    with pytest.raises(IndexUnusableError, match="--responses keep"):
        rebuild(source.folder, target.folder)


def test_verify_finds_what_is_wrong(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    assert verify(index.folder) == []
    next((index.folder / "responses").iterdir()).unlink()
    with IndexWriter(index.folder) as writer:
        put_model(writer, "zz/late", ("castle",), seed=6)
        record = writer.store.model("zoo/both")
        assert record is not None
        writer.store.upsert_model(record.model_copy(update={"outputs": 99}))
    (tmp_path / "images" / "000.png").write_bytes(b"changed")
    problems = " | ".join(verify(index.folder))
    for part in ("probe images", "responses are missing", "7 outputs in the store instead of 99", "snapshot is not"):
        assert part in problems


def test_methods_answer_differently_and_name_themselves(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    margins = {m: [h[2] for h in hits(index, "owl", 3, method=m)] for m in METHODS}
    assert len({tuple(values) for values in margins.values()}) == len(METHODS)
    default = make_filled_index(tmp_path / "other" / "zoo", method="weighted")
    assert [h[2] for h in hits(default, "owl", 3)] == margins["weighted"]


def test_concepts_are_remembered(tmp_path: Path) -> None:
    index = make_filled_index(tmp_path / "zoo")
    asked: list[str] = []

    def count(texts: object) -> np.ndarray:
        asked.extend(texts)  # type: ignore[call-overload]
        return encode(texts)  # type: ignore[arg-type]

    first = index.embed(["cat", "dog", "cat"], count)
    assert asked == ["cat", "dog"]
    again = Index(index.folder).embed(["dog", "cat"], count)
    assert asked == ["cat", "dog"]
    np.testing.assert_array_equal(first[0], again[1])


def test_labels_play_no_part_in_scores(tmp_path: Path) -> None:
    index = make_index(tmp_path / "zoo")
    with IndexWriter(index.folder) as writer:
        for repo, labels in (("a/right", ANIMALS), ("a/wrong", ANIMALS[::-1]), ("a/none", [None] * 4)):
            put_model(writer, repo, ANIMALS, labels=labels, seed=1)
        writer.finish()
    found = hits(index, "cat", 3)
    assert [(model, output) for model, output, _ in found] == [("a/none", 0), ("a/right", 0), ("a/wrong", 0)]
    assert len({margin for *_, margin in found}) == 1


def test_encoder_face_is_that_of_the_real_one() -> None:
    assert answers(("cat",)).shape == (80, 1)
    assert PretendEncoder().encode_texts(["cat"], ("{}",)).shape == (1, PretendEncoder.dimension)


def test_snapshot_opens_none_before_the_first(tmp_path: Path) -> None:
    assert Snapshot.open(tmp_path) is None
