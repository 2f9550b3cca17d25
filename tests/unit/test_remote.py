"""Indexes on a server: working folders, and snapshots that follow what changes there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine import remote as module
from engine.calibration import Background
from engine.catching_up import Seen
from engine.errors import IndexDamagedError, IndexMissingError, InputError, StoreError
from engine.index import Index, describe_background
from engine.knowledge import Knowledge
from engine.remote import Remote, index_folder, is_index, shown, working_folder
from engine.remote_creation import new_index
from engine.schema import Model, ModelState, Task, TaskImage
from engine.snapshot import Snapshot
from engine.store.address import ServerAddress
from engine.store.base import StoreLayout
from engine.store.server import ServerStore
from engine.tasks import task_images
from engine.writer import IndexWriter
from query.request import SearchRequest
from query.search import Searcher
from tests.support.fault_proxy import Rule, fault_proxy
from tests.support.servers import Addresses, server_addresses, to_server
from tests.support.small_index import ANIMALS, THINGS, encode, make_filled_index, make_index, put_model


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    with server_addresses(tmp_path_factory.mktemp("server")) as made:
        yield made


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUBHOUND_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def address(addresses: Addresses, tmp_path: Path) -> str:
    """An index on the server with the three models of ``make_filled_index``."""
    address = addresses()
    empty = make_index(tmp_path / "zoo")
    shutil.copytree(empty.probe_folder, empty.folder / "probes")
    folder = to_server(empty.folder, address)
    with IndexWriter(folder) as writer:
        put_model(writer, "org/animals", ANIMALS, library="timm", licence="mit", parameters=1000, downloads=50, seed=1)
        put_model(writer, "org/things", THINGS, library="transformers", parameters=5_000_000, seed=2)
        both = (*ANIMALS, *THINGS)
        put_model(writer, "zoo/both", both, labels=[None] * len(both), library="timm", seed=3)
        writer.finish()
    return address


def another_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """What follows happens on a machine that knows nothing yet."""
    monkeypatch.setenv("HUBHOUND_DATA", str(folder))
    monkeypatch.setattr(module, "_STORES", {})


def same_arrays(one: Snapshot, other: Snapshot) -> None:
    for name in vars(one.arrays):
        a, b = getattr(one.arrays, name), getattr(other.arrays, name)
        if name in {"code", "scale", "error", "rest"}:  # of anchors, which a store keeps within 1e-6
            continue
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert [model.repo for model in one.models] == [model.repo for model in other.models]
    assert [one.label_of(row) for row in range(len(one))] == [other.label_of(row) for row in range(len(other))]


def test_another_machine_has_the_whole_index(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = make_filled_index(tmp_path / "embedded" / "zoo")
    another_machine(monkeypatch, tmp_path / "other")
    folder = index_folder(address)
    assert folder.is_relative_to(tmp_path / "other")
    there = Index(folder)
    assert shown(folder) == there.name == str(ServerAddress.parse(address))
    assert there.manifest.background == here.manifest.background
    np.testing.assert_array_equal(there.probe_embeddings, here.probe_embeddings)
    same_arrays(there.snapshot(), here.snapshot())
    found = Searcher(there, encode).search(SearchRequest(("cat", "lamp"), 5, explain=True))
    known = Searcher(here, encode).search(SearchRequest(("cat", "lamp"), 5, explain=True))
    for mine, own in zip(found.results, known.results, strict=True):
        assert [(h.model, h.output) for h in mine.hits] == [(h.model, h.output) for h in own.hits]
        np.testing.assert_allclose([h.margin for h in mine.hits], [h.margin for h in own.hits], atol=1e-5)
    assert not (folder / "probes").exists()  # nobody has asked for them
    assert len(there.probes()) == here.manifest.probes.count
    assert there.responses.read("org/animals", "r1") is not None
    assert there.responses.read("org/animals", "r2") is None
    assert there.responses.has("zoo/both", "r1") and not there.responses.has("zoo/none", "r1")


def test_only_what_changed_is_read(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(index_folder(address))
    assert index.snapshot().number == 1
    asked: list[list[str]] = []
    reading = ServerStore.iter_outputs

    def watched(store: ServerStore, models: list[Model]) -> Iterator[object]:
        asked.append([model.repo for model in models])
        return reading(store, models)

    monkeypatch.setattr(ServerStore, "iter_outputs", watched)
    assert index.snapshot().number == 1  # nothing has changed, nothing is written
    assert asked == []
    with IndexWriter(index.folder) as writer:
        put_model(writer, "org/things", ("sofa", "spoon"), revision="r2", seed=7)
        put_model(writer, "org/new", ("bee",), seed=8)
        writer.remove_model("org/animals")
        writer.record(Model(repo="org/bad", revision="r1", state=ModelState.FAILED, detail="no"))
    snapshot = index.snapshot()
    assert asked == [["org/new", "org/things"]]
    shown_now = [f"{model.repo}@{model.revision}" for model in snapshot.models]
    assert shown_now == ["org/new@r1", "org/things@r2", "zoo/both@r1"]
    assert [snapshot.label_of(row) for row in range(3)] == ["bee", "sofa", "spoon"]
    # The same from nothing.
    shutil.rmtree(index.folder / "snapshots")
    fresh = index.snapshot()
    same_arrays(fresh, snapshot)


def test_the_same_revision_put_again_is_read_again(address: str) -> None:
    index = Index(index_folder(address))
    before = index.snapshot()
    with IndexWriter(index.folder) as writer:
        put_model(writer, "org/things", THINGS, seed=99)
    after = index.snapshot()
    rows = slice(int(before.starts[1]), int(before.starts[2]))
    assert after.number == before.number + 1
    assert not np.array_equal(before.arrays.head_z[rows], after.arrays.head_z[rows])
    np.testing.assert_array_equal(before.arrays.head_z[: rows.start], after.arrays.head_z[: rows.start])


def test_what_nobody_sees_is_not_asked_for_again(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(index_folder(address))
    number = index.snapshot().number
    with IndexWriter(index.folder) as writer:
        for i in range(3):
            writer.record(Model(repo=f"org/bad{i}", revision="r1", state=ModelState.FAILED, detail="no"))
    assert index.snapshot().number == number
    asked: list[int] = []
    changes = ServerStore.changes

    def watched(store: ServerStore, since: int) -> Iterator[object]:
        asked.append(since)
        return changes(store, since)

    monkeypatch.setattr(ServerStore, "changes", watched)
    assert index.snapshot().number == number
    assert asked == []
    with IndexWriter(index.folder) as writer:
        writer.record(Model(repo="org/bad9", revision="r1", state=ModelState.FAILED, detail="no"))
    assert index.snapshot().number == number
    assert len(list(changes(index.remote.store, asked[0]))) == 1  # type: ignore[union-attr]


def test_a_server_that_was_put_back_is_followed(address: str) -> None:
    """As when a snapshot of Qdrant's own was restored: the numbers are smaller than those seen."""
    index = Index(index_folder(address))
    before = index.snapshot()
    meta = before.folder / "meta.json"
    value = json.loads(meta.read_text())
    value["source"]["seq"] += 10**12
    value["models"][0]["repo"] = "org/aghost"
    meta.write_text(json.dumps(value))
    after = index.snapshot()
    assert [model.repo for model in after.models] == ["org/animals", "org/things", "zoo/both"]


