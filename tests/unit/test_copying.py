"""Copying an index: the same content, whatever happens on the way."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import namedtuple
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engine.copy_report import CopyReport
from engine.copy_source import MARKER
from engine.copy_stores import FolderSource, open_source
from engine.copy_target import open_target
from engine.copying import copy_index, groups, read_content
from engine.errors import (
    IndexDamagedError,
    IndexLockedError,
    IndexUnusableError,
    InputError,
    ProbeError,
    StoreError,
)
from engine.index import Index
from engine.schema import Model
from engine.store.base import StoredPoint
from engine.store.content import Content, content_of
from engine.store.edge import EdgeStore
from engine.verify import verify
from engine.writer import IndexWriter
from query.request import SearchRequest
from query.search import Searcher
from tests.support.full_index import make_full_index
from tests.support.output_tables import fast_folder
from tests.support.small_index import ANIMALS, THINGS, encode, put_model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with fast_folder(tmp_path_factory.mktemp("made")) as folder:
        yield make_full_index(folder / "zoo").folder


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory, where there is room: nothing here depends on the disk."""
    with fast_folder(tmp_path) as folder:
        yield folder


@pytest.fixture
def zoo(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "zoo"))


def run_copy(source: Path, target: Path, **options: object) -> CopyReport:
    with open_source(str(source), **options) as old, open_target(str(target), old) as new:  # type: ignore[arg-type]
        return copy_index(old, new)


def content(folder: Path) -> str:
    with open_source(str(folder)) as source:
        return read_content(source).sha256


class Killed(BaseException):
    """What a kill looks like from inside: no error of ours, nothing is tidied."""


def copy_until(source: Path, target: Path, steps: int) -> None:
    """Copies, and stops dead at a step of the progress bar."""
    count = iter(range(steps))

    def step(_done: float, _total: float, _what: str) -> None:
        if next(count, None) is None:
            raise Killed

    with (
        pytest.raises(Killed),
        open_source(str(source)) as old,
        open_target(str(target), old) as new,
    ):
        copy_index(old, new, step)


def test_a_copy_is_the_same_in_every_respect(zoo: Path, tmp_path: Path) -> None:
    report = run_copy(zoo, tmp_path / "copy")
    copy = Index(tmp_path / "copy")
    assert verify(copy.folder) == []
    assert report.content.sha256 == content(zoo) == content(copy.folder)
    assert (report.copied, report.kept, report.repaired, report.rounds, report.settled) == (6, 0, 0, 1, True)
    counts = {part: one.count for part, one in report.content.parts().items()}
    assert (counts["outputs"], counts["models"], counts["profiles"]) == (3 * 4 + 7, 6, 3)
    assert copy.knowledge() == Index(zoo).knowledge()
    assert not (copy.folder / MARKER).exists()
    # Independently of hashes: every number of every output, the vectors too, and no output that nobody claims.
    with EdgeStore.open(zoo / "store") as one, EdgeStore.open(copy.folder / "store") as other:
        assert one.models() == other.models()
        claimed = {(model.repo, model.revision) for model in one.models() if model.outputs}
        points = [p for p in one.stored("outputs") if (p.payload["repo"], p.payload["revision"]) in claimed]
        assert points == list(other.stored("outputs")) and len(points) == 19 < one.count("outputs")
        assert list(one.stored("profiles")) == list(other.stored("profiles"))
    for name in ("probes.json", "probe_embeddings.npy", "responses/zoo--both@r1.npy"):
        assert (zoo / name).read_bytes() == (copy.folder / name).read_bytes()
    assert not (copy.folder / "responses" / "org--stray@r1.npy").exists()


def test_a_copy_answers_as_the_original(zoo: Path, tmp_path: Path) -> None:
    run_copy(zoo, tmp_path / "copy")
    answers = []
    for folder in (zoo, tmp_path / "copy"):
        index = Index(folder)
        [found] = Searcher(index, encode).search(SearchRequest(("owl",), k=5)).results
        answers.append([(hit.model, hit.output, hit.margin) for hit in found.hits])
    assert answers[0] == answers[1] and len(answers[0]) == 5


