"""The shelf: files come back as they were put, replaced ones whole or not at all, and damage is noticed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from engine.errors import IndexDamagedError
from engine.store import shelf as module
from engine.store.base import StoreLayout
from engine.store.server import ServerStore, connect
from engine.store.shelf import FileShelf, ShelfEntry, owner_of
from tests.support.qdrant_server import standin

LAYOUT = StoreLayout(probes=10, top_r=3, dimension=4)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with standin(tmp_path_factory.mktemp("server")) as server:
        yield server.url


@pytest.fixture(params=["local", "standin"])
def shelf(request: pytest.FixtureRequest, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileShelf]:
    monkeypatch.setattr(module, "PART_BYTES", 1000)  # as a large file has many parts
    client = QdrantClient(":memory:") if request.param == "local" else connect(url)
    with ServerStore.create(client, f"zoo{uuid.uuid4().hex}", LAYOUT) as store:
        yield FileShelf(store)


def put(shelf: FileShelf, folder: Path, files: dict[str, bytes], group: str = "core") -> int:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return shelf.put([(name, group, folder / name) for name in files])


FILES = {
    "manifest.json": b"{}",
    "empty": b"",
    "large.npy": os.urandom(4321),
    "exact.npy": os.urandom(2000),
    "below/one.bin": bytes(range(256)),
}


def test_files_come_back_as_they_were(shelf: FileShelf, tmp_path: Path) -> None:
    assert shelf.entries() == {}
    assert shelf.entry("manifest.json") is None
    assert put(shelf, tmp_path / "in", FILES) == len(FILES)
    assert put(shelf, tmp_path / "in", FILES) == 0  # nothing is written twice
    entries = shelf.entries()
    assert {path: entry.size_bytes for path, entry in entries.items()} == {p: len(c) for p, c in FILES.items()}
    steps: list[tuple[int, int]] = []
    shelf.fetch(entries.values(), lambda path: tmp_path / "out" / path, lambda *at: steps.append(at))
    assert steps == [(i + 1, 5) for i in range(5)]
    assert {path: (tmp_path / "out" / path).read_bytes() for path in entries} == FILES
    assert sum(file.is_file() for file in (tmp_path / "out").rglob("*")) == 5  # no temporary file stays


def test_groups_and_owners(shelf: FileShelf, tmp_path: Path) -> None:
    names = ["responses/org--a@1.npy", "responses/org--a@2.npy", "responses/org--ab@1.npy"]
    put(shelf, tmp_path, {name: name.encode() for name in names}, "responses")
    put(shelf, tmp_path, {"tasks/pets/a.png": b"4"}, "tasks")
    assert list(shelf.entries(["responses"], "responses/org--a")) == [
        "responses/org--a@1.npy",
        "responses/org--a@2.npy",
    ]
    assert list(shelf.entries(["tasks"])) == ["tasks/pets/a.png"]
    assert list(shelf.entries(["core"])) == []
    assert owner_of("tasks/pets/deep/a@b.png") == "tasks/pets"
    assert owner_of("manifest.json") == "manifest.json/"
    shelf.remove(["responses/org--a@1.npy", "absent"])
    assert list(shelf.entries(["responses"])) == ["responses/org--a@2.npy", "responses/org--ab@1.npy"]


def test_a_replaced_file_leaves_nothing_behind(shelf: FileShelf, tmp_path: Path) -> None:
    put(shelf, tmp_path / "in", {"a": os.urandom(3500), "b": b"kept"})
    old = shelf.entries()["a"]
    put(shelf, tmp_path / "in", {"a": b"new"})
    count = shelf._store.client.count(shelf._collection, exact=True).count
    assert count == 4  # two heads, a part each
    # Who has read the old head gets the new file.
    shelf.fetch([old], lambda path: tmp_path / "out" / path)
    assert (tmp_path / "out" / "a").read_bytes() == b"new"


def test_parts_that_another_writer_is_putting_stay(shelf: FileShelf, tmp_path: Path) -> None:
    put(shelf, tmp_path / "in", {"a": b"first"})
    known = shelf._retrieve_heads(["a"])
    theirs = ShelfEntry("a", "core", "f" * 64, 3)
    shelf._upsert([module._part(theirs, 0, b"new")])
    ours = ShelfEntry("a", "core", "e" * 64, 4)
    shelf._finish([module._head(ours)], [module._part(ours, 0, b"ours")], known)
    kept = shelf._retrieve([module._part_id(theirs, 0), module._part_id(ours, 0)])
    assert len(kept) == 2


@pytest.mark.parametrize("harm", ["part gone", "part altered", "file gone"])
def test_damage_is_noticed_and_leaves_nothing(shelf: FileShelf, tmp_path: Path, harm: str) -> None:
    put(shelf, tmp_path / "in", {"a": os.urandom(2500)})
    entry = shelf.entries()["a"]
    client, collection = shelf._store.client, shelf._collection
    if harm == "part gone":
        client.delete(collection, qm.PointIdsList(points=[module._part_id(entry, 1)]), wait=True)
    elif harm == "part altered":
        shelf._upsert([module._part(entry, 1, bytes(1000))])
    else:
        shelf.remove(["a"])
    with pytest.raises(IndexDamagedError, match="the file a on the server is damaged or was removed"):
        shelf.fetch([entry], lambda path: tmp_path / "out" / path)
    assert list((tmp_path / "out").iterdir()) == []


def test_small_files_from_memory(shelf: FileShelf, tmp_path: Path) -> None:
    for content in (b"1", b"2", b""):
        shelf.put_bytes("knowledge.seq", "core", content)
        shelf.fetch([shelf.entries()["knowledge.seq"]], lambda path: tmp_path / path)
        assert (tmp_path / "knowledge.seq").read_bytes() == content