def test_copies_follow_their_originals(address: str) -> None:
    index = Index(index_folder(address))
    copy = Model(repo="org/twin", revision="c1", state=ModelState.COPY, copy_of="org/animals", copied_revision="r1")
    with IndexWriter(index.folder) as writer:
        writer.put_copy(copy)
    assert [c.repo for c in index.snapshot().copies["org/animals"]] == ["org/twin"]
    with IndexWriter(index.folder) as writer:
        put_model(writer, "org/animals", ("bee", "ant"), revision="r2", seed=4)
    snapshot = index.snapshot()
    assert snapshot.copies == {}
    assert [m.repo for m in Seen.of(snapshot, index.remote.identity).lost] == ["org/twin"]  # type: ignore[union-attr]
    with IndexWriter(index.folder) as writer:
        put_model(writer, "org/animals", ANIMALS, revision="r1", seed=1)
    assert [c.repo for c in index.snapshot().copies["org/animals"]] == ["org/twin"]  # its own record has not changed


def test_a_new_background_reaches_readers_and_writers(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = IndexWriter(index_folder(address))  # a crawl, on a machine of its own
    monkeypatch.setattr("engine.writer._LOOK_S", 0.0)
    another_machine(monkeypatch, tmp_path / "other")
    index = Index(index_folder(address))
    names = [f"other phrase {i}" for i in range(40)]
    made: Background = describe_background(names, 10, index.probe_embeddings, encode)
    with IndexWriter(index.folder) as writer:
        writer.set_background(made, "other")
        # Before anything is recalibrated a reader has constants of the new background already.
        read = Index(index.folder).snapshot()
        assert read.background == made.fingerprint
        assert writer.recalibrate() == 3
        writer.finish()
    with writing:
        put_model(writing, "org/new", ("bee",), seed=8)
        record = writing.store.model("org/new")
        assert record is not None
        assert record.calibration == made.fingerprint
    after = Index(index_folder(address)).snapshot()
    assert after.background == made.fingerprint
    for name in ("h", "s", "g", "q"):
        rows = np.r_[0:4, 5:8]  # without the new model
        np.testing.assert_allclose(
            getattr(after.arrays, name)[rows], getattr(read.arrays, name)[:7], rtol=1e-5, err_msg=name
        )


def test_tasks_and_what_is_known_reach_others(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = index_folder(address)
    images = folder / "tasks" / "pets"
    images.mkdir(parents=True)
    from engine.probes import hash_file, probes_fingerprint
    from tests.support.small_index import write_example

    path = write_example(images / "000-cat.png", "cat")
    image = TaskImage(file=path.name, sha256=hash_file(path))
    task = Task(name="pets", images=(image,), fingerprint=probes_fingerprint([image.sha256]), seed=0, drawn_from=1)
    with IndexWriter(folder) as writer:
        writer.put_task(task)
        writer.finish()
    another_machine(monkeypatch, tmp_path / "other")
    other = index_folder(address)
    (known,) = Index(other).knowledge().tasks
    assert known == task
    assert not (other / "tasks").exists()
    (fetched,) = task_images(other, known)
    assert fetched.read_bytes() == path.read_bytes()
    with IndexWriter(other) as writer:
        writer.remove_task("pets")
        shutil.rmtree(other / "tasks" / "pets")
        writer.publish_task("pets")
    assert Index(index_folder(address)).knowledge() == Knowledge()
    assert Remote.of(other).shelf.entries(["tasks"]) == {}  # type: ignore[union-attr]


def test_an_index_that_was_made_again_is_another(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Index(index_folder(address))
    old.snapshot()
    (old.folder / "left").touch()
    another_machine(monkeypatch, tmp_path / "other")
    parsed = ServerAddress.parse(address)
    with ServerStore.open(parsed.connect(), parsed.name) as store:
        store.destroy()
    with pytest.raises(IndexMissingError, match="no index at qdrant://"):
        index_folder(address)
    empty = make_index(tmp_path / "again" / "zoo", top_r=15)
    to_server(empty.folder, address)
    another_machine(monkeypatch, tmp_path / "data")
    with pytest.raises(IndexDamagedError, match="was made again"):
        old.remote.open_store()  # type: ignore[union-attr]
    folder = index_folder(address)
    assert not (folder / "left").exists()
    assert Index(folder).manifest.top_r == 15
    assert Index(folder).current_snapshot() is None


def test_an_interrupted_creation_is_no_index_and_goes_again(addresses: Addresses, tmp_path: Path) -> None:
    address = addresses()
    parsed = ServerAddress.parse(address)
    ServerStore.create(parsed.connect(), parsed.name, StoreLayout(80, 20, 24)).close()
    with pytest.raises(IndexMissingError, match="hubhound index create"):
        index_folder(address)
    assert not is_index(address)
    with new_index(address, {}) as folder:
        make_index(folder)
    assert is_index(address)
    assert not list(working_folder(parsed).parent.glob(".*new*"))
    with pytest.raises(InputError, match="there is an index at qdrant"), new_index(address, {}):
        raise AssertionError


def test_a_file_that_leads_elsewhere_is_refused(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Remote.of(index_folder(address)).shelf.put_bytes("../../outside", "core", b"evil")  # type: ignore[union-attr]
    another_machine(monkeypatch, tmp_path / "other")
    with pytest.raises(IndexDamagedError, match="is no file of an index"):
        index_folder(address)
    assert not list(tmp_path.rglob("outside"))


def test_when_the_server_is_away_what_is_there_stays(
    address: str, addresses: Addresses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = ServerAddress.parse(address)
    monkeypatch.setenv("HUBHOUND_QDRANT_DEADLINE", "1")
    another_machine(monkeypatch, tmp_path / "other")
    with fault_proxy(f"http://{parsed.host}:{parsed.port}") as proxy:
        seen = addresses(proxy.url).rpartition("/")[0] + f"/{parsed.name}"
        index = Index(index_folder(seen))
        before = index.snapshot()
        proxy.refuse()
        with pytest.raises(StoreError, match="does not answer"):
            index.snapshot()
        kept = Snapshot.open(index.folder / "snapshots")
        assert kept is not None
        same_arrays(kept, before)
        assert index_folder(seen, offline=True) == index.folder
        proxy.listen()
        assert index.snapshot().number == before.number
        # Cut in the middle: the snapshot before stays current.
        with IndexWriter(index_folder(address)) as writer:
            put_model(writer, "org/new", ("bee",), seed=8)
        from tests.support.fault_proxy import Reset

        proxy.rules = [Rule(Reset(executed=True, after_bytes=200), path="outputs/points/scroll")]
        with pytest.raises(StoreError):
            index.snapshot()
        assert Snapshot.open(index.folder / "snapshots").number == before.number  # type: ignore[union-attr]
        proxy.rules = []
        assert len(index.snapshot()) == len(before) + 1


def test_damaged_notes_are_made_again(address: str) -> None:
    folder = index_folder(address)
    number = Index(folder).snapshot().number
    meta = next((folder / "snapshots").glob("gen-*")) / "meta.json"
    value = json.loads(meta.read_text())
    meta.write_text(json.dumps({**value, "source": {"identity": value["source"]["identity"], "seq": "x"}}))
    assert Index(folder).snapshot().number == number + 1
    (folder / "server.json").write_text("{}")
    with pytest.raises(IndexDamagedError, match=r"server\.json"):
        Index(folder)