def test_a_copy_has_the_probe_images_unless_told(zoo: Path, tmp_path: Path) -> None:
    original = Index(zoo).probe_folder
    run_copy(zoo, tmp_path / "copy")
    run_copy(zoo, tmp_path / "lean", with_probes=False)
    copy, lean = Index(tmp_path / "copy"), Index(tmp_path / "lean")
    assert copy.manifest.probes.folder is None and len(list((copy.folder / "probes").iterdir())) == 80
    assert lean.probe_folder == original and not (lean.folder / "probes").exists()
    assert content(copy.folder) == content(lean.folder) == content(zoo)
    moved = original.rename(tmp_path / "moved")
    try:
        with pytest.raises(ProbeError, match="--no-probes"):
            run_copy(zoo, tmp_path / "other")
        assert not (tmp_path / "other").exists()
        run_copy(zoo, tmp_path / "other", probes=moved)
        assert Index(tmp_path / "other").probes().fingerprint == copy.manifest.probes.fingerprint
    finally:
        moved.rename(original)


def test_a_changed_probe_image_is_not_copied(zoo: Path, tmp_path: Path) -> None:
    probes = Path(shutil.copytree(Index(zoo).probe_folder, tmp_path / "probes"))
    (probes / "007.png").write_bytes((probes / "008.png").read_bytes())
    with pytest.raises(IndexDamagedError, match=r"007\.png"):
        run_copy(zoo, tmp_path / "copy", probes=probes)
    with pytest.raises(IndexUnusableError):
        Index(tmp_path / "copy")


@pytest.mark.parametrize("steps", [0, 1, 4, 6])
def test_what_was_cut_short_is_no_index_and_goes_on(
    zoo: Path, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.copying._GROUP", 4)
    target = tmp_path / "copy"
    copy_until(zoo, target, steps)
    with pytest.raises(IndexUnusableError):
        Index(target)
    with EdgeStore.open(target / "store") as store:
        there = len(store.models())
    report = run_copy(zoo, target)
    assert report.resumed and (report.kept, report.copied) == (there, 6 - there)
    assert report.content.sha256 == content(zoo) == content(target)
    assert verify(target) == []


def test_goes_on_after_the_original_has_changed(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.copying._GROUP", 4)
    target = tmp_path / "copy"
    copy_until(zoo, target, 6)  # all outputs are there, and some were read back
    with IndexWriter(zoo) as writer:
        put_model(writer, "org/animals-0", ANIMALS[:2], revision="r2", seed=7)
        put_model(writer, "org/new", THINGS, seed=8)
        writer.remove_model("org/animals-1")
        writer.finish()
    report = run_copy(zoo, target)
    assert (report.resumed, report.copied, report.kept) == (True, 2, 4)
    assert report.content.sha256 == content(zoo) == content(target)
    with EdgeStore.open(target / "store") as store:
        assert store.count("outputs") == 2 + 3 + 4 + 7
    assert not (target / "responses" / "org--animals-0@r1.npy").exists()
    assert verify(target) == []


def test_outputs_altered_on_the_way_are_copied_again(zoo: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    altered = []

    def alter(_done: float, _total: float, what: str) -> None:
        if what == "verifying outputs" and not altered:
            return
        if what == "copying outputs" and not altered:
            altered.append(spoil(new.store))

    with open_source(str(zoo)) as old, open_target(str(target), old) as new:
        report = copy_index(old, new, alter)
    assert altered == ["zoo/both"] and report.repaired == 1
    assert content(zoo) == content(target)


def spoil(store: object) -> str:
    """Changes one label of a model in a store."""
    assert isinstance(store, EdgeStore)
    table = store.outputs("zoo/both", "r1")
    assert table is not None
    store.upsert_outputs(replace(table, labels=("another", *table.labels[1:])))
    return table.repo


def test_a_copy_that_stays_different_is_refused(zoo: Path, tmp_path: Path) -> None:
    def alter(_done: float, _total: float, what: str) -> None:
        if what == "copying outputs":
            spoil(new.store)

    with (
        open_source(str(zoo)) as old,
        open_target(str(tmp_path / "copy"), old) as new,
        pytest.raises(StoreError, match="zoo/both"),
    ):
        copy_index(old, new, alter)
    with pytest.raises(IndexUnusableError):
        Index(tmp_path / "copy")


class Busy(FolderSource):
    """A source that somebody writes to whenever outputs are read, as on a server."""

    def __init__(self, folder: Path, changes: int) -> None:
        super().__init__(folder)
        self.left, self.number = changes, 0

    def version(self) -> object:
        return self.number

    def outputs(self, models: Sequence[StoredPoint]) -> Iterator[StoredPoint]:
        if self.left:
            self.left -= 1
            self.number += 1
            revision = f"new-{self.number}"
            table = self.store.outputs("org/animals-0", self.store.model("org/animals-0").revision)  # type: ignore[union-attr]
            assert table is not None
            self.store.upsert_outputs(replace(table, revision=revision))
            model = self.store.model("org/animals-0")
            assert model is not None
            self.store.upsert_model(model.model_copy(update={"revision": revision}))
            self.store.delete_outputs("org/animals-0", keep_revision=revision)
        return super().outputs(models)


@pytest.mark.parametrize(("changes", "settled"), [(1, True), (3, True), (6, False)])
def test_a_source_that_is_written_to_is_read_until_it_is_whole(
    zoo: Path, tmp_path: Path, changes: int, settled: bool
) -> None:
    target = tmp_path / "copy"
    if not settled:
        with Busy(zoo, changes) as old, open_target(str(target), old) as new, pytest.raises(IndexDamagedError):
            copy_index(old, new)
        return
    with Busy(zoo, changes) as old, open_target(str(target), old) as new:
        report = copy_index(old, new)
    assert report.settled and report.rounds == changes + 1
    with EdgeStore.open(target / "store") as store:
        model = store.model("org/animals-0")
        assert model is not None and model.revision == f"new-{changes}"
        assert store.count("outputs") == 19
    assert report.content.outputs == outputs_content(zoo)


def test_a_model_that_is_replaced_while_a_resumed_copy_is_verified(zoo: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    copy_until(zoo, target, 1)  # all models are there
    with Busy(zoo, 1) as old, open_target(str(target), old) as new:
        report = copy_index(old, new)
    assert (report.kept, report.copied, report.repaired) == (6, 1, 0)
    assert report.content.outputs == outputs_content(zoo)
    with EdgeStore.open(target / "store") as store:
        model = store.model("org/animals-0")
        assert model is not None and model.revision == "new-1" and store.count("outputs") == 19


def outputs_content(folder: Path) -> Content:
    with EdgeStore.open(folder / "store") as store:
        revisions = {(model.repo, model.revision) for model in store.models()}
        points = store.stored("outputs")
        return content_of(p for p in points if (p.payload["repo"], p.payload["revision"]) in revisions)


def test_an_original_that_is_not_whole_is_refused(zoo: Path, tmp_path: Path) -> None:
    with EdgeStore.open(zoo / "store") as store:
        store.delete_outputs("org/animals-2")
    with pytest.raises(IndexDamagedError, match=r"1 model.*org/animals-2.*verify"):
        run_copy(zoo, tmp_path / "copy")


def test_occupied_targets_are_refused(zoo: Path, made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is an index"):
        run_copy(zoo, made)
    with pytest.raises(InputError, match="there is an index"):
        run_copy(zoo, zoo)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="not an empty folder"):
        run_copy(zoo, tmp_path / "full")
    with pytest.raises(InputError, match="not an empty folder"):
        run_copy(zoo, tmp_path / "full" / "letter.txt")
    assert (tmp_path / "full" / "letter.txt").read_text() == "dear"
    other = make_full_index(tmp_path / "other" / "zoo", models=1).folder
    copy_until(other, tmp_path / "half", 1)
    with pytest.raises(InputError, match="unfinished copy of"):
        run_copy(zoo, tmp_path / "half")


def test_locks_are_respected(zoo: Path, tmp_path: Path) -> None:
    with IndexWriter(zoo), pytest.raises(IndexLockedError):
        run_copy(zoo, tmp_path / "copy")
    copy_until(zoo, tmp_path / "copy", 1)
    with EdgeStore.open(tmp_path / "copy" / "store"), pytest.raises(IndexLockedError):
        run_copy(zoo, tmp_path / "copy")


def test_a_disk_without_room_is_refused_before_anything_is_written(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(1 << 40, 1 << 40, 30_000)
    monkeypatch.setattr("engine.copy_target.shutil", SimpleNamespace(disk_usage=lambda _: usage))
    with pytest.raises(StoreError, match="the disk is full: a copy of"):
        run_copy(zoo, tmp_path / "deep" / "copy")
    assert not (tmp_path / "deep").exists()


def test_a_disk_that_fills_up_leaves_a_copy_to_go_on_with(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(3))

    def full(path: Path, size_bytes: int) -> None:
        if next(calls, None) is None and "copy" in str(path):
            raise StoreError(f"the disk is full: {path}", path)

    with monkeypatch.context() as patch:
        patch.setattr("engine.store.shard.require_space", full)
        with pytest.raises(StoreError, match="the disk is full"):
            run_copy(zoo, tmp_path / "copy")
    report = run_copy(zoo, tmp_path / "copy")
    assert report.resumed and report.content.sha256 == content(zoo)


def test_content_is_what_its_definition_says() -> None:
    point = StoredPoint("id-1", {"b": 1, "a": "é"}, [7, 3], [0.5, -0.0], [1.0, 2.0])
    blocks = [
        b"id-1",
        '{"a":"é","b":1}'.encode(),
        np.array([3, 7], "<u4").tobytes(),
        np.array([0.0, 0.5], "<f4").tobytes(),
        np.array([1, 2], "<f4").tobytes(),
    ]
    digest = hashlib.sha256(b"".join(len(b).to_bytes(8, "little") + b for b in blocks)).digest()
    other = StoredPoint("id-2", {}, [], [], [])
    one = content_of([point, other])
    assert one == content_of([other, point])
    assert one.total == (int.from_bytes(digest, "big") + content_of([other]).total) % 2**256
    assert one.count == 2 and len(one.sha256) == 64
    changed = [
        point._replace(id="id-3"),
        point._replace(payload={**point.payload, "b": 2}),
        point._replace(indices=[7, 4]),
        point._replace(values=[0.5, 1e-30]),
        point._replace(dense=[1.0, float(np.nextafter(np.float32(2), np.float32(3)))]),
    ]
    assert len({content_of([p]).total for p in [point, *changed]}) == 6
    assert content_of([point]) == content_of([json.loads(json.dumps(point._asdict()), object_hook=as_point)])
    assert content_of([point, point]) != content_of([point])


def as_point(value: dict[str, object]) -> object:
    return StoredPoint(**value) if "dense" in value else value  # type: ignore[arg-type]


def test_models_are_grouped_by_their_outputs() -> None:
    models = [
        StoredPoint(str(i), Model(repo=f"a/{i}", revision="r", outputs=n).model_dump(mode="json"), [], [], [])
        for i, n in enumerate([3, 3, 9, 0, 1, 4])
    ]
    assert [[int(m.id) for m in group] for group in groups(models, 6)] == [[0, 1], [2], [3, 4, 5]]
